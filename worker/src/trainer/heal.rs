//! Healing (design section 5): survivors keep their state, newcomers get theirs from the other holders.
//!
//! ```text
//!   source        global sums of the last steps  -> everyone      (one sum over the torus: all are there)
//!   at S - 1      commits S from what it sealed                   sealed S + 1: dropped, made again
//!   newcomer      its shard <- backup holder, the guarded shard <- its primary
//! ```
//!
//! Afterwards every place holds the state of step S. Nothing else moves (T-3, T-7).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use toroid_torus::holders::{backup_of, guarded_by};

use super::evaluate::ValidationSums;
use super::holders::Holders;
use super::step::Totals;
use super::{Assignment, Emit, Happened, HealPlan, Job, Shared, StepError};
use crate::comm::{Channel, Links, Transfer, global_sum};
use crate::device::Device;
use crate::optim::{HostShard, Shard};

/// Global sums that every place keeps, newest last: a new rank 0 reports the steps that the dead one may not have reported.
pub(super) const HISTORY: usize = 64;

/// What the source says before its sums: `[skipped steps, validated step, its cross-entropy, its tokens]`.
const HEAD: usize = 4;

const DIGEST_BYTES: usize = 32;

impl<D: Device + Clone> Job<D> {
    /// Whether this place's state is worth keeping for `next`.
    pub(super) fn can_heal(&self, next: &Assignment) -> bool {
        let own = &self.assignment;
        next.heal && own.job_id == next.job_id && own.rank == next.rank && own.spec == next.spec
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
    pub(super) fn report(&self) -> Happened {
        Happened::Prepared {
            committed_step: self.committed,
            has_state: self.has_state,
            sealed_next: self.sealed,
            data_digest: self.data_digest(),
            num_samples: self.num_samples(),
            num_params: self.assignment.spec.model.num_params(),
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
        let history = self.share_history(links, plan)?;
        let behind = self.has_state && self.committed < plan.step;
        if behind {
            let (_, totals) = history.iter().find(|(step, _)| *step == plan.step).expect("checked in share_history");
            assert!(self.sealed && self.committed + 1 == plan.step, "T-2: the coordinator lets nobody else go on");
            let record = self.commit(totals.clone());
            self.committed(record, shared, emit);
        }
        // Whatever was sealed beyond is made again, and so is a validation of this step: some have finished it, a newcomer has not, and
        // all must take part.
        self.sealed = false;
        (self.validated, self.start_step) = (None, None);
        self.pull_shards(links, plan)?;
        if self.has_state && !behind {
            // The coordinator may have taken this step's record back when an epoch began that was to go on without it.
            self.report_history(1, emit);
        }
        if !self.has_state {
            self.committed = plan.step;
            self.history = history.into_iter().collect();
            self.has_state = true;
            self.report_history(HISTORY, emit);
            // Checkpoints that were asked for since the start stay asked for, and that of this very step is due.
            if shared.commit(plan.step) {
                self.write_checkpoint(emit);
            }
        }
        self.report_validation(emit);
        Ok(())
    }

    /// The source's global sums of the last steps, its count of skipped steps and its last validation, at every place.
    fn share_history(&mut self, links: &mut Links, plan: &HealPlan) -> Result<Vec<(u64, Totals)>, StepError> {
        let spec = Arc::clone(&self.assignment.spec);
        let len = Totals::len(&spec.model);
        let num = if plan.newcomers.contains(&0) { HISTORY } else { 1 };
        let mut values = vec![0.0; HEAD + num * (1 + len)];
        if self.assignment.rank == plan.source {
            values[0] = self.skipped as f64;
            if let Some(v) = self.validation {
                values[1..HEAD].copy_from_slice(&[v.step as f64, v.ce, v.tokens]);
            }
            let newest = self.history.iter().rev().take(num).rev();
            for ((step, totals), slot) in newest.zip(values[HEAD..].chunks_exact_mut(1 + len)) {
                slot[0] = *step as f64;
                slot[1..].copy_from_slice(totals.as_slice());
            }
        }
        global_sum(links, &spec.shape, &mut values)?;
        let slots = values[HEAD..].chunks_exact(1 + len).filter(|slot| slot[0] > 0.0);
        let history: Vec<(u64, Totals)> = slots.map(|slot| (slot[0] as u64, Totals::from_slice(&slot[1..]))).collect();
        if !self.has_state {
            self.skipped = values[0] as u64;
            let [step, ce, tokens] = [values[1], values[2], values[3]];
            self.validation = (tokens > 0.0).then_some(ValidationSums { step: step as u64, ce, tokens });
        } else if self.committed < plan.step && history.last().is_none_or(|(step, _)| *step != plan.step) {
            return Err(corrupt(format!(
                "rank {} says that it has committed step {}, but does not have its sums",
                plan.source, plan.step
            )));
        }
        Ok(history)
    }

    fn pull_shards(&mut self, links: &mut Links, plan: &HealPlan) -> Result<(), StepError> {
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
                sent.push((newcomer, encode(&device, &holders.copy)));
            }
            if guarded_by(&shape, newcomer) == Some(rank) {
                sent.push((newcomer, encode(&device, &self.shard)));
            }
        }
        let pulls = plan.newcomers.contains(&rank);
        let room = |shard: &Shard<D>| vec![0u8; if pulls { 12 * shard.range.len() + DIGEST_BYTES } else { 0 }];
        let (mut own, mut copy) = (room(&self.shard), room(&holders.copy));
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
            decode(&device, &own, &mut self.shard).map_err(|e| refuse(rank, *backup, &e))?;
            decode(&device, &copy, guarded_copy).map_err(|e| refuse(*guarded, *guarded, &e))?;
        }
        Ok(())
    }

    /// Rank 0 says the newest `num` steps again, a new one what the old one may not have said.
    fn report_history(&self, num: usize, emit: &Emit) {
        if self.assignment.rank != 0 {
            return;
        }
        for (step, totals) in self.history.iter().skip(self.history.len().saturating_sub(num)) {
            let record = Some(Box::new(self.record(*step, totals)));
            emit(self.assignment.event(Happened::Committed { step: *step, record }));
        }
    }
}

