//! Bytes of a worker by part; the buffers are those that the worker allocates, f32 and ids alike of 4 bytes.
//!
//! `worker/tests/memory.rs` compares these figures with what a stage really allocates.

use serde::Serialize;

use super::work::{Dims, Part};
use crate::geometry::Place;
use crate::holders::guarded_by;
use crate::job::JobSpec;
use crate::model::TOP_K;
use crate::partition::{Partition, partition};
use crate::pipeline::Schedule;

/// Bytes of master weight and both moments of an element.
const STATE_BYTES: u64 = 12;
/// Two rings in memory that both ends of a link within one host share, half of them for each end.
const SHARED_LINK_BYTES: u64 = 4 << 20;
/// What the kernel keeps of a link to another host, both directions.
const STREAM_LINK_BYTES: u64 = 512 << 10;

/// Bytes of the worker with tp_rank 0 of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub stage: usize,
    pub num_layers: usize,
    /// The working parameters of the whole partition. With dp = 1 a CPU has them in the memory of the master weights and does not touch these.
    pub parameters: u64,
    pub gradients: u64,
    /// Master weights and moments of the worker's own shard.
    pub shard: u64,
    /// The copy of another worker's shard, and its gradients; 0 without redundancy.
    pub second_shard: u64,
    /// Of the micro-batches in flight, with what split backwards keep, and of an evaluation.
    pub activations: u64,
    /// The inputs of the last update of both shards; 0 without replay.
    pub replay: u64,
    /// The own shard as it was committed, where a checkpoint of it is not written when the next update comes.
    pub checkpoint: u64,
    /// Parameters of models that are asked and not trained: of a policy the reference, and the reward model where there is one.
    pub frozen: u64,
    /// Keys and values of the answers that a policy writes side by side.
    pub cache: u64,
    /// What lives for one operation, host buffers of transfers and sums.
    pub scratch: u64,
    /// Of the scratch, what is in host memory whatever the device.
    pub host: u64,
    /// Buffers of the connections to other workers: the TP group within the host, all others elsewhere.
    pub links: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// What the device itself has to hold: all of it from the first step on, but an unwritten checkpoint.
    pub fn device_bytes(&self) -> u64 {
        self.total() - self.host - self.links
    }

    /// Master weights and moments, the copy of another's, and what a replay needs.
    pub fn optimizer(&self) -> u64 {
        self.shard + self.second_shard + self.replay
    }

    /// Each part by its name, in the order in which it is printed. What only a policy has is left out where there is none of it.
    pub fn parts(&self) -> Vec<(&'static str, u64)> {
        let of_policy = [("frozen models", self.frozen), ("cache of generation", self.cache)];
        let mut parts = vec![
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("optimizer shard", self.shard),
            ("second holder's shard", self.second_shard),
            ("replay of an update", self.replay),
            ("unwritten checkpoint", self.checkpoint),
            ("activations", self.activations),
        ];
        parts.extend(of_policy.into_iter().filter(|(_, bytes)| *bytes > 0));
        parts.extend([("scratch", self.scratch), ("links", self.links)]);
        parts
    }
}

/// Of a stage of the job, with as many micro-batches as the largest replica takes.
pub fn memory_of_stage(spec: &JobSpec, stage: usize) -> Memory {
    of_stage(spec, &Dims::new(spec), spec.pipeline.schedule, stage, super::micro_batches(spec))
}

