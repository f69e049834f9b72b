//! What a device keeps for its communicators, behind its lock.

use std::sync::{Mutex, MutexGuard};

use super::epoch::State;
use crate::comm::nccl::Collectives;
use crate::device::cuda::runtime::{DevicePtr, Runtime};
use crate::sync::lock;

/// What a device keeps for its communicators.
pub struct Comms<R: Runtime> {
    state: Mutex<State<R>>,
}

impl<R: Runtime> Comms<R> {
    pub fn new() -> Comms<R> {
        Comms { state: Mutex::new(State::new()) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<R>> {
        lock(&self.state)
    }

    pub fn wish(&self, wish: Collectives) {
        self.state().wish = wish;
    }

    /// Returns when the event has come, or what it waits for was aborted (N-3).
    pub fn await_event(&self, runtime: &R, event: &R::Event) {
        if !self.state().is_at_work(runtime) {
            return runtime.synchronize(event);
        }
        while !runtime.has_come(event) {
            self.state().watch(runtime);
            std::thread::yield_now();
        }
        self.state().waits_for_nobody();
    }

    /// Before the runtime goes: gives the scratch back.
    pub fn close(&self, runtime: &R) -> Vec<DevicePtr> {
        self.state().close(runtime)
    }
}
