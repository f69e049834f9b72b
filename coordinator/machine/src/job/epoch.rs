//! How an epoch begins: who gets which place, `Assign`, `Prepared` from all, `Start`.
//!
//! Survivors keep their places while the shape is the same (T-7). The epoch's number and its places are stored before its first `Assign` is
//! sent (T-8).

use std::collections::BTreeSet;

use super::Job;
use crate::api::Output;
use crate::cause::Cause;
use crate::clock::Stopwatch;
use crate::context::Context;
use crate::epoch::EpochPhase;
use crate::facts::{differences, facts};
use crate::fitness::Until;
use crate::proof::Proof;
use crate::record::{Heal, Inputs, Process, Rung, SeenBy, State};
use crate::recovery::{self, Holding, Loss, NextEpoch, Resume, Situation, Source};
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Rank, Step, WorkerId};
use toroid_torus::placement::{self, Placement};

impl Job {
    /// Gives a queued job all its places, for this reason; says whether there were workers for them.
    pub fn place(&mut self, cx: &mut Context<'_>, why: &str) -> bool {
        let mut shape = self.core.record.shape;
        let candidates = self.candidates(cx.pool, self.core.world());
        if failpoint!(StartPartOfGang) && candidates.len() < shape.world() {
            shape = Shape::new(1, 1, candidates.len()).unwrap_or(shape);
        }
        let empty = vec![None; shape.world()];
        let Ok(placement) = placement::place(&shape, &empty, &candidates, &cx.pool.candidates()) else { return false };
        let then = match self.core.record.started_unix_ms > 0 {
            true => recovery::source_in_words(self.source(), 0),
            false => "the workers prepare data, weights and links".into(),
        };
        let reason = format!("all places are filled ({why}): {then}");
        self.stops_waiting(cx);
        self.begin_epoch(cx, shape, placement, State::Starting, &reason);
        self.incidents.fenced(&mut self.core.context(cx), Rung::Restore, &reason);
        true
    }

    /// Begins the next epoch if a place was lost and can be filled, or says what the job waits for.
    pub fn recover(&mut self, cx: &mut Context<'_>) {
        if !self.core.epoch.awaited().is_empty() || self.awaits_later() || !self.core.record.state.is_placed() {
            return;
        }
        if self.lacks_checkpoint() {
            return self.wait_for_checkpoint(cx);
        }
        self.begin_drain(cx);
        let num_empty = self.core.record.places.num_empty();
        if num_empty == 0 && self.core.epoch.why_again().is_none() {
            return;
        }
        let (world, now) = (self.core.world(), cx.now.monotonic);
        if self.may_lose_more() && !self.pace.may_begin(&mut self.core.deadlines, world, now) {
            return;
        }
        let next = recovery::decide(&Situation {
            shape: &self.core.record.shape,
            places: &self.core.record.places,
            candidates: &self.candidates(cx.pool, num_empty),
            hosts: &cx.pool.candidates(),
            losses: self.core.epoch.losses(),
            begin_again: self.core.epoch.why_again(),
            source: self.source(),
        });
        match next {
            NextEpoch::Nothing => {}
            NextEpoch::Wait { cause, reason } => {
                let Err(outlook) = self.shrink(cx, &cause) else { return };
                let reason = reason + &outlook + &cx.pool.not_counted() + &self.fitness.in_words();
                self.core.epoch.wait();
                self.incidents.waits(&mut self.core.context(cx), &reason);
                self.set_state(cx, State::Recovering, &reason);
            }
            NextEpoch::Begin { placement, rung, reason } => {
                self.begin_epoch(
                    cx,
                    self.core.record.shape,
                    placement,
                    if rung == Rung::Drain { State::Draining } else { State::Recovering },
                    &reason,
                );
                self.incidents.fenced(&mut self.core.context(cx), rung, &reason);
            }
        }
    }

    /// Workers ended before the epoch started, as those of a host or a rack do one after the other.
    fn may_lose_more(&self) -> bool {
        let epoch = &self.core.epoch;
        let has_ended = |loss: &Loss| matches!(loss.by, SeenBy::StreamClosed | SeenBy::Silence);
        !epoch.is_started() && epoch.why_again().is_none() && epoch.losses().iter().all(has_ended)
    }

    /// Where the next epoch has its state from.
    pub(super) fn source(&self) -> Source {
        let step = self.core.record.last_checkpoint().map_or(Step::ZERO, |c| c.step);
        match self.core.record.started_unix_ms {
            _ if self.core.can_heal() => Source::Holders,
            0 => Source::First { step },
            _ => Source::Checkpoint { step },
        }
    }

