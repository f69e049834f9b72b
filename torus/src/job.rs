//! Job files: what a user asks for, checked and with every default filled in.
//!
//! [`parse`] reads TOML; [`JobSpec`] travels to the workers as JSON and is kept in the store and in manifests. Unknown keys are
//! refused with the nearest right key; every other complaint names the key, what was found and what is possible.

mod data;
mod kind;
mod ppo;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::geometry::{Shape, ShapeError};
use crate::labels::{self, LabelError, Labels};
use crate::model::{ModelConfig, Output, PRESETS};
use crate::partition::{self, PartitionError};
use crate::pipeline::Schedule;
use crate::schedule::OptimizerConfig;

use data::DataFile;
pub use data::{DataConfig, SOURCES_MAX, SampleOrder, SourceConfig};
pub use kind::{JobKind, RewardConfig};
pub use ppo::{Form, PpoConfig, RewardScale};

/// A job, complete: nothing is left to a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    pub name: String,
    /// Manifests of before there was a choice have none.
    #[serde(default, skip_serializing_if = "JobKind::is_pretrain")]
    pub kind: JobKind,
    /// Optimizer updates.
    pub steps: u64,
    pub seed: u64,
    /// Take only workers of one numeric fingerprint.
    pub exact: bool,
    /// Jobs of a higher one are served first, see [`PRIORITY_MAX`]. Manifests of before there was one have none.
    #[serde(default)]
    pub priority: i32,
    /// Manifests of before there was a choice have none.
    #[serde(default)]
    pub products: Products,
    /// A stage keeps what goes into the halves of each layer and computes the other activations again before a backward.
    #[serde(default)]
    pub recompute: bool,
    /// A safetensors file or a folder of them with the initial weights; drawn from the seed where it is `None`.
    pub init_from: Option<PathBuf>,
    /// A checkpoint folder (`.../step-<n>`) of any job of the same model to go on from.
    pub resume_from: Option<String>,
    pub shape: Shape,
    pub model: ModelConfig,
    pub loss: LossConfig,
    #[serde(default, skip_serializing_if = "RewardConfig::is_default")]
    pub reward: RewardConfig,
    /// Of jobs of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppo: Option<PpoConfig>,
    pub batch: BatchConfig,
    /// Manifests of before there was a choice have none.
    #[serde(default)]
    pub pipeline: PipelineConfig,
    pub optimizer: OptimizerConfig,
    pub data: DataConfig,
    pub eval: EvalConfig,
    pub checkpoint: CheckpointConfig,
    pub fault_tolerance: FaultToleranceConfig,
    /// Manifests of before there was a choice have none.
    #[serde(default)]
    pub workers: WorkersConfig,
}

/// Highest priority of a job; the lowest is as far below 0.
pub const PRIORITY_MAX: i32 = 100;

/// Which workers a job takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersConfig {
    /// A worker must have all of these, each with this value.
    pub labels: Labels,
}

/// How the operands of matrix products are rounded; sums are in f32 always. The router's products are not affected: they are f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    #[default]
    F32,
    /// To tf32, 10 bits of mantissa, where the device has such products and is faster for it; a CPU has not and multiplies f32.
    Tf32,
    /// To bf16, to nearest, ties to even.
    Bf16,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// In which order a stage computes its micro-batches; the results are the same bits.
    pub schedule: Schedule,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultToleranceConfig {
    /// Every shard has two holders, so that a death costs no committed step. Off: a death costs the work since the last checkpoint.
    pub redundancy: bool,
    /// The inputs of the last update are kept, so that of two copies that differ the wrong one can be told.
    #[serde(default = "is_replayed")]
    pub replay: bool,
    /// Where nobody is there for a lost place, the job goes on with fewer replicas, but not with fewer than these; `dp`: it waits.
    pub min_dp: usize,
    /// So many steps in a row without an update, because gradients were not finite, end the job; 0: never.
    #[serde(default = "max_skipped")]
    pub max_skipped: u64,
}

/// Where weights are not numbers any more no step will ever make an update; a few in a row may be those of bad samples.
fn max_skipped() -> u64 {
    20
}

