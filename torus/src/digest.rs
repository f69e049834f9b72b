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
//! - Eleven operations for sixteen words in vectors of 512 bits: a core reads the state from memory more slowly than it does them.
//!
//! Deliberately absent: resistance to whoever chooses the words. What lies in files is protected by blake3.

use std::ops::{Add, AddAssign};

/// 2^32 over the golden ratio: neighbours get keys that differ in all bits.
const KEY: u32 = 0x9e37_79b1;
/// Odd, so that the product is one to one.
const MIX: u32 = 0x85eb_ca77;
/// Words that are mixed before their pairs are summed: both loops become vectors, and what is between them stays in the L1 cache.
const BLOCK: usize = 512;

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
    let mut digest = Digest::default();
    let mut mixed = [0_u32; BLOCK];
    for (n, block) in values.chunks(BLOCK).enumerate() {
        // Words are counted modulo 2^32.
        let key = salt.wrapping_add(((first + n * BLOCK) as u32).wrapping_mul(KEY));
        let len = block.len().next_multiple_of(2);
        // After the last of an odd number of words comes a zero.
        mixed[len.saturating_sub(1)] = mix(0, key.wrapping_add((len as u32).wrapping_sub(1).wrapping_mul(KEY)));
        for (i, (y, value)) in mixed.iter_mut().zip(block).enumerate() {
            *y = mix(value.to_bits(), key.wrapping_add((i as u32).wrapping_mul(KEY)));
        }
        for [lo, hi] in mixed[..len].as_chunks::<2>().0 {
            let (lo, hi) = (u64::from(*lo), u64::from(*hi));
            digest += Digest { products: lo * hi, values: lo | hi << 32 };
        }
    }
    digest
}
