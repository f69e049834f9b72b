//! The scheduler by itself: single decisions, and pools of random jobs in which nobody starves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use toroid_torus::ids::{JobId, WorkerId};

use crate::scheduler::{Action, Decision, Placed, Plan, Policy, Queued, Quotas, Situation, class, decide};

const AGING: Duration = Duration::from_secs(10);

fn policy() -> Policy {
    Policy { aging: AGING, ..Policy::default() }
}

fn workers(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<WorkerId> {
    numbers.into_iter().map(|n| WorkerId::from(format!("w{n:02}"))).collect()
}

fn queued(name: &str, number: u64, priority: i32, num_places: usize) -> Queued {
    let (job, user, asks) = (JobId::from(name), "ada".into(), String::new());
    Queued { job, number, user, priority, num_places, waited: Duration::ZERO, is_held: false, asks }
}

/// Elastic down to `min_dp`, with replicas of one worker.
fn placed(name: &str, number: u64, priority: i32, has: std::ops::Range<usize>, min_dp: usize) -> Placed {
    Placed {
        job: name.into(),
        number,
        user: "ada".into(),
        priority,
        class: i64::from(priority),
        num_places: has.len(),
        dp: has.len(),
        min_dp,
        replica: 1,
        workers: workers(has),
        num_missing: 0,
        is_yielding: false,
    }
}

/// Of a pool of `num` workers, those without a place being free.
fn plan(num: usize, queued: &[Queued], placed: &[Placed], policy: &Policy) -> Plan {
    let all = workers(0..num);
    let has_place = |w: &WorkerId| placed.iter().any(|p| p.workers.contains(w));
    let free = all.iter().filter(|w| !has_place(w)).cloned().collect();
    let suited = |_: &JobId| all.clone();
    let retained = BTreeSet::new();
    let (free, retained) = (&free, &retained);
    decide(&Situation { queued, placed, free, retained, suited: &suited, policy, at_least: None })
}

/// What is decided about each job, in short.
fn check(num: usize, queued: &[Queued], placed: &[Placed], policy: &Policy, expected: &[(&str, &str)]) -> Vec<String> {
    let plan = plan(num, queued, placed, policy);
    let in_short = |d: &Decision| match &d.action {
        Action::Start { .. } => "start".into(),
        Action::Wait(wait) => format!("{wait:?}"),
        Action::Shrink { dp, to } => format!("dp {dp} for {to}"),
        Action::Stop { to } => format!("stop for {to}"),
    };
    let found: Vec<(String, String)> = plan.decisions.iter().map(|d| (d.job.to_string(), in_short(d))).collect();
    let expected: Vec<(String, String)> = expected.iter().map(|(j, w)| (j.to_string(), w.to_string())).collect();
    assert_eq!(found, expected, "{plan:#?}");
    plan.decisions.into_iter().map(|d| d.reason).collect()
}

#[test]
fn a_job_of_a_higher_priority_shrinks_an_elastic_one_before_it_stops_any() {
    let high = [queued("high", 9, 5, 4)];
    // Two are free: the elastic one can spare the other two.
    let pool = [placed("fixed", 1, 0, 0..3, 3), placed("elastic", 2, 0, 3..6, 1)];
    let reasons = check(8, &high, &pool, &policy(), &[("elastic", "dp 1 for high"), ("high", "Preemption")]);
    assert_eq!(reasons[0], "gives 2 of its workers to high, whose priority 5 is higher than 0: it goes on with dp 1");
    assert_eq!(reasons[1], "needs 4 workers, 2 are free; elastic goes on with dp 1");
    // Never fewer than its `min_dp`: the newest of the lowest is stopped, and no other shrinks in vain.
    let pool = [placed("fixed", 1, 0, 0..3, 3), placed("elastic", 2, 0, 3..6, 2)];
    let reasons = check(8, &high, &pool, &policy(), &[("elastic", "stop for high"), ("high", "Preemption")]);
    assert!(reasons[0].contains("it is saved first, waits in the queue and goes on from there"), "{}", reasons[0]);
    // The lowest class first, whatever the age.
    let pool = [placed("low", 1, -1, 0..4, 4), placed("other", 2, 0, 4..8, 4)];
    check(8, &high, &pool, &policy(), &[("low", "stop for high"), ("high", "Preemption")]);
    // One that has waited for as many levels is stopped by nobody.
    let mut aged = placed("aged", 1, -1, 0..8, 1);
    aged.class = 5;
    check(8, &high, &[aged], &policy(), &[("high", "Workers")]);
}

#[test]
fn nobody_gives_anything_where_all_together_were_not_enough() {
    let pool = [placed("low", 1, 0, 0..4, 1), placed("same", 2, 5, 4..8, 1)];
    let reasons = check(8, &[queued("high", 9, 5, 6)], &pool, &policy(), &[("high", "Workers")]);
    assert_eq!(reasons[0], "needs 6 workers, 0 are free; same of the same priority runs");
    let reasons = check(8, &[queued("high", 9, 5, 9)], &pool, &policy(), &[("high", "Capacity")]);
    assert_eq!(reasons[0], "waits for workers: needs 9 workers, 8 are there");
    // Who is being saved already is enough.
    let mut saved = placed("low", 1, 0, 0..4, 4);
    saved.is_yielding = true;
    check(4, &[queued("high", 9, 5, 4)], &[saved], &policy(), &[("high", "Preemption")]);
}

#[test]
fn a_job_that_lost_a_worker_has_lower_ones_give_it_another() {
    let mut lost = placed("lost", 1, 2, 0..3, 3);
    lost.num_missing = 1;
    let low = placed("low", 2, 0, 3..6, 2);
    let reasons = check(6, &[], &[lost.clone(), low.clone()], &policy(), &[("low", "dp 2 for lost")]);
    assert_eq!(reasons[0], "gives 1 of its workers to lost, whose priority 2 is higher than 0: it goes on with dp 2");
    let fixed = placed("low", 2, 0, 3..6, 3);
    check(6, &[], &[lost.clone(), fixed], &policy(), &[("low", "stop for lost")]);
    check(6, &[], &[lost.clone(), placed("same", 2, 2, 3..6, 1)], &policy(), &[]);
    // Whoever waits with a lower priority does not take what is given to it.
    let mut yields = low.clone();
    yields.is_yielding = true;
    check(6, &[queued("small", 3, 1, 3)], &[lost.clone(), yields], &policy(), &[("small", "Workers")]);
    // Whoever waits with a higher one comes first.
    let jobs = [queued("high", 3, 5, 3)];
    check(6, &jobs, &[lost, low], &policy(), &[("low", "stop for high"), ("high", "Preemption")]);
}

#[test]
fn smaller_jobs_run_ahead_until_the_larger_one_has_waited_for_long() {
    let busy = [placed("busy", 1, 0, 0..3, 3)];
    let (mut large, small) = (queued("large", 2, 0, 4), queued("small", 3, 0, 1));
    let reasons =
        check(4, &[large.clone(), small.clone()], &busy, &policy(), &[("large", "Workers"), ("small", "start")]);
    assert_eq!(reasons[0], "needs 4 workers, 1 are free; busy of the same priority runs");
    large.waited = AGING;
    let jobs = [large.clone(), small.clone()];
    let reasons = check(4, &jobs, &busy, &policy(), &[("large", "Workers"), ("small", "Behind")]);
    assert!(reasons[0].ends_with("; no job behind it starts before it"), "{}", reasons[0]);
    assert_eq!(reasons[1], "waits behind large: needs 1 worker, 1 are free");
    // Nobody waits behind what cannot be, or may not.
    large.num_places = 5;
    check(4, &[large.clone(), small.clone()], &busy, &policy(), &[("large", "Capacity"), ("small", "start")]);
    (large.num_places, large.is_held) = (4, true);
    check(4, &[large, small], &busy, &policy(), &[("large", "Release"), ("small", "start")]);
}

#[test]
fn a_level_of_priority_is_worth_the_aging_time_of_waiting() {
    let (mut old, new) = (queued("old", 1, 0, 1), queued("new", 2, 1, 1));
    let first = |old: &Queued| plan(1, &[old.clone(), new.clone()], &[], &policy()).decisions[0].job.to_string();
    assert_eq!(first(&old), "new");
    old.waited = AGING;
    assert_eq!(first(&old), "old", "of two that stand alike the older");
    let s = Duration::from_secs;
    assert_eq!([class(3, s(9), &policy()), class(3, s(10), &policy()), class(-3, s(59), &policy())], [3, 4, 2]);
}

#[test]
fn a_quota_holds_its_users_jobs_back_and_nobody_elses() {
    let quotas = Quotas { default: Some(3), by_user: BTreeMap::from([("bob".into(), 6)]) };
    let policy = Policy { aging: AGING, quotas, ..Policy::default() };
    let runs = [placed("runs", 1, 0, 0..2, 2)];
    let (mut two, one) = (queued("two", 2, 0, 2), queued("one", 3, 0, 1));
    let of_bob = Queued { user: "bob".into(), ..queued("bob", 4, 0, 6) };
    let reasons = check(8, &[two.clone(), of_bob.clone()], &runs, &policy, &[("two", "Quota"), ("bob", "start")]);
    assert_eq!(reasons[0], "needs 2 workers; the quota of ada is 3 workers, 2 are in use");
    check(8, &[two.clone(), one.clone()], &runs, &policy, &[("two", "Quota"), ("one", "start")]);
    // Within a quota nobody starves either.
    two.waited = AGING;
    let reasons =
        check(8, &[two, one, of_bob], &runs, &policy, &[("two", "Quota"), ("one", "Quota"), ("bob", "start")]);
    assert_eq!(reasons[1], "waits behind two: the quota of ada, 3 workers, is kept for it");
}

/// A job of the model: it needs so many ticks with all its places, or fewer replicas.
#[derive(Debug, Clone)]
struct Task {
    arrives: u64,
    priority: i32,
    dp: usize,
    min_dp: usize,
    replica: usize,
    ticks: u64,
}

#[derive(Debug, Default)]
struct Progress {
    waited: u64,
    done: u64,
    class: i64,
    has: BTreeSet<WorkerId>,
    /// When its workers are free that it is to give.
    yields_at: Option<u64>,
    retained: Option<(u64, BTreeSet<WorkerId>)>,
    /// Ticks by which it must have started, once that is known.
    deadline: Option<u64>,
    dp: usize,
}

/// Saving a state, or splitting it anew.
const SAVE_TICKS: u64 = 2;
const MAX_PRIORITY: i32 = 3;
const MAX_TICKS: u64 = 12;

struct Model<'a> {
    num_workers: usize,
    tasks: &'a [Task],
    of: Vec<Progress>,
    now: u64,
}

