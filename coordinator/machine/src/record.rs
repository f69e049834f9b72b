//! What a coordinator keeps: everything that a decision depends on, and nothing that workers tell again.
//!
//! A record is replaced as a whole; the records that one input changes are stored in one transaction, before anything that the
//! input leads to is sent (see [`super`]). What grows with the age of a job is in records of its own: incidents, pages of validations.
//! Heartbeats and step records are not here: the former are of the moment, the latter are in the job's `curve.csv`.

mod incident;
mod validation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use toroid_proto as proto;
use toroid_torus::cursor::NUM_SAMPLES_MAX;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, JobId, Rank, Step, WorkerId};
use toroid_torus::job::{JobSpec, SOURCES_MAX};
use toroid_torus::owner::OwnerId;
use toroid_torus::resplit::Origin;

use super::access::{Binding, Token};
use super::clock::{Moment, Stopwatch};
pub use super::places::Places;

pub use self::incident::{Incident, Rung, SeenBy};
pub use self::validation::{SourceValidation, Validation, ValidationPage};

/// Version of the records. A store of another version is refused.
pub const FORMAT: u32 = 3;

/// Events kept of each job.
pub const MAX_EVENTS: usize = 100;

/// Incidents kept of each job.
pub const MAX_INCIDENTS: u64 = 1000;

/// Jobs that are remembered after they were taken off the list.
pub const MAX_FORGOTTEN: usize = 256;

/// Validations in one record.
pub const VALIDATIONS_PER_PAGE: usize = 64;

/// Pages of validations kept of each job, 16,384 in all.
pub const MAX_VALIDATION_PAGES: usize = 256;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    Meta(Meta),
    Job(Box<JobRecord>),
    Incident(Box<Incident>),
    Validations(Box<ValidationPage>),
    Token(Box<Token>),
    Binding(Binding),
}

impl Record {
    /// The key under which the record replaces the one before.
    pub fn key(&self) -> String {
        match self {
            Record::Meta(_) => "meta".into(),
            Record::Job(job) => format!("job/{}", job.id),
            // A ring: the newest ones replace the oldest.
            Record::Incident(i) => format!("incident/{}/{}", i.job, i.number % MAX_INCIDENTS),
            Record::Validations(page) => Record::validations_key(&page.job, page.number),
            Record::Token(token) => Record::token_key(&token.id),
            Record::Binding(binding) => Record::binding_key(&binding.worker),
        }
    }

    pub fn validations_key(job: &JobId, page: u64) -> String {
        format!("validations/{job}/{page}")
    }

    pub fn token_key(id: &str) -> String {
        format!("token/{id}")
    }

    pub fn binding_key(worker: &WorkerId) -> String {
        format!("worker/{worker}")
    }
}

/// What belongs to no job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub format: u32,
    /// Link keys are derived from it, see [`JobRecord::link_key`]. 32 bytes.
    pub secret: [u8; 32],
    /// Number of jobs that were submitted under a name, by the name as it stands in the id.
    pub num_jobs: BTreeMap<String, u64>,
    /// Workers that are given no place any more, by id: they were drained, or hang. Another process of the same id is.
    pub retired: BTreeMap<WorkerId, Process>,
    /// Workers that a user has cordoned: no process of the id is given a place.
    #[serde(default)]
    pub cordoned: BTreeMap<WorkerId, Cordon>,
    /// Hosts that a user has cordoned: no worker there is given a place.
    #[serde(default)]
    pub cordoned_hosts: BTreeMap<String, Cordon>,
    /// Jobs that were taken off the list, the newest [`MAX_FORGOTTEN`]: whoever still holds one of them is not held to know more than this store.
    #[serde(default)]
    pub forgotten: VecDeque<JobId>,
}

/// Why and since when a worker, or a host, is given no place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// As its user said; may be empty.
    pub reason: String,
    pub unix_ms: i64,
}

/// What tells a process from another of the same worker id; in containers all have the same `pid`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub data_address: String,
    /// Drawn by the process when it starts.
    #[serde(default)]
    pub incarnation: u64,
}

impl Process {
    pub fn of(register: &proto::Register) -> Process {
        let proto::Register { pid, incarnation, .. } = *register;
        Process { pid, incarnation, data_address: register.data_address.clone() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Queued,
    Starting,
    Running,
    Recovering,
    /// Trains with fewer replicas than the job file asks for.
    Degraded,
    Draining,
    Done,
    Failed,
    Cancelled,
}

impl State {
    pub fn is_ended(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }

    /// Has places: an epoch was begun and the job has not ended.
    pub fn is_placed(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Recovering | State::Degraded | State::Draining)
    }

    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Starting => "starting",
            State::Running => "running",
            State::Recovering => "recovering",
            State::Degraded => "degraded",
            State::Draining => "draining",
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }
}

