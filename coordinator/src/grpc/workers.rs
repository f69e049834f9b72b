//! `WorkerService`: one bidirectional stream a worker ([`hosts`]: or a host), carried between the network and the driver without a look inside.
//!
//! A stream that ends is its worker's death, but for one that ends as its certificate does: the worker has the failure timeout to come back with the
//! renewed one.

use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};
use toroid_proto as proto;
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_server::WorkerService;

use super::bounds;
use super::hosts::{self, Answers};
use crate::caller::Caller;
use crate::handle::{AskError, Command, Connection, Handle};
use crate::lead::Leader;
use crate::machine::{Limits, StreamId};
use crate::outbox::{Ends, Grace, outbox};

pub(crate) struct Workers {
    leader: Leader,
    limits: Limits,
}

impl Workers {
    pub fn new(leader: Leader, limits: Limits) -> Workers {
        Workers { leader, limits }
    }
}

type Outgoing = std::pin::Pin<Box<dyn futures_core::Stream<Item = Result<proto::CoordinatorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerService for Workers {
    type SessionStream = Outgoing;
    type HostStream = Answers;

    async fn host(&self, request: Request<Streaming<proto::HostMessage>>) -> Result<Response<Answers>, Status> {
        hosts::open(&self.leader, self.limits, request).await
    }

    async fn session(
        &self,
        request: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = request.extensions().get::<Caller>();
        let certified = caller.map(Caller::certified_worker).unwrap_or_default();
        let of = caller.and_then(|caller| caller.good_until).map_or(Ends::None, Ends::OfCredential);
        let grace = Grace { of, limit: self.limits.failure_timeout };
        let (messages, outgoing) = outbox(grace);
        let (open, closed) = oneshot::channel();
        let handle = self.leader.handle().map_err(AskError::from)?;
        let stream = handle.new_stream();
        let connection = Connection { messages, _open: open };
        if !handle.tell(Command::Open { stream, connection }).await {
            return Err(AskError::Stopping.into());
        }
        let reader = Reader { handle, limits: self.limits, stream, certified, grace };
        tokio::spawn(reader.run(request.into_inner(), closed));
        Ok(Response::new(Box::pin(outgoing.map(Ok))))
    }
}

/// Passes on what a worker says until either side ends the stream.
struct Reader {
    handle: Handle,
    limits: Limits,
    stream: StreamId,
    /// The name in its certificate; empty where it has none.
    certified: String,
    grace: Grace,
}

impl Reader {
    async fn run(self, incoming: Streaming<proto::WorkerMessage>, mut closed: oneshot::Receiver<()>) {
        let reason = tokio::select! {
            // The driver has dropped its end and knows why.
            _ = &mut closed => return,
            reason = self.read(incoming) => reason,
        };
        if self.grace.applies() {
            tokio::select! {
                // It has come back on another stream.
                _ = &mut closed => return,
                () = tokio::time::sleep(self.grace.limit) => {}
            }
        }
        self.handle.tell(Command::Closed { stream: self.stream, reason }).await;
    }

    async fn read(&self, mut incoming: Streaming<proto::WorkerMessage>) -> String {
        let limit = self.limits.first_message();
        let mut next = match tokio::time::timeout(limit, incoming.next()).await {
            Ok(next) => next,
            Err(_) => return format!("sent nothing for {} s", limit.as_secs_f64()),
        };
        loop {
            let (bytes, body) = match next {
                Some(Ok(message)) => (prost::Message::encoded_len(&message), message.body),
                Some(Err(status)) => return format!("lost its connection ({})", status.message()),
                None => return "closed its stream".into(),
            };
            // A message of a later version that this one does not know has no body.
            if let Some(body) = body {
                let permit = self.handle.permit_for(bytes).await;
                let body = match bounds::bounded(body) {
                    // Who it is stands in the certificate, whatever it says itself.
                    Ok(Body::Register(register)) => {
                        Box::new(Body::Register(proto::Register { certified: self.certified.clone(), ..register }))
                    }
                    Ok(body) => Box::new(body),
                    Err(reason) => return reason,
                };
                if !self.handle.tell(Command::Message { stream: self.stream, body, permit }).await {
                    return "was connected when the coordinator stopped".into();
                }
            }
            next = incoming.next().await;
        }
    }
}
