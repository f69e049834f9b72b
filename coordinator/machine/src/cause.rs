//! Why a place is empty, and what that says of the worker that had it.

use std::time::Duration;

use super::record::SeenBy;

/// Why a place is empty.
#[derive(Debug)]
pub(crate) struct Cause {
    pub by: SeenBy,
    /// A verb phrase.
    pub why: String,
    /// Silence before it was seen.
    pub detect: Duration,
    /// Where the worker was, if it is not connected any more.
    pub host: Option<String>,
}

impl Cause {
    pub fn new(by: SeenBy, why: impl Into<String>) -> Cause {
        Cause { by, why: why.into(), detect: Duration::ZERO, host: None }
    }
}

impl SeenBy {
    /// The worker, its host or its network broke, as far as can be told.
    pub fn is_crash(self) -> bool {
        match self {
            SeenBy::StreamClosed | SeenBy::Silence | SeenBy::Registration | SeenBy::WorkerReport | SeenBy::WaitsFor => {
                true
            }
            SeenBy::CoordinatorRestart
            | SeenBy::PeerReport
            | SeenBy::Digests
            | SeenBy::Prepared
            | SeenBy::Drain
            | SeenBy::Left
            | SeenBy::Capacity
            | SeenBy::Priority => false,
        }
    }

    /// The process may live on with its state behind a broken network.
    pub fn may_come_back(self) -> bool {
        matches!(self, SeenBy::StreamClosed | SeenBy::Silence | SeenBy::CoordinatorRestart)
    }
}
