//! The coordinator's process: the real machine, what its driver does with the outputs, and what is durable.
//!
//! Outputs are executed one by one; between any two of them the coordinator may be killed. It starts again from the records, which
//! went through JSON as a store does it. On the way out every decision is checked against what is really so:
//!
//! - **T-1** a Start comes when all places have prepared in this very epoch.
//! - **T-3** healing goes on from the highest committed step, from a rank that has it; a restore has to be unavoidable.
//! - **T-6** a checkpoint that is recorded is complete, and so is the curve up to it; the newest one is never removed.
//! - **T-7** see `places`. **T-8** epochs grow by one, and are stored before they are spoken of.
//! - **T-9** while only the coordinator is away, steps are committed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use toroid_coordinator::machine::clock::Boot;
use toroid_coordinator::machine::record::{Incident, JobRecord, Record};
use toroid_coordinator::machine::{
    Config, Input, Limits, Machine, Now, Output, Policy, Reply, RequestId, Retention, StepSummary, StreamId,
    Submission, missing_record,
};
use toroid_proto::StepRecord;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::worker_message::Body as FromWorker;
use toroid_session::HeldAs;
use toroid_torus::ids::{Rank, Step, Term};
use toroid_torus::owner::OwnerId;

use crate::network::{AtCoordinator, AtWorker, Event, Micros, Network, Pid, SECOND};
use crate::pool::{Wish, gives_way};
use crate::worker::{Worker, id_of, pid_of};
use crate::world::World;

const JOBS_DIR: &str = "/jobs";
pub const LIMITS: Limits =
    Limits { heartbeat_interval: Duration::from_secs(1), failure_timeout: Duration::from_secs(5) };
pub const FAILURE_TIMEOUT: Micros = 5 * SECOND;

/// Jobs that wait gain on others within the time of a simulation.
fn policy() -> Policy {
    Policy { aging: Duration::from_secs(60), ..Policy::default() }
}

pub fn checkpoint_root(job: &str) -> String {
    format!("{JOBS_DIR}/{job}/checkpoints")
}

pub struct Coordinator {
    machine: Machine,
    /// Its machine's monotonic clock began here.
    origin: Micros,
    boot: u64,
    /// Streams below this one belong to the process before.
    first_stream: StreamId,
    connections: BTreeMap<StreamId, Pid>,
    /// What has arrived while it is stopped; `None`: it runs.
    pub backlog: Option<Vec<AtCoordinator>>,
    /// The number of the tick that counts, and when it comes.
    tick: (u64, Micros),
    term: Term,
    /// It has done what it began with, and takes calls.
    pub is_ready: bool,
    /// What follows from a decision that is being written.
    rest: Vec<Output>,
    /// What came meanwhile.
    inputs: VecDeque<Input>,
}

/// What was so when the coordinator went away, and nothing else was missing.
pub struct Absence {
    since: Micros,
    /// Faults and deaths so far.
    num_disturbed: u64,
    /// Committed steps of the jobs that were training.
    steps: BTreeMap<String, Step>,
}

impl Coordinator {
    pub fn worker_of(&self, stream: StreamId) -> Option<&Pid> {
        self.connections.get(&stream)
    }
}

impl World {
    fn now(&self) -> Now {
        let origin = self.coordinator.as_ref().map_or(self.machine.0, |c| c.origin);
        Now {
            monotonic: Duration::from_micros(self.env.net.now.saturating_sub(origin)),
            unix_ms: 1_700_000_000_000 + (self.env.net.now / 1000) as i64 + self.clock_jump_ms,
            boot: Boot(self.coordinator.as_ref().map_or(0, |c| c.boot)),
        }
    }

