//! The control stream: what [`Client`] decides, done. It connects, carries messages both ways, and sets the alarm for the next deadline.
//!
//! One task owns the client. Training does not wait for any of it (T-9). Deliberately absent: decisions; when to dial, what waits for
//! the Welcome and when the worker ends is the client's. [`agent`] stands between the workers of a host and the coordinator.

pub mod agent;
pub mod carrier;
mod error;
mod reason;
mod told;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use toroid_proto::worker_message::Body;
use toroid_proto::{Heartbeat, Register, ShardProgress};
use toroid_security::Credentials;
use toroid_session::client::{Client, Ending, Input};
use toroid_session::{Action, Command, Knock, Standing, TrainerEvent};
use toroid_torus::ids::{Epoch, JobId, Rank};
use toroid_torus::owner::{Owner, OwnerId};

use carrier::{Carrier, Opening, Process, dial, endpoint_of};
pub use error::ControlError;
pub(crate) use error::MAX_COMMANDS;
pub(crate) use told::Told;

use crate::comm::{CommError, Fence, MAX_PROBES, Porter, ProbeError};
use crate::device::DeviceMemory;
use crate::log::Log;
use crate::system;
use crate::trainer::{Emit, Order, Requested, Shared};
use crate::watchdog::Stacks;

/// Events of the trainer that wait for this task, at most; beyond, the trainer waits. This task waits for no trainer, and for a coordinator that
/// does not read only until the connection is given up: a step of a millisecond has 16 seconds.
pub(crate) const MAX_EVENTS: usize = 1 << 14;

/// Passes an order on to the trainer. Where that is gone, the process ends anyway.
fn pass(orders: &SyncSender<Order>, order: impl Into<Order>) -> Result<(), ControlError> {
    match orders.try_send(order.into()) {
        Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        Err(TrySendError::Full(_)) => Err(ControlError::TrainerStandsStill),
    }
}

/// What the trainer's threads tell this task with. They wait where there is no room.
pub(crate) fn emit_into(events: mpsc::Sender<TrainerEvent>) -> Emit {
    // The receiver is gone only when the process ends.
    Arc::new(move |event| drop(events.blocking_send(event)))
}

/// What the control task works with.
pub(crate) struct Control {
    pub client: Client,
    pub process: Trained,
    pub inbox: Inbox,
    /// The client's times count from here.
    pub origin: Instant,
}

/// A process with a trainer.
pub(crate) struct Trained {
    /// What is shown to a coordinator.
    pub credentials: Credentials,
    /// How long an attempt to connect may take, and a coordinator may be silent on the connection.
    pub failure_timeout: Duration,
    /// Everything of Register but what the worker does now.
    pub identity: Register,
    pub orders: SyncSender<Order>,
    /// Dials other workers, and answers where they dial.
    pub porter: Porter,
    /// What became of that.
    pub probed: mpsc::Sender<toroid_proto::Probed>,
    pub fence: JobFence,
    pub shared: Arc<Shared>,
    /// Checkpoints that it is asked for, by their traces.
    pub told: Told,
    /// What the worker holds of its device's memory.
    pub memory: Box<dyn Fn() -> DeviceMemory + Send + Sync>,
}

/// What the control task hears, beside the clock and the coordinator.
pub(crate) struct Inbox {
    pub events: mpsc::Receiver<TrainerEvent>,
    pub probed: mpsc::Receiver<toroid_proto::Probed>,
    /// What this process logs.
    pub log: Arc<Log>,
    /// Of its threads, when the trainer got on with nothing.
    pub stacks: mpsc::Receiver<Stacks>,
    /// How often it was asked to end.
    pub asked: watch::Receiver<u32>,
}

/// For what probes have come to.
pub(crate) fn probed() -> (mpsc::Sender<toroid_proto::Probed>, mpsc::Receiver<toroid_proto::Probed>) {
    mpsc::channel(MAX_PROBES)
}

/// Epochs are counted by job, so each job has a fence of its own. A job of the same id in another store is another job.
pub struct JobFence {
    owner: Option<OwnerId>,
    fence: Fence,
}

impl JobFence {
    pub fn new() -> Result<JobFence, CommError> {
        Ok(JobFence { owner: None, fence: Fence::new()? })
    }

    /// The fence of this job. That of another one that was in its place ends all of its epochs.
    pub fn of(&mut self, job: &Owner) -> Result<Fence, CommError> {
        if self.owner != Some(job.id) {
            self.fence.raise(Epoch::LAST);
            *self = JobFence { owner: Some(job.id), fence: Fence::new()? };
        }
        Ok(self.fence.clone())
    }

    /// Nothing of the job's epochs below this one may go on.
    pub fn raise(&self, epoch: Epoch) {
        self.fence.raise(epoch);
    }
}

