//! What goes wrong in a job: places that are lost, workers that fail, links that break, ranks that hang.
//!
//! Each failure ends in one of three ways: a place becomes empty ([`Job::lose`]), all begin the next epoch with the places that they have
//! ([`Job::begin_again`]), or the job has failed. Which workers take the empty places is decided when the whole input is known, see
//! [`crate::recovery`].

use std::collections::BTreeSet;
use std::time::Duration;

use super::Job;
use crate::cause::Cause;
use crate::context::Context;
use crate::epoch::EpochPhase;
use crate::fitness::Until;
use crate::incidents::Sighting;
use crate::record::{Deaths, Failures, SeenBy, State};
use crate::recovery::Loss;
use toroid_proto as proto;
use toroid_torus::ids::{Rank, Step, WorkerId};

/// A place that fails this often without the job getting any further ends the job.
pub(crate) const MAX_FAILURES: u32 = 3;

impl Job {
    /// The place is empty from now on.
    pub fn lose(&mut self, cx: &mut Context<'_>, rank: Rank, cause: Cause) {
        let Some(worker) = self.core.record.worker_at(rank).cloned() else { return };
        self.core.record.edit(cx.out).places.set(rank, None);
        self.stop_worker(cx, &worker, &cause.why);
        let Cause { by, why, detect, host } = cause;
        let had_spare = self.has_candidate(cx.pool);
        let host = host.or(cx.pool.get(&worker).map(|w| w.register.host.clone())).unwrap_or_default();
        cx.pool.set_place(&worker, None);
        let record = self.core.record.edit(cx.out);
        if by.may_come_back() {
            record.absent.insert(rank, worker.clone());
        }
        // Who was to end anyway has not crashed, however it ended in the end.
        let is_planned = record.draining.remove(&worker);
        self.core.epoch.forget(rank);
        self.reach.forget(&mut self.core.deadlines, &worker);
        self.fitness.lose(&worker);
        let text = format!("{worker} (rank {rank}) {why}");
        self.core.worker_event(cx, "worker.lost", text.clone(), &worker);
        self.incident_seen(cx, Sighting { by, cause: text, detect, place: Some((rank, worker.clone())) });
        if by.is_crash() && !is_planned {
            for text in cx.pool.crashed(&worker, &host, cx.now.monotonic) {
                self.core.worker_event(cx, "worker.aside", text, &worker);
            }
            self.count_death(cx, rank, (&worker, &host), &why);
        }
        self.core.epoch.lose(Loss { rank, worker, host, by, why, had_spare });
        self.replacement.reset(&mut self.core.deadlines);
        if self.core.epoch.phase() == EpochPhase::Preparing && self.core.can_heal() {
            self.take_back_moved(cx, |moved| !moved.is_started);
        }
        cx.out.unsettled = true;
    }

    /// Ends the job if a step kills every worker that computes it: all workers compute a place in the same way. Where they were all of a host that
    /// kills what it gets, it is no step's fault: others have yet to show.
    fn count_death(&mut self, cx: &mut Context<'_>, rank: Rank, (worker, host): (&str, &str), why: &str) {
        if !self.core.epoch.is_started() {
            return;
        }
        if cx.pool.is_host_aside(host) {
            self.core.record.edit(cx.out).deaths.remove(&rank);
            return;
        }
        // After a restore earlier steps are made again: a death in one of those is not the later step's fault.
        let at_step = self.core.committed();
        let record = self.core.record.edit(cx.out);
        record.deaths.retain(|_, d| d.at_step == at_step);
        let deaths = record.deaths.entry(rank).or_insert(Deaths { workers: BTreeSet::new(), at_step });
        deaths.workers.insert(worker.into());
        if deaths.workers.len() < MAX_FAILURES as usize {
            return;
        }
        let workers: Vec<&str> = deaths.workers.iter().map(WorkerId::as_str).collect();
        let reason = format!(
            "step {} ends whoever computes it as rank {rank}: {} were lost one after the other without a new step; the last, {worker}, {why}",
            at_step.next(),
            workers.join(", ")
        );
        self.end(cx, State::Failed, &reason);
    }

    /// All places stay filled, and the next epoch begins.
    pub(super) fn begin_again(&mut self, cx: &mut Context<'_>, by: SeenBy, text: String) {
        self.incident_seen(cx, Sighting { by, cause: text.clone(), detect: Duration::ZERO, place: None });
        self.core.epoch.begin_again(text);
        cx.out.unsettled = true;
    }

    pub(super) fn failed(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::Failed) {
        if message.fatal {
            return self.refused(cx, rank, &message.error);
        }
        if !message.corrupt_ranks.is_empty() {
            return self.corrupt_copies(cx, message);
        }
        if message.restore {
            return self.corrupted(cx, rank, &message.error);
        }
        let is_restored =
            |step: Step| step > Step::ZERO && step == self.core.record.restore_step && !self.core.can_heal();
        if is_restored(Step::new(message.damaged_step)) {
            return self.checkpoint_damaged(cx, rank, &message.error);
        }
        if is_restored(Step::new(message.unreadable_step)) {
            return self.checkpoint_unreadable(cx, rank, message);
        }
        self.place_failed(cx, rank, SeenBy::WorkerReport, &message.error);
    }

