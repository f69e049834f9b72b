//! Several jobs over one pool: what users do about it in a simulation, and what must hold of it.
//!
//! - A gang starts whole: all places of the shape that the job file asks for, or none.
//! - Nobody goes on with fewer replicas than its `min_dp`.
//! - **T-3** who gives its workers to another job is saved: the newest step that anybody has committed is in a checkpoint.
//! - **T-8** a decision about several jobs is stored as one: a worker has one place in all of them, and of a job that was removed nothing is left.
//! - What a user was told is so, whoever leads: a worker that was cordoned is given no place that it never had, a job on hold stays so, and one that was
//!   removed is not there again.
//!
//! That each job is its undisturbed run, whatever the others do, is T-4, which `truth` checks of every job.

use std::collections::BTreeMap;

use toroid_coordinator::machine::record::{JobRecord, Record, State};
use toroid_coordinator::machine::{Input, Reply, RequestError, RequestId, Who};
use toroid_torus::ids::{JobId, Step, WorkerId};

use crate::world::World;

/// Steps that a user has a job make beyond what it had.
const MAX_MORE_STEPS: u64 = 3;

/// What a user wants to be so until it is said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Hold { job: String },
    Cordon { worker: String },
    Remove { job: String },
}

impl World {
    /// Once all is calm, lets everything run.
    pub fn use_the_pool(&mut self) {
        if !self.scenario.is_pool || !self.env.is_coordinator_awake || !self.is_calm() {
            return;
        }
        let held = self.records().find(|r| r.is_held && !r.state.is_ended()).map(|r| r.id.to_string());
        if let Some(job) = held {
            self.release(job);
        }
        if let Some(worker) = self.stored_cordons().first().cloned() {
            self.uncordon(worker);
        }
    }

    fn stored_cordons(&self) -> Vec<String> {
        match self.store.get("meta") {
            Some(Record::Meta(meta)) => meta.cordoned.keys().map(ToString::to_string).collect(),
            _ => Vec::new(),
        }
    }

    pub fn pool_fault(&mut self) {
        if !self.env.is_coordinator_awake {
            return;
        }
        match self.env.net.random.below(100) {
            0..25 => self.hold_one(),
            25..45 => self.release_one(),
            45..70 => self.cordon_one(),
            70..80 => self.uncordon_one(),
            80..86 => self.cancel_one(),
            86..93 => self.resume_one(),
            _ => self.remove_one(),
        }
    }

    fn wish(&mut self, wish: Wish, input: impl FnOnce(RequestId) -> Input) {
        self.wishes.insert(RequestId(self.next_request), wish);
        self.request(input);
    }

    /// What was asked for is not what is wanted any more.
    fn withdraw(&mut self, wish: &Wish) {
        self.wishes.retain(|_, other| other != wish);
        self.promised.remove(wish);
    }

    /// Whoever has asked is told.
    pub fn answered(&mut self, request: RequestId, reply: &Result<Reply, RequestError>) {
        let wish = self.wishes.remove(&request);
        self.promised.extend(wish.filter(|_| reply.is_ok()));
    }

    fn job_that(&mut self, is_it: impl Fn(&JobRecord) -> bool) -> Option<String> {
        let jobs: Vec<String> = self.records().filter(|r| is_it(r)).map(|r| r.id.to_string()).collect();
        self.env.net.random.pick(&jobs)
    }

    fn hold_one(&mut self) {
        let Some(job) = self.job_that(|r| !r.state.is_ended() && !r.is_held) else { return };
        self.env.tell(|| format!("a user holds {job}"));
        self.wish(Wish::Hold { job: job.clone() }, |request| Input::Hold { request, job });
    }

    fn release_one(&mut self) {
        if let Some(job) = self.job_that(|r| r.is_held && !r.state.is_ended()) {
            self.release(job);
        }
    }

    fn release(&mut self, job: String) {
        self.env.tell(|| format!("a user releases {job}"));
        self.withdraw(&Wish::Hold { job: job.clone() });
        self.request(|request| Input::Release { request, job });
    }

    fn cordon_one(&mut self) {
        let workers: Vec<String> = self.workers.keys().map(|pid| crate::worker::id_of(*pid)).collect();
        let Some(worker) = self.env.net.random.pick(&workers) else { return };
        self.env.tell(|| format!("a user cordons {worker}"));
        let wish = Wish::Cordon { worker: worker.clone() };
        let who = Who::Worker(worker);
        self.wish(wish, |request| Input::Cordon { request, who, reason: String::new() });
    }

    fn uncordon_one(&mut self) {
        let cordoned = self.stored_cordons();
        if let Some(worker) = self.env.net.random.pick(&cordoned) {
            self.uncordon(worker);
        }
    }

    fn uncordon(&mut self, worker: String) {
        self.env.tell(|| format!("a user uncordons {worker}"));
        self.withdraw(&Wish::Cordon { worker: worker.clone() });
        let who = Who::Worker(worker);
        self.request(|request| Input::Uncordon { request, who });
    }

    /// Not the first: it has to come to its end.
    fn cancel_one(&mut self) {
        let Some(job) = self.job_that(|r| !r.state.is_ended() && !r.id.starts_with("first")) else { return };
        self.env.tell(|| format!("a user cancels {job}"));
        self.withdraw(&Wish::Hold { job: job.clone() });
        self.request(|request| Input::Cancel { request, job });
    }

    fn resume_one(&mut self) {
        let Some(job) = self.job_that(|r| r.state.is_ended()) else { return };
        let steps = self.record(&job).map_or(0, |r| r.spec.steps) + self.env.net.random.below(MAX_MORE_STEPS);
        self.env.tell(|| format!("a user has {job} go on up to step {steps}"));
        self.request(|request| Input::Resume { request, job, from_scratch: false, steps: Some(steps) });
    }

