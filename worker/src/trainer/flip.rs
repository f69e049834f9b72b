//! A bit of a place's memory flips where a test wants it to, see [`super::failpoint`].

use super::job::Job;
use super::shared::Shared;
use crate::device::{Buffer, CachedAttention};

impl<D: CachedAttention> Job<D> {
    pub(super) fn flip_a_bit(&mut self, shared: &Shared, is_before_update: bool) {
        let step = self.committed.after(u64::from(is_before_update));
        let Some(part) = shared.failpoints.flips(step.get(), is_before_update) else { return };
        tracing::warn!("failpoint: flips a bit of {part} at step {step}");
        let device = self.passes.device().clone();
        let at = if part == "own.grads" { self.shards.own().range.start } else { 0 };
        let buf = match part {
            "own.param" => &mut self.shards.own_mut().param,
            "own.exp_avg" => &mut self.shards.own_mut().exp_avg,
            "own.exp_avg_sq" => &mut self.shards.own_mut().exp_avg_sq,
            "own.grads" => self.passes.grads_mut(),
            part => {
                let (_, holders) = self.shards.pair_mut().unwrap_or_else(|| panic!("there is no copy for {part}"));
                match part {
                    "copy.param" => &mut holders.copy.param,
                    "copy.exp_avg" => &mut holders.copy.exp_avg,
                    "copy.exp_avg_sq" => &mut holders.copy.exp_avg_sq,
                    "copy.grads" => &mut holders.grads,
                    part => panic!("there is no part {part} to flip a bit of"),
                }
            }
        };
        let one = at + 1..at + 2;
        let mut value = [0.0];
        device.read(buf.view(one.clone()), &mut value);
        value[0] = f32::from_bits(value[0].to_bits() ^ (1 << 20));
        device.write(buf.view_mut(one), &value);
    }
}
