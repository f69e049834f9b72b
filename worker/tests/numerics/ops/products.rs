//! Matrix products, whole and by expert.

use toroid_worker::device::{Buffer, Device, Groups, Mat, MatMut};

use super::moe::{grouped_example, num_rows};
use super::*;

/// `a (m, k) b (k, n)`
fn product(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let of = |i: usize| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum();
    (0..m * n).map(of).collect()
}

/// `x (rows, cols)`
fn transpose(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

const BOTH: [Products; 2] = [Products::F32, Products::Bf16];

pub fn matmul_of_any_shape<D: Device>(device: &D) {
    BOTH.into_iter().for_each(|products| check_matmul(device, products, products, 2e-6));
}

/// A device may round operands to tf32, one way or another, or not at all.
pub fn tf32_is_near<D: Device>(device: &D) {
    check_matmul(device, Products::Tf32, Products::F32, 2e-3);
    check_grouped_products(device, Products::Tf32, Products::F32, 2e-3);
}

/// The kernels do, to nearest.
#[test]
fn tf32_kernels_round_their_operands() {
    for device in [crate::emulator::device(), crate::emulator::backwards()] {
        check_matmul(&device, Products::Tf32, Products::Tf32, 2e-6);
        check_grouped_products(&device, Products::Tf32, Products::Tf32, 2e-6);
    }
}

/// `rounds`: how the device rounds the operands of `products`.
fn check_matmul<D: Device>(device: &D, products: Products, rounds: Products, tolerance: f64) {
    let shapes =
        [(1, 1, 1), (1, 37, 5), (5, 3, 1), (64, 64, 64), (130, 70, 520), (300, 9, 16), (29, 1100, 47), (240, 513, 250)];
    for (m, k, n) in shapes {
        let (a, b, c) = (values(1, m * k), values(2, k * n), values(3, m * n));
        let expected = product(&rounded(rounds, &a), &rounded(rounds, &b), m, k, n);
        for (a_turned, b_turned) in [(false, false), (false, true), (true, false), (true, true)] {
            let a = upload(device, &if a_turned { transpose(&a, m, k) } else { a.clone() });
            let b = upload(device, &if b_turned { transpose(&b, k, n) } else { b.clone() });
            let a = if a_turned { Mat::new(a.all(), k, m).t() } else { Mat::new(a.all(), m, k) };
            let b = if b_turned { Mat::new(b.all(), n, k).t() } else { Mat::new(b.all(), k, n) };
            for (alpha, beta) in [(1.0, 0.0), (0.5, 0.0), (1.0, 1.0), (-2.0, 0.25)] {
                // With beta 0 the old content must not matter, even where it is no number.
                let mut to = upload(device, &if beta == 0.0 { vec![f64::NAN; m * n] } else { c.clone() });
                device.matmul(products, alpha, a, b, beta, MatMut::new(to.all_mut(), m, n));
                let of =
                    |i: usize| f64::from(alpha) * expected[i] + if beta == 0.0 { 0.0 } else { f64::from(beta) * c[i] };
                let what = format!(
                    "{products:?} ({m}, {k}) x ({k}, {n}), turned {a_turned} {b_turned}, alpha {alpha}, beta {beta}"
                );
                check(&what, &download(device, &to), &(0..m * n).map(of).collect::<Vec<_>>(), tolerance);
            }
        }
    }
}

pub fn matmul_of_parts_of_buffers<D: Device>(device: &D) {
    let (m, k, n) = (6, 5, 4);
    let (a, b) = (values(1, m * k + 3), values(2, k * n + 7));
    let (a_buf, b_buf, mut c) = (upload(device, &a), upload(device, &b), device.alloc(m * n + 2));
    let (left, right) = (Mat::new(a_buf.view(3..3 + m * k), m, k), Mat::new(b_buf.view(7..7 + k * n), k, n));
    device.matmul(Products::F32, 1.0, left, right, 0.0, MatMut::new(c.view_mut(1..1 + m * n), m, n));
    let mut expected = vec![0.0];
    expected.extend(product(&a[3..], &b[7..], m, k, n));
    expected.push(0.0);
    check("a product inside of a buffer", &download(device, &c), &expected, 1e-6);
}

/// Rows of each local expert.
fn offsets<D: Device>(device: &D, groups: &Groups<D>) -> Vec<usize> {
    download_ids(device, &groups.offsets, groups.local.len() + 1).iter().map(|o| *o as usize).collect()
}

pub fn grouped_products<D: Device>(device: &D) {
    BOTH.into_iter().for_each(|products| check_grouped_products(device, products, products, 2e-6));
}

fn check_grouped_products<D: Device>(device: &D, products: Products, rounds: Products, tolerance: f64) {
    let (_, groups) = grouped_example(device);
    let (input, output, experts) = (24, 40, groups.local.len());
    let (offsets, rows) = (offsets(device, &groups), num_rows(device, &groups));
    assert!(offsets.windows(2).any(|o| o[0] == o[1]), "an expert without rows is part of the example");
    let x = values(1, groups.capacity * input);
    let dy = values(2, groups.capacity * output);
    let (w, dw) = (values(3, experts * output * input), values(4, experts * output * input));
    let [x_buf, dy_buf, w_buf, mut dw_buf] = [&x, &dy, &w, &dw].map(|v| upload(device, v));
    let [mut y, mut dx] = [output, input].map(|n| upload(device, &vec![7.0; groups.capacity * n]));
    device.grouped_matmul(products, &groups, x_buf.all(), w_buf.all(), y.all_mut());
    device.grouped_matmul_dx(products, &groups, dy_buf.all(), w_buf.all(), dx.all_mut());
    device.grouped_matmul_dw(products, &groups, dy_buf.all(), x_buf.all(), dw_buf.all_mut());

    let [x, dy, w] = [&x, &dy, &w].map(|v| rounded(rounds, v));
    let (mut expected_y, mut expected_dx, mut expected_dw) = (Vec::new(), Vec::new(), dw.clone());
    for e in 0..experts {
        let (start, end) = (offsets[e], offsets[e + 1]);
        let (x, dy) = (&x[start * input..end * input], &dy[start * output..end * output]);
        let size = output * input;
        let w = &w[e * size..(e + 1) * size];
        expected_y.extend(product(x, &transpose(w, output, input), end - start, input, output));
        expected_dx.extend(product(dy, w, end - start, output, input));
        let gradient = product(&transpose(dy, end - start, output), x, output, end - start, input);
        expected_dw.splice(e * size..(e + 1) * size, plus(&dw[e * size..(e + 1) * size], &gradient));
    }
    let untouched = |n: usize| std::iter::repeat_n(7.0, (groups.capacity - rows) * n);
    expected_y.extend(untouched(output));
    expected_dx.extend(untouched(input));
    check("y", &download(device, &y), &expected_y, tolerance);
    check("dx", &download(device, &dx), &expected_dx, tolerance);
    check("dw", &download(device, &dw_buf), &expected_dw, tolerance);
}
