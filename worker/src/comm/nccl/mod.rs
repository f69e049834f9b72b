//! Communicators between GPUs: which groups of a place have one, and what the trainer asks of them.
//!
//! ```text
//!   choice   who said what -> for each line of a place: through the host, kept, or made anew      pure
//!   agree    everybody's statements over the links, then the ids of what is made anew
//!   device_comm  what a device does with it, see `device::cuda::nccl`
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
mod device_comm;

use std::fmt;
use std::str::FromStr;

pub use agree::agree;
pub(crate) use choice::shown;
pub use choice::{Decision, Gpu, Key, Lack, Line, LineDecision, Statement, decide};
pub use device_comm::{Agreed, DeviceComm, Epoch, UniqueId};

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
