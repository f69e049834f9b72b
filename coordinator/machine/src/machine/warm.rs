//! Spares show ahead that they can fill a place of the job that they may be needed for (T-11).
//!
//! ```text
//!   WarmUp ──> data, checkpoints, room ──> WarmedUp ──> Probe to it and to another: each dials the other ──> Probed, Probed ──> ready
//!                                            │ cannot                                                          │ two others say so
//!                                            └──────────────> unfit, tried again after a while <───────────────┘
//! ```
//!
//! A spare warms up for the oldest job of the highest priority that has its places, and for the places of one (tp_rank, stage) of it: the next spare for the
//! next, so that several are ready for any. Most of what a place needs does not depend on whose it is, and is there when the place is
//! given. A spare that has not shown that it can fill a place is given one only if there is no other: then the epoch shows it.
//!
//! A probe that fails counts against the spare only when it fails with another worker, too, where there is one: the other may be to blame.
//! It does not count at all where the other has never been reached by anybody.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Machine;
use crate::api::StreamId;
use crate::clock::Now;
use crate::fitness::Until;
use crate::folders::checkpoint_root;
use crate::job::Job;
use crate::pool::Worker;
use crate::proof::{Probe, Proof, ProofStage};
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::ids::{JobId, WorkerId};

/// Probes that go on at a time, at most.
const MAX_PROBES: usize = 64;
/// Other workers that have to fail with a spare, where so many are there.
const MAX_PEERS: usize = 2;
/// Others that cannot be told from the spare itself, before it is left to an epoch to show who cannot be reached.
const MAX_DOUBTED: usize = 8;

impl Machine {
    /// Tells the spares that have not heard of it yet, and has those that are prepared dialled.
    pub(crate) fn warm_spares(&mut self, now: Now) {
        self.ask_spares(now);
        self.begin_probes(now);
    }

    /// The job that spares are to be ready for: of the highest priority the oldest.
    pub(crate) fn first_placed(&self) -> Option<&Job> {
        first_of(self.jobs.values())
    }

    fn ask_spares(&mut self, now: Now) {
        let number = self.next_probe;
        let (jobs, cx) = self.split(now);
        let Some(job) = first_of(jobs.values()) else { return };
        let (record, shape) = (job.record(), &job.record().spec.shape);
        let is_asked = |w: &Worker| w.proof.as_ref().is_some_and(|p| p.job == record.id && p.shape == *shape);
        let is_due = |w: &Worker| {
            !is_asked(w) && !job.fitness().is_unfit(&w.register.worker_id) && w.has_labels(&record.spec.workers.labels)
        };
        let due = cx.pool.spares().enumerate().filter(|(_, w)| is_due(w));
        let due: Vec<(usize, WorkerId, StreamId)> = due.map(|(n, w)| (n, w.id(), w.stream)).collect();
        if due.is_empty() {
            return;
        }
        let mut seen = BTreeSet::new();
        let coordinate = |rank: usize| (shape.place(rank).tp, shape.place(rank).pp);
        let ranks = (0..shape.world()).filter(|rank| seen.insert(coordinate(*rank)));
        let ranks: Vec<usize> = ranks.take(shape.tp() * shape.pp()).collect();
        let mut num_asked = 0;
        for (n, worker, stream) in &due {
            let (rank, stream) = (ranks[n % ranks.len()], *stream);
            let number = number + num_asked;
            num_asked += 1;
            let proof = Proof {
                job: record.id.clone(),
                shape: *shape,
                number,
                stage: ProofStage::Prepares,
                failed_with: BTreeSet::new(),
                problems: Vec::new(),
                doubted: BTreeSet::new(),
                has_passed: false,
                unanswered: BTreeSet::new(),
            };
            cx.pool.set_proof(worker, proof);
            let warm_up = proto::WarmUp {
                job_id: record.id.to_string(),
                rank: rank as u32,
                job_json: serde_json::to_string(&record.spec).expect("a job spec has only string keys"),
                checkpoint_root: checkpoint_root(record, &cx.config.jobs_dir),
                number,
                checkpoint_step: record.last_checkpoint().map_or(0, |c| c.step.get()),
            };
            cx.out.send(stream, Body::WarmUp(warm_up));
        }
        self.next_probe += num_asked;
    }

