//! Which sample of a source comes when (invariant T-5).
//!
//! The samples of a run are numbered `n = step * samples per step + position in the step`; number n of a source is sample
//! `permutation of pass (n / num_samples) at (n % num_samples)`. All of it is a pure function of (seed, step, global batch): how many
//! replicas there are and who died decides which worker computes a sample, never which samples a step has.
//!
//! The permutation is a Feistel network over the smallest even number of bits that holds the samples, walked along its cycle until it
//! lands inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): no table, any element in constant time.
//!
//! - **T-5**: within a pass no sample comes twice and none is skipped. A step that spans the end of a pass takes the rest of the one
//!   and the start of the other, which may have a sample in common.
//!
//! Deliberately absent: mixing of several sources ([`crate::mixture`]), and cryptographic strength.

use crate::job::SampleOrder;

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) after one step of its counter; a bijection on `u64`.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Four rounds make a Feistel network of random functions a pseudorandom permutation (Luby and Rackoff, 1988); two more cost little and
/// help where a half has only a few bits.
const ROUNDS: usize = 6;

/// The largest domain of a [`Permutation`].
pub const NUM_SAMPLES_MAX: u64 = 1 << 48;

/// A permutation of `0..n` that is chosen by a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// `n` is from 1 to [`NUM_SAMPLES_MAX`].
    pub fn new(n: u64, seed: u64) -> Permutation {
        assert!((1..=NUM_SAMPLES_MAX).contains(&n), "a permutation of {n} elements; possible are 1 to 2^48");
        let bits = (n - 1).checked_ilog2().map_or(1, |top| top + 1);
        let mut key = seed;
        let keys = std::array::from_fn(|_| {
            key = splitmix64(key);
            key
        });
        Permutation { n, half_bits: bits.div_ceil(2), keys }
    }

    /// The element at position `i`, which is below `n`.
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "position {i} of a permutation of {} elements", self.n);
        // The domain of the network is at most four times n, so that the walk takes under four turns on average.
        let mut x = self.encrypt(i);
        while x >= self.n {
            x = self.encrypt(x);
        }
        x
    }

    fn encrypt(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (splitmix64(key ^ right) & mask));
        }
        left << self.half_bits | right
    }
}

/// The order of all samples of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    seed: u64,
    num_samples: u64,
    order: SampleOrder,
}

impl Cursor {
    /// `num_samples` is from 1 to [`NUM_SAMPLES_MAX`]: whoever opens the data refuses data without a sample.
    pub fn new(seed: u64, num_samples: u64, order: SampleOrder) -> Cursor {
        assert!((1..=NUM_SAMPLES_MAX).contains(&num_samples), "{num_samples} samples; possible are 1 to 2^48");
        Cursor { seed, num_samples, order }
    }

    /// The n-th sample, counted from 0.
    pub fn sample(&self, n: u64) -> u64 {
        let (pass, position) = (n / self.num_samples, n % self.num_samples);
        match self.order {
            SampleOrder::Sequential => position,
            SampleOrder::Shuffled => self.permutation(pass).at(position),
        }
    }

    fn permutation(&self, pass: u64) -> Permutation {
        Permutation::new(self.num_samples, splitmix64(splitmix64(self.seed) ^ pass))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_values_of_its_authors_and_of_the_reference_weights() {
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(1), 0x910A_2DEC_8902_5CC1);
        // `first_weights_t0` of the reference file: model.md, "Formula weights".
        let weight = |i| ((splitmix64(i) >> 40) as f64 - 8_388_608.0) / 8_388_608.0 * 0.0625;
        let first = [0.04791384935379028, 0.008320190012454987, 0.011398710310459137, -0.048318713903427124];
        assert_eq!([0, 1, 2, 3].map(weight), first);
    }

    /// A checkpoint of today must go on in the same order tomorrow; the values are from another implementation.
    #[test]
    fn the_order_never_changes() {
        let small = Permutation::new(10, 0);
        assert_eq!((0..10).map(|i| small.at(i)).collect::<Vec<_>>(), [3, 9, 7, 8, 6, 0, 5, 2, 4, 1]);
        let large = Permutation::new(NUM_SAMPLES_MAX, 5);
        let ends = [0, 1, NUM_SAMPLES_MAX - 1].map(|i| large.at(i));
        assert_eq!(ends, [206_095_461_066_365, 56_330_264_471_292, 157_709_438_317_405]);
        let cursor = Cursor::new(7, 6, SampleOrder::Shuffled);
        assert_eq!((0..12).map(|n| cursor.sample(n)).collect::<Vec<_>>(), [5, 0, 1, 3, 4, 2, 5, 3, 1, 0, 4, 2]);
    }
}
