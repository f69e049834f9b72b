//! A machine among fake workers, on virtual time: what the tests and the simulation drive.
//!
//! ```text
//!   World::input ──> Machine ──> outputs ──> executed one by one: store, curves, inboxes of workers
//!        ^                                        │ every invariant is checked on the way, see `execute`
//!        └── outboxes <── Worker::handle <────────┘
//! ```
//!
//! The workers keep to the protocol and compute nothing: a step is committed when all places of an epoch have started and live.
//! What is on disk is a set of shards and manifests. A crash of the coordinator may come after any output.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_proto::StepRecord;
use toroid_torus::manifest::ShardFile;

use crate::machine::record::{JobRecord, Record, State};
use crate::machine::{
    Config, Input, Limits, Machine, Now, Output, Reply, RequestError, RequestId, StepSummary, StreamId,
};

pub const STEP_S: f64 = 1.0;

/// What a worker does in a job.
#[derive(Debug, Clone)]
pub struct Work {
    pub job: String,
    pub epoch: u64,
    pub rank: usize,
    pub world: usize,
    pub total: u64,
    pub started: bool,
    pub committed: u64,
    pub named: BTreeSet<u64>,
    /// What is said again after a reconnection: shards and manifests of this epoch, and the end.
    said: Vec<FromWorker>,
    unacknowledged: VecDeque<StepRecord>,
}

#[derive(Debug)]
pub struct Worker {
    pub id: String,
    pub host: String,
    pub fingerprint: String,
    pub stream: Option<StreamId>,
    pub work: Option<Work>,
    pub inbox: VecDeque<ToWorker>,
    pub outbox: VecDeque<FromWorker>,
    /// `Welcome` came on this stream: before, nothing but `Register` is said.
    is_welcome: bool,
    /// Says nothing any more, but its stream stays open.
    pub is_hung: bool,
    pub digest: u8,
    /// What preparing ends with, and whether it is fatal; `None`: success.
    pub prepare_error: Option<(String, bool)>,
    /// What writing a shard or a manifest ends with; `None`: success.
    pub write_error: Option<String>,
}

/// Shards by (job, step), each with the epoch that wrote it, by rank; and manifests that can be seen.
#[derive(Debug, Default)]
pub struct Disk {
    pub shards: BTreeMap<(String, u64), BTreeMap<usize, u64>>,
    pub manifests: BTreeMap<(String, u64), u64>,
}

