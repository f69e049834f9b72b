//! The digest that two holders of a shard compare at every step, to see silent data corruption.
//!
//! ```text
//!   word i (from 0), its 32 bits w       x = w ^ (salt + i * KEY)    x = x ^ (x >> 16)    x = x * MIX    y_i = x ^ (x >> 15)
//!   pair j: lo = y_2j, hi = y_2j+1       products += lo * hi         values += lo + hi * 2^32
//! ```
//!
//! Words are counted in 32 bits, sums and products of pairs in 64, all modulo their size; an odd number of words is followed by a zero. The
//! digest of a shard is the sum of those of its parts, each with its own salt.
//!
//! - The sums do not depend on any order: threads, vector lanes and blocks of a GPU add up what they have, and all agree to the bit.
//! - A word turns into `y` one to one, so a single word that changed always changes `values`. Any other change goes unseen with a
//!   probability of about 2^-64 or less: `products` is not linear in what changed, and a word counts by where it lies.
//! - Eleven operations for sixteen words in vectors of 512 bits: reading the state from memory takes longer.
//!
//! Deliberately absent: resistance to whoever chooses the words. What lies in files is protected by blake3.

use std::ops::{Add, AddAssign};

/// 2^32 over the golden ratio: neighbours get keys that differ in all bits.
const KEY: u32 = 0x9e37_79b1;
/// Odd, so that the product is one to one.
const MIX: u32 = 0x85eb_ca77;
/// Pairs whose sums are kept apart: one vector of 512 bits.
const LANES: usize = 8;

/// Bytes of a digest as it is sent: both numbers little-endian.
pub const DIGEST_BYTES: usize = 16;

/// The salt of a shard's part: 0 the master weights, 1 and 2 the moments. A gradient has that of part 0.
pub const fn salt(part: u32) -> u32 {
    part.wrapping_mul(0x5bd1_e995)
}

/// Sums over the pairs of a sequence of words.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    pub products: u64,
    pub values: u64,
}

impl Add for Digest {
    type Output = Digest;

    fn add(self, other: Digest) -> Digest {
        Digest { products: self.products.wrapping_add(other.products), values: self.values.wrapping_add(other.values) }
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Digest) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Digest {
    fn sum<I: Iterator<Item = Digest>>(parts: I) -> Digest {
        parts.fold(Digest::default(), Add::add)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}{:016x}", self.products, self.values)
    }
}

impl Digest {
    pub fn to_bytes(self) -> [u8; DIGEST_BYTES] {
        let mut bytes = [0; DIGEST_BYTES];
        bytes[..8].copy_from_slice(&self.products.to_le_bytes());
        bytes[8..].copy_from_slice(&self.values.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; DIGEST_BYTES]) -> Digest {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
        Digest { products: u64::from_le_bytes([a, b, c, d, e, f, g, h]), values: u64::from_le_bytes(rest) }
    }
}

/// `y` of the word with these bits and the key `salt + i * KEY`.
#[inline(always)]
fn mix(bits: u32, key: u32) -> u32 {
    let x = bits ^ key;
    let x = (x ^ (x >> 16)).wrapping_mul(MIX);
    x ^ (x >> 15)
}

/// What the words `first ..` of a sequence add to its digest; `first` is even, and so is the number of words unless these are the
/// last. Inlined, so that it is compiled for the instruction set of its caller.
#[inline(always)]
pub fn digest(values: &[f32], first: usize, salt: u32) -> Digest {
    assert!(first.is_multiple_of(2), "a pair is not divided, and the part begins at word {first}");
    // Words are counted modulo 2^32.
    let key_of = |i: usize| salt.wrapping_add((i as u32).wrapping_mul(KEY));
    let (mut products, mut sums) = ([0_u64; LANES], [0_u64; LANES]);
    let (chunks, rest) = values.as_chunks::<{ 2 * LANES }>();
    let mut keys: [u32; 2 * LANES] = std::array::from_fn(|l| key_of(first + l));
    for chunk in chunks {
        let mut y = [0_u32; 2 * LANES];
        for l in 0..2 * LANES {
            y[l] = mix(chunk[l].to_bits(), keys[l]);
            keys[l] = keys[l].wrapping_add(KEY.wrapping_mul(2 * LANES as u32));
        }
        for l in 0..LANES {
            let (lo, hi) = (u64::from(y[2 * l]), u64::from(y[2 * l + 1]));
            products[l] = products[l].wrapping_add(lo * hi);
            sums[l] = sums[l].wrapping_add(lo | hi << 32);
        }
    }
    let at = first + values.len() - rest.len();
    for (l, pair) in rest.chunks(2).enumerate() {
        let word = |k: usize| mix(pair.get(k).map_or(0, |v| v.to_bits()), key_of(at + 2 * l + k));
        let (lo, hi) = (u64::from(word(0)), u64::from(word(1)));
        products[l] = products[l].wrapping_add(lo * hi);
        sums[l] = sums[l].wrapping_add(lo | hi << 32);
    }
    let lanes = products.into_iter().zip(sums);
    lanes.map(|(products, values)| Digest { products, values }).sum()
}
