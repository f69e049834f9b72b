//! Rounds of transfers on a stream, and what is added between them.
//!
//! The order of every sum is that of the links' collectives: [`rounds`] of the same schedules over replicas, the order of the members over a TP
//! group. So which of the two runs changes no bit (T-4).
//!
//! An all-gather is rounds, too, and not `ncclAllGather`: that gathers a line as a whole, while the first layer can begin with the first slices.

use std::sync::Arc;

use toroid_torus::collective::{self as schedules, Op, Order, Piece, Round, rounds};

use super::super::block::at_least;
use super::super::runtime::{DevicePtr, Runtime, Stream};
use super::calls::PointToPoint;
use super::epoch::{State, await_ready};
use super::flight::{Flight, Kind};
use crate::comm::nccl::Line;
use crate::comm::{CommError, Path};

/// Elements that are one transfer in a collective of the DP group: 16 MiB keep links busy, and a layer is several.
const SLICE_ELEMENTS: usize = 4 << 20;

/// Rounds that are kept at most; a job uses a handful.
const MADE_MAX: usize = 64;

const F32: usize = size_of::<f32>();

fn at(buffer: DevicePtr, element: usize) -> DevicePtr {
    buffer + (element * F32) as u64
}

/// Adds to `own`, of so many elements, what others have in their slots, in the order of the members; that of `me` is free.
///
/// # Safety
///
/// There are `n` slots of as many elements.
unsafe fn sum_in_order<R: Runtime>(runtime: &R, slots: DevicePtr, (own, len): (DevicePtr, usize), n: usize, me: usize) {
    let slot = |member: usize| at(slots, member * len);
    // SAFETY: the caller's; the adds come after the copies in the stream.
    unsafe {
        runtime.copy(own, slot(me), len * F32);
        runtime.copy(slot(0), own, len * F32);
        (1..n).for_each(|member| runtime.add(Stream::Compute, slot(member), own, len));
    }
}

impl<R: Runtime> State<R> {
    fn rounds(&mut self, kind: Kind, [dx, dy, me]: [usize; 3], len: usize) -> Arc<Vec<Round>> {
        let key = (kind, [dx, dy, me, len]);
        if self.made.len() == MADE_MAX && !self.made.contains_key(&key) {
            self.made.clear();
        }
        let make = || {
            let (schedule, order) = match kind {
                Kind::AllReduce => (schedules::all_reduce(dx, dy, me), Order::Schedule),
                Kind::Gather => (schedules::all_gather(dx, dy, me), Order::Ascending),
                Kind::Scatter | Kind::ScatterTwice => (schedules::reduce_scatter(dx, dy, me), Order::Descending),
            };
            let mut schedule = schedule;
            if kind == Kind::ScatterTwice {
                schedule.steps.extend(schedules::pass_on_along_lines(dx, dy, me));
            }
            Arc::new(rounds(&schedule, len, SLICE_ELEMENTS, order))
        };
        Arc::clone(self.made.entry(key).or_insert_with(make))
    }

    /// One group of transfers on the communicator of `line`.
    fn exchange(
        &mut self,
        runtime: &R,
        line: Line,
        stream: Stream,
        transfers: &[PointToPoint],
    ) -> Result<(), CommError> {
        if transfers.is_empty() {
            return Ok(());
        }
        let State { members, epoch, rank, failed, .. } = self;
        let (rank, epoch) = (*rank, epoch.as_ref().expect("checked by every caller"));
        let member = members[line as usize].as_mut().expect("a line that carries has a communicator");
        // SAFETY: ranges of buffers that live until the stream has passed, see `DeviceComm`, and of scratch.
        let asked = unsafe { runtime.exchange(&member.communicator, stream, transfers) };
        let taken = asked.map_err(|why| CommError::Nccl { line, rank, why });
        member.last = Some(Arc::new(runtime.record(stream)));
        let result = taken.and_then(|()| await_ready(runtime, member, epoch, line, rank));
        // Recorded again: NCCL may have given it to the stream meanwhile only.
        member.last = Some(Arc::new(runtime.record(stream)));
        if let Err(error) = &result {
            failed.get_or_insert(error.clone());
            self.abort_what_hangs(runtime);
        }
        result
    }

