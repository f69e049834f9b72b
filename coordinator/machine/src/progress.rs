//! What the machine keeps of a job's curve: a few numbers a step, enough for rates, goodput and to know what is a repetition.
//!
//! The records themselves are in `curve.csv`; rows ascend by step, and a restore cuts off what is made again. A step of which nobody
//! has the figures any more has a row that says so (T-12).

use toroid_proto::StepRecord;
use toroid_torus::ids::Step;

/// Rates are taken over this many steps.
const WINDOW: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSummary {
    pub step: Step,
    pub loss: f64,
    pub step_s: f64,
    pub tokens: u64,
    /// No update was made: gradients were not finite.
    pub skipped: bool,
    /// Nobody has its figures any more.
    pub missing: bool,
}

impl StepSummary {
    fn missing(step: Step) -> StepSummary {
        StepSummary { step, loss: f64::NAN, step_s: 0.0, tokens: 0, skipped: false, missing: true }
    }
}

/// The record of a step of which nobody has the figures any more.
pub fn missing_record(step: Step) -> StepRecord {
    StepRecord {
        step: step.get(),
        loss: f64::NAN,
        ce: f64::NAN,
        z_loss: f64::NAN,
        balance_loss: f64::NAN,
        grad_norm: f64::NAN,
        lr: f64::NAN,
        weight_decay: f64::NAN,
        tokens_per_s: f64::NAN,
        step_s: f64::NAN,
        hidden_s: f64::NAN,
        exposed_s: f64::NAN,
        missing: true,
        ..StepRecord::default()
    }
}

impl From<&StepRecord> for StepSummary {
    fn from(r: &StepRecord) -> Self {
        let StepRecord { step, loss, step_s, tokens, skipped, missing, .. } = *r;
        StepSummary { step: Step::new(step), loss, step_s, tokens, skipped, missing }
    }
}

/// The curve of a job, ascending by step.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    steps: Vec<StepSummary>,
    /// Sum of `step_s` of the kept steps.
    useful_s: f64,
    num_skipped: u64,
    /// Steps without figures, also those that have no row in a curve of an older version.
    num_missing: u64,
    /// The newest steps in a row that were skipped.
    skipped_in_a_row: u64,
}

impl Progress {
    pub fn new(steps: Vec<StepSummary>) -> Progress {
        assert!(steps.is_sorted_by(|a, b| a.step < b.step), "a curve ascends by step");
        let mut progress = Progress { steps, ..Progress::default() };
        progress.sum();
        progress
    }

    pub fn steps(&self) -> &[StepSummary] {
        &self.steps
    }

    pub fn last_step(&self) -> Step {
        self.steps.last().map_or(Step::ZERO, |s| s.step)
    }

    pub fn first_loss(&self) -> f64 {
        self.steps.iter().find(|s| !s.missing).map_or(0.0, |s| s.loss)
    }

    pub fn useful_s(&self) -> f64 {
        self.useful_s
    }

    pub fn num_skipped(&self) -> u64 {
        self.num_skipped
    }

    pub fn skipped_in_a_row(&self) -> u64 {
        self.skipped_in_a_row
    }

    pub fn num_missing(&self) -> u64 {
        self.num_missing
    }

    /// Adds a step; false if it or a later one is there already.
    pub fn push(&mut self, step: StepSummary) -> bool {
        if step.step <= self.last_step() {
            return false;
        }
        self.count(self.steps.last().copied(), step);
        self.steps.push(step);
        true
    }

    /// Adds steps of which nobody has the figures any more.
    pub fn push_missing(&mut self, from: Step, through: Step) {
        for step in from.through(through) {
            self.push(StepSummary::missing(step));
        }
    }

    fn count(&mut self, before: Option<StepSummary>, step: StepSummary) {
        self.useful_s += finite(step.step_s);
        self.num_skipped += u64::from(step.skipped);
        self.skipped_in_a_row = if step.skipped { self.skipped_in_a_row + 1 } else { 0 };
        self.num_missing += u64::from(step.missing) + before.map_or(0, |b| step.step.since(b.step.next()));
    }

    /// Drops all steps after `keep`.
    pub fn cut(&mut self, keep: Step) {
        self.steps.truncate(self.steps.partition_point(|s| s.step <= keep));
        self.sum();
    }

    /// Mean wall time of the last steps, if there are any.
    pub fn step_s(&self) -> Option<f64> {
        let (seconds, num) = self.window().fold((0.0, 0), |(sum, num), s| (sum + finite(s.step_s), num + 1));
        (seconds > 0.0).then(|| seconds / f64::from(num))
    }

    /// Over the last steps; 0 before the first.
    pub fn tokens_per_s(&self) -> f64 {
        let seconds: f64 = self.window().map(|s| finite(s.step_s)).sum();
        if seconds > 0.0 { self.window().map(|s| s.tokens).sum::<u64>() as f64 / seconds } else { 0.0 }
    }

    fn window(&self) -> impl Iterator<Item = &StepSummary> {
        self.steps.iter().rev().take(WINDOW).filter(|s| !s.missing)
    }

    fn sum(&mut self) {
        let steps = std::mem::take(&mut self.steps);
        *self = Progress::default();
        let befores = std::iter::once(None).chain(steps.iter().copied().map(Some));
        befores.zip(&steps).for_each(|(before, step)| self.count(before, *step));
        self.steps = steps;
    }
}

/// A worker's clock may say anything; a sum must survive it.
fn finite(seconds: f64) -> f64 {
    if seconds.is_finite() { seconds.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_skipped_is_counted_also_after_a_cut_and_a_restart() {
        let step = |step: u64, skipped| StepSummary {
            step: Step::new(step),
            loss: 1.0,
            step_s: 0.5,
            tokens: 8,
            skipped,
            missing: false,
        };
        let mut progress = Progress::default();
        progress.push(step(1, false));
        progress.push_missing(Step::new(2), Step::new(5));
        assert!((6..=8).all(|n| progress.push(step(n, true))));
        let counts = |p: &Progress| (p.num_missing(), p.num_skipped(), p.skipped_in_a_row(), p.useful_s());
        assert_eq!(counts(&progress), (4, 3, 3, 2.0));
        assert_eq!(counts(&Progress::new(progress.steps().to_vec())), (4, 3, 3, 2.0));
        assert_eq!((progress.step_s(), progress.tokens_per_s()), (Some(0.5), 16.0));
        progress.push(step(9, false));
        assert_eq!(counts(&progress), (4, 3, 0, 2.5));
        progress.cut(Step::new(7));
        assert_eq!(counts(&progress), (4, 2, 2, 1.5));
        progress.cut(Step::new(3));
        assert_eq!(counts(&progress), (2, 0, 0, 0.5));
        // A version that did not tell left a hole.
        assert_eq!(Progress::new(vec![step(3, false), step(7, false)]).num_missing(), 3);
    }
}
