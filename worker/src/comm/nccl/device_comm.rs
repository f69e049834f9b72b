//! What the trainer asks of a device that has communicators.

use toroid_torus::geometry::Shape;
use toroid_torus::ids;

use super::choice::{Decision, Key, Statement};
use crate::comm::{CommError, Fence, WaitsFor};

pub(super) const UNIQUE_ID_BYTES: usize = 128;

/// What the members of a communicator find each other by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

impl UniqueId {
    pub fn key(&self) -> Key {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&self.0).as_bytes()[..16]);
        Key(key)
    }
}

/// What a place does with its communicators in an epoch.
pub struct Agreed {
    pub rank: usize,
    pub shape: Shape,
    pub decision: Decision,
    /// By line: of what is to be made.
    pub ids: [Option<UniqueId>; 3],
}

/// An epoch, as waits of a device heed it.
#[derive(Debug, Clone)]
pub struct Epoch {
    pub number: ids::Epoch,
    pub fence: Fence,
    /// Says whom the device waits for.
    pub waits_for: WaitsFor,
}

/// Collectives between devices, of buffers `B`. What is asked runs on the device in the order of the calls and of its operations; only the calls that say so wait
/// for it. An error ends the epoch, as that of a link does.
pub trait DeviceComm<B>: Send + Sync {
    /// What this device says when an epoch begins, and it is at this place.
    fn statement(&self, shape: &Shape, rank: usize) -> Statement;

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

    /// Replaces `buf` by the sum over the TP group: the bits of [`all_reduce_sum`](crate::comm::all_reduce_sum).
    fn all_reduce(&self, buf: &mut B) -> Result<(), CommError>;

    /// Every TP rank's `own` in `all`, by tp_rank.
    fn all_gather(&self, own: &B, all: &mut B) -> Result<(), CommError>;

    /// All chunks of `params` come from the members of the DP group whose own they are. `params` stays where it is until
    /// [`DeviceComm::await_gathered`] was called for its end, or [`DeviceComm::end`].
    fn start_gather(&self, params: &mut B) -> Result<(), CommError>;

    /// Operations that are asked for from now on find the elements before `end`.
    fn await_gathered(&self, end: usize) -> Result<(), CommError>;

    /// Begins to sum gradients over the DP group, in chunks; with `passes_on` the chunk of the member before comes, too.
    fn start_scatter(&self, grads: &mut B, passes_on: bool) -> Result<(), CommError>;

    /// The elements of `grads` from `from` on are final. The same buffer as in [`DeviceComm::start_scatter`].
    fn supply(&self, grads: &mut B, from: usize) -> Result<(), CommError>;

    /// Waits until all that was asked for has come: sums of gradients, and those of the TP group before them.
    fn settle(&self) -> Result<(), CommError>;
}
