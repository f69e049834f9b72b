//! A worker's process: the real client with its session, the real trainer on a toy device, and what the control task does between them.
//!
//! A stopped process (SIGSTOP) hears nothing, keeps its connections, and finds everything in order when it goes on.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use toroid_coordinator::machine::StreamId;
use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_session::client::{Client, Ending, Input, Output, Settings};
use toroid_session::{Action, Command, Event as Said, HeldAs, Knock, TrainerEvent};
use toroid_torus::ids::{Epoch, JobId, Rank, Step, Term};
use toroid_worker::comm::Listener;
use toroid_worker::control::{JobFence, heartbeat};
use toroid_worker::device::DeviceMemory;
use toroid_worker::trainer::{self, Deed, Emit, Environment, Order, Requested, Shared};

use crate::coordinator::FAILURE_TIMEOUT;
use crate::device::ToyDevice;
use crate::network::{AtCoordinator, AtWorker, Event, MS, Micros, Pid, SECOND};
use crate::played::{Thread, Threads};
use crate::truth::Seen;
use crate::world::{Env, Unable};

/// A raised fence ends every wait of an older epoch at once, but the trainer may be busy between two looks.
const FENCE_LIMIT: Micros = SECOND;
/// Commands that a trainer has not taken, at most.
const MAX_COMMANDS: usize = 1024;

/// What a worker holds of a job, as its trainer has shown or said it.
#[derive(Debug, Clone)]
pub struct Held {
    pub job: JobId,
    pub epoch: Epoch,
    /// Two while the state is split anew.
    pub as_places: Vec<HeldAs>,
    pub committed: Step,
    /// The step after the committed one.
    pub is_sealed: bool,
    /// What its epoch goes on with; before that it may be older.
    pub is_current: bool,
}

pub struct Worker {
    pub pid: Pid,
    pub host: String,
    pub client: Client,
    pub threads: Threads,
    pub shared: Arc<Shared>,
    orders: SyncSender<Order>,
    /// What the trainer has said in its turn.
    said: Arc<Mutex<VecDeque<TrainerEvent>>>,
    seen: Seen,
    fence: JobFence,
    pub stream: Option<StreamId>,
    /// Events of the trainer that the client does not take yet.
    waiting: VecDeque<TrainerEvent>,
    /// When the client is told that its deadline has come, and the number of that event: others are out of date.
    alarm: Option<Micros>,
    alarm_number: u64,
    /// The client has ended, and the process does.
    has_ended: bool,
    /// What has arrived at a stopped process; `None`: it runs.
    pub backlog: Option<Vec<AtWorker>>,
    /// When the newest event reaches the session: it hears them in order.
    last_event: Micros,
    /// The newest place that it was given, and its rank.
    place: Option<(JobId, Epoch, Rank)>,
    pub held: Option<Held>,
    /// The job and the epoch in which it has links and makes steps, or has made all.
    pub trains: Option<(JobId, Epoch)>,
    /// Of the coordinators that it has heard.
    pub greatest: Term,
    /// The epoch that was to be prepared and is not yet, and since when.
    ordered: Option<(Epoch, Micros)>,
}

pub fn id_of(pid: Pid) -> String {
    format!("w{pid}")
}

pub fn pid_of(id: &str) -> Pid {
    id[1..].parse().expect("workers of a simulation are named by their pid")
}

