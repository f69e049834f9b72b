//! Where the trainer's events go, from any thread.

use std::sync::Arc;

use toroid_session::{Assignment, Event, TrainerEvent};
use toroid_torus::ids::{Epoch, JobId};

/// Takes the trainer's events, from any thread.
pub type Emit = Arc<dyn Fn(TrainerEvent) + Send + Sync>;

/// Emits events of one job and epoch.
#[derive(Clone)]
pub(super) struct EventOf {
    job_id: JobId,
    epoch: Epoch,
    emit: Emit,
}

impl EventOf {
    pub fn new(assignment: &Assignment, emit: &Emit) -> EventOf {
        EventOf { job_id: assignment.job_id.clone(), epoch: assignment.epoch, emit: Arc::clone(emit) }
    }

    pub fn emit(&self, event: Event) {
        (self.emit)(TrainerEvent { job_id: self.job_id.clone(), epoch: self.epoch, event });
    }
}
