//! One job: its parts wired together, from its submission to its end.
//!
//! A part (checkpoints, incidents, who is fit, ...) owns its fields and knows none of the others. [`Job`] is what wires them, and the only
//! one that sees several of them: it hands each message to the part that it is for, and acts on what the part decides. The files of this
//! folder are one subject each.

mod adopt;
mod assign;
mod candidates;
mod checkpoint;
mod drain;
mod epoch;
mod failures;
mod leave;
mod links;
mod loopback;
mod members;
mod queue;
mod resize;
mod restore;
mod training;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::activity::{Activities, Hanging};
use crate::api::RequestError;
use crate::assigned::Assigned;
use crate::cause::Cause;
use crate::checkpoints::Checkpoints;
use crate::clock::Stopwatch;
use crate::context::Context;
use crate::curve::Curve;
use crate::deadlines::{Deadline, Deadlines};
use crate::epoch::{EpochPhase, EpochState};
use crate::fitness::{Fitness, Until};
use crate::incidents::{Incidents, Sighting};
use crate::job_context::{Core, Kept};
use crate::later::Later;
use crate::moves::Moves;
use crate::pace::Pace;
use crate::progress::{Progress, StepSummary};
use crate::reach::Reach;
use crate::readers::Readers;
use crate::record::{Incident, JobRecord, Places, Record, SeenBy, State, ValidationPage};
use crate::replacement::ReplacementWait;
use crate::scheduler::Wait;
use crate::straggler::Stragglers;
use crate::validations::Validations;
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::ids::{Epoch, JobId, Rank, Step, WorkerId};
use toroid_torus::job::JobSpec;
use toroid_torus::owner::OwnerId;

pub(crate) use drain::IfNobody;
pub(crate) use members::Claim;

#[derive(Debug)]
pub(crate) struct Job {
    /// What all parts read.
    core: Core,
    checkpoints: Checkpoints,
    incidents: Incidents,
    validations: Validations,
    fitness: Fitness,
    reach: Reach,
    activities: Activities,
    stragglers: Stragglers,
    readers: Readers,
    moves: Moves,
    replacement: ReplacementWait,
    pace: Pace,
    assigned: Assigned,
    later: Later,
    /// What it waits for in the queue, as it was told last.
    waits: Option<Wait>,
}

/// A job as it is kept.
pub(crate) struct Stored {
    pub record: JobRecord,
    pub incidents: Vec<Incident>,
    pub validations: Vec<ValidationPage>,
    /// Of its curve.
    pub steps: Vec<StepSummary>,
}

impl Job {
    fn new(record: JobRecord, incidents: Incidents, validations: Validations, progress: Progress) -> Job {
        let core = Core {
            record: Kept::new(record),
            epoch: EpochState::default(),
            curve: Curve::new(progress),
            deadlines: Deadlines::default(),
        };
        Job {
            core,
            checkpoints: Checkpoints::default(),
            incidents,
            validations,
            fitness: Fitness::default(),
            reach: Reach::default(),
            activities: Activities::default(),
            stragglers: Stragglers::default(),
            readers: Readers::default(),
            moves: Moves::default(),
            replacement: ReplacementWait::default(),
            pace: Pace::default(),
            assigned: Assigned::default(),
            later: Later::default(),
            waits: None,
        }
    }

