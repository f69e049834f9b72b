//! The memory of a place: taken before the first step, and what was taken against what `toroid plan` counts.
//!
//! Deliberately absent: the host's memory, which the system gives page by page, and links.

use toroid_torus::job::JobSpec;
use toroid_torus::partition::partition;
use toroid_torus::plan::{Memory, memory_of_stage};
use toroid_torus::units;

use crate::device::{Device, MemoryNeeds, OutOfMemory};
use crate::model::{Allocated, largest_operands};

/// A place does not fit into its device.
#[derive(Debug, thiserror::Error)]
#[error(
    "a worker of stage {stage} does not fit into the memory of {}: it needs {} ({parts}), and {} are free; set `recompute = true`, a smaller \
     `batch.micro_batch`, `fault_tolerance.replay = false` or more places (`shape.tp`, `shape.pp`, `shape.dp`), or start fewer workers \
     on this device; `toroid plan` counts what a job needs",
    .missing.device, units::bytes(.missing.needed), units::bytes(.missing.free)
)]
pub struct MemoryError {
    stage: usize,
    parts: String,
    missing: OutOfMemory,
}

/// What a device has to hold, by kind.
fn kinds(memory: &Memory) -> [(&'static str, u64); 6] {
    [
        ("parameters", memory.parameters),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer()),
        ("activations", memory.activations),
        ("scratch", memory.scratch - memory.host),
        ("unwritten checkpoint", memory.checkpoint),
    ]
}

/// And what only a policy needs, by the names of the plan.
fn of_policy(memory: &Memory) -> impl Iterator<Item = (&'static str, u64)> {
    [("frozen models", memory.frozen), ("cache of generation", memory.cache)]
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
}

/// Takes all device memory that the place of `rank` needs, or says why it cannot.
pub fn reserve_memory<D: Device>(device: &D, spec: &JobSpec, rank: usize) -> Result<(), MemoryError> {
    let place = spec.shape.place(rank);
    let partition = partition(&spec.model, &spec.shape, place.tp, place.pp);
    let memory = memory_of_stage(spec, place.pp);
    let needs = MemoryNeeds {
        buffer_bytes: memory.device_bytes(),
        products: spec.products,
        operands: largest_operands(spec, place, &partition),
        // The gathered parameters; and the gradients of two shards, one to send and one to receive.
        staging_bytes: [partition.padded_len, partition.shard_len].map(|len| 4 * len as u64),
    };
    device.reserve_memory(&needs).map_err(|missing| {
        let parts = kinds(&memory).into_iter().chain(of_policy(&memory));
        let parts: Vec<String> = parts.map(|(kind, bytes)| format!("{kind} {}", units::bytes(bytes))).collect();
        MemoryError { stage: place.pp, parts: parts.join(", "), missing }
    })
}

/// What a link may keep for later: no message is longer than what a place has in all, and peers are a few messages apart.
pub(super) fn of_a_link(spec: &JobSpec, rank: usize) -> u64 {
    // Of small models messages are small, and their number counts.
    const FLOOR: u64 = 64 << 20;
    FLOOR.max(memory_of_stage(spec, spec.shape.place(rank).pp).total())
}

/// One line: what each kind was to take and takes.
pub(super) fn report(spec: &JobSpec, rank: usize, stage: Allocated, optimizer_bytes: u64) -> String {
    // An unwritten checkpoint takes its part when there is one.
    let taken =
        [stage.parameter_bytes, stage.gradient_bytes, optimizer_bytes, stage.activation_bytes, stage.scratch_bytes, 0];
    let memory = memory_of_stage(spec, spec.shape.place(rank).pp);
    let of_kinds = kinds(&memory)
        .into_iter()
        .zip(taken)
        .map(|((kind, planned), taken)| format!("{kind} {} of {} planned", units::bytes(taken), units::bytes(planned)));
    let of_policy = of_policy(&memory).map(|(kind, planned)| format!("{kind} {} planned", units::bytes(planned)));
    of_kinds.chain(of_policy).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use toroid_torus::job;

    use super::*;
    use crate::device::CpuDevice;
    use crate::trainer::workspace::Parts;

    /// A device takes all at once what the plan counts, so the plan has to count all.
    #[test]
    fn a_place_allocates_what_the_plan_says() {
        for keys in [
            "",
            "shape.dp = 4",
            "shape.dp = 4\nfault_tolerance.replay = false",
            "shape.dp = 4\nfault_tolerance.redundancy = false",
            "shape = { tp = 2, pp = 2, dp = 2 }\nrecompute = true",
            "kind = 'sft'\ndata.packing = true\nshape.pp = 2",
            "kind = 'reward'\nshape.pp = 2",
            "kind = 'ppo'\nppo = { stop_token = 0, form.tokens = [1] }",
            "kind = 'ppo'\nppo = { stop_token = 0, reward_model = 'r', side_by_side = 5 }\nshape = { tp = 2, pp = 2 }",
        ] {
            let spec = job::parse(&format!("steps = 4\ndata.path = 'text'\n{keys}")).expect("a job");
            for rank in [0, spec.shape.world() - 1] {
                let device = CpuDevice::new(1);
                let parts = Parts::new(&device, &spec, rank, None);
                let (found, planned) = (device.allocated_bytes(), memory_of_stage(&spec, spec.shape.place(rank).pp));
                let expected = planned.device_bytes() - planned.checkpoint;
                assert!(
                    found.abs_diff(expected) * 1000 <= expected,
                    "{keys}, rank {rank}: planned {expected}, allocated {found}"
                );
                drop(parts);
            }
        }
    }
}
