//! What is needed of NCCL, as a trait.

use crate::comm::nccl::{Gpu, UniqueId};
use crate::device::cuda::call::{DevicePtr, Stream};

/// One transfer of a group. `peer` is an index in the communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointToPoint {
    Send { peer: usize, from: DevicePtr, bytes: usize },
    Recv { peer: usize, to: DevicePtr, bytes: usize },
}

/// What is needed of NCCL: implemented by [`Gpu`](crate::device::cuda::Gpu), and in the tests by a network in memory that can lose a rank. No call waits for
/// another rank.
pub trait Nccl {
    /// One rank's part of one.
    type Communicator: Send;

    /// As NCCL counts, or `None` where there is no library.
    fn nccl_version(&self) -> Option<u32>;

    /// This GPU.
    fn gpu(&self) -> Gpu;

    fn unique_id(&self) -> Result<UniqueId, String>;

    /// Begins to make a communicator of `size` ranks.
    fn init(&self, id: &UniqueId, index: usize, size: usize) -> Result<Self::Communicator, String>;

    /// What was asked of it last is with the device; false: not yet.
    fn is_ready(&self, communicator: &Self::Communicator) -> Result<bool, String>;

    /// Asks for all of `transfers` at once, in the order of the stream.
    ///
    /// # Safety
    ///
    /// As many bytes are there, nobody writes what is sent or uses what is received until this has happened, and the communicator is ready.
    unsafe fn exchange(
        &self,
        communicator: &Self::Communicator,
        stream: Stream,
        transfers: &[PointToPoint],
    ) -> Result<(), String>;

    /// Ends it, whatever it is in, without waiting for anybody.
    fn abort(&self, communicator: Self::Communicator);

    /// `y (n) += x (n)` in the order of the stream, as the kernel `add_assign` does it.
    ///
    /// # Safety
    ///
    /// Both are there and do not overlap.
    unsafe fn add(&self, stream: Stream, x: DevicePtr, y: DevicePtr, n: usize);
}
