//! Pipeline schedules as data: in which order a stage computes its micro-batches.
//!
//! - **1F1B**, one forward, one backward (Narayanan et al., "PipeDream", 2019, with a flush at the end of the step): a stage runs ahead by
//!   as many forwards as there are stages after it, then takes turns.
//! - **Interleaved 1F1B** (Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM", 2021): a
//!   stage holds several *chunks* of layers; chunk `c` of stage `s` of `p` is *virtual stage* `c * p + s`.
//! - **Zero bubble, ZB-H1** (Qi et al., "Zero bubble pipeline parallelism", 2023): the backward is split in the gradient of the input, which
//!   the stage before waits for, and the gradients of the weights, which nobody waits for and which fill the end.
//!
//! Three stages, four micro-batches, one column a unit of time:
//!
//! ```text
//!  stage 0   F0 F1 F2 -- -- B0 F3 B1 -- B2 -- B3        1F1B, B of length 1
//!  stage 1      F0 F1 -- B0 F2 B1 F3 B2 -- B3
//!  stage 2         F0 B0 F1 B1 F2 B2 F3 B3
//!
//!  stage 0   F0 F1 F2 -- -- I0 W0 F3 I1 W1 I2 W2 I3 W3    ZB-H1, I and W of length 1
//! ```
//!
//! Invariants, cited by the tests:
//!
//! - **L-1**: every micro-batch has one forward and one backward (whole, or input then weights) on each chunk, in this order.
//! - **L-2**: in each chunk the gradients of weights are computed in the order of the micro-batches, so that their sum has one order,
//!   the same in every schedule.
//! - **L-3**: stages that wait for what they receive, and never for what they send, do not deadlock; what one sends is received in the
//!   order in which it was sent. 1F1B and ZB-H1 keep this where a link takes a single message that the receiver has not asked for yet;
//!   interleaved too where the stages divide the micro-batches, else `p` messages are enough.
//! - **L-4**: a stage keeps the activations of at most [`Schedule::in_flight_max`] micro-batches of a chunk, counted over its chunks.
//! - **L-5**: with stages of equal length the idle time is [`Schedule::bubble`].
//!
//! A pipeline prints as `F0 F1 B0 B1`, or `F0 I0 W0`, with the chunk behind a point unless it is the first (`F0.1`), and is read back by
//! [`FromStr`]. The letters are those of PyTorch's pipeline schedules; Qi et al. say B for what is `I` here.
//!
//! Deliberately absent: transfers. They follow from the order: `F` waits for the virtual stage before, `B` and `I` for the one after.

mod orders;
mod simulate;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use simulate::{Costs, Span, Timeline, simulate};

/// What is computed of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    Forward,
    /// The whole backward.
    Backward,
    /// Gradient of the input.
    BackwardInput,
    /// Gradients of the weights; what they need is kept until then.
    BackwardWeight,
}

const LETTERS: [(Pass, &str); 4] =
    [(Pass::Forward, "F"), (Pass::Backward, "B"), (Pass::BackwardInput, "I"), (Pass::BackwardWeight, "W")];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Action {
    pub pass: Pass,
    /// Index within the replica.
    pub micro_batch: usize,
    /// Index of the stage's chunk of layers; 0 where a stage has one.
    pub chunk: usize,
}

/// What one stage does in a step, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline(Vec<Action>);

impl Pipeline {
    pub fn actions(&self) -> &[Action] {
        &self.0
    }

    /// The most forwards whose activations are kept at the same time.
    pub fn max_in_flight(&self) -> usize {
        self.most_between(Pass::Forward)
    }

    /// What a stage needs room for.
    pub fn in_flight(&self) -> InFlight {
        InFlight { micro_batches: self.max_in_flight().max(1), split: self.most_between(Pass::BackwardInput) }
    }

    /// The most micro-batches at a time for which `from` has run, and the end of their backward has not.
    fn most_between(&self, from: Pass) -> usize {
        let mut open = BTreeSet::new();
        let mut most = 0;
        for Action { pass, micro_batch, chunk } in self.actions() {
            match pass {
                Pass::Backward | Pass::BackwardWeight => open.remove(&(micro_batch, chunk)),
                pass => *pass == from && open.insert((micro_batch, chunk)),
            };
            most = most.max(open.len());
        }
        most
    }
}

/// Micro-batches of a stage at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// Between their forward and the end of their backward, at least 1.
    pub micro_batches: usize,
    /// Of these, between the two parts of their backward.
    pub split: usize,
}

/// A rule that gives every stage its order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    #[default]
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// ZB-H1.
    ZeroBubble,
    /// Two chunks or more a stage. For planning only: the partition of a worker is one run of layers, so that no job can ask for it.
    #[serde(skip)]
    Interleaved { chunks: usize },
}

