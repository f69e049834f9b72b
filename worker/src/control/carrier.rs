//! The stream to a coordinator, and whoever carries what a [`Client`] says over it.
//!
//! A process has one [`Carrier`], whatever it has behind it ([`Process`]): a trainer, or nothing that computes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::transport::{Channel, Endpoint};
use toroid_proto::limits::COORDINATOR_MESSAGE_BYTES_MAX;
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{CoordinatorMessage, Heartbeat, Leaving, Register, WorkerMessage};
use toroid_security::Credentials;
use toroid_session::client::{Client, Ending, Input, Output};
use toroid_session::{Action, Knock, Standing};
use toroid_torus::ids::Term;

use super::error::ControlError;
use super::reason;

/// Messages that wait for the stream, at most; more means that the coordinator does not read, and the stream is opened anew.
const QUEUE: usize = 4096;

/// How the address of an agent's socket begins, its path follows.
pub const UNIX: &str = "unix:";

/// What a process does of what its client says, beside carrying messages.
pub trait Process {
    /// Dials this coordinator, within `limit` where there is one, and says Register on a stream.
    fn open(
        &mut self,
        coordinator: String,
        limit: Option<Duration>,
        standing: Standing,
    ) -> Result<Opening, ControlError>;

    /// With what is done now.
    fn heartbeat(&self, standing: Standing) -> Heartbeat;

    /// This is about to be sent.
    fn says(&mut self, body: &Body);

    /// What concerns the trainer; says what the client is to hear of it.
    fn act(&mut self, action: Action) -> Result<Option<Input>, ControlError>;

    /// Dials another worker and answers it; what came of it is an input later, or now.
    fn probe(&mut self, knock: Knock, limit: Duration) -> Option<Input>;

    /// Whether the coordinator takes what this worker says.
    fn connected(&mut self, is_connected: bool);

    /// See [`Output::Limits`].
    fn limits(&mut self, connect_ms: u32, failure_timeout_ms: u32);

    /// Ends as if its machine had died: an ending where it comes back from that.
    fn die(&mut self, reason: &str) -> Option<Ending>;

    /// A line for the log; `is_warning`: that wants somebody's attention.
    fn note(&mut self, line: &str, is_warning: bool);
}

/// Carries inputs to the client, and does what it says.
pub struct Carrier<P> {
    pub client: Client,
    pub process: P,
    stream: Stream,
    /// The client's times count from here.
    origin: Instant,
}

impl<P: Process> Carrier<P> {
    /// Has no stream yet.
    pub fn new(client: Client, process: P, origin: Instant) -> Carrier<P> {
        Carrier { client, process, stream: Stream::Closed, origin }
    }

    /// The next input that the clock or the stream gives, and the trace that it belongs to. Nothing is lost where the caller stops waiting.
    pub async fn next(&mut self) -> (Input, String) {
        let deadline = self.client.deadline().map(|deadline| self.origin + deadline);
        tokio::select! {
            () = sleep_until(deadline) => (Input::Deadline, String::new()),
            heard = self.stream.next() => heard,
        }
    }

    /// The message goes over the stream now or not at all. Says whether the stream is lost.
    pub fn try_send(&mut self, body: Body) -> Option<Input> {
        self.stream.try_send(body)
    }

    /// Does what the client makes of an input, and of what comes of that. An ending: nothing comes after it.
    pub async fn take(&mut self, input: Input) -> Result<Option<Ending>, ControlError> {
        let mut outputs = VecDeque::from(self.client.handle(input, self.origin.elapsed()));
        while let Some(output) = outputs.pop_front() {
            let result = match output {
                Output::Open { coordinator, limit } => {
                    let opening = self.process.open(coordinator, limit, self.client.standing())?;
                    self.stream = Stream::Opening(opening);
                    None
                }
                Output::Close => {
                    self.stream = Stream::Closed;
                    None
                }
                Output::Send(body) => {
                    self.process.says(&body);
                    self.stream.send(body).await
                }
                Output::Heartbeat => {
                    let heartbeat = self.process.heartbeat(self.client.standing());
                    self.stream.try_send(Body::Heartbeat(heartbeat))
                }
                Output::Leaving { at_once } => {
                    let reason = "the worker was asked to end".into();
                    self.stream.try_send(Body::Leaving(Leaving { reason, at_once }))
                }
                Output::Act(action) => self.process.act(action)?,
                Output::Probe { knock, limit } => self.process.probe(knock, limit),
                Output::Connected(is_connected) => {
                    self.process.connected(is_connected);
                    None
                }
                Output::Limits { connect_ms, failure_timeout_ms } => {
                    self.process.limits(connect_ms, failure_timeout_ms);
                    None
                }
                Output::Die { reason } => match self.process.die(&reason) {
                    Some(ending) => return Ok(Some(ending)),
                    None => None,
                },
                Output::Note(note) => {
                    self.process.note(&note, false);
                    None
                }
                Output::Warn(warning) => {
                    self.process.note(&warning, true);
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
}

/// The stream to the coordinator.
pub enum Stream {
    Closed,
    Opening(Opening),
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

pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

pub type Opened = (mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>);
pub type DialError = Box<dyn std::error::Error + Send + Sync>;
pub type Opening = Pin<Box<dyn Future<Output = Result<Opened, DialError>> + Send>>;

/// Connects, opens a stream and registers on it.
pub(super) async fn dial(
    coordinator: &str,
    endpoint: Endpoint,
    credentials: Credentials,
    register: Register,
) -> Result<Opened, DialError> {
    register_on(connect(coordinator, endpoint, &credentials).await?, register).await
}

/// Connects to a coordinator at `http://host:port`, or to an agent at `unix:/path`, to which nothing is shown. `endpoint` is that of the address.
pub async fn connect(
    coordinator: &str,
    endpoint: Endpoint,
    credentials: &Credentials,
) -> Result<Channel, tonic::transport::Error> {
    match coordinator.strip_prefix(UNIX) {
        Some(path) => toroid_security::connect_unix(endpoint, path.into()).await,
        None => toroid_security::connect(endpoint, credentials).await,
    }
}

/// Opens a stream on a connection, or whatever else takes calls, and registers on it.
pub async fn register_on<T>(channel: T, register: Register) -> Result<Opened, DialError>
where
    T: GrpcService<tonic::body::Body, Error: Into<StdError>>,
    T::ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
{
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
    let (sender, receiver) = mpsc::channel(QUEUE);
    sender.send(WorkerMessage { body: Some(Body::Register(register)) }).await?;
    let stream = client.session(ReceiverStream::new(receiver)).await?.into_inner();
    Ok((sender, stream))
}

/// `silence`: after which a coordinator is left. Where another may lead meanwhile, that has to be soon: the next leader waits for `failure_timeout` until it counts those as
/// lost who have not come to it.
pub fn endpoint_of(coordinator: &str, failure_timeout: Duration, silence: Duration) -> Result<Endpoint, ControlError> {
    // What is spoken is the matter of the credentials. An agent's socket has no name.
    let authority = if coordinator.starts_with(UNIX) { "agent" } else { coordinator };
    let authority = authority.split_once("://").map_or(authority, |(_, authority)| authority);
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| ControlError::Address { address: coordinator.into(), error: e.to_string() })?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(failure_timeout)
        .http2_keep_alive_interval(silence / 2)
        .keep_alive_timeout(silence / 2)
        .keep_alive_while_idle(true))
}