fn refuse(shard: usize, from: usize, what: &str) -> StepError {
    corrupt(format!("the shard of rank {shard} that came from rank {from} is damaged: {what}"))
}

/// Nothing here can tell what is right: the last checkpoint is.
fn corrupt(what: String) -> StepError {
    StepError::Corrupt { seen: Some(what), wrong: BTreeSet::new() }
}

/// State and digest of a shard, `12 * shard_len + 32` bytes.
fn encode<D: Device>(device: &D, shard: &Shard<D>) -> Vec<u8> {
    let host = shard.to_host(device);
    let mut bytes = Vec::with_capacity(12 * host.param.len() + DIGEST_BYTES);
    for part in [&host.param, &host.exp_avg, &host.exp_avg_sq] {
        bytes.extend_from_slice(cast_slice(part));
    }
    bytes.extend_from_slice(&shard.digest(device));
    bytes
}

fn decode<D: Device>(device: &D, bytes: &[u8], shard: &mut Shard<D>) -> Result<(), String> {
    let len = shard.range.len();
    let (state, digest) = bytes.split_at(12 * len);
    let mut host = HostShard::zeros(len);
    for (part, bytes) in
        [&mut host.param, &mut host.exp_avg, &mut host.exp_avg_sq].into_iter().zip(state.chunks_exact(4 * len))
    {
        cast_slice_mut::<f32, u8>(part).copy_from_slice(bytes);
    }
    shard.write(device, &host);
    let found = shard.digest(device);
    if found != digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        return Err(format!("its digest is {}, expected {}", hex(&found), hex(digest)));
    }
    Ok(())
}
