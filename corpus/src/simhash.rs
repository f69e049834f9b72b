//! Sentences that differ by little: SimHash of 64 bits (Charikar, STOC 2002), and all pairs within a Hamming distance.
//!
//! The bits are cut into `distance + 1` blocks: two hashes within the distance agree in one of them at least, so that no pair is missed by
//! comparing only those that share a block.

use crate::doc::{KeyMap, mix};

/// Most bits by which sentences may differ; blocks get shorter with it, and more pairs are compared.
pub const MAX_DISTANCE: u32 = 7;

/// Of the words and the pairs of neighbours among them; 0 has no meaning of its own, and no words have no hash.
pub fn simhash(words: &[u64]) -> Option<u64> {
    if words.is_empty() {
        return None;
    }
    let mut sums = [0i32; 64];
    let mut add = |feature: u64| {
        for (bit, sum) in sums.iter_mut().enumerate() {
            *sum += ((feature >> bit & 1) as i32) * 2 - 1;
        }
    };
    words.iter().for_each(|word| add(mix(*word)));
    words.windows(2).for_each(|pair| add(mix(pair[0].rotate_left(17) ^ mix(pair[1]))));
    Some(sums.iter().enumerate().fold(0, |hash, (bit, sum)| hash | u64::from(*sum > 0) << bit))
}

/// The blocks of a distance, as (shift, bits).
pub fn blocks(distance: u32) -> impl Iterator<Item = (u32, u32)> + Clone {
    let num = distance + 1;
    (0..num).map(move |n| (n * 64 / num, (n + 1) * 64 / num - n * 64 / num))
}

/// What a hash has in a block.
pub fn key(hash: u64, (shift, bits): (u32, u32)) -> u32 {
    // Blocks of 64 bits are of distance 0, which needs no tables: equal hashes share their high half as well.
    (hash >> shift & (u64::MAX >> (64 - bits))) as u32
}

/// Whether two hashes are alike enough.
pub fn is_near(a: u64, b: u64, distance: u32) -> bool {
    (a ^ b).count_ones() <= distance
}

/// Marks, in a bucket of one block, the hashes that have another within the distance. `members` are (hash, number).
pub fn mark_near(members: &[(u64, u32)], distance: u32, mark: &mut impl FnMut(u32)) {
    // Who is marked already needs to be found once only, so a bucket whose members are all near each other takes few comparisons.
    let (mut alone, mut marked): (Vec<(u64, u32)>, Vec<u64>) = (Vec::new(), Vec::new());
    for (hash, number) in members {
        let num_marked = marked.len();
        alone.retain(|(other, number)| {
            let is_near = is_near(*hash, *other, distance);
            if is_near {
                mark(*number);
                marked.push(*other);
            }
            !is_near
        });
        if marked.len() > num_marked || marked.iter().any(|other| is_near(*hash, *other, distance)) {
            mark(*number);
            marked.push(*hash);
        } else {
            alone.push((*hash, *number));
        }
    }
}

/// For each hash, in the order of rank, the first that stays within the distance, or none for those that stay: see [`crate::star`].
pub fn choose(hashes: &[u64], distance: u32) -> Vec<Option<u32>> {
    let blocks: Vec<(u32, u32)> = blocks(distance).collect();
    let mut tables: Vec<Table> = blocks.iter().map(|block| Table::new(*block)).collect();
    let mut chosen = Vec::with_capacity(hashes.len());
    for (n, hash) in hashes.iter().enumerate() {
        let first = |table: &Table| table.of(*hash).find(|other| is_near(*hash, hashes[*other as usize], distance));
        let kept = tables.iter().filter_map(first).min();
        if kept.is_none() {
            tables.iter_mut().for_each(|table| table.add(*hash, n as u32));
        }
        chosen.push(kept);
    }
    chosen
}

/// Numbers of hashes by one block: lists in the order in which they came.
struct Table {
    block: (u32, u32),
    first: KeyMap<(u32, u32)>,
    /// The next of the same key, by position; `u32::MAX` ends a list.
    next: Vec<(u32, u32)>,
}

impl Table {
    fn new(block: (u32, u32)) -> Table {
        Table { block, first: Default::default(), next: Vec::new() }
    }

    fn add(&mut self, hash: u64, number: u32) {
        let at = self.next.len() as u32;
        self.next.push((number, u32::MAX));
        match self.first.entry(mix(u64::from(key(hash, self.block)))) {
            std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert((at, at))),
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                let (_, last) = entry.get_mut();
                self.next[*last as usize].1 = at;
                *last = at;
            }
        }
    }

    fn of(&self, hash: u64) -> impl Iterator<Item = u32> {
        let mut at = self.first.get(&mix(u64::from(key(hash, self.block)))).map_or(u32::MAX, |(first, _)| *first);
        std::iter::from_fn(move || {
            let (number, next) = *self.next.get(at as usize)?;
            at = next;
            Some(number)
        })
    }
}

/// Bytes of memory that [`choose`] takes for so many hashes.
pub fn bytes(num: u64, distance: u32) -> u64 {
    let table = |(_, bits): (u32, u32)| num * 16 + (1u64 << bits).min(num) * 32;
    num * 24 + blocks(distance).map(table).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(num: u64) -> Vec<u64> {
        // Families of hashes a few bits apart, and strangers.
        (0..num).map(|n| (0..n % 6).fold(mix(n / 9), |hash, bit| hash ^ 1 << (mix(n * 31 + bit) % 64))).collect()
    }

    #[test]
    fn no_pair_within_the_distance_is_missed() {
        let all = hashes(3_000);
        for distance in 0..=MAX_DISTANCE {
            let mut expected = vec![false; all.len()];
            for a in 0..all.len() {
                for b in 0..a {
                    if is_near(all[a], all[b], distance) {
                        (expected[a], expected[b]) = (true, true);
                    }
                }
            }
            let mut found = vec![false; all.len()];
            for block in blocks(distance) {
                let mut buckets = std::collections::BTreeMap::<u32, Vec<(u64, u32)>>::new();
                for (n, hash) in all.iter().enumerate() {
                    buckets.entry(key(*hash, block)).or_default().push((*hash, n as u32));
                }
                buckets.values().for_each(|members| mark_near(members, distance, &mut |n| found[n as usize] = true));
            }
            assert!(found == expected, "distance {distance}");
            assert!(expected.contains(&true) && expected.contains(&false));
        }
    }

    #[test]
    fn who_stays_is_the_first_by_the_definition() {
        let all = hashes(2_000);
        for distance in [0, 3, 6] {
            let mut expected: Vec<Option<u32>> = Vec::new();
            for n in 0..all.len() {
                let stays = |other: &usize| expected[*other].is_none() && is_near(all[n], all[*other], distance);
                expected.push((0..n).find(stays).map(|kept| kept as u32));
            }
            assert!(choose(&all, distance) == expected, "distance {distance}");
        }
    }

    #[test]
    fn a_word_more_changes_few_bits_and_no_words_have_no_hash() {
        assert_eq!(simhash(&[]), None);
        let words: Vec<u64> = (0..40).map(mix).collect();
        let (short, long) = (simhash(&words[..39]).expect("words"), simhash(&words).expect("words"));
        let other = simhash(&(100..140).map(mix).collect::<Vec<_>>()).expect("words");
        assert!((short ^ long).count_ones() < 10, "{}", (short ^ long).count_ones());
        assert!((other ^ long).count_ones() > 15, "{}", (other ^ long).count_ones());
    }
}
