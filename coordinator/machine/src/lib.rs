//! The coordinator's decisions, as a pure state machine: an input and the time in, outputs in order out.
//!
//! ```text
//!   users    Submit, Cancel, Checkpoint, ┐                   ┌─ Persist     records, one transaction, always first
//!            Drain                       │                   │
//!   workers  Message, Closed ────────────┼─> Machine::handle ┼─ AppendCurve, AppendGap, CutCurve, CreateFolder
//!   clock    Tick (at poll_timeout) ─────┘                   └─ Send, Close, Reply, Event, Changed
//!
//!   queued ──> starting ──> running ──> done            any of them ──> failed, cancelled
//!                 │  ^         │
//!                 v  └─────────v        a place was lost or is to be moved: the next epoch heals what is missing from the
//!       recovering, draining <─┘        other holders, or the job waits for a worker, or it restores a checkpoint
//!                 └─────────> degraded: as running, with fewer replicas than asked for ([`resize`])
//! ```
//!
//! An epoch begins with `Assign` to all places (the fence); when all have reported what they hold (`Prepared`), the step that all go
//! on from is known, and `Start` goes to all. Invariants kept here:
//!
//! - **T-1** A message counts only if it comes from the worker of a place, about this job and its present epoch.
//! - **T-2, T-3** A healing epoch goes on from the highest step that a place has committed, and who has sealed it follows
//!   ([`recovery::resume`]). State is given up only where both holders of a shard are gone, or where it is not to be trusted. A step
//!   that nobody but the dead had committed is made again, to the bit.
//! - **T-4, T-12** A record is taken only after the one before it, and the figures of a step are given up only where rank 0 says that
//!   no place has them; then the curve says so.
//! - **T-6** A checkpoint is recorded only after all its shards were reported in one epoch and rank 0 has published the manifest,
//!   and not before the curve is durable up to its step: a restore never leaves a hole in the curve.
//! - **T-7** Survivors keep their places while the shape is the same: [`recovery::decide`] fills only the empty ones.
//! - **T-8** Epochs only grow. Whatever an input changes is one [`Output::Persist`], before all other outputs of that input.
//! - **T-9** After a restart nothing is taken from a worker that says it goes on with its place, be it in an epoch that is older by
//!   what the coordinator had stored and not said.
//!
//! The worker's side of it: between `Register` and `Welcome` it says nothing. After a `Welcome` with `keep_going` it first says
//! again what it had said in its epoch and what may have been lost (unacknowledged `StepReport`s in order, `Prepared`,
//! `ShardWritten`, `ManifestPublished`, `Finished`, a `PeerLost` that still holds), and it takes a repeated `Start`, `CheckpointAt`
//! or `PublishManifest` as the same one. Here repetitions of all of these change nothing.
//!
//! Deliberately absent: tokio, sockets, files, clocks, random sources, `HashMap`. Also absent: step records, which are in the
//! curve's file, and anything about how workers compute.

mod checkpoint;
pub mod clock;
mod crashes;
mod drain;
mod epoch;
mod failures;
mod fitness;
pub mod hang;
mod incident;
mod job;
mod leave;
mod limits;
mod loopback;
mod membership;
mod pool;
mod progress;
mod reach;
pub mod record;
pub mod recovery;
mod resize;
mod restore;
mod retention;
pub mod straggler;
mod unsaved;
mod view;
mod warm;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toroid_proto as proto;
use toroid_proto::StepRecord;
use toroid_torus::failpoint;
use toroid_torus::job::{self as job_file, JobError, JobSpec};
use toroid_torus::owner::OwnerId;

use clock::Boot;
use job::Job;
pub use limits::Limits;
use pool::Pool;
pub use progress::{Progress, StepSummary, missing_record};
use record::{FORMAT, Incident, JobRecord, Meta, Record, SeenBy, State};
pub use retention::Retention;

