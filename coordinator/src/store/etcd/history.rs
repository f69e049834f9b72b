//! Drops what etcd keeps of the past. It has every value that a key ever had until somebody compacts it, and refuses all writes once its quota is
//! used up: training would go on, and no decision could be made any more.
//!
//! The leader does it, as Kubernetes' API server does for its etcd: what was before it when it begins, so that leaders that follow one another quickly
//! leave nothing; then every now and then, and earlier where much was written, what is older than the time before. So a part of the past stays for whoever watches or reads slowly. What nobody needs of it is space that etcd uses again; a file that is
//! large already gets smaller by `etcdctl defrag` alone.

use std::time::Duration;

use tokio::sync::watch;

use super::service::Service;

/// When the past is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// So often.
    pub every: Duration,
    /// Earlier, after so many bytes: a small part of etcd's default quota of 2 GiB.
    pub max_bytes: u64,
}

impl Default for History {
    fn default() -> History {
        History { every: Duration::from_secs(300), max_bytes: 64 << 20 }
    }
}

/// How far this leader has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Of its last write.
    pub revision: i64,
    /// All its keys and values together.
    pub bytes: u64,
}

/// Runs as long as the leader writes.
pub(super) async fn forget(mut etcd: impl Service, history: History, mut written: watch::Receiver<Written>) {
    let mut before = *written.borrow();
    let mut next = etcd.now();
    loop {
        let is_due = |now: &Written| now.bytes >= before.bytes + history.max_bytes;
        tokio::select! {
            biased;
            much = written.wait_for(is_due) => if much.is_err() { return },
            () = etcd.sleep_until(next) => {}
        }
        let now = *written.borrow();
        let done = etcd.compact(before.revision).await;
        next = etcd.now() + history.every;
        match done {
            Ok(()) => before = now,
            // With more to drop then.
            Err(error) => {
                tracing::warn!("{error}; tried again in {} s", history.every.as_secs());
                etcd.sleep_until(next).await;
            }
        }
    }
}
