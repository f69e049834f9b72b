//! What goes wrong in a job: places that are lost, workers that fail, links that break, ranks that hang.
//!
//! Everything here leads to one of three: a place becomes empty ([`Job::lose`]), all begin the next epoch with the places they have
//! (`begin_again`), or the job has failed. Which workers take the empty places is decided when all of an input is known, see
//! [`super::recovery`].

use std::collections::BTreeSet;
use std::time::Duration;

use toroid_proto as proto;

use super::Context;
use super::fitness::Until;
use super::hang::{self, Verdict};
use super::incident::Sighting;
use super::job::{Job, Phase};
use super::record::{Deaths, Failures, SeenBy, State};
use super::recovery::Loss;
use super::resize::Patience;

/// A place that fails this often without the job getting any further ends the job.
pub(super) const MAX_FAILURES: u32 = 3;
/// Ranks that a text names one by one.
const MAX_NAMED: usize = 8;

/// Why a place is empty.
#[derive(Debug)]
pub(super) struct Cause {
    pub by: SeenBy,
    /// A verb phrase.
    pub why: String,
    /// Silence before it was seen.
    pub detect: Duration,
    /// Where the worker was, if it is not connected any more.
    pub host: Option<String>,
}

impl Cause {
    pub fn new(by: SeenBy, why: impl Into<String>) -> Cause {
        Cause { by, why: why.into(), detect: Duration::ZERO, host: None }
    }
}

impl SeenBy {
    /// The worker, its host or its network broke, as far as can be told.
    fn is_crash(self) -> bool {
        match self {
            SeenBy::StreamClosed | SeenBy::Silence | SeenBy::Registration | SeenBy::WorkerReport | SeenBy::WaitsFor => {
                true
            }
            SeenBy::CoordinatorRestart
            | SeenBy::PeerReport
            | SeenBy::Digests
            | SeenBy::Prepared
            | SeenBy::Drain
            | SeenBy::Left
            | SeenBy::Capacity => false,
        }
    }

    /// The process may live on with its state behind a broken network.
    fn may_come_back(self) -> bool {
        matches!(self, SeenBy::StreamClosed | SeenBy::Silence | SeenBy::CoordinatorRestart)
    }
}

impl Job {
    /// The place is empty from now on.
    pub fn lose(&mut self, cx: &mut Context<'_>, rank: usize, cause: Cause) {
        let Some(worker) = self.record.places.get_mut(rank).and_then(Option::take) else { return };
        self.stop_worker(cx, &worker, &cause.why);
        let Cause { by, why, detect, host } = cause;
        let had_spare = !self.candidates(cx.pool, 1).is_empty();
        let host = host.or(cx.pool.get(&worker).map(|w| w.register.host.clone())).unwrap_or_default();
        cx.pool.set_place(&worker, None);
        if by.may_come_back() {
            self.record.absent.insert(rank, worker.clone());
        }
        // Who was to end anyway has not crashed, however it ended in the end.
        let is_planned = self.record.draining.remove(&worker);
        self.live.awaited.remove(&rank);
        self.live.refusals.remove(&rank);
        self.live.reach.forget(&worker);
        self.live.established.remove(&worker);
        self.live.linked.remove(&worker);
        let text = format!("{worker} (rank {rank}) {why}");
        self.worker_event(cx, "worker.lost", text.clone(), &worker);
        self.incident_seen(cx, Sighting { by, cause: text, detect, place: Some((rank, worker.clone())) });
        if by.is_crash() && !is_planned {
            for text in cx.pool.crashed(&worker, &host, cx.now.monotonic) {
                self.worker_event(cx, "worker.aside", text, &worker);
            }
            self.count_death(cx, rank, &worker, &why);
        }
        self.live.losses.push(Loss { rank, worker, host, by, why, had_spare });
        self.live.patience = Patience::Idle;
        if self.live.phase == Phase::Preparing && self.can_heal() {
            self.take_back_moved(cx, |moved| !moved.is_started);
        }
        cx.out.unsettled = true;
    }

