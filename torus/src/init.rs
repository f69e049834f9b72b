//! The initial weights (model.md, "Initial weights").
//!
//! A value depends on (seed, tensor name, element index in the whole tensor) alone, so that any split over tp, pp and dp starts from the
//! same bits. Normal values come by Box and Muller in f64 and are rounded to f32 last.
//!
//! Deliberately absent: a generator with a state. Every element is its own hash and can be computed anywhere, in any order.

use crate::cursor::splitmix64;
use crate::model::Init;
use crate::partition::LocalSlice;

/// The first value of element `element` (row-major, in the whole tensor) of `tensor`.
pub fn initial_value(init: Init, seed: u64, tensor: &str, element: u64) -> f32 {
    value(init, stream(seed, tensor), element)
}

/// Fills `out (slice.len)` with the first values of `slice`, in its order.
pub fn fill_initial(slice: &LocalSlice, seed: u64, out: &mut [f32]) {
    assert_eq!(out.len(), slice.len, "a buffer for the slice of {} must have its length", slice.tensor);
    let stream = stream(seed, &slice.tensor);
    for (local, global, len) in slice.slice.runs(&slice.global_shape) {
        for (i, x) in out[local..local + len].iter_mut().enumerate() {
            *x = value(slice.init, stream, (global + i) as u64);
        }
    }
}

/// Where the hashes of a tensor start: a random point of the 2^64, so that two tensors do not meet.
fn stream(seed: u64, tensor: &str) -> u64 {
    fnv1a64(tensor.as_bytes()) ^ splitmix64(seed)
}

fn value(init: Init, stream: u64, element: u64) -> f32 {
    match init {
        Init::One => 1.0,
        Init::Zero => 0.0,
        Init::Normal(std) => (std * normal(stream.wrapping_add(element))) as f32,
    }
}

/// A standard normal value by the hashes of `counter`.
fn normal(counter: u64) -> f64 {
    let first = splitmix64(counter);
    let second = splitmix64(first);
    // 53 bits each; the first in (0, 1], since it goes into a logarithm.
    let unit = 1.0 / (1u64 << 53) as f64;
    let (u, v) = (((first >> 11) + 1) as f64 * unit, (second >> 11) as f64 * unit);
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The 64-bit FNV-1a hash (Fowler, Noll and Vo; RFC 9923).
fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a64_gives_the_values_of_its_authors() {
        assert_eq!(fnv1a64(b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a64(b"a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(fnv1a64(b"foobar"), 0x8594_4171_F739_67E8);
    }

    /// A run of today must be repeatable tomorrow; the bits are from another implementation.
    #[test]
    fn the_weights_of_a_seed_never_change() {
        let bits = |element| initial_value(Init::Normal(0.02), 0, "emb.weight", element).to_bits();
        assert_eq!([0, 1, 2, 3].map(bits), [0xBB01_EE4C, 0x3C54_1680, 0x3CE5_22F5, 0xBC98_F696]);
    }
}
