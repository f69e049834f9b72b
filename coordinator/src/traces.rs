//! Which trace an incident, or a checkpoint, of a job belongs to: the same one for every process that has to do with it, whoever leads.
//!
//! The ids follow from the job's owner id (16 random bytes, its own for life) and the number of the incident, or the step: a coordinator that takes over
//! goes on with the same trace, and nothing has to be stored (decision 71). What a worker is told carries them as a `traceparent`, the
//! header of W3C's trace context.
//!
//! Deliberately absent: spans, and where they go; the machine, which knows nothing of this.

use std::collections::BTreeMap;

use toroid_torus::ids::{JobId, Step};

use crate::machine::record::{JobRecord, MAX_INCIDENTS};

/// What belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Incident(u64),
    Checkpoint(Step),
}

/// A trace, and the span in it that the others are below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceOf {
    pub trace_id: u128,
    pub root: u64,
}

impl TraceOf {
    pub fn new(job: &JobRecord, subject: Subject) -> TraceOf {
        let (kind, number) = match subject {
            Subject::Incident(number) => ("incident", number),
            Subject::Checkpoint(step) => ("checkpoint", step.get()),
        };
        let mut hasher = blake3::Hasher::new_derive_key("toroid 2026-11 trace of a job's incident or checkpoint");
        match &job.owner {
            Some(owner) => hasher.update(owner.bytes()),
            // A job of an older version.
            None => hasher.update(job.id.as_bytes()).update(&job.submitted_unix_ms.to_le_bytes()),
        };
        hasher.update(kind.as_bytes()).update(&number.to_le_bytes());
        let mut bytes = [0; 24];
        hasher.finalize_xof().fill(&mut bytes);
        let (trace, span) = bytes.split_at(16);
        // Zero is no id.
        let trace_id = u128::from_be_bytes(trace.try_into().expect("16 bytes")).max(1);
        let root = u64::from_be_bytes(span.try_into().expect("8 bytes")).max(1);
        TraceOf { trace_id, root }
    }

    /// As people and other tools write it.
    pub fn hex(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// Version 00, sampled.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace_id, self.root)
    }
}

/// Ids of incidents as people write them, each made once: whoever looks at a job sees those of all incidents that are kept.
#[derive(Debug, Default)]
pub(crate) struct TraceIds(BTreeMap<JobId, BTreeMap<u64, String>>);

impl TraceIds {
    pub fn of_incident(&mut self, job: &JobRecord, number: u64) -> String {
        let of_job = match self.0.get_mut(&job.id) {
            Some(of_job) => of_job,
            None => self.0.entry(job.id.clone()).or_default(),
        };
        let id = of_job.entry(number).or_insert_with(|| TraceOf::new(job, Subject::Incident(number)).hex()).clone();
        // Those of older incidents are not asked for any more.
        while of_job.len() as u64 > MAX_INCIDENTS {
            of_job.pop_first();
        }
        id
    }

    pub fn forget(&mut self, job: &str) {
        self.0.remove(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_whenever_it_is_asked_for_and_only_those_of_kept_incidents_are_kept() {
        let job = crate::tests::submitted("j");
        let mut ids = TraceIds::default();
        let of = |number| TraceOf::new(&job, Subject::Incident(number)).hex();
        for number in 1..=MAX_INCIDENTS + 5 {
            assert_eq!(ids.of_incident(&job, number), of(number));
        }
        assert_eq!(ids.of_incident(&job, 7), of(7));
        let of_job = &ids.0[&job.id];
        assert_eq!((of_job.len() as u64, of_job.first_key_value()), (MAX_INCIDENTS, Some((&6, &of(6)))));
        ids.forget("j-1");
        assert!(ids.0.is_empty());
    }
}