    /// A step that kills whoever computes it ends the job: places are computed by anyone in the same way.
    fn count_death(&mut self, cx: &mut Context<'_>, rank: usize, worker: &str, why: &str) {
        if self.live.phase != Phase::Started {
            return;
        }
        // After a restore earlier steps are made again: a death in one of those is not the later step's fault.
        let at_step = self.committed();
        self.record.deaths.retain(|_, d| d.at_step == at_step);
        let deaths = self.record.deaths.entry(rank).or_insert(Deaths { workers: BTreeSet::new(), at_step });
        deaths.workers.insert(worker.into());
        if deaths.workers.len() < MAX_FAILURES as usize {
            return;
        }
        let workers: Vec<&str> = deaths.workers.iter().map(String::as_str).collect();
        let reason = format!(
            "step {} ends whoever computes it as rank {rank}: {} were lost one after the other without a new step; the last, {worker}, {why}",
            at_step + 1,
            workers.join(", ")
        );
        self.end(cx, State::Failed, &reason);
    }

    /// All places stay filled, and the next epoch begins.
    pub fn begin_again(&mut self, cx: &mut Context<'_>, by: SeenBy, text: String) {
        self.incident_seen(cx, Sighting { by, cause: text.clone(), detect: Duration::ZERO, place: None });
        self.live.begin_again = Some(text);
        cx.out.unsettled = true;
    }

    pub fn failed(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Failed) {
        if message.fatal {
            return self.refused(cx, rank, &message.error);
        }
        if !message.corrupt_ranks.is_empty() {
            return self.corrupt_copies(cx, message);
        }
        if message.restore {
            return self.corrupted(cx, rank, &message.error);
        }
        let is_restored = |step: u64| step > 0 && step == self.record.restore_step && !self.can_heal();
        if is_restored(message.damaged_step) {
            return self.checkpoint_damaged(cx, rank, &message.error);
        }
        if is_restored(message.unreadable_step) {
            return self.checkpoint_unreadable(cx, rank, message);
        }
        self.place_failed(cx, rank, SeenBy::WorkerReport, &message.error);
    }

    /// The worker of a place says that it cannot do what the job needs. That is the job's fault only where nobody else can either (T-11).
    fn refused(&mut self, cx: &mut Context<'_>, rank: usize, error: &str) {
        if self.live.phase != Phase::Started {
            self.live.refusals.insert(rank, error.into());
            return self.weigh_refusals(cx);
        }
        let newcomers: Vec<usize> = (0..self.world()).filter(|r| self.is_newcomer(*r)).collect();
        if newcomers.is_empty() || newcomers.len() == self.world() {
            let reason = format!("{} cannot go on: {error}", self.describe(rank));
            return self.end(cx, State::Failed, &reason);
        }
        if newcomers.contains(&rank) {
            return self.lose_unfit(cx, rank, SeenBy::WorkerReport, format!("cannot fill its place: {error}"));
        }
        for newcomer in newcomers {
            let why = format!("cannot be worked with: {}: {error}", self.describe(rank));
            self.lose_unfit(cx, newcomer, SeenBy::WorkerReport, why);
        }
    }

    fn is_newcomer(&self, rank: usize) -> bool {
        self.record.places[rank].as_deref().is_some_and(|worker| self.is_new(worker))
    }

    /// Who cannot prepare goes as soon as another can. Where nobody of all places can, the job has failed.
    pub fn weigh_refusals(&mut self, cx: &mut Context<'_>) {
        let refusals = &self.live.refusals;
        let Some((first, error)) = refusals.first_key_value().map(|(rank, error)| (*rank, error.clone())) else {
            return;
        };
        if refusals.len() == self.world() {
            let reason = format!("{} cannot go on: {error}", self.describe(first));
            return self.end(cx, State::Failed, &reason);
        }
        let can_others = (0..self.world()).any(|rank| {
            let can = self.live.prepared.contains_key(&rank) || self.can_heal() && !self.is_newcomer(rank);
            can && !refusals.contains_key(&rank)
        });
        if can_others {
            for (rank, error) in std::mem::take(&mut self.live.refusals) {
                self.lose_unfit(cx, rank, SeenBy::Prepared, format!("cannot fill its place: {error}"));
            }
        }
    }

    /// The place is empty, and its worker is given none of this job for a while.
    fn lose_unfit(&mut self, cx: &mut Context<'_>, rank: usize, by: SeenBy, why: String) {
        let Some(worker) = self.record.places[rank].clone() else { return };
        self.mark_unfit(cx, &worker, &why, Until::Retry);
        self.lose(cx, rank, Cause::new(by, why));
    }

