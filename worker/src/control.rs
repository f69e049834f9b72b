//! The control stream: the driver around [`crate::session::Session`].
//!
//! One task owns the session. It connects to the coordinator again and again (with growing pauses up to a second), says who it is,
//! and then carries messages both ways and a heartbeat at the coordinator's interval. Training does not wait for any of it (T-9).
//! Whoever reads the log hears at once, and then now and then, why there is no coordinator (`outage`).

mod outage;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::limits::COORDINATOR_MESSAGE_BYTES_MAX;
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{CoordinatorMessage, Heartbeat, Leaving, Register, WorkerMessage};

use toroid_session::{Command, Input, Knock, Output, Session, TrainerEvent};

use crate::comm::{CommError, Fence, MAX_PROBES, Porter, ProbeError};
use crate::device::DeviceMemory;
use crate::trainer::{Emit, Order, Requested, Shared};
use outage::Kind;
pub(crate) use outage::Outage;

/// Messages that wait for the stream, at most; more means that the coordinator does not read, and the stream is opened anew.
const QUEUE: usize = 4096;
/// Commands that wait for the trainer, at most. It takes them between two steps, and a newer place makes those before it void, so that so
/// many wait only where it stands still: the worker ends then, and its place is healed as after any death.
pub(crate) const MAX_COMMANDS: usize = 1024;
/// Events of the trainer that wait for this task, at most; beyond, the trainer waits. This task waits for no trainer, and for a coordinator that
/// does not read only until the connection is given up: a step of a millisecond has 16 seconds.
pub(crate) const MAX_EVENTS: usize = 1 << 14;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    pub coordinator: String,
    /// Everything of Register but what the worker does now.
    pub identity: Register,
    pub session: Session,
    pub orders: SyncSender<Order>,
    pub events: mpsc::Receiver<TrainerEvent>,
    /// Dials other workers, and answers where they dial.
    pub porter: Porter,
    /// What became of that.
    pub probed: Probed,
    pub fence: JobFence,
    pub shared: Arc<Shared>,
    /// What the worker holds of its device's memory.
    pub memory: Box<dyn Fn() -> DeviceMemory + Send + Sync>,
    pub heartbeat: Duration,
    pub failure_timeout: Duration,
    /// How long it stays after it was asked to end, for its place to be moved or its job to be saved.
    pub leave_grace: Duration,
    /// The same, where whoever runs it has said so; else the coordinator does.
    pub own_leave_grace: Option<Duration>,
    /// It was asked to end, and does so then at the latest.
    pub leaves_at: Option<Instant>,
    /// How often it was asked to end.
    pub asked: watch::Receiver<u32>,
    pub outage: Outage,
    /// Times of the outage count from here.
    pub origin: Instant,
}

/// Of the failure timeout, within which the coordinator waits for the answer.
const PROBE_SHARE: f64 = 0.8;

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
    job_id: String,
    fence: Fence,
}

impl JobFence {
    pub fn new() -> Result<JobFence, CommError> {
        Ok(JobFence { job_id: String::new(), fence: Fence::new()? })
    }

    /// The fence of this job. That of another one that was in its place ends all of its epochs.
    pub fn of(&mut self, job_id: &str) -> Result<Fence, CommError> {
        if self.job_id != job_id {
            self.fence.raise(u64::MAX);
            *self = JobFence { job_id: job_id.to_string(), fence: Fence::new()? };
        }
        Ok(self.fence.clone())
    }

    /// Nothing of the job's epochs below this one may go on.
    pub fn raise(&self, epoch: u64) {
        self.fence.raise(epoch);
    }
}

/// What the worker is asked for by whoever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// To end once its place is moved.
    ToLeave,
    /// To end now; or its time is over.
    AtOnce,
}

