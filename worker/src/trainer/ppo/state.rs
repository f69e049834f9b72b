//! What a place has of a policy's iterations.

use toroid_torus::failpoint;
use toroid_torus::ids::Step;
use toroid_torus::job::{JobSpec, RewardScale};

use super::rollouts::Rollouts;

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
}

/// Rollouts of an iteration, and what goes on from one to the next.
#[derive(Debug)]
pub(in crate::trainer) struct Policy {
    pub(super) carried: Carried,
    /// From the first step of an iteration to its last commit.
    pub(super) rollouts: Option<Rollouts>,
}

impl Policy {
    /// `None` for other kinds. `saved`: what a checkpoint says.
    pub fn new(spec: &JobSpec, saved: Option<Carried>) -> Option<Policy> {
        let ppo = spec.ppo.as_ref()?;
        let first = Carried { kl_coef: ppo.kl_coef, reward_scale: None };
        let carried = saved.filter(|_| !failpoint!(ForgetKlCoef)).unwrap_or(first);
        Some(Policy { carried, rollouts: None })
    }

    pub fn carried(&self) -> Carried {
        self.carried
    }

    pub fn rollouts(&self) -> Option<&Rollouts> {
        self.rollouts.as_ref()
    }

    #[cfg(test)]
    pub fn set_rollouts(&mut self, rollouts: Rollouts) {
        self.rollouts = Some(rollouts);
    }

    /// `committed` is a new step.
    pub fn commit(&mut self, spec: &JobSpec, committed: Step) {
        if committed.get().is_multiple_of(spec.steps_of_iteration())
            && let Some(rollouts) = self.rollouts.take()
        {
            self.carried = rollouts.next();
        }
    }

    /// Whatever a step has begun that nobody committed is made again.
    pub fn drop_uncommitted(&mut self, spec: &JobSpec, committed: Step) {
        if committed.get().is_multiple_of(spec.steps_of_iteration()) {
            self.rollouts = None;
        }
    }
}
