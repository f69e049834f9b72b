//! The router, and moving tokens to their experts and back.

use super::pool::Pool;
use super::simd::{self, Isa, multiversion};
use crate::device::{NOWHERE, RouterLoss, TOP_K};

/// Outputs of [`route`]; shapes as in [`crate::device::Routing`].
pub struct Choice<'a> {
    pub probs: &'a mut [f32],
    pub lse: &'a mut [f32],
    pub chosen: &'a mut [u32],
    pub weights: &'a mut [f32],
    pub counts: &'a mut [u32],
    pub prob_sums: &'a mut [f32],
}

/// Chooses experts from `logits (N, E)`; `kept (N)` is [`NOWHERE`] at rows that are no token.
pub fn route(pool: &Pool, isa: Isa, experts: usize, kept: Option<&[u32]>, logits: &[f32], to: Choice<'_>) {
    let Choice { probs, lse, chosen, weights, counts, prob_sums } = to;
    pool.rows(lse.len(), [(&mut *probs, experts), (lse, 1)], |rows, [probs, lse]| {
        softmax_rows(isa, experts, &logits[rows.start * experts..rows.end * experts], probs, lse);
        if let Some(kept) = kept {
            super::vector::keep_rows(&kept[rows.clone()], probs);
            super::vector::keep_rows(&kept[rows], lse);
        }
    });
    counts.fill(0);
    let outputs = chosen.chunks_exact_mut(TOP_K).zip(weights.chunks_exact_mut(TOP_K));
    for (n, (logits, (chosen, weights))) in logits.chunks_exact(experts).zip(outputs).enumerate() {
        if kept.is_some_and(|kept| kept[n] == NOWHERE) {
            chosen.fill(NOWHERE);
            weights.fill(0.0);
            continue;
        }
        let [first, second] = two_largest(logits);
        let weight = simd::sigmoid(logits[first] - logits[second]);
        weights.copy_from_slice(&[weight, 1.0 - weight]);
        chosen.copy_from_slice(&[first as u32, second as u32]);
        counts[first] += 1;
        counts[second] += 1;
    }
    prob_sums.fill(0.0);
    add_rows(isa, probs, prob_sums);
}

/// The two experts with the largest logits; ties go to the lower one. Any two where logits are NaN.
fn two_largest(logits: &[f32]) -> [usize; TOP_K] {
    let (mut first, mut second) = if logits[1] > logits[0] { (1, 0) } else { (0, 1) };
    for expert in 2..logits.len() {
        if logits[expert] > logits[first] {
            (first, second) = (expert, first);
        } else if logits[expert] > logits[second] {
            second = expert;
        }
    }
    [first, second]
}

multiversion! {
    fn softmax_rows(experts: usize, logits: &[f32], probs: &mut [f32], lse: &mut [f32]) {
        for ((logits, probs), lse) in logits.chunks_exact(experts).zip(probs.chunks_exact_mut(experts)).zip(lse) {
            let max = simd::max(logits);
            for (p, l) in probs.iter_mut().zip(logits) {
                *p = simd::exp(*l - max);
            }
            let sum = simd::sum_by(experts, |i| probs[i]);
            *lse = max + sum.ln();
            let inverse = 1.0 / sum;
            for p in probs.iter_mut() {
                *p *= inverse;
            }
        }
    }
}

