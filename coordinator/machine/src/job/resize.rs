//! Fewer replicas where no worker takes a lost place, and more again when workers come (design section 5).
//!
//! ```text
//!   a place is empty, nobody takes it ── `Limits::replacement` ──> dp' = whole replicas that the living make: Shrink
//!   a job of a higher priority needs workers ([`crate::scheduler`]), all is well ──> Shrink
//!   fewer replicas than asked for, all is well, workers for one more that nobody waits for ──> Grow, by a fence as a drain does it
//! ```
//!
//! Either way the next epoch heals: the state lies as it was split for the shape before, and is split anew for the next
//! ([`toroid_torus::resplit`]). The samples of a step stay the same (T-5), and no committed step is lost.
//!
//! - **T-3** Shrinking never evicts the last holder of a shard. That holds for the present shape, and for each shape before it that the
//!   state may still be split for ([`Job::num_lost`]).
//! - **T-3** An evicted worker keeps its shards until a step is committed, and is the first candidate for a place that becomes empty before
//!   that: its shards may be the only copy by then.
//! - **T-2** Shrinking never evicts the only worker that is known to have committed the highest step ([`Job::num_behind`]).
//! - A job with one copy of its state does not change its shape: it would cost the steps since the last checkpoint, twice.
//!
//! Deliberately absent: changes of tp and pp. While a drained worker may have to take its place back nothing is shrunk.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Job;
use crate::context::Context;
use crate::incidents::Sighting;
use crate::pool::Pool;
use crate::record::{Layout, Rung, SeenBy, State};
use crate::recovery::{self, Source};
use toroid_proto as proto;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Rank, WorkerId};
use toroid_torus::placement::{self, Candidate, Placement};
use toroid_torus::resplit;

impl Job {
    /// The job's shape with so many replicas.
    fn shape_of(&self, dp: usize) -> Shape {
        let full = &self.core.record.spec.shape;
        if dp == full.dp() {
            return *full;
        }
        Shape::new(full.tp(), full.pp(), dp).expect("fewer replicas of a valid shape")
    }

    /// Places of one replica.
    fn replica(&self) -> usize {
        self.core.record.shape.tp() * self.core.record.shape.pp()
    }

    /// Places are empty and no worker can take them. Begins an epoch with fewer replicas if the wait for a worker is over and enough are left;
    /// otherwise returns what the job's reason says about it while it waits.
    pub(super) fn shrink(&mut self, cx: &mut Context<'_>, cause: &str) -> Result<(), String> {
        let (shape, min_dp) = (self.core.record.shape, self.core.record.spec.fault_tolerance.min_dp);
        if !self.core.is_redundant() || shape.dp() <= min_dp || !self.moves.is_empty() {
            return Err(String::new());
        }
        let limit = cx.config.limits.replacement();
        self.replacement.begin(&mut self.core.deadlines, cx.now.monotonic + limit);
        let survivors: BTreeSet<usize> = self.core.record.placed().map(|(rank, _)| rank.index()).collect();
        let candidates = self.candidates(cx.pool, self.core.world());
        let dp = (survivors.len() + candidates.len()) / self.replica();
        if dp < min_dp {
            return Err(format!("; dp {dp} would be fewer replicas than fault_tolerance.min_dp = {min_dp}"));
        }
        if !self.replacement.is_over() {
            return Err(format!("; without one it goes on with dp {dp} after {} s", limit.as_secs_f64()));
        }
        let to = self.shape_of(dp);
        let kept = resplit::keep(&shape, &to, &survivors, |kept| self.num_lost(kept) + self.num_behind(kept));
        let Some(kept) = kept else {
            return Err(format!("; with dp {dp} somebody would have no place who holds the only copy of a shard"));
        };
        let left: Vec<usize> = survivors.into_iter().filter(|r| !kept.contains(&Some(*r))).collect();
        let reason = format!(
            "{cause}; nobody came for it within {} s: the others go on with dp {dp} instead of {} and the same samples in every step, {}",
            limit.as_secs_f64(),
            shape.dp(),
            match self.source() {
                Source::Holders => "the shards are split anew".into(),
                source => recovery::source_in_words(source, 0),
            }
        );
        let rung = if matches!(self.source(), Source::Checkpoint { .. }) { Rung::Restore } else { Rung::Shrink };
        let placement = self.place_kept(cx, &to, &kept, &candidates);
        self.remember_layout(cx);
        for rank in left {
            self.displace(cx, Rank::new(rank), &format!("is a spare now: the others make {dp} whole replicas"));
        }
        self.begin_epoch(cx, to, placement, State::Recovering, &reason);
        self.incidents.fenced(&mut self.core.context(cx), rung, &reason);
        Ok(())
    }

