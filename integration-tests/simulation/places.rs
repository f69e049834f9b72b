//! Who has which place after a decision: T-7, exactly.
//!
//! A survivor is a worker that had a place and that the decision names neither as lost nor as drained.
//!
//! - While the shape is the same, each survivor has its place. But for one kind of them, which has nothing of the job yet: a newcomer makes room for the
//!   worker whose place it was to take over, where that holds the only copy of its shards.
//! - In another shape the survivors have the places that [`resplit::keep`] gives them, or one that is left takes the place of another of its part (tp, pp):
//!   the machine exchanges them where a shard would be lost with the one that is left. Who has no place is named.
//! - A job that has given all its places back has no survivors: it goes on from a checkpoint, with whatever workers.

use std::collections::{BTreeMap, BTreeSet};

use toroid_coordinator::machine::record::JobRecord;
use toroid_session::HeldAs;
use toroid_torus::ids::{Rank, WorkerId};
use toroid_torus::resplit;

use crate::worker::pid_of;
use crate::world::World;

impl World {
    /// What is wrong with the places of a record that follows another.
    pub fn wrong_places(&self, old: &JobRecord, new: &JobRecord) -> Option<String> {
        let id = &new.id;
        if new.state.is_ended() {
            return None;
        }
        let num_new = (new.num_events - old.num_events) as usize;
        let events = || new.events.iter().rev().take(num_new);
        if events().any(|e| e.kind == "job.queued") {
            let goes_on = new.has_state || new.heal.is_some();
            return goes_on.then(|| format!("T-7: {id} gave its places back and goes on with what they hold"));
        }
        let named = |kinds: &[&str]| -> BTreeSet<&str> {
            events().filter(|e| kinds.contains(&e.kind.as_str())).map(|e| e.worker.as_str()).collect()
        };
        let gone = named(&["worker.lost", "worker.drained"]);
        let displaced = named(&["worker.displaced"]);
        let survivors: BTreeMap<Rank, &WorkerId> =
            old.placed().filter(|(_, worker)| !gone.contains(worker.as_str())).collect();
        if new.shape != old.shape {
            return match with_returned(old, new, &survivors) {
                Ok(survivors) => wrong_resize(old, new, &survivors, &displaced),
                Err(complaint) => Some(complaint),
            };
        }
        survivors.into_iter().find_map(|(rank, worker)| match new.worker_at(rank) {
            now if now == Some(worker) => None,
            Some(taker) if displaced.contains(worker.as_str()) => self.wrong_exchange(new, rank, worker, taker),
            // Whoever had its place back was lost in the same decision.
            None if displaced.contains(worker.as_str()) && !gone.is_disjoint(&named(&["worker.draining"])) => None,
            now => Some(format!("T-7: rank {rank} of {id} was {worker}'s, which is there, and is {now:?}'s")),
        })
    }

    /// A newcomer has made room for the worker that had the place before it.
    fn wrong_exchange(&self, new: &JobRecord, rank: Rank, newcomer: &WorkerId, taker: &WorkerId) -> Option<String> {
        let (id, place) = (&new.id, HeldAs { shape: new.shape, rank });
        if self.had_place.get(&(id.to_string(), taker.to_string())) != Some(&place) {
            return Some(format!("T-7: {newcomer} makes room on rank {rank} of {id} for {taker}, whose it was not"));
        }
        let held = self.workers.get(&pid_of(newcomer)).and_then(|w| w.held.as_ref()).filter(|held| held.job == *id);
        let holds = held.is_some_and(|held| held.as_places.contains(&place));
        holds.then(|| format!("T-7: {newcomer} makes room on rank {rank} of {id} and holds its shards"))
    }
}

/// The survivors, and who came back to its empty place in this very decision, as the way in which the state was split tells it.
fn with_returned<'a>(
    old: &'a JobRecord,
    new: &'a JobRecord,
    survivors: &BTreeMap<Rank, &'a WorkerId>,
) -> Result<BTreeMap<Rank, &'a WorkerId>, String> {
    let Some(layout) = new.earlier.last().filter(|layout| layout.shape == old.shape) else {
        return Ok(survivors.clone());
    };
    let by_rank = Rank::all(layout.places.len()).zip(&layout.places);
    let there: BTreeMap<Rank, &WorkerId> =
        by_rank.filter_map(|(rank, worker)| Some((rank, worker.as_ref()?))).collect();
    let is_known = |(rank, worker): (&Rank, &&WorkerId)| {
        survivors.get(rank) == Some(worker) || old.absent.get(rank) == Some(*worker)
    };
    let is_right = there.iter().all(is_known) && survivors.iter().all(|(rank, worker)| there.get(rank) == Some(worker));
    match is_right {
        true => Ok(there),
        false => Err(format!("T-7: {} is split anew from {there:?}, there were {survivors:?}", new.id)),
    }
}

fn wrong_resize(
    old: &JobRecord,
    new: &JobRecord,
    survivors: &BTreeMap<Rank, &WorkerId>,
    displaced: &BTreeSet<&str>,
) -> Option<String> {
    let (from, to) = (&old.shape, &new.shape);
    let ranks: BTreeSet<usize> = survivors.keys().map(|rank| rank.index()).collect();
    let wanted = resplit::keep(from, to, &ranks, |_| 0)?;
    let was = |worker: &WorkerId| survivors.iter().find(|(_, w)| **w == worker).map(|(rank, _)| rank.index());
    let kept: Vec<Option<usize>> = new.places.iter().map(|worker| was(worker.as_ref()?)).collect();
    let part = |rank: usize| (from.place(rank).tp, from.place(rank).pp);
    let is_exchanged = |kept_one: usize, wanted_one: usize| {
        part(kept_one) == part(wanted_one)
            && !wanted.contains(&Some(kept_one))
            && !kept.contains(&Some(wanted_one))
            && displaced.contains(survivors[&Rank::new(wanted_one)].as_str())
    };
    let is_right = |(kept_one, wanted_one): (&Option<usize>, &Option<usize>)| match (*kept_one, *wanted_one) {
        (Some(kept_one), Some(wanted_one)) => kept_one == wanted_one || is_exchanged(kept_one, wanted_one),
        (kept_one, wanted_one) => kept_one == wanted_one,
    };
    let is_silent =
        |rank: &usize| !kept.contains(&Some(*rank)) && !displaced.contains(survivors[&Rank::new(*rank)].as_str());
    let silent = ranks.iter().find(|rank| is_silent(rank));
    (silent.is_some() || !kept.iter().zip(&wanted).all(is_right))
        .then(|| format!("T-7: of {from} the ranks {kept:?} have the places of {to} in {}, and not {wanted:?}", new.id))
}
