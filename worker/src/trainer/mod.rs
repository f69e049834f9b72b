//! The training thread of a worker: prepares a place, connects it to its peers and makes steps.
//!
//! ```text
//!  session --Order--> trainer thread --TrainerEvent--> session
//!      \---- Fence: every wait of an older epoch returns at once (T-1)
//!  Prepare: data, weights or checkpoint -> Prepared     Start: connect, then steps -> Committed ... Finished
//! ```
//!
//! The trainer decides nothing about membership: it reports what it sees and does what the assignment says. Between two commits it
//! needs no coordinator (T-9).

mod evaluate;
#[cfg(any(test, feature = "failpoint"))]
pub mod failpoint;
mod heal;
mod history;
mod holders;
pub mod memory;
mod observe;
mod overlap;
mod prepare;
mod replay;
mod resplit;
mod save;
mod shared;
mod show;
mod step;
#[cfg(test)]
mod tests;
mod workspace;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use toroid_proto::StepRecord;
use toroid_session::{Assignment, Command, Event, HealPlan, TrainerEvent, WarmUp};

use crate::comm::nccl::{Epoch, agree};
use crate::comm::{CommError, Fence, LinkPlan, Links, Listener, peers_of};
use crate::device::Device;
use crate::{lock, system};

pub use observe::{Deed, Observer, Shown};
pub use prepare::{Job, PrepareError};
pub use shared::{Computed, Requested, Shared};

use workspace::Workspace;

/// What the trainer does while it reads data and makes or loads its state; the coordinator knows this word and the next.
const PREPARE: &str = "prepare";
/// Another process of this host makes the token file that it needs.
const WAIT_FOR_TOKENS: &str = "wait for token file";

/// Takes the trainer's events, from any thread.
pub type Emit = Arc<dyn Fn(TrainerEvent) + Send + Sync>;

/// What the trainer is told to do.
#[derive(Debug)]
pub enum Order {
    /// Fill this place; with the fence of its job.
    Prepare(Box<Assignment>, Fence),
    /// What else the session wants.
    Command(Command),
}

impl From<Command> for Order {
    fn from(command: Command) -> Order {
        Order::Command(command)
    }
}

/// What a trainer needs from its process.
pub struct Environment {
    pub listener: Listener,
    pub shared: Arc<Shared>,
    /// Token files are kept here.
    pub cache_dir: PathBuf,
    /// How long peers may take to accept a link, where the coordinator has not said it ([`Shared::set_connect_limit`]).
    pub connect_timeout: Duration,
}

/// Why a place cannot go on with its epoch.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Silent data corruption. All places stop before the commit; those that saw it say what. `wrong`: ranks that hold a wrong copy;
    /// none: that could not be told.
    #[error("{}", .seen.as_deref().unwrap_or("the two copies of a shard differ, as another place saw"))]
    Corrupt { seen: Option<String>, wrong: BTreeSet<usize> },
}

/// The orders, with one that was taken too early put back.
struct Inbox {
    orders: Receiver<Order>,
    put_back: Option<Order>,
}

impl Inbox {
    fn wait(&mut self) -> Option<Order> {
        if self.put_back.is_some() {
            return self.put_back.take();
        }
        let Some(system) = system::simulated() else { return self.orders.recv().ok() };
        loop {
            match self.orders.try_recv() {
                Ok(order) => return Some(order),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => system.wait(None),
            }
        }
    }

    /// Waits for the next order for a while, and keeps it.
    fn wait_for(&mut self, time: Duration) {
        if self.put_back.is_some() {
            return;
        }
        self.put_back = match system::simulated() {
            None => self.orders.recv_timeout(time).ok(),
            Some(system) => {
                system.wait(Some(system.now() + time));
                self.orders.try_recv().ok()
            }
        };
    }

    fn try_next(&mut self) -> Result<Order, TryRecvError> {
        self.put_back.take().map_or_else(|| self.orders.try_recv(), Ok)
    }
}

/// Whoever halts looks this often whether it may go on.
const HALT_LOOK: Duration = Duration::from_millis(10);

