//! The mixture-of-experts half of a layer: with `h = norm2(x_mid)`, `x_out = x_mid + routed(h) + shared(h)`.
//!
//! Every TP rank routes all tokens, the same way to the bit, computes its own experts and its slice of the shared
//! expert, and one sum over the group adds all of it up. In the backward the router's gradient is a part on each rank
//! too: that of the weights of its own experts, and on tp_rank 0 that of the router's own losses.

use toroid_torus::model::TOP_K;

use crate::device::{Buffer, Device, Groups, Products, RouterLoss, Routing};

use super::block::{Context, Scratch, linear, linear_dw, linear_dx, sum_over_tp};
use super::layout::{LayerRanges, Layout};
use super::tp::TpComm;

/// The router's own losses of one layer and micro-batch, without their coefficients.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RouterStats {
    /// Mean over the tokens, padding left out, of `logsumexp(logits)^2`.
    pub z: f64,
    /// `E * sum_e f_e P_e`
    pub balance: f64,
}

/// What the backward needs of one micro-batch.
pub(super) struct Saved<D: Device> {
    /// `(N, d)`: input of this half.
    pub x: D::Buf,
    /// `(N)`
    inv_rms: D::Buf,
    /// `(N, d)`: `norm2(x)`
    h: D::Buf,
    routing: Routing<D>,
    groups: Groups<D>,
    /// `(R, 2 ff)`: what goes into the experts' SwiGLU; the backward leaves its gradient here.
    gate_up: D::Buf,
    /// `(N, 2 ff_local)`: the same of the shared expert.
    shared_gate_up: D::Buf,
}

impl<D: Device> Saved<D> {
    pub fn new(device: &D, layout: &Layout) -> Saved<D> {
        let tokens = layout.tokens();
        Saved {
            x: device.alloc(tokens * layout.d),
            inv_rms: device.alloc(tokens),
            h: device.alloc(tokens * layout.d),
            routing: Routing::new(device, tokens, layout.experts),
            groups: Groups::new(device, tokens, layout.local_experts.clone()),
            gate_up: device.alloc(tokens * TOP_K * 2 * layout.ff),
            shared_gate_up: device.alloc(tokens * 2 * layout.ff_local),
        }
    }

    /// The router's losses of this micro-batch, and the assignments by expert into `counts (E)`. `prob_sums (E)` is
    /// scratch.
    pub fn stats(&self, device: &D, counts: &mut [u32], prob_sums: &mut [f32]) -> RouterStats {
        let (tokens, experts) = (self.routing.num_kept.max(1) as f64, self.routing.experts as f64);
        device.read_ids(&self.routing.counts, counts);
        device.read(self.routing.prob_sums.all(), prob_sums);
        let shared: f64 = counts.iter().zip(prob_sums).map(|(count, sum)| f64::from(*count) * f64::from(*sum)).sum();
        RouterStats {
            z: device.sum_of_squares(self.routing.lse.all()) / tokens,
            balance: experts * shared / (tokens * TOP_K as f64) / tokens,
        }
    }
}

/// From `saved.x` to all that the backward needs. It is the same bits whenever it runs, the experts that tokens go to included, and sums
/// nothing over the TP group.
pub(super) fn activations<D: Device, T>(context: &mut Context<'_, D, T>, ranges: &LayerRanges, saved: &mut Saved<D>) {
    let Context { device, layout, params, rows, scratch, .. } = context;
    let tokens = layout.tokens();
    let weight = |range: &std::ops::Range<usize>| params.view(range.clone());
    let Saved { x, inv_rms, h, routing, groups, gate_up, shared_gate_up } = saved;
    device.rms_norm(layout.norm_eps, x.all(), weight(&ranges.norm2), h.all_mut(), inv_rms.all_mut());
    linear(*device, Products::F32, tokens, h.all(), weight(&ranges.router), scratch.logits.all_mut());
    device.route(rows.map(|rows| rows.kept()), scratch.logits.all(), routing);
    device.group(routing, groups);
    linear(*device, layout.products, tokens, h.all(), weight(&ranges.shared13), shared_gate_up.all_mut());
    device.gather_rows(groups, h.all(), scratch.rows.all_mut());
    device.grouped_matmul(layout.products, groups, scratch.rows.all(), weight(&ranges.w13), gate_up.all_mut());
}

