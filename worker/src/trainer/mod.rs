//! The training thread of a worker: prepares a place, connects it to its peers and makes steps.
//!
//! ```text
//!  session --Command--> trainer thread --TrainerEvent--> session
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
mod overlap;
mod prepare;
mod replay;
mod resplit;
mod save;
mod shared;
mod step;
#[cfg(test)]
mod tests;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use toroid_proto::{Inputs, StepRecord, Validation};
use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::ShardFile;
use toroid_torus::owner::Owner;
use toroid_torus::resplit::Origin;

use crate::checkpoint::{Claim, ReadFault};
use crate::comm::nccl::{Epoch, agree};
use crate::comm::{CommError, Fence, LinkPlan, Links, Listener, Missing, PeerAddr, peers_of};
use crate::device::Device;
use crate::lock;

pub use prepare::{Job, PrepareError};
pub use shared::{Computed, Requested, Shared, Then};

use workspace::Workspace;

/// A place in a job, checked.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub job_id: String,
    pub epoch: u64,
    pub rank: usize,
    /// Its shape is that of this epoch, which may have fewer replicas than the job file asks for.
    pub spec: Arc<JobSpec>,
    /// Every rank, this one included.
    pub peers: BTreeMap<usize, PeerAddr>,
    pub link_key: [u8; 32],
    /// Folder or URL that holds `step-<n>`.
    pub checkpoint_root: String,
    /// This job, as the record in the folder names it.
    pub owner: Owner,
    pub claim: Claim,
    /// `None`: initial weights, or what `spec.resume_from` names.
    pub restore_step: Option<u64>,
    /// Who has the job's state keeps it, who has not gets it from the other holders.
    pub heal: bool,
}

/// What the coordinator decided from the reports of a healing epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealPlan {
    /// All go on from here.
    pub step: u64,
    /// A rank that has committed it.
    pub source: usize,
    /// Ranks that have no state.
    pub newcomers: BTreeSet<usize>,
    /// The state is split anew, from this; `None`: every rank has its own shards already, or is a newcomer.
    pub origin: Option<Origin>,
    /// The coordinator has the records up to here.
    pub recorded: u64,
}

/// Two shards, as the place of a rank in a shape has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldAs {
    pub shape: Shape,
    pub rank: usize,
}

impl Assignment {
    pub fn place(&self) -> Place {
        self.spec.shape.place(self.rank)
    }

    /// How the shards of this place are to be split.
    pub fn held_as(&self) -> HeldAs {
        HeldAs { shape: self.spec.shape, rank: self.rank }
    }

    /// Of this job and epoch.
    pub fn event(&self, event: Event) -> TrainerEvent {
        TrainerEvent { job_id: self.job_id.clone(), epoch: self.epoch, event }
    }
}

/// What a spare is to be ready for.
#[derive(Debug, Clone)]
pub struct WarmUp {
    pub job_id: String,
    pub spec: Arc<JobSpec>,
    /// A place like this one, most likely: of the same tp_rank and stage.
    pub rank: usize,
    pub checkpoint_root: String,
    /// For the answer.
    pub number: u64,
    /// A checkpoint of the job, which is to be seen.
    pub checkpoint_step: Option<u64>,
}

/// What the session tells the trainer.
#[derive(Debug)]
pub enum Command {
    /// With the fence of its job.
    Prepare(Box<Assignment>, Fence),
    /// A spare: make a workspace for a place of this job, which may become its own.
    WarmUp(Box<WarmUp>),
    /// All places of the epoch are prepared.
    Start { epoch: u64, heal: Option<HealPlan> },
    /// Write the state of `step`, if it still is that step's: the last step's checkpoint is asked for again when it failed.
    Checkpoint { epoch: u64, step: u64 },
    /// Rank 0: all shards of the step are durable; write its manifest, then remove older checkpoints.
    Publish { epoch: u64, step: u64, files: Vec<ShardFile>, remove: Vec<u64> },
    /// The checkpoint of this step has failed: take away what this place has written of it.
    DropShard { epoch: u64, step: u64 },
    /// Rank 0: say the records from this step on again.
    Report { epoch: u64, from: u64 },
    /// Drop the job of this epoch or older.
    Drop { epoch: u64 },
}

/// What the trainer reports. Everything carries the job and the epoch it belongs to: another job may be in the same epoch.
#[derive(Debug)]
pub struct TrainerEvent {
    pub job_id: String,
    pub epoch: u64,
    pub event: Event,
}

#[derive(Debug)]
pub enum Event {
    Prepared {
        committed_step: u64,
        /// None: a newcomer. Two, the older first, while not all are known to have split the state anew.
        held: Vec<HeldAs>,
        sealed_next: bool,
        /// It has the global sums from this step to the committed one.
        sums_from: u64,
        data_digest: [u8; 32],
        num_samples: u64,
        num_params: u64,
        inputs: Box<Inputs>,
    },
    Connected,
    /// With the record of the step at rank 0.
    Committed {
        step: u64,
        record: Option<Box<StepRecord>>,
    },
    /// At rank 0: nobody has the figures of these steps any more.
    RecordsMissing {
        from: u64,
        through: u64,
    },
    Validated(Validation),
    ShardWritten {
        step: u64,
        file: Box<ShardFile>,
        write_s: f64,
    },
    /// `error` is empty where the request came too late.
    CheckpointFailed {
        step: u64,
        error: String,
    },
    Published {
        step: u64,
        bytes: u64,
        path: String,
    },
    PublishFailed {
        step: u64,
        error: String,
    },
    /// What came of the removals that were ordered with the publishing of `step`; one that is in neither list was not tried.
    Removed {
        step: u64,
        removed: Vec<u64>,
        /// With why they stay.
        kept: Vec<(u64, String)>,
    },
    Finished {
        step: u64,
    },
    /// `damaged`: what came from there was not what was sent.
    PeerLost {
        rank: usize,
        error: String,
        damaged: bool,
    },
    /// Not all links of the epoch were up in time.
    Unreached(Vec<Missing>),
    /// What became of a [`Command::WarmUp`]: why this worker cannot fill a place, or nothing.
    WarmedUp {
        number: u64,
        error: Option<String>,
        data_digest: [u8; 32],
        /// Why it does not see the checkpoint that the job has.
        unseen: Option<String>,
    },
    /// `fatal`: every other worker would fail in the same way. `checkpoint`: it could not be loaded. `restore`: the
    /// state of this epoch is not to be trusted. `corrupt_ranks`: these hold a wrong copy of a shard, whose other copy is right.
    Failed {
        error: String,
        fatal: bool,
        checkpoint: Option<BadCheckpoint>,
        restore: bool,
        corrupt_ranks: Vec<usize>,
    },
}

