//! What to do when places of a job are lost: two pure functions from the situation to a decision with its reason.
//!
//! ```text
//!   a place is lost ── decide ──> the next epoch: who gets which place, and whether the state stays where it is
//!   all are prepared ── resume ──> from which step, who has it (heal), or back to the newest checkpoint (restore)
//! ```
//!
//! The ladder: a spare takes the place; the worker's own restart takes it; the others go on as fewer replicas (see
//! `super::resize`, which is asked where [`decide`] finds nobody); the job waits for a worker; all go back to the newest
//! checkpoint. The last is taken only where both holders of a shard were lost (T-3), or where the job keeps one copy only.
//! Survivors keep their places while the shape is the same (T-7).

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Rung, SeenBy};
use toroid_torus::failpoint;
use toroid_torus::geometry::Shape;
use toroid_torus::holders;
use toroid_torus::ids::{Rank, Step, WorkerId};
use toroid_torus::placement::{self, Candidate, Placement};
use toroid_torus::resplit::Origin;

/// A place that its worker does not fill any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub rank: Rank,
    pub worker: WorkerId,
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
    First { step: Step },
    /// The same, and what was computed since is lost.
    Checkpoint { step: Step },
}

#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub shape: &'a Shape,
    /// The survivors by rank; all of them are connected.
    pub places: &'a [Option<WorkerId>],
    /// Workers that may take a place.
    pub candidates: &'a [Candidate],
    /// Where all connected workers are.
    pub hosts: &'a BTreeMap<WorkerId, Candidate>,
    pub losses: &'a [Loss],
    /// Why the epoch must begin again although all places are filled.
    pub begin_again: Option<&'a str>,
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextEpoch {
    /// Everything is in order.
    Nothing,
    /// There are not enough workers.
    Wait { cause: String, reason: String },
    /// The next epoch begins with these places.
    Begin { placement: Placement, rung: Rung, reason: String },
}

pub fn decide(s: &Situation<'_>) -> NextEpoch {
    let num_empty = s.places.iter().filter(|p| p.is_none()).count();
    if num_empty == 0 && s.begin_again.is_none() {
        return NextEpoch::Nothing;
    }
    let cause = cause(s);
    let placement = match placement::place(s.shape, s.places, s.candidates, s.hosts) {
        Ok(placement) => placement,
        Err(_) => {
            let (filled, world) = (s.places.len() - num_empty, s.places.len());
            let reason = format!("{cause}; waits for a worker: {filled} of {world} places filled");
            return NextEpoch::Wait { cause, reason };
        }
    };
    let moves: Vec<String> = placement
        .reasons
        .iter()
        .take(MAX_NAMED)
        .map(|(rank, why)| format!("{} takes rank {rank} ({why})", placement.workers[rank.index()]))
        .collect();
    let more = if placement.reasons.len() > MAX_NAMED { ", ..." } else { "" };
    let moves = if moves.is_empty() { String::new() } else { format!("{}{more}; ", moves.join(", ")) };
    let reason = format!("{cause}; {moves}{}", source_in_words(s.source, num_empty));
    NextEpoch::Begin { rung: rung(s, &placement), placement, reason }
}

