//! A place of a job in the virtual data plane: what it holds, what it has heard, whom it waits for, what it sends.
//!
//! ```text
//!   healing:  source ──Sums──> all      backup holder ──Own──> newcomer <──Guarded── primary
//!   a step:   Params to all, Gradient to all, then Row to the row and Column to the column: the commit all-reduce
//! ```

use std::collections::{BTreeMap, BTreeSet};

use toroid_proto::StepRecord;
use toroid_session::{Assignment, HealPlan, HeldAs, MissingLink};
use toroid_torus::geometry::{Place, Shape};
use toroid_torus::holders;
use toroid_torus::partition::SHARD_ALIGN;
use toroid_torus::resplit::{Half, Move, Origin, moves};

use crate::arithmetic::{self, Values};
use crate::broken::Broken;
use crate::network::Pid;
use crate::world::{Env, Unable};

/// A message of the data plane.
#[derive(Debug, Clone)]
pub struct Frame {
    pub job: String,
    pub epoch: u64,
    /// The sender's rank.
    pub from: usize,
    pub payload: Payload,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The sender's shard, for the working parameters.
    Params,
    Gradient,
    /// The sender has sealed: the two halves of the all-reduce.
    Row,
    Column,
    /// Healing: the global sums of the committed step.
    Sums,
    /// Healing: what the sender gives of its shards to one that has another place in another shape.
    Moved,
    /// Healing: the sender has both its shards in the new shape.
    Split,
    /// Healing: the newcomer's own shard, from its backup holder.
    Own,
    /// Healing: the shard that the newcomer guards, from its primary.
    Guarded,
}

#[derive(Debug, Clone)]
pub struct Payload {
    pub kind: Kind,
    pub step: u64,
    pub value: Values,
    /// With [`Kind::Sums`].
    pub history: History,
}

/// Global sums of the newest committed steps, oldest first.
pub type History = Vec<(u64, u64)>;

/// Of these the sums are kept although the coordinator has the records; a worker keeps more.
pub const NUM_NEWEST: usize = 8;

/// The two shards that a place holds, and what it needs to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub held_as: HeldAs,
    pub committed: u64,
    pub own: Values,
    pub guarded: Values,
    pub history: History,
    /// The coordinator has the records up to here.
    pub recorded: u64,
    /// Sums of the next step, if it is sealed.
    pub sealed: Option<u64>,
}

impl State {
    pub fn new(held_as: HeldAs, committed: u64, own: Values, guarded: Values) -> State {
        State { held_as, committed, own, guarded, history: Vec::new(), recorded: 0, sealed: None }
    }

    /// Keeps what no coordinator has, as far as there is room, and the newest.
    pub fn remember(&mut self, sums: u64, num_max: usize) {
        self.history.push((self.committed, sums));
        let is_outdated = |s: &State| s.history[0].0 <= s.recorded;
        while self.history.len() > num_max || self.history.len() > NUM_NEWEST && is_outdated(self) {
            self.history.remove(0);
        }
    }

    /// Takes what another knows of older steps.
    pub fn take_older(&mut self, history: &History) {
        let first = self.history.first().map_or(self.committed + 1, |(step, _)| *step);
        let older = history.iter().copied().filter(|(step, _)| *step < first);
        self.history = older.chain(self.history.iter().copied()).collect();
    }

    pub fn shard_mut(&mut self, half: Half) -> &mut Values {
        match half {
            Half::Own => &mut self.own,
            Half::Guarded => &mut self.guarded,
        }
    }

    /// What is moved from here.
    fn values(&self, m: &Move) -> Values {
        let HeldAs { shape, rank } = &self.held_as;
        let guarded = || holders::guarded_by(shape, *rank).expect("a place that gives of a guarded shard guards one");
        let (shard, rank) = match m.source {
            Half::Own => (&self.own, *rank),
            Half::Guarded => (&self.guarded, guarded()),
        };
        shard[arithmetic::within(shape, rank, &m.range)].to_vec()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Preparing,
    Ready,
    /// Not all links of the epoch are up.
    Connect,
    Heal,
    /// Has split the state anew, and waits until all have.
    Split,
    Gather,
    Gradients,
    Row,
    Column,
    Finished,
    /// A peer was lost, or the epoch is over: waits for a command.
    Halted,
}

impl Phase {
    pub fn is_waiting_for_peers(self) -> bool {
        matches!(
            self,
            Phase::Connect | Phase::Heal | Phase::Split | Phase::Gather | Phase::Gradients | Phase::Row | Phase::Column
        )
    }
}

#[derive(Debug)]
pub struct Job {
    pub assignment: Assignment,
    pub phase: Phase,
    pub state: Option<State>,
    pub heal: Option<HealPlan>,
    /// The state as it was split before, until all are known to have it as it is split now.
    pub earlier: Option<State>,
    pub inbox: BTreeMap<(Kind, u64, usize), Values>,
    /// What came with [`Kind::Sums`].
    pub source_history: History,
    /// Links of this epoch: the peer's process and the link's incarnation, by rank.
    pub links: BTreeMap<usize, (Pid, u64)>,
}

impl Job {
    pub fn world(&self) -> usize {
        self.assignment.spec.shape.world()
    }

