//! Workers that hold a later epoch of a job than the store knows: the store is an older copy.
//!
//! ```text
//!   store: epoch 5, [a, b, c]      registers: a (epoch 6, rank 0), c (epoch 6, rank 2), d (epoch 6, rank 1), b (epoch 5)
//!                                  the newest that is claimed counts: epoch 6, [a, d, c], which the job goes on from
//! ```
//!
//! Which places an epoch has is what its workers say of it, each of its own: the shape has to be the same, and a rank is had by one. What they
//! hold they say as in any epoch that heals (T-3). Deliberately absent: when that is decided.

use std::collections::BTreeMap;

use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, Rank, Step, WorkerId};

/// What a worker says of its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub epoch: Epoch,
    pub shape: Shape,
    pub rank: Rank,
    pub committed: Step,
}

/// Who has which place of the newest epoch that workers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub epoch: Epoch,
    pub shape: Shape,
    /// By rank.
    pub places: Vec<Option<WorkerId>>,
    /// Of those places, 0 where nobody has them.
    pub committed: Vec<Step>,
}

impl Found {
    pub fn num_places(&self) -> usize {
        self.places.iter().flatten().count()
    }

    pub fn is_whole(&self) -> bool {
        self.num_places() == self.places.len()
    }
}

/// What was claimed since the coordinator was started.
#[derive(Debug, Default)]
pub(crate) struct Later {
    claims: BTreeMap<WorkerId, Held>,
}

impl Later {
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    pub fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.claims.keys()
    }

    pub fn into_claims(self) -> impl Iterator<Item = (WorkerId, Held)> {
        self.claims.into_iter()
    }

    pub fn claim(&mut self, worker: WorkerId, held: Held) {
        self.claims.insert(worker, held);
    }

    /// Those that are still there.
    pub fn retain(&mut self, is_there: impl Fn(&WorkerId) -> bool) {
        self.claims.retain(|worker, _| is_there(worker));
    }

    /// The newest epoch that is claimed, as most of its workers say it.
    pub fn found(&self) -> Option<Found> {
        let epoch = self.claims.values().map(|held| held.epoch).max()?;
        let newest = || self.claims.iter().filter(|(_, held)| held.epoch == epoch);
        let mut shapes: BTreeMap<Shape, usize> = BTreeMap::new();
        newest().for_each(|(_, held)| *shapes.entry(held.shape).or_default() += 1);
        let (shape, _) = shapes.into_iter().max_by_key(|(_, num)| *num)?;
        let (mut places, mut committed) = (vec![None; shape.world()], vec![Step::ZERO; shape.world()]);
        for (worker, held) in newest().filter(|(_, held)| held.shape == shape) {
            let rank = held.rank.index();
            if places.get(rank) == Some(&None) {
                (places[rank], committed[rank]) = (Some(worker.clone()), held.committed);
            }
        }
        Some(Found { epoch, shape, places, committed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(epoch: u64, dp: usize, rank: usize) -> Held {
        Held {
            epoch: Epoch::new(epoch),
            shape: Shape::new(1, 1, dp).expect("a shape"),
            rank: Rank::new(rank),
            committed: Step::new(10 * epoch),
        }
    }

    /// `(epoch, workers by rank)` of what is found.
    fn check(claims: &[(&str, Held)], expected: Option<(u64, &[&str])>) {
        let mut later = Later::default();
        claims.iter().for_each(|(worker, held)| later.claim((*worker).into(), held.clone()));
        let found = later.found();
        let in_words = found.as_ref().map(|found| {
            let name = |worker: &Option<WorkerId>| worker.as_ref().map_or("", WorkerId::as_str).to_string();
            (found.epoch.get(), found.places.iter().map(name).collect::<Vec<_>>())
        });
        let expected = expected.map(|(epoch, names)| (epoch, names.iter().map(|n| n.to_string()).collect()));
        assert_eq!(in_words, expected, "{claims:?}");
    }

    #[test]
    fn t14_the_newest_epoch_counts_as_most_of_its_workers_say_it() {
        check(&[], None);
        check(&[("a", held(6, 2, 0)), ("b", held(6, 2, 1))], Some((6, &["a", "b"])));
        check(&[("a", held(6, 2, 0)), ("b", held(5, 2, 1)), ("d", held(7, 2, 1))], Some((7, &["", "d"])));
        // A rank is had by one, and who is of another shape has no place.
        check(&[("a", held(6, 2, 0)), ("b", held(6, 2, 0)), ("c", held(6, 3, 2))], Some((6, &["a", ""])));
    }
}
