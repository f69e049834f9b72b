//! Which of two copies that differ is the right one: the last update is made again from its inputs.
//!
//! ```text
//!   seal S      digests of state and gradient of both shards, agreed on       commit S   inputs kept: state before, gradient
//!   seal S + 1  digests of the state after S differ -> all stop before the commit (T-2), each holder replays S
//!               inputs not as agreed, or replay != state: wrong         votes of all -> everybody knows who is wrong
//! ```
//!
//! Who is wrong is replaced as if it had died: no step is lost, no checkpoint restored. Where the votes do not decide, the last
//! checkpoint is. What is flipped before the gradient of a shard is sealed is the same at both holders and cannot be seen here.
//!
//! No input is copied but the gradient of the place's own shard: an update goes out of place, from the state that stays into the
//! room of the one before, and the gradient of the guarded shard stays where it was received.
//!
//! The inputs cost `16` bytes for each element of the two shards that a place holds (`fault_tolerance.replay`).

use std::collections::BTreeSet;

use toroid_torus::geometry::Shape;
use toroid_torus::holders::{backup_of, guarded_by};

use super::error::StepError;
use super::job::Job;
use super::kept::Vote;
use super::shared::Shared;
use crate::comm::{CommError, Links, global_sum};
use crate::device::CachedAttention;

/// Of one shard whose copies differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ballot {
    /// Rank whose shard it is.
    shard: usize,
    primary: Vote,
    backup: Vote,
}

/// The ranks that hold a wrong copy, or why that cannot be told.
fn verdict(shape: &Shape, ballots: &[Ballot]) -> Result<BTreeSet<usize>, String> {
    let mut wrong = BTreeSet::new();
    for Ballot { shard, primary, backup } in ballots {
        let Some(other) = backup_of(shape, *shard) else { continue };
        wrong.insert(match (primary, backup) {
            // Two copies that differ cannot both be right.
            (Vote::Right, Vote::Wrong | Vote::Unknown) | (Vote::Unknown, Vote::Wrong) => other,
            (Vote::Wrong | Vote::Unknown, Vote::Right) | (Vote::Wrong, Vote::Unknown) => *shard,
            (Vote::Right, Vote::Right) => {
                return Err(format!("ranks {shard} and {other} replay it with different results"));
            }
            (Vote::Wrong, Vote::Wrong) => return Err(format!("the replay finds both ranks {shard} and {other} wrong")),
            (Vote::Unknown, Vote::Unknown) => {
                return Err(format!("neither rank {shard} nor rank {other} can replay it"));
            }
        });
    }
    Ok(wrong)
}

impl<D: CachedAttention> Job<D> {
    /// Somebody saw copies that differ: everybody replays the last update of both its shards and tells all others. The error that ends
    /// this epoch; it has words where this place saw it.
    pub(super) fn replay(&mut self, links: &mut Links, shared: &Shared) -> Result<StepError, CommError> {
        shared.enter("replay");
        let (shape, rank) = (self.assignment.spec.shape, self.assignment.rank.index());
        let (own, copy) = self.shards.replay(self.passes.device(), &self.assignment.spec.optimizer);
        // By rank: whether copies of its shard differ, the vote of its primary, that of its backup.
        let mut votes = vec![0.0; 3 * shape.world()];
        votes[3 * rank + 1] = own.encode();
        if let (Some(copy), Some(guarded)) = (copy, guarded_by(&shape, rank)) {
            votes[3 * guarded] = f64::from(u8::from(self.shards.saw_corruption()));
            votes[3 * guarded + 2] = copy.encode();
        }
        global_sum(links, &shape, &mut votes)?;
        let ballots: Vec<Ballot> = votes
            .chunks_exact(3)
            .enumerate()
            .filter(|(_, vote)| vote[0] > 0.0)
            .map(|(shard, vote)| Ballot { shard, primary: Vote::decode(vote[1]), backup: Vote::decode(vote[2]) })
            .collect();
        let seen = self.shards.take_corruption();
        let verdict = verdict(&shape, &ballots);
        let wrong = verdict.clone().unwrap_or_default();
        let found = match verdict {
            Ok(wrong) => {
                let wrong: Vec<String> = wrong.iter().map(|rank| format!("rank {rank}")).collect();
                format!("the step made again from its inputs says that the copy of {} is wrong", wrong.join(" and of "))
            }
            Err(why) => format!("which one is right cannot be told: {why}"),
        };
        Ok(StepError::Corrupt { seen: seen.map(|seen| format!("{seen}; {found}")), wrong })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_that_its_replay_does_not_give_is_wrong() {
        use Vote::{Right, Unknown, Wrong};
        let shape = Shape::new(1, 1, 4).expect("a shape");
        let check = |ballots: &[(usize, Vote, Vote)], expected: Result<&[usize], &str>| {
            let ballots: Vec<Ballot> =
                ballots.iter().map(|&(shard, primary, backup)| Ballot { shard, primary, backup }).collect();
            match (verdict(&shape, &ballots), expected) {
                (Ok(found), Ok(expected)) => assert!(found.iter().eq(expected), "{ballots:?} gave {found:?}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{ballots:?} gave {found}"),
                (found, expected) => panic!("{ballots:?} gave {found:?}, expected {expected:?}"),
            }
        };
        check(&[(1, Wrong, Right)], Ok(&[1]));
        check(&[(1, Right, Wrong)], Ok(&[2]));
        check(&[(3, Right, Wrong)], Ok(&[0]));
        // A newcomer has nothing to replay until its first commit.
        check(&[(1, Unknown, Right)], Ok(&[1]));
        check(&[(1, Unknown, Wrong)], Ok(&[2]));
        // One place with two wrong shards, and two places with one each.
        check(&[(1, Right, Wrong), (2, Wrong, Right)], Ok(&[2]));
        check(&[(0, Wrong, Right), (2, Right, Wrong)], Ok(&[0, 3]));
        check(&[(1, Right, Right)], Err("different results"));
        check(&[(1, Wrong, Wrong)], Err("both ranks 1 and 2 wrong"));
        check(&[(0, Wrong, Right), (1, Unknown, Unknown)], Err("neither rank 1 nor rank 2"));
    }
}
