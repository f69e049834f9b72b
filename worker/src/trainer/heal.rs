//! Healing (design section 5): survivors keep their state, newcomers get theirs from the other holders.
//!
//! ```text
//!   source        global sums since the newest step that the coordinator has -> everyone      (a sum over the torus: all are there)
//!   at S - 1      commits S from what it sealed                   sealed S + 1: dropped, made again
//!   newcomer      its shard <- backup holder, the guarded shard <- its primary
//! ```
//!
//! Afterwards every place holds the state of step S. Nothing else moves (T-3, T-7).

use toroid_session::{Assignment, Event, HealPlan};
use toroid_torus::digest::DIGEST_BYTES;
use toroid_torus::failpoint;
use toroid_torus::holders::{backup_of, guarded_by};
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;

use super::emit::Emit;
use super::encode::{decode, encode};
use super::error::{StepError, corrupt, refuse};
use super::holders::Holders;
use super::job::Job;
use super::observe::Deed;
use super::shared::Shared;
use super::totals::Totals;
use crate::comm::{Channel, Links, Transfer};
use crate::device::CachedAttention;
use crate::optim::Shard;

impl<D: CachedAttention> Job<D> {
    /// Whether this place's state is worth keeping for `next`.
    pub(super) fn can_heal(&self, next: &Assignment) -> bool {
        let own = &self.assignment;
        let same_but_shape = || JobSpec { shape: next.spec.shape, ..JobSpec::clone(&own.spec) } == *next.spec;
        next.heal && own.job_id == next.job_id && same_but_shape()
    }

    /// The survivor's part of a new epoch: keeps everything and says what it holds.
    pub(super) fn rejoin(mut self, assignment: Assignment, shared: &Shared, emit: &Emit) -> Job<D> {
        self.assignment = assignment;
        self.shards.forget_corruption();
        // A forward whose backward never came leaves its slot full.
        self.passes.clear_slots();
        shared.reset(self.committed);
        shared.enter("wait for start");
        emit(self.assignment.event(self.report()));
        self
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
        let is_newcomer = self.held.all().is_empty();
        let sums = self.hear(links, shared, plan, is_newcomer)?;
        let behind = self.held.has_state() && self.committed < plan.step && !failpoint!(SkipHealCommit);
        let totals = sums.last().filter(|(step, _)| behind && *step == plan.step).map(|(_, totals)| totals.clone());
        let older = if failpoint!(SkipOlderSums) { Vec::new() } else { sums };
        self.curve.begin_epoch(plan.recorded, older, if is_newcomer { plan.step } else { self.committed });
        if let Some(totals) = totals {
            assert!(
                self.shards.is_sealed() && self.committed.next() == plan.step,
                "T-2: the coordinator lets nobody else go on"
            );
            // Rank 0 says this step after those before it, below.
            let _ = self.commit(totals);
            self.show(shared, self.committed, Deed::CommittedToHeal);
            self.show_state(shared);
            emit(self.assignment.event(Event::Committed { step: plan.step, record: None }));
        }
        self.tell_rollouts(links, shared, (plan.source, plan.step), is_newcomer)?;
        // Whatever was sealed beyond is made again, and so is a validation of this step: some have finished it, a newcomer has not, and
        // all must take part.
        self.shards.unseal();
        self.curve.validate_again();
        match &plan.origin {
            None => self.pull_shards(links, plan)?,
            Some(origin) => self.resplit(links, shared, origin)?,
        }
        // The place holds the state of that step from here on, whether it hears that all do or not.
        if is_newcomer {
            self.committed = plan.step;
        }
        self.held.set_has_state(true);
        if plan.origin.is_some() {
            self.give_up_earlier(links)?;
        }
        let has_split = plan.origin.is_some();
        if failpoint!(NewcomerSamples) && is_newcomer || failpoint!(ResplitSamples) && has_split {
            self.samples.confuse(&self.assignment.spec);
        }
        self.show_state(shared);
        // Also what another rank 0 may not have said, and of what the coordinator has taken the record back since it was said.
        self.report_since(plan.recorded.next(), emit);
        // Checkpoints that were asked for since the start stay asked for, and that of this very step is due.
        if (is_newcomer || behind) && shared.commit(plan.step) {
            self.write_checkpoint(emit);
        }
        self.curve.report_validations(&self.assignment, &self.samples, emit);
        Ok(())
    }

