//! A job in the queue: what it waits for, how it gives its workers back, and how one that has ended comes back.
//!
//! ```text
//!   queued ──> placed ── a job of a higher priority, or a user who holds it ──> yields: the next step is saved, no step is made beyond it
//!     ^                                                                              └──> published: the workers are free ──┐
//!     └────────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It goes on from that very step when it has its places again, so nothing is lost and nothing is made again (T-3, T-4). A job that holds
//! nothing which its checkpoint has not gives its workers back at once. Once it halts that is not taken back: a job that is no longer asked to
//! give way when it is saved waits in the queue all the same, and has its places again at once if they are free.

use std::time::Duration;

use super::Job;
use crate::api::RequestError;
use crate::clock::Stopwatch;
use crate::context::Context;
use crate::epoch::EpochPhase;
use crate::pool::Pool;
use crate::record::{State, Yield};
use crate::recovery;
use crate::scheduler::{self, Placed, Queued, Wait};
use toroid_torus::failpoint;
use toroid_torus::ids::{JobId, Step, WorkerId};
use toroid_torus::labels;

impl Job {
    /// The job as the scheduler sees it while it has no places.
    pub fn as_queued(&self, cx: &Context<'_>) -> Queued {
        let record = &self.core.record;
        let wanted = &record.spec.workers.labels;
        let mut asks = String::new();
        if record.spec.exact {
            asks += " of one numeric fingerprint";
        }
        if !wanted.is_empty() {
            asks += &format!(" with {}", labels::in_words(wanted));
        }
        Queued {
            job: record.id.clone(),
            number: record.number,
            user: record.user.clone(),
            priority: record.spec.priority,
            num_places: record.spec.shape.world(),
            waited: self.waited(cx),
            is_held: record.is_held,
            asks,
        }
    }

    /// The job as the scheduler sees it while it has places.
    pub fn as_placed(&self) -> Placed {
        let record = &self.core.record;
        Placed {
            job: record.id.clone(),
            number: record.number,
            user: record.user.clone(),
            priority: record.spec.priority,
            class: record.class,
            num_places: record.spec.shape.world(),
            dp: record.shape.dp(),
            min_dp: self.fewest_replicas(),
            replica: record.shape.tp() * record.shape.pp(),
            workers: record.places.iter().flatten().cloned().collect(),
            num_missing: record.places.num_empty(),
            is_yielding: record.yields.is_some(),
        }
    }

    fn waited(&self, cx: &Context<'_>) -> Duration {
        let waited_s = self.core.record.waited.map_or(0.0, |watch| watch.elapsed_s(cx.now));
        Duration::try_from_secs_f64(waited_s).unwrap_or(Duration::ZERO)
    }

    /// Spares are needed for its places, or soon will be.
    pub fn needs_spares(&self) -> bool {
        let record = &self.core.record;
        record.places.num_empty() > 0 || !record.draining.is_empty()
    }

    /// Workers without a place that hold its state as it was split before.
    pub fn retained_workers(&self, pool: &Pool) -> impl Iterator<Item = WorkerId> + use<> {
        self.retained(pool).into_iter()
    }

    /// It stays in the queue, for this reason. An event says so whenever it is another kind of wait; the rest is told and not stored, since
    /// it is found out anew after a restart.
    pub fn wait(&mut self, cx: &mut Context<'_>, wait: Wait, reason: &str) {
        let mut reason = reason.to_string();
        if matches!(wait, Wait::Capacity | Wait::Workers) {
            if self.core.record.started_unix_ms > 0 {
                reason += &format!("; then {}", recovery::source_in_words(self.source(), 0));
            }
            reason += &cx.pool.not_counted();
            reason += &self.fitness.in_words();
        }
        if self.waits != Some(wait) {
            self.waits = Some(wait);
            self.core.event(cx, "job.waits", reason.clone());
        }
        if self.core.record.reason != reason {
            self.core.record.edit_later().reason = reason;
            cx.out.changed.insert(self.core.record.id.clone());
        }
    }

    pub(super) fn begins_waiting(&mut self, cx: &mut Context<'_>) {
        self.waits = None;
        let (now, record) = (cx.now, self.core.record.edit(cx.out));
        match &mut record.waited {
            _ if record.is_held => {}
            Some(watch) => watch.go_on(now),
            none => *none = Some(Stopwatch::start(now)),
        }
    }

    /// It is about to have its places: what it has waited counts against preemption from now on.
    pub(super) fn stops_waiting(&mut self, cx: &mut Context<'_>) {
        let class = scheduler::class(self.core.record.spec.priority, self.waited(cx), &cx.config.policy);
        let (now, record) = (cx.now, self.core.record.edit(cx.out));
        record.class = class;
        if let Some(watch) = &mut record.waited {
            watch.stop(now);
        }
    }

