//! What is recorded of a job's steps: up to where, and which records rank 0 was asked for (T-4, T-12).

use toroid_torus::ids::Step;

use super::progress::{Progress, StepSummary};

/// The curve of a job, and what is missing of it.
#[derive(Debug, Default)]
pub(crate) struct Curve {
    progress: Progress,
    /// Steps up to here were not made by this job or are in its curve: nobody reports them any more.
    floor_step: Step,
    /// Rank 0 was asked for the record of this step, which is missing before one that came.
    asked_for: Option<Step>,
}

impl Curve {
    pub fn new(progress: Progress) -> Curve {
        Curve { progress, floor_step: Step::ZERO, asked_for: None }
    }

    /// The job has no places any more. Its figures stay.
    pub fn rest(&mut self) {
        (self.floor_step, self.asked_for) = (Step::ZERO, None);
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The curve is kept up to here.
    pub fn recorded_step(&self) -> Step {
        self.progress.last_step().max(self.floor_step)
    }

    /// Nobody reports a step up to this one.
    pub fn begin_at(&mut self, floor_step: Step) {
        self.floor_step = floor_step;
    }

    pub fn push(&mut self, step: StepSummary) {
        let is_new = self.progress.push(step);
        assert!(is_new, "older steps are acknowledged, and not recorded again");
    }

    pub fn push_missing(&mut self, from: Step, through: Step) {
        self.progress.push_missing(from, through);
    }

    /// Drops all steps after `keep`; says whether there were any.
    pub fn cut(&mut self, keep: Step) -> bool {
        let is_longer = self.progress.last_step() > keep;
        if is_longer {
            self.progress.cut(keep);
        }
        is_longer
    }

    /// The next step's record is missing: the step to ask rank 0 for, unless it was asked already.
    pub fn ask_for_next(&mut self) -> Option<Step> {
        let next = self.recorded_step().next();
        (self.asked_for.replace(next) != Some(next)).then_some(next)
    }

    /// Rank 0 may not have heard what it was asked for.
    pub fn forget_question(&mut self) {
        self.asked_for = None;
    }
}
