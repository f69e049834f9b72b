//! A machine among fake workers, on virtual time: what the tests drive.
//!
//! ```text
//!   World::input ──> Machine ──> outputs ──> executed one by one: store, curves, inboxes of workers
//!        ^                                        │ every invariant is checked on the way, see `execute`
//!        └── outboxes <── Worker::handle <────────┘
//! ```
//!
//! The workers keep to the protocol and compute nothing. Their data plane keeps to T-2: who has the global sums of a step knows that
//! all have sealed it, and any part of them may have these sums when somebody dies ([`World::step_in_part`]). A newcomer has its
//! shards only from a living holder (T-3). On disk are shards and manifests. A crash of the coordinator may come after any output.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_proto::StepRecord;
use toroid_torus::geometry::Shape;
use toroid_torus::holders;
use toroid_torus::ids::{Rank, Step, Term};
use toroid_torus::owner::OwnerId;
use toroid_torus::resplit::num_lost;

use super::worker::{Disk, Work, Worker, loss_of};
use crate::clock::Boot;
use crate::record::{Checkpoint, Event, Incident, JobRecord, Record, Rung, State, VALIDATIONS_PER_PAGE};
use crate::{
    Config, Input, Limits, Machine, Now, Output, Policy, Reply, RequestError, RequestId, Retention, StepSummary,
    StreamId, Submission, missing_record,
};

pub struct World {
    pub machine: Machine,
    config: Config,
    pub now: Duration,
    /// By which the calendar was set.
    pub calendar_ms: i64,
    /// How often the coordinator's machine was started.
    pub boot: u64,
    pub store: BTreeMap<String, Record>,
    pub curves: BTreeMap<String, Vec<StepRecord>>,
    pub workers: BTreeMap<String, Worker>,
    pub disk: Disk,
    pub replies: BTreeMap<RequestId, Result<Reply, RequestError>>,
    pub story: Vec<String>,
    /// Outputs until the coordinator is killed and started again; 0: never.
    pub crash_after: usize,
    pub num_outputs: usize,
    /// Records that were made durable.
    pub num_stored: usize,
    /// Step of what jobs resume from; 0: nothing.
    pub resume_step: u64,
    /// Highest step that anyone has committed, by job and epoch.
    committed: BTreeMap<(String, u64), u64>,
    /// The epoch in which the state was last loaded, by job.
    loaded: BTreeMap<String, u64>,
    next_stream: u64,
    next_request: u64,
}

pub const LIMITS: Limits =
    Limits { heartbeat_interval: Duration::from_secs(1), failure_timeout: Duration::from_secs(5) };

impl World {
    pub fn new() -> World {
        World::with_token(None)
    }

    pub fn with_token(join_token: Option<&str>) -> World {
        let config = Config {
            jobs_dir: "/jobs".into(),
            limits: LIMITS,
            term: Term::new(1),
            retention: Retention::default(),
            policy: Policy::default(),
            join_token: join_token.map(str::to_string),
        };
        let now = Now { monotonic: Duration::ZERO, unix_ms: 0, boot: Boot(0) };
        let (machine, outputs) = Machine::restore(config.clone(), Vec::new(), BTreeMap::new(), [1; 32], now).unwrap();
        let mut world = World {
            machine,
            config,
            now: Duration::ZERO,
            calendar_ms: 0,
            boot: 0,
            store: BTreeMap::new(),
            curves: BTreeMap::new(),
            workers: BTreeMap::new(),
            disk: Disk::default(),
            replies: BTreeMap::new(),
            story: Vec::new(),
            crash_after: 0,
            num_outputs: 0,
            num_stored: 0,
            resume_step: 0,
            committed: BTreeMap::new(),
            loaded: BTreeMap::new(),
            next_stream: 0,
            next_request: 0,
        };
        world.execute(outputs);
        world
    }