impl From<State> for proto::JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => proto::JobState::Queued,
            State::Starting => proto::JobState::Starting,
            State::Running => proto::JobState::Running,
            State::Recovering => proto::JobState::Recovering,
            State::Degraded => proto::JobState::Degraded,
            State::Draining => proto::JobState::Draining,
            State::Done => proto::JobState::Done,
            State::Failed => proto::JobState::Failed,
            State::Cancelled => proto::JobState::Cancelled,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    /// Jobs are served in this order.
    pub number: u64,
    pub spec: JobSpec,
    /// What tells its checkpoints from those of all other jobs (T-10). `None` only in the store of an earlier version.
    #[serde(default)]
    pub owner: Option<OwnerId>,
    /// An earlier version had begun it, which left no record of whose its checkpoint folder is.
    #[serde(default)]
    pub begun_without_owner: bool,
    /// Of the present epoch: that of the job file, or one with fewer replicas.
    pub shape: Shape,
    pub state: State,
    /// Why it is in this state, in words.
    pub reason: String,
    /// Grows with every change of the map places -> workers (T-8); 0: never placed.
    pub epoch: Epoch,
    /// The worker of each rank; `None` while it is lost and not replaced. Empty before the first epoch and after the last.
    pub places: Places,
    /// How the state may still be split while it is split anew, oldest first: who had which place when. Empty once a step was committed.
    pub earlier: Vec<Layout>,
    /// The worker that each empty place had: where it comes back with its state before another took the place, it has it again.
    pub absent: BTreeMap<Rank, WorkerId>,
    /// The process behind each worker that has a place, or had one whose state may still count: another of the same id has no state.
    #[serde(default)]
    pub holders: BTreeMap<WorkerId, Process>,
    /// Workers of places that are to be moved to others.
    pub draining: BTreeSet<WorkerId>,
    /// An epoch was started since the state was last loaded: the places hold it, and a lost one can have it from the others (T-3).
    pub has_state: bool,
    /// What was decided for the present epoch, if it is a healing one that was started: a worker that missed `Start` is told it again.
    pub heal: Option<Heal>,
    /// Checkpoint that the state was last loaded from; 0: the initial weights.
    pub restore_step: Step,
    /// Steps up to here were made by another job (`resume_from`) and are not in the curve of this one.
    #[serde(default)]
    pub start_step: Step,
    /// Highest multiple of `checkpoint.interval_steps` that was named, or that it was said of that it is not saved.
    #[serde(default)]
    pub named_to: Step,
    /// Numeric fingerprint that a job with `exact` was first placed on.
    pub fingerprint: Option<String>,
    /// What the workers of the first epoch agreed on.
    pub data: Option<DataFacts>,
    /// What they train on, as rank 0 of the first epoch said. Records of before it was said have none.
    #[serde(default)]
    pub inputs: Option<Inputs>,
    /// Highest step ever known to be committed: what a place that fails again and again does not get beyond.
    pub high_step: Step,
    pub failures: BTreeMap<Rank, Failures>,
    /// Workers that a place lost since the job last got further.
    pub deaths: BTreeMap<Rank, Deaths>,
    /// Number of incidents so far, those no longer kept included.
    pub num_incidents: u64,
    /// Of all resolved incidents: from the last sign of life to the step that was next, or to the step that it was at.
    pub lost_s: f64,
    /// Committed steps that were made again after a restore.
    pub lost_steps: u64,
    /// Published ones, ascending by step.
    pub checkpoints: Vec<Checkpoint>,
    /// No step is made beyond this one in this epoch, whose state is to be saved before workers go. It stays so while the saving fails and is tried again.
    #[serde(default)]
    pub halt: Option<Step>,
    /// Steps that were named to the workers in this epoch and whose checkpoint is not published yet.
    pub pending: BTreeMap<Step, PendingRecord>,
    /// Published ones that could not be read, by step: the job does not go on from them (T-11). Forgotten once it goes on from another.
    #[serde(default)]
    pub unusable: BTreeMap<Step, Unusable>,
    /// Why a queued job is given no places even where workers are.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// A user holds it: it is given no places until it is released.
    #[serde(default)]
    pub is_held: bool,
    /// Whose quota it counts against; empty: nobody's.
    #[serde(default)]
    pub user: String,
    /// In the queue, on hold left out, all its waits together.
    #[serde(default)]
    pub waited: Option<Stopwatch>,
    /// Against preemption: its priority, and what it had waited when it was given its places (see [`super::scheduler`]).
    #[serde(default)]
    pub class: i64,
    /// It is being saved, and gives its workers back then.
    #[serde(default)]
    pub yields: Option<Yield>,
    /// What could not be saved since the newest checkpoint.
    #[serde(default)]
    pub unsaved: Option<Unsaved>,
    /// Steps of which some shards may lie about without a recorded manifest; removed with the next publishing.
    pub leftovers: BTreeSet<Step>,
    /// Nothing of these steps is removed (see `super::keeping`).
    #[serde(default)]
    pub pinned: BTreeSet<Step>,
    /// Of a store of an earlier version, which had them all here: they are pages of their own once the job is restored.
    #[serde(default, rename = "validations", skip_serializing_if = "Vec::is_empty")]
    pub earlier_validations: Vec<Validation>,
    pub submitted_unix_ms: i64,
    /// First told to train; 0 before.
    pub started_unix_ms: i64,
    /// Since then.
    #[serde(default)]
    pub trained: Option<Stopwatch>,
    /// 0 before.
    pub finished_unix_ms: i64,
    /// The newest [`MAX_EVENTS`].
    pub events: VecDeque<Event>,
    /// Number of events so far, those no longer kept included.
    pub num_events: u64,
}

