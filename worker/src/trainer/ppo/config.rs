//! What the keys of a job of kind `ppo` say of a place.

use toroid_session::Assignment;
use toroid_torus::job::{JobSpec, PpoConfig};

pub(super) fn config(spec: &JobSpec) -> &PpoConfig {
    spec.ppo.as_ref().expect("a job of kind ppo has its keys")
}

/// Answers of the replica of a place, in the order in which its first pass has them: numbers within the iteration.
pub(super) fn of_replica(place: &Assignment) -> Vec<u64> {
    let spec = &place.spec;
    let (num, size) = (spec.batch.num_micro_batches as u64, spec.batch.micro_batch as u64);
    let own = spec.batch.of_replica(spec.shape.dp(), place.place().dp);
    let micro_batches = (0..config(spec).minibatches).flat_map(|m| own.clone().map(move |i| m * num + i as u64));
    micro_batches.flat_map(|i| i * size..(i + 1) * size).collect()
}
