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
//! - Of two that are alike, the one that more others have no link with goes, then the one that nobody has ever reached, then the one that was
//!   called and did not answer.
//! - A link that broke once is only a broken link, and all begin again. A second time it is weighed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toroid_proto as proto;
use toroid_torus::failpoint;

use super::Context;
use super::failures::{Cause, MAX_FAILURES};
use super::fitness::Until;
use super::job::{Job, Phase};
use super::record::SeenBy;

/// Reports of one epoch, at most.
const MAX_REPORTS: usize = 4096;

/// What one end of a link says of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
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
pub(super) struct Report {
    pub by: String,
    pub of: String,
    pub fault: Fault,
    pub text: String,
}

/// Two workers that had no link in an epoch, by name.
type Pair = (String, String);

fn pair(a: &str, b: &str) -> Pair {
    if a < b { (a.into(), b.into()) } else { (b.into(), a.into()) }
}

/// What is known of links that are not there.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Of this epoch.
    reports: Vec<Report>,
    /// They are weighed then.
    pub until: Option<Duration>,
    /// In how many epochs each pair had no link, since a step was made last.
    before: BTreeMap<Pair, u32>,
    /// Workers that had made steps of the job when a link of theirs was missed.
    established: BTreeSet<String>,
}

impl Reach {
    fn report(&mut self, report: Report) -> bool {
        let is_known = self.reports.iter().any(|r| r.by == report.by && r.of == report.of);
        let is_taken = !is_known && self.reports.len() < MAX_REPORTS;
        if is_taken {
            self.reports.push(report);
        }
        is_taken
    }

    /// An epoch begins: what was reported in the one before is over.
    pub fn begin_epoch(&mut self) {
        self.reports.clear();
        self.until = None;
    }

    /// A step was made: all links are there.
    pub fn clear(&mut self) {
        *self = Reach::default();
    }

    /// The worker has no place any more.
    pub fn forget(&mut self, worker: &str) {
        self.reports.retain(|r| r.by != worker && r.of != worker);
        if self.reports.is_empty() {
            self.until = None;
        }
    }

    fn partners<'a>(&'a self, worker: &'a str) -> impl Iterator<Item = &'a str> {
        self.before.keys().filter_map(move |(a, b)| match () {
            () if a == worker => Some(b.as_str()),
            () if b == worker => Some(a.as_str()),
            () => None,
        })
    }

    /// Whoever it has no link with has none with an established worker either.
    fn is_excused(&self, worker: &str) -> bool {
        let is_missed_by_another =
            |partner: &str| self.partners(partner).any(|other| other != worker && self.established.contains(other));
        self.partners(worker).all(is_missed_by_another)
    }

    /// Who goes, with what is said of it. `is_new`: it has made no step of the job.
    fn culprits(&self, is_new: impl Fn(&str) -> bool, was_reached: impl Fn(&str) -> bool) -> Vec<(String, String)> {
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
    ) -> Option<String> {
        let is_guilty = |r: &&&Report| {
            let times = self.before.get(&pair(&r.by, &r.of)).copied().unwrap_or(0);
            let has_new = is_new(&r.by) || is_new(&r.of);
            let is_common = [&r.by, &r.of].into_iter().any(|w| self.partners(w).count() > 1);
            r.fault.is_absence() && (has_new || is_common) || times > 1
        };
        let ends: BTreeSet<&str> = open.iter().filter(is_guilty).flat_map(|r| [r.by.as_str(), r.of.as_str()]).collect();
        let weight = |worker: &&str| {
            let is_alone_and_new = is_new(worker) && !self.is_excused(worker);
            let num_called = open.iter().filter(|r| r.of == **worker && r.fault != Fault::NoCall).count();
            (is_alone_and_new, self.partners(worker).count(), !was_reached(worker), num_called)
        };
        ends.into_iter().max_by_key(weight).map(str::to_string)
    }
}

impl Job {
    pub fn peer_lost(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::PeerLost) {
        let fault = if message.damaged { Fault::Damaged } else { Fault::Lost };
        self.link_missed(cx, rank, message.rank as usize, fault, &message.error);
    }

    pub fn unreached(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Unreached) {
        for peer in &message.peers {
            let fault = if peer.called { Fault::NotReached } else { Fault::NoCall };
            self.link_missed(cx, rank, peer.rank as usize, fault, &peer.reason);
        }
    }

    fn link_missed(&mut self, cx: &mut Context<'_>, rank: usize, peer: usize, fault: Fault, error: &str) {
        let whole = self.record.places.iter().all(Option::is_some);
        if peer >= self.world() || peer == rank || !whole || self.live.phase != Phase::Started {
            return;
        }
        let what = match fault {
            Fault::NotReached => "does not reach",
            Fault::NoCall => "is not called by",
            Fault::Lost => "lost its link to",
            Fault::Damaged => "had damaged frames from",
        };
        let text = format!("{} {what} {}: {error}", self.describe(rank), self.describe(peer));
        let (by, of) = (self.record.places[rank].clone(), self.record.places[peer].clone());
        let (Some(by), Some(of)) = (by, of) else { return };
        if self.live.reach.report(Report { by, of, fault, text: text.clone() }) {
            let until = cx.now.monotonic + cx.config.limits.link_grace();
            self.live.reach.until.get_or_insert(until);
            self.event(cx, "link.lost", text);
        }
    }

    /// Both ends of what was reported are still connected.
    pub fn tick_reach(&mut self, cx: &mut Context<'_>) {
        if self.live.reach.until.is_none_or(|at| cx.now.monotonic < at) {
            return;
        }
        let mut reach = std::mem::take(&mut self.live.reach);
        reach.until = None;
        let pairs: BTreeSet<Pair> = reach.reports.iter().map(|r| pair(&r.by, &r.of)).collect();
        for ends in pairs {
            reach.established.extend([&ends.0, &ends.1].into_iter().filter(|w| !self.is_new(w)).cloned());
            *reach.before.entry(ends).or_insert(0) += 1;
        }
        let is_new = |worker: &str| self.is_new(worker) != failpoint!(BlameTheInnocent);
        let culprits = reach.culprits(is_new, |worker| self.live.linked.contains(worker));
        let first = reach.reports.first().cloned();
        self.live.reach = reach;
        let mut has_lost = false;
        for (worker, text) in culprits {
            let Some(rank) = self.record.rank_of(&worker) else { continue };
            // An established worker gives way only to another.
            if !self.is_new(&worker) && self.candidates(cx.pool, 1).is_empty() {
                continue;
            }
            let why =
                format!("has no link with others: {text}; look at the address that it is dialled at (--advertise)");
            self.mark_unfit(cx, &worker, &why, Until::Retry);
            self.lose(cx, rank, Cause::new(SeenBy::PeerReport, why));
            has_lost = true;
        }
        if let Some(report) = first.filter(|_| !has_lost) {
            self.begin_again_without(cx, &report);
        }
    }

    /// Only the link is broken, as far as can be told.
    fn begin_again_without(&mut self, cx: &mut Context<'_>, report: &Report) {
        let text = format!("{}; both are alive", report.text);
        let Some(rank) = self.record.rank_of(&report.of) else { return };
        if self.count_failure(rank) >= MAX_FAILURES {
            let reason = format!("links to rank {rank} broke {MAX_FAILURES} times without a new step: {text}");
            return self.end(cx, super::record::State::Failed, &reason);
        }
        self.begin_again(cx, SeenBy::PeerReport, text);
    }

    /// The worker has made no step of this job.
    pub fn is_new(&self, worker: &str) -> bool {
        !self.live.established.contains(worker)
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
        let found: Vec<String> =
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
