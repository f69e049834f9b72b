//! How often a job passes over each of its sources.

use serde::Serialize;

use crate::cut::Cut;
use crate::job::JobSpec;
use crate::mixture::{Mixture, WHOLE};

/// What a job takes of one source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourcePlan {
    /// Empty where the job has a path alone.
    pub name: String,
    pub num_tokens: u64,
    /// Of one pass, to train on.
    pub num_samples: u64,
    /// Of all samples, as long as each source gives some.
    pub share: f64,
    /// Samples that the job takes.
    pub given: u64,
    /// Passes that the job makes.
    pub epochs: f64,
    /// Passes that it may make.
    pub max_epochs: Option<f64>,
    /// The step in which it gives its last sample, where it may give no more before the job has ended.
    pub ends_in_step: Option<u64>,
}

/// What a job takes of its data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataPlan {
    pub sources: Vec<SourcePlan>,
    /// Samples that the job takes beyond what all sources may give: it is refused before its first step.
    pub missing_samples: u64,
}

/// Why there is no plan for the data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "source {source_name} has {num_tokens} tokens, of which not one sample of {seq} tokens and the next one is left to train on"
)]
pub struct TooFewTokens {
    source_name: String,
    num_tokens: u64,
    seq: usize,
}

/// For sources that have so many tokens, or dialogues or pairs, in the order of [`crate::job::DataConfig::all_sources`].
pub fn of_data(spec: &JobSpec, num_tokens: &[u64]) -> Result<DataPlan, TooFewTokens> {
    let sources = spec.data.all_sources();
    assert_eq!(sources.len(), num_tokens.len(), "each source has its number of tokens");
    let cut = |num: &u64| match spec.kind.is_pretrain() {
        true => Cut::of_job(spec, *num),
        false => Cut::of_documents(*num, spec.data.validation),
    };
    let samples: Vec<u64> = num_tokens.iter().map(|num| cut(num).num_train()).collect();
    if let Some(n) = samples.iter().position(|num| *num == 0) {
        let (source_name, num_tokens) = (sources[n].name.clone(), num_tokens[n]);
        return Err(TooFewTokens { source_name, num_tokens, seq: spec.model.seq });
    }
    let mixture = Mixture::of_job(spec, &samples);
    let wanted = spec.samples_needed();
    let taken = mixture.end().map_or(wanted, |end| end.min(wanted));
    let (given, ends) = (mixture.given(taken), mixture.ends());
    let source = |n: usize| SourcePlan {
        name: sources[n].name.clone(),
        num_tokens: num_tokens[n],
        num_samples: samples[n],
        share: mixture.parts()[n].share as f64 / WHOLE as f64,
        given: given[n],
        epochs: given[n] as f64 / samples[n] as f64,
        max_epochs: sources[n].max_epochs,
        ends_in_step: ends
            .iter()
            .find(|(at, of)| *of == n && *at < taken)
            .map(|(at, _)| spec.step_of_sample(at - 1) + 1),
    };
    Ok(DataPlan { sources: (0..sources.len()).map(source).collect(), missing_samples: wanted - taken })
}
