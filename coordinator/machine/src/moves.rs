//! Workers whose places were moved to others. They are remembered until the epoch without them is healed, since a moved worker may have the
//! only copy of a shard until then.

use toroid_torus::ids::{Rank, WorkerId};

/// A worker whose place was moved.
#[derive(Debug)]
pub(crate) struct Moved {
    pub worker: WorkerId,
    pub rank: Rank,
    /// An epoch without it was started: the newcomer may have the shards by now, and may even be a step further.
    pub is_started: bool,
}

/// The workers of a job whose places were moved.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    moved: Vec<Moved>,
}

impl Moves {
    pub fn is_empty(&self) -> bool {
        self.moved.is_empty()
    }

    /// The place of a worker is to be filled by another.
    pub fn add(&mut self, worker: WorkerId, rank: Rank) {
        self.moved.push(Moved { worker, rank, is_started: false });
    }

    /// An epoch without them was started.
    pub fn started(&mut self) {
        self.moved.iter_mut().for_each(|moved| moved.is_started = true);
    }

    /// Takes away those that `is_asked` names.
    pub fn take(&mut self, is_asked: impl Fn(&Moved) -> bool) -> Vec<Moved> {
        let (asked, kept) = std::mem::take(&mut self.moved).into_iter().partition(is_asked);
        self.moved = kept;
        asked
    }
}
