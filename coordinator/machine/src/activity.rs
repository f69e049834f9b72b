//! What each rank said last that it does, and whether one of them hangs.
//!
//! Steps are to be committed, or reports of what is prepared to come, by [`Deadline::Hang`]. When it passes, a rank that holds the others up
//! is looked for ([`super::hang`]).

use std::time::Duration;

use super::deadlines::Deadline;
use super::epoch::EpochPhase;
use super::hang::{self, Verdict};
use super::job_context::{Core, JobContext, Section};
use super::record::JobRecord;
use toroid_proto as proto;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::units;

/// Ranks that a text names one by one.
const MAX_NAMED: usize = 8;
/// What workers call it when they read data and make or load their state, and when another process of their host reads it for them:
/// that one's getting on is theirs.
const PREPARES: [&str; 2] = ["prepare", "wait for token file"];

/// What the ranks of a job do.
#[derive(Debug, Default)]
pub(crate) struct Activities {
    by_rank: Vec<Activity>,
    /// Of them, those that validate: asked for with every step, so it is not looked through.
    num_validating: usize,
}

impl Section for Activities {
    type Fields<'a> = ();

    fn fields(_: &mut JobRecord) {}
}

type Cx<'a, 'b> = JobContext<'a, 'b, Activities>;

/// What is to be done about ranks that hang.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hanging {
    /// These lose their places, each for its reason. `detect`: since the newest change of anybody's operation.
    Ranks { ranks: Vec<(Rank, String)>, detect: Duration },
    /// Ranks wait for one another, and all begin again.
    Cycle { text: String },
}

impl Activities {
    /// An epoch begins with these many places: nobody has said yet what it does.
    pub fn begin(&mut self, world: usize) {
        (self.by_rank, self.num_validating) = (vec![Activity::default(); world], 0);
    }

    pub fn heard(&mut self, rank: Rank, message: &proto::Heartbeat, now: Duration) {
        let activity = &mut self.by_rank[rank.index()];
        self.num_validating -= usize::from(activity.validates());
        activity.update(message, now);
        self.num_validating += usize::from(activity.validates());
    }

    /// An epoch begins: whoever does not turn to it has this long, what it computes in the older one included.
    pub fn expect_reports(&self, cx: &mut Cx<'_, '_>) {
        let at = cx.now() + cx.limits().hang(cx.curve.progress().step_s());
        cx.deadlines().set(Deadline::Hang, at);
    }

    /// How far the ranks say that they have written their shards of `step`.
    pub fn saving(&self, step: Step) -> impl Iterator<Item = (Rank, proto::ShardProgress)> {
        let of_step = move |saving: &proto::ShardProgress| saving.step == step.get();
        let ranks = self.by_rank.iter().enumerate();
        ranks.filter_map(move |(rank, activity)| Some((Rank::new(rank), activity.saving.filter(of_step)?)))
    }

    /// A step was committed, or an epoch began: the next step has this long.
    pub fn expect_progress(&self, cx: &mut Cx<'_, '_>) {
        let limit = cx.limits().hang(cx.curve.progress().step_s());
        // The first step of an epoch heals and connects, and a validation comes between two steps.
        let is_first = cx.committed() == cx.epoch.base_step();
        let limit = if is_first || self.num_validating > 0 { 2 * limit } else { limit };
        // Who is missing is reported before anyone is taken to hang.
        let limit = if is_first { limit.saturating_add(cx.limits().connect()) } else { limit };
        let at = cx.now() + limit;
        cx.deadlines().set(Deadline::Hang, at);
    }

    /// Steps are to be committed now, the last validation to be made, or reports to come. Writing a checkpoint keeps nobody from it. `halt`: the step
    /// beyond which none is made.
    pub fn counts(core: &Core, halt: Option<Step>) -> bool {
        let trains = match halt {
            Some(halt) => core.committed() < halt,
            None => core.epoch.num_finished() < core.world(),
        };
        core.epoch.is_preparing() || core.is_whole() && trains
    }

