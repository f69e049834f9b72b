//! Step records of rank 0 that the coordinator has not said to have on disk: said again until it does (T-9).
//!
//! Bounded by [`BYTES_MAX`]: a coordinator that is away for longer misses the oldest, and is told which (T-12).

use std::collections::BTreeMap;
use std::mem::size_of;

use toroid_proto::StepRecord;
use toroid_torus::ids::Step;

/// Of all records that wait: as much as every place keeps of their sums, see `trainer::history`.
pub const BYTES_MAX: usize = 64 << 20;

/// What is said of one step, or of several that nobody knows any more.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Figures(StepRecord),
    /// From the step that it is kept under up to this one.
    Missing {
        through: Step,
    },
}

#[derive(Debug, Default)]
pub struct Reports {
    /// By first step; ranges of steps do not overlap.
    said: BTreeMap<Step, Said>,
    bytes: usize,
}

fn bytes_of(record: &StepRecord) -> usize {
    size_of::<StepRecord>() + 8 * record.expert_load.len()
}

impl Reports {
    /// Keeps a record and gives what is to be said: one that is kept of this step already has its times, and stays.
    pub fn keep(&mut self, record: StepRecord) -> StepRecord {
        self.keep_within(record, BYTES_MAX)
    }

    fn keep_within(&mut self, record: StepRecord, bytes_max: usize) -> StepRecord {
        let step = Step::new(record.step);
        if let Some(Said::Figures(kept)) = self.said.get(&step) {
            return kept.clone();
        }
        self.no_longer_missing(step);
        self.bytes += bytes_of(&record);
        self.said.insert(step, Said::Figures(record.clone()));
        while self.bytes > bytes_max && self.num_figures_exceeds_one() {
            self.drop_oldest();
        }
        record
    }

    /// Nobody knows these steps any more.
    pub fn miss(&mut self, from: Step, through: Step) {
        for step in from.through(through) {
            if matches!(self.said.get(&step), Some(Said::Figures(_))) {
                // This worker does.
                return self.miss_before(from, step);
            }
        }
        self.miss_before(from, through.after(1));
    }

    fn miss_before(&mut self, from: Step, end: Step) {
        if let Some(through) = end.previous().filter(|through| from <= *through) {
            self.said.retain(|_, said| matches!(said, Said::Figures(_)));
            self.said.insert(from, Said::Missing { through });
        }
    }

    /// The coordinator has everything up to `step`.
    pub fn acknowledged(&mut self, step: Step) {
        let rest = self.said.split_off(&step.after(1));
        let partly = self.said.values().find_map(|said| match said {
            Said::Missing { through } if *through > step => Some(*through),
            Said::Missing { .. } | Said::Figures(_) => None,
        });
        self.said = rest;
        self.said.extend(partly.map(|through| (step.after(1), Said::Missing { through })));
        self.count();
    }

    /// What was said of later steps does not count any more: they are made again.
    pub fn forget_after(&mut self, step: Step) {
        self.said.split_off(&step.after(1));
        self.count();
    }

    pub fn clear(&mut self) {
        *self = Reports::default();
    }

    /// Whether what is kept begins at this step or before.
    pub fn reaches_back_to(&self, step: Step) -> bool {
        self.said.first_key_value().is_some_and(|(first, _)| *first <= step)
    }

    /// In the order of the steps.
    pub fn iter(&self) -> impl Iterator<Item = (Step, &Said)> {
        self.said.iter().map(|(step, said)| (*step, said))
    }

    fn count(&mut self) {
        let of = |said: &Said| if let Said::Figures(record) = said { bytes_of(record) } else { 0 };
        self.bytes = self.said.values().map(of).sum();
    }

    fn num_figures_exceeds_one(&self) -> bool {
        self.said.values().filter(|said| matches!(said, Said::Figures(_))).nth(1).is_some()
    }

    fn drop_oldest(&mut self) {
        let oldest = self.said.iter().find_map(|(step, said)| matches!(said, Said::Figures(_)).then_some(*step));
        let Some(step) = oldest else { return };
        if let Some(Said::Figures(record)) = self.said.remove(&step) {
            self.bytes -= bytes_of(&record);
        }
        match self.said.range_mut(..step).next_back() {
            Some((_, Said::Missing { through })) if through.after(1) == step => *through = step,
            _ => drop(self.said.insert(step, Said::Missing { through: step })),
        }
    }

    fn no_longer_missing(&mut self, step: Step) {
        let range = self.said.range(..=step).next_back();
        let Some((from, Said::Missing { through })) = range.map(|(from, said)| (*from, said.clone())) else { return };
        if through < step {
            return;
        }
        self.said.remove(&from);
        if let Some(through) = step.previous().filter(|through| from <= *through) {
            self.said.insert(from, Said::Missing { through });
        }
        if through > step {
            self.said.insert(step.after(1), Said::Missing { through });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord { step, ..StepRecord::default() }
    }

    fn check(reports: &Reports, expected: &[&str]) {
        let in_words = |(step, said): (Step, &Said)| match said {
            Said::Figures(_) => step.to_string(),
            Said::Missing { through } => format!("{step}..{through} missing"),
        };
        assert_eq!(reports.iter().map(in_words).collect::<Vec<_>>(), expected);
    }

    fn filled(steps: std::ops::RangeInclusive<u64>, num_max: usize) -> Reports {
        let mut reports = Reports::default();
        for step in steps {
            reports.keep_within(record(step), num_max * bytes_of(&record(1)));
        }
        reports
    }

    #[test]
    fn t12_what_does_not_fit_is_told_to_be_missing() {
        let mut reports = filled(1..=6, 3);
        check(&reports, &["1..3 missing", "4", "5", "6"]);
        reports.acknowledged(Step::new(2));
        check(&reports, &["3..3 missing", "4", "5", "6"]);
        reports.acknowledged(Step::new(5));
        check(&reports, &["6"]);
        check(&filled(1..=3, 0), &["1..2 missing", "3"]);
    }

    #[test]
    fn what_another_place_still_has_is_not_missing() {
        let mut reports = filled(1..=6, 2);
        (2..=4).for_each(|step| drop(reports.keep(record(step))));
        check(&reports, &["1..1 missing", "2", "3", "4", "5", "6"]);
        reports.keep(record(1));
        check(&reports, &["1", "2", "3", "4", "5", "6"]);
        reports.miss(Step::new(1), Step::new(6));
        check(&reports, &["1", "2", "3", "4", "5", "6"]);
    }

    #[test]
    fn a_gap_that_was_told_stands_before_what_follows() {
        let mut reports = filled(8..=9, 9);
        reports.miss(Step::new(3), Step::new(7));
        check(&reports, &["3..7 missing", "8", "9"]);
        reports.miss(Step::new(5), Step::new(7));
        check(&reports, &["5..7 missing", "8", "9"]);
        assert!(reports.reaches_back_to(Step::new(5)) && !reports.reaches_back_to(Step::new(4)));
        reports.forget_after(Step::new(8));
        check(&reports, &["5..7 missing", "8"]);
    }

    #[test]
    fn the_first_record_of_a_step_has_its_times() {
        let mut reports = Reports::default();
        reports.keep(StepRecord { step_s: 0.5, ..record(1) });
        assert_eq!(reports.keep(record(1)).step_s, 0.5);
        reports.forget_after(Step::new(0));
        assert_eq!(reports.keep(record(1)).step_s, 0.0);
    }
}
