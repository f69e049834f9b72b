//! Which step can be saved, and how places hear of one.

use super::record::JobRecord;
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::ids::Step;

pub(crate) fn checkpoint_at(record: &JobRecord, step: Step) -> Body {
    let halt = record.pending.get(&step).is_some_and(|p| p.halts);
    let (job_id, epoch) = (record.id.to_string(), record.epoch.get());
    Body::CheckpointAt(proto::CheckpointAt { job_id, epoch, step: step.get(), halt })
}

/// The first step from `from` on, up to the last, whose state can be saved (T-15) and that has no leftovers: one with leftovers may have a
/// manifest that nobody heard of, and its files stay as they are until they are removed.
pub(crate) fn free_step(record: &JobRecord, from: Step, total: Step) -> Step {
    let of_iteration = if failpoint!(SaveWithinIteration) { 1 } else { record.spec.steps_of_iteration() };
    let iterations = from.get().div_ceil(of_iteration)..=total.get() / of_iteration;
    let mut ends = iterations.map(|n| Step::new(n * of_iteration));
    ends.find(|step| !record.leftovers.contains(step)).unwrap_or(total)
}

/// Multiples of `interval_steps` after `from` and up to `to` that are neither named nor recorded.
pub(crate) fn multiples(record: &JobRecord, from: Step, to: Step) -> Vec<Step> {
    let interval = record.spec.checkpoint.interval_steps;
    let Some(first) = from.get().checked_div(interval) else { return Vec::new() };
    (first + 1..=to.get() / interval)
        .map(|n| Step::new(n * interval))
        .filter(|step| is_missing(record, *step))
        .collect()
}

pub(crate) fn is_missing(record: &JobRecord, step: Step) -> bool {
    !record.pending.contains_key(&step) && record.checkpoints.iter().all(|c| c.step != step)
}

/// Why a multiple is not saved.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Skipped {
    Ended,
    Late,
    /// It may be.
    Unknown,
}
