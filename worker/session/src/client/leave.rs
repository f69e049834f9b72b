//! When a worker that was asked to end does so.
//!
//! ```text
//!   asked, no place                      ends
//!   asked, has a place                   stays: its place is moved, or its job saved, within the grace
//!     no place any more                  ends
//!     asked again, or the grace is over  ends
//! ```

use std::time::Duration;

/// Why a worker ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to end, and has no place, or was asked before.
    Asked,
    /// It was asked to end, and had its place moved or its job saved since.
    HasLeft,
    /// It was asked to end, and nobody has taken its place in time.
    GraceOver,
    /// Nobody is left who could ask it to end.
    Unattended,
    /// The coordinator will not have it.
    Refused { reason: String },
}

/// A worker's request to leave, if it was asked to end. Times count from any origin.
#[derive(Debug)]
pub(super) struct Leave {
    /// How long it stays after it was asked.
    grace: Duration,
    /// Whoever runs the worker has said the grace; the coordinator does not change it.
    is_own: bool,
    /// Set: it was asked, and ends by then.
    at: Option<Duration>,
}

impl Leave {
    /// `own` is the grace of whoever runs the worker; `default` counts until the coordinator has said one.
    pub fn new(own: Option<Duration>, default: Duration) -> Leave {
        Leave { grace: own.unwrap_or(default), is_own: own.is_some(), at: None }
    }

    /// The coordinator's grace.
    pub fn set_grace(&mut self, grace: Duration) {
        if !self.is_own {
            self.grace = grace;
        }
    }

    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// The worker is asked to end, for the n-th time. Says whether it does at once.
    pub fn asked(&mut self, times: u32, has_place: bool, now: Duration) -> Option<Ending> {
        if times > 1 || !has_place {
            return Some(Ending::Asked);
        }
        self.at = Some(now + self.grace);
        None
    }

    pub fn was_asked(&self) -> bool {
        self.at.is_some()
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.at
    }

    /// Whether its time is over.
    pub fn is_over(&self, now: Duration) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(25);

    #[test]
    fn who_has_no_place_ends_at_once_and_who_has_one_within_the_grace() {
        let now = Duration::from_secs(100);
        assert_eq!(Leave::new(None, GRACE).asked(1, false, now), Some(Ending::Asked));
        let mut leave = Leave::new(None, GRACE);
        assert!(!leave.was_asked() && leave.deadline().is_none());
        assert_eq!(leave.asked(1, true, now), None);
        assert_eq!(leave.deadline(), Some(now + GRACE));
        assert!(!leave.is_over(now + GRACE - Duration::from_nanos(1)) && leave.is_over(now + GRACE));
    }

    #[test]
    fn asked_twice_it_ends_at_once() {
        let mut leave = Leave::new(None, GRACE);
        assert_eq!(leave.asked(1, true, Duration::ZERO), None);
        assert_eq!(leave.asked(2, true, Duration::ZERO), Some(Ending::Asked));
        assert_eq!(Leave::new(None, GRACE).asked(2, true, Duration::ZERO), Some(Ending::Asked), "both at one time");
    }

    #[test]
    fn the_grace_is_that_of_whoever_runs_the_worker_then_the_coordinators() {
        let said = Duration::from_secs(3);
        let grace = |own| {
            let mut leave = Leave::new(own, GRACE);
            leave.set_grace(said);
            leave.grace()
        };
        assert_eq!(grace(None), said);
        assert_eq!(grace(Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert_eq!(Leave::new(None, GRACE).grace(), GRACE);
    }
}
