//! Workers of a host over one stream, by a scripted agent.

use std::collections::VecDeque;

use proto::from_worker_of_host::What;
use proto::to_worker_of_host::What as Told;

use super::*;

struct Host {
    out: mpsc::Sender<proto::HostMessage>,
    answers: Streaming<proto::HostAnswer>,
    waiting: VecDeque<proto::ToWorkerOfHost>,
}

fn opened(worker: u32, id: &str) -> proto::FromWorkerOfHost {
    proto::FromWorkerOfHost { worker, what: Some(What::Opened(Box::new(register(id)))) }
}

fn says(worker: u32, body: FromWorker) -> proto::FromWorkerOfHost {
    proto::FromWorkerOfHost { worker, what: Some(What::Said(Box::new(proto::WorkerMessage { body: Some(body) }))) }
}

/// What a coordinator answers to these first messages.
async fn open(
    coordinator: &Coordinator,
    messages: impl IntoIterator<Item = proto::HostMessage>,
) -> Result<(mpsc::Sender<proto::HostMessage>, Streaming<proto::HostAnswer>), Status> {
    let (out, outgoing) = mpsc::channel(16);
    for message in messages {
        out.send(message).await.unwrap();
    }
    let mut client = WorkerServiceClient::new(channel(coordinator).await);
    Ok((out, client.host(ReceiverStream::new(outgoing)).await?.into_inner()))
}

fn hello() -> proto::HostMessage {
    proto::HostMessage { agent: Some(proto::build().agent("here".into(), "here".into())), entries: Vec::new() }
}

impl Host {
    async fn connect(coordinator: &Coordinator) -> Host {
        let (out, mut answers) = open(coordinator, [hello()]).await.unwrap();
        let first = within("the welcome", answers.next()).await.unwrap().unwrap();
        let welcome = first.welcome.expect("it is first on a stream");
        assert_eq!((welcome.workers_max, welcome.heartbeat_interval_ms), (1024, 1000));
        Host { out, answers, waiting: VecDeque::new() }
    }

    async fn say(&self, entries: Vec<proto::FromWorkerOfHost>) {
        self.out.send(proto::HostMessage { agent: None, entries }).await.unwrap();
    }

    async fn entry(&mut self) -> (u32, Told) {
        while self.waiting.is_empty() {
            let answer = within("an answer to the agent", self.answers.next()).await;
            self.waiting.extend(answer.expect("the stream is open").expect("the stream is sound").entries);
        }
        let entry = self.waiting.pop_front().unwrap();
        (entry.worker, entry.what.expect("an entry says something"))
    }

    async fn hear(&mut self) -> (u32, ToWorker) {
        match self.entry().await {
            (worker, Told::Said(message)) => (worker, message.body.expect("a message has a body")),
            other => panic!("expected a message, got {other:?}"),
        }
    }
}

async fn connected(user: &mut JobServiceClient<Channel>) -> Vec<String> {
    let workers = user.list_workers(proto::ListWorkersRequest {}).await.unwrap().into_inner().workers;
    workers.into_iter().map(|worker| worker.worker_id).collect()
}

