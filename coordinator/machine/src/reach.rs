//! Links between living workers that are not there: who is to blame (T-11).
//!
//! ```text
//!   PeerLost, Unreached ── collected for `Limits::link_grace` ──> one of both turned out dead: it was replaced
//!                                                            ├──> the one that is new or alone in it goes
//!                                                            └──> nobody can be told from the others: all begin again
//! ```
//!
//! A report names both ends, and either may be the cause. All reports of an epoch are weighed together, with those of the epochs before
//! in which no step was made since:
//!
//! - Where links could not be made, who is new to the job goes before who has made steps of it, unless the other has lost sight of an
//!   established worker, too: then the new one is not alone in it.
//! - Of two that are alike, the one that more others have no link with goes, then the one that nobody has ever reached, then the one that says
//!   nothing of the link, then the one that was called and did not answer.
//! - A link that broke once is only a broken link, and all begin again. A second time it is weighed.

use std::collections::{BTreeMap, BTreeSet};

use toroid_torus::ids::WorkerId;

use super::deadlines::{Deadline, Deadlines};
use super::job_context::{JobContext, Section};
use super::record::JobRecord;

/// Reports of one epoch, at most.
const MAX_REPORTS: usize = 4096;

/// What one end of a link says of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It was called and was not reached.
    NotReached,
    /// It was to call, and did not.
    NoCall,
    /// The link broke.
    Lost,
    /// What came was not what was sent.
    Damaged,
}

impl Fault {
    /// There has never been a link.
    fn is_absence(self) -> bool {
        matches!(self, Fault::NotReached | Fault::NoCall)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub by: WorkerId,
    pub of: WorkerId,
    pub fault: Fault,
    pub text: String,
}

/// Two workers that had no link in an epoch, by name.
type Pair = (WorkerId, WorkerId);

fn pair(a: &str, b: &str) -> Pair {
    if a < b { (a.into(), b.into()) } else { (b.into(), a.into()) }
}

/// What is known of links that are not there.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Of this epoch.
    reports: Vec<Report>,
    /// In how many epochs each pair had no link, since a step was made last.
    before: BTreeMap<Pair, u32>,
    /// Workers that had made steps of the job when a link of theirs was missed.
    established: BTreeSet<WorkerId>,
}

impl Section for Reach {
    type Fields<'a> = ();

    fn fields(_: &mut JobRecord) {}
}

/// The workers that lose their places because of missing links.
#[derive(Debug)]
pub(crate) struct Culprits {
    /// Workers, each with what is said of it.
    pub workers: Vec<(WorkerId, String)>,
    /// What was said first of all.
    pub first: Option<Report>,
}

impl Reach {
    /// One end of a link says that it is not there.
    pub fn missed(&mut self, cx: &mut JobContext<'_, '_, Reach>, report: Report) {
        let is_known = self.reports.iter().any(|r| r.by == report.by && r.of == report.of);
        if is_known || self.reports.len() >= MAX_REPORTS {
            return;
        }
        let at = cx.now() + cx.limits().link_grace();
        cx.deadlines().set_first(Deadline::Links, at);
        cx.event("link.lost", report.text.clone());
        self.reports.push(report);
    }

    /// An epoch begins: what was reported in the one before is over.
    pub fn begin_epoch(&mut self, deadlines: &mut Deadlines) {
        self.reports.clear();
        deadlines.clear(&Deadline::Links);
    }

    /// A step was made: all links are there.
    pub fn clear(&mut self, deadlines: &mut Deadlines) {
        *self = Reach::default();
        deadlines.clear(&Deadline::Links);
    }

    /// The worker has no place any more.
    pub fn forget(&mut self, deadlines: &mut Deadlines, worker: &str) {
        self.reports.retain(|r| r.by != worker && r.of != worker);
        if self.reports.is_empty() {
            deadlines.clear(&Deadline::Links);
        }
    }

    /// Neither end of a reported link turned out dead in time, so both are alive: decides who is to blame. `is_new`: the worker has made no step
    /// of the job, as it is remembered; `is_blamed_as_new`: the same for the decision.
    pub fn weigh(
        &mut self,
        is_new: impl Fn(&str) -> bool,
        is_blamed_as_new: impl Fn(&str) -> bool,
        was_reached: impl Fn(&str) -> bool,
    ) -> Culprits {
        let pairs: BTreeSet<Pair> = self.reports.iter().map(|r| pair(&r.by, &r.of)).collect();
        for ends in pairs {
            self.established.extend([&ends.0, &ends.1].into_iter().filter(|w| !is_new(w)).cloned());
            *self.before.entry(ends).or_insert(0) += 1;
        }
        Culprits { workers: self.culprits(is_blamed_as_new, was_reached), first: self.reports.first().cloned() }
    }

    fn partners<'a>(&'a self, worker: &'a str) -> impl Iterator<Item = &'a str> {
        self.before.keys().filter_map(move |(a, b)| match () {
            () if a == worker => Some(b.as_str()),
            () if b == worker => Some(a.as_str()),
            () => None,
        })
    }

    /// Every worker that this one has no link with has no link with some established worker either: it is not alone to blame.
    fn is_excused(&self, worker: &str) -> bool {
        let is_missed_by_another =
            |partner: &str| self.partners(partner).any(|other| other != worker && self.established.contains(other));
        self.partners(worker).all(is_missed_by_another)
    }

