//! Which state a place holds, and for which place of which shape.
//!
//! After a change of the number of replicas a place holds two for a while: the shards as they were split before stay until all places are
//! known to have them as they are split now.

use toroid_session::HeldAs;
use toroid_torus::resplit::Half;

use crate::device::Device;
use crate::optim::Shard;

pub(super) struct Held<D: Device> {
    /// What the shards and the stage of this place are made for. Until it is healed that may be another place than the assignment's.
    made_for: HeldAs,
    /// The shards hold the state of the committed step; a newcomer's do not until it is healed.
    has_state: bool,
    earlier: Option<Earlier<D>>,
}

/// The state of the committed step as it was split before.
pub(super) struct Earlier<D: Device> {
    pub held_as: HeldAs,
    pub own: Shard<D>,
    pub guarded: Option<Shard<D>>,
}

impl<D: Device> Earlier<D> {
    pub fn shard(&self, half: Half) -> Option<&Shard<D>> {
        match half {
            Half::Own => Some(&self.own),
            Half::Guarded => self.guarded.as_ref(),
        }
    }
}

impl<D: Device> Held<D> {
    pub fn new(made_for: HeldAs, has_state: bool) -> Held<D> {
        Held { made_for, has_state, earlier: None }
    }

    /// Everything that this place holds, the older first.
    pub fn all(&self) -> Vec<HeldAs> {
        self.earlier.iter().map(|e| e.held_as).chain(self.has_state.then_some(self.made_for)).collect()
    }

    pub fn made_for(&self) -> HeldAs {
        self.made_for
    }

    /// All is made anew for this place, without state; returns for which it was made before.
    pub fn remade_for(&mut self, place: HeldAs) -> HeldAs {
        self.has_state = false;
        std::mem::replace(&mut self.made_for, place)
    }

    pub fn has_state(&self) -> bool {
        self.has_state
    }

    pub fn set_has_state(&mut self, has_state: bool) {
        self.has_state = has_state;
    }

    /// Whether the shards hold the state, and are those of this place.
    pub fn has_state_of(&self, place: HeldAs) -> bool {
        self.has_state && self.made_for == place
    }

    pub fn earlier(&self) -> Option<&Earlier<D>> {
        self.earlier.as_ref()
    }

    pub fn keep(&mut self, earlier: Earlier<D>) {
        self.earlier = Some(earlier);
    }

    pub fn take_earlier(&mut self) -> Option<Earlier<D>> {
        self.earlier.take()
    }
}
