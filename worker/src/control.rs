//! The control stream: what [`Client`] decides, done. It connects, carries messages both ways, and sets the alarm for the next deadline.
//!
//! One task owns the client. Training does not wait for any of it (T-9). Deliberately absent: decisions; when to dial, what waits for
//! the Welcome and when the worker ends is the client's.

mod reason;
mod told;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use toroid_proto::limits::COORDINATOR_MESSAGE_BYTES_MAX;
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{CoordinatorMessage, Heartbeat, Leaving, Register, WorkerMessage};
use toroid_security::Credentials;
use toroid_session::client::{Client, Ending, Input, Output};
use toroid_session::{Action, Command, Knock, Standing, TrainerEvent};
use toroid_torus::ids::{Epoch, JobId, Rank, Term};

pub(crate) use told::Told;

use crate::comm::{CommError, Fence, MAX_PROBES, Porter, ProbeError};
use crate::device::DeviceMemory;
use crate::log::Log;
use crate::trainer::{Emit, Order, Requested, Shared};
use crate::watchdog::Stacks;

/// Messages that wait for the stream, at most; more means that the coordinator does not read, and the stream is opened anew.
const QUEUE: usize = 4096;
/// Commands that wait for the trainer, at most. It takes them between two steps, and a newer place makes those before it void, so that so
/// many wait only where it stands still: the worker ends then, and its place is healed as after any death.
pub(crate) const MAX_COMMANDS: usize = 1024;
/// Events of the trainer that wait for this task, at most; beyond, the trainer waits. This task waits for no trainer, and for a coordinator that
/// does not read only until the connection is given up: a step of a millisecond has 16 seconds.
pub(crate) const MAX_EVENTS: usize = 1 << 14;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the coordinator address {address} is not valid: {error}; expected http://host:port")]
    Address { address: String, error: String },
    #[error("the coordinator refused this worker: {reason}")]
    Refused { reason: String },
    #[error("cannot make the fence of a job: {0}")]
    Fence(CommError),
    #[error(
        "the trainer took none of {MAX_COMMANDS} commands, it stands still; the worker ends, so that another takes its place"
    )]
    TrainerStandsStill,
}

impl From<CommError> for ControlError {
    fn from(error: CommError) -> ControlError {
        ControlError::Fence(error)
    }
}

/// Passes an order on to the trainer. Where that is gone, the process ends anyway.
fn pass(orders: &SyncSender<Order>, order: impl Into<Order>) -> Result<(), ControlError> {
    match orders.try_send(order.into()) {
        Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        Err(TrySendError::Full(_)) => Err(ControlError::TrainerStandsStill),
    }
}

/// What the trainer's threads tell this task with. They wait where there is no room.
pub(crate) fn emit_into(events: mpsc::Sender<TrainerEvent>) -> Emit {
    // The receiver is gone only when the process ends.
    Arc::new(move |event| drop(events.blocking_send(event)))
}

/// What the control task works with.
pub(crate) struct Control {
    pub client: Client,
    /// What is shown to a coordinator.
    pub credentials: Credentials,
    /// How long an attempt to connect may take, and a coordinator may be silent on the connection.
    pub failure_timeout: Duration,
    /// Everything of Register but what the worker does now.
    pub identity: Register,
    pub orders: SyncSender<Order>,
    pub events: mpsc::Receiver<TrainerEvent>,
    /// Dials other workers, and answers where they dial.
    pub porter: Porter,
    /// What became of that.
    pub probed: Probed,
    pub fence: JobFence,
    pub shared: Arc<Shared>,
    /// Checkpoints that it is asked for, by their traces.
    pub told: Told,
    /// What this process logs.
    pub log: Arc<Log>,
    /// Of its threads, when the trainer got on with nothing.
    pub stacks: mpsc::Receiver<Stacks>,
    /// What the worker holds of its device's memory.
    pub memory: Box<dyn Fn() -> DeviceMemory + Send + Sync>,
    /// How often it was asked to end.
    pub asked: watch::Receiver<u32>,
    /// The client's times count from here.
    pub origin: Instant,
}

/// What probes have come to; both ends of a channel.
pub(crate) struct Probed {
    sender: mpsc::Sender<toroid_proto::Probed>,
    receiver: mpsc::Receiver<toroid_proto::Probed>,
}

impl Probed {
    pub fn new() -> Probed {
        let (sender, receiver) = mpsc::channel(MAX_PROBES);
        Probed { sender, receiver }
    }
}

