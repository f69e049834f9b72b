//! What a trainer needs from its process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toroid_security::Roots;

use super::shared::Shared;
use crate::comm::Listener;

/// What a trainer needs from its process.
pub struct Environment {
    pub listener: Listener,
    pub shared: Arc<Shared>,
    /// Below which jobs may name paths.
    pub roots: Roots,
    /// Token files are kept here.
    pub cache_dir: PathBuf,
    /// How long peers may take to accept a link, where the coordinator has not said it ([`Shared::set_connect_limit`]).
    pub connect_timeout: Duration,
}