/// From `saved.x` to `x_out (N, d)`.
pub(super) fn forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &mut Saved<D>,
    x_out: &mut D::Buf,
) -> Result<(), T::Error> {
    activations(context, ranges, saved);
    let Context { device, layout, params, scratch, tp, .. } = context;
    tp.progress()?;
    let tokens = layout.tokens();
    let weight = |range: &std::ops::Range<usize>| params.view(range.clone());
    let Saved { x, routing, groups, gate_up, shared_gate_up, .. } = saved;
    device.swiglu(layout.ff_local, shared_gate_up.all(), scratch.shared_act.all_mut());
    linear(
        *device,
        layout.products,
        tokens,
        scratch.shared_act.all(),
        weight(&ranges.shared2),
        scratch.partial.all_mut(),
    );
    tp.progress()?;
    device.routed_swiglu(groups, routing, gate_up.all(), scratch.act.all_mut());
    device.grouped_matmul(layout.products, groups, scratch.act.all(), weight(&ranges.w2), scratch.rows_out.all_mut());
    device.combine_rows(groups, scratch.rows_out.all(), scratch.partial.all_mut());

    sum_over_tp(*device, &mut scratch.partial, *tp)?;
    device.add(x.all(), scratch.partial.all(), x_out.all_mut());
    Ok(())
}

/// What the gradients of the weights need besides, where they are computed later.
pub(super) struct Kept<D: Device> {
    /// `(N, d)`: gradient of `x_out`.
    dx: D::Buf,
    /// `(R, ff)`
    act: D::Buf,
    /// `(N, ff_local)`
    shared_act: D::Buf,
    /// `(N, E)`: gradient of the router's logits.
    dlogits: D::Buf,
}

impl<D: Device> Kept<D> {
    pub fn new(device: &D, layout: &Layout) -> Kept<D> {
        let tokens = layout.tokens();
        Kept {
            dx: device.alloc(tokens * layout.d),
            act: device.alloc(tokens * TOP_K * layout.ff),
            shared_act: device.alloc(tokens * layout.ff_local),
            dlogits: device.alloc(tokens * layout.experts),
        }
    }

    /// As that of [`super::attention`].
    pub fn exchange(&mut self, scratch: &mut Scratch<D>) {
        std::mem::swap(&mut self.act, &mut scratch.act);
        std::mem::swap(&mut self.shared_act, &mut scratch.shared_act);
        std::mem::swap(&mut self.dlogits, &mut scratch.logits);
    }

    /// After [`backward_products`] between [`Kept::exchange`] and this, what it made is kept; `scratch.dx` stays.
    pub fn keep(&mut self, device: &D, scratch: &mut Scratch<D>) {
        device.copy(scratch.dx.all(), self.dx.all_mut());
        self.exchange(scratch);
    }

    /// Lends it to the scratch, or takes it back. [`Kept::gather`] follows where it is lent.
    pub fn lend(&mut self, scratch: &mut Scratch<D>) {
        std::mem::swap(&mut self.dx, &mut scratch.dx);
        self.exchange(scratch);
    }

    /// Makes `scratch.rows` again from what is lent.
    pub fn gather(device: &D, saved: &Saved<D>, scratch: &mut Scratch<D>) {
        device.gather_rows(&saved.groups, scratch.dx.all(), scratch.rows.all_mut());
    }
}

/// Leaves the part of the gradient of `h` in `scratch.partial`; `scratch.dx` is that of `x_out`. `scale` multiplies the router's losses.
pub(super) fn backward_products<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &mut Saved<D>,
    scale: f32,
) {
    routed_backward(context, ranges, saved);
    shared_backward(context, ranges, saved);
    router_backward(context, ranges, saved, scale);
}

/// Adds to the gradients of experts and router what [`backward_products`] left in the scratch.
pub(super) fn backward_weight<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) {
    let Context { device, layout, scratch, .. } = context;
    let (tokens, products) = (layout.tokens(), layout.products);
    let Saved { h, groups, gate_up, shared_gate_up, .. } = saved;
    device.grouped_matmul_dw(
        products,
        groups,
        scratch.rows.all(),
        scratch.act.all(),
        grads.view_mut(ranges.w2.clone()),
    );
    device.gather_rows(groups, h.all(), scratch.rows.all_mut());
    device.grouped_matmul_dw(products, groups, gate_up.all(), scratch.rows.all(), grads.view_mut(ranges.w13.clone()));
    linear_dw(
        *device,
        products,
        tokens,
        scratch.dx.all(),
        scratch.shared_act.all(),
        grads.view_mut(ranges.shared2.clone()),
    );
    linear_dw(*device, products, tokens, shared_gate_up.all(), h.all(), grads.view_mut(ranges.shared13.clone()));
    linear_dw(*device, Products::F32, tokens, scratch.logits.all(), h.all(), grads.view_mut(ranges.router.clone()));
}

