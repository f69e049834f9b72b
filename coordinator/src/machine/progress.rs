//! What the machine keeps of a job's curve: a few numbers a step, enough for rates, goodput and to know what is a repetition.
//!
//! The records themselves are in `curve.csv`; rows ascend by step, and a restore cuts off what is made again.

use toroid_proto::StepRecord;

/// Rates are taken over this many steps.
const WINDOW: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSummary {
    pub step: u64,
    pub epoch: u64,
    pub loss: f64,
    pub step_s: f64,
    pub tokens: u64,
}

impl From<&StepRecord> for StepSummary {
    fn from(r: &StepRecord) -> Self {
        StepSummary { step: r.step, epoch: r.epoch, loss: r.loss, step_s: r.step_s, tokens: r.tokens }
    }
}

/// The curve of a job, ascending by step.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    steps: Vec<StepSummary>,
    /// Sum of `step_s` of the kept steps.
    useful_s: f64,
}

impl Progress {
    pub fn new(steps: Vec<StepSummary>) -> Progress {
        assert!(steps.is_sorted_by(|a, b| a.step < b.step), "a curve ascends by step");
        let mut progress = Progress { steps, useful_s: 0.0 };
        progress.sum();
        progress
    }

    pub fn steps(&self) -> &[StepSummary] {
        &self.steps
    }

    pub fn last_step(&self) -> u64 {
        self.steps.last().map_or(0, |s| s.step)
    }

    pub fn first_loss(&self) -> f64 {
        self.steps.first().map_or(0.0, |s| s.loss)
    }

    pub fn useful_s(&self) -> f64 {
        self.useful_s
    }

    /// Adds a step; false if it or a later one is there already.
    pub fn push(&mut self, step: StepSummary) -> bool {
        if step.step <= self.last_step() {
            return false;
        }
        self.useful_s += finite(step.step_s);
        self.steps.push(step);
        true
    }

    /// Drops all steps after `keep`.
    pub fn cut(&mut self, keep: u64) {
        self.steps.truncate(self.steps.partition_point(|s| s.step <= keep));
        self.sum();
    }

    /// Mean wall time of the last steps, if there are any.
    pub fn step_s(&self) -> Option<f64> {
        let window = self.window();
        let seconds: f64 = window.iter().map(|s| finite(s.step_s)).sum();
        (seconds > 0.0).then(|| seconds / window.len() as f64)
    }

    /// Over the last steps; 0 before the first.
    pub fn tokens_per_s(&self) -> f64 {
        let window = self.window();
        let seconds: f64 = window.iter().map(|s| finite(s.step_s)).sum();
        if seconds > 0.0 { window.iter().map(|s| s.tokens).sum::<u64>() as f64 / seconds } else { 0.0 }
    }

    fn window(&self) -> &[StepSummary] {
        &self.steps[self.steps.len().saturating_sub(WINDOW)..]
    }

    fn sum(&mut self) {
        self.useful_s = self.steps.iter().map(|s| finite(s.step_s)).sum();
    }
}

/// A worker's clock may say anything; a sum must survive it.
fn finite(seconds: f64) -> f64 {
    if seconds.is_finite() { seconds.max(0.0) } else { 0.0 }
}
