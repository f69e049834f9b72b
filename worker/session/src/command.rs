//! What the session tells the trainer.

use toroid_torus::ids::{Epoch, Step};
use toroid_torus::manifest::ShardFile;

use crate::{HealPlan, WarmUp};

/// An order to the trainer. A place to prepare is none of these: whoever owns the trainer sends the fence of its job with it
/// ([`Action::Prepare`](crate::Action::Prepare)).
#[derive(Debug)]
pub enum Command {
    /// A spare: make a workspace for a place of this job, which may become its own.
    WarmUp(Box<WarmUp>),
    /// All places of the epoch are prepared.
    Start { epoch: Epoch, heal: Option<HealPlan> },
    /// Write the state of `step`, if it still is that step's: the last step's checkpoint is asked for again when it failed.
    Checkpoint { epoch: Epoch, step: Step },
    /// Rank 0: all shards of the step are durable; write its manifest, then remove older checkpoints.
    Publish { epoch: Epoch, step: Step, files: Vec<ShardFile>, remove: Vec<Step> },
    /// The checkpoint of this step has failed: remove what this place has written of it.
    DropShard { epoch: Epoch, step: Step },
    /// Rank 0: report the records from this step on again.
    Report { epoch: Epoch, from: Step },
    /// Drop the job of this epoch or older.
    Drop { epoch: Epoch },
}

/// What happens after the step of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCheckpoint {
    /// The next step.
    GoOn,
    /// Nothing: the job stands by with that state.
    Halt,
}
