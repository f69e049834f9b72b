//! What the last validations found.

use std::collections::VecDeque;

use toroid_torus::ids::Step;

/// Over all places, after `step`; every place has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ValidationSums {
    pub step: Step,
    /// Cross-entropy in nats.
    pub ce: f64,
    pub tokens: f64,
}

/// What the last validations found, ascending by step, at every place: no coordinator may have heard of them when rank 0 dies.
#[derive(Debug, Default)]
pub(super) struct Validations(VecDeque<ValidationSums>);

impl Validations {
    /// As many are kept.
    pub const NUM_MAX: usize = 64;
    /// Numbers that all of them are.
    pub const LEN: usize = 3 * Self::NUM_MAX;

    /// One of the same step is replaced: it was made again.
    pub fn keep(&mut self, sums: ValidationSums) {
        self.0.retain(|kept| kept.step < sums.step);
        if self.0.len() == Self::NUM_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sums);
    }

    pub fn iter(&self) -> impl Iterator<Item = ValidationSums> + '_ {
        self.0.iter().copied()
    }

    /// Into [`Self::LEN`] numbers that are 0.
    pub fn write(&self, values: &mut [f64]) {
        for (v, slot) in self.0.iter().zip(values.chunks_exact_mut(3)) {
            slot.copy_from_slice(&[v.step.get() as f64, v.ce, v.tokens]);
        }
    }

    pub fn read(values: &[f64]) -> Validations {
        let has_tokens = |slot: &&[f64]| slot[2] > 0.0;
        let sums = |slot: &[f64]| ValidationSums { step: Step::new(slot[0] as u64), ce: slot[1], tokens: slot[2] };
        Validations(values.chunks_exact(3).filter(has_tokens).map(sums).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(step: u64) -> ValidationSums {
        ValidationSums { step: Step::new(step), ce: step as f64 / 4.0, tokens: 32.0 }
    }

    #[test]
    fn the_newest_validations_are_kept_and_arrive_at_a_newcomer() {
        let mut kept = Validations::default();
        // That of step 3 is made twice, and of step 0 it is one, too.
        [0, 1, 2, 3, 3].into_iter().for_each(|step| kept.keep(sums(step)));
        let passed_on = |kept: &Validations| {
            let mut values = [0.0; Validations::LEN];
            kept.write(&mut values);
            Validations::read(&values).0
        };
        assert_eq!(passed_on(&kept), [0, 1, 2, 3].map(sums));
        (4..=100).for_each(|step| kept.keep(sums(step)));
        assert_eq!(passed_on(&kept), (37..=100).map(sums).collect::<Vec<_>>());
    }
}
