//! Sealing: both holders of a shard have what its next update needs, and have compared what they hold (design section 4.2).

use toroid_torus::digest::{DIGEST_BYTES, Digest};

use super::holders::Holders;
use super::job::Job;
use super::kept::{Sealed, digest_of};
use super::shared::Shared;
use crate::comm::{Channel, CommError, Links, Transfer};
use crate::device::{Buffer, Device};

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
