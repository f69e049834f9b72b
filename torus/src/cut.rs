//! Which tokens of a source are held out, and how many samples the others make.

use std::ops::Range;

use crate::job::JobSpec;

/// The two parts of a source, cut by tokens, so that they share none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Tokens to train on.
    pub train: Range<u64>,
    /// Tokens that are held out, at the end.
    pub validation: Range<u64>,
    seq: u64,
    stride: u64,
}

impl Cut {
    /// Of `num_tokens` tokens, whose last `validation` are held out. A sample has `seq` tokens and one that follows them, and begins `stride`
    /// tokens behind the one before; it never leaves its part.
    pub fn new(num_tokens: u64, seq: usize, stride: usize, validation: f64) -> Cut {
        assert!(seq > 0 && stride > 0, "a checked job has seq and stride above 0");
        assert!((0.0..=0.5).contains(&validation), "a checked job has a validation of 0 to 0.5");
        let border = num_tokens - (num_tokens as f64 * validation).floor() as u64;
        Cut { train: 0..border, validation: border..num_tokens, seq: seq as u64, stride: stride as u64 }
    }

    /// Of `num` documents, each of which is a sample; the last are held out.
    pub fn of_documents(num: u64, validation: f64) -> Cut {
        Cut { seq: 0, ..Cut::new(num, 1, 1, validation) }
    }

    /// Of one source of a job, which has so many tokens.
    pub fn of_job(spec: &JobSpec, num_tokens: u64) -> Cut {
        Cut::new(num_tokens, spec.model.seq, spec.data.stride, spec.data.validation)
    }

    /// Samples of the train part.
    pub fn num_train(&self) -> u64 {
        self.num_samples(&self.train)
    }

    /// Samples of the validation part; 0 where nothing is held out.
    pub fn num_validation(&self) -> u64 {
        self.num_samples(&self.validation)
    }

    /// Samples of one of the two parts.
    pub fn num_samples(&self, part: &Range<u64>) -> u64 {
        (part.end - part.start).checked_sub(self.seq + 1).map_or(0, |rest| rest / self.stride + 1)
    }
}
