//! Elementwise arithmetic, sums, host access, the optimizer.

use toroid_worker::device::{AdamW, Buffer, Device, Snapshot as _};

use super::*;

/// Longer than a chunk, and no multiple of any vector's length.
const LEN: usize = 40_003;

pub fn elementwise_and_sums<D: Device>(device: &D) {
    let (x, y) = (values(1, LEN), values(2, LEN));
    let (a, b, mut c) = (upload(device, &x), upload(device, &y), device.alloc(LEN));
    device.add(a.all(), b.all(), c.all_mut());
    check("a + b", &download(device, &c), &plus(&x, &y), 1e-7);
    device.add_assign(a.all(), c.all_mut());
    check("c += a", &download(device, &c), &plus(&x, &plus(&x, &y)), 2e-7);
    device.copy(a.all(), c.all_mut());
    device.scale(-0.5, c.all_mut());
    check("c *= -0.5", &download(device, &c), &x.iter().map(|v| v * -0.5).collect::<Vec<_>>(), 0.0);
    device.fill(c.view_mut(10..20), 3.0);
    assert_eq!(download(device, &c)[9..21].iter().filter(|v| **v == 3.0).count(), 10, "fill of a part");

    let (sum, squares) = (x.iter().sum::<f64>(), dot(&x, &x));
    assert!((device.sum(a.all()) - sum).abs() < 1e-9, "sum");
    assert!((device.sum_of_squares(a.all()) - squares).abs() < 1e-9 * squares, "sum of squares");
    assert!((device.sum(a.view(5..8)) - x[5..8].iter().sum::<f64>()).abs() < 1e-12, "sum of a part");
    assert_eq!(device.sum(a.view(7..7)), 0.0, "sum of nothing");
}

/// Each by its own factor, in a part of a buffer that others lie around; some rows of a large matrix go to each thread.
pub fn rows_are_scaled<D: Device>(device: &D) {
    for (rows, width) in [(1, 1), (3, 5), (700, 129)] {
        let (mut by, y) = (values(20, rows), values(21, rows * width + 2));
        by[rows / 2] = 0.0;
        let (by_buf, mut found) = (upload(device, &by), upload(device, &y));
        device.scale_rows(by_buf.all(), found.view_mut(1..1 + rows * width));
        let of = |i: usize| if (1..=rows * width).contains(&i) { by[(i - 1) / width] } else { 1.0 };
        let expected: Vec<f64> = y.iter().enumerate().map(|(i, y)| y * of(i)).collect();
        check("rows that are scaled", &download(device, &found), &expected, 1e-7);
    }
    let (none, mut nothing) = (device.alloc(0), device.alloc(0));
    device.scale_rows(none.all(), nothing.all_mut());
}

pub fn finite_values<D: Device>(device: &D) {
    let mut buf = upload(device, &values(3, LEN));
    assert!(device.all_finite(buf.all()));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, LEN / 2, LEN - 1] {
            device.fill(buf.view_mut(at..at + 1), bad);
            assert!(!device.all_finite(buf.all()), "{bad} at {at}");
            device.fill(buf.view_mut(at..at + 1), f32::MAX);
            assert!(device.all_finite(buf.all()), "the largest number is finite");
        }
    }
}

/// By whatever threads or blocks, over parts of buffers that begin anywhere.
pub fn digest_of_bits<D: Device>(device: &D) {
    let mut x: Vec<f32> = values(7, 600_001).iter().map(|v| *v as f32).collect();
    (x[3], x[4], x[5]) = (f32::NAN, -0.0, f32::INFINITY);
    let mut buf = device.alloc(x.len());
    device.write(buf.all_mut(), &x);
    for range in [0..x.len(), 1..x.len(), 3..4, 7..7, 5..300_000] {
        let expected = toroid_torus::digest::digest(&x[range.clone()], 0, 3);
        assert_eq!(device.digest(buf.view(range.clone()), 3), expected, "{range:?}");
    }
}

pub fn host_access<D: Device>(device: &D) {
    let mut buf = device.alloc(8);
    assert_eq!(download(device, &buf), [0.0; 8], "a new buffer is zeros");
    device.write(buf.view_mut(2..4), &[1.0, 2.0]);
    let sum = device.with_host_mut(buf.view_mut(3..6), |host| {
        host[2] = 5.0;
        host.iter().sum::<f32>()
    });
    assert_eq!(sum, 7.0);
    device.with_host(buf.all(), |host| assert_eq!(host, [0.0, 0.0, 1.0, 2.0, 0.0, 5.0, 0.0, 0.0]));
}

