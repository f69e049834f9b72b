//! What the places add up to at the commit point of a step.

use toroid_proto::{PolicyStep, StepRecord};
use toroid_session::Assignment;
use toroid_torus::ids::Step;
use toroid_torus::job::{JobKind, JobSpec};

use super::ppo::rollouts::{Figures, Rollouts};
use crate::data::Batch;
use crate::model::{MicroBatchStats, PairStats, PolicyStats};

/// Sums over this place's micro-batches; with those of all places they make the step's record.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Of means over tokens; where samples are texts, over the tokens that are trained.
    pub ce: f64,
    pub z: f64,
    pub balance: f64,
    /// Of a reward model.
    pairs: PairStats,
    /// Of a policy.
    policy: PolicyStats,
    /// On the last stage: tokens without padding, and those that are trained.
    tokens: u64,
    trained: u64,
}

impl Sums {
    pub fn add(&mut self, stats: &MicroBatchStats) {
        self.ce += stats.ce;
        self.z += stats.z;
        self.balance += stats.balance;
        self.pairs += stats.pairs;
        self.policy += stats.policy;
    }

    /// Once for each micro-batch that [`Sums::add`] has, on the last stage.
    pub fn count(&mut self, batch: &Batch) {
        self.tokens += batch.num_tokens();
        self.trained += batch.num_trained();
    }
}

/// What is summed over the whole torus at the commit point: `[squared gradient norm, ce, z, balance, places that saw corruption,
/// step up to which the coordinator has the records, expert load (layers, experts)]`; where samples are texts, [`OF_TEXTS`] numbers more, and of a
/// policy [`OF_POLICY`] besides.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Totals(Vec<f64>);

/// What the totals say of texts; zeros in pre-training.
#[derive(Default)]
struct OfTexts {
    tokens: f64,
    trained: f64,
    pairs: f64,
    pair_loss: f64,
    center: f64,
    correct: f64,
    ties: f64,
}

impl OfTexts {
    fn read(values: &[f64]) -> OfTexts {
        let Some([tokens, trained, pairs, pair_loss, center, correct, ties]) = values.first_chunk().copied() else {
            return OfTexts::default();
        };
        OfTexts { tokens, trained, pairs, pair_loss, center, correct, ties }
    }
}

const SQUARES: usize = 0;
const CE: usize = 1;
const Z: usize = 2;
const BALANCE: usize = 3;
const CORRUPT: usize = 4;
const RECORDED: usize = 5;
const LOAD: usize = 6;
/// `[tokens, trained tokens, pairs, loss of pairs, centring loss of pairs, correct pairs, ties]`
const OF_TEXTS: usize = 7;
/// `[policy loss, value loss, clipped tokens, kl to the old policy, ratio]`, then what rank 0 knows of the iteration:
/// `[score, kl to the reference, its coefficient, tokens of an answer, share with the stop token, entropy]`
const OF_POLICY: usize = 11;
/// Of those the first that rank 0 says.
const OF_ROLLOUTS: usize = 5;

impl Totals {
    /// Pre-training has none of texts: its sums stay what they were, to the bit.
    pub fn len(spec: &JobSpec) -> usize {
        let of_kind = match spec.kind {
            JobKind::Pretrain => 0,
            JobKind::Sft | JobKind::Reward => OF_TEXTS,
            JobKind::Ppo => OF_TEXTS + OF_POLICY,
        };
        LOAD + spec.model.layers * spec.model.experts + of_kind
    }

    /// What one place adds: its part of the squared gradient norm, and whether it saw corruption.
    pub fn new(spec: &JobSpec, squares: f64, saw_corruption: bool) -> Totals {
        let mut totals = Totals(vec![0.0; Totals::len(spec)]);
        totals.0[SQUARES] = squares;
        totals.0[CORRUPT] = f64::from(u8::from(saw_corruption));
        totals
    }

    /// Rank 0 adds this: the coordinator has the records up to `step`.
    pub fn set_recorded(&mut self, step: Step) {
        self.0[RECORDED] = step.get() as f64;
    }

    /// Rank 0 adds this, of the rollouts that the step learns from.
    pub fn set_rollouts(&mut self, rollouts: &Rollouts) {
        let Figures { score, kl, tokens, stopped, entropy } = rollouts.figures();
        let own = self.0.len() - OF_POLICY + OF_ROLLOUTS;
        self.0[own..].copy_from_slice(&[score, kl, rollouts.kl_coef(), tokens, stopped, entropy]);
    }

