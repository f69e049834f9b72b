//! Validation on held-out text: forward only, on the same samples each time.

use std::sync::Arc;

use super::emit::Emit;
use super::job::Job;
use super::shared::Shared;
use super::validations::SourceSums;
use crate::comm::{CommError, Links, global_sum};
use crate::device::CachedAttention;

impl<D: CachedAttention> Job<D> {
    /// Mean cross-entropy over the validation micro-batches, by source; rank 0 reports it.
    pub(super) fn validate(&mut self, links: &mut Links, shared: &Shared, emit: &Emit) -> Result<(), CommError> {
        let spec = Arc::clone(&self.assignment.spec);
        let num_micro_batches = spec.eval.num_micro_batches;
        if num_micro_batches == 0 {
            return Ok(());
        }
        self.passes.finish_gather(links)?;
        shared.enter("validate");
        let mut sums = self.samples.no_sums(self.committed);
        let (dp, dp_rank) = (spec.shape.dp(), self.assignment.place().dp);
        for index in dp_rank * num_micro_batches / dp..(dp_rank + 1) * num_micro_batches / dp {
            let found = self.passes.evaluate(links, &self.assignment, &self.samples, index)?;
            sums.of_sources[self.samples.validated(&spec, index).0] += found;
        }
        let mut values: Vec<f64> = sums.of_sources.iter().flat_map(|source| source.to_array()).collect();
        global_sum(links, &spec.shape, &mut values)?;
        sums.of_sources = values.as_chunks().0.iter().copied().map(SourceSums::from_array).collect();
        self.curve.keep_validation(&self.assignment, &self.samples, sums, emit);
        Ok(())
    }
}
