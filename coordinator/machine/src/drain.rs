//! Planned moves: a worker is to have no place any more.
//!
//! The place goes to a candidate by a healing epoch, as after a death: the shards come from the other holders, **no committed step
//! is lost, the step in flight is made again**. Two neighbours that are drained at once would take both holders of a shard away, so
//! the second waits until the first move is healed. The drained worker stays connected and keeps what it holds until then.
//!
//! A process that was drained is given nothing any more; another of the same worker id is.

use proto::coordinator_message::Body;
use toroid_proto as proto;

use super::incident::Sighting;
use super::job::{Job, Moved};
use super::pool::Standing;
use super::record::{SeenBy, Why};
use super::recovery::Loss;
use super::{Context, Machine, Now, Reply, RequestError, RequestId};

impl Machine {
    pub(super) fn drain(&mut self, request: RequestId, worker: &str, now: Now) {
        let reply = self.drain_worker(worker, "is drained: a user asked for it", Patience::None, now);
        self.out.reply(request, reply);
    }

    /// Ends the time for which a worker is put aside.
    pub(super) fn readmit(&mut self, request: RequestId, worker: &str) {
        let reply = self.pool.readmit(worker).map(|reason| Reply::Readmitted { reason }).map_err(|aside| {
            let aside = match aside.len() {
                0 => "nobody is".into(),
                n if n > MAX_NAMED => format!("the first of {n} are {}", aside[..MAX_NAMED].join(", ")),
                _ => format!("these are: {}", aside.join(", ")),
            };
            let is_retired = self.pool.get(worker).is_some_and(|w| self.pool.standing(w) == Standing::Retired);
            let worker = worker.to_string();
            if is_retired { RequestError::Retired { worker } } else { RequestError::NotAside { worker, aside } }
        });
        self.out.unsettled |= reply.is_ok();
        self.out.reply(request, reply);
    }

    pub(super) fn drain_worker(
        &mut self,
        worker: &str,
        why: &str,
        patience: Patience,
        now: Now,
    ) -> Result<Reply, RequestError> {
        let Some(place) = self.pool.get(worker).map(|w| w.place.clone()) else {
            let known: Vec<&str> = self.pool.iter().map(|w| w.register.worker_id.as_str()).take(MAX_NAMED).collect();
            let known = match known.len() {
                0 => "none is".into(),
                MAX_NAMED => format!("the first are {}", known.join(", ")),
                _ => format!("there are {}", known.join(", ")),
            };
            return Err(RequestError::UnknownWorker { worker: worker.into(), known });
        };
        let (jobs, mut cx) = self.split(now);
        let (job, replacement) = match place.and_then(|(job, rank)| Some((jobs.get_mut(&job)?, rank))) {
            Some((job, rank)) => (job.record.id.clone(), job.drain(&mut cx, rank, why, patience)?),
            None => {
                cx.pool.retire(worker);
                (String::new(), String::new())
            }
        };
        cx.out.unsettled = true;
        Ok(Reply::Drained { job, replacement })
    }
}

/// Where nobody can take the place now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Nothing is done.
    None,
    /// It is moved when somebody can.
    UntilOneComes,
}

/// Workers that an error names.
const MAX_NAMED: usize = 10;

impl Job {
    /// Moves the place of `rank`, or has it wait for what goes on; returns who takes it, or nothing.
    fn drain(
        &mut self,
        cx: &mut Context<'_>,
        rank: usize,
        why: &str,
        patience: Patience,
    ) -> Result<String, RequestError> {
        let worker = self.record.places[rank].clone().unwrap_or_default();
        let refused = |reason: String| RequestError::Drain { worker: worker.clone(), reason };
        if !self.is_redundant() && patience == Patience::None {
            return Err(refused(format!(
                "{} keeps one copy of its state, so the steps since the last checkpoint would be lost; ask for a checkpoint \
                 (toroid checkpoint now) and stop the worker after it, or train with fault_tolerance.redundancy = true on more than one place",
                self.record.id
            )));
        }
        if patience == Patience::None && self.candidates(cx.pool, 1).is_empty() {
            return Err(refused(format!(
                "no worker can take rank {rank} of {}; start one more and ask again",
                self.record.id
            )));
        }
        if self.record.draining.insert(worker.clone()) {
            self.worker_event(cx, "worker.draining", format!("{worker} (rank {rank}) {why}"), &worker);
        }
        self.recover(cx);
        if self.record.draining.contains(&worker) {
            // Nobody is there for it now: what it holds is saved, be it that others hold it, too.
            self.live.checkpoint.wanted.get_or_insert(Why::Leaving);
            self.plan_checkpoints(cx, false);
        }
        let now_there = self.record.places.get(rank).cloned().flatten();
        Ok(now_there.filter(|w| *w != worker).unwrap_or_default())
    }

