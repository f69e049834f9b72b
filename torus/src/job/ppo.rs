//! `[ppo]` of a job that optimizes a policy by what its answers are worth (Schulman et al. 2017, "Proximal policy optimization algorithms").
//!
//! ```text
//!   iteration   one rollout of minibatches * batch.global answers, then epochs * minibatches optimizer steps on them
//!   step        as in every other job: one update of batch.global answers
//! ```
//!
//! Defaults are those of TRL's `PPOConfig` and of Huang et al. 2024, "The N implementation details of RLHF with PPO" (the *study*), where they
//! agree; where they do not, the key says whose it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{JobError, JobKind, JobSpec, value};

/// Steps of an iteration at most: a checkpoint waits for its end.
const STEPS_MAX: u64 = 4096;
/// Numbers of an iteration's rollouts at most, which every place has: 512 MiB.
const NUMBERS_MAX: u64 = 1 << 26;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PpoConfig {
    /// Passes over the answers of an iteration; 4 in both.
    #[serde(default = "epochs")]
    pub epochs: u64,
    /// Optimizer steps of a pass; 1 in both.
    #[serde(default = "one")]
    pub minibatches: u64,
    /// Tokens of an answer at most, the stop token included; TRL has 53.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// The token that ends an answer.
    pub stop_token: u32,
    /// Divides the logits, of rollouts and of what is learned from them; 0.7 in both.
    #[serde(default = "temperature")]
    pub temperature: f64,
    /// What a nat of divergence from the reference costs at first; TRL's 0.05, of the study 0.15.
    #[serde(default = "kl_coef")]
    pub kl_coef: f64,
    /// The divergence of an answer, in nats, that `kl_coef` is steered to (Ziegler et al. 2019); none in TRL, 6 in the study.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_target: Option<f64>,
    /// Answers in which `kl_coef` changes by a whole of itself at most 0.2 times; the study's.
    #[serde(default = "kl_horizon")]
    pub kl_horizon: f64,
    /// Discount of a token; 1 in both.
    #[serde(default = "unit")]
    pub gamma: f64,
    /// Of generalized advantages (Schulman et al. 2015); 0.95 in both.
    #[serde(default = "lambda")]
    pub lambda: f64,
    /// How far the ratio of probabilities counts from 1; 0.2 in both.
    #[serde(default = "clip")]
    pub clip: f64,
    /// How far a value counts from that of the rollout; 0.2 in both.
    #[serde(default = "clip")]
    pub value_clip: f64,
    /// Of the loss of the values; 0.1 in both.
    #[serde(default = "value_coef")]
    pub value_coef: f64,
    /// Taken off the score of an answer that was cut before its stop token; 1 in TRL's examples.
    #[serde(default = "unit")]
    pub no_stop_penalty: f64,
    /// Sequences that a replica writes side by side.
    #[serde(default = "side_by_side")]
    pub side_by_side: usize,
    /// Weights of what the policy is to stay near, as `init_from`; those that the job begins with where it is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
    /// An export of a job of kind `reward`, whose score an answer has; of the same model but for what it ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<PathBuf>,
    /// Taken off that score, which is then divided by `reward_std`. What is not given is that of the answers of the first iteration that
    /// end with the stop token, so that the score of what the job begins with has the mean 0 and the deviation 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_mean: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_std: Option<f64>,
    /// What an answer has to look like, which is worth 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
}

/// What scores of a reward model are measured by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RewardScale {
    pub mean: f64,
    pub std: f64,
}

impl RewardScale {
    /// That of the keys, and for what they leave open that of `scores`, as many as are numbers. Where those do not differ, the deviation is 1.
    pub fn of(ppo: &PpoConfig, scores: impl Iterator<Item = f64>) -> RewardScale {
        let scores: Vec<f64> = scores.filter(|score| score.is_finite()).collect();
        let num = scores.len().max(1) as f64;
        let mean = scores.iter().sum::<f64>() / num;
        let std = (scores.iter().map(|score| (score - mean) * (score - mean)).sum::<f64>() / num).sqrt();
        RewardScale { mean, std: if std > 0.0 { std } else { 1.0 } }.or_given(ppo)
    }

    /// What the keys give, in the place of what was measured.
    pub fn or_given(self, ppo: &PpoConfig) -> RewardScale {
        RewardScale { mean: ppo.reward_mean.unwrap_or(self.mean), std: ppo.reward_std.unwrap_or(self.std) }
    }

    pub fn apply(self, score: f64) -> f64 {
        (score - self.mean) / self.std
    }
}

/// A form of answers that can be looked at without a model: it ends with the stop token, and what comes before has so many tokens, all of
/// these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    pub tokens: BTreeSet<u32>,
    #[serde(default = "one_token")]
    pub min: usize,
    #[serde(default = "any_number")]
    pub max: usize,
}

