//! A job at one place before its first step: data, working parameters, the shard that this place holds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use toroid_proto::Inputs;
use toroid_session::{Assignment, BadCheckpoint, HeldAs, ReadFault};
use toroid_torus::cursor::Cursor;
use toroid_torus::init::fill_initial;
use toroid_torus::job::{JobError, JobSpec};
use toroid_torus::manifest::Manifest;
use toroid_torus::partition::Partition;
use toroid_torus::pipeline::Pipeline;

use super::Environment;
use super::evaluate::Validations;
use super::history::History;
use super::holders::Holders;
use super::memory::MemoryError;
use super::replay::{Kept, Sealed};
use super::resplit::Earlier;
use super::save::Lane;
use super::workspace::{Buffers, Parts, Workspace};
use crate::checkpoint::{CheckpointError, Owned, ShardStateMut, Storage, load_initial};
use crate::comm::{Fence, Group, LinkStats, Links};
use crate::data::{DataError, Dataset, LeftOut};
use crate::device::Device;
use crate::model::Stage;
use crate::optim::{HostShard, Shard};
use crate::system;

/// A job at one place.
pub struct Job<D: Device + Clone> {
    pub assignment: Assignment,
    /// Ends the waits of an epoch that is over.
    pub(super) fence: Fence,
    pub(super) partition: Arc<Partition>,
    pub(super) stage: Stage<D>,
    pub(super) shard: Shard<D>,
    /// The copy of another place's shard; `None` without redundancy.
    pub(super) holders: Option<Holders<D>>,
    /// What the parts of this place, from `partition` to `buffers`, are made for. Until it is healed that may be another place than the
    /// assignment's.
    pub(super) made_for: HeldAs,
    /// The shards hold the state of `committed`; a newcomer's do not until it is healed.
    pub(super) has_state: bool,
    /// The state as it was split before, until all are known to have it as it is split now.
    pub(super) earlier: Option<Earlier<D>>,
    /// All that is needed to apply `committed + 1` is here: the gradients of both shards.
    pub(super) sealed: bool,
    /// This place's shard and its gradient when they were sealed.
    pub(super) sealed_own: Sealed,
    /// Inputs of the shard's last update; `None` where updates are not replayed.
    pub(super) kept: Option<Kept<D>>,
    /// What this place saw of silent data corruption in this epoch.
    pub(super) corrupt: Option<String>,
    /// Global sums of the newest steps, and of all that no coordinator has.
    pub(super) history: History,
    /// Of the last commit.
    pub(super) since: Instant,
    /// What the links had moved then.
    pub(super) moved_since: LinkStats,
    /// Kept from epoch to epoch.
    pub(super) links: Option<Links>,
    /// Step that was loaded from a checkpoint of another job, or 0.
    pub(super) start_step: Option<u64>,
    pub(super) validations: Validations,
    /// Step of the last validation.
    pub(super) validated: Option<u64>,
    pub(super) dataset: Dataset,
    data_digest: [u8; 32],
    /// What of the job has no effect, or another than one may think.
    notes: Vec<String>,
    pub(super) cursor: Cursor,
    pub(super) pipeline: Pipeline,
    pub(super) groups: Groups,
    pub(super) buffers: Buffers,
    /// The working parameters before this element are those of the committed step; the others may be on their way.
    pub(super) gathered: usize,
    /// Committed updates, skipped ones included.
    pub(super) committed: u64,
    /// Updates that were skipped because gradients were not finite.
    pub(super) skipped: u64,
    /// Skipped updates at the checkpoint that is being written.
    pub(super) skipped_at: Mutex<BTreeMap<u64, u64>>,
    storage: Arc<Storage>,
    /// The same folder, once it is known to be this job's: before the first step.
    pub(super) owned: Option<Arc<Owned>>,
    pub(super) writer: Lane,
    pub(super) publisher: Lane,
}

