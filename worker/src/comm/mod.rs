//! Links between the ranks of a job, and the collectives that run over them.
//!
//! ```text
//!   collective   sums and gathers for TP, DP and the whole torus, by a schedule of torus::collective that `schedule` chooses
//!      |    \__ program     starts each of its tasks as soon as it can go: `execute` while the caller waits,
//!      |                    `flight` beside other calls, on a buffer of its own
//!      | Transfer{Send | Recv | Add}
//!   links        progresses all transfers of a call at once, on the trainer's thread, with poll(2)
//!      |         \__ fence     another thread ends the epoch: every wait returns
//!   conn         one connection: frames out, frames in, stash
//!      | frame   epoch, stream, sequence, length, sums            establish   dials, accepts, keeps connections over epochs
//!   transport    \______________________________________________  handshake   proves the epoch's key, both ways (`wire`)
//!                TCP; within a host Unix sockets or shared memory
//!   nccl         between GPUs: who has communicators, and what is asked of them
//! ```
//!
//! Invariants:
//!
//! 1. **T-1.** Nothing of an older epoch reaches a buffer: a link is proven for each epoch anew, each frame carries its epoch, and a
//!    raised fence ends every wait.
//! 2. A damaged frame is an error that names the rank, never a value.
//! 3. While a call waits it reads every link, and moves on what is in flight. So blocking patterns cannot deadlock, however the ranks order their calls; what nobody
//!    has asked for yet is kept within a bound.
//! 4. A link outlives an aborted call: frames are never cut short.
//! 5. A call fails only for a rank that it needs: what a dead peer has sent before is still delivered.
//! 6. Results of a sum are the same bits on every rank, in an order that depends on the shape of the job alone (T-4).
//!
//! Deliberately absent: reader threads and an async runtime (one thread owns the links, so nothing is locked or handed over), and
//! time limits of a transfer (who hangs is the coordinator's to judge, from heartbeats that name whom a rank waits for:
//! [`WaitsFor`]).

use std::collections::BTreeSet;
use std::time::Duration;

use toroid_torus::geometry::Shape;

mod accept;
mod collective;
mod conn;
mod error;
mod establish;
mod execute;
mod fence;
mod flight;
mod frame;
mod handshake;
mod links;
pub mod nccl;
mod probe;
mod program;
mod raw;
mod resolve;
mod schedule;
#[cfg(test)]
mod tests;
mod transport;
mod wire;
mod work;

pub use collective::{
    TpGroup, all_gather, all_gather_f64, all_reduce_sum, all_reduce_torus, global_sum, global_sum_with, reduce_scatter,
    start_all_gather, start_reduce_scatter,
};
pub use error::CommError;
pub use establish::{LinkPlan, Listener, Refusal};
pub use fence::Fence;
pub use frame::{Channel, HEADER_LEN, MAX_PAYLOAD_BYTES};
pub use links::{Links, WaitsFor};
pub use probe::{MAX_PROBES, Porter, ProbeError};
pub use raw::{RawRecv, RawSend, exchange_raw};
pub use resolve::check_advertised;
pub use schedule::{Algorithm, Group, Path, slices_of_chunk};
pub use transport::{LinkChoice, LinkKind};

/// One message, to be sent or received by [`Links::run`]. `peer` is a rank.
#[derive(Debug)]
pub enum Transfer<'a> {
    Send {
        peer: usize,
        channel: Channel,
        data: &'a [u8],
    },
    /// The message must have the length of `buf`.
    Recv {
        peer: usize,
        channel: Channel,
        buf: &'a mut [u8],
    },
    /// As `Recv` of as many bytes; each element becomes itself + the one that came.
    Add {
        peer: usize,
        channel: Channel,
        sum: &'a mut [f32],
    },
}

impl Transfer<'_> {
    fn channel(&self) -> Channel {
        match *self {
            Transfer::Send { channel, .. } | Transfer::Recv { channel, .. } | Transfer::Add { channel, .. } => channel,
        }
    }
}

/// Counted over the life of a [`Links`], all epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// With headers.
    pub bytes_sent: u64,
    /// With headers.
    pub bytes_received: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    /// Frames of older epochs, dropped (T-1).
    pub stale_frames: u64,
    /// Connections made, by either side. Those that an epoch keeps are not counted again.
    pub connections: u64,
    /// Time spent in calls that move data: the rank computes nothing meanwhile (*exposed*).
    pub wait: Duration,
    /// Time between calls while a collective was in flight, or a message to another stage on its way: the rank computed meanwhile.
    pub hidden: Duration,
}

/// The ranks that `rank` needs links to: its row and its column (which hold its TP and PP groups and its DP rings), and its
/// neighbours in the DP group by dp_rank (one keeps this rank's shard as a backup, of the other this rank keeps it).
pub fn peers_of(shape: &Shape, rank: usize) -> BTreeSet<usize> {
    shape.peers(rank)
}