pub struct World {
    pub machine: Machine,
    config: Config,
    pub now: Duration,
    pub store: BTreeMap<String, Record>,
    pub curves: BTreeMap<String, Vec<StepRecord>>,
    pub workers: BTreeMap<String, Worker>,
    pub disk: Disk,
    pub replies: BTreeMap<RequestId, Result<Reply, RequestError>>,
    pub story: Vec<String>,
    /// Outputs until the coordinator is killed and started again; 0: never.
    pub crash_after: usize,
    pub num_outputs: usize,
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
        let config = Config { jobs_dir: "/jobs".into(), limits: LIMITS, join_token: join_token.map(str::to_string) };
        let now = Now { monotonic: Duration::ZERO, unix_ms: 0 };
        let (machine, outputs) = Machine::restore(config.clone(), Vec::new(), BTreeMap::new(), [1; 32], now).unwrap();
        let mut world = World {
            machine,
            config,
            now: Duration::ZERO,
            store: BTreeMap::new(),
            curves: BTreeMap::new(),
            workers: BTreeMap::new(),
            disk: Disk::default(),
            replies: BTreeMap::new(),
            story: Vec::new(),
            crash_after: 0,
            num_outputs: 0,
            next_stream: 0,
            next_request: 0,
        };
        world.execute(outputs);
        world
    }

    pub fn at(&self) -> Now {
        // Calendar time does not begin at 0: that means "not yet" in records.
        Now { monotonic: self.now, unix_ms: 1_000_000 + self.now.as_millis() as i64 }
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
        let toml = toml.to_string();
        let request = self.request(|request| Input::Submit { request, toml });
        match self.replies.get(&request) {
            Some(Ok(Reply::Submitted { job })) => job.clone(),
            // The coordinator was killed before it replied; what it had stored counts.
            None => self.machine.jobs().last().map_or_else(|| "nothing".into(), |j| j.id.clone()),
            other => panic!("submitting gave {other:?}"),
        }
    }

    /// Adds a worker and connects it.
    pub fn join(&mut self, id: &str) {
        let worker = Worker {
            id: id.into(),
            host: format!("host-{id}"),
            fingerprint: "alike".into(),
            stream: None,
            work: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            is_welcome: false,
            is_hung: false,
            digest: 7,
            prepare_error: None,
            write_error: None,
        };
        self.add(worker);
    }

    pub fn join_as(&mut self, id: &str, change: impl FnOnce(&mut Worker)) {
        self.join(id);
        self.disconnect(id, "is set up");
        change(self.worker(id));
        self.connect(id);
    }

    fn add(&mut self, worker: Worker) {
        let id = worker.id.clone();
        self.workers.insert(id.clone(), worker);
        self.connect(&id);
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
        let body = FromWorker::Register(worker.register());
        self.input(Input::Message { stream, body });
    }

    pub fn disconnect(&mut self, id: &str, reason: &str) {
        let worker = self.worker(id);
        worker.outbox.clear();
        worker.inbox.clear();
        if let Some(stream) = worker.stream.take() {
            self.input(Input::Closed { stream, reason: reason.into() });
        }
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
        let summaries = self.curves.iter().map(|(job, c)| (job.clone(), summary(c))).collect();
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
        let Some(worker) = self.workers.get_mut(id).filter(|w| !w.is_hung) else { return false };
        let Some(message) = worker.inbox.pop_front() else { return false };
        worker.handle(message, &mut self.disk);
        true
    }

    /// Delivers the next message from a worker; says whether there was one.
    pub fn deliver_from(&mut self, id: &str) -> bool {
        let Some(worker) = self.workers.get_mut(id) else { return false };
        let Some(stream) = worker.stream else { return false };
        let Some(body) = worker.outbox.pop_front() else { return false };
        self.input(Input::Message { stream, body });
        true
    }

    /// Every living worker says that it is there.
    pub fn heartbeats(&mut self) {
        for worker in self.workers.values_mut().filter(|w| !w.is_hung && w.is_welcome && w.stream.is_some()) {
            let heartbeat = worker.heartbeat();
            worker.outbox.push_back(FromWorker::Heartbeat(heartbeat));
        }
    }

    /// Commits a step of `job` if all its places have started, in one epoch; says whether.
    pub fn step(&mut self, job: &str) -> bool {
        let doing = |w: &Worker| w.work.as_ref().is_some_and(|w| w.job == job && w.started);
        let newest = self.workers.values().filter(|w| doing(w)).filter_map(|w| w.work.as_ref()).map(|w| w.epoch).max();
        let Some(epoch) = newest else { return false };
        let mut group: Vec<&mut Worker> = self
            .workers
            .values_mut()
            .filter(|w| !w.is_hung && doing(w) && w.work.as_ref().is_some_and(|w| w.epoch == epoch))
            .collect();
        let Some(first) = group.first().and_then(|w| w.work.as_ref()) else { return false };
        if group.len() < first.world || first.committed >= first.total {
            return false;
        }
        for worker in &mut group {
            worker.commit(&mut self.disk);
        }
        true
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
            Output::Persist(records) => records.into_iter().for_each(|r| self.persist(r)),
            Output::CreateFolder { job, .. } => drop(self.curves.insert(job, Vec::new())),
            Output::AppendCurve { job, record } => {
                let curve = self.curves.entry(job).or_default();
                let last = curve.last().map_or(0, |r| r.step);
                assert_eq!(record.step, last + 1, "the curve has no hole and no repetition");
                curve.push(*record);
            }
            Output::CutCurve { job, keep } => self.curves.entry(job).or_default().retain(|r| r.step <= keep),
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
            Output::Changed { .. } => {}
        }
    }

    fn persist(&mut self, record: Record) {
        if let (Record::Job(new), Some(Record::Job(old))) = (&record, self.store.get(&record.key())) {
            check_succession(old, new);
            for checkpoint in new.checkpoints.iter().filter(|c| !old.checkpoints.contains(c)) {
                let key = (new.id.clone(), checkpoint.step);
                let world = new.spec.shape.world();
                assert!(self.disk.manifests.contains_key(&key), "T-6: step {} is recorded, not published", key.1);
                assert_eq!(self.disk.shards[&key].len(), world, "T-6: step {} lacks shards", key.1);
                let curve = self.curves[&new.id].last().map_or(0, |r| r.step);
                assert!(curve >= checkpoint.step, "the curve ends at {curve}, before checkpoint {}", checkpoint.step);
            }
            if let Some(checkpoint) = new.last_checkpoint() {
                let key = (new.id.clone(), checkpoint.step);
                assert!(self.disk.manifests.contains_key(&key), "the last good checkpoint, {}, was removed", key.1);
            }
        }
        self.store.insert(record.key(), record);
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
                assert_eq!(record.epoch, m.epoch, "T-8: an epoch is stored before it is assigned");
                assert_eq!(record.places[m.rank as usize].as_deref(), worker, "a place is assigned to its worker");
                assert_eq!(m.restore_step, record.last_checkpoint().map_or(0, |c| c.step));
                assert_eq!(m.peers.len(), record.spec.shape.world());
            }
            // One input may repeat what was said in an epoch and then begin the next, which is stored by then.
            ToWorker::Start(m) => assert!(self.stored(&m.job_id).epoch >= m.epoch, "T-8"),
            ToWorker::CheckpointAt(m) => {
                let record = self.stored(&m.job_id);
                let is_stored = record.pending.contains_key(&m.step);
                assert!(is_stored && record.epoch == m.epoch || record.epoch > m.epoch, "named before stored: {m:?}");
            }
            ToWorker::PublishManifest(m) => {
                let record = self.stored(&m.job_id);
                assert_eq!(m.files_json.len(), record.spec.shape.world(), "T-6: a shard of every place");
                let removes = |step| m.remove_steps.contains(&step);
                let is_last_good_kept = record.last_checkpoint().is_none_or(|c| !removes(c.step));
                assert!(is_last_good_kept && !removes(m.step), "the last good checkpoint is removed: {m:?}");
            }
            ToWorker::StepAck(m) => {
                let curve = &self.curves[&m.job_id];
                assert!(curve.last().is_some_and(|r| r.step >= m.step), "step {} is acknowledged, not kept", m.step);
            }
            ToWorker::Welcome(_) | ToWorker::Stop(_) | ToWorker::Refused(_) => {}
        }
    }
}

