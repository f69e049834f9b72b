//! A GPU and its buffers: memory, scratch, pinned memory for what goes to the device and comes from it.

use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::block::{ALIGNMENT, Block};
use super::gpu::{CudaError, Gpu};
use super::nccl::Comms;
use super::products::WORKSPACE_BYTES;
use super::queue::{GraphCounts, Graphs, Op, Queue};
use super::runtime::{Arg, DevicePtr, Launch, Product, Runtime, Stream};
use super::shared::{Memory, Shared, Staging};
use crate::device::{Buffer, Device as _, MemoryNeeds, OutOfMemory, Products, Snapshot, View, ViewMut};
use crate::sync::lock;

/// Uploads up to this size get pinned memory of their own rather than waiting for an earlier one, this many at most.
const SMALL_STAGING_BYTES: usize = 1 << 20;
const MOST_STAGING: usize = 64;

/// Buffers of a place that are counted at their exact length take up to [`ALIGNMENT`] more each.
const MOST_BUFFERS: usize = 16 * 1024;

/// A GPU. Clones share it.
pub struct CudaDevice<R: Runtime = Gpu> {
    pub(super) shared: Arc<Shared<R>>,
}

impl CudaDevice<Gpu> {
    /// GPU `ordinal`. Compiled kernels are kept in `cache`.
    pub fn open(ordinal: usize, cache: &Path, graphs: Graphs) -> Result<CudaDevice<Gpu>, CudaError> {
        Ok(CudaDevice::new(Gpu::open(ordinal, cache)?, graphs))
    }
}

impl<R: Runtime> Clone for CudaDevice<R> {
    fn clone(&self) -> Self {
        CudaDevice { shared: Arc::clone(&self.shared) }
    }
}

/// `len` elements of `T` on the device. Snapshots share the memory; the buffer gets other memory when an element is to change while one lives.
pub struct DeviceBuf<T, R: Runtime> {
    pub(super) memory: Arc<Memory<R>>,
    pub(super) len: usize,
    element: PhantomData<T>,
}

pub type CudaBuf<R> = DeviceBuf<f32, R>;
pub type CudaIds<R> = DeviceBuf<u32, R>;

impl<R: Runtime> Buffer for CudaBuf<R> {
    fn len(&self) -> usize {
        self.len
    }

    /// What is written goes to memory of the buffer's own.
    fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_, Self> {
        assert!(range.start <= range.end && range.end <= self.len, "view {range:?} of {} elements", self.len);
        if Arc::get_mut(&mut self.memory).is_none() {
            let device = CudaDevice { shared: Arc::clone(&self.memory.shared) };
            let mut own = device.alloc(self.len);
            device.copy(self.all(), own.all_mut());
            *self = own;
        }
        ViewMut { start: range.start, len: range.len(), buf: self }
    }
}

impl<T, R: Runtime> DeviceBuf<T, R> {
    pub(super) fn ptr(&self) -> DevicePtr {
        self.memory.ptr
    }
    pub(super) fn arg(&self) -> Arg {
        Arg::Ptr(self.ptr())
    }
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }
}

/// What was in a [`CudaBuf`]. It is read by the copy stream, so whoever reads does not wait for what the device computes meanwhile, and
/// computing not for the reader.
pub struct CudaSnapshot<R: Runtime> {
    pub(super) memory: Arc<Memory<R>>,
    pub(super) len: usize,
    /// All that was asked of the compute stream before.
    pub(super) made: R::Event,
}

impl<R: Runtime> Snapshot for CudaSnapshot<R> {
    fn len(&self) -> usize {
        self.len
    }

    fn with_host<T>(&self, range: Range<usize>, f: impl FnOnce(&[f32]) -> T) -> T {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        let device = CudaDevice { shared: Arc::clone(&self.memory.shared) };
        let from = self.memory.ptr + (range.start * size_of::<f32>()) as u64;
        let mut staging = device.take_staging(range.len() * size_of::<f32>());
        device.fetch_after(&self.made, from, &mut staging, range.len() * size_of::<f32>());
        let result = f(staging.as_mut_slice(range.len()));
        device.put_staging(staging);
        result
    }
}

impl<R: Runtime> View<'_, CudaBuf<R>> {
    pub(super) fn ptr(&self) -> DevicePtr {
        self.buf.ptr() + (self.start * size_of::<f32>()) as u64
    }
    pub(super) fn arg(&self) -> Arg {
        Arg::Ptr(self.ptr())
    }
}

impl<R: Runtime> ViewMut<'_, CudaBuf<R>> {
    pub(super) fn ptr(&self) -> DevicePtr {
        self.buf.ptr() + (self.start * size_of::<f32>()) as u64
    }
    pub(super) fn arg(&self) -> Arg {
        Arg::Ptr(self.ptr())
    }
}