pub(crate) fn source_in_words(source: Source, num_empty: usize) -> String {
    match source {
        Source::Holders if num_empty == 0 => "all keep their state".into(),
        Source::Holders => "the others keep their state, what is missing comes from the other holders".into(),
        Source::First { step: Step::ZERO } | Source::Checkpoint { step: Step::ZERO } => {
            "all go on from the initial weights".into()
        }
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
    let is_restart = |rank: Rank| {
        let host = s.hosts.get(&placement.workers[rank.index()]).map(|c| c.host.as_str());
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub committed: Step,
    /// Its two shards at `committed`, as the place of a rank in a shape has them; none: a newcomer. Two, the older first, where it has
    /// split the state anew and has not heard yet whether all have.
    pub held: Vec<(Shape, usize)>,
    /// Can apply `committed + 1` as soon as it is told the global sums.
    pub sealed_next: bool,
    /// Has the global sums from this step to `committed`.
    pub sums_from: Step,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// All go on from `step`.
    Heal {
        step: Step,
        /// Of those that have committed it the one that knows the sums of most steps (T-12), then the lowest rank.
        source: Rank,
        newcomers: Vec<Rank>,
        /// The state is to be split anew, from this.
        origin: Option<Origin>,
        reason: String,
    },
    /// Only a checkpoint has all of the state. `step` is the highest that was committed.
    Restore { step: Step, reason: String },
}

/// From what all places report, by rank, the step that all go on from (T-2, T-3).
///
/// A state that is split anew is kept as it was, too, until its place has heard that all have the new one. So the way of splitting that
/// most have is one that all of those have who hold a state; where its shards are not all there, the other may still be whole.
pub fn resume(shape: &Shape, held: &[Holding]) -> Resume {
    assert_eq!(held.len(), shape.world(), "a report of every place of {shape}");
    let mut ways: BTreeMap<Shape, (usize, usize)> = BTreeMap::new();
    for (age, (way, _)) in held.iter().flat_map(|h| h.held.iter().enumerate()) {
        let (num, newest) = ways.entry(*way).or_default();
        (*num, *newest) = (*num + 1, age.max(*newest));
    }
    let mut ways: Vec<(Shape, (usize, usize))> = ways.into_iter().collect();
    ways.sort_by_key(|(_, common)| std::cmp::Reverse(*common));
    let mut ways = ways.into_iter().map(|(way, _)| way);
    let first = resume_from(shape, &ways.next().unwrap_or(*shape), held);
    match first {
        Resume::Heal { .. } => first,
        Resume::Restore { .. } => {
            let others = ways.map(|way| resume_from(shape, &way, held));
            others.into_iter().find(|r| matches!(r, Resume::Heal { .. })).unwrap_or(first)
        }
    }
}

/// The same where the state is split for `way`.
fn resume_from(shape: &Shape, way: &Shape, held: &[Holding]) -> Resume {
    let rank_in = |h: &Holding| h.held.iter().find(|(s, _)| s == way).map(|(_, rank)| *rank);
    let ranks: Vec<Option<usize>> = held.iter().map(rank_in).collect();
    let holding = || held.iter().enumerate().filter(|(now, _)| ranks[*now].is_some());
    let committed = || holding().map(|(_, h)| h.committed);
    let step = if failpoint!(GoOnFromLowest) { committed().min() } else { committed().max() }.unwrap_or_default();
    let present: BTreeSet<usize> = ranks.iter().copied().flatten().collect();
    let missing: BTreeSet<usize> = (0..way.world()).filter(|rank| !present.contains(rank)).collect();
    if let Some(rank) = holders::lost_shard(way, &missing) {
        let reason = match holders::backup_of(way, rank) {
            Some(backup) => {
                format!("the shard of rank {rank} is lost: both its holders, ranks {rank} and {backup}, are")
            }
            None => format!("the shard of rank {rank} is lost: it was its only holder"),
        };
        return Resume::Restore { step, reason };
    }
    let is_left_behind =
        |h: &Holding| h.committed != step && !(step.checked_sub(h.committed) == Some(1) && h.sealed_next);
    if let Some((rank, h)) = holding().find(|(_, h)| is_left_behind(h)) {
        let at = h.committed;
        let reason = format!("rank {rank} is at step {at} and cannot get to step {step}, which others have committed");
        return Resume::Restore { step, reason };
    }
    let candidates = holding().filter(|(_, h)| h.committed == step);
    let source = candidates.min_by_key(|(now, h)| (h.sums_from, *now)).map(|(now, _)| Rank::new(now));
    let source = source.expect("some place has state, and one of them has the highest step");
    let newcomers: Vec<Rank> = Rank::all(held.len()).filter(|now| ranks[now.index()].is_none()).collect();
    let behind = match holding().filter(|(_, h)| h.committed < step).count() {
        0 => String::new(),
        n => format!(", {n} that have sealed it get its sums from rank {source}"),
    };
    let is_in_place = way == shape && ranks.iter().enumerate().all(|(now, old)| old.is_none_or(|old| old == now));
    let pull = match newcomers.len() {
        _ if !is_in_place => format!(", the shards of {way} are split anew for {shape}"),
        0 => String::new(),
        n => format!(", {n} without state pull their shards from the other holders"),
    };
    let reason = format!("step {step} is the highest that is committed{behind}{pull}");
    let origin = (!is_in_place).then_some(Origin { shape: *way, ranks });
    Resume::Heal { step, source, newcomers, origin, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a place reports that has its own shards, before it is known which place it is.
    #[derive(Debug, Clone, Copy)]
    struct Report {
        committed: u64,
        has_state: bool,
        sealed_next: bool,
        sums_from: u64,
    }

    const AT: fn(u64) -> Report = |committed| Report { committed, has_state: true, sealed_next: false, sums_from: 1 };
    const SEALED: fn(u64) -> Report =
        |committed| Report { committed, has_state: true, sealed_next: true, sums_from: 1 };
    const NEW: Report = Report { committed: 0, has_state: false, sealed_next: false, sums_from: 0 };

    /// `(step, source, newcomers)`, or the reason for a restore.
    fn check(reports: &[Report], expected: Result<(u64, usize, &[usize]), &str>) {
        let shape = Shape::new(1, 1, reports.len()).expect("a shape");
        let holding = |(rank, r): (usize, &Report)| Holding {
            committed: Step::new(r.committed),
            held: if r.has_state { vec![(shape, rank)] } else { Vec::new() },
            sealed_next: r.sealed_next,
            sums_from: Step::new(r.sums_from),
        };
        let held: Vec<Holding> = reports.iter().enumerate().map(holding).collect();
        let held = held.as_slice();
        match (resume(&shape, held), expected) {
            (Resume::Heal { step, source, newcomers, origin, .. }, Ok(expected)) => {
                let newcomers: Vec<usize> = newcomers.into_iter().map(Rank::index).collect();
                assert_eq!((step.get(), source.index(), newcomers.as_slice()), expected, "{held:?}");
                assert_eq!(origin, None, "{held:?}");
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
    fn t12_the_source_is_who_knows_the_sums_of_most_steps() {
        let since = |sums_from, report| Report { sums_from, ..report };
        check(&[since(5, AT(9)), since(3, AT(9)), since(3, AT(9))], Ok((9, 1, &[])));
        check(&[NEW, since(9, AT(9)), since(2, SEALED(8))], Ok((9, 1, &[0])));
    }

    #[test]
    fn t3_only_both_holders_together_lose_a_shard() {
        check(&[AT(5), NEW, AT(5), NEW], Ok((5, 0, &[1, 3])));
        check(&[AT(5), NEW, NEW, AT(5)], Err("both its holders, ranks 1 and 2"));
        check(&[NEW, AT(5), AT(5), NEW], Err("both its holders, ranks 3 and 0"));
        check(&[NEW, NEW], Err("both its holders"));
        check(&[NEW], Err("its only holder"));
    }

    /// dp of the origin, and its ranks.
    type Way = (usize, Vec<Option<usize>>);

    /// The origin, or the reason for a restore; each place reports its ranks by dp.
    fn check_ways(dp: usize, reports: &[&[(usize, usize)]], expected: Result<Option<Way>, &str>) {
        let shape = |dp| Shape::new(1, 1, dp).expect("a shape");
        let holding = |ways: &&[(usize, usize)]| Holding {
            committed: Step::new(7),
            held: ways.iter().map(|(dp, rank)| (shape(*dp), *rank)).collect(),
            sealed_next: false,
            sums_from: Step::ZERO,
        };
        let held: Vec<Holding> = reports.iter().map(holding).collect();
        match (resume(&shape(dp), &held), expected) {
            (Resume::Heal { origin, .. }, Ok(expected)) => {
                assert_eq!(origin.map(|o| (o.shape.dp(), o.ranks)), expected, "{reports:?}");
            }
            (Resume::Restore { reason, .. }, Err(part)) => assert!(reason.contains(part), "{reason}: {reports:?}"),
            (found, expected) => panic!("{reports:?} gave {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn t3_the_way_of_splitting_that_all_have_counts() {
        // dp 4 lost rank 1 and becomes dp 3.
        check_ways(3, &[&[(4, 0)], &[(4, 2)], &[(4, 3)]], Ok(Some((4, vec![Some(0), Some(2), Some(3)]))));
        // Nobody has heard that all have split it anew, so one may not have.
        check_ways(
            3,
            &[&[(4, 0), (3, 0)], &[(4, 2)], &[(4, 3), (3, 2)]],
            Ok(Some((4, vec![Some(0), Some(2), Some(3)]))),
        );
        // One has heard it: all have.
        check_ways(3, &[&[(4, 0), (3, 0)], &[(3, 1)], &[(4, 3), (3, 2)]], Ok(None));
        check_ways(3, &[&[(4, 0), (3, 0)], &[], &[(3, 2)]], Ok(None));
        // All have both: the newer one, of which two copies are there.
        check_ways(3, &[&[(4, 0), (3, 0)], &[(4, 2), (3, 1)], &[(4, 3), (3, 2)]], Ok(None));
        // Rank 2 of dp 4 died before all had the newer one: rank 1 is lost there, but the newer one is whole by chance.
        check_ways(3, &[&[(4, 0), (3, 0)], &[], &[(4, 3), (3, 2)]], Ok(None));
        check_ways(3, &[&[(4, 0), (3, 0)], &[], &[(4, 3)]], Err("ranks 1 and 2"));
        // It grows back, and the newcomer dies.
        check_ways(4, &[&[(3, 0)], &[(3, 1)], &[(3, 2)], &[]], Ok(Some((3, vec![Some(0), Some(1), Some(2), None]))));
        // The only replica is left.
        check_ways(1, &[&[(2, 1)]], Ok(Some((2, vec![Some(1)]))));
        check_ways(1, &[&[(1, 0)]], Ok(None));
        check_ways(1, &[&[]], Err("only holder"));
    }

    #[test]
    fn t2_who_is_behind_and_has_not_sealed_cannot_follow() {
        check(&[AT(5), AT(4), AT(5)], Err("rank 1 is at step 4 and cannot get to step 5"));
        check(&[AT(5), AT(5), SEALED(3)], Err("rank 2 is at step 3"));
    }
}
