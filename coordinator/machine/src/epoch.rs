//! How an epoch begins: who gets which place, `Assign`, `Prepared` from all, `Start`.
//!
//! Survivors keep their places while the shape is the same (T-7); the number of the epoch and its places are stored with everything else that the input
//! changes, before the first `Assign` of it is sent (T-8).

use std::collections::{BTreeMap, BTreeSet};

use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::geometry::Shape;
use toroid_torus::job::JobSpec;
use toroid_torus::placement::{self, Candidate, Placement};

use super::clock::Stopwatch;
use super::failures::{Activity, Cause};
use super::fitness::Until;
use super::job::{Job, Phase};
use super::pool::{Pool, Worker};
use super::record::{DataFacts, Heal, Inputs, Process, Rung, SeenBy, State};
use super::recovery::{self, Holding, Plan, Resume, Situation, Source};
use super::resize::Patience;
use super::warm::{Fitness, Proof};
use super::{Context, Output};

impl Job {
    pub fn queue_behind(&mut self, cx: &mut Context<'_>, first: &str) {
        self.set_state(cx, State::Queued, &format!("waits behind {first}, which was submitted earlier"));
    }

    /// Gives a queued job its places, if there are workers enough; says whether.
    pub fn place(&mut self, cx: &mut Context<'_>) -> bool {
        let has_begun = self.record.started_unix_ms > 0;
        let candidates = self.candidates(cx.pool, self.world());
        let empty = vec![None; self.world()];
        match placement::place(&self.record.shape, &empty, &candidates, &cx.pool.candidates()) {
            Ok(placement) => {
                let reason = match has_begun {
                    true => format!("all places are filled: {}", recovery::source_in_words(self.source(), 0)),
                    false => "all places are filled: the workers prepare data, weights and links".into(),
                };
                self.begin_epoch(cx, self.record.shape, placement, State::Starting, &reason);
                self.incident_fenced(cx, Rung::Restore, &reason);
                true
            }
            Err(_) => {
                let alike = if self.record.spec.exact { " of one numeric fingerprint" } else { "" };
                let (found, world) = (candidates.len(), self.world());
                let left_out = cx.pool.not_counted();
                let goes_on = match has_begun {
                    true => format!("; then {}", recovery::source_in_words(self.source(), 0)),
                    false => String::new(),
                };
                let reason = format!(
                    "waits for workers{alike}: {found} of {world} are free{goes_on}{left_out}{}",
                    self.live.unfit.in_words()
                );
                self.set_state(cx, State::Queued, &reason);
                false
            }
        }
    }

    /// Begins the next epoch if a place was lost and can be filled, or says what the job waits for.
    pub fn recover(&mut self, cx: &mut Context<'_>) {
        if !self.live.awaited.is_empty() || !self.record.state.is_placed() {
            return;
        }
        if self.lacks_checkpoint() {
            return self.wait_for_checkpoint(cx);
        }
        self.begin_drain(cx);
        self.begin_grow(cx);
        let num_empty = self.record.places.iter().filter(|p| p.is_none()).count();
        let plan = recovery::decide(&Situation {
            shape: &self.record.shape,
            places: &self.record.places,
            candidates: &self.candidates(cx.pool, num_empty),
            hosts: &cx.pool.candidates(),
            losses: &self.live.losses,
            begin_again: self.live.begin_again.as_deref(),
            source: self.source(),
        });
        match plan {
            Plan::Nothing => {}
            Plan::Wait { cause, reason } => {
                let Err(outlook) = self.shrink(cx, &cause) else { return };
                let reason = reason + &outlook + &cx.pool.not_counted() + &self.live.unfit.in_words();
                // In an epoch that was started, what survivors still report counts: it may complete a checkpoint.
                if self.live.phase == Phase::Preparing {
                    self.live.phase = Phase::Waiting;
                }
                self.incident_waits(cx, &reason);
                self.set_state(cx, State::Recovering, &reason);
            }
            Plan::Begin { placement, rung, reason } => {
                self.begin_epoch(
                    cx,
                    self.record.shape,
                    placement,
                    if rung == Rung::Drain { State::Draining } else { State::Recovering },
                    &reason,
                );
                self.incident_fenced(cx, rung, &reason);
            }
        }
    }

    /// Where the next epoch has its state from.
    pub fn source(&self) -> Source {
        let step = self.record.last_checkpoint().map_or(0, |c| c.step);
        match self.record.started_unix_ms {
            _ if self.can_heal() => Source::Holders,
            0 => Source::First { step },
            _ => Source::Checkpoint { step },
        }
    }

