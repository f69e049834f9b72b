//! Another number of replicas, in place: the process stays, its parts are made for the new place, and both its shards are put together
//! from what the places hold of the shape before ([`toroid_torus::resplit`]).
//!
//! ```text
//!   A held, made for A ── remake ──> A held earlier ── moves ──> A and B held ── all have B: a sum over the torus ──> B held
//! ```
//!
//! T-3: the state as it was split before goes only when the sum has returned, so that all have it as it is split now. Whoever is fenced
//! before reports both, and the coordinator decides from which of the two all go on.

use std::collections::BTreeSet;
use std::ops::Range;

use toroid_session::{Assignment, HealPlan, HeldAs};
use toroid_torus::digest::DIGEST_BYTES;
use toroid_torus::failpoint;
use toroid_torus::ids::Rank;
use toroid_torus::partition::partition;
use toroid_torus::resplit::{Lost, Move, Origin, moves};
use toroid_torus::units;

use super::encode::{decode, encode};
use super::error::{StepError, corrupt, refuse};
use super::held::Earlier;
use super::job::Job;
use super::shared::Shared;
use super::workspace::Parts;
use crate::comm::{Channel, Links, Transfer, global_sum};
use crate::device::{CachedAttention, Device};
use crate::optim::Shard;

fn moves_of(assignment: &Assignment, origin: &Origin) -> Result<Vec<Move>, Lost> {
    let spec = &assignment.spec;
    moves(origin, &spec.shape, |tp, pp| partition(&spec.model, &spec.shape, tp, pp).len)
}

/// Ranks that this place sends ranges to or has them from.
pub(super) fn peers(assignment: &Assignment, origin: &Origin) -> BTreeSet<usize> {
    let rank = assignment.rank.index();
    // Where a shard is lost there is nobody to connect to, and `resplit` says so.
    let moves = moves_of(assignment, origin).unwrap_or_default();
    let ends = moves.iter().filter(|m| m.from != m.to).filter_map(|m| match (m.from == rank, m.to == rank) {
        (true, _) => Some(m.to),
        (_, true) => Some(m.from),
        _ => None,
    });
    ends.collect()
}

impl<D: CachedAttention> Job<D> {
    /// Turns to the one state that the plan goes on from; what else this place holds is given up.
    pub(super) fn turn_to(&mut self, plan: &HealPlan) -> Result<(), StepError> {
        let target = self.assignment.held_as();
        let wanted = match &plan.origin {
            Some(origin) => {
                origin.ranks[target.rank.index()].map(|rank| HeldAs { shape: origin.shape, rank: Rank::new(rank) })
            }
            None => (!plan.newcomers.contains(&target.rank)).then_some(target),
        };
        let earlier = self.held.take_earlier();
        let Some(wanted) = wanted else {
            self.held.set_has_state(false);
            self.curve.forget_steps();
            if self.held.made_for() != target {
                self.remake()?;
            }
            return Ok(());
        };
        if self.held.has_state_of(wanted) {
            return Ok(());
        }
        let Some(earlier) = earlier.filter(|e| e.held_as == wanted) else {
            return Err(corrupt(format!(
                "rank {} is to go on with the shards of rank {} of {}, and does not hold them",
                target.rank, wanted.rank, wanted.shape
            )));
        };
        self.held.set_has_state(false);
        if wanted == target {
            self.remake()?;
            self.shards.put(earlier.own, earlier.guarded);
            self.held.set_has_state(true);
        } else {
            self.held.keep(earlier);
        }
        Ok(())
    }