    pub fn shape(&self) -> &Shape {
        &self.assignment.spec.shape
    }

    pub fn committed(&self) -> u64 {
        self.state.as_ref().map_or(0, |s| s.committed)
    }

    pub fn next_sums(&self) -> (u64, u64) {
        let state = self.state.as_ref().expect("only a healed place computes");
        (state.committed + 1, state.sealed.expect("sealed before the all-reduce"))
    }

    /// The step up to which the coordinator has the records, as the mates of a half of the all-reduce know it.
    pub fn recorded_of(&self, kind: Kind, step: u64) -> u64 {
        let said = self.mates(kind).into_iter().filter_map(|from| self.inbox.get(&(kind, step, from))?.get(1).copied());
        said.max().unwrap_or(0)
    }

    /// Whom this place makes a half of the all-reduce with, itself included.
    pub fn mates(&self, kind: Kind) -> Vec<usize> {
        let rank = self.assignment.rank;
        if kind == Kind::Row { self.shape().row(rank) } else { self.shape().column(rank) }
    }

    /// Opens the links of the epoch; those that stand are kept. Nobody answers at a process that has ended.
    pub fn connect(&mut self, pid: Pid, env: &mut Env) {
        for (rank, peer) in self.assignment.peers.iter().filter(|(rank, _)| **rank != self.assignment.rank) {
            let peer = crate::worker::pid_of(&peer.worker_id);
            if env.alive.contains(&peer) {
                self.links.insert(*rank, (peer, env.net.connect(pid, peer)));
            }
        }
    }

    /// Peers that cannot be dialled, all of them where this worker is the one.
    pub fn unreached(&self, pid: Pid, env: &Env) -> Vec<MissingLink> {
        let is_apart = |pid: &Pid| env.unable.get(pid) == Some(&Unable::Unreachable);
        let own = self.assignment.rank;
        let others = self.assignment.peers.iter().filter(|(rank, _)| **rank != own);
        let missing = others.filter(|(_, p)| is_apart(&pid) || is_apart(&crate::worker::pid_of(&p.worker_id)));
        let missing = missing.map(|(rank, p)| MissingLink {
            rank: *rank,
            worker_id: p.worker_id.clone(),
            address: p.address.clone(),
            called: *rank > own,
            problem: if *rank > own { "cannot be reached".into() } else { "has not called".into() },
        });
        missing.collect()
    }

    /// A rank whose link broke since the epoch was connected.
    pub fn lost_link(&self) -> Option<usize> {
        self.links.iter().find(|(_, (_, incarnation))| *incarnation == 0).map(|(rank, _)| *rank)
    }

    pub fn receive(&mut self, frame: Frame) {
        let Payload { kind, step, value, history } = frame.payload;
        self.inbox.insert((kind, step, frame.from), value);
        if kind == Kind::Sums {
            self.source_history = history;
        }
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.world()).collect()
    }

    pub fn send(&self, kind: Kind, step: u64, value: Values, to: &[usize], env: &mut Env) {
        self.send_with(kind, step, value, Vec::new(), to, env);
    }

    pub fn send_with(&self, kind: Kind, step: u64, value: Values, history: History, to: &[usize], env: &mut Env) {
        let (from, epoch) = (self.assignment.rank, self.assignment.epoch);
        let me = crate::worker::pid_of(&self.assignment.peers[&from].worker_id);
        for (peer, incarnation) in to.iter().filter_map(|rank| self.links.get(rank)) {
            let payload = Payload { kind, step, value: value.clone(), history: history.clone() };
            let frame = Frame { job: self.assignment.job_id.clone(), epoch, from, payload };
            env.net.send_frame(me, *peer, *incarnation, frame);
        }
    }

    /// What this place gives to the others so that they have the state of the decided step.
    pub fn begin_healing(&mut self, env: &mut Env) {
        let Some(heal) = self.heal.clone() else { return };
        if heal.source == self.assignment.rank {
            let num = heal.step.saturating_sub(heal.recorded).max(1) as usize;
            let kept = self.state.as_ref().map(|s| s.history.as_slice()).unwrap_or_default();
            let history = kept[kept.len().saturating_sub(num)..].to_vec();
            self.send_with(Kind::Sums, heal.step, Values::new(), history, &self.all(), env);
        }
        if env.is_broken(Broken::StaleHolder) || self.committed() == heal.step {
            self.give(env);
        }
    }

