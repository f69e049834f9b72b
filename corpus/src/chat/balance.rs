//! As many pairs whose chosen answer is the longer one as pairs where it is the shorter one, so that a reward model cannot learn the length.
//!
//! People prefer longer answers, and a model that has learned this and nothing else is right in 60% of pairs and more. Pairs are counted by
//! how much the answers differ: 1 token, 2 to 3, 4 to 7, and so on; of each class, as many stay on either side.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::doc::mix;

/// Pairs by which answer is longer, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    pub chosen_longer: u64,
    pub rejected_longer: u64,
    pub equal: u64,
}

impl Lengths {
    pub fn add(&mut self, difference: i64) {
        match difference.signum() {
            1 => self.chosen_longer += 1,
            -1 => self.rejected_longer += 1,
            _ => self.equal += 1,
        }
    }

    /// How often somebody is right who takes the longer answer, and half of those that are equal.
    pub fn accuracy_of_longer(&self) -> f64 {
        let all = self.chosen_longer + self.rejected_longer + self.equal;
        if all == 0 { 0.5 } else { (self.chosen_longer as f64 + self.equal as f64 / 2.0) / all as f64 }
    }
}

/// What of a pair decides: the hash of its content, and how many tokens the chosen answer has more than the rejected one.
pub type Weighed = (u64, i64);

/// Which pairs stay. Of those that are too many, the ones with the smallest hashes do.
pub fn kept(pairs: &[Weighed], seed: u64) -> Vec<bool> {
    let mut kept = vec![true; pairs.len()];
    let mut classes: BTreeMap<u32, [Vec<(u64, usize)>; 2]> = BTreeMap::new();
    for (n, (hash, difference)) in pairs.iter().enumerate().filter(|(_, (_, difference))| *difference != 0) {
        let class = classes.entry(difference.unsigned_abs().ilog2()).or_default();
        class[usize::from(*difference < 0)].push((mix(hash ^ mix(seed)), n));
    }
    for mut sides in classes.into_values() {
        let num = sides[0].len().min(sides[1].len());
        for side in &mut sides {
            side.sort_unstable();
            side[num..].iter().for_each(|(_, n)| kept[*n] = false);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_as_many_on_either_side() {
        let pairs: Vec<Weighed> = (0..1000u64)
            .map(|n| {
                let size = (mix(n) % 40) as i64;
                (mix(n + 7000), if mix(n + 9000) % 10 < 7 { size } else { -size })
            })
            .collect();
        let kept = kept(&pairs, 1);
        for class in 0..6 {
            let of = |sign: i64| {
                let is_of = |d: i64| d.signum() == sign && d.unsigned_abs().ilog2() == class;
                let found = pairs.iter().zip(&kept).filter(|((_, d), _)| is_of(*d));
                (found.clone().count(), found.filter(|(_, kept)| **kept).count())
            };
            let ((longer, left), (shorter, right)) = (of(1), of(-1));
            assert_eq!((left, right), (longer.min(shorter), longer.min(shorter)), "class {class}");
        }
        assert!(pairs.iter().zip(&kept).all(|((_, difference), kept)| *kept || *difference != 0));
        assert_eq!(super::kept(&[(1, 5)], 0), [false], "a pair that nothing stands against");
        let mut lengths = Lengths::default();
        [3, 1, -2, 0].into_iter().for_each(|difference| lengths.add(difference));
        assert_eq!(lengths.accuracy_of_longer(), 0.625);
    }
}
