//! A GPU through the CUDA driver.
//!
//! Opening one can fail in ways that a user can mend, so it returns an error that says how. Later errors (a broken GPU, no memory
//! left) panic with what was tried.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::path::Path;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::block::ALIGNMENT;
use super::compile::{self, CompileError};
use super::kernels::{SOURCES, Source};
use super::products::{self, Library};
use super::runtime::{Arg, DevicePtr, Launch, Product, Runtime, Stream};

/// Smallest compute capability: bf16 on tensor cores.
const MIN_CAPABILITY: i32 = 80;

/// Why there is no GPU to work with.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver was found (libcuda.so); install it, or use `--device cpu`")]
    NoDriver,
    #[error("the driver has no GPU to offer: {0}; look at what `nvidia-smi` says, or use `--device cpu`")]
    NoGpu(DriverError),
    #[error("there is no GPU {asked}; this machine has {found}, counted from 0")]
    NoSuchGpu { asked: usize, found: usize },
    #[error("the GPU {name} has compute capability {}.{}; 8.0 or later is needed", .capability / 10, .capability % 10)]
    TooOld { name: String, capability: i32 },
    #[error(
        "{library} was not found; install NVIDIA's CUDA 12 or 13 libraries, or name their folder in LD_LIBRARY_PATH"
    )]
    NoLibrary { library: &'static str },
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("cannot {what}: {error}")]
    Driver { what: String, error: DriverError },
    #[error("cuBLASLt does not start: {0}")]
    Library(cudarc::cublaslt::result::CublasError),
}

impl From<cudarc::cublaslt::result::CublasError> for CudaError {
    fn from(error: cudarc::cublaslt::result::CublasError) -> CudaError {
        CudaError::Library(error)
    }
}

fn driver(what: impl Into<String>) -> impl FnOnce(DriverError) -> CudaError {
    let what = what.into();
    move |error| CudaError::Driver { what, error }
}

/// One GPU, its context and its streams.
pub struct Gpu {
    name: String,
    capability: i32,
    driver_version: i32,
    context: sys::CUcontext,
    pub(super) device: sys::CUdevice,
    compute: sys::CUstream,
    copies: sys::CUstream,
    comm: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    kernels: BTreeMap<&'static str, sys::CUfunction>,
    /// `None` only while the GPU is let go.
    library: Option<Library>,
}

// SAFETY: the driver's and the library's handles may be used from any thread whose current context is set, which every method does.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver orders what threads enqueue, and the library's plans are behind a lock.
unsafe impl Sync for Gpu {}

/// Number of GPUs.
pub fn count() -> Result<usize, CudaError> {
    // SAFETY: loads a library and lets go of it; its initializers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    result::init().map_err(CudaError::NoGpu)?;
    result::device::get_count().map(|n| n as usize).map_err(CudaError::NoGpu)
}

impl Gpu {
    /// Takes GPU `ordinal`, compiles the kernels for it or takes them from `cache`.
    pub fn open(ordinal: usize, cache: &Path) -> Result<Gpu, CudaError> {
        let found = count()?;
        if ordinal >= found {
            return Err(CudaError::NoSuchGpu { asked: ordinal, found });
        }
        for (library, is_present) in
            [("NVRTC (libnvrtc.so)", compile::is_present()), ("cuBLASLt (libcublasLt.so)", products::is_present())]
        {
            if !is_present {
                return Err(CudaError::NoLibrary { library });
            }
        }
        let device = result::device::get(ordinal as i32).map_err(driver(format!("open GPU {ordinal}")))?;
        let name = result::device::get_name(device).map_err(driver("read the GPU's name"))?;
        let attribute = |attribute| {
            // SAFETY: the device is of `device::get`.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(driver("read the GPU's properties"))
        };
        let capability = 10 * attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let most_shared = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        if capability < MIN_CAPABILITY {
            return Err(CudaError::TooOld { name, capability });
        }
        let mut driver_version = 0;
        // SAFETY: points to an integer.
        unsafe { sys::cuDriverGetVersion(&mut driver_version) }
            .result()
            .map_err(driver("read the driver's version"))?;
        // SAFETY: the device is of `device::get`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(driver("make a context on the GPU"))?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(driver("use the GPU's context"))?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let compute = stream().map_err(driver("make a stream"))?;
        let copies = stream().map_err(driver("make a stream"))?;
        let comm = stream().map_err(driver("make a stream"))?;
        let library = Some(Library::new()?);
        let (modules, kernels) = (Vec::new(), BTreeMap::new());
        let mut gpu =
            Gpu { name, capability, driver_version, context, device, compute, copies, comm, modules, kernels, library };
        let architecture = compile::architecture(capability)?;
        for (source, image) in images(&architecture, driver_version, cache)? {
            gpu.load(source, &image, most_shared)?;
        }
        Ok(gpu)
    }

