//! What goes into the machine and comes out of it.

use std::collections::BTreeSet;

use super::access::{AccessError, NewToken, Token};
use super::record::{Event, FORMAT, Record};
use toroid_proto as proto;
use toroid_proto::StepRecord;
use toroid_torus::ids::{JobId, Step, Term, WorkerId};
use toroid_torus::job::JobError;
use toroid_torus::owner::OwnerId;

/// A worker's stream; the driver never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// A user's request that waits for its reply; the driver never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names of jobs and workers are what users gave: there need not be such.
#[derive(Debug, Clone)]
pub enum Input {
    /// `owner` is random: the job's own for life.
    Submit {
        request: RequestId,
        submission: Submission,
        owner: OwnerId,
    },
    Cancel {
        request: RequestId,
        job: String,
    },
    Checkpoint {
        request: RequestId,
        job: String,
    },
    /// The checkpoint of this step is not removed until it is unpinned.
    Pin {
        request: RequestId,
        job: String,
        step: Step,
    },
    Unpin {
        request: RequestId,
        job: String,
        step: Step,
    },
    /// A job that waits for a checkpoint that can be read tries again, or begins from scratch. One that has ended goes on from its newest
    /// checkpoint, up to `steps` in all; `None`: as many as before.
    Resume {
        request: RequestId,
        job: String,
        from_scratch: bool,
        steps: Option<u64>,
    },
    /// The job is given no places until it is released.
    Hold {
        request: RequestId,
        job: String,
    },
    Release {
        request: RequestId,
        job: String,
    },
    /// The worker of this id, or every worker of this host, is given no place any more.
    Cordon {
        request: RequestId,
        who: Who,
        reason: String,
    },
    Uncordon {
        request: RequestId,
        who: Who,
    },
    /// The worker is to have no place any more.
    Drain {
        request: RequestId,
        worker: String,
    },
    /// The worker is not to be put aside any longer.
    Readmit {
        request: RequestId,
        worker: String,
    },
    CreateToken {
        request: RequestId,
        new: NewToken,
    },
    RevokeToken {
        request: RequestId,
        id: String,
    },
    /// Nobody has the worker id any more.
    ForgetWorker {
        request: RequestId,
        worker: String,
    },
    /// From a worker. The first on a stream must be `Register`.
    Message {
        stream: StreamId,
        body: Box<proto::worker_message::Body>,
    },
    /// The stream ended, by whomever. After [`Output::Close`] it need not be said.
    Closed {
        stream: StreamId,
        reason: String,
    },
    /// A job that has ended is not to be kept any longer.
    Remove {
        request: RequestId,
        job: String,
    },
    /// Folders that are in the jobs' folder: ids of new jobs are others.
    Folders {
        names: BTreeSet<String>,
    },
    /// Something happened to a job's files: it becomes an event.
    Note {
        job: JobId,
        kind: &'static str,
        text: String,
    },
    /// A job's files are such that it cannot go on.
    Fault {
        job: JobId,
        reason: String,
    },
    /// The time of [`crate::Machine::poll_timeout`] came. Only this makes deadlines pass.
    Tick,
}

/// Whom a cordon is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Whatever process has this id.
    Worker(String),
    /// Whatever worker is there, also one that comes later under another id.
    Host(String),
}

impl Who {
    pub fn name(&self) -> &str {
        match self {
            Who::Worker(name) | Who::Host(name) => name,
        }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::Worker(id) => write!(f, "`{id}`"),
            Who::Host(host) => write!(f, "the host `{host}`"),
        }
    }
}

/// What one decision changes in the store: all of it or nothing is durable.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// Each replaces the one with its key.
    pub put: Vec<Record>,
    /// Keys of records that are dropped; none is that of a record in `put`.
    pub remove: Vec<String>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

