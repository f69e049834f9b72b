//! Embedding, RMSNorm, rotary embedding and SwiGLU.

use super::pool::Pool;
use super::simd::{self, Isa, multiversion};
use crate::device::{AttentionDims, Turn};

/// Blocks of table rows in the embedding's backward; every one looks through all tokens.
const TABLE_BLOCKS: usize = 16;

/// Columns of a block in sums over rows.
const COLUMNS: usize = 128;

/// `x[n] = table[ids[n] - first_row]` or zeros; `x (N, d)`, `table (rows, d)`.
pub fn embedding(pool: &Pool, d: usize, ids: &[u32], first_row: usize, table: &[f32], x: &mut [f32]) {
    pool.rows(x.len() / d, [(x, d)], |rows, [x]| {
        for (id, x) in ids[rows].iter().zip(x.chunks_exact_mut(d)) {
            match local_row(*id, first_row, table.len() / d) {
                Some(row) => x.copy_from_slice(&table[row * d..(row + 1) * d]),
                None => x.fill(0.0),
            }
        }
    });
}

/// `dtable[ids[n] - first_row] += dx[n]`, tokens in order.
pub fn embedding_backward(
    pool: &Pool,
    isa: Isa,
    d: usize,
    ids: &[u32],
    first_row: usize,
    dx: &[f32],
    dtable: &mut [f32],
) {
    let rows = (dtable.len() / d).div_ceil(TABLE_BLOCKS);
    pool.chunks(dtable, rows * d, dx.len(), |first, dtable| {
        let first_row = first_row + first / d;
        for (id, dx) in ids.iter().zip(dx.chunks_exact(d)) {
            if let Some(row) = local_row(*id, first_row, dtable.len() / d) {
                add_assign(isa, dx, &mut dtable[row * d..(row + 1) * d]);
            }
        }
    });
}

/// Row of the table slice that holds `id`.
fn local_row(id: u32, first_row: usize, rows: usize) -> Option<usize> {
    (id as usize).checked_sub(first_row).filter(|row| *row < rows)
}

multiversion! {
    /// `y += x`
    pub fn add_assign(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// `y = x * w * inv_rms`; `x, y (N, d)`, `w (d)`, `inv_rms (N)`.
pub fn rms_norm(pool: &Pool, isa: Isa, eps: f32, x: &[f32], w: &[f32], y: &mut [f32], inv_rms: &mut [f32]) {
    let d = w.len();
    pool.rows(inv_rms.len(), [(y, d), (inv_rms, 1)], |rows, [y, inv_rms]| {
        norm_rows(isa, eps, &x[rows.start * d..rows.end * d], w, y, inv_rms);
    });
}

multiversion! {
    fn norm_rows(eps: f32, x: &[f32], w: &[f32], y: &mut [f32], inv_rms: &mut [f32]) {
        let d = w.len();
        for ((x, y), inv_rms) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(inv_rms) {
            let mean = simd::sum_by(d, |i| x[i] * x[i]) / d as f32;
            *inv_rms = 1.0 / (mean + eps).sqrt();
            for i in 0..d {
                y[i] = x[i] * *inv_rms * w[i];
            }
        }
    }
}

/// What the backward of RMSNorm reads: `x, dy (N, d)`, `w (d)`, `inv_rms (N)`.
#[derive(Clone, Copy)]
pub struct NormBackward<'a> {
    pub x: &'a [f32],
    pub w: &'a [f32],
    pub inv_rms: &'a [f32],
    pub dy: &'a [f32],
}

/// `dx += ...`, `dw += ...`; the latter summed over the tokens in order.
pub fn rms_norm_backward(pool: &Pool, isa: Isa, saved: NormBackward<'_>, dx: &mut [f32], dw: &mut [f32]) {
    let d = dw.len();
    let NormBackward { x, w, inv_rms, dy } = saved;
    pool.rows(inv_rms.len(), [(dx, d)], |rows, [dx]| {
        let range = rows.start * d..rows.end * d;
        let block = NormBackward { x: &x[range.clone()], w, inv_rms: &inv_rms[rows], dy: &dy[range] };
        norm_backward_rows(isa, block, dx);
    });
    pool.chunks(dw, COLUMNS, x.len(), |first, dw| norm_weight_gradient(isa, saved, first, dw));
}

multiversion! {
    fn norm_backward_rows(saved: NormBackward<'_>, dx: &mut [f32]) {
        let NormBackward { x, w, inv_rms, dy } = saved;
        let d = w.len();
        let inputs = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(inv_rms);
        for (((x, dy), inv_rms), dx) in inputs.zip(dx.chunks_exact_mut(d)) {
            let dot = simd::sum_by(d, |i| dy[i] * w[i] * x[i]);
            let along = dot * inv_rms * inv_rms * inv_rms / d as f32;
            for i in 0..d {
                dx[i] += dy[i] * w[i] * inv_rms - x[i] * along;
            }
        }
    }
}

multiversion! {
    /// Columns `first..first + dw.len()`.
    fn norm_weight_gradient(saved: NormBackward<'_>, first: usize, dw: &mut [f32]) {
        let d = saved.w.len();
        let mut sums = [0.0_f32; COLUMNS];
        let sums = &mut sums[..dw.len()];
        for (n, inv_rms) in saved.inv_rms.iter().enumerate() {
            let range = n * d + first..n * d + first + dw.len();
            let (x, dy) = (&saved.x[range.clone()], &saved.dy[range]);
            for i in 0..sums.len() {
                sums[i] += dy[i] * x[i] * inv_rms;
            }
        }
        for (dw, sum) in dw.iter_mut().zip(sums) {
            *dw += *sum;
        }
    }
}

/// Rotates query and key heads; `table (seq, head_dim)`: cosines, then sines.
pub fn rope(pool: &Pool, isa: Isa, dims: &AttentionDims, turn: Turn, table: &[f32], qkv: &mut [f32]) {
    let (row_len, head_dim) = (dims.row_len(), dims.head_dim);
    let turned = (dims.heads + dims.kv_heads) * head_dim;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    pool.rows(dims.tokens(), [(qkv, row_len)], |rows, [qkv]| {
        for (n, row) in rows.zip(qkv.chunks_exact_mut(row_len)) {
            let position = n % dims.seq;
            rotate(isa, sign, &table[position * head_dim..(position + 1) * head_dim], &mut row[..turned]);
        }
    });
}

multiversion! {
    /// All heads of one token.
    fn rotate(sign: f32, table: &[f32], heads: &mut [f32]) {
        let half = table.len() / 2;
        let (cos, sin) = table.split_at(half);
        for head in heads.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for i in 0..half {
                let (x, y, sin) = (a[i], b[i], sign * sin[i]);
                a[i] = x * cos[i] - y * sin;
                b[i] = y * cos[i] + x * sin;
            }
        }
    }
}