    /// A round of a collective whose members are found on `lines`; `scratch` has room for what is added.
    fn run_round(
        &mut self,
        runtime: &R,
        round: &Round,
        buffer: DevicePtr,
        scratch: DevicePtr,
        stream: Stream,
        lines: &[Line],
    ) -> Result<(), CommError> {
        let mut groups: Vec<Vec<PointToPoint>> = vec![Vec::new(); lines.len()];
        let mut added = Vec::new();
        let mut used = 0;
        for piece in &round.sends {
            let (line, peer) = self.find(lines, piece);
            let bytes = piece.range.len() * F32;
            groups[line].push(PointToPoint::Send { peer, from: at(buffer, piece.range.start), bytes });
        }
        for (piece, op) in &round.recvs {
            let (line, peer) = self.find(lines, piece);
            let (into, len) = (at(buffer, piece.range.start), piece.range.len());
            let to = match op {
                Op::Copy => into,
                Op::Add => {
                    let to = at(scratch, used);
                    used += len;
                    added.push((to, into, len));
                    to
                }
            };
            groups[line].push(PointToPoint::Recv { peer, to, bytes: len * F32 });
        }
        for (line, transfers) in lines.iter().zip(groups) {
            self.exchange(runtime, *line, stream, &transfers)?;
        }
        for (x, y, n) in added {
            // SAFETY: what came in scratch, and as many elements of the buffer.
            unsafe { runtime.add(stream, x, y, n) };
        }
        Ok(())
    }

    /// Which of `lines` a member of the group is on, and its index there.
    fn find(&self, lines: &[Line], piece: &Piece) -> (usize, usize) {
        if lines.len() == 1 {
            return (0, piece.member);
        }
        let (x, y) = (piece.member % self.dx, piece.member / self.dx);
        if y == self.dp_rank / self.dx { (0, x) } else { (1, y) }
    }

    pub fn all_reduce(&mut self, runtime: &R, buffer: DevicePtr, len: usize) -> Result<(), CommError> {
        self.check(runtime)?;
        let member = self.members[Line::Tp as usize].as_ref().expect("the TP group has a communicator");
        let (n, me) = (member.ranks.len(), member.index);
        let stream = Stream::Compute;
        match Path::on_line(n, len) {
            Path::Exchange => return self.sum_exchanged(runtime, buffer, len, n, me),
            Path::Chunks => return self.sum_by_chunks(runtime, buffer, len, n, me),
            Path::Direct | Path::Ring => {}
        }
        let all = self.rounds(Kind::AllReduce, [n, 1, me], len);
        let room = all.iter().map(Round::num_added).max().unwrap_or(0);
        let scratch = at_least(runtime, &mut self.scratch[0], room * F32);
        all.iter().try_for_each(|round| self.run_round(runtime, round, buffer, scratch, stream, &[Line::Tp]))
    }

    /// Everybody's values at everybody, added in the order of the members.
    fn sum_exchanged(
        &mut self,
        runtime: &R,
        buffer: DevicePtr,
        len: usize,
        n: usize,
        me: usize,
    ) -> Result<(), CommError> {
        if len == 0 {
            return Ok(());
        }
        let slots = at_least(runtime, &mut self.scratch[0], n * len * F32);
        let slot = |member: usize| at(slots, member * len);
        self.gather_slots(runtime, (buffer, len), slots, n, me)?;
        // SAFETY: slots and buffer have `len` elements each.
        unsafe {
            if n == 2 {
                // Own + other has the same bits on both sides.
                runtime.add(Stream::Compute, slot(1 - me), buffer, len);
            } else {
                sum_in_order(runtime, slots, (buffer, len), n, me);
            }
        }
        Ok(())
    }

    /// Each member adds the values that all have of its chunk, in the order of the members, and gives the sum to the others.
    fn sum_by_chunks(
        &mut self,
        runtime: &R,
        buffer: DevicePtr,
        len: usize,
        n: usize,
        me: usize,
    ) -> Result<(), CommError> {
        let chunk = |member: usize| schedules::chunk_range(len, n, &(member..member + 1));
        let of = |member: usize| (at(buffer, chunk(member).start), chunk(member).len() * F32);
        let ((own, bytes), own_len) = (of(me), chunk(me).len());
        let slots = at_least(runtime, &mut self.scratch[0], n * bytes);
        let slot = |member: usize| at(slots, member * own_len);
        let others = || (1..n).map(|distance| (me + distance) % n);
        let to_sum = others().flat_map(|peer| {
            let (from, bytes_of_peer) = of(peer);
            [
                PointToPoint::Send { peer, from, bytes: bytes_of_peer },
                PointToPoint::Recv { peer, to: slot(peer), bytes },
            ]
        });
        self.exchange(runtime, Line::Tp, Stream::Compute, &to_sum.collect::<Vec<_>>())?;
        // SAFETY: slots and the own chunk have `own_len` elements each.
        unsafe { sum_in_order(runtime, slots, (own, own_len), n, me) };
        let sums = others().flat_map(|peer| {
            let (to, bytes_of_peer) = of(peer);
            [PointToPoint::Send { peer, from: own, bytes }, PointToPoint::Recv { peer, to, bytes: bytes_of_peer }]
        });
        self.exchange(runtime, Line::Tp, Stream::Compute, &sums.collect::<Vec<_>>())
    }

