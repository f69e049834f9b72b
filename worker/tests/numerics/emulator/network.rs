//! Emulated GPUs with NCCL between them: ranks are threads of this process, and a rank can be lost.
//!
//! Streams are queues. A group of transfers at the head of one is done when all of its sends were taken and all of its receives have come; until
//! then what is behind it, and whoever waits for an event behind it, stays where it is, as on a GPU. Streams do not need their hosts: whoever
//! looks for an event moves the streams of all. A rank that is lost moves no more, so what is asked of it never happens; only an abort
//! of one's own part takes a group from the head of a stream, and what it would have brought is left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use toroid_worker::comm::nccl::{Gpu, UniqueId};
use toroid_worker::device::CudaDevice;
use toroid_worker::device::cuda::Graphs;
use toroid_worker::device::cuda::nccl::{Nccl, PointToPoint};
use toroid_worker::device::cuda::runtime::{Arg, DevicePtr, Launch, Product, Runtime, Stream};

use super::Emulator;

/// One rank's part of a communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    communicator: u64,
    index: usize,
    /// Counts parts for life.
    part: u64,
}

/// A call of a GPU's, as often as it is launched.
type Call = Arc<dyn Fn(&Emulator) + Send + Sync>;

enum Work {
    Do(Call),
    Exchange { part: Part, transfers: Vec<PointToPoint>, is_posted: bool },
    Record(u64),
    Wait(u64),
}

/// A message in a communicator, from one index to another.
struct Message {
    bytes: Vec<u8>,
    is_taken: bool,
}

#[derive(Default)]
struct Communicator {
    size: usize,
    /// By index.
    parts: BTreeMap<usize, u64>,
    /// By sender and receiver, oldest first. A message that was taken stays until its sender has seen it.
    messages: BTreeMap<(usize, usize), VecDeque<Message>>,
}

#[derive(Default)]
struct Rank {
    gpu: u64,
    asked: [VecDeque<Work>; 3],
    aborted: BTreeSet<u64>,
    is_lost: bool,
    /// Groups that were asked for: what is counted is what NCCL was called for.
    num_exchanges: u64,
    /// What the compute stream is asked for while it is captured.
    captured: Option<Vec<Call>>,
}

#[derive(Default)]
struct State {
    next: u64,
    come: BTreeSet<u64>,
    communicators: BTreeMap<u64, Communicator>,
    ranks: Vec<Rank>,
}

/// What connects emulated GPUs.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<State>>);

/// A GPU on a network.
pub struct Networked {
    emulator: Arc<Emulator>,
    network: Network,
    emulators: Arc<Mutex<Vec<Arc<Emulator>>>>,
    rank: usize,
    version: Option<u32>,
}

/// GPUs that share a network.
#[derive(Clone, Default)]
pub struct Machine {
    network: Network,
    emulators: Arc<Mutex<Vec<Arc<Emulator>>>>,
}

pub const VERSION: u32 = 22_703;

impl Machine {
    /// Another GPU.
    pub fn device(&self) -> CudaDevice<Networked> {
        let gpu = self.network.state().ranks.len() as u64;
        self.device_on(gpu, Some(VERSION))
    }

    /// The GPU of this number, which several may share, with a library of this version or without one.
    pub fn device_on(&self, gpu: u64, version: Option<u32>) -> CudaDevice<Networked> {
        let mut emulators = self.emulators.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.network.state();
        let emulator = Arc::new(Emulator::default());
        emulators.push(Arc::clone(&emulator));
        state.ranks.push(Rank { gpu, ..Rank::default() });
        let (network, rank) = (self.network.clone(), state.ranks.len() - 1);
        CudaDevice::new(
            Networked { emulator, network, emulators: Arc::clone(&self.emulators), rank, version },
            Graphs::On,
        )
    }
}

