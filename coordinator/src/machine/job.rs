//! One job: its record, what is known of it at the moment, and the life of an epoch from `Assign` to the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::job::JobSpec;
use toroid_torus::placement::{self, Candidate, Placement};

use super::checkpoint::Pending;
use super::pool::{Pool, Worker};
use super::progress::{Progress, StepSummary};
use super::record::{DataFacts, Event, Failures, JobRecord, State, Validation};
use super::recovery::{self, Loss, Plan, Situation};
use super::{Context, Output, RequestError, RequestId};

/// A place that fails this often without the job getting any further ends the job.
const MAX_FAILURES: u32 = 3;

#[derive(Debug)]
pub(super) struct Job {
    pub record: JobRecord,
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

/// One worker lost sight of another that is still connected.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    /// The worker that was lost sight of.
    pub rank: usize,
    pub text: String,
    pub until: Duration,
}

/// What is known at the moment; a restart finds it out again from the workers.
#[derive(Debug)]
pub(super) struct Live {
    pub phase: Phase,
    /// Step from which the epoch goes on.
    pub base_step: u64,
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
    pub suspicion: Option<Suspicion>,
    /// Workers that failed at this job: others come first.
    pub avoid: BTreeSet<String>,
    /// Workers that have other data or another model: never, until they register anew.
    pub unfit: BTreeSet<String>,
    pub progress: Progress,
    pub checkpoint: super::checkpoint::Schedule,
}

impl Live {
    fn new(phase: Phase, progress: Progress) -> Live {
        Live {
            phase,
            base_step: 0,
            committed: Vec::new(),
            prepared: BTreeMap::new(),
            finished: BTreeSet::new(),
            awaited: BTreeSet::new(),
            awaited_until: Duration::ZERO,
            losses: Vec::new(),
            begin_again: None,
            suspicion: None,
            avoid: BTreeSet::new(),
            unfit: BTreeSet::new(),
            progress,
            checkpoint: super::checkpoint::Schedule::default(),
        }
    }
}

impl Job {
    pub fn submit(id: String, number: u64, spec: JobSpec, cx: &mut Context<'_>) -> Job {
        let record = JobRecord {
            id,
            number,
            state: State::Queued,
            reason: "just submitted".into(),
            epoch: 0,
            places: Vec::new(),
            restore_step: 0,
            fingerprint: None,
            data: None,
            high_step: 0,
            failures: BTreeMap::new(),
            checkpoints: Vec::new(),
            pending: BTreeMap::new(),
            leftovers: BTreeSet::new(),
            validations: Vec::new(),
            submitted_unix_ms: cx.now.unix_ms,
            started_unix_ms: 0,
            finished_unix_ms: 0,
            events: VecDeque::new(),
            num_events: 0,
            spec,
        };
        let mut job = Job { record, live: Live::new(Phase::Waiting, Progress::default()) };
        let text = format!("{} steps on {}", job.record.spec.steps, job.record.spec.shape);
        job.event(cx, "job.submitted", text);
        job
    }

    /// A job as the store has it, after a restart. Workers that say they go on with their places are believed (T-9).
    pub fn restore(record: JobRecord, steps: Vec<StepSummary>, cx: &mut Context<'_>) -> Job {
        let mut job = Job { live: Live::new(Phase::Waiting, Progress::new(steps)), record };
        if !job.record.state.is_placed() {
            return job;
        }
        job.cut_what_is_void(cx);
        let (record, live) = (&job.record, &mut job.live);
        live.awaited = (0..record.places.len()).filter(|r| record.places[*r].is_some()).collect();
        live.awaited_until = cx.now.monotonic + cx.config.limits.reconnect();
        live.base_step = record.restore_step;
        live.committed = vec![live.progress.last_step().max(record.restore_step); record.places.len()];
        if record.state == State::Running {
            live.phase = Phase::Started;
            live.checkpoint.pending = record.pending.keys().map(|step| (*step, Pending::default())).collect();
            job.arm_interval(cx);
        } else if live.awaited.len() == record.places.len() {
            // Who was prepared is not known any more; beginning again costs only the preparation.
            live.begin_again = Some("the coordinator was restarted before all were prepared".into());
        }
        let text = format!("waits for {} workers to come back", job.live.awaited.len());
        job.event(cx, "coordinator.restarted", text);
        cx.out.unsettled = true;
        job
    }

