//! Validation on held-out text: forward only, on the same samples each time.

use toroid_proto::Validation;
use toroid_session::Event;

use super::emit::Emit;
use super::job::Job;
use super::shared::Shared;
use super::step::{receive, send};
use super::validations::ValidationSums;
use crate::comm::{Channel, CommError, Links, TpGroup, global_sum};
use crate::device::Device;
use crate::model::Input;

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
        self.validations.iter().for_each(|sums| self.report_validation(sums, emit));
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