impl Network {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Moves the streams of all ranks as far as they go.
    fn pump(&mut self, emulators: &[Arc<Emulator>]) {
        loop {
            let mut moved = false;
            for rank in 0..self.ranks.len() {
                for stream in 0..3 {
                    while !self.ranks[rank].is_lost && self.step(rank, stream, &emulators[rank]) {
                        moved = true;
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Does what is at the head of the stream, if it can be done.
    fn step(&mut self, rank: usize, stream: usize, emulator: &Emulator) -> bool {
        let Some(mut work) = self.ranks[rank].asked[stream].pop_front() else { return false };
        let is_done = match &mut work {
            Work::Do(_) | Work::Record(_) => true,
            Work::Wait(event) => self.come.contains(event),
            Work::Exchange { part, transfers, is_posted } => self.exchange(rank, *part, transfers, is_posted, emulator),
        };
        match work {
            work if !is_done => self.ranks[rank].asked[stream].push_front(work),
            Work::Do(f) => f(emulator),
            Work::Record(event) => {
                self.come.insert(event);
            }
            Work::Wait(_) | Work::Exchange { .. } => {}
        }
        is_done
    }

    fn exchange(
        &mut self,
        rank: usize,
        part: Part,
        transfers: &mut Vec<PointToPoint>,
        is_posted: &mut bool,
        emulator: &Emulator,
    ) -> bool {
        if self.ranks[rank].aborted.contains(&part.part) {
            return true;
        }
        let communicator = self.communicators.get_mut(&part.communicator).expect("it was made");
        if !std::mem::replace(is_posted, true) {
            for transfer in transfers.iter() {
                if let PointToPoint::Send { peer, from, bytes } = *transfer {
                    emulator.check(from, bytes);
                    // SAFETY: inside of an allocation.
                    let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec();
                    let queue = communicator.messages.entry((part.index, peer)).or_default();
                    queue.push_back(Message { bytes, is_taken: false });
                }
            }
        }
        transfers.retain(|transfer| {
            let PointToPoint::Recv { peer, to, bytes } = *transfer else { return true };
            let queue = communicator.messages.entry((peer, part.index)).or_default();
            let Some(message) = queue.iter_mut().find(|message| !message.is_taken) else { return true };
            assert_eq!(message.bytes.len(), bytes, "both ends of a transfer have the same length");
            emulator.check(to, bytes);
            // SAFETY: inside of an allocation.
            unsafe { std::ptr::copy_nonoverlapping(message.bytes.as_ptr(), to as *mut u8, bytes) };
            message.is_taken = true;
            false
        });
        // A send is done when it was taken; those of one pair are taken in their order.
        transfers.retain(|transfer| {
            let PointToPoint::Send { peer, .. } = *transfer else { return true };
            let queue = communicator.messages.entry((part.index, peer)).or_default();
            match queue.front() {
                Some(message) if message.is_taken => {
                    queue.pop_front();
                    false
                }
                _ => true,
            }
        });
        transfers.is_empty()
    }
}

impl Networked {
    fn pumped(&self) -> MutexGuard<'_, State> {
        let emulators = self.emulators.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.network.state();
        state.pump(&emulators);
        state
    }

    fn ask(&self, stream: Stream, work: Work) {
        let rank = &mut self.network.state().ranks[self.rank];
        match (rank.captured.as_mut().filter(|_| stream == Stream::Compute), work) {
            (Some(captured), Work::Do(call)) => captured.push(call),
            (Some(_), _) => panic!("an event or a transfer within a capture"),
            (None, work) => rank.asked[stream as usize].push_back(work),
        }
    }

    fn ask_for(&self, stream: Stream, f: impl Fn(&Emulator) + Send + Sync + 'static) {
        self.ask(stream, Work::Do(Arc::new(f)));
    }

    /// For others than its host.
    pub fn handle(&self) -> Handle {
        Handle { network: self.network.clone(), rank: self.rank }
    }

    pub fn is_lost(&self) -> bool {
        self.network.state().ranks[self.rank].is_lost
    }
}

/// A GPU as the test sees it, which outlives the GPU's host.
pub struct Handle {
    network: Network,
    rank: usize,
}

impl Handle {
    /// As if its process had died: it does nothing any more.
    pub fn lose(&self) {
        self.network.state().ranks[self.rank].is_lost = true;
    }

    /// Groups that were asked for so far.
    pub fn num_exchanges(&self) -> u64 {
        self.network.state().ranks[self.rank].num_exchanges
    }
}

impl Nccl for Networked {
    type Communicator = Part;

    fn nccl_version(&self) -> Option<u32> {
        self.version
    }

    fn gpu(&self) -> Gpu {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.network.state().ranks[self.rank].gpu.to_le_bytes());
        Gpu(id)
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = [0; 128];
        id[..8].copy_from_slice(&self.network.state().number().to_le_bytes());
        Ok(UniqueId(id))
    }

    fn init(&self, id: &UniqueId, index: usize, size: usize) -> Result<Part, String> {
        let mut state = self.network.state();
        let part = state.number();
        let (number, _) = id.0.split_at(8);
        let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
        let communicator = state.communicators.entry(number).or_default();
        communicator.size = size;
        assert!(
            communicator.parts.insert(index, part).is_none(),
            "index {index} has joined communicator {number} twice"
        );
        Ok(Part { communicator: number, index, part })
    }

    fn is_ready(&self, part: &Part) -> Result<bool, String> {
        let state = self.pumped();
        let communicator = &state.communicators[&part.communicator];
        Ok(communicator.parts.len() == communicator.size)
    }

    // SAFETY: as the trait says; what is asked is checked when it happens.
    unsafe fn exchange(&self, part: &Part, stream: Stream, transfers: &[PointToPoint]) -> Result<(), String> {
        let mut state = self.network.state();
        assert!(!state.ranks[self.rank].aborted.contains(&part.part), "an aborted communicator is used");
        state.ranks[self.rank].num_exchanges += 1;
        drop(state);
        self.ask(stream, Work::Exchange { part: *part, transfers: transfers.to_vec(), is_posted: false });
        Ok(())
    }

    fn abort(&self, part: Part) {
        assert!(self.network.state().ranks[self.rank].aborted.insert(part.part), "aborted twice");
    }

    // SAFETY: as the trait says; the emulator checks what kernels do.
    unsafe fn add(&self, stream: Stream, x: DevicePtr, y: DevicePtr, n: usize) {
        let launch = Launch { grid: [n.div_ceil(256) as u32, 1, 1], threads: 256, shared_bytes: 0 };
        let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::U64(n as u64)];
        // SAFETY: the caller's promise.
        self.ask_for(stream, move |emulator| unsafe { emulator.launch("add_assign", launch, &args) });
    }
}

/// All that is not between ranks is the emulator's, when it is its turn.
impl Runtime for Networked {
    type Event = u64;
    type Graph = Vec<Call>;

    fn fingerprint(&self) -> String {
        self.emulator.fingerprint()
    }

    fn name(&self) -> &str {
        self.emulator.name()
    }

    fn free_bytes(&self) -> usize {
        self.emulator.free_bytes()
    }

    fn alloc(&self, bytes: usize) -> DevicePtr {
        self.emulator.alloc(bytes)
    }

    fn alloc_host(&self, bytes: usize) -> *mut u8 {
        self.emulator.alloc_host(bytes)
    }

    // SAFETY: as the trait says.
    unsafe fn free(&self, ptr: DevicePtr) {
        let is_done = |state: &State| {
            let rank = &state.ranks[self.rank];
            rank.is_lost || rank.asked.iter().all(VecDeque::is_empty)
        };
        while !is_done(&self.pumped()) {
            std::thread::yield_now();
        }
        // SAFETY: the caller's promise.
        unsafe { self.emulator.free(ptr) };
    }

    // SAFETY: as the trait says.
    unsafe fn free_host(&self, ptr: *mut u8, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.free_host(ptr, bytes) };
    }

    fn record(&self, stream: Stream) -> u64 {
        let event = self.network.state().number();
        self.ask(stream, Work::Record(event));
        event
    }

    fn wait(&self, stream: Stream, event: &u64) {
        self.ask(stream, Work::Wait(*event));
    }

    /// A host whose GPU is lost is lost, too: its thread ends here.
    fn has_come(&self, event: &u64) -> bool {
        let has_come = self.pumped().come.contains(event);
        if !has_come && self.is_lost() && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("this rank is lost"));
        }
        has_come
    }

    fn synchronize(&self, event: &u64) {
        while !self.has_come(event) {
            std::thread::yield_now();
        }
    }

    // SAFETY: as the trait says.
    unsafe fn upload(&self, from: *const u8, to: DevicePtr, bytes: usize) {
        let from = from as DevicePtr;
        // SAFETY: the caller's promise.
        self.ask_for(Stream::Compute, move |emulator| unsafe { emulator.upload(from as *const u8, to, bytes) });
    }

    // SAFETY: as the trait says.
    unsafe fn download(&self, from: DevicePtr, to: *mut u8, bytes: usize) {
        let to = to as DevicePtr;
        // SAFETY: the caller's promise.
        self.ask_for(Stream::Copy, move |emulator| unsafe { emulator.download(from, to as *mut u8, bytes) });
    }

    // SAFETY: as the trait says.
    unsafe fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) {
        // SAFETY: the caller's promise.
        self.ask_for(Stream::Compute, move |emulator| unsafe { emulator.copy(from, to, bytes) });
    }

    // SAFETY: as the trait says.
    unsafe fn zero(&self, at: DevicePtr, bytes: usize) {
        // SAFETY: the caller's promise.
        self.ask_for(Stream::Compute, move |emulator| unsafe { emulator.zero(at, bytes) });
    }

    // SAFETY: as the trait says.
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) {
        let args = args.to_vec();
        // SAFETY: the caller's promise.
        self.ask_for(Stream::Compute, move |emulator| unsafe { emulator.launch(kernel, launch, &args) });
    }

    fn multiplies(&self, product: &Product) -> bool {
        self.emulator.multiplies(product)
    }

    // SAFETY: as the trait says; it is never called.
    unsafe fn multiply(&self, product: &Product, _: (DevicePtr, usize)) {
        unreachable!("{product:?} was refused");
    }

    fn capture(&self, f: impl FnOnce()) -> Result<Vec<Call>, String> {
        let captured = |calls| std::mem::replace(&mut self.network.state().ranks[self.rank].captured, calls);
        assert!(captured(Some(Vec::new())).is_none(), "a capture within a capture");
        f();
        Ok(captured(None).expect("nobody else ends a capture"))
    }

    // SAFETY: as the trait says.
    unsafe fn launch_graph(&self, graph: &Vec<Call>) {
        graph.iter().for_each(|call| self.ask(Stream::Compute, Work::Do(Arc::clone(call))));
    }
}

/// An emulator alone has no NCCL.
impl Nccl for Emulator {
    type Communicator = std::convert::Infallible;

    fn nccl_version(&self) -> Option<u32> {
        None
    }

    fn gpu(&self) -> Gpu {
        unreachable!("nobody asks where there is no library")
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        Err("there is no NCCL".into())
    }

    fn init(&self, _: &UniqueId, _: usize, _: usize) -> Result<Self::Communicator, String> {
        Err("there is no NCCL".into())
    }

    fn is_ready(&self, communicator: &Self::Communicator) -> Result<bool, String> {
        match *communicator {}
    }

    // SAFETY: as the trait says; there is nothing to call it with.
    unsafe fn exchange(&self, communicator: &Self::Communicator, _: Stream, _: &[PointToPoint]) -> Result<(), String> {
        match *communicator {}
    }

    fn abort(&self, communicator: Self::Communicator) {
        match communicator {}
    }

    // SAFETY: as the trait says; it is never called.
    unsafe fn add(&self, _: Stream, _: DevicePtr, _: DevicePtr, _: usize) {
        unreachable!("nothing came from anybody")
    }
}
