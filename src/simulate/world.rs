//! A run of Toroid: the coordinator's real machine, and workers that are a model by events, on virtual time.
//!
//! ```text
//!   failures, repairs, operator ──> workers ──> messages ──> Machine (real) ──> Assign, Start, CheckpointAt, ... ──> workers
//!                                      └── steps, pulling, reading and writing take the time that `Model` says
//! ```
//!
//! The machine decides all that it decides in a coordinator: who is lost, which epoch follows, who takes which place, from which step all go on or
//! whether a checkpoint is needed, when one is made. What is left out is what changes none of that:
//!
//! - **Heartbeats** while all is well. Before the machine looks for who is silent, everybody who lives says that it is there; where that was long ago,
//!   the machine takes itself for having been stopped, and forgives all, as it does in a coordinator. While anybody is silent or hangs, or a place is
//!   empty, all who live are heard at each of the machine's deadlines.
//! - **Checkpoints** that a later one replaces before anything fails. They are counted, and so is the time that they take from steps; only the last of
//!   a quiet time is named, written and published.
//! - **Messages on their way**, the sessions of workers, and where others are in what they are told: what all places say of an epoch arrives at a time.
//!
//! Of a worker's computing only its time is known. A failure breaks the step in which it comes; all survivors hold the step before.

mod failing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_machine::clock::Boot;
use toroid_machine::{
    Config, Input, Limits, Machine, Now, Output, Policy, Reply, RequestId, Retention, StreamId, Submission,
};
use toroid_proto as proto;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::Term;
use toroid_torus::owner::OwnerId;

use super::account::{Account, Cause};
use super::fleet::{Failure, failures};
use super::model::Model;
use super::words::{self, Place};

/// A job with an empty place waits for its replacement for less than this.
const WATCHED: Duration = Duration::from_secs(60);
/// Events of a job that makes no step at all, in a row: a fault of this simulation.
const MAX_IDLE: u64 = 1_000_000;

/// What comes at its time.
#[derive(Debug, Clone)]
enum Event {
    Fails(usize),
    /// The coordinator sees that a stream has ended.
    Closed {
        worker: usize,
        incarnation: u32,
    },
    /// All places have reported what they hold.
    Reported {
        epoch: u64,
    },
    /// All places hold the state, and make the next step.
    Healed {
        epoch: u64,
    },
    /// All shards of a step are durable.
    Written {
        epoch: u64,
        step: u64,
    },
    Repaired {
        workers: Vec<(usize, u32)>,
    },
    /// A slow worker and its peers say how long they compute.
    Compared {
        worker: usize,
        incarnation: u32,
    },
    /// The operator acts on a slow worker.
    Drained {
        worker: usize,
        incarnation: u32,
    },
    /// The operator has a job go on that has ended.
    Resumed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Up,
    /// Says that it is there, and does nothing else.
    Hangs,
    Down,
}

#[derive(Debug, Clone)]
struct Worker {
    health: Health,
    incarnation: u32,
    stream: Option<StreamId>,
    place: Option<Place>,
    /// Its shards at the step that is committed, as a rank of a shape has them.
    held: Option<(Shape, usize)>,
}

/// The newest epoch.
struct Epoch {
    number: u64,
    shape: Shape,
    heals: bool,
    /// By rank.
    members: Vec<usize>,
    pulls: bool,
    is_started: bool,
    /// Steps that are to be saved.
    named: BTreeSet<u64>,
}

/// The step that is being made.
#[derive(Debug, Clone, Copy)]
struct Making {
    began: Duration,
    /// The state is copied aside first.
    copies: Duration,
    ends: Duration,
}

/// Checkpoints that are not made in a quiet time, since a later one replaces them.
#[derive(Debug, Clone, Copy)]
struct Skipped {
    num_left: u32,
    next_at: Duration,
    period: Duration,
    until: Duration,
}

