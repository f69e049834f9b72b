//! For how long empty places wait for workers, before a job goes on with fewer replicas.

use std::time::Duration;

use super::deadlines::{Deadline, Deadlines};

/// The wait for somebody to take an empty place; its end is [`Deadline::Replacement`].
#[derive(Debug, Default)]
pub(crate) struct ReplacementWait {
    is_over: bool,
}

impl ReplacementWait {
    /// Begins unless it has begun.
    pub fn begin(&mut self, deadlines: &mut Deadlines, until: Duration) {
        if !self.is_over {
            deadlines.set_first(Deadline::Replacement, until);
        }
    }

    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The time is over.
    pub fn pass(&mut self, deadlines: &mut Deadlines) {
        self.is_over = true;
        deadlines.clear(&Deadline::Replacement);
    }

    /// Nothing is waited for: an epoch begins, or another place is empty and the time is its own.
    pub fn reset(&mut self, deadlines: &mut Deadlines) {
        self.is_over = false;
        deadlines.clear(&Deadline::Replacement);
    }
}
