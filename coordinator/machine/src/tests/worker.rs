//! A fake worker: keeps to the protocol, computes nothing. What it holds is the number of the step that its two shards are at.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_proto::StepRecord;
use toroid_torus::geometry::Shape;
use toroid_torus::manifest::{ShardFile, Writer};
use toroid_torus::owner::OwnerId;

use crate::StreamId;

pub const STEP_S: f64 = 1.0;

/// What a worker does in a job.
#[derive(Debug, Clone)]
pub struct Work {
    pub job: String,
    pub owner: Vec<u8>,
    pub epoch: u64,
    pub rank: usize,
    pub world: usize,
    pub total: u64,
    pub started: bool,
    pub committed: u64,
    /// Of this epoch.
    pub shape: Shape,
    /// Its two shards at `committed`, as the place of a rank in a shape has them; the older first.
    pub held: Vec<(Shape, usize)>,
    /// Has split the state anew in this epoch.
    pub is_split: bool,
    /// Can apply `committed + 1`.
    pub sealed: bool,
    /// What is to be done before the next step.
    pub healing: Option<proto::Heal>,
    pub named: BTreeSet<u64>,
    /// It makes no step beyond this one.
    pub halt_at: Option<u64>,
    /// What is said again after a reconnection: shards and manifests of this epoch, and the end.
    said: Vec<FromWorker>,
    unacknowledged: VecDeque<StepRecord>,
    /// The newest steps: rank 0 reports what another may not have reported.
    pub history: VecDeque<StepRecord>,
}

/// What the newest `Assign` said.
#[derive(Debug)]
struct Told {
    job: String,
    epoch: u64,
    rank: u32,
    owner: Vec<u8>,
    shape: Shape,
    total: u64,
}

#[derive(Debug)]
pub struct Worker {
    pub id: String,
    pub host: String,
    pub fingerprint: String,
    pub fingerprint_bf16: String,
    /// Numerics, and the oldest and the newest version of links.
    pub build: (u32, u32, u32),
    pub zone: String,
    pub labels: BTreeMap<String, String>,
    pub stream: Option<StreamId>,
    /// As the last Welcome said it.
    pub store_id: Vec<u8>,
    /// The greatest term that it has heard.
    pub term: u64,
    pub work: Option<Work>,
    told: Option<Told>,
    pub inbox: VecDeque<ToWorker>,
    pub outbox: VecDeque<FromWorker>,
    /// `Welcome` came on this stream: before, nothing but `Register` is said.
    pub is_welcome: bool,
    /// Says nothing any more, but its stream stays open.
    pub is_hung: bool,
    /// Its trainer hangs in this operation; heartbeats go on.
    pub stuck_in: Option<String>,
    /// How far it says it is with one long operation.
    pub progress: u64,
    /// Whom it says it waits for.
    pub waits_for: Vec<u32>,
    pub pid: u32,
    /// Another for each process, see [`super::world::World::join`].
    pub incarnation: u64,
    /// How long it computes a step, and has computed so far in how many.
    pub step_s: f64,
    pub computed: (u64, f64),
    pub inputs: Option<proto::Inputs>,
    pub digest: u8,
    /// What names the weights that it reads.
    pub weights: BTreeMap<String, String>,
    /// Step of what the job resumes from; 0: the initial weights.
    pub resume_step: u64,
    /// What preparing ends with, and whether it is fatal; `None`: success.
    pub prepare_error: Option<(String, bool)>,
    /// Nobody can dial it, nor it anybody.
    pub unreachable: bool,
    /// Where it says that it is dialled, if not at its host.
    pub address: Option<String>,
    /// Steps whose checkpoints it finds damaged.
    pub damaged: BTreeSet<u64>,
    /// It does not see the folder of the checkpoints.
    pub is_blind: bool,
    /// What writing a shard or a manifest ends with; `None`: success.
    pub write_error: Option<String>,
    /// It neither writes a shard nor says why.
    pub writes_nothing: bool,
    /// Steps that it remembers.
    pub num_sums: usize,
    /// Jobs and ranks.
    pub told_to_warm_up: Vec<(String, u32)>,
}

/// Shards by (job, step), each with the epoch that wrote it, by rank; and manifests that can be seen.
#[derive(Debug, Default)]
pub struct Disk {
    pub shards: BTreeMap<(String, u64), BTreeMap<usize, u64>>,
    pub manifests: BTreeMap<(String, u64), u64>,
}