    /// Empties the next place that is to be moved, if all is well and somebody can take it.
    pub fn begin_drain(&mut self, cx: &mut Context<'_>) {
        if self.record.draining.is_empty() || !self.can_heal() || !self.is_whole() || self.incidents.is_open() {
            return;
        }
        if self.live.begin_again.is_some() || self.candidates(cx.pool, 1).is_empty() {
            return;
        }
        let is_draining = |w: &Option<String>| w.as_ref().is_some_and(|w| self.record.draining.contains(w));
        let Some(rank) = self.record.places.iter().position(is_draining) else { return };
        let Some(worker) = self.record.places[rank].take() else { return };
        self.record.draining.remove(&worker);
        let host = cx.pool.get(&worker).map(|w| w.register.host.clone()).unwrap_or_default();
        cx.pool.set_place(&worker, None);
        cx.pool.retire(&worker);
        self.live.moved.push(Moved { worker: worker.clone(), rank, is_started: false });
        let (by, why) = (SeenBy::Drain, "is drained".to_string());
        let cause = format!("{worker} (rank {rank}) {why}");
        self.worker_event(cx, "worker.drained", cause.clone(), &worker);
        let place = Some((rank, worker.clone()));
        self.incident_seen(cx, Sighting { by, cause, detect: std::time::Duration::ZERO, place });
        self.live.losses.push(Loss { rank, worker, host, by, why, had_spare: true });
    }

    /// Nothing that the moved workers hold is needed any more.
    pub fn release_moved(&mut self, cx: &mut Context<'_>) {
        for Moved { worker, .. } in std::mem::take(&mut self.live.moved) {
            self.stop_worker(cx, &worker, "its place was moved");
        }
    }

    /// Another holder was lost: those of the moved workers that are still there have their places again, unless the newcomer says that
    /// it has its shards, since what a moved one holds may be the only copy. It is moved once the job is whole. Where an epoch was
    /// started without it, its copy may be behind: it is asked for only when the reports show that nothing else is left. Says whether
    /// there was one.
    pub fn take_back_moved(&mut self, cx: &mut Context<'_>, is_asked: impl Fn(&Moved) -> bool) -> bool {
        let mut is_back = false;
        let (asked, kept) =
            std::mem::take(&mut self.live.moved).into_iter().partition::<Vec<_>, _>(|moved| is_asked(moved));
        self.live.moved = kept;
        for Moved { worker, rank, .. } in asked {
            let has_state = self.live.prepared.get(&rank).is_some_and(|p| !p.held.is_empty());
            if has_state || cx.pool.get(&worker).is_none() {
                continue;
            }
            let newcomer = self.record.places[rank].replace(worker.clone());
            let text = format!(
                "{worker} has rank {rank} again: what else there is of its shards was lost before they were copied"
            );
            if let Some(newcomer) = newcomer {
                self.stop_worker(cx, &newcomer, &text);
                cx.pool.set_place(&newcomer, None);
                self.worker_event(cx, "worker.displaced", text.clone(), &newcomer);
            }
            self.worker_event(cx, "worker.draining", text.clone(), &worker);
            self.live.begin_again = Some(text);
            self.record.absent.remove(&rank);
            cx.pool.set_place(&worker, Some((self.record.id.clone(), rank)));
            self.record.draining.insert(worker);
            is_back = true;
        }
        is_back
    }

    pub fn stop_worker(&self, cx: &mut Context<'_>, worker: &str, reason: &str) {
        let Some(stream) = cx.pool.get(worker).map(|w| w.stream) else { return };
        let (job_id, epoch, reason) = (self.record.id.clone(), self.record.epoch, reason.to_string());
        cx.out.send(stream, Body::Stop(proto::Stop { job_id, epoch, reason }));
        // While it holds state it does not hear what a spare is asked: it is asked when it holds none.
        cx.pool.forget_proof(worker);
        cx.out.unsettled = true;
    }
}