    /// The other copies are right: whoever holds a wrong one is replaced as if it had died, and its process is given nothing any more.
    fn corrupt_copies(&mut self, cx: &mut Context<'_>, message: &proto::Failed) {
        let ranks: BTreeSet<usize> = message.corrupt_ranks.iter().map(|r| *r as usize).collect();
        for rank in ranks {
            // Of several that saw it one was the first.
            let Some(worker) = self.record.places.get(rank).cloned().flatten() else { continue };
            cx.pool.retire(&worker);
            let who = self.describe(rank);
            self.event(cx, "state.corrupt", format!("silent corruption at {who}: {}", message.error));
            let why = format!("holds a wrong copy of a shard: {}", message.error);
            self.lose(cx, rank, Cause::new(SeenBy::Digests, why));
        }
    }

    /// What the places hold is not to be trusted: all go back to the newest checkpoint.
    fn corrupted(&mut self, cx: &mut Context<'_>, rank: usize, error: &str) {
        let text = format!("silent corruption: {}: {error}", self.describe(rank));
        if self.count_failure(rank) >= MAX_FAILURES {
            let reason =
                format!("rank {rank} failed {MAX_FAILURES} times in a row without a new step; the last: {text}");
            return self.end(cx, State::Failed, &reason);
        }
        self.record.has_state = false;
        self.event(cx, "state.corrupt", text.clone());
        self.begin_again(cx, SeenBy::Digests, text);
    }

    /// The worker of a place cannot go on, another may. Too often without getting any further: the job has failed.
    pub fn place_failed(&mut self, cx: &mut Context<'_>, rank: usize, by: SeenBy, error: &str) {
        let who = self.describe(rank);
        if self.count_failure(rank) >= MAX_FAILURES {
            let reason = format!(
                "rank {rank} failed {MAX_FAILURES} times in a row without a new step; the last, {who}: {error}"
            );
            return self.end(cx, State::Failed, &reason);
        }
        if let Some(worker) = self.record.places[rank].clone() {
            self.live.avoid.insert(worker);
        }
        self.lose(cx, rank, Cause::new(by, format!("failed: {error}")));
    }

    pub fn count_failure(&mut self, rank: usize) -> u32 {
        let at_step = self.record.high_step.max(self.committed());
        let failures = self.record.failures.entry(rank).or_insert(Failures { count: 0, at_step });
        if at_step > failures.at_step {
            *failures = Failures { count: 0, at_step };
        }
        failures.count += 1;
        failures.count
    }

    // ---------------------------------------------------------------------------------------------------------------- hangs

    /// Steps are to be committed now, or reports to come. Writing a checkpoint keeps nobody from it, and the last step is followed
    /// by none.
    pub fn hang_timeout(&self) -> Option<Duration> {
        let makes_steps = self.is_whole() && self.committed() < self.total() && !self.halts();
        let is_expected = self.is_preparing() || makes_steps;
        self.live.hang_at.filter(|_| is_expected)
    }

    fn is_preparing(&self) -> bool {
        self.live.phase == Phase::Preparing && self.live.awaited.is_empty()
    }

    /// An epoch begins: whoever does not turn to it has this long, what it computes in the older one included.
    pub fn expect_reports(&mut self, cx: &Context<'_>) {
        let limit = cx.config.limits.hang(self.live.progress.step_s());
        self.live.hang_at = Some(cx.now.monotonic + limit);
    }

    /// A step was committed, or an epoch began: the next step has this long.
    pub fn expect_progress(&mut self, cx: &Context<'_>) {
        let limit = cx.config.limits.hang(self.live.progress.step_s());
        // The first step of an epoch heals and connects, and a validation comes between two steps.
        let is_first = self.committed() == self.live.base_step;
        let validates = self.live.activity.iter().any(|a| a.operation.contains("valid"));
        let limit = if is_first || validates { 2 * limit } else { limit };
        // Who is missing is reported before anyone is taken to hang.
        let limit = if is_first { limit.saturating_add(cx.config.limits.connect()) } else { limit };
        self.live.hang_at = Some(cx.now.monotonic + limit);
    }

