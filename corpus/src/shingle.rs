//! Documents that say nearly the same: sets of shingles, sketches of them, and when two sketches meet.
//!
//! A sketch has one value for each of `num_values` places; two sketches agree at a place with the probability of the sets' Jaccard
//! similarity, for sets of any size. The scheme is *fast similarity sketching* (Dahlgaard, Knudsen and Thorup, FOCS 2017): each shingle
//! goes to one place a round until no place is empty, so that a large set costs one hash a shingle, not one for each place.

use serde::{Deserialize, Serialize};

use crate::doc::mix;

/// Odd, so that it has an inverse: the hash of a shingle rolls on.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
/// The round is in the high bits of a value, so an earlier one wins.
const ROUND_SHIFT: u32 = 48;

/// The set of shingles of `n` words, sorted. Fewer words than that are one shingle; no words are none.
pub fn shingles(words: &[u64], n: usize, set: &mut Vec<u64>) {
    set.clear();
    if words.is_empty() {
        return;
    }
    let n = n.min(words.len()).max(1);
    let top = (1..n).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let mut rolling = words[..n].iter().fold(0u64, |sum, word| sum.wrapping_mul(BASE).wrapping_add(*word));
    set.push(mix(rolling));
    for at in n..words.len() {
        let without = rolling.wrapping_sub(words[at - n].wrapping_mul(top));
        rolling = without.wrapping_mul(BASE).wrapping_add(words[at]);
        set.push(mix(rolling));
    }
    set.sort_unstable();
    set.dedup();
}

/// How alike two sorted sets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// What both have, of what either has.
    #[default]
    Jaccard,
    /// What both have, of what the smaller one has.
    Containment,
}

pub fn similarity(a: &[u64], b: &[u64], measure: Measure) -> f64 {
    let (mut i, mut j, mut num_both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        num_both += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let of = match measure {
        Measure::Jaccard => a.len() + b.len() - num_both,
        Measure::Containment => a.len().min(b.len()),
    };
    if of == 0 { 0.0 } else { num_both as f64 / of as f64 }
}

/// One value for each place; the set is not empty.
pub fn sketch(set: &[u64], seed: u64, values: &mut [u64]) {
    values.fill(u64::MAX);
    let num = values.len() as u64;
    let mut num_empty = values.len();
    for round in 0..2 * num {
        let salt = mix(seed ^ (round + 1).wrapping_mul(BASE));
        for shingle in set {
            let hash = mix(shingle ^ salt);
            // After as many rounds as there are places each of them gets a round of its own, so none stays empty.
            let place = if round < num { ((hash >> 48) * num) >> 16 } else { round - num } as usize;
            let value = round << ROUND_SHIFT | hash & ((1 << ROUND_SHIFT) - 1);
            num_empty -= usize::from(values[place] == u64::MAX);
            values[place] = values[place].min(value);
        }
        if num_empty == 0 {
            return;
        }
    }
}

/// Bands of a sketch: two documents are compared if all values of one band agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bands {
    pub bands: usize,
    pub rows: usize,
}

impl Bands {
    /// The fewest comparisons of at most `num_values` values with which two documents at the threshold meet with probability `recall`.
    pub fn of(num_values: usize, threshold: f64, recall: f64) -> Bands {
        let fits = |rows: &usize| Bands { bands: num_values / rows, rows: *rows }.meets(threshold) >= recall;
        let rows = (1..=num_values).rev().find(fits).unwrap_or(1);
        // No more bands than that need.
        let needed = |bands: &usize| Bands { bands: *bands, rows }.meets(threshold) >= recall;
        let bands = (1..=num_values / rows).find(needed).unwrap_or(num_values / rows);
        Bands { bands, rows }
    }

    pub fn num_values(self) -> usize {
        self.bands * self.rows
    }

