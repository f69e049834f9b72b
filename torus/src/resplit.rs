//! Another number of replicas: who keeps a place, and which part of the state goes where (design section 5).
//!
//! ```text
//!   dp 4, a shard each        0 0 0 | 1 1 1 | 2 2 2 | 3 3 3       the worker of dp_rank 1 is dead, the others keep their order:
//!   dp 3                      0 0 0 0 | 1 1 1 1 | 2 2 2 2         old 0, 2, 3 are now 0, 1, 2, and pull what they lack
//! ```
//!
//! The state of the job lies in two layers: what places hold of the shape that it was split for ([`Origin`]), and what the places of
//! the present shape are to hold. [`moves`] says which range goes from which place to which, for both copies of every shard.
//!
//! Invariants, cited by the tests:
//!
//! - **R-1**: every element of both shards of every place comes from exactly one place, which holds it.
//! - **R-2**: a place that holds an element itself takes it from nobody else.
//! - **R-3**: [`keep`] gives every rank to one survivor at most, and leaves nobody out whose shards nobody else keeps, where that
//!   can be had.
//!
//! Which samples a replica takes follows from the shape alone ([`crate::job::BatchConfig::of_replica`]), so that a step has the same
//! samples under any number of replicas (T-5). Deliberately absent: how the ranges are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::{Place, Shape};
use crate::holders::{backup_of, guarded_by};
use crate::partition::{shard_len, shard_position};

/// How the state is split, and who of the present places holds what of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The shape that the state was split for.
    pub shape: Shape,
    /// By present rank: the rank in `shape` whose two shards it holds; `None`: a newcomer.
    pub ranks: Vec<Option<usize>>,
}

/// One of the two shards of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// The place is its primary holder.
    Own,
    /// It is its backup holder.
    Guarded,
}

/// One range of a partition that goes from a shard of the origin's shape to one of the present shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Present rank that holds it; equal to `to` where nothing is sent.
    pub from: usize,
    /// In which of its shards in the origin's shape.
    pub source: Half,
    /// Present rank that is to hold it.
    pub to: usize,
    /// In which of its shards in the present shape.
    pub target: Half,
    /// Elements of the partition that both shards are of.
    pub range: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no place holds the shard of rank {rank} in {shape}; only a checkpoint has it")]
pub struct Lost {
    pub rank: usize,
    pub shape: Shape,
}

/// Elements of the shard of `rank` in its partition of `len` elements, padding left out.
pub fn shard_range(shape: &Shape, rank: usize, len: usize) -> Range<usize> {
    let shard_len = shard_len(len, shape.dp());
    let start = shard_position(shape, shape.place(rank).dp) * shard_len;
    start.min(len)..(start + shard_len).min(len)
}

/// All moves that give every place of `shape` both its shards, in the order in which they are sent between two places.
/// `len_of(tp, pp)` is the number of elements of a partition; padding is 0 in every shape and is not sent.
pub fn moves(origin: &Origin, shape: &Shape, len_of: impl Fn(usize, usize) -> usize) -> Result<Vec<Move>, Lost> {
    assert_eq!(origin.ranks.len(), shape.world(), "an entry for every rank of {shape}");
    let is_split_alike = (origin.shape.tp(), origin.shape.pp()) == (shape.tp(), shape.pp());
    assert!(is_split_alike, "only the DP axis changes, from {} to {shape}", origin.shape);
    let held_by = origin.ranks.iter().enumerate().filter_map(|(now, old)| Some(((*old)?, now)));
    let held_by: BTreeMap<usize, usize> = held_by.collect();
    let mut lens: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut moves = Vec::new();
    for to in 0..shape.world() {
        let shards = [(Half::Own, Some(to)), (Half::Guarded, guarded_by(shape, to))];
        for (target, of) in shards.into_iter().filter_map(|(half, of)| Some((half, of?))) {
            let Place { tp, pp, .. } = shape.place(of);
            let len = *lens.entry((tp, pp)).or_insert_with(|| len_of(tp, pp));
            let wanted = shard_range(shape, of, len);
            for old in origin.shape.dp_group(origin.shape.rank(Place { tp, pp, dp: 0 })) {
                let there = shard_range(&origin.shape, old, len);
                let range = wanted.start.max(there.start)..wanted.end.min(there.end);
                if range.is_empty() {
                    continue;
                }
                let backup = backup_of(&origin.shape, old).map(|b| (b, Half::Guarded));
                let holders = [Some((old, Half::Own)), backup].into_iter().flatten();
                let holders: Vec<_> = holders.filter_map(|(r, half)| Some((*held_by.get(&r)?, half))).collect();
                let own = holders.iter().find(|(now, _)| *now == to);
                let &(from, source) = own.or(holders.first()).ok_or(Lost { rank: old, shape: origin.shape })?;
                moves.push(Move { from, source, to, target, range });
            }
        }
    }
    Ok(moves)
}