/// Whom this place makes sums with.
pub(super) struct Groups {
    pub tp: Group,
    pub dp: Group,
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("cannot run this job: {0}")]
    Job(JobError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("cannot prepare the data: {0}")]
    Data(DataError),
    #[error("cannot load the initial weights: {0}")]
    Initial(CheckpointError),
    #[error("cannot restore step {step}: {error}")]
    Restore { step: u64, error: CheckpointError, fault: ReadFault },
    #[error("cannot open the checkpoint folder: {0}")]
    Open(CheckpointError),
    #[error("cannot resume: {0}")]
    ResumePath(CheckpointError),
    #[error("cannot resume from {path}: {what} is {found} there and {expected} in this job; they have to be equal")]
    Resume { path: String, what: &'static str, expected: String, found: String },
}

impl From<JobError> for PrepareError {
    fn from(error: JobError) -> PrepareError {
        PrepareError::Job(error)
    }
}

impl From<DataError> for PrepareError {
    fn from(error: DataError) -> PrepareError {
        PrepareError::Data(error)
    }
}

impl PrepareError {
    /// Every other worker would fail in the same way.
    pub fn is_fatal(&self) -> bool {
        self.checkpoint().is_none()
    }

    /// The epoch ended while it was prepared for.
    pub fn is_over(&self) -> bool {
        matches!(self, PrepareError::Data(DataError::Over))
    }

    /// The checkpoint of this job that could not be loaded.
    pub fn checkpoint(&self) -> Option<BadCheckpoint> {
        match self {
            PrepareError::Restore { step, fault, .. } => Some(BadCheckpoint { step: *step, fault: *fault }),
            _ => None,
        }
    }
}

impl<D: Device + Clone> Job<D> {
    /// `warm` is what was made ready before the place was known.
    pub fn prepare(
        device: &D,
        environment: &Environment,
        assignment: Assignment,
        fence: Fence,
        warm: Option<Workspace<D>>,
    ) -> Result<Job<D>, PrepareError> {
        let spec = Arc::clone(&assignment.spec);
        let (rank, until) = (assignment.rank, Some((&fence, assignment.epoch)));
        let workspace = Workspace::make(device, environment, (&spec, rank), &assignment.checkpoint_root, until, warm)?;
        let Workspace { dataset, data_digest, storage, parts, .. } = workspace;
        let Parts { partition, stage, mut shard, kept, mut holders, pipeline, groups, buffers } = parts;
        let cursor = Cursor::new(spec.seed, dataset.num_train(), spec.data.order);

        let owned = match assignment.restore_step {
            Some(step) if !assignment.heal => {
                let owned = storage.own_to_read(&assignment.owner, assignment.claim);
                // Another job's folder: this worker sees another one than those who wrote the checkpoint.
                let fault = ReadFault::Unreadable { manifest_read: false };
                Some(owned.map_err(|error| PrepareError::Restore { step, error, fault })?)
            }
            _ => None,
        };
        let source = Source::of(&assignment, owned.as_ref())?;
        if let (Source::Checkpoint { manifest, storage }, 0) = (&source, assignment.rank)
            && let Err(error) = storage.claim(manifest.step, assignment.epoch)
        {
            tracing::warn!("cannot mark the checkpoint of step {} as in use: {error}", manifest.step);
        }
        for shard in [Some(&mut shard), holders.as_mut().map(|h| &mut h.copy)].into_iter().flatten() {
            if let Some(state) = source.load(&assignment, &shard.partition, shard.range.clone())? {
                shard.write(device, &state);
            }
        }
        let notes = notes(&spec, &source, &dataset, &data_digest);
        Ok(Job {
            fence,
            groups,
            partition,
            stage,
            shard,
            dataset,
            data_digest,
            notes,
            cursor,
            pipeline,
            buffers,
            holders,
            made_for: assignment.held_as(),
            earlier: None,
            has_state: !matches!(source, Source::OtherHolders),
            sealed: false,
            sealed_own: Sealed::default(),
            kept,
            corrupt: None,
            history: History::default(),
            since: system::now(),
            moved_since: LinkStats::default(),
            links: None,
            start_step: source.resumed_step(),
            validations: Validations::default(),
            validated: None,
            gathered: 0,
            committed: source.step(),
            skipped: source.skipped(),
            skipped_at: Mutex::default(),
            storage,
            owned: None,
            writer: Lane::new("checkpoint-writer"),
            publisher: Lane::new("checkpoint-publisher"),
            assignment,
        })
    }