    /// Spares that may take a place of this job, as many as are needed: first those that still hold state of it, then those that have
    /// shown that they can fill one, and those that failed at it only where the others do not suffice.
    pub fn candidates(&self, pool: &Pool, num_needed: usize) -> Vec<Candidate> {
        let retained = self.retained(pool);
        let rung = |w: &Worker| match self.standing_of(w) {
            _ if self.live.avoid.contains(&w.register.worker_id) => 3,
            _ if retained.contains(&w.register.worker_id) => 0,
            Fitness::Ready => 1,
            Fitness::Proves | Fitness::Unknown | Fitness::Unfit => 2,
        };
        let mut rungs: [Vec<Candidate>; 4] = Default::default();
        for worker in self.fit(pool) {
            rungs[rung(worker)].push(worker.candidate());
        }
        let mut out: Vec<Candidate> = Vec::new();
        for of_rung in rungs {
            // Where all are alike the placement chooses.
            let num = if out.is_empty() { usize::MAX } else { num_needed.saturating_sub(out.len()) };
            out.extend(of_rung.into_iter().take(num));
        }
        out
    }

    /// Spares that may take a place of this job while all is well: nobody who has yet to show that it can fill one.
    pub fn proven_candidates(&self, pool: &Pool, num_needed: usize) -> Vec<Candidate> {
        let asks = pool.asks_for.as_ref() == Some(&self.record.id);
        let is_unproven = |w: &Worker| match self.standing_of(w) {
            Fitness::Proves => true,
            // It is asked next.
            Fitness::Unknown => asks,
            Fitness::Ready | Fitness::Unfit => false,
        };
        let mut candidates = self.candidates(pool, num_needed);
        let retained = self.retained(pool);
        candidates.retain(|c| retained.contains(&c.worker) || !pool.get(&c.worker).is_some_and(is_unproven));
        candidates
    }

    fn fit<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = &'a Worker> {
        let fingerprint = self.fingerprint(pool);
        let computes_alike = move |f: &str| !self.record.spec.exact || fingerprint.as_deref() == Some(f);
        let is_fit = move |w: &&Worker| {
            computes_alike(&w.register.fingerprint) && !self.live.unfit.contains(&w.register.worker_id)
        };
        pool.spares().filter(is_fit)
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

    pub fn begin_epoch(
        &mut self,
        cx: &mut Context<'_>,
        shape: Shape,
        placement: Placement,
        state: State,
        reason: &str,
    ) {
        let heals = self.can_heal();
        self.abandon_pending(heals);
        let committed = self.committed();
        let old = std::mem::take(&mut self.record.places);
        let is_resized = shape != self.record.shape;
        if !heals {
            self.forget_earlier(cx);
        }
        self.record.shape = shape;
        self.record.epoch += 1;
        self.record.heal = None;
        self.record.absent.clear();
        self.record.places = placement.workers.into_iter().map(Some).collect();
        if failpoint!(MoveSurvivors) {
            self.record.places.reverse();
        }
        for (rank, worker) in self.record.places.iter().enumerate() {
            let worker = worker.as_deref().expect("a placement fills every place");
            if cx.pool.get(worker).and_then(|w| w.proof.as_ref()).is_some_and(Proof::has_passed) {
                self.live.linked.insert(worker.into());
            }
            cx.pool.set_place(worker, Some((self.record.id.clone(), rank)));
        }
        self.remember_holders(cx.pool);
        if heals {
            // The curve stays: what was committed is not lost.
            self.live.base_step = committed;
            if is_resized {
                self.live.committed = vec![0; self.world()];
                self.carry_failures();
            }
            for (rank, _) in old.iter().enumerate().filter(|(_, worker)| worker.is_none() && !is_resized) {
                self.live.committed[rank] = 0;
            }
            if failpoint!(CutCurveToHeal) {
                self.cut_curve(cx, self.record.restore_step);
            }
        } else {
            self.go_back(cx);
        }
        let live = &mut self.live;
        live.phase = Phase::Preparing;
        live.activity = vec![Activity::default(); self.record.places.len()];
        let places = &self.record.places;
        live.stragglers.begin(&self.record.spec, &shape, |rank| !is_resized && old.get(rank) == places.get(rank));
        live.prepared.clear();
        live.finished.clear();
        live.losses.clear();
        live.begin_again = None;
        live.reach.begin_epoch();
        live.refusals.clear();
        live.patience = Patience::Idle;
        self.set_state(cx, state, reason);
        self.check_fingerprints(cx);
        self.event(cx, if state == State::Starting { "job.starting" } else { "job.recovering" }, reason);
        self.expect_reports(cx);
        for rank in 0..self.record.places.len() {
            self.assign(cx, rank);
        }
    }

