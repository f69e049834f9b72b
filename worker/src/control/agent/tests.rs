//! An agent between workers and a coordinator that are both scripted: real sockets, real streams.

use std::error::Error;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status, Streaming};
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::from_worker_of_host::What;
use toroid_proto::to_worker_of_host::What as Told;
use toroid_proto::worker_message::Body;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::worker_service_server::WorkerService;
use toroid_proto::{
    Agent, CoordinatorMessage, Finished, FromWorkerOfHost, Heartbeat, HostAnswer, HostMessage, HostWelcome, Register,
    Stop, ToWorkerOfHost, WorkerMessage, build,
};

use toroid_security::Credentials;

use super::*;

type Outcome = Result<(), Box<dyn Error>>;
type ToAgent = mpsc::Sender<Result<HostAnswer, Status>>;

/// Hands each stream of an agent to the test.
struct Scripted(mpsc::Sender<(Streaming<HostMessage>, ToAgent)>);

#[tonic::async_trait]
impl WorkerService for Scripted {
    type SessionStream = tokio_stream::Empty<Result<CoordinatorMessage, Status>>;
    type HostStream = ReceiverStream<Result<HostAnswer, Status>>;

    async fn session(&self, _: Request<Streaming<WorkerMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("workers come by the agent"))
    }

    async fn host(&self, request: Request<Streaming<HostMessage>>) -> Result<Response<Self::HostStream>, Status> {
        let (answers, outgoing) = mpsc::channel(16);
        let gone = |_| Status::unavailable("the test is over");
        self.0.send((request.into_inner(), answers)).await.map_err(gone)?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// The coordinator's end of an agent's stream.
struct Host {
    heard: Streaming<HostMessage>,
    answers: ToAgent,
    waiting: std::collections::VecDeque<FromWorkerOfHost>,
}

impl Host {
    async fn tell(&self, worker: u32, reason: &str) {
        let stop = Stop { reason: reason.into(), ..Stop::default() };
        let message = CoordinatorMessage { term: 1, body: Some(ToWorker::Stop(stop)), ..Default::default() };
        let entries = vec![ToWorkerOfHost { worker, what: Some(Told::Said(Box::new(message))) }];
        self.answers.send(Ok(HostAnswer { welcome: None, entries })).await.expect("the agent is there");
    }

    async fn next(&mut self) -> FromWorkerOfHost {
        while self.waiting.is_empty() {
            let message = self.heard.message().await.expect("the stream is sound").expect("the stream is open");
            self.waiting.extend(message.entries);
        }
        self.waiting.pop_front().expect("there is one")
    }

    /// The number of the next worker, which has this id.
    async fn opened(&mut self, id: &str) -> u32 {
        match self.next().await {
            FromWorkerOfHost { worker, what: Some(What::Opened(register)) } if register.worker_id == id => worker,
            other => panic!("expected {id} to register, got {other:?}"),
        }
    }
}

struct World {
    folder: tempfile::TempDir,
    streams: mpsc::Receiver<(Streaming<HostMessage>, ToAgent)>,
    _agent: tokio::task::JoinHandle<Result<(), AgentError>>,
}

impl World {
    /// `has_coordinator`: otherwise nobody listens where it should be.
    async fn start(has_coordinator: bool) -> Result<World, Box<dyn Error>> {
        let (taken, streams) = mpsc::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let coordinators = vec![format!("http://{}", listener.local_addr()?)];
        if has_coordinator {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(WorkerServiceServer::new(Scripted(taken)));
            tokio::spawn(server.serve_with_incoming(incoming));
        }
        let folder = tempfile::tempdir()?;
        let config = Config {
            coordinators,
            credentials: Credentials::none(),
            name: "node-7".into(),
            host: "node-7".into(),
            failure_timeout: Duration::from_secs(60),
        };
        let agent = tokio::spawn(run(listen(&folder.path().join("agent")).await?, config));
        Ok(World { folder, streams, _agent: agent })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// The agent's next stream, which may have so many workers.
    async fn host(&mut self, workers_max: u32) -> Host {
        let (mut heard, answers) = self.streams.recv().await.expect("the agent dials");
        let first = heard.message().await.expect("the stream is sound").expect("the stream is open");
        let Some(Agent { name, protocol_version, .. }) = first.agent else { panic!("{first:?} says not who it is") };
        assert_eq!((name.as_str(), protocol_version, first.entries.len()), ("node-7", build().protocol.newest, 0));
        let welcome = Some(HostWelcome { heartbeat_interval_ms: 1000, workers_max, ..Default::default() });
        answers.send(Ok(HostAnswer { welcome, entries: Vec::new() })).await.expect("the agent is there");
        Host { heard, answers, waiting: Default::default() }
    }
}

struct Worker {
    says: mpsc::Sender<WorkerMessage>,
    hears: Streaming<CoordinatorMessage>,
}

impl Worker {
    async fn connect(path: &Path, id: &str) -> Result<Worker, Status> {
        let endpoint = Endpoint::from_static("http://agent");
        let channel = toroid_security::connect_unix(endpoint, path.into()).await.expect("the agent listens");
        let (says, said) = mpsc::channel(16);
        let register = Register { worker_id: id.into(), ..build().register() };
        let first = WorkerMessage { body: Some(Body::Register(register)) };
        says.send(first).await.expect("there is room");
        let hears = WorkerServiceClient::new(channel).session(ReceiverStream::new(said)).await?.into_inner();
        Ok(Worker { says, hears })
    }

    async fn say(&self, body: Body) {
        self.says.send(WorkerMessage { body: Some(body) }).await.expect("the stream is open");
    }

    /// Why it is told to stop, or the words with which its stream ends.
    async fn hear(&mut self) -> String {
        match self.hears.message().await {
            Ok(Some(CoordinatorMessage { body: Some(ToWorker::Stop(stop)), .. })) => stop.reason,
            Ok(other) => format!("{other:?}"),
            Err(status) => status.message().to_string(),
        }
    }
}

#[tokio::test]
async fn workers_speak_and_are_told_each_for_itself_and_an_end_is_reported_at_once() -> Outcome {
    let mut world = World::start(true).await?;
    let mut host = world.host(8).await;
    let mut first = Worker::connect(&world.path(), "a").await?;
    let a = host.opened("a").await;
    let mut second = Worker::connect(&world.path(), "b").await?;
    let b = host.opened("b").await;
    assert_ne!(a, b);
    first.say(Body::Heartbeat(Heartbeat { committed_step: 1, ..Default::default() })).await;
    first.say(Body::Heartbeat(Heartbeat { committed_step: 2, ..Default::default() })).await;
    first.say(Body::Finished(Finished::default())).await;
    let mut said = Vec::new();
    for _ in 0..3 {
        let FromWorkerOfHost { worker, what: Some(What::Said(message)) } = host.next().await else {
            panic!("it spoke")
        };
        said.push((worker, message.body.expect("a body")));
    }
    let step = |body: &Body| if let Body::Heartbeat(h) = body { h.committed_step } else { 0 };
    assert_eq!(said.iter().map(|(worker, body)| (*worker, step(body))).collect::<Vec<_>>(), [(a, 1), (a, 2), (a, 0)]);
    host.tell(b, "for b").await;
    host.tell(a, "for a").await;
    host.tell(a, "again").await;
    assert_eq!([first.hear().await, first.hear().await, second.hear().await], ["for a", "again", "for b"]);

    drop(first);
    let FromWorkerOfHost { worker, what: Some(What::Closed(reason)) } = host.next().await else { panic!("it ended") };
    assert_eq!(worker, a);
    assert!(reason.contains("the agent of its host"), "{reason}");
    host.tell(a, "too late").await;
    let entries = vec![ToWorkerOfHost { worker: b, what: Some(Told::Closed("no more of you".into())) }];
    host.answers.send(Ok(HostAnswer { welcome: None, entries })).await?;
    assert_eq!(second.hear().await, "no more of you");
    Ok(())
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_alone() -> Outcome {
    let mut world = World::start(true).await?;
    let mut host = world.host(8).await;
    let stuck = Worker::connect(&world.path(), "stuck").await?;
    let of_stuck = host.opened("stuck").await;
    let mut other = Worker::connect(&world.path(), "other").await?;
    let of_other = host.opened("other").await;
    // More than wait for it and than HTTP/2 takes on the way.
    let long = "x".repeat(16_000);
    for _ in 0..upstream::QUEUE + 1000 {
        host.tell(of_stuck, &long).await;
    }
    host.tell(of_other, "for the other").await;
    assert_eq!(other.hear().await, "for the other");
    let FromWorkerOfHost { worker, what: Some(What::Closed(reason)) } = host.next().await else { panic!("it is cut") };
    assert_eq!(worker, of_stuck);
    assert!(reason.starts_with("does not read its messages"), "{reason}");
    drop(stuck);
    host.tell(of_other, "goes on").await;
    assert_eq!(other.hear().await, "goes on");
    Ok(())
}

#[tokio::test]
async fn when_the_coordinator_is_lost_workers_hear_it_and_register_again_on_the_next_stream() -> Outcome {
    let mut world = World::start(true).await?;
    let mut host = world.host(8).await;
    let mut worker = Worker::connect(&world.path(), "a").await?;
    host.opened("a").await;
    host.answers.send(Err(Status::unavailable("it does not lead any more"))).await?;
    let words = worker.hear().await;
    assert!(words.contains("the agent lost the coordinator: it does not lead any more"), "{words}");
    drop(host);
    let path = world.path();
    let again = tokio::spawn(async move { Worker::connect(&path, "a").await.map(drop) });
    let mut host = world.host(8).await;
    host.opened("a").await;
    again.await??;
    Ok(())
}

#[tokio::test]
async fn an_agent_says_what_it_cannot_do() -> Outcome {
    let world = World::start(false).await?;
    let status = Worker::connect(&world.path(), "a").await.err().ok_or("there is no coordinator")?;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("the agent has no coordinator: "), "{status}");

    let mut world = World::start(true).await?;
    let mut host = world.host(1).await;
    let _first = Worker::connect(&world.path(), "a").await?;
    host.opened("a").await;
    let status = Worker::connect(&world.path(), "b").await.err().ok_or("it may have one")?;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("1 workers already"), "{status}");

    let channel = toroid_security::connect_unix(Endpoint::from_static("http://agent"), world.path()).await?;
    let mut client = WorkerServiceClient::new(channel);
    let nothing = WorkerMessage { body: Some(Body::Heartbeat(Heartbeat::default())) };
    let status = client.session(tokio_stream::once(nothing)).await.err().ok_or("it did not register")?;
    assert_eq!(status.message(), "the first message on a stream must be Register");
    let status = client.host(tokio_stream::empty()).await.err().ok_or("an agent of agents")?;
    assert_eq!(status.code(), Code::Unimplemented);
    Ok(())
}

#[tokio::test]
async fn a_socket_is_for_this_user_and_replaces_only_what_nobody_listens_on() -> Result<(), Box<dyn std::error::Error>>
{
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("agent");
    let listener = listen(&path).await?;
    assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    let error = listen(&path).await.expect_err("one listens there").to_string();
    assert!(error.contains("another agent listens there already"), "{error}");
    drop(listener);
    drop(listen(&path).await?);
    let file = folder.path().join("file");
    std::fs::write(&file, "something else")?;
    let error = listen(&file).await.expect_err("it is a file").to_string();
    assert!(error.contains("name another path"), "{error}");
    assert_eq!(std::fs::read_to_string(&file)?, "something else");
    Ok(())
}