/// Runs until the channel of orders closes. `emit` is called from this thread and, for checkpoints, from the threads of `save`.
pub fn run<D: Device + Clone>(device: &D, environment: &Environment, orders: Receiver<Order>, emit: &Emit) {
    let mut inbox = Inbox { orders, put_back: None };
    let mut job: Option<Job<D>> = None;
    let mut warm: Option<Workspace<D>> = None;
    while let Some(order) = inbox.wait() {
        match order {
            Order::Prepare(assignment, fence) => {
                let survivor = job.take().filter(|j| j.can_heal(&assignment));
                job = match survivor {
                    Some(survivor) => Some(survivor.rejoin(*assignment, &environment.shared, emit)),
                    None => prepare(device, environment, *assignment, fence, warm.take(), emit),
                };
            }
            Order::Command(Command::WarmUp(ahead)) => {
                if job.is_none() {
                    warm = warm_up(device, environment, &ahead, warm.take(), emit);
                }
            }
            Order::Command(Command::Start { epoch, heal }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    train(running, heal.as_ref(), environment, &mut inbox, emit);
                }
            }
            Order::Command(Command::Publish { epoch, step, files, remove }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.publish(step, files, remove, &environment.shared, emit);
                }
            }
            Order::Command(Command::Report { epoch, from }) => {
                if let Some(running) = job.as_ref().filter(|j| j.assignment.epoch == epoch) {
                    running.report_since(from, emit);
                }
            }
            Order::Command(Command::Checkpoint { epoch, step }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.write_checkpoint_of(step, emit);
                }
            }
            Order::Command(Command::DropShard { epoch, step }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.drop_shard(step);
                }
            }
            Order::Command(Command::Drop { epoch }) => job = job.filter(|j| j.assignment.epoch > epoch),
        }
    }
}

/// Makes what a place needs, and says whether this worker can fill one.
fn warm_up<D: Device + Clone>(
    device: &D,
    environment: &Environment,
    ahead: &WarmUp,
    used: Option<Workspace<D>>,
    emit: &Emit,
) -> Option<Workspace<D>> {
    // A place may be assigned meanwhile: it is the same work.
    environment.shared.enter(PREPARE);
    let since = system::now();
    let workspace = Workspace::make(device, environment, (&ahead.spec, ahead.rank), &ahead.checkpoint_root, None, used);
    let workspace = workspace.map_err(|e| e.to_string());
    let unseen = workspace.as_ref().ok().and_then(|workspace| workspace.unseen(ahead.checkpoint_step));
    let workspace = workspace.and_then(|workspace| match &unseen {
        // Its file system may not be mounted there: nothing is made in its place.
        Some(_) => Ok(workspace),
        None => match workspace.check_storage() {
            Ok(()) => Ok(workspace),
            Err(error) => Err(format!("cannot use the checkpoint folder: {error}")),
        },
    });
    environment.shared.enter("idle");
    let (job_id, spent) = (&ahead.job_id, (system::now() - since));
    let data_digest = workspace.as_ref().map_or([0; 32], |workspace| workspace.data_digest);
    let error = workspace.as_ref().err().cloned();
    match &error {
        None => tracing::info!("ready for a place of {job_id}, prepared in {:.0} ms", spent.as_secs_f64() * 1e3),
        Some(error) => tracing::warn!("cannot get ready for a place of {job_id}: {error}"),
    }
    let event = Event::WarmedUp { number: ahead.number, error, data_digest, unseen };
    emit(TrainerEvent { job_id: job_id.clone(), epoch: 0, event });
    workspace.ok()
}

fn prepare<D: Device + Clone>(
    device: &D,
    environment: &Environment,
    assignment: Assignment,
    fence: Fence,
    warm: Option<Workspace<D>>,
    emit: &Emit,
) -> Option<Job<D>> {
    environment.shared.enter(PREPARE);
    let (job_id, epoch) = (assignment.job_id.clone(), assignment.epoch);
    let event;
    let job = match Job::prepare(device, environment, assignment, fence, warm) {
        Ok(job) => {
            environment.shared.reset(job.committed);
            job.show_state(&environment.shared);
            event = job.report();
            Some(job)
        }
        Err(error) if error.is_over() => {
            environment.shared.enter("idle");
            return None;
        }
        Err(error) => {
            event = Event::Failed {
                fatal: error.is_fatal(),
                checkpoint: error.checkpoint(),
                restore: false,
                corrupt_ranks: Vec::new(),
                error: error.to_string(),
            };
            None
        }
    };
    environment.shared.enter("wait for start");
    emit(TrainerEvent { job_id, epoch, event });
    job
}

