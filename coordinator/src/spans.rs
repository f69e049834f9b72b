//! Spans of incidents and checkpoints, told when they have ended: an incident's from what the machine has measured, a checkpoint's from what is said to
//! workers and by them.
//!
//! A span is an event of `tracing` (`toroid_proto::SPAN_TARGET`); who takes it, if anybody, is not known here, and nothing waits for it.

use std::collections::BTreeMap;

use toroid_proto as proto;
use toroid_proto::SPAN_TARGET;
use toroid_proto::coordinator_message::Body;
use toroid_torus::ids::{JobId, Rank, Step};
use toroid_torus::units;

use crate::clock::unix_ms;
use crate::machine::record::{Incident, JobRecord};
use crate::traces::{Subject, TraceOf};

/// Checkpoints that are not published; beyond, the oldest is not told of.
const MAX_OPEN: usize = 1024;
/// Ranks that an attribute names.
const MAX_NAMED: usize = 16;

/// Since 1970.
#[derive(Debug, Clone, Copy)]
struct Open {
    asked_us: u64,
    /// All shards were written, and the manifest was asked for.
    publish_us: Option<u64>,
}

/// Checkpoints that are being made.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    open: BTreeMap<(JobId, u64), Open>,
}

fn now_us() -> u64 {
    u64::try_from(unix_ms()).unwrap_or(0) * 1000
}

impl Spans {
    /// A worker is told this.
    pub fn sent(&mut self, body: &Body) {
        let now_us = now_us();
        match body {
            Body::CheckpointAt(m) => {
                if self.open.len() == MAX_OPEN {
                    self.open.pop_first();
                }
                let open = Open { asked_us: now_us, publish_us: None };
                self.open.entry((m.job_id.as_str().into(), m.step)).or_insert(open);
            }
            Body::PublishManifest(m) => {
                // Another coordinator may have asked for the shards.
                let open = Open { asked_us: now_us, publish_us: None };
                let open = self.open.entry((m.job_id.as_str().into(), m.step)).or_insert(open);
                open.publish_us.get_or_insert(now_us);
            }
            Body::DropCheckpoint(m) => drop(self.open.remove(&(m.job_id.as_str().into(), m.step))),
            _ => {}
        }
    }

    /// A worker says that the manifest of a checkpoint is written, or why it is not.
    pub fn published(&mut self, record: &JobRecord, m: &proto::ManifestPublished) {
        let Some(open) = self.open.remove(&(record.id.clone(), m.step)) else { return };
        let (end_us, publish_us) = (now_us(), open.publish_us.unwrap_or(open.asked_us));
        let trace = TraceOf::new(record, Subject::Checkpoint(Step::new(m.step)));
        let traceparent = trace.traceparent();
        let (job, epoch, step, error) = (record.id.as_str(), m.epoch, m.step, m.error.as_str());
        let tell = |name: &str, is_root: bool, start_us: u64, end_us: u64, error: &str| {
            tracing::trace!(target: SPAN_TARGET, traceparent, is_root, start_us, end_us, job, epoch, step, error, "{name}");
        };
        tell("checkpoint", true, open.asked_us, end_us, error);
        tell("write shards", false, open.asked_us, publish_us, "");
        tell("publish", false, publish_us, end_us, error);
    }
}

/// The incident is over: the phases that the machine has measured, end to end.
pub(crate) fn tell_incident(record: &JobRecord, incident: &Incident) {
    let us = |seconds: f64| (seconds.max(0.0) * 1e6) as u64;
    let seen_us = u64::try_from(incident.unix_ms).unwrap_or(0) * 1000;
    let trace = TraceOf::new(record, Subject::Incident(incident.number));
    let traceparent = trace.traceparent();
    let (job, number) = (record.id.as_str(), incident.number);
    let phases = [
        ("detect", incident.detect_s),
        ("fence", incident.fence_s),
        ("decide", incident.decide_s),
        ("heal", incident.heal_s),
        ("redo", incident.redo_s),
    ];
    let begun_us = seen_us.saturating_sub(us(incident.detect_s));
    let end_us = seen_us + us(incident.total_s());
    let ranks = units::names(incident.ranks.iter().copied().map(Rank::to_wire), MAX_NAMED);
    let workers = units::names(&incident.workers, MAX_NAMED);
    let (epoch, step, steps_lost) = (incident.epoch.get(), incident.step.get(), incident.steps_lost);
    let (cause, reason) = (incident.cause.as_str(), incident.reason.as_str());
    let (seen_by, rung) = (incident.seen_by.name(), incident.rung.name());
    let error = if incident.resolved { "" } else { "the job ended before it was resolved" };
    tracing::trace!(
        target: SPAN_TARGET, traceparent, is_root = true, start_us = begun_us, end_us, job, incident = number, epoch, step, ranks, workers,
        cause, seen_by, rung, reason, steps_lost, error, "incident"
    );
    let mut start_us = begun_us;
    for (name, seconds) in phases {
        let end_us = start_us + us(seconds);
        tracing::trace!(target: SPAN_TARGET, traceparent, start_us, end_us, job, incident = number, epoch, step, "{name}");
        start_us = end_us;
    }
}
