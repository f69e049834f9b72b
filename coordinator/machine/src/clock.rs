//! How long something took, also over restarts of the coordinator: by the monotonic clock, which nobody sets.
//!
//! The calendar is for people. It measures only what no monotonic clock has seen whole: the time from the last record of a machine to
//! its next start, when the machine itself was started anew in between or another goes on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment: monotonic for deadlines and durations, and by the calendar for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub monotonic: Duration,
    pub unix_ms: i64,
    /// The monotonic clock: durations over restarts are by it while it is the same one.
    pub boot: Boot,
}

/// Which monotonic clock: one counts as long as its machine runs, whatever process looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot(pub u64);

/// A moment that is kept in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub boot: Boot,
    pub monotonic: Duration,
    pub unix_ms: i64,
}

impl Moment {
    /// So long ago.
    pub fn before(now: Now, ago: Duration) -> Moment {
        let ago_ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let unix_ms = now.unix_ms.saturating_sub(ago_ms);
        Moment { boot: now.boot, monotonic: now.monotonic.saturating_sub(ago), unix_ms }
    }

    pub fn elapsed(&self, now: Now) -> Duration {
        match now.monotonic.checked_sub(self.monotonic) {
            Some(elapsed) if self.boot == now.boot => elapsed,
            // In a container that was started anew the clock may have begun again.
            _ => Duration::from_millis(u64::try_from(now.unix_ms.saturating_sub(self.unix_ms)).unwrap_or(0)),
        }
    }
}

/// Time since something began, up to now or to its end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stopwatch {
    elapsed_s: f64,
    /// `None`: it is over.
    since: Option<Moment>,
}

impl Stopwatch {
    pub fn start(now: Now) -> Stopwatch {
        Stopwatch { elapsed_s: 0.0, since: Some(Moment::before(now, Duration::ZERO)) }
    }

    /// Goes on after a stop; one that was not stopped goes on as it is.
    pub fn go_on(&mut self, now: Now) {
        if self.since.is_none() {
            self.since = Stopwatch::start(now).since;
        }
    }

    pub fn elapsed_s(&self, now: Now) -> f64 {
        self.elapsed_s + self.since.map_or(0.0, |since| since.elapsed(now).as_secs_f64())
    }

    /// The calendar is not asked about anything before now.
    pub fn advance(&mut self, now: Now) {
        if self.since.is_some() {
            *self = Stopwatch { elapsed_s: self.elapsed_s(now), ..Stopwatch::start(now) };
        }
    }

    pub fn stop(&mut self, now: Now) {
        *self = Stopwatch { elapsed_s: self.elapsed_s(now), since: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn at(boot: u64, monotonic_s: u64, unix_ms: i64) -> Now {
        Now { monotonic: Duration::from_secs(monotonic_s), unix_ms, boot: Boot(boot) }
    }

    #[test]
    fn the_calendar_measures_only_what_no_clock_has_seen_whole() {
        let moment = Moment::before(at(1, 10, 10_000), Duration::from_secs(2));
        let elapsed_s = |now| moment.elapsed(now).as_secs();
        assert_eq!((moment.monotonic.as_secs(), moment.unix_ms), (8, 8_000));
        assert_eq!(elapsed_s(at(1, 20, 20_000 + DAY_MS)), 12, "the calendar jumps");
        assert_eq!(elapsed_s(at(1, 20, 20_000 - DAY_MS)), 12);
        assert_eq!(elapsed_s(at(2, 3, 38_000)), 30, "another machine, or another boot");
        assert_eq!(elapsed_s(at(2, 3, 38_000 - DAY_MS)), 0, "never negative");
        assert_eq!(elapsed_s(at(1, 1, 9_000)), 1, "the clock began again");
    }

    #[test]
    fn a_stopwatch_goes_on_over_boots_and_stands_after_its_end() {
        let mut watch = Stopwatch::start(at(1, 100, 0));
        watch.advance(at(1, 160, DAY_MS));
        assert_eq!(watch.elapsed_s(at(2, 5, DAY_MS + 40_000)), 100.0);
        watch.advance(at(2, 5, DAY_MS + 40_000));
        watch.stop(at(2, 15, 0));
        assert_eq!(watch.elapsed_s(at(3, 1_000, 7 * DAY_MS)), 110.0);
        watch.go_on(at(3, 1_000, 7 * DAY_MS));
        assert_eq!(watch.elapsed_s(at(3, 1_005, 0)), 115.0);
    }
}
