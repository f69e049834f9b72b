//! What the places add up to at the commit point of a step.

use toroid_proto::StepRecord;
use toroid_session::Assignment;
use toroid_torus::ids::Step;
use toroid_torus::model::ModelConfig;

/// Sums over this place's micro-batches; with those of all places they make the step's record.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub ce: f64,
    pub z: f64,
    pub balance: f64,
}

/// What is summed over the whole torus at the commit point: `[squared gradient norm, ce, z, balance, places that saw corruption,
/// step up to which the coordinator has the records, expert load (layers, experts)]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Totals(Vec<f64>);

const SQUARES: usize = 0;
const CE: usize = 1;
const Z: usize = 2;
const BALANCE: usize = 3;
const CORRUPT: usize = 4;
const RECORDED: usize = 5;
const LOAD: usize = 6;

impl Totals {
    pub fn len(model: &ModelConfig) -> usize {
        LOAD + model.layers * model.experts
    }

    /// What one place adds: its part of the squared gradient norm, and whether it saw corruption.
    pub fn new(model: &ModelConfig, squares: f64, saw_corruption: bool) -> Totals {
        let mut totals = Totals(vec![0.0; Totals::len(model)]);
        totals.0[SQUARES] = squares;
        totals.0[CORRUPT] = f64::from(u8::from(saw_corruption));
        totals
    }

    /// Rank 0 adds this: the coordinator has the records up to `step`.
    pub fn set_recorded(&mut self, step: Step) {
        self.0[RECORDED] = step.get() as f64;
    }

    /// The losses of this place and its assignments to experts, `(layers, experts)`.
    pub fn set_losses(&mut self, sums: &Sums, expert_load: &[u64]) {
        self.0[CE..=BALANCE].copy_from_slice(&[sums.ce, sums.z, sums.balance]);
        for (total, load) in self.0[LOAD..].iter_mut().zip(expert_load) {
            *total = *load as f64;
        }
    }

    pub fn from_slice(values: &[f64]) -> Totals {
        Totals(values.to_vec())
    }

    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    pub fn as_mut_slice(&mut self) -> &mut [f64] {
        &mut self.0
    }

    /// Global gradient norm before clipping.
    pub fn norm(&self) -> f64 {
        self.0[SQUARES].sqrt()
    }

    /// The coordinator has the records up to this step: every place may forget older sums.
    pub fn recorded(&self) -> Step {
        Step::new(self.0[RECORDED] as u64)
    }

    /// The record of a committed step from these sums, without times.
    pub fn record(&self, assignment: &Assignment, step: Step) -> StepRecord {
        let spec = &assignment.spec;
        let (t, total) = (step.get() - 1, spec.steps);
        let mean = |i: usize| self.0[i] / spec.batch.num_micro_batches as f64;
        let (ce, z_loss, balance_loss) = (mean(CE), mean(Z), mean(BALANCE));
        StepRecord {
            step: step.get(),
            loss: ce + spec.loss.z_coef * z_loss + spec.loss.balance_coef * balance_loss,
            ce,
            z_loss,
            balance_loss,
            grad_norm: self.norm(),
            lr: spec.optimizer.lr_at(t, total),
            weight_decay: spec.optimizer.weight_decay_at(t, total),
            tokens_per_s: 0.0,
            tokens: spec.batch.samples() * spec.model.seq as u64,
            expert_load: self.0[LOAD..].iter().map(|n| *n as u64).collect(),
            num_layers: spec.model.layers as u32,
            skipped: !self.norm().is_finite(),
            step_s: 0.0,
            hidden_s: 0.0,
            exposed_s: 0.0,
            epoch: assignment.epoch.get(),
            missing: false,
        }
    }

    #[cfg(test)]
    pub fn with_recorded(recorded: Step) -> Totals {
        let mut totals = Totals(vec![0.0; LOAD]);
        totals.0[RECORDED] = recorded.get() as f64;
        totals
    }

    pub fn num_corrupt(&self) -> u64 {
        self.0[CORRUPT] as u64
    }
}
