//! Bytes of strangers, and words of workers that lie: each parser and the machine behind it take whatever comes, and neither panic nor hang.
//!
//! The harness is `toroid_testkit::fuzz`; links between workers have their targets in `worker/src/comm/tests/fuzz.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use rustls_pki_types::CertificateDer;
use toroid_coordinator::machine::clock::Boot;
use toroid_coordinator::machine::{
    Config, Input, Limits, Machine, Now, Policy, RequestId, Retention, StreamId, Submission,
};
use toroid_proto as proto;
use toroid_proto::worker_message::Body;
use toroid_security::{Identity, Revoked, issue};
use toroid_testkit::fuzz::{Random, fuzz, fuzz_from_seeds};
use toroid_torus::ids::Term;
use toroid_torus::job;
use toroid_torus::manifest::{FORMAT, Manifest, ShardFile, Writer, entries_of};
use toroid_torus::owner::OwnerId;
use toroid_torus::partition::{partition, shard_position};

#[test]
fn job_files() {
    let texts = [
        "steps = 3\ndata.path = \"/t\"\n",
        "name = \"x\"\npreset = \"tiny\"\nsteps = 100\nseed = 7\n[shape]\ntp = 2\npp = 2\ndp = 2\n[data]\npath = \"/t\"\nextensions = [\"rs\"]\n",
        "steps = 9\ncheckpoint.path = \"/c\"\ncheckpoint.keep = 3\ndata.path = \"/t\"\nresume_from = \"/r/step-1\"\n",
        "steps = 9\n[data]\ntemperature = 2.0\n[[data.source]]\nname = \"a\"\npath = \"/a\"\nmax_epochs = 2.0\n[[data.source]]\nname = \"b\"\npath = \"/b\"\ntokens = 9\n",
    ];
    let mut corpus: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    corpus.extend(texts.iter().filter_map(|text| Some(job::parse(text).ok()?.to_toml().into_bytes())));
    fuzz("job-files", &corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(spec) = job::parse(text) {
            assert_eq!(job::parse(&spec.to_toml()).as_ref(), Ok(&spec), "what is taken prints and parses: {text:?}");
        }
    });
}

/// Whether a message of this type is taken; whatever is taken is written as long as it says that it is.
type Decodes = fn(&[u8]) -> bool;

fn decodes<M: prost::Message + Default>(bytes: &[u8]) -> bool {
    let decoded = M::decode(bytes);
    if let Ok(message) = &decoded {
        assert_eq!(message.encode_to_vec().len(), message.encoded_len());
    }
    decoded.is_ok()
}

macro_rules! messages {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), decodes::<proto::$name> as Decodes)),*]
    };
}

/// All there are: a test compares with what reflection says.
#[rustfmt::skip]
fn all_messages() -> Vec<(&'static str, Decodes)> {
    messages![
        Agent, ApartWorker, Assign, CancelJobRequest, CheckpointAt, CheckpointInfo, CheckpointJobRequest, CheckpointJobResponse,
        CheckpointMissed, CoordinatorMessage, CordonWorkerRequest, CordonWorkerResponse, CreateTokenRequest,
        CreateTokenResponse, CurvePiece, DrainWorkerRequest, DrainWorkerResponse, DropCheckpoint, Event, Evidence, Failed,
        Finished, ForgetWorkerRequest, ForgetWorkerResponse, FromWorkerOfHost, GetAuditRequest, GetAuditResponse, GetCurveRequest,
        GetJobRequest, GetLeaderRequest, GetLeaderResponse, Heal, Heartbeat, Held, HoldJobRequest, HostAnswer, HostMessage, HostWelcome, Incident, Inputs, Job,
        JobUpdate, KeptStep, Kill, KillWorkerRequest, KillWorkerResponse,
        Leaving, LeftOut, ListJobsRequest, ListJobsResponse, ListTokensRequest, ListTokensResponse,
        ListWorkersRequest, ListWorkersResponse, LogLines, ManifestPublished, Origin, Peer, PeerLost,
        PinCheckpointRequest, PinCheckpointResponse, PlaceInfo, PolicyStep, Prepared, Probe,
        Probed, PublishManifest, ReadmitWorkerRequest, ReadmitWorkerResponse, RecordsMissing, Refused, Register,
        ReleaseJobRequest, RemoveJobRequest, RemoveJobResponse, ReportSteps, ResumeJobRequest, RevokeTokenRequest, Saving, Shape,
        ShardProgress, ShardWritten, Source, SourceValidation, Stacks, Start, StepAck, StepRecord, StepReport, StepsRemoved, Stop,
        Stopped, Straggler, SubmitJobRequest, SubmitJobResponse, ToWorkerOfHost, Token, UncordonWorkerRequest, UncordonWorkerResponse, UnpinCheckpointRequest,
        UnpinCheckpointResponse, Unreached, UnreachedPeer, Unsaved,
        Validation, ValidationReport, WarmUp, WarmedUp, WatchJobRequest, Welcome, WorkerInfo, WorkerMessage,
    ].to_vec()
}

/// The types of messages by name, as reflection has them.
struct Types(BTreeMap<String, DescriptorProto>);

