//! One worker of Toroid: a process with one device that fills one place of a job's torus, or none as a spare.
//!
//! ```text
//!   control (gRPC stream) <-> session (pure state machine) -> trainer thread: prepare, connect, steps
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
pub mod model;
pub mod optim;
pub mod session;
pub mod trace;
pub mod trainer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use toroid_proto::{BUILD_VERSION, PROTOCOL_VERSION, Register};

use comm::nccl::Collectives;
use comm::{CommError, LinkChoice, Listener};
use control::{Control, ControlError, JobFence};
use device::choice::{DeviceError, Selected};
use device::cuda::{Graphs, Nccl, Runtime};
use device::{Choice, Device};
use session::Session;
use trace::Trace;
use trainer::{Emit, Environment, Shared};

/// Why sums cannot go between GPUs.
const NO_NCCL: &str = "the NCCL library (libnccl.so, 2.18 or later) was not found";
/// Until the coordinator's Welcome names them.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);
const DEFAULT_FAILURE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to run a worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// `http://host:port`.
    pub coordinator: String,
    /// Chosen anew where it is `None`; an id lives as long as the process.
    pub worker_id: Option<String>,
    /// Where the worker is, for the placement.
    pub host: String,
    pub zone: String,
    pub rack: String,
    /// Where its links listen; port 0: any.
    pub data_listen: SocketAddr,
    /// `host` or `host:port` that peers dial; the listening address where it is `None`.
    pub advertise: Option<String>,
    /// Kinds of link that it makes and takes.
    pub links: LinkChoice,
    pub device: Choice,
    /// Whether a GPU's calls that repeat are made as one.
    pub graphs: Graphs,
    /// How sums travel between GPUs.
    pub collectives: Collectives,
    /// Compute threads, where the device is the CPU.
    pub threads: usize,
    /// Folder for spans of the first steps.
    pub trace: Option<PathBuf>,
    /// Token files and compiled kernels are kept here.
    pub cache_dir: PathBuf,
    pub token: Option<String>,
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
    Listen(#[from] CommError),
    #[error(
        "cannot sum between GPUs, which `--collectives nccl` asks for: {0}; mend that, or use `--collectives auto`"
    )]
    Collectives(&'static str),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot start the trainer thread: {0}")]
    Thread(std::io::Error),
    #[error("the trainer ended unexpectedly, see the messages before; please report it")]
    Trainer,
}

/// Runs a worker until the coordinator refuses it, or it is asked to end. `asked` counts how often that was: the first time its place
/// is moved first, if that can be done within the coordinator's grace; the second time it ends at once.
pub async fn run(config: Config, asked: watch::Receiver<u32>) -> Result<(), WorkerError> {
    let (selected, why_no_gpu) = config.device.open(config.threads, &config.cache_dir, config.graphs)?;
    if let Some(why) = why_no_gpu {
        tracing::info!("computing on the CPU: {why}");
    }
    match selected {
        Selected::Cpu(_) if config.collectives == Collectives::Nccl => {
            Err(WorkerError::Collectives("this worker computes on the CPU"))
        }
        Selected::Cpu(device) => run_on(device, "cpu".into(), config, asked).await,
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
async fn run_on<D: Device + Clone>(
    device: D,
    name: String,
    config: Config,
    asked: watch::Receiver<u32>,
) -> Result<(), WorkerError> {
    let worker_id = config.worker_id.clone().unwrap_or_else(|| format!("{}-{}", config.host, std::process::id()));
    let listener = Listener::bind(&config.data_listen.to_string(), &worker_id, config.links)?;
    let traced = config.trace.as_ref().map(|folder| (folder, Trace::create(folder, &worker_id)));
    let trace = match traced {
        None => None,
        Some((_, Ok(trace))) => Some(trace),
        Some((folder, Err(error))) => return Err(WorkerError::Trace { folder: folder.clone(), error }),
    };
    let identity = Register {
        worker_id,
        protocol_version: PROTOCOL_VERSION,
        build_version: BUILD_VERSION.into(),
        host: config.host.clone(),
        zone: config.zone.clone(),
        rack: config.rack.clone(),
        data_address: advertised(config.advertise.as_deref(), listener.local_addr()),
        device: name,
        fingerprint: device.fingerprint(),
        token: config.token.clone().unwrap_or_default(),
        pid: std::process::id(),
        ..Register::default()
    };
    let shared = Arc::new(Shared::of_process(trace));
    let (events, received) = mpsc::unbounded_channel();
    let (commands, to_do) = std::sync::mpsc::channel();
    let environment = Environment {
        listener,
        shared: Arc::clone(&shared),
        cache_dir: config.cache_dir.clone(),
        connect_timeout: 6 * DEFAULT_FAILURE_TIMEOUT,
    };
    // The receiver is gone only when the process ends.
    let emit: Emit = Arc::new(move |event| drop(events.send(event)));
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
    let control = Control {
        coordinator: config.coordinator,
        identity,
        session: Session::new(),
        commands,
        events: received,
        fence: JobFence::new()?,
        shared,
        memory: Box::new(move || watched.memory()),
        heartbeat: DEFAULT_HEARTBEAT,
        failure_timeout: DEFAULT_FAILURE_TIMEOUT,
        leave_grace: config.leave_grace.unwrap_or(5 * DEFAULT_FAILURE_TIMEOUT),
        own_leave_grace: config.leave_grace,
        leaves_at: None,
        asked,
    };
    tokio::select! {
        result = control.run() => Ok(result?),
        _ = trainer_ended => Err(WorkerError::Trainer),
    }
}

/// The address that peers dial.
fn advertised(advertise: Option<&str>, listening: SocketAddr) -> String {
    match advertise {
        None => listening.to_string(),
        Some(address) if address.contains(':') => address.to_string(),
        Some(host) => format!("{host}:{}", listening.port()),
    }
}
