//! The coordinator of Toroid: gives workers their places, has jobs checkpoint, puts a spare in a lost worker's place.
//!
//! ```text
//!   grpc/     JobService, AdminService, WorkerService, reflection, health: who may call   ── commands ──┐
//!   driver    one task: executes what the machine says, in that order  <──────┘
//!   machine   a crate of its own, pure: input + now -> outputs; all decisions, each with its reason
//!   store/    records of jobs, durable      files, curve   the folder of each job, curve.csv: durable
//! ```
//!
//! On disk: `<data_dir>/coordinator.redb` (records), `<data_dir>/audit/` (who changed what), `<data_dir>/jobs/<id>/` with `job.toml`, `curve.csv` and, where a job names no
//! other place, `checkpoints/`. All of it may be killed at any instant; a coordinator that starts on the same folder goes on, and
//! workers go on meanwhile (T-9).

#![forbid(unsafe_code)]

mod audit;
mod caller;
pub mod curve;
mod driver;
mod error;
mod files;
mod folder;
mod grpc;
mod outbox;
mod roots;
pub mod store;
mod tokens;

pub use error::CoordinatorError;
pub use grpc::{CallLimits, rules};
pub use toroid_machine as machine;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use audit::Audit;
use machine::{Limits, Retention};
use roots::Roots;
use store::RedbStore;
use toroid_security::server::ServerTls;

/// Whether tests can have things go wrong in here; the binary `toroid` does not build with that.
pub const HAS_FAILPOINTS: bool = cfg!(feature = "failpoint");

#[derive(Debug, Clone)]
pub struct Config {
    /// Everything durable is below this folder; one coordinator at a time.
    pub data_dir: PathBuf,
    /// How often workers say that they are there; 1 s by default.
    pub heartbeat_interval: Duration,
    /// A worker that is silent for this long is lost; 5 s by default. All other limits derive from it.
    pub failure_timeout: Duration,
    /// How many of the jobs that have ended are kept, and how long.
    pub retention: Retention,
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
            heartbeat_interval: Duration::from_secs(1),
            failure_timeout: Duration::from_secs(5),
            retention: Retention::default(),
            join_token: None,
            tls: None,
            connections: toroid_security::server::Limits::default(),
            calls: CallLimits::default(),
            allow_roots: vec!["/".into()],
        }
    }
}

/// Asked so often to end, it stays for nobody.
const AT_ONCE: u32 = 2;

/// Runs a coordinator on `listener` until it is `asked` to end. Workers go on with what they do when it returns, but for those that were
/// asked to end themselves: asked once, it stays until their places are moved or their jobs saved, for as long as they do
/// ([`Limits::leave`]); asked twice, it ends at once.
pub async fn run(
    listener: TcpListener,
    config: Config,
    mut asked: watch::Receiver<u32>,
) -> Result<(), CoordinatorError> {
    let limits = limits(&config)?;
    let data_dir = make_data_dir(&config.data_dir)?;
    let jobs_dir = data_dir.join("jobs");
    let tls = config.tls.map(ServerTls::open).transpose()?;
    let store_path = data_dir.join("coordinator.redb");
    refuse_empty(&store_path, &jobs_dir)?;
    let store = Box::new(RedbStore::open(&store_path)?);
    let audit_dir = data_dir.join("audit");
    let audit = Audit::open(&audit_dir);
    let audit =
        audit.map_err(|error| CoordinatorError::Io { what: "opening the audit record in", path: audit_dir, error })?;
    let roots = Roots::new(&[config.allow_roots, vec![data_dir.clone()]].concat());
    let access = grpc::Access { tls, connections: config.connections, calls: config.calls, audit, roots };
    let machine_config = machine::Config {
        jobs_dir: jobs_dir.to_string_lossy().into_owned(),
        limits,
        retention: config.retention,
        join_token: config.join_token,
    };
    let (driver, handle) = driver::Driver::open(store, machine_config, &jobs_dir)?;
    tracing::info!(folder = %data_dir.display(), "the coordinator is ready");

    let (end, ends) = watch::channel(0);
    let (stop_serving, mut stopped_serving) = watch::channel(());
    let runtime = tokio::runtime::Handle::current();
    // A thread of its own: durable writes block.
    let mut driving = tokio::task::spawn_blocking(move || runtime.block_on(driver.run(ends)));
    let serving = grpc::serve(listener, handle, limits, access, async move { drop(stopped_serving.changed().await) });
    tokio::pin!(serving);
    let (mut driven, mut served) = (None, None);
    while driven.is_none() && served.is_none() {
        tokio::select! {
            Ok(()) = asked.changed() => drop(end.send_replace(*asked.borrow())),
            result = &mut serving => served = Some(result),
            result = &mut driving => driven = Some(result),
        }
    }
    end.send_replace(AT_ONCE);
    stop_serving.send_replace(());
    let driven = match driven {
        Some(result) => result,
        None => driving.await,
    };
    let driven = driven.map_err(CoordinatorError::Panic)?;
    let served = match served {
        Some(result) => result,
        // Connections that do not drain in time are left to their clients.
        None => tokio::time::timeout(limits.drain(), serving).await.unwrap_or(Ok(())),
    };
    driven.and(served)
}

fn limits(config: &Config) -> Result<Limits, CoordinatorError> {
    let (interval, timeout) = (config.heartbeat_interval, config.failure_timeout);
    if interval.is_zero() || interval > timeout / 2 {
        return Err(CoordinatorError::Limits { interval, timeout });
    }
    Ok(Limits { heartbeat_interval: interval, failure_timeout: timeout })
}

/// A store of 0 bytes beside jobs has lost them. Without jobs it is what a coordinator leaves that was killed as it made the file.
fn refuse_empty(store: &Path, jobs_dir: &Path) -> Result<(), CoordinatorError> {
    let is_empty = std::fs::metadata(store).is_ok_and(|m| m.is_file() && m.len() == 0);
    let num_folders = if is_empty { files::folders(jobs_dir)?.len() } else { 0 };
    if num_folders == 0 {
        return Ok(());
    }
    let reason = format!("it has 0 bytes, and there are {num_folders} folders of jobs in {}", jobs_dir.display());
    Err(store::StoreError::Damaged { path: store.into(), reason }.into())
}

/// Makes the folder, and gives its absolute path: workers on this machine are told paths below it.
fn make_data_dir(data_dir: &Path) -> Result<PathBuf, CoordinatorError> {
    let made = std::fs::create_dir_all(data_dir).and_then(|()| data_dir.canonicalize());
    made.map_err(|error| CoordinatorError::Io { what: "making the folder", path: data_dir.into(), error })
}
