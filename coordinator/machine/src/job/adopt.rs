//! A store that is an older copy: workers hold a later epoch of the job than it knows, and the job goes on from that.
//!
//! ```text
//!   Register{epoch 6}, store: epoch 5     wait for the others of epoch 6, as long as after a restart    adopt: the places are those of epoch 6
//!                                         no place is lost, filled or moved meanwhile                   then epoch 7 heals as any other does
//! ```
//!
//! What the places hold they say when they have prepared ([`crate::recovery::resume`]), so nothing is believed that is not checked there. A job with one
//! copy of its state goes on in the very epoch, where all its places are there. What the copy lacks besides (checkpoints, incidents, rows of the curve)
//! is not made up, and checkpoints that it lacks are not removed.

use super::Job;
use crate::clock::Stopwatch;
use crate::context::Context;
use crate::deadlines::Deadline;
use crate::epoch::{EpochPhase, EpochState};
use crate::later::{Found, Held};
use crate::record::{SeenBy, State};
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, Rank, Step, WorkerId};

impl Job {
    /// What a worker that registers holds of this very job, in a later epoch than this store knows; `None`: it does not.
    pub fn later_of(&self, register: &proto::Register) -> Option<Held> {
        let record = &self.core.record;
        let is_own = record.id == *register.job_id
            && record.owner.as_ref().is_some_and(|owner| owner.bytes()[..] == register.owner_id[..]);
        let epoch = Epoch::new(register.epoch);
        if !is_own || epoch <= record.epoch || record.state.is_ended() {
            return None;
        }
        let shape = Shape::try_from(register.shape.as_ref()?).ok()?;
        let (rank, full) = (Rank::from(register.rank), &record.spec.shape);
        let fits = (shape.tp(), shape.pp()) == (full.tp(), full.pp()) && rank.index() < shape.world();
        let committed = Step::new(register.committed_step).min(self.core.total());
        (fits && shape.dp() <= full.dp()).then_some(Held { epoch, shape, rank, committed })
    }

    /// Whether workers hold more than the store knows, which is not decided about yet.
    pub fn awaits_later(&self) -> bool {
        !self.later.is_empty()
    }

    /// Those who do.
    pub fn claimants(&self) -> impl Iterator<Item = &WorkerId> {
        self.later.workers()
    }

    /// A worker is there that holds a later epoch.
    pub fn claim_later(&mut self, cx: &mut Context<'_>, worker: WorkerId, held: Held) {
        if self.later.is_empty() {
            let text = format!(
                "the coordinator's store is older than what workers hold: it knows epoch {}, and {worker} is in epoch {}; waits for the others of that epoch",
                self.core.record.epoch, held.epoch
            );
            self.core.event(cx, "store.behind", text.clone());
            let state = self.core.record.state;
            self.set_state(cx, state, &text);
        }
        self.core.deadlines.set_first(Deadline::Later, cx.now.monotonic + cx.config.limits.reconnect());
        self.later.claim(worker, held);
        if self.later.found().is_some_and(|found| found.is_whole()) {
            self.adopt_later(cx);
        }
    }

    /// The job goes on from the newest epoch that workers hold, with those of it that are there.
    pub(super) fn adopt_later(&mut self, cx: &mut Context<'_>) {
        self.core.deadlines.clear(&Deadline::Later);
        let mut later = std::mem::take(&mut self.later);
        later.retain(|worker| cx.pool.get(worker).is_some_and(|w| w.place.is_none()));
        cx.out.unsettled = true;
        let Some(found) = later.found() else {
            return self.lose_absent(cx);
        };
        let is_adopted = |worker: &WorkerId| found.places.contains(&Some(worker.clone()));
        let others = later.workers().chain(self.core.record.places.iter().flatten());
        let others: Vec<WorkerId> = others.filter(|worker| !is_adopted(worker)).cloned().collect();
        self.take_over(cx, &found);
        for worker in others {
            cx.pool.set_place(&worker, None);
            self.stop_worker(cx, &worker, "a later epoch of the job goes on without it");
        }
        let text = format!(
            "the store is older than what workers hold: goes on from epoch {}, of which {} of {} places are there",
            found.epoch,
            found.num_places(),
            found.places.len()
        );
        self.core.event(cx, "store.behind", text.clone());
        match found.is_whole() && !self.core.can_heal() {
            true => self.go_on_as_it_is(cx),
            false => self.begin_again(cx, SeenBy::CoordinatorRestart, text),
        }
    }

    /// Nobody holds a later epoch any more: whoever is not there is lost, as after any restart.
    fn lose_absent(&mut self, cx: &mut Context<'_>) {
        if !self.core.epoch.awaited().is_empty() {
            self.core.deadlines.set(Deadline::Return, cx.now.monotonic);
        }
    }

    /// The record as it is in the epoch that was found.
    fn take_over(&mut self, cx: &mut Context<'_>, found: &Found) {
        if self.core.record.state == State::Queued {
            self.stops_waiting(cx);
        }
        let highest = found.committed.iter().copied().max().unwrap_or_default();
        self.checkpoints.abandon_copy(&mut self.core.context(cx), highest);
        let record = self.core.record.edit(cx.out);
        record.epoch = found.epoch;
        record.shape = found.shape;
        record.places = found.places.clone().into();
        record.state = State::Recovering;
        record.has_state = true;
        record.heal = None;
        record.halt = None;
        record.hold = None;
        record.absent.clear();
        record.earlier.clear();
        if record.started_unix_ms == 0 {
            record.started_unix_ms = cx.now.unix_ms;
            record.trained = Some(Stopwatch::start(cx.now));
        }
        record.high_step = record.high_step.max(highest);
        let (kept, committed) = (self.core.curve.progress().last_step(), found.committed.clone());
        self.core.epoch = EpochState::restore(EpochPhase::Waiting, kept.min(highest), committed, Default::default());
        self.core.curve.begin_at(record.restore_step.max(record.start_step));
        self.activities.begin(found.shape.world());
        let record = &self.core.record;
        self.stragglers.begin(&record.spec, &record.shape, |_| false);
        self.fill_places(cx);
    }

    /// All its places are there and nobody else has the state: it goes on in the epoch that it is in.
    fn go_on_as_it_is(&mut self, cx: &mut Context<'_>) {
        let state = if self.core.is_degraded() { State::Degraded } else { State::Running };
        self.set_state(cx, state, "all workers train");
        let committed = self.core.epoch.committed_steps().to_vec();
        let base_step = committed.iter().copied().min().unwrap_or_default();
        self.core.epoch = EpochState::restore(EpochPhase::Started, base_step, committed.clone(), Default::default());
        self.checkpoints.arm_interval(&mut self.core.context(cx), false);
        let epoch = self.core.record.epoch;
        for (rank, committed) in Rank::all(committed.len()).zip(committed) {
            self.rejoined(cx, rank, epoch, committed);
        }
    }

    /// Workers that hold a later epoch of a job that is over.
    pub(super) fn release_claimants(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.core.deadlines.clear(&Deadline::Later);
        for (worker, held) in std::mem::take(&mut self.later).into_claims() {
            let Some(stream) = cx.pool.get(&worker).map(|w| w.stream) else { continue };
            let (job_id, epoch, reason) = (self.core.record.id.to_string(), held.epoch.get(), reason.to_string());
            cx.out.send(stream, Body::Stop(proto::Stop { job_id, epoch, reason }));
            cx.pool.tell_to_stop(&worker);
        }
    }
}
