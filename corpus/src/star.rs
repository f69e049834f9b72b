//! Who stays of documents that are alike: a greedy choice by rank, so that each one that goes is like one that stays.
//!
//! Documents are taken in the order of their rank. One goes if it is like one that stays already; else it stays. No chain of likeness
//! removes what is like nothing that is left, which clusters by transitive closure do. In a cluster of equals each is compared with the one
//! that stays; where all stay, each is compared with the first so many of a bucket that stay. So the work grows with the documents and not with
//! their pairs.
//!
//! This is the choice among documents that are in memory, with those before them that stay; `stage::stars` makes it block by block.

use crate::durable::map_tasks;
use crate::error::Result;

/// Documents that are compared with those before them on all threads, and then among themselves.
const BLOCK: usize = 512;
const CHUNK: usize = 16;

/// The buckets of documents that may be alike, in the order of their ranks.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Of document `n`: `buckets[starts[n]..starts[n + 1]]`.
    starts: Vec<usize>,
    buckets: Vec<u32>,
}

impl Candidates {
    pub fn push(&mut self, buckets: impl Iterator<Item = u32>) {
        self.starts.push(self.buckets.len());
        self.buckets.extend(buckets);
    }

    pub fn num(&self) -> usize {
        self.starts.len()
    }

    fn of(&self, n: usize) -> &[u32] {
        let end = self.starts.get(n + 1).copied().unwrap_or(self.buckets.len());
        &self.buckets[self.starts[n]..end]
    }
}

/// How a choice is made.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub num_threads: usize,
    /// Of those of a bucket that stay, so many (the first by rank) are compared with those after them.
    pub max_bucket: u32,
}

