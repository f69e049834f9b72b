//! What a simulated place does within its job: steps, seals, commits and heals, on hashes for tensors.

use super::*;

impl Job {
    pub(super) fn world(&self) -> usize {
        self.assignment.spec.shape.world()
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.assignment.spec.shape
    }

    pub fn committed(&self) -> u64 {
        self.state.as_ref().map_or(0, |s| s.committed)
    }

    pub(super) fn next_sums(&self) -> (u64, u64) {
        let state = self.state.as_ref().expect("only a healed place computes");
        (state.committed + 1, state.sealed.expect("sealed before the all-reduce"))
    }

    /// Whom this place makes a half of the all-reduce with, itself included.
    pub(super) fn mates(&self, kind: Kind) -> Vec<usize> {
        let rank = self.assignment.rank;
        if kind == Kind::Row { self.shape().row(rank) } else { self.shape().column(rank) }
    }

    /// Opens the links of the epoch; those that stand are kept. Nobody answers at a process that has ended.
    pub(super) fn connect(&mut self, pid: Pid, env: &mut Env) {
        for (rank, peer) in self.assignment.peers.iter().filter(|(rank, _)| **rank != self.assignment.rank) {
            let peer = crate::worker::pid_of(&peer.worker_id);
            if env.alive.contains(&peer) {
                self.links.insert(*rank, (peer, env.net.connect(pid, peer)));
            }
        }
    }

    /// A rank whose link broke since the epoch was connected.
    pub(super) fn lost_link(&self) -> Option<usize> {
        self.links.iter().find(|(_, (_, incarnation))| *incarnation == 0).map(|(rank, _)| *rank)
    }

    pub(super) fn receive(&mut self, frame: Frame) {
        let Payload { kind, step, value, history } = frame.payload;
        self.inbox.insert((kind, step, frame.from), value);
        if kind == Kind::Sums {
            self.source_history = history;
        }
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.world()).collect()
    }

    pub(super) fn send(&self, kind: Kind, step: u64, value: u64, to: &[usize], env: &mut Env) {
        self.send_with(kind, step, value, Vec::new(), to, env);
    }

    pub(super) fn send_with(&self, kind: Kind, step: u64, value: u64, history: History, to: &[usize], env: &mut Env) {
        let (from, epoch) = (self.assignment.rank, self.assignment.epoch);
        let me = crate::worker::pid_of(&self.assignment.peers[&from].worker_id);
        for (peer, incarnation) in to.iter().filter_map(|rank| self.links.get(rank)) {
            let payload = Payload { kind, step, value, history: history.clone() };
            let frame = Frame { job: self.assignment.job_id.clone(), epoch, from, payload };
            env.net.send_frame(me, *peer, *incarnation, frame);
        }
    }

    /// What this place gives to the others so that they have the state of the decided step.
    pub(super) fn begin_healing(&mut self, env: &mut Env) {
        let Some(heal) = self.heal.clone() else { return };
        if heal.source == self.assignment.rank {
            let num = if heal.newcomers.contains(&0) { HISTORY_MAX } else { 1 };
            let kept = self.state.as_ref().map(|s| s.history.as_slice()).unwrap_or_default();
            let history = kept[kept.len().saturating_sub(num)..].to_vec();
            self.send_with(Kind::Sums, heal.step, 0, history, &self.all(), env);
        }
        if env.is_planted(Plant::StaleHolder) || self.committed() == heal.step {
            self.give_shards(env);
        }
    }

    /// The state that a newcomer got from the other holders.
    pub(super) fn pulled(&self, heal: &HealPlan) -> State {
        let (shape, rank) = (self.shape(), self.assignment.rank);
        let take = |kind, from: Option<usize>| self.inbox[&(kind, heal.step, from.expect("more than one place"))];
        State {
            committed: heal.step,
            own: take(Kind::Own, holders::backup_of(shape, rank)),
            guarded: take(Kind::Guarded, holders::guarded_by(shape, rank)),
            history: self.source_history.clone(),
            sealed: None,
        }
    }

    /// Its shard and the one that it guards, to the newcomers among their other holders.
    pub(super) fn give_shards(&self, env: &mut Env) {
        let (Some(heal), Some(state)) = (&self.heal, &self.state) else { return };
        let rank = self.assignment.rank;
        let is_newcomer = |r: &usize| heal.newcomers.contains(r);
        let backup = holders::backup_of(self.shape(), rank).filter(is_newcomer);
        self.send(Kind::Guarded, heal.step, state.own, backup.as_slice(), env);
        let guarded = holders::guarded_by(self.shape(), rank).filter(is_newcomer);
        self.send(Kind::Own, heal.step, state.guarded, guarded.as_slice(), env);
    }

    /// Sends the shard of the committed step to everyone.
    pub(super) fn gather(&mut self, env: &mut Env) {
        let was_healing = self.phase == Phase::Heal;
        self.phase = Phase::Gather;
        let state = self.state.as_ref().expect("only a healed place gathers");
        let (step, own) = (state.committed, state.own);
        // Whoever has just committed the decided step can give it only now.
        if was_healing && self.heal.as_ref().is_some_and(|h| !h.newcomers.contains(&self.assignment.rank)) {
            self.give_shards(env);
        }
        let rank = self.assignment.rank;
        self.inbox.retain(|(_, s, _), _| *s >= step);
        self.inbox.insert((Kind::Params, step, rank), own);
        self.send(Kind::Params, step, own, &self.all(), env);
    }

    /// Ranks whose messages the phase waits for.
    pub(super) fn awaited(&self) -> Vec<usize> {
        let lacks = |kind, step| move |from: &usize| !self.inbox.contains_key(&(kind, step, *from));
        let rank = self.assignment.rank;
        let others = |from: &usize| *from != rank;
        let next = self.committed() + 1;
        match self.phase {
            Phase::Heal => self.awaited_to_heal(),
            Phase::Gather => (0..self.world()).filter(lacks(Kind::Params, next - 1)).collect(),
            Phase::Gradients => (0..self.world()).filter(lacks(Kind::Gradient, next)).collect(),
            Phase::Row => self.mates(Kind::Row).into_iter().filter(others).filter(lacks(Kind::Row, next)).collect(),
            Phase::Column => {
                self.mates(Kind::Column).into_iter().filter(others).filter(lacks(Kind::Column, next)).collect()
            }
            Phase::Preparing | Phase::Ready | Phase::Finished | Phase::Halted => Vec::new(),
        }
    }

    pub(super) fn awaited_to_heal(&self) -> Vec<usize> {
        let Some(heal) = &self.heal else { return Vec::new() };
        let (rank, source, step) = (self.assignment.rank, heal.source, heal.step);
        let lacks = |kind, from: usize| (!self.inbox.contains_key(&(kind, step, from))).then_some(from);
        let mut awaited = Vec::new();
        if self.committed() < step || self.state.is_none() {
            awaited.extend(lacks(Kind::Sums, source));
        }
        if self.state.is_none() {
            awaited.extend(holders::backup_of(self.shape(), rank).and_then(|from| lacks(Kind::Own, from)));
            awaited.extend(holders::guarded_by(self.shape(), rank).and_then(|from| lacks(Kind::Guarded, from)));
        }
        awaited
    }

    pub(super) fn record(&self, step: u64, sums: u64, env: &Env) -> StepRecord {
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
