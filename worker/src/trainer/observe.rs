//! What a trainer shows to whoever observes it: a simulation, which compares it with the undisturbed run.
//!
//! Deliberately absent: anything that a trainer does otherwise because it is observed. A worker that trains for a user has no observer.

use std::ops::Range;

use toroid_session::{Assignment, HeldAs};

use super::{Job, Shared};
use crate::device::{Buffer, Device};
use crate::optim::{HostShard, Shard};

/// A shard and its values.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Flat range in its partition.
    pub range: Range<usize>,
    pub state: HostShard,
}

/// What a place does with a step.
#[derive(Debug, Clone)]
pub enum Deed {
    /// It holds all that is needed to apply the step.
    Sealed,
    /// It has applied the step: all places have sealed it.
    Committed,
    /// It has applied the step, because another place has.
    CommittedToHeal,
    /// It holds the state after the step, as a place of this shape and rank has it.
    Holds { as_place: HeldAs, own: Shown, copy: Option<Shown> },
}

/// Called on the trainer's thread.
pub trait Observer: Send + Sync {
    fn saw(&self, place: &Assignment, step: u64, deed: Deed);
}

impl<D: Device + Clone> Job<D> {
    pub(super) fn show(&self, shared: &Shared, step: u64, deed: Deed) {
        if let Some(observer) = shared.observer() {
            observer.saw(&self.assignment, step, deed);
        }
    }

    pub(super) fn show_state(&self, shared: &Shared) {
        if let Some(observer) = shared.observer().filter(|_| self.has_state) {
            let device = self.stage.device();
            let shown = |shard: &Shard<D>| Shown { range: shard.range.clone(), state: read(device, shard) };
            let copy = self.holders.as_ref().map(|holders| shown(&holders.copy));
            let deed = Deed::Holds { as_place: self.made_for, own: shown(&self.shard), copy };
            observer.saw(&self.assignment, self.committed, deed);
        }
    }
}

fn read<D: Device>(device: &D, shard: &Shard<D>) -> HostShard {
    let values = |buf: &D::Buf| device.with_host(buf.all(), <[f32]>::to_vec);
    HostShard { param: values(&shard.param), exp_avg: values(&shard.exp_avg), exp_avg_sq: values(&shard.exp_avg_sq) }
}
