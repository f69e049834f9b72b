//! Workers that were refused since they hold what this store does not know, as users see them; and what tells stores apart.

use std::collections::BTreeMap;
use std::time::Duration;

use toroid_proto as proto;
use toroid_torus::ids::WorkerId;

/// Workers that are shown.
const MAX_SHOWN: usize = 10_000;

/// Whose terms and places are counted: the same as long as the store is.
pub(crate) fn store_id(secret: &[u8; 32]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::keyed_hash(secret, b"whose terms are counted").as_bytes()[..16]);
    id
}

/// Those who were refused for it, and when they asked last.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    workers: BTreeMap<WorkerId, (proto::ApartWorker, Duration)>,
}

impl Apart {
    pub fn insert(&mut self, register: &proto::Register, reason: &str, now: Duration) {
        let id = WorkerId::from(register.worker_id.as_str());
        if self.workers.len() >= MAX_SHOWN && !self.workers.contains_key(&id) {
            return;
        }
        let worker = proto::ApartWorker {
            worker_id: register.worker_id.clone(),
            host: register.host.clone(),
            job_id: register.job_id.clone(),
            epoch: register.epoch,
            rank: register.rank,
            committed_step: register.committed_step,
            reason: reason.into(),
        };
        self.workers.insert(id, (worker, now));
    }

    pub fn remove(&mut self, worker: &str) {
        self.workers.remove(worker);
    }

    /// Whoever has not asked since then is gone.
    pub fn forget_before(&mut self, then: Duration) {
        self.workers.retain(|_, (_, asked_at)| *asked_at >= then);
    }

    /// Those who have asked since then.
    pub fn since(&self, then: Duration) -> impl Iterator<Item = &proto::ApartWorker> {
        self.workers.values().filter(move |(_, asked_at)| *asked_at >= then).map(|(worker, _)| worker)
    }
}
