//! The digest of shards: as its formula says, whoever adds it up, and another one for every change that was tried.

use toroid_torus::cursor::splitmix64;
use toroid_torus::digest::{Digest, digest, salt};

/// Any bits, NaNs among them.
fn words(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| f32::from_bits(splitmix64(seed ^ i) as u32)).collect()
}

/// Word by word, as the module's head has it.
fn by_formula(values: &[f32], salt: u32) -> Digest {
    let y = |i: usize| {
        let w = values.get(i).map_or(0, |v| v.to_bits());
        let x = w ^ salt.wrapping_add((i as u32).wrapping_mul(0x9e37_79b1));
        let x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca77);
        u64::from(x ^ (x >> 15))
    };
    let mut sum = Digest::default();
    for j in 0..values.len().div_ceil(2) {
        let (lo, hi) = (y(2 * j), y(2 * j + 1));
        sum += Digest { products: lo.wrapping_mul(hi), values: lo + (hi << 32) };
    }
    sum
}

#[test]
fn it_follows_its_formula_and_parts_add_up() {
    for n in (0..70).chain([1000, 1001]) {
        let values = words(n, 5);
        let whole = digest(&values, 0, salt(1));
        assert_eq!(whole, by_formula(&values, salt(1)), "{n} words");
        for cut in (0..=n).step_by(2) {
            let parts = digest(&values[..cut], 0, salt(1)) + digest(&values[cut..], cut, salt(1));
            assert_eq!(parts, whole, "{n} words cut at {cut}");
        }
        assert_eq!(Digest::from_bytes(whole.to_bytes()), whole);
    }
}

/// Another machine, or a GPU, has to find the same.
#[test]
fn a_known_sequence_has_a_known_digest() {
    let values: Vec<f32> = (0..1000).map(|i| i as f32 * 0.25 - 100.0).collect();
    assert_eq!(digest(&values, 0, salt(2)).to_string(), "dac4cc2fa6f624e0b6c8fb0d439f456d");
}

#[test]
fn every_flipped_bit_and_every_exchange_of_words_is_seen() {
    let mut values = words(200, 9);
    // A state has many zeros: moments of what was never used.
    values[50..120].fill(0.0);
    let before = digest(&values, 0, 0);
    for i in 0..values.len() {
        for bit in 0..32 {
            let word = values[i];
            values[i] = f32::from_bits(word.to_bits() ^ (1 << bit));
            assert_ne!(digest(&values, 0, 0).values, before.values, "bit {bit} of word {i}");
            values[i] = word;
        }
    }
    for (i, j) in (0..50).flat_map(|i| (i + 1..200).map(move |j| (i, j))) {
        values.swap(i, j);
        assert_ne!(digest(&values, 0, 0), before, "words {i} and {j}");
        values.swap(i, j);
    }
    // The same in two words: sign, exponent and fraction.
    for bit in [31, 30, 23, 22, 0] {
        for (i, j) in (0..40).flat_map(|i| (i + 1..200).map(move |j| (i, j))) {
            let mut found = values.clone();
            for k in [i, j] {
                found[k] = f32::from_bits(found[k].to_bits() ^ (1 << bit));
            }
            assert_ne!(digest(&found, 0, 0), before, "bit {bit} of words {i} and {j}");
        }
    }
}
