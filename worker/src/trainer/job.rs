//! A job at one place: its parts, each of which owns its fields, and what the place reports of them.

use std::sync::Arc;

use toroid_session::{Assignment, Event};
use toroid_torus::ids::Step;

use super::curve::Curve;
use super::emit::Emit;
use super::held::Held;
use super::passes::Passes;
use super::ppo::models::{ModelSources, Models};
use super::ppo::state::Policy;
use super::samples::Samples;
use super::save::{Checkpoints, SavedStep, Saver, ToPublish};
use super::shards::Shards;
use super::shared::Shared;
use super::weights::Names;
use crate::checkpoint::CheckpointError;
use crate::comm::{Fence, Links};
use crate::device::CachedAttention;

/// A job at one place.
pub struct Job<D: CachedAttention> {
    pub(super) assignment: Assignment,
    /// Ends the waits of an epoch that is over.
    pub(super) fence: Fence,
    /// Kept from epoch to epoch.
    pub(super) links: Option<Links>,
    pub(super) samples: Samples,
    /// What a job of kind ppo has besides, with the memory for it, and where what is in that came from.
    pub(super) policy: Option<Policy>,
    pub(super) models: Option<Models<D>>,
    pub(super) model_sources: Option<ModelSources>,
    pub(super) weights: Names,
    pub(super) passes: Passes<D>,
    pub(super) shards: Shards<D>,
    pub(super) held: Held<D>,
    /// Committed updates, skipped ones included.
    pub(super) committed: Step,
    /// Updates that were skipped because gradients were not finite.
    pub(super) skipped: u64,
    pub(super) curve: Curve,
    pub(super) checkpoints: Checkpoints,
}

impl<D: CachedAttention> Job<D> {
    /// What this place holds.
    pub(super) fn report(&self) -> Event {
        Event::Prepared {
            committed_step: self.committed,
            held: self.held.all(),
            sealed_next: self.shards.is_sealed(),
            sums_from: self.curve.first_step().unwrap_or(self.committed.next()),
            data_digest: self.samples.data_digest(),
            num_samples: self.samples.num_train(),
            num_params: self.assignment.spec.model.num_params(),
            weights: self.weights.clone(),
            inputs: Box::new(self.samples.told()),
        }
    }

    /// Rank 0 says the steps from `from` on again.
    pub(super) fn report_since(&self, from: Step, emit: &Emit) {
        self.curve.report_since(&self.assignment, self.committed, from, emit);
    }

    /// As [`Job::write_checkpoint`], if `step` is the committed one. Where the state is not yet split for this place, the epoch has ended
    /// before it was, and what was asked for in it is void.
    pub(super) fn write_checkpoint_of(&mut self, step: Step, emit: &Emit) {
        if !self.held.has_state_of(self.assignment.held_as()) {
            return;
        }
        if step == self.committed {
            return self.write_checkpoint(emit);
        }
        emit(self.assignment.event(Event::CheckpointFailed { step, error: String::new() }));
    }

    /// Writes this place's shard of the committed state in the background.
    pub(super) fn write_checkpoint(&mut self, emit: &Emit) {
        let by = Saver { place: &self.assignment, fence: &self.fence, emit };
        let carried = self.policy.as_ref().map(Policy::carried);
        let of = SavedStep { step: self.committed, skipped: self.skipped, carried };
        self.checkpoints.write(by, of, self.passes.device(), self.shards.own());
    }

    /// Publishes a checkpoint, see [`Checkpoints::publish`].
    pub(super) fn publish(&mut self, what: ToPublish, shared: &Arc<Shared>, emit: &Emit) {
        let by = Saver { place: &self.assignment, fence: &self.fence, emit };
        self.checkpoints.publish(by, what, self.skipped, &self.samples, shared);
    }

    /// Whether no other worker could do better: the folder is another job's, or the store refuses this one. Where this one has its state elsewhere already, it is this
    /// worker that sees another folder than the others.
    pub(super) fn is_refused_by(&self, error: &CheckpointError) -> bool {
        let begins = !self.assignment.heal && self.assignment.restore_step.is_none();
        begins && (error.is_about_owner() || error.is_about_store())
    }
}
