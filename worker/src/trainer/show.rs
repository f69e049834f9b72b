//! When a trainer shows its observer what it does, see [`super::observe`].

use toroid_torus::ids::Step;

use super::job::Job;
use super::observe::{Deed, Shown};
use super::shared::Shared;
use crate::device::{Buffer, CachedAttention, Device};
use crate::optim::{HostShard, Shard};

impl<D: CachedAttention> Job<D> {
    pub(super) fn show(&self, shared: &Shared, step: Step, deed: Deed) {
        if let Some(observer) = shared.observer() {
            observer.saw(&self.assignment, step, deed);
        }
    }

    pub(super) fn show_state(&self, shared: &Shared) {
        if let Some(observer) = shared.observer().filter(|_| self.held.has_state()) {
            let device = self.passes.device();
            let shown = |shard: &Shard<D>| Shown { range: shard.range.clone(), state: read(device, shard) };
            let copy = self.shards.copy().map(shown);
            let deed = Deed::Holds { as_place: self.held.made_for(), own: shown(self.shards.own()), copy };
            observer.saw(&self.assignment, self.committed, deed);
        }
    }
}

fn read<D: Device>(device: &D, shard: &Shard<D>) -> HostShard {
    let values = |buf: &D::Buf| device.with_host(buf.all(), <[f32]>::to_vec);
    HostShard { param: values(&shard.param), exp_avg: values(&shard.exp_avg), exp_avg_sq: values(&shard.exp_avg_sq) }
}
