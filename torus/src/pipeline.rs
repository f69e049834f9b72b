//! Pipeline schedules as data: in which order a stage computes its micro-batches.
//!
//! One forward, one backward (Narayanan et al., "PipeDream", 2019, with a flush at the end of the step): a stage runs ahead by as many
//! forwards as there are stages after it, then takes turns. Three stages, four micro-batches, one column a unit of time:
//!
//! ```text
//!  stage 0   F0 F1 F2 -- -- B0 F3 B1 -- B2 -- B3
//!  stage 1      F0 F1 -- B0 F2 B1 F3 B2 -- B3
//!  stage 2         F0 B0 F1 B1 F2 B2 F3 B3
//! ```
//!
//! Invariants, cited by the tests:
//!
//! - **L-1**: every micro-batch has one forward and one backward on each stage, and the backward comes after the forward.
//! - **L-2**: backwards run in the order of the micro-batches, so that a gradient's sum has one order.
//! - **L-3**: stages that wait for what they receive, and never for what they send, do not deadlock.
//! - **L-4**: a stage keeps the activations of at most `min(m, p - stage)` micro-batches.
//! - **L-5**: with forwards and backwards of equal length the share of idle time is [`bubble`].
//!
//! A pipeline prints as `F0 F1 B0 B1` and is read back by [`FromStr`].
//!
//! Deliberately absent: transfers. They follow from the order: `F` waits for the stage before, `B` for the stage after.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The index is that of a micro-batch within the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Forward(usize),
    Backward(usize),
}

/// What one stage does in a step, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline(Vec<Action>);

impl Pipeline {
    pub fn actions(&self) -> &[Action] {
        &self.0
    }
}

/// The schedule of stage `stage` of `num_stages`.
pub fn one_f_one_b(stage: usize, num_stages: usize, num_micro_batches: usize) -> Pipeline {
    assert!(stage < num_stages, "stage {stage} of {num_stages}");
    let ahead = (num_stages - stage - 1).min(num_micro_batches);
    let mut actions: Vec<Action> = (0..ahead).map(Action::Forward).collect();
    for forward in ahead..num_micro_batches {
        actions.extend([Action::Forward(forward), Action::Backward(forward - ahead)]);
    }
    actions.extend((num_micro_batches - ahead..num_micro_batches).map(Action::Backward));
    Pipeline(actions)
}

/// The most micro-batches whose activations are kept at the same time.
pub fn max_in_flight(pipeline: &Pipeline) -> usize {
    let mut kept = BTreeSet::new();
    let mut most = 0;
    for action in pipeline.actions() {
        match action {
            Action::Forward(i) => kept.insert(i),
            Action::Backward(i) => kept.remove(i),
        };
        most = most.max(kept.len());
    }
    most
}

/// Share of a step's time in which a stage is idle: `(p - 1) / (m + p - 1)`.
pub fn bubble(num_stages: usize, num_micro_batches: usize) -> f64 {
    assert!(num_stages > 0 && num_micro_batches > 0, "{num_stages} stages, {num_micro_batches} micro-batches");
    (num_stages - 1) as f64 / (num_micro_batches + num_stages - 1) as f64
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Forward(i) => write!(f, "F{i}"),
            Action::Backward(i) => write!(f, "B{i}"),
        }
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(Action::to_string).collect::<Vec<_>>().join(" "))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "action {index} of the pipeline schedule is not valid: expected F or B and the number of a micro-batch, as in `F0 B0`, found `{found}`"
)]
pub struct PipelineParseError {
    /// Counted from 0.
    pub index: usize,
    pub found: String,
}

impl FromStr for Pipeline {
    type Err = PipelineParseError;

    fn from_str(text: &str) -> Result<Pipeline, PipelineParseError> {
        let action = |(index, word): (usize, &str)| {
            let parsed = match word.split_at_checked(1) {
                Some(("F", i)) => i.parse().ok().map(Action::Forward),
                Some(("B", i)) => i.parse().ok().map(Action::Backward),
                _ => None,
            };
            parsed.ok_or_else(|| PipelineParseError { index, found: word.to_string() })
        };
        text.split_whitespace().enumerate().map(action).collect::<Result<_, _>>().map(Pipeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stage: usize, num_stages: usize, num_micro_batches: usize, expected: &str, in_flight: usize) {
        let pipeline = one_f_one_b(stage, num_stages, num_micro_batches);
        assert_eq!(pipeline.to_string(), expected);
        assert_eq!(max_in_flight(&pipeline), in_flight, "{expected}");
    }

    #[test]
    fn a_stage_runs_ahead_by_the_stages_after_it() {
        check(0, 1, 3, "F0 B0 F1 B1 F2 B2", 1);
        check(0, 2, 2, "F0 F1 B0 B1", 2);
        check(0, 3, 4, "F0 F1 F2 B0 F3 B1 B2 B3", 3);
        check(2, 3, 4, "F0 B0 F1 B1 F2 B2 F3 B3", 1);
        check(0, 4, 2, "F0 F1 B0 B1", 2);
        check(0, 2, 0, "", 0);
    }

    #[test]
    fn other_schedules_are_counted_too() {
        let all_forwards_first: Pipeline = "F0 F1 F2 B0 B1 B2".parse().expect("a pipeline");
        assert_eq!(max_in_flight(&all_forwards_first), 3);
        assert_eq!(all_forwards_first.actions()[3], Action::Backward(0));
        assert_eq!(bubble(4, 8), 3.0 / 11.0);
    }

    #[test]
    fn what_is_no_pipeline_is_refused() {
        for (text, index, found) in [("F0 X1", 1, "X1"), ("F", 0, "F"), ("F0 B-1", 1, "B-1"), ("é0", 0, "é0")] {
            let error = text.parse::<Pipeline>().expect_err("the text is no pipeline");
            assert_eq!(error, PipelineParseError { index, found: found.into() });
        }
        let error = "F0 b0".parse::<Pipeline>().expect_err("actions are capitals").to_string();
        let expected = "action 1 of the pipeline schedule is not valid: expected F or B and the number of a micro-batch, as in `F0 B0`, found `b0`";
        assert_eq!(error, expected);
    }
}
