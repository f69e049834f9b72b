//! Publishing: rank 0 writes the manifest of a checkpoint and removes older ones, on a thread of its own.

use std::sync::Arc;

use toroid_session::Event;
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::{FORMAT, Manifest, ShardFile};

use super::emit::{Emit, EventOf};
use super::job::Job;
use super::save::NOT_BEGUN;
use super::shared::Shared;
use crate::checkpoint::Owned;
use crate::comm::Fence;
use crate::device::Device;
use crate::sync::lock;

impl<D: Device + Clone> Job<D> {
    /// Writes the manifest of `step` (T-6: every shard is durable by now), then removes the checkpoints that are no longer kept. Not
    /// where this place may be another's by now (T-1): whoever has it is told to do it, and so is this one once it is connected again.
    pub(super) fn publish(
        &mut self,
        step: u64,
        files: Vec<ShardFile>,
        remove: Vec<u64>,
        shared: &Arc<Shared>,
        emit: &Emit,
    ) {
        let event = EventOf::new(&self.assignment, emit);
        let Some(storage) = self.owned.clone() else {
            return event.emit(Event::PublishFailed { step, error: NOT_BEGUN.into() });
        };
        let spec = &self.assignment.spec;
        let manifest = Manifest {
            format: FORMAT,
            job_id: self.assignment.job_id.clone(),
            owner: Some(storage.id()),
            step,
            epoch: self.assignment.epoch,
            shape: spec.shape,
            job: JobSpec::clone(spec),
            samples: step * spec.batch.samples(),
            skipped_steps: lock(&self.skipped_at).get(&step).copied().unwrap_or(self.skipped),
            data_digest: blake3::Hash::from_bytes(self.data_digest()).to_hex().to_string(),
            files,
        };
        let (fence, shared) = (self.fence.clone(), Arc::clone(shared));
        let publishing = Publishing { storage, manifest, remove, fence, shared, event: event.clone() };
        let failed = move |error| event.emit(Event::PublishFailed { step, error });
        self.publisher.order(move || publishing.run(), failed);
    }
}

/// An order to publish.
struct Publishing {
    storage: Arc<Owned>,
    manifest: Manifest,
    remove: Vec<u64>,
    fence: Fence,
    shared: Arc<Shared>,
    event: EventOf,
}

impl Publishing {
    fn may_act(&self) -> bool {
        self.shared.is_connected() && self.fence.epoch() <= self.manifest.epoch
    }

    fn run(self) {
        let step = self.manifest.step;
        if !self.may_act() {
            return tracing::warn!(
                "step {step} is not published: this worker does not know whether its place is still its own"
            );
        }
        self.shared.pass("publish", step);
        let event = match self.storage.publish(&self.manifest) {
            Ok(bytes) => Event::Published { step, bytes, path: self.storage.step_path(step) },
            Err(error) => {
                tracing::warn!("the checkpoint of step {step} is not published: {error}");
                Event::PublishFailed { step, error: error.to_string() }
            }
        };
        self.shared.pass("published", step);
        let published = matches!(event, Event::Published { .. });
        self.event.emit(event);
        if published && !self.remove.is_empty() {
            self.remove_older();
        }
    }

    fn remove_older(&self) {
        let (mut removed, mut kept) = (Vec::new(), Vec::new());
        for old in self.remove.iter().copied().take_while(|_| self.may_act()) {
            match self.storage.remove(old, self.manifest.epoch) {
                Ok(()) => removed.push(old),
                Err(error) => {
                    tracing::warn!("cannot remove the checkpoint of step {old}, it stays where it is: {error}");
                    kept.push((old, error.to_string()));
                }
            }
        }
        self.event.emit(Event::Removed { step: self.manifest.step, removed, kept });
    }
}
