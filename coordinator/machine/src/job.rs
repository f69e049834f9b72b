//! One job: its record, what is known of it at the moment, its training, up to its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::job::JobSpec;
use toroid_torus::owner::OwnerId;

use super::checkpoint::Pending;
use super::failures::{Activity, Cause};
use super::fitness::Unfit;
use super::incident::Incidents;
use super::leave::Halt;
use super::progress::{Progress, StepSummary};
use super::reach::Reach;
use super::record::{Event, Incident, JobRecord, SeenBy, State, Validation};
use super::recovery::Loss;
use super::resize::Patience;
use super::straggler::{Change, Stragglers, Work};
use super::{Context, Output, RequestError, RequestId};

#[derive(Debug)]
pub(super) struct Job {
    pub record: JobRecord,
    pub incidents: Incidents,
    pub live: Live,
}

/// Where an epoch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No epoch, or one that has lost a place and cannot go on.
    Waiting,
    /// `Assign` was sent; not all are `Prepared`.
    Preparing,
    /// `Start` was sent.
    Started,
}

/// A worker whose place was moved.
#[derive(Debug)]
pub(super) struct Moved {
    pub worker: String,
    pub rank: usize,
    /// An epoch without it was started: the newcomer may have the shards by now, and may even be a step further.
    pub is_started: bool,
}

/// What is known at the moment; a restart finds it out again from the workers.
#[derive(Debug)]
pub(super) struct Live {
    pub phase: Phase,
    /// Step from which the epoch goes on; while a healing epoch is being prepared, the highest that was committed before.
    pub base_step: u64,
    /// Steps up to here were not made by this job or are in its curve: nobody reports them any more.
    pub floor_step: u64,
    /// Rank 0 was asked for the record of this step, which is missing before one that came.
    pub asked_for: Option<u64>,
    /// Committed steps by rank, as last heard.
    pub committed: Vec<u64>,
    pub prepared: BTreeMap<usize, proto::Prepared>,
    pub finished: BTreeSet<usize>,
    /// Ranks whose workers have yet to come back after a restart of the coordinator.
    pub awaited: BTreeSet<usize>,
    pub awaited_until: Duration,
    pub losses: Vec<Loss>,
    /// Why the next epoch must begin although all places are filled.
    pub begin_again: Option<String>,
    /// Links that are not there, as their ends say.
    pub reach: Reach,
    /// Workers with a place that have made a step of this job.
    pub established: BTreeSet<String>,
    /// Workers with a place that others have reached: they had links when a step was made, or passed a probe.
    pub linked: BTreeSet<String>,
    /// The newest epoch in which one was made.
    established_in: u64,
    /// Places whose workers cannot prepare what the job needs, and why; none of the others has said yet whether it can.
    pub refusals: BTreeMap<usize, String>,
    /// By rank.
    pub activity: Vec<Activity>,
    /// If no step is committed until then, somebody hangs.
    pub hang_at: Option<Duration>,
    /// Until the epoch without them is healed.
    pub moved: Vec<Moved>,
    /// For how long empty places wait for workers before there are fewer replicas.
    pub patience: Patience,
    /// Workers that failed at this job: others come first.
    pub avoid: BTreeSet<String>,
    /// Workers that cannot do what the job needs of them.
    pub unfit: Unfit,
    /// Who could not read which checkpoint.
    pub readers: BTreeMap<u64, super::restore::Readers>,
    pub progress: Progress,
    pub stragglers: Stragglers,
    pub checkpoint: super::checkpoint::Schedule,
}

impl Live {
    fn new(phase: Phase, progress: Progress) -> Live {
        Live {
            phase,
            base_step: 0,
            floor_step: 0,
            asked_for: None,
            committed: Vec::new(),
            prepared: BTreeMap::new(),
            finished: BTreeSet::new(),
            awaited: BTreeSet::new(),
            awaited_until: Duration::ZERO,
            losses: Vec::new(),
            begin_again: None,
            reach: Reach::default(),
            established: BTreeSet::new(),
            linked: BTreeSet::new(),
            established_in: 0,
            refusals: BTreeMap::new(),
            activity: Vec::new(),
            hang_at: None,
            moved: Vec::new(),
            patience: Patience::default(),
            avoid: BTreeSet::new(),
            unfit: Unfit::default(),
            readers: BTreeMap::new(),
            progress,
            stragglers: Stragglers::default(),
            checkpoint: super::checkpoint::Schedule::default(),
        }
    }
}

