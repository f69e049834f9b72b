//! Curves as the driver has them: what follows when rows are written, wait, or come to where others find them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use toroid_torus::ids::JobId;

use super::{Driver, Stop, closed};
use crate::error::CoordinatorError;
use crate::evidence::OfJob;
use crate::files::{JobFiles, Place, RETRY_INTERVAL, Restored};
use crate::machine::Input;
use crate::machine::record::{JobRecord, Record};
use crate::store::StoreError;

/// Jobs whose files are looked for at a time: those in a bucket wait for it.
const MAX_AT_ONCE: usize = 16;

/// The files and the evidence of each job that the store knows.
pub(super) fn restore(place: &Place, records: &[Record]) -> Vec<(JobId, Restored, OfJob)> {
    let jobs = records.iter().filter_map(|record| match record {
        Record::Job(job) => Some(&**job),
        _ => None,
    });
    let jobs: Vec<&JobRecord> = jobs.collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let look = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let restored = (job.id.clone(), JobFiles::restore(place, job), OfJob::new(place, job));
            found.lock().unwrap_or_else(PoisonError::into_inner).push(restored);
        }
    };
    std::thread::scope(|scope| {
        (1..MAX_AT_ONCE.min(jobs.len())).for_each(|_| drop(scope.spawn(look)));
        look();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    pub(super) fn files(&mut self, job: &str) -> &mut JobFiles {
        self.files.get_mut(job).expect("a job has its files from its submission on")
    }

    /// After rows were appended, with the text of an event if there is one.
    pub(super) fn appended(&mut self, job: JobId, event: Option<String>, later: &mut Vec<Input>) {
        let files = self.files(&job);
        if files.is_overrun() {
            let reason = files.fault().unwrap_or("the rows of its curve come faster than they are written").to_string();
            later.push(Input::Fault { job: job.clone(), reason });
        }
        self.curve_event(job, event, later);
    }

    /// Rows of a curve begin to wait, or are written.
    pub(super) fn curve_event(&mut self, job: JobId, event: Option<String>, later: &mut Vec<Input>) {
        let is_stalled = self.files(&job).is_stalled();
        if is_stalled {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_INTERVAL);
        }
        if let Some(text) = event {
            let kind = if is_stalled { "curve.stalled" } else { "curve.written" };
            later.push(Input::Note { job, kind, text });
        }
    }

    /// Tries to write what could not be written, and then says what waited for it.
    pub(super) async fn retry(&mut self) -> Result<(), Stop> {
        self.retry_at = None;
        let stalled = self.files.iter().filter(|(_, f)| f.is_stalled()).map(|(job, _)| job.clone()).collect();
        self.go_on(stalled).await
    }

    /// Says what waited for rows that have come to a bucket by now.
    pub(super) async fn carried(&mut self, job: JobId) -> Result<(), Stop> {
        // It may not be listed any more.
        let jobs = if self.files.contains_key(&job) { vec![job] } else { Vec::new() };
        self.go_on(jobs).await
    }

    async fn go_on(&mut self, jobs: Vec<JobId>) -> Result<(), Stop> {
        let (mut refused, mut later) = (Vec::new(), Vec::new());
        for job in jobs {
            let event = self.files(&job).flush();
            if self.files(&job).is_outdated() {
                let reason = self.files(&job).fault().unwrap_or_default().to_string();
                return Err(CoordinatorError::Curve { job: job.to_string(), reason }.into());
            }
            // What another may have begun to read without these rows is not acknowledged (T-8).
            if let Some(reason) = self.tenure.over() {
                return Err(StoreError::Deposed { reason }.into());
            }
            for (stream, message) in self.files(&job).released() {
                refused.extend(self.pass_on(stream, message));
            }
            self.curve_event(job, event, &mut later);
        }
        for input in closed(refused).chain(later) {
            self.input(input).await?;
        }
        Ok(())
    }
}
