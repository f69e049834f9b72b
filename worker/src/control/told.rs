//! Spans of what the coordinator asks of this place, between the message that asks and the one that answers.

use std::collections::BTreeMap;

use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_torus::ids::{Epoch, JobId, Rank, Step};

use crate::spans::{At, now_us};
use crate::trainer::Shared;

/// Checkpoints that are not done; beyond, the oldest is not told of.
const MAX_OPEN: usize = 64;

/// By step: the trace, and when it was asked for.
type Open = BTreeMap<u64, (String, u64)>;

/// What is being done for a trace.
#[derive(Debug, Default)]
pub(crate) struct Told {
    shards: Open,
    manifests: Open,
}

impl Told {
    /// The coordinator says this, in this trace; empty: in none.
    pub fn heard(&mut self, shared: &Shared, body: &FromCoordinator, traceparent: String) {
        match body {
            FromCoordinator::Assign(m) => {
                let (job, epoch) = (JobId::from(m.job_id.as_str()), Epoch::new(m.epoch));
                shared.spans().assigned(At { job, epoch, rank: Rank::from(m.rank) }, traceparent);
            }
            FromCoordinator::Start(_) if !traceparent.is_empty() => shared.spans().follows(traceparent),
            FromCoordinator::CheckpointAt(m) => open(&mut self.shards, m.step, traceparent),
            FromCoordinator::PublishManifest(m) => open(&mut self.manifests, m.step, traceparent),
            FromCoordinator::DropCheckpoint(m) => drop(self.shards.remove(&m.step)),
            _ => {}
        }
    }

    /// This place answers. What is said again after another Welcome is told once.
    pub fn says(&mut self, shared: &Shared, body: &ToCoordinator) {
        match body {
            ToCoordinator::ShardWritten(m) => {
                if let Some((traceparent, _)) = self.shards.remove(&m.step) {
                    // As long as its status will say, and from when writing began, not from when it was asked for: steps are made between.
                    let end_us = now_us();
                    let took = (end_us.saturating_sub((m.write_s.max(0.0) * 1e6) as u64), end_us);
                    shared.spans().done("write shard", &traceparent, took, Step::new(m.step), "");
                }
            }
            ToCoordinator::CheckpointMissed(m) => {
                if let Some((traceparent, asked_us)) = self.shards.remove(&m.step) {
                    let error = if m.error.is_empty() { "it came too late" } else { &m.error };
                    shared.spans().done("write shard", &traceparent, (asked_us, now_us()), Step::new(m.step), error);
                }
            }
            ToCoordinator::ManifestPublished(m) => {
                if let Some((traceparent, asked_us)) = self.manifests.remove(&m.step) {
                    let took = (asked_us, now_us());
                    shared.spans().done("write manifest", &traceparent, took, Step::new(m.step), &m.error);
                }
            }
            _ => {}
        }
    }
}

fn open(open: &mut Open, step: u64, traceparent: String) {
    if traceparent.is_empty() {
        return;
    }
    if open.len() == MAX_OPEN {
        open.pop_first();
    }
    open.entry(step).or_insert((traceparent, now_us()));
}
