//! Stores that are real processes, and what goes wrong between us and them.

mod operations;

use toroid_testkit::Bucket;

use crate::{Store, Timing};

pub fn open(bucket: &Bucket, prefix: &str) -> Store {
    Store::open_with(&bucket.url(prefix), &bucket.variables().into_iter().collect(), Timing::default()).unwrap()
}

/// `num` bytes that do not repeat.
pub fn bytes(num: usize) -> Vec<u8> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(num).collect()
}