impl Job {
    pub fn submit(id: String, number: u64, owner: OwnerId, spec: JobSpec, cx: &mut Context<'_>) -> Job {
        let record = JobRecord {
            id,
            number,
            owner: Some(owner),
            begun_without_owner: false,
            state: State::Queued,
            reason: "just submitted".into(),
            epoch: 0,
            shape: spec.shape,
            places: Vec::new(),
            earlier: Vec::new(),
            absent: BTreeMap::new(),
            holders: BTreeMap::new(),
            draining: BTreeSet::new(),
            has_state: false,
            heal: None,
            restore_step: 0,
            start_step: 0,
            named_to: 0,
            fingerprint: None,
            data: None,
            inputs: None,
            high_step: 0,
            failures: BTreeMap::new(),
            deaths: BTreeMap::new(),
            num_incidents: 0,
            lost_s: 0.0,
            lost_steps: 0,
            checkpoints: Vec::new(),
            pending: BTreeMap::new(),
            unusable: BTreeMap::new(),
            hold: None,
            unsaved: None,
            leftovers: BTreeSet::new(),
            validations: Vec::new(),
            submitted_unix_ms: cx.now.unix_ms,
            started_unix_ms: 0,
            trained: None,
            finished_unix_ms: 0,
            events: VecDeque::new(),
            num_events: 0,
            spec,
        };
        let live = Live::new(Phase::Waiting, Progress::default());
        let mut job = Job { record, incidents: Incidents::default(), live };
        let text = format!("{} steps on {}", job.record.spec.steps, job.record.spec.shape);
        job.event(cx, "job.submitted", text);
        for note in job.record.spec.notes() {
            job.event(cx, "job.note", note);
        }
        job
    }

    /// A job as the store has it, after a restart. Workers that say they go on with their places are believed (T-9).
    pub fn restore(
        mut record: JobRecord,
        incidents: Vec<Incident>,
        steps: Vec<StepSummary>,
        cx: &mut Context<'_>,
    ) -> Job {
        if record.owner.is_none() {
            record.owner = Some(record.derived_owner(cx.secret));
            record.begun_without_owner = record.epoch > 0;
            cx.out.dirty.insert(record.id.clone());
        }
        let incidents = Incidents::restore(incidents, cx.now);
        let mut job = Job { live: Live::new(Phase::Waiting, Progress::new(steps)), incidents, record };
        if !job.record.state.is_placed() {
            return job;
        }
        // Records of an older version do not have it.
        job.record.named_to = job.record.named_to.max(job.record.last_checkpoint().map_or(0, |c| c.step));
        let (record, live) = (&job.record, &mut job.live);
        live.awaited = (0..record.places.len()).filter(|r| record.places[*r].is_some()).collect();
        live.awaited_until = cx.now.monotonic + cx.config.limits.reconnect();
        live.base_step = record.heal.as_ref().map_or(record.restore_step, |h| h.step);
        live.floor_step = record.restore_step.max(record.start_step);
        live.committed = vec![live.progress.last_step().max(live.base_step); record.places.len()];
        live.activity = vec![Activity::default(); record.places.len()];
        live.stragglers.begin(&record.spec, &record.shape, |_| false);
        if record.has_state {
            live.established = record.places.iter().flatten().cloned().collect();
            live.linked = if record.places.len() > 1 { live.established.clone() } else { BTreeSet::new() };
        }
        if matches!(record.state, State::Running | State::Degraded) {
            live.phase = Phase::Started;
            live.checkpoint.pending = record.pending.keys().map(|step| (*step, Pending::default())).collect();
            let halting = record.pending.iter().find(|(_, p)| p.halts);
            live.checkpoint.halt = halting.map(|(step, _)| Halt { step: *step, again_at: None });
            job.arm_interval(cx, false);
        } else if live.awaited.len() == record.places.len() {
            // Who was prepared is not known any more; beginning again costs only the preparation. Survivors keep their state.
            live.begin_again = Some("the coordinator was restarted before all were prepared".into());
        }
        let text = format!("waits for {} workers to come back", job.live.awaited.len());
        job.event(cx, "coordinator.restarted", text);
        cx.out.unsettled = true;
        job
    }

    // ------------------------------------------------------------------------------------------------------------- helpers

    pub fn event(&mut self, cx: &mut Context<'_>, kind: &str, text: impl Into<String>) {
        self.worker_event(cx, kind, text, "");
    }

