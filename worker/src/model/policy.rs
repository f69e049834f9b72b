//! The end of the last stage of a policy: logits as in [`super::head`], and beside them at each row a value, `value.weight (1, d)` times
//! `norm(x)`.
//!
//! The loss of a token is that of [`super::policy_loss`], with the log-probability of the softmax of the logits over the temperature, from which
//! tokens are sampled. It is minus the cross-entropy of the row, so the policy's gradient is that of a cross-entropy with a weight for each row:
//! the host computes weights and the values' gradients from two numbers a row. All ranks of a TP group compute the same bits of values and their gradients.

use crate::device::{Buffer, Device, NOWHERE};

use super::block::{Context, linear, linear_dw, linear_dx};
use super::head;
use super::layout::{HeadRanges, Layout};
use super::policy_loss::{AnswerRows, Old, PolicyLoss, PolicyStats};
use super::tp::TpComm;

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

/// What a policy says of the rows of a micro-batch, `(N)` each.
#[derive(Debug, Clone, Copy)]
pub struct EvaluatedRows<'a> {
    /// Log-probabilities of the targets, 0 where there is none.
    pub logps: &'a [f32],
    pub values: &'a [f32],
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
