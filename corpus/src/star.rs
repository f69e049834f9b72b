//! Who stays of documents that are alike: a greedy choice by rank, so that each one that goes is like one that stays.
//!
//! Documents are taken in the order of their rank. One goes if it is like one that stays already; else it stays. No chain of likeness
//! removes what is like nothing that is left, which clusters by transitive closure do. In a cluster of equals each is compared with the one
//! that stays, so the work grows with the documents and not with their pairs.
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
    /// The bucket, and whether later ones are compared with this document for it.
    buckets: Vec<(u32, bool)>,
}

impl Candidates {
    pub fn push(&mut self, buckets: impl Iterator<Item = (u32, bool)>) {
        self.starts.push(self.buckets.len());
        self.buckets.extend(buckets);
    }

    pub fn num(&self) -> usize {
        self.starts.len()
    }

    fn of(&self, n: usize) -> &[(u32, bool)] {
        let end = self.starts.get(n + 1).copied().unwrap_or(self.buckets.len());
        &self.buckets[self.starts[n]..end]
    }
}

/// For each candidate the one that stays for it, with their likeness; none for those that stay. Numbers are by rank: those below
/// `num_before` stay already, and candidate `n` has the number `num_before + n`. `kept_in` are the numbers of those that stay, of each
/// bucket, and gets those of the candidates. `like` says how alike two of them are, if they are alike enough. The result does not depend
/// on `num_threads`.
pub fn choose(
    candidates: &Candidates,
    num_before: usize,
    kept_in: &mut [Vec<u32>],
    num_threads: usize,
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
        let before = map_tasks(num_threads, &chunks, |(from, to)| {
            let others = |n: usize| candidates.of(n).iter().flat_map(|(b, _)| &kept_in[*b as usize]).copied().collect();
            (*from..*to).map(|n| first_like(n, others(n))).collect::<Result<Vec<_>>>()
        })?;
        for (n, found) in (start..end).zip(before.into_iter().flatten()) {
            let is_of_block = |other: &u32| *other as usize >= num_before + start;
            let others = |bucket: u32| kept_in[bucket as usize].iter().rev().copied().take_while(is_of_block);
            chosen[n] = match found {
                Some(found) => Some(found),
                None => first_like(n, candidates.of(n).iter().flat_map(|(bucket, _)| others(*bucket)).collect())?,
            };
            if chosen[n].is_none() {
                for (bucket, _) in candidates.of(n).iter().filter(|(_, registers)| *registers) {
                    kept_in[*bucket as usize].push((num_before + n) as u32);
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

    /// All share one bucket, and are alike by `like`.
    fn choose_of(
        num: usize,
        num_threads: usize,
        like: impl Fn(usize, usize) -> bool + Sync,
    ) -> (Vec<Option<u32>>, u64) {
        let mut candidates = Candidates::default();
        (0..num).for_each(|_| candidates.push([(0, true)].into_iter()));
        let num_compared = AtomicU64::new(0);
        let chosen = choose(&candidates, 0, &mut [Vec::new()], num_threads, |a, b| {
            num_compared.fetch_add(1, Ordering::Relaxed);
            Ok(like(a, b).then_some(1.0))
        });
        let chosen = chosen.expect("nothing fails").into_iter().map(|c| c.map(|(kept, _)| kept)).collect();
        (chosen, num_compared.into_inner())
    }

    #[test]
    fn a_chain_is_no_cluster() {
        // Each is like its neighbours alone: every other one stays, where transitive closure leaves one of all.
        let (chosen, _) = choose_of(1_000, 2, |a, b| a.abs_diff(b) == 1);
        for (n, kept) in chosen.into_iter().enumerate() {
            assert_eq!(kept, (n % 2 == 1).then(|| n as u32 - 1), "{n}");
        }
    }

    #[test]
    fn a_cluster_of_equals_takes_a_comparison_each() {
        let (chosen, num_compared) = choose_of(100_000, 2, |_, _| true);
        assert!(chosen[0].is_none() && chosen[1..].iter().all(|kept| *kept == Some(0)));
        assert!(num_compared < 100_000, "{num_compared} comparisons");
    }

    #[test]
    fn unlike_documents_all_stay_whatever_they_share() {
        let (chosen, _) = choose_of(2_000, 2, |_, _| false);
        assert!(chosen.iter().all(Option::is_none));
    }

    #[test]
    fn threads_change_nothing() {
        let like = |a: usize, b: usize| crate::doc::mix((a * 7_001 + b) as u64).is_multiple_of(97);
        let one = choose_of(3_000, 1, like).0;
        assert_eq!(one, choose_of(3_000, 2, like).0);
        assert_eq!(one, choose_of(3_000, 5, like).0);
        // The definition, document by document.
        let mut expected: Vec<Option<u32>> = Vec::new();
        for n in 0..one.len() {
            let kept = (0..n).find(|other| expected[*other].is_none() && like(*other, n));
            expected.push(kept.map(|kept| kept as u32));
        }
        assert_eq!(one, expected);
    }
}
