//! What the bench and its players' processes say to each other: an object a line, over the players' standard input and output.

use serde::{Deserialize, Serialize};

/// To a process of players.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// All of its workers dial.
    Join,
    /// All places commit this step, as an all-reduce would have it.
    Step { epoch: u64, step: u64 },
    /// Whoever has one of these places dies, and whoever is on one of these hosts.
    Kill { ranks: Vec<u32>, hosts: Vec<usize> },
    /// Another process of each that died, on the same host, under a new id.
    Replace,
    /// Rank 0 says its newest record again, so often a second; 0: not at all.
    Echo { per_s: u32 },
}

/// Of a process of players, whenever it has changed. Moments are microseconds of the machine's monotonic clock, so that those of several
/// processes compare.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Workers that live, and those of them that have their Welcome.
    pub alive: usize,
    pub welcomed: usize,
    pub welcomed_us: u64,
    /// The newest epoch that any of them has heard of: who has a place in it and was told, and who was told to start.
    pub epoch: u64,
    pub assigned: usize,
    pub assigned_us: u64,
    pub started: usize,
    pub started_us: u64,
    /// Step that the epoch goes on from.
    pub base_step: u64,
    /// When the first died of the last order to kill, and how many did.
    pub killed: usize,
    pub killed_us: u64,
    /// From a record of rank 0 to its acknowledgement: it is on disk then.
    pub acknowledged_us: Vec<u64>,
    /// From a heartbeat of rank 0 and a record that is known already to the acknowledgement of that: there and back.
    pub echoed_us: Vec<u64>,
    /// Of messages, without what HTTP/2 and TLS add.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub num_sent: u64,
    pub num_received: u64,
    /// Streams that were lost, but for those of who died.
    pub num_lost: u64,
    /// Workers that ended and should not have, with why: the first few.
    pub ended: Vec<String>,
}

/// Now, by a clock that all processes of this machine have.
pub fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (s, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    s * 1_000_000 + ns / 1000
}
