//! Who has which place of a job: by rank, and the other way round. Both are asked for with every message, so neither is looked through.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toroid_torus::ids::{Rank, WorkerId};

/// Read as the list by rank, `None` where a place is empty; stored as that as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    by_rank: Vec<Option<WorkerId>>,
    ranks: BTreeMap<WorkerId, Rank>,
}

impl Places {
    /// Gives the place to this worker, or to nobody; returns who had it.
    ///
    /// # Panics
    /// If there is no such place, or the worker has another one.
    pub fn set(&mut self, rank: Rank, worker: Option<WorkerId>) -> Option<WorkerId> {
        let before = std::mem::replace(&mut self.by_rank[rank.index()], worker.clone());
        if let Some(before) = &before {
            self.ranks.remove(before);
        }
        if let Some(worker) = worker {
            let other = self.ranks.insert(worker, rank);
            assert_eq!(other, None, "a worker has one place");
        }
        before
    }

    pub fn rank_of(&self, worker: &str) -> Option<Rank> {
        self.ranks.get(worker).copied()
    }

    pub fn num_empty(&self) -> usize {
        self.by_rank.len() - self.ranks.len()
    }
}

impl From<Vec<Option<WorkerId>>> for Places {
    fn from(by_rank: Vec<Option<WorkerId>>) -> Places {
        let placed = by_rank.iter().zip(Rank::all(by_rank.len()));
        let ranks = placed.filter_map(|(worker, rank)| Some((worker.clone()?, rank))).collect();
        Places { by_rank, ranks }
    }
}

impl Deref for Places {
    type Target = [Option<WorkerId>];

    fn deref(&self) -> &[Option<WorkerId>] {
        &self.by_rank
    }
}

impl Serialize for Places {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_rank.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Places, D::Error> {
        Vec::deserialize(deserializer).map(Places::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_say_the_same() {
        let worker = |name: &str| Some(WorkerId::from(name));
        let mut places = Places::from(vec![worker("a"), None, worker("c")]);
        assert_eq!((places.num_empty(), places.rank_of("c"), places.rank_of("b")), (1, Some(Rank::new(2)), None));
        assert_eq!(places.set(Rank::new(0), None), worker("a"));
        assert_eq!(places.set(Rank::new(1), worker("a")), None);
        assert_eq!(places.set(Rank::new(2), worker("d")), worker("c"));
        assert_eq!(*places, [None, worker("a"), worker("d")]);
        assert_eq!((places.rank_of("a"), places.rank_of("c"), places.num_empty()), (Some(Rank::new(1)), None, 1));
        let stored = serde_json::to_string(&places).unwrap();
        assert_eq!(stored, r#"[null,"a","d"]"#);
        assert_eq!(serde_json::from_str::<Places>(&stored).unwrap(), places);
    }
}