impl Form {
    /// `answer` is without its stop token; `has_stop`: it has one.
    pub fn fits(&self, answer: &[u32], has_stop: bool) -> bool {
        has_stop
            && (self.min..=self.max).contains(&answer.len())
            && answer.iter().all(|token| self.tokens.contains(token))
    }
}

fn epochs() -> u64 {
    4
}
fn one() -> u64 {
    1
}
fn one_token() -> usize {
    1
}
fn any_number() -> usize {
    1 << 24
}
fn max_tokens() -> usize {
    53
}
fn temperature() -> f64 {
    0.7
}
fn kl_coef() -> f64 {
    0.05
}
fn kl_horizon() -> f64 {
    10_000.0
}
fn unit() -> f64 {
    1.0
}
fn lambda() -> f64 {
    0.95
}
fn clip() -> f64 {
    0.2
}
fn value_coef() -> f64 {
    0.1
}
fn side_by_side() -> usize {
    16
}

impl PpoConfig {
    /// Optimizer steps of an iteration.
    pub fn steps(&self) -> u64 {
        self.epochs * self.minibatches
    }

    /// The coefficient after an iteration of `answers` answers that diverged by `kl` nats each, in the mean.
    pub fn next_kl_coef(&self, kl_coef: f64, kl: f64, answers: u64) -> f64 {
        match self.kl_target {
            // What is no number steers nothing.
            Some(target) if kl.is_finite() => {
                let error = (kl / target - 1.0).clamp(-0.2, 0.2);
                kl_coef * (1.0 + error * answers as f64 / self.kl_horizon)
            }
            _ => kl_coef,
        }
    }
}

impl JobSpec {
    /// Steps after which a checkpoint can be made: multiples of this. What is between needs the rollouts of its iteration, too, which
    /// parameters cannot make again.
    pub fn steps_of_iteration(&self) -> u64 {
        self.ppo.as_ref().map_or(1, PpoConfig::steps)
    }

    /// Answers of an iteration.
    pub fn answers_of_iteration(&self) -> u64 {
        self.ppo.as_ref().map_or(0, |ppo| ppo.minibatches.saturating_mul(self.batch.samples()))
    }

    /// Weights from elsewhere that the job names, with their keys.
    pub fn weights(&self) -> Vec<(&'static str, &Path)> {
        let ppo = self.ppo.as_ref();
        let named = [
            ("init_from", self.init_from.as_deref()),
            ("ppo.reference", ppo.and_then(|ppo| ppo.reference.as_deref())),
            ("ppo.reward_model", ppo.and_then(|ppo| ppo.reward_model.as_deref())),
        ];
        named.into_iter().filter_map(|(key, path)| Some((key, path?))).collect()
    }

    /// Samples of the data that the job takes in all.
    pub fn samples_needed(&self) -> u64 {
        self.samples_of(self.steps)
    }

    /// Samples of the data that the first `steps` steps take: of an iteration all prompts are taken at its first step.
    pub fn samples_of(&self, steps: u64) -> u64 {
        match &self.ppo {
            Some(ppo) => steps.div_ceil(ppo.steps()) * self.answers_of_iteration(),
            None => steps * self.batch.samples(),
        }
    }

    /// The step that takes sample `sample`, both from 0.
    pub fn step_of_sample(&self, sample: u64) -> u64 {
        match &self.ppo {
            Some(ppo) => sample / self.answers_of_iteration() * ppo.steps(),
            None => sample / self.batch.samples(),
        }
    }

