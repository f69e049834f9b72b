//! Which worker fills which place (design section 3).
//!
//! A survivor keeps its place; hosts are chosen for the empty places first and workers last, in this order:
//!
//! ```text
//!  1 a TP group with survivors     the host of most of them, if it has room for the others
//!  2 an empty TP group             a host with room for all of it: one without another holder of its shards before one with;
//!                                  then that of the stage before or after; then the one with most room
//!  3 what no host takes whole      place by place: hosts of the group, then without another holder, then near the group
//!  4 two groups of rule 2          change hosts where that parts holders of a shard
//!  5 the workers of a host         by name to the places of the host by rank
//! ```
//!
//! Invariants, cited by the tests:
//!
//! - **T-7**: a survivor keeps its place.
//! - **P-1**: every place is filled by one worker and no worker fills two; who is left is a spare.
//! - **P-2**: the same workers give the same placement, in whatever order they are named.
//! - **P-3**: a TP group is inside one host as long as a host has room for it.
//! - **P-4**: the two holders of a shard ([`crate::holders`]) are on different hosts where hosts of equal size allow it. Rules 2 and 4
//!   are greedy: on very uneven hosts a placement with fewer shared hosts may exist that they do not find. P-3 goes before P-4.
//!
//! Deliberately absent: moving a survivor to better the placement; looking into how busy a host or a link is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::geometry::{Place, Shape};
use crate::holders::{backup_of, guarded_by};
use crate::ids::{Rank, WorkerId};

/// A worker and where it is; what is not known is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub worker: WorkerId,
    pub host: String,
    pub rack: String,
    pub zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// By rank.
    pub workers: Vec<WorkerId>,
    /// The ranks that were empty, each with the reason for its worker in words; by rank.
    pub reasons: Vec<(Rank, String)>,
    /// Candidates without a place, by name.
    pub spares: Vec<WorkerId>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "placing {shape} needs {} workers: {kept} places keep theirs, {open} are empty, and {found} workers without a place were found; start {} more or ask for a smaller dp",
        shape.world(),
        open - found
    )]
    TooFew { shape: Shape, kept: usize, open: usize, found: usize },
}

/// Pairs of groups that rule 4 looks at before it is content with what it has; keeps a hopeless search under a second.
const SWAP_EVALUATIONS_MAX: usize = 1 << 20;

/// Fills the empty places of `shape`.
///
/// `current` has the surviving worker of every rank, `candidates` the workers without a place. `known` says where workers are; only
/// the survivors are looked up, and one that is not in it is taken to be alone on its host.
pub fn place(
    shape: &Shape,
    current: &[Option<WorkerId>],
    candidates: &[Candidate],
    known: &BTreeMap<WorkerId, Candidate>,
) -> Result<Placement, PlacementError> {
    assert_eq!(current.len(), shape.world(), "`current` must have an entry for every rank of {shape}");
    let kept: BTreeSet<&str> = current.iter().flatten().map(WorkerId::as_str).collect();
    let free: BTreeSet<&str> = candidates.iter().map(|c| c.worker.as_str()).collect();
    assert_eq!(kept.len(), current.iter().flatten().count(), "a survivor was named for two places");
    assert_eq!(free.len(), candidates.len(), "a candidate was named twice");
    assert!(kept.is_disjoint(&free), "a survivor was named as a candidate");
    let open = shape.world() - kept.len();
    if open > candidates.len() {
        return Err(PlacementError::TooFew { shape: *shape, kept: kept.len(), open, found: candidates.len() });
    }
    let mut search = Search::new(shape, current, candidates, known);
    let untouched = search.fill();
    search.part_holders(&untouched);
    Ok(search.into_placement(current, candidates))
}

/// Where a host is; hosts are told apart by all of it. Ordered so that near hosts are neighbours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Location<'a> {
    zone: &'a str,
    rack: &'a str,
    host: &'a str,
}

