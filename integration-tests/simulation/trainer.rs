//! The virtual trainer: the data plane of a worker, without tensors.
//!
//! ```text
//!   Prepare ──> Ready ──Start──> [Heal [Split]] ──> Gather ──> compute ──> Gradients ──> Row ──> Column ──> optimizer ─┐
//!                 ^                            ^        (busy)      sealed                  commit    (busy)   │
//!                 └── a fence leads from every wait back to the commands                └─────────────────────┘
//! ```
//!
//! As in a real worker it is one thread: while it is busy nobody is heard, commands are taken only between two steps, and a
//! raised fence is seen only when the thread looks, so that a result that has arrived already may still be committed. The
//! reduce-scatter and the all-gather are messages of everyone to everyone, the commit all-reduce goes by row, then by column: whoever
//! has its result knows that all have sealed (T-2).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use toroid_session::{Assignment, BadCheckpoint, Event, HealPlan, HeldAs, ReadFault, TrainerEvent};
use toroid_torus::holders;
use toroid_torus::manifest::ShardFile;

use crate::arithmetic::{self, Values};
use crate::broken::Broken;
use crate::coordinator::FAILURE_TIMEOUT;
use crate::network::{AtWorker, MS, Micros, Network, Pid};
use crate::place::{Frame, Job, Kind, Phase, State};
use crate::world::{Env, Unable};

/// Commands with what the control task adds to them.
#[derive(Debug)]
pub enum Command {
    Prepare(Box<Assignment>),
    Start { epoch: u64, heal: Option<HealPlan> },
    Checkpoint { epoch: u64, step: u64 },
    Report { epoch: u64, from: u64 },
    Publish { epoch: u64, step: u64, files: Vec<ShardFile>, remove: Vec<u64> },
    DropShard { epoch: u64, step: u64 },
    Drop { epoch: u64 },
}

/// What a worker without the data says.
pub const NO_DATA: &str = "cannot prepare the data: there is none";
/// How long the links of an epoch may take to be up.
const CONNECT_LIMIT: Micros = 2 * FAILURE_TIMEOUT;

#[derive(Debug, Clone, Copy)]
enum Busy {
    Prepare,
    Compute,
    Optimize,
}

/// What the session's task and the trainer's thread share.
#[derive(Debug, Default)]
pub struct Shared {
    pub checkpoints: BTreeSet<u64>,
    pub committed: u64,
    /// The coordinator has the records up to here, as rank 0 knows it.
    pub recorded: u64,
    /// No step is made beyond this one.
    pub halt_at: Option<u64>,
    /// The step after the committed one is being made.
    pub is_stepping: bool,
    /// The job that the fence is of, and the lowest epoch that may go on.
    pub fence: (String, u64),
}

impl Shared {
    /// Whether a checkpoint of the step that is committed now was asked for.
    fn commit(&mut self, step: u64) -> bool {
        self.committed = step;
        self.is_stepping = false;
        let is_wanted = self.checkpoints.contains(&step);
        self.checkpoints = self.checkpoints.split_off(&(step + 1));
        is_wanted
    }
}

#[derive(Debug)]
pub struct Trainer {
    pid: Pid,
    pub job: Option<Job>,
    commands: VecDeque<Command>,
    busy: Option<(Busy, u64)>,
    num_busy: u64,
    /// When the last shard that it began to write is written: one at a time, as a worker does it.
    writes_until: Micros,
    /// The same of what it publishes.
    publishes_until: Micros,
    /// Frames of epochs that this place has not started.
    early: Vec<Frame>,
    /// When the newest event reaches the session: it hears them in order.
    last_event: Micros,
    pub shared: Shared,
    is_fence_seen: bool,
    is_hung: bool,
}

impl Trainer {
    pub fn new(pid: Pid) -> Trainer {
        Trainer {
            pid,
            job: None,
            commands: VecDeque::new(),
            busy: None,
            num_busy: 0,
            writes_until: 0,
            publishes_until: 0,
            early: Vec::new(),
            last_event: 0,
            shared: Shared::default(),
            is_fence_seen: false,
            is_hung: false,
        }
    }

