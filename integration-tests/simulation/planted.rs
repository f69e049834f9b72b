//! Faults that are built in on purpose: each must be seen within the seeds of a test run, or the simulation is blind to it.

use toroid_coordinator::machine::planted as machine;
use toroid_worker::session::planted as session;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    // ------------------------------------------------------------------------------------------------- in the data plane
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
    /// T-12: the machine takes a record whatever its step. Without it rank 0 would be asked for those that its session forgets.
    TakeAnyStep,
    Machine(machine::Planted),
    Session(session::Planted),
}

pub const ALL: [Plant; 20] = [
    Plant::TakeOldFrames,
    Plant::IgnoreFence,
    Plant::CommitBeforeSealed,
    Plant::SkipHealCommit,
    Plant::StaleHolder,
    Plant::SkipBackup,
    Plant::NewcomerSamples,
    Plant::OldReplica,
    Plant::FewSums,
    Plant::TakeAnyStep,
    Plant::Machine(machine::Planted::TakeOldEpoch),
    Plant::Machine(machine::Planted::SendBeforePersist),
    Plant::Machine(machine::Planted::MoveSurvivors),
    Plant::Machine(machine::Planted::GoOnFromLowest),
    Plant::Machine(machine::Planted::AlwaysRestore),
    Plant::Machine(machine::Planted::PublishWithoutShard),
    Plant::Machine(machine::Planted::CutCurveToHeal),
    Plant::Machine(machine::Planted::CloseByLateRecord),
    Plant::Session(session::Planted::TakeOldEpoch),
    Plant::Session(session::Planted::DoNotFence),
];

impl Plant {
    /// Switches the fault on in the real code, on this thread.
    pub fn switch(plant: Option<Plant>) {
        machine::plant(match plant {
            Some(Plant::Machine(fault)) => Some(fault),
            Some(Plant::TakeAnyStep) => Some(machine::Planted::TakeAnyStep),
            _ => None,
        });
        session::plant(match plant {
            Some(Plant::Session(fault)) => Some(fault),
            Some(Plant::TakeAnyStep) => Some(session::Planted::ForgetRecords),
            _ => None,
        });
    }
}
