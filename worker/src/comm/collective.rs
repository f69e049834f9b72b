//! Executes collective schedules over links, and the few collectives that training needs.
//!
//! The schedules of [`toroid_torus::collective`] decide who sends what when; here they only move. Each sum has one order:
//! in a ring it is that of the schedule (own part plus the part that came), in a direct exchange that of the members. Both depend on
//! the length of the buffer and the shape of the group, so every rank has the same bits (T-4).

use std::collections::BTreeMap;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::collective::{self as schedules, Op, Schedule, Step, chunk_range};
use toroid_torus::geometry::Shape;

use super::{Channel, CommError, Links, Transfer};
use crate::model::TpComm;

/// Up to this size an all-reduce of more than two ranks is one direct exchange, above it a ring.
///
/// Direct, each of `n` ranks sends `(n - 1) B` bytes in one step; a ring sends `2 (n - 1) / n B` in `2 (n - 1)` steps. With 10 to 20
/// microseconds a step and 3 GB/s (what TCP on one host gives) they are even at about 200 KB for `n = 4` and 150 KB for `n = 8`.
const DIRECT_BYTES_MAX: usize = 128 << 10;

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

/// Executes `schedule`, which is that of member `group.me`, on `buf`, which it cuts into `schedule.num_chunks` chunks. `scratch` holds
/// what is on its way into a sum.
pub fn run_schedule(
    links: &mut Links,
    group: &Group,
    schedule: &Schedule,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    for step in &schedule.steps {
        run_step(links, group, step, schedule.num_chunks, channel, buf, scratch)?;
    }
    Ok(())
}

fn run_step(
    links: &mut Links,
    group: &Group,
    step: &Step,
    num_chunks: usize,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    let len = buf.len();
    let range = |chunks: &Range<usize>| chunk_range(len, num_chunks, chunks);
    let adds = || step.recvs.iter().filter(|recv| recv.op == Op::Add).map(|recv| (recv.from, range(&recv.chunks)));
    let copies = || step.recvs.iter().filter(|recv| recv.op == Op::Copy).map(|recv| (recv.from, range(&recv.chunks)));
    let sends = || step.sends.iter().map(|send| (send.to, range(&send.chunks)));

    let staged: usize = adds().map(|(_, range)| range.len()).sum();
    if scratch.len() < staged {
        scratch.resize(staged, 0.0);
    }
    let (read, mut written) = carve(buf, sends().map(|(_, range)| range), copies().map(|(_, range)| range));
    let mut transfers = Vec::with_capacity(step.sends.len() + step.recvs.len());
    for (to, range) in sends() {
        let data = cast_slice(read[&(range.start, range.end)]);
        transfers.push(Transfer::Send { peer: group.ranks[to], channel, data });
    }
    for (from, range) in copies() {
        let Some(part) = written.remove(&(range.start, range.end)) else { unreachable!("carved above") };
        transfers.push(Transfer::Recv { peer: group.ranks[from], channel, buf: cast_slice_mut(part) });
    }
    let mut free = &mut scratch[..staged];
    for (from, range) in adds() {
        let (part, rest) = free.split_at_mut(range.len());
        free = rest;
        transfers.push(Transfer::Recv { peer: group.ranks[from], channel, buf: cast_slice_mut(part) });
    }
    links.run(&mut transfers)?;
    drop(transfers);

    let mut came = &scratch[..staged];
    for (_, range) in adds() {
        let (part, rest) = came.split_at(range.len());
        came = rest;
        add(&mut buf[range], part);
    }
    Ok(())
}

/// By first element and end.
type Parts<S> = BTreeMap<(usize, usize), S>;

/// Borrows parts of `buf`, some to read (the same one as often as one likes) and some to write. Parts that overlap are a bug of
/// the schedule.
fn carve(
    buf: &mut [f32],
    read: impl Iterator<Item = Range<usize>>,
    written: impl Iterator<Item = Range<usize>>,
) -> (Parts<&[f32]>, Parts<&mut [f32]>) {
    let key = |range: Range<usize>| (range.start, range.end);
    let mut wanted: Vec<((usize, usize), bool)> = read.map(|range| (key(range), false)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.extend(written.map(|range| (key(range), true)));
    wanted.sort_unstable();
    let (mut shared, mut exclusive) = (Parts::new(), Parts::new());
    let (mut rest, mut at) = (buf, 0);
    for ((start, end), write) in wanted {
        assert!(start >= at, "a schedule moves elements {start}..{end} and others up to {at} in the same step");
        let (_, behind) = std::mem::take(&mut rest).split_at_mut(start - at);
        let (part, behind) = behind.split_at_mut(end - start);
        (rest, at) = (behind, end);
        if write {
            exclusive.insert((start, end), part);
        } else {
            shared.insert((start, end), &*part);
        }
    }
    (shared, exclusive)
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
    run_schedule(links, group, &schedules::reduce_scatter(group.dx, group.dy, group.me), channel, buf, scratch)
}

/// Gives every member all chunks, each from the member that [`reduce_scatter`] leaves it with.
pub fn all_gather(links: &mut Links, group: &Group, channel: Channel, buf: &mut [f32]) -> Result<(), CommError> {
    check_chunks(group, buf);
    let schedule = schedules::all_gather(group.dx, group.dy, group.me);
    run_schedule(links, group, &schedule, channel, buf, &mut Vec::new())
}

fn check_chunks(group: &Group, buf: &[f32]) {
    let (len, members) = (buf.len(), group.ranks.len());
    assert!(group.dx * group.dy == members, "a group of {members} is no {} x {} torus", group.dx, group.dy);
    assert!(len.is_multiple_of(members), "{len} elements do not divide into {members} chunks; pad the buffer");
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
    if n > 2 && size_of_val(buf) > DIRECT_BYTES_MAX {
        return run_schedule(links, group, &schedules::all_reduce(n, 1, group.me), channel, buf, scratch);
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
fn exchange(
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
    for Step { sends, recvs } in &schedules::all_gather_direct(ranks.len(), 1, me).steps {
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
}