impl Schedule {
    /// The order of stage `stage` of `num_stages`.
    pub fn stage(self, stage: usize, num_stages: usize, num_micro_batches: usize) -> Pipeline {
        assert!(stage < num_stages, "stage {stage} of {num_stages}");
        Pipeline(match self {
            Schedule::OneFOneB => orders::one_f_one_b(stage, num_stages, num_micro_batches),
            Schedule::ZeroBubble => orders::zero_bubble(stage, num_stages, num_micro_batches),
            Schedule::Interleaved { chunks } => orders::interleaved(stage, num_stages, num_micro_batches, chunks),
        })
    }

    /// The orders of all stages.
    pub fn stages(self, num_stages: usize, num_micro_batches: usize) -> Vec<Pipeline> {
        (0..num_stages).map(|stage| self.stage(stage, num_stages, num_micro_batches)).collect()
    }

    /// Chunks of layers that a stage holds.
    pub fn num_chunks(self) -> usize {
        match self {
            Schedule::OneFOneB | Schedule::ZeroBubble => 1,
            Schedule::Interleaved { chunks } => chunks,
        }
    }

    /// Bound of [`Pipeline::max_in_flight`]: `p - s` for 1F1B, `p` for ZB-H1 (Qi et al., table 2), `2 (p - s - 1) + (v - 1) g + 1` for
    /// interleaved, whose forwards of a chunk are a fraction `1 / v` of a stage and come in groups of at most `g`, which is `p` where
    /// `p` divides the micro-batches.
    pub fn in_flight_max(self, stage: usize, num_stages: usize, num_micro_batches: usize) -> usize {
        let after = num_stages - stage - 1;
        let (bound, all) = match self {
            Schedule::OneFOneB => (after + 1, num_micro_batches),
            Schedule::ZeroBubble => (num_stages, num_micro_batches),
            Schedule::Interleaved { chunks } => {
                let group = orders::largest_group(num_stages, num_micro_batches);
                (2 * after + (chunks - 1) * group + 1, chunks * num_micro_batches)
            }
        };
        bound.min(all)
    }

    /// Time in which a stage is idle, where all stages are alike and no transfer takes time; `costs` are those of a whole stage.
    ///
    /// 1F1B: `(p-1) (F+I+W)`; interleaved: that over `v`, where `p` divides the micro-batches; ZB-H1 with `W` at most `F` and `I` and at
    /// least `p` micro-batches: `(p-1) (F+I-W)` (Qi et al., table 2), and where `W` is longer, by `p-1` times the difference more.
    pub fn bubble(self, num_stages: usize, costs: Costs) -> f64 {
        let Costs { forward, backward_input, backward_weight } = costs;
        let others = num_stages.saturating_sub(1) as f64;
        match self {
            Schedule::OneFOneB => others * costs.total(),
            Schedule::Interleaved { chunks } => others * costs.total() / chunks as f64,
            Schedule::ZeroBubble => {
                let longer = (backward_weight - forward.min(backward_input)).max(0.0);
                others * (forward + backward_input - backward_weight + longer)
            }
        }
    }
}

/// As in the paper and in a job file.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::OneFOneB => f.write_str("1f1b"),
            Schedule::ZeroBubble => f.write_str("zero-bubble"),
            Schedule::Interleaved { chunks } => write!(f, "interleaved x{chunks}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = LETTERS.iter().find(|(pass, _)| *pass == self.pass).map_or("", |(_, letter)| letter);
        write!(f, "{letter}{}", self.micro_batch)?;
        if self.chunk > 0 { write!(f, ".{}", self.chunk) } else { Ok(()) }
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(Action::to_string).collect::<Vec<_>>().join(" "))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "action {index} of the pipeline schedule is not valid: expected F, B, I or W, the number of a micro-batch and, behind a point, that of \
     a chunk, as in `F0 B0` or `F0.1`, found `{found}`"
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
            parse_action(word).ok_or_else(|| PipelineParseError { index, found: word.to_string() })
        };
        text.split_whitespace().enumerate().map(action).collect::<Result<_, _>>().map(Pipeline)
    }
}

