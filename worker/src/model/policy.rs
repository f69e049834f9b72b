//! The end of the last stage of a policy: logits as in [`super::head`], and beside them at each row a value, `value.weight (1, d)` times
//! `norm(x)`.
//!
//! The loss of an answer's token with log-probability `lp`, advantage `A`, return `R`, value `v`, and `lp_old` and `v_old` of when it was sampled is
//! (Schulman et al. 2017; the clipped value of Huang et al. 2024)
//!
//! ```text
//!   max(-A r, -A clip(r, 1 - c, 1 + c)) + value_coef / 2 max((v - R)^2, (v_old + clip(v - v_old, -e, e) - R)^2),   r = exp(lp - lp_old)
//! ```
//!
//! with `lp` of the softmax of the logits over the temperature, from which tokens are sampled. `-lp` is the cross-entropy of the row, so the policy's
//! gradient is that of a cross-entropy with a weight for each row: the host computes weights and the values' gradients from two numbers a row.
//! All ranks of a TP group compute the same bits of values and their gradients.

use std::ops::AddAssign;

use toroid_torus::job::PpoConfig;

use crate::device::{Buffer, Device, NOWHERE};

use super::block::{Context, linear, linear_dw, linear_dx};
use super::head;
use super::layout::{HeadRanges, Layout};
use super::tp::TpComm;

/// Coefficients of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyLoss {
    pub temperature: f64,
    pub clip: f64,
    pub value_clip: f64,
    pub value_coef: f64,
}

impl PolicyLoss {
    /// Of a model that is no policy.
    pub(super) const NONE: PolicyLoss = PolicyLoss { temperature: 1.0, clip: 0.0, value_clip: 0.0, value_coef: 0.0 };

    pub fn of(ppo: &PpoConfig) -> PolicyLoss {
        let PpoConfig { temperature, clip, value_clip, value_coef, .. } = *ppo;
        PolicyLoss { temperature, clip, value_clip, value_coef }
    }
}

/// What the rows of a micro-batch are compared with, `(B, S)` each; numbers mean nothing where no target is.
#[derive(Debug, Clone, Copy)]
pub struct AnswerRows<'a> {
    /// The answers' tokens, at the rows before them; [`NOWHERE`] elsewhere.
    pub targets: &'a [u32],
    pub old_logps: &'a [f32],
    pub old_values: &'a [f32],
    pub advantages: &'a [f32],
    pub returns: &'a [f32],
}

/// Sums over the answers' tokens of a micro-batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PolicyStats {
    pub policy_loss: f64,
    /// Without its coefficient.
    pub value_loss: f64,
    /// Tokens whose ratio was clipped.
    pub clipped: u64,
    /// Of `lp_old - lp`.
    pub kl: f64,
    pub ratio: f64,
    pub num: u64,
}

impl AddAssign for PolicyStats {
    fn add_assign(&mut self, other: PolicyStats) {
        self.policy_loss += other.policy_loss;
        self.value_loss += other.value_loss;
        self.clipped += other.clipped;
        self.kl += other.kl;
        self.ratio += other.ratio;
        self.num += other.num;
    }
}

/// What was said of one token when it was sampled.
#[derive(Debug, Clone, Copy)]
struct Old {
    logp: f64,
    value: f64,
    advantage: f64,
    target: f64,
}

impl PolicyStats {
    /// Adds a token; the gradient of its loss with respect to its log-probability and its value.
    fn add(&mut self, loss: &PolicyLoss, logp: f64, value: f64, old: Old) -> [f64; 2] {
        let (c, e) = (loss.clip, loss.value_clip);
        let ratio = (logp - old.logp).exp();
        let (whole, clipped) = (-old.advantage * ratio, -old.advantage * ratio.clamp(1.0 - c, 1.0 + c));
        let is_clipped = clipped > whole;
        let near = old.value + (value - old.value).clamp(-e, e);
        let (far, close) = ((value - old.target).powi(2), (near - old.target).powi(2));
        self.policy_loss += whole.max(clipped);
        self.value_loss += 0.5 * far.max(close);
        self.clipped += u64::from(is_clipped);
        self.kl += old.logp - logp;
        self.ratio += ratio;
        self.num += 1;
        // Where the clipped one counts, it is a constant.
        let of_logp = if is_clipped { 0.0 } else { whole };
        let of_value = if close > far { 0.0 } else { value - old.target };
        [of_logp, loss.value_coef * of_value]
    }
}