/// `m` micro-batches a step.
pub(super) fn of_stage(spec: &JobSpec, dims: &Dims, schedule: Schedule, stage: usize, m: usize) -> Memory {
    let shape = &spec.shape;
    let rank = shape.rank(Place { tp: 0, pp: stage, dp: 0 });
    let own = partition(&spec.model, shape, 0, stage);
    let guarded = guarded_partition(spec, rank).map(|p| p.shard_len as u64);
    let second_shard = guarded.map_or(0, |len| (STATE_BYTES + 4) * len);
    let replayed = guarded.filter(|_| spec.fault_tolerance.replay);
    let replay = replayed.map_or(0, |len| (STATE_BYTES + 4) * (len + own.shard_len as u64));
    let in_flight = schedule.stage(stage, shape.pp(), m).in_flight();
    let keeps =
        if spec.recompute { Keeps::Inputs } else { Keeps::Activations { splits_backward: in_flight.split > 0 } };
    let activations = if schedule.num_chunks() == 1 {
        let part = Part::of(&spec.model, shape.pp(), stage);
        // Between the two parts of a backward everything is kept.
        let lent = if spec.recompute { in_flight.split * part.layers.len() } else { 0 };
        let lent_bytes = 4 * (lent * (layer_elements(dims) + kept_elements(dims))) as u64;
        in_flight.micro_batches as u64 * slot_bytes(dims, &part, keeps) + lent_bytes + evaluation_bytes(dims, &part)
    } else {
        // The chunks in flight are of any kind: as if all were as large as the largest.
        let num = shape.pp() * schedule.num_chunks();
        let chunks = (0..schedule.num_chunks()).map(|c| Part::of(&spec.model, num, c * shape.pp() + stage));
        let sizes: Vec<u64> = chunks.map(|part| slot_bytes(dims, &part, keeps)).collect();
        in_flight.micro_batches as u64 * sizes.iter().max().copied().unwrap_or(0)
    };
    let host = host_bytes(spec, dims, &own);
    let within_host = shape.tp() as u64 - 1;
    let elsewhere = shape.peers(rank).len() as u64 - within_host;
    Memory {
        stage,
        num_layers: own.layers.len(),
        parameters: 4 * own.padded_len as u64,
        gradients: 4 * own.padded_len as u64,
        shard: STATE_BYTES * own.shard_len as u64,
        second_shard,
        replay,
        checkpoint: STATE_BYTES * own.shard_len as u64,
        activations,
        frozen: frozen_bytes(spec, &own),
        cache: cache_bytes(spec, dims, own.layers.len()),
        scratch: scratch_bytes(dims) + host,
        host,
        links: SHARED_LINK_BYTES * within_host + STREAM_LINK_BYTES * elsewhere,
    }
}

/// Whole partitions: every place asks them in every iteration.
fn frozen_bytes(spec: &JobSpec, own: &Partition) -> u64 {
    let num_models = spec.ppo.as_ref().map_or(0, |ppo| 1 + u64::from(ppo.reward_model.is_some()));
    num_models * 4 * own.padded_len as u64
}

/// Keys and values of as many sequences as are written side by side, each of `seq` tokens.
fn cache_bytes(spec: &JobSpec, dims: &Dims, num_layers: usize) -> u64 {
    let side_by_side = spec.ppo.as_ref().map_or(0, |ppo| ppo.side_by_side);
    4 * (num_layers * side_by_side * dims.seq * 2 * dims.kv_heads * dims.head_dim) as u64
}

/// The partition whose shard `rank` keeps a copy of.
fn guarded_partition(spec: &JobSpec, rank: usize) -> Option<Partition> {
    let guarded = guarded_by(&spec.shape, rank).filter(|_| spec.fault_tolerance.redundancy)?;
    let place = spec.shape.place(guarded);
    Some(partition(&spec.model, &spec.shape, place.tp, place.pp))
}

/// Elements that a micro-batch keeps of a layer. Rows of experts have room for all assignments, wherever they go.
fn layer_elements(dims: &Dims) -> usize {
    let (n, rows, ff_local) = (dims.tokens(), dims.tokens() * TOP_K, dims.ff / dims.tp);
    let attention = n * (1 + dims.d + dims.row_len() + dims.out_len() + dims.heads);
    let routing = n * (dims.experts + 1) + 2 * rows + 2 * dims.experts;
    let groups = dims.experts / dims.tp + 1 + 2 * rows;
    let moe = n * (1 + 2 * dims.d) + rows * 2 * dims.ff + n * 2 * ff_local;
    attention + routing + groups + moe
}

