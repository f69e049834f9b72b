//! One step (design section 4).
//!
//! ```text
//!  1 forward and backward of the micro-batches             2 under the last backward: parts of replicated tensors summed over TP,
//!  3 global sum over the torus: the commit point (T-2)       reduce-scatter over DP, copy to the backup holder: sealed
//!  4 AdamW on both shards                                  5 under the first forward of the next step: all-gather of the new parameters
//! ```
//!
//! Nothing that step 4 changes is touched before the global sum returned: an abort until then leaves the state of the step before.

use std::sync::Arc;

use toroid_proto::StepRecord;
use toroid_torus::failpoint;
use toroid_torus::partition::stage_layers;
use toroid_torus::pipeline::{Action, Pass};

use super::error::StepError;
use super::history::History;
use super::job::Job;
use super::observe::Deed;
use super::overlap::{Gathering, Scattering};
use super::shared::Shared;
use super::totals::{Sums, Totals};
use crate::comm::{Channel, CommError, LinkStats, Links, TpGroup, Transfer, global_sum_with};
use crate::device::{Buffer, Device};
use crate::model::Input;
use crate::optim::UpdateAt;
use crate::system;

/// Sends activations or their gradients, `(B * S, d)`, to another stage. The kernel takes what fits; the rest goes out while this
/// rank waits for something else.
pub(super) fn send(links: &mut Links, to: usize, channel: Channel, values: &[f32]) -> Result<(), CommError> {
    links.queue(to, channel, bytemuck::cast_slice(values).to_vec())
}

pub(super) fn receive(links: &mut Links, from: usize, channel: Channel, values: &mut [f32]) -> Result<(), CommError> {
    links.run(&mut [Transfer::Recv { peer: from, channel, buf: bytemuck::cast_slice_mut(values) }])
}

/// Ranks of the neighbouring stages.
pub(super) struct Neighbours {
    pub previous: Option<usize>,
    pub next: Option<usize>,
}

impl<D: Device + Clone> Job<D> {
    pub(super) fn neighbours(&self) -> Neighbours {
        let group = self.assignment.spec.shape.pp_group(self.assignment.rank);
        let pp = self.assignment.place().pp;
        Neighbours { previous: pp.checked_sub(1).map(|p| group[p]), next: group.get(pp + 1).copied() }
    }

    /// Makes update `self.committed`; on return it is committed. The record is that of rank 0.
    pub(super) fn step(&mut self, links: &mut Links, shared: &Shared) -> Result<Option<StepRecord>, StepError> {
        let (begin, waited) = (system::now(), links.stats().wait);
        self.sealed = false;
        shared.set_sealed(0);
        let sums = self.accumulate(links, shared)?;
        self.seal(links, shared)?;
        shared.set_sealed(self.committed + 1);
        self.show(shared, self.committed + 1, Deed::Sealed);
        shared.enter("sealed");
        let mut totals = self.totals(&sums, shared.recorded());
        if !failpoint!(CommitWithoutSum) {
            global_sum_with(links, &self.assignment.spec.shape, totals.as_mut_slice(), || shared.enter("commit"))?;
        }
        if totals.num_corrupt() > 0 {
            return Err(self.replay(links, shared)?);
        }
        shared.enter("optimizer");
        #[cfg(any(test, feature = "failpoint"))]
        self.flip_a_bit(shared, true);
        let record = self.commit(totals);
        let LinkStats { hidden, wait, .. } = links.stats();
        let record = record.map(|record| StepRecord {
            hidden_s: (hidden - self.moved_since.hidden).as_secs_f64(),
            exposed_s: (wait - self.moved_since.wait).as_secs_f64(),
            ..record
        });
        self.moved_since = links.stats();
        #[cfg(any(test, feature = "failpoint"))]
        self.flip_a_bit(shared, false);
        // What the links did is waiting, also where it moved data: that takes as long as the other side does.
        shared.computed_step((system::now() - begin).saturating_sub(links.stats().wait - waited));
        Ok(record)
    }

