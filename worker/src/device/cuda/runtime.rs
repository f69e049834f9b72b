//! What the operations need of a CUDA driver, as a trait, so that the same launches run on a GPU ([`super::Gpu`]) and, in the tests,
//! in an emulator on the CPU.
//!
//! There are two streams. Kernels, products, uploads and what moves memory within the device run on [`Stream::Compute`] in the order of
//! the calls; downloads run on [`Stream::Copy`], and wait for what they read by an event. No call waits for the device but those that say
//! so. Errors of the driver after the start are the end of the worker (its place is healed like any death), so nothing here returns one:
//! whoever implements it panics with what was tried.

use super::nccl::Nccl;
use crate::device::Products;

/// Address in the device's memory.
pub type DevicePtr = u64;

/// An argument of a kernel, as its declaration has it: pointers and `u64` are 8 bytes, the others 4. Equal ones have equal bits.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Ptr(DevicePtr),
    U64(u64),
    U32(u32),
    F32(f32),
}

impl Arg {
    /// Little-endian bits, as the kernel reads them.
    pub fn bits(self) -> u64 {
        match self {
            Arg::Ptr(v) | Arg::U64(v) => v,
            Arg::U32(v) => u64::from(v),
            Arg::F32(v) => u64::from(v.to_bits()),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Arg::Ptr(_) | Arg::U64(_) => 8,
            Arg::U32(_) | Arg::F32(_) => 4,
        }
    }
}

impl PartialEq for Arg {
    fn eq(&self, other: &Arg) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.bits() == other.bits()
    }
}

/// Blocks along x, y and z, threads of a block, bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: usize,
}

/// A matrix of a product: element `(r, c)` is element `r * ld + c`, or `c * ld + r` where it is transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    pub ptr: DevicePtr,
    pub ld: usize,
    pub transposed: bool,
}

/// `c = alpha * a b + beta * c`; `a (m, k)`, `b (k, n)`, `c (m, n)` row-major f32. The elements of `a` and `b` are bf16 where
/// `products` says so, else f32, which `tf32` rounds on the way. Equal ones have equal bits.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub products: Products,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub beta: f32,
    pub a: Factor,
    pub b: Factor,
    pub c: DevicePtr,
}

impl PartialEq for Product {
    fn eq(&self, other: &Product) -> bool {
        let all = |p: &Product| (p.products, [p.m, p.n, p.k], [p.alpha, p.beta].map(f32::to_bits), [p.a, p.b], p.c);
        all(self) == all(other)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Compute,
    Copy,
    /// Collectives that run under computation, see [`super::nccl`].
    Comm,
}

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
