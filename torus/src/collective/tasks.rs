//! A schedule cut into small transfers that wait for each other only where they must.
//!
//! ```text
//!   step 0   send 2   add 1        cut in slices:  send 2a  add 1a   send 2b  add 1b
//!   step 1   send 1   add 0                        send 1a (after add 1a)  add 0a   send 1b (after add 1b) ...
//! ```
//!
//! What came in one step is passed on in the next as soon as its first slice is there, so no link idles between steps. A chunk is cut in
//! *slices* of at most so many elements; where chunks are smaller than that, a transfer of several chunks stays one.
//!
//! Invariants:
//!
//! - Both ends of a transfer cut it the same way, and the tasks between two members keep the order of the schedule.
//! - Tasks that touch the same elements, one of them writing, run in the order of the schedule (C-3 within a step). So every element goes
//!   through the same sums as if the steps ran one by one (C-2), and what is being sent is not written to.
//! - A task waits only for tasks before it, so members that run all that waits for nothing do not deadlock (C-4).
//!
//! An [`Order`] other than the schedule's brings first what is there first, or needed first: gradients become final from the last layer to the
//! first, parameters are needed from the first to the last. It changes when a transfer runs, never what is added to what.
//!
//! Several adds into one chunk within a step are summed in their order and added to the own value last. They need `num_scratch`
//! elements beside the buffer.

use std::cmp::Reverse;
use std::ops::Range;

use super::{Op, Schedule, Step, chunk_range};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To a member.
    Send { to: usize },
    /// From a member, into the buffer.
    Recv { from: usize, op: Op },
    /// From a member, into the scratch elements from `at` on.
    RecvScratch { from: usize, op: Op, at: usize },
    /// Adds the scratch elements from `at` on to the buffer.
    Fold { at: usize },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub action: Action,
    /// Elements of the buffer; for [`Action::RecvScratch`] those that it will be added to.
    pub range: Range<usize>,
    /// So many tasks must be done before.
    pub num_before: usize,
    /// Which wait for this one.
    pub after: Vec<usize>,
}

/// The transfers of one member, in the order in which they are to be started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tasks {
    pub tasks: Vec<Task>,
    pub num_scratch: usize,
}

/// In which order the transfers of a member are started; the same at all members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Step by step: every link is busy from the beginning.
    Schedule,
    /// The beginning of the buffer first, for all-gathers.
    Ascending,
    /// The end of the buffer first, for reduce-scatters.
    Descending,
}

/// What was last done to one slice of a chunk.
#[derive(Clone, Default)]
struct Cell {
    write: Option<usize>,
    /// Since that write.
    reads: Vec<usize>,
}

impl Tasks {
    /// Cuts `schedule` on a buffer of `num_elements`; `max_elements` in a slice. What moves nothing is left out.
    pub fn new(schedule: &Schedule, num_elements: usize, max_elements: usize) -> Tasks {
        assert!(max_elements > 0, "slices of no elements");
        let num_chunks = schedule.num_chunks;
        let per_chunk = num_elements.div_ceil(num_chunks).div_ceil(max_elements).max(1);
        let cutter = Cutter { num_chunks, num_elements, per_chunk };
        let mut cells = vec![Cell::default(); num_chunks * per_chunk];
        let mut made = Tasks::default();
        for step in &schedule.steps {
            for send in &step.sends {
                for piece in cutter.cut(&send.chunks, step.first) {
                    let before = read(&mut cells[piece.cells], made.tasks.len());
                    made.push(Action::Send { to: send.to }, piece.elements, before);
                }
            }
            match summed_chunks(step) {
                Some(chunks) => made.push_sum(step, &chunks, cutter, &mut cells),
                None => {
                    for recv in &step.recvs {
                        for piece in cutter.cut(&recv.chunks, step.first) {
                            let before = write(&mut cells[piece.cells], made.tasks.len());
                            made.push(Action::Recv { from: recv.from, op: recv.op }, piece.elements, before);
                        }
                    }
                }
            }
        }
        made
    }

    /// The same tasks in another order.
    ///
    /// By the end of their ranges, equal ones as they were. A range that holds others, a super-chunk of small chunks, comes before them where
    /// the schedule has it before them (reduce-scatter, descending) and after them where it has it after them (all-gather, ascending); so a
    /// task still waits only for tasks before it, and both ends of a link have the same order.
    pub fn in_order(self, order: Order) -> Tasks {
        let mut sorted: Vec<usize> = (0..self.tasks.len()).collect();
        match order {
            Order::Schedule => {}
            Order::Ascending => sorted.sort_by_key(|&task| self.tasks[task].range.end),
            Order::Descending => sorted.sort_by_key(|&task| Reverse(self.tasks[task].range.end)),
        }
        let mut place = vec![0; sorted.len()];
        sorted.iter().enumerate().for_each(|(new, &old)| place[old] = new);
        let mut old: Vec<Option<Task>> = self.tasks.into_iter().map(Some).collect();
        let moved = sorted.into_iter().filter_map(|task| old[task].take());
        let renumbered = moved.map(|task| Task { after: task.after.iter().map(|&t| place[t]).collect(), ..task });
        Tasks { tasks: renumbered.collect(), num_scratch: self.num_scratch }
    }

