//! What is kept of validations: pages of a job's list, see [`crate::validations`].

use serde::{Deserialize, Deserializer, Serialize};
use toroid_torus::ids::{Epoch, JobId, Step};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    pub step: Step,
    pub epoch: Epoch,
    /// Nats per token; not a number where a loss was not finite.
    #[serde(deserialize_with = "or_no_number")]
    pub ce: f64,
    /// The same; 0 where tokens are no bytes.
    #[serde(deserialize_with = "or_no_number")]
    pub bits_per_byte: f64,
    pub tokens: u64,
    /// In the order of the job file; none where it has a path alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceValidation>,
    /// Of a reward model, whose tokens are pairs: those that it ranks right, and ties.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub correct: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ties: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// On held-out text of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceValidation {
    /// Nats per token; not a number where a loss was not finite.
    #[serde(deserialize_with = "or_no_number")]
    pub ce: f64,
    pub tokens: u64,
}

impl Validation {
    /// Of the same step the same was found, in whatever epoch it was said.
    pub fn says_the_same(&self, other: &Validation) -> bool {
        let is_same = |a: f64, b: f64| a == b || !a.is_finite() && !b.is_finite();
        self.step == other.step && is_same(self.ce, other.ce) && self.tokens == other.tokens
    }
}

/// Validations of a job that follow each other, ascending by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidationPage {
    pub job: JobId,
    /// From 0 within the job.
    pub number: u64,
    pub validations: Vec<Validation>,
}

/// JSON has finite numbers only: others are `null` in it.
fn or_no_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|value| value.unwrap_or(f64::NAN))
}
