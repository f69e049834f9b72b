//! Who gets workers next: the pool's situation for [`crate::scheduler`], and what follows from its decisions.
//!
//! ```text
//!   jobs with places, the highest priority first:  lost places are filled again ── before that, queued jobs of a higher priority start
//!                                                  fewer replicas grow again    ── before that, queued jobs of no lower priority start
//!   then the queue: starts, one by one, each of which changes the situation; then who gives workers, and why each job waits
//! ```

use std::collections::{BTreeMap, BTreeSet};

use toroid_torus::ids::{JobId, WorkerId};

use super::Machine;
use crate::clock::Now;
use crate::job::Job;
use crate::pool::Worker;
use crate::scheduler::{self, Action, Decision, Plan, Situation};

impl Machine {
    /// Fills places where that has become possible, and says what everyone waits for.
    pub(super) fn schedule(&mut self, now: Now) {
        self.pool.asks_for = self.first_placed().map(|job| job.record().id.clone());
        let (jobs, mut cx) = self.split(now);
        for job in jobs.values_mut().filter(|job| !job.record().state.is_ended()) {
            job.mark_hidden(&mut cx);
        }
        self.note_retained();
        for (priority, id) in self.placed_in_order() {
            if self.jobs.get(&id).is_some_and(|job| job.needs_spares()) {
                self.start_queued(Some(priority.saturating_add(1)), now);
            }
            let (jobs, mut cx) = self.split(now);
            if let Some(job) = jobs.get_mut(&id) {
                job.recover(&mut cx);
            }
        }
        self.note_retained();
        for (priority, id) in self.placed_in_order() {
            if !self.jobs.get(&id).is_some_and(|job| job.core().is_degraded()) {
                continue;
            }
            let plan = self.start_queued(Some(priority), now);
            let (jobs, mut cx) = self.split(now);
            if let Some(job) =
                jobs.get_mut(&id).filter(|_| plan.growth_floor.is_none_or(|floor| i64::from(priority) > floor))
            {
                job.grow(&mut cx);
            }
        }
        let plan = self.start_queued(None, now);
        self.act_on(plan, now);
    }

    /// Starts the jobs of at least this priority that can start now; returns what is to be done beside that.
    fn start_queued(&mut self, at_least: Option<i32>, now: Now) -> Plan {
        loop {
            let plan = self.plan(at_least, now);
            let Some(Decision { job, action: Action::Start { without }, reason }) = plan.decisions.last().cloned()
            else {
                return plan;
            };
            let (jobs, mut cx) = self.split(now);
            cx.pool.kept = without;
            let is_placed = jobs.get_mut(&job).is_some_and(|job| job.place(&mut cx, &reason));
            cx.pool.kept.clear();
            assert!(is_placed, "{job} starts where workers for all its places are free: {reason}");
        }
    }

    fn plan(&mut self, at_least: Option<i32>, now: Now) -> Plan {
        let (jobs, cx) = self.split(now);
        // What only a user can end is no wait for workers.
        let waits = |job: &&Job| {
            let record = job.record();
            !record.state.is_ended() && !record.state.is_placed() && record.hold.is_none() && !job.awaits_later()
        };
        let lacks = |job: &Job| job.record().state.is_placed() && job.record().places.num_empty() > 0;
        if !jobs.values().any(|job| waits(&job) || lacks(job)) {
            // The usual case, with a decision for each word of ten thousands of workers: nobody is looked at.
            return Plan::default();
        }
        let needs = jobs.values().filter(waits).map(|job| job.record().spec.shape.world()).min();
        let are_too_few = needs.is_some_and(|needs| needs > cx.pool.len()) && !jobs.values().any(lacks);
        if are_too_few && cx.pool.is_counted(now.monotonic) {
            return Plan::default();
        }
        let free: BTreeSet<WorkerId> = cx
            .pool
            .spares()
            .filter(|w| !cx.pool.retained.contains_key(w.register.worker_id.as_str()))
            .map(Worker::id)
            .collect();
        let retained: BTreeSet<WorkerId> = cx.pool.retained.keys().cloned().collect();
        let queued: Vec<_> = jobs.values().filter(waits).map(|job| job.as_queued(&cx)).collect();
        let placed: Vec<_> =
            jobs.values().filter(|job| job.record().state.is_placed()).map(|job| job.as_placed()).collect();
        let suited = |id: &JobId| jobs.get(id).map_or_else(BTreeSet::new, |job| job.suited(cx.pool));
        scheduler::decide(&Situation {
            queued: &queued,
            placed: &placed,
            free: &free,
            retained: &retained,
            suited: &suited,
            policy: &cx.config.policy,
            at_least,
        })
    }

    fn act_on(&mut self, plan: Plan, now: Now) {
        let (jobs, mut cx) = self.split(now);
        for job in jobs.values_mut() {
            job.need_not_yield(&mut cx, |worker| plan.kept.contains(worker));
        }
        for Decision { job, action, reason } in plan.decisions {
            let Some(job) = jobs.get_mut(&job) else { continue };
            match action {
                Action::Start { .. } => unreachable!("whoever can start has started"),
                Action::Wait(wait) => job.wait(&mut cx, wait, &reason),
                Action::Shrink { dp, .. } => job.give_replicas(&mut cx, dp, &reason),
                Action::Stop { to } => job.give_way(&mut cx, Some(to), &reason),
            }
        }
    }

    /// Jobs with places: the highest priority first, then the oldest.
    fn placed_in_order(&self) -> Vec<(i32, JobId)> {
        let placed = self.jobs.values().map(|job| job.record()).filter(|record| record.state.is_placed());
        let mut order: Vec<_> = placed.map(|r| (std::cmp::Reverse(r.spec.priority), r.number, r.id.clone())).collect();
        order.sort();
        order.into_iter().map(|(priority, _, id)| (priority.0, id)).collect()
    }

    /// Whose state workers without a place still hold.
    fn note_retained(&mut self) {
        let mut retained: BTreeMap<WorkerId, JobId> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| !job.record().earlier.is_empty()) {
            let id = &job.record().id;
            retained.extend(job.retained_workers(&self.pool).map(|worker| (worker, id.clone())));
        }
        for job in self.jobs.values() {
            retained.extend(job.claimants().map(|worker| (worker.clone(), job.record().id.clone())));
        }
        self.pool.retained = retained;
    }
}
