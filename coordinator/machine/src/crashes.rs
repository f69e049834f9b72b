//! Workers and hosts that fail again and again: they are put aside, and come back after a while.
//!
//! A worker is put aside after [`MAX_LOSSES`] losses within [`WITHIN`]. So is a host, but only where it stands out: others are
//! connected and none of them lost a worker in that time. Where everything fails, it is not the host.
//!
//! What was planned is no failure: a worker that was asked to end (SIGTERM, preemption, drain) may do so as often as it likes. Users see
//! who is aside, why and for how long, and may end it ([`CrashLog::readmit`]).
//!
//! Known at the moment only: after a restart of the coordinator everyone begins anew.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use toroid_torus::ids::WorkerId;

use super::deadlines::{Deadline, Deadlines};

const MAX_LOSSES: usize = 3;
const WITHIN: Duration = Duration::from_secs(10 * 60);
/// A worker that was put aside is a candidate again after this.
const ASIDE: Duration = Duration::from_secs(30 * 60);

#[derive(Debug, Default)]
pub struct CrashLog {
    workers: BTreeMap<WorkerId, Losses>,
    hosts: BTreeMap<String, Losses>,
    /// When those who are put aside come back.
    deadlines: Deadlines,
}

#[derive(Debug, Default)]
struct Losses {
    /// The newest [`MAX_LOSSES`].
    at: VecDeque<Duration>,
    /// Why they are put aside.
    aside: Option<String>,
}

/// Given no place for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside<'a> {
    /// A clause.
    pub reason: &'a str,
    pub until: Duration,
}

impl Losses {
    fn is_over(&self, now: Duration) -> bool {
        self.aside.is_none() && self.at.back().is_none_or(|at| *at + WITHIN < now)
    }

    fn push(&mut self, now: Duration) {
        if self.at.len() == MAX_LOSSES {
            self.at.pop_front();
        }
        self.at.push_back(now);
    }

    fn is_too_often(&self, now: Duration) -> bool {
        self.aside.is_none() && self.at.len() == MAX_LOSSES && self.at[0] + WITHIN >= now
    }
}

impl CrashLog {
    /// A worker was lost. Returns what is put aside for it, in words. `has_other_hosts`: workers elsewhere are connected.
    pub fn lost(&mut self, worker: &str, host: &str, has_other_hosts: bool, now: Duration) -> Vec<String> {
        self.workers.retain(|_, l| !l.is_over(now));
        self.hosts.retain(|_, l| !l.is_over(now));
        self.workers.entry(worker.into()).or_default().push(now);
        if !host.is_empty() {
            self.hosts.entry(host.into()).or_default().push(now);
        }
        let stands_out = has_other_hosts && self.hosts.len() == 1;
        let (minutes, aside) = (WITHIN.as_secs() / 60, ASIDE.as_secs() / 60);
        let often = format!("lost {MAX_LOSSES} times within {minutes} minutes");
        let of_worker = self.workers.get_mut(worker).map(|l| (l, worker_aside(worker), format!("it was {often}")));
        let of_host = self.hosts.get_mut(host).filter(|_| stands_out);
        let of_host = of_host.map(|l| (l, host_aside(host), format!("workers of its host were {often}")));
        let mut told = Vec::new();
        for (losses, comes_back, reason) in of_worker.into_iter().chain(of_host) {
            if losses.is_too_often(now) {
                let who = match &comes_back {
                    Deadline::HostAside { host } => format!("host {host}"),
                    _ => format!("worker {worker}"),
                };
                told.push(format!("{who} is put aside for {aside} minutes: {reason}"));
                losses.aside = Some(reason);
                self.deadlines.set(comes_back, now + ASIDE);
            }
        }
        told
    }