/// A moment: monotonic for deadlines and durations, and by the calendar for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub monotonic: Duration,
    pub unix_ms: i64,
    /// The monotonic clock: durations over restarts are by it while it is the same one.
    pub boot: Boot,
}

/// A worker's stream; the driver never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// A user's request that waits for its reply; the driver never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the jobs' folders, as workers and users see it.
    pub jobs_dir: String,
    pub limits: Limits,
    pub retention: Retention,
    /// What workers must show; `None`: nothing.
    pub join_token: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Input {
    /// `owner` is random: the job's own for life.
    Submit {
        request: RequestId,
        toml: String,
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
    /// A job that waits for a checkpoint that can be read tries again, or begins from scratch.
    Resume {
        request: RequestId,
        job: String,
        from_scratch: bool,
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
        job: String,
        kind: &'static str,
        text: String,
    },
    /// A job's files are such that it cannot go on.
    Fault {
        job: String,
        reason: String,
    },
    /// The time of [`Machine::poll_timeout`] came. Only this makes deadlines pass.
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Make durable, all or nothing, before what follows is done.
    Persist(Vec<Record>),
    /// Make the job's folder and write its job file.
    CreateFolder {
        job: String,
        toml: String,
    },
    /// Make durable before what follows is done.
    AppendCurve {
        job: String,
        record: Box<StepRecord>,
    },
    /// Of these steps nobody has the figures any more: make rows durable that say so before what follows is done.
    AppendGap {
        job: String,
        from_step: u64,
        through_step: u64,
    },
    /// Drop the steps after `keep` from the curve.
    CutCurve {
        job: String,
        keep: u64,
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
        job: String,
        event: record::Event,
    },
    /// The job is not kept any longer: drop the records with these keys, all or none. Its folder stays.
    Forget {
        job: String,
        keys: Vec<String>,
        reason: String,
    },
    /// Whoever watches the job may want to look.
    Changed {
        job: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Submitted {
        job: String,
    },
    Cancelled {
        job: String,
    },
    Checkpoint {
        step: u64,
    },
    Resumed {
        job: String,
    },
    /// `job` is empty where the worker was a spare, `replacement` where the move waits for another that is not healed yet.
    Drained {
        job: String,
        replacement: String,
    },
    Removed {
        job: String,
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
    #[error("there is no job `{job}`; {known}")]
    UnknownJob { job: String, known: String },
    #[error("no worker `{worker}` is connected; {known}")]
    UnknownWorker { worker: String, known: String },
    #[error(
        "checkpoint.path = \"{path}\" is where {job} keeps its checkpoints, and it has not ended; give this job another folder, and to go \
         on from a checkpoint of {job} name it with resume_from = \"{path}/step-<n>\""
    )]
    Folder { path: String, job: String },
    #[error("`{worker}` is not put aside; {aside}")]
    NotAside { worker: String, aside: String },
    #[error(
        "`{worker}` is not put aside, it was drained or computed wrongly: this process gets no place any more; start it again"
    )]
    Retired { worker: String },
    #[error("{worker} cannot be drained: {reason}")]
    Drain { worker: String, reason: String },
    #[error("{job} cannot be {what}: it is {state} ({reason})")]
    State { job: String, what: &'static str, state: &'static str, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "the store has records of format {found}, this coordinator reads format {FORMAT}; start the version of Toroid that wrote them"
    )]
    Format { found: u32 },
    #[error(
        "the store has jobs but no meta record; it is damaged: restore it from a copy or start with another folder"
    )]
    NoMeta,
}

/// What an input leads to, collected until all of it is known.
#[derive(Debug, Default)]
struct Outbox {
    effects: Vec<Output>,
    dirty: BTreeSet<String>,
    dirty_meta: bool,
    /// By job and number.
    dirty_incidents: BTreeSet<(String, u64)>,
    changed: BTreeSet<String>,
    /// Workers or jobs came or went: look whether a place can be filled.
    unsettled: bool,
}