    pub fn start_coordinator(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        self.env.tell(|| "the coordinator starts".into());
        let text = |r: &Record| serde_json::to_string(r).expect("records are JSON");
        let records = self.store.values().map(|r| serde_json::from_str(&text(r)).expect("records are read back"));
        let records: Vec<Record> = records.collect();
        // Now and then on another machine.
        if self.env.net.random.percent(20) {
            self.machine = (self.env.net.now, self.machine.1 + 1);
        }
        self.env.is_coordinator_up = true;
        self.env.is_coordinator_awake = true;
        self.restore(records, self.env.term.next());
    }

    /// Leads from now on, with this term, from these records on.
    pub fn restore(&mut self, records: Vec<Record>, term: Term) {
        self.check_absence();
        self.env.term = term;
        if self.are_several() {
            self.machine = (0, self.machine.1 + 1);
        }
        let summary = |c: &Vec<StepRecord>| c.iter().map(StepSummary::from).collect();
        let curves = self.curves.iter().map(|(job, c)| (job.as_str().into(), summary(c))).collect();
        let config = Config {
            jobs_dir: JOBS_DIR.into(),
            limits: LIMITS,
            term,
            retention: Retention::default(),
            policy: policy(),
            join_token: None,
        };
        let now = Now { boot: Boot(self.machine.1), ..self.now() };
        let restored = Machine::restore(config, records, curves, [3; 32], now);
        let (machine, outputs) = restored.expect("a store of this version is read back");
        self.coordinator = Some(Coordinator {
            machine,
            origin: self.machine.0,
            boot: self.machine.1,
            first_stream: self.env.net.next_stream(),
            connections: BTreeMap::new(),
            backlog: None,
            tick: (0, Micros::MAX),
            term,
            is_ready: false,
            rest: Vec::new(),
            inputs: VecDeque::new(),
        });
        self.execute(outputs);
        self.go_on();
    }

    /// SIGKILL; what is stored stays.
    pub fn kill_coordinator(&mut self, down: Micros) {
        let seat = self.seat;
        if self.are_several() {
            return self.kill_process(seat, down);
        }
        if self.coordinator.is_some() {
            self.env.tell(|| format!("the coordinator is killed, for {} s", down as f64 / 1e6));
            self.end_streams();
            self.env.net.push(down, Event::CoordinatorStarts { seat });
        }
    }

    /// The coordinator is no more, and the other ends of its streams see that.
    pub fn end_streams(&mut self) {
        let Some(coordinator) = self.coordinator.take() else { return };
        for stream in coordinator.connections.keys() {
            self.env.net.send_to_worker(*stream, |stream| AtWorker::StreamClosed { stream });
        }
        if coordinator.term == self.env.term {
            self.env.is_coordinator_up = false;
            self.env.is_coordinator_awake = false;
            self.watch_absence();
        }
    }

    /// SIGSTOP; its machine's clock stands still for so long.
    pub fn suspend(&mut self, lag: Micros) {
        let Some(coordinator) = self.coordinator.as_mut().filter(|c| c.backlog.is_none()) else { return };
        coordinator.backlog = Some(Vec::new());
        coordinator.origin += lag;
        if lag > 0 {
            // What lasted meanwhile is measured by no clock.
            self.machine.1 += 1;
            self.clock_jump_ms += 1;
        }
        self.env.is_coordinator_awake = false;
        let seat = self.seat;
        self.fail_keepalives(|net, stream| net.seat_of(stream) == seat);
    }

    /// Workers give streams up over which nothing comes for long.
    pub fn fail_keepalives(&mut self, is_dead: impl Fn(&Network, StreamId) -> bool) {
        let streams = self.workers.values().filter_map(|w| Some((w.pid, w.stream?)));
        let dead: Vec<_> = streams.filter(|(_, stream)| is_dead(&self.env.net, *stream)).collect();
        for (pid, stream) in dead {
            self.env.net.at_worker(pid, FAILURE_TIMEOUT, AtWorker::KeepaliveFailed { stream });
        }
    }

