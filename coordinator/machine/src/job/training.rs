//! Steps that are committed, recorded and validated, up to the last.

use super::Job;
use crate::api::Output;
use crate::context::Context;
use crate::epoch::EpochPhase;
use crate::job_context::Core;
use crate::progress::StepSummary;
use crate::record::{SourceValidation, State, Validation};
use crate::straggler::{Change, Work};
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job::JobKind;

impl Job {
    /// Steps are being committed, or something else shows that all ranks work together: the job runs.
    pub(super) fn runs(&mut self, cx: &mut Context<'_>) {
        if !self.core.epoch.is_started() || !self.core.has_all_places() {
            return;
        }
        if !self.core.is_degraded() {
            let is_over = self.core.committed() == self.core.total() && self.core.record.unsaved.is_some();
            let reason =
                if is_over { "all steps are committed, the last is not saved yet" } else { "all workers train" };
            self.set_state(cx, State::Running, reason);
        } else if self.core.record.state != State::Degraded {
            let (dp, all) = (self.core.record.shape.dp(), self.core.record.spec.shape.dp());
            let reason =
                format!("trains with dp {dp} of {all}, the same samples in every step; it grows when workers come");
            self.set_state(cx, State::Degraded, &reason);
        }
    }

    pub(super) fn heartbeat(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::Heartbeat) {
        if self.core.epoch.phase() == EpochPhase::Waiting {
            return;
        }
        self.activities.heard(rank, message, cx.now.monotonic);
        if self.core.epoch.phase() == EpochPhase::Preparing {
            return;
        }
        self.advance(cx, rank, Step::new(message.committed_step));
        self.compare_work(cx, rank, message);
        // A step that a survivor sealed before a heal says nothing about this epoch.
        if Step::new(message.committed_step) > self.core.epoch.base_step()
            || message.sealed_next && self.core.record.heal.is_none()
        {
            self.runs(cx);
        }
    }

    /// A straggler is named; it keeps its place.
    fn compare_work(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::Heartbeat) {
        let (num_steps, compute_s) = (message.compute_steps, message.compute_s);
        let work = Work { num_steps, compute_s, committed: Step::new(message.committed_step).min(self.core.total()) };
        let window = cx.config.limits.straggler_window();
        for change in self.stragglers.heard(rank, work, cx.now.monotonic, window) {
            let (kind, found, end) = match &change {
                Change::Slow(found) => ("worker.slow", found, "; it keeps its place, which a drain would move"),
                Change::KeepsUp(found) => ("worker.keeps_up", found, ": it is no straggler any more"),
            };
            let worker = self.core.record.worker_at(found.rank).cloned().unwrap_or_default();
            let text = format!("{} {}{end}", self.core.describe(found.rank), found.in_words());
            self.core.worker_event(cx, kind, text, &worker);
        }
    }

    pub(super) fn advance(&mut self, cx: &mut Context<'_>, rank: Rank, committed: Step) {
        let before = self.core.committed();
        self.core.epoch.commit(rank, committed.min(self.core.total()));
        let after = self.core.committed();
        if after > before {
            // Not stored for each heartbeat: it is heard again.
            let record = self.core.record.edit_later();
            record.high_step = record.high_step.max(after);
            self.progressed(cx);
        }
    }

    fn progressed(&mut self, cx: &mut Context<'_>) {
        let is_step_made = self.core.committed() > self.core.epoch.base_step();
        let Core { record, deadlines, .. } = &mut self.core;
        let workers = record.places.iter().flatten();
        if is_step_made && self.fitness.establish(record.epoch, workers, record.shape.world() > 1) {
            self.reach.clear(deadlines);
        }
        self.expect_progress(cx);
        if is_step_made {
            self.forget_earlier(cx);
            if self.incidents.is_healing() || self.incidents.is_open() && failpoint!(CloseByLateRecord) {
                self.incident_over(cx);
            }
        }
        self.incidents.committed_advanced(&mut self.core.context(cx));
        self.checkpoints_advanced(cx);
    }

