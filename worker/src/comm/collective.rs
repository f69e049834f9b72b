//! Executes collective schedules over links, and the few collectives that training needs.
//!
//! The schedules of [`toroid_torus::collective`] decide who sends what when; here they only move. Each sum has one order: that of the
//! rings, which the direct schedules keep, or where everybody's values are exchanged that of the members. Which of the two depends on
//! the length of the buffer and the shape of the group alone, so every rank has the same bits (T-4) and all ranks choose the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::collective::{self as schedules, Order, Step, Tasks};
use toroid_torus::geometry::Shape;

use super::flight::Flight;
use super::program::Program;
use super::{Channel, CommError, Links, Transfer};
use crate::device::Device;
use crate::model::{TpComm, all_gather_through_host, all_reduce_through_host};

/// An all-reduce in which each member receives no more than this from all others together is one exchange of everybody's values.
///
/// It sends `n / 2` times the bytes of the other schedules and saves one of their two waits, which on shared memory with more ranks than
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

/// Elements that a sum in member order takes at a time, so that they stay in the first-level cache.
const SUM_BLOCK: usize = 1024;

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

/// Tasks that were made before, by what they depend on; the last is the number of elements.
pub(super) type Made = BTreeMap<(Collective, bool, Order, [usize; 4]), Arc<Tasks>>;

/// Kept at most; a job uses a handful.
const MADE_MAX: usize = 64;

/// How a collective goes, by what it was asked for and the size of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Everybody's values to everybody.
    Exchange,
    Direct,
    Ring,
}

impl Path {
    /// Of an [`all_reduce_torus`], or the half of one.
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