    /// The state that a newcomer got from the other holders.
    pub fn pulled(&self, heal: &HealPlan) -> State {
        let (shape, rank) = (self.shape(), self.assignment.rank);
        let take =
            |kind, from: Option<usize>| self.inbox[&(kind, heal.step, from.expect("more than one place"))].clone();
        let own = take(Kind::Own, holders::backup_of(shape, rank));
        let guarded = take(Kind::Guarded, holders::guarded_by(shape, rank));
        let state = State::new(self.assignment.held_as(), heal.step, own, guarded);
        State { history: self.source_history.clone(), ..state }
    }

    /// The place of the state's shape whose shards it has, or gets in this epoch; `None`: it has none of what all go on from.
    pub fn origin(&self, heal: &HealPlan) -> Option<HeldAs> {
        let rank = self.assignment.rank;
        match &heal.origin {
            Some(origin) => origin.ranks[rank].map(|rank| HeldAs { shape: origin.shape, rank }),
            None => (!heal.newcomers.contains(&rank)).then(|| self.assignment.held_as()),
        }
    }

    /// What there is to give, once its state is that of the decided step.
    pub fn give(&self, env: &mut Env) {
        match self.heal.as_ref().and_then(|h| h.origin.as_ref()) {
            Some(origin) => self.give_ranges(origin, env),
            None => self.give_shards(env),
        }
    }

    /// Turns to the state that all go on from; what else it holds is given up.
    pub fn turn_to_origin(&mut self, env: &mut Env) {
        let Some(heal) = self.heal.clone() else { return };
        let wanted = self.origin(&heal);
        let states = [self.state.take(), self.earlier.take()];
        self.state = states.into_iter().flatten().find(|s| Some(s.held_as) == wanted);
        let (rank, epoch, has_it) = (self.assignment.rank, self.assignment.epoch, self.state.is_some());
        env.truth.check(has_it == wanted.is_some(), || {
            format!("T-3: rank {rank} is to go on with {wanted:?} in epoch {epoch}, and does not hold it")
        });
    }

    /// The rank whose replica it had before the shape changed, as far as there still is one.
    pub fn old_replica(&self) -> usize {
        let rank = self.assignment.rank;
        let origin = self.heal.as_ref().and_then(|h| h.origin.as_ref());
        let old = origin.and_then(|o| Some(o.shape.place(o.ranks[rank]?).dp));
        let place = self.shape().place(rank);
        self.shape().rank(Place { dp: old.unwrap_or(place.dp) % self.shape().dp(), ..place })
    }

    fn moves(&self, origin: &Origin) -> Vec<Move> {
        moves(origin, self.shape(), |_, _| arithmetic::LEN).expect("the coordinator splits what is there")
    }

    fn give_ranges(&self, origin: &Origin, env: &mut Env) {
        let (Some(heal), Some(state)) = (&self.heal, &self.state) else { return };
        let rank = self.assignment.rank;
        let mut to: BTreeMap<usize, Values> = BTreeMap::new();
        for m in self.moves(origin).into_iter().filter(|m| m.from == rank && m.to != rank) {
            to.entry(m.to).or_default().extend(state.values(&m));
        }
        for (peer, values) in to {
            self.send(Kind::Moved, heal.step, values, &[peer], env);
        }
    }

    /// Its two shards in the new shape, from what it holds and what the others gave.
    pub fn resplit(&self, heal: &HealPlan, origin: &Origin) -> State {
        let rank = self.assignment.rank;
        let mut at: BTreeMap<usize, usize> = BTreeMap::new();
        let mut state = State::new(self.assignment.held_as(), heal.step, Values::new(), Values::new());
        let mut parts: Vec<(Half, usize, Values)> = Vec::new();
        for m in self.moves(origin).into_iter().filter(|m| m.to == rank) {
            let values = if m.from == rank {
                self.state.as_ref().expect("it holds what it gives itself").values(&m)
            } else {
                let (at, num) = (at.entry(m.from).or_default(), m.range.len() / SHARD_ALIGN);
                *at += num;
                self.inbox[&(Kind::Moved, heal.step, m.from)][*at - num..*at].to_vec()
            };
            parts.push((m.target, m.range.start, values));
        }
        parts.sort_by_key(|(half, start, _)| (*half, *start));
        parts.into_iter().for_each(|(half, _, values)| state.shard_mut(half).extend(values));
        state.history = self.state.as_ref().map_or(&self.source_history, |s| &s.history).clone();
        state
    }