    fn begin_probes(&mut self, now: Now) {
        if self.first_placed().is_none() {
            return;
        }
        let is_probed = |w: &&Worker| matches!(w.proof, Some(Proof { stage: ProofStage::Probed(_), .. }));
        let num_free = MAX_PROBES.saturating_sub(self.pool.unplaced().filter(is_probed).count());
        let is_due = |w: &&Worker| matches!(w.proof, Some(Proof { stage: ProofStage::Prepared, .. }));
        let due: Vec<String> =
            self.pool.unplaced().filter(is_due).take(num_free).map(|w| w.register.worker_id.clone()).collect();
        for spare in due {
            self.begin_probe(&spare, now);
        }
    }

    /// Has a spare dial another worker, and be dialled by it.
    fn begin_probe(&mut self, spare: &str, now: Now) {
        let number = self.next_probe;
        let key = self.probe_key(number);
        let Some(worker) = self.pool.get(spare) else { return };
        let Some(proof) = &worker.proof else { return };
        let peer = self.peer_of(worker, proof).map(Worker::id);
        let (jobs, mut cx) = self.split(now);
        let Some(proof) = cx.pool.get(spare).and_then(|w| w.proof.as_ref()) else { return };
        let Some(peer) = peer else {
            return match proof.failed_with.is_empty() {
                // Nobody else is there: the epoch will show it.
                true => cx.pool.set_stage(spare, ProofStage::Ready),
                false => {
                    let (job, problems) = (proof.job.clone(), proof.problems.join("; "));
                    if let Some(job) = jobs.get_mut(&job) {
                        let reason = format!("has no link with others: {problems}; look at --advertise");
                        job.mark_unfit(&mut cx, spare, &reason, Until::Retry);
                    }
                }
            };
        };
        let until = now.monotonic + cx.config.limits.probe();
        for (who, other) in [(spare, peer.as_str()), (peer.as_str(), spare)] {
            let (Some(who), Some(other)) = (cx.pool.get(who), cx.pool.get(other)) else { return };
            let probe = proto::Probe {
                number,
                worker_id: other.register.worker_id.clone(),
                data_address: other.register.data_address.clone(),
                key: key.to_vec(),
            };
            cx.out.send(who.stream, Body::Probe(probe));
        }
        cx.pool.begin_probe(spare, Probe { number, peer, answers: [None, None] }, until);
        self.next_probe += 1;
    }

    /// Others have reached it: it had links when steps were made, or has passed a probe.
    fn is_reached(&self, worker: &str) -> bool {
        self.jobs.values().any(|job| job.fitness().is_linked(worker)) || self.pool.get(worker).is_some_and(has_passed)
    }

    fn is_anybody_reached(&self) -> bool {
        self.jobs.values().any(|job| job.fitness().has_linked()) || self.pool.unplaced().any(has_passed)
    }

    /// The worker that a spare and itself are to dial next. It prefers workers that others have reached before, then those with a place of the job,
    /// then those on another host. `None` if all, or enough, were asked.
    fn peer_of(&self, spare: &Worker, proof: &Proof) -> Option<&Worker> {
        if proof.failed_with.len() >= MAX_PEERS || proof.doubted.len() >= MAX_DOUBTED {
            return None;
        }
        let is_other = |w: &&Worker| {
            let id = w.register.worker_id.as_str();
            id != spare.register.worker_id && !proof.failed_with.contains(id) && !proof.doubted.contains(id)
        };
        let has_place = |w: &Worker| w.place.as_ref().is_some_and(|(job, _)| *job == proof.job);
        let is_silent = |w: &Worker| proof.unanswered.contains(w.register.worker_id.as_str());
        let rank = |w: &Worker| w.place.as_ref().map_or(usize::MAX, |(_, rank)| rank.index());
        let is_new = |w: &Worker| !self.is_reached(&w.register.worker_id);
        let is_near = |w: &Worker| w.register.host == spare.register.host;
        // Nobody is better than the first place of which all that is wanted is true, and there mostly is one among the first.
        let all_new = !self.is_anybody_reached();
        let is_best = |w: &&Worker| !is_silent(w) && is_new(w) == all_new && has_place(w) && !is_near(w);
        let places = self.jobs.get(&proof.job).into_iter().flat_map(|job| job.record().places.iter().flatten());
        let best = places.filter_map(|id| self.pool.get(id)).filter(is_other).find(is_best);
        best.or_else(|| {
            let others = self.pool.iter().filter(is_other);
            others.min_by_key(|w| (is_silent(w), is_new(w), !has_place(w), is_near(w), rank(w)))
        })
    }

