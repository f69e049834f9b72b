//! A worker's process: the real session, the virtual trainer, and what the control task does between them.
//!
//! Before the Welcome the trainer's events wait; without a coordinator the session hears them and what it says is lost, to be said
//! again. A stopped process (SIGSTOP) hears nothing, keeps its connections, and finds everything in order when it goes on.

use std::collections::VecDeque;

use toroid_coordinator::machine::StreamId;
use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_session::{
    Action, AfterCheckpoint, Command as RealCommand, Event, Input, Knock, Output, Session, TrainerEvent, WarmUp,
};

use crate::network::{AtCoordinator, AtWorker, MS, Micros, Pid, SECOND};
use crate::trainer::{Command, NO_DATA, Trainer};
use crate::world::{Env, Unable};

const FIRST_PAUSE: Micros = 50 * MS;
const LONGEST_PAUSE: Micros = SECOND;

pub struct Worker {
    pub pid: Pid,
    pub host: String,
    pub session: Session,
    pub trainer: Trainer,
    pub stream: Option<StreamId>,
    is_welcome: bool,
    /// Events of the trainer that came before the Welcome.
    waiting: VecDeque<TrainerEvent>,
    /// What has arrived at a stopped process; `None`: it runs.
    pub backlog: Option<Vec<AtWorker>>,
    pause: Micros,
    heartbeat: Micros,
    /// The epoch in which the trainer waits though the session knows it to be over, and since when that was seen.
    waits_on: Option<(u64, Micros)>,
}

pub fn id_of(pid: Pid) -> String {
    format!("w{pid}")
}

pub fn pid_of(id: &str) -> Pid {
    id[1..].parse().expect("workers of a simulation are named by their pid")
}

impl Worker {
    pub fn new(pid: Pid, host: String) -> Worker {
        Worker {
            pid,
            host,
            session: Session::new(),
            trainer: Trainer::new(pid),
            stream: None,
            is_welcome: false,
            waiting: VecDeque::new(),
            backlog: None,
            pause: FIRST_PAUSE,
            heartbeat: SECOND,
            waits_on: None,
        }
    }

    pub fn handle(&mut self, what: AtWorker, env: &mut Env) {
        if let Some(backlog) = &mut self.backlog {
            return backlog.push(what);
        }
        match what {
            AtWorker::Dial => self.dial(env),
            AtWorker::Message { stream, body } if self.stream == Some(stream) => self.heard(*body, env),
            AtWorker::StreamClosed { stream } if self.stream == Some(stream) => self.stream_lost(env),
            AtWorker::KeepaliveFailed { stream } if self.stream == Some(stream) => {
                if env.net.is_cut_off(self.pid) || !env.is_coordinator_awake {
                    env.tell(|| format!("{} gives its stream up", id_of(self.pid)));
                    env.net.close_at_worker(stream, "closed its stream (no answer)");
                    self.stream_lost(env);
                }
            }
            AtWorker::Heartbeat { stream } if self.stream == Some(stream) => self.beat(stream, env),
            // Of a stream that this end has given up.
            AtWorker::Message { .. }
            | AtWorker::StreamClosed { .. }
            | AtWorker::KeepaliveFailed { .. }
            | AtWorker::Heartbeat { .. } => {}
            AtWorker::Wake => self.trainer.wake(env),
            AtWorker::Trained(event) if self.stream.is_some() && !self.is_welcome => self.waiting.push_back(event),
            AtWorker::Trained(event) => self.input(Input::Trainer(event), env),
            AtWorker::ConnectOver { epoch } => self.trainer.connect_over(epoch, env),
            AtWorker::Computed { number } => self.trainer.computed(number, env),
            AtWorker::ShardWritten { assignment, step, shard } => {
                self.trainer.shard_written(&assignment, step, shard, env);
            }
            AtWorker::Publish { assignment, step, files, remove } if self.is_welcome && self.stream.is_some() => {
                self.trainer.published(&assignment, step, &files, &remove, env);
            }
            // It does not know whether its place is still its own.
            AtWorker::Publish { .. } => {}
            AtWorker::ShardDropped { assignment, step } => env.disk.drop_shard(&assignment, step),
            AtWorker::Frame { from, incarnation, due, frame } => {
                if env.net.reaches(from, self.pid, incarnation, due) {
                    env.frames.keep(&frame, &mut env.net.random);
                    self.trainer.frame(frame, env);
                }
            }
            AtWorker::LinkClosed { peer, incarnation } => self.trainer.link_closed(peer, incarnation, env),
        }
    }