    pub(super) fn begin_epoch(
        &mut self,
        cx: &mut Context<'_>,
        shape: Shape,
        placement: Placement,
        state: State,
        reason: &str,
    ) {
        let heals = self.core.can_heal();
        self.checkpoints.abandon(&mut self.core.context(cx), heals);
        let committed = self.core.committed();
        let is_resized = shape != self.core.record.shape;
        if !heals {
            self.forget_earlier(cx);
        }
        let record = self.core.record.edit(cx.out);
        let places: Vec<Option<WorkerId>> = placement.workers.into_iter().map(Some).collect();
        let old = std::mem::replace(&mut record.places, places.into());
        record.shape = shape;
        record.epoch = record.epoch.next();
        record.heal = None;
        record.absent.clear();
        if failpoint!(MoveSurvivors) {
            record.places = record.places.iter().rev().cloned().collect::<Vec<_>>().into();
        }
        self.fill_places(cx);
        if failpoint!(ReplaceSurvivor) {
            self.replace_survivor(cx, &old);
        }
        if heals {
            self.begin_healing(cx, committed, &old, is_resized);
        } else {
            self.go_back(cx);
        }
        let world = self.core.world();
        self.activities.begin(world);
        let record = &self.core.record;
        let keeps = |rank: Rank| !is_resized && old.get(rank.index()) == record.places.get(rank.index());
        self.stragglers.begin(&record.spec, &shape, keeps);
        self.reach.begin_epoch(&mut self.core.deadlines);
        self.replacement.reset(&mut self.core.deadlines);
        self.pace.begin(&mut self.core.deadlines, cx.now.monotonic);
        self.set_state(cx, state, reason);
        self.check_fingerprints(cx);
        self.core.event(cx, if state == State::Starting { "job.starting" } else { "job.recovering" }, reason);
        self.activities.expect_reports(&mut self.core.context(cx));
        self.assign_all(cx);
    }

    /// The workers of the places hear that they have them.
    pub(super) fn fill_places(&mut self, cx: &mut Context<'_>) {
        for (rank, worker) in self.core.record.placed() {
            if cx.pool.get(worker).and_then(|w| w.proof.as_ref()).is_some_and(Proof::has_passed) {
                self.fitness.link(worker);
            }
            cx.pool.set_place(worker, Some((self.core.record.id.clone(), rank)));
        }
        self.remember_holders(cx);
    }

    /// For a test that must see it: a spare has the place of one that was there before.
    fn replace_survivor(&mut self, cx: &mut Context<'_>, old: &[Option<WorkerId>]) {
        let Some(spare) = self.candidates(cx.pool, 1).into_iter().next().map(|c| c.worker) else { return };
        let survivors =
            self.core.record.placed().filter(|(rank, w)| old.get(rank.index()) == Some(&Some((*w).clone())));
        let Some((rank, survivor)) = survivors.map(|(rank, w)| (rank, w.clone())).last() else { return };
        self.core.record.edit(cx.out).places.set(rank, Some(spare));
        cx.pool.set_place(&survivor, None);
        self.fill_places(cx);
    }

    /// The state stays where it is, and so does the curve: what was committed is not lost. `old`: the places of the epoch before.
    fn begin_healing(&mut self, cx: &mut Context<'_>, committed: Step, old: &[Option<WorkerId>], is_resized: bool) {
        let steps = if is_resized {
            self.carry_failures(cx);
            vec![Step::ZERO; self.core.world()]
        } else {
            let known = self.core.epoch.committed_steps().iter().zip(old);
            known.map(|(step, worker)| if worker.is_some() { *step } else { Step::ZERO }).collect()
        };
        self.core.epoch.begin(committed, steps);
        if failpoint!(CutCurveToHeal) {
            self.cut_curve(cx, self.core.record.restore_step);
        }
    }

    /// The processes that have places now. Those that had one stay known as long as their state may count.
    fn remember_holders(&mut self, cx: &mut Context<'_>) {
        let (record, pool) = (self.core.record.edit(cx.out), &*cx.pool);
        let earlier: BTreeSet<&WorkerId> = record.earlier.iter().flat_map(|l| l.places.iter().flatten()).collect();
        record.holders.retain(|id, _| earlier.contains(id));
        let placed = record.places.iter().flatten().filter_map(|id| pool.get(id));
        record.holders.extend(placed.map(|w| (w.id(), Process::of(&w.register))));
    }

    /// All go back to the newest checkpoint: the steps since then are made again. The curve is cut when all have loaded the checkpoint.
    fn go_back(&mut self, cx: &mut Context<'_>) {
        let restore_step = self.core.record.last_checkpoint().map_or(Step::ZERO, |c| c.step);
        self.release_moved(cx);
        let record = self.core.record.edit(cx.out);
        record.has_state = false;
        record.restore_step = restore_step;
        record.named_to = restore_step;
        self.core.curve.begin_at(restore_step.max(record.start_step));
        self.checkpoints.forget_last_step(&mut self.core.context(cx));
        let committed = vec![restore_step; self.core.world()];
        self.core.epoch.begin(restore_step, committed);
    }

