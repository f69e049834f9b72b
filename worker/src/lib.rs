//! One worker of Toroid: a process with one device that fills one place of a job's torus, or none as a spare.
//!
//! ```text
//!   control (gRPC stream) <-> toroid_session (decides, pure) -> trainer thread: prepare, connect, steps
//!                                                               | model/  forward and backward of a stage
//!                                                               | device/ the operations, CPU or CUDA
//!                                                               | comm/   links, frames, collectives
//!                                                               | optim   AdamW on the shards that this place holds
//!                                                               | data/, checkpoint/
//! ```

#![deny(unsafe_code)]

pub mod checkpoint;
pub mod comm;
pub mod control;
pub mod data;
pub mod device;
pub mod generate;
mod identity;
pub mod log;
pub mod model;
pub mod optim;
pub mod spans;
mod stacks;
mod sync;
pub mod system;
pub mod trace;
pub mod trainer;
mod watchdog;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use toroid_proto::{Register, build};
use toroid_security::Credentials;
pub use toroid_security::Roots;
use toroid_session::client::{Client, Settings};
use toroid_torus::job::Products;
use toroid_torus::labels::Labels;

use comm::nccl::Collectives;
use comm::{CommError, LinkChoice, Listener, check_advertised};
use control::{Control, ControlError, Inbox, JobFence, Told, Trained};
use device::choice::{DeviceError, Selected};
use device::cuda::{Graphs, Nccl, Runtime};
use device::{Bf16Choice, CachedAttention, Choice, Options};
use log::Log;
use spans::Spans;
use trace::Trace;
use trainer::{Environment, Shared};

/// Whether tests can have things go wrong in here; the binary `toroid` does not build with that.
pub const HAS_FAILPOINTS: bool = cfg!(feature = "failpoint");

/// Why sums cannot go between GPUs.
const NO_NCCL: &str = "the NCCL library (libnccl.so, 2.18 or later) was not found";
/// Until the coordinator's Welcome names them.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);
const DEFAULT_FAILURE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to run a worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// `http://host:port` of each, or `https://` where the credentials are those of TLS; one of them leads. At least one.
    pub coordinators: Vec<String>,
    /// What is shown to them.
    pub credentials: Credentials,
    /// Made where it is `None`, unlike that of any other process; an id lives as long as the process.
    pub worker_id: Option<String>,
    /// Where the worker is, for the placement.
    pub host: String,
    pub zone: String,
    /// That a job may ask for, beside what every worker has (`toroid_torus::labels`).
    pub labels: Labels,
    pub rack: String,
    /// Where its links listen; port 0: any.
    pub data_listen: SocketAddr,
    /// `host` or `host:port` that peers dial; the listening address where it is `None`.
    pub advertise: Option<String>,
    /// Kinds of link that it makes and takes.
    pub links: LinkChoice,
    pub device: Choice,
    /// By what products of bf16 are computed, where the device is the CPU.
    pub bf16: Bf16Choice,
    /// Whether a GPU's calls that repeat are made as one.
    pub graphs: Graphs,
    /// How sums travel between GPUs.
    pub collectives: Collectives,
    /// Compute threads, where the device is the CPU.
    pub threads: usize,
    /// What this process logs, which the coordinator hears of.
    pub log: Arc<Log>,
    /// Folder for spans of the first steps.
    pub trace: Option<PathBuf>,
    /// Of every so manyth step rank 0 tells what its time goes to, as a trace; `None`: of none.
    pub trace_steps: Option<NonZeroU64>,
    /// Token files and compiled kernels are kept here.
    pub cache_dir: PathBuf,
    pub join_token: Option<String>,
    /// Folders, or URLs, below which jobs may name paths; `/` allows all.
    pub allow_roots: Vec<PathBuf>,
    /// How long it stays after it was asked to end, for its place to be moved or its job to be saved; `None`: the coordinator says.
    pub leave_grace: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot write a trace into {}: {error}; name a folder that this user may write to", .folder.display())]
    Trace { folder: PathBuf, error: std::io::Error },
    #[error("cannot listen for links: {0}")]
    Listen(CommError),
    #[error("other workers cannot dial `--advertise {address}`: {what}")]
    Advertise { address: String, what: String },
    #[error(
        "cannot sum between GPUs, which `--collectives nccl` asks for: {0}; mend that, or use `--collectives auto`"
    )]
    Collectives(&'static str),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot read the system's random source for the number that tells this process from others: {0}")]
    Random(std::io::Error),
    #[error(
        "cannot keep the secret that binds this worker's id in {}: {error}; name a folder that this user may write to with --cache", .path.display()
    )]
    Secret { path: PathBuf, error: std::io::Error },
    #[error("cannot start a thread of the worker: {0}")]
    Thread(std::io::Error),
    #[error("the trainer ended unexpectedly, see the messages before; please report it")]
    Trainer,
}

