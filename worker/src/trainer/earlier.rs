//! The shards as they were split before, until all places have them as they are split now.

use toroid_session::HeldAs;
use toroid_torus::resplit::Half;

use crate::device::Device;
use crate::optim::Shard;

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