    /// As if the coordinator had been started with it.
    pub fn set_policy(&mut self, policy: Policy) {
        self.config.policy = policy;
        self.start_again();
    }

    pub fn at(&self) -> Now {
        // Calendar time does not begin at 0: that means "not yet" in records.
        let unix_ms = 1_000_000 + self.now.as_millis() as i64 + self.calendar_ms;
        Now { monotonic: self.now, unix_ms, boot: Boot(self.boot) }
    }

    pub fn tell(&mut self, what: impl Into<String>) {
        self.story.push(format!("{:>8.2} s  {}", self.now.as_secs_f64(), what.into()));
    }

    pub fn record(&self, job: &str) -> &JobRecord {
        self.machine.record(job).unwrap_or_else(|| panic!("no job {job}"))
    }

    pub fn view(&self, job: &str) -> proto::Job {
        self.machine.view(job, self.at()).unwrap_or_else(|| panic!("no job {job}"))
    }

    pub fn has_event(&self, job: &str, kind: &str, text: &str) -> bool {
        self.record(job).events.iter().any(|e| e.kind == kind && e.text.contains(text))
    }

    // -------------------------------------------------------------------------------------------------------------- inputs

    pub fn input(&mut self, input: Input) -> usize {
        let outputs = self.machine.handle(input, self.at());
        self.machine.pool().check();
        let num_outputs = outputs.len();
        self.execute(outputs);
        num_outputs
    }

