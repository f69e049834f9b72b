//! A bit of a place's memory flips where a test wants it to, see [`super::failpoint`].

use super::job::Job;
use super::shared::Shared;
use crate::device::{Buffer, Device};

impl<D: Device + Clone> Job<D> {
    pub(super) fn flip_a_bit(&mut self, shared: &Shared, is_before_update: bool) {
        let step = self.committed + u64::from(is_before_update);
        let Some(part) = shared.failpoints.flips(step, is_before_update) else { return };
        tracing::warn!("failpoint: flips a bit of {part} at step {step}");
        let device = self.stage.device().clone();
        let own = self.shard.range.start;
        let shard = &mut self.shard;
        let copy = self.holders.as_mut();
        let (buf, at) = match (part, copy) {
            ("own.param", _) => (&mut shard.param, 0),
            ("own.exp_avg", _) => (&mut shard.exp_avg, 0),
            ("own.exp_avg_sq", _) => (&mut shard.exp_avg_sq, 0),
            ("own.grads", _) => (self.stage.grads_mut(), own),
            ("copy.param", Some(holders)) => (&mut holders.copy.param, 0),
            ("copy.exp_avg", Some(holders)) => (&mut holders.copy.exp_avg, 0),
            ("copy.exp_avg_sq", Some(holders)) => (&mut holders.copy.exp_avg_sq, 0),
            ("copy.grads", Some(holders)) => (&mut holders.grads, 0),
            (part, _) => panic!("there is no part {part} to flip a bit of"),
        };
        let one = at + 1..at + 2;
        let mut value = [0.0];
        device.read(buf.view(one.clone()), &mut value);
        value[0] = f32::from_bits(value[0].to_bits() ^ (1 << 20));
        device.write(buf.view_mut(one), &value);
    }
}
