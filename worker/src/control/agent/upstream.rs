//! The agent's stream to the coordinator: dialled as a worker dials, of several coordinators the one that leads, again and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use toroid_proto::from_worker_of_host::What;
use toroid_proto::limits::{COORDINATOR_MESSAGE_BYTES_MAX, HOST_WORKERS_MAX};
use toroid_proto::to_worker_of_host::What as Told;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{CoordinatorMessage, FromWorkerOfHost, HostAnswer, HostMessage, HostWelcome, ToWorkerOfHost, build};
use toroid_session::client::{Coordinators, LONGEST, Next, Retry};

use super::config::Config;
use super::gather::Gather;
use crate::control::carrier::{DialError, connect, endpoint_of, sleep_until};
use crate::control::reason;

/// Entries that wait to be gathered; beyond, their workers' streams wait.
const MAX_ENTRIES: usize = 1024;
/// And their bytes, in KiB.
const MAX_ENTRIES_KIB: usize = 64 << 10;
/// Messages that wait for a worker; beyond, it is cut off. Acknowledgements of steps are not made one here, as they are by the coordinator.
pub(super) const QUEUE: usize = 1024;

/// Whether the agent has a coordinator.
#[derive(Clone)]
pub(super) enum Standing {
    Away { why: String },
    There(Arc<Link>),
}

/// The agent's end of a worker's stream.
pub(super) struct Line {
    pub messages: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    /// The line ends, with what the coordinator is to hear of it; dropped: nothing.
    pub end: oneshot::Sender<Option<String>>,
}

/// An entry that waits, with its share of the bytes that may.
pub(super) struct Waiting {
    entry: FromWorkerOfHost,
    bytes: usize,
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct Lines {
    next: u32,
    open: BTreeMap<u32, Line>,
    is_over: bool,
}

/// One stream to a coordinator, and the workers on it.
pub(super) struct Link {
    waiting: mpsc::Sender<Waiting>,
    /// Nobody closes it.
    room_kib: Arc<Semaphore>,
    lines: Mutex<Lines>,
    max_workers: usize,
}

impl Link {
    fn new(welcome: &HostWelcome) -> (Link, mpsc::Receiver<Waiting>) {
        let (waiting, received) = mpsc::channel(MAX_ENTRIES);
        let room_kib = Arc::new(Semaphore::new(MAX_ENTRIES_KIB));
        let max_workers = (welcome.workers_max as usize).min(HOST_WORKERS_MAX);
        (Link { waiting, room_kib, lines: Mutex::default(), max_workers }, received)
    }

    /// No caller panics while it holds the lock, and the map would still be in order.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a new worker.
    pub fn open(&self, line: Line) -> Result<u32, Status> {
        let mut lines = self.lock();
        if lines.is_over {
            return Err(Status::unavailable("the agent has just lost the coordinator"));
        }
        if lines.open.len() >= self.max_workers {
            let max = self.max_workers;
            return Err(Status::resource_exhausted(format!(
                "the agent has {max} workers already, as many as it may; name the coordinator's own address, or another agent"
            )));
        }
        let worker = lines.next;
        lines.next += 1;
        lines.open.insert(worker, line);
        Ok(worker)
    }

    pub fn close(&self, worker: u32) {
        self.lock().open.remove(&worker);
    }

    /// Waits where too much waits already; false if the stream is over.
    pub async fn say(&self, worker: u32, what: What) -> bool {
        let entry = FromWorkerOfHost { worker, what: Some(what) };
        let bytes = entry.encoded_len();
        let kib = (bytes / 1024 + 1).min(MAX_ENTRIES_KIB) as u32;
        let permit = Arc::clone(&self.room_kib).acquire_many_owned(kib).await.ok();
        self.waiting.send(Waiting { entry, bytes, _permit: permit }).await.is_ok()
    }

    fn heard(&self, ToWorkerOfHost { worker, what }: ToWorkerOfHost) {
        let mut lines = self.lock();
        match what {
            Some(Told::Said(message)) => {
                let Some(line) = lines.open.get(&worker) else { return };
                if line.messages.try_send(Ok(*message)).is_err()
                    && let Some(line) = lines.open.remove(&worker)
                {
                    let reason = format!("does not read its messages: {QUEUE} wait at the agent of its host");
                    // Whoever reads its stream has ended already where the worker is gone.
                    let _ = line.end.send(Some(reason));
                }
            }
            Some(Told::Closed(reason)) => {
                let Some(line) = lines.open.remove(&worker) else { return };
                // What it is told is in order, and comes after what waits; where nothing more fits in it ends without words.
                let _ = line.messages.try_send(Err(Status::aborted(reason)));
            }
            // Of a later version.
            None => {}
        }
    }

