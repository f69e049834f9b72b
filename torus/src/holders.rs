//! The two holders of every shard (design section 4.2): the rank whose shard it is, the *primary*, and its *backup*.
//!
//! In a DP group the backup of dp_rank `r` is `r + 1`, around the group. Where `dp = 1` nobody else has the same partition; then the
//! backup is the next rank along the torus, down the column where there is one (the row is the TP group, most likely one host), and
//! the job pays for sending its gradients there.
//!
//! T-3: while one holder of each shard lives, no committed step is lost.

use std::collections::BTreeSet;

use crate::geometry::{Coord, Place, Shape};

/// The rank that keeps a second copy of the shard of `rank`; `None` where there is only one rank.
pub fn backup_of(shape: &Shape, rank: usize) -> Option<usize> {
    neighbour(shape, rank, 1)
}

/// The rank whose shard `rank` keeps a second copy of: the inverse of [`backup_of`].
pub fn guarded_by(shape: &Shape, rank: usize) -> Option<usize> {
    neighbour(shape, rank, -1)
}

fn neighbour(shape: &Shape, rank: usize, by: isize) -> Option<usize> {
    let shift = |at: usize, n: usize| (at as isize + by).rem_euclid(n as isize) as usize;
    if shape.world() == 1 {
        return None;
    }
    if shape.dp() > 1 {
        let place = shape.place(rank);
        return Some(shape.rank(Place { dp: shift(place.dp, shape.dp()), ..place }));
    }
    let Coord { x, y } = shape.coord(rank);
    let (x, y) = if shape.height() > 1 { (x, shift(y, shape.height())) } else { (shift(x, shape.width()), y) };
    Some(y * shape.width() + x)
}

/// The first rank whose shard has no holder outside of `lost`; `None`: every shard can be had from somebody.
pub fn lost_shard(shape: &Shape, lost: &BTreeSet<usize>) -> Option<usize> {
    lost.iter().copied().find(|&rank| backup_of(shape, rank).is_none_or(|backup| lost.contains(&backup)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> impl Iterator<Item = Shape> {
        (1..=4).flat_map(|tp| (1..=4).flat_map(move |pp| (1..=4).filter_map(move |dp| Shape::new(tp, pp, dp).ok())))
    }

    #[test]
    fn every_shard_has_two_holders_and_every_rank_holds_two_shards() {
        for shape in shapes().filter(|s| s.world() > 1) {
            let mut backups = BTreeSet::new();
            for rank in 0..shape.world() {
                let backup = backup_of(&shape, rank).expect("more than one rank");
                assert_ne!(backup, rank, "{shape}");
                assert_eq!(guarded_by(&shape, backup), Some(rank), "{shape}");
                assert!(backups.insert(backup), "{shape}: rank {backup} keeps two copies");
                if shape.dp() > 1 {
                    let (own, other) = (shape.place(rank), shape.place(backup));
                    assert_eq!((own.tp, own.pp), (other.tp, other.pp), "{shape}");
                }
            }
        }
        assert_eq!(backup_of(&Shape::new(1, 1, 1).expect("a shape"), 0), None);
    }

    #[test]
    fn t3_a_shard_is_lost_only_with_both_holders() {
        for shape in shapes().filter(|s| s.world() > 1) {
            for rank in 0..shape.world() {
                assert_eq!(lost_shard(&shape, &BTreeSet::from([rank])), None, "{shape}");
                let backup = backup_of(&shape, rank).expect("more than one rank");
                assert!(lost_shard(&shape, &BTreeSet::from([rank, backup])).is_some(), "{shape}");
                for other in (0..shape.world()).filter(|&o| o != backup && guarded_by(&shape, rank) != Some(o)) {
                    assert_eq!(lost_shard(&shape, &BTreeSet::from([rank, other])), None, "{shape} {rank} {other}");
                }
            }
        }
    }
}
