//! Elementwise arithmetic, sums in f64 and the optimizer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::simd::{Isa, LANES, multiversion};
use crate::device::{AdamW, Digest, NOWHERE};

/// Parts that a sum is cut into at most; their number depends on the length alone.
const PARTS: usize = 64;
/// Smallest part of a sum.
const MIN_PART: usize = 4096;
/// Elements of a part of a digest.
const DIGEST_PART: usize = 256 * 1024;
/// Elements of a chunk of an elementwise loop.
const CHUNK: usize = 16 * 1024;

/// Rows of `y (N, w)` where `rows (N)` is [`NOWHERE`] become zeros.
pub fn keep_rows(rows: &[u32], y: &mut [f32]) {
    let width = y.len() / rows.len().max(1);
    for (row, y) in rows.iter().zip(y.chunks_exact_mut(width.max(1))) {
        if *row == NOWHERE {
            y.fill(0.0);
        }
    }
}

/// `y[n] *= by[n]`; `by (N)`, `y (N, w)`.
pub fn scale_rows(pool: &Pool, isa: Isa, by: &[f32], y: &mut [f32]) {
    let width = y.len() / by.len().max(1);
    pool.rows(by.len(), [(y, width)], |range, [y]| {
        for (by, y) in by[range].iter().zip(y.chunks_exact_mut(width.max(1))) {
            scale_chunk(isa, *by, y);
        }
    });
}

multiversion! {
    fn sum_part(x: &[f32]) -> f64 {
        lanes_f64(x, |v| v)
    }
}

multiversion! {
    fn squares_part(x: &[f32]) -> f64 {
        lanes_f64(x, |v| v * v)
    }
}

multiversion! {
    /// Exponents of all ones are the infinities and NaNs.
    fn finite_part(x: &[f32]) -> bool {
        let mut bad = 0_u32;
        for v in x {
            bad |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
        }
        bad == 0
    }
}

#[inline(always)]
fn lanes_f64(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] += f(f64::from(chunk[l]));
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(*v));
    }
    lanes.iter().sum()
}

/// Sums parts in parallel and the parts in order.
fn by_parts(pool: &Pool, x: &[f32], f: impl Fn(&[f32]) -> f64 + Sync + Send) -> f64 {
    let len = x.len().div_ceil(PARTS).max(MIN_PART);
    let sums = [const { AtomicU64::new(0) }; PARTS];
    pool.each(x.len().div_ceil(len), x.len(), |i| {
        let part = &x[i * len..((i + 1) * len).min(x.len())];
        sums[i].store(f(part).to_bits(), Ordering::Relaxed);
    });
    sums.into_iter().map(|sum| f64::from_bits(sum.into_inner())).sum()
}

pub fn sum(pool: &Pool, isa: Isa, x: &[f32]) -> f64 {
    by_parts(pool, x, |part| sum_part(isa, part))
}

pub fn sum_of_squares(pool: &Pool, isa: Isa, x: &[f32]) -> f64 {
    by_parts(pool, x, |part| squares_part(isa, part))
}

pub fn all_finite(pool: &Pool, isa: Isa, x: &[f32]) -> bool {
    by_parts(pool, x, |part| if finite_part(isa, part) { 0.0 } else { 1.0 }) == 0.0
}

multiversion! {
    fn digest_part(x: &[f32], first: usize, salt: u32) -> Digest {
        toroid_torus::digest::digest(x, first, salt)
    }
}

