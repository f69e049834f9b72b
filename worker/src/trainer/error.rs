//! Why a place cannot begin, or cannot go on.

use std::collections::BTreeSet;

use toroid_security::RootError;
use toroid_session::{BadCheckpoint, ReadFault};
use toroid_torus::ids::Step;
use toroid_torus::job::JobError;

use super::memory::MemoryError;
use crate::checkpoint::CheckpointError;
use crate::comm::CommError;
use crate::data::DataError;

/// Why a place cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("cannot run this job: {0}")]
    Job(JobError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Roots(#[from] RootError),
    #[error("cannot prepare the data: {0}")]
    Data(DataError),
    #[error("cannot load the initial weights: {0}")]
    Initial(CheckpointError),
    #[error("cannot restore step {step}: {error}")]
    Restore { step: Step, error: CheckpointError, fault: ReadFault },
    #[error("cannot open the checkpoint folder: {0}")]
    Open(CheckpointError),
    #[error("cannot resume: {0}")]
    ResumePath(CheckpointError),
    #[error("cannot resume from {path}: {what} is {found} there and {expected} in this job; they have to be equal")]
    Resume { path: String, what: &'static str, expected: String, found: String },
}

impl From<JobError> for PrepareError {
    fn from(error: JobError) -> PrepareError {
        PrepareError::Job(error)
    }
}

impl From<DataError> for PrepareError {
    fn from(error: DataError) -> PrepareError {
        PrepareError::Data(error)
    }
}

impl PrepareError {
    /// Every other worker would fail in the same way.
    pub fn is_fatal(&self) -> bool {
        self.checkpoint().is_none()
    }

    /// The epoch ended while it was prepared for.
    pub fn is_over(&self) -> bool {
        matches!(self, PrepareError::Data(DataError::Over))
    }

    /// The checkpoint of this job that could not be loaded.
    pub fn checkpoint(&self) -> Option<BadCheckpoint> {
        match self {
            PrepareError::Restore { step, fault, .. } => Some(BadCheckpoint { step: *step, fault: *fault }),
            _ => None,
        }
    }
}

/// Why a place cannot go on with its epoch.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Comm(#[from] CommError),
    /// What it trains on is not what it was.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Weights that the job names cannot be read once more.
    #[error("cannot load weights again for another part of the model: {0}")]
    Weights(CheckpointError),
    /// Silent data corruption. All places stop before the commit; those that saw it say what. `wrong`: ranks that hold a wrong copy;
    /// none: that could not be told.
    #[error("{}", .seen.as_deref().unwrap_or("the two copies of a shard differ, as another place saw"))]
    Corrupt { seen: Option<String>, wrong: BTreeSet<usize> },
}

/// A shard, or a range of one, came damaged.
pub(super) fn refuse(shard: usize, from: usize, what: &str) -> StepError {
    corrupt(format!("the shard of rank {shard} that came from rank {from} is damaged: {what}"))
}

/// Nothing here can tell what is right: the last checkpoint is.
pub(super) fn corrupt(what: String) -> StepError {
    StepError::Corrupt { seen: Some(what), wrong: BTreeSet::new() }
}