    /// The worker of a place says that it cannot do what the job needs. That is the job's fault only where nobody else can either (T-11).
    fn refused(&mut self, cx: &mut Context<'_>, rank: Rank, error: &str) {
        if !self.core.epoch.is_started() {
            self.core.epoch.refuse(rank, error);
            return self.weigh_refusals(cx);
        }
        let newcomers: Vec<Rank> = Rank::all(self.core.world()).filter(|r| self.is_newcomer(*r)).collect();
        if newcomers.is_empty() || newcomers.len() == self.core.world() {
            let reason = format!("{} cannot go on: {error}", self.core.describe(rank));
            return self.end(cx, State::Failed, &reason);
        }
        if newcomers.contains(&rank) {
            return self.lose_unfit(cx, rank, SeenBy::WorkerReport, format!("cannot fill its place: {error}"));
        }
        for newcomer in newcomers {
            let why = format!("cannot be worked with: {}: {error}", self.core.describe(rank));
            self.lose_unfit(cx, newcomer, SeenBy::WorkerReport, why);
        }
    }

    fn is_newcomer(&self, rank: Rank) -> bool {
        self.core.record.worker_at(rank).is_some_and(|worker| self.fitness.is_new(worker))
    }

    /// Evicts workers that cannot prepare as soon as another worker can. If no worker of any place can, the job has failed.
    pub(super) fn weigh_refusals(&mut self, cx: &mut Context<'_>) {
        let refusals = self.core.epoch.refusals();
        let Some((first, error)) = refusals.first_key_value().map(|(rank, error)| (*rank, error.clone())) else {
            return;
        };
        if refusals.len() == self.core.world() {
            let reason = format!("{} cannot go on: {error}", self.core.describe(first));
            return self.end(cx, State::Failed, &reason);
        }
        let can_others = Rank::all(self.core.world()).any(|rank| {
            let can = self.core.epoch.prepared().contains_key(&rank) || self.core.can_heal() && !self.is_newcomer(rank);
            can && !refusals.contains_key(&rank)
        });
        if can_others {
            for (rank, error) in self.core.epoch.take_refusals() {
                self.lose_unfit(cx, rank, SeenBy::Prepared, format!("cannot fill its place: {error}"));
            }
        }
    }

    /// The place is empty, and its worker is given none of this job for a while.
    fn lose_unfit(&mut self, cx: &mut Context<'_>, rank: Rank, by: SeenBy, why: String) {
        let Some(worker) = self.core.record.worker_at(rank).cloned() else { return };
        self.mark_unfit(cx, &worker, &why, Until::Retry);
        self.lose(cx, rank, Cause::new(by, why));
    }

    /// The other copies of a shard are right: a worker with a wrong copy is replaced as if it had died, and its process gets no place again.
    fn corrupt_copies(&mut self, cx: &mut Context<'_>, message: &proto::Failed) {
        let ranks: BTreeSet<Rank> = message.corrupt_ranks.iter().map(|r| Rank::from(*r)).collect();
        for rank in ranks {
            // Of several that saw it one was the first.
            let Some(worker) = self.core.record.worker_at(rank).cloned() else { continue };
            cx.pool.retire(&worker);
            let who = self.core.describe(rank);
            self.core.event(cx, "state.corrupt", format!("silent corruption at {who}: {}", message.error));
            let why = format!("holds a wrong copy of a shard: {}", message.error);
            self.lose(cx, rank, Cause::new(SeenBy::Digests, why));
        }
    }

    /// The state in memory cannot be trusted: all go back to the newest checkpoint.
    fn corrupted(&mut self, cx: &mut Context<'_>, rank: Rank, error: &str) {
        let text = format!("silent corruption: {}: {error}", self.core.describe(rank));
        if self.count_failure(cx, rank) >= MAX_FAILURES {
            let reason =
                format!("rank {rank} failed {MAX_FAILURES} times in a row without a new step; the last: {text}");
            return self.end(cx, State::Failed, &reason);
        }
        self.core.record.edit(cx.out).has_state = false;
        self.core.event(cx, "state.corrupt", text.clone());
        self.begin_again(cx, SeenBy::Digests, text);
    }

    /// The worker of a place cannot go on; another may. A place that fails too often without a new step ends the job.
    pub(super) fn place_failed(&mut self, cx: &mut Context<'_>, rank: Rank, by: SeenBy, error: &str) {
        let who = self.core.describe(rank);
        if self.count_failure(cx, rank) >= MAX_FAILURES {
            let reason = format!(
                "rank {rank} failed {MAX_FAILURES} times in a row without a new step; the last, {who}: {error}"
            );
            return self.end(cx, State::Failed, &reason);
        }
        if let Some(worker) = self.core.record.worker_at(rank).cloned() {
            self.fitness.avoid(worker);
        }
        self.lose(cx, rank, Cause::new(by, format!("failed: {error}")));
    }

    pub(super) fn count_failure(&mut self, cx: &mut Context<'_>, rank: Rank) -> u32 {
        let at_step = self.core.record.high_step.max(self.core.committed());
        let failures = self.core.record.edit(cx.out).failures.entry(rank).or_insert(Failures { count: 0, at_step });
        if at_step > failures.at_step {
            *failures = Failures { count: 0, at_step };
        }
        failures.count += 1;
        failures.count
    }
}
