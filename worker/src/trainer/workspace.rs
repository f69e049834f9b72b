//! What a place allocates before it knows the values: data, stage, buffers, memory for two shards. A spare makes it ahead (`WarmUp`).
//!
//! Preparing is most of what a death costs beyond the step itself. A spare with a workspace only has to connect and pull its shards.
//! A workspace fits every place of the same (tp, pp) coordinate, so it fits every place of a job with tp = pp = 1. Where it does not
//! fit, its tokens are still used.
//!
//! Deliberately absent: state. What is in the buffers means nothing until a source or a heal has written it.

use std::sync::Arc;

use toroid_torus::job::JobSpec;
use toroid_torus::partition::{Partition, partition, shard_position};
use toroid_torus::pipeline::Pipeline;

use super::environment::Environment;
use super::error::PrepareError;
use super::holders::Holders;
use super::kept::Kept;
use super::memory;
use super::shared::{PREPARE, Shared, WAIT_FOR_TOKENS};
use crate::checkpoint::{CheckpointError, Storage};
use crate::comm::{Fence, Group};
use crate::data::{Attend, Dataset, TokenFile};
use crate::device::Device;
use crate::model::Stage;
use crate::optim::Shard;

pub struct Workspace<D: Device + Clone> {
    spec: Arc<JobSpec>,
    rank: usize,
    checkpoint_root: String,
    tokens: Arc<TokenFile>,
    pub(super) dataset: Dataset,
    pub(super) data_digest: [u8; 32],
    pub(super) storage: Arc<Storage>,
    pub(super) parts: Parts<D>,
}

/// What of a job is made for one place of one shape.
pub(super) struct Parts<D: Device> {
    pub partition: Arc<Partition>,
    pub stage: Stage<D>,
    pub shard: Shard<D>,
    /// Memory for the inputs of the shard's updates; `None` where they are not replayed.
    pub kept: Option<Kept<D>>,
    pub holders: Option<Holders<D>>,
    pub pipeline: Pipeline,
    pub groups: Groups,
    pub buffers: Buffers,
}

/// Whom this place makes sums with.
pub(super) struct Groups {
    pub tp: Group,
    pub dp: Group,
}

/// Host buffers of a step, allocated once.
pub(super) struct Buffers {
    /// `(B * S)` each.
    pub inputs: Vec<u32>,
    pub targets: Vec<u32>,
    /// `(B * S, d)` each: what comes from and goes to the neighbouring stages.
    pub received: Vec<f32>,
    pub sent: Vec<f32>,
    pub scratch: Vec<f32>,
    /// Gradients whose parts are summed over TP ranks.
    pub partial: Vec<f32>,
    /// `(padded_len)` where there is a DP group, and away while a collective of it is in flight.
    pub flat: Vec<f32>,
    /// Assignments to experts in this step, `(layers, experts)` of the whole model.
    pub expert_load: Vec<u64>,
}

impl<D: Device + Clone> Parts<D> {
    /// For the place of `rank`.
    pub fn new(device: &D, spec: &JobSpec, rank: usize) -> Parts<D> {
        let place = spec.shape.place(rank);
        let partition = Arc::new(partition(&spec.model, &spec.shape, place.tp, place.pp));
        let pipeline = pipeline_of(spec, rank);
        let stage = Stage::new(device.clone(), spec, &spec.shape, place, &partition, pipeline.in_flight());
        let (position, len) = (shard_position(&spec.shape, place.dp), partition.shard_len);
        let before = device.allocated_bytes();
        let shard = Shard::alloc(device, Arc::clone(&partition), position * len..(position + 1) * len);
        let holders = Holders::new(device, spec, rank, None);
        let kept = holders.as_ref().filter(|h| h.kept.is_some()).map(|_| Kept::new(device, &shard));
        let optimizer_bytes = device.allocated_bytes() - before;
        tracing::info!("memory: {}", memory::report(spec, rank, stage.allocated(), optimizer_bytes));
        let activation = stage.activation_len();
        let buffers = Buffers {
            inputs: vec![0; spec.batch.micro_batch * spec.model.seq],
            targets: vec![0; spec.batch.micro_batch * spec.model.seq],
            received: vec![0.0; activation],
            sent: vec![0.0; activation],
            scratch: Vec::new(),
            partial: Vec::new(),
            flat: vec![0.0; if spec.shape.dp() > 1 { partition.padded_len } else { 0 }],
            expert_load: vec![0; spec.model.layers * spec.model.experts],
        };
        Parts { partition, stage, shard, kept, holders, pipeline, groups: groups_of(spec, rank), buffers }
    }

