//! The place that a worker has: what it reports of it, and what it keeps to report again after the next Welcome (T-9).

use std::collections::BTreeMap;
use std::sync::Arc;

use toroid_proto as proto;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_proto::{
    CheckpointMissed, Failed, Finished, KeptStep, ManifestPublished, PeerLost, Prepared, RecordsMissing, ShardWritten,
    StepRecord, StepReport, StepsRemoved, Unreached, UnreachedPeer, ValidationReport,
};
use toroid_torus::ids::{Epoch, JobId, Rank, Step};
use toroid_torus::job::JobSpec;
use toroid_torus::owner::OwnerId;

use crate::reports::{Reports, Said};
use crate::{Assignment, BadCheckpoint, Event, PeerAddr, ReadFault};

/// Peers that one report names, at most.
const MAX_UNREACHED: usize = 256;
/// Shards that are said again, at most: as many as a coordinator names ahead.
const MAX_SHARDS: usize = 64;

/// Where a place stands in its epoch: the module `session` has the diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkPhase {
    Preparing,
    Ready,
    Training,
    Finished,
    /// Waits for a newer epoch: a peer was lost, or this worker failed.
    Halted,
}

/// The place that this worker has.
#[derive(Debug)]
pub(crate) struct Work {
    pub job_id: JobId,
    pub owner: OwnerId,
    pub epoch: Epoch,
    pub rank: Rank,
    /// Places of the epoch.
    pub world: usize,
    /// As its Assign said them: the next one may say only what differs.
    pub spec: Arc<JobSpec>,
    pub peers: Arc<BTreeMap<Rank, PeerAddr>>,
    pub phase: WorkPhase,
    pub committed: Step,
    pub prepared: Option<Prepared>,
    /// The epoch in which this place trained last, where this one heals: what the trainer committed in it before it saw the fence still counts.
    pub heals: Option<Epoch>,
    pub reports: Reports,
    pub validations: BTreeMap<Step, ValidationReport>,
    /// Of the newest checkpoints, which may not be published yet, by step.
    pub shards: BTreeMap<Step, ShardWritten>,
    /// What came of the newest order to remove checkpoints.
    pub removed: Option<StepsRemoved>,
    /// Why the work is halted.
    pub halted: Option<ToCoordinator>,
}

impl Work {
    /// A place that begins to prepare. `before` is what this worker had of the same job.
    pub fn new(assignment: &Assignment, before: Option<Work>) -> Work {
        let last_trained = |w: &Work| if w.has_trained() { Some(w.epoch) } else { w.heals };
        let heals = before.as_ref().filter(|_| assignment.heal).and_then(last_trained);
        Work {
            job_id: assignment.job_id.clone(),
            owner: assignment.owner.id,
            epoch: assignment.epoch,
            rank: assignment.rank,
            world: assignment.spec.shape.world(),
            spec: Arc::clone(&assignment.spec),
            peers: Arc::clone(&assignment.peers),
            phase: WorkPhase::Preparing,
            committed: Step::ZERO,
            prepared: None,
            heals,
            // Records of the epoch before that were not acknowledged still count: their steps were committed.
            reports: before.map(|w| w.reports).unwrap_or_default(),
            validations: BTreeMap::new(),
            shards: BTreeMap::new(),
            removed: None,
            halted: None,
        }
    }

    pub fn has_trained(&self) -> bool {
        !matches!(self.phase, WorkPhase::Preparing | WorkPhase::Ready)
    }

    /// The trainer committed a step of the epoch before when this one was already assigned. It says so before it says what it has
    /// prepared, and then the record is sent with the others.
    pub fn keep_late_record(&mut self, event: Event) {
        if let Event::Committed { record: Some(record), .. } = event {
            self.keep_record(*record);
        }
    }

    /// The job and the epoch, as messages have them.
    fn named(&self) -> (String, u64) {
        (self.job_id.to_string(), self.epoch.get())
    }