/// Epochs are counted by job, so each job has a fence of its own.
pub struct JobFence {
    job_id: JobId,
    fence: Fence,
}

impl JobFence {
    pub fn new() -> Result<JobFence, CommError> {
        Ok(JobFence { job_id: JobId::default(), fence: Fence::new()? })
    }

    /// The fence of this job. That of another one that was in its place ends all of its epochs.
    pub fn of(&mut self, job_id: &JobId) -> Result<Fence, CommError> {
        if self.job_id != *job_id {
            self.fence.raise(Epoch::LAST);
            *self = JobFence { job_id: job_id.clone(), fence: Fence::new()? };
        }
        Ok(self.fence.clone())
    }

    /// Nothing of the job's epochs below this one may go on.
    pub fn raise(&self, epoch: Epoch) {
        self.fence.raise(epoch);
    }
}

/// The stream to the coordinator.
enum Stream {
    Closed,
    Opening(Pin<Box<dyn Future<Output = Result<Opened, DialError>> + Send>>),
    Open(mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>),
}

impl Stream {
    /// What comes of it next, and the trace that it belongs to; nothing ever while it is closed. Nothing is lost where the caller stops waiting.
    async fn next(&mut self) -> (Input, String) {
        let input = match self {
            Stream::Closed => std::future::pending().await,
            Stream::Opening(opening) => match opening.await {
                Ok((messages, incoming)) => {
                    *self = Stream::Open(messages, incoming);
                    Input::Opened
                }
                Err(error) => {
                    *self = Stream::Closed;
                    Input::NotOpened { why: reason::in_words(error.as_ref()), leader: reason::leader(error.as_ref()) }
                }
            },
            Stream::Open(_, incoming) => loop {
                let why = match incoming.message().await {
                    Ok(Some(CoordinatorMessage { term, body: Some(body), traceparent })) => {
                        return (Input::FromCoordinator { term: Term::new(term), body }, traceparent);
                    }
                    // A message of a later version that this one does not know.
                    Ok(Some(CoordinatorMessage { body: None, .. })) => continue,
                    Ok(None) => "it closed the stream".into(),
                    Err(status) => status.to_string(),
                };
                break self.lost(why);
            },
        };
        (input, String::new())
    }

    fn lost(&mut self, why: String) -> Input {
        *self = Stream::Closed;
        Input::Lost { why }
    }

    /// Waits where the stream is full. Says whether it is lost; one that is closed already takes nothing.
    async fn send(&mut self, body: Body) -> Option<Input> {
        let Stream::Open(messages, _) = self else { return None };
        let sent = messages.send(WorkerMessage { body: Some(body) }).await;
        sent.is_err().then(|| self.lost("the stream is closed".into()))
    }

    /// The message goes now or not at all.
    fn try_send(&mut self, body: Body) -> Option<Input> {
        let Stream::Open(messages, _) = self else { return None };
        let sent = messages.try_send(WorkerMessage { body: Some(body) });
        sent.is_err().then(|| self.lost("it does not read what we send".into()))
    }
}

impl Control {
    /// Runs until the worker is to end, or until the coordinator refuses it.
    pub async fn run(mut self) -> Result<(), ControlError> {
        let ended = self.carry().await;
        self.shared.set_connected(false);
        match ended? {
            Ending::Refused { reason } => Err(ControlError::Refused { reason }),
            Ending::Asked | Ending::HasLeft | Ending::GraceOver | Ending::Unattended => Ok(()),
        }
    }

