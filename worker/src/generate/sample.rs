//! Which token comes next: a pure function of the logits and of what the token is numbered by.
//!
//! Sampling is Gumbel-max: each token's logit, divided by the temperature, gets a random number of its own, and the largest wins. The number
//! follows from (seed, prompt, sample, position, token id) alone, so a text depends neither on what else is generated with it, nor on
//! threads or the machine, as long as the logits are the same bits.

use toroid_torus::cursor::splitmix64;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0: the likeliest token.
    pub temperature: f64,
    /// Only so many likeliest tokens may come; 0: any.
    pub top_k: usize,
    /// Only the likeliest tokens that have so much probability together, at least one; 1: any. After `top_k`.
    pub top_p: f64,
}

/// What the random numbers of a text follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    pub fn new(seed: u64, prompt: &[u32], sample: u64) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&sample.to_le_bytes());
        for token in prompt {
            hasher.update(&token.to_le_bytes());
        }
        let digest = hasher.finalize();
        let bytes: [u8; 8] = std::array::from_fn(|i| digest.as_bytes()[i]);
        Key(u64::from_le_bytes(bytes))
    }

    /// A number of the standard Gumbel distribution for a token at a position.
    fn gumbel(self, position: usize, token: usize) -> f64 {
        let hash = splitmix64(splitmix64(self.0 ^ position as u64).wrapping_add(token as u64));
        // 53 bits, in the middle of their steps: neither 0 nor 1.
        let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -(-uniform.ln()).ln()
    }
}

/// The token that comes at `position`, by the logits of all that may come; ties go to the lower one. `None`: a logit is no number.
pub fn next(logits: &[f32], sampling: Sampling, key: Key, position: usize) -> Option<u32> {
    if logits.iter().any(|x| x.is_nan()) {
        return None;
    }
    let score = |token: usize| match sampling.temperature {
        0.0 => f64::from(logits[token]),
        t => f64::from(logits[token]) / t + key.gumbel(position, token),
    };
    let best = |tokens: &mut dyn Iterator<Item = usize>| {
        let scored = tokens.map(|token| (score(token), token));
        scored.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, token)| token as u32)
    };
    if sampling.temperature == 0.0 || (sampling.top_k == 0 && sampling.top_p >= 1.0) {
        return best(&mut (0..logits.len()));
    }
    let mut tokens: Vec<usize> = (0..logits.len()).collect();
    // Stable: of equal ones the lower comes first.
    tokens.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    if sampling.top_k > 0 {
        tokens.truncate(sampling.top_k);
    }
    tokens.truncate(nucleus(&tokens, logits, sampling));
    // In their order, so that ties are settled as without a choice.
    tokens.sort_unstable();
    best(&mut tokens.into_iter())
}

/// The token among `first ..` that would come at `position` if no others could, with its score; `None`: there is none, or a logit is no number. Of the
/// best of several ranges the one with the largest score comes, the lowest token where two have it: as [`next`] of all, without `top_k` and `top_p`.
pub(crate) fn best(logits: &[f32], first: usize, temperature: f64, key: Key, position: usize) -> Option<(f64, u32)> {
    if logits.iter().any(|x| x.is_nan()) {
        return None;
    }
    let scored = logits.iter().enumerate().map(|(i, logit)| {
        let token = first + i;
        (f64::from(*logit) / temperature + key.gumbel(position, token), token as u32)
    });
    scored.reduce(better)
}

/// The one that comes of two, of which `other` has the larger token.
pub(crate) fn better(best: (f64, u32), other: (f64, u32)) -> (f64, u32) {
    if other.0 > best.0 { other } else { best }
}

