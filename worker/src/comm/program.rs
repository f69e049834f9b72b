//! The tasks of a collective on their buffer: each starts as soon as it may.
//!
//! Deliberately absent: what runs when; [`toroid_torus::collective::Run`] says that.

use std::ops::DerefMut;
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::collective::{Action, Op, Run, Tasks};

use super::Channel;
use super::work::{Landing, Work};

/// The tasks of one member on its buffer, which a blocking call borrows and a collective in flight owns.
pub(super) struct Program<B> {
    pub run: Run,
    pub buf: B,
    scratch: B,
}

/// A program that goes on while the rank computes, see [`super::flight`].
pub(super) struct Flight {
    pub program: Program<Vec<f32>>,
    /// By member.
    pub ranks: Vec<usize>,
    pub channel: Channel,
    /// In a trace.
    pub name: &'static str,
    /// The running call waits for it.
    pub is_waited_for: bool,
}

/// A transfer to be put on a link.
pub(super) struct Started {
    pub task: usize,
    /// Index in the group.
    pub member: usize,
    pub is_send: bool,
    /// More will be received from that member.
    pub will_receive: bool,
}

impl<'a> Program<&'a mut [f32]> {
    /// `scratch` grows to what the tasks need.
    pub fn new(tasks: Arc<Tasks>, buf: &'a mut [f32], scratch: &'a mut Vec<f32>) -> Program<&'a mut [f32]> {
        let num_scratch = tasks.num_scratch;
        if scratch.len() < num_scratch {
            scratch.resize(num_scratch, 0.0);
        }
        Program { run: Run::new(tasks, 0), buf, scratch: &mut scratch[..num_scratch] }
    }
}

impl Program<Vec<f32>> {
    /// The elements of `buf` from `final_from` on hold this member's values.
    pub fn owning(tasks: Arc<Tasks>, buf: Vec<f32>, final_from: usize) -> Program<Vec<f32>> {
        let scratch = vec![0.0; tasks.num_scratch];
        Program { run: Run::new(tasks, final_from), buf, scratch }
    }
}

impl<B: DerefMut<Target = [f32]>> Program<B> {
    /// The next transfer that may start; folds that may are made on the way.
    pub fn start_next(&mut self) -> Option<Started> {
        loop {
            let task = self.run.start_next()?;
            let started =
                |member, is_send| Started { task, member, is_send, will_receive: self.run.will_receive(member) };
            match self.run.tasks().tasks[task].action {
                Action::Send { to } => return Some(started(to, true)),
                Action::Recv { from, .. } | Action::RecvScratch { from, .. } => return Some(started(from, false)),
                Action::Fold { at } => {
                    self.fold(task, at);
                    self.run.complete(task);
                }
            }
        }
    }

    fn fold(&mut self, task: usize, at: usize) {
        let range = self.run.tasks().tasks[task].range.clone();
        let came = &self.scratch[at..at + range.len()];
        for (own, came) in self.buf[range].iter_mut().zip(came) {
            *own += came;
        }
    }
}

impl<B: DerefMut<Target = [f32]>> Work for Program<B> {
    fn sent(&self, task: usize) -> &[u8] {
        cast_slice(&self.buf[self.run.tasks().tasks[task].range.clone()])
    }

    fn landing(&mut self, task: usize) -> Landing<'_> {
        let task = &self.run.tasks().tasks[task];
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
        self.run.complete(task);
    }
}
