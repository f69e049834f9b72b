//! When each action starts and ends, for given costs: makespan and bubble of a schedule before anything is run.
//!
//! A stage does its actions in order, each as soon as what it needs has come; a result arrives `transfer` after it was computed, and
//! sending keeps nobody from computing. Stages with one order of actions, waiting receives and buffered sends are a Kahn network:
//! whether it stops depends on no timing.
//!
//! Deliberately absent: bounds of what a link holds (the tests have them), and the time of an optimizer step.

use std::collections::BTreeMap;

use super::{Action, Pass, Pipeline};

/// Seconds, or any other unit, of one micro-batch in one virtual stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    pub forward: f64,
    /// Gradient of the input.
    pub backward_input: f64,
    /// Gradients of the weights.
    pub backward_weight: f64,
}

impl Costs {
    pub fn total(&self) -> f64 {
        self.forward + self.backward_input + self.backward_weight
    }

    fn of(&self, pass: Pass) -> f64 {
        match pass {
            Pass::Forward => self.forward,
            Pass::Backward => self.backward_input + self.backward_weight,
            Pass::BackwardInput => self.backward_input,
            Pass::BackwardWeight => self.backward_weight,
        }
    }
}

/// When an action is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    pub action: Action,
    pub start: f64,
    pub end: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// By stage, in the order of its actions.
    pub stages: Vec<Vec<Span>>,
    /// From the start of the first action to the end of the last.
    pub makespan: f64,
}

impl Timeline {
    /// Time in which a stage computes.
    pub fn busy(&self, stage: usize) -> f64 {
        self.stages[stage].iter().map(|span| span.end - span.start).sum()
    }

    /// Share of all stages' time in which they are idle, 0 to 1.
    pub fn bubble(&self) -> f64 {
        let busy: f64 = (0..self.stages.len()).map(|stage| self.busy(stage)).sum();
        if self.makespan > 0.0 { 1.0 - busy / (self.makespan * self.stages.len() as f64) } else { 0.0 }
    }
}

/// Runs all stages' orders against each other. `costs[c * p + s]` are those of chunk `c` of stage `s` of `p`. `None` where the stages
/// wait for one another.
pub fn simulate(stages: &[Pipeline], costs: &[Costs], transfer: f64) -> Option<Timeline> {
    let (num_stages, last) = (stages.len(), costs.len().checked_sub(1)?);
    // Ends of forwards (true) and of gradients of inputs (false), by virtual stage and micro-batch.
    let mut ends: BTreeMap<(bool, usize, usize), f64> = BTreeMap::new();
    let mut spans: Vec<Vec<Span>> = stages.iter().map(|s| Vec::with_capacity(s.actions().len())).collect();
    loop {
        let mut moved = false;
        for (s, stage) in stages.iter().enumerate() {
            while let Some(&action) = stage.actions().get(spans[s].len()) {
                let virtual_stage = action.chunk * num_stages + s;
                let is_forward = action.pass == Pass::Forward;
                let source = match action.pass {
                    Pass::Forward => virtual_stage.checked_sub(1),
                    Pass::Backward | Pass::BackwardInput => Some(virtual_stage + 1).filter(|next| *next <= last),
                    Pass::BackwardWeight => None,
                };
                let arrived = match source.map(|from| ends.get(&(is_forward, from, action.micro_batch))) {
                    Some(None) => break,
                    Some(Some(end)) => end + transfer,
                    None => 0.0,
                };
                let start = spans[s].last().map_or(0.0, |span| span.end).max(arrived);
                let end = start + costs[virtual_stage].of(action.pass);
                if action.pass != Pass::BackwardWeight {
                    ends.insert((is_forward, virtual_stage, action.micro_batch), end);
                }
                spans[s].push(Span { action, start, end });
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let is_done = stages.iter().zip(&spans).all(|(stage, spans)| stage.actions().len() == spans.len());
    let makespan = spans.iter().flatten().map(|span| span.end).fold(0.0, f64::max);
    is_done.then_some(Timeline { stages: spans, makespan })
}