impl JobRecord {
    pub fn last_checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoints.last()
    }

    /// What registers has the id of a worker with state of this job, and is another process.
    pub fn is_another(&self, register: &proto::Register) -> bool {
        self.holders.get(register.worker_id.as_str()).is_some_and(|holder| *holder != Process::of(register))
    }

    /// The worker of a place; `None` where it is empty, or no place.
    pub fn worker_at(&self, rank: Rank) -> Option<&WorkerId> {
        self.places.get(rank.index())?.as_ref()
    }

    /// The ranks that are not empty, with their workers.
    pub fn placed(&self) -> impl Iterator<Item = (Rank, &WorkerId)> {
        Rank::all(self.places.len()).zip(self.places.iter()).filter_map(|(rank, worker)| Some((rank, worker.as_ref()?)))
    }

    /// The rank of `worker`, if it has a place.
    pub fn rank_of(&self, worker: &str) -> Option<Rank> {
        self.places.rank_of(worker)
    }

    /// The key with which workers of this epoch know one another. Derived, so that it need not be stored nor changes by a restart.
    pub fn link_key(&self, secret: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(&self.epoch.get().to_le_bytes());
        hasher.update(self.id.as_str().as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// The owner of a job that an earlier version had submitted: derived, so that a restart before the record is stored changes nothing.
    pub fn derived_owner(&self, secret: &[u8; 32]) -> OwnerId {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(b"owner of checkpoints");
        hasher.update(self.id.as_str().as_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        OwnerId::from_random(id)
    }

    pub fn push_event(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.num_events += 1;
    }
}

/// The step that all go on from, and who has what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heal {
    pub step: Step,
    /// A rank that has committed it.
    pub source: Rank,
    /// Ranks without state.
    pub newcomers: Vec<Rank>,
    /// How the state is split; `None`: for the present shape, and every rank has its own.
    pub origin: Option<Origin>,
    /// The curve was kept up to here: the places share the sums since.
    #[serde(default)]
    pub recorded_step: Step,
}

/// Who had which place of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub shape: Shape,
    /// By rank.
    pub places: Vec<Option<WorkerId>>,
}

impl Layout {
    pub fn rank_of(&self, worker: &str) -> Option<Rank> {
        self.places.iter().position(|p| p.as_ref().is_some_and(|id| *id == *worker)).map(Rank::new)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Hex.
    pub digest: String,
    pub num_samples: u64,
    pub num_params: u64,
    /// What names the weights that were read, by the job's key. Not all are read in each epoch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, String>,
}

/// What a job is trained on, and what of what it was given is not used (T-12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub summary: String,
    pub left_out: Vec<LeftOut>,
    pub notes: Vec<String>,
    /// In the order of the job file; none where it has a path alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}

/// One of several sources that a job's samples are mixed of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub num_tokens: u64,
    /// Of one pass, from 1 to [`NUM_SAMPLES_MAX`].
    pub num_samples: u64,
}

