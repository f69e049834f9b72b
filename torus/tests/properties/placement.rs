//! Placement over all small shapes, random hosts and random deaths.

use std::collections::{BTreeMap, BTreeSet};

use toroid_torus::geometry::Shape;
use toroid_torus::holders::backup_of;
use toroid_torus::ids::WorkerId;
use toroid_torus::placement::{Candidate, Placement, place};

use crate::{Random, large, shapes, torus};

type Known = BTreeMap<WorkerId, Candidate>;

/// `sizes[h]` workers on host h, four hosts a rack, two racks a zone.
fn hosts(sizes: &[usize]) -> Known {
    let worker = |h: usize, i: usize| Candidate {
        worker: format!("w{h:04}-{i:02}").into(),
        host: format!("h{h:04}"),
        rack: format!("r{:03}", h / 4),
        zone: format!("z{:02}", h / 8),
    };
    let all = sizes.iter().enumerate().flat_map(|(h, n)| (0..*n).map(move |i| worker(h, i)));
    all.map(|c| (c.worker.clone(), c)).collect()
}

/// The workers of `known` that have no place in `current`.
fn candidates(known: &Known, current: &[Option<WorkerId>]) -> Vec<Candidate> {
    let placed: BTreeSet<&WorkerId> = current.iter().flatten().collect();
    known.values().filter(|c| !placed.contains(&c.worker)).cloned().collect()
}

/// Places and checks T-7, P-1 and P-2.
fn check(shape: &Shape, current: &[Option<WorkerId>], known: &Known, name: &str) -> Placement {
    let mut free = candidates(known, current);
    let placement = place(shape, current, &free, known).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(placement.workers.len(), shape.world(), "P-1: {name}");
    let kept = current.iter().zip(&placement.workers).all(|(old, new)| old.as_ref().is_none_or(|old| old == new));
    assert!(kept, "T-7: {name}");
    let mut all: Vec<&WorkerId> = placement.workers.iter().chain(&placement.spares).collect();
    all.sort();
    let expected: Vec<&WorkerId> = known.keys().collect();
    assert_eq!(all, expected, "P-1: every worker has one place or is a spare, {name}");
    let open: Vec<usize> = (0..shape.world()).filter(|r| current[*r].is_none()).collect();
    assert_eq!(placement.reasons.iter().map(|(rank, _)| rank.index()).collect::<Vec<_>>(), open, "{name}");
    for (rank, reason) in &placement.reasons {
        let at = &known[&placement.workers[rank.index()]];
        assert!(reason.starts_with(&format!("on host {}/{}/{}", at.zone, at.rack, at.host)), "{reason}, {name}");
    }
    Random(known.len() as u64).shuffle(&mut free);
    assert_eq!(place(shape, current, &free, known), Ok(placement.clone()), "P-2: {name}");
    placement
}

fn host<'a>(known: &'a Known, placement: &Placement, rank: usize) -> &'a str {
    &known[&placement.workers[rank]].host
}

/// Pairs of holders of a shard that are on one host.
fn num_shared(shape: &Shape, known: &Known, placement: &Placement) -> usize {
    let shared = |rank: &usize| {
        backup_of(shape, *rank).is_some_and(|next| host(known, placement, *rank) == host(known, placement, next))
    };
    (0..shape.world()).filter(shared).count()
}

fn is_whole(shape: &Shape, known: &Known, placement: &Placement, rank: usize) -> bool {
    shape.tp_group(rank).iter().all(|r| host(known, placement, *r) == host(known, placement, rank))
}

/// P-3: where an empty group was spread, no host has room for a whole one.
fn check_whole(shape: &Shape, current: &[Option<WorkerId>], known: &Known, placement: &Placement, name: &str) {
    let empty = |rank: &usize| shape.tp_group(*rank).iter().all(|r| current[*r].is_none());
    if (0..shape.world()).filter(empty).all(|rank| is_whole(shape, known, placement, rank)) {
        return;
    }
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    placement.spares.iter().for_each(|w| *left.entry(&known[w].host).or_default() += 1);
    assert!(left.values().all(|n| *n < shape.tp()), "P-3: {left:?} are left, {name}");
}