/// Also in jobs of before there was a choice.
fn is_replayed() -> bool {
    true
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Router z-loss.
    pub z_coef: f64,
    /// Load-balancing loss.
    pub balance_coef: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Samples in a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches of a step, over all replicas. Replica `r` takes those of [`BatchConfig::of_replica`].
    pub num_micro_batches: usize,
}

impl BatchConfig {
    /// Samples of a step.
    pub fn samples(&self) -> u64 {
        (self.micro_batch * self.num_micro_batches) as u64
    }

    /// Micro-batches of replica `dp_rank`: contiguous, numbers differ by at most one.
    pub fn of_replica(&self, dp: usize, dp_rank: usize) -> std::ops::Range<usize> {
        dp_rank * self.num_micro_batches / dp..(dp_rank + 1) * self.num_micro_batches / dp
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between validations; 0: only before the first and after the last step.
    pub interval: u64,
    /// Micro-batches of a validation, over all replicas; 0: none at all.
    pub num_micro_batches: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Seconds between checkpoints; 0: only on request and at the end.
    pub interval_s: f64,
    /// Checkpoint after every so many steps as well; 0: not by steps.
    pub interval_steps: u64,
    /// The newest so many are kept, at least 1.
    pub keep: u32,
    /// The first checkpoint at or after each multiple of so many steps is kept for good, besides; 0: none. Manifests of before there was a
    /// choice have none.
    #[serde(default)]
    pub keep_every_steps: u64,
    /// Folder for `step-<n>`; `None`: in the job's folder at the coordinator.
    pub path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JobError {
    #[error("the job file is not valid: {0}")]
    Toml(String),
    #[error("the job file is not valid: {message}; did you mean `{nearest}`?")]
    UnknownKey { message: String, nearest: String },
    #[error("the preset `{found}` is not known; there are {}", PRESETS.join(", "))]
    Preset { found: String },
    #[error("`{first}` and `{second}` cannot be given together: {why}")]
    Together { first: &'static str, second: &'static str, why: &'static str },
    #[error("`{key}` is missing; {hint}")]
    Missing { key: &'static str, hint: &'static str },
    #[error("`{key}` = {found} is not possible; expected {expected}")]
    Value { key: &'static str, found: String, expected: String },
    #[error("`workers.labels`: {0}")]
    Label(LabelError),
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("the model cannot be split over this shape: {0}")]
    Partition(PartitionError),
}

impl From<PartitionError> for JobError {
    fn from(error: PartitionError) -> JobError {
        JobError::Partition(error)
    }
}

// ---------------------------------------------------------------------------------------------- the file, as it is written

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<String>,
    kind: JobKind,
    preset: Option<String>,
    steps: Option<u64>,
    seed: u64,
    exact: bool,
    priority: i32,
    products: Products,
    recompute: bool,
    init_from: Option<PathBuf>,
    resume_from: Option<String>,
    shape: ShapeFile,
    model: ModelFile,
    loss: LossFile,
    reward: RewardConfig,
    ppo: Option<PpoConfig>,
    batch: BatchFile,
    pipeline: PipelineConfig,
    optimizer: OptimizerFile,
    data: DataFile,
    eval: EvalFile,
    checkpoint: CheckpointFile,
    fault_tolerance: FaultToleranceFile,
    workers: WorkersConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ShapeFile {
    tp: Option<usize>,
    pp: Option<usize>,
    dp: Option<usize>,
    dx: Option<usize>,
    dy: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ModelFile {
    layers: Option<usize>,
    d_model: Option<usize>,
    heads: Option<usize>,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    experts: Option<usize>,
    ff: Option<usize>,
    seq: Option<usize>,
    vocab: Option<usize>,
    rope_theta: Option<f64>,
    norm_eps: Option<f64>,
    output: Option<Output>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LossFile {
    z_coef: Option<f64>,
    balance_coef: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BatchFile {
    micro_batch: Option<usize>,
    micro_batches: Option<usize>,
    global: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OptimizerFile {
    lr: Option<f64>,
    floor: Option<f64>,
    warmup: Option<u64>,
    beta1: Option<f64>,
    beta2: Option<f64>,
    eps: Option<f64>,
    weight_decay: Option<f64>,
    weight_decay_final: Option<f64>,
    clip: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EvalFile {
    interval: Option<u64>,
    micro_batches: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FaultToleranceFile {
    redundancy: Option<bool>,
    replay: Option<bool>,
    min_dp: Option<usize>,
    max_skipped: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CheckpointFile {
    interval_s: Option<f64>,
    interval_steps: Option<u64>,
    keep: Option<u32>,
    keep_every_steps: u64,
    path: Option<String>,
}

/// Reads a job file and fills in every default.
pub fn parse(toml: &str) -> Result<JobSpec, JobError> {
    let file: File = toml::from_str(toml).map_err(|e| unknown_key(&e))?;
    resolve(file)
}

fn resolve(file: File) -> Result<JobSpec, JobError> {
    let preset = file.preset.as_deref().unwrap_or("tiny");
    let base = ModelConfig::preset(preset).ok_or_else(|| JobError::Preset { found: preset.into() })?;
    let m = file.model;
    let model = ModelConfig {
        layers: m.layers.unwrap_or(base.layers),
        d_model: m.d_model.unwrap_or(base.d_model),
        heads: m.heads.unwrap_or(base.heads),
        kv_heads: m.kv_heads.unwrap_or(base.kv_heads),
        head_dim: m.head_dim.unwrap_or(base.head_dim),
        experts: m.experts.unwrap_or(base.experts),
        ff: m.ff.unwrap_or(base.ff),
        seq: m.seq.unwrap_or(base.seq),
        vocab: m.vocab.unwrap_or(base.vocab),
        rope_theta: m.rope_theta.unwrap_or(base.rope_theta),
        norm_eps: m.norm_eps.unwrap_or(base.norm_eps),
        output: m.output.unwrap_or(file.kind.output()),
    };
    let s = file.shape;
    let (tp, pp, dp) = (s.tp.unwrap_or(1), s.pp.unwrap_or(1), s.dp.unwrap_or(1));
    let shape = match (s.dx, s.dy) {
        (None, None) => Shape::new(tp, pp, dp)?,
        (dx, dy) => {
            let (dx, dy) = (dx.unwrap_or(dp / dy.unwrap_or(1).max(1)), dy.unwrap_or(dp / dx.unwrap_or(1).max(1)));
            Shape::with_torus(tp, pp, dp, dx, dy)?
        }
    };
    let batch = resolve_batch(&file.batch, dp)?;
    let steps = file.steps.ok_or(JobError::Missing { key: "steps", hint: "say how many optimizer updates to make" })?;
    let o = file.optimizer;
    // The large recipe warms up for 3,000 steps; a short job for a twentieth of its steps.
    let warmup = o.warmup.unwrap_or(3000.min(steps / 20));
    let weight_decay = o.weight_decay.unwrap_or(0.1);
    let optimizer = OptimizerConfig {
        lr: o.lr.unwrap_or(1e-3),
        floor: o.floor.unwrap_or(0.1),
        warmup,
        beta1: o.beta1.unwrap_or(0.9),
        beta2: o.beta2.unwrap_or(0.95),
        eps: o.eps.unwrap_or(1e-8),
        weight_decay,
        weight_decay_final: o.weight_decay_final.unwrap_or(2.0 * weight_decay),
        clip: o.clip.unwrap_or(1.0),
    };
    let data = file.data.resolve(file.kind, model.seq)?;
    let redundancy = file.fault_tolerance.redundancy.unwrap_or(true);
    // Who asks for both has asked for something that cannot be; who says nothing of a replay has none without second holders.
    if !redundancy && file.fault_tolerance.replay == Some(true) {
        return Err(JobError::Together {
            first: "fault_tolerance.redundancy = false",
            second: "fault_tolerance.replay = true",
            why: "without second holders no two copies can differ; leave one of them out",
        });
    }
    let spec = JobSpec {
        name: file.name.unwrap_or_else(|| preset.to_string()),
        kind: file.kind,
        steps,
        seed: file.seed,
        exact: file.exact,
        priority: file.priority,
        products: file.products,
        recompute: file.recompute,
        init_from: file.init_from,
        resume_from: file.resume_from,
        shape,
        loss: LossConfig {
            z_coef: file.loss.z_coef.unwrap_or(1e-3),
            balance_coef: file.loss.balance_coef.unwrap_or(1e-2),
        },
        reward: file.reward,
        ppo: file.ppo,
        batch,
        pipeline: file.pipeline,
        optimizer,
        eval: EvalConfig {
            interval: file.eval.interval.unwrap_or(0),
            // Each source has one at least.
            num_micro_batches: file.eval.micro_batches.unwrap_or(match data.validation > 0.0 {
                true if file.kind != JobKind::Ppo => data.sources.len().max(16),
                _ => 0,
            }),
        },
        data,
        checkpoint: CheckpointConfig {
            interval_s: file.checkpoint.interval_s.unwrap_or(600.0),
            interval_steps: file.checkpoint.interval_steps.unwrap_or(0),
            keep: file.checkpoint.keep.unwrap_or(3),
            keep_every_steps: file.checkpoint.keep_every_steps,
            path: file.checkpoint.path,
        },
        fault_tolerance: FaultToleranceConfig {
            redundancy,
            replay: file.fault_tolerance.replay.unwrap_or(redundancy),
            min_dp: file.fault_tolerance.min_dp.unwrap_or(1),
            max_skipped: file.fault_tolerance.max_skipped.unwrap_or_else(max_skipped),
        },
        workers: file.workers,
        model,
    };
    spec.check()?;
    Ok(spec)
}

fn resolve_batch(file: &BatchFile, dp: usize) -> Result<BatchConfig, JobError> {
    let micro_batch = file.micro_batch.unwrap_or(4);
    let per_replica = file.micro_batches.unwrap_or(8);
    let too_large = || JobError::Value {
        key: "batch.micro_batches",
        found: per_replica.to_string(),
        expected: format!("at most {COUNT_MAX} micro-batches a step over all of the {dp} replicas"),
    };
    let of_all = per_replica.checked_mul(dp).ok_or_else(too_large)?;
    let Some(global) = file.global else { return Ok(BatchConfig { micro_batch, num_micro_batches: of_all }) };
    let value = |expected| Err(JobError::Value { key: "batch.global", found: global.to_string(), expected });
    if micro_batch == 0 || !global.is_multiple_of(micro_batch) {
        return value(format!("a multiple of batch.micro_batch = {micro_batch}"));
    }
    let num_micro_batches = global / micro_batch;
    if file.micro_batches.is_some() && num_micro_batches != of_all {
        return value(format!(
            "micro_batch {micro_batch} * micro_batches {per_replica} * dp {dp}; give one of global and micro_batches"
        ));
    }
    Ok(BatchConfig { micro_batch, num_micro_batches })
}

// Limits of counts: high enough for anyone, low enough that no count of elements, samples or bytes overflows 64 bits.
const LAYERS_MAX: u64 = 1 << 10;
const WIDTH_MAX: u64 = 1 << 16;
const TOKENS_MAX: u64 = 1 << 24;
const COUNT_MAX: u64 = 1 << 32;
/// Checkpoints that are kept for good: the coordinator lists all of them.
const KEPT_MAX: u64 = 10_000;
/// TOML has no larger integers, and a job must be writable as a job file.
const TOML_MAX: u64 = i64::MAX as u64;

fn value<T>(key: &'static str, found: impl ToString, expected: String) -> Result<T, JobError> {
    Err(JobError::Value { key, found: found.to_string(), expected })
}

impl JobSpec {
    /// Checks what no single value shows. A spec that came over the wire is checked again.
    pub fn check(&self) -> Result<(), JobError> {
        self.check_counts()?;
        self.check_numbers()?;
        self.check_pool()?;
        self.data.check()?;
        self.check_together()?;
        self.check_kind()?;
        partition::check(&self.model, &self.shape)?;
        Ok(())
    }

    /// Counts by themselves: the limits keep products from overflowing.
    fn check_counts(&self) -> Result<(), JobError> {
        let (m, b) = (&self.model, &self.batch);
        for (key, found, lowest, highest) in [
            ("steps", self.steps, 1, COUNT_MAX),
            ("seed", self.seed, 0, TOML_MAX),
            ("model.layers", m.layers as u64, 1, LAYERS_MAX),
            ("model.d_model", m.d_model as u64, 1, WIDTH_MAX),
            ("model.heads", m.heads as u64, 1, WIDTH_MAX),
            ("model.kv_heads", m.kv_heads as u64, 1, WIDTH_MAX),
            ("model.head_dim", m.head_dim as u64, 1, WIDTH_MAX),
            // Each token goes to two experts.
            ("model.experts", m.experts as u64, crate::model::TOP_K as u64, WIDTH_MAX),
            ("model.ff", m.ff as u64, 1, WIDTH_MAX),
            ("model.seq", m.seq as u64, 1, TOKENS_MAX),
            // Tokens are bytes where there is no tokenizer.
            ("model.vocab", m.vocab as u64, 256, TOKENS_MAX),
            ("batch.micro_batch", b.micro_batch as u64, 1, TOKENS_MAX),
            ("batch.micro_batches", b.num_micro_batches as u64, 1, COUNT_MAX),
            ("data.stride", self.data.stride as u64, 1, TOML_MAX),
            ("data.max_bytes", self.data.max_bytes, 1, TOML_MAX),
            ("eval.interval", self.eval.interval, 0, TOML_MAX),
            ("eval.micro_batches", self.eval.num_micro_batches as u64, 0, COUNT_MAX),
            ("checkpoint.interval_steps", self.checkpoint.interval_steps, 0, TOML_MAX),
            ("checkpoint.keep", u64::from(self.checkpoint.keep), 1, TOML_MAX),
            ("checkpoint.keep_every_steps", self.checkpoint.keep_every_steps, 0, TOML_MAX),
            ("optimizer.warmup", self.optimizer.warmup, 0, TOML_MAX),
        ] {
            if !(lowest..=highest).contains(&found) {
                return value(key, found, format!("{lowest} to {highest}"));
            }
        }
        Ok(())
    }

    /// Fractions by themselves; not a number and infinities are refused everywhere.
    fn check_numbers(&self) -> Result<(), JobError> {
        let (o, m) = (&self.optimizer, &self.model);
        for (key, found, expected, ok) in [
            ("optimizer.lr", o.lr, "a positive number", o.lr > 0.0),
            ("optimizer.floor", o.floor, "0 to 1", (0.0..=1.0).contains(&o.floor)),
            ("optimizer.beta1", o.beta1, "0 to under 1", (0.0..1.0).contains(&o.beta1)),
            ("optimizer.beta2", o.beta2, "0 to under 1", (0.0..1.0).contains(&o.beta2)),
            ("optimizer.eps", o.eps, "a positive number", o.eps > 0.0),
            ("optimizer.weight_decay", o.weight_decay, "at least 0", o.weight_decay >= 0.0),
            ("optimizer.weight_decay_final", o.weight_decay_final, "at least 0", o.weight_decay_final >= 0.0),
            ("optimizer.clip", o.clip, "a positive number", o.clip > 0.0),
            ("loss.z_coef", self.loss.z_coef, "at least 0", self.loss.z_coef >= 0.0),
            ("loss.balance_coef", self.loss.balance_coef, "at least 0", self.loss.balance_coef >= 0.0),
            ("data.validation", self.data.validation, "0 to 0.5", (0.0..=0.5).contains(&self.data.validation)),
            (
                "checkpoint.interval_s",
                self.checkpoint.interval_s,
                "0 to 1e9",
                (0.0..=1e9).contains(&self.checkpoint.interval_s),
            ),
            ("model.rope_theta", m.rope_theta, "a positive number", m.rope_theta > 0.0),
            ("model.norm_eps", m.norm_eps, "a positive number", m.norm_eps > 0.0),
        ] {
            if !ok || !found.is_finite() {
                return value(key, found, expected.into());
            }
        }
        Ok(())
    }

    /// What the pool of workers is asked for.
    fn check_pool(&self) -> Result<(), JobError> {
        if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&self.priority) {
            return value("priority", self.priority, format!("-{PRIORITY_MAX} to {PRIORITY_MAX}"));
        }
        labels::check(&self.workers.labels).map_err(JobError::Label)
    }

    /// What must fit together.
    fn check_together(&self) -> Result<(), JobError> {
        let m = &self.model;
        if !m.head_dim.is_multiple_of(2) {
            return value("model.head_dim", m.head_dim, "an even number: rotary embedding turns pairs".into());
        }
        if !m.heads.is_multiple_of(m.kv_heads) {
            return value("model.kv_heads", m.kv_heads, format!("a divisor of heads = {}", m.heads));
        }
        let replicas = self.shape.dp();
        if self.batch.num_micro_batches < replicas {
            let found = format!("{} micro-batches a step", self.batch.num_micro_batches);
            return value(
                "batch",
                found,
                format!("at least one for each of the {replicas} replicas; raise batch.global"),
            );
        }
        let min_dp = self.fault_tolerance.min_dp;
        if !(1..=replicas).contains(&min_dp) {
            return value("fault_tolerance.min_dp", min_dp, format!("1 to shape.dp = {replicas}"));
        }
        if self.steps.checked_mul(self.batch.samples()).is_none_or(|n| n > TOML_MAX) {
            let found = format!("{} samples a step", self.batch.samples());
            return value("batch", found, format!("at most 2^63 samples in all {} steps", self.steps));
        }
        let every = self.checkpoint.keep_every_steps;
        if self.steps.checked_div(every).is_some_and(|num| num > KEPT_MAX) {
            let expected =
                format!("0, or at least {}: at most {KEPT_MAX} are kept for good", self.steps.div_ceil(KEPT_MAX));
            return value("checkpoint.keep_every_steps", every, expected);
        }
        if self.init_from.is_some() && self.resume_from.is_some() {
            return Err(JobError::Together {
                first: "init_from",
                second: "resume_from",
                why: "a checkpoint has all weights, so those of init_from would not be used; leave one of them out",
            });
        }
        if self.eval.interval > 0 && self.eval.num_micro_batches == 0 {
            let expected = "0: there are no validations, as eval.micro_batches = 0 or there is no held-out text";
            return value("eval.interval", self.eval.interval, expected.into());
        }
        let (num, num_sources) = (self.eval.num_micro_batches, self.data.sources.len());
        if num > 0 && num < num_sources {
            let expected = format!("0, or at least one for each of the {num_sources} sources");
            return value("eval.micro_batches", num, expected);
        }
        if self.eval.num_micro_batches > 0 && self.data.validation == 0.0 {
            let expected = "0, or a data.validation above 0: there is no held-out text";
            return value("eval.micro_batches", self.eval.num_micro_batches, expected.into());
        }
        Ok(())
    }

    /// What of the job has no effect, or another than one may think: told to the user, and refused nowhere (T-12).
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (steps, o, shape) = (self.steps, &self.optimizer, &self.shape);
        if o.warmup >= steps {
            let lr = o.lr;
            notes.push(format!(
                "optimizer.warmup = {} is not less than steps = {steps}: the learning rate does not come down from optimizer.lr = {lr}",
                o.warmup
            ));
        }
        let why = match () {
            () if !self.fault_tolerance.redundancy => Some("fault_tolerance.redundancy = false"),
            () if shape.world() == 1 => Some("a job of one place has nobody to hold a second copy"),
            () => None,
        };
        if let Some(why) = why {
            notes.push(format!("a death costs the steps since the last checkpoint: {why}"));
        }
        if self.checkpoint.interval_s == 0.0 && !(1..steps).contains(&self.checkpoint.interval_steps) {
            notes.push("no checkpoint is made before the last step, unless one is asked for".into());
        }
        if self.checkpoint.keep_every_steps > steps {
            let every = self.checkpoint.keep_every_steps;
            notes.push(format!("checkpoint.keep_every_steps = {every} is beyond steps = {steps}"));
        }
        let (stride, seq) = (self.data.stride, self.model.seq);
        if stride > seq {
            notes.push(format!(
                "data.stride = {stride} is more than model.seq = {seq}: {} tokens between two samples are left out",
                stride - seq
            ));
        }
        if shape.pp() == 1 && self.pipeline != PipelineConfig::default() {
            notes.push("pipeline.schedule has no effect on the speed: there is one stage".into());
        }
        if self.eval.interval > steps {
            notes.push(format!("eval.interval = {} is beyond steps = {steps}", self.eval.interval));
        }
        notes
    }

    /// Where the job differs from `other` in what decides about the next step, as in `optimizer.lr 0.001 and not 0.003`; text aside.
    pub fn differences(&self, other: &JobSpec) -> Vec<String> {
        let (own, others) = (self.deciding(), other.deciding());
        let keys: BTreeSet<&String> = own.keys().chain(others.keys()).collect();
        let in_words = |value: Option<&String>| value.map_or_else(|| "open".into(), Clone::clone);
        let differing = keys.into_iter().map(|key| (key, own.get(key), others.get(key))).filter(|(_, a, b)| a != b);
        differing.map(|(key, a, b)| format!("{key} {} and not {}", in_words(a), in_words(b))).collect()
    }

    /// What decides about the next step, by its keys; what is not given has none.
    fn deciding(&self) -> BTreeMap<String, String> {
        let JobSpec { kind, steps, products, loss, reward, ppo, optimizer, data, .. } = self;
        let mut out = BTreeMap::new();
        let whole = serde_json::json!({
            "kind": kind, "steps": steps, "products": products, "loss": loss, "reward": reward, "ppo": ppo, "optimizer": optimizer
        });
        flatten("", &whole, &mut out);
        let (order, stride, validation, packing) = (data.order, data.stride, data.validation, data.packing);
        let of_data =
            serde_json::json!({ "order": order, "stride": stride, "validation": validation, "packing": packing });
        flatten("data", &of_data, &mut out);
        let shares = data.sources.iter().map(|s| (&s.name, s.weight, s.max_epochs)).collect::<Vec<_>>();
        flatten("data", &serde_json::json!({ "temperature": data.temperature, "source": shares }), &mut out);
        out
    }

    /// The spec as a TOML document that [`parse`] reads back to the same spec.
    pub fn to_toml(&self) -> String {
        toml::to_string(&Written::from(self)).expect("a job spec has only string keys")
    }
}

/// The values of a JSON document by their keys, `optimizer.lr`.
fn flatten(key: &str, value: &serde_json::Value, out: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, out);
            }
        }
        serde_json::Value::Null => {}
        value => drop(out.insert(key.to_string(), value.to_string())),
    }
}

/// A spec in the keys of a job file.
#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "JobKind::is_pretrain")]
    kind: JobKind,
    steps: u64,
    seed: u64,
    exact: bool,
    priority: i32,
    products: Products,
    recompute: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    init_from: &'a Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_from: &'a Option<String>,
    shape: Shape,
    model: &'a ModelConfig,
    loss: &'a LossConfig,
    #[serde(skip_serializing_if = "RewardConfig::is_default")]
    reward: &'a RewardConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    ppo: &'a Option<PpoConfig>,
    batch: WrittenBatch,
    pipeline: PipelineConfig,
    optimizer: &'a OptimizerConfig,
    data: &'a DataConfig,
    eval: WrittenEval,
    checkpoint: &'a CheckpointConfig,
    fault_tolerance: &'a FaultToleranceConfig,
    workers: &'a WorkersConfig,
}

#[derive(Serialize)]
struct WrittenBatch {
    micro_batch: usize,
    global: usize,
}

#[derive(Serialize)]
struct WrittenEval {
    interval: u64,
    micro_batches: usize,
}

impl<'a> From<&'a JobSpec> for Written<'a> {
    fn from(s: &'a JobSpec) -> Self {
        Written {
            name: &s.name,
            kind: s.kind,
            steps: s.steps,
            seed: s.seed,
            exact: s.exact,
            priority: s.priority,
            products: s.products,
            recompute: s.recompute,
            init_from: &s.init_from,
            resume_from: &s.resume_from,
            shape: s.shape,
            model: &s.model,
            loss: &s.loss,
            reward: &s.reward,
            ppo: &s.ppo,
            batch: WrittenBatch {
                micro_batch: s.batch.micro_batch,
                global: s.batch.micro_batch * s.batch.num_micro_batches,
            },
            pipeline: s.pipeline,
            optimizer: &s.optimizer,
            data: &s.data,
            eval: WrittenEval { interval: s.eval.interval, micro_batches: s.eval.num_micro_batches },
            checkpoint: &s.checkpoint,
            fault_tolerance: &s.fault_tolerance,
            workers: &s.workers,
        }
    }
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a message that names the nearest key.
fn unknown_key(error: &toml::de::Error) -> JobError {
    let text = error.to_string().trim_end().to_string();
    let quoted: Vec<&str> = error.message().split('`').skip(1).step_by(2).collect();
    if !error.message().starts_with("unknown field") || quoted.len() < 2 {
        return JobError::Toml(text);
    }
    let nearest = quoted[1..].iter().min_by_key(|k| strsim::damerau_levenshtein(quoted[0], k));
    JobError::UnknownKey { message: text, nearest: nearest.map_or_else(String::new, |k| k.to_string()) }
}
