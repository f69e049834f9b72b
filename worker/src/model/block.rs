//! What the halves of a layer share: the scratch, and who is asked for what.

use crate::device::{Device, Mat, MatMut, Products, View, ViewMut};

use super::layout::Layout;
use super::rows::Rows;
use super::tp::TpComm;

/// Buffers that live for one operation or half a layer. `N` tokens, `R = N * TOP_K` rows, widths as in [`Layout`].
pub(super) struct Scratch<D: Device> {
    /// `(N, d)`: this rank's part of a sum over the TP group.
    pub partial: D::Buf,
    /// `(N, d)`: gradient of the residual stream.
    pub dx: D::Buf,
    /// `(N, E)`: router logits, then their gradient.
    pub logits: D::Buf,
    /// `(R, d)`: tokens or their gradients, sorted by expert.
    pub rows: D::Buf,
    /// `(R, d)`: outputs of the experts, or gradients of their inputs.
    pub rows_out: D::Buf,
    /// `(R, ff)`
    pub act: D::Buf,
    /// `(R, ff)`
    pub dact: D::Buf,
    /// `(N, ff_local)`
    pub shared_act: D::Buf,
    /// `(N, ff_local)`
    pub shared_dact: D::Buf,
    /// `(R)`
    pub dweights: D::Buf,
    /// `(N, heads * head_dim)`
    pub dout: D::Buf,
    /// `(N, row_len)`
    pub dqkv: D::Buf,
}

impl<D: Device> Scratch<D> {
    pub fn new(device: &D, layout: &Layout) -> Scratch<D> {
        let tokens = layout.tokens();
        let rows = tokens * crate::device::TOP_K;
        Scratch {
            partial: device.alloc(tokens * layout.d),
            dx: device.alloc(tokens * layout.d),
            logits: device.alloc(tokens * layout.experts),
            rows: device.alloc(rows * layout.d),
            rows_out: device.alloc(rows * layout.d),
            act: device.alloc(rows * layout.ff),
            dact: device.alloc(rows * layout.ff),
            shared_act: device.alloc(tokens * layout.ff_local),
            shared_dact: device.alloc(tokens * layout.ff_local),
            dweights: device.alloc(rows),
            dout: device.alloc(tokens * layout.attention.out_len()),
            dqkv: device.alloc(tokens * layout.attention.row_len()),
        }
    }
}

/// What the forward and backward of a layer are given besides their own saved activations.
pub(super) struct Context<'a, D: Device, T> {
    pub device: &'a D,
    pub layout: &'a Layout,
    /// The flat working parameters.
    pub params: &'a mut D::Buf,
    /// Cosines and sines, `(seq, head_dim)`.
    pub rope: &'a D::Buf,
    /// Which rows are tokens, where some are not.
    pub rows: Option<&'a Rows<D>>,
    pub scratch: &'a mut Scratch<D>,
    pub tp: &'a mut T,
}

/// `y = x w^T`: `x (n, in)`, `w (out, in)`, `y (n, out)`.
pub(super) fn linear<D: Device>(
    device: &D,
    products: Products,
    n: usize,
    x: View<'_, D::Buf>,
    w: View<'_, D::Buf>,
    y: ViewMut<'_, D::Buf>,
) {
    let (input, output) = (x.len / n, y.len / n);
    device.matmul(products, 1.0, Mat::new(x, n, input), Mat::new(w, output, input).t(), 0.0, MatMut::new(y, n, output));
}

/// `dx = beta * dx + dy w`; shapes as in [`linear`].
pub(super) fn linear_dx<D: Device>(
    device: &D,
    products: Products,
    n: usize,
    dy: View<'_, D::Buf>,
    w: View<'_, D::Buf>,
    beta: f32,
    dx: ViewMut<'_, D::Buf>,
) {
    let (input, output) = (dx.len / n, dy.len / n);
    device.matmul(products, 1.0, Mat::new(dy, n, output), Mat::new(w, output, input), beta, MatMut::new(dx, n, input));
}

/// `dw += dy^T x`; shapes as in [`linear`].
pub(super) fn linear_dw<D: Device>(
    device: &D,
    products: Products,
    n: usize,
    dy: View<'_, D::Buf>,
    x: View<'_, D::Buf>,
    dw: ViewMut<'_, D::Buf>,
) {
    let (input, output) = (x.len / n, dy.len / n);
    device.matmul(
        products,
        1.0,
        Mat::new(dy, n, output).t(),
        Mat::new(x, n, input),
        1.0,
        MatMut::new(dw, output, input),
    );
}

/// Sums `partial` over the TP group.
pub(super) fn sum_over_tp<D: Device, T: TpComm>(device: &D, partial: &mut D::Buf, tp: &mut T) -> Result<(), T::Error> {
    if tp.size() == 1 {
        return Ok(());
    }
    tp.all_reduce_on(device, partial)
}