    /// The processes that have places now. Those that had one stay known as long as their state may count.
    fn remember_holders(&mut self, pool: &Pool) {
        let record = &mut self.record;
        let earlier: BTreeSet<&String> = record.earlier.iter().flat_map(|l| l.places.iter().flatten()).collect();
        record.holders.retain(|id, _| earlier.contains(id));
        let placed = record.places.iter().flatten().filter_map(|id| pool.get(id));
        record.holders.extend(placed.map(|w| (w.register.worker_id.clone(), Process::of(&w.register))));
    }

    /// What was computed since the newest checkpoint is made again. The curve is cut when all have loaded it.
    fn go_back(&mut self, cx: &mut Context<'_>) {
        let restore_step = self.record.last_checkpoint().map_or(0, |c| c.step);
        self.release_moved(cx);
        self.record.has_state = false;
        self.record.restore_step = restore_step;
        self.live.base_step = restore_step;
        self.live.floor_step = restore_step.max(self.record.start_step);
        self.record.named_to = restore_step;
        self.forget_last_step();
        self.live.committed = vec![restore_step; self.world()];
    }

    fn cut_curve(&mut self, cx: &mut Context<'_>, keep: u64) {
        if self.live.progress.last_step() > keep {
            self.live.progress.cut(keep);
            cx.out.effects.push(Output::CutCurve { job: self.record.id.clone(), keep });
        }
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

    pub fn assign(&self, cx: &mut Context<'_>, rank: usize) {
        let record = &self.record;
        let peer = |(rank, worker): (usize, &Option<String>)| {
            let worker = worker.as_ref().and_then(|w| cx.pool.get(w)).expect("only connected workers are placed");
            let (worker_id, data_address) = (worker.register.worker_id.clone(), worker.register.data_address.clone());
            proto::Peer { rank: rank as u32, worker_id, data_address }
        };
        let assign = proto::Assign {
            job_id: record.id.clone(),
            epoch: record.epoch,
            rank: rank as u32,
            job_json: serde_json::to_string(&JobSpec { shape: record.shape, ..record.spec.clone() })
                .expect("a job spec has only string keys"),
            peers: record.places.iter().enumerate().map(peer).collect(),
            link_key: record.link_key(cx.secret).to_vec(),
            checkpoint_root: super::view::checkpoint_root(record, &cx.config.jobs_dir),
            restore_step: record.restore_step,
            heal: self.can_heal(),
            owner_id: record.owner.as_ref().map(|owner| owner.bytes().to_vec()).unwrap_or_default(),
            submitted_unix_ms: record.submitted_unix_ms,
            begun_without_owner: record.begun_without_owner,
        };
        self.send(cx, rank, Body::Assign(assign));
    }

    pub fn prepared(&mut self, cx: &mut Context<'_>, rank: usize, message: proto::Prepared) {
        if self.live.phase != Phase::Preparing {
            return;
        }
        if self.can_heal() && !message.held.is_empty() {
            // Its records follow, and the newest may be of a step that nobody has told of yet.
            let committed = &mut self.live.committed[rank];
            *committed = (*committed).max(message.committed_step.min(self.record.spec.steps));
        }
        self.live.prepared.insert(rank, message);
        self.weigh_refusals(cx);
        if self.live.prepared.len() == self.world() && self.record.places.iter().all(Option::is_some) {
            match self.disagreement() {
                None => self.resume(cx),
                Some((Blame::Job, reason)) => self.end(cx, State::Failed, &reason),
                Some((Blame::Worker(rank), reason)) => {
                    if let Some(worker) = self.record.places[rank].clone() {
                        self.mark_unfit(cx, &worker, &reason, Until::Retry);
                    }
                    self.lose(cx, rank, Cause::new(SeenBy::Prepared, reason));
                }
                Some((Blame::Place(rank), reason)) => self.place_failed(cx, rank, SeenBy::Prepared, &reason),
            }
        }
    }

    /// All have reported: the step that they go on from is known, or that no place can give the state.
    fn resume(&mut self, cx: &mut Context<'_>) {
        if !self.can_heal() {
            let step = self.live.prepared[&0].committed_step;
            self.live.floor_step = step;
            self.record.named_to = self.record.named_to.max(step);
            self.record.start_step = if self.record.restore_step > 0 { self.record.start_step } else { step };
            self.cut_curve(cx, step);
            self.record.validations.retain(|v| v.step <= step);
            self.forget_unusable();
            let reason = "all workers are prepared: they connect and compute the first step";
            return self.start(cx, step, None, reason);
        }
        let held = |p: &proto::Prepared| Holding {
            committed: p.committed_step,
            held: p.held.iter().filter_map(|h| self.checked(h)).collect(),
            sealed_next: p.sealed_next,
            sums_from: p.sums_from,
        };
        let held: Vec<Holding> = self.live.prepared.values().map(held).collect();
        match recovery::resume(&self.record.shape, &held) {
            Resume::Heal { step, source, newcomers, origin, reason } => {
                self.cut_curve(cx, step);
                let recorded_step = self.recorded_step();
                self.start(cx, step, Some(Heal { step, source, newcomers, origin, recorded_step }), &reason);
            }
            Resume::Restore { .. } if self.take_back_moved(cx, |_| true) => cx.out.unsettled = true,
            Resume::Restore { step, reason } => {
                self.incident_reported(step);
                self.record.has_state = false;
                self.begin_again(cx, SeenBy::Prepared, reason);
            }
        }
    }

    /// What a worker says that it holds; `None` where that is nothing of this job.
    fn checked(&self, held: &proto::Held) -> Option<(Shape, usize)> {
        let shape = Shape::try_from(held.shape.as_ref()?).ok()?;
        let (rank, own) = (held.rank as usize, &self.record.shape);
        let fits = (shape.tp(), shape.pp()) == (own.tp(), own.pp()) && rank < shape.world();
        fits.then_some((shape, rank))
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
            if self.can_heal() {
                continue;
            }
            let expected = if self.record.restore_step > 0 { self.record.restore_step } else { first.committed_step };
            if prepared.committed_step != expected {
                let reason = format!("loaded step {} where step {expected} was to be loaded", prepared.committed_step);
                return Some((Blame::Place(rank), reason));
            }
        }
        (first.committed_step > self.total() && !self.can_heal()).then(|| {
            let (found, total) = (first.committed_step, self.total());
            (Blame::Job, format!("`resume_from` is at step {found} and the job has only {total} steps; raise `steps`"))
        })
    }

