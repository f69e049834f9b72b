//! A job at one place before its first step: data, working parameters, the shard that this place holds.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toroid_session::{Assignment, ReadFault};
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::Manifest;
use toroid_torus::partition::Partition;

use super::curve::Curve;
use super::environment::Environment;
use super::error::PrepareError;
use super::held::Held;
use super::initial::initial_params;
use super::job::Job;
use super::ppo::carried::Carried;
use super::ppo::models::ModelSources;
use super::ppo::state::Policy;
use super::samples::Samples;
use super::save::Checkpoints;
use super::weights::{self, Reader, Weights};
use super::workspace::{Parts, Workspace};
use crate::checkpoint::{CheckpointError, Owned, ShardStateMut, Storage};
use crate::comm::Fence;
use crate::data::Sources;
use crate::device::CachedAttention;
use crate::optim::HostShard;

impl<D: CachedAttention> Job<D> {
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
        let Workspace { sources, storage, parts, .. } = workspace;
        let Parts { passes, mut shards, mut models } = parts;

        let owned = match assignment.restore_step {
            Some(step) if !assignment.heal => {
                let owned = storage.own_to_read(&assignment.owner, assignment.claim);
                // Another job's folder: this worker sees another one than those who wrote the checkpoint.
                let fault = ReadFault::Unreadable { manifest_read: false };
                Some(owned.map_err(|error| PrepareError::Restore { step, error, fault })?)
            }
            _ => None,
        };
        let source = Source::of(&assignment, owned.as_ref(), &sources)?;
        if let (Source::Checkpoint { manifest, storage }, Rank::ZERO) = (&source, assignment.rank)
            && let Err(error) = storage.claim(manifest.step, assignment.epoch.get())
        {
            tracing::warn!("cannot mark the checkpoint of step {} as in use: {error}", manifest.step);
        }
        let mut reader = Reader { environment, until, tokenizer: sources.tokenizer(), names: weights::Names::new() };
        let initial = match (&source, &spec.init_from) {
            (Source::Initial, Some(path)) => Some(reader.read("init_from", path)?),
            _ => None,
        };
        let weights = initial.as_ref().map(Weights::path);
        for shard in shards.all_mut() {
            if let Some(state) = source.load(&assignment, weights, &shard.partition, shard.range.clone())? {
                shard.write(device, &state);
            }
        }
        let model_sources = match &spec.ppo {
            Some(ppo) => {
                let mut read = |key: &str, path: Option<&Path>| path.map(|path| reader.read(key, path)).transpose();
                let reference = ppo.reference.as_deref().or(spec.init_from.as_deref());
                let reward = ppo.reward_model.as_deref();
                Some(ModelSources {
                    reference: read("ppo.reference", reference)?,
                    reward: read("ppo.reward_model", reward)?,
                })
            }
            None => None,
        };
        if let (Some(models), Some(sources)) = (&mut models, &model_sources) {
            models.load(device, &spec, rank.index(), sources).map_err(PrepareError::Initial)?;
        }
        let (notes, weights) = (notes(&spec, &source, &sources), reader.names);
        Ok(Job {
            fence,
            links: None,
            samples: Samples::new(sources, notes),
            policy: Policy::new(&spec, source.carried(&spec)),
            models,
            model_sources,
            weights,
            passes,
            shards,
            held: Held::new(assignment.held_as(), !matches!(source, Source::OtherHolders)),
            committed: source.step(),
            skipped: source.skipped(),
            curve: Curve::new(source.resumed_step()),
            checkpoints: Checkpoints::new(storage, Arc::clone(&environment.shared)),
            assignment,
        })
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
    fn of(assignment: &Assignment, owned: Option<&'a Owned>, sources: &Sources) -> Result<Source<'a>, PrepareError> {
        if assignment.heal {
            return Ok(Source::OtherHolders);
        }
        if let (Some(step), Some(storage)) = (assignment.restore_step, owned) {
            let manifest = Box::new(storage.manifest(step.get()).map_err(|e| not_loaded(storage, step, e, false))?);
            return Ok(Source::Checkpoint { storage, manifest });
        }
        let Some(path) = &assignment.spec.resume_from else { return Ok(Source::Initial) };
        let (storage, step) = Storage::open_step(path).map_err(PrepareError::ResumePath)?;
        let manifest = Box::new(storage.manifest(step).map_err(PrepareError::ResumePath)?);
        check_resume(&assignment.spec, path, &manifest, sources)?;
        Ok(Source::Resumed { storage, manifest })
    }

    fn manifest(&self) -> Option<&Manifest> {
        match self {
            Source::Checkpoint { manifest, .. } | Source::Resumed { manifest, .. } => Some(manifest),
            Source::OtherHolders | Source::Initial => None,
        }
    }

    fn step(&self) -> Step {
        self.manifest().map_or(Step::ZERO, |m| Step::new(m.step))
    }

    fn skipped(&self) -> u64 {
        self.manifest().map_or(0, |m| m.skipped_steps)
    }

    /// Of a job of kind ppo. What was measured of another reward model than the job's means nothing to it.
    fn carried(&self, spec: &JobSpec) -> Option<Carried> {
        let manifest = self.manifest()?;
        let carried = manifest.files.first().and_then(Carried::of_file)?;
        let reward_model = |spec: &JobSpec| spec.ppo.as_ref().and_then(|ppo| ppo.reward_model.clone());
        let is_of_job = reward_model(&manifest.job) == reward_model(spec);
        Some(Carried { reward_scale: carried.reward_scale.filter(|_| is_of_job), ..carried })
    }

    /// A job that resumes another's checkpoint does not validate that step again.
    fn resumed_step(&self) -> Option<Step> {
        matches!(self, Source::Resumed { .. }).then(|| self.step())
    }

    /// `None`: it comes while the epoch is healed.
    fn load(
        &self,
        assignment: &Assignment,
        weights: Option<&Path>,
        partition: &Partition,
        range: Range<usize>,
    ) -> Result<Option<HostShard>, PrepareError> {
        let state = match self {
            Source::OtherHolders => return Ok(None),
            Source::Checkpoint { storage, manifest } => load_checkpoint(storage, manifest, partition, range)
                .map_err(|e| not_loaded(storage, Step::new(manifest.step), e, true)),
            Source::Resumed { storage, manifest } => {
                load_checkpoint(storage, manifest, partition, range).map_err(PrepareError::ResumePath)
            }
            Source::Initial => initial(&assignment.spec, weights, partition, range),
        };
        state.map(Some)
    }
}

/// The shard's initial weights; both moments are 0. `weights`: where those of the job file are on this machine.
fn initial(
    spec: &JobSpec,
    weights: Option<&Path>,
    partition: &Partition,
    range: Range<usize>,
) -> Result<HostShard, PrepareError> {
    let params = initial_params(spec, weights, partition).map_err(PrepareError::Initial)?;
    let mut shard = HostShard::zeros(range.len());
    shard.param.copy_from_slice(&params[range]);
    Ok(shard)
}

/// The error of a checkpoint of this job that could not be loaded. `manifest_read`: it came after that.
fn not_loaded(storage: &Owned, step: Step, error: CheckpointError, manifest_read: bool) -> PrepareError {
    let fault = storage.read_fault(step.get(), &error, manifest_read);
    if error.is_damage() {
        set_aside(storage, step, &error);
    }
    PrepareError::Restore { step, error, fault }
}

/// A checkpoint that is damaged is kept for whoever wants to look at it, but not read again. Several places may find it at a time.
fn set_aside(storage: &Owned, step: Step, error: &CheckpointError) {
    match storage.set_aside(step.get(), &error.to_string()) {
        Ok(path) => tracing::warn!("the damaged checkpoint of step {step} is now in {path}"),
        Err(error) => tracing::warn!("cannot set the damaged checkpoint of step {step} aside: {error}"),
    }
}

/// What only who has read the text and what the job begins from can say.
fn notes(spec: &JobSpec, source: &Source<'_>, sources: &Sources) -> Vec<String> {
    let mut notes = notes_on(spec, sources);
    if let Source::Resumed { manifest, .. } = source {
        let mut differences = spec.differences(&manifest.job);
        let digest = blake3::Hash::from_bytes(sources.digest()).to_hex();
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

/// What of the text, or of the sources, has another effect than one may think.
fn notes_on(spec: &JobSpec, sources: &Sources) -> Vec<String> {
    let mut notes = Vec::new();
    let (num_train, of_step) = (sources.num_train(), spec.batch.samples());
    if num_train < of_step {
        notes.push(format!(
            "the text has {num_train} samples and a step takes {of_step}: a step sees some of them more than once"
        ));
    }
    let validated = sources.mixture().validated(spec.eval.num_micro_batches.max(sources.iter().len()));
    for ((source, dataset), num) in sources.iter().zip(validated).filter(|_| spec.eval.num_micro_batches > 0) {
        let (num_held_out, of_eval) = (dataset.num_validation(), (num * spec.batch.micro_batch) as u64);
        if num_held_out < of_eval {
            let whose = if source.name.is_empty() { String::new() } else { format!(" of {}", source.name) };
            notes.push(format!(
                "{num_held_out} samples{whose} are held out and a validation takes {of_eval}: some of them count more than once; raise data.validation or lower eval.micro_batches"
            ));
        }
    }
    for (source, dataset) in sources.iter() {
        let found = dataset.tokens().len();
        if let Some(said) = source.tokens.filter(|said| *said != found) {
            notes.push(format!("data.source.tokens of {} is {said}, and it has {found}", source.name));
        }
    }
    let needed = spec.samples_needed();
    for (n, ended) in sources.mixture().ends().into_iter().filter(|(n, _)| *n < needed) {
        let Some((source, _)) = sources.iter().nth(ended) else { continue };
        let (step, epochs) = (spec.step_of_sample(n), source.max_epochs.unwrap_or(f64::INFINITY));
        notes.push(format!(
            "{} has given its {epochs} epochs after step {step} (sample {n}): from there on the other sources have its share",
            source.name
        ));
    }
    notes
}

/// A job goes on from a checkpoint of another job, or of this one under another shape, only where the next step would be the same.
fn check_resume(spec: &JobSpec, path: &str, manifest: &Manifest, sources: &Sources) -> Result<(), PrepareError> {
    let differs = |what, expected: String, found: String| {
        Err(PrepareError::Resume { path: path.to_string(), what, expected, found })
    };
    if manifest.job.kind != spec.kind {
        return differs("kind", spec.kind.name().into(), manifest.job.kind.name().into());
    }
    if manifest.job.model != spec.model {
        return differs("the model", format!("{:?}", spec.model), format!("{:?}", manifest.job.model));
    }
    let of_iteration = spec.steps_of_iteration();
    if !manifest.step.is_multiple_of(of_iteration) {
        let expected = format!("a multiple of ppo.epochs * ppo.minibatches = {of_iteration}");
        return differs("its step", expected, manifest.step.to_string());
    }
    if manifest.job.batch.samples() != spec.batch.samples() {
        return differs("batch.global", spec.batch.samples().to_string(), manifest.job.batch.samples().to_string());
    }
    if manifest.job.seed != spec.seed {
        return differs("seed", spec.seed.to_string(), manifest.job.seed.to_string());
    }
    // A row of the embedding means another token there.
    let tokenizer = sources.tokenizer();
    if manifest.tokenizer != tokenizer {
        let in_words = |tokenizer: Option<String>| tokenizer.unwrap_or_else(|| "bytes".into());
        return differs(
            "the tokenizer (blake3 of its file)",
            in_words(tokenizer),
            in_words(manifest.tokenizer.clone()),
        );
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
