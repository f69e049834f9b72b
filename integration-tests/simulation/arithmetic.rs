//! What the simulated job computes: a partition is [`NUM_VALUES`] values of `u64`, and every step mixes into them what every place adds.
//!
//! ```text
//!   params(s)    = all values(s)                         the all-gather of design section 4.5
//!   gradient(r)  = params(s), part of r, micro-batches   T-5: the sum over all ranks is a function of (seed, step, global batch) alone
//!   sums(s+1)    = gradients of all ranks                the reduce-scatter and the global norm
//!   value(s+1)   = value(s), sums(s+1), its place        the optimizer, the same at both holders
//! ```
//!
//! One stale, missing or repeated value anywhere changes every later one, so that equality of a shard is T-4. Sums here have no order:
//! a job has the same values under any number of replicas, so that a step with a sample too many or too few is seen for what it is.
//! [`Reference`] is the run that nothing disturbs.

use std::ops::Range;

use toroid_torus::cursor::{Cursor, splitmix64};
use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::JobSpec;
use toroid_torus::partition::SHARD_ALIGN;
use toroid_torus::resplit::shard_range;

/// Samples of the simulated data.
pub const NUM_SAMPLES: u64 = 997;
pub const DATA_DIGEST: [u8; 32] = [7; 32];

pub fn mix(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0x746f_726f_6964, |hash: u64, value| splitmix64(hash.rotate_left(17) ^ value))
}

/// Values of a partition; whole numbers of them are in a shard of 1 to 4 replicas.
const NUM_VALUES: usize = 12;
/// Elements of a partition: shards are cut at multiples of [`SHARD_ALIGN`], which stand for one value.
pub const LEN: usize = NUM_VALUES * SHARD_ALIGN;

/// Values of a shard.
pub type Values = Vec<u64>;

/// Which of the partitions that `rank` has.
fn part(shape: &Shape, rank: usize) -> usize {
    let place = shape.place(rank);
    place.pp * shape.tp() + place.tp
}

/// The values of the shard of `rank` in its partition.
fn values_of(shape: &Shape, rank: usize) -> Range<usize> {
    let range = shard_range(shape, rank, LEN);
    range.start / SHARD_ALIGN..range.end / SHARD_ALIGN
}

/// The values of a range of elements of a partition, within the shard of `rank`.
pub fn within(shape: &Shape, rank: usize, range: &Range<usize>) -> Range<usize> {
    let start = values_of(shape, rank).start;
    range.start / SHARD_ALIGN - start..range.end / SHARD_ALIGN - start
}

pub fn initial(seed: u64, shape: &Shape, rank: usize) -> Values {
    let part = part(shape, rank) as u64;
    values_of(shape, rank).map(|i| mix([seed, part, i as u64])).collect()
}

/// From the shards of all ranks.
pub fn params<'a>(shape: &Shape, shard: impl Fn(usize) -> &'a [u64]) -> u64 {
    let mut all = vec![0; shape.tp() * shape.pp() * NUM_VALUES];
    for rank in 0..shape.world() {
        let (first, values) = (part(shape, rank) * NUM_VALUES, values_of(shape, rank));
        all[first + values.start..first + values.end].copy_from_slice(shard(rank));
    }
    mix(all)
}

pub fn gradient(params: u64, spec: &JobSpec, rank: usize, samples: &[u64]) -> u64 {
    let part = part(&spec.shape, rank) as u64;
    let of = |micro_batch: &[u64]| mix([params, part].into_iter().chain(micro_batch.iter().copied()));
    samples.chunks(spec.batch.micro_batch).map(of).fold(0, u64::wrapping_add)
}

pub fn sums(gradients: impl IntoIterator<Item = u64>) -> u64 {
    mix([gradients.into_iter().fold(0, u64::wrapping_add)])
}

/// One update of the shard of `rank`.
pub fn update(shard: &mut [u64], sums: u64, shape: &Shape, rank: usize) {
    let part = part(shape, rank) as u64;
    let places = values_of(shape, rank);
    shard.iter_mut().zip(places).for_each(|(value, i)| *value = mix([*value, sums, part, i as u64]));
}

/// The loss of a step, as it stands in the curve: exact in an f64.
pub fn loss(sums: u64) -> f64 {
    (sums >> 12) as f64
}

/// Samples that the replica of `rank` takes in the step after `committed`.
pub fn samples_of(spec: &JobSpec, rank: usize, committed: u64) -> Vec<u64> {
    let cursor = Cursor::new(spec.seed, NUM_SAMPLES, spec.data.order);
    let micro_batches = spec.batch.of_replica(spec.shape.dp(), spec.shape.place(rank).dp);
    micro_batches.flat_map(|index| cursor.micro_batch(committed, &spec.batch, index)).collect()
}

/// The undisturbed run.
#[derive(Debug, Clone)]
pub struct Reference {
    shape: Shape,
    /// Shards of all ranks, by step.
    shards: Vec<Vec<Values>>,
    /// Global sums, by step; of step 0 there are none.
    pub sums: Vec<u64>,
    /// Samples of all replicas in their order, by step; of step 0 there are none.
    pub samples: Vec<Vec<u64>>,
}

impl Reference {
    pub fn of(spec: &JobSpec) -> Reference {
        let shape = spec.shape;
        let first: Vec<Values> = (0..shape.world()).map(|rank| initial(spec.seed, &shape, rank)).collect();
        let mut run = Reference { shape, shards: vec![first], sums: vec![0], samples: vec![Vec::new()] };
        for committed in 0..spec.steps {
            let mut shards = run.shards[committed as usize].clone();
            let all = params(&shape, |rank| &shards[rank]);
            let samples = |rank| samples_of(spec, rank, committed);
            let total = sums((0..shape.world()).map(|rank| gradient(all, spec, rank, &samples(rank))));
            shards.iter_mut().enumerate().for_each(|(rank, shard)| update(shard, total, &shape, rank));
            run.shards.push(shards);
            run.sums.push(total);
            run.samples.push(shape.dp_group(0).into_iter().flat_map(samples).collect());
        }
        run
    }

    /// The shard of `rank` of any shape with the same tp and pp.
    pub fn shard(&self, step: u64, shape: &Shape, rank: usize) -> Values {
        let shards = &self.shards[step as usize];
        let group = self.shape.dp_group(self.shape.rank(Place { dp: 0, ..shape.place(rank) }));
        let value = |i: usize| {
            let of = |r: usize| values_of(&self.shape, r);
            let holder = group.iter().find(|r| of(**r).contains(&i)).expect("every value is in a shard");
            shards[*holder][i - of(*holder).start]
        };
        values_of(shape, rank).map(value).collect()
    }
}
