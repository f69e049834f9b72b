//! The optimizer state that a place holds, and one AdamW update of it.
//!
//! A *shard* is one `1/dp` slice of the flat parameters of a partition: f32 master weights and both Adam moments. Working
//! parameters are a cache of the master weights of all shards, refreshed by the all-gather that ends a step.

use std::ops::Range;

use toroid_torus::partition::Partition;
use toroid_torus::schedule::OptimizerConfig;

use crate::device::{AdamW, Buffer, Device};

/// One shard: `shard_len` elements of master weights and moments, and where they lie in the partition.
pub struct Shard<D: Device> {
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
    pub fn from_host(device: &D, range: Range<usize>, host: &HostShard) -> Shard<D> {
        let upload = |values: &[f32]| {
            assert_eq!(values.len(), range.len(), "a shard's state has the length of its range");
            let mut buf = device.alloc(values.len());
            device.write(buf.all_mut(), values);
            buf
        };
        let (param, exp_avg, exp_avg_sq) = (upload(&host.param), upload(&host.exp_avg), upload(&host.exp_avg_sq));
        Shard { range, param, exp_avg, exp_avg_sq }
    }

    pub fn to_host(&self, device: &D) -> HostShard {
        let mut host = HostShard::zeros(self.range.len());
        device.read(self.param.all(), &mut host.param);
        device.read(self.exp_avg.all(), &mut host.exp_avg);
        device.read(self.exp_avg_sq.all(), &mut host.exp_avg_sq);
        host
    }

    /// Squared norm of the shard's gradient; slices that another TP rank counts are left out, so that the sum over all places
    /// has each parameter once. `grads` is the partition's flat gradient `(padded_len)`.
    pub fn grad_sum_of_squares(&self, device: &D, partition: &Partition, grads: &D::Buf) -> f64 {
        let cuts = partition.cut(self.range.clone()).filter(|(slice, _)| partition.counts(slice));
        cuts.map(|(slice, cut)| device.sum_of_squares(grads.view(slice.offset + cut.start..slice.offset + cut.end)))
            .sum()
    }

    /// One AdamW update from the partition's flat gradient `(padded_len)`.
    ///
    /// `t`: index of the update from 0, for the schedules; `update`: number of updates with this one, for the bias correction
    /// (skipped steps do not count); `norm`: global gradient norm before clipping.
    pub fn update(
        &mut self,
        device: &D,
        partition: &Partition,
        grads: &D::Buf,
        config: &OptimizerConfig,
        at: UpdateAt,
    ) {
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
        for (slice, cut) in partition.cut(self.range.clone()) {
            let in_partition = slice.offset + cut.start..slice.offset + cut.end;
            let in_shard = in_partition.start - self.range.start..in_partition.end - self.range.start;
            let hyper = AdamW { weight_decay: if slice.decays { decay } else { 0.0 }, ..hyper };
            device.adamw(
                self.param.view_mut(in_shard.clone()),
                self.exp_avg.view_mut(in_shard.clone()),
                self.exp_avg_sq.view_mut(in_shard),
                grads.view(in_partition),
                &hyper,
            );
        }
    }
}

/// When an update happens and what the whole torus found.
#[derive(Debug, Clone, Copy)]
pub struct UpdateAt {
    pub t: u64,
    pub total: u64,
    pub update: u64,
    pub norm: f64,
}
