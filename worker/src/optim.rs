//! The optimizer state that a place holds, and one AdamW update of it.
//!
//! A *shard* is one `1/dp` slice of the flat parameters of a partition: f32 master weights and both Adam moments. Working
//! parameters are a cache of the master weights of all shards, refreshed by the all-gather that ends a step.

use std::ops::Range;
use std::sync::Arc;

use toroid_torus::digest::{Digest, salt};
use toroid_torus::partition::{LocalSlice, Partition};
use toroid_torus::schedule::OptimizerConfig;

use crate::device::{AdamW, Buffer, Device, View};

/// One shard: `shard_len` elements of master weights and moments, and where they lie in their partition. A place holds its own and
/// a copy of another's (the two holders of design section 4.2): both are updated by the same arithmetic and agree to the bit.
pub struct Shard<D: Device> {
    pub partition: Arc<Partition>,
    /// Flat range in the partition.
    pub range: Range<usize>,
    /// Master weights `(shard_len)`.
    pub param: D::Buf,
    /// First moment `(shard_len)`.
    pub exp_avg: D::Buf,
    /// Second moment `(shard_len)`.
    pub exp_avg_sq: D::Buf,
}

/// A shard's state in host memory, in the order of [`Shard`].
#[derive(Debug, Clone, PartialEq)]
pub struct HostShard {
    pub param: Vec<f32>,
    pub exp_avg: Vec<f32>,
    pub exp_avg_sq: Vec<f32>,
}

impl HostShard {
    pub fn zeros(len: usize) -> HostShard {
        HostShard { param: vec![0.0; len], exp_avg: vec![0.0; len], exp_avg_sq: vec![0.0; len] }
    }
}

impl<D: Device> Shard<D> {
    /// Room for the state of this range.
    pub fn alloc(device: &D, partition: Arc<Partition>, range: Range<usize>) -> Shard<D> {
        let buf = || device.alloc(range.len());
        Shard { param: buf(), exp_avg: buf(), exp_avg_sq: buf(), partition, range }
    }

    /// The same room for another range of as many elements; what is in it means nothing.
    pub fn move_to(&mut self, partition: Arc<Partition>, range: Range<usize>) {
        assert_eq!(self.range.len(), range.len(), "a shard's room has the length of its range");
        (self.partition, self.range) = (partition, range);
    }

    pub fn write(&mut self, device: &D, host: &HostShard) {
        assert_eq!(host.param.len(), self.range.len(), "a shard's state has the length of its range");
        device.write(self.param.all_mut(), &host.param);
        device.write(self.exp_avg.all_mut(), &host.exp_avg);
        device.write(self.exp_avg_sq.all_mut(), &host.exp_avg_sq);
    }

    /// Of the state: equal for the two holders.
    pub fn digest(&self, device: &D) -> Digest {
        self.digest_of(device, 0..self.range.len())
    }

    /// Of a range of the state, counted within the shard.
    pub fn digest_of(&self, device: &D, range: Range<usize>) -> Digest {
        (0..).zip(self.parts()).map(|(i, part)| device.digest(part.view(range.clone()), salt(i))).sum()
    }

    /// The state as it is, for another thread: it stays whatever becomes of the shard.
    pub fn snapshot(&self, device: &D) -> Snapshot<D> {
        Snapshot {
            param: device.snapshot(&self.param),
            exp_avg: device.snapshot(&self.exp_avg),
            exp_avg_sq: device.snapshot(&self.exp_avg_sq),
        }
    }

    fn parts(&self) -> [&D::Buf; 3] {
        [&self.param, &self.exp_avg, &self.exp_avg_sq]
    }

    /// Where a snapshot holds memory, other memory; the values are lost.
    fn leave_to_snapshots(&mut self, device: &D) {
        for part in [&mut self.param, &mut self.exp_avg, &mut self.exp_avg_sq] {
            if device.is_shared(part) {
                *part = device.alloc(part.len());
            }
        }
    }

    /// Squared norm of the shard's gradient `grads (shard_len)`; slices that another TP rank counts are left out, so that the sum
    /// over all places has each parameter once.
    pub fn grad_sum_of_squares(&self, device: &D, grads: View<'_, D::Buf>) -> f64 {
        let counted = self.cuts().filter(|(slice, _)| self.partition.counts(slice));
        counted.map(|(_, in_shard)| device.sum_of_squares(part(grads, in_shard))).sum()
    }

    /// The slices of the partition that the shard cuts, each with its elements in the shard.
    fn cuts(&self) -> impl Iterator<Item = (&LocalSlice, Range<usize>)> {
        let start = self.range.start;
        self.partition
            .cut(self.range.clone())
            .map(move |(slice, cut)| (slice, slice.offset + cut.start - start..slice.offset + cut.end - start))
    }

    /// One AdamW update from the summed gradient `grads (shard_len)`. In place; while a snapshot holds the state, into other memory.
    pub fn update(&mut self, device: &D, grads: View<'_, D::Buf>, config: &OptimizerConfig, at: UpdateAt) {
        if self.parts().into_iter().any(|part| device.is_shared(part)) {
            let after = Shard::alloc(device, Arc::clone(&self.partition), self.range.clone());
            let before = std::mem::replace(self, after);
            return self.update_from(&before, device, grads, config, at);
        }
        let Shard { param, exp_avg, exp_avg_sq, .. } = self;
        for (range, hyper) in updates(&self.partition, &self.range, config, at) {
            let [p, m, v] = [&mut *param, exp_avg, exp_avg_sq].map(|part| part.view_mut(range.clone()));
            device.adamw(p, m, v, part(grads, range), &hyper);
        }
    }

