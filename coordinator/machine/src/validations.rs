//! What the validations of a job found, ascending by step: in pages, each of which is a record of its own.
//!
//! ```text
//!   page 0: 64 validations   page 1: 64   ...   page n: up to 64      a validation comes: page n is written, or n + 1 is begun
//! ```
//!
//! - All pages but the last are full, so that what is written for a validation does not grow with the age of the job
//!   ([decision 82](../../../docs/decisions/82-validations-are-pages.md)). One that comes late writes the pages from its own on.
//! - The newest [`MAX_VALIDATION_PAGES`] pages are kept; their numbers go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use toroid_torus::ids::{JobId, Step};

use super::job_context::{JobContext, Section};
use super::record::{JobRecord, MAX_VALIDATION_PAGES, VALIDATIONS_PER_PAGE, Validation, ValidationPage};

/// The validations of a job.
#[derive(Debug, Default)]
pub(crate) struct Validations {
    /// The number of the page that begins with the first of `all`.
    first_page: u64,
    all: VecDeque<Validation>,
}

/// Nothing of a job's record is about validations.
impl Section for Validations {
    type Fields<'a> = ();

    fn fields(_: &mut JobRecord) {}
}

type Cx<'a, 'b> = JobContext<'a, 'b, Validations>;

impl Validations {
    /// As the store has them: pages, and what an earlier version had in the record of the job. With the numbers of pages that are to be stored
    /// otherwise, or dropped.
    pub fn restore(pages: Vec<ValidationPage>, earlier: Vec<Validation>) -> (Validations, Vec<u64>) {
        let stored: BTreeMap<u64, Vec<Validation>> = pages.into_iter().map(|p| (p.number, p.validations)).collect();
        let by_step: BTreeMap<Step, Validation> =
            earlier.into_iter().chain(stored.values().flatten().cloned()).map(|v| (v.step, v)).collect();
        let first_page = stored.first_key_value().map_or(0, |(number, _)| *number);
        let mut restored = Validations { first_page, all: by_step.into_values().collect() };
        drop(restored.drop_oldest());
        let is_otherwise = |number: &u64| {
            let found = stored.get(number).map_or(&[][..], Vec::as_slice);
            !restored.of_page(*number).map(to_the_bit).eq(found.iter().map(to_the_bit))
        };
        let numbers: BTreeSet<u64> = stored.keys().copied().chain(restored.pages()).collect();
        let otherwise = numbers.into_iter().filter(is_otherwise).collect();
        (restored, otherwise)
    }

    /// As the store is to have it; `None`: there is no such page, or not any more.
    pub fn stored(&self, job: &JobId, number: u64) -> Option<ValidationPage> {
        let validations: Vec<Validation> = self.of_page(number).cloned().collect();
        (!validations.is_empty()).then(|| ValidationPage { job: job.clone(), number, validations })
    }

    /// The numbers of all pages.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.first_page..self.end_page()
    }

    /// The newest, ascending by step.
    pub fn all(&self) -> impl Iterator<Item = &Validation> {
        self.all.iter()
    }

    /// From `step` on.
    pub fn starting_at(&self, step: Step) -> impl Iterator<Item = &Validation> {
        self.all.range(self.all.partition_point(|v| v.step < step)..)
    }

    /// It was said already: a new rank 0 says again what the lost one may not have said.
    pub fn has(&self, found: &Validation) -> bool {
        self.starting_at(found.step).next().is_some_and(|known| known.says_the_same(found))
    }

    /// Keeps it, in place of what was found at its step before.
    pub fn add(&mut self, cx: &mut Cx<'_, '_>, found: Validation) {
        let at = self.all.partition_point(|v| v.step < found.step);
        match self.all.get_mut(at).filter(|known| known.step == found.step) {
            Some(known) => {
                *known = found;
                cx.store_validations(self.page_of(at));
            }
            None => {
                self.all.insert(at, found);
                (self.page_of(at)..self.end_page()).for_each(|page| cx.store_validations(page));
            }
        }
        self.drop_oldest().for_each(|page| cx.store_validations(page));
    }

    /// Drops those after `keep`.
    pub fn cut(&mut self, cx: &mut Cx<'_, '_>, keep: Step) {
        let (end_page, len) = (self.end_page(), self.all.partition_point(|v| v.step <= keep));
        if len < self.all.len() {
            self.all.truncate(len);
            (self.page_of(len)..end_page).for_each(|page| cx.store_validations(page));
        }
    }

    /// Pages that are too many; says which went.
    fn drop_oldest(&mut self) -> impl Iterator<Item = u64> + use<> {
        let before = self.first_page;
        while self.all.len() > MAX_VALIDATION_PAGES * VALIDATIONS_PER_PAGE {
            self.all.drain(..VALIDATIONS_PER_PAGE);
            self.first_page += 1;
        }
        before..self.first_page
    }

    fn page_of(&self, at: usize) -> u64 {
        self.first_page + (at / VALIDATIONS_PER_PAGE) as u64
    }

    fn end_page(&self) -> u64 {
        self.page_of(self.all.len() + VALIDATIONS_PER_PAGE - 1)
    }

    fn of_page(&self, number: u64) -> impl Iterator<Item = &Validation> {
        let pages = number.checked_sub(self.first_page).and_then(|pages| usize::try_from(pages).ok());
        let start =
            pages.map_or(self.all.len(), |pages| pages.saturating_mul(VALIDATIONS_PER_PAGE).min(self.all.len()));
        self.all.range(start..(start + VALIDATIONS_PER_PAGE).min(self.all.len()))
    }
}

/// What is not a number equals itself.
fn to_the_bit(v: &Validation) -> (Step, u64, u64, u64) {
    (v.step, v.epoch.get(), v.ce.to_bits(), v.tokens)
}