impl Worker {
    pub fn new(id: &str) -> Worker {
        Worker {
            id: id.into(),
            host: format!("host-{id}"),
            fingerprint: "alike".into(),
            fingerprint_bf16: String::new(),
            build: (1, 1, 1),
            zone: String::new(),
            labels: BTreeMap::new(),
            stream: None,
            store_id: Vec::new(),
            term: 0,
            work: None,
            told: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            is_welcome: false,
            is_hung: false,
            stuck_in: None,
            progress: 0,
            waits_for: Vec::new(),
            pid: 1,
            incarnation: 0,
            step_s: STEP_S,
            computed: (0, 0.0),
            inputs: None,
            digest: 7,
            weights: BTreeMap::new(),
            resume_step: 0,
            prepare_error: None,
            unreachable: false,
            address: None,
            damaged: BTreeSet::new(),
            is_blind: false,
            write_error: None,
            writes_nothing: false,
            num_sums: 10_000,
            told_to_warm_up: Vec::new(),
        }
    }

    pub fn register(&self) -> proto::Register {
        let register = proto::Register {
            secret: vec![7; 32],
            worker_id: self.id.clone(),
            zone: self.zone.clone(),
            labels: self.labels.clone(),
            protocol_version: proto::build().protocol.newest,
            build_version: proto::BUILD_VERSION.into(),
            host: self.host.clone(),
            data_address: match &self.address {
                _ if self.unreachable => "nohost.invalid:1".into(),
                Some(address) => address.clone(),
                None => format!("{}:1", self.host),
            },
            device: "cpu".into(),
            fingerprint: self.fingerprint.clone(),
            fingerprint_bf16: self.fingerprint_bf16.clone(),
            numerics: self.build.0,
            links_oldest: self.build.1,
            links_version: self.build.2,
            pid: self.pid,
            incarnation: self.incarnation,
            store_id: self.store_id.clone(),
            term: self.term,
            ..Default::default()
        };
        match &self.work {
            None => register,
            Some(work) => proto::Register {
                job_id: work.job.clone(),
                epoch: work.epoch,
                rank: work.rank as u32,
                committed_step: work.committed,
                owner_id: work.owner.clone(),
                shape: Some((&work.shape).into()),
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
            sealed_next: work.sealed,
            operation: self.stuck_in.clone().unwrap_or_else(|| "forward".into()),
            waits_for: self.waits_for.clone(),
            progress: self.progress,
            compute_steps: self.computed.0,
            compute_s: self.computed.1,
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

    pub fn handle(&mut self, message: ToWorker, disk: &mut Disk) {
        match message {
            ToWorker::Welcome(m) => {
                self.is_welcome = true;
                self.store_id.clone_from(&m.store_id);
                if m.keep_going {
                    self.say_again();
                } else {
                    (self.work, self.told) = (None, None);
                }
            }
            ToWorker::Assign(m) => self.assigned(&m),
            ToWorker::Start(m) => {
                if let Some(work) = self.work_of(&m.job_id, m.epoch) {
                    if !work.started {
                        work.started = true;
                        work.healing = m.heal;
                    }
                    let is_finished = work.said.iter().any(|b| matches!(b, FromWorker::Finished(_)));
                    if work.healing.is_none() && work.committed == work.total && !is_finished {
                        self.finish();
                    }
                }
            }
            ToWorker::CheckpointAt(m) => self.checkpoint_at(&m, disk),
            ToWorker::PublishManifest(m) => self.publish(&m, disk),
            ToWorker::DropCheckpoint(m) => self.drop_checkpoint(&m, disk),
            ToWorker::Stop(m) => {
                if self.work.as_ref().is_some_and(|w| w.job == m.job_id && w.epoch <= m.epoch) {
                    (self.work, self.told) = (None, None);
                    self.say(FromWorker::Stopped(proto::Stopped { job_id: m.job_id, epoch: m.epoch }));
                }
            }
            ToWorker::StepAck(m) => {
                if let Some(work) = &mut self.work {
                    work.unacknowledged.retain(|r| r.step > m.step);
                }
            }
            ToWorker::ReportSteps(m) => {
                if self.work_of(&m.job_id, m.epoch).is_some() {
                    self.report_since(m.from_step);
                }
            }
            ToWorker::Refused(m) if m.kind() == proto::RefusalKind::Apart => {}
            ToWorker::Refused(_) => self.work = None,
            // It has room for one place: what it holds goes first.
            ToWorker::WarmUp(_) if self.work.is_some() => {}
            ToWorker::WarmUp(m) => {
                self.told_to_warm_up.push((m.job_id.clone(), m.rank));
                let error = self.prepare_error.clone().map_or_else(String::new, |(error, _)| error);
                let (job_id, number, data_digest) = (m.job_id, m.number, vec![self.digest; 32]);
                self.say(FromWorker::WarmedUp(proto::WarmedUp {
                    job_id,
                    number,
                    error,
                    data_digest,
                    ..Default::default()
                }));
            }
            ToWorker::Probe(m) => {
                let is_apart = self.unreachable || m.data_address.starts_with("nohost");
                let error = if is_apart { format!("cannot be reached at {}", m.data_address) } else { String::new() };
                self.say(FromWorker::Probed(proto::Probed { number: m.number, error }));
            }
            ToWorker::Kill(_) => unreachable!("the machine has nobody killed"),
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
        if self.work.as_ref().is_some_and(|w| w.job == m.job_id && w.epoch >= m.epoch) {
            return;
        }
        let (job_id, epoch) = (m.job_id.clone(), m.epoch);
        let before = self.work.take().filter(|w| w.job == m.job_id);
        let (shape, total, owner) = match (m.since_epoch, &self.told) {
            (0, _) => {
                let spec: toroid_torus::job::JobSpec = serde_json::from_str(&m.job_json).unwrap();
                (spec.shape, spec.steps, m.owner_id.clone())
            }
            // A session keeps what it was told until it is told to stop, whatever has become of its work.
            (since, Some(told)) if (&told.job, told.epoch, told.rank) == (&m.job_id, since, m.rank) => {
                (told.shape, told.total, told.owner.clone())
            }
            (since, told) => panic!("what differs from epoch {since} is said to who was told {told:?}"),
        };
        self.told = Some(Told { job: job_id.clone(), epoch, rank: m.rank, owner: owner.clone(), shape, total });
        let mut work = Work {
            job: job_id.clone(),
            owner,
            epoch,
            rank: m.rank as usize,
            world: shape.world(),
            total,
            started: false,
            committed: 0,
            shape,
            held: Vec::new(),
            is_split: false,
            sealed: false,
            healing: None,
            named: BTreeSet::new(),
            halt_at: None,
            said: Vec::new(),
            unacknowledged: VecDeque::new(),
            history: VecDeque::new(),
        };
        match before {
            Some(before) if m.heal && !before.held.is_empty() => {
                work.committed = before.committed;
                work.held = before.held;
                work.sealed = before.sealed;
                work.unacknowledged = before.unacknowledged;
                work.history = before.history;
            }
            _ if m.heal => {}
            before => {
                work.committed = if m.restore_step > 0 { m.restore_step } else { self.resume_step };
                work.held = vec![(work.shape, work.rank)];
                work.unacknowledged = before.map(|b| b.unacknowledged).unwrap_or_default();
                work.unacknowledged.retain(|r| r.step <= work.committed);
            }
        }
        let (committed_step, sealed_next) = (work.committed, work.sealed);
        let sums_from = work.history.front().map_or(committed_step + 1, |r| r.step);
        let in_proto = |(shape, rank): &(Shape, usize)| proto::Held { shape: Some(shape.into()), rank: *rank as u32 };
        let held = work.held.iter().map(in_proto).collect();
        self.work = Some(work);
        // Who waits for others is woken by the fence; what computes for ever is not.
        if self.stuck_in.is_some() && self.waits_for.is_empty() {
            return;
        }
        let failed = proto::Failed { job_id: job_id.clone(), epoch, ..Default::default() };
        if !m.heal && self.damaged.contains(&m.restore_step) {
            self.work = None;
            let (error, damaged_step) = ("digest differs".into(), m.restore_step);
            return self.say(FromWorker::Failed(proto::Failed { error, damaged_step, ..failed }));
        }
        if !m.heal && m.restore_step > 0 && self.is_blind {
            self.work = None;
            let (error, unreadable_step) = ("there is none of any step".into(), m.restore_step);
            return self.say(FromWorker::Failed(proto::Failed { error, unreadable_step, ..failed }));
        }
        if let Some((error, fatal)) = self.prepare_error.clone() {
            self.work = None;
            return self.say(FromWorker::Failed(proto::Failed { error, fatal, ..failed }));
        }
        self.say_and_keep(FromWorker::Prepared(proto::Prepared {
            job_id,
            epoch,
            committed_step,
            data_digest: vec![self.digest; 32],
            num_samples: 100,
            num_params: 1000,
            held,
            sealed_next,
            inputs: self.inputs.clone(),
            sums_from,
            weights: self.weights.clone(),
        }));
        let Some(work) = self.work.clone() else { return };
        work.unacknowledged.iter().for_each(|r| self.say(work.report(r)));
    }

    /// Ends with the state of the step that was decided. `history` is that of the source.
    pub fn heal(&mut self, history: &VecDeque<StepRecord>, disk: &mut Disk) {
        let Some(work) = &mut self.work else { return };
        let Some(heal) = work.healing.take() else { return };
        if heal.origin.is_none() {
            let place = (work.shape, work.rank);
            work.held.retain(|h| *h == place);
            self.follow(&heal, history);
        }
        let Some(work) = &mut self.work else { return };
        work.held = vec![(work.shape, work.rank)];
        if work.named.remove(&heal.step) {
            self.write(heal.step, disk);
        }
        self.finish_if_last();
    }

    /// Splits the state of the step that was decided anew, and keeps it as it was.
    pub fn resplit(&mut self, history: &VecDeque<StepRecord>) {
        let Some(work) = &mut self.work else { return };
        let Some(heal) = work.healing.clone() else { return };
        let Some(origin) = &heal.origin else { return };
        let shape = Shape::try_from(&origin.shape.unwrap()).unwrap();
        let own = origin.ranks[work.rank].checked_sub(1).map(|rank| (shape, rank as usize));
        assert!(own.is_none_or(|own| work.held.contains(&own)), "{} is to hold {own:?}: {:?}", self.id, work.held);
        work.held.retain(|h| Some(*h) == own);
        self.follow(&heal, history);
        let Some(work) = &mut self.work else { return };
        work.is_split = true;
        work.held.push((work.shape, work.rank));
    }

    /// Gets to the step that was decided. Rank 0 says what the coordinator does not have.
    fn follow(&mut self, heal: &proto::Heal, history: &VecDeque<StepRecord>) {
        let Some(work) = &mut self.work else { return };
        let (is_newcomer, is_behind) = (work.held.is_empty(), work.committed < heal.step);
        let committed = if is_newcomer { heal.step } else { work.committed };
        work.committed = committed;
        let first = work.history.front().map_or(committed + 1, |r| r.step);
        let older = history.iter().filter(|r| r.step < first && r.step > heal.recorded_step);
        older.rev().cloned().for_each(|r| work.history.push_front(r));
        if is_behind && !is_newcomer {
            assert!(work.sealed && work.committed + 1 == heal.step, "T-2: {} cannot follow to {}", self.id, heal.step);
            self.commit_step();
        }
        let Some(work) = &mut self.work else { return };
        work.sealed = false;
        if work.rank == 0 {
            self.report_since(heal.recorded_step + 1);
        }
    }

    /// Says the records from this step on, and which of them nobody knows.
    fn report_since(&mut self, from: u64) {
        let Some(work) = &mut self.work else { return };
        let known = work.history.front().map_or(work.committed + 1, |r| r.step);
        work.unacknowledged = work.history.iter().filter(|r| r.step >= from).cloned().collect();
        let work = work.clone();
        if known > from {
            let (job_id, epoch) = (work.job.clone(), work.epoch);
            let missing = proto::RecordsMissing { job_id, epoch, from_step: from, through_step: known - 1 };
            self.say(FromWorker::RecordsMissing(missing));
        }
        work.unacknowledged.iter().for_each(|r| self.say(work.report(r)));
    }

    /// Has figures of these steps of the job in the epoch that it is in.
    pub fn knows(&self, job: &str, epoch: u64, from: u64, through: u64) -> bool {
        let work = self.work.as_ref().filter(|w| w.job == job && w.epoch == epoch && w.started);
        work.is_some_and(|w| w.history.iter().any(|r| (from..=through).contains(&r.step)))
    }

    fn checkpoint_at(&mut self, m: &proto::CheckpointAt, disk: &mut Disk) {
        let Some(work) = self.work_of(&m.job_id, m.epoch) else { return };
        if m.halt && m.step >= work.committed {
            work.halt_at = work.halt_at.max(Some(m.step));
        }
        let is_written = |body: &FromWorker| matches!(body, FromWorker::ShardWritten(s) if s.step == m.step);
        if let Some(written) = work.said.iter().find(|b| is_written(b)).cloned() {
            self.say(written);
        } else if m.step > work.committed {
            work.named.insert(m.step);
        } else if m.step == work.committed {
            self.write(m.step, disk);
        } else {
            let error = String::new();
            self.missed(m.step, error);
        }
    }

    fn drop_checkpoint(&mut self, m: &proto::DropCheckpoint, disk: &mut Disk) {
        let Some(work) = self.work_of(&m.job_id, m.epoch) else { return };
        work.named.remove(&m.step);
        work.said.retain(|body| !matches!(body, FromWorker::ShardWritten(s) if s.step == m.step));
        let place = (m.job_id.clone(), m.step);
        if !disk.manifests.contains_key(&place)
            && let Some(shards) = disk.shards.get_mut(&place)
        {
            shards.remove(&work.rank);
            if shards.is_empty() {
                disk.shards.remove(&place);
            }
        }
    }

    fn missed(&mut self, step: u64, error: String) {
        let Some(work) = &self.work else { return };
        let (job_id, epoch, committed_step) = (work.job.clone(), work.epoch, work.committed);
        self.say(FromWorker::CheckpointMissed(proto::CheckpointMissed { job_id, epoch, step, committed_step, error }));
    }

    fn write(&mut self, step: u64, disk: &mut Disk) {
        if self.writes_nothing {
            return;
        }
        if let Some(error) = self.write_error.clone() {
            return self.missed(step, error);
        }
        let Some(work) = &self.work else { return };
        disk.shards.entry((work.job.clone(), step)).or_default().insert(work.rank, work.epoch);
        let file = ShardFile {
            file: ShardFile::name_of(&Writer {
                epoch: work.epoch,
                rank: work.rank,
                world: work.world,
                owner: OwnerId::from_random([1; 16]),
            }),
            rank: work.rank,
            bytes: 10,
            digest: String::new(),
            entries: Vec::new(),
            kl_coef: None,
            reward_scale: None,
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
        let is_published = body.error.is_empty();
        self.say_and_keep(FromWorker::ManifestPublished(body));
        if is_published && !m.remove_steps.is_empty() {
            self.say_and_keep(FromWorker::StepsRemoved(proto::StepsRemoved {
                job_id: m.job_id.clone(),
                epoch: m.epoch,
                step: m.step,
                removed: m.remove_steps.clone(),
                kept: Vec::new(),
            }));
        }
    }

    /// Has the global sums of the step that it has sealed.
    pub fn commit(&mut self, disk: &mut Disk) {
        self.commit_step();
        let Some(work) = &mut self.work else { return };
        if work.named.remove(&work.committed) {
            let step = work.committed;
            self.write(step, disk);
        }
        self.finish_if_last();
    }

    fn commit_step(&mut self) {
        let Some(work) = &mut self.work else { return };
        assert!(!work.held.is_empty() && work.sealed, "T-2: {} commits what it has not sealed", self.id);
        work.committed += 1;
        work.sealed = false;
        self.computed = (self.computed.0 + 1, self.computed.1 + self.step_s);
        let (step, epoch, step_s) = (work.committed, work.epoch, self.step_s);
        let loss = loss_of(step);
        let record = StepRecord { step, loss, step_s, tokens: 100, epoch, ..Default::default() };
        if work.history.len() == self.num_sums {
            work.history.pop_front();
        }
        work.history.push_back(record.clone());
        if work.rank == 0 {
            let report = work.report(&record);
            work.unacknowledged.push_back(record);
            self.say(report);
        }
    }

    fn finish_if_last(&mut self) {
        if self.work.as_ref().is_some_and(|w| w.committed == w.total) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(work) = &self.work else { return };
        let (job_id, epoch, committed_step) = (work.job.clone(), work.epoch, work.committed);
        self.say_and_keep(FromWorker::Finished(proto::Finished { job_id, epoch, committed_step }));
    }
}

/// The same whoever computes it (T-4).
pub fn loss_of(step: u64) -> f64 {
    5.0 / step as f64
}

impl Work {
    fn report(&self, record: &StepRecord) -> FromWorker {
        let record = Some(record.clone());
        FromWorker::Step(proto::StepReport { job_id: self.job.clone(), epoch: self.epoch, record })
    }
}