    /// Becomes what [`Shard::update`] makes of `before`, a shard of the same range.
    pub fn update_from(
        &mut self,
        before: &Shard<D>,
        device: &D,
        grads: View<'_, D::Buf>,
        config: &OptimizerConfig,
        at: UpdateAt,
    ) {
        assert_eq!(self.range, before.range, "a shard is updated from one of the same range");
        self.leave_to_snapshots(device);
        for (range, hyper) in updates(&self.partition, &self.range, config, at) {
            let from = before.parts().map(|part| part.view(range.clone()));
            let parts = [&mut self.param, &mut self.exp_avg, &mut self.exp_avg_sq];
            let to = parts.map(|part| part.view_mut(range.clone()));
            device.adamw_into(from, to, part(grads, range), &hyper);
        }
        let padding = self.partition.len.clamp(self.range.start, self.range.end) - self.range.start..self.range.len();
        for (from, to) in before.parts().into_iter().zip([&mut self.param, &mut self.exp_avg, &mut self.exp_avg_sq]) {
            device.copy(from.view(padding.clone()), to.view_mut(padding.clone()));
        }
    }
}

/// A shard's state for another thread; each `(shard_len)`.
pub struct Snapshot<D: Device> {
    pub param: D::Snapshot,
    pub exp_avg: D::Snapshot,
    pub exp_avg_sq: D::Snapshot,
}

/// The ranges of a shard that are updated, counted within it, and how.
fn updates(
    partition: &Partition,
    shard: &Range<usize>,
    config: &OptimizerConfig,
    at: UpdateAt,
) -> impl Iterator<Item = (Range<usize>, AdamW)> {
    let hyper = AdamW {
        lr: config.lr_at(at.t, at.total),
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        weight_decay: 0.0,
        bias1: 1.0 - config.beta1.powf(at.update as f64),
        bias2: 1.0 - config.beta2.powf(at.update as f64),
        grad_scale: config.clip_scale(at.norm),
    };
    let decay = config.weight_decay_at(at.t, at.total);
    let first = shard.start;
    partition.cut(shard.clone()).map(move |(slice, cut)| {
        let start = slice.offset + cut.start - first;
        let hyper = AdamW { weight_decay: if slice.decays { decay } else { 0.0 }, ..hyper };
        (start..start + cut.len(), hyper)
    })
}

fn part<B>(view: View<'_, B>, range: Range<usize>) -> View<'_, B> {
    View { buf: view.buf, start: view.start + range.start, len: range.len() }
}

/// When an update happens and what the whole torus found: `t` is the update's index from 0, for the schedules; `update` the number
/// of updates with this one, for the bias correction (skipped steps do not count); `norm` the global gradient norm before clipping.
#[derive(Debug, Clone, Copy)]
pub struct UpdateAt {
    pub t: u64,
    pub total: u64,
    pub update: u64,
    pub norm: f64,
}

#[cfg(test)]
mod tests {
    use toroid_torus::geometry::Shape;
    use toroid_torus::partition::partition;

    use super::*;
    use crate::device::{CpuDevice, Snapshot as _};

    /// In place, beside what is kept for a replay, and while checkpoints still read the state: the same bits, and those that read see
    /// what they were given.
    #[test]
    fn every_way_of_updating_gives_the_same_bits_and_leaves_snapshots_alone() {
        let device = CpuDevice::new(2);
        let spec = toroid_torus::job::parse("steps = 10\ndata.path = 'text'").expect("a job");
        let partition = Arc::new(partition(&spec.model, &Shape::new(1, 1, 3).expect("a shape"), 0, 0));
        // The last shard has padding.
        let range = 2 * partition.shard_len..3 * partition.shard_len;
        let len = range.len();
        let wave = |by: f32| (0..len).map(|i| (i as f32 * by).sin()).collect::<Vec<f32>>();
        let mut host = HostShard { param: wave(0.1), exp_avg: wave(0.2), exp_avg_sq: wave(0.3) };
        host.exp_avg_sq.iter_mut().for_each(|v| *v = v.abs());
        let fresh = || {
            let mut shard = Shard::alloc(&device, Arc::clone(&partition), range.clone());
            shard.write(&device, &host);
            shard
        };
        let mut grads = device.alloc(len);
        device.write(grads.all_mut(), &wave(0.7));
        let config = spec.optimizer;
        let at = |t| UpdateAt { t, total: 10, update: t + 1, norm: 3.0 };

        let (mut in_place, mut read, mut kept, mut room) = (fresh(), fresh(), fresh(), fresh());
        for part in [&mut room.param, &mut room.exp_avg, &mut room.exp_avg_sq] {
            device.fill(part.all_mut(), 7.0);
        }
        let mut snapshots = Vec::new();
        for t in 0..4 {
            let before = in_place.digest(&device);
            in_place.update(&device, grads.all(), &config, at(t));
            snapshots.push((read.snapshot(&device), before));
            read.update(&device, grads.all(), &config, at(t));
            snapshots.push((kept.snapshot(&device), before));
            std::mem::swap(&mut kept, &mut room);
            kept.update_from(&room, &device, grads.all(), &config, at(t));
            assert_eq!(room.digest(&device), before, "the inputs of update {t}");
            for (found, how) in [(&read, "into other memory"), (&kept, "beside the inputs")] {
                assert_eq!(found.digest(&device), in_place.digest(&device), "update {t} {how}");
            }
        }
        for (snapshot, expected) in snapshots {
            let parts = [&snapshot.param, &snapshot.exp_avg, &snapshot.exp_avg_sq];
            let digest = |(i, x): (u32, &crate::device::cpu::HostSnapshot)| {
                x.with_host(0..x.len(), |x| toroid_torus::digest::digest(x, 0, salt(i)))
            };
            let found: Digest = (0..).zip(parts).map(digest).sum();
            assert_eq!(found, expected, "what a checkpoint reads");
        }
    }
}