fn parse_action(word: &str) -> Option<Action> {
    let (letter, rest) = word.split_at_checked(1)?;
    let (pass, _) = LETTERS.iter().find(|(_, l)| *l == letter)?;
    let (micro_batch, chunk) = rest.split_once('.').unwrap_or((rest, "0"));
    Some(Action { pass: *pass, micro_batch: micro_batch.parse().ok()?, chunk: chunk.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: Schedule, (stage, num_stages, m): (usize, usize, usize), expected: &str, in_flight: usize) {
        let pipeline = schedule.stage(stage, num_stages, m);
        assert_eq!(pipeline.to_string(), expected);
        assert_eq!(pipeline.max_in_flight(), in_flight, "{expected}");
    }

    #[test]
    fn in_1f1b_a_stage_runs_ahead_by_the_stages_after_it() {
        check(Schedule::OneFOneB, (0, 1, 3), "F0 B0 F1 B1 F2 B2", 1);
        check(Schedule::OneFOneB, (0, 2, 2), "F0 F1 B0 B1", 2);
        check(Schedule::OneFOneB, (0, 3, 4), "F0 F1 F2 B0 F3 B1 B2 B3", 3);
        check(Schedule::OneFOneB, (2, 3, 4), "F0 B0 F1 B1 F2 B2 F3 B3", 1);
        check(Schedule::OneFOneB, (0, 4, 2), "F0 F1 B0 B1", 2);
        check(Schedule::OneFOneB, (0, 2, 0), "", 0);
    }

    /// Devices 1 and 4 of figure 3 of Qi et al., whose micro-batches are counted from 1.
    #[test]
    fn in_zb_h1_a_stage_lags_with_the_weights_by_the_stages_before_it() {
        let first = "F0 F1 F2 F3 I0 W0 F4 I1 W1 F5 I2 W2 F6 I3 W3 F7 I4 W4 I5 W5 I6 W6 I7 W7";
        check(Schedule::ZeroBubble, (0, 4, 8), first, 4);
        let last = "F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 F5 I5 W2 F6 I6 W3 F7 I7 W4 W5 W6 W7";
        check(Schedule::ZeroBubble, (3, 4, 8), last, 4);
        check(Schedule::ZeroBubble, (1, 2, 1), "F0 I0 W0", 1);
        let split = |stage| Schedule::ZeroBubble.stage(stage, 4, 8).in_flight().split;
        assert_eq!([0, 1, 2, 3].map(split), [1, 2, 3, 4], "the weights lag by the stages before");
        assert_eq!(Schedule::OneFOneB.stage(0, 4, 8).in_flight(), InFlight { micro_batches: 4, split: 0 });
    }

    /// Device 4 of figure 4 of Narayanan et al. (2021), whose micro-batches are counted from 1.
    #[test]
    fn interleaved_takes_turns_between_chunks_by_groups_of_micro_batches() {
        let schedule = Schedule::Interleaved { chunks: 2 };
        check(schedule, (1, 2, 2), "F0 F1 F0.1 B0.1 F1.1 B1.1 B0 B1", 3);
        let last = "F0 F1 F2 F3 F0.1 B0.1 F1.1 B1.1 F2.1 B2.1 F3.1 B3.1 F4 B0 F5 B1 F6 B2 F7 B3 F4.1 B4.1 F5.1 B5.1 F6.1 B6.1 F7.1 B7.1 \
                    B4 B5 B6 B7";
        check(schedule, (3, 4, 8), last, 5);
        check(Schedule::Interleaved { chunks: 1 }, (0, 2, 3), &Schedule::OneFOneB.stage(0, 2, 3).to_string(), 2);
    }

    #[test]
    fn bubbles_are_those_of_the_papers() {
        let costs = Costs { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };
        let bubbles = [Schedule::OneFOneB, Schedule::Interleaved { chunks: 3 }, Schedule::ZeroBubble];
        assert_eq!(bubbles.map(|s| s.bubble(4, costs)), [9.0, 3.0, 3.0]);
        assert_eq!(bubbles.map(|s| s.bubble(1, costs)), [0.0; 3]);
    }

    #[test]
    fn other_schedules_are_counted_too() {
        let all_forwards_first: Pipeline = "F0 F1 F2 B0 B1 B2".parse().expect("a pipeline");
        assert_eq!(all_forwards_first.max_in_flight(), 3);
        assert_eq!(all_forwards_first.actions()[3], Action { pass: Pass::Backward, micro_batch: 0, chunk: 0 });
    }

    #[test]
    fn names_are_those_of_a_job_file() {
        let names = [Schedule::OneFOneB, Schedule::ZeroBubble].map(|s| s.to_string());
        for name in &names {
            let read: Schedule = serde_json::from_value(name.clone().into()).expect("a schedule");
            assert_eq!(read.to_string(), *name);
        }
        let refused = serde_json::from_value::<Schedule>("interleaved".into()).expect_err("no job can have it");
        assert!(refused.to_string().contains("expected `1f1b` or `zero-bubble`"), "{refused}");
    }

    #[test]
    fn what_is_no_pipeline_is_refused() {
        for (text, index, found) in [
            ("F0 X1", 1, "X1"),
            ("F", 0, "F"),
            ("F0 B-1", 1, "B-1"),
            ("é0", 0, "é0"),
            ("F0.", 0, "F0."),
            ("F.1", 0, "F.1"),
        ] {
            let error = text.parse::<Pipeline>().expect_err("the text is no pipeline");
            assert_eq!(error, PipelineParseError { index, found: found.into() });
        }
        let error = "F0 b0".parse::<Pipeline>().expect_err("actions are capitals").to_string();
        let expected = "action 1 of the pipeline schedule is not valid: expected F, B, I or W, the number of a micro-batch and, behind a \
                        point, that of a chunk, as in `F0 B0` or `F0.1`, found `b0`";
        assert_eq!(error, expected);
    }
}
