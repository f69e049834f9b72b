//! Which trace an incident, or a checkpoint, of a job belongs to: the same one for every process that has to do with it, whoever leads.
//!
//! The ids follow from the job's owner id (16 random bytes, its own for life) and the number of the incident, or the step: a coordinator that takes over
//! goes on with the same trace, and nothing has to be stored (decision 71). What a worker is told carries them as a `traceparent`, the
//! header of W3C's trace context.
//!
//! Deliberately absent: spans, and where they go; the machine, which knows nothing of this.

use toroid_torus::ids::Step;

use crate::machine::record::JobRecord;

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
