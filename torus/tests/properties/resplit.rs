//! Shrinking and growing over all small shapes, with random deaths.

use std::collections::BTreeSet;

use toroid_torus::geometry::Shape;
use toroid_torus::holders::{backup_of, guarded_by};
use toroid_torus::partition::{SHARD_ALIGN, shard_len};
use toroid_torus::resplit::{Half, Origin, keep, moves, num_lost, shard_range};

use crate::{Random, shapes};

/// Elements of the partition of (tp, pp): of different lengths, some shorter than one shard's alignment times dp.
fn len_of(tp: usize, pp: usize) -> usize {
    [5, 333, 1000, 16 * 12][(tp + 2 * pp) % 4] + tp
}

/// Checks of every shard of every place.
fn check_moves(origin: &Origin, shape: &Shape) {
    let name = format!("{} to {shape}, {:?}", origin.shape, origin.ranks);
    let plan = moves(origin, shape, len_of).unwrap_or_else(|lost| panic!("{name}: {lost}"));
    for to in 0..shape.world() {
        for (target, of) in [(Half::Own, Some(to)), (Half::Guarded, guarded_by(shape, to))] {
            let Some(of) = of else { continue };
            let place = shape.place(of);
            let wanted = shard_range(shape, of, len_of(place.tp, place.pp));
            let mut at = wanted.start;
            let mut mine: Vec<_> = plan.iter().filter(|m| (m.to, m.target) == (to, target)).collect();
            mine.sort_by_key(|m| m.range.start);
            for m in mine {
                assert_eq!(m.range.start, at, "R-1: {name}: {m:?}");
                at = m.range.end;
                let holds = |now: usize| {
                    let old = origin.ranks[now]?;
                    let guarded = guarded_by(&origin.shape, old);
                    let of_part = [(Half::Own, Some(old)), (Half::Guarded, guarded)];
                    let covers = |r: usize| {
                        let part = origin.shape.place(r);
                        let range = shard_range(&origin.shape, r, len_of(part.tp, part.pp));
                        (part.tp, part.pp) == (place.tp, place.pp)
                            && range.start <= m.range.start
                            && m.range.end <= range.end
                    };
                    of_part.into_iter().find(|(_, r)| r.is_some_and(covers)).map(|(half, _)| half)
                };
                assert_eq!(holds(m.from), Some(m.source), "R-1: {name}: {m:?}");
                assert!(m.from == to || holds(to).is_none(), "R-2: {name}: {m:?}");
            }
            assert_eq!(at, wanted.end, "R-1: {name}: rank {to}, {target:?}");
        }
    }
}

#[test]
fn every_element_comes_from_a_living_holder_whatever_the_change() {
    let mut random = Random(11);
    for from in shapes(64) {
        let dps = [1, from.dp().saturating_sub(1).max(1), from.dp(), from.dp() + 1, 1 + random.below(64)];
        for dp in dps.into_iter().filter(|dp| from.tp() * from.pp() * dp <= 64) {
            let to = Shape::new(from.tp(), from.pp(), dp).expect("a valid shape");
            let num_dead = random.below(from.world());
            let mut ranks: Vec<usize> = (0..from.world()).collect();
            random.shuffle(&mut ranks);
            let mut survivors: BTreeSet<usize> = (0..from.world()).collect();
            for rank in ranks.into_iter().take(num_dead) {
                // Most of the time a shard would be lost with so many dead: only those die that leave a holder of each.
                let without: BTreeSet<usize> = survivors.iter().copied().filter(|r| *r != rank).collect();
                survivors = if num_lost(&from, &without) == 0 { without } else { survivors };
            }
            let lost = |kept: &BTreeSet<usize>| num_lost(&from, kept);
            let Some(ranks) = keep(&from, &to, &survivors, lost) else { continue };
            let placed: BTreeSet<usize> = ranks.iter().copied().flatten().collect();
            let name = format!("R-3: {from} to {to}, {survivors:?}");
            assert_eq!(placed.len(), ranks.iter().flatten().count(), "{name}: nobody has two places");
            assert!(placed.is_subset(&survivors), "{name}");
            assert_eq!(placed.len(), survivors.len().min(to.world()), "{name}: nobody is left while a place is empty");
            check_moves(&Origin { shape: from, ranks }, &to);
        }
    }
}

