//! A TP group whose ranks are threads of one process.
//!
//! ```text
//!   rank 0  own values -> parts[0] --.                      .--> rank 0 adds parts[0], parts[1], ...
//!   rank 1  own values -> parts[1] ---+-- all have come ---+---> rank 1 adds parts[0], parts[1], ...
//! ```
//!
//! Every sum adds the values of rank 0 first and those of the others in their order: the bits of the torus ([`crate::comm::all_reduce_sum`]).
//!
//! Who waits sleeps. A rank that goes, by a panic too, ends the waits of the others with [`RankGone`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use super::tp::TpComm;

/// Another thread of the group has ended, so that its values never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another thread of the TP group has ended")]
pub struct RankGone;

/// A rank of a group of threads.
pub struct ThreadGroup {
    rank: usize,
    table: Arc<Table>,
    /// Collectives so far.
    round: usize,
}

/// What the ranks share.
struct Table {
    /// Values by rank. The two sets take turns: whoever is ahead puts its next values down while others still read.
    parts: [Vec<RwLock<Vec<f32>>>; 2],
    meeting: Mutex<Meeting>,
    all_have_come: Condvar,
}

#[derive(Default)]
struct Meeting {
    /// Ranks that wait for the others.
    num_waiting: usize,
    /// Times that all have come.
    num_met: usize,
    is_left: bool,
}

impl Table {
    fn size(&self) -> usize {
        self.parts[0].len()
    }

    /// A rank that panicked has left, which is all that others need to know of it.
    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all ranks have come.
    fn meet(&self) -> Result<(), RankGone> {
        let mut meeting = self.meeting();
        if meeting.is_left {
            return Err(RankGone);
        }
        let met = meeting.num_met;
        meeting.num_waiting += 1;
        if meeting.num_waiting == self.size() {
            meeting.num_waiting = 0;
            meeting.num_met += 1;
            self.all_have_come.notify_all();
            return Ok(());
        }
        while meeting.num_met == met {
            if meeting.is_left {
                return Err(RankGone);
            }
            meeting = self.all_have_come.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl ThreadGroup {
    /// The ranks of a group, in their order.
    pub fn new(size: usize) -> Vec<ThreadGroup> {
        assert!(size > 0, "a group of no rank");
        let parts = || (0..size).map(|_| RwLock::default()).collect();
        let table = Table { parts: [parts(), parts()], meeting: Mutex::default(), all_have_come: Condvar::default() };
        let table = Arc::new(table);
        (0..size).map(|rank| ThreadGroup { rank, table: Arc::clone(&table), round: 0 }).collect()
    }

    /// Every rank's `own`, by rank, once all have come.
    fn exchange(&mut self, own: &[f32]) -> Result<&[RwLock<Vec<f32>>], RankGone> {
        let parts = &self.table.parts[self.round % 2];
        self.round += 1;
        let mut part = parts[self.rank].write().unwrap_or_else(PoisonError::into_inner);
        part.clear();
        part.extend_from_slice(own);
        drop(part);
        self.table.meet()?;
        Ok(parts)
    }
}

/// What a rank has put down.
fn read(part: &RwLock<Vec<f32>>) -> RwLockReadGuard<'_, Vec<f32>> {
    part.read().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for ThreadGroup {
    fn drop(&mut self) {
        self.table.meeting().is_left = true;
        self.table.all_have_come.notify_all();
    }
}

impl TpComm for ThreadGroup {
    type Error = RankGone;

    fn size(&self) -> usize {
        self.table.size()
    }
    fn rank(&self) -> usize {
        self.rank
    }
    fn all_reduce(&mut self, buf: &mut [f32]) -> Result<(), RankGone> {
        for (rank, part) in self.exchange(buf)?.iter().enumerate() {
            let part = read(part);
            assert_eq!(part.len(), buf.len(), "the ranks of a group sum buffers of one length");
            match rank {
                0 => buf.copy_from_slice(&part),
                _ => buf.iter_mut().zip(&*part).for_each(|(sum, x)| *sum += x),
            }
        }
        Ok(())
    }
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<(), RankGone> {
        let parts = self.exchange(own)?;
        assert_eq!(all.len(), parts.len() * own.len(), "one part for each rank");
        if !own.is_empty() {
            parts.iter().zip(all.chunks_exact_mut(own.len())).for_each(|(part, all)| all.copy_from_slice(&read(part)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// The sum that loses a 1 in this order, and keeps it in others; what is gathered; again and again without a rank that reads too late.
    #[test]
    fn sums_are_in_the_order_of_the_ranks() {
        let values = [1e8, 1.0, -1e8, 0.5];
        let ranks = ThreadGroup::new(4).into_iter().map(|mut group| {
            thread::spawn(move || {
                let own = values[group.rank()];
                for round in 0..1000 {
                    let (mut sum, mut all) = ([own, round as f32], [0.0; 4]);
                    group.all_reduce(&mut sum).unwrap();
                    assert_eq!(sum, [0.5, 4.0 * round as f32]);
                    group.all_gather(&[own], &mut all).unwrap();
                    assert_eq!(all, values);
                }
            })
        });
        ranks.collect::<Vec<_>>().into_iter().for_each(|rank| rank.join().unwrap());
    }

    #[test]
    fn a_rank_that_goes_ends_the_waits_of_the_others() {
        let mut ranks = ThreadGroup::new(3);
        let gone = ranks.pop().unwrap();
        let waiting: Vec<_> = ranks
            .into_iter()
            .map(|mut group| thread::spawn(move || (group.all_reduce(&mut [1.0]), group.all_gather(&[], &mut []))))
            .collect();
        let panicked = thread::spawn(move || {
            let _gone = gone;
            panic!("of the test");
        });
        assert!(panicked.join().is_err());
        for rank in waiting {
            assert_eq!(rank.join().unwrap(), (Err(RankGone), Err(RankGone)));
        }
    }
}