    /// The job gives its workers to another, or to nobody where a user holds it: as soon as what it has computed is saved.
    pub fn give_way(&mut self, cx: &mut Context<'_>, to: Option<JobId>, reason: &str) {
        if self.core.record.yields.is_some() || !self.core.record.state.is_placed() {
            return;
        }
        let kind = if to.is_some() { "job.preempted" } else { "job.held" };
        self.core.event(cx, kind, reason);
        self.core.record.edit(cx.out).yields = Some(Yield { to, reason: reason.into() });
        let has_nothing = !self.core.can_heal() && self.core.epoch.phase() != EpochPhase::Started;
        if has_nothing || failpoint!(PreemptUnsaved) {
            return self.give_way_now(cx, "there is nothing that is not saved");
        }
        self.name_steps(cx, false);
    }

    /// Nobody is to have its workers any more, and it does not halt yet: it goes on.
    pub fn need_not_yield(&mut self, cx: &mut Context<'_>, is_wanted: impl Fn(&WorkerId) -> bool) {
        let record = &self.core.record;
        if record.yields.is_none() || record.halt.is_some() || record.is_held {
            return;
        }
        if record.places.iter().flatten().any(is_wanted) {
            return;
        }
        self.core.record.edit(cx.out).yields = None;
        self.core.event(cx, "job.keeps", "it keeps its workers: what they were wanted for is there");
    }

    /// Its state is saved: the workers are free, and it waits in the queue.
    pub(super) fn give_way_now(&mut self, cx: &mut Context<'_>, saved: &str) {
        let Some(yields) = self.core.record.yields.clone() else { return };
        self.stand_by(cx, &format!("{saved}: {}", yields.reason));
    }

    // ------------------------------------------------------------------------------------------------------------ for users

    /// No places until it is released; one that has places is saved first. Twice is the same as once.
    pub fn hold(&mut self, cx: &mut Context<'_>) -> Result<(), RequestError> {
        if self.core.record.state.is_ended() {
            return Err(self.refuse("held"));
        }
        if self.core.record.is_held {
            return Ok(());
        }
        let (now, record) = (cx.now, self.core.record.edit(cx.out));
        record.is_held = true;
        if let Some(watch) = &mut record.waited {
            watch.stop(now);
        }
        match self.core.record.state {
            State::Queued => {
                self.core.event(cx, "job.held", "a user holds it: it is given no places until it is released")
            }
            _ => self.give_way(cx, None, "a user holds it: it is saved, and waits until it is released"),
        }
        cx.out.unsettled = true;
        Ok(())
    }

    pub fn release(&mut self, cx: &mut Context<'_>) -> Result<(), RequestError> {
        if !self.core.record.is_held {
            return Err(self.refuse("released"));
        }
        self.core.record.edit(cx.out).is_held = false;
        self.core.event(cx, "job.released", "a user has released it");
        if self.core.record.state == State::Queued {
            self.begins_waiting(cx);
        }
        cx.out.unsettled = true;
        Ok(())
    }

    /// A job that has ended waits in the queue again, and goes on from its newest checkpoint up to `steps`.
    pub fn come_back(
        &mut self,
        cx: &mut Context<'_>,
        steps: Option<u64>,
        from_scratch: bool,
    ) -> Result<(), RequestError> {
        let id = self.core.record.id.clone();
        let saved = match self.core.record.last_checkpoint() {
            Some(checkpoint) if !from_scratch => checkpoint.step,
            _ => Step::ZERO,
        };
        let steps = steps.unwrap_or(self.core.record.spec.steps);
        if steps <= saved.get() {
            let saved = saved.get();
            return Err(RequestError::Steps { job: id, steps, saved });
        }
        let spec = toroid_torus::job::JobSpec { steps, ..self.core.record.spec.clone() };
        spec.check()?;
        let (before, committed) = (self.core.record.spec.steps, self.core.committed());
        self.fitness.forget_unfit(&mut self.core.deadlines);
        self.readers.clear();
        let record = self.core.record.edit(cx.out);
        record.spec = spec;
        record.shape = record.spec.shape;
        record.finished_unix_ms = 0;
        record.has_state = false;
        record.heal = None;
        record.failures.clear();
        record.deaths.clear();
        record.unsaved = None;
        record.hold = None;
        record.is_held = false;
        if from_scratch {
            let old = std::mem::take(&mut record.checkpoints);
            record.leftovers.extend(old.into_iter().map(|c| c.step));
        }
        let state = record.state.name();
        if let Some(watch) = &mut record.trained {
            watch.go_on(cx.now);
        }
        if from_scratch {
            self.forget_unusable(cx);
        }
        let changed = if steps == before { String::new() } else { format!(" instead of {before}") };
        let from = if saved == Step::ZERO { "its beginning".into() } else { format!("the checkpoint of step {saved}") };
        let again = match committed.since(saved) {
            0 => String::new(),
            1 => "; 1 step since then is made again".into(),
            n => format!("; {n} steps since then are made again"),
        };
        let reason =
            format!("a user asked for it: it was {state}, and goes on from {from} up to step {steps}{changed}{again}");
        self.set_state(cx, State::Queued, &reason);
        self.begins_waiting(cx);
        self.core.event(cx, "job.resumed", reason);
        cx.out.unsettled = true;
        Ok(())
    }
}