    pub fn submit(id: JobId, number: u64, owner: OwnerId, user: String, spec: JobSpec, cx: &mut Context<'_>) -> Job {
        let record = JobRecord {
            id,
            number,
            owner: Some(owner),
            begun_without_owner: false,
            state: State::Queued,
            reason: "just submitted".into(),
            epoch: Epoch::NONE,
            shape: spec.shape,
            places: Places::default(),
            earlier: Vec::new(),
            absent: BTreeMap::new(),
            holders: BTreeMap::new(),
            draining: BTreeSet::new(),
            has_state: false,
            heal: None,
            restore_step: Step::ZERO,
            start_step: Step::ZERO,
            named_to: Step::ZERO,
            fingerprint: None,
            data: None,
            inputs: None,
            high_step: Step::ZERO,
            failures: BTreeMap::new(),
            deaths: BTreeMap::new(),
            num_incidents: 0,
            lost_s: 0.0,
            lost_steps: 0,
            checkpoints: Vec::new(),
            halt: None,
            pending: BTreeMap::new(),
            unusable: BTreeMap::new(),
            hold: None,
            is_held: false,
            user,
            waited: Some(Stopwatch::start(cx.now)),
            class: i64::from(spec.priority),
            yields: None,
            unsaved: None,
            leftovers: BTreeSet::new(),
            pinned: BTreeSet::new(),
            earlier_validations: Vec::new(),
            submitted_unix_ms: cx.now.unix_ms,
            started_unix_ms: 0,
            trained: None,
            finished_unix_ms: 0,
            events: VecDeque::new(),
            num_events: 0,
            spec,
        };
        let mut job = Job::new(record, Incidents::default(), Validations::default(), Progress::default());
        let text = format!("{} steps on {}", job.core.record.spec.steps, job.core.record.spec.shape);
        job.core.event(cx, "job.submitted", text);
        for note in job.core.record.spec.notes() {
            job.core.event(cx, "job.note", note);
        }
        job
    }

    /// A job as the store has it, after a restart. Workers that say they go on with their places are believed (T-9).
    pub fn restore(stored: Stored, cx: &mut Context<'_>) -> Job {
        let Stored { mut record, incidents, validations, steps } = stored;
        if record.owner.is_none() {
            record.owner = Some(record.derived_owner(cx.secret));
            record.begun_without_owner = record.epoch > Epoch::NONE;
            cx.out.dirty.insert(record.id.clone());
        }
        // Records of an older version do not have it.
        if record.state.is_placed() {
            record.named_to = record.named_to.max(record.last_checkpoint().map_or(Step::ZERO, |c| c.step));
            record.halt = record.halt.or(record.pending.iter().find(|(_, p)| p.halts).map(|(step, _)| *step));
        }
        let incidents = Incidents::restore(incidents, cx.now);
        let earlier = std::mem::take(&mut record.earlier_validations);
        if !earlier.is_empty() {
            cx.out.dirty.insert(record.id.clone());
        }
        let (validations, otherwise) = Validations::restore(validations, earlier);
        cx.out.dirty_validations.extend(otherwise.into_iter().map(|page| (record.id.clone(), page)));
        let mut job = Job::new(record, incidents, validations, Progress::new(steps));
        if job.core.record.state.is_placed() {
            job.go_on_after_restart(cx);
        } else if job.core.record.state == State::Queued && job.core.record.waited.is_none() {
            job.core.record.edit_later().waited = Some(Stopwatch::start(cx.now));
        }
        job
    }

    fn go_on_after_restart(&mut self, cx: &mut Context<'_>) {
        let Core { record, epoch, curve, deadlines } = &mut self.core;
        let world = record.places.len();
        let awaited: BTreeSet<Rank> = record.placed().map(|(rank, _)| rank).collect();
        let num_awaited = awaited.len();
        let base_step = record.heal.as_ref().map_or(record.restore_step, |h| h.step);
        let committed = vec![curve.progress().last_step().max(base_step); world];
        let is_started = matches!(record.state, State::Running | State::Degraded);
        let phase = if is_started { EpochPhase::Started } else { EpochPhase::Waiting };
        *epoch = EpochState::restore(phase, base_step, committed, awaited);
        curve.begin_at(record.restore_step.max(record.start_step));
        if num_awaited > 0 {
            deadlines.set(Deadline::Return, cx.now.monotonic + cx.config.limits.reconnect());
        }
        self.activities.begin(world);
        self.stragglers.begin(&record.spec, &record.shape, |_| false);
        if record.has_state {
            self.fitness = Fitness::restore(record.places.iter().flatten().cloned().collect(), world > 1);
        }
        if is_started {
            self.checkpoints = Checkpoints::restore(record);
            self.checkpoints.arm_interval(&mut self.core.context(cx), false);
            self.checkpoints.go_on_halting(&mut self.core.context(cx));
        } else if num_awaited == world {
            // Who was prepared is not known any more; beginning again costs only the preparation. Survivors keep their state.
            epoch.begin_again("the coordinator was restarted before all were prepared".into());
        }
        self.core.event(cx, "coordinator.restarted", format!("waits for {num_awaited} workers to come back"));
        cx.out.unsettled = true;
    }

