//! Where a test wants this process dead: `TOROID_TEST_KILL_AT=PHASE@STEP`.
//!
//! The process kills itself with SIGKILL when it enters the phase of the step, exactly as if somebody else had: nothing is flushed,
//! closed or said. Without the variable this is one comparison a phase.

use rustix::process::{Signal, getpid, kill_process};

/// A phase by its name (`forward`, `stage-transfer`, `reduce-scatter`, `sealed`, `commit`, `optimizer`, `all-gather`, `checkpoint`,
/// `heal`) and the step that is being made then, from 1; step 0: the first time.
#[derive(Debug)]
pub(super) struct KillAt {
    phase: String,
    step: u64,
}

impl KillAt {
    pub fn from_environment() -> Option<KillAt> {
        let value = std::env::var("TOROID_TEST_KILL_AT").ok()?;
        let parsed = value.split_once('@').and_then(|(phase, step)| Some((phase.to_string(), step.parse().ok()?)));
        match parsed {
            Some((phase, step)) => Some(KillAt { phase, step }),
            None => {
                tracing::warn!("TOROID_TEST_KILL_AT = {value} is not of the form PHASE@STEP and has no effect");
                None
            }
        }
    }

    pub fn passes(&self, phase: &str, step: u64) {
        if self.phase == phase && (self.step == 0 || self.step == step) {
            tracing::warn!("killed in phase {phase} of step {step}, as TOROID_TEST_KILL_AT asked for");
            // It does not return; where it is not permitted there is nobody to tell.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}
