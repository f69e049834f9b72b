//! Collectives of a group as data: what each member sends and receives, step by step (design section 3).
//!
//! A group is a `dx` by `dy` torus with member `y * dx + x` at `(x, y)`. The buffer is cut into `n = dx * dy` chunks, and chunk
//! `x * dy + y` belongs to the member at `(x, y)`, which is [`crate::partition::shard_position`]. So the `dy` chunks of a column are
//! one contiguous *super-chunk*, and a row moves super-chunks:
//!
//! ```text
//!              row: super-chunks of dy chunks     column: single chunks       2 x 2, chunk of each member:
//!  reduce-scatter   dx - 1 steps, add          ->   dy - 1 steps, add              (0,0) 0   (1,0) 2
//!  all-gather       dx - 1 steps, copy         <-   dy - 1 steps, copy             (0,1) 1   (1,1) 3
//! ```
//!
//! A row takes the chunks of a super-chunk one by one in the order in which the column can use them, or has them: before a column's
//! reduce-scatter the member's own chunk comes last and those before it first, after its all-gather the own chunk first. So both lines of a member
//! are busy at once where steps overlap ([`Step::first`]).
//!
//! Each is the ring of its line of n: in step s of a reduce-scatter member i sends super-chunk `i - s - 1` to `i + 1` and adds
//! `i - s - 2` from `i - 1`; in step s of an all-gather it sends `i - s` and copies `i - s - 1`, all modulo n (Patarasuk and Yuan,
//! "Bandwidth optimal all-reduce algorithms", 2009).
//!
//! Invariants, cited by the tests:
//!
//! - **C-1**: an all-reduce takes `2(dx-1) + 2(dy-1)` steps and every member sends `2(n-1)/n` of the buffer.
//! - **C-2**: the order of a sum depends on the shape alone, so that it has the same bits whatever the timing.
//! - **C-3**: within a step no two transfers of a member touch the same chunk: what it sends is not what it receives, and all of a step
//!   may run at once. The one exception: the receives of a direct reduce-scatter all add to the member's own chunk, in their order, and
//!   the member's own value comes last.
//! - **C-4**: members that wait for what they receive, and never for what they send, do not deadlock.
//!
//! The *direct* schedules move the same bytes with all members of a line to all others at once: one step a line instead of `n - 1`, for
//! links that are short, or buffers that are small. Sums have the order of the rings, `c + 1, c + 2, ..., c` for chunk c, so which of
//! the two runs changes no bit.
//!
//! A schedule prints as one line a step and is read back by [`FromStr`]:
//!
//! ```text
//! chunks 4
//! send 2..4 to 1, add 0..2 from 1, chunk 1 first
//! send 1..2 to 2, add 0..1 from 2
//! ```
//!
//! Deliberately absent: elements, bytes and links. An executor turns chunks into elements by [`chunk_range`].

mod rounds;
mod run;
mod tasks;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

pub use rounds::{Piece, Round, rounds};
pub use run::Run;
pub use tasks::{Action, Order, Task, Tasks};

/// What the receiver does with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Copy,
    /// Own value + received value.
    Add,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Index of a member in the group.
    pub to: usize,
    pub chunks: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recv {
    /// Index of a member in the group.
    pub from: usize,
    pub chunks: Range<usize>,
    pub op: Op,
}

/// Transfers that run at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    pub sends: Vec<Send>,
    pub recvs: Vec<Recv>,
    /// Which of a transfer's chunks goes first, counted from the beginning of its range; then those before it, around the end. `None`: from
    /// the first to the last.
    pub first: Option<usize>,
}

/// What one member does in a collective.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub num_chunks: usize,
    pub steps: Vec<Step>,
}

/// Leaves the sum over all members in every member's own chunk; other chunks are left with parts of sums.
pub fn reduce_scatter(dx: usize, dy: usize, member: usize) -> Schedule {
    let at = Position::new(dx, dy, member);
    let first = (dy > 1).then(|| (at.y + dy - 1) % dy);
    let row = ring_reduce_scatter(dx, at.x).map(|hop| Step { first, ..Line::row(at).step(hop, Op::Add) });
    let column = ring_reduce_scatter(dy, at.y).map(|hop| Line::column(at).step(hop, Op::Add));
    Schedule { num_chunks: dx * dy, steps: row.chain(column).collect() }
}

/// After a reduce-scatter: every member gives its own chunk to the member after it, which keeps a second copy
/// ([`crate::holders::backup_of`]), in the place of its part of that chunk.
pub fn pass_on(dx: usize, dy: usize, member: usize) -> Step {
    let n = dx * dy;
    let own = |member: usize| {
        let at = Position::new(dx, dy, member);
        let chunk = at.x * dy + at.y;
        chunk..chunk + 1
    };
    if n == 1 {
        return Step::default();
    }
    let before = (member + n - 1) % n;
    step(before, (member + 1) % n, own(member), own(before), Op::Copy)
}

