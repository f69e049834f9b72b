//! The CUDA device on a CPU: the kernels' own sources, compiled by the C++ compiler against `emulator.hpp`, behind the device's own
//! launches. It is the truth about the kernels' logic where no GPU is at hand; its speed means nothing.
//!
//! Besides running kernels it checks what a GPU would not: that launches pass what kernels declare, that copies stay inside of
//! allocations, and that nothing was written around one. What is captured as a graph is kept with the arguments that it had then. A *lazy* emulator does what a stream was asked only when somebody waits for it, and
//! of the other stream only what events demand: where an event is missing, old bytes are read.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use toroid_worker::device::CudaDevice;
use toroid_worker::device::cuda::Graphs;
use toroid_worker::device::cuda::kernels::{SOURCES, Source};
use toroid_worker::device::cuda::runtime::{Arg, DevicePtr, Launch, Product, Runtime, Stream};

pub mod network;

const HEADER: &str = include_str!("emulator.hpp");
const FLAGS: [&str; 7] = ["-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-w", "-o"];

/// Bytes before and after each allocation, and what is in them.
const GUARD: usize = 256;
const PATTERN: u8 = 0xA7;

/// `emulate(name, grid, threads, shared_bytes, kinds, bits, backwards)`: 0 if the kernel ran.
// SAFETY: called in one place, with what `emulator.hpp` expects.
type Emulate = unsafe extern "C" fn(
    *const std::ffi::c_char,
    *const u32,
    u32,
    usize,
    *const std::ffi::c_char,
    *const u64,
    bool,
) -> i32;

/// By source. A library has one set of fibers, so it makes one launch at a time.
struct Libraries(BTreeMap<&'static str, Mutex<libloading::Library>>);

static LIBRARIES: LazyLock<Libraries> = LazyLock::new(Libraries::build);

impl Libraries {
    fn build() -> Libraries {
        let files: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = SOURCES.iter().map(|s| scope.spawn(move || (s, compile(s)))).collect();
            threads.into_iter().map(|t| t.join().expect("compiled")).collect()
        });
        let load = |(source, path): (&'static Source, PathBuf)| {
            // SAFETY: the library was made from the sources above and has no initializers but its own.
            let library = unsafe { libloading::Library::new(&path) };
            (source.file, Mutex::new(library.unwrap_or_else(|e| panic!("cannot load {}: {e}", path.display()))))
        };
        Libraries(files.into_iter().map(load).collect())
    }
}

/// The library of a source, compiled unless it is there from an earlier run.
fn compile(source: &Source) -> PathBuf {
    let entry = |name: &&str| {
        format!(
            "    if (strcmp(name, \"{name}\") == 0) return !emulator::launch({name}, {{grid[0], grid[1], grid[2]}}, threads, \
             shared_bytes, kinds, bits);\n"
        )
    };
    let entries: String = source.kernels.iter().map(entry).collect();
    let text = format!(
        "{HEADER}\n{}\nextern \"C\" int emulate(const char* name, const unsigned* grid, unsigned threads, \
         size_t shared_bytes, const char* kinds, const uint64_t* bits, bool backwards) {{\n    emulator::kernel_name = name;\n    \
         emulator::backwards = backwards;\n{entries}    return 2;\n}}\n",
        source.translation_unit()
    );
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let digest = blake3::hash(format!("{text}{FLAGS:?}").as_bytes()).to_hex();
    let library = folder.join(format!("{}-{}.so", source.file, &digest[..16]));
    if !library.exists() {
        let unique = library.with_extension(format!("{}.cpp", std::process::id()));
        let made = unique.with_extension("so");
        std::fs::write(&unique, text).expect("the target folder can be written");
        let output = Command::new("c++").args(FLAGS).arg(&made).arg(&unique).output();
        let output = output.unwrap_or_else(|e| panic!("cannot run c++ ({e}); scripts/setup.sh installs it"));
        assert!(output.status.success(), "{}:\n{}", unique.display(), String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&made, &library).expect("put in place");
        std::fs::remove_file(&unique).expect("removed");
    }
    library
}

