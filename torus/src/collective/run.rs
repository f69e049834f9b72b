//! One member's way through its tasks: which may start now, and what is done.
//!
//! ```text
//!   buffer   [ values still change ......... | final from here on ......... ]
//!                                            ^ lower(): moves towards the beginning
//!   a task may start: those before it are done, its range is final, and no task before it on its link waits
//! ```
//!
//! Invariants:
//!
//! - **G-1** what is not final is neither sent nor added to, so whatever the order in which ranges become final, the sums are those of the
//!   schedule (C-2).
//! - **G-2** members that start all that may start do not deadlock: once everything is final at all of them, all come to their end, however
//!   far they were before (C-4).
//!
//! Deliberately absent: the values. An executor moves them and says what is done.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::{Action, Tasks};

/// What shares an order: the sends to a member, the receives from one, the folds.
type Lane = Option<(usize, bool)>;

#[derive(Debug, Clone)]
pub struct Run {
    tasks: Arc<Tasks>,
    /// Of each task, how many before it are not done.
    left: Vec<usize>,
    is_done: Vec<bool>,
    num_done: usize,
    /// What has not started.
    lanes: BTreeMap<Lane, VecDeque<usize>>,
    final_from: usize,
}

impl Run {
    /// The elements from `final_from` on hold this member's values; 0 where all do.
    pub fn new(tasks: Arc<Tasks>, final_from: usize) -> Run {
        let mut lanes: BTreeMap<Lane, VecDeque<usize>> = BTreeMap::new();
        for (index, task) in tasks.tasks.iter().enumerate() {
            lanes.entry(lane_of(&task.action)).or_default().push_back(index);
        }
        let left = tasks.tasks.iter().map(|task| task.num_before).collect();
        Run { left, is_done: vec![false; tasks.tasks.len()], num_done: 0, lanes, final_from, tasks }
    }

    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The elements from here on are final.
    pub fn final_from(&self) -> usize {
        self.final_from
    }

    /// Those from `final_from` on hold this member's values now, too.
    pub fn lower(&mut self, final_from: usize) {
        assert!(final_from <= self.final_from, "elements from {} on were final already", self.final_from);
        self.final_from = final_from;
    }

    /// A task that may start now, each once: to be moved, or folded, by the caller, who says when it is done.
    pub fn start_next(&mut self) -> Option<usize> {
        let Run { tasks, left, lanes, final_from, .. } = self;
        let may_start = |task: usize| {
            let uses_buffer = !matches!(tasks.tasks[task].action, Action::RecvScratch { .. });
            left[task] == 0 && (!uses_buffer || tasks.tasks[task].range.start >= *final_from)
        };
        let lane = lanes.values_mut().find(|lane| lane.front().is_some_and(|&task| may_start(task)))?;
        lane.pop_front()
    }

    /// Whether there are receives from `member` that have not started.
    pub fn will_receive(&self, member: usize) -> bool {
        self.lanes.get(&Some((member, false))).is_some_and(|lane| !lane.is_empty())
    }

    pub fn complete(&mut self, task: usize) {
        assert!(!std::mem::replace(&mut self.is_done[task], true), "task {task} is done twice");
        self.num_done += 1;
        for &later in &self.tasks.tasks[task].after {
            self.left[later] -= 1;
        }
    }

    pub fn num_done(&self) -> usize {
        self.num_done
    }

    pub fn is_over(&self) -> bool {
        self.num_done == self.tasks.tasks.len()
    }

    /// No task writes to `range` any more.
    pub fn has_written(&self, range: &Range<usize>) -> bool {
        let touches = |other: &Range<usize>| other.start < range.end && range.start < other.end;
        let mut writes = self.tasks.tasks.iter().zip(&self.is_done);
        writes.all(|(task, done)| *done || matches!(task.action, Action::Send { .. }) || !touches(&task.range))
    }
}

fn lane_of(action: &Action) -> Lane {
    match *action {
        Action::Send { to } => Some((to, true)),
        Action::Recv { from, .. } | Action::RecvScratch { from, .. } => Some((from, false)),
        Action::Fold { .. } => None,
    }
}