impl Outbox {
    fn send(&mut self, stream: StreamId, body: proto::coordinator_message::Body) {
        let message = Box::new(proto::CoordinatorMessage { body: Some(body) });
        self.effects.push(Output::Send { stream, message });
    }

    fn reply(&mut self, request: RequestId, reply: Result<Reply, RequestError>) {
        self.effects.push(Output::Reply { request, reply });
    }

    fn close(&mut self, stream: StreamId, reason: impl Into<String>) {
        self.effects.push(Output::Close { stream, reason: reason.into() });
    }
}

/// What a job may look at and act on while it handles something.
struct Context<'a> {
    pool: &'a mut Pool,
    out: &'a mut Outbox,
    config: &'a Config,
    secret: &'a [u8; 32],
    now: Now,
}

#[derive(Debug)]
pub struct Machine {
    config: Config,
    meta: Meta,
    jobs: BTreeMap<String, Job>,
    pool: Pool,
    out: Outbox,
    /// Messages that were not taken because of T-1.
    num_stale: u64,
    /// Number of the next question to a spare. Answers to those of a coordinator before this one are none of its numbers.
    next_probe: u64,
}

impl Machine {
    /// A machine that goes on from `records`. `curves` has the curve of each job, as far as it is durable; `entropy` becomes the
    /// secret of a new store. The outputs are to be executed like those of an input.
    pub fn restore(
        config: Config,
        records: Vec<Record>,
        mut curves: BTreeMap<String, Vec<StepSummary>>,
        entropy: [u8; 32],
        now: Now,
    ) -> Result<(Machine, Vec<Output>), RestoreError> {
        let mut meta = None;
        let mut jobs: Vec<JobRecord> = Vec::new();
        let mut incidents: BTreeMap<String, Vec<Incident>> = BTreeMap::new();
        for record in records {
            match record {
                Record::Meta(found) if found.format != FORMAT => {
                    return Err(RestoreError::Format { found: found.format });
                }
                Record::Meta(found) => meta = Some(found),
                Record::Job(job) => jobs.push(*job),
                Record::Incident(incident) => incidents.entry(incident.job.clone()).or_default().push(*incident),
            }
        }
        let mut out = Outbox::default();
        if meta.is_none() && !jobs.is_empty() {
            return Err(RestoreError::NoMeta);
        }
        let meta = meta.unwrap_or_else(|| {
            out.dirty_meta = true;
            Meta { format: FORMAT, secret: entropy, num_jobs: BTreeMap::new(), retired: BTreeMap::new() }
        });
        let pool = Pool::restore(meta.retired.clone());
        let mut machine =
            Machine { config, meta, jobs: BTreeMap::new(), pool, out, num_stale: 0, next_probe: first_probe(now) };
        for record in jobs {
            let id = record.id.clone();
            let steps = curves.remove(&id).unwrap_or_default();
            let (_, mut context) = machine.split(now);
            let job = Job::restore(record, incidents.remove(&id).unwrap_or_default(), steps, &mut context);
            machine.jobs.insert(id, job);
        }
        let outputs = machine.settle(now);
        Ok((machine, outputs))
    }

