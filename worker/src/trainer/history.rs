//! Global sums of the newest steps, at every place: what is left of a step's record when rank 0 dies before a coordinator has it.
//!
//! All that no coordinator has on disk is kept, up to [`BYTES_MAX`]; then the oldest go, at every place the same ones, and the gap is
//! told ([`RecordsMissing`](toroid_session::Event::RecordsMissing), T-12). What a coordinator has comes with the sums themselves: rank 0 adds it.

use std::collections::VecDeque;

use toroid_torus::failpoint;
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;

use super::totals::Totals;

/// Sums of a worker, at most: some 600,000 steps of a model of two layers with four experts each, 2,000 of one of 60 with 64.
pub(super) const BYTES_MAX: usize = 64 << 20;
/// Kept although a coordinator has them: the newest is what a place that has only sealed it needs to commit it.
const NUM_NEWEST: usize = 64;
/// Of an entry besides its numbers.
const OVERHEAD_BYTES: usize = 48;

/// Ascending by step, without a gap.
#[derive(Debug, Default)]
pub(super) struct History {
    sums: VecDeque<(Step, Totals)>,
    /// The coordinator has the records up to here.
    recorded: Step,
}

impl History {
    /// As many steps as a worker keeps of this job.
    pub fn num_max(spec: &JobSpec) -> usize {
        if failpoint!(FewSums) {
            return 4;
        }
        (BYTES_MAX / (8 * Totals::len(spec) + OVERHEAD_BYTES)).max(1)
    }

    /// What the sums say that a coordinator has is not needed any more.
    pub fn push(&mut self, step: Step, totals: Totals, num_max: usize) {
        assert!(self.last_step().is_none_or(|last| step == last.next()), "sums of one step after the other are kept");
        self.recorded = self.recorded.max(totals.recorded());
        self.sums.push_back((step, totals));
        let is_outdated = |h: &History| h.first_step().is_some_and(|first| first <= h.recorded);
        while self.sums.len() > num_max || self.sums.len() > NUM_NEWEST && is_outdated(self) {
            self.sums.pop_front();
        }
    }

    /// An epoch begins, and its coordinator has the records up to `step`.
    pub fn begin(&mut self, step: Step) {
        self.recorded = step;
    }

    pub fn first_step(&self) -> Option<Step> {
        self.sums.front().map(|(step, _)| *step)
    }

    pub fn last_step(&self) -> Option<Step> {
        self.sums.back().map(|(step, _)| *step)
    }

    /// From step `from` on, ascending.
    pub fn since(&self, from: Step) -> impl Iterator<Item = &(Step, Totals)> {
        self.sums.iter().skip(self.sums.partition_point(|(step, _)| *step < from))
    }

    /// Takes the older steps, up to where its own begin, from what another place has; without own ones up to what is committed here.
    pub fn take_older(&mut self, others: Vec<(Step, Totals)>, committed: Step) {
        let first = self.first_step().unwrap_or(committed.next());
        let older: Vec<(Step, Totals)> = others.into_iter().filter(|(step, _)| *step < first).collect();
        let joins = older.last().is_some_and(|(last, _)| last.next() == first);
        if joins {
            older.into_iter().rev().for_each(|entry| self.sums.push_front(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(recorded: u64) -> Totals {
        Totals::with_recorded(Step::new(recorded))
    }

    /// Steps `1..=last`, of each of which a coordinator had what `recorded` says.
    fn filled(last: u64, num_max: usize, recorded: impl Fn(u64) -> u64) -> History {
        let mut history = History::default();
        (1..=last).for_each(|step| history.push(Step::new(step), sums(recorded(step)), num_max));
        history
    }

    #[test]
    fn t12_what_no_coordinator_has_is_kept_up_to_the_bound() {
        assert_eq!(filled(1000, 5000, |_| 0).first_step(), Some(Step::new(1)));
        assert_eq!(filled(1000, 5000, |step| step - 1).first_step(), Some(Step::new(1000 - 63)));
        assert_eq!(filled(1000, 5000, |step| step.min(300)).first_step(), Some(Step::new(301)));
        assert_eq!(filled(1000, 40, |_| 0).first_step(), Some(Step::new(961)), "the oldest go");
        assert_eq!(filled(1000, 1, |_| 0).first_step(), Some(Step::new(1000)), "the newest never");
    }

    #[test]
    fn a_place_takes_what_it_lacks() {
        let entries =
            |range: std::ops::RangeInclusive<u64>| range.map(|step| (Step::new(step), sums(0))).collect::<Vec<_>>();
        let mut newcomer = History::default();
        newcomer.take_older(entries(5..=9), Step::new(9));
        assert_eq!((newcomer.first_step(), newcomer.last_step()), (Some(Step::new(5)), Some(Step::new(9))));
        newcomer.take_older(entries(2..=9), Step::new(9));
        assert_eq!((newcomer.first_step(), newcomer.since(Step::new(1)).count()), (Some(Step::new(2)), 8));
        newcomer.take_older(entries(9..=9), Step::new(9));
        assert_eq!((newcomer.first_step(), newcomer.last_step()), (Some(Step::new(2)), Some(Step::new(9))));
        newcomer.take_older(Vec::new(), Step::new(9));
        assert_eq!(newcomer.since(Step::new(8)).map(|(step, _)| step.get()).collect::<Vec<_>>(), [8, 9]);
        // Who has only sealed the newest commits it itself.
        let mut behind = History::default();
        behind.take_older(entries(9..=9), Step::new(8));
        assert_eq!(behind.last_step(), None);
    }
}
