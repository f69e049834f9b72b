//! A document, its place in the order of all, and which of several stays.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use xxhash_rust::xxh3;

/// What a reader makes of a record, and stages change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doc {
    /// Where it stood in its piece when it was read; never changes.
    pub index: u32,
    pub source: u16,
    /// `source:file#record`: unique, whatever the documents say of themselves.
    pub id: String,
    /// The id that the document came with, or empty.
    pub key: String,
    pub url: String,
    /// Of which kind its text is, for thresholds by domain: a field, or the host of the URL.
    pub domain: String,
    /// A programming language, by the ending of the file's name, or empty.
    pub language: String,
    /// Of source code: the licence that its header states, as an SPDX expression, or empty.
    pub license: String,
    pub text: String,
}

/// The order of documents: by source, file and position. Never shown, since it depends on how pieces are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u64);

impl Ordinal {
    pub fn new(piece: u32, index: u32) -> Ordinal {
        Ordinal(u64::from(piece) << 32 | u64::from(index))
    }

    pub fn piece(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn index(self) -> u32 {
        self.0 as u32
    }

    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// Which of several documents that say the same stays: the smallest. By the priority of the source, then the longest, then the smallest
/// hash of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(pub [u8; Rank::BYTES]);

impl Rank {
    pub const BYTES: usize = 13;

    pub fn of(priority: u8, text: &str) -> Rank {
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let mut bytes = [0; Rank::BYTES];
        bytes[0] = priority;
        bytes[1..5].copy_from_slice(&(!len).to_be_bytes());
        bytes[5..].copy_from_slice(&text_hash(text).to_be_bytes());
        Rank(bytes)
    }
}

/// The text with other words in the place of these parts of it, which are in order and do not overlap.
pub fn replaced<'a>(text: &str, parts: impl Iterator<Item = (&'a Range<usize>, &'a str)>) -> String {
    let mut left = String::with_capacity(text.len());
    let mut at = 0;
    for (span, words) in parts {
        left.push_str(&text[at..span.start]);
        left.push_str(words);
        at = span.end;
    }
    left + &text[at..]
}

/// Where a character begins at or before a byte; the end of a shorter text.
pub fn char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Of the bytes as they are.
pub fn text_hash(text: &str) -> u64 {
    xxh3::xxh3_64(text.as_bytes())
}

/// A number of 64 bits to one whose bits all depend on all of its own (the finalizer of SplitMix64).
pub fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// For tables whose keys are well mixed already.
#[derive(Debug, Default, Clone)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, b| mix(hash ^ u64::from(*b)));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

pub type KeyMap<V> = HashMap<u64, V, BuildHasherDefault<AsItIs>>;
pub type KeySet = HashSet<u64, BuildHasherDefault<AsItIs>>;

/// Copies `N` bytes from `at`: records have fixed layouts.
pub fn field<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&record[at..at + N]);
    bytes
}

pub fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(record, at))
}

pub fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(record, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stays_then_the_smallest_hash_and_sources_come_first() {
        let (short, long) = (Rank::of(0, "a b"), Rank::of(0, "a b c"));
        assert!(long < short);
        assert!(short < Rank::of(1, "a b c"), "a preferred source stays, even with less");
        let (one, other) = (Rank::of(0, "xy"), Rank::of(0, "yx"));
        assert_eq!(one < other, text_hash("xy") < text_hash("yx"));
        assert!(Ordinal::new(1, 0) > Ordinal::new(0, u32::MAX));
        assert_eq!((Ordinal::new(7, 9).piece(), Ordinal::new(7, 9).index()), (7, 9));
    }
}
