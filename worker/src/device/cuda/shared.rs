//! What the clones and the buffers of a device share, and keep alive: memory, what is on its way, communicators, the runtime.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::arena::Arena;
use super::block::Block;
use super::nccl::Comms;
use super::queue::{Op, Queue};
use super::runtime::{Arg, DevicePtr, Runtime};
use crate::sync::lock;

/// What buffers keep alive.
pub(super) struct Shared<R: Runtime> {
    pub scratch: Mutex<Block>,
    pub arena: Mutex<Arena>,
    /// Bytes of what the driver gave, by address.
    pub held: Mutex<BTreeMap<DevicePtr, usize>>,
    /// Bytes of buffers and scratch so far.
    pub allocated: AtomicU64,
    pub staging: Mutex<Vec<Staging<R>>>,
    /// Before the runtime: its graphs are gone before what made them.
    pub queue: Mutex<Queue<R>>,
    pub comms: Comms<R>,
    pub runtime: R,
}

/// Pinned host memory.
pub(super) struct Staging<R: Runtime> {
    pub ptr: *mut u8,
    pub bytes: usize,
    /// The device may read it until then.
    pub busy: Option<R::Event>,
}

// SAFETY: plain memory that one owner at a time uses.
unsafe impl<R: Runtime> Send for Staging<R> {}

impl<R: Runtime> Drop for Shared<R> {
    fn drop(&mut self) {
        for ptr in self.comms.close(&self.runtime) {
            // SAFETY: made by `alloc`, and its communicators are gone.
            unsafe { self.runtime.free(ptr) };
        }
        let scratch = *lock(&self.scratch);
        for staging in lock(&self.staging).drain(..) {
            self.free_staging(staging);
        }
        if scratch.bytes > 0 {
            // SAFETY: made by `alloc`, and no operation runs.
            unsafe { self.free(scratch.ptr) };
        }
        self.free_unused();
    }
}

impl<R: Runtime> Shared<R> {
    /// # Safety
    ///
    /// As of [`Queue::ask`].
    pub unsafe fn ask(&self, op: Op, args: &[Arg]) {
        // SAFETY: the caller's promise.
        unsafe { lock(&self.queue).ask(&self.runtime, op, args) };
    }

    /// Runs `f` when all that was asked is in the compute stream, and before anything else is.
    pub fn in_order<T>(&self, f: impl FnOnce(&R) -> T) -> T {
        let mut queue = lock(&self.queue);
        queue.submit(&self.runtime);
        f(&self.runtime)
    }

    pub fn alloc(&self, bytes: usize) -> DevicePtr {
        let ptr = self.in_order(|runtime| runtime.alloc(bytes));
        lock(&self.held).insert(ptr, bytes);
        ptr
    }

    /// # Safety
    ///
    /// `ptr` is of [`Shared::alloc`], and nothing is asked of it any more.
    pub unsafe fn free(&self, ptr: DevicePtr) {
        lock(&self.held).remove(&ptr);
        // SAFETY: the caller's promise.
        self.in_order(|runtime| unsafe { runtime.free(ptr) });
    }

    pub fn free_staging(&self, staging: Staging<R>) {
        if let Some(busy) = staging.busy.filter(|_| !std::thread::panicking()) {
            self.await_event(&busy);
        }
        // SAFETY: made by `alloc_host`, in nobody's hands, and the device has read it.
        unsafe { self.runtime.free_host(staging.ptr, staging.bytes) };
    }

    /// Returns when the event has come, or what it waits for was aborted (N-3).
    pub fn await_event(&self, event: &R::Event) {
        self.comms.await_event(&self.runtime, event);
    }

    /// Gives the blocks back of which no buffer has a part.
    pub fn free_unused(&self) {
        for ptr in lock(&self.arena).remove_unused() {
            // SAFETY: made by `alloc`, and nothing of it is in anybody's hands.
            unsafe { self.free(ptr) };
        }
    }
}

impl<R: Runtime> Staging<R> {
    /// The first `len` elements.
    pub fn as_mut_slice<T: bytemuck::AnyBitPattern>(&mut self, len: usize) -> &mut [T] {
        assert!(len * size_of::<T>() <= self.bytes, "{len} elements in {} bytes of staging", self.bytes);
        // SAFETY: the memory is `bytes` long, aligned for all that is copied, initialized (the allocator's promise), and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), len) }
    }
}

/// Device memory; with the last who holds it, it goes back to where it came from.
pub(super) struct Memory<R: Runtime> {
    pub ptr: DevicePtr,
    pub bytes: usize,
    pub shared: Arc<Shared<R>>,
}

impl<R: Runtime> Drop for Memory<R> {
    fn drop(&mut self) {
        if self.bytes > 0 && !lock(&self.shared.arena).give(self.ptr, self.bytes) {
            // SAFETY: made by `alloc`, and whoever could use it held `self`.
            unsafe { self.shared.free(self.ptr) };
        }
    }
}
