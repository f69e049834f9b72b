//! The communicators of a device as the trainer asks for them.

use toroid_torus::geometry::Shape;

use crate::comm::CommError;
use crate::comm::nccl::{Agreed, Collectives, DeviceComm, Epoch, Key, Statement, UniqueId};
use crate::device::cuda::device::{CudaBuf, CudaDevice};
use crate::device::cuda::runtime::{Runtime, Stream};

impl<R: Runtime> DeviceComm<CudaBuf<R>> for CudaDevice<R> {
    fn statement(&self, shape: &Shape, rank: usize) -> Statement {
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
    pub fn communicators(&self) -> [Option<Key>; 3] {
        self.shared.comms.state().keys()
    }
}