    /// The newest incident is over: what was kept for it may go, and what waited for it may come.
    fn incident_over(&mut self, cx: &mut Context<'_>) {
        self.incidents.over(&mut self.core.context(cx));
        self.release_moved(cx);
        // A drain may have waited for it.
        cx.out.unsettled = true;
    }

    fn acknowledge(&self, cx: &mut Context<'_>) {
        let (job_id, step) = (self.core.record.id.to_string(), self.core.curve.recorded_step().get());
        self.core.send(cx, Rank::ZERO, Body::StepAck(proto::StepAck { job_id, step }));
    }

    /// From rank 0. A step that is there already changes nothing, but is acknowledged again. When a healing epoch begins, rank 0 says
    /// again what was not acknowledged, and a new one what the lost one may not have said: these steps stay committed.
    pub(super) fn step_report(&mut self, cx: &mut Context<'_>, mut record: proto::StepRecord) {
        let (step, recorded) = (Step::new(record.step), self.core.curve.recorded_step());
        if step <= recorded {
            return self.acknowledge(cx);
        }
        let is_next = step == recorded.next() || failpoint!(TakeAnyStep);
        let is_taken = match self.core.epoch.phase() {
            EpochPhase::Started => is_next || self.ask_for_next(cx),
            EpochPhase::Preparing => self.core.can_heal() && is_next,
            EpochPhase::Waiting => false,
        };
        if step > self.core.total() || !is_taken {
            return;
        }
        // What a worker may say of itself is no gap.
        record.missing = false;
        record.epoch = self.core.record.epoch.get();
        let job = self.core.record.id.clone();
        let is_skipped = record.skipped;
        self.core.curve.push(StepSummary::from(&record));
        cx.out.changed.insert(job.clone());
        cx.out.effects.push(Output::AppendCurve { job, record: Box::new(record) });
        self.acknowledge(cx);
        if is_skipped {
            self.step_skipped(cx, step);
        }
        if self.core.epoch.is_started() {
            self.recorded(cx, step);
        }
    }

    /// T-12: told at the first one, and whenever there are twice as many. Too many in a row end the job.
    fn step_skipped(&mut self, cx: &mut Context<'_>, step: Step) {
        let (num, in_a_row) = (self.core.curve.progress().num_skipped(), self.core.curve.progress().skipped_in_a_row());
        let text = match num {
            1 => format!("step {step} made no update: its gradients are not finite"),
            _ => format!(
                "{num} steps made no update so far, the last {in_a_row} of them in a row up to step {step}: their gradients are not finite"
            ),
        };
        if num.is_power_of_two() {
            self.core.event(cx, "step.skipped", text);
        }
        let max = self.core.record.spec.fault_tolerance.max_skipped;
        if max > 0 && in_a_row >= max {
            let reason = format!(
                "{in_a_row} steps in a row, the last of them step {step}, made no update: their gradients are not finite. Lower optimizer.lr, look at \
                 the text and at init_from, or raise fault_tolerance.max_skipped = {max} (0: go on whatever comes)"
            );
            self.end(cx, State::Failed, &reason);
        }
    }

    /// T-4, T-12: a record before the one that came is missing. Rank 0 has it, or says that nobody has; the one that came is said again
    /// after it, and is not taken now.
    fn ask_for_next(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(from_step) = self.core.curve.ask_for_next() {
            let (job_id, epoch) = (self.core.record.id.to_string(), self.core.record.epoch.get());
            self.core.send(
                cx,
                Rank::ZERO,
                Body::ReportSteps(proto::ReportSteps { job_id, epoch, from_step: from_step.get() }),
            );
        }
        false
    }