impl<'a> From<&'a Candidate> for Location<'a> {
    fn from(c: &'a Candidate) -> Self {
        Location { zone: &c.zone, rack: &c.rack, host: &c.host }
    }
}

impl std::fmt::Display for Location<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<&str> = [self.zone, self.rack, self.host].into_iter().filter(|p| !p.is_empty()).collect();
        write!(f, "{}", parts.join("/"))
    }
}

/// The search works on hosts alone: workers of one host are interchangeable.
struct Search<'a> {
    shape: &'a Shape,
    /// Every host of a survivor or candidate; a host is named by its index here.
    hosts: Vec<Location<'a>>,
    /// Workers without a place, by host.
    free: Vec<usize>,
    /// `(free, host)` of all hosts, most room first.
    roomiest: BTreeSet<(Reverse<usize>, usize)>,
    /// By rank: no worker yet.
    open: Vec<bool>,
    /// By rank: the host; `None` where the place is open or its survivor's host is not known.
    at: Vec<Option<usize>>,
}

impl<'a> Search<'a> {
    fn new(
        shape: &'a Shape,
        current: &[Option<WorkerId>],
        candidates: &'a [Candidate],
        known: &'a BTreeMap<WorkerId, Candidate>,
    ) -> Search<'a> {
        let survivors = || current.iter().map(|worker| worker.as_ref().and_then(|w| known.get(w)));
        let all: BTreeSet<Location<'a>> = candidates.iter().chain(survivors().flatten()).map(Location::from).collect();
        let hosts: Vec<Location<'a>> = all.into_iter().collect();
        let index: BTreeMap<&Location<'a>, usize> = hosts.iter().enumerate().map(|(i, l)| (l, i)).collect();
        let mut free = vec![0; hosts.len()];
        for candidate in candidates {
            free[index[&Location::from(candidate)]] += 1;
        }
        let at = survivors().map(|s| s.map(|s| index[&Location::from(s)])).collect();
        let roomiest = free.iter().enumerate().map(|(host, n)| (Reverse(*n), host)).collect();
        Search { shape, free, roomiest, open: current.iter().map(Option::is_none).collect(), at, hosts }
    }

    /// Rules 1 to 3. Returns the groups that rule 2 filled.
    fn fill(&mut self) -> Vec<Range<usize>> {
        let mut empty = Vec::new();
        let mut rest = Vec::new();
        for group in self.groups() {
            let open: Vec<usize> = group.clone().filter(|r| self.open[*r]).collect();
            if open.len() == group.len() {
                empty.push(group);
            } else if !open.is_empty() {
                match self.hosts_of(&group).into_iter().find(|h| self.free[*h] >= open.len()) {
                    Some(host) => open.into_iter().for_each(|r| self.take(r, host)),
                    None => rest.push(group),
                }
            }
        }
        let mut whole = Vec::new();
        for group in empty {
            match self.host_for(&group) {
                Some(host) => {
                    group.clone().for_each(|r| self.take(r, host));
                    whole.push(group);
                }
                None => rest.push(group),
            }
        }
        for group in rest {
            for rank in group.clone().filter(|r| self.open[*r]).collect::<Vec<_>>() {
                self.take(rank, self.nearest_host(&group, rank));
            }
        }
        whole
    }

    /// The TP groups as ranges of ranks, replica by replica, so that the stages of a replica come one after the other.
    fn groups(&self) -> Vec<Range<usize>> {
        let shape = self.shape;
        let places = (0..shape.dp()).flat_map(|dp| (0..shape.pp()).map(move |pp| Place { tp: 0, pp, dp }));
        places.map(|p| shape.rank(p)).map(|first| first..first + shape.tp()).collect()
    }

    fn take(&mut self, rank: usize, host: usize) {
        assert!(self.open[rank] && self.free[host] > 0, "rank {rank} or host {host} was given away twice");
        self.roomiest.remove(&(Reverse(self.free[host]), host));
        self.free[host] -= 1;
        self.roomiest.insert((Reverse(self.free[host]), host));
        self.open[rank] = false;
        self.at[rank] = Some(host);
    }

    /// Hosts of the filled places of `group`, those of most places first.
    fn hosts_of(&self, group: &Range<usize>) -> Vec<usize> {
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        for host in group.clone().filter_map(|r| self.at[r]) {
            *places.entry(host).or_default() += 1;
        }
        let mut hosts: Vec<usize> = places.keys().copied().collect();
        hosts.sort_by_key(|h| Reverse(places[h]));
        hosts
    }

    /// Rule 2. `None` where no host has room for the whole group.
    fn host_for(&self, group: &Range<usize>) -> Option<usize> {
        let place = self.shape.place(group.start);
        let stages = [place.pp.checked_sub(1), Some(place.pp + 1).filter(|pp| *pp < self.shape.pp())];
        let beside = stages.into_iter().flatten().filter_map(|pp| self.at[self.shape.rank(Place { pp, ..place })]);
        let beside = beside.filter(|h| self.free[*h] >= group.len());
        let roomy = self.roomiest.iter().take_while(|(Reverse(free), _)| *free >= group.len()).map(|(_, host)| *host);
        let mut best = None;
        let mut best_shared = usize::MAX;
        for host in beside.chain(roomy) {
            let shared = self.shared(group.clone(), host);
            if shared < best_shared {
                (best, best_shared) = (Some(host), shared);
            }
            if shared == 0 {
                break;
            }
        }
        best
    }

    /// Rule 3, for one place of a group.
    fn nearest_host(&self, group: &Range<usize>, rank: usize) -> usize {
        let own = self.hosts_of(group);
        if let Some(host) = own.iter().find(|h| self.free[**h] > 0) {
            return *host;
        }
        let distance = |host: usize| {
            let here = &self.hosts[host];
            let steps = own.iter().map(|h| &self.hosts[*h]).map(|there| match () {
                () if (here.zone, here.rack) == (there.zone, there.rack) => 0,
                () if here.zone == there.zone => 1,
                () => 2,
            });
            steps.min().unwrap_or(0)
        };
        let with_room = self.roomiest.iter().take_while(|(Reverse(free), _)| *free > 0);
        with_room
            .map(|(room, host)| (self.shared(rank..rank + 1, *host), distance(*host), *room, *host))
            .min()
            .map(|(.., host)| host)
            .expect("there are at least as many candidates as open places")
    }

    /// How often places of `ranks`, were they on `host`, would share it with another holder of one of their shards.
    fn shared(&self, ranks: Range<usize>, host: usize) -> usize {
        ranks.flat_map(|r| co_holders(self.shape, r)).filter(|r| self.at[*r] == Some(host)).count()
    }

    /// Rule 4: `groups` are those that are free to move.
    fn part_holders(&mut self, groups: &[Range<usize>]) {
        let mut budget = SWAP_EVALUATIONS_MAX;
        let mut improved = self.hosts.len() > 1;
        while improved {
            improved = false;
            for a in groups {
                if self.shared(a.clone(), self.host_of(a)) == 0 {
                    continue;
                }
                let tried = groups.len().min(budget);
                budget -= tried;
                improved |= groups[..tried].iter().any(|b| self.swap_if_better(a, b));
            }
        }
    }

    fn swap_if_better(&mut self, a: &Range<usize>, b: &Range<usize>) -> bool {
        let (host_a, host_b) = (self.host_of(a), self.host_of(b));
        if host_a == host_b {
            return false;
        }
        let before = self.shared(a.clone(), host_a) + self.shared(b.clone(), host_b);
        self.at[a.clone()].fill(Some(host_b));
        self.at[b.clone()].fill(Some(host_a));
        let better = self.shared(a.clone(), host_b) + self.shared(b.clone(), host_a) < before;
        if !better {
            self.at[a.clone()].fill(Some(host_a));
            self.at[b.clone()].fill(Some(host_b));
        }
        better
    }

    /// The host of a group that rule 2 filled.
    fn host_of(&self, group: &Range<usize>) -> usize {
        self.at[group.start].expect("rule 2 filled the group")
    }

    /// Rule 5.
    fn into_placement(self, current: &[Option<WorkerId>], candidates: &[Candidate]) -> Placement {
        let mut by_host: BTreeMap<Location<'_>, BTreeSet<&WorkerId>> = BTreeMap::new();
        for candidate in candidates {
            by_host.entry(Location::from(candidate)).or_default().insert(&candidate.worker);
        }
        let mut workers = Vec::with_capacity(current.len());
        let mut reasons = Vec::new();
        for (rank, survivor) in current.iter().enumerate() {
            let worker = survivor.clone().unwrap_or_else(|| {
                let host = self.at[rank].expect("every open place was filled");
                let worker = by_host.get_mut(&self.hosts[host]).and_then(BTreeSet::pop_first);
                let worker = worker.expect("a host has as many workers as it had room");
                reasons.push((Rank::new(rank), self.reason(rank, host)));
                worker.clone()
            });
            workers.push(worker);
        }
        let mut spares: Vec<WorkerId> = by_host.into_values().flatten().cloned().collect();
        spares.sort();
        Placement { workers, reasons, spares }
    }

    /// Why a worker of `host` takes `rank`, to follow on the names of both.
    fn reason(&self, rank: usize, host: usize) -> String {
        let mut reason = format!("on host {}", self.hosts[host]);
        if self.shape.tp() > 1 {
            let group = self.shape.tp_group(rank);
            if group.iter().all(|r| self.at[*r] == Some(host)) {
                reason += "; its TP group is whole on this host";
            } else {
                let elsewhere = group.iter().filter(|r| self.at[**r] != Some(host)).count();
                let places = group.len();
                reason +=
                    &format!("; for lack of room its TP group is spread, {elsewhere} of {places} places are elsewhere");
            }
        }
        let holders: Vec<usize> = co_holders(self.shape, rank).collect();
        let shared: Vec<usize> = holders.iter().copied().filter(|r| self.at[*r] == Some(host)).collect();
        if !shared.is_empty() {
            let who = ranks(&shared);
            reason += &format!("; shares the host with {who} (same shards): losing the host loses both copies");
        } else if !holders.is_empty() {
            reason += &format!("; the other copies of its shards are elsewhere, at {}", ranks(&holders));
        }
        reason
    }
}

