//! Slices and shards cover every element of every tensor exactly once.

use std::collections::BTreeMap;
use std::ops::Range;

use toroid_torus::geometry::Shape;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::{
    self, LocalSlice, PartitionError, SHARD_ALIGN, Slice, partition, shard_position, stage_layers,
};

use crate::torus;

/// Indices in the tensor of the elements of `slice`, in its order, from the definition: without runs.
pub fn elements(slice: &Slice, global_shape: &[usize]) -> Vec<usize> {
    let kept: Vec<Vec<usize>> = global_shape
        .iter()
        .enumerate()
        .map(
            |(dim, n)| {
                if dim == slice.dim { slice.ranges.iter().cloned().flatten().collect() } else { (0..*n).collect() }
            },
        )
        .collect();
    let extend = |indices: Vec<usize>, dim: usize| -> Vec<usize> {
        indices.iter().flat_map(|i| kept[dim].iter().map(move |k| i * global_shape[dim] + k)).collect()
    };
    (0..global_shape.len()).fold(vec![0], extend)
}

/// Ranges of the tensor's elements that elements `range` of `slice` are.
pub fn global_ranges(slice: &Slice, global_shape: &[usize], range: &Range<usize>) -> Vec<Range<usize>> {
    let cut = |(local, global, len): (usize, usize, usize)| {
        let (start, end) = (range.start.max(local), range.end.min(local + len));
        (start < end).then(|| global + start - local..global + end - local)
    };
    slice.runs(global_shape).into_iter().filter_map(cut).collect()
}

/// Panics unless the ranges of each tensor hold each of its elements once.
pub fn check_cover(model: &ModelConfig, mut ranges: BTreeMap<String, Vec<Range<usize>>>, name: &str) {
    for spec in model.tensors() {
        let mut of_tensor = ranges.remove(&spec.name).unwrap_or_default();
        of_tensor.sort_by_key(|r| r.start);
        let end = of_tensor.iter().fold(0, |next, r| {
            assert_eq!(r.start, next, "{} has a gap or an element twice, {name}", spec.name);
            r.end
        });
        assert_eq!(end, spec.num_elements(), "{}, {name}", spec.name);
    }
    assert!(ranges.is_empty(), "tensors that the model does not have: {:?}, {name}", ranges.keys());
}

/// Small models with every ratio of the counts that tp splits.
pub fn models() -> Vec<ModelConfig> {
    let tiny = ModelConfig::preset("tiny").expect("a preset");
    let odd = ModelConfig {
        layers: 5,
        d_model: 6,
        heads: 8,
        kv_heads: 2,
        head_dim: 2,
        experts: 8,
        ff: 8,
        vocab: 256,
        ..tiny.clone()
    };
    vec![tiny, ModelConfig::preset("small").expect("a preset"), odd]
}

/// Every shape of these splits that the model allows, replicas on several tori.
pub fn splits(model: &ModelConfig) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (tp, pp) in [1, 2, 4, 8].into_iter().flat_map(|tp| [1, 2, 3, 4, 5].map(|pp| (tp, pp))) {
        shapes.extend([(1, 1), (2, 1), (3, 1), (2, 2), (1, 5)].map(|(dx, dy)| torus(tp, pp, dx, dy)));
    }
    shapes.retain(|shape| partition::check(model, shape).is_ok());
    shapes
}

fn check_slice(slice: &LocalSlice, offset: usize) {
    assert_eq!(slice.offset, offset, "{} lies where the slice before ends", slice.tensor);
    assert_eq!(slice.len, slice.shape.iter().product::<usize>(), "{}", slice.tensor);
    assert_eq!(slice.slice.num_elements(&slice.global_shape), Some(slice.len), "{}", slice.tensor);
    assert_eq!(slice.decays, slice.global_shape.len() > 1, "{}", slice.tensor);
}

fn check(model: &ModelConfig, shape: &Shape) {
    let name = format!("{} layers of {} over {shape}", model.layers, model.d_model);
    let mut counted: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
    for (tp, pp) in (0..shape.tp()).flat_map(|tp| (0..shape.pp()).map(move |pp| (tp, pp))) {
        let part = partition(model, shape, tp, pp);
        assert_eq!(part.layers, stage_layers(model.layers, shape.pp(), pp), "{name}");
        let end = part.slices.iter().fold(0, |offset, slice| {
            check_slice(slice, offset);
            offset + slice.len
        });
        assert_eq!(part.len, end, "{name}");
        assert_eq!(part.padded_len, part.shard_len * shape.dp(), "{name}");
        assert!(part.shard_len.is_multiple_of(SHARD_ALIGN) && part.padded_len >= part.len, "{name}");
        assert!(
            part.padded_len - part.len < SHARD_ALIGN * shape.dp() + shape.dp(),
            "no more padding than it takes, {name}"
        );
        for slice in part.slices.iter().filter(|s| part.counts(s)) {
            let ranges = global_ranges(&slice.slice, &slice.global_shape, &(0..slice.len));
            counted.entry(slice.tensor.clone()).or_default().extend(ranges);
        }
    }
    check_cover(model, counted, &name);
    check_replicas(model, shape);
}

