//! What could not be saved, and the last step, which is tried again until it is.
//!
//! When the last step's checkpoint fails, its state is all that is left to lose: the workers keep it, and it is tried again, after pauses, by
//! whoever has the places, until it is saved, a user cancels the job, or [`FINAL_PATIENCE`] is over. That is counted over restarts of the
//! coordinator. Of each other step there will be a later one.

use std::time::Duration;

use toroid_torus::ids::Step;

use super::clock::{Moment, Now};
use super::record::{JobRecord, Tries, Unsaved};

/// For so long the last step's checkpoint is tried before the job has failed.
const FINAL_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Before it is tried again: at first, twice as long after each failure, at most.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Whether the last step is tried again.
#[derive(Debug)]
pub(crate) enum Retry {
    At(Duration),
    /// It was tried for long enough. With the reason for which the job has failed.
    Never(String),
}

/// Counts a checkpoint that has failed. Says what to tell (T-12): each, but those of the last step when there are twice as many, since in a
/// day they would push out all other events.
pub(crate) fn count(unsaved: &mut Option<Unsaved>, now: Now, step: Step, is_last: bool, text: &str) -> Option<String> {
    let now = Moment::before(now, Duration::ZERO);
    let unsaved = unsaved.get_or_insert(Unsaved::since(now));
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
        1 => Some(format!("step {step}: {text}")),
        n if n.is_power_of_two() => Some(format!("step {step}, {n} tries so far: {text}")),
        _ => None,
    }
}

/// When the last step, which could not be saved, is tried again.
pub(crate) fn next_try(record: &JobRecord, now: Now, text: &str) -> Retry {
    let tries = record.unsaved.as_ref().and_then(|unsaved| unsaved.last_step);
    let Tries { since, num } = tries.expect("the failure of the last step was counted");
    if since.elapsed(now) >= FINAL_PATIENCE {
        let good = match record.last_checkpoint() {
            Some(c) => format!("the newest good one is of step {} at {}", c.step, c.path),
            None => "there is no earlier one".into(),
        };
        let hours = FINAL_PATIENCE.as_secs() / 3600;
        return Retry::Never(format!("the last step could not be saved in {hours} h and {num} tries: {text}; {good}"));
    }
    Retry::At(now.monotonic + MIN_PAUSE.saturating_mul(1 << (num - 1).min(16)).min(MAX_PAUSE))
}