    /// Bytes of its memory that are free, and all of them.
    pub fn memory(&self) -> (usize, usize) {
        self.enter();
        self.check("say how much memory it has", result::mem_get_info())
    }

    fn load(&mut self, source: &Source, image: &[u8], most_shared: i32) -> Result<(), CudaError> {
        // SAFETY: a cubin or NUL-terminated PTX of NVRTC, whose digest was compared; the context is current.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(driver(format!("load the kernels of {}", source.file)))?;
        self.modules.push(module);
        for kernel in source.kernels {
            let name = CString::new(*kernel).expect("names have no NUL");
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(module, name) };
            let function = function.map_err(driver(format!("find the kernel {kernel}")))?;
            use sys::CUfunction_attribute_enum as Attribute;
            // SAFETY: the function is of a loaded module.
            unsafe {
                result::function::get_function_attribute(function, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
                    .and_then(|fixed| {
                        let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                        result::function::set_function_attribute(function, most, most_shared - fixed)
                    })
                    .map_err(driver(format!("raise the shared memory of {kernel}")))?;
            }
            self.kernels.insert(kernel, function);
        }
        Ok(())
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self) {
        // SAFETY: the context is retained as long as `self` lives.
        self.check("use the GPU's context", unsafe { result::ctx::set_current(self.context) });
    }

    pub(super) fn check<T>(&self, what: &str, result: Result<T, DriverError>) -> T {
        result.unwrap_or_else(|error| panic!("the GPU {} cannot {what}: {error}", self.name))
    }

    pub(super) fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Compute => self.compute,
            Stream::Copy => self.copies,
            Stream::Comm => self.comm,
        }
    }

    /// # Safety
    ///
    /// As of [`Runtime::launch`].
    pub(super) unsafe fn launch_on(&self, stream: Stream, kernel: &'static str, launch: Launch, args: &[Arg]) {
        self.enter();
        let function = self.kernels[kernel];
        // Little-endian, as the device: a kernel that takes 4 bytes reads the low ones.
        let mut bits: Vec<u64> = args.iter().map(|a| a.bits()).collect();
        let mut params: Vec<*mut c_void> = bits.iter_mut().map(|b| std::ptr::from_mut(b).cast()).collect();
        let [x, y, z] = launch.grid;
        let shared = launch.shared_bytes as u32;
        // SAFETY: the function is of a loaded module, the parameters are copied by the call; the caller answers for the rest.
        let launched = unsafe {
            result::launch_kernel(function, (x, y, z), (launch.threads, 1, 1), shared, self.stream(stream), &mut params)
        };
        self.check(&format!("launch {kernel} with {launch:?}"), launched);
    }

    /// Milliseconds on the device between the start and the end of what `f` launches.
    pub fn elapsed_ms(&self, f: impl FnOnce()) -> f32 {
        self.enter();
        let event = || self.check("make an event", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event(), event());
        // SAFETY: events and stream are alive; the events are destroyed once.
        unsafe {
            self.check("record an event", result::event::record(start, self.compute));
            f();
            self.check("record an event", result::event::record(end, self.compute));
            self.check("wait for an event", result::event::synchronize(end));
            let elapsed = self.check("read a time", result::event::elapsed(start, end));
            self.check("destroy an event", result::event::destroy(start));
            self.check("destroy an event", result::event::destroy(end));
            elapsed
        }
    }
}

