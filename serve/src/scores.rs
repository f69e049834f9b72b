//! Log-probabilities, from the logits of the whole vocabulary at temperature 1.

/// How likely a token was, and which were the likeliest.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    pub token: u32,
    pub logprob: f64,
    /// The likeliest first; of equal ones the lower token.
    pub top: Vec<(u32, f64)>,
}

/// The score of `token` by `logits (vocab)`; `top` of the first `num_tokens` are listed.
pub fn score(logits: &[f32], token: u32, top: usize, num_tokens: usize) -> Score {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let normalizer = f64::from(largest) + sum.ln();
    let logprob = |token: u32| f64::from(logits[token as usize]) - normalizer;
    let mut best: Vec<u32> = Vec::with_capacity(top + 1);
    for candidate in 0..num_tokens.min(logits.len()) as u32 {
        let is_better = |other: &u32| logits[candidate as usize] <= logits[*other as usize];
        let at = best.partition_point(is_better);
        if at < top {
            best.insert(at, candidate);
            best.truncate(top);
        }
    }
    let top = best.into_iter().map(|token| (token, logprob(token))).collect();
    Score { token, logprob: logprob(token), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_all_sum_to_one() {
        let logits = [0.5, 2.0, -1.0, 2.0, 1.0];
        let found = score(&logits, 2, 3, 5);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 4]);
        let all = score(&logits, 0, 5, 5);
        let sum: f64 = all.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        let expected = -1.0 - (2.0 * 2f64.exp() + 1f64.exp() + 0.5f64.exp() + (-1f64).exp()).ln();
        assert!((found.logprob - expected).abs() < 1e-6);
        // Those that may not come have a share, and no place among the likeliest.
        assert_eq!(score(&logits, 2, 2, 1).top.len(), 1);
        assert_eq!(score(&logits, 2, 0, 5), Score { top: Vec::new(), ..found });
    }
}
