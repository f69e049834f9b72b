//! What to do when places of a job are lost: two pure functions from the situation to a decision with its reason.
//!
//! ```text
//!   a place is lost ── decide ──> the next epoch: who gets which place, and whether the state stays where it is
//!   all are prepared ── resume ──> from which step, who has it (heal), or back to the newest checkpoint (restore)
//! ```
//!
//! The ladder: a spare takes the place; the worker's own restart takes it; the job waits for a worker; all go back to the newest
//! checkpoint. The last is taken only where both holders of a shard were lost (T-3), or where the job keeps one copy only.
//! Survivors keep their places in any case (T-7).
//!
//! Deliberately absent: shrinking the DP axis.

use std::collections::{BTreeMap, BTreeSet};

use toroid_torus::geometry::Shape;
use toroid_torus::holders;
use toroid_torus::placement::{self, Candidate, Placement};

use super::record::{Rung, SeenBy};

/// A place that its worker does not fill any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub rank: usize,
    pub worker: String,
    /// Where the worker was; empty where that is not known.
    pub host: String,
    pub by: SeenBy,
    /// A verb phrase: "closed its stream (reset)".
    pub why: String,
    /// Somebody was there who could take the place at once.
    pub had_spare: bool,
}

/// Where the next epoch has its state from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The places hold it; what one lacks the others have.
    Holders,
    /// The newest checkpoint; 0: the initial weights. Nothing was computed since.
    First { step: u64 },
    /// The same, and what was computed since is lost.
    Checkpoint { step: u64 },
}

#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub shape: &'a Shape,
    /// The survivors by rank; all of them are connected.
    pub places: &'a [Option<String>],
    /// Workers that may take a place.
    pub candidates: &'a [Candidate],
    /// Where all connected workers are.
    pub hosts: &'a BTreeMap<String, Candidate>,
    pub losses: &'a [Loss],
    /// Why the epoch must begin again although all places are filled.
    pub begin_again: Option<&'a str>,
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Everything is in order.
    Nothing,
    /// There are not enough workers.
    Wait { reason: String },
    /// The next epoch begins with these places.
    Begin { placement: Placement, rung: Rung, reason: String },
}

pub fn decide(s: &Situation<'_>) -> Plan {
    let num_empty = s.places.iter().filter(|p| p.is_none()).count();
    if num_empty == 0 && s.begin_again.is_none() {
        return Plan::Nothing;
    }
    let cause = cause(s);
    let placement = match placement::place(s.shape, s.places, s.candidates, s.hosts) {
        Ok(placement) => placement,
        Err(_) => {
            let (filled, world) = (s.places.len() - num_empty, s.places.len());
            let reason = format!("{cause}; waits for a worker: {filled} of {world} places filled");
            return Plan::Wait { reason };
        }
    };
    let moves: Vec<String> = placement
        .reasons
        .iter()
        .take(MAX_NAMED)
        .map(|(rank, why)| format!("{} takes rank {rank} ({why})", placement.workers[*rank]))
        .collect();
    let more = if placement.reasons.len() > MAX_NAMED { ", ..." } else { "" };
    let moves = if moves.is_empty() { String::new() } else { format!("{}{more}; ", moves.join(", ")) };
    let reason = format!("{cause}; {moves}{}", source_in_words(s.source, num_empty));
    Plan::Begin { rung: rung(s, &placement), placement, reason }
}

fn source_in_words(source: Source, num_empty: usize) -> String {
    match source {
        Source::Holders if num_empty == 0 => "all keep their state".into(),
        Source::Holders => "the others keep their state, what is missing comes from the other holders".into(),
        Source::First { step: 0 } | Source::Checkpoint { step: 0 } => "all go on from the initial weights".into(),
        Source::First { step } | Source::Checkpoint { step } => format!("all go on from the checkpoint of step {step}"),
    }
}

fn rung(s: &Situation<'_>, placement: &Placement) -> Rung {
    if matches!(s.source, Source::Checkpoint { .. }) {
        return Rung::Restore;
    }
    if placement.reasons.is_empty() {
        return Rung::Reconnect;
    }
    if !s.losses.is_empty() && s.losses.iter().all(|l| l.by == SeenBy::Drain) {
        return Rung::Drain;
    }
    let is_restart = |rank: usize| {
        let host = s.hosts.get(&placement.workers[rank]).map(|c| c.host.as_str());
        s.losses.iter().any(|l| l.rank == rank && !l.had_spare && !l.host.is_empty() && host == Some(&l.host))
    };
    if placement.reasons.iter().all(|(rank, _)| is_restart(*rank)) { Rung::Restart } else { Rung::Spare }
}

/// Losses and moves that a reason names one by one.
const MAX_NAMED: usize = 4;

fn cause(s: &Situation<'_>) -> String {
    let mut causes: Vec<String> =
        s.losses.iter().take(MAX_NAMED).map(|l| format!("{} (rank {}) {}", l.worker, l.rank, l.why)).collect();
    if s.losses.len() > MAX_NAMED {
        causes.push(format!("{} more were lost", s.losses.len() - MAX_NAMED));
    }
    causes.extend(s.begin_again.map(str::to_string));
    if causes.is_empty() { "places are empty".into() } else { causes.join(", ") }
}

