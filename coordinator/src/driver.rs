//! The one task that owns the machine, the store and the curves, and does what the machine says in the order it says it.
//!
//! ```text
//!   grpc ── Command ──> Driver ── Input ──> Machine
//!     ^                   │  <── outputs ──────┘
//!     └── replies, ───────┤
//!         CoordinatorMessages      records -> Store, rows -> curve.csv, both durable before what follows is sent (T-8)
//! ```
//!
//! It runs on a thread of its own, since durable writes block. It never waits for a client: a worker that does not read its
//! messages is disconnected, a watcher is only told that something changed and asks for it when it is ready. A write that fails
//! stops the coordinator: what cannot be stored must not be decided.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use toroid_proto as proto;

use crate::CoordinatorError;
use crate::curve::{Curve, CurveError};
use crate::machine::clock::Boot;
use crate::machine::{self, Input, Machine, Now, Output, Reply, RequestError, RequestId, StreamId};
use crate::store::Store;

/// Commands that wait for the driver; beyond, those who send them wait.
const MAX_COMMANDS: usize = 1024;
/// Messages that wait for a worker; beyond, it is disconnected.
pub(crate) const MAX_MESSAGES: usize = 256;
/// Deadlines are looked at after this many commands even if more wait.
const MAX_COMMANDS_PER_TICK: usize = 4096;
/// Step records in an answer.
pub(crate) const MAX_ROWS: usize = 1000;

/// Why a request was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Curve(#[from] CurveError),
    #[error("the coordinator is stopping; ask again when it is back")]
    Stopping,
}

type Answer<T> = oneshot::Sender<Result<T, AskError>>;

pub(crate) enum Command {
    Submit { toml: String, answer: Answer<Reply> },
    Cancel { job: String, answer: Answer<Reply> },
    Checkpoint { job: String, answer: Answer<Reply> },
    Resume { job: String, from_scratch: bool, answer: Answer<Reply> },
    Drain { worker: String, answer: Answer<Reply> },
    Job { job: String, answer: Answer<proto::Job> },
    Jobs { answer: Answer<Vec<proto::Job>> },
    Workers { answer: Answer<Vec<proto::WorkerInfo>> },
    Rows { job: String, from: u64, answer: Answer<Vec<proto::StepRecord>> },
    Watch { job: String, answer: Answer<watch::Receiver<()>> },
    Update { job: String, seen: Seen, answer: Answer<Update> },
    Open { stream: StreamId, connection: Connection },
    Message { stream: StreamId, body: Box<proto::worker_message::Body> },
    Closed { stream: StreamId, reason: String },
}

/// What a watcher has seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub next_step: u64,
    pub num_events: u64,
}

pub(crate) struct Update {
    pub update: proto::JobUpdate,
    pub seen: Seen,
    /// More step records are there already.
    pub has_more: bool,
    pub is_ended: bool,
}

/// The driver's end of a worker's stream; dropping it ends the stream.
pub(crate) struct Connection {
    pub messages: mpsc::Sender<proto::CoordinatorMessage>,
    /// Never sent: whoever reads the worker's messages stops when it is dropped.
    pub _open: oneshot::Sender<()>,
}

/// How the rest of the program speaks to the driver.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    next_stream: Arc<AtomicU64>,
}

impl Handle {
    pub fn new_stream(&self) -> StreamId {
        StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits while the driver has too much to do; false if it has stopped.
    pub async fn tell(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }

    pub async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, AskError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| AskError::Stopping)?;
        answered.await.map_err(|_| AskError::Stopping)?
    }
}

pub(crate) struct Driver {
    machine: Machine,
    store: Box<dyn Store>,
    jobs_dir: PathBuf,
    commands: mpsc::Receiver<Command>,
    clock: Clock,
    connections: BTreeMap<StreamId, Connection>,
    answers: BTreeMap<RequestId, Answer<Reply>>,
    next_request: u64,
    curves: BTreeMap<String, Curve>,
    watchers: BTreeMap<String, watch::Sender<()>>,
}

impl Driver {
    /// Takes up the work where the store has it.
    pub fn open(
        mut store: Box<dyn Store>,
        config: machine::Config,
        jobs_dir: &Path,
    ) -> Result<(Driver, Handle), CoordinatorError> {
        let records = store.load()?;
        let (mut curves, mut summaries) = (BTreeMap::new(), BTreeMap::new());
        for record in &records {
            if let machine::record::Record::Job(job) = record {
                let folder = make_folder(jobs_dir, &job.id, &job.spec.to_toml())?;
                let (curve, steps) = Curve::open(&folder)?;
                curves.insert(job.id.clone(), curve);
                summaries.insert(job.id.clone(), steps);
            }
        }
        let clock = Clock::of_this_machine()?;
        let (machine, outputs) = Machine::restore(config, records, summaries, entropy()?, clock.now())?;
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        let mut driver = Driver {
            machine,
            store,
            jobs_dir: jobs_dir.into(),
            commands,
            clock,
            connections: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_request: 0,
            curves,
            watchers: BTreeMap::new(),
        };
        driver.execute(outputs)?;
        Ok((driver, Handle { commands: sender, next_stream: Arc::new(AtomicU64::new(0)) }))
    }

