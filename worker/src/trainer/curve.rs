//! The curve of a job at one place: records of committed steps, and validations, as rank 0 says them and as each place keeps them for
//! another rank 0.

use std::time::Instant;

use toroid_proto::{SourceValidation, StepRecord, Validation};
use toroid_session::{Assignment, Event, HealPlan};
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job::JobSpec;

use super::emit::Emit;
use super::history::History;
use super::long_sum::long_sum;
use super::samples::Samples;
use super::shared::Shared;
use super::totals::Totals;
use super::validations::{SourceSums, ValidationSums, Validations};
use crate::comm::{CommError, LinkStats, Links};
use crate::system;

pub(super) struct Curve {
    /// Global sums of the newest steps, and of all that no coordinator has.
    history: History,
    validations: Validations,
    /// Step of the last validation.
    validated: Option<Step>,
    /// Step that was loaded from a checkpoint of another job: it is not validated again.
    start_step: Option<Step>,
    /// Of the last commit.
    since: Instant,
    /// What the links had moved then.
    moved_since: LinkStats,
}

/// What the source of a healing has told all places.
pub(super) struct Told {
    pub skipped: u64,
    validations: Validations,
    /// By step, ascending.
    pub sums: Vec<(Step, Totals)>,
}

impl Curve {
    pub fn new(start_step: Option<Step>) -> Curve {
        Curve {
            history: History::default(),
            validations: Validations::default(),
            validated: None,
            start_step,
            since: system::now(),
            moved_since: LinkStats::default(),
        }
    }

    // ---------------------------------------------------------------------------------------------------------------- steps

    /// The time of the next step begins now.
    pub fn restart_clock(&mut self, moved: LinkStats) {
        (self.since, self.moved_since) = (system::now(), moved);
    }

    /// `step` is committed with these sums. The record is that of rank 0.
    pub fn commit(&mut self, place: &Assignment, step: Step, totals: Totals) -> Option<StepRecord> {
        let record = (place.rank == Rank::ZERO).then(|| {
            let record = totals.record(place, step);
            let step_s = (system::now() - self.since).as_secs_f64();
            StepRecord { step_s, tokens_per_s: record.tokens as f64 / step_s, ..record }
        });
        self.since = system::now();
        self.history.push(step, totals, History::num_max(&place.spec));
        record
    }

    /// The record with what the links moved in the step.
    pub fn with_moved(&mut self, record: Option<StepRecord>, moved: LinkStats) -> Option<StepRecord> {
        let record = record.map(|record| StepRecord {
            hidden_s: (moved.hidden - self.moved_since.hidden).as_secs_f64(),
            exposed_s: (moved.wait - self.moved_since.wait).as_secs_f64(),
            ..record
        });
        self.moved_since = moved;
        record
    }

    /// The oldest step whose sums are here.
    pub fn first_step(&self) -> Option<Step> {
        self.history.first_step()
    }

    /// The sums are of steps that were made long before: what comes from others does not join them.
    pub fn forget_steps(&mut self) {
        self.history = History::default();
    }

    /// Rank 0 says the steps from `from` on again, and which of them nobody knows any more.
    pub fn report_since(&self, place: &Assignment, committed: Step, from: Step, emit: &Emit) {
        if place.rank != Rank::ZERO {
            return;
        }
        let known = self.history.first_step().unwrap_or(committed.next());
        if let Some(through) = known.previous().filter(|through| *through >= from) {
            emit(place.event(Event::RecordsMissing { from, through }));
        }
        for (step, totals) in self.history.since(from) {
            let record = Some(Box::new(totals.record(place, *step)));
            emit(place.event(Event::Committed { step: *step, record }));
        }
    }

    // ---------------------------------------------------------------------------------------------------------- validations

    /// Validations are before the first step, after the last and at the interval.
    pub fn is_validation_due(&self, spec: &JobSpec, step: Step) -> bool {
        let interval = spec.eval.interval;
        let is_due =
            step == Step::ZERO || step.get() == spec.steps || (interval > 0 && step.get().is_multiple_of(interval));
        // A step that a resumed job starts from was validated by the job that made it.
        let is_new = self.validated != Some(step) && self.start_step != Some(step);
        is_due && is_new
    }

