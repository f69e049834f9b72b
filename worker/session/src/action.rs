//! What a session has its own process do: everything but messages to the coordinator.

use toroid_torus::ids::{Epoch, Step};

use crate::{AfterCheckpoint, Assignment, Command};

/// In the order in which they come.
#[derive(Debug)]
pub enum Action {
    /// Nothing of an epoch below this one may go on (T-1).
    Fence { epoch: Epoch },
    /// The trainer prepares this place. Whoever owns the trainer sends the fence of its job with it.
    Prepare(Box<Assignment>),
    /// An order to the trainer.
    Trainer(Command),
    /// Ask the trainer for a checkpoint. Where it is past that step, the session hears
    /// [`Input::CheckpointTooLate`](crate::Input::CheckpointTooLate).
    RequestCheckpoint { epoch: Epoch, step: Step, then: AfterCheckpoint },
    /// This checkpoint has failed: it is not to be written any more, and what was written of it goes.
    DropCheckpoint { epoch: Epoch, step: Step },
    /// The coordinator has the records up to this step on disk.
    Recorded { step: Step },
}
