//! A coordinator on loopback, spoken to as workers and users speak to it: real gRPC, a real store, a restart in between.
//!
//! The workers are scripted: they say what the test has them say and compute nothing.

#[path = "end_to_end/agents.rs"]
mod agents;

use std::path::Path;
use std::time::Duration;

use proto::coordinator_message::Body as ToWorker;
use proto::job_service_client::JobServiceClient;
use proto::worker_message::Body as FromWorker;
use proto::worker_service_client::WorkerServiceClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use toroid_coordinator::Config;
use toroid_proto as proto;
use toroid_testkit::{Coordinator, within};
use toroid_torus::manifest::{ShardFile, Writer};
use toroid_torus::owner::OwnerId;

const STEPS: u64 = 4;

/// Long enough that no busy machine makes a worker look dead.
async fn start(folder: &Path, join_token: Option<&str>) -> Coordinator {
    Coordinator::start(Config { join_token: join_token.map(str::to_string), ..Coordinator::config(folder) }).await
}

async fn channel(coordinator: &Coordinator) -> Channel {
    Channel::from_shared(coordinator.url.clone()).unwrap().connect().await.unwrap()
}

async fn user_of(coordinator: &Coordinator) -> JobServiceClient<Channel> {
    JobServiceClient::new(channel(coordinator).await)
}

struct Worker {
    id: String,
    assign: proto::Assign,
    out: mpsc::Sender<proto::WorkerMessage>,
    messages: Streaming<proto::CoordinatorMessage>,
}

fn register(id: &str) -> proto::Register {
    proto::Register {
        worker_id: id.into(),
        protocol_version: proto::build().protocol.newest,
        build_version: proto::BUILD_VERSION.into(),
        host: "here".into(),
        data_address: format!("{id}:1"),
        device: "cpu".into(),
        fingerprint: "alike".into(),
        secret: vec![7; 32],
        ..Default::default()
    }
}

impl Worker {
    async fn connect(coordinator: &Coordinator, register: proto::Register) -> Worker {
        let (out, outgoing) = mpsc::channel(16);
        let id = register.worker_id.clone();
        let mut client = WorkerServiceClient::new(channel(coordinator).await);
        let mut worker = Worker {
            id,
            assign: proto::Assign::default(),
            messages: client.session(ReceiverStream::new(outgoing)).await.unwrap().into_inner(),
            out,
        };
        worker.say(FromWorker::Register(register)).await;
        worker
    }

    async fn say(&mut self, body: FromWorker) {
        self.out.send(proto::WorkerMessage { body: Some(body) }).await.unwrap();
    }

    async fn hear(&mut self) -> ToWorker {
        let message = within("a message to a worker", self.messages.next()).await;
        message.expect("the stream is open").expect("the stream is sound").body.expect("a message has a body")
    }

    async fn welcomed(&mut self) -> bool {
        match self.hear().await {
            ToWorker::Welcome(welcome) => welcome.keep_going,
            other => panic!("{} expected Welcome, got {other:?}", self.id),
        }
    }

    async fn assigned(&mut self) {
        match self.hear().await {
            ToWorker::Assign(assign) => self.assign = assign,
            other => panic!("{} expected Assign, got {other:?}", self.id),
        }
    }

    async fn started(&mut self) {
        assert!(matches!(self.hear().await, ToWorker::Start(s) if s.epoch == self.assign.epoch));
        assert!(matches!(self.hear().await, ToWorker::CheckpointAt(c) if c.step == STEPS));
    }

    async fn prepare(&mut self) {
        self.say(FromWorker::Prepared(prepared(&self.assign))).await;
    }

    async fn report(&mut self, step: u64) {
        let (job_id, epoch) = (self.assign.job_id.clone(), self.assign.epoch);
        let record = Some(record(step));
        self.say(FromWorker::Step(proto::StepReport { job_id, epoch, record })).await;
    }

    /// Reports a step and waits for the acknowledgement.
    async fn step(&mut self, step: u64) {
        self.report(step).await;
        assert!(matches!(self.hear().await, ToWorker::StepAck(ack) if ack.step == step));
    }

