//! One job on a local cluster, and the faults that are done to it: one worker at a time, or several at the same moment.
//!
//! ```text
//!   Settling ── full strength, a commit is seen ──> Armed ── within a step's time, drawn ──> fault ───> Recovering
//!      ^                                                                                                  │
//!      └────────── incident over, a step committed beyond it (who was set aside is let back)  ─────────┘
//! ```
//!
//! Full strength: every place has a worker, no incident lasts, and a spare waits; children that ended are started again as
//! spares. The job keeps all its replicas, and waits for a worker where none is there. Workers that kill themselves at a phase take the way from Settling to Recovering by themselves.
//! Deliberately absent: what the faults cost is judged in [`super::report`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use toroid_proto as proto;
use toroid_proto::json::state_word;
use toroid_torus::geometry::Shape;
use toroid_torus::holders::backup_of;

use super::plan::{PhasePlan, Random, victims};
use super::report::Fault;
use crate::cluster::children::{COORDINATOR, Ended, Role, Settings};
use crate::cluster::network::Cut;
use crate::cluster::{Cluster, PATIENCE, Signals};
use crate::local::job::LocalJob;
use crate::progress::Progress;
use crate::watch::Follow;

/// A job that has made no step for so long will make none.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// A step that took longer was no usual one.
const STEP_S_MAX: f64 = 60.0;

/// What is done to a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// SIGKILL
    Kill,
    /// SIGSTOP, and SIGCONT once the job goes on without the worker
    Stop,
    /// One or the other, drawn
    Both,
    /// Its network is cut, silently and in both directions, and healed once the job goes on without the worker; needs root
    Cut,
    /// Only its way to the coordinator is cut; needs root
    CutControl,
    /// Only its way to the worker that keeps the copy of its shard is cut, and one of the two has to go; needs root
    CutLink,
}

impl Kind {
    pub fn is_cut(self) -> bool {
        matches!(self, Kind::Cut | Kind::CutControl | Kind::CutLink)
    }
}

/// How many faults, of whom, and how fast after each other.
#[derive(Debug, Clone)]
pub struct Plan {
    pub num_faults: usize,
    pub seed: u64,
    pub kind: Kind,
    /// Always the worker of this place.
    pub rank: Option<usize>,
    /// Workers that fall at the same moment, as far as one holder of each shard is left.
    pub at_once: usize,
    /// The coordinator is killed after each fault, while the job recovers.
    pub kills_coordinator: bool,
    pub min_pause: Duration,
    pub min_steps: u64,
    /// The workers kill themselves as this says.
    pub phases: Option<PhasePlan>,
    pub spares: usize,
    pub end: End,
}

/// When a run is over. Before its last step the job is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    LastStep,
    /// The last fault is recovered from: nothing else is of interest.
    LastFault,
    /// The first checkpoint beyond that, to be compared with another run.
    CheckpointAfterFaults,
    /// The checkpoint of this step.
    Checkpoint(u64),
}

impl Plan {
    /// The undisturbed run.
    pub fn nothing() -> Plan {
        Plan {
            num_faults: 0,
            seed: 0,
            kind: Kind::Kill,
            rank: None,
            at_once: 1,
            kills_coordinator: false,
            min_pause: Duration::ZERO,
            min_steps: 0,
            phases: None,
            spares: 0,
            end: End::LastStep,
        }
    }

    fn words(&self) -> String {
        match (self.num_faults, &self.phases) {
            (0, _) => "nothing is done to it".into(),
            (n, None) => format!("{n} faults, victims of seed {}", self.seed),
            (n, Some(_)) => format!("{n} faults at a phase of a step"),
        }
    }
}

/// A run to its end.
pub struct Outcome {
    /// With its curve.
    pub job: proto::Job,
    pub faults: Vec<Fault>,
    /// Deaths of the coordinator, which are no faults of the job.
    pub coordinator_kills: usize,
    /// Workers that the coordinator put aside for being lost too often, and that were taken back for the next fault.
    pub readmitted: usize,
    /// The step whose checkpoint ended the run; `None`: the last step did.
    pub end_step: Option<u64>,
    pub problems: Vec<String>,
}

/// Trains `job` and does to it what `plan` says; `None` where the user interrupted it.
pub async fn run(settings: &Settings, job: &LocalJob, plan: Plan, signals: &mut Signals) -> Result<Option<Outcome>> {
    let mut run = Run {
        cluster: Cluster::new(settings, Progress::new(false))?,
        random: Random::new(plan.seed),
        plan,
        shape: job.spec.shape,
        world: job.spec.shape.world(),
        num_started: 0,
        state: State::Settling,
        job: proto::Job::default(),
        last_step_at: Instant::now(),
        last_fault_at: None,
        arrivals: Vec::new(),
        open: Vec::new(),
        doomed: BTreeMap::new(),
        aside: Vec::new(),
        coordinator_due: None,
        recovered_step: 0,
        outcome: Outcome {
            job: proto::Job::default(),
            faults: Vec::new(),
            coordinator_kills: 0,
            readmitted: 0,
            end_step: None,
            problems: Vec::new(),
        },
    };
    let is_complete = run.train(job, signals).await;
    run.cluster.progress.finish();
    run.cluster.stop(signals.next()).await;
    Ok(is_complete?.then_some(run.outcome))
}

