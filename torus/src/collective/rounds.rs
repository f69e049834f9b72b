//! A schedule as rounds: what is started together, for a carrier that runs one group of transfers after another (NCCL on a stream).
//!
//! ```text
//!   slices from the end of the buffer    round 0        round 1        round 2           slice j in step s: round j + s
//!                              slice 0   step 0         step 1         step 2
//!                              slice 1                  step 0         step 1
//! ```
//!
//! [`Run`](super::Run) starts a transfer as soon as it can go, which only both ends of a link have to agree on. Groups on a stream block those
//! behind them, so here everybody agrees on all: a transfer's round depends on its slice and its step alone.
//!
//! Invariants:
//!
//! - **R-1** both ends of a transfer have it in the same round, so members that run round after round do not deadlock.
//! - **R-2** what a slice goes through are the steps in their order, so sums have the order of the schedule (C-2).
//! - **R-3** within a round nothing is read that another transfer of it writes: all may run at once (C-3).
//!
//! Deliberately absent: steps that add several values to one chunk. Direct schedules bring nothing where a group runs everything at once.

use std::ops::Range;

use super::{Op, Order, Schedule, chunk_range};

/// To or from a member, elements of the buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub member: usize,
    pub range: Range<usize>,
}

/// What a member moves at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Round {
    pub sends: Vec<Piece>,
    pub recvs: Vec<(Piece, Op)>,
}

impl Round {
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.recvs.is_empty()
    }

    /// Elements that are added to what is there.
    pub fn num_added(&self) -> usize {
        self.recvs.iter().filter(|(_, op)| *op == Op::Add).map(|(piece, _)| piece.range.len()).sum()
    }

    /// The first element that it touches; `None` where it is empty.
    pub fn first_element(&self) -> Option<usize> {
        let pieces = self.sends.iter().chain(self.recvs.iter().map(|(piece, _)| piece));
        pieces.map(|piece| piece.range.start).min()
    }

    /// The first element that it writes.
    pub fn first_written(&self) -> Option<usize> {
        self.recvs.iter().map(|(piece, _)| piece.range.start).min()
    }
}

/// Cuts `schedule` on a buffer of `num_elements` into rounds, in slices of at most `max_elements`. In [`Order::Schedule`] a round is a step, whole.
pub fn rounds(schedule: &Schedule, num_elements: usize, max_elements: usize, order: Order) -> Vec<Round> {
    assert!(max_elements > 0, "slices of no elements");
    let num_chunks = schedule.num_chunks;
    let per_chunk = match order {
        Order::Schedule => 1,
        Order::Ascending | Order::Descending => num_elements.div_ceil(num_chunks).div_ceil(max_elements).max(1),
    };
    let num_slices = num_chunks * per_chunk;
    let before = |slice: usize| match order {
        Order::Schedule => 0,
        Order::Ascending => slice,
        Order::Descending => num_slices - 1 - slice,
    };
    let elements = |slice: usize| {
        let chunk = slice / per_chunk;
        let whole = chunk_range(num_elements, num_chunks, &(chunk..chunk + 1));
        let part = slice % per_chunk;
        let part = chunk_range(whole.len(), per_chunk, &(part..part + 1));
        whole.start + part.start..whole.start + part.end
    };
    let mut rounds = vec![Round::default(); schedule.steps.len() + num_slices];
    for (number, step) in schedule.steps.iter().enumerate() {
        let cut = |chunks: &Range<usize>, member: usize| {
            let slices = chunks.start * per_chunk..chunks.end * per_chunk;
            let pieces = slices.map(move |slice| (number + before(slice), Piece { member, range: elements(slice) }));
            pieces.filter(|(_, piece)| !piece.range.is_empty()).collect::<Vec<_>>()
        };
        for send in &step.sends {
            cut(&send.chunks, send.to).into_iter().for_each(|(round, piece)| rounds[round].sends.push(piece));
        }
        for recv in &step.recvs {
            cut(&recv.chunks, recv.from)
                .into_iter()
                .for_each(|(round, piece)| rounds[round].recvs.push((piece, recv.op)));
        }
    }
    if order == Order::Schedule {
        rounds.iter_mut().for_each(Round::join);
    }
    while rounds.last().is_some_and(Round::is_empty) {
        rounds.pop();
    }
    rounds
}

impl Round {
    /// Chunks that lie side by side are one transfer.
    fn join(&mut self) {
        self.sends.dedup_by(|next, piece| piece.join(next));
        self.recvs.dedup_by(|(next, next_op), (piece, op)| op == next_op && piece.join(next));
    }
}

impl Piece {
    fn join(&mut self, next: &Piece) -> bool {
        let is_next = self.member == next.member && self.range.end == next.range.start;
        if is_next {
            self.range.end = next.range.end;
        }
        is_next
    }
}
