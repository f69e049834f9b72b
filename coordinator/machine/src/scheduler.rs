//! Which jobs get workers, and who gives them some: one pure function from the pool's situation to decisions, each with its reason.
//!
//! ```text
//!   queued jobs, in order ──> enough workers that suit it are free ──> Start: all places at once, or none (gang)
//!                         ──> jobs of a lower priority could give enough ──> Shrink those that are elastic, only then Stop some
//!                         ──> else it waits; a smaller job may run ahead of it (backfill) until it has waited for `aging`
//! ```
//!
//! **Order.** A job's place in the queue is `waited + priority * aging`, the highest first, then the order of submission. While two jobs
//! wait, their order does not change: one level of priority is worth [`Policy::aging`] of waiting.
//!
//! **Bounds.** Of a job of priority `p` that fits the pool, is not held and whose user's quota has room:
//! - a job that is behind it in the order starts ahead of it only while it has waited for less than `aging`;
//! - a job that is submitted more than `(PRIORITY_MAX - p) * aging` after it is behind it in the order.
//!
//! So those that start ahead of it were submitted by then, and are finitely many. What it had waited when it was given its places counts as
//! priority against preemption (its *class*), so a job that waits for long enough is stopped by nobody any more.
//!
//! A job that lost a worker and finds no spare has jobs of a lower priority give one in the same way.
//!
//! Deliberately absent: which worker takes which place (`toroid_torus::placement`), and how a place that was lost is filled (`crate::recovery`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toroid_torus::failpoint;
use toroid_torus::ids::{JobId, WorkerId};

/// What a coordinator is told about its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// So much waiting is worth one level of priority; and so long smaller jobs may run ahead of a job that waits.
    pub aging: Duration,
    pub quotas: Quotas,
    /// Jobs of one user that have not ended, those that wait included.
    pub max_jobs: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { aging: Duration::from_secs(600), quotas: Quotas::default(), max_jobs: 1000 }
    }
}

/// Workers that the jobs of one user may have at a time; `None`: as many as there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of users who are not named, each.
    pub default: Option<usize>,
    pub by_user: BTreeMap<String, usize>,
}

impl Quotas {
    pub fn of(&self, user: &str) -> Option<usize> {
        self.by_user.get(user).copied().or(self.default)
    }
}

/// A job that has no places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub job: JobId,
    /// Order of submission.
    pub number: u64,
    pub user: String,
    pub priority: i32,
    /// It takes all of them at once, or none.
    pub num_places: usize,
    /// In all; time on hold left out.
    pub waited: Duration,
    /// A user holds it.
    pub is_held: bool,
    /// What it asks of its workers, in words: ` with gpu = h100`; empty: nothing.
    pub asks: String,
}

/// A job that has places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub job: JobId,
    pub number: u64,
    pub user: String,
    pub priority: i32,
    /// Its priority, and what it had waited for its places: only a job of a higher priority than this takes workers from it.
    pub class: i64,
    /// As many as it asks for, also while it has fewer: they count against the quota.
    pub num_places: usize,
    /// Replicas that it has, and the fewest that it goes on with; the same where it is not elastic.
    pub dp: usize,
    pub min_dp: usize,
    /// Workers of one replica.
    pub replica: usize,
    pub workers: BTreeSet<WorkerId>,
    /// Places that lost their workers, and that no free worker took.
    pub num_missing: usize,
    /// It is being saved, and gives all its workers back then.
    pub is_yielding: bool,
}

impl Placed {
    fn fewest(&self) -> usize {
        if failpoint!(ShrinkBelowMinDp) { 1 } else { self.min_dp }
    }
}

pub struct Situation<'a> {
    pub queued: &'a [Queued],
    pub placed: &'a [Placed],
    /// Workers without a place that may be given one.
    pub free: &'a BTreeSet<WorkerId>,
    /// Workers that keep state of a job which has shrunk until it has made a step: they are free then.
    pub retained: &'a BTreeSet<WorkerId>,
    /// Of all workers, with a place or without, those that may take a place of a queued job.
    pub suited: &'a dyn Fn(&JobId) -> BTreeSet<WorkerId>,
    pub policy: &'a Policy,
    /// Only jobs of at least this priority are to start now: who has a place of a lower one is served after them.
    pub at_least: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub job: JobId,
    pub action: Action,
    /// In plain words, for log, events and status.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It gets all its places, and none of these workers, which are kept for jobs before it.
    Start {
        without: BTreeSet<WorkerId>,
    },
    Wait(Wait),
    /// It goes on with so many replicas, for the sake of another job.
    Shrink {
        dp: usize,
        to: JobId,
    },
    /// It is saved, gives its workers to another job, and waits in the queue.
    Stop {
        to: JobId,
    },
}

