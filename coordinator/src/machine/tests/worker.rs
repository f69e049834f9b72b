//! A fake worker: keeps to the protocol, computes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_proto::StepRecord;
use toroid_torus::manifest::ShardFile;

use crate::machine::StreamId;

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
    pub is_welcome: bool,
    /// Says nothing any more, but its stream stays open.
    pub is_hung: bool,
    pub digest: u8,
    /// Step of what the job resumes from; 0: the initial weights.
    pub resume_step: u64,
    /// What preparing ends with, and whether it is fatal; `None`: success.
    pub prepare_error: Option<(String, bool)>,
    /// Steps whose checkpoints it cannot read.
    pub damaged: BTreeSet<u64>,
    /// What writing a shard or a manifest ends with; `None`: success.
    pub write_error: Option<String>,
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
            stream: None,
            work: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            is_welcome: false,
            is_hung: false,
            digest: 7,
            resume_step: 0,
            prepare_error: None,
            damaged: BTreeSet::new(),
            write_error: None,
        }
    }

    pub fn register(&self) -> proto::Register {
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

    pub fn handle(&mut self, message: ToWorker, disk: &mut Disk) {
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
        let committed_step = if m.restore_step > 0 { m.restore_step } else { self.resume_step };
        self.work = Some(Work {
            job: job_id.clone(),
            epoch,
            rank: m.rank as usize,
            world: m.peers.len(),
            total: spec.steps,
            started: false,
            committed: committed_step,
            named: BTreeSet::new(),
            said: Vec::new(),
            unacknowledged: VecDeque::new(),
        });
        if self.damaged.contains(&m.restore_step) {
            self.work = None;
            let (error, damaged_step) = ("digest differs".into(), m.restore_step);
            return self.say(FromWorker::Failed(proto::Failed { job_id, epoch, error, fatal: false, damaged_step }));
        }
        match self.prepare_error.clone() {
            Some((error, fatal)) => {
                self.work = None;
                self.say(FromWorker::Failed(proto::Failed { job_id, epoch, error, fatal, damaged_step: 0 }));
            }
            None => self.say_and_keep(FromWorker::Prepared(proto::Prepared {
                job_id,
                epoch,
                committed_step,
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
    pub fn commit(&mut self, disk: &mut Disk) {
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
