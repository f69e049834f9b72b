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
use toroid_torus::ids::{Rank, Step};

use super::error::StepError;
use super::job::Job;
use super::observe::Deed;
use super::passes::StepAt;
use super::ppo::state::Policy;
use super::shards::Sealing;
use super::shared::Shared;
use super::totals::{Sums, Totals};
use crate::comm::{CommError, Links, global_sum_with};
use crate::device::CachedAttention;
use crate::optim::UpdateAt;
use crate::system;

impl<D: CachedAttention> Job<D> {
    /// Makes update `self.committed`; on return it is committed. The record is that of rank 0.
    pub(super) fn step(&mut self, links: &mut Links, shared: &Shared) -> Result<Option<StepRecord>, StepError> {
        self.samples.check(self.committed)?;
        let (begin, waited) = (system::now(), links.stats().wait);
        self.shards.unseal();
        shared.set_sealed(Step::ZERO);
        self.roll_out(links, shared)?;
        let record = self.update(links, shared)?;
        // What the links did is waiting, also where it moved data: that takes as long as the other side does.
        shared.computed_step((system::now() - begin).saturating_sub(links.stats().wait - waited));
        Ok(record)
    }

    /// The step itself, from what is there to be learned.
    pub(super) fn update(&mut self, links: &mut Links, shared: &Shared) -> Result<Option<StepRecord>, StepError> {
        let sums = self.accumulate(links, shared)?;
        self.seal(links, shared)?;
        shared.set_sealed(self.committed.next());
        self.show(shared, self.committed.next(), Deed::Sealed);
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
        let record = self.curve.with_moved(record, links.stats());
        #[cfg(any(test, feature = "failpoint"))]
        self.flip_a_bit(shared, false);
        Ok(record)
    }

    /// Forward and backward of all micro-batches; on return this place holds the summed gradient of its shard.
    pub(super) fn accumulate(&mut self, links: &mut Links, shared: &Shared) -> Result<Sums, CommError> {
        let Job { assignment: place, fence, samples, policy, passes, shards, committed, .. } = self;
        let rollouts = policy.as_ref().and_then(Policy::rollouts);
        passes.accumulate(links, shared, &StepAt { place, fence, samples, rollouts, committed: *committed }, shards)
    }

    fn seal(&mut self, links: &mut Links, shared: &Shared) -> Result<(), CommError> {
        let sealing = Sealing {
            device: self.passes.device(),
            grads: self.passes.grads_of(self.shards.own()),
            is_passed_on: self.passes.has_dp_group(),
            rank: self.assignment.rank,
            committed: self.committed,
        };
        self.shards.seal(links, shared, &sealing)
    }

    /// What this place adds to the global sums; the coordinator has the records up to `recorded`, as rank 0 knows it.
    fn totals(&self, sums: &Sums, recorded: Step) -> Totals {
        let own = self.shards.own();
        let squares = own.grad_sum_of_squares(self.passes.device(), self.passes.grads_of(own));
        let mut totals = Totals::new(&self.assignment.spec, squares, self.shards.saw_corruption());
        if self.assignment.rank == Rank::ZERO {
            totals.set_recorded(recorded);
            if let Some(rollouts) = self.policy.as_ref().and_then(Policy::rollouts) {
                totals.set_rollouts(rollouts);
            }
        }
        // TP ranks see the same losses: one of them speaks.
        if self.assignment.place().tp == 0 {
            totals.set_losses(sums, self.passes.expert_load());
        }
        totals
    }

    /// The step is committed: every place has sealed it. Updates both shards, unless gradients were not finite.
    pub(super) fn commit(&mut self, totals: Totals) -> Option<StepRecord> {
        let spec = Arc::clone(&self.assignment.spec);
        let (t, total, norm) = (self.committed.get(), spec.steps, totals.norm());
        if norm.is_finite() {
            let at = UpdateAt { t, total, update: t + 1 - self.skipped, norm };
            self.passes.return_params();
            let grads = self.passes.grads_of(self.shards.own());
            self.shards.update(self.passes.device(), grads, &spec.optimizer, at);
        } else {
            self.skipped += 1;
        }
        self.committed = self.committed.next();
        if let Some(policy) = &mut self.policy {
            policy.commit(&spec, self.committed);
        }
        self.shards.unseal();
        self.curve.commit(&self.assignment, self.committed, totals)
    }
}