impl Worker {
    pub fn new(pid: Pid, host: String, env: &mut Env) -> Worker {
        let seen = Seen::default();
        let shared = Arc::new(Shared::observed(Box::new(seen.clone())));
        let said: Arc<Mutex<VecDeque<TrainerEvent>>> = Arc::default();
        let (orders, to_do) = sync_channel(MAX_COMMANDS);
        let environment = Environment {
            roots: toroid_worker::Roots::everywhere(),
            listener: Listener::played(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))),
            shared: Arc::clone(&shared),
            cache_dir: cache_dir(),
            connect_timeout: Duration::from_micros(2 * FAILURE_TIMEOUT),
        };
        let to_session = Arc::clone(&said);
        let emit: Emit = Arc::new(move |event| to_session.lock().expect("nobody panics with it").push_back(event));
        let mut threads = Threads::default();
        threads.start(Thread::Trainer, move || trainer::run(&ToyDevice::new(), &environment, to_do, &emit));
        threads.begin(pid, env);
        let failure_timeout = Duration::from_micros(FAILURE_TIMEOUT);
        let client = Client::new(Settings {
            coordinators: env.addresses.clone(),
            heartbeat: failure_timeout / 5,
            failure_timeout,
            leave_grace: 5 * failure_timeout,
            own_leave_grace: None,
        });
        let mut worker = Worker {
            pid,
            host,
            client,
            threads,
            shared,
            orders,
            said,
            seen,
            fence: JobFence::new().expect("there is a descriptor for a fence"),
            stream: None,
            waiting: VecDeque::new(),
            alarm: None,
            alarm_number: 0,
            has_ended: false,
            backlog: None,
            last_event: 0,
            place: None,
            held: None,
            trains: None,
            greatest: Term::default(),
            ordered: None,
        };
        worker.set_alarm(env);
        worker
    }

    /// SIGKILL.
    pub fn kill(self, env: &mut Env) {
        self.threads.kill(self.pid, env);
    }

    pub fn handle(&mut self, what: AtWorker, env: &mut Env) {
        if let Some(backlog) = &mut self.backlog {
            return backlog.push(what);
        }
        if self.has_ended {
            return;
        }
        match what {
            AtWorker::Deadline { number } if number == self.alarm_number => {
                self.alarm = None;
                self.input(Input::Deadline, env);
            }
            AtWorker::Message { stream, term, body } if self.stream == Some(stream) => self.heard(term, *body, env),
            AtWorker::StreamClosed { stream } if self.stream == Some(stream) => self.stream_lost("it was closed", env),
            AtWorker::KeepaliveFailed { stream } if self.stream == Some(stream) => {
                if !env.answers(self.pid, env.net.seat_of(stream)) {
                    env.tell(|| format!("{} gives its stream up", id_of(self.pid)));
                    env.net.close_at_worker(stream, "closed its stream (no answer)");
                    self.stream_lost("no answer", env);
                }
            }
            // Of a stream that this end has given up, or of a deadline that is another now.
            AtWorker::Message { .. }
            | AtWorker::StreamClosed { .. }
            | AtWorker::KeepaliveFailed { .. }
            | AtWorker::Deadline { .. } => {}
            AtWorker::Resume { thread, number } => self.turn(thread, number, env),
            AtWorker::Trained(event) => {
                self.waiting.push_back(event);
                self.take_events(env);
            }
            AtWorker::Asked { times } => self.input(Input::Asked { times }, env),
        }
    }

    /// Over a stream that is open at once, or not at all.
    fn dial(&mut self, address: &str, env: &mut Env) -> Input {
        let seat = match env.seat_that_leads(self.pid, address) {
            Ok(seat) => seat,
            Err(leader) => return Input::NotOpened { leader, why: "it does not lead, or not answer".into() },
        };
        self.stream = Some(env.net.open_stream(self.pid, seat));
        let standing = self.client.standing();
        let register = proto::Register {
            secret: vec![7; 32],
            worker_id: id_of(self.pid),
            protocol_version: proto::build().protocol.newest,
            build_version: proto::BUILD_VERSION.into(),
            host: self.host.clone(),
            data_address: format!("{}:{}", self.host, self.pid),
            device: "cpu".into(),
            fingerprint: "alike".into(),
            incarnation: self.pid as u64,
            job_id: standing.job_id.into(),
            epoch: standing.epoch.get(),
            rank: standing.rank.to_wire(),
            committed_step: standing.committed_step.get(),
            store_id: standing.store,
            term: standing.term.get(),
            owner_id: standing.owner.map_or_else(Vec::new, |owner| owner.bytes().to_vec()),
            shape: standing.shape.as_ref().map(Into::into),
            ..Default::default()
        };
        self.send(ToCoordinator::Register(register), env);
        Input::Opened
    }

    fn stream_lost(&mut self, why: &str, env: &mut Env) {
        self.stream = None;
        self.input(Input::Lost { why: why.into() }, env);
    }

    pub fn heard(&mut self, term: Term, body: FromCoordinator, env: &mut Env) {
        env.said.keep(&(term, body.clone()), &mut env.net.random);
        let is_old = term < self.greatest;
        self.greatest = self.greatest.max(term);
        let words = is_old.then(|| format!("{body:?}"));
        let outputs = self.client.handle(Input::FromCoordinator { term, body }, time(env));
        let counts =
            |o: &Output| matches!(o, Output::Act(_) | Output::Send(_) | Output::Heartbeat | Output::Probe { .. });
        env.truth.check(!is_old || !outputs.iter().any(counts), || {
            let (id, greatest) = (id_of(self.pid), self.greatest);
            format!("T-13: {id} has heard {greatest:?} and takes of {term:?}: {}", words.unwrap_or_default())
        });
        self.carry_out(outputs, env);
        self.take_events(env);
    }

    fn beat(&mut self, env: &mut Env) {
        self.check_fenced(env);
        let heartbeat = heartbeat(self.client.standing(), &self.shared, DeviceMemory::default());
        self.send(ToCoordinator::Heartbeat(heartbeat), env);
    }

    /// T-1: a newer epoch ends every wait of the older one.
    fn check_fenced(&mut self, env: &mut Env) {
        let Some((epoch, ordered)) = self.ordered else { return };
        let since = self.threads.waits_since.map(|since| since.max(ordered));
        // A wait that has begun before, and hears of nothing since.
        let waits = since.is_some_and(|since| env.net.now > since + FENCE_LIMIT) && !self.threads.is_hung;
        env.truth.check(!waits, || {
            let point = &self.threads.point;
            format!("T-1: {} waits in {point} of an older epoch, and has epoch {epoch}", id_of(self.pid))
        });
    }

    /// A thread has the turn until it waits; then the others hear what came of it.
    fn turn(&mut self, thread: Thread, number: u64, env: &mut Env) {
        self.threads.resume(self.pid, thread, number, env);
        for (place, step, deed) in self.seen.take() {
            self.showed(&place.job_id, place.epoch, step, &deed, env);
            env.truth.saw(&place, step, &deed);
        }
        let said = std::mem::take(&mut *self.said.lock().expect("nobody panics with it"));
        for event in said {
            self.trained(&event, env);
            let delay = if env.net.random.percent(10) { 20 * MS } else { MS };
            let at = (env.net.now + env.net.random.below(delay)).max(self.last_event + 1);
            self.last_event = at;
            env.net.push_at(at, Event::AtWorker { pid: self.pid, what: AtWorker::Trained(event) });
        }
    }

    fn showed(&mut self, job: &JobId, epoch: Epoch, step: Step, deed: &Deed, env: &mut Env) {
        if let Deed::Holds { as_place, .. } = deed {
            let (job, as_places) = (job.clone(), vec![*as_place]);
            self.held = Some(Held { job, epoch, as_places, committed: step, is_sealed: false, is_current: true });
            env.tell(|| format!("{} holds step {step} in epoch {epoch}", id_of(self.pid)));
        } else if let Some(held) = &mut self.held {
            held.is_sealed = matches!(deed, Deed::Sealed);
        }
    }

    /// What the trainer says, before the session hears it.
    fn trained(&mut self, event: &TrainerEvent, env: &mut Env) {
        let TrainerEvent { job_id, epoch, event } = event;
        if self.ordered.is_some_and(|(of, _)| of <= *epoch) {
            self.ordered = None;
        }
        match event {
            Said::Prepared { committed_step, held, sealed_next, .. } => {
                self.held = (!held.is_empty()).then(|| Held {
                    job: job_id.clone(),
                    epoch: *epoch,
                    as_places: held.clone(),
                    committed: *committed_step,
                    is_sealed: *sealed_next,
                    is_current: false,
                });
                let rank = self.place.as_ref().filter(|(job, of, _)| (job, of) == (job_id, epoch)).map(|p| p.2);
                if let Some(rank) = rank {
                    env.truth.prepared(self.pid, job_id, *epoch, rank, *committed_step, held);
                }
            }
            Said::Connected => self.trains = Some((job_id.clone(), *epoch)),
            Said::PeerLost { .. } | Said::Unreached(_) | Said::Failed { .. } => self.trains = None,
            _ => {}
        }
    }

    fn send(&mut self, body: ToCoordinator, env: &mut Env) {
        if let Some(stream) = self.stream {
            env.heard.keep(&body, &mut env.net.random);
            env.net.send_to_coordinator(stream, AtCoordinator::Message { stream, body: Box::new(body) });
        }
    }

    fn input(&mut self, input: Input, env: &mut Env) {
        self.take(input, env);
        self.take_events(env);
    }

    /// What the trainer has said, as far as the client takes it now.
    fn take_events(&mut self, env: &mut Env) {
        while self.client.takes_events()
            && let Some(event) = self.waiting.pop_front()
        {
            self.take(Input::Trainer(event), env);
        }
    }

    /// Does what the client makes of an input, and of what comes of that.
    fn take(&mut self, input: Input, env: &mut Env) {
        let outputs = self.client.handle(input, time(env));
        self.carry_out(outputs, env);
    }

    fn carry_out(&mut self, outputs: Vec<Output>, env: &mut Env) {
        let mut outputs = VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            if let Some(input) = self.execute(output, env) {
                outputs.extend(self.client.handle(input, time(env)));
            }
        }
        self.set_alarm(env);
    }

    fn set_alarm(&mut self, env: &mut Env) {
        let at = self.client.deadline().map(|at| u64::try_from(at.as_micros()).expect("a simulation is short"));
        if at != self.alarm {
            (self.alarm, self.alarm_number) = (at, self.alarm_number + 1);
            if let Some(at) = at {
                let what = AtWorker::Deadline { number: self.alarm_number };
                env.net.push_at(at, Event::AtWorker { pid: self.pid, what });
            }
        }
    }

    /// Says what the client is to hear of it.
    fn execute(&mut self, output: Output, env: &mut Env) -> Option<Input> {
        match output {
            Output::Open { coordinator, .. } => return Some(self.dial(&coordinator, env)),
            Output::Close => {
                if let Some(stream) = self.stream.take() {
                    env.net.close_at_worker(stream, "closed its stream");
                }
            }
            Output::Send(body) => self.send(body, env),
            Output::Heartbeat => self.beat(env),
            Output::Leaving { at_once } => {
                let reason = "the worker was asked to end".into();
                self.send(ToCoordinator::Leaving(proto::Leaving { reason, at_once }), env);
            }
            Output::Act(action) => return self.act(action, env),
            Output::Probe { knock, .. } => return Some(self.probe(&knock, env)),
            Output::Connected(is_connected) => self.shared.set_connected(is_connected),
            Output::Limits { connect_ms, .. } => self.shared.set_connect_limit(connect_ms),
            // No user asks for it here: a death comes of the seed.
            Output::Die { reason } => unreachable!("nobody has {} killed: {reason}", id_of(self.pid)),
            Output::Note(_) | Output::Warn(_) => {}
            Output::End(ending) => {
                env.truth.check(!matches!(ending, Ending::Refused { .. }), || {
                    format!("{} is refused: {ending:?}", id_of(self.pid))
                });
                env.tell(|| format!("{} ends: {ending:?}", id_of(self.pid)));
                self.has_ended = true;
                env.net.push(0, Event::WorkerEnds { pid: self.pid });
            }
        }
        None
    }

    fn act(&mut self, action: Action, env: &mut Env) -> Option<Input> {
        match action {
            Action::Fence { epoch } => {
                self.trains = None;
                self.fence.raise(epoch);
                env.happens(self.pid);
            }
            Action::Prepare(assignment) => {
                let fence = self.fence.of(&assignment.owner).expect("there is a descriptor for a fence");
                self.place = Some((assignment.job_id.clone(), assignment.epoch, assignment.rank));
                self.ordered = Some((assignment.epoch, env.net.now));
                self.order(Order::Prepare(assignment, fence), env);
            }
            Action::Trainer(command) => {
                if let Command::Drop { epoch } = &command {
                    self.held = self.held.take().filter(|held| held.epoch > *epoch);
                    self.ordered = self.ordered.filter(|(of, _)| of > epoch);
                }
                self.command(command, env);
            }
            Action::Recorded { step } => self.shared.set_recorded(step),
            Action::DropCheckpoint { epoch, step } => {
                self.shared.withdraw_checkpoint(step);
                self.command(Command::DropShard { epoch, step }, env);
            }
            Action::RequestCheckpoint { epoch, step, then } => match self.shared.request_checkpoint(step, then) {
                Requested::Ahead => {}
                Requested::Now => self.command(Command::Checkpoint { epoch, step }, env),
                Requested::TooLate { committed } => return Some(Input::CheckpointTooLate { epoch, step, committed }),
            },
        }
        None
    }

    fn command(&mut self, command: Command, env: &mut Env) {
        self.order(Order::Command(command), env);
    }

    fn order(&mut self, order: Order, env: &mut Env) {
        self.orders.try_send(order).expect("a trainer takes its orders");
        env.happens(self.pid);
    }

    /// Dials another worker, and is dialled by it.
    fn probe(&self, knock: &Knock, env: &Env) -> Input {
        let is_apart = |pid: Pid| env.unable.get(&pid) == Some(&Unable::Unreachable);
        let is_reached = !is_apart(self.pid) && !is_apart(pid_of(&knock.peer.worker_id));
        let error = if is_reached { String::new() } else { "cannot be reached".into() };
        Input::Probed(proto::Probed { number: knock.number, error })
    }

    /// SIGCONT.
    pub fn continues(&mut self, env: &mut Env) {
        // A stopped process sees no fence.
        self.ordered = self.ordered.map(|(epoch, _)| (epoch, env.net.now));
        for what in self.backlog.take().unwrap_or_default() {
            self.handle(what, env);
        }
    }
}

/// As a client counts it.
pub fn time(env: &Env) -> Duration {
    Duration::from_micros(env.net.now)
}

/// Token files of all simulations: the text is the same.
fn cache_dir() -> PathBuf {
    crate::text::folder().join("cache")
}
