//! What the last validations found.

use std::collections::VecDeque;
use std::ops::AddAssign;

use toroid_torus::ids::Step;

/// Over all places, after `step`; every place has them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ValidationSums {
    pub step: Step,
    /// One at least.
    pub of_sources: Vec<SourceSums>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SourceSums {
    /// Cross-entropy in nats.
    pub ce: f64,
    pub tokens: f64,
    /// Of pairs: those whose chosen answer has the higher score, and those where both have the same.
    pub correct: f64,
    pub ties: f64,
}

/// Numbers of a source.
pub(super) const OF_SOURCE: usize = 4;

impl SourceSums {
    pub fn from_array([ce, tokens, correct, ties]: [f64; OF_SOURCE]) -> SourceSums {
        SourceSums { ce, tokens, correct, ties }
    }

    pub fn to_array(self) -> [f64; OF_SOURCE] {
        [self.ce, self.tokens, self.correct, self.ties]
    }

    /// Nats a token.
    pub fn mean(&self) -> f64 {
        self.ce / self.tokens
    }
}

impl AddAssign for SourceSums {
    fn add_assign(&mut self, other: SourceSums) {
        self.ce += other.ce;
        self.tokens += other.tokens;
        self.correct += other.correct;
        self.ties += other.ties;
    }
}

impl ValidationSums {
    /// Of all sources.
    pub fn tokens(&self) -> f64 {
        self.of_sources.iter().map(|source| source.tokens).sum()
    }

    /// Correct pairs and ties of all sources.
    pub fn pairs(&self) -> [f64; 2] {
        let sum = |of: fn(&SourceSums) -> f64| self.of_sources.iter().map(of).sum();
        [sum(|source| source.correct), sum(|source| source.ties)]
    }
}

/// What the last validations found, ascending by step, at every place: no coordinator may have heard of them when rank 0 dies.
#[derive(Debug, Default)]
pub(super) struct Validations(VecDeque<ValidationSums>);

impl Validations {
    /// As many are kept.
    pub const NUM_MAX: usize = 64;

    /// Numbers that all of them are, for so many sources.
    pub fn len(num_sources: usize) -> usize {
        Self::NUM_MAX * Self::len_of_one(num_sources)
    }

    /// The step, and the numbers of each source.
    fn len_of_one(num_sources: usize) -> usize {
        1 + OF_SOURCE * num_sources
    }

    /// One of the same step is replaced: it was made again.
    pub fn keep(&mut self, sums: ValidationSums) {
        self.0.retain(|kept| kept.step < sums.step);
        if self.0.len() == Self::NUM_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sums);
    }

    pub fn iter(&self) -> impl Iterator<Item = &ValidationSums> {
        self.0.iter()
    }

    /// Into [`Self::len`] numbers that are 0.
    pub fn write(&self, num_sources: usize, values: &mut [f64]) {
        for (v, slot) in self.0.iter().zip(values.chunks_exact_mut(Self::len_of_one(num_sources))) {
            slot[0] = v.step.get() as f64;
            for (source, own) in v.of_sources.iter().zip(slot[1..].chunks_exact_mut(OF_SOURCE)) {
                own.copy_from_slice(&source.to_array());
            }
        }
    }

    pub fn read(num_sources: usize, values: &[f64]) -> Validations {
        // Each source is validated: none has no tokens but in a slot that nobody wrote to.
        let has_tokens = |slot: &&[f64]| slot[2] > 0.0;
        let sums = |slot: &[f64]| ValidationSums {
            step: Step::new(slot[0] as u64),
            of_sources: slot[1..].as_chunks().0.iter().copied().map(SourceSums::from_array).collect(),
        };
        Validations(values.chunks_exact(Self::len_of_one(num_sources)).filter(has_tokens).map(sums).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(step: u64, num_sources: usize) -> ValidationSums {
        let source = |n: usize| SourceSums { ce: step as f64 / 4.0 + n as f64, tokens: 32.0, correct: 7.0, ties: 1.0 };
        ValidationSums { step: Step::new(step), of_sources: (0..num_sources).map(source).collect() }
    }

    #[test]
    fn the_newest_validations_are_kept_and_arrive_at_a_newcomer() {
        for num_sources in [1, 3] {
            let mut kept = Validations::default();
            // That of step 3 is made twice, and of step 0 it is one, too.
            [0, 1, 2, 3, 3].into_iter().for_each(|step| kept.keep(sums(step, num_sources)));
            let passed_on = |kept: &Validations| {
                let mut values = vec![0.0; Validations::len(num_sources)];
                kept.write(num_sources, &mut values);
                Validations::read(num_sources, &values).0
            };
            assert_eq!(passed_on(&kept), [0, 1, 2, 3].map(|step| sums(step, num_sources)));
            (4..=100).for_each(|step| kept.keep(sums(step, num_sources)));
            assert_eq!(passed_on(&kept), (37..=100).map(|step| sums(step, num_sources)).collect::<Vec<_>>());
        }
    }
}
