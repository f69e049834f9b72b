//! One simulated cluster: the event loop, and everything that an event may touch.
//!
//! ```text
//!   Network: next event ──> coordinator (the real Machine) ──outputs──> store, curves, streams
//!        ^            └───> worker: the real Session, the real trainer ──bytes──> links, disk
//!        └───────────────── faults, by number of events <──── Truth: every invariant, after every event
//! ```

use std::collections::{BTreeMap, BTreeSet};

use toroid_coordinator::machine::record::{JobRecord, Record};
use toroid_coordinator::machine::{Input, Reply, RequestError, RequestId, StreamId};
use toroid_proto::StepRecord;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::worker_message::Body as FromWorker;
use toroid_session::HeldAs;
use toroid_torus::ids::{Epoch, Step, Term};

use crate::coordinator::Coordinator;
use crate::disk::Disk;
use crate::leaders::{self, Cluster, SeatView};
use crate::network::{AtWorker, Event, MS, Micros, Network, Pid, SECOND};
use crate::pins;
use crate::played::{self, Stage, Thread};
use crate::pool::Wish;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::service::Seat;
use crate::truth::{Reference, Truth};
use crate::worker::{Worker, id_of};

/// A few of the messages that went by, to come again when they are stale.
#[derive(Debug)]
pub struct Kept<T>(Vec<T>);

impl<T> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept(Vec::new())
    }
}

impl<T: Clone> Kept<T> {
    const MAX: u64 = 24;

    pub fn keep(&mut self, message: &T, random: &mut Random) {
        if (self.0.len() as u64) < Kept::<T>::MAX {
            self.0.push(message.clone());
        } else if random.percent(10) {
            let at = random.below(Kept::<T>::MAX) as usize;
            self.0[at] = message.clone();
        }
    }

    pub fn pick(&self, random: &mut Random) -> Option<T> {
        random.pick(&self.0)
    }
}

/// What a newcomer lacks for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unable {
    /// Nobody can dial it, nor it anybody.
    Unreachable,
    /// It has no data folder.
    NoData,
}

/// What a worker may touch besides itself.
#[derive(Default)]
pub struct Env {
    pub net: Network,
    pub disk: Disk,
    pub truth: Truth,
    /// Processes that have not ended.
    pub alive: BTreeSet<Pid>,
    /// Newcomers that cannot fill a place, until everything is mended.
    pub unable: BTreeMap<Pid, Unable>,
    /// All that ever were, and who was stopped, hung or cut off from everyone.
    pub was_unable: BTreeSet<Pid>,
    /// Who was apart from one of the others.
    pub was_apart: BTreeSet<Pid>,
    pub is_coordinator_up: bool,
    /// It runs and is not stopped.
    pub is_coordinator_awake: bool,
    /// Of the coordinator that started last.
    pub term: Term,
    /// Longest computing of a step.
    pub step_time: Micros,
    pub heard: Kept<FromWorker>,
    pub said: Kept<(Term, ToWorker)>,
    /// Where workers look for a coordinator.
    pub addresses: Vec<String>,
    /// Where there are several: all that run.
    pub seats: BTreeMap<Seat, SeatView>,
    /// Workers to which something has happened since they looked.
    pub happened: BTreeSet<Pid>,
    /// Whose trainer waits for whatever happens, by the number of the wait.
    pub listening: BTreeMap<Pid, u64>,
    /// Whose trainer is to do nothing any more at the next point of its work.
    pub hangs: BTreeSet<Pid>,
    story: Option<Vec<String>>,
}

impl Env {
    /// Something has happened to a worker: if its trainer waits for that, it has the turn soon.
    pub fn happens(&mut self, pid: Pid) {
        if !self.alive.contains(&pid) {
            return;
        }
        self.happened.insert(pid);
        if let Some(number) = self.listening.remove(&pid) {
            let after = self.net.random.below(100);
            self.net.at_worker(pid, after, AtWorker::Resume { thread: Thread::Trainer, number });
        }
    }

    /// Whether what a worker sends to a coordinator is answered, sooner or later.
    pub fn answers(&self, pid: Pid, seat: Seat) -> bool {
        let is_awake = match self.addresses.len() {
            1 => self.is_coordinator_awake,
            _ => self.seats.get(&seat).is_some_and(|view| !view.is_stopped),
        };
        is_awake && !self.net.is_cut_off(pid, seat)
    }

