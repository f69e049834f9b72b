//! Learning rate and weight decay as functions of the step (model.md, "Optimizer").

use serde::{Deserialize, Serialize};

/// AdamW and its schedules. Steps count from 0 here: the first update has `t = 0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Highest learning rate.
    pub lr: f64,
    /// The cosine ends at `floor * lr`.
    pub floor: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled decay of tensors with two or more dims, constant for the first 90% of the steps.
    pub weight_decay: f64,
    /// Decay at the last step; rises linearly over the last 10%.
    pub weight_decay_final: f64,
    /// Gradients are scaled by `min(1, clip / (norm + 1e-6))`.
    pub clip: f64,
}

impl OptimizerConfig {
    /// Learning rate of update `t` of `total`.
    pub fn lr_at(&self, t: u64, total: u64) -> f64 {
        if t < self.warmup {
            return self.lr * (t + 1) as f64 / self.warmup as f64;
        }
        // As in the reference figures: the cosine would reach the floor at t = total, one step after the last update.
        let span = total.saturating_sub(self.warmup).max(1);
        let x = ((t - self.warmup) as f64 / span as f64).min(1.0);
        self.lr * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * x).cos()))
    }

    /// Weight decay of update `t` of `total`.
    pub fn weight_decay_at(&self, t: u64, total: u64) -> f64 {
        let start = total - total / 10;
        if t < start || total / 10 == 0 {
            return self.weight_decay;
        }
        let x = (t + 1 - start) as f64 / (total - start) as f64;
        self.weight_decay + (self.weight_decay_final - self.weight_decay) * x
    }

    /// The factor by which clipping scales gradients of this global norm.
    pub fn clip_scale(&self, norm: f64) -> f64 {
        (self.clip / (norm + 1e-6)).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(warmup: u64) -> OptimizerConfig {
        OptimizerConfig {
            lr: 1e-3,
            floor: 0.1,
            warmup,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            weight_decay_final: 0.2,
            clip: 1.0,
        }
    }

    #[test]
    fn the_learning_rate_is_that_of_the_reference() {
        let reference = [
            0.00025,
            0.0005,
            0.00075,
            0.001,
            0.001,
            0.0009397114317029974,
            0.000775,
            0.00055,
            0.000325,
            0.000160288568297,
        ];
        for (t, expected) in (0..).zip(reference) {
            let found = config(4).lr_at(t, 10);
            assert!((found - expected).abs() < 1e-15, "step {t}: expected {expected}, found {found}");
        }
    }

    #[test]
    fn the_learning_rate_stays_at_the_floor_beyond_the_end_and_copes_with_long_warm_ups() {
        assert!((config(4).lr_at(1000, 10) - 1e-4).abs() < 1e-15);
        assert_eq!(config(0).lr_at(0, 1), 1e-3);
        assert_eq!(config(20).lr_at(9, 10), 0.5e-3);
        assert!(config(20).lr_at(20, 10) <= 1e-3);
    }

    #[test]
    fn weight_decay_rises_over_the_last_tenth() {
        let decay = |t, total| config(0).weight_decay_at(t, total);
        assert!((0..9).all(|t| decay(t, 10) == 0.1));
        assert_eq!(decay(9, 10), 0.2);
        assert_eq!(decay(89, 100), 0.1);
        assert!((decay(90, 100) - 0.11).abs() < 1e-15);
        assert!((decay(94, 100) - 0.15).abs() < 1e-15);
        assert_eq!(decay(99, 100), 0.2);
        assert_eq!(decay(4, 5), 0.1, "five steps have no last tenth");
    }

    #[test]
    fn gradients_are_only_scaled_down() {
        assert_eq!(config(0).clip_scale(0.5), 1.0);
        assert!((config(0).clip_scale(4.0) - 0.25).abs() < 1e-6);
        assert_eq!(config(0).clip_scale(f64::INFINITY), 0.0);
    }
}