    /// The others' values in their slots.
    fn gather_slots(
        &mut self,
        runtime: &R,
        own: (DevicePtr, usize),
        slots: DevicePtr,
        n: usize,
        me: usize,
    ) -> Result<(), CommError> {
        let (from, bytes) = (own.0, own.1 * F32);
        let others = (1..n).map(|distance| (me + distance) % n);
        let transfers = others.flat_map(|peer| {
            let to = at(slots, peer * own.1);
            [PointToPoint::Send { peer, from, bytes }, PointToPoint::Recv { peer, to, bytes }]
        });
        self.exchange(runtime, Line::Tp, Stream::Compute, &transfers.collect::<Vec<_>>())
    }

    pub fn all_gather(
        &mut self,
        runtime: &R,
        own: (DevicePtr, usize),
        all: (DevicePtr, usize),
    ) -> Result<(), CommError> {
        self.check(runtime)?;
        let member = self.members[Line::Tp as usize].as_ref().expect("the TP group has a communicator");
        let (n, me) = (member.ranks.len(), member.index);
        assert_eq!(all.1, n * own.1, "one slot for each member");
        if own.1 == 0 {
            return Ok(());
        }
        // SAFETY: the slot has as many elements.
        unsafe { runtime.copy(own.0, at(all.0, me * own.1), own.1 * F32) };
        self.gather_slots(runtime, own, all.0, n, me)
    }

    fn set_off(&mut self, runtime: &R, kind: Kind, buffer: DevicePtr, len: usize) -> Result<(), CommError> {
        self.check(runtime)?;
        assert!(self.flight.is_none(), "a collective of the DP group is on its way already");
        let (dx, dy, me) = (self.dx, self.dy, self.dp_rank);
        assert!(len.is_multiple_of(dx * dy), "{len} elements do not divide into {} chunks; pad the buffer", dx * dy);
        let rounds = self.rounds(kind, [dx, dy, me], len);
        self.flight = Some(Flight { kind, rounds, next: 0, buffer, events: Vec::new() });
        Ok(())
    }

    /// Puts the rounds of the flight into the stream as long as `may_start`, after what was asked of the device so far.
    fn advance(&mut self, runtime: &R, may_start: impl Fn(&Round) -> bool) -> Result<(), CommError> {
        let mut flight = self.flight.take().expect("a collective of the DP group is on its way");
        let room = flight.rounds.iter().map(Round::num_added).max().unwrap_or(0);
        let scratch = at_least(runtime, &mut self.scratch[1], room * F32);
        runtime.wait(Stream::Comm, &runtime.record(Stream::Compute));
        let all = Arc::clone(&flight.rounds);
        let mut result = Ok(());
        while let Some(round) = all.get(flight.next).filter(|round| may_start(round)) {
            result = self.run_round(runtime, round, flight.buffer, scratch, Stream::Comm, &[Line::Row, Line::Column]);
            if result.is_err() {
                break;
            }
            if flight.kind == Kind::Gather {
                flight.events.push(runtime.record(Stream::Comm));
            }
            flight.next += 1;
        }
        self.flight = Some(flight);
        result
    }

    pub fn start_gather(&mut self, runtime: &R, buffer: DevicePtr, len: usize) -> Result<(), CommError> {
        self.set_off(runtime, Kind::Gather, buffer, len)?;
        self.advance(runtime, |_| true)
    }

    pub fn await_gathered(&mut self, runtime: &R, end: usize) -> Result<(), CommError> {
        self.check(runtime)?;
        let flight = self.flight.as_ref().expect("a gather is on its way");
        assert!(flight.kind == Kind::Gather, "{:?} is no gather", flight.kind);
        let writes = |round: &Round| round.first_written().is_some_and(|first| first < end);
        if let Some(last) = flight.rounds.iter().rposition(writes) {
            runtime.wait(Stream::Compute, &flight.events[last]);
        }
        Ok(())
    }

    pub fn start_scatter(
        &mut self,
        runtime: &R,
        buffer: DevicePtr,
        len: usize,
        passes_on: bool,
    ) -> Result<(), CommError> {
        // A gather that was awaited is over.
        self.flight = None;
        self.set_off(runtime, if passes_on { Kind::ScatterTwice } else { Kind::Scatter }, buffer, len)
    }

    pub fn supply(&mut self, runtime: &R, buffer: DevicePtr, from: usize) -> Result<(), CommError> {
        self.check(runtime)?;
        let flight = self.flight.as_ref().expect("a reduce-scatter is on its way");
        assert!(flight.buffer == buffer && flight.kind != Kind::Gather, "gradients are those that were named");
        self.advance(runtime, |round| round.first_element().is_none_or(|first| first >= from))
    }
}