    /// Who takes a worker's stream at an address; otherwise who leads, if that is known there.
    pub fn seat_that_leads(&mut self, pid: Pid, address: &str) -> Result<Seat, Option<String>> {
        if self.addresses.len() == 1 {
            let is_there = self.is_coordinator_up && !self.net.is_cut_off(pid, 0);
            return if is_there { Ok(0) } else { Err(None) };
        }
        let seat = leaders::seat_at(address).filter(|seat| !self.net.is_cut_off(pid, *seat));
        match seat.and_then(|seat| Some((seat, self.seats.get(&seat)?))) {
            // The kernel of a stopped one takes connections.
            Some((seat, view)) if view.leads => Ok(seat),
            Some((_, view)) if !view.is_stopped => Err(view.leader.clone().filter(|leader| leader != address)),
            _ => Err(None),
        }
    }

    /// A line of the story, if anyone wants to read it.
    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>10.3} s  {}", self.net.now as f64 / 1e6, what()));
        }
    }
}

pub struct World {
    pub env: Env,
    pub scenario: Scenario,
    /// Those that have not ended.
    pub workers: BTreeMap<Pid, Worker>,
    next_pid: Pid,
    pub coordinator: Option<Coordinator>,
    /// Of how many coordinators that one is which; the others that have led and do not know yet that they do not any more.
    pub seat: Seat,
    pub deposed: BTreeMap<Seat, Coordinator>,
    /// Where there are several.
    pub cluster: Cluster,
    /// What a user has submitted and has no answer to, and the term of who was asked.
    pub submitting: Option<(RequestId, Term)>,
    /// Stream, job and epoch of what workers are told to stop in the outputs at hand.
    pub taken_back: BTreeSet<(StreamId, String, u64)>,
    /// Outputs until the coordinator is killed; `None`: it is not.
    pub crash_in: Option<u64>,
    /// Added to the calendar, which nobody may rely on.
    pub clock_jump_ms: i64,
    /// The coordinator's machine: when it was started, and its number.
    pub machine: (Micros, u64),
    /// When an incident was seen, in which epoch, and the calendar and the machine by then.
    pub incidents: BTreeMap<(String, u64), (Micros, Epoch, i64, u64)>,
    pub store: BTreeMap<String, Record>,
    /// A job's record before its newest epoch.
    pub before: BTreeMap<String, JobRecord>,
    pub curves: BTreeMap<String, Vec<StepRecord>>,
    pub replies: BTreeMap<RequestId, Result<Reply, RequestError>>,
    pub next_request: u64,
    pub num_events: u64,
    pub num_faults: u64,
    pub num_deaths: u64,
    /// What users asked to pin: jobs and steps.
    pub pins: BTreeMap<(String, Step), RequestId>,
    /// Jobs that were stored once and are not any more.
    pub num_removed: usize,
    /// What users have asked for and have no answer to.
    pub wishes: BTreeMap<RequestId, Wish>,
    /// What users were told that it is so, until they ask for something else.
    pub promised: BTreeSet<Wish>,
    /// Jobs that had to stop or to shrink for another, and have not been whole since.
    pub gave_way: BTreeSet<String>,
    /// How often another leader began while there was such a job.
    pub num_taken_over: u64,
    /// By job and worker: the place that it had there last.
    pub had_place: BTreeMap<(String, String), HeldAs>,
    /// While a coordinator is away and nothing else happens, steps go on (T-9).
    pub watched: Option<crate::coordinator::Absence>,
}

/// Why a simulation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All jobs are done, and are the undisturbed run.
    Done,
    /// The coordinator gave a job up, for a reason that it is allowed to have.
    GivenUp(String),
    Violation(String),
}

/// A job that has not ended after so long, or after so many events, never will.
const TIME_MAX: Micros = 3 * 3600 * SECOND;
const EVENTS_MAX: u64 = 400_000;

impl World {
    pub fn new(seed: u64, tells: bool) -> World {
        let mut random = Random::new(seed);
        let mut scenario = Scenario::draw(&mut random);
        scenario.has_pins = pins::has_pins(seed);
        if seed >= crate::POLICIES {
            scenario.optimize_policies();
        }
        World::of(scenario, random, tells)
    }

    /// One job without faults: what its trainers show is recorded.
    pub fn undisturbed(toml: &str, num_workers: usize) -> World {
        let mut world = World::of(Scenario::undisturbed(toml, num_workers), Random::new(0), false);
        world.env.truth.recorded = Some(Reference::default());
        world
    }