    /// From rank 0: no place has the figures of these steps any more. The curve says so, and the job goes on (T-12).
    pub(super) fn records_missing(&mut self, cx: &mut Context<'_>, message: &proto::RecordsMissing) {
        let recorded = self.core.curve.recorded_step();
        // Steps that nobody is known to have committed cannot be missing.
        let through = Step::new(message.through_step).min(self.core.committed());
        if !self.core.epoch.is_started() {
            return;
        }
        if through <= recorded {
            return self.acknowledge(cx);
        }
        if Step::new(message.from_step) > recorded.next() {
            self.ask_for_next(cx);
            return;
        }
        let from = recorded.next();
        self.core.curve.push_missing(from, through);
        let job = self.core.record.id.clone();
        cx.out.effects.push(Output::AppendGap { job, from_step: from, through_step: through });
        let what = match through.since(from) {
            0 => format!("step {from} has no figures in the curve"),
            _ => format!("steps {from} to {through} have no figures in the curve"),
        };
        let why =
            "they were committed while no coordinator was there to record them, and no place has their sums any more";
        self.core.event(cx, "curve.gap", format!("{what}: {why}"));
        self.acknowledge(cx);
        self.recorded(cx, through);
    }

    /// The curve is kept up to `step`.
    fn recorded(&mut self, cx: &mut Context<'_>, step: Step) {
        if step > self.core.epoch.base_step() {
            self.runs(cx);
            self.advance(cx, Rank::ZERO, step);
        }
        // Also where the commit was heard of before its record came.
        self.progressed(cx);
    }

    pub(super) fn validation(&mut self, cx: &mut Context<'_>, v: proto::Validation) {
        let step = Step::new(v.step);
        if !self.core.epoch.is_started() || step > self.core.total() {
            return;
        }
        let (epoch, ce, bits_per_byte, tokens) = (self.core.record.epoch, v.ce, v.bits_per_byte, v.tokens);
        let names = &self.core.record.spec.data.sources;
        let source = |s: &proto::SourceValidation| SourceValidation { ce: s.ce, tokens: s.tokens };
        let sources: Vec<SourceValidation> = v.sources.iter().take(names.len()).map(source).collect();
        let by_source: String = names.iter().zip(&sources).map(|(n, s)| format!(", {} {:.4}", n.name, s.ce)).collect();
        // Of tokens that are no bytes it is not known.
        let of_bytes = if bits_per_byte == 0.0 { String::new() } else { format!(", {bits_per_byte:.4} bits a byte") };
        let (correct, ties) = (v.correct, v.ties);
        let text = match self.core.record.spec.kind {
            JobKind::Reward => {
                format!("step {step}: {ce:.4} nats a pair, {correct} of {tokens} pairs right, {ties} ties{by_source}")
            }
            _ => format!("step {step}: {ce:.4} nats a token{of_bytes}{by_source}"),
        };
        let found = Validation { step, epoch, ce, bits_per_byte, tokens, sources, correct, ties };
        if self.validations.has(&found) {
            return;
        }
        self.validations.add(&mut self.core.context(cx), found);
        self.runs(cx);
        self.core.event(cx, "validation", text);
    }

    pub(super) fn finished(&mut self, cx: &mut Context<'_>, rank: Rank, committed: Step) {
        if !self.core.epoch.is_started() || committed != self.core.total() {
            return;
        }
        self.core.epoch.finish(rank);
        self.advance(cx, rank, committed);
        // Its records come before, and no later one will show that one is missing.
        if rank == Rank::ZERO && self.core.curve.recorded_step() < committed {
            self.ask_for_next(cx);
        }
        if self.core.epoch.num_finished() == self.core.world() {
            // A heal at the last step is followed by no other.
            self.forget_earlier(cx);
            if self.incidents.is_healing() {
                self.incident_over(cx);
            }
            self.runs(cx);
        }
        self.name_steps(cx, false);
        self.try_finish(cx);
    }

    /// Done once all places have finished and the last step is saved.
    pub(super) fn try_finish(&mut self, cx: &mut Context<'_>) {
        let saved = self.core.record.last_checkpoint().is_some_and(|c| c.step == self.core.total());
        if !saved || self.core.epoch.num_finished() != self.core.world() {
            return;
        }
        self.checkpoints.remove_rest(&mut self.core.context(cx));
        if !self.checkpoints.is_removing() {
            let gap = match self.core.curve.progress().num_missing() {
                0 => String::new(),
                1 => "; 1 has no figures in the curve".into(),
                n => format!("; {n} have no figures in the curve"),
            };
            let reason = format!("all {} steps are committed and saved{gap}", self.core.total());
            self.end(cx, State::Done, &reason);
        }
    }
}