    pub fn coordinator_continues(&mut self) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let Some(backlog) = coordinator.backlog.take() else { return };
        self.env.tell(|| "the coordinator goes on".into());
        self.env.is_coordinator_awake = true;
        // A deadline that passed meanwhile is noticed first, as its driver does it where both are ready.
        self.tick_now();
        backlog.into_iter().for_each(|what| self.at_coordinator(what));
    }

    pub fn at_coordinator(&mut self, what: AtCoordinator) {
        let Some(coordinator) = &mut self.coordinator else { return };
        if let Some(backlog) = &mut coordinator.backlog {
            return backlog.push(what);
        }
        match what {
            AtCoordinator::Tick { number } => {
                if number == coordinator.tick.0 {
                    self.tick_now();
                }
            }
            AtCoordinator::Closed { stream, reason } => {
                if coordinator.connections.remove(&stream).is_some() {
                    self.coordinator_input(Input::Closed { stream, reason: reason.into() });
                }
            }
            AtCoordinator::Message { stream, body } => {
                if stream < coordinator.first_stream || !self.env.net.reaches_coordinator(stream) {
                    return;
                }
                if let FromWorker::Register(register) = &*body {
                    coordinator.connections.insert(stream, pid_of(&register.worker_id));
                }
                // After it has closed a stream, the driver reads no more of it.
                if let Some(pid) = coordinator.connections.get(&stream) {
                    let pid = *pid;
                    if !matches!(*body, FromWorker::Heartbeat(_)) {
                        self.env.tell(|| format!("    w{pid} -> {}", in_words(&*body)));
                    }
                    self.coordinator_input(Input::Message { stream, body });
                }
            }
        }
    }

    pub fn coordinator_input(&mut self, input: Input) {
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.inputs.push_back(input);
        if coordinator.is_ready {
            self.go_on();
        }
    }

    /// What was decided is written: what follows from it, and then what came meanwhile.
    pub fn go_on(&mut self) {
        loop {
            let now = self.now();
            let is_writing = self.cluster.processes.get(&self.seat).is_some_and(|p| p.is_writing());
            let Some(coordinator) = self.coordinator.as_mut().filter(|_| !is_writing) else { return };
            if !coordinator.rest.is_empty() {
                let rest = std::mem::take(&mut coordinator.rest);
                self.execute(rest);
                continue;
            }
            coordinator.is_ready = true;
            let Some(input) = coordinator.inputs.pop_front() else { break };
            // What workers said meanwhile is decided about together, as the driver does it.
            let is_said = |input: &Input| matches!(input, Input::Message { .. } | Input::Closed { .. });
            let are_several = is_said(&input);
            coordinator.machine.take(input, now);
            while are_several && coordinator.inputs.front().is_some_and(is_said) {
                let Some(input) = coordinator.inputs.pop_front() else { break };
                coordinator.machine.take(input, now);
            }
            let outputs = coordinator.machine.settle(now);
            self.execute(outputs);
        }
        self.arm_tick();
    }

    fn tick_now(&mut self) {
        let now = self.now().monotonic;
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.tick.1 = Micros::MAX;
        if !coordinator.rest.is_empty() || self.cluster.processes.get(&self.seat).is_some_and(|p| p.is_writing()) {
            // After what is being written.
            return;
        }
        if coordinator.machine.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.coordinator_input(Input::Tick);
            let still = self.coordinator.as_ref().and_then(|c| c.machine.poll_timeout());
            let still = still.filter(|_| self.cluster.processes.get(&self.seat).is_none_or(|p| !p.is_writing()));
            let holds = still.is_none_or(|deadline| deadline > now);
            self.env.truth.check(holds, || "a deadline that passed is still waited for".into());
        }
        self.arm_tick();
    }

    fn arm_tick(&mut self) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let Some(deadline) = coordinator.machine.poll_timeout() else { return };
        // A deadline between two microseconds has not passed at the earlier one.
        let at = coordinator.origin + deadline.as_nanos().div_ceil(1000) as u64;
        if at < coordinator.tick.1 {
            coordinator.tick = (coordinator.tick.0 + 1, at);
            let number = coordinator.tick.0;
            self.env.net.push_at(at, Event::AtCoordinator(self.seat, AtCoordinator::Tick { number }));
        }
    }

    // ------------------------------------------------------------------------------------------------------------ requests

    pub fn request(&mut self, input: impl FnOnce(RequestId) -> Input) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.coordinator_input(input(request));
        request
    }

    pub fn submit(&mut self, toml: &str) -> RequestId {
        let owner = OwnerId::from_random(u128::from(self.next_request + 1).to_be_bytes());
        let request = self.request(|request| Input::Submit {
            request,
            submission: Submission { toml: toml.into(), ..Submission::default() },
            owner,
        });
        let reply = self.replies.get(&request);
        // Whoever dies of it, or does not lead, has not answered.
        let is_open = reply.is_none() && (self.are_several() || !self.env.is_coordinator_awake);
        let holds = matches!(reply, Some(Ok(Reply::Submitted { .. }))) || is_open;
        self.env.truth.check(holds, || format!("a valid job is refused: {toml}"));
        request
    }

    // ------------------------------------------------------------------------------------------------------------- outputs

    fn execute(&mut self, outputs: Vec<Output>) {
        let is_gap = |o: &&Output| matches!(o, Output::AppendGap { .. });
        let is_told = |o: &&Output| matches!(o, Output::Event { event, .. } if event.kind == "curve.gap");
        let are_told = outputs.iter().filter(is_gap).count() == outputs.iter().filter(is_told).count();
        self.env.truth.check(are_told, || "T-12: steps are given up in silence".into());
        let has_late = outputs.iter().skip(1).any(|output| matches!(output, Output::Persist(_)));
        self.env.truth.check(!has_late, || "T-8: something is done before what it follows from is stored".into());
        let stopped = |output: &Output| match output {
            Output::Send { stream, message } => match &message.body {
                Some(ToWorker::Stop(m)) => Some((*stream, m.job_id.clone(), m.epoch)),
                _ => None,
            },
            _ => None,
        };
        self.taken_back = outputs.iter().filter_map(stopped).collect();
        let (mut outputs, now) = (outputs.into_iter(), self.env.net.now);
        while let Some(output) = outputs.next() {
            // As its driver does before each.
            if let Some(reason) = self.cluster.processes.get(&self.seat).and_then(|p| p.over(now)) {
                return self.depose(self.seat, &reason);
            }
            let is_of_curve =
                matches!(output, Output::AppendCurve { .. } | Output::AppendGap { .. } | Output::CutCurve { .. });
            if is_of_curve && self.coordinator.as_ref().is_some_and(|c| c.term < self.env.term) {
                return self.depose(self.seat, "its curves are written with a newer term");
            }
            // Only one that another has followed hears of a greater term.
            if let Output::LeadAnew { reason, .. } = &output {
                return self.depose(self.seat, reason);
            }
            let is_written = matches!(output, Output::Persist(_)) && self.are_several();
            self.execute_one(output);
            if let Some(coordinator) = self.coordinator.as_mut().filter(|_| is_written) {
                coordinator.rest = outputs.by_ref().collect();
            }
            if let Some(left) = &mut self.crash_in {
                *left -= 1;
                if *left == 0 {
                    self.crash_in = None;
                    let down = self.env.net.random.below(6 * SECOND);
                    return self.kill_coordinator(down);
                }
            }
        }
    }

    fn execute_one(&mut self, output: Output) {
        match output {
            Output::Persist(change) if self.are_several() => self.commit(change),
            Output::Persist(change) => {
                change.remove.iter().for_each(|key| self.forget(key));
                change.put.into_iter().for_each(|r| self.persist(r));
                self.check_decision();
            }
            Output::CreateFolder { job, .. } => drop(self.curves.insert(job.to_string(), Vec::new())),
            Output::AppendCurve { job, record } => self.append(&job, *record),
            Output::AppendGap { job, from_step, through_step } => self.append_gap(&job, from_step, through_step),
            Output::LeadAnew { .. } => unreachable!("it is the last that is done"),
            Output::CutCurve { job, keep } => {
                self.env.tell(|| format!("the curve of {job} is cut after step {keep}"));
                self.curves.entry(job.to_string()).or_default().retain(|r| r.step <= keep.get());
            }
            Output::Send { stream, message } => {
                let term = Term::new(message.term);
                let body = message.body.expect("a message has a body");
                let is_connected = self.coordinator.as_ref().is_some_and(|c| c.connections.contains_key(&stream));
                if is_connected {
                    let pid = self.coordinator.as_ref().map_or(0, |c| c.connections[&stream]);
                    if !matches!(body, ToWorker::StepAck(_)) {
                        self.env.tell(|| format!("    w{pid} <- {}", in_words(&body)));
                    }
                    // What a coordinator of an older term says counts for nothing.
                    if term == self.env.term {
                        self.check_sent(stream, &body);
                    }
                    let body = Box::new(body);
                    self.env.net.send_to_worker(stream, |stream| AtWorker::Message { stream, term, body });
                }
            }
            Output::Close { stream, reason } => {
                let closed = self.coordinator.as_mut().and_then(|c| c.connections.remove(&stream));
                if let Some(pid) = closed {
                    self.env.tell(|| format!("the coordinator closes the stream of w{pid}: {reason}"));
                    self.env.net.send_to_worker(stream, |stream| AtWorker::StreamClosed { stream });
                }
            }
            Output::Reply { request, reply } => {
                self.answered(request, &reply);
                self.replies.insert(request, reply);
            }
            Output::Event { job, event } => {
                self.env.tell(|| format!("{job} {}: {}", event.kind, event.text));
                self.check_blame(&job, &event);
            }
            Output::Forget { .. } | Output::Changed { .. } => {}
        }
    }

    /// T-11: who can fill a place is given none only where it is new, and has no link with another that cannot: nobody can tell them apart.
    /// Links that break are nobody's fault alone.
    fn check_blame(&mut self, job: &str, event: &toroid_coordinator::machine::record::Event) {
        let text = &event.text;
        let is_weighed = event.kind == "worker.unfit"
            && !text.contains("lost its link to")
            && !text.contains("cannot read the checkpoint");
        if !is_weighed {
            return;
        }
        let pid = pid_of(&event.worker);
        let is_full = self.env.disk.were_full.contains(&pid) && text.contains("cannot use the checkpoint folder");
        if self.env.was_unable.contains(&pid) || is_full {
            return;
        }
        let named: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let mut others = self.env.was_unable.iter().chain(&self.env.was_apart);
        let names_another = others.any(|pid| named.contains(&id_of(*pid).as_str()));
        let floor = self.record(job).map_or(Step::ZERO, |r| r.restore_step.max(r.start_step));
        let has_made_steps =
            self.workers.get(&pid).and_then(|w| w.held.as_ref()).is_some_and(|held| held.committed > floor);
        self.env.truth.check(names_another && (!has_made_steps || self.env.was_apart.contains(&pid)), || {
            format!("T-11: {} is innocent: {text}", event.worker)
        });
    }

    fn append(&mut self, job: &str, record: StepRecord) {
        let curve = self.curves.entry(job.into()).or_default();
        let last = curve.last().map_or(0, |r| r.step);
        let (step, loss) = (record.step, record.loss);
        curve.push(record);
        self.env.truth.check(step == last + 1, || format!("T-4: step {step} follows step {last} in the curve"));
        let expected = self.env.truth.jobs.get(job).and_then(|j| j.reference.losses.get(step as usize)).copied();
        let holds = self.env.truth.recorded.is_some() || expected == Some(loss);
        self.env.truth.check(holds, || format!("T-4: the loss of step {step} is not that of the undisturbed run"));
    }

    /// T-12: the figures of steps are given up only where more wait for a coordinator than a place keeps, and no job here has as many.
    fn append_gap(&mut self, job: &str, from: Step, through: Step) {
        self.env.tell(|| format!("the curve of {job} has no figures of steps {from} to {through}"));
        let curve = self.curves.entry(job.into()).or_default();
        let last = curve.last().map_or(0, |r| r.step);
        curve.extend(from.through(through).map(missing_record));
        let (from, through) = (from.get(), through.get());
        self.env.truth.check(from == last + 1, || format!("T-4: step {from} follows step {last} in the curve"));
        self.env.truth.check(false, || format!("T-12: steps {from} to {through} of {job} are given up"));
    }

    /// A record is dropped.
    pub fn forget(&mut self, key: &str) {
        if let Some(Record::Job(job)) = self.store.remove(key) {
            self.removed(&job);
        }
    }

    pub fn persist(&mut self, record: Record) {
        if let Record::Incident(incident) = &record {
            self.check_incident(incident);
        }
        let Record::Job(new) = &record else {
            self.store.insert(record.key(), record);
            return;
        };
        match self.store.get(&record.key()) {
            Some(Record::Job(old)) => {
                let complaint = succession(old, new).or_else(|| self.wrong_places(old, new));
                let complaint = complaint.or_else(|| self.wrong_in_pool(old, new));
                self.env.truth.check(complaint.is_none(), || complaint.unwrap_or_default());
                match gives_way(old, new) {
                    Some(true) => drop(self.gave_way.insert(new.id.to_string())),
                    Some(false) => drop(self.gave_way.remove(new.id.as_str())),
                    None => {}
                }
                self.env.truth.resumed(&new.id, &new.spec);
                if new.epoch > old.epoch {
                    self.before.insert(new.id.to_string(), (**old).clone());
                }
                let last = |r: &JobRecord| r.last_checkpoint().map(|c| c.step);
                let is_newer = last(new) > last(old);
                if is_newer {
                    self.check_checkpoint(new);
                }
                self.check_listed(new);
            }
            _ => self.env.truth.submitted(&new.id, &new.spec),
        }
        if new.state.is_ended() {
            self.promised.remove(&Wish::Hold { job: new.id.to_string() });
        }
        let place = |rank: Rank| HeldAs { shape: new.shape, rank };
        let placed = new.placed().map(|(rank, worker)| ((new.id.to_string(), worker.to_string()), place(rank)));
        self.had_place.extend(placed);
        self.store.insert(record.key(), record);
    }

    /// T-12: an incident ends by a step of an epoch that was begun after it, and it lasted as long as that took.
    fn check_incident(&mut self, new: &Incident) {
        let key = (new.job.to_string(), new.number);
        let now = self.env.net.now;
        let began = (now, new.epoch, self.clock_jump_ms, self.machine.1);
        let (since, old_epoch, jump, machine) = *self.incidents.entry(key).or_insert(began);
        let was_open = !matches!(self.store.get(&Record::Incident(Box::new(new.clone())).key()),
            Some(Record::Incident(old)) if old.number == new.number && old.resolved);
        if !new.resolved || !was_open {
            return;
        }
        let (number, job, epoch) = (new.number, new.job.as_str(), new.epoch);
        let truth = &self.env.truth.jobs[job];
        let is_made = truth.epochs.contains(&epoch) || new.resumed_step.get() == truth.spec.steps;
        self.env.truth.check(epoch > old_epoch && is_made, || {
            format!("T-12: incident {number} of {job} is over in epoch {epoch}, in which nobody has made a step")
        });
        // Between two machines only the calendar counts; and etcd takes a while to write what was decided.
        let is_measured = !self.are_several() && (machine == self.machine.1 || jump == self.clock_jump_ms);
        let lasted_s = (now - since) as f64 / 1e6;
        self.env.truth.check(!is_measured || (new.total_s() - lasted_s).abs() < 0.05, || {
            format!("T-12: incident {number} of {job} lasted {lasted_s} s, recorded are {} s", new.total_s())
        });
    }

    /// T-6: what is recorded is complete, and the curve up to it.
    fn check_checkpoint(&mut self, record: &JobRecord) {
        let Some(checkpoint) = record.last_checkpoint() else { return };
        let (id, step) = (record.id.as_str(), checkpoint.step.get());
        let root = checkpoint_root(id);
        let complaint = self.env.truth.incomplete(&self.env.disk, id, &root, step);
        let recorded =
            || format!("T-6: the checkpoint of step {step} is recorded and {}", complaint.as_deref().unwrap_or(""));
        self.env.truth.check(complaint.is_none(), recorded);
        let last = self.curves[id].last().map_or(0, |r| r.step);
        self.env.truth.check(last >= step, || format!("T-6: the curve ends at step {last}, before checkpoint {step}"));
    }

    // ---------------------------------------------------------------------------------------------------------------- T-9

    /// Remembers how far the jobs are that need nothing but time.
    fn watch_absence(&mut self) {
        let trains = |r: &&JobRecord| {
            r.places.iter().all(|w| {
                let worker = w.as_deref().and_then(|w| self.workers.get(&pid_of(w)));
                let trains =
                    |w: &Worker| w.trains.as_ref().is_some_and(|(job, epoch)| r.id == *job && r.epoch == *epoch);
                worker.is_some_and(|w| w.backlog.is_none() && !w.threads.is_hung && trains(w))
            })
        };
        let steps = self.records().filter(|r| r.state.is_placed()).filter(trains);
        let steps = steps.map(|r| (r.id.to_string(), self.env.truth.jobs[r.id.as_str()].high)).collect();
        let is_whole = !self.env.net.is_any_link_blocked() && !self.env.net.links.is_any_ending(self.env.net.now);
        let num_disturbed = self.num_faults + self.num_deaths;
        self.watched = is_whole.then_some(Absence { since: self.env.net.now, num_disturbed, steps });
    }

    fn check_absence(&mut self) {
        let Some(absence) = self.watched.take().filter(|a| a.num_disturbed == self.num_faults + self.num_deaths) else {
            return;
        };
        // A step takes its computing and some messages, each of which may be slow.
        if self.env.net.now - absence.since < 12 * self.env.step_time + 10 * SECOND {
            return;
        }
        for (id, step) in absence.steps {
            let job = &self.env.truth.jobs[&id];
            let holds = job.high > step || job.high.get() == job.spec.steps;
            self.env.truth.check(holds, || format!("T-9: {id} stays at step {step} while the coordinator is away"));
        }
    }
}

/// A message, short enough for a story.
fn in_words(body: &impl std::fmt::Debug) -> String {
    const MAX_CHARS: usize = 110;
    let text = format!("{body:?}");
    // The name of a message stands there twice.
    let text = text.split_once('(').map_or(text.as_str(), |(_, inner)| inner);
    text.chars().filter(|c| *c != '"').take(MAX_CHARS).collect()
}

/// What is wrong with a record that follows another.
fn succession(old: &JobRecord, new: &JobRecord) -> Option<String> {
    let id = &new.id;
    if new.epoch != old.epoch && new.epoch != old.epoch.next() {
        return Some(format!("T-8: epoch {} of {id} follows epoch {}", new.epoch, old.epoch));
    }
    let num_new = (new.num_events - old.num_events) as usize;
    let has_event = |kind: &str| new.events.iter().rev().take(num_new).any(|e| e.kind == kind);
    if old.state.is_ended() && old.state != new.state && !has_event("job.resumed") {
        return Some(format!("{id} had ended and is {} again", new.state.name()));
    }
    if new.high_step < old.high_step {
        return Some(format!("T-2: {id} knew of step {} and knows of {} now", old.high_step, new.high_step));
    }
    None
}