    pub fn worker_event(&mut self, cx: &mut Context<'_>, kind: &str, text: impl Into<String>, worker: &str) {
        let event = Event {
            unix_ms: cx.now.unix_ms,
            kind: kind.into(),
            text: text.into(),
            step: self.committed(),
            epoch: self.record.epoch,
            worker: worker.into(),
        };
        self.record.push_event(event.clone());
        cx.out.effects.push(Output::Event { job: self.record.id.clone(), event });
        self.changed(cx);
    }

    /// The record changed: it is stored, and watchers are told.
    pub fn changed(&self, cx: &mut Context<'_>) {
        cx.out.dirty.insert(self.record.id.clone());
        cx.out.changed.insert(self.record.id.clone());
    }

    pub fn set_state(&mut self, cx: &mut Context<'_>, state: State, reason: &str) {
        if self.record.state != state || self.record.reason != reason {
            self.record.state = state;
            self.record.reason = reason.into();
            self.changed(cx);
        }
    }

    pub fn world(&self) -> usize {
        self.record.shape.world()
    }

    pub fn total(&self) -> u64 {
        self.record.spec.steps
    }

    /// Highest step known to be committed in this epoch (T-2: ranks are at most one apart).
    pub fn committed(&self) -> u64 {
        let reported = self.live.committed.iter().copied().max().unwrap_or(0);
        reported.max(self.live.progress.last_step()).max(self.live.base_step).max(self.record.restore_step)
    }

    /// Trains with all places filled and connected.
    pub fn is_whole(&self) -> bool {
        self.live.phase == Phase::Started
            && self.live.awaited.is_empty()
            && self.record.places.iter().all(Option::is_some)
    }

    /// The state is kept twice, as long as there are two places.
    pub fn is_redundant(&self) -> bool {
        self.record.spec.fault_tolerance.redundancy && self.record.spec.shape.world() > 1
    }

    /// There are fewer replicas than the job file asks for.
    pub fn is_degraded(&self) -> bool {
        self.record.shape.dp() < self.record.spec.shape.dp()
    }

    /// The next epoch can have its state from the places.
    pub fn can_heal(&self) -> bool {
        self.record.has_state && self.is_redundant() && !failpoint!(AlwaysRestore)
    }

    pub fn describe(&self, rank: usize) -> String {
        format!("{} (rank {rank})", self.record.places[rank].as_deref().unwrap_or("nobody"))
    }

    pub fn send(&self, cx: &mut Context<'_>, rank: usize, body: Body) {
        let worker = self.record.places[rank].as_ref().and_then(|w| cx.pool.get(w));
        if let Some(worker) = worker {
            cx.out.send(worker.stream, body);
        }
    }

    pub fn send_all(&self, cx: &mut Context<'_>, body: &Body) {
        for rank in 0..self.record.places.len() {
            self.send(cx, rank, body.clone());
        }
    }

    pub fn refuse(&self, what: &'static str) -> RequestError {
        RequestError::State {
            job: self.record.id.clone(),
            what,
            state: self.record.state.name(),
            reason: self.record.reason.clone(),
        }
    }

    // ------------------------------------------------------------------------------------------------------------ training

    /// Steps are being committed, or a sign that all ranks work together came.
    pub fn runs(&mut self, cx: &mut Context<'_>) {
        let whole = self.record.places.iter().all(Option::is_some);
        if self.live.phase != Phase::Started || !whole {
            return;
        }
        if !self.is_degraded() {
            let is_over = self.committed() == self.total() && self.record.unsaved.is_some();
            let reason =
                if is_over { "all steps are committed, the last is not saved yet" } else { "all workers train" };
            self.set_state(cx, State::Running, reason);
        } else if self.record.state != State::Degraded {
            let (dp, all) = (self.record.shape.dp(), self.record.spec.shape.dp());
            let reason =
                format!("trains with dp {dp} of {all}, the same samples in every step; it grows when workers come");
            self.set_state(cx, State::Degraded, &reason);
        }
    }

    pub fn heartbeat(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Heartbeat) {
        if self.live.phase == Phase::Waiting {
            return;
        }
        let now = cx.now.monotonic;
        self.live.activity[rank].update(message, now);
        if self.live.phase == Phase::Preparing {
            return;
        }
        self.advance(cx, rank, message.committed_step);
        self.compare_work(cx, rank, message);
        // What a survivor had sealed before a heal says nothing about this epoch.
        if message.committed_step > self.live.base_step || message.sealed_next && self.record.heal.is_none() {
            self.runs(cx);
        }
    }