    /// The committed step, if it holds the state of any.
    pub fn step(&self) -> Option<u64> {
        Some(self.job.as_ref()?.state.as_ref()?.committed)
    }

    /// Has the sums of some of these steps, in the state that this epoch goes on with.
    pub fn knows(&self, job: &str, epoch: u64, steps: RangeInclusive<u64>) -> bool {
        let is_present = |j: &&Job| j.assignment.job_id == job && j.assignment.epoch == epoch;
        let job = self.job.as_ref().filter(is_present).filter(|j| !matches!(j.phase, Phase::Preparing | Phase::Ready));
        job.and_then(|j| j.state.as_ref()).is_some_and(|s| s.history.iter().any(|(step, _)| steps.contains(step)))
    }

    /// For heartbeats: ranks that are waited for.
    pub fn waits_for(&self) -> Vec<u32> {
        let Some(job) = self.job.as_ref().filter(|j| self.busy.is_none() && j.phase.is_waiting_for_peers()) else {
            return Vec::new();
        };
        job.awaited().into_iter().map(|rank| rank as u32).collect()
    }

    /// The epoch in which it waits for peers of this job.
    pub fn waits_in(&self, job: &str) -> Option<u64> {
        let job = self.job.as_ref().filter(|j| self.busy.is_none() && j.assignment.job_id == job)?;
        job.phase.is_waiting_for_peers().then_some(job.assignment.epoch)
    }

