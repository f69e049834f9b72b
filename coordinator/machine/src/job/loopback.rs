//! Workers whose address is their own machine's loopback, beside workers of other machines.
//!
//! A worker that reaches its coordinator over the loopback listens there. That is right where all are on one machine. Where others are
//! not, they would dial themselves: it is found before anybody is given a place, and named with the flag that mends it.

use core::net::IpAddr;

use toroid_torus::ids::WorkerId;

use super::Job;
use crate::context::Context;
use crate::fitness::Until;
use crate::pool::Worker;

/// Where a worker is, and where it is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Site {
    worker: WorkerId,
    host: String,
    address: String,
}

impl Site {
    fn of(worker: &Worker) -> Site {
        let r = &worker.register;
        Site { worker: worker.id(), host: r.host.clone(), address: r.data_address.clone() }
    }

    /// Only its own machine can dial it.
    fn is_loopback(&self) -> bool {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The other cannot dial it.
    fn is_hidden_from(&self, other: &Site) -> bool {
        self.is_loopback() && self.host != other.host
    }

    fn mended(&self) -> String {
        let Site { worker, host, address } = self;
        format!(
            "workers on other hosts cannot dial {worker} at {address}: start it on {host} with --interface NAME, or with --advertise HOST, its name or address for them"
        )
    }
}

impl Job {
    /// Marks spares unfit that the other workers could not dial, or that could not dial them.
    pub fn mark_hidden(&mut self, cx: &mut Context<'_>) {
        let is_fit = |w: &&Worker| !self.fitness.is_unfit(&w.register.worker_id);
        let spares: Vec<Site> = cx.pool.spares().filter(is_fit).map(Site::of).collect();
        let placed = self.core.record.places.iter().flatten().filter_map(|w| cx.pool.get(w)).map(Site::of).collect();
        for (worker, reason) in hidden(&spares, placed, self.core.record.shape.world()) {
            self.mark_unfit(cx, &worker, &reason, Until::Retry);
        }
    }
}

/// The spares that are given no place beside `placed`, or beside each other where nobody has one yet; with the reason.
fn hidden(spares: &[Site], placed: Vec<Site>, world: usize) -> Vec<(WorkerId, String)> {
    let others = if placed.is_empty() { among(spares, world) } else { placed };
    let mut out = Vec::new();
    for spare in spares {
        let hides = others.iter().find(|other| spare.is_hidden_from(other)).map(|_| spare);
        let hidden = hides.or(others.iter().find(|other| other.is_hidden_from(spare)));
        out.extend(hidden.map(|site| (spare.worker.clone(), site.mended())));
    }
    out
}

/// The spares that the others have to be able to dial: those that can be dialled from other hosts, or those of one host that has enough by itself.
fn among(spares: &[Site], world: usize) -> Vec<Site> {
    let (inside, outside): (Vec<Site>, Vec<Site>) = spares.iter().cloned().partition(Site::is_loopback);
    let of_host = |host: &str| inside.iter().filter(|s| s.host == host).cloned().collect::<Vec<Site>>();
    let enough = inside.iter().map(|s| of_host(&s.host)).find(|of_host| of_host.len() >= world);
    match enough {
        Some(of_host) if outside.len() < world => of_host,
        _ if outside.is_empty() => inside.first().cloned().into_iter().collect(),
        _ => outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(of: &[(&str, &str)]) -> Vec<Site> {
        let site = |(n, (host, address)): (usize, &(&str, &str))| Site {
            worker: format!("w{n}").into(),
            host: (*host).into(),
            address: (*address).into(),
        };
        of.iter().enumerate().map(site).collect()
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