    /// Forward and backward of all micro-batches; on return this place holds the summed gradient of its shard.
    pub(super) fn accumulate(&mut self, links: &mut Links, shared: &Shared) -> Result<Sums, CommError> {
        self.stage.zero_grads();
        self.buffers.expert_load.fill(0);
        let mut sums = Sums::default();
        let pipeline = self.pipeline.clone();
        let last = pipeline.actions().len().checked_sub(1);
        for (index, action) in pipeline.actions().iter().enumerate() {
            // Without neighbours nothing else here would see that the epoch is over, for a whole step.
            self.fence.check(self.assignment.epoch)?;
            let Action { pass, micro_batch: i, chunk } = *action;
            assert_eq!(chunk, 0, "a stage has one chunk of layers");
            match pass {
                Pass::Forward => self.forward(links, shared, i, &mut sums)?,
                _ => self.backward(links, shared, pass, i, Some(index) == last)?,
            }
        }
        if last.is_none() {
            // A replica may have no micro-batch: its part of the sums is 0.
            self.start_scatter(links)?;
            self.scatter_all(links)?;
        }
        shared.enter("reduce-scatter");
        self.finish_scatter(links)?;
        Ok(sums)
    }

    fn forward(&mut self, links: &mut Links, shared: &Shared, i: usize, sums: &mut Sums) -> Result<(), CommError> {
        shared.enter("forward");
        self.load_micro_batch(i);
        let neighbours = self.neighbours();
        if let Some(previous) = neighbours.previous {
            receive(links, previous, Channel::Forward, &mut self.buffers.received)?;
        }
        let spec = Arc::clone(&self.assignment.spec);
        let layers = stage_layers(spec.model.layers, spec.shape.pp(), self.assignment.place().pp);
        let slot = self.slot(i);
        let b = &mut self.buffers;
        let mut tp = TpGroup::new(links, &self.groups.tp, &mut b.scratch);
        let input =
            if neighbours.previous.is_some() { Input::Activations(&b.received) } else { Input::Tokens(&b.inputs) };
        let targets = neighbours.next.is_none().then_some(b.targets.as_slice());
        let output = neighbours.next.is_some().then_some(b.sent.as_mut_slice());
        let device = self.stage.device().clone();
        let mut watch = Gathering { device: &device, gathered: &mut self.gathered };
        let stats = self.stage.forward_watched(slot, input, targets, &mut tp, output, &mut watch)?;
        let load = &mut b.expert_load[layers.start * spec.model.experts..layers.end * spec.model.experts];
        load.iter_mut().zip(self.stage.expert_counts(slot)).for_each(|(sum, count)| *sum += u64::from(*count));
        sums.ce += stats.ce;
        sums.z += stats.z;
        sums.balance += stats.balance;
        if let Some(next) = neighbours.next {
            send(links, next, Channel::Forward, &self.buffers.sent)?;
            shared.enter("stage-transfer");
        }
        Ok(())
    }

    /// A whole backward or a part of it; `is_last`: gradients get nothing more afterwards.
    fn backward(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        pass: Pass,
        i: usize,
        is_last: bool,
    ) -> Result<(), CommError> {
        shared.enter("backward");
        if is_last {
            self.start_scatter(links)?;
        }
        let Neighbours { previous, next } = self.neighbours();
        // Gradients of weights are nobody else's business.
        let (previous, next) = if pass == Pass::BackwardWeight { (None, None) } else { (previous, next) };
        if let Some(next) = next {
            receive(links, next, Channel::Backward, &mut self.buffers.received)?;
        }
        let scale = 1.0 / self.assignment.spec.batch.num_micro_batches as f32;
        let (slot, device) = (self.slot(i), self.stage.device().clone());
        let b = &mut self.buffers;
        let mut tp = TpGroup::new(links, &self.groups.tp, &mut b.scratch);
        let grad_output = next.is_some().then_some(b.received.as_slice());
        let grad_input = previous.is_some().then_some(b.sent.as_mut_slice());
        let (partition, scattered) = (&self.partition, self.partition.padded_len);
        let mut watch =
            is_last.then_some(Scattering { device: &device, partition, scattered, partial: &mut b.partial });
        match pass {
            Pass::BackwardInput => self.stage.backward_input(slot, grad_output, scale, &mut tp, grad_input)?,
            Pass::BackwardWeight => self.stage.backward_weight_watched(slot, &mut tp, &mut watch)?,
            _ => self.stage.backward_watched(slot, grad_output, scale, &mut tp, grad_input, &mut watch)?,
        }
        if let Some(previous) = previous {
            send(links, previous, Channel::Backward, &self.buffers.sent)?;
        }
        Ok(())
    }

