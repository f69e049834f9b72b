//! The attention half of a layer: `x_mid = x + wo attention(wqkv norm1(x))`.

use crate::device::{AttentionDims, Buffer, CachedAttention, Device, Turn};

use super::block::{Context, Scratch, linear, linear_dw, linear_dx, sum_over_tp};
use super::layout::{LayerRanges, Layout};
use super::tp::TpComm;

/// What the backward needs of one micro-batch.
pub(super) struct Saved<D: Device> {
    /// `(N)`
    inv_rms: D::Buf,
    /// `(N, d)`: `norm1(x)`
    h: D::Buf,
    /// `(N, row_len)`: after the rotary embedding.
    qkv: D::Buf,
    /// `(N, heads * head_dim)`
    out: D::Buf,
    /// `(batch, heads, seq)`
    lse: D::Buf,
}

impl<D: Device> Saved<D> {
    pub fn new(device: &D, layout: &Layout) -> Saved<D> {
        let (tokens, dims) = (layout.tokens(), &layout.attention);
        Saved {
            inv_rms: device.alloc(tokens),
            h: device.alloc(tokens * layout.d),
            qkv: device.alloc(tokens * dims.row_len()),
            out: device.alloc(tokens * dims.out_len()),
            lse: device.alloc(tokens * dims.heads),
        }
    }
}

/// From `x (N, d)` to all that the backward needs. It is the same bits whenever it runs, and sums nothing over the TP group.
pub(super) fn activations<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &mut Saved<D>,
    x: &D::Buf,
) {
    projections(context, ranges, saved, x);
    let Context { device, layout, rows, .. } = context;
    let (bounds, out, lse) = (rows.and_then(|rows| rows.bounds()), saved.out.all_mut(), saved.lse.all_mut());
    device.attention(layout.products, &layout.attention, bounds, saved.qkv.all(), out, lse);
}

/// From `x (N, d)` to queries, keys and values.
pub(super) fn projections<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &mut Saved<D>,
    x: &D::Buf,
) {
    let (dims, rope) = turned_by(context);
    let Context { device, layout, params, .. } = context;
    let tokens = layout.tokens();
    let weight = |range: &std::ops::Range<usize>| params.view(range.clone());
    device.rms_norm(layout.norm_eps, x.all(), weight(&ranges.norm1), saved.h.all_mut(), saved.inv_rms.all_mut());
    linear(*device, layout.products, tokens, saved.h.all(), weight(&ranges.wqkv), saved.qkv.all_mut());
    device.rope(&dims, Turn::Forward, rope.all(), saved.qkv.all_mut());
}

/// What turns queries and keys: the table of positions for samples of `seq` rows; where positions are those of texts, one row for each.
fn turned_by<'a, D: Device, T>(context: &Context<'a, D, T>) -> (AttentionDims, &'a D::Buf) {
    let dims = context.layout.attention;
    match context.rows.and_then(|rows| rows.rope()) {
        Some(of_rows) => (AttentionDims { batch: 1, seq: dims.tokens(), ..dims }, of_rows),
        None => (dims, context.rope),
    }
}

/// Puts keys and values of rows at `places (2, N)` into `cache`, and attends from each row to its sequence up to itself; `dims` are those of the cache.
pub(super) fn attend_cached<D: CachedAttention, T>(
    context: &Context<'_, D, T>,
    saved: &mut Saved<D>,
    dims: &AttentionDims,
    places: &D::Ids,
    cache: &mut D::Buf,
) {
    let Saved { qkv, out, .. } = saved;
    context.device.cached_attention(context.layout.products, dims, places, qkv.all(), cache.all_mut(), out.all_mut());
}

/// `x, x_mid (N, d)`
pub(super) fn forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &mut Saved<D>,
    x: &D::Buf,
    x_mid: &mut D::Buf,
) -> Result<(), T::Error> {
    activations(context, ranges, saved, x);
    output(context, ranges, saved, x, x_mid)
}

/// From what was attended to, to `x_mid (N, d)`.
pub(super) fn output<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &Saved<D>,
    x: &D::Buf,
    x_mid: &mut D::Buf,
) -> Result<(), T::Error> {
    let Context { device, layout, params, scratch, tp, .. } = context;
    tp.progress()?;
    let wo = params.view(ranges.wo.clone());
    linear(*device, layout.products, layout.tokens(), saved.out.all(), wo, scratch.partial.all_mut());
    sum_over_tp(*device, &mut scratch.partial, *tp)?;
    device.add(x.all(), scratch.partial.all(), x_mid.all_mut());
    Ok(())
}