    /// The workers that lose their places, each with what is said of it. `is_new`: the worker has made no step of the job.
    fn culprits(&self, is_new: impl Fn(&str) -> bool, was_reached: impl Fn(&str) -> bool) -> Vec<(WorkerId, String)> {
        let mut open: Vec<&Report> = self.reports.iter().collect();
        let mut culprits = Vec::new();
        while let Some(worst) = self.worst(&open, &is_new, &was_reached) {
            let about = open.iter().find(|r| r.of == worst).or(open.iter().find(|r| r.by == worst));
            let text = about.map(|r| r.text.clone()).unwrap_or_default();
            open.retain(|r| r.by != worst && r.of != worst);
            culprits.push((worst, text));
        }
        culprits
    }

    fn worst(
        &self,
        open: &[&Report],
        is_new: &impl Fn(&str) -> bool,
        was_reached: &impl Fn(&str) -> bool,
    ) -> Option<WorkerId> {
        let is_guilty = |r: &&&Report| {
            let times = self.before.get(&pair(&r.by, &r.of)).copied().unwrap_or(0);
            let has_new = is_new(&r.by) || is_new(&r.of);
            let is_common = [&r.by, &r.of].into_iter().any(|w| self.partners(w).count() > 1);
            r.fault.is_absence() && (has_new || is_common) || times > 1
        };
        let ends: BTreeSet<&str> = open.iter().filter(is_guilty).flat_map(|r| [r.by.as_str(), r.of.as_str()]).collect();
        // Both ends wait for a link equally long: who says nothing of one that is not there hangs.
        let is_silent = |worker: &str| {
            let is_missed = open.iter().any(|r| r.of == *worker && r.fault.is_absence());
            is_missed && !open.iter().any(|r| r.by == *worker)
        };
        let weight = |worker: &&str| {
            let is_alone_and_new = is_new(worker) && !self.is_excused(worker);
            let num_called = open.iter().filter(|r| r.of == **worker && r.fault != Fault::NoCall).count();
            (is_alone_and_new, self.partners(worker).count(), !was_reached(worker), is_silent(worker), num_called)
        };
        ends.into_iter().max_by_key(weight).map(WorkerId::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports `by -> of` of one epoch, after `before` were missed; workers a to d are established, x to z new.
    fn check(before: &[(&str, &str)], reports: &[(&str, Fault, &str)], expected: &[&str]) {
        let is_new = |worker: &str| worker >= "x";
        let mut reach = Reach::default();
        let report = |(by, fault, of): &(&str, Fault, &str)| Report {
            by: (*by).into(),
            of: (*of).into(),
            fault: *fault,
            text: String::new(),
        };
        reach.reports = reports.iter().map(report).collect();
        let mut missed: Vec<Pair> = before.iter().map(|(a, b)| pair(a, b)).collect();
        let now: BTreeSet<Pair> = reach.reports.iter().map(|r| pair(&r.by, &r.of)).collect();
        missed.extend(now);
        for ends in missed {
            reach.established.extend([&ends.0, &ends.1].into_iter().filter(|w| !is_new(w)).cloned());
            *reach.before.entry(ends).or_insert(0) += 1;
        }
        let found: Vec<WorkerId> =
            reach.culprits(is_new, |worker| !is_new(worker)).into_iter().map(|(worker, _)| worker).collect();
        assert_eq!(found, expected, "{before:?} {reports:?}");
    }

    use Fault::{Damaged, Lost, NoCall, NotReached};

    #[test]
    fn t11_who_is_new_and_is_not_reached_goes_whoever_says_it() {
        check(&[], &[("a", NotReached, "x")], &["x"]);
        check(&[], &[("x", NotReached, "a")], &["x"]);
        check(&[], &[("a", NoCall, "x")], &["x"]);
        check(&[], &[("a", NotReached, "x"), ("x", NoCall, "a"), ("b", NotReached, "x")], &["x"]);
        check(&[], &[("a", NotReached, "x"), ("b", NotReached, "y")], &["y", "x"]);
    }

    #[test]
    fn t11_of_new_ones_the_one_that_more_miss() {
        check(&[], &[("x", NotReached, "z"), ("y", NotReached, "z")], &["z"]);
        check(&[], &[("z", NotReached, "x"), ("z", NotReached, "y")], &["z"]);
        check(&[], &[("x", NotReached, "y")], &["y"]);
        check(&[], &[("y", NotReached, "x"), ("x", NoCall, "y")], &["x"]);
        // x was replaced by y, and z does not reach that one either.
        check(&[("z", "x")], &[("z", NotReached, "y")], &["z"]);
    }

    /// Found by the simulation: the trainer of `a` hung while it was to connect.
    #[test]
    fn t11_of_two_that_are_alike_the_one_that_says_nothing() {
        check(&[("a", "b")], &[("b", NoCall, "a")], &["a"]);
        check(&[("a", "b")], &[("a", NoCall, "b")], &["b"]);
        check(&[("a", "b")], &[("a", NoCall, "b"), ("b", NotReached, "a")], &["a"]);
    }

    #[test]
    fn t11_one_broken_link_is_nobody_s_fault_and_an_established_one_gives_way_to_what_all_say() {
        check(&[], &[("a", Lost, "b")], &[]);
        check(&[], &[("a", Lost, "x")], &[]);
        check(&[], &[("a", Damaged, "b")], &[]);
        check(&[("a", "b")], &[("a", Damaged, "b")], &["b"]);
        check(&[], &[("a", NotReached, "b")], &[]);
        check(&[], &[("a", NotReached, "b"), ("c", NotReached, "b")], &["b"]);
        // b was replaced by x: what a has with both is a's.
        check(&[("a", "b"), ("a", "b")], &[("a", NotReached, "x")], &["a"]);
        // Others that are new and bad say nothing about an established one.
        check(&[("a", "x"), ("a", "y")], &[("a", NotReached, "z")], &["z"]);
    }
}