    /// A straggler is named; it keeps its place.
    fn compare_work(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Heartbeat) {
        let (num_steps, compute_s) = (message.compute_steps, message.compute_s);
        let work = Work { num_steps, compute_s, committed: message.committed_step.min(self.total()) };
        let window = cx.config.limits.straggler_window();
        for change in self.live.stragglers.heard(rank, work, cx.now.monotonic, window) {
            let (kind, found, end) = match &change {
                Change::Slow(found) => ("worker.slow", found, "; it keeps its place, which a drain would move"),
                Change::KeepsUp(found) => ("worker.keeps_up", found, ": it is no straggler any more"),
            };
            let worker = self.record.places.get(found.rank).cloned().flatten().unwrap_or_default();
            let text = format!("{} {}{end}", self.describe(found.rank), found.in_words());
            self.worker_event(cx, kind, text, &worker);
        }
    }

    pub fn advance(&mut self, cx: &mut Context<'_>, rank: usize, committed: u64) {
        let before = self.committed();
        self.live.committed[rank] = self.live.committed[rank].max(committed.min(self.total()));
        if self.committed() > before {
            self.record.high_step = self.record.high_step.max(self.committed());
            self.progressed(cx);
        }
    }

    fn progressed(&mut self, cx: &mut Context<'_>) {
        if self.committed() > self.live.base_step && self.live.established_in != self.record.epoch {
            // Whoever commits a step knows that all have made it.
            self.live.established_in = self.record.epoch;
            self.live.established.extend(self.record.places.iter().flatten().cloned());
            if self.world() > 1 {
                self.live.linked.extend(self.record.places.iter().flatten().cloned());
            }
            self.live.reach.clear();
        }
        self.expect_progress(cx);
        self.incident_progress(cx);
        self.committed_advanced(cx);
    }

    /// The curve is kept up to here.
    pub fn recorded_step(&self) -> u64 {
        self.live.progress.last_step().max(self.live.floor_step)
    }

    fn acknowledge(&self, cx: &mut Context<'_>) {
        let (job_id, step) = (self.record.id.clone(), self.recorded_step());
        self.send(cx, 0, Body::StepAck(proto::StepAck { job_id, step }));
    }

    /// From rank 0. A step that is there already changes nothing, but is acknowledged again. When a healing epoch begins, rank 0 says
    /// again what was not acknowledged, and a new one what the lost one may not have said: these steps stay committed.
    pub fn step_report(&mut self, cx: &mut Context<'_>, mut record: proto::StepRecord) {
        let (step, recorded) = (record.step, self.recorded_step());
        if step <= recorded {
            return self.acknowledge(cx);
        }
        let is_next = step == recorded + 1 || failpoint!(TakeAnyStep);
        let is_taken = match self.live.phase {
            Phase::Started => is_next || self.ask_for_next(cx),
            Phase::Preparing => self.can_heal() && is_next,
            Phase::Waiting => false,
        };
        if step > self.total() || !is_taken {
            return;
        }
        // What a worker may say of itself is no gap.
        record.missing = false;
        record.epoch = self.record.epoch;
        let job = self.record.id.clone();
        let is_skipped = record.skipped;
        let is_new = self.live.progress.push(StepSummary::from(&record));
        assert!(is_new, "older steps were acknowledged above");
        cx.out.changed.insert(job.clone());
        cx.out.effects.push(Output::AppendCurve { job, record: Box::new(record) });
        self.acknowledge(cx);
        if is_skipped {
            self.step_skipped(cx, step);
        }
        if self.live.phase == Phase::Started {
            self.recorded(cx, step);
        }
    }

    /// T-12: told at the first one, and whenever there are twice as many. Too many in a row end the job.
    fn step_skipped(&mut self, cx: &mut Context<'_>, step: u64) {
        let (num, in_a_row) = (self.live.progress.num_skipped(), self.live.progress.skipped_in_a_row());
        let text = match num {
            1 => format!("step {step} made no update: its gradients are not finite"),
            _ => format!(
                "{num} steps made no update so far, the last {in_a_row} of them in a row up to step {step}: their gradients are not finite"
            ),
        };
        if num.is_power_of_two() {
            self.event(cx, "step.skipped", text);
        }
        let max = self.record.spec.fault_tolerance.max_skipped;
        if max > 0 && in_a_row >= max {
            let reason = format!(
                "{in_a_row} steps in a row, the last of them step {step}, made no update: their gradients are not finite. Lower optimizer.lr, look at \
                 the text and at init_from, or raise fault_tolerance.max_skipped = {max} (0: go on whatever comes)"
            );
            self.end(cx, State::Failed, &reason);
        }
    }