    /// Runs until `stop` changes or a write fails. All streams end with it.
    pub async fn run(mut self, mut stop: watch::Receiver<()>) -> Result<(), CoordinatorError> {
        let mut num_since_tick = 0;
        loop {
            let deadline = self.machine.poll_timeout().map(|d| self.clock.instant(d));
            if num_since_tick >= MAX_COMMANDS_PER_TICK && deadline.is_some_and(|d| d <= Instant::now()) {
                num_since_tick = 0;
                self.input(Input::Tick)?;
                continue;
            }
            tokio::select! {
                biased;
                _ = stop.changed() => return Ok(()),
                command = self.commands.recv() => match command {
                    Some(command) => {
                        num_since_tick += 1;
                        self.command(command)?;
                    }
                    None => return Ok(()),
                },
                () = sleep_until(deadline) => {
                    num_since_tick = 0;
                    self.input(Input::Tick)?;
                }
            }
        }
    }

    fn command(&mut self, command: Command) -> Result<(), CoordinatorError> {
        match command {
            Command::Submit { toml, answer } => self.request(answer, |request| Input::Submit { request, toml }),
            Command::Cancel { job, answer } => self.request(answer, |request| Input::Cancel { request, job }),
            Command::Checkpoint { job, answer } => self.request(answer, |request| Input::Checkpoint { request, job }),
            Command::Resume { job, from_scratch, answer } => {
                self.request(answer, |request| Input::Resume { request, job, from_scratch })
            }
            Command::Drain { worker, answer } => self.request(answer, |request| Input::Drain { request, worker }),
            Command::Message { stream, body } => self.input(Input::Message { stream, body }),
            Command::Closed { stream, reason } => {
                self.connections.remove(&stream);
                self.input(Input::Closed { stream, reason })
            }
            Command::Open { stream, connection } => {
                self.connections.insert(stream, connection);
                Ok(())
            }
            question => {
                self.answer(question);
                Ok(())
            }
        }
    }

    /// Questions that change nothing. Whoever does not wait for the answer any more does not get it.
    fn answer(&mut self, question: Command) {
        match question {
            Command::Job { job, answer } => drop(answer.send(self.view(&job).map_err(AskError::from))),
            Command::Jobs { answer } => {
                let mut jobs = self.machine.view_all(self.clock.now());
                jobs.iter_mut().for_each(|job| self.fill_in(job));
                drop(answer.send(Ok(jobs)));
            }
            Command::Workers { answer } => drop(answer.send(Ok(self.machine.view_workers(self.clock.now())))),
            Command::Rows { job, from, answer } => drop(answer.send(self.rows(&job, from))),
            Command::Watch { job, answer } => drop(answer.send(self.watch(&job))),
            Command::Update { job, seen, answer } => drop(answer.send(self.update(&job, seen))),
            Command::Submit { .. }
            | Command::Cancel { .. }
            | Command::Checkpoint { .. }
            | Command::Resume { .. }
            | Command::Drain { .. }
            | Command::Message { .. }
            | Command::Closed { .. }
            | Command::Open { .. } => unreachable!("handled as inputs"),
        }
    }