/// What a queued job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// A user to release it.
    Release,
    /// Other jobs of its user to end.
    Quota,
    /// More workers to come than there are.
    Capacity,
    /// Others to end that it may not take workers from.
    Workers,
    /// Jobs before it in the order.
    Behind,
    /// Jobs of a lower priority to give it their workers.
    Preemption,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is done now, in this order, and what each queued job waits for. At most one start, the last: it changes the situation.
    pub decisions: Vec<Decision>,
    /// Workers that are kept for jobs which cannot have them yet: a job that yields and has none of them need not.
    pub kept: BTreeSet<WorkerId>,
    /// Only jobs of a higher priority than this may have more replicas again: others wait for the workers that are free.
    pub growth_floor: Option<i64>,
}

/// Where a job stands in the queue: the highest first.
fn rank(q: &Queued, policy: &Policy) -> (i128, std::cmp::Reverse<u64>) {
    let aging_ms = i128::from(u64::try_from(policy.aging.as_millis()).unwrap_or(u64::MAX));
    let waited_ms = i128::from(u64::try_from(q.waited.as_millis()).unwrap_or(u64::MAX));
    (waited_ms + i128::from(q.priority) * aging_ms, std::cmp::Reverse(q.number))
}

/// The class of a job that is given its places now.
pub fn class(priority: i32, waited: Duration, policy: &Policy) -> i64 {
    let levels = waited.as_millis() / policy.aging.as_millis().max(1);
    i64::from(priority).saturating_add(i64::try_from(levels).unwrap_or(i64::MAX))
}

pub fn decide(s: &Situation<'_>) -> Plan {
    let mut order: Vec<&Queued> = s.queued.iter().collect();
    order.sort_by_key(|q| std::cmp::Reverse(rank(q, s.policy)));
    let mut walk = Walk::new(s);
    // Whoever waits with a higher priority comes before a job that lost a worker.
    let highest = order.iter().filter(|q| !q.is_held).map(|q| q.priority).max();
    let (first, last): (Vec<&Placed>, Vec<&Placed>) =
        s.placed.iter().filter(|p| p.num_missing > 0).partition(|p| Some(p.priority) >= highest);
    first.into_iter().for_each(|p| walk.replace_lost(p));
    if !order.into_iter().any(|q| walk.visit(q)) {
        last.into_iter().for_each(|p| walk.replace_lost(p));
    }
    Plan { kept: walk.kept, ..walk.plan }
}

/// One way through the queue, in order.
struct Walk<'a> {
    s: &'a Situation<'a>,
    plan: Plan,
    /// Workers that are free, or will be: whoever comes first takes of them.
    soon: BTreeSet<WorkerId>,
    /// Kept for jobs that were visited.
    kept: BTreeSet<WorkerId>,
    /// The first of those.
    keeper: Option<&'a JobId>,
    /// Jobs that give all their workers, by decisions of this plan as well.
    stopped: BTreeSet<&'a JobId>,
    /// Replicas that others give, by decisions of this plan.
    shrunk: BTreeMap<&'a JobId, usize>,
    /// Places that each user's jobs have.
    used: BTreeMap<&'a str, usize>,
    /// Users whose quota is kept for a job that has waited for long.
    quota_kept: BTreeMap<&'a str, &'a JobId>,
    /// Of all that do not give their workers away already.
    lowest_class: Option<i64>,
    /// The highest class first, then the oldest.
    by_class: Vec<&'a Placed>,
}