/// Scratch of one operation, handed out from its start; nobody else has it meanwhile.
pub(super) struct Scratch<'a> {
    block: MutexGuard<'a, Block>,
    used: usize,
}

impl Scratch<'_> {
    /// The next `bytes`.
    pub(super) fn take(&mut self, bytes: usize) -> DevicePtr {
        let at = self.used;
        self.used += bytes.next_multiple_of(ALIGNMENT);
        assert!(self.used <= self.block.bytes, "an operation takes more scratch than it asked for");
        self.block.ptr + at as u64
    }
}

/// Blocks of `size` that cover `n`.
pub(super) fn blocks(n: usize, size: usize) -> u32 {
    narrow(n.div_ceil(size))
}

/// A dim as kernels take it.
pub(super) fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("a dim of {n} elements; kernels count to 2^32"))
}

impl<R: Runtime> CudaDevice<R> {
    pub fn new(runtime: R, graphs: Graphs) -> CudaDevice<R> {
        let shared = Shared {
            scratch: Mutex::new(Block { ptr: 0, bytes: 0 }),
            arena: Mutex::default(),
            held: Mutex::default(),
            allocated: AtomicU64::new(0),
            staging: Mutex::new(Vec::new()),
            queue: Mutex::new(Queue::new(graphs == Graphs::On)),
            comms: Comms::new(),
            runtime,
        };
        CudaDevice { shared: Arc::new(shared) }
    }

    /// How operations came to the driver until now.
    pub fn graph_counts(&self) -> GraphCounts {
        lock(&self.shared.queue).counts()
    }

    pub fn runtime(&self) -> &R {
        &self.shared.runtime
    }

    pub(super) fn buffer<T>(&self, len: usize) -> DeviceBuf<T, R> {
        let bytes = len * size_of::<T>();
        let ptr = if len == 0 { 0 } else { self.zeros(bytes) };
        DeviceBuf {
            memory: Arc::new(Memory { ptr, bytes, shared: Arc::clone(&self.shared) }),
            len,
            element: PhantomData,
        }
    }

    fn zeros(&self, bytes: usize) -> DevicePtr {
        self.shared.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(ptr) = lock(&self.shared.arena).take(bytes) else { return self.shared.alloc(bytes) };
        // SAFETY: as many bytes were taken.
        unsafe { self.shared.ask(Op::Zero { at: ptr, bytes }, &[]) };
        ptr
    }

    /// Bytes of scratch for operations on operands of so many elements.
    pub(super) fn scratch_pieces(products: Products, operands: usize) -> [usize; 3] {
        let copies = if products == Products::Bf16 { 2 * operands } else { 0 };
        [WORKSPACE_BYTES, copies, ALIGNMENT]
    }

    /// Reserves one block for all buffers of a place, its scratch and its pinned memory.
    pub(super) fn reserve_block(&self, needs: &MemoryNeeds) -> Result<(), OutOfMemory> {
        let (runtime, buffers) = (&self.shared.runtime, needs.buffer_bytes as usize + MOST_BUFFERS * ALIGNMENT);
        let scratch: usize = Self::scratch_pieces(needs.products, needs.operands).iter().sum();
        if !lock(&self.shared.arena).has(buffers) {
            self.shared.free_unused();
            let (needed, free) =
                (buffers + scratch.saturating_sub(lock(&self.shared.scratch).bytes), runtime.free_bytes());
            if needed > free {
                return Err(OutOfMemory { device: runtime.name().into(), needed: needed as u64, free: free as u64 });
            }
            let block = self.shared.alloc(buffers);
            lock(&self.shared.arena).add(block, buffers);
        }
        drop(self.scratch(&Self::scratch_pieces(needs.products, needs.operands)));
        let staging: Vec<Staging<R>> = needs.staging_bytes.iter().map(|b| self.take_staging(*b as usize)).collect();
        staging.into_iter().for_each(|staging| self.put_staging(staging));
        Ok(())
    }

    /// Scratch for pieces of these many bytes. [`Device::reserve_scratch`](crate::device::Device::reserve_scratch) sizes it before the first step; it grows
    /// where an operation needs more.
    pub(super) fn scratch(&self, pieces: &[usize]) -> Scratch<'_> {
        let mut block = lock(&self.shared.scratch);
        let bytes = pieces.iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum();
        if block.bytes < bytes {
            if block.bytes > 0 {
                // SAFETY: made by `alloc`; `free` waits for what was launched, and the lock keeps others away.
                unsafe { self.shared.free(block.ptr) };
                *block = Block { ptr: 0, bytes: 0 };
            }
            *block = Block { ptr: self.shared.alloc(bytes), bytes };
            self.shared.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Scratch { block, used: 0 }
    }

