//! The copy that a place keeps of another's shard, and how it stays equal (design section 4.2).
//!
//! The summed gradient of a shard goes to its backup holder, too: with the reduce-scatter where that is in the same DP group, after it where
//! there is none. Then the digest of the shard as it is follows. So both holders have what the next update needs, *sealed* here until the step is committed or dropped, and a
//! copy that differs (silent data corruption) is seen before anything is built on it.

use std::sync::Arc;

use toroid_torus::digest::{DIGEST_BYTES, Digest};
use toroid_torus::holders::{backup_of, guarded_by};
use toroid_torus::job::JobSpec;
use toroid_torus::partition::{partition, shard_position};
use toroid_torus::schedule::OptimizerConfig;

use super::replay::{Kept, Sealed, digest_of};
use super::{Job, Shared};
use crate::comm::{Channel, CommError, Links, Transfer};
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
    sealed: Sealed,
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

impl<D: Device + Clone> Job<D> {
    /// The backup holder has the summed gradient of this place's shard, and this place that of the guarded one, on return. The next
    /// update of both shards needs nothing more than the global sums.
    pub(super) fn seal(&mut self, links: &mut Links, shared: &Shared) -> Result<(), CommError> {
        let device = self.stage.device().clone();
        if let Some(holders) = &mut self.holders {
            shared.enter("digest");
            let (own, expected) = (self.shard.digest(&device), holders.copy.digest(&device));
            let (own_bytes, mut found) = (own.to_bytes(), [0; DIGEST_BYTES]);
            let Holders { backup, guarded, grads, kept, .. } = holders;
            let (backup, guarded, channel, is_kept) = (*backup, *guarded, Channel::Backup, kept.is_some());
            shared.enter("seal");
            let digests = [
                Transfer::Send { peer: backup, channel, data: &own_bytes },
                Transfer::Recv { peer: guarded, channel, buf: &mut found },
            ];
            if self.groups.dp.ranks.len() > 1 {
                // The gradients came with the reduce-scatter.
                links.run(&mut { digests })?;
            } else {
                device.with_host(self.stage.grads().view(self.shard.range.clone()), |sent| {
                    device.with_host_mut(grads.all_mut(), |received| {
                        let gradients = [
                            Transfer::Send { peer: backup, channel, data: bytemuck::cast_slice(sent) },
                            Transfer::Recv { peer: guarded, channel, buf: bytemuck::cast_slice_mut(received) },
                        ];
                        links.run(&mut gradients.into_iter().chain(digests).collect::<Vec<_>>())
                    })
                })?;
            }
            shared.enter("digest");
            let own_grads = self.stage.grads().view(self.shard.range.clone());
            let grads_of = |grads| if is_kept { digest_of(&device, grads) } else { Digest::default() };
            self.sealed_own = Sealed { state: own, grads: grads_of(own_grads) };
            holders.sealed = Sealed { state: expected, grads: grads_of(holders.grads.all()) };
            let found = Digest::from_bytes(found);
            if found != expected {
                self.corrupt = Some(format!(
                    "silent data corruption: after step {} the shard of rank {guarded} is {} there and {} in the copy of rank {}; \
                     look at the memory and the processor of both",
                    self.committed, found, expected, self.assignment.rank
                ));
            }
        }
        self.sealed = true;
        Ok(())
    }
}
