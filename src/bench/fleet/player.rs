//! A worker whose trainer is played: the client and the session are the real ones, and what a trainer would report is made up.
//!
//! It computes nothing, reads nothing and has no links: it says that it has prepared as soon as it is told to, commits the steps that the bench
//! names, and as rank 0 reports a loss that is invented.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use toroid_proto::worker_message::Body;
use toroid_proto::{Heartbeat, Inputs, Probed, Register, StepRecord};
use toroid_session::client::{Client, Ending, Input};
use toroid_session::{Action, Assignment, Command, Event, HealPlan, Knock, Standing, TrainerEvent};
use toroid_torus::ids::{Epoch, JobId, Rank, Step};
use toroid_worker::control::carrier::{Carrier, Opening, Process};
use toroid_worker::control::{ControlError, registers};

use super::connections::Connections;
use super::words::{Status, now_us};

/// Names of workers that ended by themselves, at most.
const MAX_NAMED: usize = 8;
/// Before a gRPC message: whether it is compressed, and its length.
const GRPC_HEADER_BYTES: u64 = 5;
/// What each step is said to compute for.
const COMPUTE_S: f64 = 0.5;
/// Why what needs a state is not done.
const HAS_NO_STATE: &str = "the worker is one of toroid bench fleet: its trainer is played and has no state to write";

/// What the players of a process have in common.
pub struct World {
    pub connections: Arc<Connections>,
    status: Mutex<Status>,
    changed: tokio::sync::Notify,
    /// The newest step that is committed, and its epoch.
    pub steps: watch::Sender<(Epoch, Step)>,
    pub echo_per_s: watch::Sender<u32>,
}

impl World {
    pub fn new(connections: Arc<Connections>) -> World {
        World {
            connections,
            status: Mutex::default(),
            changed: tokio::sync::Notify::new(),
            steps: watch::channel((Epoch::NONE, Step::ZERO)).0,
            echo_per_s: watch::channel(0).0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // Nobody panics while it is held, and its numbers would still be whole.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what has happened; whoever tells of it is woken.
    pub fn note<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_one();
        result
    }

    /// Waits until there is something to tell.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All there is to tell; latencies are told once.
    pub fn take(&self) -> Status {
        let mut status = self.lock();
        let told = status.clone();
        (status.acknowledged_us, status.echoed_us) = (Vec::new(), Vec::new());
        told
    }
}

/// The place that it plays.
struct Place {
    assignment: Assignment,
    is_started: bool,
    has_state: bool,
}

pub struct Player {
    world: Arc<World>,
    /// The number by which it finds its connection.
    number: usize,
    identity: Register,
    place: Option<Place>,
    committed: Step,
    /// What its trainer has to report.
    events: VecDeque<TrainerEvent>,
    /// For who kills by rank; -1: it has no place.
    rank: Arc<AtomicI64>,
    is_welcome: bool,
    /// A user had it killed.
    is_killed: bool,
    /// Of rank 0: its newest record, when it was said, and up to which all are acknowledged.
    said: Option<(Step, Body, u64)>,
    acknowledged: Step,
    echo_us: Option<u64>,
    num_steps: u64,
}

impl Player {
    pub fn new(world: Arc<World>, number: usize, identity: Register, rank: Arc<AtomicI64>) -> Player {
        Player {
            world,
            number,
            identity,
            place: None,
            committed: Step::ZERO,
            events: VecDeque::new(),
            rank,
            is_welcome: false,
            is_killed: false,
            said: None,
            acknowledged: Step::ZERO,
            echo_us: None,
            num_steps: 0,
        }
    }

    fn report(&mut self, event: Event) {
        if let Some(place) = &self.place {
            self.events.push_back(place.assignment.event(event));
        }
    }

    fn is_rank_zero(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.assignment.rank == Rank::ZERO)
    }