    /// The probability with which documents of this similarity are compared: the S-curve.
    pub fn meets(self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// As in `21 bands of 6: 0.50 28.5%, 0.60 ...`.
    pub fn curve(self) -> String {
        let points: Vec<String> =
            (3..=9).map(|n| f64::from(n) / 10.0).map(|s| format!("{s:.1} {:.1}%", self.meets(s) * 100.0)).collect();
        format!("{} bands of {}: {}", self.bands, self.rows, points.join(", "))
    }

    /// The key of each band.
    pub fn keys(self, values: &[u64], keys: &mut Vec<u64>) {
        keys.clear();
        let key = |(n, band): (usize, &[u64])| band.iter().fold(mix(n as u64 + 1), |key, v| mix(key ^ mix(*v)));
        keys.extend(values.chunks_exact(self.rows).take(self.bands).enumerate().map(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, n: u64) -> u64 {
        mix(mix(seed) ^ n.wrapping_mul(BASE))
    }

    /// Two sets of about `size` with this Jaccard similarity.
    fn pair(seed: u64, size: usize, similarity: f64) -> (Vec<u64>, Vec<u64>) {
        let num_both = (size as f64 * similarity).round() as usize;
        let num_own = (size - num_both) / 2;
        let set = |own: u64| {
            let both = (0..num_both as u64).map(|n| random(seed, n));
            let own = (0..num_own as u64).map(|n| random(seed, (own << 40) + n));
            let mut set: Vec<u64> = both.chain(own).collect();
            set.sort_unstable();
            set
        };
        (set(1), set(2))
    }

    #[test]
    fn texts_shorter_than_a_shingle_are_compared_whole() {
        let set = |words: &[u64]| {
            let mut set = Vec::new();
            shingles(words, 5, &mut set);
            set
        };
        assert!(set(&[]).is_empty());
        assert_eq!(set(&[1]).len(), 1);
        assert_ne!(set(&[1]), set(&[2]));
        assert_eq!(set(&[1, 2, 3]), set(&[1, 2, 3]));
        assert_ne!(set(&[1, 2, 3]), set(&[3, 2, 1]));
        assert_eq!(set(&[1, 2, 3, 4, 5]).len(), 1);
        assert_eq!(set(&[1, 2, 3, 4, 5, 6]).len(), 2);
        // The rolling hash is that of the same words elsewhere.
        let (a, b) = (set(&[9, 8, 1, 2, 3, 4, 5]), set(&[1, 2, 3, 4, 5, 7]));
        assert_eq!(similarity(&a, &b, Measure::Jaccard), 1.0 / 4.0);
        assert_eq!(similarity(&a, &b, Measure::Containment), 1.0 / 2.0);
        assert_eq!(similarity(&[], &[], Measure::Jaccard), 0.0, "nothing is like nothing");
    }

    #[test]
    fn sketches_estimate_similarity_without_bias_for_small_and_large_sets() {
        let mut worst: f64 = 0.0;
        for (size, num_pairs) in [(3, 600), (20, 600), (300, 300), (20_000, 40), (200_000, 8)] {
            for wanted in [0.2, 0.5, 0.8] {
                let (mut sum_true, mut sum_found) = (0.0, 0.0);
                for seed in 0..num_pairs {
                    let (a, b) = pair(seed, size, wanted);
                    let (mut x, mut y) = (vec![0; 128], vec![0; 128]);
                    sketch(&a, 1, &mut x);
                    sketch(&b, 1, &mut y);
                    sum_true += similarity(&a, &b, Measure::Jaccard);
                    sum_found += x.iter().zip(&y).filter(|(x, y)| x == y).count() as f64 / 128.0;
                }
                // Five standard deviations of as many independent coins.
                let deviation = (sum_true / num_pairs as f64 * (1.0 - sum_true / num_pairs as f64)
                    / (128.0 * num_pairs as f64))
                    .sqrt()
                    .max(1e-9);
                let error = ((sum_found - sum_true) / num_pairs as f64).abs() / deviation;
                worst = worst.max(error);
                assert!(error < 5.0, "size {size}, similarity {wanted}: {error} deviations");
            }
        }
        println!("the worst mean is {worst:.2} standard deviations off");
    }

    #[test]
    fn pairs_meet_as_often_as_the_curve_says() {
        let bands = Bands::of(128, 0.7, 0.9);
        assert!(bands.meets(0.7) >= 0.9 && bands.meets(0.8) >= 0.95, "{}", bands.curve());
        for size in [30, 400] {
            for wanted in [0.3, 0.5, 0.6, 0.7, 0.8] {
                let (num, mut num_met, mut expected) = (1_000, 0, 0.0);
                for seed in 0..num {
                    let (a, b) = pair(seed, size, wanted);
                    let keys = |set: &[u64]| {
                        let (mut values, mut keys) = (vec![0; bands.num_values()], Vec::new());
                        sketch(set, 3, &mut values);
                        bands.keys(&values, &mut keys);
                        keys
                    };
                    num_met += usize::from(keys(&a).iter().zip(keys(&b)).any(|(a, b)| *a == b));
                    expected += bands.meets(similarity(&a, &b, Measure::Jaccard));
                }
                let (found, expected) = (num_met as f64 / num as f64, expected / num as f64);
                println!("size {size}, similarity {wanted}: {found:.3} met, {expected:.3} expected");
                assert!((found - expected).abs() < 0.05, "size {size}, {wanted}: {found} met, {expected} expected");
            }
        }
    }
}