    /// Carries inputs to the client, and does what it says.
    async fn carry(&mut self) -> Result<Ending, ControlError> {
        let mut stream = Stream::Closed;
        loop {
            let deadline = self.client.deadline().map(|deadline| self.origin + deadline);
            let input = tokio::select! {
                () = sleep_until(deadline) => Input::Deadline,
                changed = self.asked.changed() => match changed {
                    Ok(()) => Input::Asked { times: *self.asked.borrow_and_update() },
                    // It ends with whoever ran it.
                    Err(_) => Input::Unattended,
                },
                (input, traceparent) = stream.next() => {
                    if let Input::FromCoordinator { body, .. } = &input {
                        self.told.heard(&self.shared, body, traceparent);
                    }
                    input
                }
                Some(event) = self.events.recv(), if self.client.takes_events() => Input::Trainer(event),
                Some(probed) = self.probed.receiver.recv(), if self.client.takes_probed() => Input::Probed(probed),
                lines = self.log.next(), if self.client.takes_probed() => match stream.try_send(log_lines(lines)) {
                    Some(lost) => lost,
                    None => continue,
                },
                Some(stacks) = self.stacks.recv(), if self.client.takes_probed() => {
                    match stream.try_send(self.stacks(stacks)) {
                        Some(lost) => lost,
                        None => continue,
                    }
                }
            };
            let ending = self.take(input, &mut stream).await?;
            self.log.set_place(self.client.standing(), self.shared.spans().trace_id());
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
    }

    /// Does what the client makes of an input, and of what comes of that.
    async fn take(&mut self, input: Input, stream: &mut Stream) -> Result<Option<Ending>, ControlError> {
        let mut outputs = VecDeque::from(self.client.handle(input, self.origin.elapsed()));
        while let Some(output) = outputs.pop_front() {
            let result = match output {
                Output::Open { coordinator, limit } => {
                    let silence = if limit.is_some() { self.failure_timeout / 2 } else { self.failure_timeout };
                    let endpoint = endpoint_of(&coordinator, self.failure_timeout, silence)?;
                    let (credentials, register) = (self.credentials.clone(), self.register());
                    *stream = Stream::Opening(Box::pin(async move {
                        let dialled = dial(endpoint, credentials, register);
                        match limit {
                            None => dialled.await,
                            Some(limit) => match tokio::time::timeout(limit, dialled).await {
                                Ok(opened) => opened,
                                Err(_) => Err(format!("{coordinator} did not answer within {limit:?}").into()),
                            },
                        }
                    }));
                    None
                }
                Output::Close => {
                    *stream = Stream::Closed;
                    None
                }
                Output::Send(body) => {
                    self.told.says(&self.shared, &body);
                    stream.send(body).await
                }
                Output::Heartbeat => stream.try_send(self.heartbeat()),
                Output::Leaving { at_once } => {
                    let reason = "the worker was asked to end".into();
                    stream.try_send(Body::Leaving(Leaving { reason, at_once }))
                }
                Output::Act(action) => self.act(action)?,
                Output::Probe { knock, limit } => {
                    self.probe(knock, limit);
                    None
                }
                Output::Connected(is_connected) => {
                    self.shared.set_connected(is_connected);
                    None
                }
                Output::Limits { connect_ms, failure_timeout_ms } => {
                    self.shared.set_connect_limit(connect_ms);
                    self.shared.set_failure_timeout(failure_timeout_ms);
                    None
                }
                Output::Die { reason } => die(&reason),
                Output::Note(note) => {
                    tracing::info!("{note}");
                    None
                }
                Output::Warn(warning) => {
                    tracing::warn!("{warning}");
                    None
                }
                Output::End(ending) => return Ok(Some(ending)),
            };
            if let Some(input) = result {
                outputs.extend(self.client.handle(input, self.origin.elapsed()));
            }
        }
        Ok(None)
    }

    /// Does what concerns the trainer; says what the client is to hear of it.
    fn act(&mut self, action: Action) -> Result<Option<Input>, ControlError> {
        match action {
            Action::Fence { epoch } => self.fence.raise(epoch),
            Action::Prepare(assignment) => {
                let fence = self.fence.of(&assignment.job_id)?;
                pass(&self.orders, Order::Prepare(assignment, fence))?;
            }
            Action::Trainer(command) => pass(&self.orders, command)?,
            Action::RequestCheckpoint { epoch, step, then } => match self.shared.request_checkpoint(step, then) {
                Requested::Ahead => {}
                Requested::Now => pass(&self.orders, Command::Checkpoint { epoch, step })?,
                Requested::TooLate { committed } => {
                    return Ok(Some(Input::CheckpointTooLate { epoch, step, committed }));
                }
            },
            Action::DropCheckpoint { epoch, step } => {
                self.shared.withdraw_checkpoint(step);
                pass(&self.orders, Command::DropShard { epoch, step })?;
            }
            Action::Recorded { step } => self.shared.set_recorded(step),
        }
        Ok(None)
    }

    /// Has a thread of its own dial the other worker, and tells the coordinator what came of it.
    fn probe(&self, knock: Knock, limit: Duration) {
        let (porter, sender) = (self.porter.clone(), self.probed.sender.clone());
        let probe = move || {
            let error = match porter.probe(&knock, limit) {
                Ok(()) => String::new(),
                Err(ProbeError::NotReached(problem)) => problem,
                // No answer says nothing about either, and the probe is made again.
                Err(busy @ ProbeError::Busy(_)) => {
                    return tracing::debug!(worker = knock.peer.worker_id.as_str(), %busy, "a probe came to nothing");
                }
            };
            if sender.try_send(toroid_proto::Probed { number: knock.number, error }).is_err() {
                tracing::debug!(number = knock.number, "nobody takes what a probe came to");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("probe".into()).spawn(probe) {
            tracing::warn!("cannot dial another worker as the coordinator asks: {error}");
        }
    }

    fn register(&self) -> Register {
        let standing = self.client.standing();
        Register {
            job_id: standing.job_id.into(),
            epoch: standing.epoch.get(),
            rank: standing.rank.to_wire(),
            committed_step: standing.committed_step.get(),
            ..self.identity.clone()
        }
    }

    fn stacks(&self, Stacks { operation, lines }: Stacks) -> Body {
        let Standing { job_id, epoch, .. } = self.client.standing();
        let (job_id, epoch, operation) = (job_id.into(), epoch.get(), operation.into());
        Body::Stacks(toroid_proto::Stacks { job_id, epoch, operation, lines })
    }

    fn heartbeat(&self) -> Body {
        Body::Heartbeat(heartbeat(self.client.standing(), &self.shared, (self.memory)()))
    }
}

fn log_lines(lines: Vec<String>) -> Body {
    Body::LogLines(toroid_proto::LogLines { lines })
}

/// What a worker says of its place and of what its trainer does.
pub fn heartbeat(standing: Standing, shared: &Shared, memory: DeviceMemory) -> Heartbeat {
    let computed = shared.computed();
    Heartbeat {
        job_id: standing.job_id.into(),
        epoch: standing.epoch.get(),
        committed_step: standing.committed_step.get(),
        operation: shared.operation().to_string(),
        waits_for: shared.waits_for().into_iter().map(Rank::to_wire).collect(),
        compute_s: computed.time.as_secs_f64(),
        compute_steps: computed.num_steps,
        sealed_next: shared.has_sealed_after(standing.committed_step),
        progress: shared.progress(),
        memory_bytes: memory.held,
        memory_free_bytes: memory.free.unwrap_or(0),
        links: shared.links().into_iter().map(|(kind, num)| (kind.to_string(), num as u32)).collect(),
    }
}

/// As a death comes: no destructor runs, nothing is flushed, closed or said.
fn die(reason: &str) -> ! {
    tracing::warn!("ends at once: {reason}");
    // Nothing is left to do about an error: the process ends either way.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

type Opened = (mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>);
type DialError = Box<dyn std::error::Error + Send + Sync>;

/// Opens a stream and registers on it.
async fn dial(endpoint: Endpoint, credentials: Credentials, register: Register) -> Result<Opened, DialError> {
    let channel: Channel = toroid_security::connect(endpoint, &credentials).await?;
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
    let (sender, receiver) = mpsc::channel(QUEUE);
    sender.send(WorkerMessage { body: Some(Body::Register(register)) }).await?;
    let stream = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    Ok((sender, stream))
}

/// `silence`: after which a coordinator is left. Where another may lead meanwhile, that has to be soon: the next leader waits for `failure_timeout` until it counts those as
/// lost who have not come to it.
fn endpoint_of(coordinator: &str, failure_timeout: Duration, silence: Duration) -> Result<Endpoint, ControlError> {
    // What is spoken is the matter of the credentials.
    let authority = coordinator.split_once("://").map_or(coordinator, |(_, authority)| authority);
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| ControlError::Address { address: coordinator.into(), error: e.to_string() })?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(failure_timeout)
        .http2_keep_alive_interval(silence / 2)
        .keep_alive_timeout(silence / 2)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use toroid_session::Event;
    use toroid_session::client::Settings;
    use toroid_torus::ids::Step;

    use super::*;
    use crate::comm::{LinkChoice, LinkKind, Listener};

    /// What a worker's log says of a coordinator at `address`.
    fn said(address: &str) -> Result<String, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = endpoint_of(address, Duration::from_millis(500), Duration::from_millis(500))?;
        let error = runtime
            .block_on(dial(endpoint, Credentials::none(), Register::default()))
            .err()
            .ok_or("nobody is there")?;
        Ok(reason::in_words(error.as_ref()))
    }

    #[test]
    fn what_keeps_a_worker_from_its_coordinator_is_said_in_words() -> Result<(), Box<dyn std::error::Error>> {
        let check = |address: &str, expected: &str| -> Result<(), Box<dyn std::error::Error>> {
            let words = said(address)?;
            assert!(words.contains(expected), "{address}: {words}");
            Ok(())
        };
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        check(&format!("http://{free}"), "nothing listens there")?;
        check("http://no-such-host.invalid:7070", "there is no host of that name")?;
        let web = TcpListener::bind("127.0.0.1:0")?;
        let address = web.local_addr()?;
        std::thread::spawn(move || {
            for stream in web.incoming().flatten() {
                let mut stream = stream;
                // As a web server does, it hears the request first, and out: what is unread when it closes would reset the connection.
                // Whoever has gone does not hear it.
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        check(&format!("http://{address}"), "speaks no gRPC")?;
        let silent = TcpListener::bind("127.0.0.1:0")?;
        check(&format!("http://{}", silent.local_addr()?), "takes the connection and answers nothing")
    }

    fn control(shared: Shared) -> Result<Control, CommError> {
        let listener = Listener::bind("127.0.0.1:0", "w1", LinkChoice::Auto)?;
        let (heartbeat, failure_timeout) = (Duration::from_secs(1), Duration::from_secs(5));
        let leave_grace = Duration::from_secs(25);
        let settings = Settings {
            coordinators: vec![String::new()],
            heartbeat,
            failure_timeout,
            leave_grace,
            own_leave_grace: None,
        };
        Ok(Control {
            client: Client::new(settings),
            credentials: Credentials::none(),
            failure_timeout,
            identity: Register::default(),
            orders: std::sync::mpsc::sync_channel(1).0,
            events: mpsc::channel(1).1,
            porter: listener.porter("w1")?,
            probed: Probed::new(),
            fence: JobFence::new()?,
            shared: Arc::new(shared),
            told: Told::default(),
            log: Arc::default(),
            stacks: mpsc::channel(1).1,
            memory: Box::new(|| DeviceMemory { held: 5, free: Some(9) }),
            asked: watch::channel(0).1,
            origin: Instant::now(),
        })
    }

    #[test]
    fn a_heartbeat_says_what_the_trainer_has_done() -> Result<(), CommError> {
        let said = |shared| -> Result<Heartbeat, CommError> {
            match control(shared)?.heartbeat() {
                Body::Heartbeat(heartbeat) => Ok(heartbeat),
                other => panic!("it is {other:?}"),
            }
        };
        let idle = said(Shared::default())?;
        assert_eq!((idle.compute_steps, idle.compute_s, idle.sealed_next), (0, 0.0, false));
        // It has committed no step, and holds all that the first one needs.
        let shared = Shared::that_has_worked(7, Duration::from_millis(250), Step::new(1));
        shared.set_links([(LinkKind::Shm, 3), (LinkKind::Tcp, 1)].into());
        let busy = said(shared)?;
        assert_eq!(busy.links, [("shm".to_string(), 3), ("tcp".to_string(), 1)].into());
        assert_eq!((busy.compute_steps, busy.compute_s, busy.sealed_next), (7, 0.25, true));
        assert_eq!((busy.memory_bytes, busy.memory_free_bytes), (5, 9));
        let ahead = said(Shared::that_has_worked(7, Duration::from_millis(250), Step::new(2)))?;
        assert!(!ahead.sealed_next, "that is not the next step");
        Ok(())
    }

    #[test]
    fn a_trainer_that_stands_still_ends_the_worker_and_one_that_is_gone_does_not() {
        let (commands, to_do) = std::sync::mpsc::sync_channel(MAX_COMMANDS);
        for epoch in 0..MAX_COMMANDS as u64 {
            pass(&commands, Command::Drop { epoch: Epoch::new(epoch) }).expect("there is room");
        }
        let error = pass(&commands, Command::Drop { epoch: Epoch::NONE }).expect_err("there is no room").to_string();
        assert!(error.contains("took none of 1024 commands"), "{error}");
        drop(to_do);
        pass(&commands, Command::Drop { epoch: Epoch::NONE }).expect("the process ends anyway");
    }

    #[test]
    fn events_that_have_no_room_wait_and_none_is_lost() {
        let (events, mut received) = mpsc::channel(1);
        let emit = emit_into(events);
        let trainer = std::thread::spawn(move || {
            for step in Step::new(1).through(Step::new(100)) {
                emit(TrainerEvent { job_id: "j".into(), epoch: Epoch::new(1), event: Event::Finished { step } });
            }
        });
        let mut steps = Vec::new();
        while let Some(event) = received.blocking_recv() {
            if let Event::Finished { step } = event.event {
                steps.push(step.get());
            }
        }
        trainer.join().expect("the trainer ends");
        assert_eq!(steps, (1..=100).collect::<Vec<u64>>());
    }
}