/// Turns `scratch.dx` from the gradient of `x_out` into that of `saved.x`, with what [`backward_products`] left in `scratch.partial`. The
/// gradient of the norm's weights is a by-product.
pub(super) fn backward_norm<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &LayerRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) -> Result<(), T::Error> {
    let Context { device, params, scratch, tp, .. } = context;
    sum_over_tp(*device, &mut scratch.partial, *tp)?;
    device.rms_norm_backward(
        saved.x.all(),
        params.view(ranges.norm2.clone()),
        saved.inv_rms.all(),
        scratch.partial.all(),
        scratch.dx.all_mut(),
        grads.view_mut(ranges.norm2.clone()),
    );
    Ok(())
}

/// The routed experts: leaves the gradient of their rows' inputs in `scratch.rows_out` and that of the weights in
/// `scratch.dweights`.
fn routed_backward<D: Device, T>(context: &mut Context<'_, D, T>, ranges: &LayerRanges, saved: &mut Saved<D>) {
    let Context { device, layout, params, scratch, .. } = context;
    let Saved { routing, groups, gate_up, .. } = saved;
    device.gather_rows(groups, scratch.dx.all(), scratch.rows.all_mut());
    device.grouped_matmul_dx(
        layout.products,
        groups,
        scratch.rows.all(),
        params.view(ranges.w2.clone()),
        scratch.dact.all_mut(),
    );
    let (act, dweights) = (scratch.act.all_mut(), scratch.dweights.all_mut());
    device.routed_swiglu_backward(groups, routing, scratch.dact.all(), gate_up.all_mut(), act, dweights);
    device.grouped_matmul_dx(
        layout.products,
        groups,
        gate_up.all(),
        params.view(ranges.w13.clone()),
        scratch.rows_out.all_mut(),
    );
}

/// The shared expert: starts the gradient of `h` in `scratch.partial`, to which the routed experts' rows are added.
fn shared_backward<D: Device, T>(context: &mut Context<'_, D, T>, ranges: &LayerRanges, saved: &mut Saved<D>) {
    let Context { device, layout, params, scratch, .. } = context;
    let (tokens, gate_up) = (layout.tokens(), &mut saved.shared_gate_up);
    let weight = |range: &std::ops::Range<usize>| params.view(range.clone());
    linear_dx(
        *device,
        layout.products,
        tokens,
        scratch.dx.all(),
        weight(&ranges.shared2),
        0.0,
        scratch.shared_dact.all_mut(),
    );
    let act = scratch.shared_act.all_mut();
    device.swiglu_backward(layout.ff_local, scratch.shared_dact.all(), gate_up.all_mut(), act);
    linear_dx(
        *device,
        layout.products,
        tokens,
        gate_up.all(),
        weight(&ranges.shared13),
        0.0,
        scratch.partial.all_mut(),
    );
    device.combine_rows(&saved.groups, scratch.rows_out.all(), scratch.partial.all_mut());
}

/// The router: adds its part to the gradient of `h` in `scratch.partial`.
fn router_backward<D: Device, T>(context: &mut Context<'_, D, T>, ranges: &LayerRanges, saved: &Saved<D>, scale: f32) {
    let Context { device, layout, params, scratch, .. } = context;
    let (tokens, own) = (layout.tokens(), if layout.tp_rank == 0 { f64::from(scale) } else { 0.0 });
    let loss = RouterLoss { z: (own * layout.z_coef) as f32, balance: (own * layout.balance_coef) as f32 };
    let dlogits = scratch.logits.all_mut();
    device.route_backward(&saved.routing, &saved.groups, loss, scratch.dweights.all(), dlogits);
    let router = params.view(ranges.router.clone());
    linear_dx(*device, Products::F32, tokens, scratch.logits.all(), router, 1.0, scratch.partial.all_mut());
}
