//! Collectives over a group as values: who sends which chunks to whom, step by step (design section 3).
//!
//! A group is a `dx` by `dy` torus; member `dp_y * dx + dp_x` owns chunk `dp_x * dy + dp_y`, so what a row's ring leaves to a
//! column is contiguous. A ring of `n`, seen by member `i`: step `s` of the reduce-scatter sends part `i - s - 1` to `i + 1` and
//! adds part `i - s - 2` that comes from `i - 1`; step `s` of the all-gather sends part `i - s` and copies part `i - s - 1`.

use std::ops::Range;

/// What a receiver does with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Copy,
    Add,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Member of the group.
    pub to: usize,
    pub chunks: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recv {
    /// Member of the group.
    pub from: usize,
    pub chunks: Range<usize>,
    pub op: Op,
}

/// What one member does at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    pub sends: Vec<Send>,
    pub recvs: Vec<Recv>,
}

/// The steps of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub num_chunks: usize,
    pub steps: Vec<Step>,
}

pub fn reduce_scatter(dx: usize, dy: usize, member: usize) -> Schedule {
    let (row, column) = rings(dx, dy, member);
    Schedule { num_chunks: dx * dy, steps: row.reduce_scatter().chain(column.reduce_scatter()).collect() }
}

pub fn all_gather(dx: usize, dy: usize, member: usize) -> Schedule {
    let (row, column) = rings(dx, dy, member);
    Schedule { num_chunks: dx * dy, steps: column.all_gather().chain(row.all_gather()).collect() }
}

pub fn all_reduce(dx: usize, dy: usize, member: usize) -> Schedule {
    let mut schedule = reduce_scatter(dx, dy, member);
    schedule.steps.extend(all_gather(dx, dy, member).steps);
    schedule
}

/// One step, everyone to everyone; chunk `i` is member `i`'s.
pub fn all_gather_direct(n: usize, member: usize) -> Schedule {
    let others = || (0..n).filter(move |&other| other != member);
    let sends = others().map(|to| Send { to, chunks: member..member + 1 }).collect();
    let recvs = others().map(|from| Recv { from, chunks: from..from + 1, op: Op::Copy }).collect();
    Schedule { num_chunks: n, steps: if n > 1 { vec![Step { sends, recvs }] } else { Vec::new() } }
}

/// Elements of `chunks`: an even split, the first chunks take one more where it does not divide.
pub fn chunk_range(num_elements: usize, num_chunks: usize, chunks: &Range<usize>) -> Range<usize> {
    let start = |chunk: usize| chunk * (num_elements / num_chunks) + chunk.min(num_elements % num_chunks);
    start(chunks.start)..start(chunks.end)
}

/// One ring that a member is on: its length, the member's index in it, its neighbours, and the chunks that the parts stand for.
struct Ring {
    n: usize,
    index: usize,
    previous: usize,
    next: usize,
    first_chunk: usize,
    chunks_per_part: usize,
}

fn rings(dx: usize, dy: usize, member: usize) -> (Ring, Ring) {
    let (x, y) = (member % dx, member / dx);
    let at = |x: usize, y: usize| y * dx + x;
    let row = Ring {
        n: dx,
        index: x,
        previous: at((x + dx - 1) % dx, y),
        next: at((x + 1) % dx, y),
        first_chunk: 0,
        chunks_per_part: dy,
    };
    let column = Ring {
        n: dy,
        index: y,
        previous: at(x, (y + dy - 1) % dy),
        next: at(x, (y + 1) % dy),
        first_chunk: x * dy,
        chunks_per_part: 1,
    };
    (row, column)
}

impl Ring {
    fn reduce_scatter(&self) -> impl Iterator<Item = Step> + '_ {
        (0..self.n - 1).map(|s| self.step(s + 1, Op::Add))
    }

    fn all_gather(&self) -> impl Iterator<Item = Step> + '_ {
        (0..self.n - 1).map(|s| self.step(s, Op::Copy))
    }

    /// Sends the part `behind` places behind this member's, receives the one before that.
    fn step(&self, behind: usize, op: Op) -> Step {
        let part = |behind: usize| {
            let index = (self.index + 2 * self.n - behind) % self.n;
            let start = self.first_chunk + index * self.chunks_per_part;
            start..start + self.chunks_per_part
        };
        Step {
            sends: vec![Send { to: self.next, chunks: part(behind) }],
            recvs: vec![Recv { from: self.previous, chunks: part(behind + 1), op }],
        }
    }
}