    /// Nothing came for as long as it may take.
    pub fn hang_passed(&self, cx: &mut Cx<'_, '_>) -> Option<Hanging> {
        let (now, timeout) = (cx.now(), cx.limits().failure_timeout);
        cx.deadlines().set(Deadline::Hang, now + timeout);
        let detect = self.stalled_for(now);
        if cx.epoch.phase() == EpochPhase::Preparing {
            return Some(Hanging::Ranks { ranks: self.unprepared(cx), detect });
        }
        let statuses: Vec<hang::RankStatus> = self.by_rank.iter().map(|a| a.status(now, timeout)).collect();
        match hang::culprit(&statuses) {
            // The only place of a job, or all of them: nobody is left to wait.
            Verdict::Nobody if self.all_hang(cx) => {
                let why = format!("hangs in {}: no place does anything else any more", self.by_rank[0].operation);
                Some(Hanging::Ranks { ranks: vec![(Rank::ZERO, why)], detect })
            }
            Verdict::Nobody => None,
            Verdict::Root { rank, waiters } => {
                let operation = &self.by_rank[rank.index()].operation;
                let why =
                    format!("hangs in {operation}: {} wait for it{}", in_words(&waiters), self.chain(rank, &waiters));
                Some(Hanging::Ranks { ranks: vec![(rank, why)], detect })
            }
            Verdict::Cycle { ranks } => {
                let step = cx.committed().next();
                let text = format!("{} wait for one another: nobody commits step {step}", in_words(&ranks));
                Some(Hanging::Cycle { text })
            }
        }
    }

    /// Who of those who wait for `root` waits for whom, where that is not all of them for it alone.
    fn chain(&self, root: Rank, waiters: &[Rank]) -> String {
        let waits_for = |rank: &Rank| &self.by_rank[rank.index()].waits_for;
        if waiters.iter().all(|rank| *waits_for(rank) == [root]) {
            return String::new();
        }
        let link = |rank: &Rank| format!("{rank} for {}", units::names(waits_for(rank), MAX_NAMED));
        format!(" ({})", units::names(waiters.iter().map(link), MAX_NAMED))
    }

    /// Preparing may take long where data is read for the first time or a checkpoint is, but gets on. Who does something else all the
    /// time hangs in it.
    fn unprepared(&self, cx: &Cx<'_, '_>) -> Vec<(Rank, String)> {
        let (epoch, limits) = (cx.record.epoch, cx.limits());
        let has_reported = |rank: Rank| cx.epoch.has_prepared(rank) || cx.epoch.refusals().contains_key(&rank);
        let why = |rank: Rank| {
            let activity = &self.by_rank[rank.index()];
            let prepares = PREPARES.contains(&activity.operation.as_str());
            let limit = if prepares { limits.prepare() } else { limits.failure_timeout };
            activity.is_stuck(cx.now(), limit).then(|| match prepares {
                true => {
                    format!("hangs while it prepares for epoch {epoch}: nothing of it for {} s", limit.as_secs_f64())
                }
                false => format!("hangs in {}: it does not turn to epoch {epoch}", activity.operation),
            })
        };
        let unreported = Rank::all(cx.world()).filter(|rank| !has_reported(*rank));
        unreported.filter_map(|rank| Some((rank, why(rank)?))).collect()
    }

    /// Far beyond what any step takes: a machine that is slow for everyone is no reason for a new epoch.
    fn all_hang(&self, cx: &Cx<'_, '_>) -> bool {
        let limit = 2 * cx.limits().checkpoint();
        self.by_rank.iter().all(|a| a.waits_for.is_empty() && a.is_stuck(cx.now(), limit))
    }

    /// Since the newest change of anybody's operation.
    fn stalled_for(&self, now: Duration) -> Duration {
        let newest = self.by_rank.iter().map(|a| a.since).max().unwrap_or(now);
        now.saturating_sub(newest)
    }
}

fn in_words(ranks: &[Rank]) -> String {
    format!("ranks {}", units::names(ranks, MAX_NAMED))
}

/// What a rank said last that it does.
#[derive(Debug, Clone, Default)]
struct Activity {
    operation: String,
    /// It said so first.
    since: Duration,
    waits_for: Vec<Rank>,
    /// Of that operation.
    progress: u64,
    /// Of the shard that it writes.
    saving: Option<proto::ShardProgress>,
}

impl Activity {
    fn update(&mut self, message: &proto::Heartbeat, now: Duration) {
        self.saving = message.saving;
        if self.operation != message.operation || self.progress != message.progress {
            self.operation.clone_from(&message.operation);
            self.progress = message.progress;
            self.since = now;
        }
        self.waits_for = message.waits_for.iter().map(|r| Rank::from(*r)).collect();
    }

    fn validates(&self) -> bool {
        self.operation.contains("valid")
    }

    /// Who has not said in this epoch what it does may do anything.
    fn is_stuck(&self, now: Duration, limit: Duration) -> bool {
        !self.operation.is_empty() && now >= self.since + limit
    }

    fn status(&self, now: Duration, limit: Duration) -> hang::RankStatus {
        hang::RankStatus { waits_for: self.waits_for.clone(), is_stuck: self.is_stuck(now, limit) }
    }
}