    pub fn request(&mut self, input: impl FnOnce(RequestId) -> Input) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.input(input(request));
        request
    }

    pub fn submit(&mut self, toml: &str) -> String {
        self.submit_as("", toml)
    }

    pub fn submit_as(&mut self, user: &str, toml: &str) -> String {
        let submission = Submission { toml: toml.into(), user: user.into(), priority: None };
        let owner = self.next_owner();
        let request = self.request(|request| Input::Submit { request, submission, owner });
        match self.replies.get(&request) {
            Some(Ok(Reply::Submitted { job })) => job.to_string(),
            // The coordinator was killed before it replied; what it had stored counts.
            None => self.machine.jobs().last().map_or_else(|| "nothing".into(), |j| j.id.to_string()),
            other => panic!("submitting gave {other:?}"),
        }
    }

    /// Another one for every job.
    pub fn next_owner(&self) -> OwnerId {
        OwnerId::from_random(u128::from(self.next_request + 1).to_be_bytes())
    }

    /// Adds a worker and connects it.
    pub fn join(&mut self, id: &str) {
        self.join_as(id, |_| {});
    }

    /// Adds a worker that is not like the others.
    pub fn join_as(&mut self, id: &str, change: impl FnOnce(&mut Worker)) {
        let mut worker = Worker::new(id);
        worker.incarnation = self.next_stream + 1;
        change(&mut worker);
        self.workers.insert(id.into(), worker);
        self.connect(id);
    }

    pub fn worker(&mut self, id: &str) -> &mut Worker {
        self.workers.get_mut(id).unwrap_or_else(|| panic!("no worker {id}"))
    }

    /// Opens a stream and registers on it, with what the worker does.
    pub fn connect(&mut self, id: &str) {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        let worker = self.worker(id);
        worker.stream = Some(stream);
        worker.is_welcome = false;
        worker.outbox.clear();
        worker.inbox.clear();
        let body = Box::new(FromWorker::Register(worker.register()));
        self.input(Input::Message { stream, body });
    }

    /// All streams end without the coordinator hearing of it: it is about to be killed.
    pub fn disconnect_all(&mut self) {
        self.workers.values_mut().for_each(|w| w.stream = None);
    }

    /// The process is gone, and its connections with it.
    pub fn kill(&mut self, id: &str) {
        let worker = self.workers.remove(id).unwrap_or_else(|| panic!("no worker {id}"));
        if let Some(stream) = worker.stream {
            self.input(Input::Closed { stream, reason: "closed its stream (reset)".into() });
        }
    }

    /// The coordinator is killed and started again on what it had stored; workers that `come_back` connect to it.
    pub fn restart(&mut self, come_back: impl Fn(&str) -> bool) {
        self.start_again();
        self.reconnect(come_back);
    }

    fn start_again(&mut self) {
        // Through JSON, as the store does it.
        let text = |r: &Record| serde_json::to_string(r).unwrap();
        let records = self.store.values().map(|r| serde_json::from_str(&text(r)).unwrap()).collect();
        let summary = |c: &Vec<StepRecord>| c.iter().map(StepSummary::from).collect();
        let summaries = self.curves.iter().map(|(job, c)| (job.as_str().into(), summary(c))).collect();
        for worker in self.workers.values_mut() {
            worker.stream = None;
        }
        self.tell("the coordinator is killed and starts again");
        let restored = Machine::restore(self.config.clone(), records, summaries, [2; 32], self.at());
        let (machine, outputs) = restored.unwrap();
        self.machine = machine;
        self.execute(outputs);
    }

    pub fn reconnect(&mut self, come_back: impl Fn(&str) -> bool) {
        let ids: Vec<String> = self.workers.keys().cloned().collect();
        for id in ids {
            if self.workers[&id].stream.is_none() && !self.workers[&id].is_hung && come_back(&id) {
                self.connect(&id);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------------ messages

    /// Delivers all messages, and what they lead to, until nobody has anything to say.
    pub fn settle(&mut self) {
        loop {
            let ids: Vec<String> = self.workers.keys().cloned().collect();
            let mut is_quiet = true;
            for id in ids {
                is_quiet &= !(self.deliver_to(&id) | self.deliver_from(&id));
            }
            if is_quiet {
                return;
            }
        }
    }

    /// Delivers the next message to a worker; says whether there was one.
    pub fn deliver_to(&mut self, id: &str) -> bool {
        // What was on its way when the stream ended is lost.
        let Some(worker) = self.workers.get_mut(id).filter(|w| !w.is_hung && w.stream.is_some()) else { return false };
        let Some(message) = worker.inbox.pop_front() else { return false };
        worker.handle(message, &mut self.disk);
        true
    }

    /// Delivers the next message from a worker; says whether there was one.
    pub fn deliver_from(&mut self, id: &str) -> bool {
        let Some(worker) = self.workers.get_mut(id) else { return false };
        let Some(stream) = worker.stream else { return false };
        let Some(body) = worker.outbox.pop_front() else { return false };
        self.input(Input::Message { stream, body: Box::new(body) });
        true
    }

    /// Every living worker says that it is there.
    pub fn heartbeats(&mut self) {
        for worker in self.workers.values_mut().filter(|w| !w.is_hung && w.is_welcome && w.stream.is_some()) {
            let heartbeat = worker.heartbeat();
            worker.outbox.push_back(FromWorker::Heartbeat(heartbeat));
        }
    }

    /// Ids of the places of `job` if all of them have started the newest epoch, live, and get on with it.
    fn group(&self, job: &str) -> Vec<String> {
        let doing = |w: &&Worker| w.work.as_ref().is_some_and(|w| w.job == job && w.started);
        let epoch = self.workers.values().filter(doing).filter_map(|w| w.work.as_ref()).map(|w| w.epoch).max();
        let is_member =
            |w: &&Worker| doing(w) && !w.is_hung && w.stuck_in.is_none() && w.work.as_ref().map(|w| w.epoch) == epoch;
        let group: Vec<&Worker> = self.workers.values().filter(is_member).collect();
        let world = group.first().and_then(|w| w.work.as_ref()).map_or(0, |w| w.world);
        if group.len() < world { Vec::new() } else { group.iter().map(|w| w.id.clone()).collect() }
    }

    /// Commits a step of `job` if all its places have started, in one epoch; says whether.
    pub fn step(&mut self, job: &str) -> bool {
        self.step_in_part(job, |_| true)
    }

    /// As [`World::step`], but at each point (heal, seal, commit) only those whom `chosen` names get on, if it names not all.
    pub fn step_in_part(&mut self, job: &str, mut chosen: impl FnMut(&str) -> bool) -> bool {
        let group = self.group(job);
        if group.is_empty() || !self.heal(&group, &mut chosen) {
            return false;
        }
        let committed = |world: &World, id: &String| world.work(id).committed;
        let newest = group.iter().map(|id| committed(self, id)).max().unwrap_or(0);
        let behind: Vec<&String> = group.iter().filter(|id| committed(self, id) < newest).collect();
        if !self.each(&behind, &mut chosen, |worker, disk| worker.commit(disk)) {
            return false;
        }
        if newest == self.work(&group[0]).total {
            return false;
        }
        let halts = |id: &String| self.work(id).halt_at.is_some_and(|step| step <= newest);
        if group.iter().any(halts) {
            return false;
        }
        let all: Vec<&String> = group.iter().collect();
        let seal = |worker: &mut Worker, _: &mut Disk| {
            worker.work.as_mut().expect("works").sealed = true;
        };
        let has_sealed = self.each(&all, &mut chosen, seal) || all.iter().all(|id| self.work(id).sealed);
        if !has_sealed {
            return false;
        }
        self.committed.insert((job.into(), self.work(&group[0]).epoch), newest + 1);
        self.each(&all, &mut chosen, |worker, disk| worker.commit(disk))
    }

    /// Does it with those that are chosen; says whether that was all.
    fn each(
        &mut self,
        ids: &[&String],
        chosen: &mut impl FnMut(&str) -> bool,
        does: impl Fn(&mut Worker, &mut Disk),
    ) -> bool {
        let mut is_all = true;
        for id in ids {
            if chosen(id) {
                does(self.workers.get_mut(*id).expect("a member"), &mut self.disk);
            } else {
                is_all = false;
            }
        }
        is_all
    }

    pub fn work(&self, id: &str) -> &Work {
        self.workers[id].work.as_ref().unwrap_or_else(|| panic!("{id} has no work"))
    }

    /// Newcomers pull their shards from the other holders, who is behind commits; says whether all are done.
    fn heal(&mut self, group: &[String], chosen: &mut impl FnMut(&str) -> bool) -> bool {
        let Some(heal) = group.iter().find_map(|id| self.work(id).healing.clone()) else { return true };
        let by_rank: BTreeMap<usize, &String> = group.iter().map(|id| (self.work(id).rank, id)).collect();
        let source = by_rank[&(heal.source as usize)];
        assert_eq!(self.work(source).committed, heal.step, "the source has committed the step");
        let history = self.work(source).history.clone();
        let waits: Vec<&String> = group.iter().filter(|id| self.work(id).healing.is_some()).collect();
        if heal.origin.is_some() {
            let splits: Vec<&String> = waits.iter().copied().filter(|id| !self.work(id).is_split).collect();
            // Whoever goes on has heard that all have split it.
            if !self.each(&splits, chosen, |worker, _| worker.resplit(&history)) {
                return false;
            }
            return self.each(&waits, chosen, |worker, disk| worker.heal(&history, disk));
        }
        let shape = self.work(source).shape;
        let is_new = |rank: usize| heal.newcomers.contains(&(rank as u32));
        for id in &waits {
            let rank = self.work(id).rank;
            let has_state = self.work(id).held.contains(&(shape, rank));
            assert_eq!(is_new(rank), !has_state, "{id} (rank {rank}) is a newcomer or not");
            if is_new(rank) {
                let holders = [holders::backup_of(&shape, rank), holders::guarded_by(&shape, rank)];
                assert!(holders.into_iter().flatten().all(|r| !is_new(r)), "T-3: rank {rank} pulls from nobody");
            }
        }
        self.each(&waits, chosen, |worker, disk| worker.heal(&history, disk))
    }

    /// Up to `num` steps, all messages delivered between.
    pub fn train(&mut self, job: &str, num: u64) {
        for _ in 0..num {
            self.step(job);
            self.settle();
        }
    }

    /// Lets time pass, with heartbeats, everything delivered and every deadline kept.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = (self.now + LIMITS.heartbeat_interval).min(end);
            while let Some(deadline) = self.machine.poll_timeout().filter(|d| *d <= next) {
                self.now = deadline.max(self.now);
                self.input(Input::Tick);
                self.settle();
                let still = self.machine.poll_timeout();
                assert!(still.is_none_or(|d| d > self.now), "a deadline that passed is still waited for");
            }
            self.now = next;
            self.heartbeats();
            self.settle();
        }
    }

    // --------------------------------------------------------------------------------------------------- outputs, invariants

    fn execute(&mut self, outputs: Vec<Output>) {
        let persists = |o: &Output| matches!(o, Output::Persist(_));
        assert!(!outputs.iter().skip(1).any(persists), "T-8: what is persisted comes first, at once: {outputs:?}");
        for output in outputs {
            self.execute_one(output);
            self.num_outputs += 1;
            if self.num_outputs == self.crash_after {
                self.start_again();
                self.reconnect(|_| true);
                return;
            }
        }
    }

    fn execute_one(&mut self, output: Output) {
        match output {
            Output::Persist(change) => {
                change.remove.iter().for_each(|key| drop(self.store.remove(key)));
                change.put.into_iter().for_each(|r| self.persist(r));
            }
            Output::CreateFolder { job, .. } => drop(self.curves.insert(job.to_string(), Vec::new())),
            Output::AppendCurve { job, record } => {
                let curve = self.curves.entry(job.to_string()).or_default();
                let last = curve.last().map_or(self.resume_step, |r| r.step);
                assert_eq!(record.step, last + 1, "the curve has no hole and no repetition");
                assert_eq!(record.loss, loss_of(record.step), "T-4");
                curve.push(*record);
            }
            Output::AppendGap { job, from_step, through_step } => {
                let curve = self.curves.entry(job.to_string()).or_default();
                let last = curve.last().map_or(self.resume_step, |r| r.step);
                assert_eq!(from_step.get(), last + 1, "the curve has no hole and no repetition");
                curve.extend(from_step.through(through_step).map(missing_record));
                let epoch = self.stored(&job).epoch.get();
                let is_known = |w: &Worker| w.knows(&job, epoch, from_step.get(), through_step.get());
                assert!(!self.workers.values().any(is_known), "T-12: {from_step} to {through_step} are known");
            }
            Output::CutCurve { job, keep } => {
                self.curves.entry(job.to_string()).or_default().retain(|r| r.step <= keep.get())
            }
            Output::Send { stream, message } => {
                let body = message.body.expect("a message has a body");
                self.check_sent(stream, &body);
                if let Some(worker) = self.workers.values_mut().find(|w| w.stream == Some(stream)) {
                    worker.inbox.push_back(body);
                }
            }
            Output::Close { stream, reason } => {
                if let Some(worker) = self.workers.values_mut().find(|w| w.stream == Some(stream)) {
                    worker.stream = None;
                    worker.outbox.clear();
                    let id = worker.id.clone();
                    self.tell(format!("the stream of {id} is closed: {reason}"));
                }
            }
            Output::Reply { request, reply } => drop(self.replies.insert(request, reply)),
            Output::Event { job, event } => self.tell(format!("{job} {}: {}", event.kind, event.text)),
            Output::LeadAnew { beyond, reason } => self.tell(format!("is to lead beyond {}: {reason}", beyond.get())),
            Output::Forget { .. } | Output::Changed { .. } => {}
        }
    }

    fn persist(&mut self, record: Record) {
        self.num_stored += 1;
        if let (Record::Job(new), Some(Record::Job(old))) = (&record, self.store.get(&record.key())) {
            check_succession(old, new);
            self.check_survival(old, new);
            if new.has_state && !old.has_state {
                self.loaded.insert(new.id.to_string(), new.epoch.get());
            }
            let is_new = |c: &&Checkpoint| !old.checkpoints.iter().any(|o| (o.step, o.epoch) == (c.step, c.epoch));
            for checkpoint in new.checkpoints.iter().filter(is_new) {
                let key = (new.id.to_string(), checkpoint.step.get());
                // One input may record it and end its epoch.
                let world = old.shape.world();
                assert!(self.disk.manifests.contains_key(&key), "T-6: step {} is recorded, not published", key.1);
                let of_epoch =
                    self.disk.shards[&key].values().filter(|epoch| **epoch == checkpoint.epoch.get()).count();
                assert_eq!(of_epoch, world, "T-6: step {} lacks shards", key.1);
                let curve = self.curves[new.id.as_str()].last().map_or(self.resume_step, |r| r.step);
                assert!(
                    curve >= checkpoint.step.get(),
                    "the curve ends at {curve}, before checkpoint {}",
                    checkpoint.step
                );
            }
            if let Some(checkpoint) = new.last_checkpoint() {
                let key = (new.id.to_string(), checkpoint.step.get());
                assert!(self.disk.manifests.contains_key(&key), "the last good checkpoint, {}, was removed", key.1);
            }
        }
        if let Record::Incident(incident) = &record {
            self.check_incident(incident);
        }
        if let Record::Validations(page) = &record {
            let len = page.validations.len();
            assert!(page.validations.is_sorted_by(|a, b| a.step < b.step), "{page:?}");
            assert!((1..=VALIDATIONS_PER_PAGE).contains(&len), "page {} has {len}", page.number);
        }
        self.store.insert(record.key(), record);
    }

    /// T-3: the state is given up only if both holders of a shard are gone, or if it is not to be trusted.
    fn check_survival(&self, old: &JobRecord, new: &JobRecord) {
        if !old.has_state || new.has_state || new.state.is_ended() {
            return;
        }
        let num_new = (new.num_events - old.num_events) as usize;
        let is_corrupt = new.events.iter().rev().take(num_new).any(|e| e.text.contains("silent corruption"));
        let is_redundant = new.spec.fault_tolerance.redundancy && new.spec.shape.world() > 1;
        let works = old.places.iter().flatten().filter_map(|w| self.workers.get(w.as_str())?.work.as_ref());
        let held: Vec<(Shape, usize)> = works.filter(|w| old.id == *w.job).flat_map(|w| w.held.clone()).collect();
        let is_whole = |way: Shape| {
            let present = held.iter().filter(|(shape, _)| *shape == way).map(|(_, rank)| *rank).collect();
            num_lost(&way, &present) == 0
        };
        // It stands by with what it had committed.
        let curve = self.curves[old.id.as_str()].last().map_or(0, |r| r.step);
        let stood_by = events_of(new, old).any(|e| e.kind == "job.queued");
        if (new.state == State::Queued || stood_by) && new.last_checkpoint().is_some_and(|c| c.step.get() >= curve) {
            return;
        }
        let is_lost = held.iter().all(|(way, _)| !is_whole(*way));
        assert!(
            is_corrupt || !is_redundant || is_lost,
            "T-3: the state is given up, {held:?} is there: {}",
            new.reason
        );
    }

    /// A healing epoch goes on from what its places hold (T-2, T-3).
    fn check_heal(&self, m: &proto::Start, heal: &proto::Heal) {
        let record = self.stored(&m.job_id);
        if record.epoch.get() > m.epoch {
            return;
        }
        let works = record.places.iter().flatten().filter_map(|w| self.workers.get(w.as_str())?.work.as_ref());
        let works: Vec<&Work> = works.filter(|w| w.job == m.job_id && w.epoch == m.epoch).collect();
        if works.iter().any(|w| w.started) {
            return;
        }
        let way = heal.origin.as_ref().map_or(record.shape, |o| Shape::try_from(&o.shape.unwrap()).unwrap());
        for work in works.iter().filter(|w| w.held.iter().any(|(shape, _)| *shape == way)) {
            let follows = work.committed == heal.step || work.committed + 1 == heal.step && work.sealed;
            assert!(follows, "T-2: rank {} is at {} and is to go on from {}", work.rank, work.committed, heal.step);
        }
        // Workers that the coordinator took for dead may go on among themselves; a restore leaves them behind (T-1).
        let since = (m.job_id.clone(), self.loaded.get(&m.job_id).copied().unwrap_or(0));
        let epochs = self.committed.range(since..(m.job_id.clone(), m.epoch));
        let highest = epochs.map(|(_, step)| *step).max().unwrap_or(0);
        assert!(heal.step + 1 >= highest, "T-3: step {highest} was committed, all go on from {}", heal.step);
    }

    fn check_incident(&self, new: &Incident) {
        let phases = [new.detect_s, new.fence_s, new.decide_s, new.heal_s, new.redo_s];
        assert!(phases.iter().all(|s| *s >= 0.0), "{new:?}");
        let may_lose = [Rung::Restore, Rung::Wait].contains(&new.rung);
        assert!(may_lose || new.steps_lost == 0, "only a restore loses steps: {new:?}");
        if let Some(Record::Incident(old)) = self.store.get(&format!("incident/{}/{}", new.job, new.number - 1)) {
            assert!(old.resolved, "one incident at a time: {old:?}");
        }
    }

    fn stored(&self, job: &str) -> &JobRecord {
        match self.store.get(&format!("job/{job}")) {
            Some(Record::Job(record)) => record,
            other => panic!("T-8: {job} is spoken of before it is stored: {other:?}"),
        }
    }

    /// What is sent agrees with what is stored (T-8).
    fn check_sent(&self, stream: StreamId, body: &ToWorker) {
        let worker = self.workers.values().find(|w| w.stream == Some(stream)).map(|w| w.id.as_str());
        match body {
            ToWorker::Assign(m) => {
                let record = self.stored(&m.job_id);
                assert_eq!(record.epoch.get(), m.epoch, "T-8: an epoch is stored before it is assigned");
                assert_eq!(record.places[m.rank as usize].as_deref(), worker, "a place is assigned to its worker");
                let is_newest = m.restore_step == record.last_checkpoint().map_or(0, |c| c.step.get());
                assert!(is_newest || m.heal, "a restore is from the newest checkpoint");
                let linked = record.shape.peers(m.rank as usize).len() + 1;
                assert!(m.since_epoch > 0 || m.peers.len() == linked || m.peers.len() == record.shape.world(), "{m:?}");
            }
            // One input may repeat what was said in an epoch and then begin the next, which is stored by then.
            ToWorker::Start(m) => {
                assert!(self.stored(&m.job_id).epoch.get() >= m.epoch, "T-8");
                if let Some(heal) = &m.heal {
                    self.check_heal(m, heal);
                }
            }
            ToWorker::CheckpointAt(m) => {
                let record = self.stored(&m.job_id);
                let is_stored = record.pending.contains_key(&Step::new(m.step));
                assert!(
                    is_stored && record.epoch.get() == m.epoch || record.epoch.get() > m.epoch,
                    "named before stored: {m:?}"
                );
            }
            ToWorker::PublishManifest(m) => {
                let record = self.stored(&m.job_id);
                assert_eq!(m.files_json.len(), record.shape.world(), "T-6: a shard of every place");
                let removes = |step| m.remove_steps.contains(&step);
                let is_last_good_kept = record.last_checkpoint().is_none_or(|c| !removes(c.step.get()));
                assert!(is_last_good_kept && !removes(m.step), "the last good checkpoint is removed: {m:?}");
            }
            ToWorker::DropCheckpoint(m) => {
                let record = self.stored(&m.job_id);
                let is_recorded = record.checkpoints.iter().any(|c| c.step.get() == m.step);
                assert!(!is_recorded || record.epoch.get() > m.epoch, "T-6: what is recorded is dropped: {m:?}");
            }
            ToWorker::StepAck(m) => {
                let curve = &self.curves[&m.job_id];
                let kept = self.stored(&m.job_id).restore_step.get().max(curve.last().map_or(0, |r| r.step));
                assert!(kept.max(self.resume_step) >= m.step, "step {} is acknowledged, not kept", m.step);
            }
            ToWorker::Welcome(_)
            | ToWorker::Stop(_)
            | ToWorker::Refused(_)
            | ToWorker::WarmUp(_)
            | ToWorker::ReportSteps(_)
            | ToWorker::Kill(_)
            | ToWorker::Probe(_) => {}
        }
    }
}