/// What a user submits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Submission {
    /// The job file.
    pub toml: String,
    /// Whose quota the job counts against; empty: nobody's.
    pub user: String,
    /// Instead of that of the job file.
    pub priority: Option<i32>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Make durable, all or nothing, before what follows is done.
    Persist(Change),
    /// Make the job's folder and write its job file.
    CreateFolder {
        job: JobId,
        toml: String,
    },
    /// Make durable before what follows is done.
    AppendCurve {
        job: JobId,
        record: Box<StepRecord>,
    },
    /// Of these steps nobody has the figures any more: make rows durable that say so before what follows is done.
    AppendGap {
        job: JobId,
        from_step: Step,
        through_step: Step,
    },
    /// Drop the steps after `keep` from the curve.
    CutCurve {
        job: JobId,
        keep: Step,
    },
    Send {
        stream: StreamId,
        message: Box<proto::CoordinatorMessage>,
    },
    Close {
        stream: StreamId,
        reason: String,
    },
    Reply {
        request: RequestId,
        reply: Result<Reply, RequestError>,
    },
    /// For the log; it is in the job's record as well.
    Event {
        job: JobId,
        event: Event,
    },
    /// A worker has heard a greater term of this store than this coordinator leads with: lead anew, with one beyond it (T-13).
    LeadAnew {
        beyond: Term,
        reason: String,
    },
    /// The job is not kept any longer; its records went with what was persisted. Its folder stays.
    Forget {
        job: JobId,
        reason: String,
    },
    /// Whoever watches the job may want to look.
    Changed {
        job: JobId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Submitted {
        job: JobId,
    },
    Cancelled {
        job: JobId,
    },
    Checkpoint {
        step: Step,
    },
    /// Where the checkpoint is.
    Pinned {
        path: String,
    },
    /// `stays`: it is kept without a pin, too, until newer ones come.
    Unpinned {
        stays: bool,
    },
    Resumed {
        job: JobId,
    },
    Held {
        job: JobId,
    },
    Released {
        job: JobId,
    },
    /// Those that have places still, and in which job: of a host there may be several.
    Cordoned {
        placed: Vec<(WorkerId, JobId)>,
    },
    /// Why it was cordoned; may be empty.
    Uncordoned {
        reason: String,
    },
    /// `job` is empty where the worker was a spare, `replacement` where the move waits for another that is not healed yet.
    Drained {
        job: JobId,
        replacement: WorkerId,
    },
    /// Made or revoked.
    Token(Box<Token>),
    Forgotten {
        worker: WorkerId,
    },
    Removed {
        job: JobId,
        folder: String,
    },
    /// Why it was put aside.
    Readmitted {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Invalid(#[from] JobError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("there is no job `{job}`; {known}")]
    UnknownJob { job: JobId, known: String },
    #[error("no worker `{worker}` is connected; {known}")]
    UnknownWorker { worker: WorkerId, known: String },
    #[error(
        "checkpoint.path = \"{path}\" is where {job} keeps its checkpoints, and it has not ended; give this job another folder, and to go \
         on from a checkpoint of {job} name it with resume_from = \"{path}/step-<n>\""
    )]
    Folder { path: String, job: JobId },
    #[error("{job} has no checkpoint of step {step}; {known}")]
    UnknownCheckpoint { job: JobId, step: Step, known: String },
    #[error("the checkpoint of step {step} of {job} cannot be pinned: it is being removed")]
    Removed { job: JobId, step: Step },
    #[error("no checkpoint of step {step} of {job} is pinned; {pinned}")]
    NotPinned { job: JobId, step: Step, pinned: String },
    #[error(
        "{job} has {max} checkpoints that are pinned, and may have no more; unpin some (`toroid checkpoint unpin {job} STEP`)"
    )]
    Pins { job: JobId, max: usize },
    #[error("`{worker}` is not put aside; {aside}")]
    NotAside { worker: WorkerId, aside: String },
    #[error(
        "`{worker}` is not put aside, it was drained or computed wrongly: this process gets no place any more; start it again"
    )]
    Retired { worker: WorkerId },
    #[error("{who} is not cordoned; {cordoned}")]
    NotCordoned { who: Who, cordoned: String },
    #[error("{max} are cordoned already, and no more are kept; uncordon those that are gone for good")]
    Cordons { max: usize },
    #[error("the name of a worker or a host has {num_bytes} bytes; expected 1 to {max}, as `toroid workers` lists it")]
    WorkerId { num_bytes: usize, max: usize },
    #[error("the user `{found}` is not possible; expected at most {max} letters, digits and `-`, `_`, `.`, `@`")]
    User { found: String, max: usize },
    #[error(
        "the job needs {needs} workers and the quota of the user `{user}` is {quota}; ask for a smaller shape, or whoever runs the coordinator for \
         a larger quota (--quota {user}={needs})"
    )]
    Quota { user: String, needs: usize, quota: usize },
    #[error(
        "{user} has {max} jobs that have not ended, and may have no more; wait for one to end or cancel one, or ask whoever runs the coordinator for \
         more (--max-jobs-per-user)"
    )]
    TooManyJobs { user: String, max: usize },
    #[error(
        "{job} cannot be resumed up to step {steps}: its newest checkpoint is of step {saved}; give more with --steps, or begin again with \
         --from-scratch"
    )]
    Steps { job: JobId, steps: u64, saved: u64 },
    #[error("{worker} cannot be drained: {reason}")]
    Drain { worker: WorkerId, reason: String },
    #[error("{job} cannot be {what}: it is {state} ({reason})")]
    State { job: JobId, what: &'static str, state: &'static str, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "the store has records of format {found}, this coordinator reads format {FORMAT}; start the version of Toroid that wrote them, or a newer one"
    )]
    Format { found: u32 },
    #[error(
        "the store has jobs but no meta record; it is damaged: restore it from a copy or start with another folder"
    )]
    NoMeta,
}