    fn awaited_ranges(&self, heal: &HealPlan, origin: &Origin) -> BTreeSet<usize> {
        let rank = self.assignment.rank;
        let lacks = |from: &usize| !self.inbox.contains_key(&(Kind::Moved, heal.step, *from));
        let from = self.moves(origin).into_iter().filter(|m| m.to == rank && m.from != rank).map(|m| m.from);
        from.filter(lacks).collect()
    }

    /// Its shard and the one that it guards, to the newcomers among their other holders.
    fn give_shards(&self, env: &mut Env) {
        let (Some(heal), Some(state)) = (&self.heal, &self.state) else { return };
        let rank = self.assignment.rank;
        let is_newcomer = |r: &usize| heal.newcomers.contains(r);
        let backup = holders::backup_of(self.shape(), rank).filter(is_newcomer);
        self.send(Kind::Guarded, heal.step, state.own.clone(), backup.as_slice(), env);
        let guarded = holders::guarded_by(self.shape(), rank).filter(is_newcomer);
        self.send(Kind::Own, heal.step, state.guarded.clone(), guarded.as_slice(), env);
    }

    /// Sends the shard of the committed step to everyone.
    pub fn gather(&mut self, env: &mut Env) {
        let was_healing = self.phase == Phase::Heal;
        self.phase = Phase::Gather;
        let state = self.state.as_ref().expect("only a healed place gathers");
        let (step, own) = (state.committed, state.own.clone());
        // Whoever has just committed the decided step can give it only now.
        let is_new = |h: &HealPlan| h.newcomers.contains(&self.assignment.rank) || h.origin.is_some();
        if was_healing && self.heal.as_ref().is_some_and(|h| !is_new(h)) {
            self.give(env);
        }
        let rank = self.assignment.rank;
        self.inbox.retain(|(_, s, _), _| *s >= step);
        self.inbox.insert((Kind::Params, step, rank), own.clone());
        self.send(Kind::Params, step, own, &self.all(), env);
    }

    /// Ranks whose messages the phase waits for.
    pub fn awaited(&self) -> Vec<usize> {
        let lacks = |kind, step| move |from: &usize| !self.inbox.contains_key(&(kind, step, *from));
        let rank = self.assignment.rank;
        let others = |from: &usize| *from != rank;
        let next = self.committed() + 1;
        match self.phase {
            Phase::Heal => self.awaited_to_heal(),
            Phase::Split => (0..self.world()).filter(lacks(Kind::Split, next - 1)).collect(),
            Phase::Gather => (0..self.world()).filter(lacks(Kind::Params, next - 1)).collect(),
            Phase::Gradients => (0..self.world()).filter(lacks(Kind::Gradient, next)).collect(),
            Phase::Row => self.mates(Kind::Row).into_iter().filter(others).filter(lacks(Kind::Row, next)).collect(),
            Phase::Column => {
                self.mates(Kind::Column).into_iter().filter(others).filter(lacks(Kind::Column, next)).collect()
            }
            Phase::Connect => (0..self.world()).filter(others).collect(),
            Phase::Preparing | Phase::Ready | Phase::Finished | Phase::Halted => Vec::new(),
        }
    }

    pub fn awaited_to_heal(&self) -> Vec<usize> {
        let Some(heal) = &self.heal else { return Vec::new() };
        let (rank, source, step) = (self.assignment.rank, heal.source, heal.step);
        let lacks = |kind, from: usize| (!self.inbox.contains_key(&(kind, step, from))).then_some(from);
        let mut awaited = Vec::new();
        if rank != source {
            awaited.extend(lacks(Kind::Sums, source));
        }
        if let Some(origin) = &heal.origin {
            // Who has only sealed the step commits it first.
            if self.state.as_ref().is_none_or(|s| s.committed == step) {
                awaited.extend(self.awaited_ranges(heal, origin));
            }
        } else if self.state.is_none() {
            awaited.extend(holders::backup_of(self.shape(), rank).and_then(|from| lacks(Kind::Own, from)));
            awaited.extend(holders::guarded_by(self.shape(), rank).and_then(|from| lacks(Kind::Guarded, from)));
        }
        awaited
    }

    pub fn record(&self, step: u64, sums: u64, env: &Env) -> StepRecord {
        StepRecord {
            step,
            loss: arithmetic::loss(sums),
            step_s: env.step_time as f64 / 1e6,
            tokens: 1,
            num_layers: 1,
            epoch: self.assignment.epoch,
            ..StepRecord::default()
        }
    }
}