/// How many of `tokens`, likeliest first, have `top_p` of the probability of all of them; at least one.
fn nucleus(tokens: &[usize], logits: &[f32], sampling: Sampling) -> usize {
    let largest = tokens.first().map_or(0.0, |token| f64::from(logits[*token]));
    let weights: Vec<f64> =
        tokens.iter().map(|token| ((f64::from(logits[*token]) - largest) / sampling.temperature).exp()).collect();
    let wanted = sampling.top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let enough = weights.iter().position(|weight| {
        sum += weight;
        sum >= wanted
    });
    enough.map_or(tokens.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };

    /// How often each of these tokens comes, in `n` positions.
    fn counts(logits: &[f32], sampling: Sampling, n: usize) -> Vec<usize> {
        let (key, mut counts) = (Key::new(7, &[1, 2, 3], 0), vec![0; logits.len()]);
        (0..n).for_each(|position| counts[next(logits, sampling, key, position).expect("numbers") as usize] += 1);
        counts
    }

    #[test]
    fn tokens_come_as_often_as_the_softmax_says() {
        let logits = [1.0, 0.0, -1.0, 0.5];
        for temperature in [0.5, 1.0, 2.0] {
            let weights = logits.map(|x| (f64::from(x) / temperature).exp());
            let total: f64 = weights.iter().sum();
            let n = 40_000;
            for (count, weight) in counts(&logits, Sampling { temperature, ..ANY }, n).into_iter().zip(weights) {
                let (p, found) = (weight / total, count as f64 / n as f64);
                // Five deviations.
                assert!(
                    (found - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(),
                    "{found} instead of {p} at {temperature}"
                );
            }
        }
    }

    #[test]
    fn only_the_likeliest_come_where_so_many_may() {
        let logits = [1.0, 3.0, 3.0, 2.0];
        let never = |counts: &[usize]| (0..4).filter(|i| counts[*i] == 0).collect::<Vec<_>>();
        assert_eq!(never(&counts(&logits, Sampling { top_k: 1, ..ANY }, 500)), [0, 2, 3]);
        assert_eq!(never(&counts(&logits, Sampling { top_k: 3, ..ANY }, 500)), [0]);
        // Of e^3, e^3, e^2, e the first two have 0.80.
        assert_eq!(never(&counts(&logits, Sampling { top_p: 0.79, ..ANY }, 500)), [0, 3]);
        assert_eq!(never(&counts(&logits, Sampling { top_p: 0.81, ..ANY }, 500)), [0]);
        assert_eq!(never(&counts(&logits, Sampling { top_p: 0.0, ..ANY }, 500)), [0, 2, 3]);
        assert_eq!(counts(&logits, Sampling { temperature: 0.0, ..ANY }, 9), [0, 9, 0, 0]);
        assert_eq!(next(&[1.0, f32::NAN], ANY, Key::new(0, &[], 0), 0), None);
    }

    /// Ranks of a TP group have a part of the vocabulary each.
    #[test]
    fn the_best_of_parts_is_the_one_of_all() {
        let logits: Vec<f32> = (0..24_u32).map(|i| (i * 7 % 5) as f32 * 0.5).collect();
        for (position, temperature) in (0..40).flat_map(|p| [(p, 0.7), (p, 1.0)]) {
            let key = Key::new(3, &[9], 4);
            let parts = [0..9, 9..10, 10..24].map(|part| {
                let first = part.start;
                best(&logits[part], first, temperature, key, position).expect("numbers")
            });
            let found = parts.into_iter().reduce(better).map(|(_, token)| token);
            assert_eq!(found, next(&logits, Sampling { temperature, ..ANY }, key, position));
        }
        assert_eq!(best(&[f32::NAN], 0, 1.0, Key::new(0, &[], 0), 0), None);
    }

    /// What is generated today must be what is generated tomorrow.
    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let logits = [0.0; 256];
        let text = |key: Key| (0..8).map(|p| next(&logits, ANY, key, p).expect("numbers")).collect::<Vec<_>>();
        let first = text(Key::new(0, &[104, 105], 0));
        assert_eq!(first, text(Key::new(0, &[104, 105], 0)));
        for other in [Key::new(1, &[104, 105], 0), Key::new(0, &[104], 0), Key::new(0, &[104, 105], 1)] {
            assert_ne!(first, text(other));
        }
    }
}
