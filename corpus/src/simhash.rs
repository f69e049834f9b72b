//! Sentences that differ by little: SimHash of 64 bits (Charikar, STOC 2002), and all pairs within a Hamming distance.
//!
//! The bits are cut into `n > distance` blocks: two hashes within the distance agree in `n - distance` of them at least, so that no pair is
//! missed by comparing only those that agree in some choice of so many blocks (Manku, Jain and Sarma, WWW 2007). A choice is a *table*. More
//! blocks make more tables with longer keys: as many are taken as keys need to tell the hashes apart, so that the members of a bucket do not
//! grow with the corpus.

use crate::doc::mix;

/// Most bits by which sentences may differ; blocks get shorter with it, and more pairs are compared.
pub const MAX_DISTANCE: u32 = 7;
/// With a distance of 6 they make 210 tables.
const MAX_BLOCKS: u32 = 10;
/// Members of a bucket that hashes have on average, by chance alone, at most: as a power of two.
const BUCKET_BITS: u32 = 5;

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

/// The bits that make the key of each table, for so many hashes.
pub fn tables(distance: u32, num_hashes: u64) -> Vec<u64> {
    // Blocks are cut as evenly as they can be; the shortest key has the shortest blocks.
    let key_bits = |n: u32| (64 / n) * (n - distance);
    let wanted = (u64::BITS - num_hashes.leading_zeros()).saturating_sub(BUCKET_BITS);
    let num = (distance + 1..MAX_BLOCKS).find(|n| key_bits(*n) >= wanted).unwrap_or(MAX_BLOCKS);
    let block = |n: u32| -> u64 { (n * 64 / num..(n + 1) * 64 / num).fold(0, |mask, bit| mask | 1 << bit) };
    let choices = (0u32..1 << num).filter(|choice| choice.count_ones() == num - distance);
    choices.map(|choice| (0..num).filter(|n| choice >> n & 1 == 1).fold(0, |mask, n| mask | block(n))).collect()
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
        // Tables as for few hashes, and as for very many.
        for (distance, num) in (0..=MAX_DISTANCE).flat_map(|distance| [(distance, 1), (distance, 1 << 32)]) {
            let mut expected = vec![false; all.len()];
            for a in 0..all.len() {
                for b in 0..a {
                    if is_near(all[a], all[b], distance) {
                        (expected[a], expected[b]) = (true, true);
                    }
                }
            }
            let mut found = vec![false; all.len()];
            for table in tables(distance, num) {
                let mut buckets = std::collections::BTreeMap::<u64, Vec<(u64, u32)>>::new();
                for (n, hash) in all.iter().enumerate() {
                    buckets.entry(hash & table).or_default().push((*hash, n as u32));
                }
                buckets.values().for_each(|members| mark_near(members, distance, &mut |n| found[n as usize] = true));
            }
            assert!(found == expected, "distance {distance}");
            assert!(expected.contains(&true) && expected.contains(&false));
        }
    }

    #[test]
    fn keys_get_longer_with_the_corpus() {
        for distance in 0..=MAX_DISTANCE {
            for num in [1, 1 << 16, 1 << 24, 1 << 32] {
                let tables = tables(distance, num);
                let shortest = tables.iter().map(|mask| mask.count_ones()).min().expect("tables");
                println!("{num} hashes, distance {distance}: {} tables, keys of {shortest} bits", tables.len());
                assert!(tables.len() <= 210 && shortest >= 64 / (distance + 1));
                let fill = num as f64 / 2f64.powi(shortest as i32);
                assert!(distance > 5 || fill <= 32.0, "{fill} members by chance, {num} hashes, distance {distance}");
            }
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