    /// All lines end.
    fn end(&self, why: &str) {
        let mut lines = self.lock();
        lines.is_over = true;
        for line in std::mem::take(&mut lines.open).into_values() {
            let _ = line.messages.try_send(Err(Status::unavailable(format!("the agent lost the coordinator: {why}"))));
        }
    }
}

/// Has a stream to a coordinator, and another when that ends.
pub(super) struct Upstream {
    config: Config,
    standing: watch::Sender<Standing>,
    coordinators: Coordinators,
    retry: Retry,
}

type Dialled = (mpsc::Sender<HostMessage>, Streaming<HostAnswer>, HostWelcome);

impl Upstream {
    pub fn new(config: Config, standing: watch::Sender<Standing>) -> Upstream {
        let coordinators = Coordinators::new(config.coordinators.clone());
        Upstream { config, standing, coordinators, retry: Retry::new() }
    }

    pub async fn run(mut self) {
        let mut said = String::new();
        loop {
            let address = self.coordinators.current().to_string();
            match self.dial(&address).await {
                Ok((messages, incoming, welcome)) => {
                    tracing::info!(coordinator = address, "speaks for the workers of this host");
                    self.coordinators.welcomed();
                    said.clear();
                    let begun = Instant::now();
                    let why = self.carry(messages, incoming, &welcome).await;
                    tracing::warn!(coordinator = address, "lost the coordinator, its workers register again: {why}");
                    self.retry.stream_lasted(begun.elapsed());
                    tokio::time::sleep(self.retry.next(LONGEST)).await;
                }
                Err(error) => {
                    let (words, leader) = (reason::in_words(error.as_ref()), reason::leader(error.as_ref()));
                    let why = format!("{address}: {words}");
                    if said != why {
                        tracing::warn!("no coordinator, tries again: {why}");
                        said.clone_from(&why);
                    }
                    self.standing.send_replace(Standing::Away { why });
                    if self.coordinators.failed(leader) == Next::AfterPause {
                        tokio::time::sleep(self.retry.next(LONGEST)).await;
                    }
                }
            }
        }
    }

    async fn dial(&self, address: &str) -> Result<Dialled, DialError> {
        let Config { credentials, name, host, failure_timeout, .. } = &self.config;
        let limit = self.coordinators.limit();
        let silence = if limit.is_some() { *failure_timeout / 2 } else { *failure_timeout };
        let endpoint = endpoint_of(address, *failure_timeout, silence)?;
        let agent = build().agent(name.clone(), host.clone());
        let dialling = async {
            let channel = connect(address, endpoint, credentials).await?;
            let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(COORDINATOR_MESSAGE_BYTES_MAX);
            // What waits here is not gathered with what comes after it.
            let (messages, outgoing) = mpsc::channel(1);
            messages.send(HostMessage { agent: Some(agent), entries: Vec::new() }).await?;
            let mut incoming = client.host(ReceiverStream::new(outgoing)).await?.into_inner();
            let first = incoming.message().await?;
            let welcome = first.and_then(|answer| answer.welcome).ok_or("it took the agent and gave it no welcome")?;
            Ok((messages, incoming, welcome))
        };
        match tokio::time::timeout(limit.unwrap_or(*failure_timeout), dialling).await {
            Ok(dialled) => dialled,
            Err(_) => Err(format!("{address} did not answer in time").into()),
        }
    }

    /// Carries both ways until the stream is over, and says why.
    async fn carry(
        &self,
        messages: mpsc::Sender<HostMessage>,
        mut incoming: Streaming<HostAnswer>,
        welcome: &HostWelcome,
    ) -> String {
        let (link, waiting) = Link::new(welcome);
        let link = Arc::new(link);
        self.standing.send_replace(Standing::There(Arc::clone(&link)));
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms.into());
        let hearing = async {
            loop {
                match incoming.message().await {
                    Ok(Some(answer)) => answer.entries.into_iter().for_each(|entry| link.heard(entry)),
                    Ok(None) => break "it closed the stream".to_string(),
                    Err(status) => break reason::in_words(&status),
                }
            }
        };
        let why = tokio::select! {
            why = hearing => why,
            () = gather(Gather::new(interval), waiting, messages) => "the stream is closed".into(),
        };
        self.standing.send_replace(Standing::Away { why: why.clone() });
        link.end(&why);
        why
    }
}

/// Sends what waits, gathered, as fast as the stream takes it.
async fn gather(mut gather: Gather, mut waiting: mpsc::Receiver<Waiting>, messages: mpsc::Sender<HostMessage>) {
    let origin = Instant::now();
    loop {
        let deadline = gather.deadline().map(|deadline| origin + deadline);
        let message = tokio::select! {
            // All that waits goes together.
            biased;
            next = waiting.recv() => match next {
                Some(Waiting { entry, bytes, .. }) => gather.add(entry, bytes, origin.elapsed()),
                None => return,
            },
            () = sleep_until(deadline) => Some(gather.take()),
        };
        if let Some(message) = message
            && messages.send(message).await.is_err()
        {
            return;
        }
    }
}