impl From<CommError> for WorkerError {
    fn from(error: CommError) -> WorkerError {
        WorkerError::Listen(error)
    }
}

/// Runs a worker until the coordinator refuses it, or it is asked to end. `asked` counts how often that was: the first time its place
/// is moved first, if that can be done within the coordinator's grace; the second time it ends at once.
pub async fn run(config: Config, asked: watch::Receiver<u32>) -> Result<(), WorkerError> {
    let (threads, bf16, graphs) = (config.threads, config.bf16, config.graphs);
    let (selected, why_no_gpu) = config.device.open(Options { threads, bf16, graphs, cache: &config.cache_dir })?;
    if let Some(why) = why_no_gpu {
        tracing::info!("computing on the CPU: {why}");
    }
    match selected {
        Selected::Cpu(_) if config.collectives == Collectives::Nccl => {
            Err(WorkerError::Collectives("this worker computes on the CPU"))
        }
        Selected::Cpu(device) => {
            tracing::info!("products of bf16 go by {}", device.bf16());
            run_on(device, "cpu".into(), config, asked).await
        }
        Selected::Cuda(device) => {
            let name = device.runtime().name().to_string();
            let (free, total) = device.runtime().memory();
            tracing::info!("computing on {name}, {} of {} MiB of its memory are free", free >> 20, total >> 20);
            let is_there = device.runtime().nccl_version().is_some();
            match config.collectives {
                Collectives::Nccl if !is_there => {
                    return Err(WorkerError::Collectives(NO_NCCL));
                }
                Collectives::Auto if !is_there => {
                    tracing::info!("sums go through the host: {NO_NCCL}");
                }
                // Each epoch's log says what became of it.
                _ => {}
            }
            device.set_collectives(config.collectives);
            run_on(device, name, config, asked).await
        }
    }
}

