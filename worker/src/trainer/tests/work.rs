//! What a place tells of its work: for how long it computed, waits for others left out, and whether it has sealed a step.

use std::sync::OnceLock;
use std::time::Instant;

use toroid_torus::ids::Step;

use super::*;
use crate::trainer::Computed;

/// Time for which rank 0 is seen to wait for rank 1, at least.
const WAITS: Duration = Duration::from_millis(300);

/// Of the place of rank 0.
static FIRST: OnceLock<Arc<Shared>> = OnceLock::new();

/// Returns when rank 0 has waited for rank 1 for long.
fn make_it_wait() {
    let mut waited = Duration::ZERO;
    while waited < WAITS {
        let pause = Duration::from_millis(1);
        std::thread::sleep(pause);
        if FIRST.get().is_some_and(|shared| shared.waits_for().contains(&Rank::new(1))) {
            waited += pause;
        }
    }
}

/// A step; the time that it took, and what the place says of it.
fn of_place(mut job: Job<CpuDevice>, links: &mut Links, environment: &Environment) -> (Duration, Computed) {
    let shared = &environment.shared;
    if job.assignment.rank == Rank::ZERO {
        assert!(FIRST.set(Arc::clone(shared)).is_ok(), "there is one");
    } else {
        make_it_wait();
    }
    assert!(!shared.has_sealed_after(Step::ZERO), "nothing is computed yet");
    let begin = Instant::now();
    job.step(links, shared).expect("make a step");
    let took = begin.elapsed();
    links.flush().expect("send what the other waits for");
    assert!(
        shared.has_sealed_after(Step::ZERO) && !shared.has_sealed_after(Step::new(1)),
        "the first step was sealed, no other is"
    );
    (took, shared.computed())
}

#[test]
fn waits_for_others_are_no_work() {
    let inputs = inputs(&figures());
    let spec = spec((1, 1, 2), "micro_batch = 2\nglobal = 4", &inputs);
    let told = each_place(&spec, inputs.dir.path(), of_place);
    assert!(told.iter().all(|(_, computed)| computed.num_steps == 1 && !computed.time.is_zero()), "{told:?}");
    let (took, computed) = told[0];
    // A third of it is left out of account: what is seen are single moments.
    assert!(computed.time + WAITS * 2 / 3 <= took, "{computed:?} of {took:?}, {WAITS:?} of which it waited");
}
