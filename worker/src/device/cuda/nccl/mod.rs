//! Sums and gathers between GPUs: the schedules of [`toroid_torus::collective`] in groups of NCCL's sends and receives.
//!
//! ```text
//!   library    the few calls of NCCL, through cudarc, loaded when the program runs
//!   epoch      communicators from epoch to epoch: made, kept, aborted
//!   collective rounds of transfers on a stream, and the adds between them
//!
//!   compute stream   operations, sums of the TP group ... wait ------------------ wait
//!   comm stream                          rounds of the DP group: ... round, add, round, add ...
//! ```
//!
//! Sums of the TP group are needed at once, so they are in the compute stream. Those of the DP group run under computation, in a stream of their own
//! and on communicators of their own: all ranks ask for them in the same order, and NCCL runs two communicators side by side.
//!
//! Invariants:
//!
//! - **N-3** the host waits for the device only in `Shared::await_event`, which looks at the fence meanwhile. Once the fence is up, what has
//!   not come to its end is aborted and the streams go on; what lies in the buffers then means nothing, and no call succeeds before the next epoch.
//! - **N-4** sums are `own + received` by our own kernel, in the order of the schedules (T-4). NCCL's own reductions are never called: their
//!   order depends on the machines that it finds.
//! - A collective in flight writes to a buffer that its owner keeps until it was awaited, or the epoch has ended ([`DeviceComm::end`]).
//!
//! Deliberately absent: `ncclCommDestroy`, which waits for others. An idle communicator is aborted, which does not.

mod collective;
mod epoch;
mod library;

use std::sync::{Mutex, MutexGuard};

use super::runtime::{DevicePtr, Runtime, Stream};
use super::{Block, CudaBuf, CudaDevice, Shared, lock};
use crate::comm::CommError;
use crate::comm::nccl::{Agreed, Collectives, DeviceComm, Epoch, Gpu, Statement, UniqueId};

use epoch::State;

pub use library::is_present;

/// One transfer of a group. `peer` is an index in the communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointToPoint {
    Send { peer: usize, from: DevicePtr, bytes: usize },
    Recv { peer: usize, to: DevicePtr, bytes: usize },
}

/// What is needed of NCCL: implemented by [`super::Gpu`], and in the tests by a network in memory that can lose a rank. No call waits for
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

/// What a device keeps for its communicators.
pub(super) struct Comms<R: Runtime> {
    state: Mutex<State<R>>,
}

impl<R: Runtime> Comms<R> {
    pub fn new() -> Comms<R> {
        Comms { state: Mutex::new(State::new()) }
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        lock(&self.state)
    }

    pub fn wish(&self, wish: Collectives) {
        self.state().wish = wish;
    }

    /// Before the runtime goes: gives the scratch back.
    pub fn close(&self, runtime: &R) -> Vec<DevicePtr> {
        self.state().close(runtime)
    }
}

impl<R: Runtime> Shared<R> {
    /// Returns when the event has come, or what it waits for was aborted (N-3).
    pub(super) fn await_event(&self, event: &R::Event) {
        if !self.comms.state().is_at_work(&self.runtime) {
            return self.runtime.synchronize(event);
        }
        while !self.runtime.has_come(event) {
            self.comms.state().watch(&self.runtime);
            std::thread::yield_now();
        }
        self.comms.state().waits_for_nobody();
    }
}

impl<R: Runtime> DeviceComm<CudaDevice<R>> for CudaDevice<R> {
    fn statement(&self, shape: &toroid_torus::geometry::Shape, rank: usize) -> Statement {
        self.shared.comms.state().statement(&self.shared.runtime, shape, rank)
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        self.shared.runtime.unique_id()
    }

    fn begin(&self, agreed: Agreed, epoch: Epoch) -> Result<(), CommError> {
        self.shared.comms.state().begin(&self.shared.runtime, agreed, epoch)
    }

    fn end(&self) {
        self.shared.in_order(|runtime| {
            self.shared.comms.state().end(runtime);
            // Nothing can hang any more. What comes later may use the memory.
            for stream in [Stream::Compute, Stream::Comm] {
                runtime.synchronize(&runtime.record(stream));
            }
        });
    }

    fn carries_tp(&self) -> bool {
        self.shared.comms.state().carries_tp
    }

    fn carries_dp(&self) -> bool {
        self.shared.comms.state().carries_dp
    }

    fn all_reduce(&self, buf: &mut CudaBuf<R>) -> Result<(), CommError> {
        self.shared.in_order(|runtime| self.shared.comms.state().all_reduce(runtime, buf.ptr(), buf.len))
    }

    fn all_gather(&self, own: &CudaBuf<R>, all: &mut CudaBuf<R>) -> Result<(), CommError> {
        self.shared.in_order(|runtime| {
            let mut state = self.shared.comms.state();
            state.all_gather(runtime, (own.ptr(), own.len), (all.ptr(), all.len))
        })
    }

    fn start_gather(&self, params: &mut CudaBuf<R>) -> Result<(), CommError> {
        self.shared.in_order(|runtime| self.shared.comms.state().start_gather(runtime, params.ptr(), params.len))
    }

    fn await_gathered(&self, end: usize) -> Result<(), CommError> {
        self.shared.in_order(|runtime| self.shared.comms.state().await_gathered(runtime, end))
    }

    fn start_scatter(&self, grads: &mut CudaBuf<R>, passes_on: bool) -> Result<(), CommError> {
        let mut state = self.shared.comms.state();
        state.start_scatter(&self.shared.runtime, grads.ptr(), grads.len, passes_on)
    }

    fn supply(&self, grads: &mut CudaBuf<R>, from: usize) -> Result<(), CommError> {
        self.shared.in_order(|runtime| self.shared.comms.state().supply(runtime, grads.ptr(), from))
    }

    fn settle(&self) -> Result<(), CommError> {
        let events = self.shared.in_order(|runtime| self.shared.comms.state().last_events(runtime));
        events.iter().for_each(|event| self.shared.await_event(event));
        self.shared.comms.state().settled(&self.shared.runtime)
    }
}

impl<R: Runtime> CudaDevice<R> {
    /// How sums are to travel, from the next epoch on.
    pub fn set_collectives(&self, wish: Collectives) {
        self.shared.comms.wish(wish);
    }

    /// By line (TP group, row and column of the DP group): the communicator that is there.
    pub fn communicators(&self) -> [Option<crate::comm::nccl::Key>; 3] {
        self.shared.comms.state().keys()
    }
}

/// Memory that grows to what is asked of it.
pub(super) fn at_least<R: Runtime>(runtime: &R, block: &mut Block, bytes: usize) -> DevicePtr {
    if block.bytes < bytes {
        if block.bytes > 0 {
            // SAFETY: made by `alloc`; `free` waits for what was asked of it.
            unsafe { runtime.free(block.ptr) };
        }
        *block = Block { ptr: runtime.alloc(bytes), bytes };
    }
    block.ptr
}