/// Connects, heals where the epoch asks for it, and makes steps until the job is finished, its epoch is over or a peer is lost.
fn train<D: Device + Clone>(
    job: &mut Job<D>,
    heal: Option<&HealPlan>,
    environment: &Environment,
    inbox: &mut Inbox,
    emit: &Emit,
) {
    let (job_id, epoch) = (job.assignment.job_id.clone(), job.assignment.epoch);
    let report = |event| emit(TrainerEvent { job_id: job_id.clone(), epoch, event });
    // T-10: before the first step. By now all have data and weights, so a job that cannot begin leaves no record behind.
    if let Err(error) = job.own_folder() {
        let (fatal, error) = (job.is_refused_by(&error), error.to_string());
        report(Event::Failed { error, fatal, checkpoint: None, restore: false, corrupt_ranks: Vec::new() });
        return environment.shared.enter("idle");
    }
    let mut links = job.links.take();
    let outcome = connect(job, heal, &mut links, environment).map_err(StepError::from).and_then(|()| {
        let links = links.as_mut().expect("connected above");
        report(Event::Connected);
        job.steps(links, heal, &environment.shared, inbox, emit)
    });
    if let Some(comm) = job.stage.device().comm() {
        comm.end();
    }
    // Connections to those who stay are kept for the next epoch.
    job.links = links;
    match outcome {
        Ok(()) => report(Event::Finished { step: job.committed }),
        Err(StepError::Comm(CommError::Fenced { .. })) | Err(StepError::Corrupt { seen: None, .. }) => {}
        Err(StepError::Comm(error @ (CommError::PeerLost { rank, .. } | CommError::Refused { rank, .. }))) => {
            report(Event::PeerLost { rank, error: error.to_string(), damaged: false });
        }
        Err(StepError::Comm(error @ CommError::Corrupt { rank, .. })) => {
            report(Event::PeerLost { rank, error: error.to_string(), damaged: true });
        }
        Err(StepError::Comm(CommError::Timeout { missing, .. })) => report(Event::Unreached(missing)),
        Err(error) => {
            let (restore, corrupt_ranks) = match &error {
                StepError::Corrupt { wrong, .. } => (wrong.is_empty(), wrong.iter().copied().collect()),
                StepError::Comm(_) => (false, Vec::new()),
            };
            let fatal = matches!(error, StepError::Comm(CommError::Collectives(_)));
            let error = error.to_string();
            report(Event::Failed { error, fatal, checkpoint: None, restore, corrupt_ranks });
        }
    }
    environment.shared.enter("idle");
}

fn connect<D: Device + Clone>(
    job: &Job<D>,
    heal: Option<&HealPlan>,
    links: &mut Option<Links>,
    environment: &Environment,
) -> Result<(), CommError> {
    environment.shared.enter("connect");
    let assignment = &job.assignment;
    let mut needed = peers_of(&assignment.spec.shape, assignment.rank);
    if let Some(origin) = heal.and_then(|h| h.origin.as_ref()) {
        needed.extend(resplit::peers(assignment, origin));
    }
    let plan = LinkPlan {
        job_id: assignment.job_id.clone(),
        epoch: assignment.epoch,
        rank: assignment.rank,
        key: assignment.link_key,
        peers: assignment.peers.iter().filter(|(r, _)| needed.contains(r)).map(|(r, p)| (*r, p.clone())).collect(),
    };
    let timeout = environment.shared.connect_limit().unwrap_or(environment.connect_timeout);
    let links = links.get_or_insert_with(|| Links::none(&job.fence));
    links.keep_at_most(memory::of_a_link(&assignment.spec, assignment.rank));
    environment.shared.set_waits_for(links.waits_for());
    links.advance(&environment.listener, plan, &job.fence, timeout)?;
    let comm = job.stage.device().comm();
    if let (Some(agreed), Some(comm)) = (agree(links, &assignment.spec.shape, comm)?, comm) {
        let (number, fence) = (assignment.epoch, job.fence.clone());
        comm.begin(agreed, Epoch { number, fence, waits_for: links.waits_for() })?;
    }
    if let Some(trace) = environment.shared.trace() {
        trace.begin(assignment.rank);
        links.set_trace(trace.clone());
    }
    Ok(())
}