/// What may follow a stored record of a job.
fn check_succession(old: &JobRecord, new: &JobRecord) {
    assert!(new.epoch == old.epoch || new.epoch == old.epoch + 1, "T-8: epoch {} follows {}", new.epoch, old.epoch);
    assert!(!old.state.is_ended() || old.state == new.state, "an ended job is {:?} again", new.state);
    assert!(old.checkpoints.is_empty() || !new.checkpoints.is_empty(), "the last good checkpoint is forgotten");
    let num_new = (new.num_events - old.num_events) as usize;
    let events = new.events.iter().rev().take(num_new);
    let lost: BTreeSet<&str> = events.filter(|e| e.kind == "worker.lost").map(|e| e.worker.as_str()).collect();
    for (rank, worker) in old.places.iter().enumerate() {
        if let Some(worker) = worker.as_deref().filter(|w| !lost.contains(w) && !new.state.is_ended()) {
            assert_eq!(new.places[rank].as_deref(), Some(worker), "T-7: a survivor keeps rank {rank}");
        }
    }
}

impl Worker {
    fn register(&self) -> proto::Register {
        let register = proto::Register {
            worker_id: self.id.clone(),
            protocol_version: proto::PROTOCOL_VERSION,
            build_version: proto::BUILD_VERSION.into(),
            host: self.host.clone(),
            data_address: format!("{}:1", self.host),
            device: "cpu".into(),
            fingerprint: self.fingerprint.clone(),
            ..Default::default()
        };
        match &self.work {
            None => register,
            Some(work) => proto::Register {
                job_id: work.job.clone(),
                epoch: work.epoch,
                rank: work.rank as u32,
                committed_step: work.committed,
                ..register
            },
        }
    }