multiversion! {
    /// `sums += row` for every row.
    fn add_rows(rows: &[f32], sums: &mut [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

/// What the router's backward reads; shapes as in [`crate::device::Routing`] and [`crate::device::Groups`].
#[derive(Clone, Copy)]
pub struct RouteBackward<'a> {
    pub experts: usize,
    pub num_kept: usize,
    pub probs: &'a [f32],
    pub lse: &'a [f32],
    pub chosen: &'a [u32],
    pub weights: &'a [f32],
    pub counts: &'a [u32],
    /// `(capacity)`
    pub positions: &'a [u32],
    /// `(R)`
    pub dweights: &'a [f32],
}

pub fn route_backward(pool: &Pool, isa: Isa, loss: RouterLoss, saved: RouteBackward<'_>, dlogits: &mut [f32]) {
    let (experts, tokens) = (saved.experts, saved.lse.len());
    let num_kept = saved.num_kept.max(1);
    let z = 2.0 * loss.z / num_kept as f32;
    let balance = loss.balance * experts as f32 / num_kept as f32;
    let share = 1.0 / (num_kept * TOP_K) as f32;
    pool.rows(tokens, [(dlogits, experts)], |rows, [dlogits]| {
        for (n, dlogits) in rows.zip(dlogits.chunks_exact_mut(experts)) {
            if saved.chosen[n * TOP_K] == NOWHERE {
                dlogits.fill(0.0);
                continue;
            }
            let probs = &saved.probs[n * experts..(n + 1) * experts];
            loss_row(isa, z * saved.lse[n], balance, share, saved.counts, probs, dlogits);
            let pair = n * TOP_K..(n + 1) * TOP_K;
            let dweight = |position: u32| if position == NOWHERE { 0.0 } else { saved.dweights[position as usize] };
            let (positions, weights) = (&saved.positions[pair.clone()], &saved.weights[pair.clone()]);
            let d = weights[0] * weights[1] * (dweight(positions[0]) - dweight(positions[1]));
            dlogits[saved.chosen[pair.start] as usize] += d;
            dlogits[saved.chosen[pair.start + 1] as usize] -= d;
        }
    });
}

multiversion! {
    /// Gradient of the z and balance losses of one token: `z p_e + balance p_e (f_e - sum_j f_j p_j)` with
    /// `f = counts * share`.
    fn loss_row(z: f32, balance: f32, share: f32, counts: &[u32], probs: &[f32], dlogits: &mut [f32]) {
        let experts = probs.len();
        let counts = &counts[..experts];
        let mean = simd::sum_by(experts, |e| counts[e] as f32 * share * probs[e]);
        for e in 0..experts {
            dlogits[e] = probs[e] * (z + balance * (counts[e] as f32 * share - mean));
        }
    }
}

/// Counting sort of the assignments to the experts `local`; shapes as in [`crate::device::Groups`].
pub fn group(
    local: std::ops::Range<usize>,
    chosen: &[u32],
    counts: &[u32],
    offsets: &mut [u32],
    assignments: &mut [u32],
    positions: &mut [u32],
) {
    // `offsets[e + 1]` first runs from the start of expert `e`'s rows to their end.
    offsets[0] = 0;
    let mut start = 0;
    for (next, count) in offsets[1..].iter_mut().zip(&counts[local.clone()]) {
        *next = start;
        start += count;
    }
    for (assignment, expert) in chosen.iter().enumerate() {
        positions[assignment] = NOWHERE;
        if local.contains(&(*expert as usize)) {
            let next = &mut offsets[*expert as usize - local.start + 1];
            positions[assignment] = *next;
            assignments[*next as usize] = assignment as u32;
            *next += 1;
        }
    }
}

/// `rows[r] = x[token of row r]`
pub fn gather(pool: &Pool, d: usize, assignments: &[u32], x: &[f32], rows: &mut [f32]) {
    pool.rows(assignments.len(), [(rows, d)], |range, [rows]| {
        for (assignment, row) in assignments[range].iter().zip(rows.chunks_exact_mut(d)) {
            let token = *assignment as usize / TOP_K;
            row.copy_from_slice(&x[token * d..(token + 1) * d]);
        }
    });
}

/// `y[n] += sum of the rows of token n`
pub fn combine(pool: &Pool, isa: Isa, d: usize, positions: &[u32], rows: &[f32], y: &mut [f32]) {
    pool.rows(y.len() / d, [(y, d)], |tokens, [y]| {
        for (n, y) in tokens.zip(y.chunks_exact_mut(d)) {
            for position in &positions[n * TOP_K..(n + 1) * TOP_K] {
                if *position != NOWHERE {
                    let row = *position as usize;
                    super::layers::add_assign(isa, &rows[row * d..(row + 1) * d], y);
                }
            }
        }
    });
}