    pub fn data_digest(&self) -> [u8; 32] {
        self.data_digest
    }

    /// What is trained on, and what of it is left out (T-12).
    pub(super) fn inputs(&self) -> Inputs {
        let text = self.dataset.text();
        let left_out = |l: &LeftOut| toroid_proto::LeftOut {
            reason: l.reason.words().into(),
            num_files: l.num_files,
            bytes: l.bytes,
            first: l.first.clone(),
        };
        let left_out = text.left_out().iter().map(left_out).collect();
        Inputs { summary: text.source_summary(), left_out, notes: self.notes.clone() }
    }

    pub fn num_samples(&self) -> u64 {
        self.dataset.num_train()
    }

    /// T-10: finds or makes the checkpoint folder this job's, as long as that is not known.
    pub(super) fn own_folder(&mut self) -> Result<(), CheckpointError> {
        if self.owned.is_none() {
            self.owned = Some(Arc::new(self.storage.own(&self.assignment.owner, self.assignment.claim)?));
        }
        Ok(())
    }

    /// Whether no other worker could do better: the folder is another job's. Where this one has its state elsewhere already, it is this
    /// worker that sees another folder than the others.
    pub(super) fn is_refused_by(&self, error: &CheckpointError) -> bool {
        let begins = !self.assignment.heal && self.assignment.restore_step.is_none();
        begins && error.is_about_owner()
    }
}

/// Where the state of a shard comes from.
enum Source<'a> {
    /// A healing epoch: this place is a newcomer and pulls its shards.
    OtherHolders,
    /// A checkpoint of this job.
    Checkpoint {
        storage: &'a Owned,
        manifest: Box<Manifest>,
    },
    /// A checkpoint that the job file names.
    Resumed {
        storage: Storage,
        manifest: Box<Manifest>,
    },
    Initial,
}

