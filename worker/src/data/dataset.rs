//! Samples: `seq + 1` tokens from `id * stride` on, the first `seq` of them inputs, the last `seq` targets.

use std::ops::Range;
use std::sync::Arc;

use toroid_torus::job::DataConfig;

use super::{DataError, TokenFile};

/// The train and the validation part of a token file. Parts are cut by tokens, so that they share none; a sample never
/// leaves its part.
#[derive(Debug, Clone)]
pub struct Dataset {
    tokens: Arc<TokenFile>,
    seq: usize,
    stride: usize,
    train: Range<usize>,
    validation: Range<usize>,
}

impl Dataset {
    /// The last `config.validation` of the tokens is the validation part, the rest the train part.
    pub fn new(tokens: Arc<TokenFile>, seq: usize, config: &DataConfig) -> Result<Dataset, DataError> {
        assert!(seq > 0 && config.stride > 0, "a checked job has seq and stride above 0");
        assert!((0.0..=0.5).contains(&config.validation), "a checked job has a validation of 0 to 0.5");
        let len = tokens.tokens().len();
        let held_out = (len as f64 * config.validation).floor() as usize;
        let (train, validation) = (0..len - held_out, len - held_out..len);
        let dataset = Dataset { tokens, seq, stride: config.stride, train, validation };
        if dataset.num_train() == 0 {
            return Err(dataset.too_little("training", &dataset.train, "or lower model.seq"));
        }
        if config.validation > 0.0 && dataset.num_validation() == 0 {
            let hint = "raise data.validation, or set it to 0 for no validation";
            return Err(dataset.too_little("validation", &dataset.validation, hint));
        }
        Ok(dataset)
    }

    fn too_little(&self, part: &'static str, range: &Range<usize>, hint: &'static str) -> DataError {
        DataError::TooLittle {
            part,
            needed: self.seq as u64 + 1,
            found: range.len() as u64,
            source_summary: self.tokens.source_summary(),
            hint,
        }
    }

    /// What the samples are cut out of.
    pub fn text(&self) -> &TokenFile {
        &self.tokens
    }

    /// Samples of the train part.
    pub fn num_train(&self) -> u64 {
        self.num_samples(&self.train)
    }

    /// Samples of the validation part; 0 where nothing is held out.
    pub fn num_validation(&self) -> u64 {
        self.num_samples(&self.validation)
    }

    fn num_samples(&self, part: &Range<usize>) -> u64 {
        part.len().checked_sub(self.seq + 1).map_or(0, |rest| (rest / self.stride) as u64 + 1)
    }

    /// Sample `id` of the train part: `inputs` (seq) and `targets` (seq), the tokens one further.
    pub fn train_sample(&self, id: u64, inputs: &mut [u32], targets: &mut [u32]) {
        self.sample(&self.train, id, inputs, targets);
    }

    /// Sample `id` of the validation part, as [`Dataset::train_sample`].
    pub fn validation_sample(&self, id: u64, inputs: &mut [u32], targets: &mut [u32]) {
        self.sample(&self.validation, id, inputs, targets);
    }

    fn sample(&self, part: &Range<usize>, id: u64, inputs: &mut [u32], targets: &mut [u32]) {
        let num_samples = self.num_samples(part);
        assert!(id < num_samples, "sample {id} of {num_samples} was asked for");
        assert_eq!(
            (inputs.len(), targets.len()),
            (self.seq, self.seq),
            "inputs and targets have the length of a sample"
        );
        let start = part.start + id as usize * self.stride;
        let tokens = &self.tokens.tokens()[start..=start + self.seq];
        for i in 0..self.seq {
            inputs[i] = u32::from(tokens[i]);
            targets[i] = u32::from(tokens[i + 1]);
        }
    }
}