    fn keep_record(&mut self, record: StepRecord) -> StepReport {
        let record = Some(self.reports.keep(record));
        let (job_id, epoch) = self.named();
        StepReport { job_id, epoch, record }
    }

    /// What the coordinator has not said to have, in the order of the steps.
    pub fn reports_again(&self) -> impl Iterator<Item = ToCoordinator> {
        self.reports.iter().map(|(from_step, said)| {
            let (job_id, epoch) = self.named();
            match said {
                Said::Figures(record) => {
                    ToCoordinator::Step(StepReport { job_id, epoch, record: Some(record.clone()) })
                }
                Said::Missing { through } => {
                    let (from_step, through_step) = (from_step.get(), through.get());
                    ToCoordinator::RecordsMissing(RecordsMissing { job_id, epoch, from_step, through_step })
                }
            }
        })
    }

    /// Takes note of what the trainer reports, and says what the coordinator is to hear.
    pub fn report(&mut self, event: Event) -> Vec<ToCoordinator> {
        match event {
            Event::Prepared {
                committed_step,
                held,
                sealed_next,
                sums_from,
                data_digest,
                num_samples,
                num_params,
                weights,
                inputs,
            } => {
                self.phase = WorkPhase::Ready;
                self.committed = committed_step;
                // A newcomer knows nothing of steps yet; what it had to say before still counts.
                if !held.is_empty() {
                    self.reports.forget_after(committed_step);
                }
                let (job_id, epoch) = self.named();
                let prepared = Prepared {
                    job_id,
                    epoch,
                    committed_step: committed_step.get(),
                    data_digest: data_digest.to_vec(),
                    num_samples,
                    num_params,
                    weights,
                    held: held
                        .iter()
                        .map(|h| proto::Held { shape: Some((&h.shape).into()), rank: h.rank.to_wire() })
                        .collect(),
                    sealed_next,
                    inputs: Some(*inputs),
                    sums_from: sums_from.get(),
                };
                self.prepared = Some(prepared.clone());
                // What was said in the older epoch may have come too late to be taken. It goes first: with the last Prepared the epoch
                // begins, and if this place died on the way its records would be missing in the curve (T-4).
                self.reports_again().chain([ToCoordinator::Prepared(prepared)]).collect()
            }
            Event::Connected | Event::WarmedUp { .. } => Vec::new(),
            Event::Committed { step, record } => {
                // Older ones are said again.
                self.committed = self.committed.max(step);
                let Some(record) = record else { return Vec::new() };
                vec![ToCoordinator::Step(self.keep_record(*record))]
            }
            Event::RecordsMissing { from, through } => {
                self.reports.miss(from, through);
                // With those that this worker knows: in the order of the steps.
                self.reports_again().collect()
            }
            Event::Validated(validation) => {
                let (step, (job_id, epoch)) = (Step::new(validation.step), self.named());
                let report = ValidationReport { job_id, epoch, validation: Some(validation) };
                self.validations.insert(step, report.clone());
                vec![ToCoordinator::Validation(report)]
            }
            Event::ShardWritten { step, file, write_s } => {
                let (job_id, epoch) = self.named();
                let written = ShardWritten {
                    job_id,
                    epoch,
                    step: step.get(),
                    rank: self.rank.to_wire(),
                    file_json: serde_json::to_string(&file).expect("a shard file has only string keys"),
                    write_s,
                };
                self.shards.insert(step, written.clone());
                if self.shards.len() > MAX_SHARDS {
                    self.shards.pop_first();
                }
                vec![ToCoordinator::ShardWritten(written)]
            }
            Event::CheckpointFailed { step, error } => {
                vec![self.missed(step, self.committed, error)]
            }
            Event::Published { step, bytes, path } => vec![self.published(step, bytes, path, String::new())],
            Event::PublishFailed { step, error } => vec![self.published(step, 0, String::new(), error)],
            Event::Removed { step, removed, kept } => {
                let kept = kept.into_iter().map(|(step, error)| KeptStep { step: step.get(), error }).collect();
                let (job_id, epoch) = self.named();
                let removed = removed.into_iter().map(Step::get).collect();
                let removed = StepsRemoved { job_id, epoch, step: step.get(), removed, kept };
                self.removed = Some(removed.clone());
                vec![ToCoordinator::StepsRemoved(removed)]
            }
            Event::Finished { step } => {
                self.phase = WorkPhase::Finished;
                self.committed = step;
                vec![self.finished()]
            }
            Event::PeerLost { rank, error, damaged } => {
                let (job_id, epoch) = self.named();
                self.halt(ToCoordinator::PeerLost(PeerLost { job_id, epoch, rank: rank.to_wire(), error, damaged }))
            }
            Event::Unreached(missing) => {
                let (job_id, epoch) = self.named();
                let peers = missing.into_iter().take(MAX_UNREACHED).map(|m| UnreachedPeer {
                    rank: m.rank.to_wire(),
                    reason: format!("{} {}", m.address, m.problem),
                    called: m.called,
                });
                self.halt(ToCoordinator::Unreached(Unreached { job_id, epoch, peers: peers.collect() }))
            }
            Event::Failed { error, fatal, checkpoint, restore, corrupt_ranks } => {
                let (job_id, epoch) = self.named();
                let corrupt_ranks = corrupt_ranks.into_iter().map(Rank::to_wire).collect();
                let failed = Failed { job_id, epoch, error, fatal, restore, corrupt_ranks, ..Failed::default() };
                let failed = match checkpoint {
                    None => failed,
                    Some(BadCheckpoint { step, fault: ReadFault::Damaged }) => {
                        Failed { damaged_step: step.get(), ..failed }
                    }
                    Some(BadCheckpoint { step, fault: ReadFault::Unreadable { manifest_read } }) => {
                        Failed { unreadable_step: step.get(), manifest_read, ..failed }
                    }
                };
                self.halt(ToCoordinator::Failed(failed))
            }
        }
    }

