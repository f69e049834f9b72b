//! Why a coordinator does not start, or stops.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::machine::RestoreError;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error(
        "heartbeat_interval = {interval:?} is not possible with failure_timeout = {timeout:?}; expected at most half of it, and more than 0"
    )]
    Limits { interval: Duration, timeout: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Security(#[from] toroid_security::SecurityError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("{what} {path} failed: {error}")]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    #[error("the curve of {job} has to be read again: {reason}")]
    Curve { job: String, reason: String },
    #[error("drawing random bytes failed: {0}")]
    Random(getrandom::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("serving gRPC failed: {0}")]
    Serve(tonic::transport::Error),
    #[error("the coordinator stopped because of a bug: {0}")]
    Panic(tokio::task::JoinError),
}