/// `act = weight(r) * silu(gate) * up` for rows `r` in `0..rows`; `gate_up (R, 2 ff)`, `act (R, ff)`.
pub fn swiglu(
    pool: &Pool,
    isa: Isa,
    ff: usize,
    rows: usize,
    weight: impl Fn(usize) -> f32 + Sync + Send,
    gate_up: &[f32],
    act: &mut [f32],
) {
    pool.rows(rows, [(act, ff)], |rows, [act]| {
        for (r, act) in rows.zip(act.chunks_exact_mut(ff)) {
            let (gate, up) = gate_up[2 * r * ff..2 * (r + 1) * ff].split_at(ff);
            swiglu_row(isa, weight(r), gate, up, act);
        }
    });
}

multiversion! {
    fn swiglu_row(weight: f32, gate: &[f32], up: &[f32], act: &mut [f32]) {
        for i in 0..act.len() {
            act[i] = gate[i] * simd::sigmoid(gate[i]) * up[i] * weight;
        }
    }
}

/// Outputs of [`swiglu_backward`]: `gate_up (R, 2 ff)` becomes its gradient, `act (R, ff)` is what the forward
/// computed, `dweights (R)` is the gradient of the rows' weights, or empty where nobody wants it.
pub struct SwigluBackward<'a> {
    pub gate_up: &'a mut [f32],
    pub act: &'a mut [f32],
    pub dweights: &'a mut [f32],
}

pub fn swiglu_backward(
    pool: &Pool,
    isa: Isa,
    ff: usize,
    rows: usize,
    weight: impl Fn(usize) -> f32 + Sync + Send,
    dact: &[f32],
    to: SwigluBackward<'_>,
) {
    let weighted = usize::from(!to.dweights.is_empty());
    let outputs = [(to.gate_up, 2 * ff), (to.act, ff), (to.dweights, weighted)];
    pool.rows(rows, outputs, |rows, [gate_up, act, dweights]| {
        for (i, (gate_up, act)) in gate_up.chunks_exact_mut(2 * ff).zip(act.chunks_exact_mut(ff)).enumerate() {
            let r = rows.start + i;
            let (gate, up) = gate_up.split_at_mut(ff);
            let dweight = swiglu_backward_row(isa, weight(r), &dact[r * ff..(r + 1) * ff], gate, up, act);
            if let Some(to) = dweights.get_mut(i) {
                *to = dweight;
            }
        }
    });
}

multiversion! {
    /// Returns the gradient of the weight.
    fn swiglu_backward_row(weight: f32, dact: &[f32], gate: &mut [f32], up: &mut [f32], act: &mut [f32]) -> f32 {
        let ff = act.len();
        let (dact, gate, up) = (&dact[..ff], &mut gate[..ff], &mut up[..ff]);
        for i in 0..ff {
            let (g, u, d) = (gate[i], up[i], dact[i] * weight);
            let s = simd::sigmoid(g);
            let silu = g * s;
            gate[i] = d * u * s * g.mul_add(1.0 - s, 1.0);
            up[i] = d * silu;
            // The product without the weight, for the sum below.
            act[i] = silu * u;
        }
        let dweight = simd::sum_by(ff, |i| dact[i] * act[i]);
        for act in act {
            *act *= weight;
        }
        dweight
    }
}