    async fn shard_written(&mut self) {
        let rank = self.assign.rank;
        let file = ShardFile {
            file: ShardFile::name_of(&Writer {
                epoch: self.assign.epoch,
                rank: rank as usize,
                world: self.assign.peers.len(),
                owner: OwnerId::try_from(self.assign.owner_id.as_slice()).unwrap(),
            }),
            rank: rank as usize,
            bytes: 10,
            digest: String::new(),
            entries: Vec::new(),
            kl_coef: None,
            reward_scale: None,
        };
        self.say(FromWorker::ShardWritten(proto::ShardWritten {
            job_id: self.assign.job_id.clone(),
            epoch: self.assign.epoch,
            step: STEPS,
            rank,
            file_json: serde_json::to_string(&file).unwrap(),
            write_s: 0.5,
        }))
        .await;
    }

    async fn finished(&mut self) {
        let (job_id, epoch) = (self.assign.job_id.clone(), self.assign.epoch);
        self.say(FromWorker::Finished(proto::Finished { job_id, epoch, committed_step: STEPS })).await;
    }

    /// Connects again, to another coordinator, saying what it does.
    async fn move_to(self, coordinator: &Coordinator, committed_step: u64) -> Worker {
        let claim = proto::Register {
            job_id: self.assign.job_id.clone(),
            epoch: self.assign.epoch,
            rank: self.assign.rank,
            committed_step,
            ..register(&self.id)
        };
        Worker { assign: self.assign, ..Worker::connect(coordinator, claim).await }
    }
}

/// With the initial weights.
fn prepared(assign: &proto::Assign) -> proto::Prepared {
    let (job_id, epoch) = (assign.job_id.clone(), assign.epoch);
    let (data_digest, num_samples, num_params) = (vec![7; 32], 100, 1000);
    let spec: toroid_torus::job::JobSpec = serde_json::from_str(&assign.job_json).unwrap();
    let shape = Some((&spec.shape).into());
    proto::Prepared {
        job_id,
        epoch,
        committed_step: 0,
        data_digest,
        num_samples,
        num_params,
        held: vec![proto::Held { shape, rank: assign.rank }],
        sealed_next: false,
        inputs: None,
        sums_from: 1,
        ..Default::default()
    }
}

/// Values that do not print short, so that the curve must keep all their bits.
fn record(step: u64) -> proto::StepRecord {
    proto::StepRecord {
        step,
        loss: 5.0 / 3.0 + 1.0 / step as f64,
        ce: 0.1 + 0.2,
        grad_norm: 1e-17,
        lr: 1e-3,
        tokens: 4096,
        tokens_per_s: 1e6 / 3.0,
        step_s: 0.001,
        expert_load: vec![1, 2, 3, step],
        num_layers: 2,
        epoch: 1,
        ..Default::default()
    }
}

const JOB: &str = "name = \"demo\"\nsteps = 4\n[shape]\ndp = 2\n[data]\npath = \"/data\"\n";

async fn submit(user: &mut JobServiceClient<Channel>) -> String {
    let request = proto::SubmitJobRequest { job_toml: JOB.into(), ..Default::default() };
    user.submit_job(request).await.unwrap().into_inner().job_id
}

async fn job(user: &mut JobServiceClient<Channel>, id: &str) -> proto::Job {
    let request = proto::GetJobRequest { job_id: id.into(), include_curve: true, curve_from_step: 0 };
    user.get_job(request).await.unwrap().into_inner()
}

/// Both workers of the job, by rank.
async fn place_two(coordinator: &Coordinator) -> [Worker; 2] {
    let mut workers =
        [Worker::connect(coordinator, register("a")).await, Worker::connect(coordinator, register("b")).await];
    for worker in &mut workers {
        assert!(!worker.welcomed().await, "a new worker has no work to go on with");
    }
    for worker in &mut workers {
        worker.assigned().await;
    }
    workers.sort_by_key(|w| w.assign.rank);
    workers
}

