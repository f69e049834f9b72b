//! What a place has of a policy's iterations.

use toroid_torus::failpoint;
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;

use super::rollouts::Rollouts;

/// Rollouts of an iteration, and what goes on from one to the next.
#[derive(Debug)]
pub(in crate::trainer) struct Policy {
    /// What a nat of divergence costs in the iteration that begins next.
    pub(super) kl_coef: f64,
    /// From the first step of an iteration to its last commit.
    pub(super) rollouts: Option<Rollouts>,
}

impl Policy {
    /// `None` for other kinds. `kl_coef`: what a checkpoint says.
    pub fn new(spec: &JobSpec, kl_coef: Option<f64>) -> Option<Policy> {
        let ppo = spec.ppo.as_ref()?;
        let kl_coef = kl_coef.filter(|_| !failpoint!(ForgetKlCoef)).unwrap_or(ppo.kl_coef);
        Some(Policy { kl_coef, rollouts: None })
    }

    pub fn kl_coef(&self) -> f64 {
        self.kl_coef
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
            self.kl_coef = rollouts.next_kl_coef();
        }
    }

    /// Whatever a step has begun that nobody committed is made again.
    pub fn drop_uncommitted(&mut self, spec: &JobSpec, committed: Step) {
        if committed.get().is_multiple_of(spec.steps_of_iteration()) {
            self.rollouts = None;
        }
    }
}