    pub fn set_validated(&mut self, step: Step) {
        self.validated = Some(step);
    }

    /// A validation of the committed step is due again, where one is.
    pub fn validate_again(&mut self) {
        (self.validated, self.start_step) = (None, None);
    }

    /// Keeps a validation, and reports it.
    pub fn keep_validation(&mut self, place: &Assignment, samples: &Samples, sums: ValidationSums, emit: &Emit) {
        report_validation(place, samples, &sums, emit);
        self.validations.keep(sums);
    }

    /// A new rank 0 says what the old one may not have said.
    pub fn report_validations(&self, place: &Assignment, samples: &Samples, emit: &Emit) {
        self.validations.iter().for_each(|sums| report_validation(place, samples, sums, emit));
    }

    // -------------------------------------------------------------------------------------------------------------- healing

    /// The source's global sums of the last steps, its count of skipped steps and its last validations, at every place.
    pub fn tell(
        &self,
        links: &mut Links,
        shared: &Shared,
        place: &Assignment,
        plan: &HealPlan,
        skipped: u64,
    ) -> Result<Told, CommError> {
        let spec = &place.spec;
        let len = Totals::len(spec);
        let num = History::num_max(spec).min(plan.step.since(plan.recorded).max(1) as usize);
        // Before the sums comes the count of skipped steps, and the validations.
        let num_sources = spec.data.sources.len().max(1);
        let head = 1 + Validations::len(num_sources);
        let mut values = vec![0.0; head + num * (1 + len)];
        if place.rank == plan.source {
            values[0] = skipped as f64;
            self.validations.write(num_sources, &mut values[1..head]);
            let newest = self.history.since(Step::new((plan.step.get() + 1).saturating_sub(num as u64)));
            for ((step, totals), slot) in newest.zip(values[head..].chunks_exact_mut(1 + len)) {
                slot[0] = step.get() as f64;
                slot[1..].copy_from_slice(totals.as_slice());
            }
        }
        long_sum(links, shared, &spec.shape, &mut values)?;
        let slots = values[head..].chunks_exact(1 + len).filter(|slot| slot[0] > 0.0);
        Ok(Told {
            skipped: values[0] as u64,
            validations: Validations::read(num_sources, &values[1..head]),
            sums: slots.map(|slot| (Step::new(slot[0] as u64), Totals::from_slice(&slot[1..]))).collect(),
        })
    }

    /// A newcomer knows no validations but those that it was told.
    pub fn take_validations(&mut self, told: &mut Told) {
        self.validations = std::mem::take(&mut told.validations);
    }

    /// An epoch begins, and its coordinator has the records up to `recorded`. Sums of steps before the own ones are taken over, without own
    /// ones up to `committed`.
    pub fn begin_epoch(&mut self, recorded: Step, older: Vec<(Step, Totals)>, committed: Step) {
        self.history.begin(recorded);
        self.history.take_older(older, committed);
    }
}

fn report_validation(place: &Assignment, samples: &Samples, sums: &ValidationSums, emit: &Emit) {
    if place.rank != Rank::ZERO {
        return;
    }
    let ce = samples.mean_loss(sums);
    // How many bytes a token of another tokenizer stands for is not known here.
    let has_bytes = samples.tokenizer().is_none() && place.spec.model.output.is_tokens();
    let bits_per_byte = if has_bytes { ce / std::f64::consts::LN_2 } else { 0.0 };
    let source = |source: &SourceSums| SourceValidation { ce: source.mean(), tokens: source.tokens as u64 };
    let is_mixed = !place.spec.data.sources.is_empty();
    let sources = sums.of_sources.iter().filter(|_| is_mixed).map(source).collect();
    let (step, tokens) = (sums.step.get(), sums.tokens() as u64);
    let [correct, ties] = sums.pairs().map(|num| num as u64);
    emit(place.event(Event::Validated(Validation { step, ce, bits_per_byte, tokens, sources, correct, ties })));
}
