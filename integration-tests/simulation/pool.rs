//! Several jobs over one pool: what users do about it in a simulation, and what must hold of it.
//!
//! - A gang starts whole: all places of the shape that the job file asks for, or none.
//! - Nobody goes on with fewer replicas than its `min_dp`.
//! - **T-3** who gives its workers to another job is saved: the newest step that anybody has committed is in a checkpoint.
//! - A worker that was cordoned is given no place that it never had.
//!
//! That each job is its undisturbed run, whatever the others do, is T-4, which `truth` checks of every job.

use toroid_coordinator::machine::record::{JobRecord, Record, State};
use toroid_coordinator::machine::{Input, Reply, Who};
use toroid_torus::ids::Step;

use crate::world::World;

/// Steps that a user has a job make beyond what it had.
const MAX_MORE_STEPS: u64 = 3;

impl World {
    /// Submits what is due, and once all is calm lets everything run.
    pub fn use_the_pool(&mut self) {
        if !self.scenario.is_pool || !self.env.is_coordinator_awake {
            return;
        }
        while let Some((at, toml)) = self.scenario.later.get(self.num_later).cloned() {
            if at > self.num_events && !self.is_calm() || !self.env.is_coordinator_awake {
                return;
            }
            self.num_later += 1;
            self.env.tell(|| "a user submits another job".into());
            self.submit(&toml);
        }
        if !self.is_calm() {
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
            80..88 => self.cancel_one(),
            _ => self.resume_one(),
        }
    }

    fn job_that(&mut self, is_it: impl Fn(&JobRecord) -> bool) -> Option<String> {
        let jobs: Vec<String> = self.records().filter(|r| is_it(r)).map(|r| r.id.to_string()).collect();
        self.env.net.random.pick(&jobs)
    }

    fn hold_one(&mut self) {
        let Some(job) = self.job_that(|r| !r.state.is_ended() && !r.is_held) else { return };
        self.env.tell(|| format!("a user holds {job}"));
        self.request(|request| Input::Hold { request, job });
    }

    fn release_one(&mut self) {
        if let Some(job) = self.job_that(|r| r.is_held && !r.state.is_ended()) {
            self.release(job);
        }
    }

    fn release(&mut self, job: String) {
        self.env.tell(|| format!("a user releases {job}"));
        self.request(|request| Input::Release { request, job });
    }

    fn cordon_one(&mut self) {
        let workers: Vec<String> = self.workers.keys().map(|pid| crate::worker::id_of(*pid)).collect();
        let Some(worker) = self.env.net.random.pick(&workers) else { return };
        self.env.tell(|| format!("a user cordons {worker}"));
        let named = worker.clone();
        let who = Who::Worker(worker);
        let request = self.request(|request| Input::Cordon { request, who, reason: String::new() });
        if matches!(self.replies.get(&request), Some(Ok(Reply::Cordoned { .. }))) {
            self.cordoned.insert(named);
        }
    }

    fn uncordon_one(&mut self) {
        let cordoned = self.stored_cordons();
        if let Some(worker) = self.env.net.random.pick(&cordoned) {
            self.uncordon(worker);
        }
    }

    fn uncordon(&mut self, worker: String) {
        self.env.tell(|| format!("a user uncordons {worker}"));
        self.cordoned.remove(&worker);
        let who = Who::Worker(worker);
        self.request(|request| Input::Uncordon { request, who });
    }

    /// Not the first: it has to come to its end.
    fn cancel_one(&mut self) {
        let Some(job) = self.job_that(|r| !r.state.is_ended() && !r.id.starts_with("first")) else { return };
        self.env.tell(|| format!("a user cancels {job}"));
        self.request(|request| Input::Cancel { request, job });
    }

    fn resume_one(&mut self) {
        let Some(job) = self.job_that(|r| r.state.is_ended()) else { return };
        let steps = self.record(&job).map_or(0, |r| r.spec.steps) + self.env.net.random.below(MAX_MORE_STEPS);
        self.env.tell(|| format!("a user has {job} go on up to step {steps}"));
        self.request(|request| Input::Resume { request, job, from_scratch: false, steps: Some(steps) });
    }

    // ------------------------------------------------------------------------------------------------------ what must hold

    /// What is wrong with a record that follows another, as far as other jobs and users are concerned.
    pub fn wrong_in_pool(&self, old: &JobRecord, new: &JobRecord) -> Option<String> {
        self.broken_gang(old, new).or_else(|| self.unsaved_work(old, new)).or_else(|| self.cordon_ignored(new))
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
        let is_given = |worker: &&str| {
            self.cordoned.contains(*worker) && !self.had_place.contains(&(new.id.to_string(), worker.to_string()))
        };
        let worker = new.places.iter().flatten().map(|w| w.as_str()).find(is_given)?;
        Some(format!("{worker} is cordoned and is given a place of {}", new.id))
    }
}
