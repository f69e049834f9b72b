//! Stores that are real processes, and what goes wrong between us and them.

mod cache;
mod credentials;
mod operations;
mod proxy;
mod tls;
mod trouble;

use std::time::Duration;

use toroid_testkit::Bucket;

use self::proxy::{Proxy, Turn};
use crate::{Environment, Store, Timing};

/// Short enough for tests in which something is waited out.
pub const QUICK: Timing =
    Timing { connect: Duration::from_secs(2), silence: Duration::from_millis(1200), patience: Duration::from_secs(1) };

pub fn open(bucket: &Bucket, prefix: &str) -> Store {
    Store::open_with(&bucket.url(prefix), &bucket.variables().into_iter().collect(), Timing::default()).unwrap()
}

/// The same environment, but for what `changes` says; an empty value takes a variable out.
pub fn environment(bucket: &Bucket, changes: &[(&'static str, &str)]) -> Environment {
    let changed = changes.iter().map(|(name, value)| (*name, value.to_string()));
    bucket.variables().into_iter().chain(changed).collect()
}

/// A store behind something that does as `rule` says.
pub fn behind(
    bucket: &Bucket,
    timing: Timing,
    rule: impl Fn(&str, usize) -> Turn + Send + Sync + 'static,
) -> (Store, Proxy) {
    let port = bucket.endpoint().rsplit_once(':').unwrap().1.parse().unwrap();
    let proxy = Proxy::before(port, rule);
    let environment = environment(bucket, &[("AWS_ENDPOINT_URL", &proxy.endpoint())]);
    (Store::open_with(&bucket.url(""), &environment, timing).unwrap(), proxy)
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
