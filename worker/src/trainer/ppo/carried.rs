//! What an iteration of a policy leaves to the next.

use toroid_torus::job::RewardScale;
use toroid_torus::manifest::ShardFile;

/// What goes on from one iteration to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::trainer) struct Carried {
    /// What a nat of divergence costs in the iteration that begins next.
    pub kl_coef: f64,
    /// `None` before the first iteration has ended, and without a reward model.
    pub reward_scale: Option<RewardScale>,
}

impl Carried {
    /// Numbers of [`Carried::told`].
    pub const LEN: usize = 3;

    /// As places tell each other.
    pub fn told(self) -> [f64; Carried::LEN] {
        // No deviation is 0.
        let scale = self.reward_scale.unwrap_or(RewardScale { mean: 0.0, std: 0.0 });
        [self.kl_coef, scale.mean, scale.std]
    }

    pub fn of_told([kl_coef, mean, std]: [f64; Carried::LEN]) -> Carried {
        Carried { kl_coef, reward_scale: (std != 0.0).then_some(RewardScale { mean, std }) }
    }

    /// As each file of a checkpoint says it; `None`: of a job of another kind.
    pub fn of_file(file: &ShardFile) -> Option<Carried> {
        Some(Carried { kl_coef: file.kl_coef?, reward_scale: file.reward_scale })
    }

    pub fn put_in(self, file: &mut ShardFile) {
        (file.kl_coef, file.reward_scale) = (Some(self.kl_coef), self.reward_scale);
    }
}