/// Whatever becomes of the buffer, and when it is gone.
pub fn snapshots_stay<D: Device>(device: &D) {
    let mut buf = upload(device, &values(8, LEN));
    let before = download(device, &buf);
    let snapshot = device.snapshot(&buf);
    let stays = || snapshot.to_vec() == before;
    device.fill(buf.view_mut(3..7), 9.0);
    let changed = download(device, &buf);
    assert!(changed[..3] == before[..3] && changed[7..] == before[7..] && changed[3..7] == [9.0; 4], "the buffer");
    assert!(stays() && !device.is_shared(&buf), "the snapshot");
    drop(buf);
    assert!(stays(), "without the buffer");
}

/// One of two buffers in the same memory changes: the other stays.
pub fn shared_buffers_part_when_one_changes<D: Device>(device: &D) {
    let mut buf = upload(device, &values(8, LEN));
    let before = download(device, &buf);
    let Some(mut other) = device.share(&buf) else {
        assert!(!device.is_shared(&buf), "nothing is shared");
        return;
    };
    assert!(device.is_shared(&buf) && device.is_shared(&other), "both are in the same memory");
    device.fill(buf.view_mut(3..7), 9.0);
    assert!(download(device, &other) == before && download(device, &buf)[3..7] == [9.0; 4], "the first changes");
    let mut third = device.share(&other).expect("shares once, shares again");
    device.fill(other.view_mut(0..2), 5.0);
    assert!(download(device, &third) == before && download(device, &other)[..2] == [5.0; 2], "the second changes");
    drop(other);
    assert!(!device.is_shared(&third), "alone again");
    device.fill(third.all_mut(), 1.0);
}

pub fn adamw_follows_its_formula<D: Device>(device: &D) {
    let (mut p, mut m, mut v) = (values(4, LEN), vec![0.0; LEN], vec![0.0; LEN]);
    let [mut pd, mut md, mut vd] = [&p, &m, &v].map(|x| upload(device, x));
    for t in 0..3 {
        let g = values(10 + t, LEN);
        let steps = t as i32 + 1;
        let hyper = AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            bias1: 1.0 - 0.9_f64.powi(steps),
            bias2: 1.0 - 0.95_f64.powi(steps),
            grad_scale: 0.5,
        };
        for i in 0..LEN {
            let g = g[i] * hyper.grad_scale;
            p[i] -= hyper.lr * hyper.weight_decay * p[i];
            m[i] = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
            v[i] = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
            p[i] -= hyper.lr / hyper.bias1 * m[i] / (v[i].sqrt() / hyper.bias2.sqrt() + hyper.eps);
        }
        let (gd, before) = (upload(device, &g), [&pd, &md, &vd].map(|x| device.snapshot(x).to_vec()));
        device.adamw(pd.all_mut(), md.all_mut(), vd.all_mut(), gd.all(), &hyper);
        check("p", &download(device, &pd), &p, 1e-6);
        check("m", &download(device, &md), &m, 1e-6);
        check("v", &download(device, &vd), &v, 1e-6);
        // Out of place, into what was there before; the inputs stay as they are.
        let [from_p, from_m, from_v] = before.each_ref().map(|x| {
            let mut buf = device.alloc(x.len());
            device.write(buf.all_mut(), x);
            buf
        });
        let [mut to_p, mut to_m, mut to_v] = [30, 31, 32].map(|seed| upload(device, &values(seed, LEN)));
        let [from, to] = [[&from_p, &from_m, &from_v], [&pd, &md, &vd]];
        device.adamw_into(from.map(|x| x.all()), [to_p.all_mut(), to_m.all_mut(), to_v.all_mut()], gd.all(), &hyper);
        let bits = |x: &D::Buf| device.snapshot(x).to_vec().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for (found, expected) in [&to_p, &to_m, &to_v].into_iter().zip(to) {
            assert!(bits(found) == bits(expected), "in place and out of place have the same bits");
        }
        for (found, expected) in from.into_iter().zip(&before) {
            assert!(device.snapshot(found).to_vec() == *expected, "what was before stays");
        }
    }
}