/// The `replicas` of a slice are exactly the tp_ranks that hold the same one.
fn check_replicas(model: &ModelConfig, shape: &Shape) {
    let parts: Vec<_> = (0..shape.tp()).map(|tp| partition(model, shape, tp, 0)).collect();
    for part in &parts {
        for slice in &part.slices {
            let same =
                |other: &partition::Partition| other.slice(&slice.tensor).is_some_and(|s| s.slice == slice.slice);
            let holders: Vec<usize> = parts.iter().filter(|p| same(p)).map(|p| p.tp_rank).collect();
            assert_eq!(slice.replicas.clone().collect::<Vec<_>>(), holders, "{} over {shape}", slice.tensor);
            let summed = slice.tensor.contains("router") || slice.tensor.contains("wk") || slice.tensor.contains("wv");
            assert_eq!(slice.grad_is_partial, summed && holders.len() > 1, "{} over {shape}", slice.tensor);
        }
    }
}

#[test]
fn counted_slices_cover_every_tensor_once() {
    for model in models() {
        let shapes = splits(&model);
        assert!(shapes.iter().any(|s| s.tp() > model.kv_heads), "tp > kv_heads must be among them");
        shapes.iter().for_each(|shape| check(&model, shape));
    }
}

#[test]
fn runs_are_the_elements_of_a_slice() {
    let model = &models()[2];
    for shape in splits(model) {
        for (tp, pp) in (0..shape.tp()).flat_map(|tp| (0..shape.pp()).map(move |pp| (tp, pp))) {
            for slice in &partition(model, &shape, tp, pp).slices {
                let runs = slice.slice.runs(&slice.global_shape);
                let from_runs: Vec<usize> = runs.iter().flat_map(|(_, global, len)| *global..*global + *len).collect();
                assert_eq!(from_runs, elements(&slice.slice, &slice.global_shape), "{} over {shape}", slice.tensor);
                let mut next = 0;
                for (local, _, len) in &runs {
                    assert_eq!(*local, next, "{} over {shape}", slice.tensor);
                    next += len;
                }
                let merged = runs.windows(2).all(|w| w[0].1 + w[0].2 != w[1].1);
                assert!(merged, "{} over {shape} has runs that touch: {runs:?}", slice.tensor);
            }
        }
    }
}

#[test]
fn shards_take_every_position_once_and_cut_the_partition() {
    let model = &models()[0];
    for shape in splits(model) {
        let mut positions: Vec<usize> = (0..shape.dp()).map(|dp| shard_position(&shape, dp)).collect();
        positions.sort_unstable();
        assert_eq!(positions, (0..shape.dp()).collect::<Vec<_>>(), "{shape}");
        let part = partition(model, &shape, 0, 0);
        let shards = (0..shape.dp()).map(|position| position * part.shard_len..(position + 1) * part.shard_len);
        let mut next = 0;
        for (slice, range) in shards.flat_map(|shard| part.cut(shard).collect::<Vec<_>>()) {
            assert_eq!(slice.offset + range.start, next, "{shape}");
            next = slice.offset + range.end;
        }
        assert_eq!(next, part.len, "{shape}");
    }
}

#[test]
fn stages_take_all_layers_evenly() {
    for (layers, pp) in (1..=64).flat_map(|layers| (1..=layers).map(move |pp| (layers, pp))) {
        let stages: Vec<Range<usize>> = (0..pp).map(|rank| stage_layers(layers, pp, rank)).collect();
        assert_eq!((stages[0].start, stages[pp - 1].end), (0, layers));
        assert!(stages.windows(2).all(|w| w[0].end == w[1].start));
        assert!(stages.iter().all(|s| s.len() == layers / pp || s.len() == layers.div_ceil(pp)), "{layers} over {pp}");
    }
}

#[test]
fn impossible_splits_are_refused() {
    let tiny = ModelConfig::preset("tiny").expect("a preset");
    let error = |tp, pp, model: &ModelConfig| partition::check(model, &torus(tp, pp, 1, 1)).expect_err("impossible");
    assert_eq!(error(3, 1, &tiny), PartitionError::Tp { tp: 3, what: "heads", count: 4 });
    assert_eq!(error(1, 5, &tiny), PartitionError::Layers { pp: 5, layers: 4 });
    let model = ModelConfig { experts: 6, ..tiny.clone() };
    assert_eq!(error(4, 1, &model), PartitionError::Tp { tp: 4, what: "experts", count: 6 });
    let model = ModelConfig { ff: 6, ..tiny.clone() };
    assert_eq!(error(4, 1, &model), PartitionError::Tp { tp: 4, what: "ff", count: 6 });
    let model = ModelConfig { vocab: 258, ..tiny.clone() };
    assert_eq!(error(4, 1, &model), PartitionError::Tp { tp: 4, what: "vocab", count: 258 });
    let model = ModelConfig { heads: 12, kv_heads: 6, ..tiny };
    assert_eq!(error(4, 1, &model), PartitionError::KvHeads { tp: 4, kv_heads: 6 });
}