    // ------------------------------------------------------------------------------------------- what the machine may see

    pub fn record(&self) -> &JobRecord {
        &self.core.record
    }

    /// The keys of all its records: it is not kept any longer.
    pub fn into_keys(self) -> impl Iterator<Item = String> {
        let record = self.core.record.into_record();
        let pages: Vec<String> = self.validations.pages().map(|n| Record::validations_key(&record.id, n)).collect();
        let incidents = self.incidents.into_all().map(|i| Record::Incident(Box::new(i)).key());
        incidents.chain(pages).chain([Record::Job(Box::new(record)).key()])
    }

    pub fn core(&self) -> &Core {
        &self.core
    }

    pub fn incidents(&self) -> &Incidents {
        &self.incidents
    }

    pub fn validations(&self) -> &Validations {
        &self.validations
    }

    pub fn stragglers(&self) -> &Stragglers {
        &self.stragglers
    }

    pub fn fitness(&self) -> &Fitness {
        &self.fitness
    }

    /// The record is about to be stored: its stopwatch is, as it stands now.
    pub fn advance_stopwatch(&mut self, now: crate::clock::Now) {
        let record = self.core.record.edit_later();
        for watch in [&mut record.trained, &mut record.waited].into_iter().flatten() {
            watch.advance(now);
        }
    }

    /// How far the checkpoint is that is being written, for users.
    pub fn saving(&self) -> Option<proto::Saving> {
        self.checkpoints.saving(|step| self.activities.saving(step), self.core.world())
    }

    /// What could not be saved, for users.
    pub fn unsaved(&self, now: Duration) -> Option<proto::Unsaved> {
        let Core { record, deadlines, .. } = &self.core;
        let next_try = deadlines.get(&Deadline::LastStepAgain).map_or(Duration::ZERO, |at| at.saturating_sub(now));
        record.unsaved.as_ref().map(|unsaved| proto::Unsaved {
            step: unsaved.step.get(),
            error: unsaved.error.clone(),
            since_unix_ms: unsaved.since.unix_ms,
            num_tries: unsaved.num_tries,
            next_try_s: next_try.as_secs_f64(),
        })
    }

    /// Why a worker is given no place, and when it is tried again.
    pub fn unfitness(&self, worker: &str) -> Option<(&str, Option<Duration>)> {
        let reason = self.fitness.why_unfit(worker)?;
        Some((reason, self.core.deadlines.get(&Deadline::Retry { worker: worker.into() })))
    }

    // ------------------------------------------------------------------------------------- what the driver or a worker says

    /// Something happened that is told as an event of the job.
    pub fn note(&mut self, cx: &mut Context<'_>, kind: &str, text: String) {
        self.core.event(cx, kind, text);
    }

    /// A worker registers: it may have been started anew with what it lacked.
    pub fn registered(&mut self, register: &proto::Register) {
        self.fitness.registered(&mut self.core.deadlines, register);
    }

