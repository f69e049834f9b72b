//! What a coordinator is started with, and the folder that it is started on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::CoordinatorError;
use crate::files;
use crate::grpc::CallLimits;
use crate::machine::{Limits, Policy, Retention};
use crate::store::StoreError;
use crate::store::etcd::EtcdConfig;

#[derive(Debug, Clone)]
pub struct Config {
    /// Everything durable is below this folder; with records in etcd, nothing that another coordinator needs.
    pub data_dir: PathBuf,
    /// Where records are, for several coordinators of which one leads; `None`: in a file in `data_dir`, for one.
    pub etcd: Option<EtcdConfig>,
    /// Where users and workers reach this coordinator, `http://host:port`, or `https://`; `None`: where it listens.
    pub advertise: Option<String>,
    /// How often workers say that they are there; 1 s by default.
    pub heartbeat_interval: Duration,
    /// A worker that is silent for this long is lost; 5 s by default. All other limits derive from it.
    pub failure_timeout: Duration,
    /// How many of the jobs that have ended are kept, and how long.
    pub retention: Retention,
    /// Quotas of users, and how fast jobs that wait gain on others.
    pub policy: Policy,
    /// What workers must show to join; `None`: nothing.
    pub join_token: Option<String>,
    /// Where its certificate, its key and the CA of those that it knows are; `None`: clear text, and whoever reaches the port may do everything.
    pub tls: Option<toroid_security::Files>,
    pub connections: toroid_security::server::Limits,
    pub calls: CallLimits,
    /// Folders, or URLs, below which jobs may name paths; the coordinator's own is always one, `/` allows all.
    pub allow_roots: Vec<PathBuf>,
}

impl Config {
    pub fn new(data_dir: impl Into<PathBuf>) -> Config {
        Config {
            data_dir: data_dir.into(),
            etcd: None,
            advertise: None,
            heartbeat_interval: Duration::from_secs(1),
            failure_timeout: Duration::from_secs(5),
            retention: Retention::default(),
            policy: Policy::default(),
            join_token: None,
            tls: None,
            connections: toroid_security::server::Limits::default(),
            calls: CallLimits::default(),
            allow_roots: vec!["/".into()],
        }
    }
}

pub(crate) fn limits(config: &Config) -> Result<Limits, CoordinatorError> {
    let (interval, timeout) = (config.heartbeat_interval, config.failure_timeout);
    if interval.is_zero() || interval > timeout / 2 {
        return Err(CoordinatorError::Limits { interval, timeout });
    }
    Ok(Limits { heartbeat_interval: interval, failure_timeout: timeout })
}

/// A store of 0 bytes beside jobs has lost them. Without jobs it is what a coordinator leaves that was killed as it made the file.
pub(crate) fn refuse_empty(store: &Path, jobs_dir: &Path) -> Result<(), CoordinatorError> {
    let is_empty = std::fs::metadata(store).is_ok_and(|m| m.is_file() && m.len() == 0);
    let num_folders = if is_empty { files::folders(jobs_dir)?.len() } else { 0 };
    if num_folders == 0 {
        return Ok(());
    }
    let reason = format!("it has 0 bytes, and there are {num_folders} folders of jobs in {}", jobs_dir.display());
    Err(StoreError::Damaged { path: store.into(), reason }.into())
}

/// Makes the folder, and gives its absolute path: workers on this machine are told paths below it.
pub(crate) fn make_data_dir(data_dir: &Path) -> Result<PathBuf, CoordinatorError> {
    let made = std::fs::create_dir_all(data_dir).and_then(|()| data_dir.canonicalize());
    made.map_err(|error| CoordinatorError::Io { what: "making the folder", path: data_dir.into(), error })
}
