//! Communicators between GPUs: which groups of a place have one, and what the trainer asks of them.
//!
//! ```text
//!   choice   who said what -> for each line of a place: through the host, kept, or made anew      pure
//!   agree    everybody's statements over the links, then the ids of what is made anew
//!   DeviceComm   what a device does with it, see `device::cuda::nccl`
//! ```
//!
//! A *line* is a TP group, or the row or the column of a DP group. NCCL only carries: what is sent when and added to what is that of
//! [`toroid_torus::collective`], so a sum has the same bits through the host and between GPUs (T-4).
//!
//! Invariants:
//!
//! - **N-1** all members of a line come to the same decision: it is a pure function of what all places said, which all have.
//! - **N-2** a communicator lives as long as all its members say that they still have it, idle. Who had to abort it says that, and then all
//!   make another (T-1: its id comes over links that have proven the epoch).
//! - **N-3** whatever hangs for a dead rank is aborted when the fence goes up, so nobody waits for ever.
//!
//! Deliberately absent: transfers between stages, parts of replicated gradients and the sums of a commit, which go over the links always.

mod agree;
mod choice;

use std::fmt;
use std::str::FromStr;

pub use agree::{Agreed, UniqueId, agree};
pub(crate) use choice::shown;
pub use choice::{Decision, Gpu, Key, Lack, Line, LineDecision, Statement, decide};

use super::{CommError, Fence, WaitsFor};
use crate::device::Device;

/// How a worker's sums travel: `--collectives`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Collectives {
    /// Between GPUs where every member of a group has one of its own and NCCL, else through the host.
    #[default]
    Auto,
    /// Through the host.
    Host,
    /// Between GPUs; an error where that cannot be.
    Nccl,
}

impl FromStr for Collectives {
    type Err = String;

    fn from_str(text: &str) -> Result<Collectives, String> {
        match text {
            "auto" => Ok(Collectives::Auto),
            "host" => Ok(Collectives::Host),
            "nccl" => Ok(Collectives::Nccl),
            _ => Err(format!("expected auto, host or nccl, found `{text}`")),
        }
    }
}

impl fmt::Display for Collectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Collectives::Auto => "auto",
            Collectives::Host => "host",
            Collectives::Nccl => "nccl",
        })
    }
}

/// An epoch, as waits of a device heed it.
#[derive(Debug, Clone)]
pub struct Epoch {
    pub number: u64,
    pub fence: Fence,
    /// Says whom the device waits for.
    pub waits_for: WaitsFor,
}

/// Collectives between devices. What is asked runs on the device in the order of the calls and of its operations; only the calls that say so wait
/// for it. An error ends the epoch, as that of a link does.
pub trait DeviceComm<D: Device>: Send + Sync {
    /// What this device says when an epoch begins, and it is at this place.
    fn statement(&self, shape: &toroid_torus::geometry::Shape, rank: usize) -> Statement;

    /// For the first member of a line.
    fn unique_id(&self) -> Result<UniqueId, String>;

    /// Makes and drops communicators as was agreed. Waits for the other members.
    fn begin(&self, agreed: Agreed, epoch: Epoch) -> Result<(), CommError>;

    /// The epoch is over: what has not come to its end is aborted, and nothing is on its way on return.
    fn end(&self);

    /// The sums of the TP group are the device's.
    fn carries_tp(&self) -> bool;

    /// Those of the DP group are.
    fn carries_dp(&self) -> bool;

    /// Replaces `buf` by the sum over the TP group: the bits of [`all_reduce_sum`](super::all_reduce_sum).
    fn all_reduce(&self, buf: &mut D::Buf) -> Result<(), CommError>;

    /// Every TP rank's `own` in `all`, by tp_rank.
    fn all_gather(&self, own: &D::Buf, all: &mut D::Buf) -> Result<(), CommError>;

    /// All chunks of `params` come from the members of the DP group whose own they are. `params` stays where it is until
    /// [`DeviceComm::await_gathered`] was called for its end, or [`DeviceComm::end`].
    fn start_gather(&self, params: &mut D::Buf) -> Result<(), CommError>;

    /// Operations that are asked for from now on find the elements before `end`.
    fn await_gathered(&self, end: usize) -> Result<(), CommError>;

    /// Begins to sum gradients over the DP group, in chunks; with `passes_on` the chunk of the member before comes, too.
    fn start_scatter(&self, grads: &mut D::Buf, passes_on: bool) -> Result<(), CommError>;

    /// The elements of `grads` from `from` on are final. The same buffer as in [`DeviceComm::start_scatter`].
    fn supply(&self, grads: &mut D::Buf, from: usize) -> Result<(), CommError>;

    /// Waits until all that was asked for has come: sums of gradients, and those of the TP group before them.
    fn settle(&self) -> Result<(), CommError>;
}
