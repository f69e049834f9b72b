//! Looks whether the trainer gets on, and takes the stacks of all threads where it does not: before the coordinator gives the place to another, while they
//! can still be had.
//!
//! ```text
//!   commit ── nothing new ──> half of what the coordinator waits: stacks, once ──> the other half: another worker has the place
//! ```
//!
//! The coordinator waits for the failure timeout and four steps (`Limits::hang`), and far longer where it knows no step's time, or where a place prepares.
//! The half is counted by this worker's own steps. Whoever waits for others is not looked at: it is not the one that hangs. A false alarm costs a signal
//! to each thread.
//!
//! Deliberately absent: what is done about it; that is the coordinator's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use toroid_torus::ids::Step;

use crate::stacks;
use crate::trainer::Shared;

/// Of the failure timeout: how often is looked.
const LOOKS: u32 = 20;
/// What the coordinator waits where it knows of no step, in failure timeouts; half of it counts.
const UNKNOWN: u32 = 60;

/// What every thread is in.
#[derive(Debug)]
pub(crate) struct Stacks {
    /// That the trainer does not get on with.
    pub operation: &'static str,
    pub lines: Vec<String>,
}

/// What the trainer was seen to do.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    operation: &'static str,
    progress: u64,
    committed: Step,
}

/// Decides when stacks are taken.
#[derive(Debug)]
struct Watch {
    seen: Option<Seen>,
    since: Duration,
    committed_at: Duration,
    /// The longest of the newest steps, slowly forgotten.
    step: Option<Duration>,
    is_taken: bool,
}

impl Watch {
    fn new() -> Watch {
        Watch { seen: None, since: Duration::ZERO, committed_at: Duration::ZERO, step: None, is_taken: false }
    }

    /// Whether it has been in the same for too long; said once.
    fn look(&mut self, seen: Seen, waits: bool, failure_timeout: Duration, now: Duration) -> bool {
        if self.seen != Some(seen) {
            if let Some(before) = self.seen
                && seen.committed > before.committed
            {
                let num_steps = seen.committed.since(before.committed).max(1);
                let took = now.saturating_sub(self.committed_at) / u32::try_from(num_steps).unwrap_or(u32::MAX);
                // The first of an epoch has what came before it in it, and is forgotten by half with each one after.
                self.step = Some(self.step.map_or(took, |step| took.max(step / 2)));
                self.committed_at = now;
            } else if self.seen.is_none_or(|before| seen.committed < before.committed) {
                (self.committed_at, self.step) = (now, None);
            }
            (self.seen, self.since, self.is_taken) = (Some(seen), now, false);
        }
        let limit = match self.step {
            Some(_) if PREPARES.contains(&seen.operation) => failure_timeout * (UNKNOWN / 2),
            Some(step) if LONGER.contains(&seen.operation) => failure_timeout + 4 * step,
            Some(step) => failure_timeout / 2 + 2 * step,
            None => failure_timeout * (UNKNOWN / 2),
        };
        let is_due = !self.is_taken && !waits && !RESTS.contains(&seen.operation) && now >= self.since + limit;
        self.is_taken |= is_due;
        is_due
    }
}

/// What the trainer does when it has nothing to do.
const RESTS: [&str; 5] = ["", "idle", "halt", "wait for start", "wait for token file"];
/// What comes before a first step, or between two: the coordinator waits twice as long.
const LONGER: [&str; 5] = ["connect", "heal", "resplit", "replay", "validate"];
/// Reads and makes what a place needs; the coordinator waits for that far longer.
const PREPARES: [&str; 1] = ["prepare"];

/// Starts the thread that looks, for the life of the process. `failure_timeout`: until the coordinator has said its own.
pub(crate) fn start(
    shared: Arc<Shared>,
    failure_timeout: Duration,
    taken: mpsc::Sender<Stacks>,
) -> std::io::Result<()> {
    let begun = Instant::now();
    let look = move || {
        let mut watch = Watch::new();
        while !taken.is_closed() {
            let failure_timeout = shared.failure_timeout().unwrap_or(failure_timeout);
            std::thread::park_timeout(failure_timeout / LOOKS);
            let (operation, progress) = (shared.operation(), shared.progress());
            let seen = Seen { operation, progress, committed: shared.committed() };
            if !watch.look(seen, !shared.waits_for().is_empty(), failure_timeout, begun.elapsed()) {
                continue;
            }
            match stacks::take() {
                Ok(lines) => {
                    let (step, text) = (seen.committed.next(), lines.join("\n"));
                    tracing::warn!("gets on with nothing in {operation} of step {step}; its threads are in\n{text}");
                    // Nobody who takes them: the process ends.
                    let _ = taken.blocking_send(Stacks { operation, lines });
                }
                Err(error) => {
                    tracing::warn!("gets on with nothing in {operation}; its stacks cannot be taken: {error}")
                }
            }
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(look).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn seen(operation: &'static str, committed: u64) -> Seen {
        Seen { operation, progress: 0, committed: Step::new(committed) }
    }

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn stacks_are_taken_once_after_half_of_what_the_coordinator_waits() {
        let mut watch = Watch::new();
        for step in 0..10 {
            assert!(!watch.look(seen("forward", step), false, TIMEOUT, s(step as f64)));
        }
        // Steps of 1 s: the coordinator waits 9 s.
        assert!(!watch.look(seen("forward", 9), false, TIMEOUT, s(9.0 + 4.4)));
        assert!(!watch.look(seen("forward", 9), true, TIMEOUT, s(9.0 + 4.6)), "it waits for others");
        assert!(watch.look(seen("forward", 9), false, TIMEOUT, s(9.0 + 4.6)));
        assert!(!watch.look(seen("forward", 9), false, TIMEOUT, s(9.0 + 4.7)), "once");
        assert!(!watch.look(seen("backward", 9), false, TIMEOUT, s(14.0)), "it gets on");
        assert!(watch.look(seen("backward", 9), false, TIMEOUT, s(14.0 + 4.6)));
    }

    #[test]
    fn who_makes_a_first_step_or_prepares_has_long_and_who_rests_for_ever() {
        let mut watch = Watch::new();
        assert!(!watch.look(seen("forward", 0), false, TIMEOUT, s(0.0)));
        assert!(!watch.look(seen("forward", 0), false, TIMEOUT, s(149.0)));
        assert!(watch.look(seen("forward", 0), false, TIMEOUT, s(151.0)));
        assert!(!watch.look(seen("idle", 0), false, TIMEOUT, s(200.0)));
        assert!(!watch.look(seen("idle", 0), false, TIMEOUT, s(9999.0)));
        watch.look(seen("forward", 1), false, TIMEOUT, s(10_000.0));
        watch.look(seen("prepare", 1), false, TIMEOUT, s(10_001.0));
        assert!(!watch.look(seen("prepare", 1), false, TIMEOUT, s(10_101.0)));
    }
}
