//! Closed by default: what a coordinator answers to those who may not, over real sockets and real certificates.
//!
//! The calls are those that reflection names, so that a new one cannot be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use toroid_coordinator::{CallLimits, Config, rules};
use toroid_proto::admin_service_client::AdminServiceClient;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::job_service_client::JobServiceClient;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{self as proto, Role, worker_message};
use toroid_security::issue::{self, Authority};
use toroid_security::{Credentials, Files};
use toroid_testkit::{Coordinator, within};

const DAY: Duration = Duration::from_secs(86_400);

/// A cluster's CA and a coordinator with a certificate of it.
struct Closed {
    folder: tempfile::TempDir,
    authority: Authority,
    coordinator: Coordinator,
}

fn issue(authority: &Authority, name: &str, role: Role, valid: Duration) -> PathBuf {
    let request = issue::Request { name: name.parse().unwrap(), role, hosts: Vec::new(), valid };
    authority.issue(&request).unwrap()
}

fn authority(folder: &Path) -> Authority {
    Authority::init(folder, &"lab".parse().unwrap()).unwrap()
}

impl Closed {
    async fn start() -> Closed {
        Closed::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Closed {
        Closed::certified_for(DAY, change).await
    }

    /// The coordinator's own certificate is good for so long.
    async fn certified_for(valid: Duration, change: impl FnOnce(&mut Config)) -> Closed {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(&folder.path().join("certs"));
        let own = issue(&authority, "coordinator", Role::Coordinator, valid);
        let files = Files { revoked: Some(authority.revoked()), ..Files::of_folder(&own) };
        let mut config = Config { tls: Some(files), ..Coordinator::config(&folder.path().join("data")) };
        change(&mut config);
        let coordinator = Coordinator::start(config).await;
        Closed { folder, authority, coordinator }
    }

    fn address(&self) -> &str {
        self.coordinator.url.trim_start_matches("http://")
    }

    fn issue(&self, name: &str, role: Role) -> Credentials {
        by_folder(&issue(&self.authority, name, role, DAY))
    }

    /// Knows the CA and shows nothing.
    fn nobody(&self, token: Option<&str>) -> Credentials {
        let ca = self.folder.path().join("certs/ca.pem");
        Credentials::tls(Files { ca, pair: None, revoked: None }, token.map(str::to_string)).unwrap()
    }

    async fn channel(&self, credentials: &Credentials) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(self.coordinator.url.clone()).unwrap();
        within("a connection", toroid_security::connect(endpoint, credentials)).await
    }

    /// What a call answers to whoever has these credentials.
    async fn call(&self, credentials: &Credentials, token: Option<&str>, path: &str) -> Result<(), Status> {
        let channel = self.channel(credentials).await.map_err(|e| Status::from_error(Box::new(e)))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
        let path: http::uri::PathAndQuery = path.parse().unwrap();
        let mut request = Request::new(tokio_stream::once(proto::ListWorkersRequest {}));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let codec = tonic_prost::ProstCodec::<proto::ListWorkersRequest, proto::ListWorkersResponse>::default();
        let answer = within("an answer", client.streaming(request, path, codec)).await?;
        // No stream says nothing to whoever has asked and says no more.
        within("a message or the end", answer.into_inner().message()).await.map(drop)
    }

    /// A worker's stream, and what it says on it: so long as that is not dropped the worker does not end it.
    async fn session(&self, credentials: &Credentials, register: proto::Register) -> (Says, Hears) {
        let (says, said) = mpsc::channel(8);
        let message = proto::WorkerMessage { body: Some(worker_message::Body::Register(register)) };
        says.send(message).await.unwrap();
        let mut client = WorkerServiceClient::new(self.channel(credentials).await.unwrap());
        (says, client.session(ReceiverStream::new(said)).await.unwrap().into_inner())
    }

    async fn admin(&self) -> AdminServiceClient<Channel> {
        let name = "root";
        let folder = self.authority.folder_of(&name.parse().unwrap());
        let credentials = if folder.exists() { by_folder(&folder) } else { self.issue(name, Role::Admin) };
        AdminServiceClient::new(self.channel(&credentials).await.unwrap())
    }

    async fn token(&self, role: &str, valid_s: u64) -> proto::CreateTokenResponse {
        let request = proto::CreateTokenRequest { name: "ci".into(), role: role.into(), valid_s };
        self.admin().await.create_token(request).await.unwrap().into_inner()
    }
}