    /// The receives of `step`, which all add to `chunks`, through scratch elements that no other step uses.
    fn push_sum(&mut self, step: &Step, chunks: &Range<usize>, cutter: Cutter, cells: &mut [Cell]) {
        let whole = chunk_range(cutter.num_elements, cutter.num_chunks, chunks);
        let scratch = self.num_scratch;
        self.num_scratch += whole.len();
        let mut scratch_cells = vec![Cell::default(); chunks.len() * cutter.per_chunk];
        let first = chunks.start * cutter.per_chunk;
        let place = |piece: &Piece| {
            let at = scratch + piece.elements.start - whole.start;
            (at, piece.cells.start - first..piece.cells.end - first)
        };
        for (number, recv) in step.recvs.iter().enumerate() {
            let op = if number == 0 { Op::Copy } else { Op::Add };
            for piece in cutter.cut(chunks, step.first) {
                let (at, cells) = place(&piece);
                let before = write(&mut scratch_cells[cells], self.tasks.len());
                self.push(Action::RecvScratch { from: recv.from, op, at }, piece.elements, before);
            }
        }
        for piece in cutter.cut(chunks, step.first) {
            let (at, of_scratch) = place(&piece);
            let index = self.tasks.len();
            let mut before = read(&mut scratch_cells[of_scratch], index);
            before.extend(write(&mut cells[piece.cells], index));
            self.push(Action::Fold { at }, piece.elements, before);
        }
    }

    fn push(&mut self, action: Action, range: Range<usize>, mut before: Vec<usize>) {
        before.sort_unstable();
        before.dedup();
        let index = self.tasks.len();
        for &task in &before {
            self.tasks[task].after.push(index);
        }
        self.tasks.push(Task { action, range, num_before: before.len(), after: Vec::new() });
    }
}

/// One transfer, and the cells that it covers.
#[derive(Clone)]
struct Piece {
    elements: Range<usize>,
    cells: Range<usize>,
}

#[derive(Clone, Copy)]
struct Cutter {
    num_chunks: usize,
    num_elements: usize,
    /// Slices of a chunk.
    per_chunk: usize,
}

impl Cutter {
    /// `first` as [`Step::first`].
    fn cut(&self, chunks: &Range<usize>, first: Option<usize>) -> Vec<Piece> {
        let Cutter { num_chunks, num_elements, per_chunk } = *self;
        let range = |chunks: &Range<usize>| chunk_range(num_elements, num_chunks, chunks);
        let slice = |chunk: usize, slice: usize| {
            let whole = range(&(chunk..chunk + 1));
            let part = chunk_range(whole.len(), per_chunk, &(slice..slice + 1));
            let cell = chunk * per_chunk + slice;
            Piece { elements: whole.start + part.start..whole.start + part.end, cells: cell..cell + 1 }
        };
        let mut pieces: Vec<Piece> = if per_chunk == 1 {
            vec![Piece { elements: range(chunks), cells: chunks.clone() }]
        } else {
            let n = chunks.len();
            let in_turn = (0..n).map(|i| chunks.start + first.map_or(i, |first| (first + n - i) % n));
            in_turn.flat_map(|chunk| (0..per_chunk).map(move |s| slice(chunk, s))).collect()
        };
        pieces.retain(|piece| !piece.elements.is_empty());
        pieces
    }
}

/// The chunks that several receives of `step` add to.
fn summed_chunks(step: &Step) -> Option<Range<usize>> {
    let [first, second, ..] = &step.recvs[..] else { return None };
    if first.op != Op::Add || first.chunks != second.chunks {
        return None;
    }
    let all_add = step.recvs.iter().all(|recv| recv.op == Op::Add && recv.chunks == first.chunks);
    assert!(all_add, "a step that sums several adds into one range of chunks receives nothing else: {step}");
    Some(first.chunks.clone())
}

fn read(cells: &mut [Cell], task: usize) -> Vec<usize> {
    let before = cells.iter().filter_map(|cell| cell.write).collect();
    cells.iter_mut().for_each(|cell| cell.reads.push(task));
    before
}

fn write(cells: &mut [Cell], task: usize) -> Vec<usize> {
    let before = cells.iter().flat_map(|cell| cell.reads.iter().copied().chain(cell.write)).collect();
    cells.iter_mut().for_each(|cell| *cell = Cell { write: Some(task), reads: Vec::new() });
    before
}
