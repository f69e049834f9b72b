//! Pauses between attempts to reach the coordinator: they double up to a bound.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// The bound, and a stream that lasted longer counts as a success.
pub const LONGEST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Retry {
    pause: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { pause: FIRST }
    }
}

impl Retry {
    pub fn new() -> Retry {
        Retry::default()
    }

    /// A coordinator that takes the worker and drops it again and again is not asked without a pause.
    pub fn stream_lasted(&mut self, time: Duration) {
        if time > LONGEST {
            self.pause = FIRST;
        }
    }

    /// How long to wait now; the pause after it is at most `longest`.
    pub fn next(&mut self, longest: Duration) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(retry: &mut Retry, longest: Duration, num: usize) -> Vec<u128> {
        (0..num).map(|_| retry.next(longest).as_millis()).collect()
    }

    #[test]
    fn pauses_double_up_to_a_second() {
        let mut retry = Retry::new();
        assert_eq!(pauses(&mut retry, LONGEST, 7), [50, 100, 200, 400, 800, 1000, 1000]);
        retry.stream_lasted(LONGEST);
        assert_eq!(pauses(&mut retry, LONGEST, 1), [1000], "it did not last");
        retry.stream_lasted(LONGEST + Duration::from_millis(1));
        assert_eq!(pauses(&mut retry, LONGEST, 2), [50, 100]);
    }

    #[test]
    fn an_id_in_use_is_asked_for_more_seldom() {
        let mut retry = Retry::new();
        let timeout = Duration::from_secs(5);
        assert_eq!(pauses(&mut retry, timeout, 9), [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pauses(&mut retry, LONGEST, 2), [5000, 1000]);
    }
}