    /// Workers have reached each other.
    pub fn linked<'a>(&mut self, workers: impl Iterator<Item = &'a WorkerId>) {
        workers.filter(|w| self.core.record.rank_of(w).is_some()).for_each(|w| self.fitness.link(w));
    }

    /// The worker has shown that it can fill a place.
    pub fn has_proven(&mut self, worker: &str) {
        self.fitness.remove(&mut self.core.deadlines, worker);
    }

    pub fn mark_unfit(&mut self, cx: &mut Context<'_>, worker: &str, reason: &str, until: Until) {
        self.fitness.mark_unfit(&mut self.core.context(cx), worker, reason, until);
    }

    fn incident_seen(&mut self, cx: &mut Context<'_>, sighting: Sighting) {
        self.incidents.seen(&mut self.core.context(cx), sighting);
    }

    fn set_state(&mut self, cx: &mut Context<'_>, state: State, reason: &str) {
        if self.core.record.state != state || self.core.record.reason != reason {
            let record = self.core.record.edit(cx.out);
            record.state = state;
            record.reason = reason.into();
        }
    }

    pub fn refuse(&self, what: &'static str) -> RequestError {
        RequestError::State {
            job: self.core.record.id.clone(),
            what,
            state: self.core.record.state.name(),
            reason: self.core.record.reason.clone(),
        }
    }

    // ------------------------------------------------------------------------------------------------------------- the end

    /// Nothing more is expected of the job; its workers are free.
    pub fn end(&mut self, cx: &mut Context<'_>, state: State, reason: &str) {
        assert!(state.is_ended(), "a job ends as done, failed or cancelled");
        self.incidents.abandoned(&mut self.core.context(cx));
        self.checkpoints.take_all_away(&mut self.core.context(cx));
        self.release_claimants(cx, reason);
        self.free_workers(cx, reason);
        self.checkpoints.abandon(&mut self.core.context(cx), false);
        let record = self.core.record.edit(cx.out);
        record.absent.clear();
        record.holders.clear();
        record.draining.clear();
        record.finished_unix_ms = cx.now.unix_ms;
        record.is_held = false;
        record.yields = None;
        for watch in [&mut record.trained, &mut record.waited].into_iter().flatten() {
            watch.stop(cx.now);
        }
        self.set_state(cx, state, reason);
        self.refuse_requests(cx);
        let committed = self.core.committed();
        self.core.event(cx, &format!("job.{}", state.name()), reason);
        self.forget_epoch(committed);
        self.core.deadlines = Deadlines::default();
        (self.fitness, self.readers) = (Fitness::default(), Readers::default());
        cx.out.unsettled = true;
    }

    /// The job has no places any more and waits in the queue; it goes on from its newest checkpoint. Its curve stays until then.
    fn stand_by(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.free_workers(cx, reason);
        self.checkpoints.abandon(&mut self.core.context(cx), false);
        let record = self.core.record.edit(cx.out);
        record.absent.clear();
        record.draining.clear();
        record.has_state = false;
        record.heal = None;
        record.shape = record.spec.shape;
        record.yields = None;
        let requests = self.checkpoints.take_requests();
        let committed = self.core.committed();
        self.forget_epoch(committed);
        self.core.deadlines.retain(|deadline| matches!(deadline, Deadline::Retry { .. }));
        self.fitness.stand_by();
        self.incidents.waits(&mut self.core.context(cx), reason);
        self.set_state(cx, State::Queued, reason);
        self.begins_waiting(cx);
        self.core.event(cx, "job.queued", reason);
        for request in requests {
            cx.out.reply(request, Err(self.refuse("checkpointed")));
        }
        cx.out.unsettled = true;
    }

    /// All workers stop and have no place any more; who was to be drained is given none again.
    fn free_workers(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.release_moved(cx);
        let (job_id, epoch) = (self.core.record.id.to_string(), self.core.record.epoch.get());
        self.core.send_all(cx, &Body::Stop(proto::Stop { job_id, epoch, reason: reason.to_string() }));
        let record = self.core.record.edit(cx.out);
        for worker in std::mem::take(&mut record.places).iter().flatten() {
            cx.pool.set_place(worker, None);
            if record.draining.contains(worker) {
                cx.pool.retire(worker);
            }
        }
        self.forget_earlier(cx);
    }

    /// What is known of the present epoch and its workers counts no more.
    fn forget_epoch(&mut self, committed: Step) {
        self.core.epoch = EpochState::over(committed);
        self.core.curve.rest();
        self.checkpoints = Checkpoints::default();
        self.reach = Reach::default();
        self.activities = Activities::default();
        self.stragglers = Stragglers::default();
        self.moves = Moves::default();
        self.replacement = ReplacementWait::default();
        self.pace = Pace::default();
        self.assigned = Assigned::default();
    }

    // ----------------------------------------------------------------------------------------------------------------- time

    pub fn poll_timeout(&self) -> Option<Duration> {
        self.core.deadlines.next(|deadline| self.counts(deadline))
    }

    /// Whether a deadline counts at the moment.
    fn counts(&self, deadline: &Deadline) -> bool {
        match deadline {
            Deadline::Hang => Activities::counts(&self.core, self.core.record.halt),
            Deadline::CheckpointInterval
            | Deadline::HaltAgain
            | Deadline::LastStepAgain
            | Deadline::Removals
            | Deadline::Checkpoint { .. } => self.checkpoints.counts(&self.core, deadline),
            Deadline::Return => !self.core.epoch.awaited().is_empty(),
            Deadline::Later
            | Deadline::Links
            | Deadline::NextEpoch
            | Deadline::Replacement
            | Deadline::Retry { .. }
            | Deadline::WorkerAside { .. }
            | Deadline::HostAside { .. }
            | Deadline::Probe { .. }
            | Deadline::Count => true,
        }
    }

    /// Workers that could not do what the job needs may be tried again; says whether there are any.
    pub fn expire_unfit(&mut self, now: Duration) -> bool {
        self.fitness.expire(&mut self.core.deadlines, now)
    }

    pub fn tick(&mut self, cx: &mut Context<'_>) {
        for deadline in self.core.deadlines.passed(cx.now.monotonic) {
            // What was done about those before may have set it anew.
            if self.core.deadlines.has_passed(&deadline, cx.now.monotonic) {
                self.pass(cx, deadline);
            }
        }
    }

    /// The time for this is over.
    fn pass(&mut self, cx: &mut Context<'_>, deadline: Deadline) {
        match deadline {
            Deadline::Return => self.return_passed(cx),
            Deadline::Later => self.adopt_later(cx),
            Deadline::Links => self.links_passed(cx),
            Deadline::NextEpoch => {
                self.core.deadlines.clear(&Deadline::NextEpoch);
                cx.out.unsettled = true;
            }
            Deadline::Replacement => {
                self.replacement.pass(&mut self.core.deadlines);
                cx.out.unsettled = true;
            }
            Deadline::Hang if self.counts(&Deadline::Hang) => self.hang_passed(cx),
            Deadline::Hang => {}
            Deadline::CheckpointInterval
            | Deadline::HaltAgain
            | Deadline::LastStepAgain
            | Deadline::Removals
            | Deadline::Checkpoint { .. } => {
                if self.core.epoch.is_started() {
                    self.checkpoint_passed(cx, deadline);
                }
            }
            Deadline::Retry { .. } => {}
            Deadline::WorkerAside { .. } | Deadline::HostAside { .. } | Deadline::Probe { .. } | Deadline::Count => {
                unreachable!("{deadline:?} is a deadline of the pool")
            }
        }
    }

    fn return_passed(&mut self, cx: &mut Context<'_>) {
        self.core.deadlines.clear(&Deadline::Return);
        if self.awaits_later() {
            // Which places there are is not known before that is decided.
            return;
        }
        let limit = cx.config.limits.reconnect().as_secs_f64();
        for rank in self.core.epoch.take_awaited() {
            let why = format!("has not come back within {limit} s of the coordinator's restart");
            self.lose(cx, rank, Cause::new(SeenBy::CoordinatorRestart, why));
        }
    }

    fn hang_passed(&mut self, cx: &mut Context<'_>) {
        match self.activities.hang_passed(&mut self.core.context(cx)) {
            None => {}
            Some(Hanging::Cycle { text }) => self.begin_again(cx, SeenBy::WaitsFor, text),
            Some(Hanging::Ranks { ranks, detect }) => {
                for (rank, why) in ranks {
                    // It would be given work again that it does not do.
                    if let Some(worker) = self.core.record.worker_at(rank) {
                        cx.pool.retire(worker);
                    }
                    self.lose(cx, rank, Cause { detect, ..Cause::new(SeenBy::WaitsFor, why) });
                }
            }
        }
    }

    fn expect_progress(&mut self, cx: &mut Context<'_>) {
        self.activities.expect_progress(&mut self.core.context(cx));
    }

    /// The coordinator was stopped for a while: deadlines that passed meanwhile are set anew.
    pub fn forgive(&mut self, cx: &mut Context<'_>) {
        let (now, limits) = (cx.now.monotonic, cx.config.limits);
        let anew = [
            (Deadline::Return, limits.reconnect()),
            (Deadline::Later, limits.reconnect()),
            (Deadline::Links, limits.link_grace()),
            (Deadline::Replacement, limits.replacement()),
        ];
        for (deadline, limit) in anew {
            if self.core.deadlines.get(&deadline).is_some() {
                self.core.deadlines.set(deadline, now + limit);
            }
        }
        self.expect_progress(cx);
    }
}
