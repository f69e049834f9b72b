//! Failpoints of the pure parts: decisions that a test has go wrong, to prove that it would see that.
//!
//! `failpoint!(NAME)` is true on a thread on which a test has armed that point, in a build with the cargo feature `failpoint`; in every
//! other it is the constant `false`. The feature is that of the crate in which the macro stands. Points at which a whole process
//! dies, stops or has its memory changed are the worker's (`toroid_worker::failpoint`).

use std::cell::Cell;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    // ------------------------------------------------------------------------------------------ the coordinator's machine
    /// T-1: a message of an older epoch of the job counts.
    MachineTakesOldEpoch,
    /// T-2: all go on from the lowest step that is reported.
    GoOnFromLowest,
    /// T-3: an epoch never heals, everyone goes back to the newest checkpoint.
    AlwaysRestore,
    /// T-4: a healing epoch cuts the curve to the newest checkpoint.
    CutCurveToHeal,
    /// T-6: a manifest is published while one shard is missing.
    PublishWithoutShard,
    /// T-7: survivors change places.
    MoveSurvivors,
    /// T-7: a survivor loses its place to a spare, and nobody says so.
    ReplaceSurvivor,
    /// T-8: messages are sent before what they follow from is stored.
    SendBeforePersist,
    /// T-12: a step of the epoch in which a place was lost ends the incident.
    CloseByLateRecord,
    /// T-12: a record is taken whatever its step, and a session forgets what it has not said yet.
    TakeAnyStep,
    /// T-11: of two workers without a link the one goes that has made steps.
    BlameTheInnocent,
    // -------------------------------------------------------------------------------------------------- the coordinator's store
    /// T-8: a write does not ask whether this coordinator leads.
    WriteWithoutLeading,
    /// T-8: a write does not ask whether it follows the one before.
    WriteInAnyOrder,
    /// T-8: a write that nobody answered is taken for done.
    SilenceIsDone,
    /// T-8: a candidate leads without asking whether another does.
    LeadUnasked,
    /// T-8: a leader decides on where its lease can have run out.
    DecideAfterDeadline,
    /// T-8: a new leader begins with what a paused member of etcd remembers.
    TakeStaleRead,
    /// T-13: a new leader has the term of the one before.
    SameTerm,
    /// T-8: a decision about several jobs is stored job by job.
    StoreJobByJob,
    /// T-8: what a decision removes stays in the store.
    KeepRemoved,
    /// A job of a higher priority has another go on with fewer replicas than its `min_dp`.
    ShrinkBelowMinDp,
    /// A job is given some of its places where not all can be filled.
    StartPartOfGang,
    /// T-3: a job gives its workers to another before its state is saved.
    PreemptUnsaved,
    /// What a user has pinned is removed like any other checkpoint.
    RemovePinned,
    /// Workers that were cordoned are given places after a restart of the coordinator.
    ForgetCordons,
    // ------------------------------------------------------------------------------------------------ a worker's session
    /// T-13: what a coordinator of an older term says counts.
    TakeOldTerm,
    /// T-1: a message of another epoch of the job counts.
    SessionTakesOldEpoch,
    /// T-1: a newer epoch does not end the waits of the older one.
    DoNotFence,
    /// T-9: step records that the coordinator has not acknowledged are forgotten with the stream.
    ForgetRecords,
    // ------------------------------------------------------------------------------------------------ a worker's trainer
    /// T-1: a raised fence ends no wait.
    IgnoreFence,
    /// T-2: a step is committed when it is sealed here, without the global sum.
    CommitWithoutSum,
    /// T-2: who has only sealed the decided step goes on without committing it.
    SkipHealCommit,
    /// T-3: a holder gives a newcomer the shard as it was before its last update.
    StaleHolder,
    /// T-3: the copy of the guarded shard is not updated.
    SkipBackup,
    /// T-4: what moves to a place when the state is split anew stays as it was allocated.
    SkipResplit,
    /// T-5: a newcomer takes the samples of another order.
    NewcomerSamples,
    /// T-5: who has split the state anew takes the samples of another order.
    ResplitSamples,
    /// T-6: of a checkpoint that is removed the files go first, and its manifest can be seen for a while.
    RemoveFilesFirst,
    /// T-6: a later manifest of a step replaces the first.
    ReplaceManifest,
    /// T-10: with a checkpoint goes what others have put into its folder.
    RemoveStrangers,
    /// T-12: a place keeps the global sums of the newest four steps only.
    FewSums,
    /// T-12: a newcomer does not take the older global sums.
    SkipOlderSums,
    // --------------------------------------------------------------------------------------------------------------- policies
    /// T-4: who fills a place within an iteration begins it with the coefficient that the job began with.
    StaleKlCoef,
    /// T-4: after a checkpoint the coefficient is the one that the job began with.
    ForgetKlCoef,
    /// T-15: a checkpoint is made at any step of an iteration.
    SaveWithinIteration,
}