    /// Rows of an older epoch after the step that this epoch began from: the cut was decided, but not made.
    fn cut_what_is_void(&mut self, cx: &mut Context<'_>) {
        let (epoch, restore_step) = (self.record.epoch, self.record.restore_step);
        let void = |s: &&StepSummary| s.step > restore_step && s.epoch < epoch;
        if let Some(first) = self.live.progress.steps().iter().find(void) {
            let keep = first.step - 1;
            self.live.progress.cut(keep);
            cx.out.effects.push(Output::CutCurve { job: self.record.id.clone(), keep });
        }
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
        self.record.spec.shape.world()
    }

    pub fn total(&self) -> u64 {
        self.record.spec.steps
    }

    /// Highest step known to be committed in this epoch (T-2: ranks are at most one apart).
    pub fn committed(&self) -> u64 {
        let reported = self.live.committed.iter().copied().max().unwrap_or(0);
        reported.max(self.live.progress.last_step()).max(self.record.restore_step)
    }

    /// Trains with all places filled and connected.
    pub fn is_whole(&self) -> bool {
        self.live.phase == Phase::Started
            && self.live.awaited.is_empty()
            && self.record.places.iter().all(Option::is_some)
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

    // ----------------------------------------------------------------------------------------------------------- placement

    pub fn queue_behind(&mut self, cx: &mut Context<'_>, first: &str) {
        self.set_state(cx, State::Queued, &format!("waits behind {first}, which was submitted earlier"));
    }

    /// Gives a queued job its places, if there are workers enough; says whether.
    pub fn place(&mut self, cx: &mut Context<'_>) -> bool {
        let candidates = self.candidates(cx.pool, self.world());
        let empty = vec![None; self.world()];
        match placement::place(&self.record.spec.shape, &empty, &candidates, &cx.pool.candidates()) {
            Ok(placement) => {
                self.begin_epoch(cx, placement, "all places are filled: the workers prepare data, weights and links");
                true
            }
            Err(_) => {
                let alike = if self.record.spec.exact { " of one numeric fingerprint" } else { "" };
                let (found, world) = (candidates.len(), self.world());
                self.set_state(cx, State::Queued, &format!("waits for workers{alike}: {found} of {world} are free"));
                false
            }
        }
    }

    /// Begins the next epoch if a place was lost and can be filled, or says what the job waits for.
    pub fn recover(&mut self, cx: &mut Context<'_>) {
        if !self.live.awaited.is_empty() {
            return;
        }
        let num_empty = self.record.places.iter().filter(|p| p.is_none()).count();
        let plan = recovery::decide(&Situation {
            shape: &self.record.spec.shape,
            places: &self.record.places,
            candidates: &self.candidates(cx.pool, num_empty),
            hosts: &cx.pool.candidates(),
            losses: &self.live.losses,
            begin_again: self.live.begin_again.as_deref(),
            restore_step: self.record.last_checkpoint().map_or(0, |c| c.step),
        });
        match plan {
            Plan::Nothing => {}
            Plan::Wait { reason } => {
                // In an epoch that was started, what survivors still report counts: it may complete a checkpoint.
                if self.live.phase == Phase::Preparing {
                    self.live.phase = Phase::Waiting;
                }
                self.set_state(cx, State::Recovering, &reason);
            }
            Plan::Begin { placement, reason } => self.begin_epoch(cx, placement, &reason),
        }
    }

    /// Spares that may take a place of this job. Those that failed at it come only where the others do not suffice.
    fn candidates(&self, pool: &Pool, num_needed: usize) -> Vec<Candidate> {
        let fingerprint = self.fingerprint(pool);
        let computes_alike = |f: &str| !self.record.spec.exact || fingerprint.as_deref() == Some(f);
        let is_fit =
            |w: &&Worker| computes_alike(&w.register.fingerprint) && !self.live.unfit.contains(&w.register.worker_id);
        let spares = pool.spares().filter(is_fit).map(Worker::candidate);
        let (avoided, mut out): (Vec<_>, Vec<_>) = spares.partition(|c| self.live.avoid.contains(&c.worker));
        let num_missing = num_needed.saturating_sub(out.len());
        out.extend(avoided.into_iter().take(num_missing));
        out
    }

    /// The one fingerprint of an exact job: its own since it was placed, before that the one that most spares have.
    fn fingerprint(&self, pool: &Pool) -> Option<String> {
        if self.record.fingerprint.is_some() {
            return self.record.fingerprint.clone();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for worker in pool.spares() {
            *counts.entry(&worker.register.fingerprint).or_default() += 1;
        }
        let best = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)));
        best.map(|(fingerprint, _)| fingerprint.to_string())
    }

    fn begin_epoch(&mut self, cx: &mut Context<'_>, placement: Placement, reason: &str) {
        self.abandon_pending();
        let restore_step = self.record.last_checkpoint().map_or(0, |c| c.step);
        self.record.epoch += 1;
        self.record.restore_step = restore_step;
        self.record.places = placement.workers.into_iter().map(Some).collect();
        for (rank, worker) in self.record.places.iter().enumerate() {
            let worker = worker.as_deref().expect("a placement fills every place");
            cx.pool.set_place(worker, Some((self.record.id.clone(), rank)));
        }
        if self.live.progress.last_step() > restore_step {
            self.live.progress.cut(restore_step);
            cx.out.effects.push(Output::CutCurve { job: self.record.id.clone(), keep: restore_step });
        }
        let live = &mut self.live;
        live.phase = Phase::Preparing;
        live.base_step = restore_step;
        live.committed = vec![restore_step; self.record.places.len()];
        live.prepared.clear();
        live.finished.clear();
        live.losses.clear();
        live.begin_again = None;
        live.suspicion = None;
        let first = self.record.epoch == 1;
        self.set_state(cx, if first { State::Starting } else { State::Recovering }, reason);
        self.check_fingerprints(cx);
        self.event(cx, if first { "job.starting" } else { "job.recovering" }, reason);
        self.assign(cx);
    }

    /// Remembers what an exact job runs on; warns where bits may come to differ.
    fn check_fingerprints(&mut self, cx: &mut Context<'_>) {
        let workers = self.record.places.iter().flatten().filter_map(|w| cx.pool.get(w));
        let found: BTreeSet<String> = workers.map(|w| w.register.fingerprint.clone()).collect();
        if self.record.spec.exact {
            self.record.fingerprint = found.into_iter().next();
        } else if found.len() > 1 {
            let list: Vec<String> = found.into_iter().collect();
            let text =
                format!("workers compute differently, results may depend on who does what: {}", list.join(" | "));
            self.event(cx, "job.mixed", text);
        }
    }

    fn assign(&mut self, cx: &mut Context<'_>) {
        let record = &self.record;
        let peer = |(rank, worker): (usize, &Option<String>)| {
            let worker = worker.as_ref().and_then(|w| cx.pool.get(w)).expect("only connected workers are placed");
            let (worker_id, data_address) = (worker.register.worker_id.clone(), worker.register.data_address.clone());
            proto::Peer { rank: rank as u32, worker_id, data_address }
        };
        let mut assign = proto::Assign {
            job_id: record.id.clone(),
            epoch: record.epoch,
            rank: 0,
            job_json: serde_json::to_string(&record.spec).expect("a job spec has only string keys"),
            shape: Some(super::view::shape(&record.spec.shape)),
            peers: record.places.iter().enumerate().map(peer).collect(),
            link_key: record.link_key(cx.secret).to_vec(),
            checkpoint_root: super::view::checkpoint_root(record, &cx.config.jobs_dir),
            restore_step: record.restore_step,
            keep_checkpoints: record.spec.checkpoint.keep,
        };
        for rank in 0..record.places.len() {
            assign.rank = rank as u32;
            self.send(cx, rank, Body::Assign(assign.clone()));
        }
    }

    // ------------------------------------------------------------------------------------------------- the life of an epoch

    pub fn prepared(&mut self, cx: &mut Context<'_>, rank: usize, message: proto::Prepared) {
        if self.live.phase != Phase::Preparing {
            return;
        }
        self.live.prepared.insert(rank, message);
        if self.live.prepared.len() == self.world() && self.record.places.iter().all(Option::is_some) {
            match self.disagreement() {
                None => self.start(cx),
                Some((Blame::Job, reason)) => self.end(cx, State::Failed, &reason),
                Some((Blame::Worker(rank), reason)) => {
                    self.live.unfit.extend(self.record.places[rank].clone());
                    self.lose(cx, rank, &reason);
                }
                Some((Blame::Place(rank), reason)) => self.place_failed(cx, rank, &reason),
            }
        }
    }

    /// What the workers that prepared do not agree on, and whose fault it is.
    fn disagreement(&self) -> Option<(Blame, String)> {
        let first = &self.live.prepared[&0];
        let known = self.record.data.clone().unwrap_or_else(|| facts(first));
        for (&rank, prepared) in &self.live.prepared {
            let found = facts(prepared);
            if found != known {
                let (other, blame) = match self.record.data {
                    None => (self.describe(0), Blame::Job),
                    Some(_) => ("the job so far".into(), Blame::Worker(rank)),
                };
                let reason = format!(
                    "does not see the same data or model as the others: {} has {}, {other} has {}; give all of them the same files",
                    self.describe(rank),
                    in_words(&found),
                    in_words(&known)
                );
                return Some((blame, reason));
            }
            let expected = if self.record.restore_step > 0 { self.record.restore_step } else { first.committed_step };
            if prepared.committed_step != expected {
                let reason = format!("loaded step {} where step {expected} was to be loaded", prepared.committed_step);
                return Some((Blame::Place(rank), reason));
            }
        }
        (first.committed_step > self.total()).then(|| {
            let (found, total) = (first.committed_step, self.total());
            (Blame::Job, format!("`resume_from` is at step {found} and the job has only {total} steps; raise `steps`"))
        })
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        let first = &self.live.prepared[&0];
        self.record.data = Some(facts(first));
        let base_step = first.committed_step;
        self.live.base_step = base_step;
        self.live.committed.fill(base_step);
        self.live.phase = Phase::Started;
        self.record.high_step = self.record.high_step.max(base_step);
        if self.record.started_unix_ms == 0 {
            self.record.started_unix_ms = cx.now.unix_ms;
        }
        let reason = "all workers are prepared: they connect and compute the first step";
        self.set_state(cx, self.record.state, reason);
        let start = proto::Start { job_id: self.record.id.clone(), epoch: self.record.epoch };
        self.send_all(cx, &Body::Start(start));
        let text = format!("epoch {} goes on from step {base_step}", self.record.epoch);
        self.event(cx, "job.started", text);
        self.arm_interval(cx);
        self.plan_checkpoints(cx, true);
    }

    /// Steps are being committed, or a sign that all ranks work together came.
    pub fn runs(&mut self, cx: &mut Context<'_>) {
        let whole = self.record.places.iter().all(Option::is_some);
        if self.live.phase == Phase::Started && whole && self.record.state != State::Running {
            self.set_state(cx, State::Running, "all workers train");
        }
    }

    pub fn heartbeat(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Heartbeat) {
        if self.live.phase != Phase::Started {
            return;
        }
        self.advance(cx, rank, message.committed_step);
        if message.committed_step > self.live.base_step || message.sealed_next {
            self.runs(cx);
        }
    }

    pub fn advance(&mut self, cx: &mut Context<'_>, rank: usize, committed: u64) {
        let before = self.committed();
        self.live.committed[rank] = self.live.committed[rank].max(committed.min(self.total()));
        if self.committed() > before {
            self.record.high_step = self.record.high_step.max(self.committed());
            self.committed_advanced(cx);
        }
    }

    /// From rank 0. A step that is there already changes nothing, but is acknowledged again.
    pub fn step_report(&mut self, cx: &mut Context<'_>, mut record: proto::StepRecord) {
        let step = record.step;
        if self.live.phase != Phase::Started || step <= self.live.base_step || step > self.total() {
            return;
        }
        record.epoch = self.record.epoch;
        let id = self.record.id.clone();
        if self.live.progress.push(StepSummary::from(&record)) {
            cx.out.effects.push(Output::AppendCurve { job: id.clone(), record: Box::new(record) });
            cx.out.changed.insert(id.clone());
        }
        self.send(cx, 0, Body::StepAck(proto::StepAck { job_id: id, step }));
        self.runs(cx);
        self.advance(cx, 0, step);
        self.committed_advanced(cx);
    }

    pub fn validation(&mut self, cx: &mut Context<'_>, v: proto::Validation) {
        if self.live.phase != Phase::Started || v.step > self.total() {
            return;
        }
        let epoch = self.record.epoch;
        // A validation that is made again after a restore replaces the one before.
        self.record.validations.retain(|old| old.step < v.step);
        let text = format!("step {}: {:.4} nats a token, {:.4} bits a byte", v.step, v.ce, v.bits_per_byte);
        let (step, ce, bits_per_byte, tokens) = (v.step, v.ce, v.bits_per_byte, v.tokens);
        self.record.validations.push(Validation { step, epoch, ce, bits_per_byte, tokens });
        self.runs(cx);
        self.event(cx, "validation", text);
    }

    pub fn finished(&mut self, cx: &mut Context<'_>, rank: usize, committed: u64) {
        if self.live.phase != Phase::Started || committed != self.total() {
            return;
        }
        self.live.finished.insert(rank);
        self.advance(cx, rank, committed);
        self.plan_checkpoints(cx, false);
        self.try_finish(cx);
    }

    /// Done once all places have finished and the last step is saved.
    pub fn try_finish(&mut self, cx: &mut Context<'_>) {
        let saved = self.record.last_checkpoint().is_some_and(|c| c.step == self.total());
        if saved && self.live.finished.len() == self.world() {
            let reason = format!("all {} steps are committed and saved", self.total());
            self.end(cx, State::Done, &reason);
        }
    }

    // ------------------------------------------------------------------------------------------------------------- failures

    /// The place is empty from now on.
    pub fn lose(&mut self, cx: &mut Context<'_>, rank: usize, why: &str) {
        let Some(worker) = self.record.places[rank].take() else { return };
        if let Some(connected) = cx.pool.get(&worker) {
            let stop =
                proto::Stop { job_id: self.record.id.clone(), epoch: self.record.epoch, reason: why.to_string() };
            cx.out.send(connected.stream, Body::Stop(stop));
        }
        cx.pool.set_place(&worker, None);
        self.live.awaited.remove(&rank);
        self.worker_event(cx, "worker.lost", format!("{worker} (rank {rank}) {why}"), &worker);
        self.live.losses.push(Loss { rank, worker, why: why.into() });
        cx.out.unsettled = true;
    }

    pub fn failed(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Failed) {
        if message.fatal {
            let reason = format!("{} cannot go on: {}", self.describe(rank), message.error);
            return self.end(cx, State::Failed, &reason);
        }
        match message.damaged_step {
            0 => self.place_failed(cx, rank, &message.error),
            step => self.checkpoint_damaged(cx, step, &message.error),
        }
    }

    /// A checkpoint cannot be read: it does not count any more, and everyone goes on from the one before.
    fn checkpoint_damaged(&mut self, cx: &mut Context<'_>, step: u64, error: &str) {
        self.record.checkpoints.retain(|c| c.step != step);
        let text = format!("the checkpoint of step {step} cannot be read: {error}");
        self.event(cx, "checkpoint.damaged", text.clone());
        self.live.begin_again = Some(text);
        cx.out.unsettled = true;
    }

    /// The worker of a place cannot go on, another may. Too often without getting any further: the job has failed.
    fn place_failed(&mut self, cx: &mut Context<'_>, rank: usize, error: &str) {
        let who = self.describe(rank);
        if self.count_failure(rank) >= MAX_FAILURES {
            let reason = format!(
                "rank {rank} failed {MAX_FAILURES} times in a row without a new step; the last, {who}: {error}"
            );
            return self.end(cx, State::Failed, &reason);
        }
        if let Some(worker) = self.record.places[rank].clone() {
            self.live.avoid.insert(worker);
        }
        self.lose(cx, rank, &format!("failed: {error}"));
    }

    fn count_failure(&mut self, rank: usize) -> u32 {
        let at_step = self.record.high_step.max(self.committed());
        let failures = self.record.failures.entry(rank).or_insert(Failures { count: 0, at_step });
        if at_step > failures.at_step {
            *failures = Failures { count: 0, at_step };
        }
        failures.count += 1;
        failures.count
    }

    pub fn peer_lost(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::PeerLost) {
        let peer = message.rank as usize;
        let whole = self.record.places.iter().all(Option::is_some);
        if peer >= self.world()
            || peer == rank
            || !whole
            || self.live.suspicion.is_some()
            || self.live.phase != Phase::Started
        {
            return;
        }
        let text = format!("{} lost its link to {}: {}", self.describe(rank), self.describe(peer), message.error);
        let until = cx.now.monotonic + cx.config.limits.link_grace();
        self.event(cx, "link.lost", text.clone());
        self.live.suspicion = Some(Suspicion { rank: peer, text, until });
    }

    /// The worker that was lost sight of is still connected: only the link is broken, and all begin again.
    fn confirm_broken_link(&mut self, cx: &mut Context<'_>, suspicion: Suspicion) {
        let text = format!("{}; both are alive", suspicion.text);
        if self.count_failure(suspicion.rank) >= MAX_FAILURES {
            let reason =
                format!("links to rank {} broke {MAX_FAILURES} times without a new step: {text}", suspicion.rank);
            return self.end(cx, State::Failed, &reason);
        }
        self.live.begin_again = Some(text);
        cx.out.unsettled = true;
    }

    /// Nothing more is expected of the job; its workers are free.
    pub fn end(&mut self, cx: &mut Context<'_>, state: State, reason: &str) {
        assert!(state.is_ended(), "a job ends as done, failed or cancelled");
        let stop = proto::Stop { job_id: self.record.id.clone(), epoch: self.record.epoch, reason: reason.to_string() };
        self.send_all(cx, &Body::Stop(stop));
        for worker in std::mem::take(&mut self.record.places).iter().flatten() {
            cx.pool.set_place(worker, None);
        }
        self.abandon_pending();
        self.record.finished_unix_ms = cx.now.unix_ms;
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

    // ----------------------------------------------------------------------------------------------------------------- time

    pub fn poll_timeout(&self) -> Option<Duration> {
        let awaited = (!self.live.awaited.is_empty()).then_some(self.live.awaited_until);
        let suspicion = self.live.suspicion.as_ref().map(|s| s.until);
        [awaited, suspicion, self.checkpoint_timeout()].into_iter().flatten().min()
    }

    pub fn tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.monotonic;
        if !self.live.awaited.is_empty() && now >= self.live.awaited_until {
            let limit = cx.config.limits.reconnect().as_secs_f64();
            for rank in std::mem::take(&mut self.live.awaited) {
                self.lose(cx, rank, &format!("has not come back within {limit} s of the coordinator's restart"));
            }
        }
        if self.live.suspicion.as_ref().is_some_and(|s| now >= s.until) {
            let suspicion = self.live.suspicion.take().expect("checked above");
            self.confirm_broken_link(cx, suspicion);
        }
        self.tick_checkpoints(cx);
    }

    /// The coordinator was stopped for a while: deadlines that passed meanwhile are set anew.
    pub fn forgive(&mut self, cx: &Context<'_>) {
        if !self.live.awaited.is_empty() {
            self.live.awaited_until = cx.now.monotonic + cx.config.limits.reconnect();
        }
        if let Some(suspicion) = &mut self.live.suspicion {
            suspicion.until = cx.now.monotonic + cx.config.limits.link_grace();
        }
    }
}

enum Blame {
    /// Nobody could do it.
    Job,
    /// The worker of this rank is of no use to the job.
    Worker(usize),
    /// It may succeed when it is tried again.
    Place(usize),
}

fn facts(prepared: &proto::Prepared) -> DataFacts {
    use std::fmt::Write as _;
    let mut digest = String::new();
    for byte in &prepared.data_digest {
        write!(digest, "{byte:02x}").expect("a string takes everything");
    }
    DataFacts { digest, num_samples: prepared.num_samples, num_params: prepared.num_params }
}

fn in_words(facts: &DataFacts) -> String {
    let digest: String = facts.digest.chars().take(16).collect();
    format!("data {digest} ({} samples) and {} parameters", facts.num_samples, facts.num_params)
}