    fn cut_curve(&mut self, cx: &mut Context<'_>, keep: Step) {
        if self.core.curve.cut(keep) {
            cx.out.effects.push(Output::CutCurve { job: self.core.record.id.clone(), keep });
        }
    }

    /// Remembers what an exact job runs on; warns where bits may come to differ.
    fn check_fingerprints(&mut self, cx: &mut Context<'_>) {
        let workers = self.core.record.places.iter().flatten().filter_map(|w| cx.pool.get(w));
        let products = self.core.record.spec.products;
        let found: BTreeSet<String> = workers.map(|w| w.fingerprint(products).to_string()).collect();
        if self.core.record.spec.exact {
            self.core.record.edit(cx.out).fingerprint = found.into_iter().next();
        } else if found.len() > 1 {
            let list: Vec<String> = found.into_iter().collect();
            let text =
                format!("workers compute differently, results may depend on who does what: {}", list.join(" | "));
            self.core.event(cx, "job.mixed", text);
        }
    }

    pub(super) fn prepared(&mut self, cx: &mut Context<'_>, rank: Rank, message: proto::Prepared) {
        if self.core.epoch.phase() != EpochPhase::Preparing {
            return;
        }
        if self.core.can_heal() && !message.held.is_empty() {
            // Its records follow, and the newest may be of a step that nobody has told of yet.
            self.core.epoch.commit(rank, Step::new(message.committed_step).min(self.core.total()));
        }
        self.core.epoch.prepare(rank, message);
        self.weigh_refusals(cx);
        if self.core.epoch.prepared().len() == self.core.world() && self.core.has_all_places() {
            match self.disagreement() {
                None => self.resume(cx),
                Some((Blame::Job, reason)) => self.end(cx, State::Failed, &reason),
                Some((Blame::Worker(rank), reason)) => {
                    if let Some(worker) = self.core.record.worker_at(rank).cloned() {
                        self.mark_unfit(cx, &worker, &reason, Until::Retry);
                    }
                    self.lose(cx, rank, Cause::new(SeenBy::Prepared, reason));
                }
                Some((Blame::Place(rank), reason)) => self.place_failed(cx, rank, SeenBy::Prepared, &reason),
            }
        }
    }

    /// All have reported: decides which step they go on from, or that the state is lost and a checkpoint has to be loaded.
    fn resume(&mut self, cx: &mut Context<'_>) {
        if !self.core.can_heal() {
            let step = Step::new(self.core.epoch.prepared()[&Rank::ZERO].committed_step);
            self.core.curve.begin_at(step);
            self.cut_curve(cx, step);
            let record = self.core.record.edit(cx.out);
            record.named_to = record.named_to.max(step);
            record.start_step = if record.restore_step > Step::ZERO { record.start_step } else { step };
            self.validations.cut(&mut self.core.context(cx), step);
            self.forget_unusable(cx);
            let reason = "all workers are prepared: they connect and compute the first step";
            return self.start(cx, step, None, reason);
        }
        let held = |p: &proto::Prepared| Holding {
            committed: Step::new(p.committed_step),
            held: p.held.iter().filter_map(|h| self.checked(h)).collect(),
            sealed_next: p.sealed_next,
            sums_from: Step::new(p.sums_from),
        };
        let held: Vec<Holding> = self.core.epoch.prepared().values().map(held).collect();
        match recovery::resume(&self.core.record.shape, &held) {
            Resume::Heal { origin: Some(_), reason, .. } if !self.assigned.names_all() => {
                // Any two places may have to be linked.
                self.assigned.name_all();
                self.begin_again(cx, SeenBy::Prepared, reason);
            }
            Resume::Heal { step, source, newcomers, origin, reason } => {
                self.cut_curve(cx, step);
                let recorded_step = self.core.curve.recorded_step();
                self.start(cx, step, Some(Heal { step, source, newcomers, origin, recorded_step }), &reason);
            }
            Resume::Restore { .. } if self.take_back_moved(cx, |_| true) => cx.out.unsettled = true,
            Resume::Restore { step, reason } => {
                self.incidents.reported(step);
                self.core.record.edit(cx.out).has_state = false;
                self.begin_again(cx, SeenBy::Prepared, reason);
            }
        }
    }

    /// What a worker says that it holds; `None` where that is nothing of this job.
    fn checked(&self, held: &proto::Held) -> Option<(Shape, usize)> {
        let shape = Shape::try_from(held.shape.as_ref()?).ok()?;
        let (rank, own) = (held.rank as usize, &self.core.record.shape);
        let fits = (shape.tp(), shape.pp()) == (own.tp(), own.pp()) && rank < shape.world();
        fits.then_some((shape, rank))
    }