    fn of(scenario: Scenario, random: Random, tells: bool) -> World {
        played::set(Some(Stage::new()));
        let env = Env {
            net: Network::new(random),
            step_time: scenario.step_time,
            addresses: (0..scenario.num_coordinators).map(leaders::address).collect(),
            story: tells.then(Vec::new),
            ..Env::default()
        };
        World {
            env,
            scenario,
            workers: BTreeMap::new(),
            next_pid: 0,
            coordinator: None,
            seat: 0,
            deposed: BTreeMap::new(),
            cluster: Cluster::default(),
            submitting: None,
            taken_back: BTreeSet::new(),
            crash_in: None,
            clock_jump_ms: 0,
            machine: (0, 0),
            incidents: BTreeMap::new(),
            store: BTreeMap::new(),
            before: BTreeMap::new(),
            curves: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_request: 0,
            num_events: 0,
            num_faults: 0,
            num_deaths: 0,
            pins: BTreeMap::new(),
            num_removed: 0,
            wishes: BTreeMap::new(),
            promised: BTreeSet::new(),
            gave_way: BTreeSet::new(),
            num_taken_over: 0,
            had_place: BTreeMap::new(),
            watched: None,
        }
    }

    /// Nobody runs any more; the stage is taken down.
    pub fn end(&mut self) {
        for (_, worker) in std::mem::take(&mut self.workers) {
            worker.kill(&mut self.env);
        }
        played::set(None);
    }

    pub fn into_story(self) -> Vec<String> {
        self.env.story.unwrap_or_default()
    }

