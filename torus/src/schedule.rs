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
