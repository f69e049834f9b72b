//! Healing (design section 5): survivors keep their state, newcomers get theirs from the other holders.
//!
//! ```text
//!   source        global sums since the newest step that the coordinator has -> everyone      (a sum over the torus: all are there)
//!   at S - 1      commits S from what it sealed                   sealed S + 1: dropped, made again
//!   newcomer      its shard <- backup holder, the guarded shard <- its primary
//! ```
//!
//! Afterwards every place holds the state of step S. Nothing else moves (T-3, T-7).

use std::sync::Arc;

use toroid_session::{Assignment, Event, HealPlan};
use toroid_torus::cursor::Cursor;
use toroid_torus::digest::DIGEST_BYTES;
use toroid_torus::failpoint;
use toroid_torus::holders::{backup_of, guarded_by};
use toroid_torus::job::JobSpec;

use super::emit::Emit;
use super::encode::{decode, encode};
use super::error::{StepError, corrupt, refuse};
use super::history::History;
use super::holders::Holders;
use super::job::Job;
use super::kept::Kept;
use super::observe::Deed;
use super::shared::Shared;
use super::totals::Totals;
use super::validations::Validations;
use crate::comm::{Channel, Links, Transfer, global_sum};
use crate::device::Device;
use crate::optim::Shard;

/// Numbers of one sum over the torus: whoever takes part holds them once for each place of its row or column.
const CHUNK: usize = 1 << 17;

/// What the source says before its sums: its count of skipped steps and its validations.
const HEAD: usize = 1 + Validations::LEN;

impl<D: Device + Clone> Job<D> {
    /// Whether this place's state is worth keeping for `next`.
    pub(super) fn can_heal(&self, next: &Assignment) -> bool {
        let own = &self.assignment;
        let same_but_shape = || JobSpec { shape: next.spec.shape, ..JobSpec::clone(&own.spec) } == *next.spec;
        next.heal && own.job_id == next.job_id && same_but_shape()
    }

    /// The survivor's part of a new epoch: keeps everything and says what it holds.
    pub(super) fn rejoin(mut self, assignment: Assignment, shared: &Shared, emit: &Emit) -> Job<D> {
        self.assignment = assignment;
        self.corrupt = None;
        // A forward whose backward never came leaves its slot full.
        self.stage.clear_slots();
        shared.reset(self.committed);
        shared.enter("wait for start");
        emit(self.assignment.event(self.report()));
        self
    }

    /// What this place holds.
    pub(super) fn report(&self) -> Event {
        Event::Prepared {
            committed_step: self.committed,
            held: self.held(),
            sealed_next: self.sealed,
            sums_from: self.history.first_step().unwrap_or(self.committed + 1),
            data_digest: self.data_digest(),
            num_samples: self.num_samples(),
            num_params: self.assignment.spec.model.num_params(),
            inputs: Box::new(self.inputs()),
        }
    }

    pub(super) fn heal(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        plan: &HealPlan,
        emit: &Emit,
    ) -> Result<(), StepError> {
        shared.enter("heal");
        self.turn_to(plan)?;
        shared.set_recorded(plan.recorded);
        let is_newcomer = self.held().is_empty();
        let sums = self.share_history(links, shared, plan, is_newcomer)?;
        let behind = self.has_state && self.committed < plan.step && !failpoint!(SkipHealCommit);
        let totals = sums.last().filter(|(step, _)| behind && *step == plan.step).map(|(_, totals)| totals.clone());
        self.history.begin(plan.recorded);
        let sums = if failpoint!(SkipOlderSums) { Vec::new() } else { sums };
        self.history.take_older(sums, if is_newcomer { plan.step } else { self.committed });
        if let Some(totals) = totals {
            assert!(self.sealed && self.committed + 1 == plan.step, "T-2: the coordinator lets nobody else go on");
            // Rank 0 says this step after those before it, below.
            let _ = self.commit(totals);
            self.show(shared, self.committed, Deed::CommittedToHeal);
            self.show_state(shared);
            emit(self.assignment.event(Event::Committed { step: plan.step, record: None }));
        }
        // Whatever was sealed beyond is made again, and so is a validation of this step: some have finished it, a newcomer has not, and
        // all must take part.
        self.sealed = false;
        (self.validated, self.start_step) = (None, None);
        match &plan.origin {
            None => self.pull_shards(links, plan)?,
            Some(origin) => self.resplit(links, shared, origin)?,
        }
        if is_newcomer {
            self.committed = plan.step;
            self.has_state = true;
        }
        let has_split = plan.origin.is_some();
        if failpoint!(NewcomerSamples) && is_newcomer || failpoint!(ResplitSamples) && has_split {
            let spec = &self.assignment.spec;
            self.cursor = Cursor::new(spec.seed + 1, self.dataset.num_train(), spec.data.order);
        }
        self.show_state(shared);
        // Also what another rank 0 may not have said, and of what the coordinator has taken the record back since it was said.
        self.report_since(plan.recorded + 1, emit);
        // Checkpoints that were asked for since the start stay asked for, and that of this very step is due.
        if (is_newcomer || behind) && shared.commit(plan.step) {
            self.write_checkpoint(emit);
        }
        self.report_validations(emit);
        Ok(())
    }