/// What a stream is asked for.
#[derive(Clone)]
enum Work {
    Launch {
        kernel: &'static str,
        launch: Launch,
        args: Vec<Arg>,
    },
    Move {
        from: DevicePtr,
        to: DevicePtr,
        bytes: usize,
    },
    Zero {
        at: DevicePtr,
        bytes: usize,
    },
    Record(u64),
    Wait(u64),
    /// One after the other.
    Graph(EmulatedGraph),
}

impl Work {
    /// The driver's call.
    fn call(&self) -> &'static str {
        match self {
            Work::Launch { .. } => "launch",
            Work::Move { .. } => "copy",
            Work::Zero { .. } => "zero",
            Work::Record(_) => "record",
            Work::Wait(_) => "wait",
            Work::Graph(_) => "graph",
        }
    }
}

/// What was captured.
#[derive(Clone)]
pub struct EmulatedGraph(Arc<[Work]>);

#[derive(Default)]
struct Streams {
    /// Of [`Stream::Compute`], then [`Stream::Copy`].
    asked: [VecDeque<Work>; 2],
    come: BTreeSet<u64>,
    next_event: u64,
    /// What the compute stream is asked for while it is captured.
    captured: Option<Vec<Work>>,
    /// Calls of the driver by name; what is captured is none.
    calls: BTreeMap<&'static str, usize>,
}

/// Host memory that plays the device's.
#[derive(Default)]
pub struct Emulator {
    /// Bytes of each allocation.
    allocations: Mutex<BTreeMap<DevicePtr, usize>>,
    /// Threads and blocks run from the last to the first.
    backwards: bool,
    /// Bytes of memory; 0: as many as anybody wants.
    total_bytes: usize,
    streams: Mutex<Streams>,
    is_lazy: bool,
    /// Streams do not wait for events: a mistake that a lazy emulator has to show.
    forgets_waits: bool,
    /// It cannot make graphs.
    refuses_graphs: bool,
}

fn on(emulator: Emulator) -> CudaDevice<Emulator> {
    CudaDevice::new(emulator, Graphs::On)
}

pub fn device() -> CudaDevice<Emulator> {
    on(Emulator::default())
}

/// Every operation is a call of its own.
pub fn without_graphs() -> CudaDevice<Emulator> {
    CudaDevice::new(Emulator::default(), Graphs::Off)
}

/// A driver that cannot make graphs.
pub fn that_refuses_graphs() -> CudaDevice<Emulator> {
    on(Emulator { refuses_graphs: true, ..Emulator::default() })
}

/// Its threads run in the other order, which must not matter.
pub fn backwards() -> CudaDevice<Emulator> {
    on(Emulator { backwards: true, ..Emulator::default() })
}

/// It does nothing before somebody waits for it.
pub fn lazy() -> CudaDevice<Emulator> {
    on(Emulator { is_lazy: true, ..Emulator::default() })
}

/// As [`lazy`], and its streams do not wait for one another.
pub fn lazy_without_events() -> CudaDevice<Emulator> {
    on(Emulator { is_lazy: true, forgets_waits: true, ..Emulator::default() })
}

/// A GPU with so many bytes of memory.
pub fn with_memory(total_bytes: usize) -> CudaDevice<Emulator> {
    on(Emulator { total_bytes, ..Emulator::default() })
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * GUARD, 256).expect("a size that exists")
}

impl Emulator {
    /// Allocations that are in use, of the device and of pinned memory.
    pub fn num_allocations(&self) -> usize {
        self.allocations.lock().expect("nobody panicked").len()
    }

    /// What was asked and is not done.
    pub fn num_pending(&self) -> usize {
        self.streams().asked.iter().map(VecDeque::len).sum()
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Calls of the driver by name, since they were last asked for.
    pub fn take_calls(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.streams().calls)
    }

    fn ask(&self, stream: Stream, work: Work) {
        let mut streams = self.streams();
        if let Some(captured) = streams.captured.as_mut().filter(|_| stream == Stream::Compute) {
            let fits = matches!(work, Work::Launch { .. } | Work::Move { .. } | Work::Zero { .. });
            assert!(fits, "{} within a capture", work.call());
            return captured.push(work);
        }
        *streams.calls.entry(work.call()).or_default() += 1;
        streams.asked[stream as usize].push_back(work);
        if !self.is_lazy {
            self.finish(&mut streams);
        }
    }

