//! Workers whose address is their own machine's loopback, beside workers of other machines.
//!
//! A worker that reaches its coordinator over the loopback listens there. That is right where all are on one machine. Where others are
//! not, they would dial themselves: it is found before anybody is given a place, and named with the flag that mends it.

use std::collections::BTreeMap;

use toroid_torus::ids::WorkerId;

use super::Job;
use crate::context::Context;
use crate::fitness::Until;
use crate::pool::{Worker, is_loopback};

/// Where a worker is, and where it is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Site<'a> {
    worker: &'a str,
    host: &'a str,
    address: &'a str,
    /// Only its own machine can dial it.
    is_loopback: bool,
}

impl<'a> Site<'a> {
    fn new(worker: &'a str, host: &'a str, address: &'a str) -> Site<'a> {
        Site { worker, host, address, is_loopback: is_loopback(address) }
    }

    fn of(worker: &'a Worker) -> Site<'a> {
        let r = &worker.register;
        Site::new(&r.worker_id, &r.host, &r.data_address)
    }

    fn mended(&self) -> String {
        let Site { worker, host, address, .. } = self;
        format!(
            "workers on other hosts cannot dial {worker} at {address}: start it on {host} with --interface NAME, or with --advertise HOST, its name or address for them"
        )
    }
}

impl Job {
    /// Marks spares unfit that the other workers could not dial, or that could not dial them.
    pub fn mark_hidden(&mut self, cx: &mut Context<'_>) {
        if !cx.pool.has_loopbacks() {
            return;
        }
        let is_fit = |w: &&Worker| !self.fitness.is_unfit(&w.register.worker_id);
        let spares: Vec<Site<'_>> = cx.pool.spares().filter(is_fit).map(Site::of).collect();
        if spares.is_empty() {
            return;
        }
        let placed = self.core.record.places.iter().flatten().filter_map(|w| cx.pool.get(w)).map(Site::of).collect();
        let found = hidden(&spares, placed, self.core.record.shape.world());
        for (worker, reason) in found {
            self.mark_unfit(cx, &worker, &reason, Until::Retry);
        }
    }
}

/// The spares that are given no place beside `placed`, or beside each other where nobody has one yet; with the reason.
fn hidden(spares: &[Site<'_>], placed: Vec<Site<'_>>, world: usize) -> Vec<(WorkerId, String)> {
    if !spares.iter().chain(&placed).any(|site| site.is_loopback) {
        return Vec::new();
    }
    let others = if placed.is_empty() { among(spares, world) } else { placed };
    // Of all others, and of those that only their own host can dial: the first, and the first of another host than that.
    let (all, inside) = (FirstTwo::of(others.iter()), FirstTwo::of(others.iter().filter(|other| other.is_loopback)));
    let mut out = Vec::new();
    for spare in spares {
        let hides = all.elsewhere(spare.host).filter(|_| spare.is_loopback).map(|_| spare);
        let hidden = hides.or(inside.elsewhere(spare.host));
        out.extend(hidden.map(|site| (spare.worker.into(), site.mended())));
    }
    out
}

/// Sites of two hosts, if there are as many: of any host there is one of another host among them.
struct FirstTwo<'a> {
    first: Option<&'a Site<'a>>,
    second: Option<&'a Site<'a>>,
}

impl<'a> FirstTwo<'a> {
    fn of(mut sites: impl Iterator<Item = &'a Site<'a>>) -> FirstTwo<'a> {
        let first = sites.next();
        FirstTwo { first, second: sites.find(|site| first.is_some_and(|first| first.host != site.host)) }
    }

    /// The first that is on another host.
    fn elsewhere(&self, host: &str) -> Option<&'a Site<'a>> {
        self.first.filter(|site| site.host != host).or(self.second)
    }
}

/// The spares that the others have to be able to dial: those that can be dialled from other hosts, or those of one host that has enough by itself.
fn among<'a>(spares: &[Site<'a>], world: usize) -> Vec<Site<'a>> {
    let (inside, outside): (Vec<Site<'_>>, Vec<Site<'_>>) = spares.iter().copied().partition(|site| site.is_loopback);
    let mut num_of: BTreeMap<&str, usize> = BTreeMap::new();
    inside.iter().for_each(|site| *num_of.entry(site.host).or_default() += 1);
    match inside.iter().find(|site| num_of[site.host] >= world) {
        Some(enough) if outside.len() < world => inside.iter().filter(|s| s.host == enough.host).copied().collect(),
        _ if outside.is_empty() => inside.first().copied().into_iter().collect(),
        _ => outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["w0", "w1", "w2"];

    fn sites<'a>(of: &[(&'a str, &'a str)]) -> Vec<Site<'a>> {
        NAMES.iter().zip(of).map(|(worker, (host, address))| Site::new(worker, host, address)).collect()
    }

    fn check(spares: &[(&str, &str)], placed: &[(&str, &str)], expected: &[&str]) {
        let found: Vec<WorkerId> =
            hidden(&sites(spares), sites(placed), 2).into_iter().map(|(worker, _)| worker).collect();
        assert_eq!(found, expected, "{spares:?} {placed:?}");
    }

    const HERE: (&str, &str) = ("here", "127.0.0.1:5");
    const OPEN: (&str, &str) = ("here", "10.0.0.1:5");
    const THERE: (&str, &str) = ("there", "10.0.0.2:5");

    #[test]
    fn a_loopback_beside_other_hosts_is_found_before_anyone_has_a_place() {
        check(&[HERE, THERE], &[], &["w0"]);
        check(&[HERE, OPEN], &[], &[]);
        check(&[HERE, HERE], &[], &[]);
        check(&[HERE, THERE, THERE], &[], &["w0"]);
        // One machine is enough by itself: the one from elsewhere is left out.
        check(&[HERE, HERE, THERE], &[], &["w2"]);
        check(&[("a", "[::1]:5"), ("b", "localhost:5")], &[], &["w1"]);
    }

    #[test]
    fn who_has_a_place_stays_and_the_reason_has_the_flag() {
        check(&[HERE], &[THERE], &["w0"]);
        check(&[THERE], &[HERE], &["w0"]);
        check(&[HERE], &[OPEN], &[]);
        let found = hidden(&sites(&[HERE]), sites(&[THERE]), 2);
        assert_eq!(
            found[0].1,
            "workers on other hosts cannot dial w0 at 127.0.0.1:5: start it on here with --interface NAME, or with --advertise HOST, its name or address for them"
        );
    }
}