/// For each candidate the one that stays for it, with their likeness; none for those that stay. The places of those that stay in buckets that
/// had their `max_bucket` before, which nobody is compared with, are added to `num_left_out`. Numbers are by rank: those below
/// `num_before` stay already, and candidate `n` has the number `num_before + n`. `kept_in` are the numbers of those that stay and are compared
/// with others, of each bucket, and gets those of the candidates. `like` says how alike two of them are, if they are alike enough. The result
/// does not depend on `num_threads`.
pub fn choose(
    candidates: &Candidates,
    num_before: usize,
    kept_in: &mut [Vec<u32>],
    num_left_out: &mut u64,
    bounds: Bounds,
    like: impl Fn(usize, usize) -> Result<Option<f32>> + Sync,
) -> Result<Vec<Option<(u32, f32)>>> {
    let mut chosen: Vec<Option<(u32, f32)>> = vec![None; candidates.num()];
    for start in (0..candidates.num()).step_by(BLOCK) {
        let end = (start + BLOCK).min(candidates.num());
        let chunks: Vec<(usize, usize)> =
            (start..end).step_by(CHUNK).map(|from| (from, (from + CHUNK).min(end))).collect();
        // The first of those that stay, by rank, so that it does not matter in which order they are looked at.
        let first_like = |n: usize, mut others: Vec<u32>| -> Result<Option<(u32, f32)>> {
            others.sort_unstable();
            others.dedup();
            for other in others {
                if let Some(score) = like(other as usize, num_before + n)? {
                    return Ok(Some((other, score)));
                }
            }
            Ok(None)
        };
        let before = map_tasks(bounds.num_threads, &chunks, |(from, to)| {
            let others = |n: usize| candidates.of(n).iter().flat_map(|b| &kept_in[*b as usize]).copied().collect();
            (*from..*to).map(|n| first_like(n, others(n))).collect::<Result<Vec<_>>>()
        })?;
        for (n, found) in (start..end).zip(before.into_iter().flatten()) {
            let is_of_block = |other: &u32| *other as usize >= num_before + start;
            let others = |bucket: u32| kept_in[bucket as usize].iter().rev().copied().take_while(is_of_block);
            chosen[n] = match found {
                Some(found) => Some(found),
                None => first_like(n, candidates.of(n).iter().flat_map(|bucket| others(*bucket)).collect())?,
            };
            if chosen[n].is_none() {
                for bucket in candidates.of(n) {
                    let kept = &mut kept_in[*bucket as usize];
                    if kept.len() < bounds.max_bucket as usize {
                        kept.push((num_before + n) as u32);
                    } else {
                        *num_left_out += 1;
                    }
                }
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const UNBOUNDED: u32 = u32::MAX;

    struct Chosen {
        kept: Vec<Option<u32>>,
        num_compared: u64,
        num_left_out: u64,
    }

    /// All share one bucket, and are alike by `like`.
    fn choose_of(
        num: usize,
        num_threads: usize,
        max_bucket: u32,
        like: impl Fn(usize, usize) -> bool + Sync,
    ) -> Chosen {
        let mut candidates = Candidates::default();
        (0..num).for_each(|_| candidates.push([0].into_iter()));
        let (num_compared, mut num_left_out) = (AtomicU64::new(0), 0);
        let bounds = Bounds { num_threads, max_bucket };
        let chosen = choose(&candidates, 0, &mut [Vec::new()], &mut num_left_out, bounds, |a, b| {
            num_compared.fetch_add(1, Ordering::Relaxed);
            Ok(like(a, b).then_some(1.0))
        });
        let kept = chosen.expect("nothing fails").into_iter().map(|c| c.map(|(kept, _)| kept)).collect();
        Chosen { kept, num_compared: num_compared.into_inner(), num_left_out }
    }

    #[test]
    fn a_chain_is_no_cluster() {
        // Each is like its neighbours alone: every other one stays, where transitive closure leaves one of all.
        let chosen = choose_of(1_000, 2, UNBOUNDED, |a, b| a.abs_diff(b) == 1);
        for (n, kept) in chosen.kept.into_iter().enumerate() {
            assert_eq!(kept, (n % 2 == 1).then(|| n as u32 - 1), "{n}");
        }
    }

    #[test]
    fn a_cluster_of_equals_takes_a_comparison_each() {
        let Chosen { kept, num_compared, num_left_out } = choose_of(100_000, 2, 1, |_, _| true);
        assert!(kept[0].is_none() && kept[1..].iter().all(|kept| *kept == Some(0)));
        assert!(num_compared < 100_000, "{num_compared} comparisons");
        assert_eq!(num_left_out, 0);
    }

    #[test]
    fn versions_that_all_stay_take_comparisons_that_grow_with_their_number() {
        let max_bucket = 64;
        for num in [1_000, 2_000, 4_000, 8_000] {
            let chosen = choose_of(num, 2, max_bucket, |_, _| false);
            assert!(chosen.kept.iter().all(Option::is_none));
            // Each is compared with the first 64, and the first 64 among themselves.
            let (first, num) = (u64::from(max_bucket), num as u64);
            assert_eq!(chosen.num_compared, first * (first - 1) / 2 + (num - first) * first, "{num} versions");
            assert_eq!(chosen.num_left_out, num - first);
        }
    }

    #[test]
    fn those_that_go_take_no_place_of_those_that_stay() {
        // Every fourth stays, and the others are like the one that stays before them.
        let like = |a: usize, b: usize| a / 4 == b / 4;
        let chosen = choose_of(400, 2, 100, like);
        assert_eq!(chosen.kept.iter().filter(|kept| kept.is_some()).count(), 300);
        assert_eq!(chosen.num_left_out, 0);
        // Of 50 the others are found, and no more.
        let chosen = choose_of(400, 2, 50, like);
        assert_eq!(chosen.kept.iter().filter(|kept| kept.is_some()).count(), 150);
        assert_eq!(chosen.num_left_out, 200);
    }

    #[test]
    fn unlike_documents_all_stay_whatever_they_share() {
        let chosen = choose_of(2_000, 2, UNBOUNDED, |_, _| false);
        assert!(chosen.kept.iter().all(Option::is_none));
    }

    #[test]
    fn threads_change_nothing() {
        let like = |a: usize, b: usize| crate::doc::mix((a * 7_001 + b) as u64).is_multiple_of(97);
        for max_bucket in [UNBOUNDED, 20] {
            let one = choose_of(3_000, 1, max_bucket, like);
            for num_threads in [2, 5] {
                let other = choose_of(3_000, num_threads, max_bucket, like);
                assert_eq!((&one.kept, one.num_left_out), (&other.kept, other.num_left_out));
            }
            // The definition, document by document.
            let (mut expected, mut compared): (Vec<Option<u32>>, Vec<usize>) = (Vec::new(), Vec::new());
            for n in 0..one.kept.len() {
                let kept = compared.iter().find(|other| like(**other, n)).map(|kept| *kept as u32);
                if kept.is_none() && compared.len() < max_bucket as usize {
                    compared.push(n);
                }
                expected.push(kept);
            }
            assert_eq!(one.kept, expected);
        }
    }
}