impl<D: Device + Clone> Job<D> {
    fn steps(
        &mut self,
        links: &mut Links,
        heal: Option<&HealPlan>,
        shared: &Arc<Shared>,
        inbox: &mut Inbox,
        emit: &Emit,
    ) -> Result<(), StepError> {
        let total = self.assignment.spec.steps;
        if let Some(plan) = heal {
            self.heal(links, shared, plan, emit)?;
        }
        self.start_gather(links, shared)?;
        self.validate_if_due(links, shared, emit)?;
        (self.since, self.moved_since) = (system::now(), links.stats());
        while self.committed < total {
            self.serve(inbox, shared, emit)?;
            while !shared.begin_step(self.committed) {
                shared.enter("halt");
                inbox.wait_for(HALT_LOOK);
                self.serve(inbox, shared, emit)?;
            }
            let record = self.step(links, shared)?;
            self.show(shared, self.committed, Deed::Committed);
            self.show_state(shared);
            self.committed(record, shared, emit);
            self.start_gather(links, shared)?;
            if self.validate_if_due(links, shared, emit)? {
                (self.since, self.moved_since) = (system::now(), links.stats());
            }
        }
        // What others still wait for goes out before this place stops to call.
        self.finish_gather(links)?;
        if let Some(comm) = self.stage.device().comm() {
            comm.settle()?;
        }
        Ok(links.flush()?)
    }

    /// Says that a step is committed, and saves it where that was asked for.
    fn committed(&mut self, record: Option<StepRecord>, shared: &Shared, emit: &Emit) {
        let step = self.committed;
        let checkpoint = shared.commit(step);
        let record = record.map(Box::new);
        emit(self.assignment.event(Event::Committed { step, record }));
        if checkpoint {
            self.write_checkpoint(emit);
            shared.enter("checkpoint");
        }
    }

    /// Validates before the first step, after the last and at the interval; says whether it did.
    fn validate_if_due(&mut self, links: &mut Links, shared: &Shared, emit: &Emit) -> Result<bool, CommError> {
        let (step, spec) = (self.committed, &self.assignment.spec);
        let interval = spec.eval.interval;
        let is_due = step == 0 || step == spec.steps || (interval > 0 && step.is_multiple_of(interval));
        // A step that a resumed job starts from was validated by the job that made it.
        let is_new = self.validated != Some(step) && self.start_step != Some(step);
        if is_due && is_new {
            self.validate(links, shared, emit)?;
            self.validated = Some(step);
        }
        Ok(is_due && is_new)
    }

    /// Does what the session asks for between two steps.
    fn serve(&mut self, inbox: &mut Inbox, shared: &Arc<Shared>, emit: &Emit) -> Result<(), CommError> {
        let epoch = self.assignment.epoch;
        self.fence.check(epoch)?;
        loop {
            match inbox.try_next() {
                Ok(Order::Command(Command::Publish { epoch: e, step, files, remove })) if e == epoch => {
                    self.publish(step, files, remove, shared, emit);
                }
                Ok(Order::Command(Command::Checkpoint { epoch: e, step })) if e == epoch => {
                    self.write_checkpoint_of(step, emit)
                }
                Ok(Order::Command(Command::DropShard { epoch: e, step })) if e == epoch => self.drop_shard(step),
                Ok(Order::Command(Command::Report { epoch: e, from })) if e == epoch => self.report_since(from, emit),
                Ok(Order::Command(
                    Command::Publish { .. }
                    | Command::Checkpoint { .. }
                    | Command::DropShard { .. }
                    | Command::Report { .. }
                    | Command::Start { .. }
                    | Command::WarmUp(_),
                )) => {}
                Ok(later @ (Order::Prepare(..) | Order::Command(Command::Drop { .. }))) => {
                    inbox.put_back = Some(later);
                    return Err(CommError::Fenced { epoch, raised: self.fence.epoch() });
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(CommError::Fenced { epoch, raised: u64::MAX }),
            }
        }
    }
}
