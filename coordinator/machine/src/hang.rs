//! Who holds the others up: one pure function from what the ranks say they wait for to the one that nobody can do without.
//!
//! Each heartbeat names the operation that a rank is in and the ranks that it waits for. Followed from whoever waits, these edges
//! lead to a rank that waits for nobody: the *root*. It hangs if it has also been in the same operation for long; one that still
//! changes its operation is slow, and a slow worker is no reason for a new epoch. Where all edges go round in a cycle nobody can
//! be told from the others, and all begin again.

use std::collections::BTreeSet;

use toroid_torus::ids::Rank;

/// What a rank said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankStatus {
    pub waits_for: Vec<Rank>,
    /// In the same operation for long.
    pub is_stuck: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody waits, or those waited for get on.
    Nobody,
    Root {
        rank: Rank,
        waiters: Vec<Rank>,
    },
    /// These wait for one another.
    Cycle {
        ranks: Vec<Rank>,
    },
}

/// `statuses` are by rank. Of several roots it is the one that most wait for, then the lowest.
pub fn culprit(statuses: &[RankStatus]) -> Verdict {
    let waiting: Vec<Rank> = Rank::all(statuses.len()).filter(|r| waits(statuses, *r)).collect();
    if waiting.is_empty() {
        return Verdict::Nobody;
    }
    let mut waited_for_by = vec![Vec::new(); statuses.len()];
    for from in &waiting {
        edges(statuses, *from).for_each(|to| waited_for_by[to.index()].push(*from));
    }
    let mut roots =
        Rank::all(statuses.len()).filter(|r| !waited_for_by[r.index()].is_empty() && !waits(statuses, *r)).peekable();
    if roots.peek().is_none() {
        return Verdict::Cycle { ranks: waiting };
    }
    let stuck = roots.filter(|r| statuses[r.index()].is_stuck).map(|root| (root, reach(&waited_for_by, root)));
    match stuck.max_by_key(|(root, waiters)| (waiters.len(), std::cmp::Reverse(*root))) {
        Some((rank, waiters)) => Verdict::Root { rank, waiters: waiters.into_iter().collect() },
        None => Verdict::Nobody,
    }
}

fn waits(statuses: &[RankStatus], rank: Rank) -> bool {
    edges(statuses, rank).next().is_some()
}

/// What a worker says may name ranks that are not there, and itself.
fn edges(statuses: &[RankStatus], rank: Rank) -> impl Iterator<Item = Rank> {
    let to = statuses[rank.index()].waits_for.iter().copied();
    to.filter(move |to| *to != rank && to.index() < statuses.len())
}

/// All ranks that wait for `root`, through others too; who waits for each is `waited_for_by`.
fn reach(waited_for_by: &[Vec<Rank>], root: Rank) -> BTreeSet<Rank> {
    let mut reached = BTreeSet::new();
    let mut open = vec![root];
    while let Some(rank) = open.pop() {
        open.extend(waited_for_by[rank.index()].iter().filter(|from| reached.insert(**from)));
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Edges by rank; those in `moving` have changed their operation lately.
    fn check(edges: &[&[usize]], moving: &[usize], expected: Verdict) {
        let status = |(rank, to): (usize, &&[usize])| RankStatus {
            waits_for: to.iter().map(|to| Rank::new(*to)).collect(),
            is_stuck: !moving.contains(&rank),
        };
        let statuses: Vec<RankStatus> = edges.iter().enumerate().map(status).collect();
        assert_eq!(culprit(&statuses), expected, "{edges:?}");
    }

    fn ranks(of: &[usize]) -> Vec<Rank> {
        of.iter().copied().map(Rank::new).collect()
    }

    fn root(rank: usize, waiters: &[usize]) -> Verdict {
        Verdict::Root { rank: Rank::new(rank), waiters: ranks(waiters) }
    }

    #[test]
    fn the_root_is_who_waits_for_nobody() {
        check(&[&[1], &[2], &[]], &[], root(2, &[0, 1]));
        check(&[&[], &[0], &[0], &[0]], &[], root(0, &[1, 2, 3]));
        check(&[&[1], &[0, 2], &[]], &[], root(2, &[0, 1]));
    }

    #[test]
    fn of_two_roots_the_one_that_more_wait_for() {
        check(&[&[], &[0], &[], &[2], &[2]], &[], root(2, &[3, 4]));
        check(&[&[], &[0], &[], &[2]], &[], root(0, &[1]));
        check(&[&[], &[0], &[], &[2]], &[0], root(2, &[3]));
    }

    #[test]
    fn who_gets_on_is_slow_and_does_not_hang() {
        check(&[&[1], &[]], &[1], Verdict::Nobody);
        check(&[&[], &[]], &[], Verdict::Nobody);
    }

    #[test]
    fn a_cycle_has_no_culprit() {
        check(&[&[1], &[2], &[0]], &[], Verdict::Cycle { ranks: ranks(&[0, 1, 2]) });
    }

    #[test]
    fn a_chain_through_all_of_a_large_job_is_followed_once() {
        // From each rank by itself these are five billion steps.
        const NUM: usize = 100_000;
        let next = |rank: usize| if rank + 1 < NUM { vec![Rank::new(rank + 1)] } else { Vec::new() };
        let statuses: Vec<RankStatus> =
            (0..NUM).map(|rank| RankStatus { waits_for: next(rank), is_stuck: true }).collect();
        let waiters = Rank::all(NUM - 1).collect();
        assert_eq!(culprit(&statuses), Verdict::Root { rank: Rank::new(NUM - 1), waiters });
    }

    #[test]
    fn edges_that_lead_nowhere_are_none() {
        check(&[&[0], &[7]], &[], Verdict::Nobody);
    }
}