    /// T-4, T-12: a record before the one that came is missing. Rank 0 has it, or says that nobody has; the one that came is said again
    /// after it, and is not taken now.
    fn ask_for_next(&mut self, cx: &mut Context<'_>) -> bool {
        let from_step = self.recorded_step() + 1;
        if self.live.asked_for.replace(from_step) != Some(from_step) {
            let (job_id, epoch) = (self.record.id.clone(), self.record.epoch);
            self.send(cx, 0, Body::ReportSteps(proto::ReportSteps { job_id, epoch, from_step }));
        }
        false
    }

    /// From rank 0: no place has the figures of these steps any more. The curve says so, and the job goes on (T-12).
    pub fn records_missing(&mut self, cx: &mut Context<'_>, message: &proto::RecordsMissing) {
        let recorded = self.recorded_step();
        // Steps that nobody is known to have committed cannot be missing.
        let through = message.through_step.min(self.committed());
        if self.live.phase != Phase::Started {
            return;
        }
        if through <= recorded {
            return self.acknowledge(cx);
        }
        if message.from_step > recorded + 1 {
            self.ask_for_next(cx);
            return;
        }
        let from = recorded + 1;
        self.live.progress.push_missing(from..=through);
        let job = self.record.id.clone();
        cx.out.effects.push(Output::AppendGap { job, from_step: from, through_step: through });
        let what = match through - from {
            0 => format!("step {from} has no figures in the curve"),
            _ => format!("steps {from} to {through} have no figures in the curve"),
        };
        let why =
            "they were committed while no coordinator was there to record them, and no place has their sums any more";
        self.event(cx, "curve.gap", format!("{what}: {why}"));
        self.acknowledge(cx);
        self.recorded(cx, through);
    }

    /// The curve is kept up to `step`.
    fn recorded(&mut self, cx: &mut Context<'_>, step: u64) {
        if step > self.live.base_step {
            self.runs(cx);
            self.advance(cx, 0, step);
        }
        // Also where the commit was heard of before its record came.
        self.progressed(cx);
    }

    pub fn validation(&mut self, cx: &mut Context<'_>, v: proto::Validation) {
        if self.live.phase != Phase::Started || v.step > self.total() {
            return;
        }
        // A new rank 0 says again what the lost one may not have said.
        let is_same = |old: &Validation| (old.step, old.ce, old.tokens) == (v.step, v.ce, v.tokens);
        if self.record.validations.iter().any(is_same) {
            return;
        }
        let text = format!("step {}: {:.4} nats a token, {:.4} bits a byte", v.step, v.ce, v.bits_per_byte);
        let validations = &mut self.record.validations;
        validations.retain(|old| old.step != v.step);
        let at = validations.partition_point(|old| old.step < v.step);
        let (step, ce, bits_per_byte, tokens) = (v.step, v.ce, v.bits_per_byte, v.tokens);
        validations.insert(at, Validation { step, epoch: self.record.epoch, ce, bits_per_byte, tokens });
        self.runs(cx);
        self.event(cx, "validation", text);
    }

    pub fn finished(&mut self, cx: &mut Context<'_>, rank: usize, committed: u64) {
        if self.live.phase != Phase::Started || committed != self.total() {
            return;
        }
        self.live.finished.insert(rank);
        self.advance(cx, rank, committed);
        // Its records come before, and no later one will show that one is missing.
        if rank == 0 && self.recorded_step() < committed {
            self.ask_for_next(cx);
        }
        if self.live.finished.len() == self.world() {
            // A heal at the last step is followed by no other.
            self.forget_earlier(cx);
            if self.incidents.is_healing() {
                self.incident_over(cx);
            }
            self.runs(cx);
        }
        self.plan_checkpoints(cx, false);
        self.try_finish(cx);
    }

    /// Done once all places have finished and the last step is saved.
    pub fn try_finish(&mut self, cx: &mut Context<'_>) {
        let saved = self.record.last_checkpoint().is_some_and(|c| c.step == self.total());
        if saved && !self.is_removing() && self.live.finished.len() == self.world() {
            let gap = match self.live.progress.num_missing() {
                0 => String::new(),
                1 => "; 1 has no figures in the curve".into(),
                n => format!("; {n} have no figures in the curve"),
            };
            let reason = format!("all {} steps are committed and saved{gap}", self.total());
            self.end(cx, State::Done, &reason);
        }
    }