/// Who keeps a place when the shape goes from `from` to `to`: by rank of `to` the rank in `from`; `None`: the place is empty.
///
/// Whole replicas stay together and in their order, those with the most survivors first; survivors of the others fill gaps, first of
/// their own (tp, pp). Who is left has no place. `num_lost` counts the shards that nobody of a set of ranks holds: as long as that is
/// not 0 somebody who is left changes with somebody who is not. `None` where no such change is found.
pub fn keep(
    from: &Shape,
    to: &Shape,
    survivors: &BTreeSet<usize>,
    num_lost: impl Fn(&BTreeSet<usize>) -> usize,
) -> Option<Vec<Option<usize>>> {
    let members = |dp: usize| {
        let places = (0..from.pp()).flat_map(|pp| (0..from.tp()).map(move |tp| (tp, pp)));
        places.map(move |(tp, pp)| from.rank(Place { tp, pp, dp }))
    };
    let mut replicas: Vec<usize> = (0..from.dp()).collect();
    replicas.sort_by_key(|dp| std::cmp::Reverse(members(*dp).filter(|r| survivors.contains(r)).count()));
    replicas.truncate(to.dp());
    replicas.sort_unstable();
    let mut kept = vec![None; to.world()];
    for (dp, old) in replicas.into_iter().enumerate() {
        for rank in members(old).filter(|r| survivors.contains(r)) {
            kept[to.rank(Place { dp, ..from.place(rank) })] = Some(rank);
        }
    }
    let placed: BTreeSet<usize> = kept.iter().copied().flatten().collect();
    let mut left: Vec<usize> = survivors.difference(&placed).copied().collect();
    fill_gaps(from, to, &mut kept, &mut left);
    let mut lost = num_lost(&kept.iter().copied().flatten().collect());
    while lost > 0 {
        lost = exchange(from, &mut kept, &mut left, lost, &num_lost)?;
    }
    Some(kept)
}

fn fill_gaps(from: &Shape, to: &Shape, kept: &mut [Option<usize>], left: &mut Vec<usize>) {
    for is_any_part in [false, true] {
        for (rank, slot) in kept.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
            let (new, old) = (to.place(rank), |r: &usize| from.place(*r));
            let fits = |r: &usize| is_any_part || (old(r).tp, old(r).pp) == (new.tp, new.pp);
            *slot = left.iter().position(fits).map(|i| left.remove(i));
        }
    }
}

/// Puts one who is left in the place of one of the same part that is not needed; returns how many shards are lost then.
fn exchange(
    from: &Shape,
    kept: &mut [Option<usize>],
    left: &mut [usize],
    lost: usize,
    num_lost: impl Fn(&BTreeSet<usize>) -> usize,
) -> Option<usize> {
    let placed: BTreeSet<usize> = kept.iter().copied().flatten().collect();
    for candidate in left {
        let part = |rank: usize| (from.place(rank).tp, from.place(rank).pp);
        for slot in kept.iter_mut().flatten().filter(|r| part(**r) == part(*candidate)) {
            let mut other = placed.clone();
            other.remove(slot);
            other.insert(*candidate);
            let then = num_lost(&other);
            if then < lost {
                std::mem::swap(slot, candidate);
                return Some(then);
            }
        }
    }
    None
}

/// Shards of `shape` that no rank of `present` holds.
pub fn num_lost(shape: &Shape, present: &BTreeSet<usize>) -> usize {
    let is_held = |rank: usize| present.contains(&rank) || backup_of(shape, rank).is_some_and(|b| present.contains(&b));
    (0..shape.world()).filter(|rank| !is_held(*rank)).count()
}