impl<'a> Walk<'a> {
    fn new(s: &'a Situation<'a>) -> Walk<'a> {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        s.placed.iter().for_each(|p| *used.entry(&p.user).or_default() += p.num_places);
        let yielding = || s.placed.iter().filter(|p| p.is_yielding);
        let mut by_class: Vec<&Placed> = s.placed.iter().collect();
        by_class.sort_by_key(|p| (std::cmp::Reverse(p.class), p.number));
        let soon = s.retained.iter().chain(yielding().flat_map(|p| &p.workers)).cloned().collect();
        Walk {
            s,
            plan: Plan::default(),
            soon,
            kept: BTreeSet::new(),
            keeper: None,
            stopped: yielding().map(|p| &p.job).collect(),
            shrunk: BTreeMap::new(),
            used,
            quota_kept: BTreeMap::new(),
            lowest_class: s.placed.iter().filter(|p| !p.is_yielding).map(|p| p.class).min(),
            by_class,
        }
    }

    fn wait(&mut self, q: &Queued, wait: Wait, reason: String) -> bool {
        self.plan.decisions.push(Decision { job: q.job.clone(), action: Action::Wait(wait), reason });
        false
    }

    /// A job that lost workers has others give it as many, if they have a lower priority: it does not wait for a spare that may never come.
    fn replace_lost(&mut self, p: &'a Placed) {
        if p.is_yielding || self.s.at_least.is_some_and(|lowest| p.priority < lowest) {
            return;
        }
        let suited = (self.s.suited)(&p.job);
        let there = suited.iter().filter(|w| self.s.free.contains(*w) || self.soon.contains(*w));
        let there = there.filter(|w| !self.kept.contains(*w)).take(p.num_missing);
        let mut workers: Vec<WorkerId> = there.cloned().collect();
        if workers.len() < p.num_missing {
            let (job, user) = (p.job.clone(), p.user.clone());
            let (waited, is_held, asks) = (Duration::ZERO, false, String::new());
            let (number, priority, num_places) = (p.number, p.priority, p.num_missing);
            let claim = Queued { job, number, user, priority, num_places, waited, is_held, asks };
            let Some(given) = self.preempt(&claim, &suited, workers.len()) else { return };
            workers.extend(given.workers);
        }
        self.keep(&p.job, workers, i64::from(p.priority));
    }

    /// Decides about one job; says whether it starts, which ends the walk.
    fn visit(&mut self, q: &'a Queued) -> bool {
        let is_aged = q.waited >= self.s.policy.aging;
        if q.is_held {
            let reason = format!("is held by a user; `toroid release {}` lets it run", q.job);
            return self.wait(q, Wait::Release, reason);
        }
        if let Some(reason) = self.beyond_quota(q, is_aged) {
            return self.wait(q, Wait::Quota, reason);
        }
        let may_take = self.lowest_class.is_some_and(|class| class < i64::from(q.priority));
        if !may_take && self.s.free.is_subset(&self.kept) && self.soon.is_subset(&self.kept) && self.keeper.is_some() {
            let is_none_free = self.s.free.is_empty();
            let suited = if is_none_free { BTreeSet::new() } else { (self.s.suited)(&q.job) };
            return self.behind(q, suited.intersection(self.s.free).count());
        }
        let suited = (self.s.suited)(&q.job);
        if suited.len() < q.num_places {
            let (needs, found) = (needs(q), suited.len());
            return self.wait(q, Wait::Capacity, format!("waits for workers: {needs}, {found} are there"));
        }
        let open = |set: &BTreeSet<WorkerId>, kept: &BTreeSet<WorkerId>| -> BTreeSet<WorkerId> {
            suited.intersection(set).filter(|w| !kept.contains(*w)).cloned().collect()
        };
        let num_free = suited.intersection(self.s.free).count();
        let free = open(self.s.free, &self.kept);
        let is_served = self.s.at_least.is_none_or(|lowest| q.priority >= lowest);
        if free.len() >= q.num_places || failpoint!(StartPartOfGang) && !free.is_empty() {
            if is_served {
                let reason = format!("{}, {} are free", needs(q), free.len());
                let without = self.kept.clone();
                self.plan.decisions.push(Decision { job: q.job.clone(), action: Action::Start { without }, reason });
                return true;
            }
            // Its turn comes; those that are served now are before it, by priority.
            return self.wait(q, Wait::Workers, format!("{}, {num_free} are free", needs(q)));
        }
        let coming = open(&self.soon, &self.kept);
        if free.len() + coming.len() >= q.num_places {
            let reason = format!(
                "{}, {num_free} are free; {} more are saved first, and come then",
                needs(q),
                q.num_places - free.len()
            );
            self.keep(&q.job, free.into_iter().chain(coming), i64::from(q.priority));
            return self.wait(q, Wait::Preemption, reason);
        }
        if may_take && let Some(given) = self.preempt(q, &suited, free.len() + coming.len()) {
            let reason = format!("{}, {num_free} are free; {}", needs(q), given.in_words);
            self.keep(&q.job, free.into_iter().chain(coming).chain(given.workers), i64::from(q.priority));
            return self.wait(q, Wait::Preemption, reason);
        }
        if num_free >= q.num_places {
            return self.behind(q, num_free);
        }
        let reason = format!("{}, {num_free} are free{}", needs(q), self.why_not_more(q, is_aged));
        if is_aged {
            self.keep(&q.job, suited, i64::MAX);
        }
        self.wait(q, Wait::Workers, reason)
    }

    fn behind(&mut self, q: &Queued, num_free: usize) -> bool {
        let before = self.keeper.map_or("another job", |job| job.as_str());
        let reason = format!("waits behind {before}: {}, {num_free} are free", needs(q));
        self.wait(q, Wait::Behind, reason)
    }

    /// These are for `q` and for nobody behind it.
    fn keep(&mut self, job: &'a JobId, workers: impl IntoIterator<Item = WorkerId>, floor: i64) {
        self.kept.extend(workers);
        self.keeper.get_or_insert(job);
        self.plan.growth_floor = self.plan.growth_floor.max(Some(floor));
    }

    /// Why the quota of its user keeps a job waiting, if so. One that has waited for long is not overtaken by others of its user.
    fn beyond_quota(&mut self, q: &'a Queued, is_aged: bool) -> Option<String> {
        let quota = self.s.policy.quotas.of(&q.user)?;
        let used = self.used.get(q.user.as_str()).copied().unwrap_or(0);
        let whose = if q.user.is_empty() { "of users without a name".into() } else { format!("of {}", q.user) };
        if let Some(first) = self.quota_kept.get(q.user.as_str()) {
            return Some(format!("waits behind {first}: the quota {whose}, {quota} workers, is kept for it"));
        }
        if used + q.num_places <= quota {
            return None;
        }
        if is_aged && q.num_places <= quota {
            self.quota_kept.insert(&q.user, &q.job);
        }
        Some(format!("{}; the quota {whose} is {quota} workers, {used} are in use", needs(q)))
    }

    /// Has jobs of a lower priority give what `q` lacks: first those that are elastic some of their replicas, only then some of them all. If
    /// all of them together were not enough nobody gives anything.
    fn preempt(&mut self, q: &Queued, suited: &BTreeSet<WorkerId>, num_there: usize) -> Option<Given> {
        let mut victims: Vec<Victim<'a>> = Vec::new();
        for placed in self.s.placed {
            let workers: BTreeSet<WorkerId> = placed.workers.intersection(suited).cloned().collect();
            let is_lower = placed.class < i64::from(q.priority);
            if !is_lower || placed.job == q.job || self.stopped.contains(&placed.job) || workers.is_empty() {
                continue;
            }
            let dp = self.shrunk.get(&placed.job).copied().unwrap_or(placed.dp);
            victims.push(Victim { placed, workers, dp });
        }
        // The lowest first; of those the newest, which has the least to lose.
        victims.sort_by_key(|v| (v.placed.class, std::cmp::Reverse(v.placed.number)));
        let lacks = q.num_places - num_there;
        let shrinkable = |victims: &[Victim<'_>]| -> usize { victims.iter().map(Victim::num_elastic).sum() };
        // So many of the lowest are stopped, and others shrink.
        let num_stopped = (0..=victims.len()).find(|n| {
            let given: usize = victims[..*n].iter().map(Victim::num_all).sum();
            given + shrinkable(&victims[*n..]) >= lacks
        })?;
        let (stopped, others) = victims.split_at(num_stopped);
        // A lower one that is not needed after all, since a higher one gives more, goes on.
        let mut left = lacks.saturating_sub(shrinkable(others));
        let mut num_from: usize = stopped.iter().map(Victim::num_all).sum();
        let mut given = Given::default();
        for victim in stopped {
            if num_from - victim.num_all() >= left {
                num_from -= victim.num_all();
                continue;
            }
            self.stop(q, victim, &mut given);
        }
        left = lacks.saturating_sub(given.num);
        for victim in others {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(self.shrink(q, victim, left, &mut given));
        }
        Some(given)
    }

    fn stop(&mut self, q: &Queued, victim: &Victim<'a>, given: &mut Given) {
        let job = &victim.placed.job;
        let reason = format!(
            "gives its workers to {}, whose priority {} is higher than {}: it is saved first, waits in the queue and goes on from there",
            q.job, q.priority, victim.placed.class
        );
        self.plan.decisions.push(Decision { job: job.clone(), action: Action::Stop { to: q.job.clone() }, reason });
        self.stopped.insert(job);
        self.soon.extend(victim.placed.workers.iter().cloned());
        given.add(victim, victim.num_all(), format!("{job} is saved and gives its workers"));
    }

    /// Takes the fewest replicas that give `lacks`, or all that it can spare; says how many workers that are.
    fn shrink(&mut self, q: &Queued, victim: &Victim<'a>, lacks: usize, given: &mut Given) -> usize {
        let replica = victim.placed.replica.max(1);
        let num_replicas = lacks.div_ceil(replica).min(victim.num_replicas());
        if num_replicas == 0 {
            return 0;
        }
        let (job, dp) = (&victim.placed.job, victim.dp - num_replicas);
        let reason = format!(
            "gives {} of its workers to {}, whose priority {} is higher than {}: it goes on with dp {dp}",
            num_replicas * replica,
            q.job,
            q.priority,
            victim.placed.class
        );
        let action = Action::Shrink { dp, to: q.job.clone() };
        self.plan.decisions.push(Decision { job: job.clone(), action, reason });
        self.shrunk.insert(job, dp);
        given.add(victim, num_replicas * replica, format!("{job} goes on with dp {dp}"));
        num_replicas * replica
    }

    /// What a job that waits for workers is told beside their number.
    fn why_not_more(&self, q: &Queued, is_aged: bool) -> String {
        let num_higher = self.by_class.partition_point(|p| p.class >= i64::from(q.priority));
        let who = match &self.by_class[..num_higher] {
            [] => String::new(),
            [one] if one.class > i64::from(q.priority) => format!("; {} of higher priority runs", one.job),
            [one] => format!("; {} of the same priority runs", one.job),
            [first, more @ ..] => format!("; {} and {} more of no lower priority run", first.job, more.len()),
        };
        let turn = if is_aged { "; no job behind it starts before it" } else { "" };
        format!("{who}{turn}")
    }
}