    /// Does all that was asked.
    fn finish(&self, streams: &mut Streams) {
        for stream in 0..2 {
            while let Some(work) = streams.asked[stream].pop_front() {
                self.happen(streams, work);
            }
        }
    }

    /// Does what comes before the event in its stream, and what that waits for.
    fn complete(&self, streams: &mut Streams, event: u64) {
        let is_it = |work: &Work| matches!(work, Work::Record(e) if *e == event);
        let Some(stream) = (0..2).find(|s| streams.asked[*s].iter().any(is_it)) else {
            assert!(streams.come.contains(&event), "nobody recorded event {event}");
            return;
        };
        while !streams.come.contains(&event) {
            let work = streams.asked[stream].pop_front().expect("the event is in this stream");
            self.happen(streams, work);
        }
    }

    fn happen(&self, streams: &mut Streams, work: Work) {
        match work {
            Work::Graph(graph) => graph.0.iter().for_each(|work| self.happen(streams, work.clone())),
            Work::Wait(event) => self.complete(streams, event),
            Work::Record(event) => {
                streams.come.insert(event);
            }
            Work::Launch { kernel, launch, args } => self.run(kernel, launch, &args),
            Work::Move { from, to, bytes } => {
                self.check(from, bytes);
                self.check(to, bytes);
                // SAFETY: inside of allocations.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
            Work::Zero { at, bytes } => {
                self.check(at, bytes);
                // SAFETY: inside of an allocation.
                unsafe { (at as *mut u8).write_bytes(0, bytes) };
            }
        }
    }

    fn run(&self, kernel: &'static str, launch: Launch, args: &[Arg]) {
        let source = SOURCES.iter().find(|s| s.kernels.contains(&kernel));
        let source = source.unwrap_or_else(|| panic!("no source names the kernel {kernel}"));
        assert!(launch.threads.is_multiple_of(32) && launch.threads <= 1024, "{kernel}: {launch:?}");
        let kind = |arg: &Arg| match arg {
            Arg::Ptr(ptr) => {
                // An argument that may be none is 0.
                if *ptr != 0 {
                    self.check(*ptr, 1);
                }
                'p'
            }
            Arg::U64(_) => 'l',
            Arg::U32(_) => 'i',
            Arg::F32(_) => 'f',
        };
        let kinds: String = args.iter().map(kind).chain(['\0']).collect();
        let bits: Vec<u64> = args.iter().map(|a| a.bits()).collect();
        let name = format!("{kernel}\0");
        let library = LIBRARIES.0[source.file].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the library defines `emulate` so; the strings end with NUL; the caller answers for the kernel's accesses.
        let failed = unsafe {
            let emulate = library.get::<Emulate>(b"emulate").expect("every library defines it");
            let (name, kinds) = (name.as_ptr().cast(), kinds.as_ptr().cast());
            emulate(
                name,
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared_bytes,
                kinds,
                bits.as_ptr(),
                self.backwards,
            )
        };
        assert_eq!(failed, 0, "the launch of {kernel} does not fit its declaration: {args:?}");
    }

    /// Panics unless `bytes` at `ptr` lie inside of one allocation.
    fn check(&self, ptr: DevicePtr, bytes: usize) {
        let allocations = self.allocations.lock().expect("nobody panicked");
        let inside =
            allocations.range(..=ptr).next_back().is_some_and(|(start, len)| ptr + bytes as u64 <= start + *len as u64);
        assert!(inside || bytes == 0, "{bytes} bytes at {ptr:#x} are outside of every allocation");
    }
}

impl Runtime for Emulator {
    type Event = u64;
    type Graph = EmulatedGraph;

    fn fingerprint(&self) -> String {
        "emulator".into()
    }

    fn name(&self) -> &str {
        "the emulator"
    }