pub fn digest(pool: &Pool, isa: Isa, x: &[f32], salt: u32) -> Digest {
    let sum = Mutex::new(Digest::default());
    pool.each(x.len().div_ceil(DIGEST_PART), x.len(), |i| {
        let first = i * DIGEST_PART;
        let part = digest_part(isa, &x[first..(first + DIGEST_PART).min(x.len())], first, salt);
        // Any order of these sums gives the same.
        *sum.lock().unwrap_or_else(PoisonError::into_inner) += part;
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// `y = a + b`
pub fn add(pool: &Pool, isa: Isa, a: &[f32], b: &[f32], y: &mut [f32]) {
    let work = y.len();
    pool.chunks(y, CHUNK, work, |first, y| {
        let range = first..first + y.len();
        add_chunk(isa, &a[range.clone()], &b[range], y);
    });
}

pub fn add_assign(pool: &Pool, isa: Isa, x: &[f32], y: &mut [f32]) {
    let work = y.len();
    pool.chunks(y, CHUNK, work, |first, y| super::layers::add_assign(isa, &x[first..first + y.len()], y));
}

pub fn scale(pool: &Pool, isa: Isa, alpha: f32, y: &mut [f32]) {
    let work = y.len();
    pool.chunks(y, CHUNK, work, |_, y| scale_chunk(isa, alpha, y));
}

multiversion! {
    fn add_chunk(a: &[f32], b: &[f32], y: &mut [f32]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a + b;
        }
    }
}

multiversion! {
    fn scale_chunk(alpha: f32, y: &mut [f32]) {
        for y in y {
            *y *= alpha;
        }
    }
}

/// The constants of an update, rounded once.
#[derive(Clone, Copy)]
struct Update {
    keep: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step: f32,
    inv_sqrt_bias2: f32,
    eps: f32,
    grad_scale: f32,
}

impl Update {
    fn of(hyper: &AdamW) -> Update {
        Update {
            keep: (1.0 - hyper.lr * hyper.weight_decay) as f32,
            beta1: hyper.beta1 as f32,
            one_minus_beta1: (1.0 - hyper.beta1) as f32,
            beta2: hyper.beta2 as f32,
            one_minus_beta2: (1.0 - hyper.beta2) as f32,
            step: (hyper.lr / hyper.bias1) as f32,
            inv_sqrt_bias2: (1.0 / hyper.bias2.sqrt()) as f32,
            eps: hyper.eps as f32,
            grad_scale: hyper.grad_scale as f32,
        }
    }

    /// Weight and moments of one element.
    #[inline(always)]
    fn of_element(&self, [p, m, v]: [f32; 3], g: f32) -> [f32; 3] {
        let g = g * self.grad_scale;
        let m = self.beta1 * m + self.one_minus_beta1 * g;
        let v = self.beta2 * v + self.one_minus_beta2 * g * g;
        let denominator = v.sqrt() * self.inv_sqrt_bias2 + self.eps;
        [p * self.keep - self.step * (m / denominator), m, v]
    }
}

pub fn adamw(pool: &Pool, isa: Isa, hyper: &AdamW, state: [&mut [f32]; 3], g: &[f32]) {
    let update = Update::of(hyper);
    pool.rows(g.len(), state.map(|x| (x, 1)), |range, state| adamw_chunk(isa, update, state, &g[range]));
}

pub fn adamw_into(pool: &Pool, isa: Isa, hyper: &AdamW, before: [&[f32]; 3], after: [&mut [f32]; 3], g: &[f32]) {
    let update = Update::of(hyper);
    pool.rows(g.len(), after.map(|x| (x, 1)), |range, after| {
        adamw_into_chunk(isa, update, before.map(|x| &x[range.clone()]), after, &g[range.clone()]);
    });
}

multiversion! {
    fn adamw_chunk(u: Update, state: [&mut [f32]; 3], g: &[f32]) {
        let n = g.len();
        let [p, m, v] = state.map(|x| &mut x[..n]);
        for i in 0..n {
            [p[i], m[i], v[i]] = u.of_element([p[i], m[i], v[i]], g[i]);
        }
    }
}

multiversion! {
    fn adamw_into_chunk(u: Update, before: [&[f32]; 3], after: [&mut [f32]; 3], g: &[f32]) {
        let n = g.len();
        let ([p0, m0, v0], [p, m, v]) = (before.map(|x| &x[..n]), after.map(|x| &mut x[..n]));
        for i in 0..n {
            [p[i], m[i], v[i]] = u.of_element([p0[i], m0[i], v0[i]], g[i]);
        }
    }
}
