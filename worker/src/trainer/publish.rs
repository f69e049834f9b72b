//! Publishing: a manifest is written, and older checkpoints are removed, on the publisher's thread.

use std::sync::Arc;

use toroid_session::Event;
use toroid_torus::ids::{Epoch, Step};
use toroid_torus::manifest::Manifest;

use super::emit::EventOf;
use super::shared::Shared;
use crate::checkpoint::Owned;
use crate::comm::Fence;

/// An order to publish.
pub(super) struct Publishing {
    pub storage: Arc<Owned>,
    pub manifest: Manifest,
    pub remove: Vec<Step>,
    pub fence: Fence,
    pub shared: Arc<Shared>,
    pub event: EventOf,
}

impl Publishing {
    fn may_act(&self) -> bool {
        self.shared.is_connected() && self.fence.epoch() <= Epoch::new(self.manifest.epoch)
    }

    pub fn run(self) {
        let step = Step::new(self.manifest.step);
        if !self.may_act() {
            return tracing::warn!(
                "step {step} is not published: this worker does not know whether its place is still its own"
            );
        }
        self.shared.pass("publish", step);
        let event = match self.storage.publish(&self.manifest) {
            Ok(bytes) => Event::Published { step, bytes, path: self.storage.step_path(step.get()) },
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
            match self.storage.remove(old.get(), self.manifest.epoch) {
                Ok(()) => removed.push(old),
                Err(error) => {
                    tracing::warn!("cannot remove the checkpoint of step {old}, it stays where it is: {error}");
                    kept.push((old, error.to_string()));
                }
            }
        }
        self.event.emit(Event::Removed { step: Step::new(self.manifest.step), removed, kept });
    }
}