/// What the gradients of the weights need besides, where they are computed later.
pub(super) struct Kept<D: Device> {
    /// `(N, d)`: gradient of `x_mid`.
    dx: D::Buf,
    /// `(N, row_len)`
    dqkv: D::Buf,
}

impl<D: Device> Kept<D> {
    pub fn new(device: &D, layout: &Layout) -> Kept<D> {
        let tokens = layout.tokens();
        Kept { dx: device.alloc(tokens * layout.d), dqkv: device.alloc(tokens * layout.attention.row_len()) }
    }

    /// Exchanges its buffers with those of the scratch, all but `dx`. Around [`backward_products`], which so leaves there what is kept: each
    /// operation has the same buffers every time, so that a device may know it again.
    pub fn exchange(&mut self, scratch: &mut Scratch<D>) {
        std::mem::swap(&mut self.dqkv, &mut scratch.dqkv);
    }

    /// After [`backward_products`] between [`Kept::exchange`] and this, what it made is kept; `scratch.dx` stays.
    pub fn keep(&mut self, device: &D, scratch: &mut Scratch<D>) {
        device.copy(scratch.dx.all(), self.dx.all_mut());
        self.exchange(scratch);
    }

    /// Lends it to the scratch, or takes it back.
    pub fn lend(&mut self, scratch: &mut Scratch<D>) {
        std::mem::swap(&mut self.dx, &mut scratch.dx);
        self.exchange(scratch);
    }
}

/// Leaves the part of the gradient of `norm1(x)` in `scratch.partial`; `scratch.dx` is that of `x_mid`.
pub(super) fn backward_products<D: Device, T>(context: &mut Context<'_, D, T>, ranges: &LayerRanges, saved: &Saved<D>) {
    let (turned, rope) = turned_by(context);
    let Context { device, layout, params, rows, scratch, .. } = context;
    let (tokens, dims) = (layout.tokens(), &layout.attention);
    let weight = |range: &std::ops::Range<usize>| params.view(range.clone());
    linear_dx(*device, layout.products, tokens, scratch.dx.all(), weight(&ranges.wo), 0.0, scratch.dout.all_mut());
    let (out, lse, dout) = (saved.out.all(), saved.lse.all(), scratch.dout.all());
    let bounds = rows.and_then(|rows| rows.bounds());
    device.attention_backward(layout.products, dims, bounds, saved.qkv.all(), out, lse, dout, scratch.dqkv.all_mut());
    device.rope(&turned, Turn::Back, rope.all(), scratch.dqkv.all_mut());
    linear_dx(
        *device,
        layout.products,
        tokens,
        scratch.dqkv.all(),
        weight(&ranges.wqkv),
        0.0,
        scratch.partial.all_mut(),
    );
}

/// Adds to the gradients of `wo` and `wqkv` what [`backward_products`] left in the scratch.
pub(super) fn backward_weight<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) {
    let Context { device, layout, scratch, .. } = context;
    let tokens = layout.tokens();
    linear_dw(*device, layout.products, tokens, scratch.dx.all(), saved.out.all(), grads.view_mut(ranges.wo.clone()));
    linear_dw(*device, layout.products, tokens, scratch.dqkv.all(), saved.h.all(), grads.view_mut(ranges.wqkv.clone()));
}

/// Turns `scratch.dx` from the gradient of `x_mid` into that of `x`, with what [`backward_products`] left in `scratch.partial`. The
/// gradient of the norm's weights is a by-product.
pub(super) fn backward_norm<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &Saved<D>,
    x: &D::Buf,
    grads: &mut D::Buf,
) -> Result<(), T::Error> {
    let Context { device, params, scratch, tp, .. } = context;
    sum_over_tp(*device, &mut scratch.partial, *tp)?;
    device.rms_norm_backward(
        x.all(),
        params.view(ranges.norm1.clone()),
        saved.inv_rms.all(),
        scratch.partial.all(),
        scratch.dx.all_mut(),
        grads.view_mut(ranges.norm1.clone()),
    );
    Ok(())
}