    pub(super) fn check_ppo(&self) -> Result<(), JobError> {
        let Some(ppo) = &self.ppo else {
            return match self.kind {
                JobKind::Ppo => {
                    Err(JobError::Missing { key: "[ppo]", hint: "say at least stop_token, and what is rewarded" })
                }
                _ => Ok(()),
            };
        };
        if self.kind != JobKind::Ppo {
            let kind = self.kind.name();
            return value("[ppo]", "given", format!("none: kind = \"{kind}\" makes no rollouts"));
        }
        ppo.check_numbers()?;
        if self.resume_from.is_some() && ppo.reference.is_none() {
            let hint = "a job that resumes another begins beyond the reference: name the init_from of that one";
            return Err(JobError::Missing { key: "ppo.reference", hint });
        }
        for (key, found, highest) in [
            ("ppo.epochs", ppo.epochs, STEPS_MAX),
            ("ppo.minibatches", ppo.minibatches, STEPS_MAX),
            ("ppo.max_tokens", ppo.max_tokens as u64, self.model.seq as u64),
            ("ppo.side_by_side", ppo.side_by_side as u64, 4096),
        ] {
            if !(1..=highest).contains(&found) {
                return value(key, found, format!("1 to {highest}"));
            }
        }
        let steps = ppo.steps();
        if steps > STEPS_MAX {
            return value("ppo.epochs * ppo.minibatches", steps, format!("at most {STEPS_MAX} steps an iteration"));
        }
        let of_iteration = [
            ("steps", self.steps),
            ("checkpoint.interval_steps", self.checkpoint.interval_steps),
            ("checkpoint.keep_every_steps", self.checkpoint.keep_every_steps),
        ];
        for (key, found) in of_iteration {
            if !found.is_multiple_of(steps) {
                let expected = format!("a multiple of ppo.epochs * ppo.minibatches = {steps}: whole iterations");
                return value(key, found, expected);
            }
        }
        let numbers = self.answers_of_iteration().saturating_mul(4 * ppo.max_tokens as u64 + 8);
        if numbers > NUMBERS_MAX {
            let expected = format!(
                "at most {NUMBERS_MAX} numbers of all its tokens; lower batch.global, ppo.minibatches or ppo.max_tokens"
            );
            return value("ppo", format!("{numbers} numbers an iteration"), expected);
        }
        if ppo.stop_token as usize >= self.model.vocab {
            return value(
                "ppo.stop_token",
                ppo.stop_token,
                format!("a token below model.vocab = {}", self.model.vocab),
            );
        }
        ppo.check_form(self.model.vocab)?;
        if self.eval.num_micro_batches > 0 {
            let expected = "0: what a policy is worth is measured on its own answers, in every iteration";
            return value("eval.micro_batches", self.eval.num_micro_batches, expected.into());
        }
        if self.data.validation > 0.0 {
            let expected = "0: a policy is measured on its own answers, and what is held out would not be used";
            return value("data.validation", self.data.validation, expected.into());
        }
        Ok(())
    }
}

impl PpoConfig {
    /// Whether any answer can have the form.
    fn check_form(&self, vocab: usize) -> Result<(), JobError> {
        let Some(form) = &self.form else { return Ok(()) };
        if let Some(token) = form.tokens.iter().find(|token| **token as usize >= vocab) {
            return value("ppo.form.tokens", token, format!("tokens below model.vocab = {vocab}"));
        }
        if form.tokens.iter().all(|token| *token == self.stop_token) {
            let expected = "a token besides ppo.stop_token, which ends the answer and is no part of what is before it";
            return value("ppo.form.tokens", self.stop_token, expected.into());
        }
        // Without the stop token.
        let longest = self.max_tokens - 1;
        if form.min > longest {
            let expected = format!("at most {longest}: ppo.max_tokens = {} with the stop token", self.max_tokens);
            return value("ppo.form.min", form.min, expected);
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), JobError> {
        let positive = |x: f64| x > 0.0;
        let at_least_0 = |x: f64| x >= 0.0;
        let to_1 = |x: f64| (0.0..=1.0).contains(&x);
        for (key, found, expected, ok) in [
            ("ppo.temperature", self.temperature, "a positive number", positive(self.temperature)),
            ("ppo.kl_coef", self.kl_coef, "at least 0", at_least_0(self.kl_coef)),
            ("ppo.kl_target", self.kl_target.unwrap_or(1.0), "a positive number", self.kl_target.is_none_or(positive)),
            ("ppo.kl_horizon", self.kl_horizon, "a positive number", positive(self.kl_horizon)),
            ("ppo.gamma", self.gamma, "0 to 1", to_1(self.gamma)),
            ("ppo.lambda", self.lambda, "0 to 1", to_1(self.lambda)),
            ("ppo.clip", self.clip, "a positive number", positive(self.clip)),
            ("ppo.value_clip", self.value_clip, "a positive number", positive(self.value_clip)),
            ("ppo.value_coef", self.value_coef, "at least 0", at_least_0(self.value_coef)),
            ("ppo.no_stop_penalty", self.no_stop_penalty, "at least 0", at_least_0(self.no_stop_penalty)),
            ("ppo.reward_mean", self.reward_mean.unwrap_or(0.0), "a number", true),
            (
                "ppo.reward_std",
                self.reward_std.unwrap_or(1.0),
                "a positive number",
                self.reward_std.is_none_or(positive),
            ),
        ] {
            if !ok || !found.is_finite() {
                return value(key, found, expected.into());
            }
        }
        for (key, given) in [("ppo.reward_mean", self.reward_mean), ("ppo.reward_std", self.reward_std)] {
            if let (Some(found), None) = (given, &self.reward_model) {
                let expected = "none: it measures the scores of a ppo.reward_model, and there is no such model";
                return value(key, found, expected.into());
            }
        }
        match (&self.reward_model, &self.form) {
            (None, None) => Err(JobError::Missing {
                key: "ppo.reward_model",
                hint: "say what an answer is worth: an export of a reward model, or ppo.form, or both",
            }),
            (_, Some(form)) if form.tokens.is_empty() => value("ppo.form.tokens", "none", "at least one token".into()),
            (_, Some(form)) if form.min > form.max => {
                value("ppo.form.min", form.min, format!("at most ppo.form.max = {}", form.max))
            }
            _ => Ok(()),
        }
    }
}