/// Two workers of one stream have a job each place of which is told and answers; one ends and is missed at once; the stream ends, and the other has time to come
/// back, by itself.
#[tokio::test]
async fn workers_of_one_stream_are_each_for_themselves_and_its_end_is_not_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut user = user_of(&coordinator).await;
    let id = submit(&mut user).await;
    let mut host = Host::connect(&coordinator).await;
    host.say(vec![opened(7, "a"), opened(9, "b")]).await;
    let (mut welcomes, mut assigns) = (Vec::new(), Vec::new());
    while assigns.len() < 2 {
        match host.hear().await {
            (worker, ToWorker::Welcome(_)) => welcomes.push(worker),
            (worker, ToWorker::Assign(assign)) => assigns.push((worker, assign)),
            other => panic!("expected Welcome and Assign, got {other:?}"),
        }
    }
    assert_eq!(welcomes, [7, 9]);
    let prepared = assigns.iter().map(|(worker, assign)| says(*worker, FromWorker::Prepared(prepared(assign))));
    host.say(prepared.collect()).await;
    let mut started = Vec::new();
    while started.len() < 2 {
        if let (worker, ToWorker::Start(_)) = host.hear().await {
            started.push(worker);
        }
    }
    let (rank_0, _) = assigns.iter().find(|(_, assign)| assign.rank == 0).unwrap();
    let (rank_1, _) = assigns.iter().find(|(_, assign)| assign.rank == 1).unwrap();
    let report = proto::StepReport { job_id: id.clone(), epoch: 1, record: Some(record(1)) };
    host.say(vec![says(*rank_0, FromWorker::Step(report)), says(99, FromWorker::Finished(Default::default()))]).await;
    while !matches!(host.hear().await, (worker, ToWorker::StepAck(ack)) if worker == *rank_0 && ack.step == 1) {}

    let closed = proto::FromWorkerOfHost { worker: *rank_1, what: Some(What::Closed("closed its stream".into())) };
    host.say(vec![closed]).await;
    let one_lives = async {
        while job(&mut user, &id).await.places_alive != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the coordinator to miss who ended", one_lives).await;
    let stays = if *rank_0 == 7 { "a" } else { "b" };
    assert_eq!(connected(&mut user).await, [stays]);

    drop(host);
    let mut other = Host::connect(&coordinator).await;
    other.say(vec![opened(0, "c")]).await;
    assert!(matches!(other.hear().await, (0, ToWorker::Welcome(_))));
    assert!(connected(&mut user).await.contains(&stays.to_string()), "it has time to come back");
    let claim = proto::Register { job_id: id.clone(), epoch: 1, rank: 0, committed_step: 1, ..register(stays) };
    assert!(Worker::connect(&coordinator, claim).await.welcomed().await, "it keeps its place");
    coordinator.stop().await;
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_is_refused_in_words_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut sound = Host::connect(&coordinator).await;
    sound.say(vec![opened(1, "sound")]).await;
    assert!(matches!(sound.hear().await, (1, ToWorker::Welcome(_))));
    let old = proto::Agent { protocol_version: 99, protocol_oldest: 98, ..hello().agent.unwrap() };
    for (first, code, words) in [
        (proto::HostMessage::default(), Code::InvalidArgument, "must say who its agent is"),
        (
            proto::HostMessage { entries: vec![opened(1, "a")], ..hello() },
            Code::InvalidArgument,
            "must say who its agent is",
        ),
        (
            proto::HostMessage { agent: Some(old), entries: Vec::new() },
            Code::FailedPrecondition,
            "they have none in common",
        ),
    ] {
        let status = open(&coordinator, [first]).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    let many = (0..=4096).map(|_| says(1, FromWorker::Heartbeat(proto::Heartbeat::default()))).collect();
    for (second, words) in [
        (hello(), "twice who it is"),
        (proto::HostMessage { agent: None, entries: many }, "4097 entries in one message"),
        (
            proto::HostMessage { agent: None, entries: vec![opened(1, "x"), opened(1, "y")] },
            "a second worker by the number 1",
        ),
    ] {
        let (_out, answers) = open(&coordinator, [hello(), second]).await.unwrap();
        let ended = within("the end of the stream", answers.collect::<Result<Vec<_>, Status>>()).await;
        let status = ended.expect_err("it is refused");
        assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{status}");
    }
    sound.say(vec![opened(2, "second")]).await;
    assert!(matches!(sound.hear().await, (2, ToWorker::Welcome(_))));
    coordinator.stop().await;
}

#[tokio::test]
async fn more_workers_than_a_stream_may_have_are_closed_in_words_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut host = Host::connect(&coordinator).await;
    host.say((0..=1024).map(|number| opened(number, &format!("w{number}"))).collect()).await;
    let (mut num_welcome, mut closed) = (0, None);
    while num_welcome < 1024 || closed.is_none() {
        match host.entry().await {
            (1024, Told::Closed(reason)) => closed = Some(reason),
            (worker, Told::Said(_)) if worker < 1024 => num_welcome += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(closed.unwrap().contains("1024 workers open already"));
    // One that ends makes room.
    let ends = proto::FromWorkerOfHost { worker: 3, what: Some(What::Closed("closed its stream".into())) };
    host.say(vec![ends, opened(1025, "w1024")]).await;
    assert!(matches!(host.hear().await, (1025, ToWorker::Welcome(_))));
    coordinator.stop().await;
}

/// A worker that says what is beyond a bound is closed, and its neighbour on the stream is not.
#[tokio::test]
async fn what_is_beyond_a_bound_closes_its_worker_alone() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut host = Host::connect(&coordinator).await;
    host.say(vec![opened(1, "a"), opened(2, "b")]).await;
    for _ in 0..2 {
        assert!(matches!(host.hear().await, (_, ToWorker::Welcome(_))));
    }
    let beyond = FromWorker::LogLines(proto::LogLines { lines: vec![String::new(); 1 << 10] });
    host.say(vec![says(1, beyond), says(2, FromWorker::Heartbeat(proto::Heartbeat::default()))]).await;
    assert!(matches!(host.entry().await, (1, Told::Closed(_))));
    assert_eq!(connected(&mut user_of(&coordinator).await).await, ["b"]);
    coordinator.stop().await;
}
