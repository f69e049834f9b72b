//! What can go wrong between ranks. Everything here is of the world (peers, networks, other epochs); a wrong argument panics.

use std::time::Duration;

use toroid_session::MissingLink;
use toroid_torus::ids::{Epoch, WorkerId};
use toroid_torus::units::clauses;

use super::frame::Channel;

/// Every variant but [`CommError::Bind`] ends the epoch for the [`Links`](super::Links) that returned it; they can
/// [`advance`](super::Links::advance) to the next one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    #[error("lost rank {rank} (worker {worker_id}): {why}; report it to the coordinator, which makes the next epoch")]
    PeerLost { rank: usize, worker_id: WorkerId, why: String },

    #[error("epoch {epoch} is over, epoch {raised} is being set up; advance the links to it")]
    Fenced { epoch: Epoch, raised: Epoch },

    #[error(
        "a frame from rank {rank} is damaged: {what} should be {expected}, found {found}; the link is closed, look at that path's network and memory"
    )]
    Corrupt { rank: usize, what: &'static str, expected: String, found: String },

    #[error(
        "rank {rank} is too far ahead or behind: {held} bytes {what} on channel {channel}, at most {limit} are kept; the ranks do not run the same schedule"
    )]
    Overflow { rank: usize, channel: Channel, what: &'static str, held: usize, limit: usize },

    #[error("rank {rank} (worker {worker_id} at {address}) refused the link: {reason}")]
    Refused { rank: usize, worker_id: WorkerId, address: String, reason: String },

    #[error("not all links were up after {after:?}: {}", in_words(.missing))]
    Timeout { after: Duration, missing: Vec<MissingLink> },

    #[error("cannot listen for links on {address}: {why}; name a free address of this machine")]
    Bind { address: String, why: String },

    /// Sums between GPUs are not as they were asked for, or cannot be had: the same at every member of the group.
    #[error("{0}")]
    Collectives(String),

    /// A communicator between GPUs has failed.
    #[error(
        "NCCL failed in the {line} of rank {rank}: {why}; its log (NCCL_DEBUG=INFO) says more, `--collectives host` does without"
    )]
    Nccl { line: super::nccl::Line, rank: usize, why: String },

    #[error("cannot {what}: {why}")]
    Io { what: &'static str, why: String },
}

/// Peers that an error names one by one.
const MAX_NAMED: usize = 8;

fn in_words(missing: &[MissingLink]) -> String {
    let in_words = |m: &MissingLink| format!("rank {} (worker {} at {}) {}", m.rank, m.worker_id, m.address, m.problem);
    clauses(missing.iter().map(in_words), MAX_NAMED)
}

impl CommError {
    pub(super) fn io(what: &'static str, error: impl Into<std::io::Error>) -> CommError {
        CommError::Io { what, why: error.into().to_string() }
    }
}
