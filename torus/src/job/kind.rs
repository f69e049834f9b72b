//! What a job teaches its model: the loss of its samples, and what the model ends with.

use serde::{Deserialize, Serialize};

use super::{JobError, JobSpec, value};
use crate::model::Output;

/// Which samples a job has, and what is asked of the model for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Text: each next token.
    #[default]
    Pretrain,
    /// Dialogues (supervised fine-tuning): the next token where it is one of an answer.
    Sft,
    /// Pairs of answers (a reward model): a score, higher for the answer that was preferred.
    Reward,
    /// The model's own answers to prompts: more of those that are worth more ([`super::PpoConfig`]).
    Ppo,
}

impl JobKind {
    pub const fn is_pretrain(&self) -> bool {
        matches!(self, JobKind::Pretrain)
    }

    /// As in the job file.
    pub const fn name(self) -> &'static str {
        match self {
            JobKind::Pretrain => "pretrain",
            JobKind::Sft => "sft",
            JobKind::Reward => "reward",
            JobKind::Ppo => "ppo",
        }
    }

    /// What a model of this kind ends with.
    pub const fn output(self) -> Output {
        match self {
            JobKind::Pretrain | JobKind::Sft => Output::Tokens,
            JobKind::Reward => Output::Score,
            JobKind::Ppo => Output::Policy,
        }
    }

    /// Texts that a sample is made of: of a pair, both answers.
    pub const fn texts_of_sample(self) -> usize {
        match self {
            JobKind::Pretrain | JobKind::Sft | JobKind::Ppo => 1,
            JobKind::Reward => 2,
        }
    }
}

/// `[reward]`, of jobs of that kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Multiplies the mean of `(score of the chosen + score of the rejected)^2`, which keeps scores around 0 (Eisenstein et al. 2023); 0: off.
    pub center_coef: f64,
}

impl RewardConfig {
    pub fn is_default(&self) -> bool {
        *self == RewardConfig::default()
    }
}

impl JobSpec {
    /// Rows of `model.seq` tokens in a micro-batch.
    pub fn rows_of_micro_batch(&self) -> usize {
        self.batch.micro_batch * self.kind.texts_of_sample()
    }

    /// What a kind needs of the other keys.
    pub(super) fn check_kind(&self) -> Result<(), JobError> {
        let (kind, coef) = (self.kind.name(), self.reward.center_coef);
        if self.model.output != self.kind.output() {
            let found = format!("{:?}", self.model.output).to_lowercase();
            return value("model.output", found, format!("that of kind = \"{kind}\", or none"));
        }
        if !coef.is_finite() || coef < 0.0 {
            return value("reward.center_coef", coef, "at least 0".into());
        }
        if self.kind != JobKind::Reward && !self.reward.is_default() {
            return value("reward.center_coef", coef, format!("none: kind = \"{kind}\" has no pairs"));
        }
        if self.data.packing && self.kind != JobKind::Sft {
            return value("data.packing", true, format!("false: kind = \"{kind}\" has no dialogues to pack"));
        }
        if !self.kind.is_pretrain() && self.data.stride != self.model.seq {
            return value("data.stride", self.data.stride, format!("none: kind = \"{kind}\" has a document a text"));
        }
        self.check_ppo()
    }
}
