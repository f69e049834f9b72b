//! Faults that a test plants in the machine to prove that the simulation sees them. Not in a normal build: all of this is behind
//! `cfg(any(test, feature = "planted"))`, and `planted!` is `false` elsewhere.

use std::cell::Cell;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// T-1: a message of an older epoch of the job counts.
    TakeOldEpoch,
    /// T-2: all go on from the lowest step that is reported.
    GoOnFromLowest,
    /// T-3: an epoch never heals, everyone goes back to the newest checkpoint.
    AlwaysRestore,
    /// T-6: a manifest is published while one shard is missing.
    PublishWithoutShard,
    /// T-7: survivors change places.
    MoveSurvivors,
    /// T-8: messages are sent before what they follow from is stored.
    SendBeforePersist,
    /// T-4: a healing epoch cuts the curve to the newest checkpoint.
    CutCurveToHeal,
    /// T-12: a step of the epoch in which a place was lost ends the incident.
    CloseByLateRecord,
    /// T-12: a record is taken whatever its step.
    TakeAnyStep,
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Plants a fault in all machines of this thread, or takes it out again.
pub fn plant(fault: Option<Planted>) {
    PLANTED.set(fault);
}

pub(super) fn is_planted(fault: Planted) -> bool {
    PLANTED.get() == Some(fault)
}
