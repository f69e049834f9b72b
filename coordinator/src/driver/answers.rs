//! What the driver answers: from the machine and the files as they are, also while a decision is being written.
//!
//! Deliberately absent: whatever changes a job. Who asks changes nothing but who watches.

use std::cmp::Reverse;

use tokio::sync::watch;
use toroid_proto as proto;
use toroid_torus::ids::{JobId, Step};

use super::Driver;
use crate::files::JobFiles;
use crate::handle::{AskError, Export, Exported, Jobs, Page, Question, Seen, Update};
use crate::machine::RequestError;
use crate::machine::record::JobRecord;

/// Step records in an answer, and how long they are at most in the file, but for a single one.
const MAX_ROWS: usize = 1000;
const MAX_ROWS_BYTES: usize = 1 << 20;
/// Jobs in a list; beyond, there is another page.
const MAX_PAGE_BYTES: usize = 2 << 20;

impl Driver {
    /// Whoever does not wait for the answer any more does not get it.
    pub(super) fn answer(&mut self, question: Question) {
        match question {
            Question::Leader { answer } => drop(answer.send(Ok(self.leader()))),
            Question::Tokens { answer } => drop(answer.send(Ok(self.machine.tokens().iter().cloned().collect()))),
            Question::Job { job, answer } => drop(answer.send(self.view(&job).map_err(AskError::from))),
            Question::Jobs { page, answer } => drop(answer.send(Ok(self.list(page)))),
            Question::Workers { answer } => {
                let now = self.clock.now();
                let (workers, apart) = (self.machine.view_workers(now), self.machine.view_apart(now));
                drop(answer.send(Ok(proto::ListWorkersResponse { workers, apart })));
            }
            Question::Rows { job, from, answer } => drop(answer.send(self.rows(&job, from))),
            Question::Watch { job, answer } => drop(answer.send(self.watch(&job))),
            Question::Update { job, seen, answer } => drop(answer.send(self.update(&job, seen))),
            Question::Exports { answer } => drop(answer.send(Ok(self.exports()))),
            Question::Export { job, from, validations_from, answer } => {
                drop(answer.send(self.export(&job, from, validations_from)));
            }
        }
    }

    fn leader(&self) -> proto::GetLeaderResponse {
        let (term, reason) = (self.tenure.term().get(), self.tenure.trouble().unwrap_or_default());
        proto::GetLeaderResponse { leads: true, address: self.address.clone(), term, reason }
    }

    fn view(&mut self, job: &str) -> Result<proto::Job, RequestError> {
        let mut view = self.outline(job)?;
        for incident in &mut view.incidents {
            incident.evidence = self.evidence.of(&view.id, incident.number).to_vec();
        }
        Ok(view)
    }

    /// The same without evidence, for lists: whoever wants to see it asks for the job.
    fn outline(&mut self, job: &str) -> Result<proto::Job, RequestError> {
        let mut view = self.machine.view(job, self.clock.now()).ok_or_else(|| self.machine.unknown(job))?;
        view.store_trouble = self.tenure.trouble().unwrap_or_default();
        if let Some(record) = self.machine.record(job) {
            for incident in &mut view.incidents {
                incident.trace_id = self.trace_ids.of_incident(record, incident.number);
            }
        }
        if let Some(files) = self.files.get(job) {
            view.last_step = files.curve().last().cloned();
            view.damaged = files.fault().unwrap_or_default().into();
        }
        Ok(view)
    }

    fn list(&mut self, page: Page) -> Jobs {
        let jobs = self.machine.jobs().map(|r| (r.number, &r.id)).filter(|(number, _)| *number < page.before);
        let mut newest: Vec<(u64, &JobId)> = jobs.collect();
        newest.sort_unstable_by_key(|(number, _)| Reverse(*number));
        // One more than fit, to know whether there are.
        newest.truncate(page.max_jobs.max(1).saturating_add(1));
        let newest: Vec<(u64, JobId)> = newest.into_iter().map(|(number, id)| (number, id.clone())).collect();
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        for (n, (_, id)) in newest.iter().enumerate() {
            let Ok(job) = self.outline(id) else { continue };
            bytes += prost::Message::encoded_len(&job);
            if n > 0 && (n >= page.max_jobs || bytes > MAX_PAGE_BYTES) {
                return Jobs { jobs, next: Some(newest[n - 1].0) };
            }
            jobs.push(job);
        }
        Jobs { jobs, next: None }
    }

    fn rows(&self, job: &str, from: u64) -> Result<Vec<proto::StepRecord>, AskError> {
        let files = self.files.get(job).ok_or_else(|| self.machine.unknown(job))?;
        Ok(files.curve().read(from, MAX_ROWS, MAX_ROWS_BYTES)?)
    }

    /// Of all jobs that have rows.
    fn exports(&self) -> Vec<Export> {
        let term = self.tenure.term().get();
        let of_job = |record: &JobRecord| {
            let files = self.files.get(&record.id)?;
            let last_step = files.curve().last()?.step;
            let (is_ended, is_cut) = (record.state.is_ended(), files.is_cut());
            Some(Export { term, job: record.id.clone(), last_step, is_ended, is_cut })
        };
        self.machine.jobs().filter_map(of_job).collect()
    }

    fn export(&mut self, job: &str, from: u64, validations_from: u64) -> Result<Exported, AskError> {
        let steps = self.rows(job, from)?;
        let validations = self.machine.validations_from(job, Step::new(validations_from));
        let cut_to = self.files.get_mut(job).and_then(JobFiles::take_cut);
        Ok(Exported { cut_to, steps, validations })
    }

    fn watch(&mut self, job: &str) -> Result<watch::Receiver<()>, AskError> {
        if self.machine.record(job).is_none() {
            return Err(self.machine.unknown(job).into());
        }
        self.watchers.retain(|_, sender| sender.receiver_count() > 0);
        Ok(self.watchers.entry(job.into()).or_insert_with(|| watch::channel(()).0).subscribe())
    }

    fn update(&mut self, id: &str, seen: Seen) -> Result<Update, AskError> {
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
