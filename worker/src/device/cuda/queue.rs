//! Operations on their way to the compute stream, and the CUDA graphs of those that are asked again and again.
//!
//! ```text
//!   ask, ask, ...      a piece: up to `PIECE_OPS` operations, fewer where somebody waits, uploads or frees before
//!     submit           seen never:  its calls one by one, and it is remembered
//!                      seen once:   captured as a graph, and launched
//!                      seen before: its graph is launched, one call of the driver instead of one for each operation
//! ```
//!
//! Where shapes are static the operations of a micro-batch are the same calls each time, to the last address: buffers lie in one block, and
//! how many rows an expert has is read on the device. So nobody has to say where a piece begins or that it repeats.
//!
//! - **C-1** A graph runs only in place of the operations that it was captured from: the whole list, kernels, shapes, addresses and
//!   scalars bit by bit, is compared with what is asked now. What differs in anything, as AdamW's in its learning rate, is another piece.
//! - **C-2** Nothing of the compute stream passes what is held back: uploads, events and frees submit it first ([`Queue::submit`]), under
//!   the lock that also keeps other threads out of a capture.
//! - **C-3** What is remembered is bounded: beyond [`MOST_REMEMBERED_OPS`] goes what has no graph, the longest unused first.
//!
//! Deliberately absent: graphs of uploads and downloads (their pinned memory changes) and of what another stream does.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::runtime::{Arg, DevicePtr, Launch, Product, Runtime};

/// Whether calls that are made again and again are made as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Graphs {
    #[default]
    On,
    /// Every operation is a call of its own, at once.
    Off,
}

impl FromStr for Graphs {
    type Err = String;

    fn from_str(text: &str) -> Result<Graphs, String> {
        match text {
            "on" => Ok(Graphs::On),
            "off" => Ok(Graphs::Off),
            _ => Err(format!("CUDA graphs are on or off, found `{text}`")),
        }
    }
}

impl fmt::Display for Graphs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Graphs::On { "on" } else { "off" })
    }
}

/// Operations that are submitted at once. The device has nothing to do while the first piece after a wait is put together; longer pieces
/// save little, as a launch of a graph is then a fraction of a launch for each of its operations.
const PIECE_OPS: usize = 64;
/// Shorter pieces are called one by one: a graph of them saves nothing.
const FEWEST_OPS: usize = 3;
/// Operations of all pieces that are remembered: some MB of host memory.
const MOST_REMEMBERED_OPS: usize = 64 * 1024;
/// Operations between two lines of the log, the first time; then ten times as many each time.
const FIRST_REPORT_OPS: u64 = 100_000;

/// A call of the compute stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Op {
    /// With the next `num_args` arguments of the piece.
    Launch {
        kernel: &'static str,
        launch: Launch,
        num_args: usize,
    },
    Multiply {
        product: Product,
        workspace: (DevicePtr, usize),
    },
    Copy {
        from: DevicePtr,
        to: DevicePtr,
        bytes: usize,
    },
    Zero {
        at: DevicePtr,
        bytes: usize,
    },
}

/// Operations in order.
#[derive(Debug, Default, PartialEq)]
struct Piece {
    ops: Vec<Op>,
    /// Of all launches, in order.
    args: Vec<Arg>,
}

impl Piece {
    fn clear(&mut self) {
        self.ops.clear();
        self.args.clear();
    }

    /// Equal pieces have equal keys.
    fn key(&self) -> u64 {
        let mut key = 0_u64;
        let mut mix = |word: u64| key = (key.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        for op in &self.ops {
            match op {
                Op::Launch { kernel, launch, .. } => {
                    mix(kernel.len() as u64);
                    mix(u64::from(launch.grid[0]) << 32 | u64::from(launch.grid[1]));
                }
                Op::Multiply { product, .. } => {
                    [product.a.ptr, product.b.ptr, product.c].into_iter().for_each(&mut mix)
                }
                Op::Copy { from, to, .. } => [*from, *to].into_iter().for_each(&mut mix),
                Op::Zero { at, bytes } => [*at, *bytes as u64].into_iter().for_each(&mut mix),
            }
        }
        self.args.iter().for_each(|arg| mix(arg.bits()));
        key
    }

    /// Its calls, one by one.
    ///
    /// # Safety
    ///
    /// As of each of them.
    unsafe fn call<R: Runtime>(&self, runtime: &R) {
        let mut args = &self.args[..];
        for op in &self.ops {
            // SAFETY: the caller's promise.
            unsafe {
                match *op {
                    Op::Launch { kernel, launch, num_args } => {
                        let (own, rest) = args.split_at(num_args);
                        args = rest;
                        runtime.launch(kernel, launch, own);
                    }
                    Op::Multiply { product, workspace } => runtime.multiply(&product, workspace),
                    Op::Copy { from, to, bytes } => runtime.copy(from, to, bytes),
                    Op::Zero { at, bytes } => runtime.zero(at, bytes),
                }
            }
        }
    }
}

/// A piece that was submitted before.
struct Known<R: Runtime> {
    piece: Piece,
    /// Since it was submitted again.
    graph: Option<R::Graph>,
    /// When it was submitted last.
    used: u64,
}

/// How operations came to the driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Operations that were calls of their own.
    pub plain_ops: u64,
    /// Operations that were part of a graph's launch.
    pub graph_ops: u64,
    /// Launches of graphs.
    pub launches: u64,
    /// Graphs that were made.
    pub made: u64,
}