#[tokio::test]
async fn a_job_runs_to_its_end_over_a_restart_of_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut user = user_of(&coordinator).await;
    let id = submit(&mut user).await;
    assert_eq!(id, "demo-1");
    let queued = job(&mut user, &id).await;
    assert_eq!(
        (queued.state(), queued.reason.as_str()),
        (proto::JobState::Queued, "waits for workers: needs 2 workers, 0 are there")
    );

    let mut workers = place_two(&coordinator).await;
    for worker in &mut workers {
        worker.prepare().await;
    }
    for worker in &mut workers {
        worker.started().await;
    }
    workers[0].step(1).await;
    workers[0].step(2).await;
    let running = job(&mut user, &id).await;
    assert_eq!((running.state(), running.committed_step, running.places_alive), (proto::JobState::Running, 2, 2));
    coordinator.stop().await;

    // Workers have gone on meanwhile (T-9) and keep their places.
    let coordinator = start(folder.path(), None).await;
    let mut user = user_of(&coordinator).await;
    let watch = proto::WatchJobRequest { job_id: id.clone(), curve_from_step: 2 };
    let watched = user.watch_job(watch).await.unwrap().into_inner();
    let [first, second] = workers;
    let mut workers = [first.move_to(&coordinator, 3).await, second.move_to(&coordinator, 3).await];
    for worker in &mut workers {
        assert!(worker.welcomed().await, "a worker that goes on is told to");
        worker.started().await;
    }
    workers[0].step(3).await;
    workers[0].step(4).await;
    for worker in &mut workers {
        worker.shard_written().await;
        worker.finished().await;
    }
    let (epoch, path) = (1, "step-4".to_string());
    match workers[0].hear().await {
        ToWorker::PublishManifest(p) => assert_eq!((p.step, p.files_json.len(), p.remove_steps.len()), (STEPS, 2, 0)),
        other => panic!("expected PublishManifest, got {other:?}"),
    }
    let published =
        proto::ManifestPublished { job_id: id.clone(), epoch, step: STEPS, bytes: 20, path, error: String::new() };
    workers[0].say(FromWorker::ManifestPublished(published)).await;
    for worker in &mut workers {
        assert!(matches!(worker.hear().await, ToWorker::Stop(s) if s.job_id == id));
    }

    let done = job(&mut user, &id).await;
    assert_eq!((done.state(), done.epoch, done.checkpoints.len()), (proto::JobState::Done, 1, 1));
    assert_eq!(done.curve, (1..=STEPS).map(record).collect::<Vec<_>>(), "every bit of the curve is kept");
    assert_eq!(done.last_step, Some(record(STEPS)));
    let updates: Vec<proto::JobUpdate> =
        within("the watch to end with the job", watched.collect::<Result<_, Status>>()).await.unwrap();
    let steps: Vec<u64> = updates.iter().flat_map(|u| &u.steps).map(|s| s.step).collect();
    assert_eq!(steps, [2, 3, 4], "a watcher gets each step once");
    coordinator.stop().await;

    let coordinator = start(folder.path(), None).await;
    let again = job(&mut user_of(&coordinator).await, &id).await;
    assert_eq!((again.state(), again.curve), (proto::JobState::Done, done.curve));
    coordinator.stop().await;
}

#[tokio::test]
async fn users_are_told_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut user = user_of(&coordinator).await;
    let bad = proto::SubmitJobRequest { job_toml: JOB.replace("steps", "stepz"), ..Default::default() };
    let status = user.submit_job(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("did you mean `steps`"), "{}", status.message());

    let id = submit(&mut user).await;
    let unknown = proto::CancelJobRequest { job_id: "demo-7".into() };
    let status = user.cancel_job(unknown).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no job `demo-7`; there are demo-1"));

    let status = user.checkpoint_job(proto::CheckpointJobRequest { job_id: id.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "a queued job has nothing to save");
    let drain = |worker_id: &str| proto::DrainWorkerRequest { worker_id: worker_id.into() };
    let status = user.drain_worker(drain("w")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no worker `w` is connected; none is"));
    let mut spare = Worker::connect(&coordinator, register("a")).await;
    assert!(!spare.welcomed().await);
    let kill = |worker_id: &str| proto::KillWorkerRequest { worker_id: worker_id.into() };
    let status = user.kill_worker(kill("w")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no worker `w` is connected; there are a"));
    let killed = user.kill_worker(kill("a")).await.unwrap().into_inner();
    assert_eq!(killed, proto::KillWorkerResponse::default(), "it had no place");
    assert!(matches!(spare.hear().await, ToWorker::Kill(kill) if kill.reason == "anyone had it killed"));
    let drained = user.drain_worker(drain("a")).await.unwrap().into_inner();
    assert_eq!(drained, proto::DrainWorkerResponse::default(), "it had no place");
    let cancelled = user.cancel_job(proto::CancelJobRequest { job_id: id }).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), proto::JobState::Cancelled);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_worker_without_the_token_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), Some("secret")).await;
    let mut stranger = Worker::connect(&coordinator, register("a")).await;
    assert!(matches!(stranger.hear().await, ToWorker::Refused(r) if r.reason.contains("no join token")));
    assert!(within("the end of the stream", stranger.messages.next()).await.is_none());
    let token = proto::Register { token: "secret".into(), ..register("a") };
    assert!(!Worker::connect(&coordinator, token).await.welcomed().await);
    coordinator.stop().await;
}

