//! What a place needs whoever holds which shard: data, stage, buffers, room for two shards. A spare makes it ahead (`WarmUp`).
//!
//! Preparing is most of what a death costs beyond the step itself; a spare that has done it has only to connect and to pull its shards.
//! A room fits every place of the same (tp, pp) coordinate, so every place of a job with tp = pp = 1. Where it does not fit, the
//! tokens are still used.
//!
//! Deliberately absent: state. What is in the buffers means nothing until a source or a heal has written it.

use std::sync::Arc;

use toroid_torus::job::JobSpec;
use toroid_torus::partition::{Partition, partition, shard_position};
use toroid_torus::pipeline::{max_in_flight, one_f_one_b};

use super::Environment;
use super::holders::Holders;
use super::prepare::PrepareError;
use super::replay::Kept;
use crate::checkpoint::Storage;
use crate::data::{Dataset, TokenFile};
use crate::device::Device;
use crate::model::Stage;
use crate::optim::Shard;

pub struct Room<D: Device> {
    spec: Arc<JobSpec>,
    rank: usize,
    checkpoint_root: String,
    tokens: Arc<TokenFile>,
    pub(super) partition: Arc<Partition>,
    pub(super) dataset: Dataset,
    pub(super) data_digest: [u8; 32],
    pub(super) stage: Stage<D>,
    pub(super) storage: Arc<Storage>,
    pub(super) shard: Shard<D>,
    pub(super) kept: Option<Kept<D>>,
    pub(super) holders: Option<Holders<D>>,
    pub(super) buffers: Buffers,
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
    /// Assignments to experts in this step, `(layers, experts)` of the whole model.
    pub expert_load: Vec<u64>,
}

impl<D: Device + Clone> Room<D> {
    /// Room for the place of `rank`; `used` is what is there already, and taken as far as it fits.
    pub fn make(
        device: &D,
        environment: &Environment,
        spec: &Arc<JobSpec>,
        rank: usize,
        checkpoint_root: &str,
        used: Option<Room<D>>,
    ) -> Result<Room<D>, PrepareError> {
        spec.check()?;
        let position = shard_position(&spec.shape, spec.shape.place(rank).dp);
        if let Some(mut used) = used {
            if used.fits(spec, rank, checkpoint_root) {
                let (partition, len) = (Arc::clone(&used.partition), used.partition.shard_len);
                used.shard.move_to(partition, position * len..(position + 1) * len);
                if let Some(kept) = &mut used.kept {
                    kept.move_to(&used.shard);
                }
                used.holders = Holders::new(device, spec, rank, used.holders);
                return Ok(Room { rank, ..used });
            }
            if used.spec.data == spec.data {
                return Room::around(device, used.tokens, spec, rank, checkpoint_root);
            }
        }
        let tokens =
            Arc::new(TokenFile::prepare(&spec.data, &environment.cache_dir, &mut |_| environment.shared.advance())?);
        Room::around(device, tokens, spec, rank, checkpoint_root)
    }

    fn fits(&self, spec: &JobSpec, rank: usize, checkpoint_root: &str) -> bool {
        let (own, place) = (spec.shape.place(self.rank), spec.shape.place(rank));
        *self.spec == *spec
            && (own.tp, own.pp) == (place.tp, place.pp)
            && self.checkpoint_root == checkpoint_root
            && self.stage.num_slots() == num_slots(spec, rank)
    }

    fn around(
        device: &D,
        tokens: Arc<TokenFile>,
        spec: &Arc<JobSpec>,
        rank: usize,
        checkpoint_root: &str,
    ) -> Result<Room<D>, PrepareError> {
        let place = spec.shape.place(rank);
        let partition = Arc::new(partition(&spec.model, &spec.shape, place.tp, place.pp));
        let data_digest = tokens.digest();
        let dataset = Dataset::new(Arc::clone(&tokens), spec.model.seq, &spec.data)?;
        let stage = Stage::new(device.clone(), spec, &spec.shape, place, &partition, num_slots(spec, rank));
        let storage = Arc::new(Storage::open(checkpoint_root).map_err(PrepareError::Open)?);
        let (position, len) = (shard_position(&spec.shape, place.dp), partition.shard_len);
        let shard = Shard::alloc(device, Arc::clone(&partition), position * len..(position + 1) * len);
        let holders = Holders::new(device, spec, rank, None);
        let kept = holders.as_ref().filter(|h| h.kept.is_some()).map(|_| Kept::new(device, &shard));
        let activation = stage.activation_len();
        let buffers = Buffers {
            inputs: vec![0; spec.batch.micro_batch * spec.model.seq],
            targets: vec![0; spec.batch.micro_batch * spec.model.seq],
            received: vec![0.0; activation],
            sent: vec![0.0; activation],
            scratch: Vec::new(),
            partial: Vec::new(),
            expert_load: vec![0; spec.model.layers * spec.model.experts],
        };
        Ok(Room {
            spec: Arc::clone(spec),
            rank,
            checkpoint_root: checkpoint_root.into(),
            tokens,
            partition,
            dataset,
            data_digest,
            stage,
            storage,
            shard,
            kept,
            holders,
            buffers,
        })
    }
}

/// Micro-batches between their forward and their backward at a time.
fn num_slots(spec: &JobSpec, rank: usize) -> usize {
    let place = spec.shape.place(rank);
    let num_micro_batches = spec.batch.of_replica(spec.shape.dp(), place.dp).len();
    max_in_flight(&one_f_one_b(place.pp, spec.shape.pp(), num_micro_batches)).max(1)
}
