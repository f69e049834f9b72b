//! What a worker's message speaks of.

use crate::generated::worker_message::Body;

impl Body {
    /// The job and epoch, for what belongs to one: it means nothing in another (T-1).
    pub fn subject(&self) -> Option<(&str, u64)> {
        match self {
            Body::Heartbeat(m) => Some((&m.job_id, m.epoch)),
            Body::Prepared(m) => Some((&m.job_id, m.epoch)),
            Body::Step(m) => Some((&m.job_id, m.epoch)),
            Body::ShardWritten(m) => Some((&m.job_id, m.epoch)),
            Body::CheckpointMissed(m) => Some((&m.job_id, m.epoch)),
            Body::ManifestPublished(m) => Some((&m.job_id, m.epoch)),
            Body::StepsRemoved(m) => Some((&m.job_id, m.epoch)),
            Body::Finished(m) => Some((&m.job_id, m.epoch)),
            Body::Failed(m) => Some((&m.job_id, m.epoch)),
            Body::PeerLost(m) => Some((&m.job_id, m.epoch)),
            Body::RecordsMissing(m) => Some((&m.job_id, m.epoch)),
            Body::Unreached(m) => Some((&m.job_id, m.epoch)),
            Body::Validation(m) => Some((&m.job_id, m.epoch)),
            Body::Stopped(m) => Some((&m.job_id, m.epoch)),
            Body::Stacks(m) => Some((&m.job_id, m.epoch)),
            Body::Register(_) | Body::Leaving(_) | Body::WarmedUp(_) | Body::Probed(_) | Body::LogLines(_) => None,
        }
    }
}