/// [`pass_on`] along rows and columns only: to the right, and what has to go on to the next row then goes down the first column. Two steps.
pub fn pass_on_along_lines(dx: usize, dy: usize, member: usize) -> [Step; 2] {
    let at = Position::new(dx, dy, member);
    let chunk = |x: usize, y: usize| x * dy + y..x * dy + y + 1;
    let (left, right) = ((at.x + dx - 1) % dx, (at.x + 1) % dx);
    let row = Line::row(at);
    let along_row = match dx {
        1 => Step::default(),
        _ => step(row.member(left), row.member(right), chunk(at.x, at.y), chunk(left, at.y), Op::Copy),
    };
    let (above, below) = ((at.y + dy - 1) % dy, (at.y + 1) % dy);
    let column = Line::column(at);
    let along_column = match (at.x, dy) {
        (0, 2..) => {
            step(column.member(above), column.member(below), chunk(dx - 1, at.y), chunk(dx - 1, above), Op::Copy)
        }
        _ => Step::default(),
    };
    [along_row, along_column]
}

/// Spreads every member's own chunk to all.
pub fn all_gather(dx: usize, dy: usize, member: usize) -> Schedule {
    let at = Position::new(dx, dy, member);
    let column = ring_all_gather(dy, at.y).map(|hop| Line::column(at).step(hop, Op::Copy));
    let first = (dy > 1).then_some(at.y);
    let row = ring_all_gather(dx, at.x).map(|hop| Step { first, ..Line::row(at).step(hop, Op::Copy) });
    Schedule { num_chunks: dx * dy, steps: column.chain(row).collect() }
}

/// Leaves the sum over all members in every chunk: [`reduce_scatter`], then [`all_gather`].
pub fn all_reduce(dx: usize, dy: usize, member: usize) -> Schedule {
    let mut schedule = reduce_scatter(dx, dy, member);
    schedule.steps.extend(all_gather(dx, dy, member).steps);
    schedule
}

/// [`reduce_scatter`] in one step a line, everyone to everyone.
pub fn reduce_scatter_direct(dx: usize, dy: usize, member: usize) -> Schedule {
    let at = Position::new(dx, dy, member);
    let lines = [Line::row(at), Line::column(at)];
    let steps = lines.into_iter().filter(|line| line.n > 1).map(|line| Step {
        // Everyone starts with the member after itself, so that they do not all send to member 0 first.
        sends: line.others().map(|i| Send { to: line.member(i), chunks: line.chunks(i) }).collect(),
        recvs: line.others().map(|i| Recv { from: line.member(i), chunks: line.chunks(line.i), op: Op::Add }).collect(),
        first: None,
    });
    Schedule { num_chunks: dx * dy, steps: steps.collect() }
}

/// [`all_gather`] in one step a line, everyone to everyone.
pub fn all_gather_direct(dx: usize, dy: usize, member: usize) -> Schedule {
    let at = Position::new(dx, dy, member);
    let lines = [Line::column(at), Line::row(at)];
    let steps = lines.into_iter().filter(|line| line.n > 1).map(|line| Step {
        sends: line.others().map(|i| Send { to: line.member(i), chunks: line.chunks(line.i) }).collect(),
        recvs: line.others().map(|i| Recv { from: line.member(i), chunks: line.chunks(i), op: Op::Copy }).collect(),
        first: None,
    });
    Schedule { num_chunks: dx * dy, steps: steps.collect() }
}

/// [`reduce_scatter_direct`], then [`all_gather_direct`].
pub fn all_reduce_direct(dx: usize, dy: usize, member: usize) -> Schedule {
    let mut schedule = reduce_scatter_direct(dx, dy, member);
    schedule.steps.extend(all_gather_direct(dx, dy, member).steps);
    schedule
}

/// Elements of `chunks` in a buffer of `num_elements`. Chunks are equal where that divides; otherwise the first ones have one more.
pub fn chunk_range(num_elements: usize, num_chunks: usize, chunks: &Range<usize>) -> Range<usize> {
    assert!(
        chunks.start <= chunks.end && chunks.end <= num_chunks,
        "chunks {chunks:?} of a buffer of {num_chunks} chunks"
    );
    let (len, longer) = (num_elements / num_chunks, num_elements % num_chunks);
    let start = |chunk: usize| chunk * len + chunk.min(longer);
    start(chunks.start)..start(chunks.end)
}

/// What one step of a ring moves: from the member before, to the member after.
struct Hop {
    before: usize,
    after: usize,
    sent: usize,
    received: usize,
}

