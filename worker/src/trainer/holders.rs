//! The copy that a place keeps of another's shard, and who has the other ends.

use std::sync::Arc;

use toroid_torus::holders::{backup_of, guarded_by};
use toroid_torus::job::JobSpec;
use toroid_torus::partition::{partition, shard_position};
use toroid_torus::schedule::OptimizerConfig;

use super::kept::{Kept, Sealed};
use crate::device::{Buffer, Device};
use crate::optim::{Shard, UpdateAt};

/// The other end of each of this place's two shards.
pub(super) struct Holders<D: Device> {
    /// Rank that keeps a copy of this place's shard.
    pub backup: usize,
    /// Rank whose shard this place keeps a copy of.
    pub guarded: usize,
    pub copy: Shard<D>,
    /// `(shard_len)`: summed gradient of the copy's shard.
    pub grads: D::Buf,
    /// The copy and its gradient when they were sealed.
    pub sealed: Sealed,
    /// Inputs of the copy's last update; `None` where updates are not replayed.
    pub kept: Option<Kept<D>>,
}

impl<D: Device> Holders<D> {
    /// Memory for the copy; `None` where the job has one place or no redundancy. `used` is free memory, and reused where it fits.
    pub fn new(device: &D, spec: &JobSpec, rank: usize, used: Option<Holders<D>>) -> Option<Holders<D>> {
        let both = backup_of(&spec.shape, rank).zip(guarded_by(&spec.shape, rank));
        let (backup, guarded) = both.filter(|_| spec.fault_tolerance.redundancy)?;
        let place = spec.shape.place(guarded);
        let partition = Arc::new(partition(&spec.model, &spec.shape, place.tp, place.pp));
        let position = shard_position(&spec.shape, place.dp);
        let range = position * partition.shard_len..(position + 1) * partition.shard_len;
        let holders = match used.filter(|used| used.copy.range.len() == range.len()) {
            Some(mut used) => {
                used.copy.move_to(partition, range);
                if let Some(kept) = &mut used.kept {
                    kept.move_to(&used.copy);
                }
                Holders { backup, guarded, ..used }
            }
            None => {
                let grads = device.alloc(range.len());
                let copy = Shard::alloc(device, partition, range);
                let kept = spec.fault_tolerance.replay.then(|| Kept::new(device, &copy));
                Holders { backup, guarded, copy, grads, sealed: Sealed::default(), kept }
            }
        };
        Some(holders)
    }

    /// Updates the copy by the gradient that was sealed.
    pub fn update(&mut self, device: &D, config: &OptimizerConfig, at: UpdateAt) {
        match &mut self.kept {
            Some(kept) => {
                std::mem::swap(&mut kept.grads, &mut self.grads);
                kept.update(device, &mut self.copy, config, self.sealed, at);
            }
            None => self.copy.update(device, self.grads.all(), config, at),
        }
    }
}