/// What happened between two records of a job.
fn events_of<'a>(new: &'a JobRecord, old: &JobRecord) -> impl Iterator<Item = &'a Event> {
    new.events.iter().rev().take((new.num_events - old.num_events) as usize)
}

/// What may follow a stored record of a job.
fn check_succession(old: &JobRecord, new: &JobRecord) {
    let is_behind = events_of(new, old).any(|e| e.kind == "store.behind");
    assert!(
        is_behind || new.epoch.get() == old.epoch.get() || new.epoch.get() == old.epoch.get() + 1,
        "T-8: epoch {} follows {}",
        new.epoch.get(),
        old.epoch.get()
    );
    let is_resumed = !new.state.is_ended() && events_of(new, old).any(|e| e.kind == "job.resumed");
    assert!(!old.state.is_ended() || old.state == new.state || is_resumed, "an ended job is {:?} again", new.state);
    let num_new = (new.num_events - old.num_events) as usize;
    let events = new.events.iter().rev().take(num_new);
    let is_damaged = events.clone().any(|e| ["checkpoint.damaged", "checkpoint.unreadable"].contains(&e.kind.as_str()));
    let is_forgotten = new.checkpoints.is_empty() && !old.checkpoints.is_empty();
    // A user may give them up.
    assert!(is_damaged || is_resumed || !is_forgotten, "the last good checkpoint is forgotten");
    let moves = ["worker.lost", "worker.drained", "worker.displaced"];
    let lost: BTreeSet<&str> = events.filter(|e| moves.contains(&e.kind.as_str())).map(|e| e.worker.as_str()).collect();
    // What a store has that was put in its place is no change.
    if events_of(new, old).any(|e| e.kind == "store.behind") {
        return;
    }
    let stands_by = events_of(new, old).any(|e| e.kind == "job.queued");
    for (rank, worker) in old.places.iter().enumerate().filter(|_| !stands_by) {
        if let Some(worker) = worker.as_deref().filter(|w| !lost.contains(w) && !new.state.is_ended()) {
            let kept = if new.shape == old.shape { Some(rank) } else { new.rank_of(worker).map(Rank::index) };
            let now = kept.and_then(|rank| new.places[rank].as_deref());
            assert_eq!(now, Some(worker), "T-7: a survivor keeps rank {rank}, or has another in another shape");
        }
    }
}

/// A job of `dp` places. Its shape can be said in `more`, with a `dp` of 0.
/// Keys of a policy whose iterations have 2 passes of 4 steps.
pub const POLICY: &str = "kind = 'ppo'\nppo = { epochs = 2, minibatches = 4, stop_token = 0, form.tokens = [1] }";

pub fn job_file(dp: usize, steps: u64, more: &str) -> String {
    let shape = if dp == 0 { String::new() } else { format!("shape.dp = {dp}\n") };
    format!("name = \"demo\"\nsteps = {steps}\n{shape}{more}\n[data]\npath = \"/data\"\n")
}
