//! Everything that the machine waits for with a time limit: one enum says what, one table holds when.
//!
//! Each job has a table of its own, and so have the pool of workers and its log of crashes. A deadline that is set may not count at the
//! moment (nobody hangs while a place is empty): whoever owns the table says which count, at [`Deadlines::next`] and before one is taken
//! to have passed. That a connected worker is to say something is in no table, as each message of each worker would change it: the pool of
//! workers looks for the silent when the first of them could be.
//! Deadlines pass at a tick only, in the order of the enum.

use toroid_torus::ids::{Step, WorkerId};

use std::collections::BTreeMap;
use std::time::Duration;

/// What is waited for, and what happens when the time is over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deadline {
    /// A worker that failed again and again is put aside. It is a spare again.
    WorkerAside { worker: WorkerId },
    /// All workers of a host are put aside. They are spares again.
    HostAside { host: String },
    /// Two workers are to dial each other, for the proof of this spare. The probe comes to nothing.
    Probe { spare: String },
    /// Of many workers some have come or gone, and no job could start with all. Those that count are counted again.
    Count,

    /// A worker cannot do what the job needs. It may show again that it can.
    Retry { worker: WorkerId },
    /// The coordinator was started again. Workers that have not come back to their places are lost.
    Return,
    /// Workers hold a later epoch than the store knows. The job goes on from the newest, with those that are there.
    Later,
    /// Links were reported missing. The reports are weighed, and somebody goes or all begin again.
    Links,
    /// Workers are lost one after the other, and no epoch starts. The next begins.
    NextEpoch,
    /// A place is empty and nobody takes it. The job may go on with fewer replicas.
    Replacement,
    /// A step is to be committed, or all are to prepare. Whoever hangs is looked for.
    Hang,
    /// `checkpoint.interval_s` passes. A step is named for it.
    CheckpointInterval,
    /// The step that all halt at could not be saved. It is named again.
    HaltAgain,
    /// The last step could not be saved. It is named again.
    LastStepAgain,
    /// Rank 0 removes what is no longer kept. It is not waited for any longer, and told again with the next publishing.
    Removals,
    /// The checkpoint of a committed step is to be published. It has failed.
    Checkpoint { step: Step },
}

/// When each deadline passes, by the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    at: BTreeMap<Deadline, Duration>,
}

impl Deadlines {
    pub fn set(&mut self, deadline: Deadline, at: Duration) {
        self.at.insert(deadline, at);
    }

    /// One that is set already stays as it is.
    pub fn set_first(&mut self, deadline: Deadline, at: Duration) {
        self.at.entry(deadline).or_insert(at);
    }

    pub fn get(&self, deadline: &Deadline) -> Option<Duration> {
        self.at.get(deadline).copied()
    }

    /// Says whether it was set.
    pub fn clear(&mut self, deadline: &Deadline) -> bool {
        self.at.remove(deadline).is_some()
    }

    pub fn retain(&mut self, keeps: impl Fn(&Deadline) -> bool) {
        self.at.retain(|deadline, _| keeps(deadline));
    }

    pub fn has_passed(&self, deadline: &Deadline, now: Duration) -> bool {
        self.get(deadline).is_some_and(|at| at <= now)
    }

    /// Those that have passed, in the order in which they are acted on. They stay set.
    pub fn passed(&self, now: Duration) -> Vec<Deadline> {
        self.at.iter().filter(|(_, at)| **at <= now).map(|(deadline, _)| deadline.clone()).collect()
    }

    /// Takes one away if it has passed; says whether.
    pub fn take_passed(&mut self, deadline: &Deadline, now: Duration) -> bool {
        self.has_passed(deadline, now) && self.clear(deadline)
    }

    /// When the next one passes of those that count.
    pub fn next(&self, counts: impl Fn(&Deadline) -> bool) -> Option<Duration> {
        self.at.iter().filter(|(deadline, _)| counts(deadline)).map(|(_, at)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_pass_in_the_order_of_the_enum_and_only_those_that_count_are_waited_for() {
        let second = Duration::from_secs;
        let mut table = Deadlines::default();
        table.set(Deadline::Hang, second(3));
        table.set(Deadline::Links, second(4));
        table.set(Deadline::Checkpoint { step: Step::new(7) }, second(1));
        table.set_first(Deadline::Checkpoint { step: Step::new(7) }, second(9));
        assert_eq!(table.next(|_| true), Some(second(1)));
        assert_eq!(table.next(|d| *d == Deadline::Hang), Some(second(3)));
        assert_eq!(table.passed(second(3)), [Deadline::Hang, Deadline::Checkpoint { step: Step::new(7) }]);
        assert!(!table.take_passed(&Deadline::Links, second(3)) && table.take_passed(&Deadline::Links, second(4)));
        assert_eq!(table.get(&Deadline::Links), None);
        table.retain(|deadline| *deadline == Deadline::Links);
        assert_eq!(table.next(|_| true), None);
    }
}