/// The next time that the worker is asked to end, or the end of its time.
async fn asked(asked: &mut watch::Receiver<u32>, until: Option<Instant>) -> Ask {
    let over = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // Nobody is left to ask: it ends with whoever ran it.
        changed = asked.changed() => match changed {
            Ok(()) if *asked.borrow() <= 1 => Ask::ToLeave,
            Ok(()) | Err(_) => Ask::AtOnce,
        },
        () = over => Ask::AtOnce,
    }
}

fn leaving(at_once: bool) -> WorkerMessage {
    let reason = "the worker was asked to end".into();
    WorkerMessage { body: Some(Body::Leaving(Leaving { reason, at_once })) }
}

/// Why a stream ended.
enum Ended {
    Shutdown,
    Lost(String),
    /// Another process has this worker's id.
    IdInUse(String),
}

impl Control {
    /// Runs until the worker is to end, or until the coordinator refuses it.
    pub async fn run(mut self) -> Result<(), ControlError> {
        let endpoint = endpoint_of(&self.coordinator, self.failure_timeout)?;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut asks = self.asked.clone();
            let mut longest = LONGEST_PAUSE;
            let connected = tokio::select! {
                connected = self.connect(&endpoint) => Some(connected),
                ask = asked(&mut asks, self.leaves_at) => {
                    if self.leave(ask) {
                        return Ok(());
                    }
                    None
                }
            };
            match connected {
                Some(Ok((messages, stream))) => {
                    let began = Instant::now();
                    let ended = self.carry(messages, stream).await;
                    self.shared.set_connected(false);
                    // A coordinator that takes the worker and drops it again and again is not asked without a pause.
                    if began.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                    match ended? {
                        Ended::Shutdown => return Ok(()),
                        Ended::Lost(why) => {
                            if self.is_to_be_said(Kind::Lost).is_some() {
                                tracing::warn!("lost the coordinator, training goes on: {why}");
                            }
                        }
                        Ended::IdInUse(why) => {
                            longest = self.failure_timeout.max(LONGEST_PAUSE);
                            if let Some(lasted) = self.is_to_be_said(Kind::IdInUse) {
                                tracing::warn!("not taken since {:.0} s, tries again: {why}", lasted.as_secs_f64());
                            }
                        }
                    }
                }
                Some(Err(error)) => {
                    if let Some(lasted) = self.is_to_be_said(Kind::Unreachable) {
                        let (address, lasted) = (&self.coordinator, lasted.as_secs_f64());
                        let why = outage::in_words(error.as_ref());
                        tracing::warn!("no coordinator at {address} since {lasted:.0} s, tries again: {why}");
                    }
                }
                None => continue,
            }
            if self.wait(pause).await? {
                return Ok(());
            }
            pause = (pause * 2).min(longest);
        }
    }

    fn is_to_be_said(&mut self, kind: Kind) -> Option<Duration> {
        self.outage.failed(kind, self.origin.elapsed())
    }

    /// Whether the worker ends now. One with a place stays, for the place to be moved, until its time is over or it is asked again.
    fn leave(&mut self, ask: Ask) -> bool {
        self.asked.mark_unchanged();
        if ask == Ask::AtOnce || self.has_left() {
            return true;
        }
        let (job, grace_s) = (self.session.standing().job_id, self.leave_grace.as_secs_f64());
        tracing::info!(
            "stays until its place in {job} is moved or the job is saved, {grace_s} s at most; asked again it ends at once"
        );
        self.leaves_at = Some(Instant::now() + self.leave_grace);
        false
    }

    /// It has no place, so nobody needs it.
    fn has_left(&self) -> bool {
        self.session.standing().job_id.is_empty()
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Opened, DialError> {
        let standing = self.session.standing();
        let register = Register {
            job_id: standing.job_id,
            epoch: standing.epoch,
            rank: standing.rank,
            committed_step: standing.committed_step,
            ..self.identity.clone()
        };
        dial(endpoint, register).await
    }

    /// Carries messages until the stream ends.
    async fn carry(
        &mut self,
        messages: mpsc::Sender<WorkerMessage>,
        mut stream: Streaming<CoordinatorMessage>,
    ) -> Result<Ended, ControlError> {
        let mut heartbeat = tokio::time::interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Before the Welcome the coordinator does not know us: events wait in their channel.
        let mut welcome = false;
        let mut asks = self.asked.clone();
        let mut slow = std::pin::pin!(tokio::time::sleep(self.failure_timeout));
        let mut is_slow = false;
        loop {
            let input = tokio::select! {
                () = &mut slow, if !welcome && !is_slow => {
                    is_slow = true;
                    let (address, limit_s) = (&self.coordinator, self.failure_timeout.as_secs_f64());
                    tracing::warn!("{address} takes the connection and has not answered for {limit_s} s; waits on");
                    continue;
                }
                message = stream.message() => match message {
                    Ok(Some(CoordinatorMessage { body: Some(body) })) => Input::FromCoordinator(body),
                    Ok(Some(CoordinatorMessage { body: None })) => continue,
                    Ok(None) => return Ok(Ended::Lost("it closed the stream".into())),
                    Err(status) => return Ok(Ended::Lost(status.to_string())),
                },
                Some(event) = self.events.recv(), if welcome => Input::Trainer(event),
                Some(probed) = self.probed.receiver.recv(), if welcome => {
                    if messages.send(WorkerMessage { body: Some(Body::Probed(probed)) }).await.is_err() {
                        return Ok(Ended::Lost("the stream is closed".into()));
                    }
                    continue;
                },
                _ = heartbeat.tick(), if welcome => {
                    if messages.try_send(self.heartbeat_message()).is_err() {
                        return Ok(Ended::Lost("it does not read what we send".into()));
                    }
                    continue;
                },
                ask = asked(&mut asks, self.leaves_at) => {
                    let ends = self.leave(ask);
                    // The stream may be gone already; then the coordinator sees that.
                    let _ = messages.try_send(leaving(ends));
                    if ends {
                        return Ok(Ended::Shutdown);
                    }
                    continue;
                }
            };
            if !welcome && matches!(input, Input::FromCoordinator(FromCoordinator::Welcome(_))) {
                welcome = true;
                if let Some(lasted) = self.outage.over(self.origin.elapsed()) {
                    tracing::info!("the coordinator answers, after {:.1} s", lasted.as_secs_f64());
                }
                self.shared.set_connected(true);
                if self.leaves_at.is_some() {
                    // Another coordinator may not have heard of it.
                    let _ = messages.try_send(leaving(false));
                }
            }
            let interval = self.heartbeat;
            for output in self.session.handle(input) {
                if let Output::IdInUse { reason } = output {
                    return Ok(Ended::IdInUse(reason));
                }
                if let Some(body) = self.execute(output)?
                    && messages.send(WorkerMessage { body: Some(body) }).await.is_err()
                {
                    return Ok(Ended::Lost("the stream is closed".into()));
                }
            }
            if self.leaves_at.is_some() && self.has_left() {
                tracing::info!("it has no place any more: it ends");
                return Ok(Ended::Shutdown);
            }
            if self.heartbeat != interval {
                heartbeat = tokio::time::interval(self.heartbeat);
            }
        }
    }

    /// Without a coordinator: the session still hears of what the trainer does. Says whether the worker is to end.
    async fn wait(&mut self, pause: Duration) -> Result<bool, ControlError> {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        let mut asks = self.asked.clone();
        loop {
            tokio::select! {
                () = &mut end => return Ok(false),
                ask = asked(&mut asks, self.leaves_at) => {
                    if self.leave(ask) {
                        return Ok(true);
                    }
                }
                Some(event) = self.events.recv() => {
                    for output in self.session.handle(Input::Trainer(event)) {
                        // What is to be sent is said again after the next Welcome.
                        let _unsent = self.execute(output)?;
                    }
                }
            }
        }
    }

    /// Does what the session decided; what is to be sent comes back.
    fn execute(&mut self, output: Output) -> Result<Option<Body>, ControlError> {
        match output {
            Output::Send(body) => return Ok(Some(body)),
            Output::Fence { epoch } => self.fence.raise(epoch),
            Output::Prepare(assignment) => {
                let fence = self.fence.of(&assignment.job_id)?;
                pass(&self.orders, Order::Prepare(assignment, fence))?;
            }
            Output::Trainer(command) => pass(&self.orders, command)?,
            Output::RequestCheckpoint { epoch, step, then } => match self.shared.request_checkpoint(step, then) {
                Requested::Ahead => {}
                Requested::Now => pass(&self.orders, Command::Checkpoint { epoch, step })?,
                Requested::TooLate { committed } => {
                    let late = self.session.handle(Input::CheckpointTooLate { epoch, step, committed });
                    return Ok(late.into_iter().find_map(|o| match o {
                        Output::Send(body) => Some(body),
                        _ => None,
                    }));
                }
            },
            Output::DropCheckpoint { epoch, step } => {
                self.shared.withdraw_checkpoint(step);
                pass(&self.orders, Command::DropShard { epoch, step })?;
            }
            Output::Recorded { step } => self.shared.set_recorded(step),
            Output::Probe(knock) => self.probe(knock),
            Output::Intervals { heartbeat_ms, failure_timeout_ms, leave_grace_ms, connect_limit_ms } => {
                self.shared.set_connect_limit(connect_limit_ms);
                let of_coordinator = Duration::from_millis(u64::from(leave_grace_ms));
                self.leave_grace = self.own_leave_grace.unwrap_or(of_coordinator);
                self.heartbeat = Duration::from_millis(u64::from(heartbeat_ms.max(1)));
                self.failure_timeout = Duration::from_millis(u64::from(failure_timeout_ms.max(1)));
            }
            // Its stream ends, and it tries again: see `carry`.
            Output::IdInUse { reason } => tracing::warn!("{reason}"),
            Output::Refused { reason } => return Err(ControlError::Refused { reason }),
            Output::Note(note) => tracing::info!("{note}"),
        }
        Ok(None)
    }

    /// Has a thread of its own dial the other worker, and tells the coordinator what came of it.
    fn probe(&self, knock: Knock) {
        let (porter, limit) = (self.porter.clone(), self.failure_timeout.mul_f64(PROBE_SHARE));
        let sender = self.probed.sender.clone();
        let probe = move || {
            let error = match porter.probe(&knock, limit) {
                Ok(()) => String::new(),
                Err(ProbeError::NotReached(problem)) => problem,
                // No answer says nothing about either, and the probe is made again.
                Err(busy @ ProbeError::Busy(_)) => {
                    return tracing::debug!(worker = knock.peer.worker_id, %busy, "a probe came to nothing");
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

    fn heartbeat_message(&self) -> WorkerMessage {
        let (standing, memory, computed) = (self.session.standing(), (self.memory)(), self.shared.computed());
        let heartbeat = Heartbeat {
            job_id: standing.job_id,
            epoch: standing.epoch,
            committed_step: standing.committed_step,
            operation: self.shared.operation().to_string(),
            waits_for: self.shared.waits_for().into_iter().map(|r| r as u32).collect(),
            compute_s: computed.time.as_secs_f64(),
            compute_steps: computed.num_steps,
            sealed_next: self.shared.has_sealed_after(standing.committed_step),
            progress: self.shared.progress(),
            memory_bytes: memory.held,
            memory_free_bytes: memory.free.unwrap_or(0),
        };
        WorkerMessage { body: Some(Body::Heartbeat(heartbeat)) }
    }
}

type Opened = (mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>);
type DialError = Box<dyn std::error::Error + Send + Sync>;

/// Opens a stream and registers on it.
async fn dial(endpoint: &Endpoint, register: Register) -> Result<Opened, DialError> {
    let channel: Channel = endpoint.connect().await?;
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
    let (sender, receiver) = mpsc::channel(QUEUE);
    sender.send(WorkerMessage { body: Some(Body::Register(register)) }).await?;
    let stream = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    Ok((sender, stream))
}

fn endpoint_of(coordinator: &str, failure_timeout: Duration) -> Result<Endpoint, ControlError> {
    let endpoint = Endpoint::from_shared(coordinator.to_string())
        .map_err(|e| ControlError::Address { address: coordinator.into(), error: e.to_string() })?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(failure_timeout)
        .http2_keep_alive_interval(failure_timeout / 2)
        .keep_alive_timeout(failure_timeout / 2)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use toroid_session::Event;

    use super::*;
    use crate::comm::{LinkChoice, Listener};

    /// What a worker's log says of a coordinator at `address`.
    fn said(address: &str) -> Result<String, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = endpoint_of(address, Duration::from_millis(500))?;
        let error = runtime.block_on(dial(&endpoint, Register::default())).err().ok_or("nobody is there")?;
        Ok(outage::in_words(error.as_ref()))
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
        Ok(Control {
            coordinator: String::new(),
            identity: Register::default(),
            session: Session::new(),
            orders: std::sync::mpsc::sync_channel(1).0,
            events: mpsc::channel(1).1,
            fence: JobFence::new()?,
            shared: Arc::new(shared),
            memory: Box::new(|| DeviceMemory { held: 5, free: Some(9) }),
            heartbeat: Duration::from_secs(1),
            failure_timeout: Duration::from_secs(5),
            leave_grace: Duration::from_secs(25),
            own_leave_grace: None,
            leaves_at: None,
            asked: watch::channel(0).1,
            outage: Outage::default(),
            origin: Instant::now(),
            porter: listener.porter("w1")?,
            probed: Probed::new(),
        })
    }

    #[test]
    fn a_heartbeat_says_what_the_trainer_has_done() -> Result<(), CommError> {
        let said = |shared| -> Result<Heartbeat, CommError> {
            match control(shared)?.heartbeat_message().body {
                Some(Body::Heartbeat(heartbeat)) => Ok(heartbeat),
                other => panic!("it is {other:?}"),
            }
        };
        let idle = said(Shared::default())?;
        assert_eq!((idle.compute_steps, idle.compute_s, idle.sealed_next), (0, 0.0, false));
        // It has committed no step, and holds all that the first one needs.
        let busy = said(Shared::that_has_worked(7, Duration::from_millis(250), 1))?;
        assert_eq!((busy.compute_steps, busy.compute_s, busy.sealed_next), (7, 0.25, true));
        assert_eq!((busy.memory_bytes, busy.memory_free_bytes), (5, 9));
        let ahead = said(Shared::that_has_worked(7, Duration::from_millis(250), 2))?;
        assert!(!ahead.sealed_next, "that is not the next step");
        Ok(())
    }

    #[test]
    fn a_trainer_that_stands_still_ends_the_worker_and_one_that_is_gone_does_not() {
        let (commands, to_do) = std::sync::mpsc::sync_channel(MAX_COMMANDS);
        for epoch in 0..MAX_COMMANDS as u64 {
            pass(&commands, Command::Drop { epoch }).expect("there is room");
        }
        let error = pass(&commands, Command::Drop { epoch: 0 }).expect_err("there is no room").to_string();
        assert!(error.contains("took none of 1024 commands"), "{error}");
        drop(to_do);
        pass(&commands, Command::Drop { epoch: 0 }).expect("the process ends anyway");
    }

    #[test]
    fn events_that_have_no_room_wait_and_none_is_lost() {
        let (events, mut received) = mpsc::channel(1);
        let emit = emit_into(events);
        let trainer = std::thread::spawn(move || {
            for step in 1..=100 {
                emit(TrainerEvent { job_id: "j".into(), epoch: 1, event: Event::Finished { step } });
            }
        });
        let mut steps = Vec::new();
        while let Some(event) = received.blocking_recv() {
            if let Event::Finished { step } = event.event {
                steps.push(step);
            }
        }
        trainer.join().expect("the trainer ends");
        assert_eq!(steps, (1..=100).collect::<Vec<u64>>());
    }
}
