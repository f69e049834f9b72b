//! Bytes and messages that a worker sends in a step, by kind, and the seconds that they take at given speeds (design section 3).
//!
//! A ring of `n` moves `(n-1)/n` of a buffer in `n-1` messages for a reduce-scatter, as much for an all-gather, twice as much for an
//! all-reduce; on a `dx` by `dy` torus the bytes are those of one ring and the messages `dx-1 + dy-1`. Small sums, and sums of two, go
//! directly; the ring's figures are given for them too.

use serde::Serialize;

use super::Machine;
use super::work::{Dims, Part};
use crate::digest::DIGEST_BYTES;
use crate::job::JobSpec;
use crate::partition::{Partition, partition};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Two sums a layer and pass, those of embedding and head, and of what TP ranks hold parts of.
    TpSums,
    /// Activations to the next stage, their gradients to the one before.
    StageTransfers,
    /// Gradients, over the DP group.
    ReduceScatter,
    /// The summed gradient of a shard, to its second holder.
    Seal,
    /// Sums that commit the step, over the whole torus.
    Commit,
    /// New parameters, over the DP group.
    AllGather,
}

impl Kind {
    /// Its time is part of the pipeline's.
    pub fn is_within_the_pipeline(self) -> bool {
        matches!(self, Kind::TpSums | Kind::StageTransfers)
    }
}

/// What one worker sends in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Traffic {
    pub kind: Kind,
    pub bytes: u64,
    pub messages: u64,
    /// Of these bytes and messages one after the other.
    pub seconds: f64,
}

/// `n - 1` of `n` parts of `bytes`.
fn ring(bytes: u64, n: usize) -> u64 {
    bytes / n as u64 * (n as u64 - 1)
}

/// One sum over TP of the residual stream of a micro-batch, in seconds.
pub(super) fn tp_sum_s(spec: &JobSpec, dims: &Dims, machine: &Machine) -> f64 {
    let tp = spec.shape.tp();
    let bytes = 2 * ring(dims.activation_bytes(), tp);
    bytes as f64 / machine.tp_bytes_per_s + 2.0 * (tp - 1) as f64 * machine.latency_s
}

/// By kind, of the stage that sends most of it. `m` micro-batches a step.
pub(super) fn of_step(spec: &JobSpec, dims: &Dims, m: usize, machine: &Machine) -> Vec<Traffic> {
    let stages: Vec<Vec<Traffic>> = (0..spec.shape.pp()).map(|stage| of_stage(spec, dims, stage, m, machine)).collect();
    let num_kinds = stages.first().map_or(0, Vec::len);
    let most = |kind: usize| stages.iter().map(|stage| stage[kind]).max_by_key(|t| t.bytes);
    (0..num_kinds).filter_map(most).collect()
}

fn of_stage(spec: &JobSpec, dims: &Dims, stage: usize, m: usize, machine: &Machine) -> Vec<Traffic> {
    let (shape, part) = (&spec.shape, Part::of(&spec.model, spec.shape.pp(), stage));
    let own = partition(&spec.model, shape, 0, stage);
    let (tp, pp, dp) = (shape.tp(), shape.pp(), shape.dp());
    let sums = (m * (part.num_forward_sums() + part.num_backward_sums())) as u64;
    let parts = partial_bytes(&own);
    let ring_messages = 2 * (tp as u64 - 1);
    let neighbours = u64::from(stage > 0) + u64::from(stage + 1 < pp);
    let torus_messages = (shape.dx() - 1 + shape.dy() - 1) as u64;
    let has_second_holder = spec.fault_tolerance.redundancy && shape.world() > 1;
    let (seal_bytes, seals) =
        if has_second_holder { (4 * own.shard_len as u64 + DIGEST_BYTES as u64, 2) } else { (0, 0) };
    // Squared norm, three losses, corruption, expert load, all f64.
    let totals = 8 * (5 + spec.model.layers * spec.model.experts) as u64;
    let commits = (shape.width() - 1 + shape.height() - 1) as u64;
    let all = [
        (
            Kind::TpSums,
            2 * (sums * ring(dims.activation_bytes(), tp) + ring(parts, tp)),
            ring_messages * (sums + u64::from(parts > 0)),
        ),
        (Kind::StageTransfers, m as u64 * neighbours * dims.activation_bytes(), m as u64 * neighbours),
        (Kind::ReduceScatter, ring(4 * own.padded_len as u64, dp), torus_messages),
        (Kind::Seal, seal_bytes, seals),
        (Kind::Commit, commits * totals, commits),
        (Kind::AllGather, ring(4 * own.padded_len as u64, dp), torus_messages),
    ];
    all.into_iter()
        .map(|(kind, bytes, messages)| {
            let speed = if kind == Kind::TpSums { machine.tp_bytes_per_s } else { machine.link_bytes_per_s };
            // A row's and a column's commits leave at once; two messages are waited for, not all.
            let waits = if kind == Kind::Commit { messages.min(2) } else { messages };
            let seconds = bytes as f64 / speed + waits as f64 * machine.latency_s;
            Traffic { kind, bytes, messages, seconds }
        })
        .collect()
}

/// Bytes of the gradients of which TP ranks hold parts.
fn partial_bytes(own: &Partition) -> u64 {
    own.slices.iter().filter(|s| s.grad_is_partial).map(|s| 4 * s.len as u64).sum()
}
