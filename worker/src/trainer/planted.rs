//! A bit that a test wants flipped in this process: `TOROID_TEST_FLIP_AT=PART@STEP`. Not in a normal build.
//!
//! Silent corruption by its effect: an element of a shard's state changes right after the commit of the step, one of a gradient
//! between the commit point and the update. Nothing is said.

use super::{Job, Shared};
use crate::device::{Buffer, Device};

/// `own` and `copy` are the two shards that a place holds; the parts are `param`, `exp_avg`, `exp_avg_sq` and `grads`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlipAt {
    pub part: String,
    pub step: u64,
}

impl FlipAt {
    pub fn from_environment() -> Option<FlipAt> {
        let value = std::env::var("TOROID_TEST_FLIP_AT").ok()?;
        let (part, step) = value.split_once('@').expect("TOROID_TEST_FLIP_AT is PART@STEP");
        Some(FlipAt { part: part.into(), step: step.parse().expect("a step is a number") })
    }
}

impl<D: Device + Clone> Job<D> {
    pub(super) fn flip_planted(&mut self, shared: &Shared, is_before_update: bool) {
        let Some(flip) = &shared.flip_at else { return };
        let step = self.committed + u64::from(is_before_update);
        if flip.step != step || flip.part.ends_with("grads") != is_before_update {
            return;
        }
        tracing::warn!("flips a bit of {} at step {step}, as TOROID_TEST_FLIP_AT asked for", flip.part);
        let device = self.stage.device().clone();
        let own = self.shard.range.start;
        let shard = &mut self.shard;
        let copy = self.holders.as_mut();
        let (buf, at) = match (flip.part.as_str(), copy) {
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
