//! Cross-entropy over a vocabulary that is split over ranks.

use super::pool::Pool;
use super::simd::{self, Isa, multiversion};

/// Tokens of a chunk.
const TOKENS: usize = 32;

/// Where a target's logit is, if this rank holds it.
fn local_target(target: u32, first_row: usize, rows: usize) -> Option<usize> {
    (target as usize).checked_sub(first_row).filter(|row| *row < rows)
}

/// `stats (N, 3)` of `logits (N, rows)`.
pub fn cross_entropy_local(
    pool: &Pool,
    isa: Isa,
    targets: &[u32],
    first_row: usize,
    logits: &[f32],
    stats: &mut [f32],
) {
    let rows = logits.len() / targets.len();
    pool.chunks(stats, 3 * TOKENS, logits.len(), |first, stats| {
        for (n, stats) in (first / 3..).zip(stats.chunks_exact_mut(3)) {
            let logits = &logits[n * rows..(n + 1) * rows];
            let (max, sum) = max_and_sum(isa, logits);
            let target = local_target(targets[n], first_row, rows).map_or(0.0, |row| logits[row]);
            stats.copy_from_slice(&[max, sum, target]);
        }
    });
}

multiversion! {
    fn max_and_sum(logits: &[f32]) -> (f32, f32) {
        let max = simd::max(logits);
        (max, simd::sum_by(logits.len(), |i| simd::exp(logits[i] - max)))
    }
}

/// `stats (ranks, N, 3)` to `lse (N)` and `losses (N)`; a few operations a token, so on the caller's thread.
pub fn cross_entropy_combine(stats: &[f32], lse: &mut [f32], losses: &mut [f32]) {
    let tokens = lse.len();
    for n in 0..tokens {
        let of_ranks = || stats.chunks_exact(3 * tokens).map(|rank| (rank[3 * n], rank[3 * n + 1], rank[3 * n + 2]));
        let max = of_ranks().map(|(max, _, _)| max).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = of_ranks().map(|(of_rank, sum, _)| sum * simd::exp(of_rank - max)).sum();
        let target: f32 = of_ranks().map(|(_, _, target)| target).sum();
        lse[n] = max + sum.ln();
        losses[n] = lse[n] - target;
    }
}

/// `logits = scale * (exp(logits - lse) - [target])`
pub fn cross_entropy_backward(
    pool: &Pool,
    isa: Isa,
    targets: &[u32],
    first_row: usize,
    scale: f32,
    lse: &[f32],
    logits: &mut [f32],
) {
    let rows = logits.len() / targets.len();
    pool.rows(targets.len(), [(logits, rows)], |tokens, [logits]| {
        for (n, logits) in tokens.zip(logits.chunks_exact_mut(rows)) {
            softmax_scaled(isa, scale, lse[n], logits);
            if let Some(row) = local_target(targets[n], first_row, rows) {
                logits[row] -= scale;
            }
        }
    });
}

multiversion! {
    fn softmax_scaled(scale: f32, lse: f32, logits: &mut [f32]) {
        for x in logits {
            *x = simd::exp(*x - lse) * scale;
        }
    }
}
