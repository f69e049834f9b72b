//! What a place has of a policy's iterations.

use toroid_torus::failpoint;
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;

use super::carried::Carried;
use super::rollouts::Rollouts;

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