/// All sources, compiled side by side.
fn images(arch: &str, driver_version: i32, cache: &Path) -> Result<Vec<(&'static Source, Vec<u8>)>, CompileError> {
    let folder = cache.join("kernels");
    std::thread::scope(|scope| {
        let compile = |source: &'static Source| {
            let folder = &folder;
            scope.spawn(move || Ok((source, compile::cached(source, arch, driver_version, folder)?)))
        };
        let threads: Vec<_> = SOURCES.iter().map(compile).collect();
        threads.into_iter().map(|t| t.join().expect("the compiler does not panic")).collect()
    })
}

/// A driver's event; it is destroyed with this.
pub struct GpuEvent(sys::CUevent);

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for GpuEvent {}
// SAFETY: as above; waiting for an event and looking for it change nothing of it.
unsafe impl Sync for GpuEvent {}

impl Drop for GpuEvent {
    fn drop(&mut self) {
        // SAFETY: made by `record`, destroyed once; the driver lets go of it when it has come. That it cannot be destroyed would be a leak and
        // no more.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// A driver's graph that can be launched; it is destroyed with this, by the driver's promise not before it has run.
pub struct GpuGraph(sys::CUgraphExec);

// SAFETY: as above; who launches it holds the queue's lock.
unsafe impl Send for GpuGraph {}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once. That it cannot be destroyed would be a leak and no more.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

impl Runtime for Gpu {
    type Event = GpuEvent;
    type Graph = GpuGraph;

    fn fingerprint(&self) -> String {
        let library = self.library.as_ref().map_or(0, Library::version);
        let name = self.name.to_lowercase().replace(' ', "-");
        format!("cuda-{name}-sm{}-driver-{}-cublaslt-{library}", self.capability, self.driver_version)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn free_bytes(&self) -> usize {
        self.memory().0
    }

    fn alloc(&self, bytes: usize) -> DevicePtr {
        self.enter();
        // SAFETY: the context is current. What is allocated is filled below.
        let ptr = unsafe { result::malloc_sync(bytes) }.unwrap_or_else(|error| {
            let (free, total) = self.memory();
            panic!(
                "the GPU {} cannot allocate {bytes} bytes ({error}): {free} of {total} bytes are free; use a smaller micro-batch, more \
                 places, or fewer workers on this GPU. A job that goes on with fewer replicas needs room for larger shards, and for those of \
                 before until all have the new ones: with `fault_tolerance.min_dp` = `dp` it waits for a worker instead",
                self.name
            )
        });
        assert_eq!(ptr % ALIGNMENT as u64, 0, "the driver aligns allocations to {ALIGNMENT} bytes");
        // SAFETY: just allocated with as many bytes.
        self.check("fill memory", unsafe { result::memset_d8_async(ptr, 0, bytes, self.compute) });
        ptr
    }

    fn alloc_host(&self, bytes: usize) -> *mut u8 {
        self.enter();
        let bytes = bytes.max(1);
        // SAFETY: the context is current.
        let ptr = self.check("allocate pinned host memory", unsafe { result::malloc_host(bytes, 0) }).cast::<u8>();
        // SAFETY: just allocated with as many bytes.
        unsafe { ptr.write_bytes(0, bytes) };
        ptr
    }

    unsafe fn free(&self, ptr: DevicePtr) {
        if std::thread::panicking() {
            // Most likely because the GPU failed: a second panic would hide the first. The process ends, and its memory with it.
            return;
        }
        self.enter();
        for stream in [self.compute, self.copies, self.comm] {
            // SAFETY: the streams live as long as `self`.
            self.check("finish before memory is freed", unsafe { result::stream::synchronize(stream) });
        }
        // SAFETY: the caller's promise.
        self.check("free memory", unsafe { result::free_sync(ptr) });
    }

    unsafe fn free_host(&self, ptr: *mut u8, _bytes: usize) {
        if std::thread::panicking() {
            return;
        }
        self.enter();
        // SAFETY: the caller's promise.
        self.check("free pinned host memory", unsafe { result::free_host(ptr.cast()) });
    }

    fn record(&self, stream: Stream) -> GpuEvent {
        self.enter();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let event = GpuEvent(self.check("make an event", event));
        // SAFETY: event and stream are alive.
        self.check("record an event", unsafe { result::event::record(event.0, self.stream(stream)) });
        event
    }

    fn wait(&self, stream: Stream, event: &GpuEvent) {
        self.enter();
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream are alive.
        let waits = unsafe { result::stream::wait_event(self.stream(stream), event.0, flags) };
        self.check("let a stream wait for an event", waits);
    }

    fn has_come(&self, event: &GpuEvent) -> bool {
        self.enter();
        // SAFETY: the event is alive.
        match unsafe { result::event::query(event.0) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => false,
            come => {
                self.check("look for an event", come);
                true
            }
        }
    }

    fn synchronize(&self, event: &GpuEvent) {
        self.enter();
        // SAFETY: the event is alive.
        self.check("wait for the device", unsafe { result::event::synchronize(event.0) });
    }

    unsafe fn upload(&self, from: *const u8, to: DevicePtr, bytes: usize) {
        self.enter();
        // SAFETY: the caller's promise.
        let copied = unsafe { result::memcpy_htod_async(to, std::slice::from_raw_parts(from, bytes), self.compute) };
        self.check("copy to the device", copied);
    }

    unsafe fn download(&self, from: DevicePtr, to: *mut u8, bytes: usize) {
        self.enter();
        // SAFETY: the caller's promise.
        let copied = unsafe { result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(to, bytes), from, self.copies) };
        self.check("copy to the host", copied);
    }

    unsafe fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) {
        self.enter();
        // SAFETY: the caller's promise.
        self.check("copy on the device", unsafe { result::memcpy_dtod_async(to, from, bytes, self.compute) });
    }

    unsafe fn zero(&self, at: DevicePtr, bytes: usize) {
        self.enter();
        // SAFETY: the caller's promise.
        self.check("fill memory", unsafe { result::memset_d8_async(at, 0, bytes, self.compute) });
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) {
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(Stream::Compute, kernel, launch, args) };
    }

