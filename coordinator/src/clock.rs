//! What only this machine can say: how late it is, and random bytes. The machine of decisions gets both as arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::error::CoordinatorError;
use crate::machine::Now;
use crate::machine::clock::Boot;

/// Random bytes of the system.
pub(crate) fn entropy() -> Result<[u8; 32], CoordinatorError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(CoordinatorError::Random)?;
    Ok(bytes)
}

/// One random number of the system.
pub(crate) fn random_number() -> Result<u64, CoordinatorError> {
    let [a, b, c, d, e, f, g, h, ..] = entropy()?;
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// The calendar, since 1970.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// The same in milliseconds.
pub(crate) fn unix_ms() -> i64 {
    i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX)
}

/// Counts from the start of the machine, so that the next coordinator on it measures by the same clock.
pub(crate) struct Clock {
    origin: Instant,
    /// Of the machine at `origin`.
    uptime: Duration,
    boot: Boot,
}

impl Clock {
    pub fn of_this_machine() -> Result<Clock, CoordinatorError> {
        let text = |path: &str| std::fs::read_to_string(path).ok();
        let boot = text("/proc/sys/kernel/random/boot_id").and_then(|id| {
            let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
            u64::from_str_radix(&digits, 16).ok()
        });
        let uptime_s = text("/proc/uptime").and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok());
        let uptime = uptime_s.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let origin = Instant::now();
        match (boot, uptime) {
            (Some(boot), Some(uptime)) => Ok(Clock { origin, uptime, boot: Boot(boot) }),
            // Where the machine does not say, each coordinator has a clock of its own.
            _ => Ok(Clock { origin, uptime: Duration::ZERO, boot: Boot(random_number()?) }),
        }
    }

    pub fn now(&self) -> Now {
        Now { monotonic: self.uptime + self.origin.elapsed(), unix_ms: unix_ms(), boot: self.boot }
    }

    pub fn instant(&self, monotonic: Duration) -> Instant {
        self.origin + monotonic.saturating_sub(self.uptime)
    }
}