    /// The source's global sums of the last steps, its count of skipped steps and its last validations, at every place.
    fn share_history(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        plan: &HealPlan,
        is_newcomer: bool,
    ) -> Result<Vec<(u64, Totals)>, StepError> {
        let spec = Arc::clone(&self.assignment.spec);
        let len = Totals::len(&spec.model);
        let num = History::num_max(&spec.model).min(plan.step.saturating_sub(plan.recorded).max(1) as usize);
        let mut values = vec![0.0; HEAD + num * (1 + len)];
        if self.assignment.rank == plan.source {
            values[0] = self.skipped as f64;
            self.validations.write(&mut values[1..HEAD]);
            let newest = self.history.since((plan.step + 1).saturating_sub(num as u64));
            for ((step, totals), slot) in newest.zip(values[HEAD..].chunks_exact_mut(1 + len)) {
                slot[0] = *step as f64;
                slot[1..].copy_from_slice(totals.as_slice());
            }
        }
        for chunk in values.chunks_mut(CHUNK) {
            global_sum(links, &spec.shape, chunk)?;
            shared.advance();
        }
        let slots = values[HEAD..].chunks_exact(1 + len).filter(|slot| slot[0] > 0.0);
        let history: Vec<(u64, Totals)> = slots.map(|slot| (slot[0] as u64, Totals::from_slice(&slot[1..]))).collect();
        if is_newcomer {
            self.skipped = values[0] as u64;
            self.validations = Validations::read(&values[1..HEAD]);
        } else if self.committed < plan.step && history.last().is_none_or(|(step, _)| *step != plan.step) {
            return Err(corrupt(format!(
                "rank {} says that it has committed step {}, but does not have its sums",
                plan.source, plan.step
            )));
        }
        Ok(history)
    }

    fn pull_shards(&mut self, links: &mut Links, plan: &HealPlan) -> Result<(), StepError> {
        // The only place of a job that went down to one has no other holder, and needs none.
        if plan.newcomers.is_empty() {
            return Ok(());
        }
        let (device, rank) = (self.stage.device().clone(), self.assignment.rank);
        let shape = self.assignment.spec.shape;
        let Some(holders) = &mut self.holders else {
            let what = "a job without redundancy cannot heal; restore the last checkpoint".to_string();
            return Err(corrupt(what));
        };
        let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
        for &newcomer in plan.newcomers.iter().filter(|n| **n != rank) {
            // In this order, for where one place holds both.
            if backup_of(&shape, newcomer) == Some(rank) {
                sent.push((newcomer, encode(&device, &holders.copy, 0..holders.copy.range.len())));
            }
            if guarded_by(&shape, newcomer) == Some(rank) {
                let stale = self.kept.as_ref().filter(|_| failpoint!(StaleHolder)).and_then(Kept::before);
                let shard = stale.unwrap_or(&self.shard);
                sent.push((newcomer, encode(&device, shard, 0..shard.range.len())));
            }
        }
        let pulls = plan.newcomers.contains(&rank);
        let buffer = |shard: &Shard<D>| vec![0u8; if pulls { 12 * shard.range.len() + DIGEST_BYTES } else { 0 }];
        let (mut own, mut copy) = (buffer(&self.shard), buffer(&holders.copy));
        let channel = Channel::Backup;
        let mut transfers: Vec<Transfer<'_>> =
            sent.iter().map(|(peer, data)| Transfer::Send { peer: *peer, channel, data }).collect();
        if pulls {
            transfers.push(Transfer::Recv { peer: holders.backup, channel, buf: &mut own });
            transfers.push(Transfer::Recv { peer: holders.guarded, channel, buf: &mut copy });
        }
        links.run(&mut transfers)?;
        drop(transfers);
        if pulls {
            let Holders { backup, guarded, copy: guarded_copy, .. } = holders;
            let len = self.shard.range.len();
            decode(&device, &own, &mut self.shard, 0..len).map_err(|e| refuse(rank, *backup, &e))?;
            let len = guarded_copy.range.len();
            decode(&device, &copy, guarded_copy, 0..len).map_err(|e| refuse(*guarded, *guarded, &e))?;
        }
        Ok(())
    }

    /// Rank 0 says the steps from `from` on again, and which of them nobody knows any more.
    pub(super) fn report_since(&self, from: u64, emit: &Emit) {
        if self.assignment.rank != 0 {
            return;
        }
        let known = self.history.first_step().unwrap_or(self.committed + 1);
        if known > from {
            emit(self.assignment.event(Event::RecordsMissing { from, through: known - 1 }));
        }
        for (step, totals) in self.history.since(from) {
            let record = Some(Box::new(totals.record(&self.assignment, *step)));
            emit(self.assignment.event(Event::Committed { step: *step, record }));
        }
    }
}