/// Files that give no text, or not all of theirs, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub reason: String,
    pub num_files: u64,
    pub bytes: u64,
    pub first: Vec<String>,
}

/// What a worker says is kept up to so many entries of a list, and so many characters of a text.
const MAX_ENTRIES: usize = 16;
const MAX_CHARS: usize = 500;

impl Inputs {
    pub fn bounded(said: &proto::Inputs) -> Inputs {
        let text = |text: &String| text.chars().take(MAX_CHARS).collect::<String>();
        let texts = |list: &[String]| list.iter().take(MAX_ENTRIES).map(text).collect();
        let left_out = |l: &proto::LeftOut| LeftOut {
            reason: text(&l.reason),
            num_files: l.num_files,
            bytes: l.bytes,
            first: texts(&l.first),
        };
        let source = |s: &proto::Source| Source {
            num_tokens: s.num_tokens,
            num_samples: s.num_samples.clamp(1, NUM_SAMPLES_MAX),
        };
        Inputs {
            summary: text(&said.summary),
            left_out: said.left_out.iter().take(MAX_ENTRIES).map(left_out).collect(),
            notes: texts(&said.notes),
            sources: said.sources.iter().take(SOURCES_MAX).map(source).collect(),
        }
    }
}

impl LeftOut {
    /// `2 files are left out, 8 bytes: not UTF-8 text (a.bin, b.bin)`.
    pub fn in_words(&self) -> String {
        let (num, bytes, reason) = (self.num_files, self.bytes, &self.reason);
        let are = if num == 1 { "file is" } else { "files are" };
        let more = if num > self.first.len() as u64 { ", ..." } else { "" };
        format!("{num} {are} left out, {bytes} bytes: {reason} ({}{more})", self.first.join(", "))
    }
}

/// Failures of a place since the job last got further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    pub count: u32,
    /// The job's `high_step` at the newest.
    pub at_step: Step,
}

/// Workers that died in one place, none of which made a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deaths {
    pub workers: BTreeSet<WorkerId>,
    /// What was committed at the newest: after a restore that is less than `high_step`.
    pub at_step: Step,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub step: Step,
    pub epoch: Epoch,
    pub path: String,
    pub bytes: u64,
    pub unix_ms: i64,
    /// Of the slowest shard.
    pub write_s: f64,
    /// Its removal was ordered with a publishing that nothing came of: it may be gone.
    #[serde(default)]
    pub is_removal_ordered: bool,
}

/// A published checkpoint that could not be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unusable {
    pub checkpoint: Checkpoint,
    /// In words: by whom, and why not.
    pub why: String,
    /// Bytes of it were read and are wrong: to read it again is of no use. Else it may be there again for others, or later.
    pub is_damaged: bool,
}

/// A job that gives its workers back though it is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yield {
    /// The job that is to have them; `None`: a user holds this one.
    pub to: Option<JobId>,
    /// In plain words.
    pub reason: String,
}

/// What a queued job waits for that workers alone do not bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// None of its checkpoints can be read, and only a user decides that it begins from scratch.
    Checkpoint,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRecord {
    pub why: Why,
    /// Rank 0 was told to publish it.
    pub publishing: bool,
    /// No step is made beyond it: its workers leave once it is published.
    #[serde(default)]
    pub halts: bool,
}

/// Checkpoints that failed since the newest good one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsaved {
    /// Of the newest.
    pub step: Step,
    pub error: String,
    /// When the first failed.
    pub since: Moment,
    pub num_tries: u64,
    /// Those of the job's last step.
    pub last_step: Option<Tries>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// When the first failed.
    pub since: Moment,
    pub num: u32,
}

impl Unsaved {
    /// Nothing yet.
    pub fn since(since: Moment) -> Unsaved {
        Unsaved { step: Step::ZERO, error: String::new(), since, num_tries: 0, last_step: None }
    }
}

impl Tries {
    pub fn since(since: Moment) -> Tries {
        Tries { since, num: 0 }
    }
}

/// What a step was named for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// `checkpoint.interval_s` passed.
    Time,
    /// A multiple of `checkpoint.interval_steps`.
    Steps,
    /// A user asked.
    Request,
    /// Workers are to end, and nobody can take their places; or the job gives its workers back.
    Leaving,
    /// The last step of the job.
    Final,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub unix_ms: i64,
    pub kind: String,
    pub text: String,
    pub step: Step,
    pub epoch: Epoch,
    pub worker: String,
}