/// What the backward needs of one micro-batch.
pub(super) struct Saved<D: Device> {
    pub head: head::Saved<D>,
    /// `(N)`; the backward leaves their gradient here.
    values: D::Buf,
    /// `(N)`: what the gradient of each row's cross-entropy is multiplied by.
    weights: D::Buf,
    /// `(N)`, host: the rows' log-probabilities, 0 without a target, and their values.
    pub logps: Vec<f32>,
    pub row_values: Vec<f32>,
    /// `(N)`, host: what becomes of `weights` and of the gradient of `values`, as if each token were the only one.
    row_weights: Vec<f32>,
    dvalues: Vec<f32>,
}

impl<D: Device> Saved<D> {
    pub fn new(device: &D, layout: &Layout) -> Saved<D> {
        let tokens = layout.tokens();
        let host = || vec![0.0; tokens];
        Saved {
            head: head::Saved::new(device, layout),
            values: device.alloc(tokens),
            weights: device.alloc(tokens),
            logps: host(),
            row_values: host(),
            row_weights: host(),
            dvalues: host(),
        }
    }
}

/// From `x (N, d)` to the log-probabilities of `targets (N)` and the values of all rows.
pub(super) fn forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    targets: &[u32],
    x: &D::Buf,
) -> Result<(), T::Error> {
    context.device.write_ids(&mut saved.head.targets, targets);
    head::logits(context, ranges, &mut saved.head, x);
    let Context { device, layout, params, .. } = context;
    let weight = params.view(value_range(ranges));
    linear(*device, layout.products, layout.tokens(), saved.head.h.all(), weight, saved.values.all_mut());
    let temperature = layout.policy.temperature;
    if temperature != 1.0 {
        device.scale((1.0 / temperature) as f32, saved.head.logits.all_mut());
    }
    head::cross_entropy(context, &mut saved.head)?;
    context.device.read(saved.head.losses.all(), &mut saved.logps);
    context.device.read(saved.values.all(), &mut saved.row_values);
    saved.logps.iter_mut().for_each(|x| *x = -*x);
    Ok(())
}

/// After [`forward`]: the loss of these answers.
pub(super) fn loss<D: Device>(saved: &mut Saved<D>, loss: &PolicyLoss, rows: &AnswerRows<'_>) -> PolicyStats {
    let mut stats = PolicyStats::default();
    saved.row_weights.fill(0.0);
    saved.dvalues.fill(0.0);
    for n in (0..rows.targets.len()).filter(|n| rows.targets[*n] != NOWHERE) {
        let old = Old {
            logp: f64::from(rows.old_logps[n]),
            value: f64::from(rows.old_values[n]),
            advantage: f64::from(rows.advantages[n]),
            target: f64::from(rows.returns[n]),
        };
        let [of_logp, of_value] = stats.add(loss, f64::from(saved.logps[n]), f64::from(saved.row_values[n]), old);
        // The cross-entropy is that of the logits over the temperature.
        saved.row_weights[n] = (-of_logp / loss.temperature) as f32;
        saved.dvalues[n] = of_value as f32;
    }
    stats
}

