//! An epoch of a job, from the first `Assign` on: who has prepared, who has finished, what was lost, which steps are committed.
//!
//! Only [`crate::job::Job`] changes it; the other parts of a job read it.

use std::collections::{BTreeMap, BTreeSet};

use super::recovery::Loss;
use toroid_proto as proto;
use toroid_torus::ids::{Rank, Step};

/// How far an epoch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum EpochPhase {
    /// No epoch, or one that has lost a place and cannot go on.
    #[default]
    Waiting,
    /// `Assign` was sent; not all are `Prepared`.
    Preparing,
    /// `Start` was sent.
    Started,
}

/// What is known of the present epoch; a restart of the coordinator finds it out again from the workers.
#[derive(Debug, Default)]
pub(crate) struct EpochState {
    phase: EpochPhase,
    base_step: Step,
    /// By rank, as last heard.
    committed: Vec<Step>,
    /// The highest of them.
    highest: Step,
    prepared: BTreeMap<Rank, proto::Prepared>,
    /// Places whose workers cannot prepare what the job needs, and why; none of the others has said yet whether it can.
    refusals: BTreeMap<Rank, String>,
    finished: BTreeSet<Rank>,
    awaited: BTreeSet<Rank>,
    losses: Vec<Loss>,
    begin_again: Option<String>,
}

impl EpochState {
    /// The job has no places: all that is known is what it has committed.
    pub fn over(committed: Step) -> EpochState {
        EpochState { committed: vec![committed], highest: committed, ..EpochState::default() }
    }

    /// After a restart of the coordinator: the workers of these ranks are to come back.
    pub fn restore(phase: EpochPhase, base_step: Step, committed: Vec<Step>, awaited: BTreeSet<Rank>) -> EpochState {
        let highest = highest_of(&committed);
        EpochState { phase, base_step, committed, highest, awaited, ..EpochState::default() }
    }

    pub fn phase(&self) -> EpochPhase {
        self.phase
    }

    pub fn is_started(&self) -> bool {
        self.phase == EpochPhase::Started
    }

    /// `Assign` was sent, and everyone who has a place can report.
    pub fn is_preparing(&self) -> bool {
        self.phase == EpochPhase::Preparing && self.awaited.is_empty()
    }

    /// Step from which the epoch goes on; while a healing epoch is being prepared, the highest that was committed before.
    pub fn base_step(&self) -> Step {
        self.base_step
    }

    // --------------------------------------------------------------------------------------------------- beginning, starting

    /// The next epoch begins. Its ranks are known to have committed these steps.
    pub fn begin(&mut self, base_step: Step, committed: Vec<Step>) {
        let awaited = std::mem::take(&mut self.awaited);
        let (phase, highest) = (EpochPhase::Preparing, highest_of(&committed));
        *self = EpochState { phase, base_step, committed, highest, awaited, ..EpochState::default() };
    }

    /// All go on from this step.
    pub fn start(&mut self, base_step: Step) {
        self.base_step = base_step;
        self.committed.fill(base_step);
        self.highest = base_step;
        self.phase = EpochPhase::Started;
    }

    /// Places are empty, and nobody is there to take them. In an epoch that was started, what survivors still report counts: it may complete
    /// a checkpoint.
    pub fn wait(&mut self) {
        if self.phase == EpochPhase::Preparing {
            self.phase = EpochPhase::Waiting;
        }
    }

    /// The next epoch begins although all places are filled, for this reason.
    pub fn begin_again(&mut self, why: String) {
        self.begin_again = Some(why);
    }

    pub fn why_again(&self) -> Option<&str> {
        self.begin_again.as_deref()
    }

    // -------------------------------------------------------------------------------------------------------------- reports

    pub fn prepare(&mut self, rank: Rank, report: proto::Prepared) {
        self.prepared.insert(rank, report);
    }

    /// By rank.
    pub fn prepared(&self) -> &BTreeMap<Rank, proto::Prepared> {
        &self.prepared
    }

    pub fn has_prepared(&self, rank: Rank) -> bool {
        self.prepared.contains_key(&rank)
    }

    pub fn refuse(&mut self, rank: Rank, error: &str) {
        self.refusals.insert(rank, error.into());
    }

    /// By rank.
    pub fn refusals(&self) -> &BTreeMap<Rank, String> {
        &self.refusals
    }

    pub fn take_refusals(&mut self) -> BTreeMap<Rank, String> {
        std::mem::take(&mut self.refusals)
    }

    // ------------------------------------------------------------------------------------------------------- committed steps

    /// Highest step that a rank is known to have committed.
    pub fn committed(&self) -> Step {
        self.highest
    }

    pub fn committed_by(&self, rank: Rank) -> Option<Step> {
        self.committed.get(rank.index()).copied()
    }

    /// By rank.
    pub fn committed_steps(&self) -> &[Step] {
        &self.committed
    }

    /// A rank says that it has committed this step.
    pub fn commit(&mut self, rank: Rank, step: Step) {
        let committed = &mut self.committed[rank.index()];
        *committed = step.max(*committed);
        self.highest = self.highest.max(step);
    }

    pub fn finish(&mut self, rank: Rank) {
        self.finished.insert(rank);
    }

    pub fn num_finished(&self) -> usize {
        self.finished.len()
    }

    // ---------------------------------------------------------------------------------------------------- losses, come-backs

    /// A place is empty from now on.
    pub fn lose(&mut self, loss: Loss) {
        self.forget(loss.rank);
        self.losses.push(loss);
    }

    /// What the worker of a place had said counts no more.
    pub fn forget(&mut self, rank: Rank) {
        self.awaited.remove(&rank);
        self.refusals.remove(&rank);
    }

    /// Since the epoch began.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Ranks whose workers have yet to come back after a restart of the coordinator.
    pub fn awaited(&self) -> &BTreeSet<Rank> {
        &self.awaited
    }

    pub fn returned(&mut self, rank: Rank) {
        self.awaited.remove(&rank);
    }

    pub fn take_awaited(&mut self) -> BTreeSet<Rank> {
        std::mem::take(&mut self.awaited)
    }
}

fn highest_of(committed: &[Step]) -> Step {
    committed.iter().copied().max().unwrap_or_default()
}