    /// Makes the parts of this place anew, for the place of the assignment and without state; returns the shards that were there. All else
    /// is given back first: a device holds both splits of the shards for a while, and not both of everything.
    fn remake(&mut self) -> Result<Earlier<D>, StepError> {
        let device = self.passes.device().clone();
        self.passes.give_up();
        let guarded = self.shards.give_up_all_but_state();
        let kept_elements = self.shards.own().range.len() + guarded.as_ref().map_or(0, |copy| copy.range.len());
        tracing::info!(
            "memory: {} of shards as they were split before stay until all places have the new ones",
            units::bytes(12 * kept_elements as u64)
        );
        let (spec, rank) = (&self.assignment.spec, self.assignment.rank.index());
        let (made_for, place) = (self.held.made_for(), spec.shape.place(rank));
        let before = made_for.shape.place(made_for.rank.index());
        let kept = self.models.take().filter(|_| (before.tp, before.pp) == (place.tp, place.pp));
        let is_kept = kept.is_some();
        let Parts { passes, shards, mut models } = Parts::new(&device, spec, rank, kept);
        if let (Some(models), Some(sources), false) = (&mut models, &self.model_sources, is_kept) {
            let read = sources.check_unchanged().and_then(|()| models.load(&device, spec, rank, sources));
            read.map_err(StepError::Weights)?;
        }
        self.models = models;
        let own = std::mem::replace(&mut self.shards, shards).into_own();
        self.passes = passes;
        let held_as = self.held.remade_for(self.assignment.held_as());
        Ok(Earlier { held_as, own, guarded })
    }

    /// Puts both shards of this place together. What it has as it was split before stays, see [`Job::give_up_earlier`].
    pub(super) fn resplit(&mut self, links: &mut Links, shared: &Shared, origin: &Origin) -> Result<(), StepError> {
        shared.enter("resplit");
        if self.held.has_state() {
            let earlier = self.remake()?;
            self.held.keep(earlier);
        } else if self.held.made_for() != self.assignment.held_as() {
            self.remake()?;
        }
        let moves = moves_of(&self.assignment, origin).map_err(|lost| corrupt(lost.to_string()))?;
        self.exchange(links, &moves)
    }

    /// Waits until all places have their shards as they are split now, and drops those of before.
    pub(super) fn give_up_earlier(&mut self, links: &mut Links) -> Result<(), StepError> {
        global_sum(links, &self.assignment.spec.shape, &mut [0.0])?;
        self.held.take_earlier();
        Ok(())
    }

    fn exchange(&mut self, links: &mut Links, moves: &[Move]) -> Result<(), StepError> {
        let (device, rank) = (self.passes.device().clone(), self.assignment.rank.index());
        let given = |m: &Move| {
            let earlier = self.held.earlier().and_then(|e| e.shard(m.source));
            let shard = earlier.expect("a place has the shards that it says it has");
            encode(&device, shard, within(shard, &m.range))
        };
        let sent: Vec<(usize, Vec<u8>)> =
            moves.iter().filter(|m| m.from == rank && m.to != rank).map(|m| (m.to, given(m))).collect();
        let mut received: Vec<(&Move, Vec<u8>)> = Vec::new();
        for m in moves.iter().filter(|m| m.to == rank) {
            let bytes = if m.from == rank { given(m) } else { vec![0; 12 * m.range.len() + DIGEST_BYTES] };
            received.push((m, bytes));
        }
        let channel = Channel::Backup;
        let sends = sent.iter().map(|(peer, data)| Transfer::Send { peer: *peer, channel, data });
        let receives = received.iter_mut().filter(|(m, _)| m.from != rank);
        let receives = receives.map(|(m, buf)| Transfer::Recv { peer: m.from, channel, buf });
        let mut transfers: Vec<Transfer<'_>> = sends.chain(receives).collect();
        links.run(&mut transfers)?;
        drop(transfers);
        for (m, bytes) in received.iter().filter(|_| !failpoint!(SkipResplit)) {
            let shard = self.shards.half_mut(m.target);
            let range = within(shard, &m.range);
            decode(&device, bytes, shard, range).map_err(|e| refuse(m.to, m.from, &e))?;
        }
        Ok(())
    }
}

/// Elements of a partition as elements of a shard of it.
fn within<D: Device>(shard: &Shard<D>, range: &Range<usize>) -> Range<usize> {
    range.start - shard.range.start..range.end - shard.range.start
}