    /// Handles one input. Time never goes back.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Output> {
        match input {
            Input::Submit { request, toml, owner } => self.submit(request, &toml, owner, now),
            Input::Cancel { request, job } => self.cancel(request, &job, now),
            Input::Checkpoint { request, job } => self.request_checkpoint(request, &job, now),
            Input::Resume { request, job, from_scratch } => self.resume_job(request, &job, from_scratch, now),
            Input::Drain { request, worker } => self.drain(request, &worker, now),
            Input::Remove { request, job } => self.remove(request, &job),
            Input::Folders { names } => self.skip_folders(&names),
            Input::Note { .. } | Input::Fault { .. } => self.note(input, now),
            Input::Readmit { request, worker } => self.readmit(request, &worker),
            Input::Message { stream, body } => self.message(stream, *body, now),
            Input::Closed { stream, reason } => self.disconnected(stream, SeenBy::StreamClosed, &reason, now),
            Input::Tick => self.tick(now),
        }
        self.settle(now)
    }

    pub fn limits(&self) -> Limits {
        self.config.limits
    }

    /// When the next deadline passes, by [`Now::monotonic`]; `None` while nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let silence = self.config.limits.failure_timeout;
        let workers = self.pool.iter().map(|w| w.last_heard + silence);
        let jobs = self.jobs.values().filter_map(Job::poll_timeout);
        workers.chain(jobs).chain(self.pool.next_return()).chain(self.pool.next_probe_end()).min()
    }

    /// Messages of older epochs, or from workers without that place, that were dropped (T-1).
    pub fn num_stale(&self) -> u64 {
        self.num_stale
    }

    pub fn record(&self, job: &str) -> Option<&JobRecord> {
        self.jobs.get(job).map(|j| &j.record)
    }

    pub fn jobs(&self) -> impl Iterator<Item = &JobRecord> {
        self.jobs.values().map(|j| &j.record)
    }

    /// The error for a job that is not there.
    pub fn unknown(&self, job: &str) -> RequestError {
        const MAX_NAMED: usize = 10;
        let mut ids: Vec<(u64, &str)> = self.jobs().map(|j| (j.number, j.id.as_str())).collect();
        ids.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        let named: Vec<&str> = ids.iter().take(MAX_NAMED).map(|(_, id)| *id).collect();
        let known = match ids.len() {
            0 => "no job was submitted yet".into(),
            n if n > MAX_NAMED => format!("the newest of {n} are {}", named.join(", ")),
            _ => format!("there are {}", named.join(", ")),
        };
        RequestError::UnknownJob { job: job.into(), known }
    }

    fn split(&mut self, now: Now) -> (&mut BTreeMap<String, Job>, Context<'_>) {
        let Machine { config, meta, jobs, pool, out, .. } = self;
        (jobs, Context { pool, out, config, secret: &meta.secret, now })
    }

    fn submit(&mut self, request: RequestId, toml: &str, owner: OwnerId, now: Now) {
        let spec = match job_file::parse(toml) {
            Ok(spec) => spec,
            Err(error) => return self.out.reply(request, Err(error.into())),
        };
        if let Some(other) = self.keeper_of(&spec) {
            let path = spec.checkpoint.path.unwrap_or_default();
            return self.out.reply(request, Err(RequestError::Folder { path, job: other.id.clone() }));
        }
        let slug = slug(&spec.name);
        let count = self.meta.num_jobs.entry(slug.clone()).or_insert(0);
        *count += 1;
        let id = format!("{slug}-{count}");
        let number = self.meta.num_jobs.values().sum();
        self.out.dirty_meta = true;
        self.out.unsettled = true;
        self.out.effects.push(Output::CreateFolder { job: id.clone(), toml: spec.to_toml() });
        let (jobs, mut context) = self.split(now);
        let job = Job::submit(id.clone(), number, owner, spec, &mut context);
        jobs.insert(id.clone(), job);
        self.out.reply(request, Ok(Reply::Submitted { job: id }));
    }

    /// The job that has not ended and keeps its checkpoints where `spec` wants to keep its own (T-10). What ended jobs have left, and what other
    /// coordinators do, shows in the folder.
    fn keeper_of(&self, spec: &JobSpec) -> Option<&JobRecord> {
        let wanted = view::folder_of(spec.checkpoint.path.as_deref()?);
        let has_it = |job: &&JobRecord| view::folder_of(&view::checkpoint_root(job, &self.config.jobs_dir)) == wanted;
        self.jobs().filter(|job| !job.state.is_ended()).find(has_it)
    }

    fn cancel(&mut self, request: RequestId, id: &str, now: Now) {
        let (jobs, mut context) = self.split(now);
        let Some(job) = jobs.get_mut(id) else {
            let error = self.unknown(id);
            return self.out.reply(request, Err(error));
        };
        let reply = match job.record.state {
            State::Cancelled => Ok(Reply::Cancelled { job: id.into() }),
            state if state.is_ended() => Err(job.refuse("cancelled")),
            _ => {
                job.end(&mut context, State::Cancelled, "cancelled by a user");
                Ok(Reply::Cancelled { job: id.into() })
            }
        };
        self.out.reply(request, reply);
    }

    fn request_checkpoint(&mut self, request: RequestId, id: &str, now: Now) {
        let (jobs, mut context) = self.split(now);
        match jobs.get_mut(id) {
            Some(job) => job.request_checkpoint(&mut context, request),
            None => {
                let error = self.unknown(id);
                self.out.reply(request, Err(error));
            }
        }
    }

    /// Fills places where that has become possible, and puts the outputs into their order.
    fn settle(&mut self, now: Now) -> Vec<Output> {
        let is_unsettled = self.out.unsettled;
        while std::mem::take(&mut self.out.unsettled) {
            self.schedule(now);
        }
        if is_unsettled {
            self.warm_spares(now);
            self.forget_old(now);
        }
        let mut out = std::mem::take(&mut self.out);
        if self.meta.retired != *self.pool.retired() {
            self.meta.retired.clone_from(self.pool.retired());
            out.dirty_meta = true;
        }
        for id in &out.dirty {
            if let Some(watch) = self.jobs.get_mut(id).and_then(|job| job.record.trained.as_mut()) {
                watch.advance(now);
            }
        }
        let mut records = Vec::new();
        if out.dirty_meta {
            records.push(Record::Meta(self.meta.clone()));
        }
        records.extend(out.dirty.iter().map(|id| Record::Job(Box::new(self.jobs[id].record.clone()))));
        let incident = |(job, number): &(String, u64)| self.jobs[job].incidents.stored(*number, now);
        let incidents = out.dirty_incidents.iter().filter_map(incident);
        records.extend(incidents.map(|i| Record::Incident(Box::new(i))));
        let persist = (!records.is_empty()).then_some(Output::Persist(records));
        let changed = out.changed.into_iter().map(|job| Output::Changed { job });
        if failpoint!(SendBeforePersist) {
            return out.effects.into_iter().chain(persist).collect();
        }
        persist.into_iter().chain(out.effects).chain(changed).collect()
    }

    /// First come, first served: jobs that have lost places before those that have none yet, and nobody is overtaken.
    fn schedule(&mut self, now: Now) {
        self.pool.asks_for = self.oldest_placed().map(|job| job.record.id.clone());
        let (jobs, mut context) = self.split(now);
        let mut order: Vec<&mut Job> = jobs.values_mut().filter(|j| !j.record.state.is_ended()).collect();
        order.sort_by_key(|j| (!j.record.state.is_placed(), j.record.number));
        let mut first_waiting: Option<String> = None;
        for job in order {
            job.mark_hidden(&mut context);
            match &first_waiting {
                _ if job.record.state.is_placed() => job.recover(&mut context),
                // Nobody waits behind what only a user can end.
                _ if job.record.hold.is_some() => {}
                Some(first) => job.queue_behind(&mut context, first),
                None if job.place(&mut context) => {}
                None => first_waiting = Some(job.record.id.clone()),
            }
        }
    }
}

fn first_probe(now: Now) -> u64 {
    u64::try_from(now.unix_ms).unwrap_or(0) << 16
}

/// The name of a job as it stands in its id: short, lower case, safe as a folder's name.
fn slug(name: &str) -> String {
    const MAX_CHARS: usize = 40;
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let slug: String = name.chars().take(MAX_CHARS).map(safe).collect();
    match slug.trim_matches('-') {
        "" => "job".into(),
        slug => slug.into(),
    }
}
