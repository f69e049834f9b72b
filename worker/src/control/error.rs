//! Why a worker gives its control stream up.

use crate::comm::CommError;

/// Commands that wait for the trainer, at most. It takes them between two steps, and a newer place makes those before it void, so that so
/// many wait only where it stands still: the worker ends then, and its place is healed as after any death.
pub(crate) const MAX_COMMANDS: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the coordinator address {address} is not valid: {error}; expected http://host:port")]
    Address { address: String, error: String },
    #[error("the coordinator refused this worker: {reason}")]
    Refused { reason: String },
    #[error("cannot make the fence of a job: {0}")]
    Fence(CommError),
    #[error(
        "the trainer took none of {MAX_COMMANDS} commands, it stands still; the worker ends, so that another takes its place"
    )]
    TrainerStandsStill,
}

impl From<CommError> for ControlError {
    fn from(error: CommError) -> ControlError {
        ControlError::Fence(error)
    }
}
