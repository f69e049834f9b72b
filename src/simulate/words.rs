//! What a worker of the simulation says: messages of the protocol, made up.

use proto::worker_message::Body;
use toroid_proto as proto;
use toroid_torus::geometry::Shape;

use super::fleet::location;

/// By its number.
pub fn worker_id(worker: usize) -> String {
    format!("w{worker:06}")
}

/// The number of a worker by its id.
pub fn number_of(id: &str) -> Option<usize> {
    id.strip_prefix('w')?.parse().ok()
}

/// `incarnation`: how often its process was started.
pub fn register(worker: usize, incarnation: u32) -> Body {
    let [host, rack] = location(worker);
    Body::Register(proto::Register {
        worker_id: worker_id(worker),
        data_address: format!("{host}:7000"),
        host,
        rack,
        device: "cuda".into(),
        fingerprint: "simulated".into(),
        pid: incarnation,
        incarnation: u64::from(incarnation),
        secret: vec![7; 32],
        ..proto::build().register()
    })
}

/// A place in an epoch of the job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    pub epoch: u64,
    pub rank: usize,
}

pub fn prepared(job: &str, place: Place, committed_step: u64, held: Option<(Shape, usize)>) -> Body {
    let held = held.map(|(shape, rank)| proto::Held { shape: Some((&shape).into()), rank: rank as u32 });
    Body::Prepared(proto::Prepared {
        job_id: job.into(),
        epoch: place.epoch,
        committed_step,
        data_digest: vec![7; 32],
        num_samples: 1,
        num_params: 1,
        held: held.into_iter().collect(),
        sums_from: 1,
        ..Default::default()
    })
}

pub fn step_report(job: &str, epoch: u64, step: u64, step_s: f64) -> Body {
    let record = proto::StepRecord { step, loss: 1.0, step_s, tokens: 1, epoch, ..Default::default() };
    Body::Step(proto::StepReport { job_id: job.into(), epoch, record: Some(record) })
}

pub fn shard_written(job: &str, place: Place, step: u64, bytes: u64, write_s: f64) -> Body {
    let Place { epoch, rank } = place;
    Body::ShardWritten(proto::ShardWritten {
        job_id: job.into(),
        epoch,
        step,
        rank: rank as u32,
        file_json: format!(r#"{{"file":"rank-{rank}.safetensors","rank":{rank},"bytes":{bytes},"entries":[]}}"#),
        write_s,
    })
}

pub fn published(job: &str, epoch: u64, step: u64, bytes: u64) -> Body {
    let (path, error) = (format!("step-{step}"), String::new());
    Body::ManifestPublished(proto::ManifestPublished { job_id: job.into(), epoch, step, bytes, path, error })
}

pub fn removed(job: &str, epoch: u64, step: u64, removed: Vec<u64>) -> Body {
    Body::StepsRemoved(proto::StepsRemoved { job_id: job.into(), epoch, step, removed, kept: Vec::new() })
}
