//! How an epoch begins: who gets which place, `Assign`, `Prepared` from all, `Start`.
//!
//! Survivors keep their places (T-7); the number of the epoch and its places are stored with everything else that the input
//! changes, before the first `Assign` of it is sent (T-8).

use std::collections::{BTreeMap, BTreeSet};

use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::placement::{self, Candidate, Placement};

use super::job::{Job, Phase};
use super::pool::{Pool, Worker};
use super::record::{DataFacts, State};
use super::recovery::{self, Plan, Situation};
use super::{Context, Output};

impl Job {
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
            heal: false,
        };
        for rank in 0..record.places.len() {
            assign.rank = rank as u32;
            self.send(cx, rank, Body::Assign(assign.clone()));
        }
    }

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
        let start = proto::Start { job_id: self.record.id.clone(), epoch: self.record.epoch, heal: None };
        self.send_all(cx, &Body::Start(start));
        let text = format!("epoch {} goes on from step {base_step}", self.record.epoch);
        self.event(cx, "job.started", text);
        self.arm_interval(cx);
        self.plan_checkpoints(cx, true);
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
