//! Faults that a test plants in the session to prove that the simulation sees them. Not in a normal build: all of this is behind
//! `cfg(any(test, feature = "planted"))`, and `planted!` is `false` elsewhere.

use std::cell::Cell;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// T-1: a message of another epoch of the job counts.
    TakeOldEpoch,
    /// T-1: a newer epoch does not end the waits of the older one.
    DoNotFence,
    /// T-9: step records that the coordinator has not acknowledged are forgotten with the stream.
    ForgetRecords,
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Plants a fault in all sessions of this thread, or takes it out again.
pub fn plant(fault: Option<Planted>) {
    PLANTED.set(fault);
}

pub(super) fn is_planted(fault: Planted) -> bool {
    PLANTED.get() == Some(fault)
}