    fn start(&mut self, cx: &mut Context<'_>, base_step: u64, heal: Option<Heal>, reason: &str) {
        let first = &self.live.prepared[&0];
        self.record.data = Some(facts(first));
        let inputs = first.inputs.as_ref().map(Inputs::bounded);
        self.tell_of(cx, inputs);
        let is_heal = heal.is_some();
        self.record.heal = heal;
        self.record.has_state = true;
        self.live.moved.iter_mut().for_each(|moved| moved.is_started = true);
        self.live.base_step = base_step;
        self.live.committed.fill(base_step);
        self.live.phase = Phase::Started;
        self.live.asked_for = None;
        self.record.high_step = self.record.high_step.max(base_step);
        if self.record.started_unix_ms == 0 {
            self.record.started_unix_ms = cx.now.unix_ms;
            self.record.trained = Some(Stopwatch::start(cx.now));
        }
        self.set_state(cx, self.record.state, reason);
        let start = self.start_message();
        self.send_all(cx, &start);
        self.event(cx, "job.started", format!("epoch {} goes on from step {base_step}: {reason}", self.record.epoch));
        self.incident_decided(cx, base_step);
        self.expect_progress(cx);
        self.arm_interval(cx, is_heal);
        self.plan_checkpoints(cx, true);
    }

    /// What is trained on is told once, by the first epoch that starts: all workers have the same text.
    fn tell_of(&mut self, cx: &mut Context<'_>, inputs: Option<Inputs>) {
        if self.record.inputs.is_some() {
            return;
        }
        let Some(inputs) = inputs else { return };
        for left in &inputs.left_out {
            self.event(cx, "data.left_out", left.in_words());
        }
        for note in &inputs.notes {
            self.event(cx, "job.note", note.clone());
        }
        self.record.inputs = Some(inputs);
    }

    /// `Start` of the present epoch. A worker that has started takes it as the same one.
    pub fn start_message(&self) -> Body {
        let heal = self.record.heal.as_ref().map(|h| proto::Heal {
            step: h.step,
            source: h.source as u32,
            newcomers: h.newcomers.iter().map(|r| *r as u32).collect(),
            origin: h.origin.as_ref().map(|o| proto::Origin {
                shape: Some((&o.shape).into()),
                ranks: o.ranks.iter().map(|r| r.map_or(0, |r| r as u32 + 1)).collect(),
            }),
            recorded_step: h.recorded_step,
        });
        Body::Start(proto::Start { job_id: self.record.id.clone(), epoch: self.record.epoch, heal })
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
    let digest = hex(&prepared.data_digest);
    DataFacts { digest, num_samples: prepared.num_samples, num_params: prepared.num_params }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// The beginning of a digest, enough to tell two from each other.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take(16).collect()
}

fn in_words(facts: &DataFacts) -> String {
    let digest = short(&facts.digest);
    format!("data {digest} ({} samples) and {} parameters", facts.num_samples, facts.num_params)
}
