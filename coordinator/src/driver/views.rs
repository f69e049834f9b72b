//! What the driver answers to questions: jobs, their curves, what is new of them.

use tokio::sync::watch;
use toroid_proto as proto;
use toroid_torus::ids::Step;

use super::Driver;
use crate::files::JobFiles;
use crate::handle::{AskError, Export, Exported, Jobs, Page, Seen, Update};
use crate::machine::RequestError;
use crate::machine::record::JobRecord;
use crate::traces::{Subject, TraceOf};

/// Step records in an answer, and how long they are at most in the file, but for a single one.
const MAX_ROWS: usize = 1000;
const MAX_ROWS_BYTES: usize = 1 << 20;
/// Jobs in a list; beyond, there is another page.
const MAX_PAGE_BYTES: usize = 2 << 20;

impl Driver {
    pub(super) fn view(&self, job: &str) -> Result<proto::Job, RequestError> {
        let mut view = self.outline(job)?;
        for incident in &mut view.incidents {
            incident.evidence = self.evidence.of(&view.id, incident.number).to_vec();
        }
        Ok(view)
    }

    /// The same without evidence, for lists: whoever wants to see it asks for the job.
    pub(super) fn outline(&self, job: &str) -> Result<proto::Job, RequestError> {
        let mut view = self.machine.view(job, self.clock.now()).ok_or_else(|| self.machine.unknown(job))?;
        view.store_trouble = self.tenure.trouble().unwrap_or_default();
        if let Some(record) = self.machine.record(job) {
            for incident in &mut view.incidents {
                incident.trace_id = TraceOf::new(record, Subject::Incident(incident.number)).hex();
            }
        }
        if let Some(files) = self.files.get(job) {
            view.last_step = files.curve().last().cloned();
            view.damaged = files.fault().unwrap_or_default().into();
        }
        Ok(view)
    }

    pub(super) fn list(&self, page: Page) -> Jobs {
        let mut numbers: Vec<(u64, &str)> = self
            .machine
            .jobs()
            .map(|r| (r.number, r.id.as_str()))
            .filter(|(number, _)| *number < page.before)
            .collect();
        numbers.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        for (n, (_, id)) in numbers.iter().enumerate() {
            let Ok(job) = self.outline(id) else { continue };
            bytes += prost::Message::encoded_len(&job);
            if n > 0 && (n >= page.max_jobs || bytes > MAX_PAGE_BYTES) {
                return Jobs { jobs, next: Some(numbers[n - 1].0) };
            }
            jobs.push(job);
        }
        Jobs { jobs, next: None }
    }

    pub(super) fn rows(&self, job: &str, from: u64) -> Result<Vec<proto::StepRecord>, AskError> {
        let files = self.files.get(job).ok_or_else(|| self.machine.unknown(job))?;
        Ok(files.curve().read(from, MAX_ROWS, MAX_ROWS_BYTES)?)
    }

    /// Of all jobs that have rows.
    pub(super) fn exports(&self) -> Vec<Export> {
        let term = self.tenure.term().get();
        let of_job = |record: &JobRecord| {
            let files = self.files.get(&record.id)?;
            let last_step = files.curve().last()?.step;
            let (is_ended, is_cut) = (record.state.is_ended(), files.is_cut());
            Some(Export { term, job: record.id.clone(), last_step, is_ended, is_cut })
        };
        self.machine.jobs().filter_map(of_job).collect()
    }

    pub(super) fn export(&mut self, job: &str, from: u64, validations_from: u64) -> Result<Exported, AskError> {
        let steps = self.rows(job, from)?;
        let validations = self.machine.validations_from(job, Step::new(validations_from));
        let cut_to = self.files.get_mut(job).and_then(JobFiles::take_cut);
        Ok(Exported { cut_to, steps, validations })
    }

    pub(super) fn watch(&mut self, job: &str) -> Result<watch::Receiver<()>, AskError> {
        if self.machine.record(job).is_none() {
            return Err(self.machine.unknown(job).into());
        }
        self.watchers.retain(|_, sender| sender.receiver_count() > 0);
        Ok(self.watchers.entry(job.into()).or_insert_with(|| watch::channel(()).0).subscribe())
    }

    pub(super) fn update(&self, id: &str, seen: Seen) -> Result<Update, AskError> {
        let job = self.view(id)?;
        let steps = self.rows(id, seen.next_step)?;
        let (events, num_events) = self.machine.events_since(id, seen.num_events);
        let next_step = steps.last().map_or(seen.next_step, |s| s.step + 1);
        let has_more = job.last_step.as_ref().is_some_and(|last| last.step >= next_step);
        let is_ended = self.machine.record(id).is_some_and(|r| r.state.is_ended());
        let seen = Seen { next_step, num_events };
        Ok(Update { update: proto::JobUpdate { job: Some(job), steps, events }, seen, has_more, is_ended })
    }
}
