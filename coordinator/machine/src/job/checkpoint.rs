//! What the checkpoints of a job mean for the rest of it: see [`crate::checkpoints`].

use super::Job;
use crate::api::{Reply, RequestError, RequestId};
use crate::cause::Cause;
use crate::checkpoints::{Failure, Outcome};
use crate::context::Context;
use crate::deadlines::Deadline;
use crate::keeping;
use crate::record::{SeenBy, State};
use toroid_proto as proto;
use toroid_torus::ids::{Rank, Step};

impl Job {
    /// Names the steps that are to be saved and can be named now. `at_start`: nothing of this epoch is computed yet.
    pub(super) fn name_steps(&mut self, cx: &mut Context<'_>, at_start: bool) {
        let leaving = match &self.core.record.yields {
            Some(yields) => Some(yields.reason.clone()),
            None => self.would_lose_state(cx).then(|| self.leaving_in_words()),
        };
        self.checkpoints.name_steps(&mut self.core.context(cx), at_start, leaving.as_deref());
    }

    /// A newer step is committed or recorded: what waited for it may go on.
    pub(super) fn checkpoints_advanced(&mut self, cx: &mut Context<'_>) {
        self.checkpoints.committed_advanced(&mut self.core.context(cx));
        self.name_steps(cx, false);
    }

    /// The worker of a place came back on another stream.
    pub(super) fn name_again(&mut self, cx: &mut Context<'_>, rank: Rank, committed: Step) {
        self.checkpoints.name_again(&mut self.core.context(cx), rank, committed);
        if rank == Rank::ZERO {
            self.core.curve.forget_question();
        }
        self.checkpoints_advanced(cx);
    }

    pub fn request_checkpoint(&mut self, cx: &mut Context<'_>, request: RequestId) {
        if !self.core.record.state.is_placed() {
            return cx.out.reply(request, Err(self.refuse("checkpointed")));
        }
        self.checkpoints.request(request);
        self.name_steps(cx, false);
    }

    /// Whatever state the job is in: one that has ended may be resumed, and publish again.
    pub fn pin_checkpoint(&mut self, cx: &mut Context<'_>, step: Step) -> Result<Reply, RequestError> {
        keeping::pin(&mut self.core.context(cx), step)
    }

    pub fn unpin_checkpoint(&mut self, cx: &mut Context<'_>, step: Step) -> Result<Reply, RequestError> {
        keeping::unpin(&mut self.core.context(cx), step)
    }

    /// Users who wait to hear of a step hear that none will be named.
    pub(super) fn refuse_requests(&mut self, cx: &mut Context<'_>) {
        for request in self.checkpoints.take_requests() {
            cx.out.reply(request, Err(self.refuse("checkpointed")));
        }
    }

    pub(super) fn shard_written(&mut self, cx: &mut Context<'_>, rank: Rank, message: proto::ShardWritten) {
        let outcome = self.checkpoints.shard_written(&mut self.core.context(cx), rank, message);
        self.act_on(cx, outcome);
    }

    pub(super) fn manifest_published(&mut self, cx: &mut Context<'_>, message: proto::ManifestPublished) {
        let step = Step::new(message.step);
        let outcome = self.checkpoints.manifest_published(&mut self.core.context(cx), message);
        if outcome == (Outcome::Published { halts: true }) {
            return self.leave(cx, step);
        }
        self.act_on(cx, outcome);
    }

    pub(super) fn steps_removed(&mut self, cx: &mut Context<'_>, message: proto::StepsRemoved) {
        self.checkpoints.steps_removed(&mut self.core.context(cx), message);
        self.name_steps(cx, false);
        self.try_finish(cx);
    }

    pub(super) fn checkpoint_missed(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::CheckpointMissed) {
        self.advance(cx, rank, Step::new(message.committed_step));
        let outcome = self.checkpoints.missed(&mut self.core.context(cx), rank, message);
        self.act_on(cx, outcome);
    }

    fn act_on(&mut self, cx: &mut Context<'_>, outcome: Outcome) {
        match outcome {
            Outcome::Noted => {}
            Outcome::NameMore => self.name_steps(cx, false),
            Outcome::Failed { step, text, hang } => {
                self.checkpoint_failed(cx, step, &text);
                for rank in hang {
                    let why =
                        "hangs: it was asked twice for its shard of the last step, and neither wrote it nor said why";
                    self.lose(cx, rank, Cause::new(SeenBy::WaitsFor, why));
                }
            }
            Outcome::Published { .. } => {
                self.name_steps(cx, false);
                self.try_finish(cx);
            }
        }
    }

    /// Training goes on, and the newest good checkpoint stays.
    fn checkpoint_failed(&mut self, cx: &mut Context<'_>, step: Step, text: &str) {
        match self.checkpoints.failed(&mut self.core.context(cx), step, text) {
            Failure::GoesOn => self.name_steps(cx, false),
            Failure::TriesAgain => {
                self.runs(cx);
                self.name_steps(cx, false);
            }
            Failure::GivesUp(reason) => self.end(cx, State::Failed, &reason),
        }
    }

    /// A deadline of the checkpoints has passed, in an epoch that was started.
    pub(super) fn checkpoint_passed(&mut self, cx: &mut Context<'_>, deadline: Deadline) {
        match deadline {
            Deadline::CheckpointInterval => {
                self.checkpoints.interval_passed(&mut self.core.context(cx));
                self.name_steps(cx, false);
            }
            Deadline::HaltAgain => {
                let yields = self.core.record.yields.as_ref().map(|yields| yields.reason.clone());
                let leaving = yields.unwrap_or_else(|| self.leaving_in_words());
                self.checkpoints.halt_again(&mut self.core.context(cx), &leaving);
            }
            Deadline::LastStepAgain => self.name_steps(cx, false),
            Deadline::Removals => {
                self.checkpoints.removals_passed(&mut self.core.context(cx));
                self.try_finish(cx);
            }
            Deadline::Checkpoint { step } => {
                let outcome = self.checkpoints.overdue(&self.core.context(cx), step);
                self.act_on(cx, outcome);
            }
            other => unreachable!("{other:?} is no deadline of checkpoints"),
        }
    }
}