/// Leaves the gradient of `x` in `scratch.dx`; `scale` multiplies the loss of each token. The gradient of the norm's weights is a by-product.
pub(super) fn backward_input<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    scale: f32,
    x: &D::Buf,
    grads: &mut D::Buf,
) -> Result<(), T::Error> {
    saved.dvalues.iter_mut().for_each(|d| *d *= scale);
    context.device.write(saved.values.all_mut(), &saved.dvalues);
    context.device.write(saved.weights.all_mut(), &saved.row_weights);
    head::backward_cross_entropy(context, &mut saved.head, scale);
    context.device.scale_rows(saved.weights.all(), saved.head.logits.all_mut());
    head::backward_logits(context, ranges, &saved.head)?;
    let Context { device, layout, params, scratch, .. } = context;
    let (values, weight) = (saved.values.all(), params.view(value_range(ranges)));
    // Behind the sum over the TP group: all ranks have the whole of it.
    linear_dx(*device, layout.products, layout.tokens(), values, weight, 1.0, scratch.partial.all_mut());
    head::backward_norm(context, ranges, &saved.head, x, grads);
    Ok(())
}

/// Adds to the gradients of head and values, after [`backward_input`].
pub(super) fn backward_weight<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) {
    head::backward_weight(context, ranges, &saved.head, grads);
    let Context { device, layout, .. } = context;
    let dw = grads.view_mut(value_range(ranges));
    linear_dw(*device, layout.products, layout.tokens(), saved.values.all(), saved.head.h.all(), dw);
}

fn value_range(ranges: &HeadRanges) -> std::ops::Range<usize> {
    ranges.value.clone().expect("a policy has values")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: PolicyLoss = PolicyLoss { temperature: 1.0, clip: 0.2, value_clip: 0.2, value_coef: 0.1 };

    fn check(logp: f64, value: f64, old: Old, expected: (f64, f64, u64), gradient: [f64; 2]) {
        let mut stats = PolicyStats::default();
        let found = stats.add(&LOSS, logp, value, old);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let (policy, values, clipped) = expected;
        assert!(
            close(stats.policy_loss, policy) && close(stats.value_loss, values),
            "{stats:?}, expected {expected:?}"
        );
        assert_eq!(stats.clipped, clipped, "{stats:?}");
        assert!(found.iter().zip(gradient).all(|(a, b)| close(*a, b)), "{found:?}, expected {gradient:?}");
    }

    /// By hand: ratios of 1, 1.5 and 0.5 with advantages of both signs.
    #[test]
    fn a_ratio_counts_as_far_as_it_may_and_not_where_it_would_help_beyond() {
        let old = Old { logp: -2.0, value: 1.0, advantage: 2.0, target: 1.0 };
        let by = |ratio: f64| -2.0 + ratio.ln();
        check(-2.0, 1.0, old, (-2.0, 0.0, 0), [-2.0, 0.0]);
        check(by(1.5), 1.0, old, (-2.4, 0.0, 1), [0.0, 0.0]);
        check(by(0.5), 1.0, old, (-1.0, 0.0, 0), [-1.0, 0.0]);
        let worse = Old { advantage: -2.0, ..old };
        check(by(1.5), 1.0, worse, (3.0, 0.0, 0), [3.0, 0.0]);
        check(by(0.5), 1.0, worse, (1.6, 0.0, 1), [0.0, 0.0]);
    }

    /// By hand: a value that has moved by 0.5 from 1, and returns on either side.
    #[test]
    fn of_a_value_and_the_clipped_one_the_worse_counts() {
        let old = |target| Old { logp: -2.0, value: 1.0, advantage: 0.0, target };
        // Moved away from the return: the whole distance, 1.5 - 0.
        check(-2.0, 1.5, old(0.0), (0.0, 1.125, 0), [0.0, 0.15]);
        // Moved towards it, beyond the clip: 1.2 - 2, a constant.
        check(-2.0, 1.5, old(2.0), (0.0, 0.32, 0), [0.0, 0.0]);
        check(-2.0, 1.1, old(2.0), (0.0, 0.405, 0), [0.0, -0.09]);
    }
}