    /// For another place of the same (tp, pp) coordinate, with as many micro-batches in flight.
    fn move_to(mut self, device: &D, spec: &JobSpec, rank: usize) -> Parts<D> {
        let (position, len) = (shard_position(&spec.shape, spec.shape.place(rank).dp), self.partition.shard_len);
        self.shard.move_to(Arc::clone(&self.partition), position * len..(position + 1) * len);
        if let Some(kept) = &mut self.kept {
            kept.move_to(&self.shard);
        }
        let holders = Holders::new(device, spec, rank, self.holders);
        Parts { holders, pipeline: pipeline_of(spec, rank), groups: groups_of(spec, rank), ..self }
    }
}

fn pipeline_of(spec: &JobSpec, rank: usize) -> Pipeline {
    let place = spec.shape.place(rank);
    spec.pipeline.schedule.stage(place.pp, spec.shape.pp(), spec.batch.of_replica(spec.shape.dp(), place.dp).len())
}

fn groups_of(spec: &JobSpec, rank: usize) -> Groups {
    Groups { tp: Group::tp(&spec.shape, rank), dp: Group::dp(&spec.shape, rank) }
}

impl<D: Device + Clone> Workspace<D> {
    /// Makes the workspace of the place of `rank`, and reuses as much of `used` as fits. `fence` is that of the place's epoch, where there
    /// is one.
    pub fn make(
        device: &D,
        environment: &Environment,
        (spec, rank): (&Arc<JobSpec>, usize),
        checkpoint_root: &str,
        fence: Option<(&Fence, u64)>,
        used: Option<Workspace<D>>,
    ) -> Result<Workspace<D>, PrepareError> {
        spec.check()?;
        let used = match used {
            Some(used) if used.fits(spec, rank, checkpoint_root) => {
                return Ok(Workspace { rank, parts: used.parts.move_to(device, spec, rank), ..used });
            }
            used => used.filter(|used| used.spec.data == spec.data).map(|used| used.tokens),
        };
        let tokens = match used {
            Some(tokens) => tokens,
            None => {
                let mut attends = Attends { shared: &environment.shared, fence };
                let tokens = TokenFile::prepare(&spec.data, &environment.cache_dir, &mut attends)?;
                tell_of(&tokens);
                Arc::new(tokens)
            }
        };
        Ok(Workspace {
            spec: Arc::clone(spec),
            rank,
            checkpoint_root: checkpoint_root.into(),
            dataset: Dataset::new(Arc::clone(&tokens), spec.model.seq, &spec.data)?,
            data_digest: tokens.digest(),
            tokens,
            storage: Arc::new(Storage::open(checkpoint_root).map_err(PrepareError::Open)?),
            parts: {
                memory::reserve_memory(device, spec, rank)?;
                Parts::new(device, spec, rank)
            },
        })
    }

    /// Shows that files can be written to the folder of checkpoints, read and removed.
    pub fn check_storage(&self) -> Result<(), CheckpointError> {
        self.storage.check_access()
    }

    /// Why the checkpoint of `step` is not seen, if it is not.
    pub fn unseen(&self, step: Option<u64>) -> Option<String> {
        self.storage.manifest(step?).err().map(|e| e.to_string())
    }

    fn fits(&self, spec: &JobSpec, rank: usize, checkpoint_root: &str) -> bool {
        // Another shape may not have that rank at all.
        if *self.spec != *spec {
            return false;
        }
        let (own, place) = (spec.shape.place(self.rank), spec.shape.place(rank));
        (own.tp, own.pp) == (place.tp, place.pp)
            && self.checkpoint_root == checkpoint_root
            && self.parts.stage.in_flight() == pipeline_of(spec, rank).in_flight()
    }
}

/// What the text needs of the trainer while it is prepared. Reading and comparing are progress; waiting for another process that does
/// it is not, and is over with the epoch.
struct Attends<'a> {
    shared: &'a Shared,
    fence: Option<(&'a Fence, u64)>,
}

impl Attend for Attends<'_> {
    fn advance(&mut self, _: u64) {
        self.shared.advance();
    }

    fn waits(&mut self, is_waiting: bool) {
        self.shared.enter(if is_waiting { WAIT_FOR_TOKENS } else { PREPARE });
    }

    fn is_over(&self) -> bool {
        self.fence.is_some_and(|(fence, epoch)| fence.check(epoch).is_err())
    }
}

/// The log of each worker says what it trains on and what of it is left out.
fn tell_of(tokens: &TokenFile) {
    let how = if tokens.was_cached() { "found in the cache and compared" } else { "read" };
    tracing::info!("text: {}, {how}", tokens.source_summary());
    for left in tokens.left_out() {
        let (files, what, first) = (left.num_files, left.reason.words(), left.first.join(", "));
        tracing::warn!("text: {files} of the files are left out: {what}, {} bytes; the first: {first}", left.bytes);
    }
}
