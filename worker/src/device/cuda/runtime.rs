//! What the operations need of a CUDA driver, as a trait, so that the same launches run on a GPU ([`super::Gpu`]) and, in the tests,
//! in an emulator on the CPU.
//!
//! There are two streams. Kernels, products, uploads and what moves memory within the device run on [`Stream::Compute`] in the order of
//! the calls; downloads run on [`Stream::Copy`], and wait for what they read by an event. No call waits for the device but those that say
//! so. Errors of the driver after the start are the end of the worker (its place is healed like any death), so nothing here returns one:
//! whoever implements it panics with what was tried.

use super::nccl::Nccl;

pub use super::call::{Arg, DevicePtr, Factor, Launch, Product, Stream};

/// A device with memory, kernels and a library of products.
pub trait Runtime: Nccl + Send + Sync + 'static {
    /// A point in a stream.
    type Event: Send + Sync;
    /// Calls of the compute stream that are made together.
    type Graph: Send;

    /// What decides the bits of a result besides the kernels' source.
    fn fingerprint(&self) -> String;

    /// As people call it.
    fn name(&self) -> &str;

    /// Bytes of the device's memory that are free.
    fn free_bytes(&self) -> usize;

    /// `bytes` zeros, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> DevicePtr;

    /// Host memory that the device copies from and to at full speed.
    fn alloc_host(&self, bytes: usize) -> *mut u8;

    /// # Safety
    ///
    /// `ptr` is of [`Runtime::alloc`] and is not used again. It waits for all that was asked before.
    unsafe fn free(&self, ptr: DevicePtr);

    /// # Safety
    ///
    /// `ptr` is of [`Runtime::alloc_host`] with as many bytes, and nothing that was asked uses it any more.
    unsafe fn free_host(&self, ptr: *mut u8, bytes: usize);

    /// What was asked of the stream until now.
    fn record(&self, stream: Stream) -> Self::Event;

    /// What is asked of the stream from now on comes after the event.
    fn wait(&self, stream: Stream, event: &Self::Event);

    /// The event has come.
    fn has_come(&self, event: &Self::Event) -> bool;

    /// Returns when the event has come.
    fn synchronize(&self, event: &Self::Event);

    /// # Safety
    ///
    /// `from` has `bytes` bytes of [`Runtime::alloc_host`] that nobody writes until this has happened, and `to` has room for them.
    unsafe fn upload(&self, from: *const u8, to: DevicePtr, bytes: usize);

    /// # Safety
    ///
    /// `from` has `bytes` bytes, and `to` room for them, of [`Runtime::alloc_host`], that nobody uses until this has happened.
    unsafe fn download(&self, from: DevicePtr, to: *mut u8, bytes: usize);

    /// # Safety
    ///
    /// Both have `bytes` bytes and do not overlap.
    unsafe fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize);

    /// # Safety
    ///
    /// `at` has `bytes` bytes.
    unsafe fn zero(&self, at: DevicePtr, bytes: usize);

    /// # Safety
    ///
    /// `args` are those of the kernel, in order, and what it reads and writes is there.
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]);

    /// Whether the library multiplies such matrices. The answer depends on the shape and the alignment alone.
    fn multiplies(&self, product: &Product) -> bool;

    /// # Safety
    ///
    /// [`Runtime::multiplies`] said yes, and the matrices and `workspace` (address, bytes) are there.
    unsafe fn multiply(&self, product: &Product, workspace: (DevicePtr, usize));

    /// A graph of the calls of the compute stream that `f` makes, none of which happens now. `f` waits for nothing and allocates nothing, and
    /// nobody else uses the stream meanwhile.
    ///
    /// # Errors
    ///
    /// What the driver says; the stream is then as before.
    fn capture(&self, f: impl FnOnce()) -> Result<Self::Graph, String>;

    /// # Safety
    ///
    /// As of each call that was captured.
    unsafe fn launch_graph(&self, graph: &Self::Graph);
}
