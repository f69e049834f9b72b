//! What a policy loses at a token of an answer.
//!
//! The loss of an answer's token with log-probability `lp`, advantage `A`, return `R`, value `v`, and `lp_old` and `v_old` of when it was sampled is
//! (Schulman et al. 2017; the clipped value of Huang et al. 2024)
//!
//! ```text
//!   max(-A r, -A clip(r, 1 - c, 1 + c)) + value_coef / 2 max((v - R)^2, (v_old + clip(v - v_old, -e, e) - R)^2),   r = exp(lp - lp_old)
//! ```

use std::ops::AddAssign;

use toroid_torus::job::PpoConfig;

/// Coefficients of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyLoss {
    pub temperature: f64,
    pub clip: f64,
    pub value_clip: f64,
    pub value_coef: f64,
}

impl PolicyLoss {
    /// Of a model that is no policy.
    pub(super) const NONE: PolicyLoss = PolicyLoss { temperature: 1.0, clip: 0.0, value_clip: 0.0, value_coef: 0.0 };

    pub fn of(ppo: &PpoConfig) -> PolicyLoss {
        let PpoConfig { temperature, clip, value_clip, value_coef, .. } = *ppo;
        PolicyLoss { temperature, clip, value_clip, value_coef }
    }
}

/// What the rows of a micro-batch are compared with, `(B, S)` each; numbers mean nothing where no target is.
#[derive(Debug, Clone, Copy)]
pub struct AnswerRows<'a> {
    /// The answers' tokens, at the rows before them; [`NOWHERE`](crate::device::NOWHERE) elsewhere.
    pub targets: &'a [u32],
    pub old_logps: &'a [f32],
    pub old_values: &'a [f32],
    pub advantages: &'a [f32],
    pub returns: &'a [f32],
}

/// Sums over the answers' tokens of a micro-batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PolicyStats {
    pub policy_loss: f64,
    /// Without its coefficient.
    pub value_loss: f64,
    /// Tokens whose ratio was clipped.
    pub clipped: u64,
    /// Of `lp_old - lp`.
    pub kl: f64,
    pub ratio: f64,
    pub num: u64,
}

impl AddAssign for PolicyStats {
    fn add_assign(&mut self, other: PolicyStats) {
        self.policy_loss += other.policy_loss;
        self.value_loss += other.value_loss;
        self.clipped += other.clipped;
        self.kl += other.kl;
        self.ratio += other.ratio;
        self.num += other.num;
    }
}

/// What was said of one token when it was sampled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Old {
    pub logp: f64,
    pub value: f64,
    pub advantage: f64,
    pub target: f64,
}

impl PolicyStats {
    /// Adds a token; the gradient of its loss with respect to its log-probability and its value.
    pub(super) fn add(&mut self, loss: &PolicyLoss, logp: f64, value: f64, old: Old) -> [f64; 2] {
        let (c, e) = (loss.clip, loss.value_clip);
        let ratio = (logp - old.logp).exp();
        let (whole, clipped) = (-old.advantage * ratio, -old.advantage * ratio.clamp(1.0 - c, 1.0 + c));
        let is_clipped = clipped > whole;
        let near = old.value + (value - old.value).clamp(-e, e);
        let (far, close) = ((value - old.target).powi(2), (near - old.target).powi(2));
        self.policy_loss += whole.max(clipped);
        self.value_loss += 0.5 * far.max(close);
        self.clipped += u64::from(is_clipped);
        self.kl += old.logp - logp;
        self.ratio += ratio;
        self.num += 1;
        // Where the clipped one counts, it is a constant.
        let of_logp = if is_clipped { 0.0 } else { whole };
        let of_value = if close > far { 0.0 } else { value - old.target };
        [of_logp, loss.value_coef * of_value]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: PolicyLoss = PolicyLoss { temperature: 1.0, clip: 0.2, value_clip: 0.2, value_coef: 0.1 };

    fn check(logp: f64, value: f64, old: Old, expected: (f64, f64, u64), gradient: [f64; 2]) {
        let mut stats = PolicyStats::default();
        let found = stats.add(&LOSS, logp, value, old);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let (policy, values, clipped) = expected;
        assert!(
            close(stats.policy_loss, policy) && close(stats.value_loss, values),
            "{stats:?}, expected {expected:?}"
        );
        assert_eq!(stats.clipped, clipped, "{stats:?}");
        assert!(found.iter().zip(gradient).all(|(a, b)| close(*a, b)), "{found:?}, expected {gradient:?}");
    }

    /// By hand: ratios of 1, 1.5 and 0.5 with advantages of both signs.
    #[test]
    fn a_ratio_counts_as_far_as_it_may_and_not_where_it_would_help_beyond() {
        let old = Old { logp: -2.0, value: 1.0, advantage: 2.0, target: 1.0 };
        let by = |ratio: f64| -2.0 + ratio.ln();
        check(-2.0, 1.0, old, (-2.0, 0.0, 0), [-2.0, 0.0]);
        check(by(1.5), 1.0, old, (-2.4, 0.0, 1), [0.0, 0.0]);
        check(by(0.5), 1.0, old, (-1.0, 0.0, 0), [-1.0, 0.0]);
        let worse = Old { advantage: -2.0, ..old };
        check(by(1.5), 1.0, worse, (3.0, 0.0, 0), [3.0, 0.0]);
        check(by(0.5), 1.0, worse, (1.6, 0.0, 1), [0.0, 0.0]);
    }

    /// By hand: a value that has moved by 0.5 from 1, and returns on either side.
    #[test]
    fn of_a_value_and_the_clipped_one_the_worse_counts() {
        let old = |target| Old { logp: -2.0, value: 1.0, advantage: 0.0, target };
        // Moved away from the return: the whole distance, 1.5 - 0.
        check(-2.0, 1.5, old(0.0), (0.0, 1.125, 0), [0.0, 0.15]);
        // Moved towards it, beyond the clip: 1.2 - 2, a constant.
        check(-2.0, 1.5, old(2.0), (0.0, 0.32, 0), [0.0, 0.0]);
        check(-2.0, 1.1, old(2.0), (0.0, 0.405, 0), [0.0, -0.09]);
    }
}