    /// What the workers that prepared do not agree on, and whose fault it is.
    fn disagreement(&self) -> Option<(Blame, String)> {
        let first = &self.core.epoch.prepared()[&Rank::ZERO];
        let first_step = Step::new(first.committed_step);
        let known = self.core.record.data.clone().unwrap_or_else(|| facts(first));
        for (&rank, prepared) in self.core.epoch.prepared() {
            let differences = differences(&facts(prepared), &known);
            if !differences.is_empty() {
                let (other, blame) = match self.core.record.data {
                    None => (self.core.describe(Rank::ZERO), Blame::Job),
                    Some(_) => ("the job so far".into(), Blame::Worker(rank)),
                };
                let reason = format!(
                    "does not see the same data, model or weights as the others: {} has {}, as {other} has; give all of them the same files",
                    self.core.describe(rank),
                    differences.join(", "),
                );
                return Some((blame, reason));
            }
            if self.core.can_heal() {
                continue;
            }
            let expected =
                if self.core.record.restore_step > Step::ZERO { self.core.record.restore_step } else { first_step };
            let loaded = Step::new(prepared.committed_step);
            if loaded != expected {
                let reason = format!("loaded step {loaded} where step {expected} was to be loaded");
                return Some((Blame::Place(rank), reason));
            }
        }
        (first_step > self.core.total() && !self.core.can_heal()).then(|| {
            let (found, total) = (first_step, self.core.total());
            (Blame::Job, format!("`resume_from` is at step {found} and the job has only {total} steps; raise `steps`"))
        })
    }

    fn start(&mut self, cx: &mut Context<'_>, base_step: Step, heal: Option<Heal>, reason: &str) {
        let first = &self.core.epoch.prepared()[&Rank::ZERO];
        let (mut data, inputs) = (facts(first), first.inputs.as_ref().map(Inputs::bounded));
        // Those of epochs before stand, read anew or not.
        let before = self.core.record.data.as_ref().map(|known| known.weights.clone()).unwrap_or_default();
        let found = self.core.epoch.prepared().values().flat_map(|prepared| prepared.weights.clone());
        data.weights = found.chain(before).collect();
        self.core.record.edit(cx.out).data = Some(data);
        self.tell_of(cx, inputs);
        let is_heal = heal.is_some();
        self.moves.started();
        self.core.epoch.start(base_step);
        self.pace.start();
        self.core.curve.forget_question();
        let record = self.core.record.edit(cx.out);
        record.heal = heal;
        record.has_state = true;
        record.high_step = record.high_step.max(base_step);
        if record.started_unix_ms == 0 {
            record.started_unix_ms = cx.now.unix_ms;
            record.trained = Some(Stopwatch::start(cx.now));
        }
        let (epoch, state) = (record.epoch, record.state);
        self.set_state(cx, state, reason);
        let start = self.start_message();
        self.core.send_all(cx, &start);
        self.core.event(cx, "job.started", format!("epoch {epoch} goes on from step {base_step}: {reason}"));
        self.incidents.decided(&mut self.core.context(cx), base_step);
        self.expect_progress(cx);
        self.checkpoints.arm_interval(&mut self.core.context(cx), is_heal);
        self.name_steps(cx, true);
    }

    /// Says as events what the job trains on, once: when its first epoch starts. All workers have the same text.
    fn tell_of(&mut self, cx: &mut Context<'_>, inputs: Option<Inputs>) {
        if self.core.record.inputs.is_some() {
            return;
        }
        let Some(inputs) = inputs else { return };
        for left in &inputs.left_out {
            self.core.event(cx, "data.left_out", left.in_words());
        }
        for note in &inputs.notes {
            self.core.event(cx, "job.note", note.clone());
        }
        self.core.record.edit(cx.out).inputs = Some(inputs);
    }

    /// `Start` of the present epoch. A worker that has started takes it as the same one.
    pub(super) fn start_message(&self) -> Body {
        let heal = self.core.record.heal.as_ref().map(|h| proto::Heal {
            step: h.step.get(),
            source: h.source.to_wire(),
            newcomers: h.newcomers.iter().map(|r| r.to_wire()).collect(),
            origin: h.origin.as_ref().map(|o| proto::Origin {
                shape: Some((&o.shape).into()),
                ranks: o.ranks.iter().map(|r| r.map_or(0, |r| r as u32 + 1)).collect(),
            }),
            recorded_step: h.recorded_step.get(),
        });
        let (job_id, epoch) = (self.core.record.id.to_string(), self.core.record.epoch.get());
        Body::Start(proto::Start { job_id, epoch, heal })
    }
}

enum Blame {
    /// Nobody could do it.
    Job,
    /// The worker of this rank is of no use to the job.
    Worker(Rank),
    /// It may succeed when it is tried again.
    Place(Rank),
}