impl Types {
    fn new() -> Types {
        let files = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap().file;
        let own = files.into_iter().filter(|file| file.package() == "toroid.v1");
        let mut types = BTreeMap::new();
        for message in own.flat_map(|file| file.message_type) {
            for nested in &message.nested_type {
                types.insert(format!("{}.{}", message.name(), nested.name()), nested.clone());
            }
            types.insert(message.name().to_string(), message);
        }
        Types(types)
    }

    /// A message as it travels: fields with values of their types, some twice, some not there. `known`: values of fields by name, which are taken
    /// more often than others.
    fn random(&self, name: &str, known: &BTreeMap<&str, Vec<u8>>, depth: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in &self.0[name].field {
            // One of several cases: the last one counts, so that one is enough.
            let is_case = field.oneof_index.is_some() && self.0[name].field.len() > 8;
            let times = match random.below(8) {
                _ if is_case => usize::from(random.below(self.0[name].field.len()) == 0),
                0 => 0,
                1 if field.label() == Label::Repeated => random.below(6),
                _ => 1,
            };
            for _ in 0..times {
                self.field(field, known, depth, random, &mut bytes);
            }
        }
        bytes
    }

    fn field(
        &self,
        field: &FieldDescriptorProto,
        known: &BTreeMap<&str, Vec<u8>>,
        depth: usize,
        random: &mut Random,
        bytes: &mut Vec<u8>,
    ) {
        let tag = |bytes: &mut Vec<u8>, wire: u64| varint(bytes, (field.number() as u64) << 3 | wire);
        let known_value = known.get(field.name()).filter(|_| random.below(8) > 0);
        match field.r#type() {
            Type::Double => {
                tag(bytes, 1);
                let value = [0.0, -1.0, 1e300, f64::NAN, f64::INFINITY, 0.25][random.below(6)];
                bytes.extend(value.to_le_bytes());
            }
            Type::String | Type::Bytes => {
                let texts: [&[u8]; 6] = [b"", b"a", b"..", b"/", b"{}", &[b'x'; 300]];
                let value = known_value.map_or_else(|| texts[random.below(6)].to_vec(), Clone::clone);
                tag(bytes, 2);
                varint(bytes, value.len() as u64);
                bytes.extend(value);
            }
            Type::Message => {
                let name = field.type_name().trim_start_matches(".toroid.v1.");
                let value = if depth == 0 { Vec::new() } else { self.random(name, known, depth - 1, random) };
                tag(bytes, 2);
                varint(bytes, value.len() as u64);
                bytes.extend(value);
            }
            _ => {
                tag(bytes, 0);
                match known_value {
                    Some(value) => bytes.extend(value),
                    None => varint(bytes, random.number()),
                }
            }
        }
    }
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[test]
fn every_message_that_there_is_has_a_target() {
    let named: Vec<String> = all_messages().iter().map(|(name, _)| name.to_string()).collect();
    let top_level: Vec<String> = Types::new().0.into_keys().filter(|name| !name.contains('.')).collect();
    assert_eq!(named, top_level);
}

/// Of each type in its turn: as it may travel, and bytes changed.
#[test]
fn messages() {
    let (types, all, known) = (Types::new(), all_messages(), BTreeMap::new());
    let (mut turn, mut num_taken) = (0, 0_u64);
    fuzz_from_seeds("messages", |random| {
        let (name, decodes) = all[turn % all.len()];
        turn += 1;
        let whole = types.random(name, &known, 4, random);
        num_taken += u64::from(decodes(&whole));
        decodes(&toroid_testkit::fuzz::mutated(&[whole], random));
    });
    assert!(num_taken > 0, "no message is as it may travel");
}

/// A job with two places whose workers have both registered, and one of them lies.
struct Lied {
    machine: Machine,
    now: Now,
}

const STREAMS: [StreamId; 2] = [StreamId(1), StreamId(2)];

impl Lied {
    fn new() -> Lied {
        let limits = Limits { heartbeat_interval: Duration::from_secs(1), failure_timeout: Duration::from_secs(5) };
        let config = Config {
            jobs_dir: "/jobs".into(),
            limits,
            term: Term::new(1),
            retention: Retention::default(),
            policy: Policy::default(),
            join_token: None,
        };
        let now = Now { monotonic: Duration::from_secs(1), unix_ms: 1_000_000, boot: Boot(0) };
        let (machine, _) = Machine::restore(config, Vec::new(), BTreeMap::new(), [1; 32], now).unwrap();
        let mut lied = Lied { machine, now };
        let toml =
            "name = \"demo\"\nsteps = 4\ncheckpoint.interval_steps = 2\n[shape]\ndp = 2\n[data]\npath = \"/data\"\n";
        let submission = Submission { toml: toml.into(), user: String::new(), priority: None };
        lied.handle(Input::Submit { request: RequestId(0), submission, owner: OwnerId::from_random([1; 16]) });
        for (stream, id) in STREAMS.into_iter().zip(["a", "b"]) {
            let register = proto::Register {
                worker_id: id.into(),
                protocol_version: proto::build().protocol.newest,
                build_version: proto::BUILD_VERSION.into(),
                host: "here".into(),
                data_address: format!("{id}:1"),
                fingerprint: "alike".into(),
                secret: vec![7; 32],
                ..Default::default()
            };
            lied.say(stream, Body::Register(register));
        }
        lied
    }

