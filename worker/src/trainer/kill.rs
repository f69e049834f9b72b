//! Where a test wants this process dead, `TOROID_TEST_KILL_AT=PHASE@STEP`, or stopped, `TOROID_TEST_STOP_AT=PHASE@STEP`.
//!
//! The thread that enters the phase of the step sends itself SIGKILL or SIGSTOP, which end or stop the process as if somebody else had: nothing is
//! flushed, closed or said. It is sent to the thread, as what is sent to the process stops it through any other one, while this one goes on
//! for a while. Without the variables this is one comparison a phase.

#![allow(unsafe_code)]

use rustix::process::Signal;

// SAFETY: the C library's `raise`, as POSIX declares it; it takes any number.
unsafe extern "C" {
    safe fn raise(signal: i32) -> i32;
}

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
            assert_eq!(raise(self.signal.as_raw()), 0, "a thread may send itself a signal");
        }
    }
}
