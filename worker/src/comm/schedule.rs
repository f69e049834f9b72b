//! Which schedule a collective runs by, and the tasks that were made of schedules before.
//!
//! The length of the buffer and the shape of the group decide it alone, so all ranks choose the same (T-4).

use std::collections::BTreeMap;
use std::sync::Arc;

use toroid_torus::collective::{self as schedules, Order, Tasks};
use toroid_torus::geometry::Shape;

/// An all-reduce in which each member receives no more than this from all others together is one exchange of everybody's values.
///
/// It sends `n / 2` times the bytes of the other ways and saves one of their two waits, which on shared memory with more ranks than
/// cores is a switch of processes, and over TCP 10 to 20 microseconds.
const EXCHANGE_BYTES_MAX: usize = 64 << 10;

/// Up to this size schedules are direct, 2 steps a line, above it rings, `2 (n - 1)` steps: what is small suffers from latency, what is large
/// from many that send to one, and in shared memory from the many rings that then no longer fit into the cache.
const DIRECT_BYTES_MAX: usize = 64 << 10;

/// So are larger ones up to this size, where their chunks are small: with many members a ring has many steps for them.
const DIRECT_MANY_BYTES_MAX: usize = 256 << 10;
const DIRECT_CHUNK_BYTES_MAX: usize = 32 << 10;

/// Elements in a slice, which moves as one: 128 KiB stay in the second-level cache while one member after another is added.
const SLICE_ELEMENTS: usize = 32 << 10;

/// A group of ranks on a `dx` by `dy` torus of its own: member `y * dx + x` is at `(x, y)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// By member.
    pub ranks: Vec<usize>,
    /// This rank's index in `ranks`.
    pub me: usize,
    pub dx: usize,
    pub dy: usize,
}

impl Group {
    /// A group in a line, as TP groups, rows and columns are.
    pub fn line(ranks: Vec<usize>, rank: usize) -> Group {
        let me = ranks.iter().position(|&r| r == rank);
        let me = me.unwrap_or_else(|| panic!("rank {rank} is not in its own group {ranks:?}"));
        Group { dx: ranks.len(), dy: 1, ranks, me }
    }

    /// The DP group of `rank`, by dp_rank.
    pub fn dp(shape: &Shape, rank: usize) -> Group {
        Group { ranks: shape.dp_group(rank), me: shape.place(rank).dp, dx: shape.dx(), dy: shape.dy() }
    }

    /// The TP group of `rank`, by tp_rank.
    pub fn tp(shape: &Shape, rank: usize) -> Group {
        Group::line(shape.tp_group(rank), rank)
    }
}

/// What a collective leaves, and how it gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Collective {
    ReduceScatter,
    /// And a copy of each member's chunk at the member after it.
    ReduceScatterTwice,
    AllGather,
    AllReduce,
}

/// How a collective goes, by what it was asked for and the size of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Everybody's values to everybody.
    Exchange,
    /// Everybody's values of a chunk to the member that adds them, and the sum to everybody.
    Chunks,
    Direct,
    Ring,
}

impl Path {
    /// Of an [`all_reduce_torus`](super::all_reduce_torus), or the half of one.
    pub fn on_torus(algorithm: Algorithm, members: usize, len: usize) -> Path {
        let bytes = len * size_of::<f32>();
        let is_small = bytes <= DIRECT_BYTES_MAX
            || bytes <= DIRECT_MANY_BYTES_MAX && bytes.div_ceil(members) <= DIRECT_CHUNK_BYTES_MAX;
        match algorithm {
            Algorithm::Ring => Path::Ring,
            Algorithm::Direct => Path::Direct,
            Algorithm::Auto if is_small => Path::Direct,
            Algorithm::Auto => Path::Ring,
        }
    }

    /// Of an [`all_reduce_sum`](super::all_reduce_sum), which has the same bits by any.
    pub fn on_line(members: usize, len: usize) -> Path {
        if len < members || (members - 1) * len * size_of::<f32>() <= EXCHANGE_BYTES_MAX {
            return Path::Exchange;
        }
        // Own + other has the same bits on both sides, and two pass on what they have while more comes.
        if members == 2 { Path::on_torus(Algorithm::Auto, members, len) } else { Path::Chunks }
    }
}

/// Messages that a chunk of a buffer of `len` elements moves as. Where it is one, several chunks of a step are one message, too.
pub fn slices_of_chunk(members: usize, len: usize) -> usize {
    len.div_ceil(members).div_ceil(SLICE_ELEMENTS).max(1)
}

/// Which schedules a collective runs by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// By the size of the buffer, as training does.
    #[default]
    Auto,
    Ring,
    Direct,
}

impl std::str::FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Algorithm, String> {
        match text {
            "auto" => Ok(Algorithm::Auto),
            "ring" => Ok(Algorithm::Ring),
            "direct" => Ok(Algorithm::Direct),
            other => Err(format!("expected auto, ring or direct, found `{other}`")),
        }
    }
}

/// What tasks depend on; the last is the number of elements.
type Key = (Collective, bool, Order, [usize; 4]);

/// Kept at most; a job uses a handful.
const MADE_MAX: usize = 64;

/// Tasks that were made before.
#[derive(Debug, Default)]
pub(super) struct Made(BTreeMap<Key, Arc<Tasks>>);

impl Made {
    pub fn tasks(
        &mut self,
        group: &Group,
        collective: Collective,
        algorithm: Algorithm,
        order: Order,
        len: usize,
    ) -> Arc<Tasks> {
        let Group { dx, dy, me, .. } = *group;
        let is_direct = Path::on_torus(algorithm, dx * dy, len) == Path::Direct;
        let key = (collective, is_direct, order, [dx, dy, me, len]);
        if let Some(tasks) = self.0.get(&key) {
            return Arc::clone(tasks);
        }
        let mut schedule = match (collective, is_direct) {
            (Collective::ReduceScatter | Collective::ReduceScatterTwice, false) => {
                schedules::reduce_scatter(dx, dy, me)
            }
            (Collective::ReduceScatter | Collective::ReduceScatterTwice, true) => {
                schedules::reduce_scatter_direct(dx, dy, me)
            }
            (Collective::AllGather, false) => schedules::all_gather(dx, dy, me),
            (Collective::AllGather, true) => schedules::all_gather_direct(dx, dy, me),
            (Collective::AllReduce, false) => schedules::all_reduce(dx, dy, me),
            (Collective::AllReduce, true) => schedules::all_reduce_direct(dx, dy, me),
        };
        if collective == Collective::ReduceScatterTwice {
            schedule.steps.push(schedules::pass_on(dx, dy, me));
        }
        if self.0.len() == MADE_MAX {
            self.0.clear();
        }
        let tasks = Arc::new(Tasks::new(&schedule, len, SLICE_ELEMENTS).in_order(order));
        self.0.insert(key, Arc::clone(&tasks));
        tasks
    }
}
