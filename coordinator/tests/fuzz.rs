//! Bytes of strangers: each parser that they reach takes whatever comes, and neither panics nor hangs.
//!
//! Inputs are mutations of kept ones, from a seed: `TOROID_FUZZ` says how many for each parser (20,000 by default; `make soak` has more), and a failure
//! prints the seed of its input, which `TOROID_SEED` tries alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use prost::Message as _;
use rustls_pki_types::CertificateDer;
use toroid_proto as proto;
use toroid_security::{Identity, Revoked, issue};
use toroid_torus::{job, manifest};

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// What parsers trip over: bounds of numbers, lengths of varints and DER, signs of TOML and JSON.
const TOKENS: [&[u8]; 20] = [
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80",
    b"\0",
    b"\xff",
    b"-1",
    b"18446744073709551615",
    b"1e999",
    b"NaN",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"..",
    b"\n",
    b"=",
    b"[[a]]",
    b"\x30\x84\xff\xff\xff\xff",
    b"\xf0\x9f",
    b"\\u0000",
];

/// One to eight changes of one input: bytes flipped, cut, doubled, joined with another's.
fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const MAX_BYTES: usize = 1 << 16;
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let to = at + random.below(bytes.len() - at + 1).min(random.below(64));
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..to)),
            4 => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
            5 => {
                let doubled = bytes[at..to].to_vec();
                bytes.splice(at..at, doubled);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
        bytes.truncate(MAX_BYTES);
    }
    bytes
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Feeds `parse` with mutations of the corpus.
fn fuzz(what: &str, corpus: &[Vec<u8>], parse: impl Fn(&[u8])) {
    let seeds = match number("TOROID_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TOROID_FUZZ").unwrap_or(20_000),
    };
    let (start, num) = (Instant::now(), seeds.end - seeds.start);
    corpus.iter().for_each(|bytes| parse(bytes));
    for seed in seeds {
        let bytes = mutated(corpus, &mut Random(seed));
        let parsed = catch_unwind(AssertUnwindSafe(|| parse(&bytes)));
        assert!(parsed.is_ok(), "{what}: TOROID_SEED={seed} panics: {:?}", String::from_utf8_lossy(&bytes));
    }
    println!("{what}: {num} inputs, {:.0} a second", num as f64 / start.elapsed().as_secs_f64());
}

#[test]
fn job_files() {
    let texts = [
        "steps = 3\ndata.path = \"/t\"\n",
        "name = \"x\"\npreset = \"tiny\"\nsteps = 100\nseed = 7\n[shape]\ntp = 2\npp = 2\ndp = 2\n[data]\npath = \"/t\"\nextensions = [\"rs\"]\n",
        "steps = 9\ncheckpoint.path = \"/c\"\ncheckpoint.keep = 3\ndata.path = \"/t\"\nresume_from = \"/r/step-1\"\n",
    ];
    let mut corpus: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    corpus.extend(texts.iter().filter_map(|text| Some(job::parse(text).ok()?.to_toml().into_bytes())));
    fuzz("job files", &corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(spec) = job::parse(text) {
            assert_eq!(job::parse(&spec.to_toml()).as_ref(), Ok(&spec), "what is taken prints and parses");
        }
    });
}

#[test]
fn messages() {
    let worker = proto::WorkerMessage {
        body: Some(proto::worker_message::Body::Register(proto::Register {
            worker_id: "w1".into(),
            secret: vec![1; 32],
            ..Default::default()
        })),
    };
    let step = proto::WorkerMessage {
        body: Some(proto::worker_message::Body::Step(proto::StepReport {
            record: Some(proto::StepRecord { expert_load: vec![1, 300, 70_000], ..Default::default() }),
            ..Default::default()
        })),
    };
    let submit = proto::SubmitJobRequest { job_toml: "steps = 3\n".into(), ..Default::default() };
    let token = proto::CreateTokenRequest { name: "ci".into(), role: "view".into(), valid_s: 9 };
    let corpus = [worker.encode_to_vec(), step.encode_to_vec(), submit.encode_to_vec(), token.encode_to_vec()];
    fuzz("messages", &corpus, |bytes| {
        // Whatever is taken is written as long as it says that it is.
        if let Ok(message) = proto::WorkerMessage::decode(bytes) {
            assert_eq!(message.encode_to_vec().len(), message.encoded_len());
        }
        drop(proto::CoordinatorMessage::decode(bytes));
        drop(proto::SubmitJobRequest::decode(bytes));
        drop(proto::WatchJobRequest::decode(bytes));
        drop(proto::CreateTokenRequest::decode(bytes));
        drop(proto::Job::decode(bytes));
    });
}

#[test]
fn manifests() {
    let corpus = [
        b"{\"format\":1,\"step\":5,\"files\":[]}".to_vec(),
        b"{\"format\":2,\"job\":\"tiny-1\",\"step\":18446744073709551615,\"files\":[{\"name\":\"a\",\"entries\":[]}]}"
            .to_vec(),
    ];
    fuzz("manifests", &corpus, |bytes| drop(manifest::Manifest::parse(&String::from_utf8_lossy(bytes))));
}

#[test]
fn certificates_and_lists_of_revoked_ones() {
    let dir = tempfile::tempdir().unwrap();
    let authority = issue::Authority::init(dir.path(), &"lab".parse().unwrap()).unwrap();
    let request = issue::Request {
        name: "alice".parse().unwrap(),
        role: proto::Role::Coordinator,
        hosts: vec!["localhost".into(), "::1".into()],
        valid: std::time::Duration::from_secs(60),
    };
    let folder = authority.issue(&request).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap().to_vec();
    fuzz("certificates", &[der], |bytes| drop(Identity::of(&CertificateDer::from(bytes))));
    let corpus = [b"0ab1 # alice\nff:00\n# x\n".to_vec()];
    fuzz("revoked", &corpus, |bytes| drop(Revoked::parse(&String::from_utf8_lossy(bytes), dir.path())));
}
