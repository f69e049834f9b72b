//! When the workers that jobs wait for were counted.

use std::time::Duration;

use crate::clock::Now;

/// So many workers are looked at whenever one of them comes or goes.
const FEW: usize = 1000;
/// Of more, those that count are counted anew after so long while no job could start with all of them. A fleet that joins would else be
/// looked at for each few workers more: a time that grows as the square of their number.
const COUNTED_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Counted {
    until: Option<Duration>,
    /// Somebody has come or gone since.
    again_at: Option<Duration>,
}

impl Counted {
    /// Whether what was said of `num` workers may stand for now. If not, they are counted.
    pub fn is_recent(&mut self, num: usize, now: Now) -> bool {
        if num <= FEW {
            return false;
        }
        if let Some(until) = self.until.filter(|until| now.monotonic < *until) {
            self.again_at = Some(until);
            return true;
        }
        (self.until, self.again_at) = (Some(now.monotonic + COUNTED_FOR), None);
        false
    }

    /// It is time to count again.
    pub fn is_due(&mut self, now: Now) -> bool {
        self.again_at.take_if(|at| *at <= now.monotonic).is_some()
    }

    pub fn again_at(&self) -> Option<Duration> {
        self.again_at
    }
}
