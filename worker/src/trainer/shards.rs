//! The two shards that a place holds: its own and the copy of another's, and how both stay equal to what the other holder has (design
//! section 4.2).
//!
//! The summed gradient of a shard goes to its backup holder, too: with the reduce-scatter where that is in the same DP group, after it where
//! there is none. Then the digest of the shard as it is follows. So both holders have what the next update needs, *sealed* here until the step is committed or dropped, and a
//! copy that differs (silent data corruption) is seen before anything is built on it.

use std::ops::Range;
use std::sync::Arc;

use toroid_torus::digest::{DIGEST_BYTES, Digest};
use toroid_torus::failpoint;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job::JobSpec;
use toroid_torus::partition::{Partition, shard_position};
use toroid_torus::resplit::Half;
use toroid_torus::schedule::OptimizerConfig;

use super::holders::Holders;
use super::kept::{Kept, Sealed, Vote, digest_of};
use super::shared::Shared;
use crate::comm::{Channel, CommError, Links, Transfer};
use crate::device::{Buffer, Device, View};
use crate::optim::{Shard, UpdateAt};

pub(super) struct Shards<D: Device> {
    own: Shard<D>,
    /// Inputs of the own shard's last update; `None` where updates are not replayed.
    kept: Option<Kept<D>>,
    /// The own shard and its gradient when they were sealed.
    sealed_own: Sealed,
    /// The copy of another place's shard; `None` without redundancy.
    holders: Option<Holders<D>>,
    /// All that is needed for the next update is here: the gradients of both shards.
    is_sealed: bool,
    /// What this place saw of silent data corruption in this epoch.
    corruption: Option<String>,
}

/// What is sealed of the own shard, and where.
pub(super) struct Sealing<'a, D: Device> {
    pub device: &'a D,
    /// `(shard_len)`: the summed gradient.
    pub grads: View<'a, D::Buf>,
    /// The gradient of the guarded shard came with the reduce-scatter.
    pub is_passed_on: bool,
    pub rank: Rank,
    pub committed: Step,
}

/// Elements of the shard of `rank`.
fn range_of(spec: &JobSpec, rank: usize, partition: &Partition) -> Range<usize> {
    let (position, len) = (shard_position(&spec.shape, spec.shape.place(rank).dp), partition.shard_len);
    position * len..(position + 1) * len
}

impl<D: Device> Shards<D> {
    /// Memory for those of the place of `rank`; what is in it means nothing yet.
    pub fn new(device: &D, spec: &JobSpec, rank: usize, partition: &Arc<Partition>) -> Shards<D> {
        let own = Shard::alloc(device, Arc::clone(partition), range_of(spec, rank, partition));
        let holders = Holders::new(device, spec, rank, None);
        let kept = holders.as_ref().filter(|h| h.kept.is_some()).map(|_| Kept::new(device, &own));
        Shards { own, kept, sealed_own: Sealed::default(), holders, is_sealed: false, corruption: None }
    }

    /// The same memory for another place of the same (tp, pp) coordinate.
    pub fn move_to(mut self, device: &D, spec: &JobSpec, rank: usize) -> Shards<D> {
        let partition = Arc::clone(&self.own.partition);
        let range = range_of(spec, rank, &partition);
        self.own.move_to(partition, range);
        if let Some(kept) = &mut self.kept {
            kept.move_to(&self.own);
        }
        let holders = Holders::new(device, spec, rank, self.holders);
        Shards { holders, ..self }
    }

    pub fn own(&self) -> &Shard<D> {
        &self.own
    }

    #[cfg(any(test, feature = "failpoint"))]
    pub fn own_mut(&mut self) -> &mut Shard<D> {
        &mut self.own
    }

    /// The copy of another place's shard, where this place keeps one.
    pub fn copy(&self) -> Option<&Shard<D>> {
        self.holders.as_ref().map(|holders| &holders.copy)
    }