pub struct World {
    model: Model,
    machine: Machine,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    num_queued: u64,
    failures: Vec<Failure>,
    workers: Vec<Worker>,
    /// By stream.
    streams: Vec<usize>,
    answers: Vec<(usize, FromWorker)>,
    job: String,
    epoch: Epoch,
    committed: u64,
    making: Option<Making>,
    /// What the time goes to where no step is made, and since when.
    idle: Option<(Cause, Duration)>,
    /// The first step began.
    origin: Option<Duration>,
    /// Silent workers that the machine still counts on.
    unnoticed: BTreeSet<usize>,
    /// By worker: how many times as long it computes, and the step since when.
    slow: BTreeMap<usize, (f64, u64)>,
    /// The wait for the next checkpoint began.
    armed_at: Duration,
    skipped: Option<Skipped>,
    num_requests: u64,
    reply: Option<Result<Reply, String>>,
    account: Account,
}

fn config(model: &Model) -> Config {
    let seconds = Duration::from_secs_f64;
    let limits = Limits {
        heartbeat_interval: seconds(model.settings.heartbeat_interval_s),
        failure_timeout: seconds(model.settings.failure_timeout_s),
    };
    Config {
        jobs_dir: "/simulated".into(),
        limits,
        term: Term::new(1),
        retention: Retention::default(),
        policy: Policy::default(),
        join_token: None,
    }
}

/// Runs it to its end, with failures that its seed draws.
pub fn run(model: Model) -> Result<Account> {
    let s = &model.scenario;
    let num_workers = model.num_workers();
    // Spares fail as often as places do.
    let every = Duration::from_secs_f64(s.failure_every_s * s.places as f64 / num_workers as f64);
    let drawn = failures(num_workers, every, &model.settings.mix, model.end(), s.seed);
    run_with(model, drawn)
}

/// Runs it to its end, with these failures.
pub fn run_with(model: Model, failures: Vec<Failure>) -> Result<Account> {
    let mut world = World::new(model, failures)?;
    world.begin()?;
    world.run()?;
    Ok(world.account)
}

impl World {
    fn new(model: Model, failures: Vec<Failure>) -> Result<World> {
        let now = Now { monotonic: Duration::ZERO, unix_ms: 1, boot: Boot(0) };
        let restored = Machine::restore(config(&model), Vec::new(), BTreeMap::new(), [1; 32], now);
        let (machine, _) = restored.context("start the coordinator's machine")?;
        let machine = machine.without_peers();
        let fresh = Worker { health: Health::Up, incarnation: 1, stream: None, place: None, held: None };
        let shape = model.spec.shape;
        let epoch = Epoch {
            number: 0,
            shape,
            heals: false,
            members: Vec::new(),
            pulls: false,
            is_started: false,
            named: BTreeSet::new(),
        };
        Ok(World {
            machine,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            num_queued: 0,
            failures,
            workers: vec![fresh; model.num_workers()],
            streams: Vec::new(),
            answers: Vec::new(),
            job: String::new(),
            epoch,
            committed: 0,
            making: None,
            idle: None,
            origin: None,
            unnoticed: BTreeSet::new(),
            slow: BTreeMap::new(),
            armed_at: Duration::ZERO,
            skipped: None,
            num_requests: 0,
            reply: None,
            account: Account::default(),
            model,
        })
    }

