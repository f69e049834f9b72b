//! How soon an epoch follows others that have not started.
//!
//! A rack or a host dies one worker after the other, as far as a coordinator sees it: streams end, or time limits pass, within some hundreds of
//! milliseconds. Each epoch is told to all, so one for each of them would keep everybody busy for longer than the dying takes. So the first two
//! follow at once: the one for who died first, the other for those who died while it was decided. From the third on each waits twice as
//! long as the one before, and takes with it all who are lost by then; what waits is over when an epoch starts.

use std::time::Duration;

use super::deadlines::{Deadline, Deadlines};

/// Epochs that follow one another at once.
const NUM_AT_ONCE: u32 = 2;
/// What is waited for first, by place: about as long as it takes to tell a place of an epoch.
const BY_PLACE: Duration = Duration::from_micros(20);
/// The same at least, and what is waited for at most.
const LEAST: Duration = Duration::from_millis(10);
const MOST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Epochs that have begun since one has started.
    num_begun: u32,
    last: Duration,
}

impl Pace {
    pub fn begin(&mut self, deadlines: &mut Deadlines, now: Duration) {
        deadlines.clear(&Deadline::NextEpoch);
        self.num_begun = self.num_begun.saturating_add(1);
        self.last = now;
    }

    pub fn start(&mut self) {
        self.num_begun = 0;
    }

    /// Whether an epoch of so many places may begin now; [`Deadline::NextEpoch`] passes when it may.
    pub fn may_begin(&self, deadlines: &mut Deadlines, world: usize, now: Duration) -> bool {
        let Some(num_waited) = self.num_begun.checked_sub(NUM_AT_ONCE) else { return true };
        let first = BY_PLACE.saturating_mul(u32::try_from(world).unwrap_or(u32::MAX)).max(LEAST);
        let at = self.last + first.saturating_mul(2_u32.saturating_pow(num_waited)).min(MOST);
        if now < at {
            deadlines.set(Deadline::NextEpoch, at);
        }
        now >= at
    }
}
