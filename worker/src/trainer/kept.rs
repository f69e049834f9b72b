//! The inputs of the last update of a shard, and that update made again.

use std::sync::Arc;

use toroid_torus::digest::{Digest, salt};
use toroid_torus::schedule::OptimizerConfig;

use crate::device::{Buffer, Device, View};
use crate::optim::{Shard, UpdateAt};

/// Of a shard when an update of it was sealed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub state: Digest,
    /// Only where updates can be replayed.
    pub grads: Digest,
}

/// The inputs of the last update of a shard.
pub(super) struct Kept<D: Device> {
    /// Meaningless where nothing is kept.
    before: Shard<D>,
    /// `(shard_len)`: the summed gradient.
    pub grads: D::Buf,
    /// What both holders have sealed, and when the update was; `None`: nothing is kept.
    update: Option<(Sealed, UpdateAt)>,
}

impl<D: Device> Kept<D> {
    /// Memory for the inputs of this shard's updates.
    pub fn new(device: &D, shard: &Shard<D>) -> Kept<D> {
        let before = Shard::alloc(device, Arc::clone(&shard.partition), shard.range.clone());
        Kept { before, grads: device.alloc(shard.range.len()), update: None }
    }

    /// The shard before its last update.
    pub fn before(&self) -> Option<&Shard<D>> {
        self.update.is_some().then_some(&self.before)
    }

    /// Nothing is kept; what will be is of this shard.
    pub fn move_to(&mut self, shard: &Shard<D>) {
        self.before.move_to(Arc::clone(&shard.partition), shard.range.clone());
        self.update = None;
    }

    /// Updates `shard` by the gradient in `grads`, which both holders have sealed; its state before becomes what is kept.
    pub fn update(&mut self, device: &D, shard: &mut Shard<D>, config: &OptimizerConfig, sealed: Sealed, at: UpdateAt) {
        std::mem::swap(&mut self.before, shard);
        shard.update_from(&self.before, device, self.grads.all(), config, at);
        self.update = Some((sealed, at));
    }

    /// Makes the update again and looks whether `found` is its result. The inputs are gone afterwards.
    pub fn judge(&mut self, device: &D, found: &Shard<D>, config: &OptimizerConfig) -> Vote {
        let Some((sealed, at)) = self.update.take() else { return Vote::Unknown };
        if self.before.digest(device) != sealed.state || digest_of(device, self.grads.all()) != sealed.grads {
            return Vote::Wrong;
        }
        self.before.update(device, self.grads.all(), config, at);
        if self.before.digest(device) == found.digest(device) { Vote::Right } else { Vote::Wrong }
    }
}

/// Of the gradient of a shard.
pub(super) fn digest_of<D: Device>(device: &D, grads: View<'_, D::Buf>) -> Digest {
    device.digest(grads, salt(0))
}

/// What a holder says of its copy of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vote {
    /// The replay gives it.
    Right,
    /// The replay gives another, or the inputs are not those that were sealed.
    Wrong,
    /// There is nothing to replay.
    Unknown,
}

impl Vote {
    pub fn encode(self) -> f64 {
        match self {
            Vote::Right => 1.0,
            Vote::Wrong => 2.0,
            Vote::Unknown => 3.0,
        }
    }

    pub fn decode(value: f64) -> Vote {
        match value {
            1.0 => Vote::Right,
            2.0 => Vote::Wrong,
            _ => Vote::Unknown,
        }
    }
}
