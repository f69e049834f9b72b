//! Samples: `seq + 1` tokens from `id * stride` on, the first `seq` of them inputs, the last `seq` targets.

use std::ops::Range;
use std::sync::Arc;

use toroid_torus::cut::Cut;
use toroid_torus::job::JobSpec;

use super::DataError;
use super::stream::Tokens;

/// The train and the validation part of a source. Parts are cut by tokens, so that they share none; a sample never leaves its part.
#[derive(Debug, Clone)]
pub struct Dataset {
    tokens: Arc<Tokens>,
    seq: usize,
    stride: u64,
    cut: Cut,
}

impl Dataset {
    /// The last `data.validation` of the tokens is the validation part, the rest the train part.
    pub fn new(tokens: Arc<Tokens>, spec: &JobSpec) -> Result<Dataset, DataError> {
        let cut = Cut::of_job(spec, tokens.len());
        let (num_train, num_validation) = (cut.num_train(), cut.num_validation());
        let dataset = Dataset { tokens, seq: spec.model.seq, stride: spec.data.stride as u64, cut };
        if num_train == 0 {
            return Err(dataset.too_little("training", &dataset.cut.train, "or lower model.seq"));
        }
        if spec.data.validation > 0.0 && num_validation == 0 {
            let hint = "raise data.validation, or set it to 0 for no validation";
            return Err(dataset.too_little("validation", &dataset.cut.validation, hint));
        }
        Ok(dataset)
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

    /// What the samples are cut out of.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Samples of the train part.
    pub fn num_train(&self) -> u64 {
        self.cut.num_train()
    }

    /// Samples of the validation part; 0 where nothing is held out.
    pub fn num_validation(&self) -> u64 {
        self.cut.num_validation()
    }

    /// Sample `id` of the train part: `inputs` (seq) and `targets` (seq), the tokens one further.
    pub fn train_sample(&self, id: u64, inputs: &mut [u32], targets: &mut [u32]) {
        self.sample(&self.cut.train, id, inputs, targets);
    }

    /// Sample `id` of the validation part, as [`Dataset::train_sample`].
    pub fn validation_sample(&self, id: u64, inputs: &mut [u32], targets: &mut [u32]) {
        self.sample(&self.cut.validation, id, inputs, targets);
    }

    fn sample(&self, part: &Range<u64>, id: u64, inputs: &mut [u32], targets: &mut [u32]) {
        let num_samples = self.cut.num_samples(part);
        assert!(id < num_samples, "sample {id} of {num_samples} was asked for");
        assert_eq!(
            (inputs.len(), targets.len()),
            (self.seq, self.seq),
            "inputs and targets have the length of a sample"
        );
        let start = part.start + id * self.stride;
        self.tokens.read(start, inputs);
        targets[..self.seq - 1].copy_from_slice(&inputs[1..]);
        self.tokens.read(start + self.seq as u64, &mut targets[self.seq - 1..]);
    }
}
