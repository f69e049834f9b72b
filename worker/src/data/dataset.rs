//! Samples: `seq + 1` tokens from `id * stride` on, the first `seq` of them inputs, the last `seq` targets.

use std::ops::Range;
use std::sync::Arc;

use toroid_torus::cut::Cut;
use toroid_torus::job::JobSpec;

use super::DataError;
use super::batch::Batch;
use super::dialogues::Dialogues;
use super::stream::Tokens;

/// The train and the validation part of a source.
#[derive(Debug, Clone)]
pub enum Dataset {
    Text(TextSamples),
    Documents(Dialogues),
}

impl Dataset {
    /// The last `data.validation` of the tokens, or of the documents, is the validation part, the rest the train part.
    pub fn new(tokens: Arc<Tokens>, spec: &JobSpec) -> Result<Dataset, DataError> {
        match spec.kind.is_pretrain() {
            true => TextSamples::new(tokens, spec).map(Dataset::Text),
            false => Dialogues::new(tokens, spec).map(Dataset::Documents),
        }
    }

    /// What the samples are cut out of.
    pub fn tokens(&self) -> &Tokens {
        match self {
            Dataset::Text(text) => &text.tokens,
            Dataset::Documents(documents) => documents.tokens(),
        }
    }

    /// Samples of the train part.
    pub fn num_train(&self) -> u64 {
        match self {
            Dataset::Text(text) => text.cut.num_train(),
            Dataset::Documents(documents) => documents.num_train(),
        }
    }

    /// Samples of the validation part; 0 where nothing is held out.
    pub fn num_validation(&self) -> u64 {
        match self {
            Dataset::Text(text) => text.cut.num_validation(),
            Dataset::Documents(documents) => documents.num_validation(),
        }
    }

    /// Sample `id` of the train part, as sample `at` of a cleared batch.
    pub fn train_sample(&self, id: u64, at: usize, batch: &mut Batch) {
        match self {
            Dataset::Text(text) => text.load(&text.cut.train, id, at, batch),
            Dataset::Documents(documents) => documents.train_sample(id, at, batch),
        }
    }

    /// What is answered of sample `id` of the train part.
    pub fn prompt(&self, id: u64) -> Vec<u32> {
        match self {
            Dataset::Text(_) => panic!("text has no prompts"),
            Dataset::Documents(documents) => documents.prompt(id),
        }
    }

    /// Sample `id` of the validation part, as [`Dataset::train_sample`].
    pub fn validation_sample(&self, id: u64, at: usize, batch: &mut Batch) {
        match self {
            Dataset::Text(text) => text.load(&text.cut.validation, id, at, batch),
            Dataset::Documents(documents) => documents.validation_sample(id, at, batch),
        }
    }

    /// Tokens of sample `id` of the train part whose cross-entropy counts.
    pub fn num_trained(&self, id: u64) -> u64 {
        match self {
            Dataset::Text(text) => text.seq as u64,
            Dataset::Documents(documents) => documents.num_trained(id),
        }
    }
}

/// Samples of text. Parts are cut by tokens, so that they share none; a sample never leaves its part.
#[derive(Debug, Clone)]
pub struct TextSamples {
    tokens: Arc<Tokens>,
    seq: usize,
    stride: u64,
    cut: Cut,
}

impl TextSamples {
    fn new(tokens: Arc<Tokens>, spec: &JobSpec) -> Result<TextSamples, DataError> {
        let cut = Cut::of_job(spec, tokens.len());
        let (num_train, num_validation) = (cut.num_train(), cut.num_validation());
        let samples = TextSamples { tokens, seq: spec.model.seq, stride: spec.data.stride as u64, cut };
        if num_train == 0 {
            return Err(samples.too_little("training", &samples.cut.train, "or lower model.seq"));
        }
        if spec.data.validation > 0.0 && num_validation == 0 {
            let hint = "raise data.validation, or set it to 0 for no validation";
            return Err(samples.too_little("validation", &samples.cut.validation, hint));
        }
        Ok(samples)
    }

    fn too_little(&self, part: &'static str, range: &Range<u64>, hint: &'static str) -> DataError {
        DataError::TooLittle {
            part,
            needed: self.seq as u64 + 1,
            found: range.end - range.start,
            source_summary: self.tokens.source_summary(),
            hint,
        }
    }

    fn load(&self, part: &Range<u64>, id: u64, at: usize, batch: &mut Batch) {
        let num_samples = self.cut.num_samples(part);
        assert!(id < num_samples, "sample {id} of {num_samples} was asked for");
        let rows = at * self.seq..(at + 1) * self.seq;
        let (inputs, targets) = (&mut batch.inputs[rows.clone()], &mut batch.targets[rows]);
        let start = part.start + id * self.stride;
        self.tokens.read(start, inputs);
        targets[..self.seq - 1].copy_from_slice(&inputs[1..]);
        self.tokens.read(start + self.seq as u64, &mut targets[self.seq - 1..]);
    }
}
