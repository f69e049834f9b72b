//! Checkpoints that cannot be read when all go back to the newest.
//!
//! ```text
//!   bytes were read and are wrong ─────────────────────────────> damaged ──> the one before
//!   a worker does not find it, or cannot read it ──> another in its place ──> it could: nothing is lost
//!                                                       │ could not either
//!                                                       v
//!                                                 unreadable ──> the one before ... none left ──> the job waits for a user
//! ```
//!
//! - **T-11** *I cannot read it* is a fault of the reader until another has failed, too: on another host where there is one, and while
//!   somebody is there who has not tried yet not before [`crate::readers`] says have. Where anyone has read the manifest, who does not find it
//!   is always the one to blame.
//! - A job that had checkpoints never begins from scratch by itself: it waits as queued, on hold, for a worker that comes or for
//!   `toroid resume`.
//! - Until all have loaded a checkpoint the curve stays as it is: the one that is tried first may be read later.

use std::collections::BTreeMap;

use super::Job;
use crate::cause::Cause;
use crate::context::Context;
use crate::fitness::Until;
use crate::readers::Reader;
use crate::record::{Hold, SeenBy, State, Unusable};
use toroid_proto as proto;
use toroid_torus::ids::{Rank, Step};

/// Checkpoints that a reason names one by one.
const MAX_NAMED: usize = 4;

impl Job {
    /// Bytes of the checkpoint that the epoch began from are wrong: all go on from the checkpoint before it.
    pub(super) fn checkpoint_damaged(&mut self, cx: &mut Context<'_>, rank: Rank, error: &str) {
        let step = self.core.record.restore_step;
        let error = without_step(error, step);
        let text = format!("{} cannot read the checkpoint of step {step}: {error}", self.core.describe(rank));
        self.core.event(cx, "checkpoint.damaged", text.clone());
        self.pass_over(cx, step, &text, true);
        self.begin_again(cx, SeenBy::WorkerReport, text);
    }

    /// One worker cannot read the checkpoint that the epoch began from (T-11).
    pub(super) fn checkpoint_unreadable(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::Failed) {
        let step = self.core.record.restore_step;
        let error = without_step(&message.error, step);
        let Some(worker) = self.core.record.worker_at(rank).cloned() else { return };
        let host = cx.pool.get(&worker).map(|w| w.register.host.clone()).unwrap_or_default();
        // Whoever has prepared in this epoch has loaded it.
        let has_loaded = !self.core.epoch.prepared().is_empty();
        let reader = Reader { host, manifest_read: message.manifest_read };
        self.readers.failed(step, &worker, reader, has_loaded);
        let unable = format!("cannot read the checkpoint of step {step}: {error}");
        self.mark_unfit(cx, &worker, &unable, Until::Anew);
        // Who failed is not among the candidates.
        let has_untried = self.has_candidate(cx.pool);
        if !self.readers.is_unreadable(step, cx.pool, has_untried) {
            let why = format!(
                "cannot read the checkpoint of step {step}: {error}; that is its own fault until another cannot either, so it is \
                 given no place of this job until it is started anew"
            );
            return self.lose(cx, rank, Cause::new(SeenBy::Prepared, why));
        }
        let text = format!("{} cannot read the checkpoint of step {step} either: {error}", self.core.describe(rank));
        for worker in self.readers.acquit(step) {
            self.fitness.remove(&mut self.core.deadlines, &worker);
        }
        self.core.event(cx, "checkpoint.unreadable", text.clone());
        self.pass_over(cx, step, &text, false);
        self.begin_again(cx, SeenBy::Prepared, text);
    }

    fn pass_over(&mut self, cx: &mut Context<'_>, step: Step, why: &str, is_damaged: bool) {
        let Some(at) = self.core.record.checkpoints.iter().position(|c| c.step == step) else { return };
        let record = self.core.record.edit(cx.out);
        let checkpoint = record.checkpoints.remove(at);
        record.unusable.insert(step, Unusable { checkpoint, why: why.into(), is_damaged });
    }

    /// The next epoch would have to load a checkpoint, there were some, and none is left that can be read.
    pub(super) fn lacks_checkpoint(&self) -> bool {
        !self.core.can_heal() && self.core.record.checkpoints.is_empty() && !self.core.record.unusable.is_empty()
    }

    /// Puts the job on hold until a checkpoint can be read: only a user decides that it begins from scratch.
    pub(super) fn wait_for_checkpoint(&mut self, cx: &mut Context<'_>) {
        self.core.record.edit(cx.out).hold = Some(Hold::Checkpoint);
        let id = &self.core.record.id;
        let newest = self.core.record.unusable.values().rev();
        let mut named: Vec<String> = newest.clone().take(MAX_NAMED).map(|u| u.why.clone()).collect();
        if newest.len() > MAX_NAMED {
            named.push(format!("and {} older ones", newest.len() - MAX_NAMED));
        }
        let reason = format!(
            "waits for a checkpoint that can be read: {}. A worker that comes tries again, and so does `toroid resume {id}`; \
             `toroid resume {id} --from-scratch` gives them up",
            named.join("; ")
        );
        self.stand_by(cx, &reason);
    }

    /// Checkpoints that `counts` names may be gone on from again.
    pub fn try_again(&mut self, cx: &mut Context<'_>, why: &str, counts: impl Fn(&Unusable) -> bool) {
        let record = self.core.record.edit(cx.out);
        let (again, kept) = std::mem::take(&mut record.unusable).into_iter().partition(|(_, u)| counts(u));
        let again: BTreeMap<Step, Unusable> = again;
        record.unusable = kept;
        let steps: Vec<String> = again.keys().rev().take(MAX_NAMED).map(Step::to_string).collect();
        record.checkpoints.extend(again.into_values().map(|u| u.checkpoint));
        record.checkpoints.sort_by_key(|c| c.step);
        self.fitness.forget_unfit(&mut self.core.deadlines);
        self.readers.clear();
        self.go_on(cx, &format!("{why}: the newest checkpoints are tried again, of steps {}", steps.join(", ")));
    }

    pub fn give_up_checkpoints(&mut self, cx: &mut Context<'_>) {
        let steps = self.core.committed();
        self.forget_unusable(cx);
        self.go_on(cx, &format!("a user asked for it: {steps} steps are given up, and the job begins from scratch"));
    }

    fn go_on(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.core.record.edit(cx.out).hold = None;
        self.set_state(cx, State::Queued, reason);
        self.core.event(cx, "job.resumed", reason);
        cx.out.unsettled = true;
    }

    /// The job goes on without the checkpoints that cannot be read. Their files are removed with the next publishing, except damaged ones,
    /// which were set aside.
    pub(super) fn forget_unusable(&mut self, cx: &mut Context<'_>) {
        let record = self.core.record.edit(cx.out);
        let unusable = std::mem::take(&mut record.unusable);
        record.leftovers.extend(unusable.into_iter().filter(|(_, u)| !u.is_damaged).map(|(step, _)| step));
        self.readers.clear();
    }
}

/// What a worker says of a checkpoint that it cannot load, without what is said here anyway.
fn without_step(error: &str, step: Step) -> &str {
    error.strip_prefix(&format!("cannot restore step {step}: ")).unwrap_or(error)
}