    /// Activations of micro-batch `i` lie in this slot of the stage until the end of its backward.
    fn slot(&self, i: usize) -> usize {
        i % self.stage.in_flight().micro_batches
    }

    /// Reads inputs and targets of micro-batch `i` of this replica (T-5).
    fn load_micro_batch(&mut self, i: usize) {
        let spec = &self.assignment.spec;
        let first = spec.batch.of_replica(spec.shape.dp(), self.assignment.place().dp).start;
        let seq = spec.model.seq;
        let ids = self.cursor.micro_batch(self.committed, &spec.batch, first + i);
        for (k, id) in ids.into_iter().enumerate() {
            let at = k * seq..(k + 1) * seq;
            let b = &mut self.buffers;
            self.dataset.train_sample(id, &mut b.inputs[at.clone()], &mut b.targets[at]);
        }
    }

    /// What this place adds to the global sums; the coordinator has the records up to `recorded`, as rank 0 knows it.
    fn totals(&self, sums: &Sums, recorded: u64) -> Totals {
        let grads = self.stage.grads().view(self.shard.range.clone());
        let squares = self.shard.grad_sum_of_squares(self.stage.device(), grads);
        let mut totals = Totals::new(&self.assignment.spec.model, squares, self.corrupt.is_some());
        if self.assignment.rank == 0 {
            totals.set_recorded(recorded);
        }
        // TP ranks see the same losses: one of them speaks.
        if self.assignment.place().tp == 0 {
            totals.set_losses(sums, &self.buffers.expert_load);
        }
        totals
    }

    /// The step is committed: every place has sealed it. Updates both shards, unless gradients were not finite.
    pub(super) fn commit(&mut self, totals: Totals) -> Option<StepRecord> {
        let spec = Arc::clone(&self.assignment.spec);
        let (t, total, norm) = (self.committed, spec.steps, totals.norm());
        if norm.is_finite() {
            let at = UpdateAt { t, total, update: t + 1 - self.skipped, norm };
            self.stage.return_params();
            let device = self.stage.device().clone();
            let grads = self.stage.grads().view(self.shard.range.clone());
            match &mut self.kept {
                Some(kept) => {
                    device.copy(grads, kept.grads.all_mut());
                    kept.update(&device, &mut self.shard, &spec.optimizer, self.sealed_own, at);
                }
                None => self.shard.update(&device, grads, &spec.optimizer, at),
            }
            if let Some(holders) = self.holders.as_mut().filter(|_| !failpoint!(SkipBackup)) {
                holders.update(&device, &spec.optimizer, at);
            }
        } else {
            self.skipped += 1;
        }
        self.committed += 1;
        self.sealed = false;
        let record = (self.assignment.rank == 0).then(|| {
            let record = totals.record(&self.assignment, self.committed);
            let step_s = (system::now() - self.since).as_secs_f64();
            StepRecord { step_s, tokens_per_s: record.tokens as f64 / step_s, ..record }
        });
        self.since = system::now();
        self.history.push(self.committed, totals, History::num_max(&spec.model));
        record
    }
}
