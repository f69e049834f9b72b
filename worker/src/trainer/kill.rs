//! Where a test wants this process dead, `TOROID_TEST_KILL_AT=PHASE@STEP`, or stopped, `TOROID_TEST_STOP_AT=PHASE@STEP`.
//!
//! The process sends itself SIGKILL or SIGSTOP when it enters the phase of the step, exactly as if somebody else had: nothing is flushed,
//! closed or said. Without the variables this is one comparison a phase.

use rustix::process::{Signal, getpid, kill_process};

/// A phase by its name (`forward`, `stage-transfer`, `reduce-scatter`, `sealed`, `commit`, `optimizer`, `all-gather`, `checkpoint`,
/// `heal`) and the step that is being made then, from 1; step 0: the first time. `publish` and `published` are right before and right
/// after the manifest of that step is written.
#[derive(Debug)]
pub(super) struct KillAt {
    signal: Signal,
    phase: String,
    step: u64,
}

impl KillAt {
    pub fn from_environment() -> Option<KillAt> {
        let of = |variable: &str, signal| {
            let value = std::env::var(variable).ok()?;
            let parsed = value.split_once('@').and_then(|(phase, step)| Some((phase.to_string(), step.parse().ok()?)));
            if parsed.is_none() {
                tracing::warn!("{variable} = {value} is not of the form PHASE@STEP and has no effect");
            }
            parsed.map(|(phase, step)| KillAt { signal, phase, step })
        };
        of("TOROID_TEST_KILL_AT", Signal::KILL).or_else(|| of("TOROID_TEST_STOP_AT", Signal::STOP))
    }

    pub fn passes(&self, phase: &str, step: u64) {
        if self.phase == phase && (self.step == 0 || self.step == step) {
            let what = if self.signal == Signal::KILL { "killed" } else { "stopped" };
            tracing::warn!("{what} in phase {phase} of step {step}, as a test asked for");
            // Where it is not permitted there is nobody to tell.
            let _ = kill_process(getpid(), self.signal);
        }
    }
}