/// Ranks that hold a shard together with `rank`: the one whose shard it keeps a copy of, and the one that keeps a copy of its own.
fn co_holders(shape: &Shape, rank: usize) -> impl Iterator<Item = usize> + use<> {
    let (before, after) = (guarded_by(shape, rank), backup_of(shape, rank));
    [before.filter(|_| before != after), after].into_iter().flatten()
}

fn ranks(ranks: &[usize]) -> String {
    let list: Vec<String> = ranks.iter().map(usize::to_string).collect();
    format!("rank{} {}", if list.len() == 1 { "" } else { "s" }, list.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str, host: &str, rack: &str) -> Candidate {
        Candidate { worker: name.into(), host: host.into(), rack: rack.into(), zone: String::new() }
    }

    fn shape(tp: usize, pp: usize, dp: usize) -> Shape {
        Shape::new(tp, pp, dp).expect("a valid shape")
    }

    /// Places `free` beside `survivors`, given by rank, and compares the reasons.
    fn check(shape: Shape, survivors: &[Option<Candidate>], free: &[Candidate], expected: &[&str]) -> Placement {
        let current: Vec<Option<WorkerId>> = survivors.iter().map(|s| s.as_ref().map(|s| s.worker.clone())).collect();
        let known = survivors.iter().flatten().map(|s| (s.worker.clone(), s.clone())).collect();
        let placement = place(&shape, &current, free, &known).expect("enough workers");
        let reasons: Vec<&str> = placement.reasons.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, expected);
        placement
    }

    #[test]
    fn replicas_go_to_different_hosts() {
        let free = ["a", "a", "b", "b", "b"].iter().zip(0..).map(|(host, i)| worker(&format!("w{i}"), host, "r1"));
        let expected = [
            "on host r1/b; its TP group is whole on this host; the other copies of its shards are elsewhere, at rank 2",
            "on host r1/b; its TP group is whole on this host; the other copies of its shards are elsewhere, at rank 3",
            "on host r1/a; its TP group is whole on this host; the other copies of its shards are elsewhere, at rank 0",
            "on host r1/a; its TP group is whole on this host; the other copies of its shards are elsewhere, at rank 1",
        ];
        let placement = check(shape(2, 1, 2), &[const { None }; 4], &free.collect::<Vec<_>>(), &expected);
        assert_eq!(placement.workers, ["w2", "w3", "w0", "w1"]);
        assert_eq!(placement.spares, ["w4"]);
    }

    #[test]
    fn one_host_shares_and_says_so() {
        let free = ["w0", "w1", "w2"].map(|name| worker(name, "a", ""));
        let expected = [
            "on host a; shares the host with ranks 2 and 1 (same shards): losing the host loses both copies",
            "on host a; shares the host with ranks 0 and 2 (same shards): losing the host loses both copies",
            "on host a; shares the host with ranks 1 and 0 (same shards): losing the host loses both copies",
        ];
        check(shape(1, 1, 3), &[const { None }; 3], &free, &expected);
        let reason = "on host a; shares the host with rank 1 (same shards): losing the host loses both copies";
        let elsewhere = [None, Some(worker("s1", "a", "")), Some(worker("s2", "b", ""))];
        check(shape(1, 1, 3), &elsewhere, &free[..1], &[reason]);
    }

    #[test]
    fn a_single_place_has_nothing_to_explain() {
        check(shape(1, 1, 1), &[None], &[worker("w0", "a", "")], &["on host a"]);
    }

    /// Rule 1 comes before rule 2: the group with a survivor takes the room beside it before an empty group does, which could use it.
    #[test]
    fn a_survivor_gets_its_group_back_first() {
        let survivor = |name, host| Some(worker(name, host, ""));
        let (first, last) = ([survivor("s0", "a"), None], [survivor("s6", "c"), survivor("s7", "c")]);
        let survivors = [first, [survivor("s2", "b"), survivor("s3", "b")], [None, None], last].concat();
        let free = [("w0", "a"), ("w1", "a"), ("w2", "d"), ("w3", "d")].map(|(name, host)| worker(name, host, ""));
        let whole = |host, ranks| {
            format!(
                "on host {host}; its TP group is whole on this host; the other copies of its shards are elsewhere, at {ranks}"
            )
        };
        let expected = [whole("a", "ranks 7 and 3"), whole("d", "ranks 2 and 6"), whole("d", "ranks 3 and 7")];
        let placement = check(shape(2, 4, 1), &survivors, &free, &expected.each_ref().map(String::as_str));
        assert_eq!(placement.spares, ["w1"]);
    }

    /// Rule 3: no host has room for the group, so it takes hosts that are near each other.
    #[test]
    fn a_spread_group_stays_in_its_rack() {
        let survivors = [Some(worker("s0", "a", "r1")), None];
        let free = [worker("w0", "b", "r2"), worker("w1", "c", "r1"), worker("w2", "b", "r2")];
        let reason = "on host r1/c; for lack of room its TP group is spread, 1 of 2 places are elsewhere; the other copies of its shards are elsewhere, at rank 0";
        check(shape(2, 1, 1), &survivors, &free, &[reason]);
    }

    #[test]
    fn too_few_workers_are_counted() {
        let current = [Some("s0".into()), None, None];
        let error = place(&shape(1, 1, 3), &current, &[worker("w0", "a", "")], &BTreeMap::new());
        assert_eq!(error, Err(PlacementError::TooFew { shape: shape(1, 1, 3), kept: 1, open: 2, found: 1 }),);
    }
}