impl Model<'_> {
    fn size(&self, n: usize) -> usize {
        self.tasks[n].dp * self.tasks[n].replica
    }

    fn name(n: usize) -> JobId {
        format!("job-{n:03}").into()
    }

    fn is_queued(&self, n: usize) -> bool {
        let (task, of) = (&self.tasks[n], &self.of[n]);
        task.arrives <= self.now && of.done < task.ticks && of.has.is_empty()
    }

    fn queued(&self) -> Vec<usize> {
        (0..self.tasks.len()).filter(|n| self.is_queued(*n)).collect()
    }

    fn placed(&self) -> Vec<usize> {
        (0..self.tasks.len()).filter(|n| !self.of[*n].has.is_empty()).collect()
    }

    /// Waiting and priority together: what its place in the queue follows from.
    fn rank(&self, n: usize) -> (i64, std::cmp::Reverse<usize>) {
        let aging = AGING.as_secs() as i64;
        (self.of[n].waited as i64 + i64::from(self.tasks[n].priority) * aging, std::cmp::Reverse(n))
    }

    fn as_queued(&self, n: usize) -> Queued {
        let waited = Duration::from_secs(self.of[n].waited);
        Queued { waited, ..queued(&Model::name(n), n as u64, self.tasks[n].priority, self.size(n)) }
    }

    fn as_placed(&self, n: usize) -> Placed {
        let (task, of) = (&self.tasks[n], &self.of[n]);
        Placed {
            job: Model::name(n),
            number: n as u64,
            user: "ada".into(),
            priority: task.priority,
            class: of.class,
            num_places: self.size(n),
            dp: of.dp,
            min_dp: task.min_dp,
            replica: task.replica,
            workers: of.has.clone(),
            num_missing: 0,
            is_yielding: of.yields_at.is_some(),
        }
    }

    fn free(&self) -> (BTreeSet<WorkerId>, BTreeSet<WorkerId>) {
        let retained: BTreeSet<WorkerId> =
            self.of.iter().filter_map(|of| of.retained.as_ref()).flat_map(|r| r.1.clone()).collect();
        let taken: BTreeSet<WorkerId> = self.of.iter().flat_map(|of| of.has.clone()).collect();
        let free = workers(0..self.num_workers).into_iter().filter(|w| !taken.contains(w) && !retained.contains(w));
        (free.collect(), retained)
    }

    /// Decides until nobody starts any more, and does it.
    fn schedule(&mut self) -> Result<(), TestCaseError> {
        loop {
            let queued: Vec<Queued> = self.queued().into_iter().map(|n| self.as_queued(n)).collect();
            let placed: Vec<Placed> = self.placed().into_iter().map(|n| self.as_placed(n)).collect();
            let ((free, retained), all, policy) = (self.free(), workers(0..self.num_workers), policy());
            let suited = |_: &JobId| all.clone();
            let (free, retained) = (&free, &retained);
            let plan = decide(&Situation {
                queued: &queued,
                placed: &placed,
                free,
                retained,
                suited: &suited,
                policy: &policy,
                at_least: None,
            });
            let Some(Decision { job, action: Action::Start { without }, .. }) = plan.decisions.last() else {
                return self.act_on(&plan);
            };
            let n = (0..self.tasks.len()).find(|n| Model::name(*n) == *job).expect("one of them");
            let may_have: BTreeSet<WorkerId> = free.difference(without).cloned().collect();
            self.start(n, &may_have)?;
        }
    }

    fn start(&mut self, n: usize, may_have: &BTreeSet<WorkerId>) -> Result<(), TestCaseError> {
        let size = self.size(n);
        prop_assert!(may_have.len() >= size, "a gang starts whole: {} of {size}", may_have.len());
        // The bound of backfill.
        let overtaken =
            self.queued().into_iter().filter(|j| self.rank(*j) > self.rank(n) && self.size(*j) <= self.num_workers);
        for j in overtaken {
            let waited = self.of[j].waited;
            prop_assert!(waited < AGING.as_secs(), "job {n} starts ahead of job {j}, which has waited for {waited}");
        }
        let of = &mut self.of[n];
        of.has = may_have.iter().take(size).cloned().collect();
        of.dp = self.tasks[n].dp;
        of.class = class(self.tasks[n].priority, Duration::from_secs(of.waited), &policy());
        of.deadline = None;
        Ok(())
    }

    fn act_on(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        let number = |job: &JobId| (0..self.tasks.len()).find(|n| Model::name(*n) == *job).expect("one of them");
        let acts: Vec<(usize, &Action)> = plan.decisions.iter().map(|d| (number(&d.job), &d.action)).collect();
        let reasons_are_there = plan.decisions.iter().all(|d| !d.reason.is_empty());
        prop_assert!(reasons_are_there, "{plan:?}");
        let takers: Vec<Option<usize>> = acts
            .iter()
            .map(|(_, action)| match action {
                Action::Shrink { to, .. } | Action::Stop { to } => Some(number(to)),
                _ => None,
            })
            .collect();
        for ((n, action), to) in acts.into_iter().zip(takers) {
            if let Some(to) = to {
                let (class, priority) = (self.of[n].class, i64::from(self.tasks[to].priority));
                prop_assert!(class < priority, "job {n} of class {class} gives to job {to} of priority {priority}");
            }
            let (task, of, at) = (&self.tasks[n], &mut self.of[n], self.now + SAVE_TICKS);
            match action {
                Action::Stop { .. } => of.yields_at = Some(at),
                Action::Shrink { dp, .. } => {
                    prop_assert!(*dp >= task.min_dp && *dp < of.dp, "job {n} goes on with dp {dp} of {}", of.dp);
                    if of.retained.is_none() {
                        let left = of.has.iter().rev().take((of.dp - dp) * task.replica).cloned().collect();
                        of.has = of.has.difference(&left).cloned().collect();
                        (of.dp, of.retained) = (*dp, Some((at, left)));
                    }
                }
                Action::Start { .. } | Action::Wait(_) => {}
            }
        }
        self.grow(plan.growth_floor);
        Ok(())
    }

    fn grow(&mut self, floor: Option<i64>) {
        for n in self.placed() {
            let (task, (free, _)) = (&self.tasks[n], self.free());
            let of = &mut self.of[n];
            let is_well = of.yields_at.is_none() && of.retained.is_none();
            if is_well && of.dp < task.dp && floor.is_none_or(|floor| i64::from(task.priority) > floor) {
                let num = (free.len() / task.replica).min(task.dp - of.dp);
                of.has.extend(free.into_iter().take(num * task.replica));
                of.dp += num;
            }
        }
    }

    fn tick(&mut self) -> Result<(), TestCaseError> {
        self.schedule()?;
        let aging = AGING.as_secs();
        for n in self.queued() {
            self.of[n].waited += 1;
            let (waited, highest) =
                (self.of[n].waited, u64::try_from(MAX_PRIORITY - self.tasks[n].priority).unwrap_or(0));
            if self.size(n) > self.num_workers {
                continue;
            }
            // From then on whoever comes is behind it, and nobody behind it starts.
            if waited >= (highest + 1) * aging && self.of[n].deadline.is_none() {
                let before = self.queued().into_iter().filter(|j| self.rank(*j) > self.rank(n)).count() as u64;
                let num = 1 + before + self.placed().len() as u64;
                self.of[n].deadline = Some(self.now + num * (MAX_TICKS + num * SAVE_TICKS) + SAVE_TICKS);
            }
            let is_late = self.of[n].deadline.is_some_and(|deadline| self.now > deadline);
            prop_assert!(!is_late, "job {n} starves: it has waited for {waited} ticks by tick {}", self.now);
        }
        self.now += 1;
        for n in self.placed() {
            let now = self.now;
            let (task, of) = (&self.tasks[n], &mut self.of[n]);
            of.done += u64::from(of.yields_at.is_none());
            of.retained.take_if(|(at, _)| *at <= now);
            let is_over = of.done >= task.ticks;
            if is_over || of.yields_at.is_some_and(|at| at <= now) {
                (of.yields_at, of.retained) = (None, None);
                of.has.clear();
            }
        }
        Ok(())
    }
}