pub(super) struct Queue<R: Runtime> {
    uses_graphs: bool,
    /// Asked, not submitted.
    held: Piece,
    /// By [`Piece::key`].
    known: BTreeMap<u64, Known<R>>,
    known_ops: usize,
    /// Pieces so far.
    now: u64,
    counts: GraphCounts,
    next_report: u64,
}

impl<R: Runtime> Queue<R> {
    pub fn new(uses_graphs: bool) -> Queue<R> {
        Queue {
            uses_graphs,
            held: Piece::default(),
            known: BTreeMap::new(),
            known_ops: 0,
            now: 0,
            counts: GraphCounts::default(),
            next_report: FIRST_REPORT_OPS,
        }
    }

    pub fn counts(&self) -> GraphCounts {
        self.counts
    }

    /// # Safety
    ///
    /// As of the call of the runtime, and what it reads and writes stays until it has happened, or goes by [`Runtime::free`] after a submit.
    pub unsafe fn ask(&mut self, runtime: &R, op: Op, args: &[Arg]) {
        self.held.ops.push(op);
        self.held.args.extend_from_slice(args);
        if !self.uses_graphs || self.held.ops.len() == PIECE_OPS {
            self.submit(runtime);
        }
    }

    /// Gives the driver what is held back.
    pub fn submit(&mut self, runtime: &R) {
        if std::thread::panicking() {
            // The process ends, most likely because the GPU failed: a second panic would hide the first.
            return self.held.clear();
        }
        let num = self.held.ops.len();
        if num == 0 {
            return;
        }
        let mut piece = std::mem::take(&mut self.held);
        if !self.uses_graphs || num < FEWEST_OPS || !self.submit_as_graph(runtime, &piece) {
            // SAFETY: the promise of who asked.
            unsafe { piece.call(runtime) };
            self.counts.plain_ops += num as u64;
            if self.uses_graphs && num >= FEWEST_OPS {
                self.remember(std::mem::take(&mut piece));
            }
        }
        piece.clear();
        self.held = piece;
        self.report();
    }

    /// False where the piece was not seen before, or graphs cannot be made.
    fn submit_as_graph(&mut self, runtime: &R, piece: &Piece) -> bool {
        self.now += 1;
        let Some(known) = self.known.get_mut(&piece.key()).filter(|known| known.piece == *piece) else { return false };
        known.used = self.now;
        if known.graph.is_none() {
            // SAFETY: nothing happens yet; the promise of who asked holds for what is captured when it is launched.
            match runtime.capture(|| unsafe { piece.call(runtime) }) {
                Ok(graph) => known.graph = Some(graph),
                Err(error) => {
                    tracing::warn!("no CUDA graphs from here on, operations are launched one by one: {error}");
                    (self.uses_graphs, self.known_ops) = (false, 0);
                    self.known.clear();
                    return false;
                }
            }
            self.counts.made += 1;
        }
        if let Some(graph) = &known.graph {
            // SAFETY: it stands for the same calls (C-1), of which the promise was made.
            unsafe { runtime.launch_graph(graph) };
        }
        self.counts.graph_ops += piece.ops.len() as u64;
        self.counts.launches += 1;
        true
    }

    fn remember(&mut self, piece: Piece) {
        self.known_ops += piece.ops.len();
        let known = Known { graph: None, used: self.now, piece };
        if let Some(other) = self.known.insert(known.piece.key(), known) {
            self.known_ops -= other.piece.ops.len();
        }
        while self.known_ops > MOST_REMEMBERED_OPS {
            let oldest = self.known.iter().min_by_key(|(_, known)| (known.graph.is_some(), known.used));
            let Some(key) = oldest.map(|(key, _)| *key) else { return };
            self.known_ops -= self.known.remove(&key).map_or(0, |known| known.piece.ops.len());
        }
    }

    fn report(&mut self) {
        let GraphCounts { plain_ops, graph_ops, launches, made } = self.counts;
        let all = plain_ops + graph_ops;
        if self.uses_graphs && all >= self.next_report {
            let percent = 100.0 * graph_ops as f64 / all as f64;
            tracing::info!("CUDA graphs: {percent:.1}% of {all} operations in {launches} launches of {made} graphs");
            self.next_report *= 10;
        }
    }
}
