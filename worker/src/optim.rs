//! The optimizer state that a place holds, and one AdamW update of it.
//!
//! A *shard* is one `1/dp` slice of the flat parameters of a partition: f32 master weights and both Adam moments. Working
//! parameters are a cache of the master weights of all shards, refreshed by the all-gather that ends a step.

use std::ops::Range;
use std::sync::Arc;

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

    pub fn to_host(&self, device: &D) -> HostShard {
        let mut host = HostShard::zeros(self.range.len());
        device.read(self.param.all(), &mut host.param);
        device.read(self.exp_avg.all(), &mut host.exp_avg);
        device.read(self.exp_avg_sq.all(), &mut host.exp_avg_sq);
        host
    }

    /// blake3 of the state: equal for the two holders.
    pub fn digest(&self, device: &D) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.param, &self.exp_avg, &self.exp_avg_sq] {
            device.with_host(part.all(), |values| {
                hasher.update(bytemuck::cast_slice(values));
            });
        }
        *hasher.finalize().as_bytes()
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

    /// One AdamW update from the summed gradient `grads (shard_len)`.
    pub fn update(&mut self, device: &D, grads: View<'_, D::Buf>, config: &OptimizerConfig, at: UpdateAt) {
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
        let partition = Arc::clone(&self.partition);
        for (slice, cut) in partition.cut(self.range.clone()) {
            let start = slice.offset + cut.start - self.range.start;
            let in_shard = start..start + cut.len();
            let hyper = AdamW { weight_decay: if slice.decays { decay } else { 0.0 }, ..hyper };
            device.adamw(
                self.param.view_mut(in_shard.clone()),
                self.exp_avg.view_mut(in_shard.clone()),
                self.exp_avg_sq.view_mut(in_shard.clone()),
                part(grads, in_shard),
                &hyper,
            );
        }
    }
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