    /// The losses of this place and its assignments to experts, `(layers, experts)`.
    pub fn set_losses(&mut self, sums: &Sums, expert_load: &[u64]) {
        self.0[CE..=BALANCE].copy_from_slice(&[sums.ce, sums.z, sums.balance]);
        for (total, load) in self.0[LOAD..].iter_mut().zip(expert_load) {
            *total = *load as f64;
        }
        let PairStats { loss, center, correct, ties, num } = sums.pairs;
        let counts = [sums.tokens, sums.trained, num].map(|n| n as f64);
        let of_texts = counts.into_iter().chain([loss, center, correct as f64, ties as f64]);
        let PolicyStats { policy_loss, value_loss, clipped, kl, ratio, .. } = sums.policy;
        let of_kind = of_texts.chain([policy_loss, value_loss, clipped as f64, kl, ratio]);
        self.0[LOAD + expert_load.len()..].iter_mut().zip(of_kind).for_each(|(total, sum)| *total = sum);
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
        let num_load = spec.model.layers * spec.model.experts;
        let mean = |i: usize| self.0[i] / spec.batch.num_micro_batches as f64;
        let (z_loss, balance_loss) = (mean(Z), mean(BALANCE));
        let of_texts = OfTexts::read(&self.0[LOAD + num_load..]);
        let policy = self.policy(spec, of_texts.trained);
        // A step without a token to train on has no loss, and not one that is no number.
        let (ce, center) = match spec.kind {
            JobKind::Pretrain => (mean(CE), 0.0),
            JobKind::Sft => (self.0[CE] / of_texts.trained.max(1.0), 0.0),
            JobKind::Reward => (of_texts.pair_loss / of_texts.pairs, of_texts.center / of_texts.pairs),
            JobKind::Ppo => (policy.as_ref().map_or(0.0, |policy| policy.policy_loss), 0.0),
        };
        let values = policy.as_ref().map_or(0.0, |policy| policy.value_loss);
        let value_coef = spec.ppo.as_ref().map_or(0.0, |ppo| ppo.value_coef);
        let loss = ce + value_coef * values + spec.loss.z_coef * z_loss + spec.loss.balance_coef * balance_loss;
        let tokens = match spec.kind {
            JobKind::Pretrain => spec.batch.samples() * spec.model.seq as u64,
            JobKind::Sft | JobKind::Reward | JobKind::Ppo => of_texts.tokens as u64,
        };
        StepRecord {
            step: step.get(),
            loss: loss + spec.reward.center_coef * center,
            ce,
            z_loss,
            balance_loss,
            grad_norm: self.norm(),
            lr: spec.optimizer.lr_at(t, total),
            weight_decay: spec.optimizer.weight_decay_at(t, total),
            tokens_per_s: 0.0,
            tokens,
            trained_tokens: matches!(spec.kind, JobKind::Sft | JobKind::Ppo).then_some(of_texts.trained as u64),
            pairs: of_texts.pairs as u64,
            correct: of_texts.correct as u64,
            ties: of_texts.ties as u64,
            policy,
            expert_load: self.0[LOAD..LOAD + num_load].iter().map(|n| *n as u64).collect(),
            num_layers: spec.model.layers as u32,
            skipped: !self.norm().is_finite(),
            step_s: 0.0,
            hidden_s: 0.0,
            exposed_s: 0.0,
            epoch: assignment.epoch.get(),
            missing: false,
        }
    }

    /// What a policy learned from `num` tokens.
    fn policy(&self, spec: &JobSpec, num: f64) -> Option<PolicyStep> {
        spec.ppo.as_ref()?;
        let own = self.0[self.0.len() - OF_POLICY..].first_chunk::<OF_POLICY>()?;
        let [policy_loss, value_loss, clipped, approx_kl, ratio, score, kl, kl_coef, tokens, stopped, entropy] = *own;
        let mean = |sum: f64| sum / num.max(1.0);
        Some(PolicyStep {
            policy_loss: mean(policy_loss),
            value_loss: mean(value_loss),
            clip_fraction: mean(clipped),
            approx_kl: mean(approx_kl),
            mean_ratio: mean(ratio),
            score,
            kl,
            kl_coef,
            answer_tokens: tokens,
            stopped,
            entropy,
        })
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