    fn handle(&mut self, input: Input) {
        drop(self.machine.handle(input, self.now));
    }

    fn say(&mut self, stream: StreamId, body: Body) {
        self.handle(Input::Message { stream, body: Box::new(body) });
    }
}

/// Whoever has the role of a worker may say what it likes: its own job suffers, and the coordinator goes on.
#[test]
fn words_of_workers_that_lie() {
    let types = Types::new();
    let (one, two) = (vec![1], vec![2]);
    let known = BTreeMap::from([
        ("job_id", b"demo-1".to_vec()),
        ("worker_id", b"a".to_vec()),
        ("data_digest", vec![7; 32]),
        ("secret", vec![7; 32]),
        ("epoch", one.clone()),
        ("rank", one.clone()),
        ("committed_step", one.clone()),
        ("num_samples", one.clone()),
        ("num_params", one.clone()),
        ("step", two.clone()),
        ("dp", two.clone()),
        ("dx", two),
        ("tp", one.clone()),
        ("pp", one.clone()),
        ("dy", one),
    ]);
    fuzz_from_seeds("workers-that-lie", |random| {
        let mut lied = Lied::new();
        for _ in 0..=random.below(24) {
            let bytes = types.random("WorkerMessage", &known, 4, random);
            let Ok(proto::WorkerMessage { body: Some(body) }) = proto::WorkerMessage::decode(&bytes[..]) else {
                continue;
            };
            lied.say(STREAMS[random.below(2)], body);
            if random.below(6) == 0 {
                lied.now.monotonic += Duration::from_millis(random.draw() % 7000);
                lied.handle(Input::Tick);
            }
        }
        // Users ask all the while.
        drop(lied.machine.view("demo-1", lied.now));
        drop(lied.machine.view_workers(lied.now));
    });
}

/// One that is complete, of a model as small as there is.
fn whole_manifest(dp: usize) -> Manifest {
    let toml = format!(
        "steps = 10\ndata.path = \"/t\"\nshape.dp = {dp}\n[model]\nlayers = 1\nd_model = 16\nheads = 2\nkv_heads = 2\nhead_dim = 8\nexperts = 2\nff = 16\nseq = 16\n"
    );
    let job = job::parse(&toml).unwrap();
    let (shape, owner) = (job.shape, OwnerId::from_random([7; 16]));
    let file = |rank: usize| {
        let place = shape.place(rank);
        let part = partition(&job.model, &shape, place.tp, place.pp);
        let start = shard_position(&shape, place.dp) * part.shard_len;
        // Behind a header.
        let mut bytes = 64;
        let mut entries = entries_of(&part, start..start + part.shard_len);
        for entry in &mut entries {
            entry.file_offset = bytes;
            bytes += entry.bytes();
        }
        let writer = Writer { epoch: 3, rank, world: shape.world(), owner };
        ShardFile {
            file: ShardFile::name_of(&writer),
            rank,
            bytes,
            digest: String::new(),
            entries,
            kl_coef: None,
            reward_scale: None,
        }
    };
    Manifest {
        format: FORMAT,
        job_id: "j-1".into(),
        owner: Some(owner),
        step: 10,
        epoch: 3,
        shape,
        samples: 160,
        skipped_steps: 0,
        data_digest: String::new(),
        tokenizer: None,
        files: (0..shape.world()).map(file).collect(),
        job,
    }
}

#[test]
fn manifests() {
    let whole = [1, 2].map(|dp| whole_manifest(dp).to_json());
    whole.iter().for_each(|json| assert!(Manifest::parse(json).is_ok(), "{json}"));
    let corpus = whole.map(String::into_bytes);
    fuzz("manifests", &corpus, |bytes| {
        if let Ok(manifest) = Manifest::parse(&String::from_utf8_lossy(bytes)) {
            assert_eq!(Manifest::parse(&manifest.to_json()).as_ref(), Ok(&manifest), "what is taken prints and parses");
        }
    });
}

#[test]
fn certificates_and_lists_of_revoked_ones() {
    let dir = tempfile::tempdir().unwrap();
    let authority = issue::Authority::init(dir.path(), &"lab".parse().unwrap()).unwrap();
    let request = issue::Request {
        name: "alice".parse().unwrap(),
        role: proto::Role::Coordinator,
        hosts: vec!["localhost".into(), "::1".into()],
        valid: Duration::from_secs(60),
    };
    let folder = authority.issue(&request).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap().to_vec();
    fuzz("certificates", &[der], |bytes| drop(Identity::of(&CertificateDer::from(bytes))));
    let corpus = [b"0ab1 # alice\nff:00\n# x\n".to_vec()];
    fuzz("revoked", &corpus, |bytes| drop(Revoked::parse(&String::from_utf8_lossy(bytes), dir.path())));
}
