//! Failpoints of a process: where a test has this worker die, stop, or find a bit of its memory flipped.
//!
//! `TOROID_FAILPOINTS` is a list, `ACTION=POINT@STEP` and commas between; in a build without the cargo feature `failpoint` nothing of
//! this is there. The step is the one being made, from 1; step 0: the first time that the point is passed.
//!
//! - `kill`, `stop`: at a phase (`forward`, `stage-transfer`, `reduce-scatter`, `sealed`, `commit`, `optimizer`, `all-gather`,
//!   `checkpoint`, `heal`), or right before and right after the manifest of that step is written (`publish`, `published`). The thread
//!   that gets there sends itself SIGKILL or SIGSTOP, which end or stop the process as if somebody else had: nothing is flushed, closed
//!   or said. It is sent to the thread, as what is sent to the process stops it through any other one, while this one goes on for a while.
//! - `hang`, `spin`, `panic`: the thread that gets to one of these points does nothing any more, computes for ever, or panics there. At `publish` and `published` that is
//!   the publisher's thread, not the trainer's.
//! - `flip`: of `own` or `copy`, the two shards that a place holds, the part `param`, `exp_avg`, `exp_avg_sq` or `grads`, as in
//!   `own.param`. Silent corruption by its effect: an element of a shard's state changes right after the commit of the step, one of a
//!   gradient between the commit point and the update. Nothing is said.

#![allow(unsafe_code)]

use rustix::process::Signal;

/// Of the environment.
pub const VARIABLE: &str = "TOROID_FAILPOINTS";

// SAFETY: the C library's `raise`, as POSIX declares it; it takes any number.
unsafe extern "C" {
    safe fn raise(signal: i32) -> i32;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Kill,
    Stop,
    Hang,
    Spin,
    Panic,
    Flip,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failpoint {
    pub action: Action,
    pub point: String,
    pub step: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Failpoints(Vec<Failpoint>);

impl Failpoints {
    #[cfg(test)]
    pub fn new(armed: Option<Failpoint>) -> Failpoints {
        Failpoints(armed.into_iter().collect())
    }

    /// Only tests set the variable, and each wants what it says: a mistake in it ends the process.
    pub fn from_environment() -> Failpoints {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        let armed = text.split(',').filter(|item| !item.is_empty()).map(|item| {
            parse(item)
                .unwrap_or_else(|| panic!("{VARIABLE} has `{item}`; expected ACTION=POINT@STEP, as in kill=commit@15"))
        });
        Failpoints(armed.collect())
    }

    pub fn pass(&self, point: &str, step: u64) {
        let is_here = |armed: &&Failpoint| armed.point == point && (armed.step == 0 || armed.step == step);
        for armed in self.0.iter().filter(is_here) {
            let signal = match armed.action {
                Action::Kill => Signal::KILL,
                Action::Stop => Signal::STOP,
                Action::Hang => loop {
                    tracing::warn!("failpoint: hangs in phase {point} of step {step}");
                    std::thread::park();
                },
                Action::Spin => computes_for_ever(point, step),
                Action::Panic => panic!("failpoint: panics in phase {point} of step {step}"),
                Action::Flip => continue,
            };
            tracing::warn!("failpoint: {signal:?} in phase {point} of step {step}");
            assert_eq!(raise(signal.as_raw()), 0, "a thread may send itself a signal");
        }
    }

    /// The part in which a bit flips at this step.
    pub fn flips(&self, step: u64, is_before_update: bool) -> Option<&str> {
        let is_due = |armed: &&Failpoint| {
            armed.action == Action::Flip && armed.step == step && armed.point.ends_with("grads") == is_before_update
        };
        self.0.iter().find(is_due).map(|armed| armed.point.as_str())
    }
}

/// A function of this name is what the stack of the thread has.
#[inline(never)]
fn computes_for_ever(point: &str, step: u64) -> ! {
    tracing::warn!("failpoint: computes for ever in phase {point} of step {step}");
    loop {
        std::hint::spin_loop();
    }
}

fn parse(item: &str) -> Option<Failpoint> {
    let (action, at) = item.split_once('=')?;
    let (point, step) = at.split_once('@')?;
    let action = match action {
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        "hang" => Action::Hang,
        "spin" => Action::Spin,
        "panic" => Action::Panic,
        "flip" => Action::Flip,
        _ => return None,
    };
    Some(Failpoint { action, point: point.into(), step: step.parse().ok()? })
}

#[test]
fn failpoints_are_read_and_mistakes_are_not_passed_over() {
    let of = |action, point: &str, step| Some(Failpoint { action, point: point.into(), step });
    assert_eq!(parse("kill=stage-transfer@15"), of(Action::Kill, "stage-transfer", 15));
    assert_eq!(parse("stop=publish@0"), of(Action::Stop, "publish", 0));
    assert_eq!(parse("hang=publish@2"), of(Action::Hang, "publish", 2));
    assert_eq!(parse("spin=forward@2"), of(Action::Spin, "forward", 2));
    assert_eq!(parse("panic=publish@2"), of(Action::Panic, "publish", 2));
    assert_eq!(parse("flip=own.exp_avg@3"), of(Action::Flip, "own.exp_avg", 3));
    for bad in ["kill", "kill=commit", "kill=commit@", "kill=commit@x", "sleep=commit@1", "commit@15"] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}
