//! Workers that are asked to end while nobody can take their places: the state is saved before they go.
//!
//! ```text
//!   Leaving ──> somebody can take the place ──> it is moved (see [`super::drain`])
//!          ──> all shards have a holder that stays ──> it is saved beside the training, and the others hold the state
//!          ──> a shard would be lost ──> CheckpointAt { halt }: the next step is saved, and no step is made beyond it
//!                                            └──> published ──> they leave; who stays waits or shrinks, else the job stands by as queued
//! ```
//!
//! So what they leave behind is the newest step, and no committed step is lost. They stay until it is published, or until their grace is
//! over. A checkpoint that fails is tried again at the same step: its state does not change any more.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Job;
use crate::cause::Cause;
use crate::context::Context;
use crate::incidents::Sighting;
use crate::record::SeenBy;
use toroid_torus::holders;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::units;

/// Workers that a reason names one by one.
const MAX_NAMED: usize = 8;

impl Job {
    pub fn leaving(&self) -> BTreeSet<Rank> {
        let record = &self.core.record;
        // Asked for with every step, and mostly nobody is to end.
        if record.draining.is_empty() {
            return BTreeSet::new();
        }
        record.placed().filter(|(_, worker)| record.draining.contains(*worker)).map(|(rank, _)| rank).collect()
    }

    /// Whether a shard loses its last holder when the workers that are to end are gone, and no worker can take their places before that.
    pub(super) fn would_lose_state(&self, cx: &Context<'_>) -> bool {
        let leaving = self.leaving();
        if leaving.is_empty() || self.core.can_heal() && self.has_candidate(cx.pool) {
            return false;
        }
        !self.core.is_redundant()
            || holders::lost_shard(&self.core.record.shape, &leaving.iter().map(|rank| rank.index()).collect())
                .is_some()
    }

    /// `x, y were asked to end`.
    pub(super) fn leaving_in_words(&self) -> String {
        let leaving = self.leaving();
        let workers = leaving.iter().filter_map(|rank| self.core.record.worker_at(*rank));
        let verb = if leaving.len() == 1 { "was asked" } else { "were asked" };
        format!("{} {verb} to end", units::names(workers, MAX_NAMED))
    }

    /// The step that all halt at is saved: the workers that are to end may end.
    pub fn leave(&mut self, cx: &mut Context<'_>, step: Step) {
        let leaving = self.leaving();
        if self.core.record.yields.is_some() {
            return self.give_way_now(cx, &format!("the state of step {step} is saved"));
        }
        let cause = format!("{}, and nobody can take the places", self.leaving_in_words());
        let stays = |rank: Rank| self.core.record.places[rank.index()].is_some() && !leaving.contains(&rank);
        if !Rank::all(self.core.world()).any(stays) {
            let sighting = Sighting { by: SeenBy::Drain, cause: cause.clone(), detect: Duration::ZERO, place: None };
            self.incident_seen(cx, sighting);
            return self
                .stand_by(cx, &format!("{cause}: the state of step {step} is saved, and the job waits for workers"));
        }
        for rank in leaving {
            if let Some(worker) = self.core.record.worker_at(rank).cloned() {
                cx.pool.retire(&worker);
            }
            self.lose(
                cx,
                rank,
                Cause::new(SeenBy::Drain, format!("was asked to end; the state of step {step} is saved")),
            );
        }
    }
}