    /// Not the first: it has to come to its end.
    fn remove_one(&mut self) {
        let Some(job) = self.job_that(|r| r.state.is_ended() && !r.id.starts_with("first")) else { return };
        self.env.tell(|| format!("a user removes {job}"));
        self.wish(Wish::Remove { job: job.clone() }, |request| Input::Remove { request, job });
    }

    // ------------------------------------------------------------------------------------------------------ what must hold

    /// A job is not kept any longer.
    pub fn removed(&mut self, record: &JobRecord) {
        self.num_removed += 1;
        self.gave_way.remove(record.id.as_str());
        let complaint = self.is_not_the_undisturbed_run(record);
        self.env.truth.check(complaint.is_none(), || complaint.unwrap_or_default());
    }

    /// All that one decision has changed is stored.
    pub fn check_decision(&mut self) {
        let mut places: BTreeMap<&WorkerId, &JobId> = BTreeMap::new();
        let placed = self.records().flat_map(|r| r.places.iter().flatten().map(|worker| (worker, &r.id)));
        let twice = placed.into_iter().find_map(|(worker, job)| Some((worker, job, places.insert(worker, job)?)));
        let twice = twice.map(|(worker, job, other)| format!("T-8: {worker} has a place in {job} and in {other}"));
        let is_left = |record: &&Record| match record {
            Record::Incident(incident) => self.record(&incident.job).is_none(),
            Record::Validations(page) => self.record(&page.job).is_none(),
            Record::Meta(_) | Record::Job(_) | Record::Token(_) | Record::Binding(_) => false,
        };
        let left = self.store.values().find(is_left).map(|r| format!("T-8: {} is left of a removed job", r.key()));
        let complaint = twice.or(left);
        self.env.truth.check(complaint.is_none(), || complaint.unwrap_or_default());
    }

    /// Another coordinator leads: what users were told holds.
    pub fn check_promises(&mut self) {
        let cordoned = self.stored_cordons();
        let is_broken = |wish: &&Wish| match wish {
            Wish::Hold { job } => self.record(job).is_some_and(|r| !r.is_held && !r.state.is_ended()),
            Wish::Cordon { worker } => !cordoned.contains(worker),
            Wish::Remove { job } => self.record(job).is_some(),
        };
        let broken = self.promised.iter().find(is_broken).map(|wish| format!("T-8: a user was told {wish:?}"));
        self.env.truth.check(broken.is_none(), || broken.unwrap_or_default());
    }

    /// What is wrong with a record that follows another, as far as other jobs and users are concerned.
    pub fn wrong_in_pool(&self, old: &JobRecord, new: &JobRecord) -> Option<String> {
        let complaint = self.broken_gang(old, new).or_else(|| self.unsaved_work(old, new));
        complaint.or_else(|| self.cordon_ignored(new)).or_else(|| self.hold_forgotten(new))
    }

    fn broken_gang(&self, old: &JobRecord, new: &JobRecord) -> Option<String> {
        let (id, min_dp) = (&new.id, new.spec.fault_tolerance.min_dp);
        if new.state.is_placed() && new.shape.dp() < min_dp {
            return Some(format!("{id} goes on with dp {}, its min_dp is {min_dp}", new.shape.dp()));
        }
        let starts = new.state == State::Starting && (old.state != State::Starting || old.epoch != new.epoch);
        let is_whole = new.shape == new.spec.shape && new.places.iter().all(Option::is_some);
        (starts && !is_whole)
            .then(|| format!("{id} starts with a part of its places: {:?} of {}", new.places, new.spec.shape))
    }

    fn unsaved_work(&self, old: &JobRecord, new: &JobRecord) -> Option<String> {
        let is_redundant = new.spec.fault_tolerance.redundancy && new.spec.shape.world() > 1;
        let gives_way = old.state.is_placed() && new.state == State::Queued && new.hold.is_none();
        let truth = self.env.truth.jobs.get(new.id.as_str())?;
        if !gives_way || !old.has_state || !is_redundant || truth.is_distrusted {
            return None;
        }
        let (saved, high) = (new.last_checkpoint().map_or(Step::ZERO, |c| c.step).get(), truth.high);
        (saved < high.get())
            .then(|| format!("T-3: {} gives its workers back at step {high}, saved is step {saved}", new.id))
    }

    fn cordon_ignored(&self, new: &JobRecord) -> Option<String> {
        let is_given = |worker: &&WorkerId| {
            self.promised.contains(&Wish::Cordon { worker: worker.to_string() })
                && !self.had_place.contains_key(&(new.id.to_string(), worker.to_string()))
        };
        let worker = new.places.iter().flatten().find(is_given)?;
        Some(format!("{worker} is cordoned and is given a place of {}", new.id))
    }

    fn hold_forgotten(&self, new: &JobRecord) -> Option<String> {
        let is_promised = self.promised.contains(&Wish::Hold { job: new.id.to_string() });
        let is_forgotten = is_promised && !new.is_held && !new.state.is_ended();
        is_forgotten.then(|| format!("{} was held for a user and is not any more", new.id))
    }
}

/// Whether it had to stop or to shrink for another job in this decision, or is whole again; `None`: neither.
pub fn gives_way(old: &JobRecord, new: &JobRecord) -> Option<bool> {
    let num_new = (new.num_events - old.num_events) as usize;
    let mut kinds = new.events.iter().rev().take(num_new).map(|e| e.kind.as_str());
    if kinds.any(|kind| ["job.preempted", "job.shrunk"].contains(&kind)) {
        return Some(true);
    }
    (new.state.is_ended() || new.state == State::Running).then_some(false)
}
