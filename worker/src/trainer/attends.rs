//! What reading data and weights needs of the trainer. Reading and comparing are progress; waiting for another process that does it is not, and is
//! over with the epoch.

use toroid_torus::ids::Epoch;

use super::shared::{PREPARE, Shared, WAIT_FOR_TOKENS};
use crate::comm::Fence;
use crate::data::Attend;

pub(super) struct Attends<'a> {
    pub shared: &'a Shared,
    pub fence: Option<(&'a Fence, Epoch)>,
}

impl Attend for Attends<'_> {
    fn advance(&mut self, _: u64) {
        self.shared.advance();
    }

    fn waits(&mut self, is_waiting: bool) {
        self.shared.enter(if is_waiting { WAIT_FOR_TOKENS } else { PREPARE });
    }

    fn is_over(&self) -> bool {
        self.fence.is_some_and(|(fence, epoch)| fence.check(epoch).is_err())
    }
}
