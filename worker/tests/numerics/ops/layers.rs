//! Embedding, RMSNorm, rotary embedding, SwiGLU.

use toroid_worker::device::{AttentionDims, Buffer, Device, Turn};

use super::*;

pub fn embedding_of_a_part_of_the_vocabulary<D: Device>(device: &D) {
    let (d, rows, first_row) = (40, 37, 10);
    let ids: Vec<u32> = (0..700).map(|n| (n * n + 3 * n) % 60).collect();
    let (table, dtable, dx) = (values(1, rows * d), values(2, rows * d), values(3, ids.len() * d));
    let (mut x, mut dtable_buf) = (upload(device, &vec![7.0; ids.len() * d]), upload(device, &dtable));
    let ids_buf = upload_ids(device, &ids);
    device.embedding(d, &ids_buf, first_row, upload(device, &table).all(), x.all_mut());
    device.embedding_backward(d, &ids_buf, first_row, upload(device, &dx).all(), dtable_buf.all_mut());

    let (mut expected, mut expected_gradient) = (vec![0.0; ids.len() * d], dtable);
    for (n, id) in ids.iter().enumerate() {
        let Some(row) = (*id as usize).checked_sub(first_row).filter(|row| *row < rows) else { continue };
        for i in 0..d {
            expected[n * d + i] = table[row * d + i];
            expected_gradient[row * d + i] += dx[n * d + i];
        }
    }
    check("x", &download(device, &x), &expected, 0.0);
    check("dtable", &download(device, &dtable_buf), &expected_gradient, 1e-6);
}

const EPS: f64 = 1e-6;

/// `x (N, d)`, `w (d)`
fn rms_norm(x: &[f64], w: &[f64]) -> Vec<f64> {
    let row = |x: &[f64]| {
        let inverse = 1.0 / (dot(x, x) / w.len() as f64 + EPS).sqrt();
        x.iter().zip(w).map(|(x, w)| x * w * inverse).collect::<Vec<_>>()
    };
    x.chunks(w.len()).flat_map(row).collect()
}

pub fn rms_norm_and_its_gradient<D: Device>(device: &D) {
    for (tokens, d) in [(3, 21), (2, 150), (400, 64)] {
        let (x, w) = (values(1, tokens * d), values(2, d));
        let (dy, dx, dw) = (values(3, tokens * d), values(4, tokens * d), values(5, d));
        let [x_buf, w_buf, dy_buf, mut dx_buf, mut dw_buf] = [&x, &w, &dy, &dx, &dw].map(|v| upload(device, v));
        let (mut y, mut inv_rms) = (device.alloc(tokens * d), device.alloc(tokens));
        device.rms_norm(EPS as f32, x_buf.all(), w_buf.all(), y.all_mut(), inv_rms.all_mut());
        check("y", &download(device, &y), &rms_norm(&x, &w), 1e-6);
        let (dx_view, dw_view) = (dx_buf.all_mut(), dw_buf.all_mut());
        device.rms_norm_backward(x_buf.all(), w_buf.all(), inv_rms.all(), dy_buf.all(), dx_view, dw_view);
        // The rows do not depend on one another: one at a time keeps the differences cheap.
        let of_row = |n: usize| {
            let range = n * d..(n + 1) * d;
            derivative(&x[range.clone()], |x| dot(&dy[range.clone()], &rms_norm(x, &w)))
        };
        let gradient: Vec<f64> = (0..tokens).flat_map(of_row).collect();
        check("dx", &download(device, &dx_buf), &plus(&dx, &gradient), 1e-6);
        let gradient = derivative(&w, |w| dot(&dy, &rms_norm(&x, w)));
        check("dw", &download(device, &dw_buf), &plus(&dw, &gradient), 1e-6);
    }
}

pub fn rope_turns_and_turns_back<D: Device>(device: &D) {
    let dims = AttentionDims { batch: 2, seq: 70, heads: 4, kv_heads: 2, head_dim: 6 };
    let (half, row_len) = (dims.head_dim / 2, dims.row_len());
    let angle = |position: usize, i: usize| position as f64 * 0.3 / (i + 1) as f64;
    let row =
        |p: usize| (0..2 * half).map(move |i| if i < half { angle(p, i).cos() } else { angle(p, i - half).sin() });
    let table = upload(device, &(0..dims.seq).flat_map(row).collect::<Vec<_>>());
    let x = values(1, dims.tokens() * row_len);
    let mut buf = upload(device, &x);
    device.rope(&dims, Turn::Forward, table.all(), buf.all_mut());

    let mut expected = x.clone();
    for n in 0..dims.tokens() {
        for head in 0..dims.heads + dims.kv_heads {
            for i in 0..half {
                let (at, a) = (n * row_len + head * dims.head_dim + i, angle(n % dims.seq, i));
                expected[at] = x[at] * a.cos() - x[at + half] * a.sin();
                expected[at + half] = x[at + half] * a.cos() + x[at] * a.sin();
            }
        }
    }
    check("turned", &download(device, &buf), &expected, 1e-6);
    device.rope(&dims, Turn::Back, table.all(), buf.all_mut());
    check("turned back", &download(device, &buf), &x, 1e-6);
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `gate_up (N, 2 ff)`
pub fn swiglu(ff: usize, gate_up: &[f64]) -> Vec<f64> {
    gate_up.chunks(2 * ff).flat_map(|row| (0..ff).map(|i| silu(row[i]) * row[ff + i])).collect()
}

pub fn swiglu_and_its_gradient<D: Device>(device: &D) {
    let (rows, ff) = (50, 33);
    let gate_up: Vec<f64> = values(1, rows * 2 * ff).iter().map(|x| 6.0 * x).collect();
    let dact = values(2, rows * ff);
    let [mut gate_up_buf, dact_buf] = [&gate_up, &dact].map(|v| upload(device, v));
    let mut act = device.alloc(rows * ff);
    device.swiglu(ff, gate_up_buf.all(), act.all_mut());
    check("act", &download(device, &act), &swiglu(ff, &gate_up), 1e-6);

    device.fill(act.all_mut(), 7.0);
    device.swiglu_backward(ff, dact_buf.all(), gate_up_buf.all_mut(), act.all_mut());
    let of_row = |r: usize| {
        derivative(&gate_up[2 * r * ff..2 * (r + 1) * ff], |row| dot(&dact[r * ff..(r + 1) * ff], &swiglu(ff, row)))
    };
    check("d(gate_up)", &download(device, &gate_up_buf), &(0..rows).flat_map(of_row).collect::<Vec<_>>(), 1e-6);
    check("act again", &download(device, &act), &swiglu(ff, &gate_up), 1e-6);
}