    fn halt(&mut self, why: ToCoordinator) -> Vec<ToCoordinator> {
        self.phase = WorkPhase::Halted;
        self.halted = Some(why.clone());
        vec![why]
    }

    fn finished(&self) -> ToCoordinator {
        let (job_id, epoch) = self.named();
        ToCoordinator::Finished(Finished { job_id, epoch, committed_step: self.committed.get() })
    }

    /// No checkpoint of `step` when this place had committed `committed`.
    pub fn missed(&self, step: Step, committed: Step, error: String) -> ToCoordinator {
        let (job_id, epoch) = self.named();
        let (step, committed_step) = (step.get(), committed.get());
        ToCoordinator::CheckpointMissed(CheckpointMissed { job_id, epoch, step, committed_step, error })
    }

    pub fn published(&self, step: Step, bytes: u64, path: String, error: String) -> ToCoordinator {
        let (job_id, epoch) = self.named();
        ToCoordinator::ManifestPublished(ManifestPublished { job_id, epoch, step: step.get(), bytes, path, error })
    }

    /// What a coordinator that was away must hear again, in the order in which it happened.
    pub fn said_again(&self) -> Vec<ToCoordinator> {
        let mut again: Vec<ToCoordinator> = self.reports_again().collect();
        if self.phase == WorkPhase::Ready {
            again.extend(self.prepared.clone().map(ToCoordinator::Prepared));
        }
        again.extend(self.validations.values().cloned().map(ToCoordinator::Validation));
        again.extend(self.shards.values().cloned().map(ToCoordinator::ShardWritten));
        again.extend(self.removed.clone().map(ToCoordinator::StepsRemoved));
        if self.phase == WorkPhase::Finished {
            again.push(self.finished());
        }
        again.extend(self.halted.clone());
        again
    }
}
