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
//! messages is disconnected, a watcher is only told that something changed and asks for it when it is ready. While the store is tried again
//! and again, questions are answered from what is there, and all else waits. A write that fails for good, or a leadership that is over, ends the
//! driver, and all streams with it: what cannot be stored must not be decided, nor said (T-8, T-13).

mod answers;
mod curves;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::Instant;
use toroid_proto as proto;
use toroid_proto::coordinator_message::Body;
use toroid_proto::worker_message::Body as FromWorker;
use toroid_torus::ids::{JobId, Step, Term};
use toroid_torus::owner::OwnerId;
use toroid_torus::units::names;
use tracing::{Instrument as _, Span};

use crate::calls::step;
use crate::clock::{Clock, entropy};
use crate::error::CoordinatorError;
use crate::evidence::{Evidence, OfJob};
use crate::files::{self, Condition, JobFiles, Place, RETRY_INTERVAL};
use crate::folder;
use crate::handle::{Answer, AskError, Command, Connection, Handle, Waiting, Work};
use crate::machine::record::{Incident, Record};
use crate::machine::{self, Change, Input, Machine, Output, Reply, RequestId, StreamId};
use crate::outbox::NotTaken;
use crate::spans::{self, Spans};
use crate::store::{Store, StoreError, Tenure};
use crate::tokens::TokenTable;
use crate::traces::{Subject, TraceIds, TraceOf};

/// Deadlines are looked at after this many commands even if more wait.
const MAX_COMMANDS_PER_TICK: usize = 4096;
/// What so many workers say, who say it at a time, is decided about and stored at once.
const MAX_COMMANDS_AT_ONCE: usize = 1024;
/// Of the time that an epoch takes for a worker, a hundredth.
const WAIT_PER_WORKER: Duration = Duration::from_micros(1);
/// What a timer can tell.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Why a driver has ended in good order.
#[derive(Debug)]
pub(crate) enum Ended {
    Asked,
    /// It does not lead any more.
    Deposed {
        reason: String,
    },
    /// It is to lead anew, with a term beyond this one.
    Behind {
        beyond: Term,
        reason: String,
    },
}

/// What ends a driver.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("asked to end at once")]
    AtOnce,
    #[error("{reason}")]
    Behind { beyond: Term, reason: String },
    #[error(transparent)]
    Error(#[from] CoordinatorError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Error(error.into())
    }
}

pub(crate) struct Driver {
    machine: Machine,
    /// `None` only while it is written to.
    store: Option<Box<dyn Store>>,
    tenure: Tenure,
    place: Place,
    /// Where users and workers reach this coordinator, `http://host:port`.
    address: String,
    waiting: Waiting,
    /// How often it was asked to end.
    asked: watch::Receiver<u32>,
    clock: Clock,
    /// Of this run of the coordinator.
    entropy: [u8; 32],
    connections: BTreeMap<StreamId, Connection>,
    answers: BTreeMap<RequestId, Answer<Reply>>,
    next_request: u64,
    files: BTreeMap<JobId, JobFiles>,
    evidence: Evidence,
    trace_ids: TraceIds,
    spans: Spans,
    /// When rows that could not be written are tried again.
    retry_at: Option<Instant>,
    /// Jobs of whose rows more have come to a bucket, or could not.
    carried: UnboundedReceiver<JobId>,
    watchers: BTreeMap<JobId, watch::Sender<()>>,
    tokens: watch::Sender<TokenTable>,
}