    fn dial(&mut self, env: &mut Env) {
        if self.stream.is_some() {
            return;
        }
        if !env.is_coordinator_up || env.net.is_cut_off(self.pid) {
            env.net.at_worker(self.pid, self.pause, AtWorker::Dial);
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
            return;
        }
        self.pause = FIRST_PAUSE;
        let stream = env.net.open_stream(self.pid);
        self.stream = Some(stream);
        self.is_welcome = false;
        let standing = self.session.standing();
        let register = proto::Register {
            worker_id: id_of(self.pid),
            protocol_version: proto::PROTOCOL_VERSION,
            build_version: proto::BUILD_VERSION.into(),
            host: self.host.clone(),
            data_address: format!("{}:{}", self.host, self.pid),
            device: "cpu".into(),
            fingerprint: "alike".into(),
            incarnation: self.pid as u64,
            job_id: standing.job_id,
            epoch: standing.epoch,
            rank: standing.rank,
            committed_step: standing.committed_step,
            ..Default::default()
        };
        self.send(ToCoordinator::Register(register), env);
    }

    fn stream_lost(&mut self, env: &mut Env) {
        self.stream = None;
        // Without a coordinator the session hears of what the trainer does.
        for event in std::mem::take(&mut self.waiting) {
            self.input(Input::Trainer(event), env);
        }
        env.net.at_worker(self.pid, self.pause, AtWorker::Dial);
    }

    fn heard(&mut self, body: FromCoordinator, env: &mut Env) {
        let is_welcome = matches!(body, FromCoordinator::Welcome(_));
        if let FromCoordinator::Refused(refused) = &body {
            let what = || format!("{} is refused: {}", id_of(self.pid), refused.reason);
            env.truth.check(false, what);
        }
        env.said.keep(&body, &mut env.net.random);
        self.input(Input::FromCoordinator(body), env);
        if is_welcome {
            self.is_welcome = true;
            for event in std::mem::take(&mut self.waiting) {
                self.input(Input::Trainer(event), env);
            }
            if let Some(stream) = self.stream {
                env.net.at_worker(self.pid, 0, AtWorker::Heartbeat { stream });
            }
        }
    }

    fn beat(&mut self, stream: StreamId, env: &mut Env) {
        self.check_fenced(env);
        let standing = self.session.standing();
        let sealed_next = self.trainer.job.as_ref().and_then(|j| j.state.as_ref()).is_some_and(|s| s.sealed.is_some());
        let heartbeat = proto::Heartbeat {
            job_id: standing.job_id,
            epoch: standing.epoch,
            committed_step: standing.committed_step,
            operation: self.trainer.operation().into(),
            waits_for: self.trainer.waits_for(),
            sealed_next,
            ..Default::default()
        };
        self.send(ToCoordinator::Heartbeat(heartbeat), env);
        env.net.at_worker(self.pid, self.heartbeat, AtWorker::Heartbeat { stream });
    }

    /// T-1: a newer epoch ends every wait of the older one.
    fn check_fenced(&mut self, env: &mut Env) {
        let standing = self.session.standing();
        let seen = self.waits_on.take();
        if let Some(epoch) = self.trainer.waits_in(&standing.job_id).filter(|epoch| *epoch < standing.epoch) {
            let since = seen.filter(|(of, _)| *of == epoch).map_or(env.net.now, |(_, since)| since);
            self.waits_on = Some((epoch, since));
            env.truth.check(env.net.now < since + SECOND, || {
                format!("T-1: {} waits in epoch {epoch}, and has epoch {}", id_of(self.pid), standing.epoch)
            });
        }
    }

    fn send(&mut self, body: ToCoordinator, env: &mut Env) {
        if let Some(stream) = self.stream {
            env.heard.keep(&body, &mut env.net.random);
            env.net.send_to_coordinator(stream, AtCoordinator::Message { stream, body: Box::new(body) });
        }
    }

    pub fn input(&mut self, input: Input, env: &mut Env) {
        for output in self.session.handle(input) {
            self.execute(output, env);
        }
    }

