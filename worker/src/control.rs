//! The control stream: the driver around [`crate::session::Session`].
//!
//! One task owns the session. It connects to the coordinator again and again (with growing pauses up to a second), says who it is,
//! and then carries messages both ways and a heartbeat at the coordinator's interval. Training does not wait for any of it (T-9).

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{CoordinatorMessage, Heartbeat, Leaving, Register, WorkerMessage};

use crate::comm::{CommError, Fence};
use crate::device::DeviceMemory;
use crate::session::{Input, Output, Session};
use crate::trainer::{Command, Requested, Shared, TrainerEvent};

/// Messages that wait for the stream, at most; more means that the coordinator does not read, and the stream is opened anew.
const QUEUE: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the coordinator address {address} is not valid: {error}; expected http://host:port")]
    Address { address: String, error: String },
    #[error("the coordinator refused this worker: {reason}")]
    Refused { reason: String },
    #[error("cannot make the fence of a job: {0}")]
    Fence(#[from] CommError),
}

/// What the control task works with.
pub(crate) struct Control {
    pub coordinator: String,
    /// Everything of Register but what the worker does now.
    pub identity: Register,
    pub session: Session,
    pub commands: Sender<Command>,
    pub events: mpsc::UnboundedReceiver<TrainerEvent>,
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
}

/// Epochs are counted by job, so each job has a fence of its own.
pub(crate) struct JobFence {
    job_id: String,
    fence: Fence,
}

impl JobFence {
    pub fn new() -> Result<JobFence, CommError> {
        Ok(JobFence { job_id: String::new(), fence: Fence::new()? })
    }

    /// The fence of this job. That of another one that was in its place ends all of its epochs.
    fn of(&mut self, job_id: &str) -> Result<Fence, CommError> {
        if self.job_id != job_id {
            self.fence.raise(u64::MAX);
            *self = JobFence { job_id: job_id.to_string(), fence: Fence::new()? };
        }
        Ok(self.fence.clone())
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
}

impl Control {
    /// Runs until the worker is to end, or until the coordinator refuses it.
    pub async fn run(mut self) -> Result<(), ControlError> {
        let endpoint = self.endpoint()?;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut asks = self.asked.clone();
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
                    pause = FIRST_PAUSE;
                    let ended = self.carry(messages, stream).await;
                    self.shared.set_connected(false);
                    match ended? {
                        Ended::Shutdown => return Ok(()),
                        Ended::Lost(why) => tracing::warn!("lost the coordinator, training goes on: {why}"),
                    }
                }
                Some(Err(error)) => tracing::debug!("cannot reach the coordinator at {}: {error}", self.coordinator),
                None => continue,
            }
            if self.wait(pause).await? {
                return Ok(());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
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

    fn endpoint(&self) -> Result<Endpoint, ControlError> {
        let endpoint = Endpoint::from_shared(self.coordinator.clone())
            .map_err(|e| ControlError::Address { address: self.coordinator.clone(), error: e.to_string() })?;
        Ok(endpoint
            .tcp_nodelay(true)
            .connect_timeout(self.failure_timeout)
            .http2_keep_alive_interval(self.failure_timeout / 2)
            .keep_alive_timeout(self.failure_timeout / 2)
            .keep_alive_while_idle(true))
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>), Box<dyn std::error::Error + Send + Sync>>
    {
        let channel: Channel = endpoint.connect().await?;
        let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let standing = self.session.standing();
        let register = Register {
            job_id: standing.job_id,
            epoch: standing.epoch,
            rank: standing.rank,
            committed_step: standing.committed_step,
            ..self.identity.clone()
        };
        sender.send(WorkerMessage { body: Some(Body::Register(register)) }).await?;
        let stream = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok((sender, stream))
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
        loop {
            let input = tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(CoordinatorMessage { body: Some(body) })) => Input::FromCoordinator(body),
                    Ok(Some(CoordinatorMessage { body: None })) => continue,
                    Ok(None) => return Ok(Ended::Lost("it closed the stream".into())),
                    Err(status) => return Ok(Ended::Lost(status.to_string())),
                },
                Some(event) = self.events.recv(), if welcome => Input::Trainer(event),
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
            if !welcome && matches!(input, Input::FromCoordinator(_)) {
                welcome = true;
                self.shared.set_connected(true);
                if self.leaves_at.is_some() {
                    // Another coordinator may not have heard of it.
                    let _ = messages.try_send(leaving(false));
                }
            }
            let interval = self.heartbeat;
            for output in self.session.handle(input) {
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
            Output::Fence { epoch } => self.fence.fence.raise(epoch),
            Output::Prepare(assignment) => {
                let fence = self.fence.of(&assignment.job_id)?;
                let _ = self.commands.send(Command::Prepare(assignment, fence));
            }
            Output::Trainer(command) => {
                // The trainer thread ends only with the process.
                let _ = self.commands.send(command);
            }
            Output::RequestCheckpoint { epoch, step, then } => match self.shared.request_checkpoint(step, then) {
                Requested::Ahead => {}
                // The trainer thread ends only with the process.
                Requested::Now => drop(self.commands.send(Command::Checkpoint { epoch, step })),
                Requested::TooLate { committed } => {
                    let late = self.session.handle(Input::CheckpointTooLate { epoch, step, committed });
                    return Ok(late.into_iter().find_map(|o| match o {
                        Output::Send(body) => Some(body),
                        _ => None,
                    }));
                }
            },
            Output::Recorded { step } => self.shared.set_recorded(step),
            Output::Intervals { heartbeat_ms, failure_timeout_ms, leave_grace_ms } => {
                let of_coordinator = Duration::from_millis(u64::from(leave_grace_ms));
                self.leave_grace = self.own_leave_grace.unwrap_or(of_coordinator);
                self.heartbeat = Duration::from_millis(u64::from(heartbeat_ms.max(1)));
                self.failure_timeout = Duration::from_millis(u64::from(failure_timeout_ms.max(1)));
            }
            Output::Refused { reason } => return Err(ControlError::Refused { reason }),
            Output::Note(note) => tracing::info!("{note}"),
        }
        Ok(None)
    }

    fn heartbeat_message(&self) -> WorkerMessage {
        let (standing, memory) = (self.session.standing(), (self.memory)());
        let heartbeat = Heartbeat {
            job_id: standing.job_id,
            epoch: standing.epoch,
            committed_step: standing.committed_step,
            operation: self.shared.operation().to_string(),
            waits_for: self.shared.waits_for().into_iter().map(|r| r as u32).collect(),
            compute_s: 0.0,
            sealed_next: false,
            progress: self.shared.progress(),
            memory_bytes: memory.held,
            memory_free_bytes: memory.free.unwrap_or(0),
        };
        WorkerMessage { body: Some(Body::Heartbeat(heartbeat)) }
    }
}

/// Assignments to jobs of thousands of places are long.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
