//! Validation on held-out text: forward only, on the same samples each time.

use std::sync::Arc;

use super::emit::Emit;
use super::job::Job;
use super::shared::Shared;
use super::validations::ValidationSums;
use crate::comm::{CommError, Links, global_sum};
use crate::device::Device;

impl<D: Device + Clone> Job<D> {
    /// Mean cross-entropy over the validation micro-batches; rank 0 reports it.
    pub(super) fn validate(&mut self, links: &mut Links, shared: &Shared, emit: &Emit) -> Result<(), CommError> {
        let spec = Arc::clone(&self.assignment.spec);
        let num_micro_batches = spec.eval.num_micro_batches;
        if num_micro_batches == 0 {
            return Ok(());
        }
        self.passes.finish_gather(links)?;
        shared.enter("validate");
        let mut sums = [0.0f64; 2];
        let (dp, dp_rank) = (spec.shape.dp(), self.assignment.place().dp);
        for index in dp_rank * num_micro_batches / dp..(dp_rank + 1) * num_micro_batches / dp {
            let [ce, tokens] = self.passes.evaluate(links, &self.assignment, &self.samples, index)?;
            sums[0] += ce;
            sums[1] += tokens;
        }
        global_sum(links, &spec.shape, &mut sums)?;
        let sums = ValidationSums { step: self.committed, ce: sums[0], tokens: sums[1] };
        self.curve.keep_validation(&self.assignment, sums, emit);
        Ok(())
    }
}