impl Control {
    /// Runs until the worker is to end, or until the coordinator refuses it.
    pub async fn run(self) -> Result<(), ControlError> {
        let Control { client, process, mut inbox, origin } = self;
        let shared = Arc::clone(&process.shared);
        let ended = inbox.carry(&mut Carrier::new(client, process, origin)).await;
        shared.set_connected(false);
        match ended? {
            Ending::Refused { reason } => Err(ControlError::Refused { reason }),
            Ending::Asked | Ending::HasLeft | Ending::GraceOver | Ending::Unattended => Ok(()),
        }
    }
}

impl Inbox {
    /// Carries inputs to the client.
    async fn carry(&mut self, carrier: &mut Carrier<Trained>) -> Result<Ending, ControlError> {
        // The place that it has, or had last: stacks are of the one in which they were taken, also if it is another's when their names are known.
        let mut place = (JobId::default(), Epoch::default());
        loop {
            let (takes_events, takes_probed) = (carrier.client.takes_events(), carrier.client.takes_probed());
            let input = tokio::select! {
                changed = self.asked.changed() => match changed {
                    Ok(()) => Input::Asked { times: *self.asked.borrow_and_update() },
                    // It ends with whoever ran it.
                    Err(_) => Input::Unattended,
                },
                (input, traceparent) = carrier.next() => {
                    if let Input::FromCoordinator { body, .. } = &input {
                        let Trained { told, shared, .. } = &mut carrier.process;
                        told.heard(shared, body, traceparent);
                    }
                    input
                }
                Some(event) = self.events.recv(), if takes_events => Input::Trainer(event),
                Some(probed) = self.probed.recv(), if takes_probed => Input::Probed(probed),
                lines = self.log.next(), if takes_probed => match carrier.try_send(log_lines(lines)) {
                    Some(lost) => lost,
                    None => continue,
                },
                Some(stacks) = self.stacks.recv(), if takes_probed => {
                    match carrier.try_send(stacks_of(&place, stacks)) {
                        Some(lost) => lost,
                        None => continue,
                    }
                }
            };
            let ending = carrier.take(input).await?;
            let standing = carrier.client.standing();
            if standing.job_id != JobId::default() {
                place = (standing.job_id.clone(), standing.epoch);
            }
            self.log.set_place(standing, carrier.process.shared.spans().trace_id());
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
    }
}

impl Process for Trained {
    fn open(
        &mut self,
        coordinator: String,
        limit: Option<Duration>,
        standing: Standing,
    ) -> Result<Opening, ControlError> {
        let silence = if limit.is_some() { self.failure_timeout / 2 } else { self.failure_timeout };
        let endpoint = endpoint_of(&coordinator, self.failure_timeout, silence)?;
        let (credentials, register) = (self.credentials.clone(), registers(&self.identity, standing));
        Ok(Box::pin(async move {
            let dialled = dial(&coordinator, endpoint, credentials, register);
            match limit {
                None => dialled.await,
                Some(limit) => match tokio::time::timeout(limit, dialled).await {
                    Ok(opened) => opened,
                    Err(_) => Err(format!("{coordinator} did not answer within {limit:?}").into()),
                },
            }
        }))
    }

    fn heartbeat(&self, standing: Standing) -> Heartbeat {
        heartbeat(standing, &self.shared, (self.memory)())
    }

    fn says(&mut self, body: &Body) {
        self.told.says(&self.shared, body);
    }

    fn act(&mut self, action: Action) -> Result<Option<Input>, ControlError> {
        match action {
            Action::Fence { epoch } => self.fence.raise(epoch),
            Action::Prepare(assignment) => {
                let fence = self.fence.of(&assignment.owner)?;
                pass(&self.orders, Order::Prepare(assignment, fence))?;
            }
            Action::Trainer(command) => pass(&self.orders, command)?,
            Action::RequestCheckpoint { epoch, step, then } => match self.shared.request_checkpoint(step, then) {
                Requested::Ahead => {}
                Requested::Now => pass(&self.orders, Command::Checkpoint { epoch, step })?,
                Requested::TooLate { committed } => {
                    return Ok(Some(Input::CheckpointTooLate { epoch, step, committed }));
                }
            },
            Action::DropCheckpoint { epoch, step } => {
                self.shared.withdraw_checkpoint(step);
                pass(&self.orders, Command::DropShard { epoch, step })?;
            }
            Action::Recorded { step } => self.shared.set_recorded(step),
        }
        Ok(None)
    }

