//! The end of the last stage: final norm, head, and cross-entropy over a vocabulary that the TP group shares.

use crate::device::{Buffer, Device};

use super::block::{Context, linear, linear_dw, linear_dx, sum_over_tp};
use super::layout::{HeadRanges, Layout};
use super::tp::TpComm;

/// What the backward needs of one micro-batch.
pub(super) struct Saved<D: Device> {
    /// `(N)`
    pub targets: D::Ids,
    /// `(N)`
    inv_rms: D::Buf,
    /// `(N, d)`
    pub h: D::Buf,
    /// `(N, vocab_local)`; the backward leaves their gradient here.
    pub logits: D::Buf,
    /// `(N)`: log-sum-exp over the whole vocabulary.
    lse: D::Buf,
    /// `(N, 3)`: this rank's part of the cross-entropy.
    stats: D::Buf,
    /// `(tp, N, 3)`
    all_stats: D::Buf,
    /// `(N)`
    pub losses: D::Buf,
}

impl<D: Device> Saved<D> {
    pub fn new(device: &D, layout: &Layout) -> Saved<D> {
        let tokens = layout.tokens();
        Saved {
            targets: device.alloc_ids(tokens),
            inv_rms: device.alloc(tokens),
            h: device.alloc(tokens * layout.d),
            logits: device.alloc(tokens * layout.vocab.len()),
            lse: device.alloc(tokens),
            stats: device.alloc(tokens * 3),
            all_stats: device.alloc(layout.tp * tokens * 3),
            losses: device.alloc(tokens),
        }
    }
}

/// Sum of the cross-entropy over the tokens that are trained; `x (N, d)`.
pub(super) fn forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    x: &D::Buf,
) -> Result<f64, T::Error> {
    self::logits(context, ranges, saved, x);
    cross_entropy(context, saved)?;
    Ok(context.device.sum(saved.losses.all()))
}

/// From `saved.logits` to `saved.losses`.
pub(super) fn cross_entropy<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    saved: &mut Saved<D>,
) -> Result<(), T::Error> {
    let Context { device, layout, tp, .. } = context;
    let Saved { targets, logits, lse, stats, all_stats, losses, .. } = saved;
    device.cross_entropy_local(targets, layout.vocab.start, logits.all(), stats.all_mut());
    if tp.size() == 1 {
        device.cross_entropy_combine(stats.all(), lse.all_mut(), losses.all_mut());
    } else {
        tp.all_gather_on(*device, stats, all_stats)?;
        device.cross_entropy_combine(all_stats.all(), lse.all_mut(), losses.all_mut());
    }
    if layout.has_texts {
        device.keep_rows(targets, layout.tokens(), losses.all_mut());
    }
    Ok(())
}

/// From `x (N, d)` to `saved.logits`.
pub(super) fn logits<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    x: &D::Buf,
) {
    let Context { device, layout, params, .. } = context;
    let Saved { inv_rms, h, logits, .. } = saved;
    let norm = params.view(ranges.norm.clone());
    device.rms_norm(layout.norm_eps, x.all(), norm, h.all_mut(), inv_rms.all_mut());
    linear(*device, layout.products, layout.tokens(), h.all(), params.view(ranges.head.clone()), logits.all_mut());
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
    backward_cross_entropy(context, saved, scale);
    backward_logits(context, ranges, saved)?;
    backward_norm(context, ranges, saved, x, grads);
    Ok(())
}

/// From `saved.logits` to their gradient, in the same place.
pub(super) fn backward_cross_entropy<D: Device, T>(context: &mut Context<'_, D, T>, saved: &mut Saved<D>, scale: f32) {
    let Context { device, layout, .. } = context;
    let first_row = layout.vocab.start;
    device.cross_entropy_backward(&saved.targets, first_row, scale, saved.lse.all(), saved.logits.all_mut());
    if layout.has_texts {
        device.keep_rows(&saved.targets, layout.tokens(), saved.logits.all_mut());
    }
}

/// From the gradient of the logits to that of `h`, in `scratch.partial`.
pub(super) fn backward_logits<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &Saved<D>,
) -> Result<(), T::Error> {
    let Context { device, layout, params, scratch, tp, .. } = context;
    let head = params.view(ranges.head.clone());
    let partial = &mut scratch.partial;
    linear_dx(*device, layout.products, layout.tokens(), saved.logits.all(), head, 0.0, partial.all_mut());
    sum_over_tp(*device, partial, *tp)
}

/// From the gradient of `h`, in `scratch.partial`, to that of `x`, in `scratch.dx`.
pub(super) fn backward_norm<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &Saved<D>,
    x: &D::Buf,
    grads: &mut D::Buf,
) {
    let Context { device, params, scratch, .. } = context;
    device.fill(scratch.dx.all_mut(), 0.0);
    device.rms_norm_backward(
        x.all(),
        params.view(ranges.norm.clone()),
        saved.inv_rms.all(),
        scratch.partial.all(),
        scratch.dx.all_mut(),
        grads.view_mut(ranges.norm.clone()),
    );
}

/// Adds to the gradient of the head, after [`backward_input`].
pub(super) fn backward_weight<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) {
    let Context { device, layout, .. } = context;
    let (tokens, dw) = (layout.tokens(), grads.view_mut(ranges.head.clone()));
    linear_dw(*device, layout.products, tokens, saved.logits.all(), saved.h.all(), dw);
}