    pub fn heartbeat(&self) -> proto::Heartbeat {
        let Some(work) = &self.work else { return proto::Heartbeat::default() };
        proto::Heartbeat {
            job_id: work.job.clone(),
            epoch: work.epoch,
            committed_step: work.committed,
            ..Default::default()
        }
    }

    fn say(&mut self, body: FromWorker) {
        if self.stream.is_some() && self.is_welcome {
            self.outbox.push_back(body);
        }
    }

    /// Says it, and again after each reconnection.
    fn say_and_keep(&mut self, body: FromWorker) {
        if let Some(work) = &mut self.work {
            work.said.push(body.clone());
        }
        self.say(body);
    }

    fn handle(&mut self, message: ToWorker, disk: &mut Disk) {
        match message {
            ToWorker::Welcome(m) => {
                self.is_welcome = true;
                if m.keep_going {
                    self.say_again();
                } else {
                    self.work = None;
                }
            }
            ToWorker::Assign(m) => self.assigned(&m),
            ToWorker::Start(m) => {
                if let Some(work) = self.work_of(&m.job_id, m.epoch) {
                    work.started = true;
                    let is_finished = work.said.iter().any(|b| matches!(b, FromWorker::Finished(_)));
                    if work.committed == work.total && !is_finished {
                        self.finish();
                    }
                }
            }
            ToWorker::CheckpointAt(m) => self.checkpoint_at(&m, disk),
            ToWorker::PublishManifest(m) => self.publish(&m, disk),
            ToWorker::Stop(m) => {
                if self.work_of(&m.job_id, m.epoch).is_some() {
                    self.work = None;
                    self.say(FromWorker::Stopped(proto::Stopped { job_id: m.job_id, epoch: m.epoch }));
                }
            }
            ToWorker::StepAck(m) => {
                if let Some(work) = &mut self.work {
                    work.unacknowledged.retain(|r| r.step > m.step);
                }
            }
            ToWorker::Refused(_) => self.work = None,
        }
    }

    fn work_of(&mut self, job: &str, epoch: u64) -> Option<&mut Work> {
        self.work.as_mut().filter(|w| w.job == job && w.epoch == epoch)
    }

    fn say_again(&mut self) {
        let Some(work) = self.work.clone() else { return };
        for record in &work.unacknowledged {
            self.say(work.report(record));
        }
        work.said.into_iter().for_each(|body| self.say(body));
    }

    fn assigned(&mut self, m: &proto::Assign) {
        let spec: toroid_torus::job::JobSpec = serde_json::from_str(&m.job_json).unwrap();
        let (job_id, epoch) = (m.job_id.clone(), m.epoch);
        self.work = Some(Work {
            job: job_id.clone(),
            epoch,
            rank: m.rank as usize,
            world: m.peers.len(),
            total: spec.steps,
            started: false,
            committed: m.restore_step,
            named: BTreeSet::new(),
            said: Vec::new(),
            unacknowledged: VecDeque::new(),
        });
        match self.prepare_error.clone() {
            Some((error, fatal)) => {
                self.work = None;
                self.say(FromWorker::Failed(proto::Failed { job_id, epoch, error, fatal, damaged_step: 0 }));
            }
            None => self.say_and_keep(FromWorker::Prepared(proto::Prepared {
                job_id,
                epoch,
                committed_step: m.restore_step,
                data_digest: vec![self.digest; 32],
                num_samples: 100,
                num_params: 1000,
            })),
        }
    }

