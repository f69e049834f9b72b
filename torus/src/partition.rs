//! Which slice of which tensor a place holds, and where it lies in the flat buffer of its partition.
//!
//! A *partition* is everything of one (tp, pp) coordinate: the working parameters and the gradients of a worker are one flat
//! f32 buffer each, in the order of [`Partition::slices`], padded so that it divides into `dp` equal *shards*. Shard `r` is
//! the flat range `[r * shard_len, (r + 1) * shard_len)` of the partition *in shard order*, see [`shard_position`].
//!
//! TP splits the heads (`wq`, `wk`, `wv` by rows, `wo` by columns), the shared expert (rows of both halves of `shared13`,
//! columns of `shared2`), the vocabulary (`emb`, `head` by rows) and deals the routed experts out. Norms and router are
//! replicated. With more TP ranks than KV heads a KV head is replicated over `tp / kv_heads` neighbours.
//! PP splits the layers; the first stage also has the embedding, the last the final norm and the head.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::Shape;
use crate::model::{Init, ModelConfig, TensorSpec};

/// Part of a tensor: all of it but for dim `dim`, of which it takes `ranges`, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    pub dim: usize,
    pub ranges: Vec<Range<usize>>,
}

/// A slice that a place holds.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalSlice {
    pub tensor: String,
    /// Shape of the whole tensor.
    pub global_shape: Vec<usize>,
    pub slice: Slice,
    /// Shape of the slice.
    pub shape: Vec<usize>,
    /// First element in the flat buffer of the partition.
    pub offset: usize,
    pub len: usize,
    pub init: Init,
    pub decays: bool,
    /// tp_ranks that hold the same slice, this one included; one element where nobody else does.
    pub replicas: Range<usize>,
    /// The replicas' gradients are parts of a sum (router, replicated KV heads) and not equal (norms).
    pub grad_is_partial: bool,
}

/// Everything that one (tp, pp) coordinate holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Partition {
    pub slices: Vec<LocalSlice>,
    /// Elements of all slices.
    pub len: usize,
    /// `len` rounded up so that every shard has the same length.
    pub padded_len: usize,
    pub shard_len: usize,
    pub tp_rank: usize,
    /// Layers of this stage.
    pub layers: Range<usize>,
}

/// Shards are cut at multiples of this many elements (one cache line of f32).
pub const SHARD_ALIGN: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    #[error("tp {tp} does not divide {what} = {count}; choose a tp that divides it")]
    Tp { tp: usize, what: &'static str, count: usize },
    #[error(
        "tp {tp} and kv_heads = {kv_heads} do not divide one another; choose a tp that divides it or is a multiple of it"
    )]
    KvHeads { tp: usize, kv_heads: usize },
    #[error("pp {pp} is more than the {layers} layers; every stage needs at least one")]
    Layers { pp: usize, layers: usize },
}

/// Layers of stage `pp_rank`: contiguous, sizes differ by at most one.
pub fn stage_layers(layers: usize, pp: usize, pp_rank: usize) -> Range<usize> {
    pp_rank * layers / pp..(pp_rank + 1) * layers / pp
}

/// Checks that `model` can be split over `shape`.
pub fn check(model: &ModelConfig, shape: &Shape) -> Result<(), PartitionError> {
    let tp = shape.tp();
    for (what, count) in [("heads", model.heads), ("experts", model.experts), ("ff", model.ff), ("vocab", model.vocab)]
    {
        if count % tp != 0 {
            return Err(PartitionError::Tp { tp, what, count });
        }
    }
    if !model.kv_heads.is_multiple_of(tp) && !tp.is_multiple_of(model.kv_heads) {
        return Err(PartitionError::KvHeads { tp, kv_heads: model.kv_heads });
    }
    if shape.pp() > model.layers {
        return Err(PartitionError::Layers { pp: shape.pp(), layers: model.layers });
    }
    Ok(())
}

/// KV heads of `tp_rank`.
pub fn kv_heads(model: &ModelConfig, tp: usize, tp_rank: usize) -> Range<usize> {
    let first = tp_rank * model.kv_heads / tp;
    first..first + (model.kv_heads / tp).max(1)
}

