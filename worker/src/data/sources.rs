//! All that a job is trained on.

use std::sync::Arc;

use toroid_tokens::Kind;
use toroid_torus::job::{JobKind, JobSpec, SourceConfig};
use toroid_torus::mixture::{Mixture, Part};

use super::DataError;
use super::dataset::Dataset;
use super::files::tokenizer_in_words;
use super::stream::Tokens;

/// The data sets of a job's sources, and the order of its samples over all of them.
#[derive(Debug, Clone)]
pub struct Sources {
    /// As the job names them; one that it only gives a path has no name.
    configs: Vec<SourceConfig>,
    datasets: Vec<Dataset>,
    mixture: Mixture,
    digest: [u8; 32],
}

impl Sources {
    /// Of the tokens of each of [`toroid_torus::job::DataConfig::all_sources`].
    pub fn new(spec: &JobSpec, tokens: &[Arc<Tokens>]) -> Result<Sources, DataError> {
        let configs = spec.data.all_sources();
        assert_eq!(configs.len(), tokens.len(), "each source has its tokens");
        for found in tokens {
            check_kind(spec.kind, found)?;
            check_alike(found, &tokens[0])?;
            // Embedding and head have a row for each token.
            if found.vocabulary() as usize > spec.model.vocab {
                return Err(DataError::Vocabulary {
                    source_summary: found.source_summary(),
                    vocabulary: found.vocabulary(),
                    vocab: spec.model.vocab,
                });
            }
        }
        let datasets: Vec<Dataset> =
            tokens.iter().map(|tokens| Dataset::new(Arc::clone(tokens), spec)).collect::<Result<_, _>>()?;
        let mixture = mixture(spec, &datasets);
        let needed = spec.samples_needed();
        if let Some(found) = mixture.end().filter(|found| *found < needed) {
            let most = |part: &Part| part.num_max.unwrap_or(u64::MAX);
            let one = |(config, part): (&SourceConfig, &Part)| {
                format!("{} has {} samples a pass and gives at most {}", config.name, part.num_samples, most(part))
            };
            let by_source = configs.iter().zip(mixture.parts()).map(one).collect::<Vec<_>>().join(", ");
            let (steps, of_step) = (spec.steps, spec.batch.samples());
            return Err(DataError::Exhausted { found, needed, steps, of_step, by_source });
        }
        let digest = match spec.data.sources.is_empty() {
            true => tokens[0].digest(),
            false => digest(&configs, tokens, mixture.parts()),
        };
        Ok(Sources { configs, datasets, mixture, digest })
    }

    /// The same in another order, as if the job had another seed.
    pub fn reordered(&mut self, spec: &JobSpec) {
        self.mixture = mixture(spec, &self.datasets);
    }

    /// Names the tokens of all sources, and what part each has: the same digest, the same samples.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Hexadecimal blake3 of the tokenizer's file; `None`: a token is a byte.
    pub fn tokenizer(&self) -> Option<String> {
        let tokens = self.datasets[0].tokens();
        (!tokens.are_bytes()).then(|| blake3::Hash::from_bytes(tokens.tokenizer()).to_hex().to_string())
    }

    /// Refuses what was written to since it was opened: of all files that which is its turn, as looking at each takes its time.
    pub fn check_file(&self, turn: u64) -> Result<(), DataError> {
        let files =
            self.datasets.iter().flat_map(|dataset| (0..dataset.tokens().num_files()).map(move |n| (dataset, n)));
        let num = files.clone().count() as u64;
        files.skip((turn % num.max(1)) as usize).take(1).try_for_each(|(dataset, n)| dataset.tokens().check_file(n))
    }

    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }

    /// In the order of the job file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&SourceConfig, &Dataset)> {
        self.configs.iter().zip(&self.datasets)
    }

    pub fn dataset(&self, source: usize) -> &Dataset {
        &self.datasets[source]
    }

    /// Samples to train on, of all sources.
    pub fn num_train(&self) -> u64 {
        self.datasets.iter().map(Dataset::num_train).sum()
    }
}

fn mixture(spec: &JobSpec, datasets: &[Dataset]) -> Mixture {
    Mixture::of_job(spec, &datasets.iter().map(Dataset::num_train).collect::<Vec<_>>())
}

fn check_kind(kind: JobKind, tokens: &Tokens) -> Result<(), DataError> {
    let expected = match kind {
        JobKind::Pretrain => Kind::Text,
        JobKind::Sft | JobKind::Ppo => Kind::Dialogues,
        JobKind::Reward => Kind::Preferences,
    };
    let (found, source_summary) = (tokens.kind(), tokens.source_summary());
    if found == expected { Ok(()) } else { Err(DataError::Kind { kind, expected, found, source_summary }) }
}

fn check_alike(found: &Tokens, first: &Tokens) -> Result<(), DataError> {
    if found.tokenizer() == first.tokenizer() && found.vocabulary() == first.vocabulary() {
        return Ok(());
    }
    let in_words = |tokens: &Tokens| tokenizer_in_words(tokens.tokenizer(), tokens.vocabulary());
    Err(DataError::Tokenizers {
        what: found.source_summary(),
        found: in_words(found),
        other: first.source_summary(),
        expected: in_words(first),
    })
}

/// Workers that do not have the same of each source, in the same shares, take other samples.
fn digest(configs: &[SourceConfig], tokens: &[Arc<Tokens>], parts: &[Part]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for ((config, tokens), part) in configs.iter().zip(tokens).zip(parts) {
        hasher.update(&(config.name.len() as u64).to_le_bytes());
        hasher.update(config.name.as_bytes());
        hasher.update(&tokens.digest());
        hasher.update(&part.share.to_le_bytes());
        hasher.update(&part.num_max.unwrap_or(u64::MAX).to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}