    /// Of an [`all_reduce_sum`].
    pub fn on_line(members: usize, len: usize) -> Path {
        if (members - 1) * len * size_of::<f32>() <= EXCHANGE_BYTES_MAX {
            return Path::Exchange;
        }
        Path::on_torus(Algorithm::Auto, members, len)
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

fn run(
    links: &mut Links,
    group: &Group,
    collective: Collective,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    run_by(Algorithm::Auto, links, group, collective, channel, buf, scratch)
}

fn run_by(
    algorithm: Algorithm,
    links: &mut Links,
    group: &Group,
    collective: Collective,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    let tasks = tasks_of(links, group, collective, algorithm, Order::Schedule, buf.len());
    links.execute(&mut Program::new(tasks, buf, scratch), &group.ranks, channel)
}

fn tasks_of(
    links: &mut Links,
    group: &Group,
    collective: Collective,
    algorithm: Algorithm,
    order: Order,
    len: usize,
) -> Arc<Tasks> {
    let Group { dx, dy, me, .. } = *group;
    let is_direct = Path::on_torus(algorithm, dx * dy, len) == Path::Direct;
    let key = (collective, is_direct, order, [dx, dy, me, len]);
    if let Some(tasks) = links.made.get(&key) {
        return Arc::clone(tasks);
    }
    let mut schedule = match (collective, is_direct) {
        (Collective::ReduceScatter | Collective::ReduceScatterTwice, false) => schedules::reduce_scatter(dx, dy, me),
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
    if links.made.len() == MADE_MAX {
        links.made.clear();
    }
    let tasks = Arc::new(Tasks::new(&schedule, len, SLICE_ELEMENTS).in_order(order));
    links.made.insert(key, Arc::clone(&tasks));
    tasks
}

fn add(own: &mut [f32], other: &[f32]) {
    for (own, other) in own.iter_mut().zip(other) {
        *own += other;
    }
}

/// Leaves the sum over the group of chunk `dp_x * dy + dp_y` with member `dp_y * dx + dp_x`; the other chunks hold parts of sums
/// afterwards. `buf` must divide into as many chunks as the group has members.
pub fn reduce_scatter(
    links: &mut Links,
    group: &Group,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    check_chunks(group, buf);
    run(links, group, Collective::ReduceScatter, channel, buf, scratch)
}

/// Gives every member all chunks, each from the member that [`reduce_scatter`] leaves it with.
pub fn all_gather(links: &mut Links, group: &Group, channel: Channel, buf: &mut [f32]) -> Result<(), CommError> {
    check_chunks(group, buf);
    run(links, group, Collective::AllGather, channel, buf, &mut Vec::new())
}

/// A [`reduce_scatter`] that goes on beside other calls, with the same bits; see [`Links::supply`] and [`Links::land`]. The elements from
/// `final_from` on hold this member's values. With `passes_on` the chunk of the member before is there, too, in the end.
pub fn start_reduce_scatter(
    links: &mut Links,
    group: &Group,
    channel: Channel,
    buf: Vec<f32>,
    final_from: usize,
    passes_on: bool,
) -> Result<(), CommError> {
    check_chunks(group, &buf);
    let collective = if passes_on { Collective::ReduceScatterTwice } else { Collective::ReduceScatter };
    let tasks = tasks_of(links, group, collective, Algorithm::Auto, Order::Descending, buf.len());
    let program = Program::owning(tasks, buf, final_from);
    links.set_off(Flight { program, ranks: group.ranks.clone(), channel, name: "reduce-scatter", is_waited_for: false })
}

/// An [`all_gather`] that goes on beside other calls; see [`Links::await_range`] and [`Links::land`].
pub fn start_all_gather(links: &mut Links, group: &Group, channel: Channel, buf: Vec<f32>) -> Result<(), CommError> {
    check_chunks(group, &buf);
    let tasks = tasks_of(links, group, Collective::AllGather, Algorithm::Auto, Order::Ascending, buf.len());
    let program = Program::owning(tasks, buf, 0);
    links.set_off(Flight { program, ranks: group.ranks.clone(), channel, name: "all-gather", is_waited_for: false })
}

fn check_chunks(group: &Group, buf: &[f32]) {
    let (len, members) = (buf.len(), group.ranks.len());
    assert!(group.dx * group.dy == members, "a group of {members} is no {} x {} torus", group.dx, group.dy);
    assert!(len.is_multiple_of(members), "{len} elements do not divide into {members} chunks; pad the buffer");
}

/// An all-reduce of `len` elements over `n` ranks adds everybody's values in the order of the members; else it has the order of the rings.
pub(crate) fn is_exchanged(n: usize, len: usize) -> bool {
    Path::on_line(n, len) == Path::Exchange
}

/// Sums `buf` over the group; every member gets the same bits. `buf` has the same length everywhere.
pub fn all_reduce_sum(
    links: &mut Links,
    group: &Group,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    let (n, len) = (group.ranks.len(), buf.len());
    if n == 1 {
        return Ok(());
    }
    if Path::on_line(n, len) != Path::Exchange {
        return run(links, group, Collective::AllReduce, channel, buf, scratch);
    }
    if n == 2 {
        // Own + other has the same bits on both sides. The own values are out before they change.
        let (peer, own) = (group.ranks[1 - group.me], &mut *buf);
        links.run(&mut [Transfer::Send { peer, channel, data: cast_slice(own) }])?;
        return links.run(&mut [Transfer::Add { peer, channel, sum: own }]);
    }
    if scratch.len() < n * len {
        scratch.resize(n * len, 0.0);
    }
    let parts = &mut scratch[..n * len];
    exchange(links, &group.ranks, group.me, channel, cast_slice(buf), cast_slice_mut(parts))?;
    parts[group.me * len..][..len].copy_from_slice(buf);
    sum_in_order(parts, buf);
    Ok(())
}

/// [`reduce_scatter`], then [`all_gather`], as one: for measurements of a torus. Every member gets the same bits.
pub fn all_reduce_torus(
    links: &mut Links,
    group: &Group,
    algorithm: Algorithm,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    run_by(algorithm, links, group, Collective::AllReduce, channel, buf, scratch)
}

/// `out (len) = sum over the members of parts (n, len)`, member 0 first.
fn sum_in_order(parts: &[f32], out: &mut [f32]) {
    let len = out.len();
    for start in (0..len).step_by(SUM_BLOCK) {
        let end = (start + SUM_BLOCK).min(len);
        let out = &mut out[start..end];
        for (member, part) in parts.chunks_exact(len).enumerate() {
            if member == 0 { out.copy_from_slice(&part[start..end]) } else { add(out, &part[start..end]) }
        }
    }
}

/// Everyone to everyone in one step, by the schedule of [`schedules::all_gather_direct`]: member `i`'s bytes land in slot `i` of `slots
/// (n, own.len())`. The slot of this rank is left alone.
pub(super) fn exchange(
    links: &mut Links,
    ranks: &[usize],
    me: usize,
    channel: Channel,
    own: &[u8],
    slots: &mut [u8],
) -> Result<(), CommError> {
    assert_eq!(slots.len(), ranks.len() * own.len(), "one slot for each member");
    if own.is_empty() {
        return Ok(());
    }
    let mut slots: Vec<Option<&mut [u8]>> = slots.chunks_exact_mut(own.len()).map(Some).collect();
    for Step { sends, recvs, .. } in &schedules::all_gather_direct(ranks.len(), 1, me).steps {
        let sends = sends.iter().map(|send| Transfer::Send { peer: ranks[send.to], channel, data: own });
        let recvs = recvs.iter().filter_map(|recv| {
            let buf = slots[recv.chunks.start].take()?;
            Some(Transfer::Recv { peer: ranks[recv.from], channel, buf })
        });
        links.run(&mut sends.chain(recvs).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The values of all of `ranks`, `(ranks.len(), own.len())`, in their order. `ranks` holds this rank.
pub fn all_gather_f64(
    links: &mut Links,
    ranks: &[usize],
    channel: Channel,
    own: &[f64],
) -> Result<Vec<f64>, CommError> {
    let Group { me, .. } = Group::line(ranks.to_vec(), links.rank());
    let mut all = vec![0.0; ranks.len() * own.len()];
    exchange(links, ranks, me, channel, cast_slice(own), cast_slice_mut(&mut all))?;
    all[me * own.len()..][..own.len()].copy_from_slice(own);
    Ok(all)
}

/// Sums `values` over the whole torus: by row, then by column, each in order, so every rank gets the same bits.
///
/// **The commit point (T-2):** who has the result has heard from its column, each of which had heard from its row. So it knows that all
/// ranks have come this far.
pub fn global_sum(links: &mut Links, shape: &Shape, values: &mut [f64]) -> Result<(), CommError> {
    global_sum_with(links, shape, values, || {})
}

/// [`global_sum`] that calls `between` after the rows and before the columns, for tests of what happens to a rank there.
pub fn global_sum_with(
    links: &mut Links,
    shape: &Shape,
    values: &mut [f64],
    mut between: impl FnMut(),
) -> Result<(), CommError> {
    assert!(!values.is_empty(), "a sum of nothing would wait for nobody and commit nothing");
    let rank = links.rank();
    for line in [shape.row(rank), shape.column(rank)] {
        let all = all_gather_f64(links, &line, Channel::Global, values)?;
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.chunks_exact(all.len() / line.len()).map(|of_rank| of_rank[i]).sum();
        }
        between();
    }
    Ok(())
}

/// What the model needs of its TP group.
pub struct TpGroup<'a> {
    links: &'a mut Links,
    group: &'a Group,
    scratch: &'a mut Vec<f32>,
}

impl<'a> TpGroup<'a> {
    /// `scratch` is kept by the caller, so that nothing is allocated once it has grown.
    pub fn new(links: &'a mut Links, group: &'a Group, scratch: &'a mut Vec<f32>) -> TpGroup<'a> {
        TpGroup { links, group, scratch }
    }

    pub fn links(&mut self) -> &mut Links {
        self.links
    }

    /// Sums `buf` over these of the group's members, this one included.
    pub fn sum_over(&mut self, members: Range<usize>, buf: &mut [f32]) -> Result<(), CommError> {
        let group = Group::line(self.group.ranks[members].to_vec(), self.links.rank());
        all_reduce_sum(self.links, &group, Channel::Tp, buf, self.scratch)
    }
}

impl TpComm for TpGroup<'_> {
    type Error = CommError;

    fn size(&self) -> usize {
        self.group.ranks.len()
    }

    fn rank(&self) -> usize {
        self.group.me
    }

    fn all_reduce(&mut self, buf: &mut [f32]) -> Result<(), CommError> {
        all_reduce_sum(self.links, self.group, Channel::Tp, buf, self.scratch)
    }

    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<(), CommError> {
        let Group { ranks, me, .. } = self.group;
        exchange(self.links, ranks, *me, Channel::Tp, cast_slice(own), cast_slice_mut(all))?;
        all[me * own.len()..][..own.len()].copy_from_slice(own);
        Ok(())
    }

    fn all_reduce_on<D: Device>(&mut self, device: &D, buf: &mut D::Buf) -> Result<(), CommError> {
        match device.comm().filter(|comm| comm.carries_tp()) {
            Some(comm) => comm.all_reduce(buf),
            None => all_reduce_through_host(self, device, buf),
        }
    }

    fn all_gather_on<D: Device>(&mut self, device: &D, own: &D::Buf, all: &mut D::Buf) -> Result<(), CommError> {
        match device.comm().filter(|comm| comm.carries_tp()) {
            Some(comm) => comm.all_gather(own, all),
            None => all_gather_through_host(self, device, own, all),
        }
    }

    fn progress(&mut self) -> Result<(), CommError> {
        if self.links.is_in_flight() { self.links.progress() } else { Ok(()) }
    }
}