impl Driver {
    /// Takes up the work where the store has it.
    pub async fn open(
        mut store: Box<dyn Store>,
        config: machine::Config,
        place: Place,
        address: &str,
        asked: watch::Receiver<u32>,
        tokens: watch::Sender<TokenTable>,
    ) -> Result<(Driver, Handle), CoordinatorError> {
        let records = store.load().await?;
        let folders = files::folders(&place.jobs_dir)?;
        let (wake, carried) = unbounded_channel();
        let place = Place { carried: Some(wake), ..place };
        let (mut files, mut summaries, mut found) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut evidence = Evidence::new().map_err(CoordinatorError::Thread)?;
        for (id, its_files, its_evidence) in curves::restore(&place, &records) {
            let (its_files, steps, condition) = its_files;
            evidence.restore(id.clone(), its_evidence);
            files.insert(id.clone(), its_files);
            summaries.insert(id.clone(), steps);
            found.push((id, condition));
        }
        warn_of_unknown(&place.jobs_dir, folders.iter().filter(|name| !files.contains_key(name.as_str())));
        let clock = Clock::of_this_machine()?;
        let (machine, outputs) = Machine::restore(config, records, summaries, entropy()?, clock.now())?;
        let (handle, waiting) = Handle::new(store.tenure().term());
        tokens.send_replace(TokenTable::of(machine.tokens()));
        let mut driver = Driver {
            machine,
            tenure: store.tenure(),
            store: Some(store),
            place,
            address: address.into(),
            waiting,
            asked,
            clock,
            entropy: entropy()?,
            connections: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_request: 0,
            files,
            evidence,
            trace_ids: TraceIds::default(),
            spans: Spans::default(),
            retry_at: None,
            carried,
            watchers: BTreeMap::new(),
            tokens,
        };
        let begun = driver.begin(outputs, folders, found).await;
        if let Err(Stop::Error(error)) = begun {
            return Err(error);
        }
        Ok((driver, handle))
    }

    async fn begin(
        &mut self,
        outputs: Vec<Output>,
        folders: BTreeSet<String>,
        found: Vec<(JobId, Condition)>,
    ) -> Result<(), Stop> {
        self.execute(outputs).await?;
        self.input(Input::Folders { names: folders }).await?;
        for (job, condition) in found {
            self.found(job, condition).await?;
        }
        Ok(())
    }

