//! Validation on held-out text: forward only, on the same samples each time.

use std::collections::VecDeque;

use toroid_proto::Validation;

use toroid_session::Event;

use super::step::{receive, send};
use super::{Emit, Job, Shared};
use crate::comm::{Channel, CommError, Links, TpGroup, global_sum};
use crate::device::Device;
use crate::model::Input;

/// Over all places, after `step`; every place has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ValidationSums {
    pub step: u64,
    /// Cross-entropy in nats.
    pub ce: f64,
    pub tokens: f64,
}

/// What the last validations found, ascending by step, at every place: no coordinator may have heard of them when rank 0 dies.
#[derive(Debug, Default)]
pub(super) struct Validations(VecDeque<ValidationSums>);

impl Validations {
    /// As many are kept.
    pub const NUM_MAX: usize = 64;
    /// Numbers that all of them are.
    pub const LEN: usize = 3 * Self::NUM_MAX;

    /// One of the same step is replaced: it was made again.
    fn keep(&mut self, sums: ValidationSums) {
        self.0.retain(|kept| kept.step < sums.step);
        if self.0.len() == Self::NUM_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sums);
    }

    /// Into [`Self::LEN`] numbers that are 0.
    pub fn write(&self, values: &mut [f64]) {
        for (v, slot) in self.0.iter().zip(values.chunks_exact_mut(3)) {
            slot.copy_from_slice(&[v.step as f64, v.ce, v.tokens]);
        }
    }

    pub fn read(values: &[f64]) -> Validations {
        let has_tokens = |slot: &&[f64]| slot[2] > 0.0;
        let sums = |slot: &[f64]| ValidationSums { step: slot[0] as u64, ce: slot[1], tokens: slot[2] };
        Validations(values.chunks_exact(3).filter(has_tokens).map(sums).collect())
    }
}

impl<D: Device + Clone> Job<D> {
    /// Mean cross-entropy over the validation micro-batches; rank 0 reports it.
    pub(super) fn validate(&mut self, links: &mut Links, shared: &Shared, emit: &Emit) -> Result<(), CommError> {
        let spec = std::sync::Arc::clone(&self.assignment.spec);
        let place = self.assignment.place();
        let num_micro_batches = spec.eval.num_micro_batches;
        if num_micro_batches == 0 {
            return Ok(());
        }
        self.finish_gather(links)?;
        shared.enter("validate");
        let mut sums = [0.0f64; 2];
        let dp = spec.shape.dp();
        for index in place.dp * num_micro_batches / dp..(place.dp + 1) * num_micro_batches / dp {
            let ce = self.validate_micro_batch(links, index)?;
            if place.pp + 1 == spec.shape.pp() && place.tp == 0 {
                sums[0] += ce;
                sums[1] += self.buffers.targets.len() as f64;
            }
        }
        global_sum(links, &spec.shape, &mut sums)?;
        let sums = ValidationSums { step: self.committed, ce: sums[0], tokens: sums[1] };
        self.validations.keep(sums);
        self.report_validation(sums, emit);
        Ok(())
    }

    /// A new rank 0 says what the old one may not have said.
    pub(super) fn report_validations(&self, emit: &Emit) {
        self.validations.0.iter().for_each(|sums| self.report_validation(*sums, emit));
    }

    fn report_validation(&self, ValidationSums { step, ce, tokens }: ValidationSums, emit: &Emit) {
        if self.assignment.rank != 0 {
            return;
        }
        let ce = ce / tokens;
        // Tokens are bytes.
        let bits_per_byte = ce / std::f64::consts::LN_2;
        let validation = Validation { step, ce, bits_per_byte, tokens: tokens as u64 };
        emit(self.assignment.event(Event::Validated(validation)));
    }

    /// Sum of the cross-entropy over the tokens of micro-batch `index`; 0 on all stages but the last.
    fn validate_micro_batch(&mut self, links: &mut Links, index: usize) -> Result<f64, CommError> {
        let (micro_batch, seq) = (self.assignment.spec.batch.micro_batch, self.assignment.spec.model.seq);
        let b = &mut self.buffers;
        for i in 0..micro_batch {
            let id = (index * micro_batch + i) as u64 % self.dataset.num_validation();
            let at = i * seq..(i + 1) * seq;
            self.dataset.validation_sample(id, &mut b.inputs[at.clone()], &mut b.targets[at]);
        }
        let neighbours = self.neighbours();
        if let Some(previous) = neighbours.previous {
            receive(links, previous, Channel::Eval, &mut self.buffers.received)?;
        }
        let b = &mut self.buffers;
        let mut tp = TpGroup::new(links, &self.groups.tp, &mut b.scratch);
        let input =
            if neighbours.previous.is_some() { Input::Activations(&b.received) } else { Input::Tokens(&b.inputs) };
        let targets = neighbours.next.is_none().then_some(b.targets.as_slice());
        let output = neighbours.next.is_some().then_some(b.sent.as_mut_slice());
        let ce = self.stage.evaluate(input, targets, &mut tp, output)?;
        if let Some(next) = neighbours.next {
            send(links, next, Channel::Eval, &self.buffers.sent)?;
        }
        Ok(ce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(step: u64) -> ValidationSums {
        ValidationSums { step, ce: step as f64 / 4.0, tokens: 32.0 }
    }

    #[test]
    fn the_newest_validations_are_kept_and_arrive_at_a_newcomer() {
        let mut kept = Validations::default();
        // That of step 3 is made twice, and of step 0 it is one, too.
        [0, 1, 2, 3, 3].into_iter().for_each(|step| kept.keep(sums(step)));
        let passed_on = |kept: &Validations| {
            let mut values = [0.0; Validations::LEN];
            kept.write(&mut values);
            Validations::read(&values).0
        };
        assert_eq!(passed_on(&kept), [0, 1, 2, 3].map(sums));
        (4..=100).for_each(|step| kept.keep(sums(step)));
        assert_eq!(passed_on(&kept), (37..=100).map(sums).collect::<Vec<_>>());
    }
}
