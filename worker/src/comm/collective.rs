//! Executes collective schedules over links, and the few collectives that training needs.
//!
//! The schedules of [`toroid_torus::collective`] decide who sends what when; here they only move. Each sum has one order, so every rank has
//! the same bits (T-4): over replicas that of the rings, which the direct schedules keep; over a TP group that of the members, so that what a
//! row sums to does not depend on where in a buffer it lies, and is the same where it is decoded (M-5).

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::collective::{self as schedules, Order, Step};
use toroid_torus::geometry::Shape;

use super::program::{Flight, Program};
use super::schedule::{Algorithm, Collective, Group, Path};
use super::{Channel, CommError, Links, Transfer};
use crate::device::Device;
use crate::model::{TpComm, all_gather_through_host, all_reduce_through_host};

/// Elements that a sum in member order takes at a time, so that they stay in the first-level cache.
const SUM_BLOCK: usize = 1024;

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
    let tasks = links.made.tasks(group, collective, algorithm, Order::Schedule, buf.len());
    links.execute(&mut Program::new(tasks, buf, scratch), &group.ranks, channel)
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
    let tasks = links.made.tasks(group, collective, Algorithm::Auto, Order::Descending, buf.len());
    let program = Program::owning(tasks, buf, final_from);
    links.set_off(Flight { program, ranks: group.ranks.clone(), channel, name: "reduce-scatter", is_waited_for: false })
}

/// An [`all_gather`] that goes on beside other calls; see [`Links::await_range`] and [`Links::land`].
pub fn start_all_gather(links: &mut Links, group: &Group, channel: Channel, buf: Vec<f32>) -> Result<(), CommError> {
    check_chunks(group, &buf);
    let tasks = links.made.tasks(group, Collective::AllGather, Algorithm::Auto, Order::Ascending, buf.len());
    let program = Program::owning(tasks, buf, 0);
    links.set_off(Flight { program, ranks: group.ranks.clone(), channel, name: "all-gather", is_waited_for: false })
}

fn check_chunks(group: &Group, buf: &[f32]) {
    let (len, members) = (buf.len(), group.ranks.len());
    assert!(group.dx * group.dy == members, "a group of {members} is no {} x {} torus", group.dx, group.dy);
    assert!(len.is_multiple_of(members), "{len} elements do not divide into {members} chunks; pad the buffer");
}

/// Sums `buf` over the group, every element in the order of the members; every member gets the same bits. `buf` has the same length everywhere.
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
    match Path::on_line(n, len) {
        Path::Exchange => {}
        Path::Chunks => return sum_by_chunks(links, group, channel, buf, scratch),
        Path::Direct | Path::Ring => return run(links, group, Collective::AllReduce, channel, buf, scratch),
    }
    if n == 2 {
        // Own + other has the same bits on both sides. The own values are out before they change.
        let (peer, own) = (group.ranks[1 - group.me], &mut *buf);
        links.run(&mut [Transfer::Send { peer, channel, data: cast_slice(own) }])?;
        return links.run(&mut [Transfer::Add { peer, channel, sum: own }]);
    }
    let parts = room(scratch, n * len);
    exchange(links, &group.ranks, group.me, channel, cast_slice(buf), cast_slice_mut(parts))?;
    parts[group.me * len..][..len].copy_from_slice(buf);
    sum_in_order(parts, buf);
    Ok(())
}

/// The first `len` elements of `scratch`, which grows where it has fewer.
fn room(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

/// Each member adds the values that all have of its chunk, in the order of the members, and gives the sum to the others.
fn sum_by_chunks(
    links: &mut Links,
    group: &Group,
    channel: Channel,
    buf: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<(), CommError> {
    let Group { ranks, me, .. } = group;
    let (n, me, len) = (ranks.len(), *me, buf.len());
    let chunk = |member: usize| schedules::chunk_range(len, n, &(member..member + 1));
    let (own, others) = (chunk(me), (1..n).map(|distance| (me + distance) % n));
    let parts = room(scratch, n * own.len());
    let sends =
        others.clone().map(|peer| Transfer::Send { peer: ranks[peer], channel, data: cast_slice(&buf[chunk(peer)]) });
    let recvs = parts.chunks_exact_mut(own.len()).enumerate().filter(|(member, _)| *member != me);
    let recvs = recvs.map(|(member, part)| Transfer::Recv { peer: ranks[member], channel, buf: cast_slice_mut(part) });
    links.run(&mut sends.chain(recvs).collect::<Vec<_>>())?;
    parts[me * own.len()..][..own.len()].copy_from_slice(&buf[own.clone()]);
    sum_in_order(parts, &mut buf[own.clone()]);

    let (before, rest) = buf.split_at_mut(own.start);
    let (sum, behind) = rest.split_at_mut(own.len());
    let sum: &[f32] = sum;
    let sends = others.map(|peer| Transfer::Send { peer: ranks[peer], channel, data: cast_slice(sum) });
    let mut recvs = Vec::with_capacity(n - 1);
    for (mut rest, members) in [(before, 0..me), (behind, me + 1..n)] {
        for member in members {
            let part = rest.split_off_mut(..chunk(member).len()).expect("the chunks are the buffer");
            recvs.push(Transfer::Recv { peer: ranks[member], channel, buf: cast_slice_mut(part) });
        }
    }
    links.run(&mut sends.chain(recvs).collect::<Vec<_>>())
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