/// The partition of `(tp_rank, pp_rank)`. `shape` must have passed [`check`].
pub fn partition(model: &ModelConfig, shape: &Shape, tp_rank: usize, pp_rank: usize) -> Partition {
    assert!(check(model, shape).is_ok(), "the shape {shape} was not checked against the model");
    let layers = stage_layers(model.layers, shape.pp(), pp_rank);
    let mut slices = Vec::new();
    let mut offset = 0;
    for spec in model.tensors() {
        if !in_stage(&spec.name, &layers, model.layers) {
            continue;
        }
        let (slice, replicas, grad_is_partial) = tp_slice(model, shape.tp(), tp_rank, &spec);
        let mut local = spec.shape.clone();
        local[slice.dim] = slice.ranges.iter().map(|r| r.len()).sum();
        let len = local.iter().product();
        slices.push(LocalSlice {
            tensor: spec.name.clone(),
            global_shape: spec.shape.clone(),
            slice,
            shape: local,
            offset,
            len,
            init: spec.init,
            decays: spec.decays(),
            replicas,
            grad_is_partial,
        });
        offset += len;
    }
    let shard_len = shard_len(offset, shape.dp());
    Partition { slices, len: offset, padded_len: shard_len * shape.dp(), shard_len, tp_rank, layers }
}

/// Elements of each of `dp` shards of a partition of `len` elements, padding included.
pub fn shard_len(len: usize, dp: usize) -> usize {
    len.div_ceil(dp).next_multiple_of(SHARD_ALIGN)
}

/// Position of the shard of `dp_rank` in the flat buffer, in units of `shard_len`: column-major over the DP torus, so that what a
/// row's reduce-scatter leaves to a column is contiguous.
pub fn shard_position(shape: &Shape, dp_rank: usize) -> usize {
    (dp_rank % shape.dx()) * shape.dy() + dp_rank / shape.dx()
}

fn in_stage(name: &str, layers: &Range<usize>, num_layers: usize) -> bool {
    match name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
        Some(layer) => layers.contains(&layer.parse().unwrap_or(usize::MAX)),
        None if name == "emb.weight" => layers.start == 0,
        None => layers.end == num_layers,
    }
}

/// The slice of `tp_rank`, who else holds it, and whether their gradients are parts of a sum.
fn tp_slice(model: &ModelConfig, tp: usize, tp_rank: usize, spec: &TensorSpec) -> (Slice, Range<usize>, bool) {
    let part = |count: usize| tp_rank * count / tp..(tp_rank + 1) * count / tp;
    let own = tp_rank..tp_rank + 1;
    let one = |dim, range| Slice { dim, ranges: vec![range] };
    let scale = |r: Range<usize>, by: usize| r.start * by..r.end * by;
    let suffix =
        spec.name.strip_prefix("blocks.").and_then(|r| r.split_once('.')).map_or(spec.name.as_str(), |(_, s)| s);
    match suffix {
        "emb.weight" | "head.weight" => (one(0, part(model.vocab)), own, false),
        "attn.wq.weight" => (one(0, scale(part(model.heads), model.head_dim)), own, false),
        "attn.wo.weight" => (one(1, scale(part(model.heads), model.head_dim)), own, false),
        "attn.wk.weight" | "attn.wv.weight" => {
            let heads = kv_heads(model, tp, tp_rank);
            let sharers = (tp / model.kv_heads).max(1);
            let first = tp_rank / sharers * sharers;
            (one(0, scale(heads, model.head_dim)), first..first + sharers, sharers > 1)
        }
        "moe.w13" | "moe.w2" => (one(0, part(model.experts)), own, false),
        "moe.shared13.weight" => {
            let gate = part(model.ff);
            let up = model.ff + gate.start..model.ff + gate.end;
            (Slice { dim: 0, ranges: vec![gate, up] }, own, false)
        }
        "moe.shared2.weight" => (one(1, part(model.ff)), own, false),
        "moe.router.weight" => (one(0, 0..spec.shape[0]), 0..tp, tp > 1),
        _ => (one(0, 0..spec.shape[0]), 0..tp, false),
    }
}

impl Slice {
    /// Elements of the slice; `None` where a tensor of `global_shape` has no such slice.
    pub fn num_elements(&self, global_shape: &[usize]) -> Option<usize> {
        let extent = *global_shape.get(self.dim)?;
        let inside = self.ranges.iter().all(|r| r.start <= r.end && r.end <= extent);
        let taken = self.ranges.iter().try_fold(0_usize, |sum, r| sum.checked_add(r.len()))?;
        let others = global_shape.iter().enumerate().filter(|(dim, _)| *dim != self.dim).map(|(_, n)| n);
        (inside && taken <= extent).then(|| taken * others.product::<usize>())
    }

