//! What could not be saved, and the last step, which is tried again until it is.
//!
//! When the last step's checkpoint fails, its state is all that is left to lose: the workers keep it, and it is tried again, after pauses, by
//! whoever has the places, until it is saved, a user cancels the job, or [`FINAL_PATIENCE`] is over. That is counted over restarts of the
//! coordinator. Of each other step there will be a later one.

use std::time::Duration;

use toroid_proto as proto;

use super::Context;
use super::clock::Moment;
use super::job::Job;
use super::record::{State, Tries, Unsaved};

/// For so long the last step's checkpoint is tried before the job has failed.
const FINAL_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Before it is tried again: at first, twice as long after each failure, at most.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

impl Job {
    /// T-12: each is told, those of the last step when there are twice as many: in a day they would push out all other events.
    pub fn not_saved(&mut self, cx: &mut Context<'_>, step: u64, text: &str) {
        let now = Moment::before(cx.now, Duration::ZERO);
        let is_last = step == self.total();
        let unsaved = self.record.unsaved.get_or_insert(Unsaved::since(now));
        (unsaved.step, unsaved.error) = (step, text.into());
        unsaved.num_tries += 1;
        let num = if is_last {
            let tries = unsaved.last_step.get_or_insert(Tries::since(now));
            tries.num += 1;
            tries.num
        } else {
            1
        };
        match num {
            1 => self.event(cx, "checkpoint.failed", format!("step {step}: {text}")),
            n if n.is_power_of_two() => {
                self.event(cx, "checkpoint.failed", format!("step {step}, {n} tries so far: {text}"));
            }
            _ => self.changed(cx),
        }
    }

    /// Plans the next try of the last step; where it was tried for long enough the job has failed.
    pub fn has_next_try(&mut self, cx: &mut Context<'_>, text: &str) -> bool {
        let Some(tries) = self.record.unsaved.as_ref().and_then(|unsaved| unsaved.last_step) else { return true };
        if tries.since.elapsed(cx.now) >= FINAL_PATIENCE {
            let good = match self.record.last_checkpoint() {
                Some(c) => format!("the newest good one is of step {} at {}", c.step, c.path),
                None => "there is no earlier one".into(),
            };
            let (hours, num) = (FINAL_PATIENCE.as_secs() / 3600, tries.num);
            let reason = format!("the last step could not be saved in {hours} h and {num} tries: {text}; {good}");
            self.end(cx, State::Failed, &reason);
            return false;
        }
        let pause = MIN_PAUSE.saturating_mul(1 << (tries.num - 1).min(16)).min(MAX_PAUSE);
        self.live.checkpoint.next_try = Some(cx.now.monotonic + pause);
        self.runs(cx);
        true
    }

    /// It is to be made again.
    pub fn forget_last_step(&mut self) {
        self.live.checkpoint.next_try = None;
        if let Some(unsaved) = &mut self.record.unsaved {
            unsaved.last_step = None;
        }
    }

    pub fn unsaved(&self, now: Duration) -> Option<proto::Unsaved> {
        let next_try = self.live.checkpoint.next_try.map_or(Duration::ZERO, |at| at.saturating_sub(now));
        self.record.unsaved.as_ref().map(|unsaved| proto::Unsaved {
            step: unsaved.step,
            error: unsaved.error.clone(),
            since_unix_ms: unsaved.since.unix_ms,
            num_tries: unsaved.num_tries,
            next_try_s: next_try.as_secs_f64(),
        })
    }
}