    /// Has a thread of its own dial the other worker.
    fn probe(&mut self, knock: Knock, limit: Duration) -> Option<Input> {
        let (porter, sender) = (self.porter.clone(), self.probed.clone());
        let probe = move || {
            let error = match porter.probe(&knock, limit) {
                Ok(()) => String::new(),
                Err(ProbeError::NotReached(problem)) => problem,
                // No answer says nothing about either, and the probe is made again.
                Err(busy @ ProbeError::Busy(_)) => {
                    return tracing::debug!(worker = knock.peer.worker_id.as_str(), %busy, "a probe came to nothing");
                }
            };
            if sender.try_send(toroid_proto::Probed { number: knock.number, error }).is_err() {
                tracing::debug!(number = knock.number, "nobody takes what a probe came to");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("probe".into()).spawn(probe) {
            tracing::warn!("cannot dial another worker as the coordinator asks: {error}");
        }
        None
    }

    fn connected(&mut self, is_connected: bool) {
        self.shared.set_connected(is_connected);
    }

    fn limits(&mut self, connect_ms: u32, failure_timeout_ms: u32) {
        self.shared.set_connect_limit(connect_ms);
        self.shared.set_failure_timeout(failure_timeout_ms);
    }

    fn die(&mut self, reason: &str) -> Option<Ending> {
        die(reason)
    }

    fn note(&mut self, line: &str, is_warning: bool) {
        if is_warning {
            tracing::warn!("{line}");
        } else {
            tracing::info!("{line}");
        }
    }
}

/// What a process of this identity registers with.
pub fn registers(identity: &Register, standing: Standing) -> Register {
    Register {
        job_id: standing.job_id.into(),
        epoch: standing.epoch.get(),
        rank: standing.rank.to_wire(),
        committed_step: standing.committed_step.get(),
        owner_id: standing.owner.map_or_else(Vec::new, |owner| owner.bytes().to_vec()),
        shape: standing.shape.as_ref().map(Into::into),
        store_id: standing.store,
        term: standing.term.get(),
        ..identity.clone()
    }
}

fn stacks_of((job_id, epoch): &(JobId, Epoch), Stacks { operation, lines }: Stacks) -> Body {
    let (job_id, epoch, operation) = (job_id.to_string(), epoch.get(), operation.into());
    Body::Stacks(toroid_proto::Stacks { job_id, epoch, operation, lines })
}

fn log_lines(lines: Vec<String>) -> Body {
    Body::LogLines(toroid_proto::LogLines { lines })
}

/// What a worker says of its place and of what its trainer does.
pub fn heartbeat(standing: Standing, shared: &Shared, memory: DeviceMemory) -> Heartbeat {
    let computed = shared.computed();
    Heartbeat {
        job_id: standing.job_id.into(),
        epoch: standing.epoch.get(),
        committed_step: standing.committed_step.get(),
        operation: shared.operation().to_string(),
        waits_for: shared.waits_for().into_iter().map(Rank::to_wire).collect(),
        compute_s: computed.time.as_secs_f64(),
        compute_steps: computed.num_steps,
        sealed_next: shared.has_sealed_after(standing.committed_step),
        progress: shared.progress(),
        memory_bytes: memory.held,
        memory_free_bytes: memory.free.unwrap_or(0),
        links: shared.links().into_iter().map(|(kind, num)| (kind.to_string(), num as u32)).collect(),
        saving: shared.saving().map(|saving| {
            let (bytes, total_bytes) = saving.written.bytes();
            let for_s = (system::now() - saving.since).as_secs_f64();
            ShardProgress { step: saving.step.get(), bytes, total_bytes, for_s }
        }),
    }
}

/// As a death comes: no destructor runs, nothing is flushed, closed or said.
fn die(reason: &str) -> ! {
    tracing::warn!("ends at once: {reason}");
    // Nothing is left to do about an error: the process ends either way.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use toroid_session::Event;
    use toroid_torus::ids::Step;

    use super::*;
    use crate::comm::{LinkChoice, LinkKind, Listener};

    /// What a worker's log says of a coordinator at `address`.
    fn said(address: &str) -> Result<String, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = endpoint_of(address, Duration::from_millis(500), Duration::from_millis(500))?;
        let error = runtime
            .block_on(dial(address, endpoint, Credentials::none(), Register::default()))
            .err()
            .ok_or("nobody is there")?;
        Ok(reason::in_words(error.as_ref()))
    }

    /// A coordinator whose store was lost counts jobs and epochs from 1 again.
    #[test]
    fn a_job_of_the_same_id_in_another_store_has_a_fence_of_its_own() -> Result<(), CommError> {
        let of = |id: u8| Owner::new(OwnerId::from_random([id; 16]), "tiny-1", "tiny", 0);
        let mut fence = JobFence::new()?;
        let (first, newer) = (Epoch::new(1), Epoch::new(2));
        let old = fence.of(&of(1))?;
        fence.raise(newer);
        assert!(fence.of(&of(1))?.check(first).is_err(), "the same job goes on from there");
        let new = fence.of(&of(2))?;
        assert_eq!(new.check(first), Ok(()));
        assert!(old.check(newer).is_err(), "nothing of the other job goes on");
        Ok(())
    }

    #[test]
    fn what_keeps_a_worker_from_its_coordinator_is_said_in_words() -> Result<(), Box<dyn std::error::Error>> {
        let check = |address: &str, expected: &str| -> Result<(), Box<dyn std::error::Error>> {
            let words = said(address)?;
            assert!(words.contains(expected), "{address}: {words}");
            Ok(())
        };
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        check(&format!("http://{free}"), "nothing listens there")?;
        check("http://no-such-host.invalid:7070", "there is no host of that name")?;
        let web = TcpListener::bind("127.0.0.1:0")?;
        let address = web.local_addr()?;
        std::thread::spawn(move || {
            for stream in web.incoming().flatten() {
                let mut stream = stream;
                // As a web server does, it hears the request first, and out: what is unread when it closes would reset the connection.
                // Whoever has gone does not hear it.
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        check(&format!("http://{address}"), "speaks no gRPC")?;
        let silent = TcpListener::bind("127.0.0.1:0")?;
        check(&format!("http://{}", silent.local_addr()?), "takes the connection and answers nothing")
    }

    fn process(shared: Shared) -> Result<Trained, CommError> {
        let listener = Listener::bind("127.0.0.1:0", "w1", LinkChoice::Auto)?;
        Ok(Trained {
            credentials: Credentials::none(),
            failure_timeout: Duration::from_secs(5),
            identity: Register::default(),
            orders: std::sync::mpsc::sync_channel(1).0,
            porter: listener.porter("w1")?,
            probed: probed().0,
            fence: JobFence::new()?,
            shared: Arc::new(shared),
            told: Told::default(),
            memory: Box::new(|| DeviceMemory { held: 5, free: Some(9) }),
        })
    }

    #[test]
    fn a_heartbeat_says_what_the_trainer_has_done() -> Result<(), CommError> {
        let said = |shared| -> Result<Heartbeat, CommError> { Ok(process(shared)?.heartbeat(Standing::default())) };
        let idle = said(Shared::default())?;
        assert_eq!((idle.compute_steps, idle.compute_s, idle.sealed_next), (0, 0.0, false));
        // It has committed no step, and holds all that the first one needs.
        let shared = Shared::that_has_worked(7, Duration::from_millis(250), Step::new(1));
        shared.set_links([(LinkKind::Shm, 3), (LinkKind::Tcp, 1)].into());
        let busy = said(shared)?;
        assert_eq!(busy.links, [("shm".to_string(), 3), ("tcp".to_string(), 1)].into());
        assert_eq!((busy.compute_steps, busy.compute_s, busy.sealed_next), (7, 0.25, true));
        assert_eq!((busy.memory_bytes, busy.memory_free_bytes), (5, 9));
        let ahead = said(Shared::that_has_worked(7, Duration::from_millis(250), Step::new(2)))?;
        assert!(!ahead.sealed_next, "that is not the next step");
        Ok(())
    }

    #[test]
    fn a_trainer_that_stands_still_ends_the_worker_and_one_that_is_gone_does_not() {
        let (commands, to_do) = std::sync::mpsc::sync_channel(MAX_COMMANDS);
        for epoch in 0..MAX_COMMANDS as u64 {
            pass(&commands, Command::Drop { epoch: Epoch::new(epoch) }).expect("there is room");
        }
        let error = pass(&commands, Command::Drop { epoch: Epoch::NONE }).expect_err("there is no room").to_string();
        assert!(error.contains("took none of 1024 commands"), "{error}");
        drop(to_do);
        pass(&commands, Command::Drop { epoch: Epoch::NONE }).expect("the process ends anyway");
    }

    #[test]
    fn events_that_have_no_room_wait_and_none_is_lost() {
        let (events, mut received) = mpsc::channel(1);
        let emit = emit_into(events);
        let trainer = std::thread::spawn(move || {
            for step in Step::new(1).through(Step::new(100)) {
                emit(TrainerEvent { job_id: "j".into(), epoch: Epoch::new(1), event: Event::Finished { step } });
            }
        });
        let mut steps = Vec::new();
        while let Some(event) = received.blocking_recv() {
            if let Event::Finished { step } = event.event {
                steps.push(step.get());
            }
        }
        trainer.join().expect("the trainer ends");
        assert_eq!(steps, (1..=100).collect::<Vec<u64>>());
    }
}