fn ring_reduce_scatter(n: usize, i: usize) -> impl Iterator<Item = Hop> {
    (0..n - 1).map(move |s| Hop {
        before: (i + n - 1) % n,
        after: (i + 1) % n,
        sent: (i + 2 * n - s - 1) % n,
        received: (i + 2 * n - s - 2) % n,
    })
}

fn ring_all_gather(n: usize, i: usize) -> impl Iterator<Item = Hop> {
    (0..n - 1).map(move |s| Hop {
        before: (i + n - 1) % n,
        after: (i + 1) % n,
        sent: (i + n - s) % n,
        received: (i + n - s - 1) % n,
    })
}

/// A member's place in its group.
#[derive(Clone, Copy)]
struct Position {
    dx: usize,
    dy: usize,
    x: usize,
    y: usize,
}

impl Position {
    fn new(dx: usize, dy: usize, member: usize) -> Position {
        assert!(member < dx * dy, "member {member} of a group of {dx} x {dy}");
        Position { dx, dy, x: member % dx, y: member / dx }
    }
}

/// The row or the column of a member, and what moves along it.
#[derive(Clone, Copy)]
struct Line {
    at: Position,
    is_row: bool,
    n: usize,
    /// This member's index.
    i: usize,
}

impl Line {
    fn row(at: Position) -> Line {
        Line { at, is_row: true, n: at.dx, i: at.x }
    }

    fn column(at: Position) -> Line {
        Line { at, is_row: false, n: at.dy, i: at.y }
    }

    /// The others, from the one after this member on.
    fn others(self) -> impl Iterator<Item = usize> {
        (1..self.n).map(move |distance| (self.i + distance) % self.n)
    }

    fn member(self, i: usize) -> usize {
        let Position { dx, x, y, .. } = self.at;
        if self.is_row { y * dx + i } else { i * dx + x }
    }

    /// The super-chunk of a row's member, or the chunk of a column's.
    fn chunks(self, i: usize) -> Range<usize> {
        let Position { dy, x, .. } = self.at;
        if self.is_row { i * dy..(i + 1) * dy } else { x * dy + i..x * dy + i + 1 }
    }

    /// A hop along it.
    fn step(self, hop: Hop, op: Op) -> Step {
        step(self.member(hop.before), self.member(hop.after), self.chunks(hop.sent), self.chunks(hop.received), op)
    }
}