impl<'a> Source<'a> {
    /// `owned` is there where a checkpoint of this job is to be read.
    fn of(assignment: &Assignment, owned: Option<&'a Owned>) -> Result<Source<'a>, PrepareError> {
        if assignment.heal {
            return Ok(Source::OtherHolders);
        }
        if let (Some(step), Some(storage)) = (assignment.restore_step, owned) {
            let manifest = Box::new(storage.manifest(step).map_err(|e| not_loaded(storage, step, e, false))?);
            return Ok(Source::Checkpoint { storage, manifest });
        }
        let Some(path) = &assignment.spec.resume_from else { return Ok(Source::Initial) };
        let (storage, step) = Storage::open_step(path).map_err(PrepareError::ResumePath)?;
        let manifest = Box::new(storage.manifest(step).map_err(PrepareError::ResumePath)?);
        check_resume(&assignment.spec, path, &manifest)?;
        Ok(Source::Resumed { storage, manifest })
    }

    fn manifest(&self) -> Option<&Manifest> {
        match self {
            Source::Checkpoint { manifest, .. } | Source::Resumed { manifest, .. } => Some(manifest),
            Source::OtherHolders | Source::Initial => None,
        }
    }

    fn step(&self) -> u64 {
        self.manifest().map_or(0, |m| m.step)
    }

    fn skipped(&self) -> u64 {
        self.manifest().map_or(0, |m| m.skipped_steps)
    }

    /// A job that resumes another's checkpoint does not validate that step again.
    fn resumed_step(&self) -> Option<u64> {
        matches!(self, Source::Resumed { .. }).then(|| self.step())
    }

    /// `None`: it comes while the epoch is healed.
    fn load(
        &self,
        assignment: &Assignment,
        partition: &Partition,
        range: Range<usize>,
    ) -> Result<Option<HostShard>, PrepareError> {
        let state = match self {
            Source::OtherHolders => return Ok(None),
            Source::Checkpoint { storage, manifest } => load_checkpoint(storage, manifest, partition, range)
                .map_err(|e| not_loaded(storage, manifest.step, e, true)),
            Source::Resumed { storage, manifest } => {
                load_checkpoint(storage, manifest, partition, range).map_err(PrepareError::ResumePath)
            }
            Source::Initial => initial(&assignment.spec, partition, range),
        };
        state.map(Some)
    }
}

/// The shard's initial weights; both moments are 0.
fn initial(spec: &JobSpec, partition: &Partition, range: Range<usize>) -> Result<HostShard, PrepareError> {
    let mut params = vec![0.0; partition.padded_len];
    match &spec.init_from {
        Some(path) => load_initial(path, &spec.model, partition, &mut params).map_err(PrepareError::Initial)?,
        None => {
            for slice in &partition.slices {
                fill_initial(slice, spec.seed, &mut params[slice.offset..slice.offset + slice.len]);
            }
        }
    }
    let mut shard = HostShard::zeros(range.len());
    shard.param.copy_from_slice(&params[range]);
    Ok(shard)
}

/// The error of a checkpoint of this job that could not be loaded. `manifest_read`: it came after that.
fn not_loaded(storage: &Owned, step: u64, error: CheckpointError, manifest_read: bool) -> PrepareError {
    let fault = storage.read_fault(step, &error, manifest_read);
    if error.is_damage() {
        set_aside(storage, step, &error);
    }
    PrepareError::Restore { step, error, fault }
}

/// A checkpoint that is damaged is kept for whoever wants to look at it, but not read again. Several places may find it at a time.
fn set_aside(storage: &Owned, step: u64, error: &CheckpointError) {
    match storage.set_aside(step, &error.to_string()) {
        Ok(path) => tracing::warn!("the damaged checkpoint of step {step} is now in {path}"),
        Err(error) => tracing::warn!("cannot set the damaged checkpoint of step {step} aside: {error}"),
    }
}

/// What only who has read the text and what the job begins from can say.
fn notes(spec: &JobSpec, source: &Source<'_>, dataset: &Dataset, data_digest: &[u8; 32]) -> Vec<String> {
    let mut notes = Vec::new();
    let (num_train, of_step) = (dataset.num_train(), spec.batch.samples());
    if num_train < of_step {
        notes.push(format!(
            "the text has {num_train} samples and a step takes {of_step}: a step sees some of them more than once"
        ));
    }
    let (num_held_out, of_eval) =
        (dataset.num_validation(), (spec.eval.num_micro_batches * spec.batch.micro_batch) as u64);
    if num_held_out < of_eval {
        notes.push(format!(
            "{num_held_out} samples are held out and a validation takes {of_eval}: some of them count more than once; raise data.validation or lower eval.micro_batches"
        ));
    }
    if let Source::Resumed { manifest, .. } = source {
        let mut differences = spec.differences(&manifest.job);
        let digest = blake3::Hash::from_bytes(*data_digest).to_hex();
        if manifest.data_digest != digest.as_str() {
            differences.insert(0, "other text".into());
        }
        if !differences.is_empty() {
            let of = &manifest.job_id;
            notes.push(format!(
                "what follows differs from what {of} did up to step {}: {}",
                manifest.step,
                differences.join(", ")
            ));
        }
    }
    notes
}

/// A job goes on from a checkpoint of another job, or of this one under another shape, only where the next step would be the same.
fn check_resume(spec: &JobSpec, path: &str, manifest: &Manifest) -> Result<(), PrepareError> {
    let differs = |what, expected: String, found: String| {
        Err(PrepareError::Resume { path: path.to_string(), what, expected, found })
    };
    if manifest.job.model != spec.model {
        return differs("the model", format!("{:?}", spec.model), format!("{:?}", manifest.job.model));
    }
    if manifest.job.batch.samples() != spec.batch.samples() {
        return differs("batch.global", spec.batch.samples().to_string(), manifest.job.batch.samples().to_string());
    }
    if manifest.job.seed != spec.seed {
        return differs("seed", spec.seed.to_string(), manifest.job.seed.to_string());
    }
    Ok(())
}

fn load_checkpoint(
    storage: &Storage,
    manifest: &Manifest,
    partition: &Partition,
    range: Range<usize>,
) -> Result<HostShard, CheckpointError> {
    let mut shard = HostShard::zeros(range.len());
    let state =
        ShardStateMut { param: &mut shard.param, exp_avg: &mut shard.exp_avg, exp_avg_sq: &mut shard.exp_avg_sq };
    storage.load(manifest, partition, range, state)?;
    Ok(shard)
}