    /// The slice's elements as contiguous runs `(first in the slice, first in the tensor, length)`, in the order of the slice.
    pub fn runs(&self, global_shape: &[usize]) -> Vec<(usize, usize, usize)> {
        let outer: usize = global_shape[..self.dim].iter().product();
        let inner: usize = global_shape[self.dim + 1..].iter().product();
        let extent = global_shape[self.dim];
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        let mut local = 0;
        for o in 0..outer {
            for range in &self.ranges {
                let (global, len) = ((o * extent + range.start) * inner, range.len() * inner);
                match runs.last_mut() {
                    Some((_, g, n)) if *g + *n == global => *n += len,
                    _ => runs.push((local, global, len)),
                }
                local += len;
            }
        }
        runs
    }
}

impl LocalSlice {
    /// The slice's elements of the whole tensor, in the order of the slice.
    pub fn of_tensor(&self, tensor: &[f32]) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.len);
        for (_, global, len) in self.slice.runs(&self.global_shape) {
            values.extend_from_slice(&tensor[global..global + len]);
        }
        values
    }
}

impl Partition {
    /// This place's copy of a replicated slice is the one that is counted in the norm and written to checkpoints.
    pub fn counts(&self, slice: &LocalSlice) -> bool {
        slice.replicas.start == self.tp_rank
    }

    pub fn slice(&self, tensor: &str) -> Option<&LocalSlice> {
        self.slices.iter().find(|s| s.tensor == tensor)
    }

    /// The slices that the flat range `range` cuts, with the elements of each: `(slice, range within the slice)`.
    pub fn cut(&self, range: Range<usize>) -> impl Iterator<Item = (&LocalSlice, Range<usize>)> {
        self.slices.iter().filter_map(move |s| {
            let (start, end) = (range.start.max(s.offset), range.end.min(s.offset + s.len));
            (start < end).then(|| (s, start - s.offset..end - s.offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tensor: &str, tp: usize, tp_rank: usize, expected: &str) {
        let model = ModelConfig::preset("tiny").expect("a preset");
        let shape = Shape::new(tp, 1, 1).expect("a valid shape");
        let part = partition(&model, &shape, tp_rank, 0);
        let s = part.slice(tensor).expect("a tensor of the model");
        let found = format!("dim {} {:?} -> {:?}, replicas {:?}", s.slice.dim, s.slice.ranges, s.shape, s.replicas);
        assert_eq!(found, expected, "{tensor} at rank {tp_rank} of {tp}");
    }

    #[test]
    fn each_tensor_is_split_along_its_own_dim() {
        check("emb.weight", 2, 1, "dim 0 [256..512] -> [256, 128], replicas 1..2");
        check("blocks.0.attn.wq.weight", 4, 3, "dim 0 [96..128] -> [32, 128], replicas 3..4");
        check("blocks.0.attn.wo.weight", 4, 3, "dim 1 [96..128] -> [128, 32], replicas 3..4");
        check("blocks.0.moe.w13", 4, 1, "dim 0 [2..4] -> [2, 256, 128], replicas 1..2");
        check("blocks.0.moe.shared13.weight", 2, 1, "dim 0 [64..128, 192..256] -> [128, 128], replicas 1..2");
        check("blocks.0.moe.shared2.weight", 2, 1, "dim 1 [64..128] -> [128, 64], replicas 1..2");
        check("blocks.0.moe.router.weight", 2, 1, "dim 0 [0..8] -> [8, 128], replicas 0..2");
        check("norm.weight", 2, 1, "dim 0 [0..128] -> [128], replicas 0..2");
    }

    /// Two KV heads over four ranks: neighbours hold the same one.
    #[test]
    fn kv_heads_are_replicated_beyond_their_number() {
        check("blocks.0.attn.wk.weight", 2, 1, "dim 0 [32..64] -> [32, 128], replicas 1..2");
        check("blocks.0.attn.wk.weight", 4, 1, "dim 0 [0..32] -> [32, 128], replicas 0..2");
        check("blocks.0.attn.wv.weight", 4, 2, "dim 0 [32..64] -> [32, 128], replicas 2..4");
    }
}