    /// A job's files were so when the coordinator started.
    async fn found(&mut self, job: JobId, condition: Condition) -> Result<(), Stop> {
        match condition {
            Condition::Sound => Ok(()),
            Condition::Repaired(text) => self.input(Input::Note { job, kind: "curve.repaired", text }).await,
            Condition::Unread(text) => {
                self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_INTERVAL);
                self.input(Input::Note { job, kind: "curve.stalled", text }).await
            }
            Condition::Damaged(reason) => {
                tracing::warn!(job = job.as_str(), "the files of the job are damaged: {reason}");
                self.input(Input::Fault { job, reason: format!("its files are damaged: {reason}") }).await
            }
        }
    }

    /// Runs until it is asked to end, a write fails or its leadership is over. All streams end with it. Asked once, it stays for workers that were asked,
    /// too, as long as they do; asked twice, it ends. Returns its store in every case in which that may be used again.
    pub async fn run(mut self) -> Result<(Ended, Option<Box<dyn Store>>), CoordinatorError> {
        let ended = match self.serve().await {
            Ok(ended) => ended,
            Err(Stop::AtOnce) => Ended::Asked,
            Err(Stop::Behind { beyond, reason }) => Ended::Behind { beyond, reason },
            Err(Stop::Error(CoordinatorError::Store(StoreError::Deposed { reason }))) => Ended::Deposed { reason },
            Err(Stop::Error(error)) => return Err(error),
        };
        Ok((ended, self.store))
    }

    async fn serve(&mut self) -> Result<Ended, Stop> {
        let mut num_since_tick = 0;
        let mut asked_at = None;
        let mut tenure = self.tenure.clone();
        loop {
            let times = *self.asked.borrow_and_update();
            let ends_at = match times {
                0 => None,
                1 => Some(self.ends_at(*asked_at.get_or_insert_with(Instant::now))),
                _ => return Ok(Ended::Asked),
            };
            if ends_at.is_some_and(|ends_at| ends_at <= Instant::now()) {
                return Ok(Ended::Asked);
            }
            let deadline = self.machine.poll_timeout().map(|d| self.clock.instant(d));
            if num_since_tick >= MAX_COMMANDS_PER_TICK && deadline.is_some_and(|d| d <= Instant::now()) {
                num_since_tick = 0;
                self.input(Input::Tick).await?;
                continue;
            }
            tokio::select! {
                biased;
                changed = self.asked.changed() => if changed.is_err() {
                    return Ok(Ended::Asked);
                },
                reason = tenure.end() => return Ok(Ended::Deposed { reason }),
                () = sleep_until(ends_at) => {}
                () = sleep_until(self.retry_at) => self.retry().await?,
                Some(job) = self.carried.recv() => self.carried(job).await?,
                work = self.waiting.next() => match work {
                    Some(Work::Command(command, span)) => num_since_tick += self.commands((command, span)).await?,
                    Some(Work::Question(question)) => {
                        num_since_tick += 1;
                        self.answer(question);
                    }
                    None => return Ok(Ended::Asked),
                },
                () = sleep_until(deadline) => {
                    num_since_tick = 0;
                    self.input(Input::Tick).await?;
                }
            }
        }
    }

    /// When it ends that was asked to then.
    fn ends_at(&self, asked_at: Instant) -> Instant {
        let limits = self.machine.limits();
        if !self.machine.is_training() {
            asked_at
        } else if self.machine.is_being_left() {
            asked_at + limits.leave()
        } else {
            asked_at + limits.farewell()
        }
    }

    /// Does what a command asks for, and those that wait behind it. What workers say is taken together; each request of a user is decided about
    /// alone. Returns how many there were.
    async fn commands(&mut self, first: (Command, Span)) -> Result<usize, Stop> {
        let (mut next, mut num) = (Some(first), 0);
        let mut closed = Vec::new();
        let mut has_waited = false;
        while let Some((command, span)) = next {
            num += 1;
            if let Err(request) = self.take(command, &mut closed) {
                self.settle(&mut closed).await?;
                self.command(request).instrument(span).await?;
            }
            next = if num < MAX_COMMANDS_AT_ONCE { self.waiting.command() } else { None };
            if next.is_none() && !closed.is_empty() && !std::mem::replace(&mut has_waited, true) {
                next = self.others_that_end().await;
            }
        }
        self.settle(&mut closed).await?;
        Ok(num)
    }

    /// The workers of a host that dies end one after the other, within some milliseconds, and an epoch for each is more than one for all. What an epoch
    /// costs grows with the workers, and so does the time that they are waited for; it is nothing where they are few.
    async fn others_that_end(&mut self) -> Option<(Command, Span)> {
        let wait = WAIT_PER_WORKER * u32::try_from(self.machine.num_workers()).unwrap_or(u32::MAX);
        if wait < SHORTEST_WAIT {
            return None;
        }
        tokio::time::sleep(wait).await;
        self.waiting.command()
    }

    /// Has the machine take what a worker says, or what becomes of its stream: those that are `closed` hear until all is settled, so that whoever
    /// is refused is told, also if it has said all that it had to say. Gives back what else is asked for.
    fn take(&mut self, command: Command, closed: &mut Vec<StreamId>) -> Result<(), Command> {
        match command {
            Command::Message { stream, body, permit } => {
                drop(permit);
                self.heard(stream, &body);
                self.machine.take(Input::Message { stream, body }, self.clock.now());
            }
            Command::Closed { stream, reason } => {
                closed.push(stream);
                self.machine.take(Input::Closed { stream, reason }, self.clock.now());
            }
            Command::Open { stream, connection } => drop(self.connections.insert(stream, connection)),
            request => return Err(request),
        }
        Ok(())
    }

    /// Does what follows from all that was taken.
    async fn settle(&mut self, closed: &mut Vec<StreamId>) -> Result<(), Stop> {
        let outputs = self.machine.settle(self.clock.now());
        let done = self.execute(outputs).await;
        for stream in closed.drain(..) {
            self.connections.remove(&stream);
        }
        done
    }

    /// Does what a user asks for.
    async fn command(&mut self, command: Command) -> Result<(), Stop> {
        match command {
            Command::Submit { submission, answer } => {
                if self.place.shared.is_some()
                    && let Some(error) = folder::not_shared(&submission.toml)
                {
                    // Whoever does not wait any more does not hear of it.
                    let _ = answer.send(Err(error.into()));
                    return Ok(());
                }
                let owner = self.new_owner();
                self.request(answer, |request| Input::Submit { request, submission, owner }).await
            }
            Command::Cancel { job, answer } => self.request(answer, |request| Input::Cancel { request, job }).await,
            Command::Checkpoint { job, answer } => {
                self.request(answer, |request| Input::Checkpoint { request, job }).await
            }
            Command::Pin { job, step, answer } => {
                self.request(answer, |request| Input::Pin { request, job, step }).await
            }
            Command::Unpin { job, step, answer } => {
                self.request(answer, |request| Input::Unpin { request, job, step }).await
            }
            Command::Resume { job, from_scratch, steps, answer } => {
                self.request(answer, |request| Input::Resume { request, job, from_scratch, steps }).await
            }
            Command::Hold { job, answer } => self.request(answer, |request| Input::Hold { request, job }).await,
            Command::Release { job, answer } => self.request(answer, |request| Input::Release { request, job }).await,
            Command::Cordon { who, reason, answer } => {
                self.request(answer, |request| Input::Cordon { request, who, reason }).await
            }
            Command::Uncordon { who, answer } => self.request(answer, |request| Input::Uncordon { request, who }).await,
            Command::Drain { worker, answer } => self.request(answer, |request| Input::Drain { request, worker }).await,
            Command::Kill { worker, who, answer } => self.kill(&worker, &who, answer).await,
            Command::Remove { job, answer } => self.request(answer, |request| Input::Remove { request, job }).await,
            Command::Readmit { worker, answer } => {
                self.request(answer, |request| Input::Readmit { request, worker }).await
            }
            Command::CreateToken { new, answer } => {
                self.request(answer, |request| Input::CreateToken { request, new }).await
            }
            Command::RevokeToken { id, answer } => {
                self.request(answer, |request| Input::RevokeToken { request, id }).await
            }
            Command::ForgetWorker { worker, answer } => {
                self.request(answer, |request| Input::ForgetWorker { request, worker }).await
            }
            Command::Message { .. } | Command::Closed { .. } | Command::Open { .. } => {
                unreachable!("what workers say was taken")
            }
        }
    }

    /// Has a worker's process end at once. The machine decides nothing about it and is told nothing: it sees a death as any other.
    async fn kill(&mut self, worker: &str, who: &str, answer: Answer<Option<JobId>>) -> Result<(), Stop> {
        let (stream, job) = match self.machine.stream_of(worker) {
            Ok(found) => found,
            Err(error) => {
                // Whoever does not wait any more does not hear of it.
                let _ = answer.send(Err(error.into()));
                return Ok(());
            }
        };
        tracing::info!(worker, "tells the worker's process to end at once: {who} asked for it");
        let body = Some(Body::Kill(proto::Kill { reason: format!("{who} had it killed") }));
        let message =
            Box::new(proto::CoordinatorMessage { term: self.tenure.term().get(), body, ..Default::default() });
        let refused = self.send(stream, message);
        let _ = answer.send(Ok(job));
        for input in closed(refused.into_iter().collect()) {
            self.input(input).await?;
        }
        Ok(())
    }

    /// Keeps what is for people, and not for the machine.
    fn heard(&mut self, stream: StreamId, body: &FromWorker) {
        let Some(worker) = self.machine.worker_on(stream) else { return };
        match body {
            FromWorker::LogLines(m) => self.evidence.logged(worker, m.lines.clone()),
            FromWorker::Stacks(m) => self.evidence.stacked(worker, m.clone()),
            FromWorker::ManifestPublished(m) => {
                if let Some(record) = self.machine.record(&m.job_id) {
                    self.spans.published(record, m);
                }
            }
            _ => {}
        }
    }

    /// Random, and not asked of the system each time: a submission fails for no want of open files.
    fn new_owner(&self) -> OwnerId {
        let mut hasher = blake3::Hasher::new_keyed(&self.entropy);
        hasher.update(&self.next_request.to_le_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        OwnerId::from_random(id)
    }

    async fn request(&mut self, answer: Answer<Reply>, input: impl FnOnce(RequestId) -> Input) -> Result<(), Stop> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.answers.insert(request, answer);
        self.input(input(request)).await
    }

    /// Inputs that come of outputs are handled after them, in order.
    async fn input(&mut self, input: Input) -> Result<(), Stop> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let outputs = self.machine.handle(input, self.clock.now());
            inputs.extend(self.carry_out(outputs).await?);
        }
        Ok(())
    }

    async fn execute(&mut self, outputs: Vec<Output>) -> Result<(), Stop> {
        for input in self.carry_out(outputs).await? {
            self.input(input).await?;
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------------- outputs

    /// Does what the machine says, in its order, as long as this coordinator leads; returns what is to be told to the machine then.
    async fn carry_out(&mut self, outputs: Vec<Output>) -> Result<Vec<Input>, Stop> {
        let (mut refused, mut later, mut incidents) = (Vec::new(), Vec::new(), Vec::new());
        for output in outputs {
            if let Some(reason) = self.tenure.over() {
                return Err(StoreError::Deposed { reason }.into());
            }
            match output {
                Output::Persist(change) => {
                    self.persist(&change).await?;
                    incidents.extend(incidents_in(change));
                }
                Output::CreateFolder { job, toml } => {
                    let record = self.machine.record(&job).expect("the machine has the jobs that it makes folders for");
                    let files = JobFiles::create(&self.place, record, &toml).unwrap_or_else(|reason| {
                        later.push(Input::Fault { job: job.clone(), reason: reason.clone() });
                        JobFiles::broken(&self.place, &job, &reason)
                    });
                    self.evidence.restore(job.clone(), OfJob::new(&self.place, record));
                    self.files.insert(job, files);
                }
                Output::AppendCurve { job, record } => {
                    let event = self.files(&job).append(&record);
                    self.appended(job, event, &mut later);
                }
                Output::AppendGap { job, from_step, through_step } => {
                    let event = self.files(&job).append_gap(from_step.get()..=through_step.get());
                    self.appended(job, event, &mut later);
                }
                Output::CutCurve { job, keep } => {
                    let event = self.files(&job).cut(keep.get());
                    self.curve_event(job, event, &mut later);
                }
                Output::Send { stream, mut message } => {
                    self.trace(&mut message);
                    refused.extend(self.send(stream, message));
                }
                Output::Close { stream, reason } => {
                    tracing::info!(stream = stream.0, reason, "closed a worker's stream");
                    self.connections.remove(&stream);
                }
                Output::Reply { request, reply } => {
                    if matches!(reply, Ok(Reply::Token(_))) {
                        self.tokens.send_replace(TokenTable::of(self.machine.tokens()));
                    }
                    if let Some(answer) = self.answers.remove(&request) {
                        drop(answer.send(reply.map_err(AskError::from)));
                    }
                }
                Output::Event { job, event } => {
                    let trace = self.trace_of_event(&job, &event.kind).map(|trace| trace.hex());
                    let (job, step, epoch, trace_id) =
                        (job.as_str(), event.step.get(), event.epoch.get(), trace.as_deref());
                    tracing::info!(job, kind = event.kind, step, epoch, trace_id, "{}", event.text);
                }
                Output::LeadAnew { beyond, reason } => return Err(Stop::Behind { beyond, reason }),
                Output::Forget { job, reason } => {
                    self.files.remove(&job);
                    self.evidence.forget(&job);
                    self.trace_ids.forget(&job);
                    self.watchers.remove(&job);
                    tracing::info!(job = job.as_str(), "the job is no longer listed: {reason}");
                }
                Output::Changed { job } => {
                    if let Some(watchers) = self.watchers.get(&job) {
                        watchers.send_replace(());
                    }
                }
            }
        }
        // When all is said that follows from them.
        for incident in &incidents {
            self.evidence.incident(incident);
            // Nothing of it lasts any more.
            if let (None, Some(record)) = (incident.since, self.machine.record(&incident.job)) {
                spans::tell_incident(record, incident);
            }
        }
        Ok(closed(refused).chain(later).collect())
    }

    /// Says in a message which trace it belongs to.
    fn trace(&mut self, message: &mut proto::CoordinatorMessage) {
        let Some(body) = &message.body else { return };
        let (job, subject) = match body {
            Body::Assign(m) => (&m.job_id, self.machine.open_incident(&m.job_id).map(Subject::Incident)),
            Body::Start(m) => (&m.job_id, self.machine.open_incident(&m.job_id).map(Subject::Incident)),
            Body::CheckpointAt(m) => (&m.job_id, Some(Subject::Checkpoint(Step::new(m.step)))),
            Body::PublishManifest(m) => (&m.job_id, Some(Subject::Checkpoint(Step::new(m.step)))),
            _ => return,
        };
        if let (Some(record), Some(subject)) = (self.machine.record(job), subject) {
            message.traceparent = TraceOf::new(record, subject).traceparent();
        }
        self.spans.sent(body);
    }

    /// The trace of the incident that an event of a job has to do with.
    fn trace_of_event(&self, job: &str, kind: &str) -> Option<TraceOf> {
        let record = self.machine.record(job)?;
        let newest = || kind.starts_with("incident.").then_some(record.num_incidents);
        let number = self.machine.open_incident(job).or_else(newest)?;
        Some(TraceOf::new(record, Subject::Incident(number)))
    }

    /// Waits until the change is durable, and answers questions meanwhile.
    async fn persist(&mut self, change: &Change) -> Result<(), Stop> {
        let mut store = self.store.take().expect("nothing else is written at the same time");
        let mut asked = self.asked.clone();
        let written = {
            let mut writing = store.commit(change).instrument(step("write the store"));
            loop {
                tokio::select! {
                    biased;
                    written = &mut writing => break written.map_err(Stop::from),
                    Some(question) = self.waiting.question() => self.answer(question),
                    // Whoever asks has ended, or wants it at once.
                    _ = asked.wait_for(|times| *times > 1) => break Err(Stop::AtOnce),
                }
            }
        };
        self.store = Some(store);
        written
    }

    /// The stream if it does not take the message, and why.
    fn send(&mut self, stream: StreamId, message: Box<proto::CoordinatorMessage>) -> Option<(StreamId, NotTaken)> {
        let job = match &message.body {
            Some(Body::StepAck(m)) => Some(&m.job_id),
            Some(Body::PublishManifest(m)) => Some(&m.job_id),
            _ => None,
        };
        if let (Some(body), Some(files)) = (&message.body, job.and_then(|job| self.files.get_mut(job.as_str())))
            && files.must_hold(body)
        {
            files.hold(stream, message);
            return None;
        }
        self.pass_on(stream, message)
    }

    /// The same of a message that nothing has to wait for.
    fn pass_on(&mut self, stream: StreamId, message: Box<proto::CoordinatorMessage>) -> Option<(StreamId, NotTaken)> {
        let why = self.connections.get(&stream)?.messages.push(*message).err()?;
        self.connections.remove(&stream);
        Some((stream, why))
    }
}

fn incidents_in(change: Change) -> impl Iterator<Item = Box<Incident>> {
    change.put.into_iter().filter_map(|record| match record {
        Record::Incident(incident) => Some(incident),
        _ => None,
    })
}

/// What the machine hears of streams that did not take a message.
fn closed(refused: Vec<(StreamId, NotTaken)>) -> impl Iterator<Item = Input> {
    refused.into_iter().map(|(stream, why)| Input::Closed { stream, reason: why.to_string() })
}

/// A store that was moved away, or is an old copy, knows fewer jobs than there are folders.
fn warn_of_unknown<'a>(jobs_dir: &Path, unknown: impl Iterator<Item = &'a String>) {
    const MAX_NAMED: usize = 5;
    let unknown: Vec<&String> = unknown.collect();
    if !unknown.is_empty() {
        let (num, folder, named) = (unknown.len(), jobs_dir.display(), names(&unknown, MAX_NAMED));
        tracing::warn!(
            "{num} folders in {folder} are of no job in the store ({named}): they stay, and no job gets their ids"
        );
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