    /// What the source tells all places; a newcomer knows no better.
    fn hear(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        plan: &HealPlan,
        is_newcomer: bool,
    ) -> Result<Vec<(Step, Totals)>, StepError> {
        let mut told = self.curve.tell(links, shared, &self.assignment, plan, self.skipped)?;
        if is_newcomer {
            self.skipped = told.skipped;
            self.curve.take_validations(&mut told);
        } else if self.committed < plan.step && told.sums.last().is_none_or(|(step, _)| *step != plan.step) {
            return Err(corrupt(format!(
                "rank {} says that it has committed step {}, but does not have its sums",
                plan.source, plan.step
            )));
        }
        Ok(told.sums)
    }

    /// Newcomers get both their shards from the other holders.
    fn pull_shards(&mut self, links: &mut Links, plan: &HealPlan) -> Result<(), StepError> {
        // The only place of a job that went down to one has no other holder, and needs none.
        if plan.newcomers.is_empty() {
            return Ok(());
        }
        let (device, rank) = (self.passes.device().clone(), self.assignment.rank.index());
        let sent = self.pulled_from_here(plan);
        let Some((own, Holders { backup, guarded, copy, .. })) = self.shards.pair_mut() else {
            let what = "a job without redundancy cannot heal; restore the last checkpoint".to_string();
            return Err(corrupt(what));
        };
        let pulls = plan.newcomers.contains(&self.assignment.rank);
        let buffer = |shard: &Shard<D>| vec![0u8; if pulls { 12 * shard.range.len() + DIGEST_BYTES } else { 0 }];
        let (mut own_bytes, mut copy_bytes) = (buffer(own), buffer(copy));
        let channel = Channel::Backup;
        let mut transfers: Vec<Transfer<'_>> =
            sent.iter().map(|(peer, data)| Transfer::Send { peer: *peer, channel, data }).collect();
        if pulls {
            transfers.push(Transfer::Recv { peer: *backup, channel, buf: &mut own_bytes });
            transfers.push(Transfer::Recv { peer: *guarded, channel, buf: &mut copy_bytes });
        }
        links.run(&mut transfers)?;
        drop(transfers);
        if pulls {
            let len = own.range.len();
            decode(&device, &own_bytes, own, 0..len).map_err(|e| refuse(rank, *backup, &e))?;
            let len = copy.range.len();
            decode(&device, &copy_bytes, copy, 0..len).map_err(|e| refuse(*guarded, *guarded, &e))?;
        }
        Ok(())
    }

    /// What newcomers pull from this place, by their ranks.
    fn pulled_from_here(&self, plan: &HealPlan) -> Vec<(usize, Vec<u8>)> {
        let (device, rank, shape) = (self.passes.device(), self.assignment.rank.index(), &self.assignment.spec.shape);
        let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
        let Some(copy) = self.shards.copy() else { return sent };
        for newcomer in plan.newcomers.iter().map(|n| n.index()).filter(|n| *n != rank) {
            // In this order, for where one place holds both.
            if backup_of(shape, newcomer) == Some(rank) {
                sent.push((newcomer, encode(device, copy, 0..copy.range.len())));
            }
            if guarded_by(shape, newcomer) == Some(rank) {
                let stale = self.shards.before_last_update().filter(|_| failpoint!(StaleHolder));
                let shard = stale.unwrap_or(self.shards.own());
                sent.push((newcomer, encode(device, shard, 0..shard.range.len())));
            }
        }
        sent
    }
}
