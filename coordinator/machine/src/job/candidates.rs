//! Who may take a place of a job, and in which order they are asked (T-11).

use std::collections::{BTreeMap, BTreeSet};

use toroid_proto as proto;
use toroid_torus::ids::WorkerId;
use toroid_torus::placement::Candidate;

use super::Job;
use crate::facts::{hex, short};
use crate::kind::Kind;
use crate::pool::{Pool, Standing, Worker};
use crate::proof::{Proof, ProofStage};

impl Job {
    /// Spares that may take a place of this job, as many as are needed: first those that still hold state of the job, then those that have
    /// shown that they can fill a place, and only if these do not suffice those that failed at the job.
    pub(super) fn candidates(&self, pool: &Pool, num_needed: usize) -> Vec<Candidate> {
        let retained = self.retained(pool);
        let rung = |w: &Worker| match self.standing_of(w) {
            _ if self.fitness.is_avoided(&w.register.worker_id) => 3,
            _ if retained.contains(w.register.worker_id.as_str()) => 0,
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

    /// Whether there is any of them.
    pub(super) fn has_candidate(&self, pool: &Pool) -> bool {
        self.fit(pool).next().is_some()
    }

    /// Spares that may take a place of this job while all is well: without those that have yet to show that they can fill one.
    pub(super) fn proven_candidates(&self, pool: &Pool, num_needed: usize) -> Vec<Candidate> {
        let asks = pool.asks_for.as_ref() == Some(&self.core.record.id);
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

    /// Whom the job may be given, with a place in another job or without: the scheduler counts on them.
    pub fn suited(&self, pool: &Pool) -> BTreeSet<WorkerId> {
        let is_suited = self.is_suited(pool);
        let may_have = |w: &&Worker| match pool.standing(w) {
            Standing::Placed => pool.cordon_of(w).is_none(),
            Standing::Spare => true,
            Standing::Aside(_) | Standing::Cordoned(_) | Standing::Retired => false,
        };
        pool.iter().filter(may_have).filter(|w| is_suited(w)).map(Worker::id).collect()
    }

    /// What the job asks of its workers: labels, that they compute and speak as its other places do, the one fingerprint of an exact job, that they can do
    /// what it needs.
    fn is_suited<'a>(&'a self, pool: &Pool) -> impl Fn(&Worker) -> bool + 'a {
        let fingerprint = self.fingerprint(pool);
        let spec = &self.core.record.spec;
        let computes_alike =
            move |w: &Worker| !spec.exact || fingerprint.as_deref() == Some(w.fingerprint(spec.products));
        let kind = self.kind_of_places(pool).or_else(|| Kind::of_most(pool));
        move |w: &Worker| {
            computes_alike(w)
                && kind.is_none_or(|kind| kind.with(&w.register).is_some())
                && w.has_labels(&self.core.record.spec.workers.labels)
                && !self.fitness.is_unfit(&w.register.worker_id)
        }
    }

    /// Workers without a place that may be given one of this job now.
    fn fit<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = &'a Worker> {
        let is_suited = self.is_suited(pool);
        let is_free = move |w: &&Worker| {
            let id = w.register.worker_id.as_str();
            pool.retained.get(id).is_none_or(|job| *job == self.core.record.id) && !pool.kept.contains(id)
        };
        pool.spares().filter(is_free).filter(move |w| is_suited(w))
    }

    /// The one fingerprint of an exact job: its own since it was placed, before that the one that most spares have.
    fn fingerprint(&self, pool: &Pool) -> Option<String> {
        if !self.core.record.spec.exact {
            return None;
        }
        if self.core.record.fingerprint.is_some() {
            return self.core.record.fingerprint.clone();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for worker in pool.spares() {
            *counts.entry(worker.fingerprint(self.core.record.spec.products)).or_default() += 1;
        }
        let best = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)));
        best.map(|(fingerprint, _)| fingerprint.to_string())
    }

    /// Why a spare cannot stand beside the places that this job has, whatever it can do: in words.
    pub fn strangeness(&self, pool: &Pool, worker: &Worker) -> Option<String> {
        let record = &self.core.record;
        if !record.state.is_placed() {
            return None;
        }
        let (register, id) = (&worker.register, &record.id);
        if let Some(reason) = self.kind_of_places(pool).and_then(|kind| kind.objection(register, id)) {
            return Some(reason);
        }
        let found = worker.fingerprint(record.spec.products);
        let expected = record.fingerprint.as_ref().filter(|expected| record.spec.exact && *expected != found)?;
        Some(format!(
            "{id} is exact, and this worker computes in another way than its places: it is {found}, they are {expected}"
        ))
    }

    /// What the places have in common; `None`: nobody has one. All who have a place are looked at once an epoch, and as long as no epoch has begun since
    /// the coordinator was started.
    fn kind_of_places(&self, pool: &Pool) -> Option<Kind> {
        let record = &self.core.record;
        if self.assigned.epoch() == record.epoch && record.places.num_empty() < record.shape.world() {
            return self.assigned.kind();
        }
        Kind::of_places(record, pool)
    }

    /// Why the spare that answers cannot fill a place.
    pub fn cannot_fill(&self, message: &proto::WarmedUp) -> Option<String> {
        if !message.error.is_empty() {
            return Some(format!("cannot fill a place: {}", message.error));
        }
        let known = &self.core.record.data.as_ref()?.digest;
        let found = hex(&message.data_digest);
        (found != *known).then(|| {
            let (found, known) = (short(&found), short(known));
            format!("does not see the same data as the job: it has {found}, the others {known}; give all of them the same files")
        })
    }

    /// How far the spare has shown that it can fill a place of this job.
    pub(super) fn standing_of(&self, worker: &Worker) -> Fitness {
        let id = &worker.register.worker_id;
        match &worker.proof {
            _ if self.fitness.is_unfit(id) => Fitness::Unfit,
            Some(Proof { job, stage: ProofStage::Ready, .. }) if *job == self.core.record.id => Fitness::Ready,
            Some(Proof { job, .. }) if *job == self.core.record.id => Fitness::Proves,
            _ => Fitness::Unknown,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fitness {
    Ready,
    /// It is being asked.
    Proves,
    /// Nobody has asked it.
    Unknown,
    Unfit,
}
