//! What is broken on purpose, one at a time: each must be seen within the seeds of a test run, or the simulation is blind to it.

use toroid_torus::failpoint::{Failpoint, arm};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    // ------------------------------------------------------------------------------- in the data plane, which is virtual
    /// T-1: frames of older epochs are taken.
    TakeOldFrames,
    /// T-1: a raised fence does not end a wait.
    IgnoreFence,
    /// T-2: a step is committed when it is sealed here, and not everywhere.
    CommitBeforeSealed,
    /// T-2: who has only sealed the decided step goes on without committing it.
    SkipHealCommit,
    /// T-3: a holder gives the shard that it has, of whatever step.
    StaleHolder,
    /// T-3: the backup copy is not updated.
    SkipBackup,
    /// T-5: a newcomer takes its samples from the start.
    NewcomerSamples,
    /// T-5: a replica takes the samples of the number that it had before there were fewer replicas, or more.
    OldReplica,
    /// T-12: a place keeps the sums of the newest steps only, whatever the coordinator has.
    FewSums,
    // -------------------------------------------------------------------------------------------------- in the real code
    #[cfg_attr(not(feature = "failpoint"), allow(dead_code))]
    At(Failpoint),
}

pub const VIRTUAL: [Broken; 9] = [
    Broken::TakeOldFrames,
    Broken::IgnoreFence,
    Broken::CommitBeforeSealed,
    Broken::SkipHealCommit,
    Broken::StaleHolder,
    Broken::SkipBackup,
    Broken::NewcomerSamples,
    Broken::OldReplica,
    Broken::FewSums,
];

impl Broken {
    /// Breaks the real code on this thread, or mends it.
    pub fn switch(broken: Option<Broken>) {
        arm(match broken {
            Some(Broken::At(point)) => Some(point),
            _ => None,
        });
    }
}