/// Runs a worker on `device`, which users know by `name`.
async fn run_on<D: CachedAttention>(
    device: D,
    name: String,
    config: Config,
    asked: watch::Receiver<u32>,
) -> Result<(), WorkerError> {
    let incarnation = random_number().map_err(WorkerError::Random)?;
    let made = || made_id(&config.host, std::process::id(), incarnation);
    let worker_id = config.worker_id.clone().unwrap_or_else(made);
    let secret = match &config.worker_id {
        // Nobody registers it again when this process has ended.
        None => identity::new_secret().map_err(WorkerError::Random)?,
        Some(id) => {
            identity::kept_secret(&config.cache_dir, id).map_err(|(path, error)| WorkerError::Secret { path, error })?
        }
    };
    let listener = Listener::bind(&config.data_listen.to_string(), &worker_id, config.links)?;
    let porter = listener.porter(&worker_id)?;
    let traced = config.trace.as_ref().map(|folder| (folder, Trace::create(folder, &worker_id)));
    let trace = match traced {
        None => None,
        Some((_, Ok(trace))) => Some(trace),
        Some((folder, Err(error))) => return Err(WorkerError::Trace { folder: folder.clone(), error }),
    };
    let identity = Register {
        worker_id,
        host: config.host.clone(),
        zone: config.zone.clone(),
        labels: config.labels.clone(),
        rack: config.rack.clone(),
        data_address: advertised(config.advertise.as_deref(), listener.local_addr())?,
        device: name,
        fingerprint: device.fingerprint(Products::F32),
        fingerprint_bf16: device.fingerprint(Products::Bf16),
        token: config.join_token.clone().unwrap_or_default(),
        pid: std::process::id(),
        incarnation,
        secret,
        ..build().register()
    };
    let shared = Arc::new(Shared::of_process(trace, Spans::of_steps(config.trace_steps)));
    let (events, received) = mpsc::channel(control::MAX_EVENTS);
    let (orders, to_do) = std::sync::mpsc::sync_channel(control::MAX_COMMANDS);
    let environment = Environment {
        roots: Roots::new("worker", &config.allow_roots),
        listener,
        shared: Arc::clone(&shared),
        cache_dir: config.cache_dir.clone(),
        connect_timeout: 6 * DEFAULT_FAILURE_TIMEOUT,
    };
    let emit = control::emit_into(events);
    let (taken, stacks) = mpsc::channel(1);
    watchdog::start(Arc::clone(&shared), DEFAULT_FAILURE_TIMEOUT, taken).map_err(WorkerError::Thread)?;
    let watched = device.clone();
    let (ended, trainer_ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("trainer".into())
        .spawn(move || {
            // Dropped when the thread ends, by a panic too: a worker without a trainer must not look alive.
            let _ended = ended;
            device.enter(|| trainer::run(&device, &environment, to_do, &emit));
        })
        .map_err(WorkerError::Thread)?;
    let settings = Settings {
        coordinators: config.coordinators,
        heartbeat: DEFAULT_HEARTBEAT,
        failure_timeout: DEFAULT_FAILURE_TIMEOUT,
        leave_grace: 5 * DEFAULT_FAILURE_TIMEOUT,
        own_leave_grace: config.leave_grace,
    };
    let (probed, to_tell) = control::probed();
    let process = Trained {
        credentials: config.credentials,
        failure_timeout: DEFAULT_FAILURE_TIMEOUT,
        identity,
        orders,
        porter,
        probed,
        fence: JobFence::new()?,
        shared,
        told: Told::default(),
        memory: Box::new(move || watched.memory()),
    };
    let inbox = Inbox { events: received, probed: to_tell, log: config.log, stacks, asked };
    let (client, origin) = (Client::new(settings), tokio::time::Instant::now());
    let control = Control { client, process, inbox, origin };
    tokio::select! {
        result = control.run() => Ok(result?),
        _ = trainer_ended => Err(WorkerError::Trainer),
    }
}

/// Containers of one host name all have the process id 1, so a random part goes with both.
fn made_id(host: &str, pid: u32, random: u64) -> String {
    format!("{host}-{pid}-{:06x}", random & 0xff_ffff)
}

fn random_number() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    system::fill_random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The address that peers dial.
fn advertised(advertise: Option<&str>, listening: SocketAddr) -> Result<String, WorkerError> {
    let Some(address) = advertise else { return Ok(listening.to_string()) };
    check_advertised(address).map_err(|what| WorkerError::Advertise { address: address.to_string(), what })?;
    Ok(match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, listening.port()).to_string(),
        Err(_) if address.contains(':') => address.to_string(),
        Err(_) => format!("{address}:{}", listening.port()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_containers_of_one_name_have_two_ids() -> std::io::Result<()> {
        assert_eq!(made_id("vm", 1, 0x12_3456_789a), "vm-1-56789a");
        assert_ne!(made_id("vm", 1, random_number()?), made_id("vm", 1, random_number()?));
        Ok(())
    }
}