    /// The own one, then the copy.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Shard<D>> {
        std::iter::once(&mut self.own).chain(self.holders.as_mut().map(|holders| &mut holders.copy))
    }

    pub fn half_mut(&mut self, half: Half) -> &mut Shard<D> {
        match half {
            Half::Own => &mut self.own,
            Half::Guarded => &mut self.holders.as_mut().expect("a place guards a shard or has no part of one").copy,
        }
    }

    /// The own shard and the copy with its holders; `None` without redundancy.
    pub fn pair_mut(&mut self) -> Option<(&mut Shard<D>, &mut Holders<D>)> {
        Some((&mut self.own, self.holders.as_mut()?))
    }

    pub fn has_copy(&self) -> bool {
        self.holders.is_some()
    }

    /// The elements of the guarded shard, and where their summed gradient goes.
    pub fn guarded_grads(&mut self) -> Option<(Range<usize>, &mut D::Buf)> {
        self.holders.as_mut().map(|holders| (holders.copy.range.clone(), &mut holders.grads))
    }

    /// The own shard before its last update, where that is kept.
    pub fn before_last_update(&self) -> Option<&Shard<D>> {
        self.kept.as_ref().and_then(Kept::before)
    }

    /// Gives back all memory but that of the own shard, and returns the copy.
    pub fn give_up_all_but_state(&mut self) -> Option<Shard<D>> {
        self.kept = None;
        self.holders.take().map(|holders| holders.copy)
    }

    pub fn into_own(self) -> Shard<D> {
        self.own
    }

    /// Takes the state over from shards of the same place.
    pub fn put(&mut self, own: Shard<D>, guarded: Option<Shard<D>>) {
        self.own = own;
        if let (Some(holders), Some(guarded)) = (&mut self.holders, guarded) {
            holders.copy = guarded;
        }
    }

    /// Whether the gradients of both shards are here, so that the next step can be committed.
    pub fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    /// What was sealed is made again.
    pub fn unseal(&mut self) {
        self.is_sealed = false;
    }

    /// What was seen in an epoch goes with it.
    pub fn forget_corruption(&mut self) {
        self.corruption = None;
    }

    pub fn saw_corruption(&self) -> bool {
        self.corruption.is_some()
    }

    pub fn take_corruption(&mut self) -> Option<String> {
        self.corruption.take()
    }

    /// The backup holder has the summed gradient of this place's shard, and this place that of the guarded one, on return. The next
    /// update of both shards needs nothing more than the global sums.
    pub fn seal(&mut self, links: &mut Links, shared: &Shared, of: &Sealing<'_, D>) -> Result<(), CommError> {
        let device = of.device;
        if let Some(holders) = &mut self.holders {
            shared.enter("digest");
            let (own, expected) = (self.own.digest(device), holders.copy.digest(device));
            let (own_bytes, mut found) = (own.to_bytes(), [0; DIGEST_BYTES]);
            let Holders { backup, guarded, grads, kept, .. } = holders;
            let (backup, guarded, channel, is_kept) = (*backup, *guarded, Channel::Backup, kept.is_some());
            shared.enter("seal");
            let digests = [
                Transfer::Send { peer: backup, channel, data: &own_bytes },
                Transfer::Recv { peer: guarded, channel, buf: &mut found },
            ];
            if of.is_passed_on {
                links.run(&mut { digests })?;
            } else {
                device.with_host(of.grads, |sent| {
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
            let grads_of = |grads| if is_kept { digest_of(device, grads) } else { Digest::default() };
            self.sealed_own = Sealed { state: own, grads: grads_of(of.grads) };
            holders.sealed = Sealed { state: expected, grads: grads_of(holders.grads.all()) };
            let found = Digest::from_bytes(found);
            if found != expected {
                self.corruption = Some(format!(
                    "silent data corruption: after step {} the shard of rank {guarded} is {} there and {} in the copy of rank {}; \
                     look at the memory and the processor of both",
                    of.committed, found, expected, of.rank
                ));
            }
        }
        self.is_sealed = true;
        Ok(())
    }

    /// Updates both shards; `grads (shard_len)` is the summed gradient of the own one.
    pub fn update(&mut self, device: &D, grads: View<'_, D::Buf>, config: &OptimizerConfig, at: UpdateAt) {
        match &mut self.kept {
            Some(kept) => {
                device.copy(grads, kept.grads.all_mut());
                kept.update(device, &mut self.own, config, self.sealed_own, at);
            }
            None => self.own.update(device, grads, config, at),
        }
        if let Some(holders) = self.holders.as_mut().filter(|_| !failpoint!(SkipBackup)) {
            holders.update(device, config, at);
        }
    }

    /// Makes the last update of both shards again: what this place says of the own one, and of the copy.
    pub fn replay(&mut self, device: &D, config: &OptimizerConfig) -> (Vote, Option<Vote>) {
        let vote = |kept: &mut Option<Kept<D>>, shard: &Shard<D>| {
            kept.as_mut().map_or(Vote::Unknown, |kept| kept.judge(device, shard, config))
        };
        let own = vote(&mut self.kept, &self.own);
        (own, self.holders.as_mut().map(|holders| vote(&mut holders.kept, &holders.copy)))
    }
}