    /// Nothing goes on beside training, so the shape may be changed at a step boundary.
    fn may_resize(&self) -> bool {
        self.core.can_heal()
            && self.core.committed() < self.core.total()
            && self.core.is_whole()
            && !self.incidents.is_open()
            && self.core.epoch.why_again().is_none()
            && self.moves.is_empty()
            && self.core.record.draining.is_empty()
            && self.core.record.earlier.is_empty()
            && self.core.record.yields.is_none()
    }

    /// Replicas that the job goes on with if workers are taken from it; as many as it has where it is not elastic.
    pub fn fewest_replicas(&self) -> usize {
        let dp = self.core.record.shape.dp();
        if self.core.is_redundant() { self.core.record.spec.fault_tolerance.min_dp.min(dp) } else { dp }
    }

    /// Goes on with `dp` replicas, or as few more than that as can be without giving the only copy of a shard away; the workers of the others
    /// are free once a step is made. Not now where something else goes on: the scheduler asks again.
    pub fn give_replicas(&mut self, cx: &mut Context<'_>, dp: usize, why: &str) {
        if !self.may_resize() {
            return;
        }
        let shape = self.core.record.shape;
        let all: BTreeSet<usize> = (0..shape.world()).collect();
        let kept_of = |dp: usize| {
            let to = self.shape_of(dp);
            let kept = resplit::keep(&shape, &to, &all, |kept| self.num_lost(kept) + self.num_behind(kept))?;
            Some((to, kept))
        };
        let Some((to, kept)) = (dp.max(1)..shape.dp()).find_map(kept_of) else { return };
        let reason = format!(
            "{why}; dp {} instead of {} and the same samples in every step, the shards are split anew",
            to.dp(),
            shape.dp()
        );
        let left: Vec<usize> = all.into_iter().filter(|r| !kept.contains(&Some(*r))).collect();
        let placement = self.place_kept(cx, &to, &kept, &[]);
        self.remember_layout(cx);
        for rank in left {
            self.displace(cx, Rank::new(rank), "is a spare now: its job has fewer replicas for a while");
        }
        let sighting = Sighting { by: SeenBy::Priority, cause: reason.clone(), detect: Duration::ZERO, place: None };
        self.core.event(cx, "job.shrunk", reason.clone());
        self.incident_seen(cx, sighting);
        self.begin_epoch(cx, to, placement, State::Recovering, &reason);
        self.incidents.fenced(&mut self.core.context(cx), Rung::Shrink, &reason);
        cx.out.unsettled = true;
    }

    /// Begins an epoch with more replicas, if the job has fewer than it asks for, all is well, and there are workers for at least one more.
    pub fn grow(&mut self, cx: &mut Context<'_>) {
        if !self.core.is_degraded() || !self.may_resize() {
            return;
        }
        let (shape, full) = (self.core.record.shape, self.core.record.spec.shape);
        let candidates = self.proven_candidates(cx.pool, full.world() - shape.world());
        let dp = ((shape.world() + candidates.len()) / self.replica()).min(full.dp());
        if dp <= shape.dp() {
            return;
        }
        let to = self.shape_of(dp);
        let all: BTreeSet<usize> = (0..shape.world()).collect();
        let kept = resplit::keep(&shape, &to, &all, |_| 0).expect("all keep a place");
        let reason = format!(
            "workers without a place are there, {} of them: dp {dp} instead of {}, the shards are split anew",
            candidates.len(),
            shape.dp()
        );
        let placement = self.place_kept(cx, &to, &kept, &candidates);
        self.remember_layout(cx);
        let sighting = Sighting { by: SeenBy::Capacity, cause: reason.clone(), detect: Duration::ZERO, place: None };
        self.incident_seen(cx, sighting);
        self.begin_epoch(cx, to, placement, State::Recovering, &reason);
        self.incidents.fenced(&mut self.core.context(cx), Rung::Grow, &reason);
    }

    /// `kept` has the present rank of every rank of `to` that is not empty; candidates take the others.
    fn place_kept(&self, cx: &Context<'_>, to: &Shape, kept: &[Option<usize>], candidates: &[Candidate]) -> Placement {
        let current: Vec<Option<WorkerId>> =
            kept.iter().map(|r| self.core.record.worker_at(Rank::new((*r)?)).cloned()).collect();
        placement::place(to, &current, candidates, &cx.pool.candidates()).expect("there are workers for every place")
    }