/// Elements of a layer that gradients of weights need when they are computed later.
fn kept_elements(dims: &Dims) -> usize {
    let n = dims.tokens();
    n * (2 * dims.d + dims.row_len() + dims.experts + TOP_K * dims.ff + dims.ff / dims.tp)
}

/// Tokens, the head's part, and the residual stream at `num_x` points.
fn ends_elements(dims: &Dims, part: &Part, num_x: usize) -> usize {
    let n = dims.tokens();
    let head = match (part.has_head, dims.has_tokens) {
        (false, _) => 0,
        (true, true) => n * (1 + 1 + dims.d + dims.vocab + 1 + 3 + 3 * dims.tp + 1),
        (true, false) => dims.batch * (3 + 4 * dims.d),
    };
    // Which rows are tokens; where texts share samples, their bounds and positions.
    let rows = if dims.has_texts { n } else { 0 } + if dims.is_packed { n * (2 + dims.head_dim) } else { 0 };
    // Values, weights of rows and gradients of values.
    let values = if part.has_head && dims.has_values { 3 * n } else { 0 };
    rows + n + num_x * n * dims.d + head + values
}

/// What is kept of a layer between forward and backward.
#[derive(Debug, Clone, Copy)]
enum Keeps {
    Activations {
        splits_backward: bool,
    },
    /// What goes into its second half, beside the residual stream that goes into its first.
    Inputs,
}

/// Bytes of one micro-batch in flight.
fn slot_bytes(dims: &Dims, part: &Part, keeps: Keeps) -> u64 {
    let layers = part.layers.len();
    let of_layer = match keeps {
        Keeps::Activations { splits_backward: false } => layer_elements(dims),
        Keeps::Activations { splits_backward: true } => layer_elements(dims) + kept_elements(dims),
        Keeps::Inputs => dims.tokens() * dims.d,
    };
    4 * (layers * of_layer + ends_elements(dims, part, layers + 1)) as u64
}

/// An evaluation keeps one layer and two points of the residual stream. Layers whose activations are computed again take turns in that one.
fn evaluation_bytes(dims: &Dims, part: &Part) -> u64 {
    4 * (layer_elements(dims) + ends_elements(dims, part, 2)) as u64
}

/// Buffers of one operation or half a layer, and the rotary table.
fn scratch_bytes(dims: &Dims) -> u64 {
    let (n, rows, ff_local) = (dims.tokens(), dims.tokens() * TOP_K, dims.ff / dims.tp);
    let of_tokens = n * (2 * dims.d + dims.experts + 2 * ff_local + dims.out_len() + dims.row_len());
    let of_rows = rows * (2 * dims.d + 2 * dims.ff + 1);
    4 * (of_tokens + of_rows + dims.seq * dims.head_dim) as u64
}

/// Inputs, targets, what comes from and goes to other stages, and the larger of what a reduce-scatter and a sum over TP hold.
fn host_bytes(spec: &JobSpec, dims: &Dims, own: &Partition) -> u64 {
    let shape = &spec.shape;
    let row = if shape.dx() > 1 { own.padded_len / shape.dx() } else { 0 };
    let column = if shape.dy() > 1 { own.shard_len } else { 0 };
    let tp_sum = match shape.tp() {
        1 => 0,
        2 => 2 * dims.tokens() * dims.d,
        tp => (dims.tokens() * dims.d).div_ceil(tp),
    };
    // What a collective of the DP group has in flight.
    let in_flight = if shape.dp() > 1 { own.padded_len } else { 0 };
    4 * (2 * dims.tokens() + in_flight + row.max(column).max(tp_sum)) as u64 + 2 * dims.activation_bytes()
}

/// Bytes that the update of a worker's shards reads and writes: gradient, weight and two moments in, the last three out.
pub(super) fn optimizer_bytes(spec: &JobSpec) -> u64 {
    let shards = if spec.fault_tolerance.redundancy && spec.shape.world() > 1 { 2 } else { 1 };
    let longest = (0..spec.shape.pp()).map(|pp| partition(&spec.model, &spec.shape, 0, pp).shard_len).max();
    shards * (4 * 4 + 3 * 4) * longest.unwrap_or(0) as u64
}
