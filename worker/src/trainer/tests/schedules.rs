//! Every pipeline schedule gives the bits of 1F1B, also where activations are computed again: the order of each gradient's sum is that of
//! the micro-batches (L-2).

use std::path::Path;

use toroid_torus::job::JobSpec;
use toroid_torus::pipeline::Schedule;

use super::{Inputs, each_place, figures, inputs, spec};
use crate::device::Device;

/// What a place has after a step.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Of cross-entropy and the router's losses.
    sums: [u64; 3],
    /// Bits of the summed gradient of the place's shard.
    grads: Vec<u32>,
    /// Bits of the shard after two updates.
    params: Vec<u32>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn outcomes(spec: &JobSpec, dir: &Path) -> Vec<Outcome> {
    each_place(spec, dir, |mut job, links, environment| {
        let sums = job.accumulate(links, &environment.shared).expect("make the step's gradients");
        let device = job.passes.device().clone();
        let mut grads = vec![0.0; job.shards.own().range.len()];
        device.read(crate::device::Buffer::view(job.passes.grads(), job.shards.own().range.clone()), &mut grads);
        for _ in 0..2 {
            job.step(links, &environment.shared).expect("make a step");
            job.passes.start_gather(links, &environment.shared, job.shards.own()).expect("gather the parameters");
        }
        let param = crate::device::Snapshot::to_vec(&job.shards.own().snapshot(&device).param);
        let sums = [sums.ce, sums.z, sums.balance].map(f64::to_bits);
        Outcome { sums, grads: bits(&grads), params: bits(&param) }
    })
}

/// Micro-batches of two samples; `num` of them a step and replica.
fn check(shape: (usize, usize, usize), num: usize, inputs: &Inputs) {
    let batch = format!("micro_batch = 2\nmicro_batches = {num}");
    let mut job = spec(shape, &batch, inputs);
    let expected = outcomes(&job, inputs.dir.path());
    assert!(expected.iter().any(|o| o.grads.iter().any(|g| *g != 0)), "{shape:?}: no gradient at all");
    for (schedule, recompute) in
        [(Schedule::ZeroBubble, false), (Schedule::OneFOneB, true), (Schedule::ZeroBubble, true)]
    {
        (job.pipeline.schedule, job.recompute) = (schedule, recompute);
        for (rank, (found, expected)) in outcomes(&job, inputs.dir.path()).iter().zip(&expected).enumerate() {
            assert!(
                found == expected,
                "T-4: rank {rank} of {shape:?} with {num} micro-batches under {schedule}, recompute {recompute}, has other bits than \
                 under 1F1B"
            );
        }
    }
}

#[test]
fn schedules_and_recomputation_have_the_bits_of_1f1b() {
    let inputs = inputs(&figures());
    check((1, 2, 1), 4, &inputs);
    check((1, 4, 1), 6, &inputs);
    check((2, 2, 1), 3, &inputs);
    check((1, 4, 1), 2, &inputs);
    check((1, 2, 2), 3, &inputs);
    check((1, 1, 1), 2, &inputs);
}