    /// Evicts the worker of this place. It keeps its shards until all places have the state as it is split next, if the others can still use
    /// them.
    fn displace(&mut self, cx: &mut Context<'_>, rank: Rank, why: &str) {
        let Some(worker) = self.core.record.edit(cx.out).places.set(rank, None) else { return };
        let text = format!("{worker} (rank {rank}) {why}");
        if !self.core.record.has_state {
            self.stop_worker(cx, &worker, &text);
        }
        cx.pool.set_place(&worker, None);
        self.core.worker_event(cx, "worker.displaced", text, &worker);
    }

    /// The state is split for the present shape until all have split it anew.
    fn remember_layout(&mut self, cx: &mut Context<'_>) {
        if self.core.record.has_state {
            let record = self.core.record.edit(cx.out);
            record.earlier.push(Layout { shape: record.shape, places: record.places.to_vec() });
        }
    }

    /// A step that kills the worker which computes it does so in any shape, and nobody knows which rank computes it in the new one. So every
    /// rank of the new shape gets the highest count of the old one.
    pub(super) fn carry_failures(&mut self, cx: &mut Context<'_>) {
        let all = Rank::all(self.core.world());
        let record = self.core.record.edit(cx.out);
        let deaths = record.deaths.values().max_by_key(|d| d.workers.len()).cloned();
        record.deaths = deaths.map_or_else(Default::default, |d| all.clone().map(|rank| (rank, d.clone())).collect());
        let failures = record.failures.values().max_by_key(|f| f.count).cloned();
        record.failures = failures.map_or_else(Default::default, |f| all.map(|rank| (rank, f.clone())).collect());
    }

    /// Workers without a place that still hold the state as it was split before.
    pub(super) fn retained(&self, pool: &Pool) -> BTreeSet<WorkerId> {
        let workers = self.core.record.earlier.iter().flat_map(|layout| layout.places.iter().flatten());
        let is_retained = |w: &&WorkerId| pool.get(w).is_some_and(|w| w.place.is_none());
        workers.filter(is_retained).cloned().collect()
    }

    /// A worker that registers had this place when the state was split as it may still be.
    pub fn had_before(&self, register: &proto::Register) -> bool {
        let is_rank = |layout: &Layout| layout.rank_of(&register.worker_id) == Some(Rank::from(register.rank));
        self.core.record.id == *register.job_id && self.core.record.earlier.iter().any(is_rank)
    }

    /// Lets evicted workers drop their shards: a step was committed, or all have finished, so every place knows that all have the state as it
    /// is split now; or the state is given up.
    pub(super) fn forget_earlier(&mut self, cx: &mut Context<'_>) {
        for worker in self.retained(cx.pool) {
            self.stop_worker(cx, &worker, "the state is split anew, and what it holds is not needed any more");
        }
        if !self.core.record.earlier.is_empty() {
            self.core.record.edit(cx.out).earlier.clear();
        }
    }

    /// 1 if none of these ranks is known to have committed the highest step although another rank is (the step would be made again), else 0.
    fn num_behind(&self, ranks: &BTreeSet<usize>) -> usize {
        let highest =
            |ranks: &mut dyn Iterator<Item = Rank>| ranks.map(|rank| self.core.epoch.committed_by(rank)).max();
        let mut survivors = self.core.record.placed().map(|(rank, _)| rank);
        usize::from(highest(&mut ranks.iter().copied().map(Rank::new)) < highest(&mut survivors))
    }

    /// Number of shards that would lose their last holder if only these ranks stayed: of the present shape, and of those before it that the
    /// state may still be split for.
    fn num_lost(&self, ranks: &BTreeSet<usize>) -> usize {
        let is_kept = |w: &str| self.core.record.rank_of(w).is_some_and(|rank| ranks.contains(&rank.index()));
        let present = Layout { shape: self.core.record.shape, places: self.core.record.places.to_vec() };
        let lost = |layout: &Layout| {
            let held = |is_there: &dyn Fn(&str) -> bool| {
                let by_rank = layout.places.iter().enumerate();
                let there = by_rank.filter(|(_, w)| w.as_deref().is_some_and(is_there));
                resplit::num_lost(&layout.shape, &there.map(|(rank, _)| rank).collect())
            };
            // What is lost already is no reason to keep anybody.
            if held(&|w| self.core.record.rank_of(w).is_some()) > 0 { 0 } else { held(&is_kept) }
        };
        self.core.record.earlier.iter().chain([&present]).map(lost).sum()
    }
}