    fn free_bytes(&self) -> usize {
        let used: usize = self.allocations.lock().expect("nobody panicked").values().sum();
        if self.total_bytes == 0 { usize::MAX } else { self.total_bytes.saturating_sub(used) }
    }

    fn alloc(&self, bytes: usize) -> DevicePtr {
        assert!(self.streams().captured.is_none(), "memory is allocated within a capture");
        // SAFETY: the layout has a size; the memory is written before anybody sees it.
        let ptr = unsafe {
            let start = alloc(layout(bytes));
            assert!(!start.is_null(), "no memory");
            start.write_bytes(PATTERN, bytes + 2 * GUARD);
            start.add(GUARD).write_bytes(0, bytes);
            start.add(GUARD) as DevicePtr
        };
        self.allocations.lock().expect("nobody panicked").insert(ptr, bytes);
        ptr
    }

    fn alloc_host(&self, bytes: usize) -> *mut u8 {
        self.alloc(bytes) as *mut u8
    }

    // SAFETY: as the trait says.
    unsafe fn free(&self, ptr: DevicePtr) {
        if !std::thread::panicking() {
            self.finish(&mut self.streams());
        }
        let bytes = self.allocations.lock().expect("nobody panicked").remove(&ptr).expect("allocated and not freed");
        // SAFETY: allocated above with this layout.
        unsafe {
            let start = (ptr as *mut u8).sub(GUARD);
            let around = [start, start.add(GUARD + bytes)].map(|at| std::slice::from_raw_parts(at, GUARD));
            let intact = around.iter().all(|guard| guard.iter().all(|b| *b == PATTERN));
            dealloc(start, layout(bytes));
            assert!(intact || std::thread::panicking(), "something was written around {bytes} bytes of device memory");
        }
    }

    // SAFETY: as the trait says.
    unsafe fn free_host(&self, ptr: *mut u8, _bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.free(ptr as DevicePtr) };
    }

    fn record(&self, stream: Stream) -> u64 {
        let event = {
            let mut streams = self.streams();
            streams.next_event += 1;
            streams.next_event
        };
        self.ask(stream, Work::Record(event));
        event
    }

    fn wait(&self, stream: Stream, event: &u64) {
        if !self.forgets_waits {
            self.ask(stream, Work::Wait(*event));
        }
    }

    fn has_come(&self, event: &u64) -> bool {
        self.streams().come.contains(event)
    }

    fn synchronize(&self, event: &u64) {
        let mut streams = self.streams();
        *streams.calls.entry("synchronize").or_default() += 1;
        self.complete(&mut streams, *event);
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn upload(&self, from: *const u8, to: DevicePtr, bytes: usize) {
        self.ask(Stream::Compute, Work::Move { from: from as DevicePtr, to, bytes });
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn download(&self, from: DevicePtr, to: *mut u8, bytes: usize) {
        self.ask(Stream::Copy, Work::Move { from, to: to as DevicePtr, bytes });
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) {
        self.ask(Stream::Compute, Work::Move { from, to, bytes });
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn zero(&self, at: DevicePtr, bytes: usize) {
        self.ask(Stream::Compute, Work::Zero { at, bytes });
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) {
        self.ask(Stream::Compute, Work::Launch { kernel, launch, args: args.to_vec() });
    }

    /// There is no cuBLASLt here: own kernels make all products.
    fn multiplies(&self, _: &Product) -> bool {
        false
    }

    // SAFETY: as the trait says; it is never called.
    unsafe fn multiply(&self, product: &Product, _: (DevicePtr, usize)) {
        unreachable!("{product:?} was refused");
    }

    fn capture(&self, f: impl FnOnce()) -> Result<EmulatedGraph, String> {
        if self.refuses_graphs {
            return Err("the emulator was told not to".into());
        }
        self.streams().captured = Some(Vec::new());
        f();
        let mut streams = self.streams();
        *streams.calls.entry("capture").or_default() += 1;
        let captured = streams.captured.take().expect("one capture at a time");
        Ok(EmulatedGraph(captured.into()))
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn launch_graph(&self, graph: &EmulatedGraph) {
        self.ask(Stream::Compute, Work::Graph(graph.clone()));
    }
}
