//! A place that is to halt makes no step beyond the one that it was told, or says that it is beyond it already.

use toroid_session::AfterCheckpoint;
use toroid_torus::ids::Step;

use crate::trainer::{Requested, Shared};

/// Makes a step if it may.
fn step(shared: &Shared, committed: u64) -> bool {
    let committed = Step::new(committed);
    let begins = shared.begin_step(committed);
    if begins {
        shared.commit(committed.next());
    }
    begins
}

#[test]
fn no_step_is_made_beyond_the_one_to_halt_at() {
    let shared = Shared::default();
    assert!(step(&shared, 0));
    assert_eq!(shared.request_checkpoint(Step::new(3), AfterCheckpoint::Halt), Requested::Ahead);
    assert!(step(&shared, 1) && step(&shared, 2) && !step(&shared, 3));
    // What failed is asked for again, and a later step moves all on.
    assert_eq!(shared.request_checkpoint(Step::new(3), AfterCheckpoint::Halt), Requested::Now);
    assert_eq!(shared.request_checkpoint(Step::new(5), AfterCheckpoint::Halt), Requested::Ahead);
    assert!(step(&shared, 3) && step(&shared, 4) && !step(&shared, 5));
    // The next epoch knows nothing of it.
    shared.reset(Step::new(5));
    assert!(step(&shared, 5));
}

#[test]
fn who_makes_the_next_step_already_is_too_late_to_halt() {
    let shared = Shared::default();
    assert!(step(&shared, 0) && shared.begin_step(Step::new(1)));
    assert_eq!(
        shared.request_checkpoint(Step::new(1), AfterCheckpoint::Halt),
        Requested::TooLate { committed: Step::new(1) }
    );
    assert_eq!(shared.request_checkpoint(Step::new(1), AfterCheckpoint::GoOn), Requested::Now);
    shared.commit(Step::new(2));
    assert_eq!(
        shared.request_checkpoint(Step::new(1), AfterCheckpoint::Halt),
        Requested::TooLate { committed: Step::new(2) }
    );
    assert!(step(&shared, 2), "it was not told to halt");
}
