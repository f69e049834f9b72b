//! Runs the tasks of a collective over links: each starts as soon as those before it are done.
//!
//! Deliberately absent: what runs when; [`toroid_torus::collective::Tasks`] says that.

use std::collections::{BTreeMap, VecDeque};

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::collective::{Action, Op, Tasks};

use super::work::{Landing, Work};
use super::{Channel, CommError, Links};

/// The tasks of one member on its buffer.
pub(super) struct Program<'a> {
    tasks: &'a Tasks,
    buf: &'a mut [f32],
    scratch: &'a mut [f32],
    /// Of each task, how many before it are not done.
    left: Vec<usize>,
    num_done: usize,
}

impl<'a> Program<'a> {
    /// `scratch` grows to what the tasks need.
    pub fn new(tasks: &'a Tasks, buf: &'a mut [f32], scratch: &'a mut Vec<f32>) -> Program<'a> {
        if scratch.len() < tasks.num_scratch {
            scratch.resize(tasks.num_scratch, 0.0);
        }
        let left = tasks.tasks.iter().map(|task| task.num_before).collect();
        Program { tasks, buf, scratch: &mut scratch[..tasks.num_scratch], left, num_done: 0 }
    }

    fn fold(&mut self, task: usize, at: usize) {
        let range = self.tasks.tasks[task].range.clone();
        let came = &self.scratch[at..at + range.len()];
        for (own, came) in self.buf[range].iter_mut().zip(came) {
            *own += came;
        }
    }
}

impl Work for Program<'_> {
    fn sent(&self, task: usize) -> &[u8] {
        cast_slice(&self.buf[self.tasks.tasks[task].range.clone()])
    }

    fn landing(&mut self, task: usize) -> Landing<'_> {
        let task = &self.tasks.tasks[task];
        let (op, into) = match task.action {
            Action::Recv { op, .. } => (op, &mut self.buf[task.range.clone()]),
            Action::RecvScratch { op, at, .. } => (op, &mut self.scratch[at..at + task.range.len()]),
            Action::Send { .. } | Action::Fold { .. } => unreachable!("nothing is received"),
        };
        match op {
            Op::Copy => Landing::Copy(cast_slice_mut(into)),
            Op::Add => Landing::Add(into),
        }
    }

    fn complete(&mut self, task: usize) {
        self.num_done += 1;
        let tasks = self.tasks;
        for &later in &tasks.tasks[task].after {
            self.left[later] -= 1;
            if let (0, Action::Fold { at }) = (self.left[later], &tasks.tasks[later].action) {
                self.fold(later, *at);
                self.complete(later);
            }
        }
    }
}

/// Tasks of one link and direction, in their order.
struct Lane {
    peer: usize,
    is_send: bool,
    tasks: VecDeque<usize>,
}

impl Links {
    /// Runs `program`; `ranks` are those of the members.
    pub(super) fn execute(
        &mut self,
        program: &mut Program<'_>,
        ranks: &[usize],
        channel: Channel,
    ) -> Result<(), CommError> {
        let mut lanes: BTreeMap<(usize, bool), Lane> = BTreeMap::new();
        for (index, task) in program.tasks.tasks.iter().enumerate() {
            let (member, is_send) = match task.action {
                Action::Send { to } => (to, true),
                Action::Recv { from, .. } | Action::RecvScratch { from, .. } => (from, false),
                Action::Fold { .. } => continue,
            };
            let lane = || Lane { peer: ranks[member], is_send, tasks: VecDeque::new() };
            lanes.entry((member, is_send)).or_insert_with(lane).tasks.push_back(index);
        }
        let mut lanes: Vec<Lane> = lanes.into_values().collect();
        self.call(program, |links, program| {
            for lane in lanes.iter().filter(|lane| !lane.is_send) {
                links.hold(lane.peer, channel, true);
            }
            loop {
                let before = program.num_done;
                for lane in &mut lanes {
                    while let Some(&task) = lane.tasks.front().filter(|&&task| program.left[task] == 0) {
                        lane.tasks.pop_front();
                        if lane.is_send {
                            links.admit_send(program, lane.peer, channel, task)?;
                        } else {
                            links.hold(lane.peer, channel, !lane.tasks.is_empty());
                            links.admit_receive(program, lane.peer, channel, task)?;
                        }
                    }
                }
                if program.num_done == program.tasks.tasks.len() {
                    return Ok(());
                }
                if program.num_done > before {
                    // What was done may let another lane go on.
                    continue;
                }
                links.start(program)?;
                if program.num_done == before {
                    links.turn(program, true)?;
                }
            }
        })
    }
}