    fn begin(&mut self) -> Result<()> {
        for worker in 0..self.workers.len() {
            self.registers(worker);
        }
        self.settle()?;
        let submission = Submission { toml: self.model.toml.clone(), user: String::new(), priority: None };
        let owner = OwnerId::from_random([1; 16]);
        match self.request(|request| Input::Submit { request, submission, owner })? {
            Ok(Reply::Submitted { job }) => self.job = job.to_string(),
            other => bail!("the machine answered {other:?} to a job that was submitted"),
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let mut num_idle = 0;
        loop {
            let step = self.making.map(|making| making.ends);
            let event = self.queue.keys().next().map(|(at, _)| *at);
            let tick = self.next_tick();
            let Some(next) = [step, event, tick].into_iter().flatten().min() else {
                bail!("at {:?} nothing is waited for, and the job is not over", self.now);
            };
            let end = self.origin.map(|origin| origin + self.model.end());
            if let Some(end) = end.filter(|end| next >= *end) {
                self.now = end;
                self.spend_idle();
                return Ok(());
            }
            self.now = next.max(self.now);
            num_idle += 1;
            if event == Some(next) {
                let Some((_, event)) = self.queue.pop_first() else { continue };
                self.happen(event)?;
            } else if step == Some(next) {
                num_idle = 0;
                self.commit()?;
            } else {
                self.tick()?;
            }
            ensure!(num_idle < MAX_IDLE, "at {:?} the job has made no step for {MAX_IDLE} events", self.now);
        }
    }

    // ----------------------------------------------------------------------------------------------------------------- time

    fn at(&self) -> Now {
        Now { monotonic: self.now, unix_ms: 1 + self.now.as_millis() as i64, boot: Boot(0) }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.queue.insert((self.now + delay, self.num_queued), event);
        self.num_queued += 1;
    }

    /// All that the machine waits for counts, silence too.
    fn is_watched(&self) -> bool {
        let is_quiet = self.making.is_some() && self.unnoticed.is_empty();
        let is_near = |at: Duration| at < self.now + WATCHED;
        !is_quiet && (!self.unnoticed.is_empty() || self.machine.poll_deadlines().is_some_and(is_near))
    }

    fn next_tick(&mut self) -> Option<Duration> {
        if self.is_watched() {
            return self.machine.poll_timeout();
        }
        let due = self.machine.poll_deadlines()?;
        if self.making.is_some() {
            self.skip_checkpoints(due);
        }
        Some(self.skipped.map_or(due, |skipped| due.max(skipped.until)))
    }

    /// Where nothing else comes for several intervals, only the last checkpoint before that has to be made.
    fn skip_checkpoints(&mut self, due: Duration) {
        let interval = Duration::from_secs_f64(self.model.scenario.interval_s);
        let is_interval = due == self.armed_at + interval && self.epoch.shape == self.model.spec.shape;
        if self.skipped.is_some() || !is_interval {
            return;
        }
        let of_end = self.origin.map(|origin| origin + self.model.end());
        let Some(next) = self.queue.keys().next().map(|(at, _)| *at).into_iter().chain(of_end).min() else { return };
        // A step is named two ahead of the newest, and begins in the middle of one on average.
        let period = interval + self.model.step * 5 / 2 + self.model.copy_aside() + self.model.write();
        let num = (next.saturating_sub(due).as_nanos() / period.as_nanos()) as u32;
        let num_left = num.saturating_sub(1);
        if num_left > 0 {
            self.skipped = Some(Skipped { num_left, next_at: due, period, until: due + period * num_left });
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.skipped.take_if(|skipped| self.now >= skipped.until);
        let limits = self.machine.limits();
        let looks = self.machine.poll_timeout().is_some_and(|at| at <= self.now);
        let forgives = self.machine.poll_timeout().is_some_and(|at| self.now > at + limits.late());
        if looks && (self.is_watched() || !forgives) {
            self.hear_all();
        }
        self.machine.take(Input::Tick, self.at());
        self.settle()
    }

    /// Something is about to happen that the machine looks at with what it was told last.
    fn freshen(&mut self) -> Result<()> {
        match self.machine.poll_timeout().is_some_and(|at| at <= self.now) {
            true => self.tick(),
            false => Ok(()),
        }
    }

    /// Everybody who lives says that it is there.
    fn hear_all(&mut self) {
        let hung = self.hung();
        for worker in 0..self.workers.len() {
            if self.workers[worker].health != Health::Down {
                self.hear(worker, hung);
            }
        }
    }

    /// The first rank that hangs.
    fn hung(&self) -> Option<usize> {
        let hangs = |w: &usize| self.workers.get(*w).is_some_and(|worker| worker.health == Health::Hangs);
        self.epoch.members.iter().position(hangs)
    }

    fn hear(&mut self, worker: usize, hung: Option<usize>) {
        let body = FromWorker::Heartbeat(self.heartbeat(worker, hung));
        self.says(worker, body);
    }

    fn heartbeat(&self, worker: usize, hung: Option<usize>) -> proto::Heartbeat {
        let Some(Place { epoch, rank }) = self.workers[worker].place else { return proto::Heartbeat::default() };
        // Whoever hangs was in the middle of a step, and the others wait for it.
        let (operation, waits_for, progress) = match hung {
            Some(at) if at == rank => ("forward", Vec::new(), 0),
            Some(at) if self.epoch.is_started => ("reduce-scatter", vec![at as u32], 0),
            _ if self.epoch.is_started => ("forward", Vec::new(), self.committed),
            _ => ("prepare", Vec::new(), self.now.as_millis() as u64),
        };
        let committed_step = if self.workers[worker].held.is_some() { self.committed } else { 0 };
        let operation = operation.into();
        proto::Heartbeat {
            job_id: self.job.clone(),
            epoch,
            committed_step,
            operation,
            waits_for,
            progress,
            ..Default::default()
        }
    }

    // ------------------------------------------------------------------------------------------------------------- messages

    fn says(&mut self, worker: usize, body: FromWorker) {
        if let Some(stream) = self.workers[worker].stream {
            self.machine.take(Input::Message { stream, body: Box::new(body) }, self.at());
        }
    }

    fn registers(&mut self, worker: usize) {
        let stream = StreamId(self.streams.len() as u64);
        self.streams.push(worker);
        self.workers[worker].stream = Some(stream);
        let body = words::register(worker, self.workers[worker].incarnation);
        self.says(worker, body);
    }

    fn request(&mut self, input: impl FnOnce(RequestId) -> Input) -> Result<Result<Reply, String>> {
        let request = RequestId(self.num_requests);
        self.num_requests += 1;
        self.machine.take(input(request), self.at());
        self.settle()?;
        self.reply.take().context("the machine did not answer a request")
    }

    /// What the machine decides from all that it was told, and what is answered at once.
    fn settle(&mut self) -> Result<()> {
        loop {
            for output in self.machine.settle(self.at()) {
                self.execute(output)?;
            }
            if self.answers.is_empty() {
                return Ok(());
            }
            for (worker, body) in std::mem::take(&mut self.answers) {
                self.says(worker, body);
            }
        }
    }

    fn execute(&mut self, output: Output) -> Result<()> {
        match output {
            Output::Send { stream, message } => {
                let worker = self.streams[stream.0 as usize];
                match message.body {
                    Some(body) if self.workers[worker].stream == Some(stream) => self.told(worker, body)?,
                    _ => {}
                }
            }
            Output::Close { stream, .. } => {
                let worker = self.streams[stream.0 as usize];
                self.workers[worker].stream.take_if(|s| *s == stream);
                self.unnoticed.remove(&worker);
            }
            Output::Reply { reply, .. } => self.reply = Some(reply.map_err(|error| error.to_string())),
            Output::Event { event, .. } => self.noted(&event.kind, event.worker.as_str()),
            Output::LeadAnew { reason, .. } => {
                bail!("the store knows less than the workers, and nothing here takes from it: {reason}")
            }
            Output::Persist(_)
            | Output::CreateFolder { .. }
            | Output::AppendCurve { .. }
            | Output::AppendGap { .. }
            | Output::CutCurve { .. }
            | Output::Forget { .. }
            | Output::Changed { .. } => {}
        }
        Ok(())
    }

    /// An event of the job.
    fn noted(&mut self, kind: &str, worker: &str) {
        match kind {
            "worker.lost" if self.making.is_none() => self.turn(Cause::Wait),
            "worker.slow" => {
                if let Some(worker) = words::number_of(worker) {
                    let incarnation = self.workers[worker].incarnation;
                    self.after(self.operator(), Event::Drained { worker, incarnation });
                }
            }
            "job.failed" => {
                self.account.counts.ended += 1;
                self.interrupt(Cause::Wait);
                self.after(self.operator(), Event::Resumed);
            }
            _ => {}
        }
    }

    fn operator(&self) -> Duration {
        Duration::from_secs_f64(self.model.settings.operator_s)
    }

    fn told(&mut self, worker: usize, body: ToWorker) -> Result<()> {
        match body {
            ToWorker::Assign(m) => self.assigned(worker, m.epoch, m.rank as usize, m.heal, m.restore_step),
            ToWorker::Start(m) => self.started(m.epoch, m.heal.as_ref()),
            ToWorker::CheckpointAt(m) => {
                if m.epoch == self.epoch.number && self.epoch.named.insert(m.step) && m.step == self.committed {
                    self.write(m.step);
                }
            }
            ToWorker::DropCheckpoint(m) => {
                self.epoch.named.remove(&m.step);
            }
            ToWorker::PublishManifest(m) => self.publish(worker, &m),
            ToWorker::Stop(_) => {
                (self.workers[worker].place, self.workers[worker].held) = (None, None);
                self.unnoticed.remove(&worker);
                self.slow.remove(&worker);
            }
            ToWorker::WarmUp(m) => self.answers.push((
                worker,
                FromWorker::WarmedUp(proto::WarmedUp {
                    job_id: m.job_id,
                    number: m.number,
                    data_digest: vec![7; 32],
                    ..Default::default()
                }),
            )),
            ToWorker::Probe(m) => {
                let probed = proto::Probed { number: m.number, error: String::new() };
                self.answers.push((worker, FromWorker::Probed(probed)));
            }
            ToWorker::Refused(m) => bail!("the machine refused {}: {}", words::worker_id(worker), m.reason),
            ToWorker::ReportSteps(m) => bail!("the machine asks for steps from {} on, which it was told", m.from_step),
            ToWorker::Welcome(_) | ToWorker::StepAck(_) | ToWorker::Kill(_) => {}
        }
        Ok(())
    }

    // -------------------------------------------------------------------------------------------------------------- an epoch

    fn assigned(&mut self, worker: usize, epoch: u64, rank: usize, heals: bool, restore_step: u64) {
        if epoch > self.epoch.number {
            self.fenced(epoch, heals, restore_step);
        }
        self.workers[worker].place = Some(Place { epoch, rank });
        self.epoch.members[rank] = worker;
    }

    /// The first place hears of the next epoch.
    fn fenced(&mut self, number: u64, heals: bool, restore_step: u64) {
        let shape = self.machine.record(&self.job).map_or(self.epoch.shape, |record| record.shape);
        let decide = self.model.decide(shape.world());
        if self.origin.is_some() {
            self.account.counts.epochs += 1;
            self.account.counts.resizes += u64::from(shape != self.epoch.shape);
        }
        let delay = match heals {
            true => decide,
            false => {
                if self.origin.is_some() {
                    self.account.counts.restores += 1;
                    self.account.lose(self.committed - restore_step, self.model.step);
                }
                self.committed = restore_step;
                decide + self.model.restore()
            }
        };
        self.interrupt(if heals { Cause::Decide } else { Cause::Restore });
        self.skipped = None;
        let members = vec![usize::MAX; shape.world()];
        self.epoch = Epoch { number, shape, heals, members, pulls: false, is_started: false, named: BTreeSet::new() };
        self.after(delay, Event::Reported { epoch: number });
    }

    fn reported(&mut self) -> Result<()> {
        let (job, shape) = (self.job.clone(), self.epoch.shape);
        for rank in 0..self.epoch.members.len() {
            let worker = self.epoch.members[rank];
            let Some(place) = self.workers[worker].place.filter(|_| self.workers[worker].health == Health::Up) else {
                continue;
            };
            if !self.epoch.heals {
                self.workers[worker].held = Some((shape, rank));
            }
            let held = self.workers[worker].held;
            let committed = if held.is_some() { self.committed } else { 0 };
            self.says(worker, words::prepared(&job, place, committed, held));
        }
        self.settle()
    }

    fn started(&mut self, epoch: u64, heal: Option<&proto::Heal>) {
        if epoch != self.epoch.number || self.epoch.is_started {
            return;
        }
        self.epoch.is_started = true;
        self.epoch.pulls = heal.is_some_and(|h| !h.newcomers.is_empty() || h.origin.is_some());
        if heal.is_none() {
            self.armed_at = self.now;
        }
        // Whoever restores has gathered the parameters with it.
        let delay = if heal.is_some() { self.model.heal(self.epoch.pulls) } else { Duration::ZERO };
        self.turn(Cause::Heal);
        self.after(delay, Event::Healed { epoch });
    }

    fn healed(&mut self) {
        let is_whole = self.epoch.members.iter().all(|w| self.workers[*w].health == Health::Up);
        if !is_whole {
            return self.turn(Cause::Detect);
        }
        for rank in 0..self.epoch.members.len() {
            self.workers[self.epoch.members[rank]].held = Some((self.epoch.shape, rank));
        }
        self.spend_idle();
        if self.origin.is_none() {
            self.begin_failing();
        }
        self.make_step(Duration::ZERO);
    }

    /// The first step begins, and with it what is measured.
    fn begin_failing(&mut self) {
        self.account = Account::default();
        self.origin = Some(self.now);
        for number in 0..self.failures.len() {
            self.after(self.failures[number].at, Event::Fails(number));
        }
    }

    // ---------------------------------------------------------------------------------------------------------------- steps

    fn slowness(&self) -> f64 {
        let is_member = |w: &usize| self.workers[*w].place.is_some_and(|place| place.epoch == self.epoch.number);
        self.slow.iter().filter(|(w, _)| is_member(w)).map(|(_, (factor, _))| *factor).fold(1.0, f64::max)
    }

    fn make_step(&mut self, copies: Duration) {
        let shape = self.epoch.shape;
        let step = self.model.step_of(&shape).mul_f64(self.slowness());
        self.making = Some(Making { began: self.now, copies, ends: self.now + copies + step });
    }

    fn commit(&mut self) -> Result<()> {
        let Some(making) = self.making.take() else { return Ok(()) };
        let (full, shape) = (self.model.step, self.epoch.shape);
        let of_shape = self.model.step_of(&shape);
        let took = self.now - making.began - making.copies;
        self.account.spend(Cause::Checkpoint, making.copies);
        self.account.spend(Cause::Steps, full.min(took));
        self.account.spend(Cause::Fewer, of_shape.saturating_sub(full));
        self.account.spend(Cause::Slow, took.saturating_sub(of_shape.max(full)));
        self.account.counts.committed_steps += 1;
        self.committed += 1;
        let (step, epoch) = (self.committed, self.epoch.number);
        let mut copies = Duration::ZERO;
        if self.epoch.named.remove(&step) {
            copies = self.model.copy_aside();
            self.write(step);
        }
        if let Some(skipped) = self.skipped.as_mut().filter(|s| s.num_left > 0 && self.now >= s.next_at) {
            (skipped.num_left, skipped.next_at) = (skipped.num_left - 1, skipped.next_at + skipped.period);
            copies += self.model.copy_aside();
            self.account.counts.checkpoints += 1;
        }
        self.make_step(copies);
        let report = words::step_report(&self.job, epoch, step, took.as_secs_f64());
        self.says(self.epoch.members[0], report);
        self.settle()
    }

    /// The step in which something happened comes to nothing, and from now on the time goes to this.
    fn interrupt(&mut self, cause: Cause) {
        if let Some(making) = self.making.take() {
            self.account.spend(Cause::Broken, self.now - making.began);
        }
        self.turn(cause);
    }

    fn turn(&mut self, cause: Cause) {
        if self.idle.is_some_and(|(now, _)| now == cause) {
            return;
        }
        self.spend_idle();
        self.idle = Some((cause, self.now));
    }

    fn spend_idle(&mut self) {
        if let Some((cause, since)) = self.idle.take() {
            self.account.spend(cause, self.now - since);
        }
    }

    // ---------------------------------------------------------------------------------------------------------- checkpoints

    fn write(&mut self, step: u64) {
        let delay = self.model.copy_aside() + self.model.write();
        self.after(delay, Event::Written { epoch: self.epoch.number, step });
    }

    fn written(&mut self, step: u64) -> Result<()> {
        let (job, bytes) = (self.job.clone(), self.model.shard_bytes as u64);
        let write_s = self.model.write().as_secs_f64();
        for rank in 0..self.epoch.members.len() {
            let worker = self.epoch.members[rank];
            if let Some(place) = self.workers[worker].place.filter(|_| self.workers[worker].health == Health::Up) {
                self.says(worker, words::shard_written(&job, place, step, bytes, write_s));
            }
        }
        self.settle()
    }

    fn publish(&mut self, worker: usize, m: &proto::PublishManifest) {
        let bytes = self.model.shard_bytes as u64 * self.epoch.members.len() as u64;
        self.answers.push((worker, words::published(&self.job, m.epoch, m.step, bytes)));
        if !m.remove_steps.is_empty() {
            self.answers.push((worker, words::removed(&self.job, m.epoch, m.step, m.remove_steps.clone())));
        }
        self.account.counts.checkpoints += 1;
        self.armed_at = self.now;
    }
}