/// A checkpoint of this job that could not be loaded, and what that says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCheckpoint {
    pub step: u64,
    pub fault: ReadFault,
}

/// What the trainer does while it reads data and makes or loads its state; the coordinator knows this word and the next.
const PREPARE: &str = "prepare";
/// Another process of this host makes the token file that it needs.
const WAIT_FOR_TOKENS: &str = "wait for token file";

/// Takes the trainer's events, from any thread.
pub type Emit = Arc<dyn Fn(TrainerEvent) + Send + Sync>;

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

/// The commands, with one that was taken too early put back.
struct Inbox {
    commands: Receiver<Command>,
    put_back: Option<Command>,
}

impl Inbox {
    fn wait(&mut self) -> Option<Command> {
        self.put_back.take().or_else(|| self.commands.recv().ok())
    }

    /// Waits for the next command for a while, and keeps it.
    fn wait_for(&mut self, time: Duration) {
        if self.put_back.is_none() {
            self.put_back = self.commands.recv_timeout(time).ok();
        }
    }

    fn try_next(&mut self) -> Result<Command, TryRecvError> {
        self.put_back.take().map_or_else(|| self.commands.try_recv(), Ok)
    }
}

/// Whoever halts looks this often whether it may go on.
const HALT_LOOK: Duration = Duration::from_millis(10);

/// Runs until the command channel closes. `emit` is called from this thread and, for checkpoints, from the threads of `save`.
pub fn run<D: Device + Clone>(device: &D, environment: &Environment, commands: Receiver<Command>, emit: &Emit) {
    let mut inbox = Inbox { commands, put_back: None };
    let mut job: Option<Job<D>> = None;
    let mut warm: Option<Workspace<D>> = None;
    while let Some(command) = inbox.wait() {
        match command {
            Command::Prepare(assignment, fence) => {
                let survivor = job.take().filter(|j| j.can_heal(&assignment));
                job = match survivor {
                    Some(survivor) => Some(survivor.rejoin(*assignment, &environment.shared, emit)),
                    None => prepare(device, environment, *assignment, fence, warm.take(), emit),
                };
            }
            Command::WarmUp(ahead) => {
                if job.is_none() {
                    warm = warm_up(device, environment, &ahead, warm.take(), emit);
                }
            }
            Command::Start { epoch, heal } => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    train(running, heal.as_ref(), environment, &mut inbox, emit);
                }
            }
            Command::Publish { epoch, step, files, remove } => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.publish(step, files, remove, &environment.shared, emit);
                }
            }
            Command::Report { epoch, from } => {
                if let Some(running) = job.as_ref().filter(|j| j.assignment.epoch == epoch) {
                    running.report_since(from, emit);
                }
            }
            Command::Checkpoint { epoch, step } => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.write_checkpoint_of(step, emit);
                }
            }
            Command::DropShard { epoch, step } => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.drop_shard(step);
                }
            }
            Command::Drop { epoch } => job = job.filter(|j| j.assignment.epoch > epoch),
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
    let since = std::time::Instant::now();
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
    let (job_id, spent) = (&ahead.job_id, since.elapsed());
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
        (self.since, self.moved_since) = (std::time::Instant::now(), links.stats());
        while self.committed < total {
            self.serve(inbox, shared, emit)?;
            while !shared.begin_step(self.committed) {
                shared.enter("halt");
                inbox.wait_for(HALT_LOOK);
                self.serve(inbox, shared, emit)?;
            }
            let record = self.step(links, shared)?;
            self.committed(record, shared, emit);
            self.start_gather(links, shared)?;
            if self.validate_if_due(links, shared, emit)? {
                (self.since, self.moved_since) = (std::time::Instant::now(), links.stats());
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
                Ok(Command::Publish { epoch: e, step, files, remove }) if e == epoch => {
                    self.publish(step, files, remove, shared, emit);
                }
                Ok(Command::Checkpoint { epoch: e, step }) if e == epoch => self.write_checkpoint_of(step, emit),
                Ok(Command::DropShard { epoch: e, step }) if e == epoch => self.drop_shard(step),
                Ok(Command::Report { epoch: e, from }) if e == epoch => self.report_since(from, emit),
                Ok(
                    Command::Publish { .. }
                    | Command::Checkpoint { .. }
                    | Command::DropShard { .. }
                    | Command::Report { .. }
                    | Command::Start { .. }
                    | Command::WarmUp(_),
                ) => {}
                Ok(later @ (Command::Prepare(..) | Command::Drop { .. })) => {
                    inbox.put_back = Some(later);
                    return Err(CommError::Fenced { epoch, raised: self.fence.epoch() });
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(CommError::Fenced { epoch, raised: u64::MAX }),
            }
        }
    }
}