    /// Launches a kernel whose arguments lie in buffers that the caller borrowed, or in scratch.
    pub(super) fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) {
        if launch.grid.contains(&0) {
            return;
        }
        // SAFETY: `ops` passes what the kernel declares (the emulator compares the arguments with the declaration), and ranges
        // whose lengths follow from the dims that it passes.
        unsafe { self.shared.ask(Op::Launch { kernel, launch, num_args: args.len() }, args) };
    }

    /// # Safety
    ///
    /// As of [`Runtime::multiply`].
    pub(super) unsafe fn multiply(&self, product: Product, workspace: (DevicePtr, usize)) {
        // SAFETY: the caller's promise.
        unsafe { self.shared.ask(Op::Multiply { product, workspace }, &[]) };
    }

    /// # Safety
    ///
    /// As of [`Runtime::zero`].
    pub(super) unsafe fn zero(&self, at: DevicePtr, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.shared.ask(Op::Zero { at, bytes }, &[]) };
    }

    /// Pinned memory of at least `bytes` that the device does not use; give it back with [`CudaDevice::put_staging`].
    pub(super) fn take_staging(&self, bytes: usize) -> Staging<R> {
        let runtime = &self.shared.runtime;
        let mut pool = lock(&self.shared.staging);
        let mut fits: Vec<usize> = (0..pool.len()).filter(|i| pool[*i].bytes >= bytes).collect();
        fits.sort_by_key(|i| pool[*i].bytes);
        let is_idle = |i: &usize| pool[*i].busy.as_ref().is_none_or(|event| runtime.has_come(event));
        let idle = fits.iter().copied().find(is_idle);
        let may_grow = bytes <= SMALL_STAGING_BYTES && pool.len() < MOST_STAGING;
        let chosen = idle.or_else(|| fits.first().copied().filter(|_| !may_grow)).map(|i| pool.swap_remove(i));
        // Where none is large enough, a large one that is too small is replaced: the pool does not grow with every new size.
        let outgrown = pool.iter().position(|s| SMALL_STAGING_BYTES < s.bytes && s.bytes < bytes);
        let outgrown = outgrown.filter(|_| fits.is_empty()).map(|i| pool.swap_remove(i));
        drop(pool);
        outgrown.into_iter().for_each(|staging| self.shared.free_staging(staging));
        match chosen {
            Some(mut staging) => {
                staging.busy.take().into_iter().for_each(|busy| self.shared.await_event(&busy));
                staging
            }
            None => Staging { ptr: runtime.alloc_host(bytes), bytes, busy: None },
        }
    }

    pub(super) fn put_staging(&self, staging: Staging<R>) {
        lock(&self.shared.staging).push(staging);
    }

    /// Copies `bytes` at `from` to the staging; they are there on return.
    pub(super) fn fetch(&self, from: DevicePtr, staging: &mut Staging<R>, bytes: usize) {
        if bytes > 0 {
            let asked = self.shared.in_order(|runtime| runtime.record(Stream::Compute));
            self.fetch_after(&asked, from, staging, bytes);
        }
    }

    /// The same, of what is there when the event has come.
    fn fetch_after(&self, event: &R::Event, from: DevicePtr, staging: &mut Staging<R>, bytes: usize) {
        assert!(bytes <= staging.bytes, "{bytes} bytes in {} of staging", staging.bytes);
        if bytes == 0 {
            return;
        }
        let runtime = &self.shared.runtime;
        runtime.wait(Stream::Copy, event);
        // SAFETY: the staging is large enough and borrowed until the copy is done; the caller reads what is there.
        unsafe { runtime.download(from, staging.ptr, bytes) };
        self.shared.await_event(&runtime.record(Stream::Copy));
    }

    /// Copies the first `bytes` of the staging to `to`, in the order of the operations, and gives it back.
    pub(super) fn send(&self, mut staging: Staging<R>, to: DevicePtr, bytes: usize) {
        assert!(bytes <= staging.bytes, "{bytes} bytes in {} of staging", staging.bytes);
        if bytes > 0 {
            staging.busy = Some(self.shared.in_order(|runtime| {
                // SAFETY: the staging is large enough, and nobody gets it before the event has come; the caller has the room.
                unsafe { runtime.upload(staging.ptr, to, bytes) };
                runtime.record(Stream::Compute)
            }));
        }
        self.put_staging(staging);
    }

    pub(super) fn download(&self, from: DevicePtr, to: &mut [u8]) {
        let mut staging = self.take_staging(to.len());
        self.fetch(from, &mut staging, to.len());
        to.copy_from_slice(staging.as_mut_slice(to.len()));
        self.put_staging(staging);
    }

    pub(super) fn upload(&self, from: &[u8], to: DevicePtr) {
        let mut staging = self.take_staging(from.len());
        staging.as_mut_slice(from.len()).copy_from_slice(from);
        self.send(staging, to, from.len());
    }
}