/// What a place holds when a healing epoch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    pub committed: u64,
    /// Has its two shards at `committed`.
    pub has_state: bool,
    /// Can apply `committed + 1` as soon as it is told the global sums.
    pub sealed_next: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// All go on from `step`.
    Heal {
        step: u64,
        /// The lowest rank that has committed it.
        source: usize,
        newcomers: Vec<usize>,
        reason: String,
    },
    /// Only a checkpoint has all of the state. `step` is the highest that was committed.
    Restore { step: u64, reason: String },
}

/// From what all places report, by rank, the step that all go on from (T-2, T-3).
pub fn resume(shape: &Shape, held: &[Holding]) -> Resume {
    assert_eq!(held.len(), shape.world(), "a report of every place of {shape}");
    let committed = || held.iter().filter(|h| h.has_state).map(|h| h.committed);
    let step = if planted!(GoOnFromLowest) { committed().min() } else { committed().max() }.unwrap_or(0);
    let newcomers: BTreeSet<usize> = (0..held.len()).filter(|r| !held[*r].has_state).collect();
    if let Some(rank) = holders::lost_shard(shape, &newcomers) {
        let reason = match holders::backup_of(shape, rank) {
            Some(backup) => {
                format!("the shard of rank {rank} is lost: both its holders, ranks {rank} and {backup}, are")
            }
            None => format!("the shard of rank {rank} is lost: it was its only holder"),
        };
        return Resume::Restore { step, reason };
    }
    let is_left_behind =
        |h: &Holding| h.has_state && h.committed != step && !(h.committed + 1 == step && h.sealed_next);
    if let Some(rank) = held.iter().position(is_left_behind) {
        let at = held[rank].committed;
        let reason = format!("rank {rank} is at step {at} and cannot get to step {step}, which others have committed");
        return Resume::Restore { step, reason };
    }
    let source = held.iter().position(|h| h.has_state && h.committed == step);
    let source = source.expect("some place has state, and one of them has the highest step");
    let num_behind = held.iter().filter(|h| h.has_state && h.committed < step).count();
    let behind = match num_behind {
        0 => String::new(),
        n => format!(", {n} that have sealed it get its sums from rank {source}"),
    };
    let pull = match newcomers.len() {
        0 => String::new(),
        n => format!(", {n} without state pull their shards from the other holders"),
    };
    let reason = format!("step {step} is the highest that is committed{behind}{pull}");
    Resume::Heal { step, source, newcomers: newcomers.into_iter().collect(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Holding = |committed| Holding { committed, has_state: true, sealed_next: false };
    const SEALED: fn(u64) -> Holding = |committed| Holding { committed, has_state: true, sealed_next: true };
    const NEW: Holding = Holding { committed: 0, has_state: false, sealed_next: false };

    /// `(step, source, newcomers)`, or the reason for a restore.
    fn check(held: &[Holding], expected: Result<(u64, usize, &[usize]), &str>) {
        let shape = Shape::new(1, 1, held.len()).expect("a shape");
        match (resume(&shape, held), expected) {
            (Resume::Heal { step, source, newcomers, .. }, Ok(expected)) => {
                assert_eq!((step, source, newcomers.as_slice()), expected, "{held:?}");
            }
            (Resume::Restore { reason, .. }, Err(part)) => assert!(reason.contains(part), "{reason}: {held:?}"),
            (found, expected) => panic!("{held:?} gave {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_highest_committed_step_counts_and_its_lowest_rank_is_the_source() {
        check(&[AT(5), AT(5), AT(5)], Ok((5, 0, &[])));
        check(&[SEALED(4), AT(5), AT(5)], Ok((5, 1, &[])));
        check(&[NEW, SEALED(4), AT(5), SEALED(5)], Ok((5, 2, &[0])));
        check(&[SEALED(4), SEALED(4), NEW], Ok((4, 0, &[2])));
        check(&[AT(0), NEW, AT(0)], Ok((0, 0, &[1])));
    }

    #[test]
    fn t3_only_both_holders_together_lose_a_shard() {
        check(&[AT(5), NEW, AT(5), NEW], Ok((5, 0, &[1, 3])));
        check(&[AT(5), NEW, NEW, AT(5)], Err("both its holders, ranks 1 and 2"));
        check(&[NEW, AT(5), AT(5), NEW], Err("both its holders, ranks 3 and 0"));
        check(&[NEW, NEW], Err("both its holders"));
        check(&[NEW], Err("its only holder"));
    }

    #[test]
    fn t2_who_is_behind_and_has_not_sealed_cannot_follow() {
        check(&[AT(5), AT(4), AT(5)], Err("rank 1 is at step 4 and cannot get to step 5"));
        check(&[AT(5), AT(5), SEALED(3)], Err("rank 2 is at step 3"));
    }
}