/// A worker may say no more at a time than 16 MiB; its stream ends, and nobody else is harmed.
#[tokio::test]
async fn a_message_beyond_the_bound_ends_its_stream() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut other = Worker::connect(&coordinator, register("b")).await;
    assert!(!other.welcomed().await);
    let mut worker = Worker::connect(&coordinator, register("a")).await;
    assert!(!worker.welcomed().await);
    let failed = |bytes: usize| FromWorker::Failed(proto::Failed { error: "x".repeat(bytes), ..Default::default() });
    worker.say(failed(15 << 20)).await;
    worker.say(failed(17 << 20)).await;
    let end = within("the end of the stream", worker.messages.next()).await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    let mut user = user_of(&coordinator).await;
    let connected = async {
        loop {
            let workers = user.list_workers(proto::ListWorkersRequest {}).await.unwrap().into_inner().workers;
            let ids: Vec<String> = workers.into_iter().map(|w| w.worker_id).collect();
            if ids == ["b"] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the coordinator to have dropped the one and kept the other", connected).await;
    coordinator.stop().await;
}

/// As at a time limit of Slurm: the coordinator is asked as the workers are, and is needed for what they hold. Asked again it ends.
#[tokio::test]
async fn a_coordinator_that_is_asked_to_end_stays_for_workers_that_leave() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let mut user = user_of(&coordinator).await;
    let id = submit(&mut user).await;
    let mut workers = place_two(&coordinator).await;
    for worker in &mut workers {
        worker.prepare().await;
    }
    for worker in &mut workers {
        worker.started().await;
    }
    workers[1].say(FromWorker::Leaving(proto::Leaving { reason: "asked".into(), at_once: false })).await;
    let is_draining = async {
        while !job(&mut user, &id).await.events.iter().any(|event| event.kind == "worker.draining") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the coordinator to hear of it", is_draining).await;
    coordinator.ask_to_stop();
    // It records steps, and answers.
    for step in 1..STEPS {
        workers[0].report(step).await;
        // It was also told at which step the state is saved.
        while !matches!(workers[0].hear().await, ToWorker::StepAck(ack) if ack.step == step) {}
        let job = job(&mut user, &id).await;
        assert_eq!((job.places_alive, job.curve.len() as u64), (2, step), "it is still there");
    }
    drop(user);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_folder_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    // Served means that the store is open.
    user_of(&coordinator).await.list_jobs(proto::ListJobsRequest::default()).await.unwrap();
    let refusal = Coordinator::refusal(folder.path()).await;
    assert!(refusal.contains("another coordinator"), "{refusal}");
    coordinator.stop().await;
}

#[tokio::test]
async fn reflection_and_health_answer() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let folder = tempfile::tempdir().unwrap();
    let coordinator = start(folder.path(), None).await;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let list = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(channel(&coordinator).await);
    let mut answers = client.server_reflection_info(tokio_stream::once(list)).await.unwrap().into_inner();
    let answer: ServerReflectionResponse = answers.next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("expected a list of services, got {answer:?}");
    };
    let names: Vec<&str> = services.service.iter().map(|s| s.name.as_str()).collect();
    for service in ["toroid.v1.JobService", "toroid.v1.WorkerService", "grpc.health.v1.Health"] {
        assert!(names.contains(&service), "{service} is not in {names:?}");
        let request = HealthCheckRequest { service: service.into() };
        if service.starts_with("toroid") {
            let health = HealthClient::new(channel(&coordinator).await).check(request).await.unwrap().into_inner();
            assert_eq!(health.status(), ServingStatus::Serving);
        }
    }
    coordinator.stop().await;
}