#[test]
fn one_death_never_stands_in_the_way_of_shrinking() {
    for from in shapes(64).filter(|s| s.dp() > 1) {
        let to = Shape::new(from.tp(), from.pp(), from.dp() - 1).expect("a valid shape");
        for dead in 0..from.world() {
            let survivors: BTreeSet<usize> = (0..from.world()).filter(|r| *r != dead).collect();
            let ranks = keep(&from, &to, &survivors, |kept| num_lost(&from, kept));
            let ranks = ranks.unwrap_or_else(|| panic!("R-3: {from} without rank {dead}"));
            // Whole replicas stay together, in their order.
            let replicas: Vec<usize> = (0..to.dp()).map(|dp| from.place(at(&to, &ranks, dp)).dp).collect();
            assert!(replicas.is_sorted(), "{from} without rank {dead}: {replicas:?}");
            let origin = Origin { shape: from, ranks };
            assert!(moves(&origin, &to, |_, _| 1000).is_ok(), "T-3: {from} without rank {dead}");
        }
    }
}

fn at(to: &Shape, ranks: &[Option<usize>], dp: usize) -> usize {
    let rank = to.rank(toroid_torus::geometry::Place { tp: 0, pp: 0, dp });
    ranks[rank].expect("one death leaves no gap in the others")
}

/// Ranks 1 and 3 of (1, 2, 4) hold the only copies of stage 1 that are left, and the replica that stays as a whole has another.
#[test]
fn who_is_needed_changes_places_with_who_is_not() {
    let from = Shape::new(1, 2, 4).expect("a valid shape");
    let of = |pp, dp| from.rank(toroid_torus::geometry::Place { tp: 0, pp, dp });
    let survivors = BTreeSet::from([of(0, 0), of(0, 2), of(1, 1), of(1, 2), of(1, 3)]);
    assert_eq!(num_lost(&from, &survivors), 0);
    let to = Shape::new(1, 2, 2).expect("a valid shape");
    let ranks = keep(&from, &to, &survivors, |kept| num_lost(&from, kept)).expect("it can be had");
    let kept: BTreeSet<usize> = ranks.iter().copied().flatten().collect();
    assert_eq!(kept, BTreeSet::from([of(0, 0), of(0, 2), of(1, 1), of(1, 3)]));
    check_moves(&Origin { shape: from, ranks }, &to);
}

#[test]
fn a_shard_without_a_holder_is_named() {
    let (from, to) = (Shape::new(1, 1, 4).expect("a shape"), Shape::new(1, 1, 2).expect("a shape"));
    let origin = Origin { shape: from, ranks: vec![Some(0), Some(3)] };
    let lost = moves(&origin, &to, |_, _| 64).expect_err("ranks 1 and 2 held it");
    assert_eq!(lost.rank, 1);
}

#[test]
fn shards_of_any_number_of_replicas_cover_the_partition() {
    for len in [1, 15, 16, 17, 1000, 4096] {
        for dp in 1..=20 {
            let shape = Shape::new(1, 1, dp).expect("a valid shape");
            assert!(shard_len(len, dp).is_multiple_of(SHARD_ALIGN));
            let mut ranges: Vec<_> = (0..dp).map(|rank| shard_range(&shape, rank, len)).collect();
            ranges.sort_by_key(|r| (r.start, r.end));
            assert_eq!(ranges.iter().map(ExactSizeIterator::len).sum::<usize>(), len, "{len} over {dp}");
            assert!(ranges.windows(2).all(|w| w[0].end == w[1].start), "{len} over {dp}");
            assert_eq!(backup_of(&shape, 0).is_some(), dp > 1);
        }
    }
}
