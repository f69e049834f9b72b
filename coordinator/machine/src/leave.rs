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

use toroid_torus::holders;

use super::failures::Cause;
use super::incident::Sighting;
use super::job::Job;
use super::record::{SeenBy, Why};
use super::{Context, Machine};

/// A message has reached every worker in this time, as a rule.
const TO_ALL_S: f64 = 0.25;
const MAX_AHEAD_STEPS: u64 = 10_000;
/// Workers that a reason names one by one.
const MAX_NAMED: usize = 8;

/// No step is made beyond this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Halt {
    pub step: u64,
    /// It could not be saved, and is tried again then.
    pub again_at: Option<Duration>,
}

impl Machine {
    /// Workers have places in jobs.
    pub fn is_training(&self) -> bool {
        self.jobs.values().any(|job| job.record.places.iter().any(Option::is_some))
    }

    /// Workers that were asked to end have their places yet: without a coordinator what they hold is neither moved nor saved.
    pub fn is_being_left(&self) -> bool {
        self.jobs.values().any(|job| !job.leaving().is_empty())
    }
}

impl Job {
    /// Steps are not made any more in this epoch.
    pub fn halts(&self) -> bool {
        self.live.checkpoint.halt.is_some()
    }

    fn leaving(&self) -> BTreeSet<usize> {
        let is_leaving = |w: &Option<String>| w.as_ref().is_some_and(|w| self.record.draining.contains(w));
        (0..self.record.places.len()).filter(|rank| is_leaving(&self.record.places[*rank])).collect()
    }

    /// When those that leave are gone, so is a shard; and nobody can take their places with the state.
    fn loses_state(&self, cx: &Context<'_>) -> bool {
        let leaving = self.leaving();
        if leaving.is_empty() || self.can_heal() && !self.candidates(cx.pool, 1).is_empty() {
            return false;
        }
        !self.is_redundant() || holders::lost_shard(&self.record.shape, &leaving).is_some()
    }

    /// Has the state saved that would go with those who leave; says whether no other checkpoint is to be named. `at_start`: nothing of
    /// this epoch is computed yet.
    pub fn halt_to_leave(&mut self, cx: &mut Context<'_>, at_start: bool) -> bool {
        if self.halts() {
            return true;
        }
        let (committed, total) = (self.committed(), self.total());
        if !self.loses_state(cx) {
            return false;
        }
        let steps = self.live.progress.step_s().map_or(1.0, |step_s| (TO_ALL_S / step_s).ceil());
        let ahead = ((steps.max(1.0) as u64) << self.live.checkpoint.doublings).min(MAX_AHEAD_STEPS);
        // A step with leftovers may have a manifest that nobody heard of; its files stay as they are until removed.
        let first = committed + if at_start { 1 } else { ahead };
        let step = (first..).find(|s| !self.record.leftovers.contains(s)).unwrap_or(total);
        if step >= total {
            // The last step is saved in any case.
            return false;
        }
        self.live.checkpoint.halt = Some(Halt { step, again_at: None });
        self.name_halt(cx, step);
        true
    }

    fn name_halt(&mut self, cx: &mut Context<'_>, step: u64) {
        match self.record.pending.get_mut(&step) {
            None => self.name(cx, step, Why::Leaving),
            Some(pending) => {
                pending.halts = true;
                self.send_all(cx, &self.checkpoint_at(step));
                self.changed(cx);
            }
        }
        let text = format!("step {step} is saved and no step is made beyond it: {} to end", self.leaving_in_words());
        self.event(cx, "job.halting", text);
    }

    /// The step that all halt at could not be saved.
    pub fn try_halt_again(&mut self, cx: &Context<'_>, step: u64) {
        let at = cx.now.monotonic + cx.config.limits.heartbeat_interval;
        if let Some(halt) = self.live.checkpoint.halt.as_mut().filter(|halt| halt.step == step) {
            halt.again_at = Some(at);
        }
    }

    pub fn tick_halt(&mut self, cx: &mut Context<'_>) {
        let Some(halt) = self.live.checkpoint.halt.as_mut() else { return };
        if halt.again_at.take_if(|at| cx.now.monotonic >= *at).is_some() {
            let step = halt.step;
            self.name_halt(cx, step);
        }
    }

    fn leaving_in_words(&self) -> String {
        let leaving = self.leaving();
        let named: Vec<&str> =
            leaving.iter().take(MAX_NAMED).filter_map(|rank| self.record.places[*rank].as_deref()).collect();
        let more = leaving.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let verb = if leaving.len() == 1 { "was asked" } else { "were asked" };
        format!("{}{more} {verb}", named.join(", "))
    }

    /// The step that all halt at is saved: whoever is to end may.
    pub fn leave(&mut self, cx: &mut Context<'_>, step: u64) {
        let leaving = self.leaving();
        let cause = format!("{} to end, and nobody can take the places", self.leaving_in_words());
        let stays = |rank: usize| self.record.places[rank].is_some() && !leaving.contains(&rank);
        if !(0..self.world()).any(stays) {
            let sighting = Sighting { by: SeenBy::Drain, cause: cause.clone(), detect: Duration::ZERO, place: None };
            self.incident_seen(cx, sighting);
            return self
                .stand_by(cx, &format!("{cause}: the state of step {step} is saved, and the job waits for workers"));
        }
        for rank in leaving {
            if let Some(worker) = self.record.places[rank].clone() {
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