/// As many workers as `num_workers`, on hosts of up to `size_max`.
fn random_hosts(random: &mut Random, num_workers: usize, size_max: usize) -> Known {
    let mut sizes = Vec::new();
    let mut left = num_workers;
    while left > 0 {
        sizes.push((1 + random.below(size_max)).min(left));
        left -= sizes[sizes.len() - 1];
    }
    hosts(&sizes)
}

#[test]
fn random_hosts_and_deaths() {
    for (seed, shape) in (0..).zip(shapes(64)) {
        let random = &mut Random(seed << 32);
        let name = format!("{shape}, seed {seed}");
        let num_spares = random.below(6);
        let known = random_hosts(random, shape.world() + num_spares, 9);
        let empty = vec![None; shape.world()];
        let first = check(&shape, &empty, &known, &name);
        check_whole(&shape, &empty, &known, &first, &name);

        // Some die; the spares and as many newcomers as it takes stand ready.
        let mut current: Vec<Option<WorkerId>> = first.workers.iter().cloned().map(Some).collect();
        let mut known = known;
        for dead in 0..random.below(shape.world() + 1) {
            let rank = random.below(shape.world());
            if let Some(worker) = current[rank].take() {
                known.remove(&worker);
                let newcomer = WorkerId::from(format!("n{dead}"));
                let h = random.below(8);
                let at = Candidate {
                    worker: newcomer.clone(),
                    host: format!("h{h:04}"),
                    rack: "r".into(),
                    zone: "z".into(),
                };
                known.insert(newcomer, at);
            }
        }
        let healed = check(&shape, &current, &known, &name);
        check_whole(&shape, &current, &known, &healed, &name);
    }
}

/// P-4 where it can be had: hosts of equal size with room for whole TP groups, three of them, or two and an even ring of holders.
#[test]
fn holders_of_a_shard_are_on_different_hosts() {
    let ring = |shape: &Shape| if shape.dp() > 1 { shape.dp() } else { shape.pp() };
    for shape in shapes(64).filter(|s| ring(s) > 1) {
        for num_hosts in 2..=9 {
            if num_hosts == 2 && ring(&shape) % 2 == 1 {
                continue;
            }
            let num_groups = shape.world() / shape.tp();
            let groups_per_host = num_groups.div_ceil(num_hosts);
            let known = hosts(&vec![groups_per_host * shape.tp(); num_hosts]);
            let name = format!("{shape} on {num_hosts} hosts of {groups_per_host} groups");
            let placement = check(&shape, &vec![None; shape.world()], &known, &name);
            assert_eq!(num_shared(&shape, &known, &placement), 0, "P-4: {name}");
            assert!((0..shape.world()).all(|r| is_whole(&shape, &known, &placement, r)), "P-3: {name}");
        }
    }
}

#[test]
fn a_replacement_is_beside_its_tp_group_where_a_spare_is() {
    let shape = torus(4, 2, 2, 2);
    // A spare on every host.
    let known = hosts(&[5; 8]);
    let first = check(&shape, &vec![None; shape.world()], &known, "first");
    for dead in 0..shape.world() {
        let mut current: Vec<Option<WorkerId>> = first.workers.iter().cloned().map(Some).collect();
        let mut known = known.clone();
        known.remove(&current[dead].take().expect("it was placed"));
        let healed = check(&shape, &current, &known, &format!("rank {dead} died"));
        assert!(is_whole(&shape, &known, &healed, dead), "P-3: rank {dead}: {}", healed.reasons[0].1);
    }
}