    /// The key by which the two workers of a probe know each other.
    fn probe_key(&self, number: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.meta.secret);
        hasher.update(b"toroid probe").update(&number.to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    pub(crate) fn warmed_up(&mut self, stream: StreamId, message: &proto::WarmedUp, now: Now) {
        let (jobs, mut cx) = self.split(now);
        let Some(worker) = cx.pool.by_stream(stream) else { return };
        let spare = worker.register.worker_id.clone();
        let is_answer = |p: &&mut Proof| p.number == message.number && matches!(p.stage, ProofStage::Prepares);
        let Some(proof) = worker.proof.as_mut().filter(is_answer) else { return };
        let Some(job) = jobs.get_mut(&proof.job) else { return };
        if let Some(reason) = job.cannot_fill(message) {
            return job.mark_unfit(&mut cx, &spare, &reason, Until::Retry);
        }
        proof.stage = match message.unseen.as_str() {
            "" => ProofStage::Prepared,
            reason => ProofStage::Doubtful(reason.into()),
        };
        cx.out.unsettled = true;
    }

    pub(crate) fn probed(&mut self, stream: StreamId, message: &proto::Probed, _now: Now) {
        let Some(from) = self.pool.by_stream(stream).map(|w| w.register.worker_id.clone()) else { return };
        let Some((spare, probe)) = self.pool.probe_mut(message.number) else { return };
        let side = match () {
            () if *spare == from.as_str() => 0,
            () if probe.peer == from.as_str() => 1,
            () => return,
        };
        probe.answers[side].get_or_insert_with(|| message.error.clone());
        self.end_probes(None);
    }

    /// Of the worker that a spare is probed with.
    fn peer_is_connected_and_reached(&self, spare: &str) -> (bool, bool) {
        match self.pool.get(spare).and_then(|w| w.proof.as_ref()).map(|proof| &proof.stage) {
            Some(ProofStage::Probed(probe)) => (self.pool.get(&probe.peer).is_some(), self.is_reached(&probe.peer)),
            _ => (false, false),
        }
    }

    /// Those that were not answered in time have failed.
    pub(crate) fn tick_probes(&mut self, now: Now) {
        self.end_probes(Some(now.monotonic));
    }

    /// Ends the probes that have both answers, or whose time is over. Mostly there are none, and this is asked at each tick.
    fn end_probes(&mut self, now: Option<Duration>) {
        let ended = self.pool.ended_probes(now);
        if ended.is_empty() {
            return;
        }
        let mut ready: Vec<(JobId, WorkerId)> = Vec::new();
        let mut passed: Vec<WorkerId> = Vec::new();
        // As it was before any of them ended.
        let peers: Vec<(bool, bool)> = ended.iter().map(|spare| self.peer_is_connected_and_reached(spare)).collect();
        for (spare, (is_connected, is_reached)) in ended.iter().zip(peers) {
            let Some(proof) = self.pool.end_probe(spare) else { continue };
            let ProofStage::Probed(probe) = &mut proof.stage else { continue };
            let answers = std::mem::take(&mut probe.answers);
            let peer = std::mem::take(&mut probe.peer);
            let is_answered = answers.iter().all(Option::is_some);
            let [mine, theirs] = answers.map(Option::unwrap_or_default);
            let directions = [(spare, &peer, mine), (&peer, spare, theirs)];
            let failed = directions.into_iter().filter(|(.., error)| !error.is_empty());
            let problems: Vec<String> =
                failed.map(|(from, to, error)| format!("{from} does not reach {to}: it {error}")).collect();
            let is_ready = problems.is_empty() && is_answered;
            proof.stage = if is_ready { ProofStage::Ready } else { ProofStage::Prepared };
            proof.has_passed |= is_ready;
            if is_ready {
                ready.push((proof.job.clone(), spare.clone()));
                passed.extend([spare.clone(), peer]);
            } else if problems.is_empty() || !is_connected {
                // An end that is silent, or gone, says nothing about the other end.
                proof.unanswered.insert(peer);
            } else if !is_reached {
                proof.doubted.insert(peer);
            } else {
                proof.problems.extend(problems);
                proof.failed_with.insert(peer);
            }
            self.out.unsettled = true;
        }
        for job in self.jobs.values_mut() {
            job.linked(passed.iter());
        }
        for (job, spare) in ready {
            if let Some(job) = self.jobs.get_mut(&job) {
                job.has_proven(&spare);
            }
        }
    }
}

fn first_of<'a>(jobs: impl Iterator<Item = &'a Job>) -> Option<&'a Job> {
    let placed = jobs.filter(|job| job.record().state.is_placed());
    placed.min_by_key(|job| (std::cmp::Reverse(job.record().spec.priority), job.record().number))
}

fn has_passed(worker: &Worker) -> bool {
    worker.proof.as_ref().is_some_and(|proof| proof.has_passed)
}
