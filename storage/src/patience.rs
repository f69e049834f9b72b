//! How long an operation waits, and how often it is tried again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::error::{StorageError, without_endpoint};
use crate::fault::Fault;

/// Pauses between attempts, without jitter: from the first, doubled up to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// For a connection, with its name and its TLS.
    pub connect: Duration,
    /// An attempt ends when no byte has moved for so long, in either direction.
    pub silence: Duration,
    /// An operation is given up when its attempts have failed for so long, from the first failure on.
    pub patience: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            patience: Duration::from_secs(180),
        }
    }
}

/// The failures of one operation in a row.
#[derive(Debug)]
pub(crate) struct Patience {
    timing: Timing,
    action: &'static str,
    url: String,
    num_attempts: u32,
    first: Option<Instant>,
    pause: Duration,
}

impl Patience {
    pub fn new(timing: Timing, action: &'static str, url: String) -> Patience {
        Patience { timing, action, url, num_attempts: 0, first: None, pause: PAUSES[0] }
    }

    /// Something was achieved: the failures before do not count any more.
    pub fn renew(&mut self) {
        (self.first, self.pause) = (None, PAUSES[0]);
    }

    /// Waits until it is time for another attempt, or says why there is none.
    pub async fn after(&mut self, fault: Fault) -> Result<(), StorageError> {
        self.num_attempts += 1;
        let now = Instant::now();
        let lasted = now - *self.first.get_or_insert(now);
        if !fault.is_passing() {
            return Err(self.error(&fault));
        }
        // Between half and all of it, so that many that failed at once do not come back at once.
        let share = getrandom::u32().unwrap_or(u32::MAX) as f64 / u32::MAX as f64;
        let pause = self.pause.mul_f64(0.5 + share / 2.0);
        self.pause = (self.pause * 2).min(PAUSES[1]);
        if lasted + pause > self.timing.patience {
            return Err(self.error(&fault));
        }
        let url = without_endpoint(&self.url, &fault);
        if self.num_attempts == 1 {
            let patience = self.timing.patience.as_secs();
            warn!("storage: cannot {} {url}: {fault}; tried again for up to {patience} s", self.action);
        } else {
            debug!("storage: cannot {} {url}: {fault}; next attempt in {pause:?}", self.action);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// What is said of a fault that ends the operation.
    pub fn error(&self, fault: &Fault) -> StorageError {
        let lasted = self.first.map_or(Duration::ZERO, |first| first.elapsed());
        let tried = (self.num_attempts > 1).then_some((self.num_attempts, lasted));
        StorageError::of(fault, self.action, &self.url, tried)
    }

    /// Attempts until one succeeds or there are no more.
    pub async fn until<T, F: Future<Output = Result<T, Fault>>>(
        mut self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StorageError> {
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(fault) => self.after(fault).await?,
            }
        }
    }
}