    pub fn operation(&self) -> &'static str {
        match (&self.busy, self.job.as_ref().map(|j| j.phase)) {
            (Some((Busy::Prepare, _)), _) | (_, Some(Phase::Preparing)) => "prepare",
            (Some((Busy::Compute, _)), _) => "forward",
            (Some((Busy::Optimize, _)), _) => "optimizer",
            (None, None) => "idle",
            (None, Some(Phase::Ready)) => "wait for start",
            (None, Some(Phase::Connect)) => "connect",
            (None, Some(Phase::Heal)) => "heal",
            (None, Some(Phase::Split)) => "resplit",
            (None, Some(Phase::Gather)) => "all-gather",
            (None, Some(Phase::Gradients)) => "reduce-scatter",
            (None, Some(Phase::Row | Phase::Column)) => "commit",
            (None, Some(Phase::Finished | Phase::Halted)) => "idle",
        }
    }

    /// Makes steps of this epoch and can go on with it, or has made all of them.
    pub fn is_training_in(&self, job: &str, epoch: u64, net: &Network) -> bool {
        let is_present = |j: &&Job| j.assignment.job_id == job && j.assignment.epoch == epoch;
        let is_linked = |j: &Job| j.links.values().all(|(peer, n)| net.is_open(self.pid, *peer, *n));
        // A peer that cannot be reached stays so until another has its place.
        let waits = |j: &Job| j.phase.is_waiting_for_peers() && j.phase != Phase::Connect && is_linked(j);
        let goes_on = |j: &Job| waits(j) || j.phase == Phase::Finished;
        !self.is_hung && self.job.as_ref().filter(is_present).is_some_and(goes_on)
    }

    /// What it computes now never ends; nor what it prepares; says whether it does either.
    pub fn hang(&mut self) -> bool {
        let Some((what @ (Busy::Compute | Busy::Prepare), _)) = self.busy else { return false };
        self.num_busy += 1;
        self.busy = Some((what, self.num_busy));
        self.is_hung = true;
        true
    }

    /// Stops in a wait because the copies of a shard differ: what it says then.
    pub fn distrust(&mut self) -> Option<(String, TrainerEvent)> {
        let job = self.job.as_mut().filter(|j| self.busy.is_none() && j.phase.is_waiting_for_peers())?;
        job.phase = Phase::Halted;
        let error = "the two copies of a shard differ".into();
        let event = Event::Failed { error, fatal: false, checkpoint: None, restore: true, corrupt_ranks: Vec::new() };
        Some((job.assignment.job_id.clone(), job.assignment.event(event)))
    }

    // -------------------------------------------------------------------------------------------------------------- inputs

    pub fn command(&mut self, command: Command, env: &mut Env) {
        self.commands.push_back(command);
        self.wake_soon(env);
    }

    /// Nothing of an epoch below this one may go on; the trainer sees it when it looks.
    pub fn raise_fence(&mut self, epoch: u64, env: &mut Env) {
        self.shared.fence.1 = self.shared.fence.1.max(epoch);
        self.wake_soon(env);
    }

    /// The fence of this job; that of another one ends with it.
    pub fn fence_of(&mut self, job: &str) {
        if self.shared.fence.0 != job {
            self.shared.fence = (job.to_string(), 0);
        }
    }

    pub fn wake_soon(&mut self, env: &mut Env) {
        let after = env.net.random.below(3 * MS);
        env.net.at_worker(self.pid, after, AtWorker::Wake);
    }

    pub fn wake(&mut self, env: &mut Env) {
        self.is_fence_seen = true;
        self.advance(env);
    }

    pub fn computed(&mut self, number: u64, env: &mut Env) {
        let Some((busy, n)) = self.busy else { return };
        if n != number {
            return;
        }
        self.busy = None;
        match busy {
            Busy::Prepare => self.prepared(env),
            Busy::Compute => self.send_gradient(env),
            Busy::Optimize => self.optimized(env),
        }
        self.advance(env);
    }

    pub fn frame(&mut self, frame: Frame, env: &mut Env) {
        let Some(job) = self.job.as_mut().filter(|j| j.assignment.job_id == frame.job) else {
            return self.early.push(frame);
        };
        let epoch = job.assignment.epoch;
        let takes_old = env.is_broken(Broken::TakeOldFrames) && frame.epoch < epoch;
        let has_started = !matches!(job.phase, Phase::Preparing | Phase::Ready);
        if frame.epoch == epoch && has_started || takes_old {
            job.receive(frame);
            self.advance(env);
        } else if frame.epoch >= epoch {
            self.early.push(frame);
        }
    }

    pub fn link_closed(&mut self, peer: Pid, incarnation: u64, env: &mut Env) {
        let Some(job) = &mut self.job else { return };
        let rank = job.links.iter().find(|(_, link)| **link == (peer, incarnation)).map(|(rank, _)| *rank);
        let Some(rank) = rank.filter(|_| job.phase.is_waiting_for_peers()) else { return };
        // What the thread is busy with ends first; the next wait finds the link closed.
        job.links.insert(rank, (peer, 0));
        self.advance(env);
    }

    // ------------------------------------------------------------------------------------------------------------- progress

    /// About the job that it has now.
    fn report(&mut self, event: Event, env: &mut Env) {
        let event = self.job.as_ref().expect("only a place reports").assignment.event(event);
        self.emit(event, env);
    }

    fn emit(&mut self, event: TrainerEvent, env: &mut Env) {
        let delay = if env.net.random.percent(10) { 20 * MS } else { MS };
        let at = (env.net.now + env.net.random.below(delay)).max(self.last_event + 1);
        self.last_event = at;
        let what = AtWorker::Trained(event);
        env.net.push_at(at, crate::network::Event::AtWorker { pid: self.pid, what });
    }

    fn work(&mut self, busy: Busy, low: Micros, high: Micros, env: &mut Env) {
        self.num_busy += 1;
        self.busy = Some((busy, self.num_busy));
        let after = env.net.random.between(low, high);
        env.net.at_worker(self.pid, after, AtWorker::Computed { number: self.num_busy });
    }

    /// Goes on until something has to be waited for.
    fn advance(&mut self, env: &mut Env) {
        while self.busy.is_none() && self.step_on(env) {}
    }

    fn step_on(&mut self, env: &mut Env) -> bool {
        let Some(job) = &mut self.job else { return self.serve(env) };
        if job.phase.is_waiting_for_peers() && self.is_fence_seen {
            let fence = &self.shared.fence;
            let is_over = fence.0 != job.assignment.job_id || fence.1 > job.assignment.epoch;
            if is_over && !env.is_broken(Broken::IgnoreFence) {
                job.phase = Phase::Halted;
            }
            self.is_fence_seen = false;
        }
        match job.phase {
            Phase::Preparing => false,
            Phase::Ready | Phase::Finished | Phase::Halted => self.serve(env),
            _ => match job.lost_link() {
                Some(rank) => self.peer_lost(rank, env),
                None => self.make_progress(env),
            },
        }
    }

    fn peer_lost(&mut self, rank: usize, env: &mut Env) -> bool {
        let job = self.job.as_mut().expect("a link belongs to a job");
        job.phase = Phase::Halted;
        self.report(Event::PeerLost { rank, error: "connection reset".into(), damaged: false }, env);
        true
    }

    fn make_progress(&mut self, env: &mut Env) -> bool {
        let job = self.job.as_mut().expect("whoever waits for peers has a job");
        if !job.awaited().is_empty() {
            return false;
        }
        match job.phase {
            Phase::Heal => self.healed(env),
            Phase::Split => self.all_have_split(env),
            Phase::Gather => self.gathered(env),
            Phase::Gradients => self.sealed(env),
            Phase::Row => {
                job.phase = Phase::Column;
                let (step, sums) = job.next_sums();
                let value = vec![sums, job.recorded_of(Kind::Row, step)];
                let rank = job.assignment.rank;
                job.inbox.insert((Kind::Column, step, rank), value.clone());
                job.send(Kind::Column, step, value, &job.mates(Kind::Column), env);
                true
            }
            Phase::Column => {
                let (step, sums) = job.next_sums();
                env.truth.committed(&job.assignment, step, sums);
                let recorded = job.recorded_of(Kind::Column, step);
                let state = job.state.as_mut().expect("it has sealed the step");
                state.recorded = state.recorded.max(recorded);
                self.work(Busy::Optimize, MS / 10, 5 * MS, env);
                false
            }
            Phase::Connect | Phase::Preparing | Phase::Ready | Phase::Finished | Phase::Halted => false,
        }
    }

    // ------------------------------------------------------------------------------------------------------------ commands

    /// Takes one command; says whether there was one.
    fn serve(&mut self, env: &mut Env) -> bool {
        let Some(command) = self.commands.pop_front() else { return false };
        let is_of = |epoch: u64| move |job: &&mut Job| job.assignment.epoch == epoch;
        match command {
            Command::Prepare(assignment) => self.prepare(*assignment, env),
            Command::Start { epoch, heal } => {
                if self.job.as_mut().filter(is_of(epoch)).is_some_and(|j| j.phase == Phase::Ready) {
                    self.start(heal, env);
                }
            }
            Command::Report { epoch, from } => {
                if self.job.as_mut().filter(is_of(epoch)).is_some() {
                    self.report_since(from, env);
                }
            }
            Command::Checkpoint { epoch, step } => {
                if self.job.as_mut().filter(is_of(epoch)).is_some() {
                    self.write_checkpoint_of(step, env);
                }
            }
            Command::Publish { epoch, step, files, remove } => {
                if self.job.as_mut().filter(is_of(epoch)).is_some() {
                    self.publish(step, files, remove, env);
                }
            }
            Command::DropShard { epoch, step } => {
                if let Some(job) = self.job.as_mut().filter(is_of(epoch)) {
                    let assignment = Box::new(job.assignment.clone());
                    self.drop_shard(assignment, step, env);
                }
            }
            Command::Drop { epoch } => self.job = self.job.take().filter(|j| j.assignment.epoch > epoch),
        }
        true
    }

    fn prepare(&mut self, assignment: Assignment, env: &mut Env) {
        let same = |job: &Job| job.assignment.job_id == assignment.job_id;
        let kept = self.job.take().filter(|job| assignment.heal && same(job));
        let (kept, earlier) = kept.map_or((None, None), |job| (job.state, job.earlier));
        let (low, high) = if kept.is_some() { (0, MS) } else { (MS, 300 * MS) };
        self.job = Some(Job {
            assignment,
            phase: Phase::Preparing,
            state: kept,
            earlier,
            heal: None,
            inbox: BTreeMap::new(),
            source_history: Vec::new(),
            links: BTreeMap::new(),
        });
        self.work(Busy::Prepare, low, high, env);
    }

    fn prepared(&mut self, env: &mut Env) {
        let job = self.job.as_mut().expect("a job is being prepared");
        if job.state.is_none() && env.unable.get(&self.pid) == Some(&Unable::NoData) {
            let event = Event::Failed {
                error: NO_DATA.into(),
                fatal: true,
                checkpoint: None,
                restore: false,
                corrupt_ranks: Vec::new(),
            };
            self.report(event, env);
            self.job = None;
            return;
        }
        if !job.assignment.heal {
            match env.disk.load(&job.assignment) {
                Ok(state) => job.state = Some(state),
                Err(error) => {
                    env.truth.distrusted(&job.assignment.job_id);
                    let of = |step| BadCheckpoint { step, fault: ReadFault::Damaged };
                    let checkpoint = job.assignment.restore_step.map(of);
                    let event =
                        Event::Failed { error, fatal: false, checkpoint, restore: false, corrupt_ranks: Vec::new() };
                    self.report(event, env);
                    self.job = None;
                    return;
                }
            }
        }
        job.phase = Phase::Ready;
        let committed = job.state.as_ref().map_or(0, |s| s.committed);
        let sealed_next = job.state.as_ref().is_some_and(|s| s.sealed.is_some());
        let states: Vec<&State> = job.earlier.iter().chain(&job.state).collect();
        let held = states.iter().map(|s| s.held_as).collect();
        env.truth.prepared(self.pid, &job.assignment, &states);
        self.shared.checkpoints.clear();
        (self.shared.halt_at, self.shared.is_stepping) = (None, false);
        self.shared.committed = committed;
        self.shared.recorded = 0;
        let sums_from = job.state.as_ref().and_then(|s| s.history.first()).map_or(committed + 1, |(step, _)| *step);
        let event = Event::Prepared {
            committed_step: committed,
            data_digest: arithmetic::DATA_DIGEST,
            num_samples: arithmetic::NUM_SAMPLES,
            num_params: 1,
            inputs: Box::default(),
            held,
            sealed_next,
            sums_from,
        };
        self.report(event, env);
    }

    fn start(&mut self, heal: Option<HealPlan>, env: &mut Env) {
        let job = self.job.as_mut().expect("looked up by the caller");
        job.connect(self.pid, env);
        let (id, epoch) = (job.assignment.job_id.clone(), job.assignment.epoch);
        for frame in std::mem::take(&mut self.early) {
            if (&frame.job, frame.epoch) == (&id, epoch) {
                job.receive(frame);
            } else if frame.job != id || frame.epoch > epoch {
                self.early.push(frame);
            }
        }
        job.heal = heal;
        job.turn_to_origin(env);
        if !job.unreached(self.pid, env).is_empty() {
            job.phase = Phase::Connect;
            return env.net.at_worker(self.pid, CONNECT_LIMIT, AtWorker::ConnectOver { epoch });
        }
        self.connected(env);
    }

    fn connected(&mut self, env: &mut Env) {
        let job = self.job.as_mut().expect("links are of a job");
        job.phase = Phase::Heal;
        job.begin_healing(env);
        self.report(Event::Connected, env);
    }

    /// Who has no link by now is reported.
    pub fn connect_over(&mut self, epoch: u64, env: &mut Env) {
        let pid = self.pid;
        let is_over = |job: &&mut Job| job.assignment.epoch == epoch && job.phase == Phase::Connect;
        let Some(job) = self.job.as_mut().filter(is_over) else { return };
        let missing = job.unreached(pid, env);
        if missing.is_empty() {
            self.connected(env);
        } else {
            job.phase = Phase::Halted;
            self.report(Event::Unreached(missing), env);
        }
        self.advance(env);
    }

    // ----------------------------------------------------------------------------------------------------------- the phases

    /// What is needed to have the state of the decided step is there.
    fn healed(&mut self, env: &mut Env) -> bool {
        let job = self.job.as_mut().expect("called with a job");
        let Some(heal) = job.heal.clone() else {
            job.gather(env);
            return true;
        };
        let rank = job.assignment.rank;
        match &mut job.state {
            None if heal.origin.is_none() => {
                job.state = Some(job.pulled(&heal));
                env.truth.holds(&job.assignment, job.state.as_ref().expect("just made"));
            }
            Some(state) if state.committed < heal.step && !env.is_broken(Broken::SkipHealCommit) => {
                // T-2: it has sealed the step, and that another has committed it says that all have.
                let sums = job.source_history.last().map_or(0, |(_, sums)| *sums);
                state.sealed = Some(sums);
                env.truth.committed_by_healing(&job.assignment, heal.step, sums);
                self.work(Busy::Optimize, MS / 10, 5 * MS, env);
                return false;
            }
            // A sealed step after the decided one is dropped and made again.
            Some(state) => state.sealed = None,
            None => {}
        }
        if let Some(origin) = &heal.origin {
            let new = job.resplit(&heal, origin);
            env.truth.holds(&job.assignment, &new);
            job.earlier = job.state.replace(new);
            job.phase = Phase::Split;
            job.inbox.insert((Kind::Split, heal.step, rank), Values::new());
            job.send(Kind::Split, heal.step, Values::new(), &job.all(), env);
            return true;
        }
        let is_newcomer = heal.newcomers.contains(&rank);
        self.end_healing(heal.step, is_newcomer, env);
        true
    }

    /// Nobody needs the state any more as it was split before.
    fn all_have_split(&mut self, env: &mut Env) -> bool {
        let job = self.job.as_mut().expect("called with a job");
        job.earlier = None;
        let step = job.committed();
        self.end_healing(step, true, env);
        true
    }

    /// The state of the decided step is there. `is_new`: nothing was said or saved of that step yet.
    fn end_healing(&mut self, step: u64, is_new: bool, env: &mut Env) {
        let job = self.job.as_mut().expect("called with a job");
        env.truth.healed(&job.assignment, step, job.committed());
        let recorded = job.heal.as_ref().map_or(0, |h| h.recorded);
        let state = job.state.as_mut().expect("a healed place has a state");
        state.recorded = recorded;
        state.take_older(&job.source_history);
        self.shared.recorded = self.shared.recorded.max(recorded);
        self.report_since(recorded + 1, env);
        if is_new && self.shared.commit(step) {
            self.write_checkpoint(env);
        }
        self.job.as_mut().expect("as above").gather(env);
    }

    /// Rank 0 says the steps from `from` on again, and which of them nobody knows any more.
    fn report_since(&mut self, from: u64, env: &mut Env) {
        let job = self.job.as_ref().expect("a newcomer has a job");
        if job.assignment.rank != 0 {
            return;
        }
        let history = job.state.as_ref().map(|s| s.history.clone()).unwrap_or_default();
        let known = history.first().map_or(job.committed() + 1, |(step, _)| *step);
        if known > from {
            self.report(Event::RecordsMissing { from, through: known - 1 }, env);
        }
        for (step, sums) in history.into_iter().filter(|(step, _)| *step >= from) {
            let record = Some(Box::new(self.job.as_ref().expect("as above").record(step, sums, env)));
            self.report(Event::Committed { step, record }, env);
        }
    }

    fn gathered(&mut self, env: &mut Env) -> bool {
        let job = self.job.as_mut().expect("called with a job");
        let state = job.state.as_ref().expect("only a healed place gathers");
        if state.committed >= job.assignment.spec.steps {
            job.phase = Phase::Finished;
            let step = state.committed;
            self.report(Event::Finished { step }, env);
            return true;
        }
        // Between two steps: commands, and the fence.
        self.is_fence_seen = true;
        let fence = &self.shared.fence;
        if fence.0 != job.assignment.job_id || fence.1 > job.assignment.epoch {
            job.phase = Phase::Halted;
            return true;
        }
        let is_served = |c: &Command| {
            matches!(
                c,
                Command::Publish { .. }
                    | Command::Checkpoint { .. }
                    | Command::DropShard { .. }
                    | Command::Report { .. }
            )
        };
        while self.commands.front().is_some_and(is_served) {
            self.serve(env);
        }
        let step = self.shared.committed;
        if self.shared.halt_at.is_some_and(|halt| halt <= step) {
            return false;
        }
        self.shared.is_stepping = true;
        self.work(Busy::Compute, env.step_time / 2, env.step_time, env);
        false
    }

    fn send_gradient(&mut self, env: &mut Env) {
        let job = self.job.as_mut().expect("gradients are of a job");
        let state = job.state.as_ref().expect("only a healed place computes");
        let (rank, step) = (job.assignment.rank, state.committed);
        let params = arithmetic::params(job.shape(), |from| match from == rank {
            true => &state.own,
            false => &job.inbox[&(Kind::Params, step, from)],
        });
        let is_newcomer = job.heal.as_ref().is_some_and(|h| h.newcomers.contains(&rank));
        let begins_anew = env.is_broken(Broken::NewcomerSamples) && is_newcomer;
        let of = if env.is_broken(Broken::OldReplica) { job.old_replica() } else { rank };
        let samples = arithmetic::samples_of(&job.assignment.spec, of, if begins_anew { 0 } else { step });
        env.truth.consumed(&job.assignment, step + 1, &samples);
        let value = vec![arithmetic::gradient(params, &job.assignment.spec, rank, &samples)];
        job.phase = Phase::Gradients;
        job.inbox.insert((Kind::Gradient, step + 1, rank), value.clone());
        job.send(Kind::Gradient, step + 1, value, &job.all(), env);
    }

    fn sealed(&mut self, env: &mut Env) -> bool {
        let job = self.job.as_mut().expect("called with a job");
        let world = job.world();
        let step = job.committed() + 1;
        let sums = arithmetic::sums((0..world).map(|from| job.inbox[&(Kind::Gradient, step, from)][0]));
        job.state.as_mut().expect("only a healed place computes").sealed = Some(sums);
        env.truth.sealed(&job.assignment, step, sums);
        job.phase = Phase::Row;
        let rank = job.assignment.rank;
        let value = vec![sums, if rank == 0 { self.shared.recorded } else { 0 }];
        job.inbox.insert((Kind::Row, step, rank), value.clone());
        job.send(Kind::Row, step, value, &job.mates(Kind::Row), env);
        if env.is_broken(Broken::CommitBeforeSealed) {
            env.truth.committed(&job.assignment, step, sums);
            self.work(Busy::Optimize, MS / 10, 5 * MS, env);
            return false;
        }
        true
    }

    fn optimized(&mut self, env: &mut Env) {
        let job = self.job.as_mut().expect("the optimizer works on a job");
        let state = job.state.as_mut().expect("the optimizer works on a state");
        let HeldAs { shape, rank } = state.held_as;
        let guarded = holders::guarded_by(&shape, rank);
        let sums = state.sealed.take().expect("only a sealed step is committed");
        state.committed += 1;
        arithmetic::update(&mut state.own, sums, &shape, rank);
        if let Some(guarded) = guarded.filter(|_| !env.is_broken(Broken::SkipBackup)) {
            arithmetic::update(&mut state.guarded, sums, &shape, guarded);
        }
        state.remember(sums, if env.is_broken(Broken::FewSums) { env.num_sums.min(64) } else { env.num_sums });
        env.truth.holds(&job.assignment, state);
        if job.phase == Phase::Heal && job.heal.as_ref().is_some_and(|h| h.origin.is_some()) {
            // What is said and saved of the step waits until the state is split anew.
            let step = state.committed;
            job.give(env);
            return self.report(Event::Committed { step, record: None }, env);
        }
        self.after_commit(env);
    }

    /// The state is that of a committed step: reported, saved if asked for, and gathered for the next.
    fn after_commit(&mut self, env: &mut Env) {
        let job = self.job.as_mut().expect("a commit is of a job");
        let rank = job.assignment.rank;
        let state = job.state.as_ref().expect("a commit leaves a state");
        let step = state.committed;
        let sums = state.history.last().map_or(0, |(_, sums)| *sums);
        let record = (rank == 0).then(|| Box::new(job.record(step, sums, env)));
        job.gather(env);
        let is_wanted = self.shared.commit(step);
        self.report(Event::Committed { step, record }, env);
        if is_wanted {
            self.write_checkpoint(env);
        }
    }

    // ---------------------------------------------------------------------------------------------------------- checkpoints

    fn write_checkpoint_of(&mut self, step: u64, env: &mut Env) {
        let job = self.job.as_ref().expect("looked up by the caller");
        // The epoch has ended before the state was split for this place.
        if job.state.as_ref().is_none_or(|s| s.held_as != job.assignment.held_as()) {
            return;
        }
        if job.state.as_ref().is_some_and(|s| s.committed == step) {
            return self.write_checkpoint(env);
        }
        self.report(Event::CheckpointFailed { step, error: String::new() }, env);
    }

    /// In the background, from a copy.
    fn write_checkpoint(&mut self, env: &mut Env) {
        let job = self.job.as_ref().expect("looked up by the caller");
        let state = job.state.as_ref().expect("only a state is saved");
        let (assignment, step, shard) = (Box::new(job.assignment.clone()), state.committed, state.own.clone());
        let begins = self.writes_until.max(env.net.now);
        self.writes_until = begins + env.net.random.between(MS, 400 * MS);
        env.net.at_worker(
            self.pid,
            self.writes_until - env.net.now,
            AtWorker::ShardWritten { assignment, step, shard },
        );
    }

    /// The writer's thread is done.
    pub fn shard_written(&mut self, assignment: &Assignment, step: u64, shard: Values, env: &mut Env) {
        env.truth.wrote(assignment, step, &shard);
        let event = match env.disk.write(self.pid, env.net.now, assignment, step, shard) {
            Ok(file) => Event::ShardWritten { step, file: Box::new(file), write_s: 0.1 },
            Err(error) => Event::CheckpointFailed { step, error },
        };
        self.emit(assignment.event(event), env);
    }

    /// By the writer's thread, after what it has to write.
    fn drop_shard(&mut self, assignment: Box<Assignment>, step: u64, env: &mut Env) {
        let begins = self.writes_until.max(env.net.now);
        self.writes_until = begins + env.net.random.between(MS, 10 * MS);
        env.net.at_worker(self.pid, self.writes_until - env.net.now, AtWorker::ShardDropped { assignment, step });
    }

    /// By the publisher's thread, one after the other.
    fn publish(&mut self, step: u64, files: Vec<ShardFile>, remove: Vec<u64>, env: &mut Env) {
        let assignment = Box::new(self.job.as_ref().expect("looked up by the caller").assignment.clone());
        let begins = self.publishes_until.max(env.net.now);
        self.publishes_until = begins + env.net.random.between(MS, 100 * MS);
        let what = AtWorker::Publish { assignment, step, files, remove };
        env.net.at_worker(self.pid, self.publishes_until - env.net.now, what);
    }

    /// T-1: not where the place may be another's by now.
    pub fn published(
        &mut self,
        assignment: &Assignment,
        step: u64,
        files: &[ShardFile],
        remove: &[u64],
        env: &mut Env,
    ) {
        let fence = &self.shared.fence;
        if fence.0 != assignment.job_id || fence.1 > assignment.epoch {
            return;
        }
        let event = match env.disk.publish(self.pid, env.net.now, assignment, step, files) {
            Ok(path) => Event::Published { step, bytes: 8 * files.len() as u64, path },
            Err(error) => Event::PublishFailed { step, error },
        };
        let is_published = matches!(event, Event::Published { .. });
        if is_published {
            env.truth.published(&env.disk, assignment, step);
            remove.iter().for_each(|old| env.disk.remove(assignment, *old));
        }
        self.emit(assignment.event(event), env);
        if is_published && !remove.is_empty() {
            let event = Event::Removed { step, removed: remove.to_vec(), kept: Vec::new() };
            self.emit(assignment.event(event), env);
        }
    }
}