    fn multiplies(&self, product: &Product) -> bool {
        self.enter();
        self.library.as_ref().is_some_and(|library| library.multiplies(product))
    }

    // SAFETY: as the trait says.
    unsafe fn multiply(&self, product: &Product, workspace: (DevicePtr, usize)) {
        self.enter();
        let library = self.library.as_ref().expect("there until the GPU is let go");
        // SAFETY: the caller's promise; both modules of cudarc name the same opaque stream.
        unsafe { library.multiply(product, workspace, self.compute.cast()) }
            .unwrap_or_else(|error| panic!("the GPU {} cannot multiply ({product:?}): {error}", self.name));
    }

    fn capture(&self, f: impl FnOnce()) -> Result<GpuGraph, String> {
        self.enter();
        let cannot = |what: &'static str| move |error: DriverError| format!("the driver cannot {what}: {error}");
        // Other threads may wait and allocate meanwhile, this one may not.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`, and the queue's lock keeps others from it.
        unsafe { result::stream::begin_capture(self.compute, mode) }.map_err(cannot("capture a stream"))?;
        f();
        // SAFETY: its capture has begun.
        let graph = unsafe { result::stream::end_capture(self.compute) }.map_err(cannot("end a capture"))?;
        // SAFETY: the graph was just made, and is destroyed once; what can be launched does not need it.
        let made = unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
            let _ = result::graph::destroy(graph);
            made
        };
        made.map(GpuGraph).map_err(cannot("make a graph of what it captured"))
    }

    // SAFETY: as the trait says.
    unsafe fn launch_graph(&self, graph: &GpuGraph) {
        self.enter();
        // SAFETY: the caller's promise.
        self.check("launch a graph", unsafe { result::graph::launch(graph.0, self.compute) });
    }
}

impl Drop for Gpu {
    /// Errors are passed over: the process may be ending because the GPU failed.
    fn drop(&mut self) {
        // SAFETY: everything was made by `open`, and nobody else has it.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            self.library = None;
            for stream in [self.compute, self.copies, self.comm] {
                let _ = result::stream::synchronize(stream);
            }
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            for stream in [self.compute, self.copies, self.comm] {
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