/// A pool of so many workers, and jobs that come over time.
fn pools() -> impl Strategy<Value = (usize, Vec<Task>)> {
    let task = (0_u64..200, -MAX_PRIORITY..=MAX_PRIORITY, 1_usize..=4, 1_usize..=4, 1_usize..=2, 1..=MAX_TICKS);
    let task = task.prop_map(|(arrives, priority, dp, min_dp, replica, ticks)| Task {
        arrives,
        priority,
        dp,
        min_dp: min_dp.min(dp),
        replica,
        ticks,
    });
    (1_usize..=8, proptest::collection::vec(task, 1..80))
}

fn run(num_workers: usize, tasks: &[Task]) -> Result<u64, TestCaseError> {
    let of = tasks.iter().map(|_| Progress::default()).collect();
    let mut model = Model { num_workers, tasks, of, now: 0 };
    let fits = |n: &usize| tasks[*n].dp * tasks[*n].replica <= num_workers;
    let is_over = |model: &Model<'_>| (0..tasks.len()).filter(fits).all(|n| model.of[n].done >= tasks[n].ticks);
    while !is_over(&model) {
        model.tick()?;
        prop_assert!(model.now < 20_000, "it does not come to an end");
    }
    Ok(model.of.iter().map(|of| of.waited).max().unwrap_or(0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// The bounds that the scheduler's own documentation states, with preemption, shrinking and growing.
    #[test]
    fn no_job_starves_and_no_bound_is_broken((num_workers, tasks) in pools()) {
        run(num_workers, &tasks)?;
    }
}

#[test]
fn a_large_job_of_the_lowest_priority_gets_through_a_stream_of_small_ones_of_the_highest() {
    let small = |n: u64| Task { arrives: n, priority: MAX_PRIORITY, dp: 1, min_dp: 1, replica: 1, ticks: 4 };
    let large = Task { arrives: 1, priority: -MAX_PRIORITY, dp: 4, min_dp: 4, replica: 1, ticks: 12 };
    // More work comes all the time than the pool can do.
    let stream = (0..600).map(|n| small(n / 2));
    let tasks: Vec<Task> = std::iter::once(large).chain(stream).collect();
    let of = tasks.iter().map(|_| Progress::default()).collect();
    let mut model = Model { num_workers: 4, tasks: &tasks, of, now: 0 };
    while model.of[0].done < tasks[0].ticks {
        model.tick().unwrap_or_else(|e| panic!("{e}"));
        assert!(model.now < 1000, "it starves: {:?}", model.of[0]);
    }
    // (PRIORITY_MAX - p + 1) * aging, and what was before it by then.
    let bound = u64::try_from(2 * MAX_PRIORITY + 1).unwrap_or(0) * AGING.as_secs() + 80 * MAX_TICKS;
    assert!(model.of[0].waited <= bound, "{} of {bound}", model.of[0].waited);
}