impl Failpoint {
    /// Those that break an invariant where nothing else is armed. `ForgetRecords` alone does not: places know the sums (T-12).
    pub const HARMFUL: [Failpoint; 31] = [
        Failpoint::MachineTakesOldEpoch,
        Failpoint::GoOnFromLowest,
        Failpoint::AlwaysRestore,
        Failpoint::CutCurveToHeal,
        Failpoint::PublishWithoutShard,
        Failpoint::MoveSurvivors,
        Failpoint::ReplaceSurvivor,
        Failpoint::SendBeforePersist,
        Failpoint::CloseByLateRecord,
        Failpoint::TakeAnyStep,
        Failpoint::BlameTheInnocent,
        Failpoint::ShrinkBelowMinDp,
        Failpoint::StartPartOfGang,
        Failpoint::PreemptUnsaved,
        Failpoint::RemovePinned,
        Failpoint::ForgetCordons,
        Failpoint::SessionTakesOldEpoch,
        Failpoint::DoNotFence,
        Failpoint::IgnoreFence,
        Failpoint::CommitWithoutSum,
        Failpoint::SkipHealCommit,
        Failpoint::StaleHolder,
        Failpoint::SkipBackup,
        Failpoint::SkipResplit,
        Failpoint::NewcomerSamples,
        Failpoint::ResplitSamples,
        Failpoint::RemoveFilesFirst,
        Failpoint::ReplaceManifest,
        Failpoint::RemoveStrangers,
        Failpoint::FewSums,
        Failpoint::SkipOlderSums,
    ];

    /// The same of leadership, which shows only where several coordinators take turns.
    pub const OF_LEADERSHIP: [Failpoint; 8] = [
        Failpoint::WriteWithoutLeading,
        Failpoint::WriteInAnyOrder,
        Failpoint::SilenceIsDone,
        Failpoint::LeadUnasked,
        Failpoint::DecideAfterDeadline,
        Failpoint::TakeStaleRead,
        Failpoint::SameTerm,
        Failpoint::TakeOldTerm,
    ];

    /// Of jobs that optimize policies.
    pub const OF_POLICIES: [Failpoint; 3] =
        [Failpoint::StaleKlCoef, Failpoint::ForgetKlCoef, Failpoint::SaveWithinIteration];

    /// And where these lead a pool of several jobs.
    pub const OF_POOLS_LED_IN_TURN: [Failpoint; 2] = [Failpoint::StoreJobByJob, Failpoint::KeepRemoved];
}

thread_local! {
    static ARMED: Cell<Option<Failpoint>> = const { Cell::new(None) };
}

/// Arms a point on this thread, or none any more.
pub fn arm(point: Option<Failpoint>) {
    ARMED.set(point);
}

/// For [`failpoint!`](crate::failpoint!) alone.
pub fn is_armed(point: Failpoint) -> bool {
    ARMED.get() == Some(point)
}

/// Whether a test wants this decision to go wrong; never in a build without the feature `failpoint`.
#[macro_export]
macro_rules! failpoint {
    ($point:ident) => {
        cfg!(feature = "failpoint") && $crate::failpoint::is_armed($crate::failpoint::Failpoint::$point)
    };
}