    fn checkpoint_at(&mut self, m: &proto::CheckpointAt, disk: &mut Disk) {
        let Some(work) = self.work_of(&m.job_id, m.epoch) else { return };
        let is_written = |body: &FromWorker| matches!(body, FromWorker::ShardWritten(s) if s.step == m.step);
        if let Some(written) = work.said.iter().find(|b| is_written(b)).cloned() {
            self.say(written);
        } else if m.step > work.committed {
            work.named.insert(m.step);
        } else if m.step == work.committed && m.step == work.total {
            self.write(m.step, disk);
        } else {
            let error = String::new();
            self.missed(m.step, error);
        }
    }

    fn missed(&mut self, step: u64, error: String) {
        let Some(work) = &self.work else { return };
        let (job_id, epoch, committed_step) = (work.job.clone(), work.epoch, work.committed);
        self.say(FromWorker::CheckpointMissed(proto::CheckpointMissed { job_id, epoch, step, committed_step, error }));
    }

    fn write(&mut self, step: u64, disk: &mut Disk) {
        if let Some(error) = self.write_error.clone() {
            return self.missed(step, error);
        }
        let Some(work) = &self.work else { return };
        disk.shards.entry((work.job.clone(), step)).or_default().insert(work.rank, work.epoch);
        let file = ShardFile {
            file: ShardFile::name_of(work.rank),
            rank: work.rank,
            bytes: 10,
            digest: String::new(),
            entries: Vec::new(),
        };
        let body = proto::ShardWritten {
            job_id: work.job.clone(),
            epoch: work.epoch,
            step,
            rank: work.rank as u32,
            file_json: serde_json::to_string(&file).unwrap(),
            write_s: 0.5,
        };
        self.say_and_keep(FromWorker::ShardWritten(body));
    }

    fn publish(&mut self, m: &proto::PublishManifest, disk: &mut Disk) {
        let failure = self.write_error.clone().unwrap_or_default();
        if self.work_of(&m.job_id, m.epoch).is_none() {
            return;
        }
        if failure.is_empty() {
            disk.manifests.insert((m.job_id.clone(), m.step), m.epoch);
            for step in &m.remove_steps {
                disk.manifests.remove(&(m.job_id.clone(), *step));
                disk.shards.remove(&(m.job_id.clone(), *step));
            }
        }
        let body = proto::ManifestPublished {
            job_id: m.job_id.clone(),
            epoch: m.epoch,
            step: m.step,
            bytes: 20,
            path: format!("step-{}", m.step),
            error: failure,
        };
        self.say_and_keep(FromWorker::ManifestPublished(body));
    }

    /// Commits the next step.
    fn commit(&mut self, disk: &mut Disk) {
        let Some(work) = &mut self.work else { return };
        work.committed += 1;
        let (step, is_last) = (work.committed, work.committed == work.total);
        if work.rank == 0 {
            let record = StepRecord {
                step,
                loss: 5.0 / step as f64,
                step_s: STEP_S,
                tokens: 100,
                epoch: work.epoch,
                ..Default::default()
            };
            let report = work.report(&record);
            work.unacknowledged.push_back(record);
            self.say(report);
        }
        if self.work.as_mut().is_some_and(|w| w.named.remove(&step)) {
            self.write(step, disk);
        }
        if is_last {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(work) = &self.work else { return };
        let (job_id, epoch, committed_step) = (work.job.clone(), work.epoch, work.committed);
        self.say_and_keep(FromWorker::Finished(proto::Finished { job_id, epoch, committed_step }));
    }
}

impl Work {
    fn report(&self, record: &StepRecord) -> FromWorker {
        let record = Some(record.clone());
        FromWorker::Step(proto::StepReport { job_id: self.job.clone(), epoch: self.epoch, record })
    }
}

/// A job of `dp` places.
pub fn job_file(dp: usize, steps: u64, more: &str) -> String {
    format!("name = \"demo\"\nsteps = {steps}\n{more}\n[shape]\ndp = {dp}\n[data]\npath = \"/data\"\n")
}

/// Whether the job may go on.
pub fn is_live(state: State) -> bool {
    !state.is_ended()
}