    fn execute(&mut self, output: Output, env: &mut Env) {
        match output {
            Output::Send(body) => self.send(body, env),
            Output::Act(action) => self.act(action, env),
            Output::Intervals { heartbeat_ms, .. } => self.heartbeat = u64::from(heartbeat_ms) * MS,
            Output::Probe(knock) => self.probe(&knock, env),
            Output::Refused { .. } | Output::IdInUse { .. } | Output::Note(_) => {}
        }
    }

    fn act(&mut self, action: Action, env: &mut Env) {
        match action {
            Action::Fence { epoch } => self.trainer.raise_fence(epoch, env),
            Action::Prepare(assignment) => {
                self.trainer.fence_of(&assignment.job_id);
                self.trainer.command(Command::Prepare(assignment), env);
            }
            Action::Trainer(command) => {
                let command = match command {
                    RealCommand::Start { epoch, heal } => Command::Start { epoch, heal },
                    RealCommand::Checkpoint { epoch, step } => Command::Checkpoint { epoch, step },
                    RealCommand::Publish { epoch, step, files, remove } => {
                        Command::Publish { epoch, step, files, remove }
                    }
                    RealCommand::DropShard { epoch, step } => Command::DropShard { epoch, step },
                    RealCommand::Drop { epoch } => Command::Drop { epoch },
                    RealCommand::Report { epoch, from } => Command::Report { epoch, from },
                    RealCommand::WarmUp(ahead) => return self.warm_up(*ahead, env),
                };
                self.trainer.command(command, env);
            }
            Action::Recorded { step } => self.trainer.shared.recorded = self.trainer.shared.recorded.max(step),
            Action::DropCheckpoint { epoch, step } => {
                self.trainer.shared.checkpoints.remove(&step);
                self.trainer.command(Command::DropShard { epoch, step }, env);
            }
            Action::RequestCheckpoint { epoch, step, then } => self.request_checkpoint(epoch, step, then, env),
        }
    }

    /// Says whether it can fill a place; the time that it takes is of no matter here.
    fn warm_up(&mut self, ahead: WarmUp, env: &mut Env) {
        let has_data = env.unable.get(&self.pid) != Some(&Unable::NoData);
        let error = (!has_data).then(|| NO_DATA.to_string());
        let data_digest = crate::arithmetic::DATA_DIGEST;
        let event = Event::WarmedUp { number: ahead.number, error, data_digest, unseen: None };
        let event = TrainerEvent { job_id: ahead.job_id, epoch: 0, event };
        let after = env.net.random.below(200 * MS);
        env.net.at_worker(self.pid, after, AtWorker::Trained(event));
    }

    /// Dials another worker, and is dialled by it.
    fn probe(&mut self, knock: &Knock, env: &mut Env) {
        let is_apart = |pid: Pid| env.unable.get(&pid) == Some(&Unable::Unreachable);
        let is_reached = !is_apart(self.pid) && !is_apart(pid_of(&knock.peer.worker_id));
        let error = if is_reached { String::new() } else { "cannot be reached".into() };
        self.send(ToCoordinator::Probed(proto::Probed { number: knock.number, error }), env);
    }

    fn request_checkpoint(&mut self, epoch: u64, step: u64, then: AfterCheckpoint, env: &mut Env) {
        let shared = &mut self.trainer.shared;
        if then == AfterCheckpoint::Halt {
            let committed = shared.committed;
            if step < committed || step == committed && shared.is_stepping {
                return self.input(Input::CheckpointTooLate { epoch, step, committed }, env);
            }
            shared.halt_at = shared.halt_at.max(Some(step));
            self.trainer.wake_soon(env);
        }
        let shared = &mut self.trainer.shared;
        match step.cmp(&shared.committed) {
            std::cmp::Ordering::Greater => drop(shared.checkpoints.insert(step)),
            std::cmp::Ordering::Equal => self.trainer.command(Command::Checkpoint { epoch, step }, env),
            std::cmp::Ordering::Less => {
                let committed = shared.committed;
                self.input(Input::CheckpointTooLate { epoch, step, committed }, env);
            }
        }
    }

    /// SIGCONT.
    pub fn continues(&mut self, env: &mut Env) {
        // A stopped process sees no fence.
        self.waits_on = None;
        for what in self.backlog.take().unwrap_or_default() {
            self.handle(what, env);
        }
    }
}