#[derive(Debug, Clone, Copy)]
enum State {
    Settling,
    /// The next fault is due at this moment.
    Armed(Instant),
    Recovering,
}

/// A fault that is not recovered from yet.
struct Open {
    /// In the list of all faults.
    index: usize,
    at: Instant,
    /// Incidents with a higher number are of this fault.
    last_incident: u64,
}

struct Run {
    cluster: Cluster,
    plan: Plan,
    random: Random,
    shape: Shape,
    world: usize,
    /// Workers, since the beginning.
    num_started: usize,
    state: State,
    /// As last seen, without curve.
    job: proto::Job,
    last_step_at: Instant,
    last_fault_at: Option<Instant>,
    /// Steps that were seen since the oldest fault that is open.
    arrivals: Vec<(u64, Instant)>,
    open: Vec<Open>,
    /// Workers whose end is no surprise: killed already, or told where to kill themselves.
    doomed: BTreeMap<String, Option<String>>,
    /// Stopped or cut off.
    aside: Vec<String>,
    /// When the coordinator is to be killed.
    coordinator_due: Option<Instant>,
    /// That was committed when the last fault was recovered from.
    recovered_step: u64,
    outcome: Outcome,
}

impl Run {
    /// False where the user interrupted it.
    async fn train(&mut self, job: &LocalJob, signals: &mut Signals) -> Result<bool> {
        let started = tokio::select! {
            started = self.start(job) => started,
            () = signals.next() => return Ok(false),
        };
        let id = started.context("start a local cluster")?;
        let mut follow = Follow::new(self.cluster.access(), &id, PATIENCE);
        loop {
            let due = self.due();
            let coordinator_due = self.coordinator_due.unwrap_or(due);
            tokio::select! {
                update = follow.next() => match update? {
                    None => break,
                    Some(update) => self.update(update).await?,
                },
                ended = self.cluster.children.ended() => self.ended(ended).await?,
                () = tokio::time::sleep_until(due.into()) => self.fire().await?,
                () = tokio::time::sleep_until(coordinator_due.into()), if self.coordinator_due.is_some() => {
                    self.kill_coordinator().await?;
                }
                () = signals.next() => {
                    self.cluster.interrupt(&id).await;
                    return Ok(false);
                }
            }
        }
        self.outcome.job = self.cluster.client().await?.job(&id, true).await?;
        self.judge();
        Ok(true)
    }

    /// The workers of the places; spares come when these have their places, so that it is known who has one.
    async fn start(&mut self, job: &LocalJob) -> Result<String> {
        // With fewer replicas the steps would differ by rounding from the undisturbed ones.
        let mut spec = job.spec.clone();
        spec.fault_tolerance.min_dp = spec.shape.dp();
        let id = self.cluster.open().await?.submit(spec.to_toml()).await?;
        for _ in 0..self.world {
            self.start_worker()?;
        }
        let (url, shape) = (self.cluster.url(), job.spec.shape);
        self.cluster.progress.line(&format!("job {id} on {shape}, coordinator at {url}: {}", self.plan.words()));
        Ok(id)
    }

    fn start_worker(&mut self) -> Result<()> {
        let dies_at = self.next_dies_at();
        let worker = self.cluster.start_worker(dies_at.as_deref())?;
        self.started(worker, dies_at);
        Ok(())
    }

    fn next_dies_at(&self) -> Option<String> {
        self.plan.phases.as_ref().and_then(|plan| plan.of_worker(self.num_started))
    }

    fn started(&mut self, worker: String, dies_at: Option<String>) {
        self.num_started += 1;
        if dies_at.is_some() {
            self.doomed.insert(worker, dies_at);
        }
    }

    fn due(&self) -> Instant {
        match self.state {
            State::Armed(at) => at,
            State::Settling | State::Recovering => self.last_step_at + STALL_LIMIT,
        }
    }

