//! What a trainer shows to whoever observes it: a simulation, which compares it with the undisturbed run.
//!
//! Deliberately absent: anything that a trainer does otherwise because it is observed. A worker that trains for a user has no observer.

use std::ops::Range;

use toroid_session::{Assignment, HeldAs};
use toroid_torus::ids::Step;

use crate::optim::HostShard;

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
    fn saw(&self, place: &Assignment, step: Step, deed: Deed);
}