    fn request(
        &mut self,
        answer: Answer<Reply>,
        input: impl FnOnce(RequestId) -> Input,
    ) -> Result<(), CoordinatorError> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.answers.insert(request, answer);
        self.input(input(request))
    }

    fn input(&mut self, input: Input) -> Result<(), CoordinatorError> {
        let outputs = self.machine.handle(input, self.clock.now());
        self.execute(outputs)
    }

    // ------------------------------------------------------------------------------------------------------------- outputs

    fn execute(&mut self, outputs: Vec<Output>) -> Result<(), CoordinatorError> {
        let mut overrun = Vec::new();
        for output in outputs {
            match output {
                Output::Persist(records) => self.store.apply(&records)?,
                Output::CreateFolder { job, toml } => {
                    let folder = make_folder(&self.jobs_dir, &job, &toml)?;
                    self.curves.insert(job, Curve::open(&folder)?.0);
                }
                Output::AppendCurve { job, record } => self.curve(&job).append(&record)?,
                Output::AppendGap { job, from_step, through_step } => {
                    self.curve(&job).append_gap(from_step..=through_step)?;
                }
                Output::CutCurve { job, keep } => self.curve(&job).cut(keep)?,
                Output::Send { stream, message } => {
                    let connection = self.connections.get(&stream);
                    if connection.is_some_and(|c| c.messages.try_send(*message).is_err()) {
                        self.connections.remove(&stream);
                        overrun.push(stream);
                    }
                }
                Output::Close { stream, reason } => {
                    tracing::info!(stream = stream.0, reason, "closed a worker's stream");
                    self.connections.remove(&stream);
                }
                Output::Reply { request, reply } => {
                    if let Some(answer) = self.answers.remove(&request) {
                        drop(answer.send(reply.map_err(AskError::from)));
                    }
                }
                Output::Event { job, event } => {
                    tracing::info!(job, kind = event.kind, step = event.step, epoch = event.epoch, "{}", event.text);
                }
                Output::Changed { job } => {
                    if let Some(watchers) = self.watchers.get(&job) {
                        watchers.send_replace(());
                    }
                }
            }
        }
        for stream in overrun {
            let reason = format!("does not read its messages: {MAX_MESSAGES} wait, or the stream is gone");
            self.input(Input::Closed { stream, reason })?;
        }
        Ok(())
    }

    fn curve(&mut self, job: &str) -> &mut Curve {
        self.curves.get_mut(job).expect("a job has its curve from its submission on")
    }

    // --------------------------------------------------------------------------------------------------------------- views

    fn view(&self, job: &str) -> Result<proto::Job, RequestError> {
        let mut view = self.machine.view(job, self.clock.now()).ok_or_else(|| self.machine.unknown(job))?;
        self.fill_in(&mut view);
        Ok(view)
    }

    fn fill_in(&self, job: &mut proto::Job) {
        job.last_step = self.curves.get(&job.id).and_then(Curve::last).cloned();
    }

    fn rows(&self, job: &str, from: u64) -> Result<Vec<proto::StepRecord>, AskError> {
        let curve = self.curves.get(job).ok_or_else(|| self.machine.unknown(job))?;
        Ok(curve.read(from, MAX_ROWS)?)
    }

    fn watch(&mut self, job: &str) -> Result<watch::Receiver<()>, AskError> {
        if self.machine.record(job).is_none() {
            return Err(self.machine.unknown(job).into());
        }
        self.watchers.retain(|_, sender| sender.receiver_count() > 0);
        Ok(self.watchers.entry(job.into()).or_insert_with(|| watch::channel(()).0).subscribe())
    }

    fn update(&self, id: &str, seen: Seen) -> Result<Update, AskError> {
        let job = self.view(id)?;
        let steps = self.rows(id, seen.next_step)?;
        let (events, num_events) = self.machine.events_since(id, seen.num_events);
        let next_step = steps.last().map_or(seen.next_step, |s| s.step + 1);
        let has_more = job.last_step.as_ref().is_some_and(|last| last.step >= next_step);
        let is_ended = self.machine.record(id).is_some_and(|r| r.state.is_ended());
        let seen = Seen { next_step, num_events };
        Ok(Update { update: proto::JobUpdate { job: Some(job), steps, events }, seen, has_more, is_ended })
    }
}

/// Makes the job's folder with its job file; what is there already stays.
fn make_folder(jobs_dir: &Path, job: &str, toml: &str) -> Result<PathBuf, CoordinatorError> {
    let folder = jobs_dir.join(job);
    let file = folder.join("job.toml");
    let failed = |path: &Path, source| CoordinatorError::Io { what: "making", path: path.into(), source };
    std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
    if !file.exists() {
        std::fs::write(&file, toml).map_err(|e| failed(&file, e))?;
    }
    Ok(folder)
}

fn entropy() -> Result<[u8; 32], CoordinatorError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|source| CoordinatorError::Io { what: "reading", path: path.into(), source })?;
    Ok(bytes)
}

/// Counts from the start of the machine, so that the next coordinator on it measures by the same clock.
struct Clock {
    origin: Instant,
    /// Of the machine at `origin`.
    uptime: Duration,
    boot: Boot,
}

impl Clock {
    fn of_this_machine() -> Result<Clock, CoordinatorError> {
        let text = |path: &str| std::fs::read_to_string(path).ok();
        let boot = text("/proc/sys/kernel/random/boot_id").and_then(|id| {
            let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
            u64::from_str_radix(&digits, 16).ok()
        });
        let uptime_s = text("/proc/uptime").and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok());
        let uptime = uptime_s.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let origin = Instant::now();
        match (boot, uptime) {
            (Some(boot), Some(uptime)) => Ok(Clock { origin, uptime, boot: Boot(boot) }),
            // Where the machine does not say, each coordinator has a clock of its own.
            _ => {
                let [a, b, c, d, e, f, g, h, ..] = entropy()?;
                let boot = Boot(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
                Ok(Clock { origin, uptime: Duration::ZERO, boot })
            }
        }
    }

    fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let unix_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Now { monotonic: self.uptime + self.origin.elapsed(), unix_ms, boot: self.boot }
    }

    fn instant(&self, monotonic: Duration) -> Instant {
        self.origin + monotonic.saturating_sub(self.uptime)
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