    async fn update(&mut self, update: proto::JobUpdate) -> Result<()> {
        self.cluster.progress.update(&update);
        let now = Instant::now();
        let has_steps = !update.steps.is_empty();
        if has_steps {
            self.last_step_at = now;
            self.cluster.advanced();
        }
        if !self.open.is_empty() {
            self.arrivals.extend(update.steps.iter().map(|record| (record.step, now)));
        }
        let Some(job) = update.job else { return Ok(()) };
        self.job = job;
        for event in update.events.iter().filter(|event| event.kind == "worker.aside") {
            self.readmit(&event.worker_id).await;
        }
        if self.job.state() != proto::JobState::Queued {
            while self.num_started < self.world + self.plan.spares {
                self.start_worker()?;
            }
        }
        match self.state {
            State::Recovering => self.recover().await?,
            State::Settling if has_steps && self.is_at_full_strength() => self.arm(now).await?,
            State::Settling | State::Armed(_) => {}
        }
        self.end_at_checkpoint().await
    }

    /// Whoever fails too often is put aside, as it should be; here it is this run that makes it fail, and the run needs it.
    async fn readmit(&mut self, worker: &str) {
        let readmitted = match self.cluster.client().await {
            Ok(mut client) => client.readmit(worker).await,
            Err(error) => Err(error),
        };
        // A coordinator that was killed meanwhile has forgotten it: then nobody is aside.
        self.outcome.readmitted += usize::from(readmitted.is_ok());
    }

    /// Ends a run that is to end with a checkpoint, once that is there.
    async fn end_at_checkpoint(&mut self) -> Result<()> {
        let is_over = matches!(self.state, State::Settling)
            && self.coordinator_due.is_none()
            && self.outcome.faults.len() >= self.plan.num_faults;
        let recovered = self.recovered_step;
        let mut steps = self.job.checkpoints.iter().map(|checkpoint| checkpoint.step);
        let found = match self.plan.end {
            End::CheckpointAfterFaults if is_over => steps.find(|step| *step > recovered),
            End::Checkpoint(wanted) => steps.find(|step| *step == wanted),
            End::CheckpointAfterFaults | End::LastStep | End::LastFault => None,
        };
        if let Some(step) = found {
            // The last step is an end like any other, and there is nothing to cancel.
            if step < self.job.total_steps {
                self.cluster.client().await?.cancel(&self.job.id).await?;
                self.outcome.end_step = Some(step);
            }
            self.plan.end = End::LastStep;
        }
        Ok(())
    }

    fn is_at_full_strength(&self) -> bool {
        let job = &self.job;
        job.state() == proto::JobState::Running
            && job.places_alive as usize == self.world
            && job.incidents.iter().all(|incident| incident.resolved)
            && job.spares as usize >= self.plan.spares.min(self.plan.at_once)
    }

    /// Draws the moment of the next fault, within the step that has just begun; ends a run that has seen all its faults.
    async fn arm(&mut self, now: Instant) -> Result<()> {
        if self.outcome.faults.len() >= self.plan.num_faults {
            if self.plan.end == End::LastFault {
                self.plan.end = End::LastStep;
                self.cluster.client().await?.cancel(&self.job.id).await?;
            }
            return Ok(());
        }
        let last = self.outcome.faults.last();
        let is_far_enough = last.is_none_or(|fault| self.job.committed_step >= fault.step + self.plan.min_steps);
        let is_late_enough = self.last_fault_at.is_none_or(|at| now >= at + self.plan.min_pause);
        if self.plan.phases.is_none() && is_far_enough && is_late_enough {
            let step_s = self.job.last_step.as_ref().map_or(0.0, |record| record.step_s);
            self.state =
                State::Armed(now + Duration::from_secs_f64(self.random.share() * step_s.clamp(0.0, STEP_S_MAX)));
        }
        Ok(())
    }

    /// The moment of the next fault has come, or that at which waiting has no sense any more.
    async fn fire(&mut self) -> Result<()> {
        if !matches!(self.state, State::Armed(_)) {
            let (limit_s, state) = (STALL_LIMIT.as_secs(), state_word(self.job.state()));
            bail!("{} made no step for {limit_s} s; it is {state}: {}", self.job.id, self.job.reason);
        }
        self.state = State::Settling;
        if !self.is_at_full_strength() {
            return Ok(());
        }
        let num = self.plan.at_once.min(self.plan.num_faults - self.outcome.faults.len());
        for rank in victims(&mut self.random, &self.shape, self.plan.rank, num) {
            self.strike(rank).await?;
        }
        if self.plan.kills_coordinator {
            let step_s = self.job.last_step.as_ref().map_or(0.0, |record| record.step_s);
            let after = Duration::from_secs_f64(self.random.share() * step_s.clamp(0.0, STEP_S_MAX));
            self.coordinator_due = Some(Instant::now() + after);
        }
        Ok(())
    }

