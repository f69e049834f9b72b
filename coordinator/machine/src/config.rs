//! What a coordinator is started with.

use std::time::Duration;

use toroid_torus::ids::Term;

use super::limits::Limits;
use super::scheduler::Policy;

#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the jobs' folders, as workers and users see it.
    pub jobs_dir: String,
    pub limits: Limits,
    /// Of this coordinator's leadership (T-13).
    pub term: Term,
    pub retention: Retention,
    pub policy: Policy,
    /// What workers must show; `None`: nothing.
    pub join_token: Option<String>,
}

/// Jobs that have ended and are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub max_jobs: usize,
    /// Since their end.
    pub max_age: Duration,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { max_jobs: 1000, max_age: Duration::from_secs(90 * 24 * 3600) }
    }
}
