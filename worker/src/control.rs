//! The control stream: the driver around [`crate::session::Session`].
//!
//! One task owns the session. It connects to the coordinator again and again (with growing pauses up to a second), says who it is,
//! and then carries messages both ways and a heartbeat at the coordinator's interval. Training does not wait for any of it (T-9).

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{CoordinatorMessage, Heartbeat, Leaving, Register, WorkerMessage};

use crate::comm::{CommError, Fence};
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
    pub heartbeat: Duration,
    pub failure_timeout: Duration,
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

/// Why a stream ended.
enum Ended {
    Shutdown,
    Lost(String),
}

impl Control {
    /// Runs until `shutdown`, or until the coordinator refuses this worker.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), ControlError> {
        let endpoint = self.endpoint()?;
        tokio::pin!(shutdown);
        let mut pause = FIRST_PAUSE;
        loop {
            let connected = tokio::select! {
                connected = self.connect(&endpoint) => connected,
                () = &mut shutdown => return Ok(()),
            };
            match connected {
                Ok((messages, stream)) => {
                    pause = FIRST_PAUSE;
                    let ended = self.carry(messages, stream, shutdown.as_mut()).await;
                    self.shared.set_connected(false);
                    match ended? {
                        Ended::Shutdown => return Ok(()),
                        Ended::Lost(why) => tracing::warn!("lost the coordinator, training goes on: {why}"),
                    }
                }
                Err(error) => tracing::debug!("cannot reach the coordinator at {}: {error}", self.coordinator),
            }
            self.wait(pause, shutdown.as_mut()).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
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
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Ended, ControlError> {
        let mut heartbeat = tokio::time::interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Before the Welcome the coordinator does not know us: events wait in their channel.
        let mut welcome = false;
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
                () = &mut shutdown => {
                    let leaving = Body::Leaving(Leaving { reason: "the worker was asked to end".into() });
                    // The stream may be gone already; then the coordinator sees that.
                    let _ = messages.try_send(WorkerMessage { body: Some(leaving) });
                    return Ok(Ended::Shutdown);
                }
            };
            if !welcome && matches!(input, Input::FromCoordinator(_)) {
                welcome = true;
                self.shared.set_connected(true);
            }
            let interval = self.heartbeat;
            for output in self.session.handle(input) {
                if let Some(body) = self.execute(output)?
                    && messages.send(WorkerMessage { body: Some(body) }).await.is_err()
                {
                    return Ok(Ended::Lost("the stream is closed".into()));
                }
            }
            if self.heartbeat != interval {
                heartbeat = tokio::time::interval(self.heartbeat);
            }
        }
    }

    /// Without a coordinator: the session still hears of what the trainer does.
    async fn wait(
        &mut self,
        pause: Duration,
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), ControlError> {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                () = &mut shutdown => return Ok(()),
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
            Output::RequestCheckpoint { epoch, step } => match self.shared.request_checkpoint(step) {
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
            Output::Intervals { heartbeat_ms, failure_timeout_ms } => {
                self.heartbeat = Duration::from_millis(u64::from(heartbeat_ms.max(1)));
                self.failure_timeout = Duration::from_millis(u64::from(failure_timeout_ms.max(1)));
            }
            Output::Refused { reason } => return Err(ControlError::Refused { reason }),
            Output::Note(note) => tracing::info!("{note}"),
        }
        Ok(None)
    }

    fn heartbeat_message(&self) -> WorkerMessage {
        let standing = self.session.standing();
        let heartbeat = Heartbeat {
            job_id: standing.job_id,
            epoch: standing.epoch,
            committed_step: standing.committed_step,
            operation: self.shared.operation().to_string(),
            waits_for: self.shared.waits_for().into_iter().map(|r| r as u32).collect(),
            compute_s: 0.0,
            sealed_next: false,
            progress: self.shared.progress(),
        };
        WorkerMessage { body: Some(Body::Heartbeat(heartbeat)) }
    }
}

/// Assignments to jobs of thousands of places are long.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