#[test]
fn a_replacement_avoids_the_hosts_of_the_other_holders() {
    for (seed, shape) in (0..).zip(shapes(64).filter(|s| s.tp() == 1 && s.dp() > 1)) {
        let random = &mut Random(seed << 32);
        let known = random_hosts(random, shape.world() + 5, 4);
        let first = check(&shape, &vec![None; shape.world()], &known, "first");
        let dead = random.below(shape.world());
        let mut current: Vec<Option<WorkerId>> = first.workers.iter().cloned().map(Some).collect();
        current[dead] = None;
        let name = format!("{shape}, rank {dead} died, seed {seed}");
        let mut known = known;
        known.remove(&first.workers[dead]);
        let healed = check(&shape, &current, &known, &name);
        let shared_with = |worker: &str| {
            let mut tried = healed.clone();
            tried.workers[dead] = worker.into();
            num_shared(&shape, &known, &tried)
        };
        let best = candidates(&known, &current).iter().map(|c| shared_with(&c.worker)).min();
        assert_eq!(Some(num_shared(&shape, &known, &healed)), best, "P-4: {name}: {}", healed.reasons[0].1);
    }
}

#[test]
fn groups_change_hosts_where_that_parts_holders() {
    // By name alone dp_rank 2 would go to h0000 and leave only h0002, the host of its neighbours, to dp_rank 3.
    let shape = torus(1, 4, 2, 2);
    let known = hosts(&[4, 4, 8]);
    let placement = check(&shape, &vec![None; shape.world()], &known, "uneven hosts");
    assert_eq!(num_shared(&shape, &known, &placement), 0, "P-4");
}

#[test]
fn the_large_shape_is_placed_and_healed() {
    let shape = large();
    let known = hosts(&[9; 256]);
    let first = check(&shape, &vec![None; shape.world()], &known, "first");
    assert_eq!(num_shared(&shape, &known, &first), 0, "P-4");
    assert!((0..shape.world()).all(|r| is_whole(&shape, &known, &first, r)), "P-3");
    let mut current: Vec<Option<WorkerId>> = first.workers.iter().cloned().map(Some).collect();
    let lost = host(&known, &first, 1000).to_string();
    current.iter_mut().filter(|w| w.as_ref().is_some_and(|w| known[w].host == lost)).for_each(|w| *w = None);
    let left: Known = known.clone().into_iter().filter(|(_, c)| c.host != lost).collect();
    check(&shape, &current, &left, "a host was lost");
    // Nothing to choose from: one host has them all.
    let shape = torus(1, 1, 32, 64);
    check(&shape, &vec![None; shape.world()], &hosts(&[2048, 1]), "one host");
    check(&torus(8, 4, 4, 16), &vec![None; 2048], &hosts(&[1; 2048]), "hosts of one worker");
}

#[test]
fn a_survivor_of_an_unknown_host_keeps_its_place() {
    let shape = torus(2, 1, 2, 1);
    let mut known = hosts(&[4]);
    let current = vec![Some("stranger".into()), None, None, None];
    let placement = place(&shape, &current, &candidates(&known, &current), &known).expect("enough workers");
    assert_eq!(placement.workers, ["stranger", "w0000-00", "w0000-01", "w0000-02"], "T-7");
    known.remove("w0000-03");
    let error = place(&shape, &[const { None }; 4], &candidates(&known, &[]), &known).expect_err("too few");
    assert_eq!(
        error.to_string(),
        "placing tp 2 x pp 1 x dp 2 on a 4 x 1 torus needs 4 workers: 0 places keep theirs, 4 are empty, and 3 workers without a \
         place were found; start 1 more or ask for a smaller dp"
    );
}

#[test]
#[should_panic(expected = "a survivor was named as a candidate")]
fn a_worker_in_two_roles_is_a_bug() {
    let known = hosts(&[2]);
    let all: Vec<Candidate> = known.values().cloned().collect();
    drop(place(&torus(1, 1, 2, 1), &[Some(all[0].worker.clone()), None], &all, &known));
}
