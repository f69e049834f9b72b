//! What the simulated job computes: a shard is one `u64`, and every step mixes into it what every place adds.
//!
//! ```text
//!   params(s)    = all shards(s)                         the all-gather of design section 4.5
//!   gradient(r)  = params(s), rank r, samples of r       T-5: a function of (seed, step, global batch) alone
//!   sums(s+1)    = gradients of all ranks                the reduce-scatter and the global norm
//!   shard(s+1)   = shard(s), sums(s+1), rank             the optimizer, the same at both holders
//! ```
//!
//! One stale, missing or repeated value anywhere changes every later one, so that equality of a shard is T-4. [`Reference`] is
//! the run that nothing disturbs.

use toroid_torus::cursor::{Cursor, splitmix64};
use toroid_torus::job::JobSpec;

/// Samples of the simulated data.
pub const NUM_SAMPLES: u64 = 997;
pub const DATA_DIGEST: [u8; 32] = [7; 32];

pub fn mix(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0x746f_726f_6964, |hash: u64, value| splitmix64(hash.rotate_left(17) ^ value))
}

pub fn initial(seed: u64, rank: usize) -> u64 {
    mix([seed, rank as u64])
}

pub fn params(shards: impl IntoIterator<Item = u64>) -> u64 {
    mix(shards)
}

pub fn gradient(params: u64, rank: usize, samples: &[u64]) -> u64 {
    mix([params, rank as u64].into_iter().chain(samples.iter().copied()))
}

pub fn sums(gradients: impl IntoIterator<Item = u64>) -> u64 {
    mix(gradients)
}

pub fn update(shard: u64, sums: u64, rank: usize) -> u64 {
    mix([shard, sums, rank as u64])
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
    /// Shards of all ranks, by step.
    pub shards: Vec<Vec<u64>>,
    /// Global sums, by step; of step 0 there are none.
    pub sums: Vec<u64>,
    /// Samples of the ranks, by step; of step 0 there are none.
    pub samples: Vec<Vec<Vec<u64>>>,
}

impl Reference {
    pub fn of(spec: &JobSpec) -> Reference {
        let world = spec.shape.world();
        let first: Vec<u64> = (0..world).map(|rank| initial(spec.seed, rank)).collect();
        let mut run = Reference { shards: vec![first], sums: vec![0], samples: vec![Vec::new()] };
        for committed in 0..spec.steps {
            let shards = &run.shards[committed as usize];
            let all = params(shards.iter().copied());
            let samples: Vec<Vec<u64>> = (0..world).map(|rank| samples_of(spec, rank, committed)).collect();
            let total = sums((0..world).map(|rank| gradient(all, rank, &samples[rank])));
            let next = shards.iter().enumerate().map(|(rank, shard)| update(*shard, total, rank)).collect();
            run.shards.push(next);
            run.sums.push(total);
            run.samples.push(samples);
        }
        run
    }
}