    fn prepare(&mut self, assignment: Assignment) {
        let is_same_job = self.place.as_ref().is_some_and(|place| place.assignment.job_id == assignment.job_id);
        let has_state = assignment.heal && is_same_job && self.place.as_ref().is_some_and(|place| place.has_state);
        if !has_state {
            self.committed = if assignment.heal { Step::ZERO } else { assignment.restore_step.unwrap_or_default() };
        }
        let held = if has_state || !assignment.heal { vec![assignment.held_as()] } else { Vec::new() };
        let (epoch, rank) = (assignment.epoch.get(), assignment.rank);
        self.rank.store(i64::from(rank.to_wire()), Ordering::Relaxed);
        self.world.note(|status| {
            if status.epoch < epoch {
                (status.epoch, status.assigned, status.started, status.base_step) = (epoch, 0, 0, 0);
            }
            if status.epoch == epoch {
                (status.assigned, status.assigned_us) = (status.assigned + 1, now_us());
            }
        });
        // What was said in the epoch before is not acknowledged in this one.
        (self.said, self.echo_us) = (None, None);
        let num_params = assignment.spec.model.num_params();
        self.place = Some(Place { assignment, is_started: false, has_state });
        let (inputs, sums_from) =
            (Box::new(Inputs { summary: "nothing: it is played".into(), ..Inputs::default() }), Step::new(1));
        let (data_digest, num_samples) = ([7; 32], 1);
        let (committed_step, sealed_next) = (self.committed, has_state);
        self.report(Event::Prepared {
            committed_step,
            held,
            sealed_next,
            sums_from,
            data_digest,
            num_samples,
            num_params,
            weights: BTreeMap::new(),
            inputs,
        });
    }

    fn start(&mut self, epoch: Epoch, heal: Option<HealPlan>) {
        let Some(place) = self.place.as_mut().filter(|place| place.assignment.epoch == epoch) else { return };
        let is_repeated = std::mem::replace(&mut place.is_started, true);
        place.has_state = true;
        if is_repeated {
            return;
        }
        let recorded = heal.as_ref().map_or(self.committed, |heal| heal.recorded);
        self.committed = heal.map_or(self.committed, |heal| heal.step);
        let base_step = self.committed.get();
        self.world.note(|status| {
            if status.epoch == epoch.get() {
                (status.started, status.started_us) = (status.started + 1, now_us());
                status.base_step = base_step.max(status.base_step);
            }
        });
        // What the rank 0 before it has not said.
        self.report_from(recorded.next());
    }

    /// As rank 0: the records from this step on.
    fn report_from(&mut self, from: Step) {
        if self.is_rank_zero() {
            for step in from.through(self.committed) {
                self.report(Event::Committed { step, record: Some(Box::new(record_of(step))) });
            }
        }
    }

    /// All places commit this step.
    fn commit(&mut self, epoch: Epoch, step: Step) {
        let trains = self.place.as_ref().is_some_and(|p| p.is_started && p.assignment.epoch == epoch);
        if !trains || step <= self.committed {
            return;
        }
        let from = self.committed.next();
        (self.committed, self.num_steps, self.echo_us) = (step, self.num_steps + step.since(from) + 1, None);
        if self.is_rank_zero() {
            self.report_from(from);
        } else {
            self.report(Event::Committed { step, record: None });
        }
    }

    fn acknowledged(&mut self, step: Step) {
        let Some((said, _, at_us)) = &self.said else { return };
        if step < *said {
            return;
        }
        let now = now_us();
        if self.acknowledged < step {
            self.acknowledged = step;
            let took_us = now.saturating_sub(*at_us);
            self.world.note(|status| status.acknowledged_us.push(took_us));
        } else if let Some(at_us) = self.echo_us.take() {
            self.world.note(|status| status.echoed_us.push(now.saturating_sub(at_us)));
        }
    }

    /// What is said again for an echo, where all that was said before has been answered.
    fn echo(&mut self) -> Option<Body> {
        let (step, body, _) = self.said.as_ref().filter(|_| self.is_rank_zero() && self.echo_us.is_none())?;
        if self.acknowledged < *step {
            return None;
        }
        self.echo_us = Some(now_us());
        Some(body.clone())
    }