    /// Whether this worker or its host is put aside; if both are, the one that lasts longer.
    pub fn aside(&self, worker: &str, host: &str) -> Option<Aside<'_>> {
        let of_host = (self.hosts.get(host), host_aside(host));
        let of_worker = (self.workers.get(worker), worker_aside(worker));
        let aside = [of_host, of_worker].into_iter().filter_map(|(losses, comes_back)| {
            let reason = losses?.aside.as_deref()?;
            Some(Aside { reason, until: self.deadlines.get(&comes_back)? })
        });
        aside.max_by_key(|aside| aside.until)
    }

    /// A user wants them back, and they begin anew. Returns why the worker or its host was put aside, if it was.
    pub fn readmit(&mut self, worker: &str, host: &str) -> Option<String> {
        let reason = self.aside(worker, host)?.reason.to_string();
        self.workers.remove(worker);
        self.hosts.remove(host);
        self.deadlines.clear(&worker_aside(worker));
        self.deadlines.clear(&host_aside(host));
        Some(reason)
    }

    /// Ids of the workers that are put aside themselves.
    pub fn workers_aside(&self) -> impl Iterator<Item = &str> {
        self.workers.iter().filter(|(_, l)| l.aside.is_some()).map(|(id, _)| id.as_str())
    }

    /// When the next one comes back.
    pub fn next_return(&self) -> Option<Duration> {
        self.deadlines.next(|_| true)
    }

    /// Says whether anyone is back.
    pub fn forgive_until(&mut self, now: Duration) -> bool {
        let passed = self.deadlines.passed(now);
        for deadline in &passed {
            match deadline {
                Deadline::WorkerAside { worker } => drop(self.workers.remove(worker)),
                Deadline::HostAside { host } => drop(self.hosts.remove(host)),
                other => unreachable!("{other:?} is no deadline of those who are put aside"),
            }
            self.deadlines.clear(deadline);
        }
        !passed.is_empty()
    }
}

fn worker_aside(worker: &str) -> Deadline {
    Deadline::WorkerAside { worker: worker.into() }
}

fn host_aside(host: &str) -> Deadline {
    Deadline::HostAside { host: host.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn three_losses_within_ten_minutes_and_thirty_minutes_aside() {
        let mut log = CrashLog::default();
        assert!(log.lost("w", "h", false, MINUTE).is_empty());
        assert!(log.lost("w", "h", false, 2 * MINUTE).is_empty());
        assert!(log.lost("w", "h", false, 12 * MINUTE).is_empty(), "the first is too long ago");
        let told = log.lost("w", "h", false, 12 * MINUTE);
        assert_eq!(told, ["worker w is put aside for 30 minutes: it was lost 3 times within 10 minutes"]);
        let aside = log.aside("w", "h").expect("put aside");
        assert_eq!((aside.until, aside.reason), (42 * MINUTE, "it was lost 3 times within 10 minutes"));
        assert_eq!(log.aside("x", "h"), None);
        assert_eq!(log.next_return(), Some(42 * MINUTE));
        assert!(!log.forgive_until(41 * MINUTE) && log.forgive_until(42 * MINUTE));
        assert_eq!(log.aside("w", "h"), None);
        assert!(log.lost("w", "h", false, 42 * MINUTE).is_empty(), "it begins anew");
    }

    #[test]
    fn a_host_is_put_aside_where_it_stands_out() {
        let lose_three = |log: &mut CrashLog, others: bool| {
            ["a", "b", "c"].iter().for_each(|w| drop(log.lost(w, "h", others, MINUTE)));
            log.aside("d", "h").is_some()
        };
        assert!(lose_three(&mut CrashLog::default(), true));
        assert!(!lose_three(&mut CrashLog::default(), false), "nobody else could do the work");
        let mut log = CrashLog::default();
        log.lost("x", "other", true, MINUTE);
        assert!(!lose_three(&mut log, true), "others fail as well");
    }

    #[test]
    fn who_is_readmitted_begins_anew() {
        let mut log = CrashLog::default();
        (0..3).for_each(|_| drop(log.lost("w", "h", false, MINUTE)));
        assert_eq!(log.workers_aside().collect::<Vec<_>>(), ["w"]);
        assert_eq!(log.readmit("w", "h").as_deref(), Some("it was lost 3 times within 10 minutes"));
        assert_eq!(log.aside("w", "h"), None);
        assert_eq!(log.readmit("w", "h"), None);
        assert!(log.lost("w", "h", false, MINUTE).is_empty(), "it begins anew");
        ["a", "b", "c"].iter().for_each(|w| drop(log.lost(w, "host", true, 60 * MINUTE)));
        assert!(log.readmit("d", "host").is_some_and(|why| why.starts_with("workers of its host were lost 3 times")));
        assert_eq!(log.aside("a", "host"), None);
    }

    #[test]
    fn what_is_long_ago_is_not_kept() {
        let mut log = CrashLog::default();
        for n in 0..1000_u32 {
            log.lost(&format!("w{n}"), &format!("h{n}"), true, n * MINUTE);
        }
        assert!(log.workers.len() <= 12 && log.hosts.len() <= 12);
    }
}
