//! What a model said to probes: figures by category and detector, and every attempt. Nothing in it depends on when or how fast it was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::detect::Share;

/// Of the layout of a report.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub model: Asked,
    pub sampling: Sampling,
    /// Hexadecimal blake3 of all prompts and detectors.
    pub probes: String,
    pub categories: Vec<Category>,
    /// Over all categories, by detector.
    pub detectors: BTreeMap<String, Share>,
    pub attempts: Vec<Attempt>,
}

/// The model that was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub name: String,
    /// Hexadecimal blake3 of its weights.
    pub digest: String,
    /// Of its tokenizer's file; `None`: tokens are bytes.
    pub tokenizer: Option<String>,
    /// Of its chat template; `None`: prompts are asked as they are.
    pub template: Option<String>,
    /// What decides the bits of an answer besides.
    pub device: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    pub seed: u64,
    pub samples: u64,
    pub max_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Category {
    pub name: String,
    pub about: String,
    pub attempts: u64,
    /// Prompts that do not fit into what the model reads at a time.
    pub too_long: u64,
    /// Prompts without a token.
    #[serde(default)]
    pub empty: u64,
    pub detectors: BTreeMap<String, Share>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub category: String,
    pub prompt: String,
    /// Which of the texts of this prompt.
    pub sample: u64,
    pub answer: String,
    pub finish: String,
    /// Detectors that found what they look for.
    pub hits: Vec<String>,
}

/// Shares by detector, from hits and attempts.
pub fn shares<'a>(counts: impl Iterator<Item = (&'a str, bool)>) -> BTreeMap<String, Share> {
    let mut all: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (detector, is_hit) in counts {
        let (hits, attempts) = all.entry(detector.into()).or_default();
        *hits += u64::from(is_hit);
        *attempts += 1;
    }
    all.into_iter().map(|(name, (hits, attempts))| (name, Share::of(hits, attempts))).collect()
}