    fn forget_place(&mut self) {
        (self.place, self.committed, self.said, self.echo_us) = (None, Step::ZERO, None, None);
        self.acknowledged = Step::ZERO;
        self.rank.store(-1, Ordering::Relaxed);
    }

    fn set_welcome(&mut self, is_welcome: bool) {
        if std::mem::replace(&mut self.is_welcome, is_welcome) == is_welcome {
            return;
        }
        self.world.note(|status| match is_welcome {
            true => (status.welcomed, status.welcomed_us) = (status.welcomed + 1, now_us()),
            false => (status.welcomed, status.num_lost) = (status.welcomed - 1, status.num_lost + 1),
        });
    }
}

/// Falls, so that it looks like one.
fn record_of(step: Step) -> StepRecord {
    let loss = 2.0 + 4.0 / (1.0 + step.get() as f64).sqrt();
    let (ce, grad_norm, lr, tokens, tokens_per_s, step_s) = (loss, 1.0, 1e-3, 1, 1.0, 1.0);
    StepRecord { step: step.get(), loss, ce, grad_norm, lr, tokens, tokens_per_s, step_s, ..StepRecord::default() }
}

impl Process for Player {
    fn open(&mut self, _: String, _: Option<Duration>, standing: Standing) -> Result<Opening, ControlError> {
        let (connections, number) = (Arc::clone(&self.world.connections), self.number);
        let register = registers(&self.identity, standing);
        self.world.note(|status| status.num_sent += 1);
        Ok(Box::pin(async move { connections.open(number, register).await }))
    }

    fn heartbeat(&self, standing: Standing) -> Heartbeat {
        let is_started = self.place.as_ref().is_some_and(|place| place.is_started);
        let operation = if is_started { "forward" } else { "waiting for work" };
        let heartbeat = Heartbeat {
            job_id: standing.job_id.into(),
            epoch: standing.epoch.get(),
            committed_step: standing.committed_step.get(),
            operation: operation.into(),
            compute_s: self.num_steps as f64 * COMPUTE_S,
            compute_steps: self.num_steps,
            progress: self.num_steps,
            sealed_next: is_started,
            memory_bytes: 70 << 30,
            memory_free_bytes: 10 << 30,
            links: if is_started { [("tls".to_string(), 8)].into() } else { Default::default() },
            waits_for: Vec::new(),
            saving: None,
        };
        self.count_sent(&Body::Heartbeat(heartbeat.clone()));
        heartbeat
    }

    fn says(&mut self, body: &Body) {
        self.count_sent(body);
        if let Body::Step(report) = body {
            let step = Step::new(report.record.as_ref().map_or(0, |record| record.step));
            self.said = Some((step, body.clone(), now_us()));
        }
    }

    fn act(&mut self, action: Action) -> Result<Option<Input>, ControlError> {
        match action {
            Action::Fence { .. } => {}
            Action::Prepare(assignment) => self.prepare(*assignment),
            Action::Recorded { step } => self.acknowledged(step),
            Action::RequestCheckpoint { step, .. } | Action::Trainer(Command::Checkpoint { step, .. }) => {
                self.report(Event::CheckpointFailed { step, error: HAS_NO_STATE.into() });
            }
            Action::DropCheckpoint { .. } => {}
            Action::Trainer(Command::Start { epoch, heal }) => self.start(epoch, heal),
            Action::Trainer(Command::Report { from, .. }) => self.report_from(from),
            Action::Trainer(Command::Drop { .. }) => self.forget_place(),
            Action::Trainer(Command::DropShard { .. }) => {}
            Action::Trainer(Command::Publish { step, .. }) => {
                self.report(Event::PublishFailed { step, error: HAS_NO_STATE.into() });
            }
            Action::Trainer(Command::WarmUp(ahead)) => {
                let (number, error, data_digest, unseen) = (ahead.number, None, [7; 32], None);
                let event = Event::WarmedUp { number, error, data_digest, unseen };
                let (job_id, epoch): (JobId, Epoch) = (ahead.job_id, Epoch::NONE);
                self.events.push_back(TrainerEvent { job_id, epoch, event });
            }
        }
        Ok(None)
    }

