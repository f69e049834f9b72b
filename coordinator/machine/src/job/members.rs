//! Workers of a job's places that come back, and what those of the present epoch say.

use super::Job;
use crate::context::Context;
use crate::epoch::EpochPhase;
use crate::record::State;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::ids::{Epoch, Rank, Step, WorkerId};

/// What a worker that registers knows of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It goes on with its work, in this epoch or in an older one; then it is told of the newer one next.
    GoesOn,
    /// It has no state, and the next epoch gives it to it.
    Newcomer,
    /// It has lost its work.
    Lost,
}

impl Job {
    /// What a worker that registers and has the place of `rank` says about it.
    pub fn claim_of(&self, register: &proto::Register, rank: Rank) -> Claim {
        let is_rank = self.core.record.id == *register.job_id && Rank::from(register.rank) == rank;
        // It may not have heard of the shape that it has this place in.
        let is_this_place = is_rank || self.had_before(register);
        let epoch = self.core.record.epoch;
        match Epoch::new(register.epoch) {
            e if is_this_place && e == epoch => Claim::GoesOn,
            // It missed the newer epoch, but that has not started: no step was made without this worker.
            e if is_this_place && e > Epoch::NONE && e < epoch && !self.core.epoch.is_started() => Claim::GoesOn,
            // It may not even have heard of its place.
            _ if !self.core.epoch.is_started() && self.core.epoch.awaited().contains(&rank) => Claim::Newcomer,
            _ => Claim::Lost,
        }
    }

    /// A worker that was lost comes back with its state before another took the place: it has it again, and with it a holder of two
    /// shards (T-3).
    pub fn take_back(&mut self, register: &proto::Register) -> Option<Rank> {
        let (rank, id) = (Rank::from(register.rank), WorkerId::from(register.worker_id.as_str()));
        let known = Epoch::NONE.next()..=self.core.record.epoch;
        let is_its_own = self.core.record.id == *register.job_id && known.contains(&Epoch::new(register.epoch));
        if !is_its_own || !self.core.can_heal() || self.core.record.absent.get(&rank) != Some(&id) {
            return None;
        }
        // Stored with the next epoch, which this begins: until then a coordinator that is started again takes it back again.
        let record = self.core.record.edit_later();
        record.absent.remove(&rank);
        record.places.set(rank, Some(id.clone()));
        if register.committed_step > 0 {
            // It has state of steps that were made, so it has had links: it is no newer than before its stream ended (T-11).
            self.fitness.take_back(&id);
        }
        self.core.epoch.begin_again(format!("{id} (rank {rank}) came back with its state"));
        Some(rank)
    }

    /// The worker of a place is back, and has it without state.
    pub fn returned(&mut self, rank: Rank) {
        self.core.epoch.returned(rank);
    }

    /// The worker of a place is back on another stream and goes on. What it may have missed is said again.
    pub fn rejoined(&mut self, cx: &mut Context<'_>, rank: Rank, epoch: Epoch, committed: Step) {
        self.core.epoch.returned(rank);
        // It may not have heard the question for a record.
        self.core.curve.forget_question();
        // If there are fewer places next, the worker with the highest step must not be evicted.
        if self.core.can_heal() && !self.core.epoch.is_started() {
            self.core.epoch.commit(rank, committed.min(self.core.total()));
        }
        match self.core.epoch.phase() {
            _ if self.core.epoch.why_again().is_some() => {}
            EpochPhase::Waiting => {}
            EpochPhase::Preparing if epoch < self.core.record.epoch => self.assign(cx, rank),
            EpochPhase::Preparing => {}
            EpochPhase::Started => {
                self.core.send(cx, rank, self.start_message());
                self.advance(cx, rank, committed);
                self.expect_progress(cx);
                self.name_again(cx, rank, committed);
            }
        }
    }

    /// A message of the present epoch, from the worker of `rank`.
    pub fn message(&mut self, cx: &mut Context<'_>, rank: Rank, body: FromWorker) {
        debug_assert!(self.core.record.state != State::Queued && !self.core.record.state.is_ended());
        match body {
            FromWorker::Heartbeat(m) => self.heartbeat(cx, rank, &m),
            FromWorker::Prepared(m) => self.prepared(cx, rank, m),
            FromWorker::Step(proto::StepReport { record: Some(record), .. }) if rank == Rank::ZERO => {
                self.step_report(cx, record);
            }
            FromWorker::RecordsMissing(m) if rank == Rank::ZERO => self.records_missing(cx, &m),
            FromWorker::Validation(proto::ValidationReport { validation: Some(validation), .. }) => {
                self.validation(cx, validation);
            }
            FromWorker::ShardWritten(m) => self.shard_written(cx, rank, m),
            FromWorker::CheckpointMissed(m) => self.checkpoint_missed(cx, rank, &m),
            FromWorker::ManifestPublished(m) if rank == Rank::ZERO => self.manifest_published(cx, m),
            FromWorker::StepsRemoved(m) if rank == Rank::ZERO => self.steps_removed(cx, m),
            FromWorker::Finished(m) => self.finished(cx, rank, Step::new(m.committed_step)),
            FromWorker::Failed(m) => self.failed(cx, rank, &m),
            FromWorker::PeerLost(m) => self.peer_lost(cx, rank, &m),
            FromWorker::Unreached(m) => self.unreached(cx, rank, &m),
            // Only rank 0 speaks for the job, and a message without what it is about says nothing.
            FromWorker::ManifestPublished(_)
            | FromWorker::StepsRemoved(_)
            | FromWorker::RecordsMissing(_)
            | FromWorker::Step(_)
            | FromWorker::Validation(_)
            | FromWorker::Register(_)
            | FromWorker::Leaving(_)
            | FromWorker::WarmedUp(_)
            | FromWorker::Probed(_)
            | FromWorker::LogLines(_)
            | FromWorker::Stacks(_)
            | FromWorker::Stopped(_) => {}
        }
    }
}
