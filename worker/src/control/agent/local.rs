//! The agent's side of its workers: `WorkerService.Session`, as a coordinator serves it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use toroid_proto::from_worker_of_host::What;
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_server::WorkerService;
use toroid_proto::{CoordinatorMessage, HostAnswer, HostMessage, Register, WorkerMessage, build};

use super::upstream::{Line, Link, QUEUE, Standing};

/// A worker that comes while the agent has no coordinator waits for so long: less than a worker that has other addresses waits for one.
const PATIENCE: Duration = Duration::from_millis(800);

/// What the workers of an agent call.
pub struct Local {
    standing: watch::Receiver<Standing>,
    /// Of a new stream, for its first message.
    limit: Duration,
}

impl Local {
    pub(super) fn new(standing: watch::Receiver<Standing>, limit: Duration) -> Local {
        Local { standing, limit }
    }

    /// The stream to the coordinator, as soon as there is one.
    async fn link(&self) -> Result<Arc<Link>, Status> {
        let mut standing = self.standing.clone();
        let there = timeout(PATIENCE, standing.wait_for(|standing| matches!(standing, Standing::There(_)))).await;
        if let Ok(Ok(standing)) = there
            && let Standing::There(link) = &*standing
        {
            return Ok(Arc::clone(link));
        }
        let why = match &*self.standing.borrow() {
            Standing::Away { why } => why.clone(),
            Standing::There(_) => "it has only just found one".into(),
        };
        Err(Status::unavailable(format!("the agent has no coordinator: {why}")))
    }
}

#[tonic::async_trait]
impl WorkerService for Local {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;
    type HostStream = tokio_stream::Empty<Result<HostAnswer, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let link = self.link().await?;
        let mut incoming = request.into_inner();
        let late = |_| Status::deadline_exceeded(format!("the worker said nothing for {} s", self.limit.as_secs_f64()));
        let first = timeout(self.limit, incoming.message()).await.map_err(late)??;
        let Some(Body::Register(register)) = first.and_then(|message| message.body) else {
            return Err(Status::invalid_argument("the first message on a stream must be Register"));
        };
        let (messages, outgoing) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let worker = link.open(Line { messages, end })?;
        tokio::spawn(carry(link, worker, as_spoken_here(register), incoming, ended));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn host(&self, _: Request<Streaming<HostMessage>>) -> Result<Response<Self::HostStream>, Status> {
        Err(Status::unimplemented("this is an agent, which speaks for workers and not for other agents"))
    }
}

/// What an older agent does not know of a message is lost on the way, so the worker speaks no newer protocol than the agent.
fn as_spoken_here(register: Register) -> Register {
    Register { protocol_version: register.protocol_version.min(build().protocol.newest), ..register }
}

/// Passes on what a worker says until its stream ends, by either side, and says so where the coordinator does not know.
async fn carry(
    link: Arc<Link>,
    worker: u32,
    register: Register,
    mut incoming: Streaming<WorkerMessage>,
    ended: oneshot::Receiver<Option<String>>,
) {
    let reading = async {
        if !link.say(worker, What::Opened(Box::new(register))).await {
            return None;
        }
        loop {
            match incoming.message().await {
                Ok(Some(message)) => {
                    if !link.say(worker, What::Said(Box::new(message))).await {
                        return None;
                    }
                }
                Ok(None) => return Some("closed its stream to the agent of its host".to_string()),
                Err(status) => {
                    return Some(format!("lost its connection to the agent of its host ({})", status.message()));
                }
            }
        }
    };
    let reason = tokio::select! {
        told = ended => told.ok().flatten(),
        reason = reading => reason,
    };
    link.close(worker);
    if let Some(reason) = reason {
        link.say(worker, What::Closed(reason)).await;
    }
}