    /// It has no links that could fail.
    fn probe(&mut self, knock: Knock, _: Duration) -> Option<Input> {
        Some(Input::Probed(Probed { number: knock.number, error: String::new() }))
    }

    fn connected(&mut self, is_connected: bool) {
        self.set_welcome(is_connected);
    }

    fn limits(&mut self, _: u32, _: u32) {}

    /// Of this worker alone: the others of its process live.
    fn die(&mut self, _: &str) -> Option<Ending> {
        self.is_killed = true;
        Some(Ending::Asked)
    }

    fn note(&mut self, line: &str, is_warning: bool) {
        if is_warning {
            tracing::debug!(worker = self.identity.worker_id, "{line}");
        }
    }
}

impl Player {
    fn count_sent(&self, body: &Body) {
        let bytes = body.encoded_len() as u64 + GRPC_HEADER_BYTES;
        let mut status = self.world.lock();
        (status.sent_bytes, status.num_sent) = (status.sent_bytes + bytes, status.num_sent + 1);
    }

    fn count_received(&self, input: &Input) {
        if let Input::FromCoordinator { body, .. } = input {
            let bytes = body.encoded_len() as u64 + GRPC_HEADER_BYTES;
            let mut status = self.world.lock();
            (status.received_bytes, status.num_received) = (status.received_bytes + bytes, status.num_received + 1);
        }
    }
}

/// Plays until it is killed: its stream ends without a word then.
pub async fn play(client: Client, player: Player, mut killed: oneshot::Receiver<()>) {
    let world = Arc::clone(&player.world);
    let (mut steps, mut echo_per_s) = (world.steps.subscribe(), world.echo_per_s.subscribe());
    let mut carrier = Carrier::new(client, player, Instant::now());
    let mut echo_at = Instant::now();
    let ended = loop {
        let takes_events = carrier.client.takes_events() && !carrier.process.events.is_empty();
        let echoes = *echo_per_s.borrow();
        let echo_due = (echoes > 0 && carrier.process.is_rank_zero()).then_some(echo_at);
        let input = tokio::select! {
            biased;
            _ = &mut killed => break None,
            () = std::future::ready(()), if takes_events => match carrier.process.events.pop_front() {
                Some(event) => Input::Trainer(event),
                None => continue,
            },
            (input, _) = carrier.next() => input,
            Ok(()) = steps.changed() => {
                let (epoch, step) = *steps.borrow_and_update();
                carrier.process.commit(epoch, step);
                continue;
            }
            Ok(()) = echo_per_s.changed() => {
                echo_per_s.borrow_and_update();
                continue;
            }
            () = due(echo_due) => {
                echo_at = Instant::now() + Duration::from_secs(1) / echoes.max(1);
                let Some(body) = carrier.process.echo() else { continue };
                let heartbeat = carrier.process.heartbeat(carrier.client.standing());
                match carrier.try_send(Body::Heartbeat(heartbeat)).or_else(|| carrier.try_send(body)) {
                    Some(lost) => lost,
                    None => continue,
                }
            }
        };
        carrier.process.count_received(&input);
        match carrier.take(input).await {
            Ok(None) => {}
            Ok(Some(_)) if carrier.process.is_killed => break None,
            Ok(Some(ending)) => break Some(format!("{ending:?}")),
            Err(error) => break Some(error.to_string()),
        }
    };
    let (was_welcome, id) = (carrier.process.is_welcome, carrier.process.identity.worker_id.clone());
    drop(carrier);
    world.note(|status| {
        status.alive -= 1;
        status.welcomed -= usize::from(was_welcome);
        match ended {
            None if status.killed == 0 => (status.killed, status.killed_us) = (1, now_us()),
            None => status.killed += 1,
            Some(why) if status.ended.len() < MAX_NAMED => status.ended.push(format!("{id}: {why}")),
            Some(_) => {}
        }
    });
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