/// `needs 8 workers with gpu = h100`.
fn needs(q: &Queued) -> String {
    let plural = if q.num_places == 1 { "" } else { "s" };
    format!("needs {} worker{plural}{}", q.num_places, q.asks)
}

/// A job of a lower priority, and its workers that are of use.
struct Victim<'a> {
    placed: &'a Placed,
    workers: BTreeSet<WorkerId>,
    /// Replicas that no job before has taken.
    dp: usize,
}

impl Victim<'_> {
    fn num_all(&self) -> usize {
        self.workers.len() * self.dp / self.placed.dp.max(1)
    }

    /// Replicas that it can spare. Which workers go is not decided here: where some are of no use to the other job, none are counted on.
    fn num_replicas(&self) -> usize {
        let are_all_suited = self.workers.len() == self.placed.workers.len();
        if are_all_suited { self.dp.saturating_sub(self.placed.fewest()) } else { 0 }
    }

    fn num_elastic(&self) -> usize {
        self.num_replicas() * self.placed.replica
    }
}

/// What others give to a job.
#[derive(Default)]
struct Given {
    num: usize,
    workers: Vec<WorkerId>,
    in_words: String,
}

impl Given {
    fn add(&mut self, victim: &Victim<'_>, num: usize, text: String) {
        self.num += num;
        self.workers.extend(victim.workers.iter().cloned());
        if !self.in_words.is_empty() {
            self.in_words += ", ";
        }
        self.in_words += &text;
    }
}