    /// Nothing more is expected of the job; its workers are free.
    pub fn end(&mut self, cx: &mut Context<'_>, state: State, reason: &str) {
        assert!(state.is_ended(), "a job ends as done, failed or cancelled");
        self.incident_abandoned(cx);
        self.take_all_away(cx);
        self.free_workers(cx, reason);
        self.record.absent.clear();
        self.record.holders.clear();
        self.record.draining.clear();
        self.abandon_pending(false);
        self.record.finished_unix_ms = cx.now.unix_ms;
        if let Some(watch) = &mut self.record.trained {
            watch.stop(cx.now);
        }
        self.set_state(cx, state, reason);
        let requests: Vec<RequestId> = std::mem::take(&mut self.live.checkpoint.requests);
        for request in requests {
            cx.out.reply(request, Err(self.refuse("checkpointed")));
        }
        let committed = self.committed();
        self.event(cx, &format!("job.{}", state.name()), reason);
        self.live = Live::new(Phase::Waiting, std::mem::take(&mut self.live.progress));
        self.live.committed = vec![committed];
        cx.out.unsettled = true;
    }

    /// All workers stop and have no place any more; who was to be drained is given none again.
    fn free_workers(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.release_moved(cx);
        let stop = proto::Stop { job_id: self.record.id.clone(), epoch: self.record.epoch, reason: reason.to_string() };
        self.send_all(cx, &Body::Stop(stop));
        for worker in std::mem::take(&mut self.record.places).iter().flatten() {
            cx.pool.set_place(worker, None);
            if self.record.draining.contains(worker) {
                cx.pool.retire(worker);
            }
        }
        self.forget_earlier(cx);
    }

    /// The job has no places any more and waits in the queue; it goes on from its newest checkpoint. Its curve stays until then.
    pub fn stand_by(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.free_workers(cx, reason);
        self.abandon_pending(false);
        let record = &mut self.record;
        record.absent.clear();
        record.draining.clear();
        record.has_state = false;
        record.heal = None;
        record.shape = record.spec.shape;
        let requests: Vec<RequestId> = std::mem::take(&mut self.live.checkpoint.requests);
        let committed = self.committed();
        let live = Live::new(Phase::Waiting, std::mem::take(&mut self.live.progress));
        let Live { avoid, unfit, readers, .. } = std::mem::replace(&mut self.live, live);
        (self.live.avoid, self.live.unfit, self.live.readers) = (avoid, unfit, readers);
        self.live.committed = vec![committed];
        self.incident_waits(cx, reason);
        self.set_state(cx, State::Queued, reason);
        self.event(cx, "job.queued", reason);
        for request in requests {
            cx.out.reply(request, Err(self.refuse("checkpointed")));
        }
        cx.out.unsettled = true;
    }

    // ----------------------------------------------------------------------------------------------------------------- time

    pub fn poll_timeout(&self) -> Option<Duration> {
        let awaited = (!self.live.awaited.is_empty()).then_some(self.live.awaited_until);
        let others = [
            self.live.reach.until,
            self.live.unfit.next_retry(),
            self.hang_timeout(),
            self.checkpoint_timeout(),
            self.patience_timeout(),
        ];
        [awaited].into_iter().chain(others).flatten().min()
    }

    pub fn tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.monotonic;
        if !self.live.awaited.is_empty() && now >= self.live.awaited_until {
            let limit = cx.config.limits.reconnect().as_secs_f64();
            for rank in std::mem::take(&mut self.live.awaited) {
                let why = format!("has not come back within {limit} s of the coordinator's restart");
                self.lose(cx, rank, Cause::new(SeenBy::CoordinatorRestart, why));
            }
        }
        self.tick_reach(cx);
        self.tick_patience(cx);
        self.tick_hang(cx);
        self.tick_checkpoints(cx);
    }

    /// The coordinator was stopped for a while: deadlines that passed meanwhile are set anew.
    pub fn forgive(&mut self, cx: &Context<'_>) {
        if !self.live.awaited.is_empty() {
            self.live.awaited_until = cx.now.monotonic + cx.config.limits.reconnect();
        }
        if let Some(until) = &mut self.live.reach.until {
            *until = cx.now.monotonic + cx.config.limits.link_grace();
        }
        self.live.patience.forgive(cx.now.monotonic + cx.config.limits.replacement());
        self.expect_progress(cx);
    }
}