/// Waits until it is so.
async fn becomes(what: &str, is_so: impl Fn() -> bool) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

type Says = mpsc::Sender<proto::WorkerMessage>;
type Hears = tonic::Streaming<proto::CoordinatorMessage>;

async fn heard(stream: &mut Hears) -> ToWorker {
    let message = within("a message to a worker", stream.message()).await.unwrap();
    message.and_then(|m| m.body).expect("the stream is open")
}

fn register_as(id: &str) -> proto::Register {
    proto::Register {
        worker_id: id.into(),
        protocol_version: proto::build().protocol.newest,
        build_version: proto::BUILD_VERSION.into(),
        host: "here".into(),
        data_address: "here:1".into(),
        device: "cpu".into(),
        fingerprint: "alike".into(),
        secret: vec![7; 32],
        ..Default::default()
    }
}

fn by_folder(folder: &Path) -> Credentials {
    Credentials::tls(Files::of_folder(folder), None).unwrap()
}

/// All calls of the services that the coordinator says it has, by path.
fn calls() -> Vec<String> {
    let mut paths = Vec::new();
    for set in [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        for file in prost_types::FileDescriptorSet::decode(set).unwrap().file {
            for service in &file.service {
                let of = |method: &prost_types::MethodDescriptorProto| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                };
                paths.extend(service.method.iter().map(of));
            }
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

fn is_refusal(answer: &Result<(), Status>) -> bool {
    answer.as_ref().is_err_and(|s| matches!(s.code(), Code::Unauthenticated | Code::PermissionDenied))
}

/// The handshake fails, or what it opened ends before it answers.
fn is_shut_out(answer: &Result<(), Status>) -> bool {
    answer
        .as_ref()
        .is_err_and(|s| matches!(s.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal))
}

#[test]
fn each_call_has_a_rule_and_each_rule_a_call() {
    let (found, ruled) = (calls(), rules::RULES.map(|rule| rule.path.to_string()));
    assert!(found.len() > 20, "{found:?}");
    let closed: Vec<_> = found.iter().filter(|path| !ruled.contains(path)).collect();
    assert!(closed.is_empty(), "nobody may make these calls: give each a row in grpc/rules.rs: {closed:?}");
    let gone: Vec<_> = ruled.iter().filter(|path| !found.contains(path)).collect();
    assert!(gone.is_empty(), "there are no such calls any more: {gone:?}");
    let open: Vec<_> = rules::RULES.iter().filter(|rule| rule.least.is_none()).map(|rule| rule.path).collect();
    assert_eq!(open, ["/grpc.health.v1.Health/Check"], "open to whoever reaches the port");
}

#[tokio::test]
async fn no_call_answers_anything_but_a_refusal_to_who_may_not_make_it() {
    // All these refusals are of one address.
    let calls = CallLimits { refused_per_s: 10_000.0, ..CallLimits::default() };
    let closed = Closed::with(|config| config.calls = calls).await;
    let mut roles = BTreeMap::new();
    for role in Role::ALL {
        roles.insert(role, closed.issue(&format!("some-{role}"), role));
    }
    let other = tempfile::tempdir().unwrap();
    let other = authority(other.path());
    let stranger = issue(&other, "root", Role::Admin, DAY);
    let ca = closed.folder.path().join("certs/ca.pem");
    let stranger = Files { ca, ..Files::of_folder(&stranger) };
    let stranger = Credentials::tls(stranger, None).unwrap();
    let made = closed.token("admin", 3600).await;
    closed.admin().await.revoke_token(proto::RevokeTokenRequest { id: made.token.unwrap().id }).await.unwrap();
    let nobody = closed.nobody(None);
    // Certificates that were good when their owner began.
    let expired = by_folder(&issue(&closed.authority, "expired", Role::Admin, Duration::from_secs(2)));
    let revoked = closed.issue("dismissed", Role::Admin);
    closed.authority.revoke(&"dismissed".parse().unwrap()).unwrap();
    for no_more in [&expired, &revoked] {
        within("the end of a certificate", async {
            while closed.call(no_more, None, "/toroid.v1.JobService/ListJobs").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }
    for rule in &rules::RULES {
        let path = rule.path;
        assert!(is_shut_out(&closed.call(&stranger, None, path).await), "{path} with a certificate of another CA");
        assert!(is_shut_out(&closed.call(&Credentials::none(), None, path).await), "{path} in clear text");
        for (what, no_more) in [("an expired", &expired), ("a revoked", &revoked)] {
            let answer = closed.call(no_more, None, path).await;
            assert!(is_shut_out(&answer) || is_refusal(&answer), "{path} with {what} certificate: {answer:?}");
        }
        for wrong in ["", "admin", "toroid", "toroid_00", &made.secret] {
            let answer = closed.call(&nobody, Some(wrong), path).await;
            assert!(is_refusal(&answer), "{path} with a wrong token: {answer:?}");
        }
        let answer = closed.call(&nobody, None, path).await;
        assert_eq!(is_refusal(&answer), rule.least.is_some(), "{path} with nothing: {answer:?}");
        for (role, credentials) in &roles {
            let answer = closed.call(credentials, None, path).await;
            let may = rule.least.is_none_or(|least| role.may(least));
            assert_eq!(is_refusal(&answer), !may, "{path} as {role}: {answer:?}");
        }
    }
    let answer = closed.call(&roles[&Role::Admin], None, "/toroid.v1.JobService/NoSuchCall").await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "what is in no table is nobody's");
    closed.coordinator.stop().await;
}

#[tokio::test]
async fn a_token_does_what_its_role_may_until_it_is_revoked_and_its_streams_end_with_it() {
    let closed = Closed::start().await;
    let made = closed.token("view", 3600).await;
    let watch = "/grpc.health.v1.Health/Watch";
    closed.call(&closed.nobody(None), Some(&made.secret), "/toroid.v1.JobService/ListWorkers").await.unwrap();
    let channel = closed.channel(&closed.nobody(None)).await.unwrap();
    let shown: tonic::metadata::MetadataValue<_> = format!("Bearer {}", made.secret).parse().unwrap();
    let mut health = HealthClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", shown.clone());
        Ok(request)
    });
    let mut stream = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let id = made.token.unwrap().id;
    closed.admin().await.revoke_token(proto::RevokeTokenRequest { id: id.clone() }).await.unwrap();
    let ended = within("the end of the stream", stream.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("revoked"), "{}", ended.message());
    assert!(is_refusal(&closed.call(&closed.nobody(None), Some(&made.secret), watch).await));
    // One that ends by itself.
    let short = closed.token("view", 2).await;
    within("the end of a token", async {
        while closed.call(&closed.nobody(None), Some(&short.secret), "/toroid.v1.JobService/ListWorkers").await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let records =
        closed.admin().await.get_audit(proto::GetAuditRequest { limit: 0 }).await.unwrap().into_inner().records;
    let has = |words: &[&str]| records.iter().any(|r| words.iter().all(|w| r.contains(w)));
    assert!(has(&["certificate root (admin)", "CreateToken", "ci view, for 3600 s", "asked"]), "{records:#?}");
    assert!(has(&["RevokeToken", &id, "\"done\"", "OK"]), "{records:#?}");
    assert!(!records.iter().any(|r| r.contains(&made.secret)), "the record has no secret");
    closed.coordinator.stop().await;
}

#[tokio::test]
async fn streams_end_when_their_certificate_ends_or_is_revoked_and_a_renewed_one_goes_on() {
    let closed = Closed::start().await;
    let name = "alice".parse().unwrap();
    let folder = issue(&closed.authority, "alice", Role::View, Duration::from_secs(4));
    let credentials = by_folder(&folder);
    let open = async |credentials: &Credentials| {
        let mut health = HealthClient::new(closed.channel(credentials).await.unwrap());
        let mut stream = health.watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        stream
    };
    let mut stream = open(&credentials).await;
    let ended = within("the end of the certificate", stream.message()).await.unwrap_err();
    assert!(ended.message().contains("certificate has ended"), "{ended:?}");
    // To the second: within the last one the handshake may still be made, and the call is refused.
    let answer = closed.call(&credentials, None, "/grpc.health.v1.Health/Watch").await;
    assert!(is_shut_out(&answer) || is_refusal(&answer), "it has ended: {answer:?}");
    // The same files, the same client: another certificate.
    let before = credentials.own_serial();
    closed.authority.renew(&name, DAY).unwrap();
    becomes("the renewed certificate", || credentials.own_serial() != before).await;
    let mut stream = open(&credentials).await;
    closed.authority.revoke(&name).unwrap();
    let ended = within("the revocation", stream.message()).await.unwrap_err();
    assert!(ended.message().contains("revoked"), "{ended:?}");
    assert!(
        is_shut_out(&closed.call(&credentials, None, "/grpc.health.v1.Health/Watch").await),
        "no session is resumed"
    );
    closed.coordinator.stop().await;
}

#[tokio::test]
async fn a_key_that_does_not_match_its_certificate_leaves_the_pair_before_in_force() {
    let closed = Closed::start().await;
    let folder = issue(&closed.authority, "alice", Role::View, DAY);
    let credentials = by_folder(&folder);
    let before = credentials.own_serial();
    let other = issue(&closed.authority, "bob", Role::View, DAY);
    std::fs::copy(other.join("key.pem"), folder.join("key.pem")).unwrap();
    becomes("the key that does not match", || credentials.complaint().is_some()).await;
    assert!(credentials.complaint().is_some_and(|words| words.contains("not the key of the certificate")));
    assert_eq!(credentials.own_serial(), before);
    closed.call(&credentials, None, "/toroid.v1.JobService/ListJobs").await.unwrap();
    std::fs::copy(other.join("cert.pem"), folder.join("cert.pem")).unwrap();
    becomes("the other pair", || credentials.own_serial() != before).await;
    assert_eq!(credentials.complaint(), None);
    closed.coordinator.stop().await;
}

#[tokio::test]
async fn a_worker_cannot_take_the_id_of_another() {
    let closed = Closed::start().await;
    let pool = closed.issue("pool", Role::Worker);
    let register = async |credentials: &Credentials, id: &str, secret: u8, certified: &str| {
        let register = proto::Register { secret: vec![secret; 32], certified: certified.into(), ..register_as(id) };
        let (_says, mut stream) = closed.session(credentials, register).await;
        match heard(&mut stream).await {
            ToWorker::Welcome(_) => "welcome".to_string(),
            ToWorker::Refused(refused) => refused.reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(register(&pool, "w1", 1, "").await, "welcome");
    assert!(register(&pool, "w1", 2, "").await.contains("another secret"));
    assert!(
        register(&pool, "w1", 2, "w1").await.contains("another secret"),
        "what a worker says of its certificate is dropped"
    );
    assert_eq!(register(&pool, "w1", 1, "").await, "welcome");
    let own = closed.issue("w2", Role::Worker);
    assert_eq!(register(&own, "w2", 1, "").await, "welcome");
    assert!(register(&pool, "w2", 1, "").await.contains("certificate of that name"));
    let forget = |worker_id: &str| proto::ForgetWorkerRequest { worker_id: worker_id.into() };
    within("w1 to be gone", async {
        while closed.admin().await.forget_worker(forget("w1")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(register(&pool, "w1", 2, "").await, "welcome", "it was forgotten");
    closed.coordinator.stop().await;
}

/// An agent speaks for workers that have its certificate's name in their ids, and for nobody else; secrets bind their ids as ever.
#[tokio::test]
async fn an_agent_speaks_for_ids_of_its_own_name_alone() {
    let closed = Closed::start().await;
    let own = closed.issue("node-7-9", Role::Worker);
    let (_says, mut hears) = closed.session(&own, register_as("node-7-9")).await;
    assert!(matches!(heard(&mut hears).await, ToWorker::Welcome(_)));

    let (says, said) = mpsc::channel(8);
    let agent = Some(proto::build().agent("node-8".into(), "node-8".into()));
    says.send(proto::HostMessage { agent, entries: Vec::new() }).await.unwrap();
    let ids = ["node-7-1", "node-7", "node-8-1", "node-77", "node-7-9", "node-7-2"];
    let opened = |(worker, id): (u32, &str)| {
        let register = proto::Register { certified: id.into(), secret: vec![1; 32], ..register_as(id) };
        proto::FromWorkerOfHost { worker, what: Some(proto::from_worker_of_host::What::Opened(Box::new(register))) }
    };
    let entries = (0..).zip(ids).map(opened).collect();
    says.send(proto::HostMessage { agent: None, entries }).await.unwrap();
    let mut client = WorkerServiceClient::new(closed.channel(&closed.issue("node-7", Role::Worker)).await.unwrap());
    let mut answers = client.host(ReceiverStream::new(said)).await.unwrap().into_inner();
    let mut found = BTreeMap::new();
    while found.len() < ids.len() {
        let answer = within("an answer", answers.message()).await.unwrap().expect("the stream is open");
        for proto::ToWorkerOfHost { worker, what } in answer.entries {
            let Some(proto::to_worker_of_host::What::Said(message)) = what else { continue };
            let words = match message.body {
                Some(ToWorker::Welcome(_)) => "welcome".to_string(),
                Some(ToWorker::Refused(refused)) => refused.reason,
                other => panic!("{other:?}"),
            };
            found.insert(ids[worker as usize], words);
        }
    }
    for id in ["node-7-1", "node-7", "node-7-2"] {
        assert_eq!(found[id], "welcome", "{id}");
    }
    for id in ["node-8-1", "node-77"] {
        assert!(found[id].contains("ids are `node-7` or begin with `node-7-`, and this one's is `"), "{}", found[id]);
    }
    assert!(found["node-7-9"].contains("certificate of that name"), "{}", found["node-7-9"]);
    closed.coordinator.stop().await;
}

/// A stream ends with its certificate, or the coordinator's; the worker comes back with the renewed one and has its place still. Revoked, it has not.
#[tokio::test]
async fn a_worker_keeps_its_place_when_a_certificate_ends_and_loses_it_when_its_own_is_revoked() {
    const SHORT: Duration = Duration::from_secs(4);
    for short in ["w1", "coordinator"] {
        let valid = |name: &str| if name == short { SHORT } else { DAY };
        let closed = Closed::certified_for(valid("coordinator"), |_| {}).await;
        let credentials = by_folder(&issue(&closed.authority, "w1", Role::Worker, valid("w1")));
        let [worker, short] = ["w1", short].map(|name| name.parse().unwrap());
        let mut users = JobServiceClient::new(closed.channel(&closed.issue("alice", Role::Submit)).await.unwrap());
        let job_toml = "steps = 3\ndata.path = \"/data\"\n".to_string();
        let (says, mut hears) = closed.session(&credentials, register_as("w1")).await;
        assert!(matches!(heard(&mut hears).await, ToWorker::Welcome(_)));
        let request = proto::SubmitJobRequest { job_toml, ..Default::default() };
        let job_id = users.submit_job(request).await.unwrap().into_inner().job_id;
        let assign = loop {
            if let ToWorker::Assign(assign) = heard(&mut hears).await {
                break assign;
            }
        };
        closed.authority.renew(&short, DAY).unwrap();
        let ended = within("the end of the stream", async { while let Ok(Some(_)) = hears.message().await {} });
        ended.await;
        // The user's connection may have ended as well.
        let alice = by_folder(&closed.authority.folder_of(&"alice".parse().unwrap()));
        let job = async || {
            let mut users = JobServiceClient::new(closed.channel(&alice).await.unwrap());
            let request = proto::GetJobRequest { job_id: job_id.clone(), ..Default::default() };
            users.get_job(request).await.unwrap().into_inner()
        };
        let keeps = |job: &proto::Job| {
            (job.epoch, job.incidents.len(), job.places[0].worker_id.as_str(), job.places[0].alive)
                == (assign.epoch, 0, "w1", true)
        };
        let seen = job().await;
        assert!(keeps(&seen), "{short}: {seen:#?}");
        let (job_id, epoch, rank) = (assign.job_id.clone(), assign.epoch, assign.rank);
        let again = proto::Register { job_id, epoch, rank, ..register_as("w1") };
        let (_says_again, mut hears) = closed.session(&credentials, again).await;
        assert!(matches!(heard(&mut hears).await, ToWorker::Welcome(_)));
        drop(says);
        let seen = job().await;
        assert!(keeps(&seen), "{short}: {seen:#?}");
        closed.authority.revoke(&worker).unwrap();
        within("the end of a revoked worker's place", async {
            while keeps(&job().await) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        closed.coordinator.stop().await;
    }
}

#[tokio::test]
async fn who_says_nothing_or_too_much_is_cut_off_and_others_go_on() {
    let connections = toroid_security::server::Limits {
        handshake: Duration::from_millis(500),
        first_call: Duration::from_secs(2),
        half_open_of_address: 8,
        ..Default::default()
    };
    let calls = CallLimits { per_s: 0.001, at_once: 40.0, ..CallLimits::default() };
    let closed = Closed::with(|config| (config.connections, config.calls) = (connections, calls)).await;
    let alice = closed.issue("alice", Role::View);
    // Handshakes that never come: those that there is no room for are closed at once, the others in time.
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut tcp = tokio::net::TcpStream::connect(closed.address()).await.unwrap();
        // Half a record of TLS.
        let _ = tcp.write_all(&[22, 3, 1]).await;
        silent.push(tcp);
    }
    for mut tcp in silent {
        within("the end of a handshake that does not come", async {
            while matches!(tcp.read(&mut [0; 64]).await, Ok(n) if n > 0) {}
        })
        .await;
    }
    closed.call(&alice, None, "/toroid.v1.JobService/ListJobs").await.unwrap();
    // More calls than alice may make: refused in words, and bob goes on.
    let mut refused = None;
    let mut jobs = JobServiceClient::new(closed.channel(&alice).await.unwrap());
    for _ in 0..60 {
        if let Err(status) = jobs.list_jobs(proto::ListJobsRequest::default()).await {
            refused = Some(status);
        }
    }
    assert!(refused.is_some_and(|s| s.code() == Code::ResourceExhausted && s.message().contains("calls a second")));
    let bob = closed.issue("bob", Role::View);
    closed.call(&bob, None, "/toroid.v1.JobService/ListJobs").await.unwrap();
    // Workers come at a time, and with one certificate: more of them than a user may make calls.
    let mut workers = WorkerServiceClient::new(closed.channel(&closed.issue("pool", Role::Worker)).await.unwrap());
    for n in 0..60 {
        let body = Some(worker_message::Body::Register(register_as(&format!("w{n}"))));
        let opened = workers.session(tokio_stream::once(proto::WorkerMessage { body })).await;
        assert!(opened.is_ok(), "worker {n}: {opened:?}");
    }
    closed.coordinator.stop().await;
}

/// Whoever opens connections and says nothing keeps nobody out, not even those who share its address.
#[tokio::test]
async fn handshakes_that_do_not_come_give_way_to_newer_ones() {
    const ROOM: usize = 8;
    let connections = toroid_security::server::Limits {
        handshake: Duration::from_secs(600),
        half_open_of_address: ROOM,
        ..Default::default()
    };
    let closed = Closed::with(|config| config.connections = connections).await;
    let alice = closed.issue("alice", Role::View);
    let mut silent = Vec::new();
    for _ in 0..4 * ROOM {
        let mut tcp = tokio::net::TcpStream::connect(closed.address()).await.unwrap();
        // Half a record of TLS. It may have given way already.
        let _ = tcp.write_all(&[22, 3, 1]).await;
        silent.push(tcp);
    }
    let kept = silent.split_off(3 * ROOM);
    for mut tcp in silent {
        within("the end of a handshake that gives way", async {
            while matches!(tcp.read(&mut [0; 64]).await, Ok(n) if n > 0) {}
        })
        .await;
    }
    closed.call(&alice, None, "/toroid.v1.JobService/ListJobs").await.unwrap();
    drop(kept);
    closed.coordinator.stop().await;
}

/// The services are those that reflection itself names, whose calls have a rule each.
#[tokio::test]
async fn reflection_names_no_service_that_has_no_rules() {
    use tonic_reflection::pb::v1 as reflection;
    let closed = Closed::start().await;
    let channel = closed.channel(&closed.issue("alice", Role::View)).await.unwrap();
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let asked = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = within("the services", answers.message()).await.unwrap().and_then(|a| a.message_response);
    let Some(reflection::server_reflection_response::MessageResponse::ListServicesResponse(listed)) = answer else {
        panic!("{answer:?}");
    };
    let named: BTreeSet<String> = listed.service.into_iter().map(|service| service.name).collect();
    let service = |path: &str| path.split('/').nth(1).unwrap().to_string();
    let mut ruled: BTreeSet<String> = rules::RULES.iter().map(|rule| service(rule.path)).collect();
    // It names itself in the version that is asked.
    ruled.remove("grpc.reflection.v1alpha.ServerReflection");
    assert_eq!(named, ruled);
    closed.coordinator.stop().await;
}

/// A page of somebody else that a user's browser shows can make GET and POST to whatever that machine reaches: the port is no web server for it,
/// with certificates and without.
#[tokio::test]
async fn no_browser_and_no_get_does_anything() {
    let folder = tempfile::tempdir().unwrap();
    let open = Coordinator::start(Coordinator::config(folder.path())).await;
    let address = open.url.trim_start_matches("http://").to_string();
    for method in ["GET", "POST", "OPTIONS", "HEAD"] {
        for path in ["/", "/metrics", "/healthz", "/debug/pprof", "/api/v1/jobs", "/toroid.v1.JobService/ListJobs"] {
            let mut tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://example.com\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0"
            );
            // It may be closed before all of it was read.
            let _ = tcp.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = within("the end of a connection of HTTP/1.1", tcp.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(!answer.starts_with("HTTP/1.1 2") && !answer.contains("toroid"), "{method} {path}: {answer}");
        }
    }
    // The same over HTTP/2, in words of gRPC and not.
    let closed = Closed::start().await;
    let channel = Endpoint::from_shared(open.url.clone()).unwrap().connect().await.unwrap();
    let admin = closed.channel(&closed.issue("root", Role::Admin)).await.unwrap();
    let grpc = ("content-type", "application/grpc");
    let origin = ("origin", "http://example.com");
    type Header = (&'static str, &'static str);
    let tries: [(&str, &[Header], Code); 5] = [
        ("GET", &[grpc], Code::Unimplemented),
        ("PUT", &[grpc], Code::Unimplemented),
        ("POST", &[grpc, origin], Code::PermissionDenied),
        ("POST", &[("content-type", "text/plain")], Code::InvalidArgument),
        ("POST", &[], Code::InvalidArgument),
    ];
    for channel in [channel, admin] {
        for (method, headers, expected) in tries {
            for rule in &rules::RULES {
                let mut request = http::Request::builder().method(method).uri(rule.path);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let request = request.body(tonic::body::Body::empty()).unwrap();
                let mut channel = channel.clone();
                let called = async {
                    std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await?;
                    tower::Service::call(&mut channel, request).await
                };
                let answer = within("an answer", called).await.unwrap();
                let status = Status::from_header_map(answer.headers()).map(|status| status.code());
                assert_eq!(status, Some(expected), "{method} {} {headers:?}", rule.path);
            }
        }
    }
    open.stop().await;
    closed.coordinator.stop().await;
}

/// Frames of HTTP/2 as RFC 9113 has them.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Resets, continued headers and empty frames without end (CVE-2023-44487, RUSTSEC-2024-0003, RUSTSEC-2024-0332, CVE-2019-9518): each ends its
/// connection, and the coordinator goes on answering others.
#[tokio::test]
async fn floods_of_http2_frames_end_their_connection() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(Coordinator::config(folder.path())).await;
    let address = coordinator.url.trim_start_matches("http://").to_string();
    // :method POST, :scheme http, :path /, all of HPACK's static table.
    const HEADERS: [u8; 3] = [0x83, 0x86, 0x84];
    let resets = |n: u32| {
        let stream = 2 * n + 1;
        [frame(1, 0x4, stream, &HEADERS), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let continued = |n: u32| match n {
        0 => frame(1, 0, 1, &HEADERS),
        // A literal header of 4 KiB, again and again.
        _ => frame(9, 0, 1, &[&[0x00, 0x01, b'a', 0x7f, 0x81, 0x1f][..], &[b'b'; 4096]].concat()),
    };
    let empty = |n: u32| match n {
        0 => frame(1, 0, 1, &HEADERS),
        _ => frame(9, 0, 1, &[]),
    };
    let empty_data = |n: u32| match n {
        0 => frame(1, 0x4, 1, &HEADERS),
        _ => frame(0, 0, 1, &[]),
    };
    type Frames<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: [(&str, Frames<'_>); 4] = [
        ("resets", &resets),
        ("continued headers", &continued),
        ("empty continuations", &empty),
        ("empty data", &empty_data),
    ];
    for (what, flood) in floods {
        let tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
        let (mut read, mut write) = tcp.into_split();
        write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        write.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        let reading = tokio::spawn(async move { while matches!(read.read(&mut [0; 4096]).await, Ok(n) if n > 0) {} });
        let mut num_sent = 0;
        while num_sent < 200_000 && write.write_all(&flood(num_sent)).await.is_ok() {
            num_sent += 1;
        }
        assert!(num_sent < 200_000, "{what}: {num_sent} were taken");
        within("the end of the flood", reading).await.unwrap();
    }
    let mut user = JobServiceClient::connect(coordinator.url.clone()).await.unwrap();
    user.list_jobs(proto::ListJobsRequest::default()).await.unwrap();
    coordinator.stop().await;
}