    async fn strike(&mut self, rank: usize) -> Result<()> {
        let place = self.job.places.get(rank).with_context(|| format!("find the place of rank {rank}"))?;
        let worker = place.worker_id.clone();
        let how = match self.plan.kind {
            Kind::Both if self.random.below(2) == 0 => Kind::Kill,
            Kind::Both => Kind::Stop,
            how => how,
        };
        let (at, how) = match how {
            Kind::Kill | Kind::Both => (self.cluster.children.signal(&worker, Signal::KILL).await?, "kill"),
            Kind::Stop => (self.cluster.children.signal(&worker, Signal::STOP).await?, "stop"),
            Kind::Cut => (self.cluster.children.cut(&worker, Cut::All)?, "cut"),
            Kind::CutControl => (self.cluster.children.cut(&worker, Cut::Coordinator)?, "cut-control"),
            Kind::CutLink => {
                let backup = backup_of(&self.shape, rank).context("find a second worker: the job has one place")?;
                let other = self.job.places[backup].worker_id.clone();
                (self.cluster.children.cut(&worker, Cut::Worker(other))?, "cut-link")
            }
        };
        match how {
            "kill" => drop(self.doomed.insert(worker.clone(), None)),
            _ => self.aside.push(worker.clone()),
        }
        self.fault(worker, how.into(), at);
        Ok(())
    }

    async fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator_due = None;
        self.cluster.children.signal(COORDINATOR, Signal::KILL).await?;
        self.doomed.insert(COORDINATOR.into(), None);
        self.outcome.coordinator_kills += 1;
        Ok(())
    }

    fn fault(&mut self, worker: String, how: String, at: Instant) {
        let place = self.job.places.iter().find(|place| place.worker_id == worker);
        let (rank, step) = (place.map(|place| place.rank), self.job.committed_step);
        let index = self.outcome.faults.len();
        let rank_words = rank.map_or_else(|| "a spare".into(), |rank| format!("rank {rank}"));
        self.cluster.progress.line(&format!(
            "fault {} of {}: {how} of {worker} ({rank_words}) at step {step}",
            index + 1,
            self.plan.num_faults
        ));
        self.outcome.faults.push(Fault { worker, rank, how, step, recovery_s: None });
        let last_incident = self.job.incidents.last().map_or(0, |incident| incident.number);
        self.open.push(Open { index, at, last_incident });
        self.last_fault_at = Some(at);
        self.state = State::Recovering;
    }

    /// All incidents since the fault are over, and a step beyond them was seen: that ends the recovery.
    async fn recover(&mut self) -> Result<()> {
        let known = self.open.iter().map(|open| open.last_incident).min().unwrap_or(0);
        let new: Vec<_> = self.job.incidents.iter().filter(|incident| incident.number > known).collect();
        if new.is_empty() || new.iter().any(|incident| !incident.resolved) {
            return Ok(());
        }
        let resumed_step = new.iter().map(|incident| incident.resumed_step).max().unwrap_or(0);
        let beyond = |open: &Open| self.arrivals.iter().find(|(step, at)| *step > resumed_step && *at >= open.at);
        let ends: Option<Vec<Instant>> = self.open.iter().map(|open| Some(beyond(open)?.1)).collect();
        let Some(ends) = ends else { return Ok(()) };
        for (open, end) in self.open.drain(..).zip(ends) {
            self.outcome.faults[open.index].recovery_s = Some((end - open.at).as_secs_f64());
        }
        self.arrivals.clear();
        self.state = State::Settling;
        self.recovered_step = self.job.committed_step;
        for worker in std::mem::take(&mut self.aside) {
            if self.plan.kind.is_cut() {
                self.cluster.children.heal()?;
            } else {
                self.cluster.children.signal(&worker, Signal::CONT).await?;
            }
        }
        Ok(())
    }

    async fn ended(&mut self, ended: Ended) -> Result<()> {
        let now = Instant::now();
        match self.doomed.remove(&ended.name) {
            // Its fault was noted with the signal.
            Some(None) => {}
            Some(Some(at)) => self.fault(ended.name.clone(), at, now),
            None => {
                let problem = format!("{} ended without having been killed ({})", ended.name, ended.status);
                self.outcome.problems.push(problem);
            }
        }
        let is_worker = ended.role == Role::Worker;
        let dies_at = if is_worker { self.next_dies_at() } else { None };
        if let Some(worker) = self.cluster.replace(ended, dies_at.as_deref()).await? {
            self.started(worker, dies_at);
        }
        Ok(())
    }

    /// What can be said of the run as a whole.
    fn judge(&mut self) {
        let (num_faults, num_wanted) = (self.outcome.faults.len(), self.plan.num_faults);
        let (job, problems) = (&self.outcome.job, &mut self.outcome.problems);
        // Only this run itself cancels it.
        if !matches!(job.state(), proto::JobState::Done | proto::JobState::Cancelled) {
            problems.push(format!("{} is {}: {}", job.id, state_word(job.state()), job.reason));
        }
        if num_faults < num_wanted {
            problems.push(format!("the job ended after {num_faults} of {num_wanted} faults: give it more --steps"));
        }
    }
}