    pub fn tick_hang(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.monotonic;
        if self.hang_timeout().is_none_or(|at| now < at) {
            return;
        }
        let timeout = cx.config.limits.failure_timeout;
        self.live.hang_at = Some(now + timeout);
        if self.live.phase == Phase::Preparing {
            return self.tick_reports(cx);
        }
        let standings: Vec<hang::Standing> = self.live.activity.iter().map(|a| a.standing(now, timeout)).collect();
        match hang::culprit(&standings) {
            // The only place of a job, or all of them: nobody is left to wait.
            Verdict::Nobody if self.all_hang(cx) => {
                let why = format!("hangs in {}: no place does anything else any more", self.live.activity[0].operation);
                self.lose_hanging(cx, 0, why);
            }
            Verdict::Nobody => {}
            Verdict::Root { rank, waiters } => {
                let operation = &self.live.activity[rank].operation;
                let why = format!("hangs in {operation}: {} wait for it", in_words(&waiters));
                self.lose_hanging(cx, rank, why);
            }
            Verdict::Cycle { ranks } => {
                let text =
                    format!("{} wait for one another: nobody commits step {}", in_words(&ranks), self.committed() + 1);
                self.begin_again(cx, SeenBy::WaitsFor, text);
            }
        }
    }

    /// Preparing may take long where data is read for the first time or a checkpoint is, but gets on. Who does something else all the
    /// time hangs in it.
    fn tick_reports(&mut self, cx: &mut Context<'_>) {
        let (now, timeout) = (cx.now.monotonic, cx.config.limits.failure_timeout);
        for rank in 0..self.world() {
            let activity = &self.live.activity[rank];
            if self.live.prepared.contains_key(&rank) || self.live.refusals.contains_key(&rank) {
                continue;
            }
            let prepares = PREPARES.contains(&activity.operation.as_str());
            let limit = if prepares { cx.config.limits.prepare() } else { timeout };
            if activity.is_stuck(now, limit) {
                let epoch = self.record.epoch;
                let why = match prepares {
                    true => format!(
                        "hangs while it prepares for epoch {epoch}: nothing of it for {} s",
                        limit.as_secs_f64()
                    ),
                    false => format!("hangs in {}: it does not turn to epoch {epoch}", activity.operation),
                };
                self.lose_hanging(cx, rank, why);
            }
        }
    }

    /// Far beyond what any step takes: a machine that is slow for everyone is no reason for a new epoch.
    fn all_hang(&self, cx: &Context<'_>) -> bool {
        let limit = 2 * cx.config.limits.checkpoint();
        self.live.activity.iter().all(|a| a.waits_for.is_empty() && a.is_stuck(cx.now.monotonic, limit))
    }

    fn lose_hanging(&mut self, cx: &mut Context<'_>, rank: usize, why: String) {
        // It would be given work again that it does not do.
        if let Some(worker) = self.record.places[rank].as_deref() {
            cx.pool.retire(worker);
        }
        let detect = self.stalled_for(cx.now.monotonic);
        self.lose(cx, rank, Cause { detect, ..Cause::new(SeenBy::WaitsFor, why) });
    }

    /// Since the newest change of anybody's operation.
    fn stalled_for(&self, now: Duration) -> Duration {
        let newest = self.live.activity.iter().map(|a| a.since).max().unwrap_or(now);
        now.saturating_sub(newest)
    }
}

fn in_words(ranks: &[usize]) -> String {
    let named: Vec<String> = ranks.iter().take(MAX_NAMED).map(usize::to_string).collect();
    let more = if ranks.len() > MAX_NAMED { format!(" and {} more", ranks.len() - MAX_NAMED) } else { String::new() };
    format!("ranks {}{more}", named.join(", "))
}

/// What workers call it when they read data and make or load their state, and when another process of their host reads it for them:
/// that one's getting on is theirs.
const PREPARES: [&str; 2] = ["prepare", "wait for token file"];

/// What a rank said last that it does.
#[derive(Debug, Clone, Default)]
pub(super) struct Activity {
    pub operation: String,
    /// It said so first.
    pub since: Duration,
    pub waits_for: Vec<usize>,
    /// Of that operation.
    progress: u64,
}

impl Activity {
    pub fn update(&mut self, message: &proto::Heartbeat, now: Duration) {
        if self.operation != message.operation || self.progress != message.progress {
            self.operation.clone_from(&message.operation);
            self.progress = message.progress;
            self.since = now;
        }
        self.waits_for = message.waits_for.iter().map(|r| *r as usize).collect();
    }

    /// Who has not said in this epoch what it does may do anything.
    fn is_stuck(&self, now: Duration, limit: Duration) -> bool {
        !self.operation.is_empty() && now >= self.since + limit
    }

    fn standing(&self, now: Duration, limit: Duration) -> hang::Standing {
        hang::Standing { waits_for: self.waits_for.clone(), is_stuck: self.is_stuck(now, limit) }
    }
}