    /// Incidents by what was done about them.
    pub fn rungs(&self) -> BTreeMap<&'static str, u64> {
        let mut rungs = BTreeMap::new();
        for record in self.store.values() {
            if let Record::Incident(incident) = record {
                *rungs.entry(incident.rung.name()).or_default() += 1;
            }
        }
        rungs
    }

    /// Runs the scenario to its end.
    pub fn run(&mut self) -> End {
        let scenario = self.scenario.clone();
        self.env.tell(|| format!("{scenario:?}"));
        if self.are_several() {
            (0..scenario.num_coordinators).for_each(|seat| self.start_process(seat));
            self.poll_processes();
        } else {
            self.start_coordinator();
            for toml in &scenario.jobs {
                self.submit(toml);
            }
        }
        for n in 0..scenario.num_workers {
            let after = self.env.net.random.below(SECOND);
            let host = scenario.host_of(n);
            self.env.net.push(after, Event::WorkerStarts { host });
        }
        loop {
            self.faults_are_due();
            let Some(event) = self.env.net.pop() else {
                if self.is_calm() {
                    return self.stuck("nothing happens any more");
                }
                self.calm_down();
                continue;
            };
            self.num_events += 1;
            self.event(event);
            self.poll_processes();
            self.submit_the_next();
            self.poll_processes();
            self.check_published();
            self.resume_held();
            self.use_the_pool();
            self.pin_some();
            self.check_pins();
            if let Some(violation) = self.env.truth.violation.take() {
                return End::Violation(violation);
            }
            if let Some(end) = self.ended() {
                return end;
            }
            if self.env.net.now > TIME_MAX || self.num_events > EVENTS_MAX {
                return self.stuck("time is over");
            }
        }
    }

    fn stuck(&self, what: &str) -> End {
        let job = self.records().find(|r| !r.state.is_ended());
        let job = job.map(|r| format!("{} is {} for ever in epoch {}: {}", r.id, r.state.name(), r.epoch, r.reason));
        End::Violation(format!("T-9: {what}; {}", job.unwrap_or_default()))
    }

    /// A user submits one job after the other, each when its time has come, and looks what became of it where nobody answers.
    fn submit_the_next(&mut self) {
        if let Some((request, term)) = self.submitting {
            let answer = self.replies.get(&request);
            if answer.is_none() && term == self.env.term {
                return;
            }
            self.submitting = None;
        }
        if let Some(toml) = self.next_job().filter(|_| self.env.is_coordinator_awake) {
            self.env.tell(|| "a user submits a job".into());
            let request = self.submit(&toml);
            self.submitting = Some((request, self.env.term));
        }
    }

    fn next_job(&self) -> Option<String> {
        let Scenario { jobs, later, .. } = &self.scenario;
        let num = self.num_submitted();
        let is_due = |(at, _): &&(u64, String)| *at <= self.num_events || self.is_calm();
        let next = jobs.get(num).or_else(|| later.get(num - jobs.len()).filter(is_due).map(|(_, toml)| toml));
        next.cloned()
    }

    /// Jobs that were ever stored.
    fn num_submitted(&self) -> usize {
        self.records().count() + self.num_removed
    }

    /// All jobs of the scenario are, or were, stored.
    pub fn are_submitted(&self) -> bool {
        self.num_submitted() >= self.scenario.jobs.len() + self.scenario.later.len()
    }

    /// A user has a job begin from scratch none of whose checkpoints can be read.
    fn resume_held(&mut self) {
        let held = self.records().find(|r| r.hold.is_some()).map(|r| r.id.clone());
        if let Some(job) = held.filter(|_| self.env.is_coordinator_awake) {
            self.env.tell(|| format!("a user has {job} begin from scratch"));
            self.request(|request| Input::Resume { request, job: job.into(), from_scratch: true, steps: None });
        }
    }

    pub fn records(&self) -> impl Iterator<Item = &JobRecord> {
        self.store.values().filter_map(|r| match r {
            Record::Job(job) => Some(&**job),
            Record::Meta(_) | Record::Incident(_) | Record::Validations(_) | Record::Token(_) | Record::Binding(_) => {
                None
            }
        })
    }

    pub fn record(&self, job: &str) -> Option<&JobRecord> {
        match self.store.get(&format!("job/{job}")) {
            Some(Record::Job(record)) => Some(record),
            _ => None,
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::AtCoordinator(seat, what) => self.at_seat(seat, |world| world.at_coordinator(what)),
            Event::AtEtcd(what) => self.at_etcd(what),
            Event::AtWorker { pid, what } => self.at_worker(pid, what),
            Event::CoordinatorStarts { seat } if self.are_several() => self.start_process(seat),
            Event::CoordinatorStarts { .. } => self.start_coordinator(),
            Event::CoordinatorContinues { seat } if self.are_several() => self.process_continues(seat),
            Event::CoordinatorContinues { .. } => self.coordinator_continues(),
            Event::WorkerContinues { pid } => {
                if let Some(worker) = self.workers.get_mut(&pid) {
                    self.env.tell(|| format!("{} goes on", id_of(pid)));
                    worker.continues(&mut self.env);
                }
            }
            Event::WorkerStarts { host } => drop(self.start_worker(host)),
            Event::WorkerEnds { pid } => self.kill_worker(pid),
            Event::LinkCalls { id } => {
                let is_alive = self.env.net.links.called(id).is_some_and(|pid| self.env.alive.contains(&pid));
                let hear = self.env.net.called(id, is_alive);
                hear.into_iter().for_each(|pid| self.env.happens(pid));
            }
            Event::LinkArrives { id, writer } => {
                let hears = self.env.net.arrives(id, writer);
                hears.into_iter().for_each(|pid| self.env.happens(pid));
            }
            Event::LinkEnds { id, writer, how } => {
                let hears = self.env.net.ends(id, writer, how);
                hears.into_iter().for_each(|pid| self.env.happens(pid));
            }
        }
    }

    fn at_worker(&mut self, pid: Pid, what: AtWorker) {
        let Some(worker) = self.workers.get_mut(&pid) else { return };
        let is_turn = matches!(what, AtWorker::Resume { .. });
        worker.handle(what, &mut self.env);
        if let Some(held) = worker.held.as_ref().filter(|_| is_turn) {
            let job = held.job.clone();
            self.check_steps(&job);
        }
    }

    /// T-2: live ranks of an epoch are at most one step apart.
    fn check_steps(&mut self, id: &str) {
        let Some(record) = self.record(id) else { return };
        let epoch = record.epoch;
        let workers = record.places.iter().flatten().filter_map(|w| self.workers.get(&crate::worker::pid_of(w)));
        let trains = |w: &&Worker| w.trains.as_ref().is_some_and(|(job, of)| job == id && *of == epoch);
        let held = workers
            .filter(trains)
            .filter_map(|w| w.held.as_ref())
            .filter(|h| h.job == *id && h.epoch == epoch && h.is_current);
        let steps: Vec<u64> = held.map(|h| h.committed.get()).collect();
        let (low, high) = (steps.iter().min(), steps.iter().max());
        let holds = low.zip(high).is_none_or(|(low, high)| high - low <= 1);
        self.env.truth.check(holds, || format!("T-2: live ranks of {id} have committed the steps {steps:?}"));
    }

    /// T-6: what can be seen is complete. T-10: what is another's stays.
    fn check_published(&mut self) {
        for (root, step) in std::mem::take(&mut self.env.disk.published) {
            let job = self.records().map(|r| r.id.clone()).find(|id| crate::coordinator::checkpoint_root(id) == root);
            let Some(job) = job.filter(|_| self.env.truth.recorded.is_none()) else { continue };
            let complaint = self.env.truth.incomplete(&self.env.disk, &job, &root, step);
            self.env.tell(|| format!("the manifest of step {step} of {job} can be seen"));
            self.env.truth.check(complaint.is_none(), || {
                format!("T-6: the manifest of step {step} of {job} {}", complaint.unwrap_or_default())
            });
        }
        if let Some(spoilt) = self.env.disk.spoilt.take() {
            self.env.truth.check(false, || format!("T-6: {spoilt}"));
        }
        let gone = self.env.disk.missing_stranger().map(String::from);
        self.env.truth.check(gone.is_none(), || format!("T-10: {} is not ours and is gone", gone.unwrap_or_default()));
    }

    // ------------------------------------------------------------------------------------------------------------- workers

    pub fn start_worker(&mut self, host: String) -> Pid {
        let pid = self.next_pid;
        self.next_pid += 1;
        self.env.tell(|| format!("{} starts on {host}", id_of(pid)));
        if !self.is_calm() && self.env.net.random.percent(self.scenario.percent_unable) {
            let unable = if self.env.net.random.percent(50) { Unable::Unreachable } else { Unable::NoData };
            self.env.tell(|| format!("{} is {unable:?}", id_of(pid)));
            self.env.unable.insert(pid, unable);
            self.env.was_unable.insert(pid);
        }
        self.env.alive.insert(pid);
        let worker = Worker::new(pid, host, &mut self.env);
        self.workers.insert(pid, worker);
        pid
    }

    /// SIGKILL: the kernel closes its connections.
    pub fn kill_worker(&mut self, pid: Pid) {
        let Some(worker) = self.workers.remove(&pid) else { return };
        self.num_deaths += 1;
        let doing = worker.shared.operation();
        self.env.tell(|| format!("{} is killed in {doing}", id_of(pid)));
        self.env.alive.remove(&pid);
        self.env.disk.full.remove(&pid);
        self.env.net.break_links_of(pid);
        if let Some(stream) = worker.stream {
            self.env.net.close_at_worker(stream, "closed its stream (reset)");
        }
        let host = worker.host.clone();
        worker.kill(&mut self.env);
        let restarts = self.env.net.random.percent(self.scenario.percent_restarts);
        if restarts {
            let after = self.env.net.random.between(50 * MS, 3 * SECOND);
            self.env.net.push(after, Event::WorkerStarts { host });
        }
    }

    // ------------------------------------------------------------------------------------------------------------- the end

    /// How it ended, once all jobs have.
    fn ended(&mut self) -> Option<End> {
        if !self.is_calm() || !self.are_submitted() {
            return None;
        }
        if !self.records().all(|r| r.state.is_ended()) {
            return None;
        }
        let complaint = self.records().find_map(|r| self.is_not_the_undisturbed_run(r));
        if let Some(complaint) = complaint {
            return Some(End::Violation(complaint));
        }
        let given_up = self.records().find(|r| r.state.name() == "failed").map(|r| r.reason.clone());
        Some(match given_up {
            None => End::Done,
            Some(reason) if crate::scenario::may_give_up(&reason) => End::GivenUp(reason),
            Some(reason) => End::Violation(format!("a job failed that should have gone on: {reason}")),
        })
    }

    /// T-4 of the whole: every step is in the curve once, with its loss or told to be missing, and the last checkpoint is the last step's.
    pub fn is_not_the_undisturbed_run(&self, record: &JobRecord) -> Option<String> {
        if record.state.name() != "done" {
            return None;
        }
        let id = record.id.as_str();
        let steps: Vec<u64> = self.curves[id].iter().map(|r| r.step).collect();
        if steps != (1..=record.spec.steps).collect::<Vec<_>>() {
            return Some(format!("T-4: {id} is done and its curve has the steps {steps:?}"));
        }
        let num_missing = self.curves[id].iter().filter(|r| r.missing).count();
        let is_told = record.reason.contains(&format!("{num_missing} have no figures"))
            || num_missing == 1 && record.reason.contains("1 has no figures");
        if is_told != (num_missing > 0) {
            let reason = &record.reason;
            return Some(format!("T-12: {id} is done, {num_missing} steps of its curve have no figures: {reason}"));
        }
        let root = crate::coordinator::checkpoint_root(id);
        let complaint = self.env.truth.incomplete(&self.env.disk, id, &root, record.spec.steps);
        complaint.map(|what| format!("T-6: {id} is done and the checkpoint of its last step {what}"))
    }
}
