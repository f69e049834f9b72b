//! Whether a job that is submitted names paths below the folders that the operator of the coordinator allows.

use std::time::Duration;

use toroid_security::{RootError, Roots};
use toroid_torus::job;

/// A file system that does not answer by then has no folder that is allowed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a job may not be submitted. A file that is not valid is refused by the machine.
pub(crate) async fn refusal(roots: &Roots, toml: &str) -> Option<RootError> {
    let spec = job::parse(toml).ok()?;
    let unanswered = roots.unanswered(&spec);
    let roots = roots.clone();
    let look = tokio::task::spawn_blocking(move || roots.check(&spec, []).err());
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(found)) => found,
        _ => Some(unanswered),
    }
}