fn step(from: usize, to: usize, sent: Range<usize>, received: Range<usize>, op: Op) -> Step {
    Step { sends: vec![Send { to, chunks: sent }], recvs: vec![Recv { from, chunks: received, op }], first: None }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Copy => "copy",
            Op::Add => "add",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sends = self.sends.iter().map(|s| format!("send {:?} to {}", s.chunks, s.to));
        let recvs = self.recvs.iter().map(|r| format!("{} {:?} from {}", r.op, r.chunks, r.from));
        let first = self.first.map(|chunk| format!("chunk {chunk} first"));
        f.write_str(&sends.chain(recvs).chain(first).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "chunks {}", self.num_chunks)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the collective schedule is not valid: expected {expected}, found `{found}`")]
pub struct ScheduleParseError {
    /// Counted from 1.
    pub line: usize,
    pub expected: &'static str,
    pub found: String,
}

impl FromStr for Schedule {
    type Err = ScheduleParseError;

    fn from_str(text: &str) -> Result<Schedule, ScheduleParseError> {
        let error = |line, expected, found: &str| ScheduleParseError { line, expected, found: found.to_string() };
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        let num_chunks = header.strip_prefix("chunks ").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
        let num_chunks = num_chunks.ok_or_else(|| error(1, "`chunks N` with N of at least 1", header))?;
        let mut steps = Vec::new();
        for (line, text) in (2..).zip(lines) {
            let mut step = Step::default();
            for transfer in text.split(", ") {
                let expected = "`send A..B to M`, `add A..B from M`, `copy A..B from M` or `chunk C first`";
                step.add(transfer).ok_or_else(|| error(line, expected, transfer))?;
            }
            let in_buffer = |chunks: &Range<usize>| chunks.start < chunks.end && chunks.end <= num_chunks;
            let mut chunks = step.sends.iter().map(|s| &s.chunks).chain(step.recvs.iter().map(|r| &r.chunks));
            if !chunks.all(in_buffer) {
                return Err(error(line, "ranges A..B with A < B and B at most the number of chunks", text));
            }
            let mut lens = step.sends.iter().map(|s| s.chunks.len()).chain(step.recvs.iter().map(|r| r.chunks.len()));
            if lens.any(|len| step.first.is_some_and(|first| first >= len)) {
                return Err(error(line, "a first chunk that all ranges of the step have", text));
            }
            steps.push(step);
        }
        Ok(Schedule { num_chunks, steps })
    }
}

impl Step {
    /// Adds a transfer, or which chunk goes first, in its printed form; `None` where it is neither.
    fn add(&mut self, transfer: &str) -> Option<()> {
        let words: Vec<&str> = transfer.split(' ').collect();
        if let ["chunk", chunk, "first"] = words[..] {
            self.first = Some(chunk.parse().ok()?);
            return Some(());
        }
        let [verb, chunks, direction, member] = words[..] else { return None };
        let (start, end) = chunks.split_once("..")?;
        let (chunks, member) = (start.parse().ok()?..end.parse().ok()?, member.parse().ok()?);
        match (verb, direction) {
            ("send", "to") => self.sends.push(Send { to: member, chunks }),
            ("copy", "from") => self.recvs.push(Recv { from: member, chunks, op: Op::Copy }),
            ("add", "from") => self.recvs.push(Recv { from: member, chunks, op: Op::Add }),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_all_reduce_prints_as_one_line_a_step() {
        let expected = "chunks 4\n\
            send 2..4 to 1, add 0..2 from 1, chunk 1 first\n\
            send 1..2 to 2, add 0..1 from 2\n\
            send 0..1 to 2, copy 1..2 from 2\n\
            send 0..2 to 1, copy 2..4 from 1, chunk 0 first\n";
        assert_eq!(all_reduce(2, 2, 0).to_string(), expected);
        let expected = "chunks 3\nsend 0..1 to 2, add 2..3 from 0\nsend 2..3 to 2, add 1..2 from 0\n";
        assert_eq!(reduce_scatter(3, 1, 1).to_string(), expected);
        let expected = "chunks 3\nsend 2..3 to 0, copy 1..2 from 1\nsend 1..2 to 0, copy 0..1 from 1\n";
        assert_eq!(all_gather(1, 3, 2).to_string(), expected);
        let expected = "chunks 3\nsend 1..2 to 2, send 1..2 to 0, copy 2..3 from 2, copy 0..1 from 0\n";
        assert_eq!(all_gather_direct(3, 1, 1).to_string(), expected);
        let expected = "chunks 3\nsend 2..3 to 2, send 0..1 to 0, add 1..2 from 2, add 1..2 from 0\n";
        assert_eq!(reduce_scatter_direct(3, 1, 1).to_string(), expected);
        assert_eq!(all_reduce(1, 1, 0).to_string(), "chunks 1\n");
    }

    fn check_error(text: &str, line: usize, found: &str) {
        let error = text.parse::<Schedule>().expect_err("the text is no schedule");
        assert_eq!((error.line, error.found.as_str()), (line, found), "{error}");
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        check_error("", 1, "");
        check_error("chunks 0", 1, "chunks 0");
        check_error("4 chunks", 1, "4 chunks");
        check_error("chunks 4\n\n", 2, "");
        check_error("chunks 4\nsend 0..1 to 1, move 0..1 from 1", 2, "move 0..1 from 1");
        check_error("chunks 4\nsend 0..1 from 1", 2, "send 0..1 from 1");
        check_error("chunks 4\nsend 0..1 to 1\nadd 0-1 from 1", 3, "add 0-1 from 1");
        check_error("chunks 4\nsend 0..5 to 1", 2, "send 0..5 to 1");
        check_error("chunks 4\nsend 2..2 to 1", 2, "send 2..2 to 1");
        check_error("chunks 4\nsend 0..2 to 1, chunk 2 first", 2, "send 0..2 to 1, chunk 2 first");
        check_error("chunks 4\nsend 0..2 to 1, chunk one first", 2, "chunk one first");
        let error = "chunks x".parse::<Schedule>().expect_err("x is no number").to_string();
        assert_eq!(
            error,
            "line 1 of the collective schedule is not valid: expected `chunks N` with N of at least 1, found `chunks x`"
        );
    }

    #[test]
    fn the_first_chunks_take_what_does_not_divide() {
        let chunks = |n, chunks| (0..chunks).map(|c| chunk_range(n, chunks, &(c..c + 1)).len()).collect::<Vec<_>>();
        assert_eq!(chunks(12, 4), [3, 3, 3, 3]);
        assert_eq!(chunks(14, 4), [4, 4, 3, 3]);
        assert_eq!(chunks(2, 4), [1, 1, 0, 0]);
        assert_eq!(chunk_range(14, 4, &(1..3)), 4..11);
    }

    #[test]
    #[should_panic(expected = "chunks 3..5 of a buffer of 4 chunks")]
    fn a_chunk_outside_of_the_buffer_is_a_bug() {
        chunk_range(100, 4, &(3..5));
    }
}
