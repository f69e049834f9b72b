//! Planned moves: a worker is to have no place any more.
//!
//! The place goes to a candidate by a healing epoch, as after a death: the shards come from the other holders, **no committed step
//! is lost, the step in flight is made again**. Two neighbours that are drained at once would take both holders of a shard away, so
//! the second waits until the first move is healed. The drained worker stays connected and keeps what it holds until then.
//!
//! A process that was drained is never given a place again; another process with the same worker id is.

use super::Job;
use crate::api::RequestError;
use crate::context::Context;
use crate::incidents::Sighting;
use crate::moves::Moved;
use crate::record::{SeenBy, Why};
use crate::recovery::Loss;
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::ids::{Rank, WorkerId};

/// What is done if no worker can take the place now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfNobody {
    /// The request is refused.
    Refuse,
    /// The place is moved as soon as a worker can take it.
    Wait,
}

impl Job {
    /// Moves the place of `rank`, or has it wait for what goes on; returns who takes it, if anyone does.
    pub fn drain(
        &mut self,
        cx: &mut Context<'_>,
        rank: Rank,
        why: &str,
        if_nobody: IfNobody,
    ) -> Result<Option<WorkerId>, RequestError> {
        let worker = self.core.record.worker_at(rank).cloned().unwrap_or_default();
        let refused = |reason: String| RequestError::Drain { worker: worker.clone(), reason };
        if !self.core.is_redundant() && if_nobody == IfNobody::Refuse {
            return Err(refused(format!(
                "{} keeps one copy of its state, so the steps since the last checkpoint would be lost; ask for a checkpoint \
                 (toroid checkpoint now) and stop the worker after it, or train with fault_tolerance.redundancy = true on more than one place",
                self.core.record.id
            )));
        }
        if if_nobody == IfNobody::Refuse && !self.has_candidate(cx.pool) {
            return Err(refused(format!(
                "no worker can take rank {rank} of {}; start one more and ask again",
                self.core.record.id
            )));
        }
        if !self.core.record.draining.contains(&worker) {
            self.core.record.edit(cx.out).draining.insert(worker.clone());
            self.core.worker_event(cx, "worker.draining", format!("{worker} (rank {rank}) {why}"), &worker);
        }
        self.recover(cx);
        if self.core.record.draining.contains(&worker) {
            // No worker can take the place now: the state is saved, even if other workers hold it too.
            self.checkpoints.want(Why::Leaving);
            self.name_steps(cx, false);
        }
        let now_there = self.core.record.worker_at(rank).cloned();
        Ok(now_there.filter(|w| *w != worker))
    }

    /// Empties the next place that is to be moved, if all is well and somebody can take it.
    pub(super) fn begin_drain(&mut self, cx: &mut Context<'_>) {
        if self.core.record.draining.is_empty()
            || !self.core.can_heal()
            || !self.core.is_whole()
            || self.incidents.is_open()
        {
            return;
        }
        if self.core.epoch.why_again().is_some() || !self.has_candidate(cx.pool) {
            return;
        }
        let draining = &self.core.record.draining;
        let Some(rank) = self.core.record.placed().find(|(_, w)| draining.contains(*w)).map(|(rank, _)| rank) else {
            return;
        };
        let record = self.core.record.edit(cx.out);
        let Some(worker) = record.places.set(rank, None) else { return };
        record.draining.remove(&worker);
        let host = cx.pool.get(&worker).map(|w| w.register.host.clone()).unwrap_or_default();
        cx.pool.set_place(&worker, None);
        cx.pool.retire(&worker);
        self.moves.add(worker.clone(), rank);
        let (by, why) = (SeenBy::Drain, "is drained".to_string());
        let cause = format!("{worker} (rank {rank}) {why}");
        self.core.worker_event(cx, "worker.drained", cause.clone(), &worker);
        let place = Some((rank, worker.clone()));
        self.incident_seen(cx, Sighting { by, cause, detect: std::time::Duration::ZERO, place });
        self.core.epoch.lose(Loss { rank, worker, host, by, why, had_spare: true });
    }

    /// Nothing that the moved workers hold is needed any more.
    pub(super) fn release_moved(&mut self, cx: &mut Context<'_>) {
        for Moved { worker, .. } in self.moves.take(|_| true) {
            self.stop_worker(cx, &worker, "its place was moved");
        }
    }

    /// Another holder was lost, so a moved worker may have the only copy of a shard. Those of the moved workers that `is_asked` names and that are
    /// still connected get their places back, unless the newcomer in it says that it has the shards by now; they are moved again once the job is
    /// whole. The copy of a worker without which an epoch was started may be behind: it is asked for only when the reports show that no other
    /// copy is left. Says whether any worker got its place back.
    pub(super) fn take_back_moved(&mut self, cx: &mut Context<'_>, is_asked: impl Fn(&Moved) -> bool) -> bool {
        let mut is_back = false;
        for Moved { worker, rank, .. } in self.moves.take(is_asked) {
            let has_state = self.core.epoch.prepared().get(&rank).is_some_and(|p| !p.held.is_empty());
            if has_state || cx.pool.get(&worker).is_none() {
                continue;
            }
            let newcomer = self.core.record.edit(cx.out).places.set(rank, Some(worker.clone()));
            let text = format!(
                "{worker} has rank {rank} again: what else there is of its shards was lost before they were copied"
            );
            if let Some(newcomer) = newcomer {
                self.stop_worker(cx, &newcomer, &text);
                cx.pool.set_place(&newcomer, None);
                self.core.worker_event(cx, "worker.displaced", text.clone(), &newcomer);
            }
            self.core.worker_event(cx, "worker.draining", text.clone(), &worker);
            self.core.epoch.begin_again(text);
            cx.pool.set_place(&worker, Some((self.core.record.id.clone(), rank)));
            let record = self.core.record.edit(cx.out);
            record.absent.remove(&rank);
            record.draining.insert(worker);
            is_back = true;
        }
        is_back
    }

    pub(super) fn stop_worker(&self, cx: &mut Context<'_>, worker: &str, reason: &str) {
        let Some(stream) = cx.pool.get(worker).map(|w| w.stream) else { return };
        let (job_id, epoch) = (self.core.record.id.to_string(), self.core.record.epoch.get());
        let reason = reason.to_string();
        cx.out.send(stream, Body::Stop(proto::Stop { job_id, epoch, reason }));
        // While it holds state it does not hear what a spare is asked: it is asked when it holds none.
        cx.pool.tell_to_stop(worker);
        cx.out.unsettled = true;
    }
}
