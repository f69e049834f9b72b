//! The worker's side of the protocol: what it tells the coordinator and what it has its trainer do.
//!
//! ```text
//!            Assign e          Prepared         Start e             Finished
//!   idle ------------> preparing -----> ready -----------> training --------> finished
//!     ^---------------------------- Stop e, or Welcome{keep_going: false} ----------'
//!     an Assign of a newer epoch leads from every state to preparing; the older epoch is fenced first (T-1)
//! ```
//!
//! Losing the coordinator changes nothing but that messages wait: what it must not miss (step records, a shard just written, the end)
//! is sent again after the next Welcome (T-9). Deliberately absent: sockets, clocks, threads.

mod reports;

use std::collections::BTreeMap;
use std::sync::Arc;

use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_proto::{
    Assign, CheckpointMissed, Failed, Finished, KeptStep, ManifestPublished, PeerLost, Prepared, PublishManifest,
    RecordsMissing, RefusalKind, ShardWritten, StepRecord, StepReport, StepsRemoved, Stopped, Unreached, UnreachedPeer,
    ValidationReport, WarmedUp, Welcome,
};
use toroid_torus::failpoint;
use toroid_torus::geometry::Shape;
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::ShardFile;
use toroid_torus::owner::{Owner, OwnerId};
use toroid_torus::resplit::Origin;

use reports::{Reports, Said};

use crate::checkpoint::{Claim, ReadFault};
use crate::comm::{Knock, PeerAddr};
use crate::trainer::{Assignment, BadCheckpoint, Command, Event, HealPlan, Then, TrainerEvent, WarmUp};

/// Peers that one report names, at most.
const MAX_UNREACHED: usize = 256;
/// Shards that are said again, at most: as many as a coordinator names ahead.
const MAX_SHARDS: usize = 64;

#[derive(Debug)]
pub enum Input {
    FromCoordinator(FromCoordinator),
    Trainer(TrainerEvent),
    /// A checkpoint was asked for, but this step was committed already.
    CheckpointTooLate {
        epoch: u64,
        step: u64,
        committed: u64,
    },
}

#[derive(Debug)]
pub enum Output {
    Send(ToCoordinator),
    Trainer(Command),
    /// Another worker is to be dialled, and answered; what came of it goes to the coordinator as `Probed`.
    Probe(Knock),
    /// A place to prepare; its job's fence goes with it.
    Prepare(Box<Assignment>),
    /// Nothing of an epoch below this one may go on.
    Fence {
        epoch: u64,
    },
    RequestCheckpoint {
        epoch: u64,
        step: u64,
        then: Then,
    },
    /// It has failed: it is not to be written any more, and what was written of it goes.
    DropCheckpoint {
        epoch: u64,
        step: u64,
    },
    /// The coordinator has the records up to this step on disk.
    Recorded {
        step: u64,
    },
    /// The control stream has its intervals from here.
    Intervals {
        heartbeat_ms: u32,
        failure_timeout_ms: u32,
        leave_grace_ms: u32,
        connect_limit_ms: u32,
    },
    /// The coordinator will not have this worker.
    Refused {
        reason: String,
    },
    /// Another process has this worker's id, as far as the coordinator knows: it may be asked again later.
    IdInUse {
        reason: String,
    },
    /// One line for the log.
    Note(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkPhase {
    Preparing,
    Ready,
    Training,
    Finished,
    /// Waits for a newer epoch: a peer was lost, or this worker failed.
    Halted,
}

/// The place that this worker has.
#[derive(Debug)]
struct Work {
    job_id: String,
    epoch: u64,
    rank: usize,
    /// Places of the epoch.
    world: usize,
    phase: WorkPhase,
    committed: u64,
    prepared: Option<Prepared>,
    /// The epoch in which this place trained last, where this one heals: what the trainer committed in it before it saw the fence still counts.
    heals: Option<u64>,
    reports: Reports,
    validations: BTreeMap<u64, ValidationReport>,
    /// Of the newest checkpoints, which may not be published yet, by step.
    shards: BTreeMap<u64, ShardWritten>,
    /// What came of the newest order to remove checkpoints.
    removed: Option<StepsRemoved>,
    /// Why the work is halted.
    halted: Option<ToCoordinator>,
}

/// What Register and Heartbeat say about this worker's work.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Standing {
    pub job_id: String,
    pub epoch: u64,
    pub rank: u32,
    pub committed_step: u64,
}

/// See the module's diagram.
#[derive(Debug, Default)]
pub struct Session {
    work: Option<Work>,
}

impl Session {
    pub fn new() -> Session {
        Session::default()
    }

    pub fn standing(&self) -> Standing {
        self.work.as_ref().map_or_else(Standing::default, |w| Standing {
            job_id: w.job_id.clone(),
            epoch: w.epoch,
            rank: w.rank as u32,
            committed_step: w.committed,
        })
    }

    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::FromCoordinator(message) => self.heard(message),
            Input::Trainer(event) => self.reported(event),
            Input::CheckpointTooLate { epoch, step, committed } => match &self.work {
                Some(work) if work.epoch == epoch => {
                    vec![Output::Send(ToCoordinator::CheckpointMissed(CheckpointMissed {
                        step,
                        committed_step: committed,
                        error: String::new(),
                        ..work.missed()
                    }))]
                }
                _ => Vec::new(),
            },
        }
    }

    fn heard(&mut self, message: FromCoordinator) -> Vec<Output> {
        match message {
            FromCoordinator::Welcome(welcome) => self.welcome(&welcome),
            FromCoordinator::Refused(refused) => vec![match refused.kind() {
                RefusalKind::IdInUse => Output::IdInUse { reason: refused.reason },
                RefusalKind::Unspecified => Output::Refused { reason: refused.reason },
            }],
            FromCoordinator::Assign(assign) => self.assign(assign),
            FromCoordinator::WarmUp(ahead) if self.work.is_none() => match warm_up(ahead) {
                Ok(ahead) => vec![Output::Trainer(Command::WarmUp(Box::new(ahead)))],
                Err(refusal) => vec![Output::Send(ToCoordinator::WarmedUp(refusal))],
            },
            FromCoordinator::WarmUp(_) => Vec::new(),
            FromCoordinator::Probe(probe) => match knock(&probe) {
                Ok(knock) => vec![Output::Probe(knock)],
                Err(error) => vec![Output::Send(ToCoordinator::Probed(proto::Probed { number: probe.number, error }))],
            },
            FromCoordinator::Stop(stop) => self.stop(&stop.job_id, stop.epoch, &stop.reason),
            FromCoordinator::Start(start) => match self.current(&start.job_id, start.epoch) {
                Some(work) if work.phase == WorkPhase::Ready => {
                    work.phase = WorkPhase::Training;
                    if let Some(heal) = &start.heal {
                        work.reports.acknowledged(heal.recorded_step);
                        work.reports.forget_after(heal.step);
                    }
                    match start.heal.map(|heal| heal_plan(heal, work.world)).transpose() {
                        Ok(heal) => vec![Output::Trainer(Command::Start { epoch: start.epoch, heal })],
                        Err(error) => {
                            let (fatal, checkpoint, restore, corrupt_ranks) = (true, None, false, Vec::new());
                            let failed = Event::Failed { error, fatal, checkpoint, restore, corrupt_ranks };
                            work.report(failed).into_iter().map(Output::Send).collect()
                        }
                    }
                }
                _ => Vec::new(),
            },
            FromCoordinator::CheckpointAt(at) => match self.current(&at.job_id, at.epoch) {
                Some(_) => {
                    let then = if at.halt { Then::Halt } else { Then::GoOn };
                    vec![Output::RequestCheckpoint { epoch: at.epoch, step: at.step, then }]
                }
                None => Vec::new(),
            },
            FromCoordinator::PublishManifest(publish) => self.publish(publish),
            FromCoordinator::DropCheckpoint(dropped) => match self.current(&dropped.job_id, dropped.epoch) {
                Some(work) => {
                    work.shards.remove(&dropped.step);
                    vec![Output::DropCheckpoint { epoch: dropped.epoch, step: dropped.step }]
                }
                None => Vec::new(),
            },
            FromCoordinator::StepAck(ack) => {
                let Some(work) = self.work.as_mut().filter(|w| w.job_id == ack.job_id) else { return Vec::new() };
                work.reports.acknowledged(ack.step);
                vec![Output::Recorded { step: ack.step }]
            }
            FromCoordinator::ReportSteps(from) => match self.current(&from.job_id, from.epoch) {
                // What this worker does not know any more its trainer may.
                Some(work) if !work.reports.reaches_back_to(from.from_step) => {
                    vec![Output::Trainer(Command::Report { epoch: from.epoch, from: from.from_step })]
                }
                Some(work) => work.reports_again().map(Output::Send).collect(),
                None => Vec::new(),
            },
        }
    }

    /// T-1: what carries another job or another epoch is not for us.
    fn current(&mut self, job_id: &str, epoch: u64) -> Option<&mut Work> {
        self.work.as_mut().filter(|w| w.job_id == job_id && (w.epoch == epoch || failpoint!(SessionTakesOldEpoch)))
    }

    fn welcome(&mut self, welcome: &Welcome) -> Vec<Output> {
        let mut out = vec![Output::Intervals {
            heartbeat_ms: welcome.heartbeat_interval_ms,
            failure_timeout_ms: welcome.failure_timeout_ms,
            leave_grace_ms: welcome.leave_grace_ms,
            connect_limit_ms: welcome.connect_limit_ms,
        }];
        let Some(work) = &mut self.work else { return out };
        if failpoint!(ForgetRecords) || failpoint!(TakeAnyStep) {
            work.reports.clear();
        }
        if welcome.keep_going {
            out.extend(work.said_again().into_iter().map(Output::Send));
        } else {
            let epoch = work.epoch;
            out.push(Output::Note(format!(
                "the coordinator has given rank {} of {} to another worker",
                work.rank, work.job_id
            )));
            out.extend(self.drop_work(epoch));
        }
        out
    }

    fn assign(&mut self, assign: Assign) -> Vec<Output> {
        if self.work.as_ref().is_some_and(|w| w.job_id == assign.job_id && w.epoch >= assign.epoch) {
            return Vec::new();
        }
        let (job_id, epoch) = (assign.job_id.clone(), assign.epoch);
        let assignment = match checked(assign) {
            Ok(assignment) => assignment,
            Err(error) => {
                let failed = Failed { job_id, epoch, error, fatal: true, ..Failed::default() };
                return vec![Output::Send(ToCoordinator::Failed(failed))];
            }
        };
        // Records of the epoch before that were not acknowledged still count: their steps were committed.
        let before = self.work.take().filter(|w| w.job_id == job_id);
        let last_trained = |w: &Work| if w.has_trained() { Some(w.epoch) } else { w.heals };
        let heals = before.as_ref().filter(|_| assignment.heal).and_then(last_trained);
        let reports = before.map(|w| w.reports).unwrap_or_default();
        self.work = Some(Work {
            job_id,
            epoch,
            rank: assignment.rank,
            world: assignment.spec.shape.world(),
            phase: WorkPhase::Preparing,
            committed: 0,
            prepared: None,
            heals,
            reports,
            validations: BTreeMap::new(),
            shards: BTreeMap::new(),
            removed: None,
            halted: None,
        });
        let fence = (!failpoint!(DoNotFence)).then_some(Output::Fence { epoch });
        fence.into_iter().chain([Output::Prepare(Box::new(assignment))]).collect()
    }

    fn stop(&mut self, job_id: &str, epoch: u64, reason: &str) -> Vec<Output> {
        // A stop of a newer epoch than ours ends ours too.
        let Some(work) = self.work.as_ref().filter(|w| w.job_id == job_id && w.epoch <= epoch) else {
            return Vec::new();
        };
        let mut out = vec![Output::Note(format!("rank {} of {job_id} stops: {reason}", work.rank))];
        out.extend(self.drop_work(epoch));
        out.push(Output::Send(ToCoordinator::Stopped(Stopped { job_id: job_id.to_string(), epoch })));
        out
    }

    fn drop_work(&mut self, epoch: u64) -> Vec<Output> {
        self.work = None;
        vec![Output::Fence { epoch: epoch + 1 }, Output::Trainer(Command::Drop { epoch })]
    }

    fn publish(&mut self, publish: PublishManifest) -> Vec<Output> {
        let Some(work) = self.current(&publish.job_id, publish.epoch) else { return Vec::new() };
        let files: Result<Vec<ShardFile>, _> = publish.files_json.iter().map(|f| serde_json::from_str(f)).collect();
        match files {
            Ok(files) => vec![Output::Trainer(Command::Publish {
                epoch: publish.epoch,
                step: publish.step,
                files,
                remove: publish.remove_steps,
            })],
            Err(error) => {
                let error = format!("cannot read the list of shards that the coordinator sent: {error}");
                vec![Output::Send(work.published(publish.step, 0, String::new(), error))]
            }
        }
    }

    fn reported(&mut self, event: TrainerEvent) -> Vec<Output> {
        let TrainerEvent { job_id, epoch, event } = event;
        if let Event::WarmedUp { number, error, data_digest, unseen } = event {
            let (data_digest, unseen) = (data_digest.to_vec(), unseen.unwrap_or_default());
            let warmed_up = WarmedUp { job_id, number, error: error.unwrap_or_default(), data_digest, unseen };
            // Who has got a place meanwhile shows it there.
            let is_asked = self.work.is_none();
            return is_asked.then_some(Output::Send(ToCoordinator::WarmedUp(warmed_up))).into_iter().collect();
        }
        let work = self.work.as_mut().filter(|w| w.job_id == job_id);
        let Some(work) = work else { return Vec::new() };
        if work.heals == Some(epoch) {
            work.keep_late_record(event);
            return Vec::new();
        }
        if work.epoch != epoch {
            return Vec::new();
        }
        work.report(event).into_iter().map(Output::Send).collect()
    }
}

impl Work {
    fn has_trained(&self) -> bool {
        !matches!(self.phase, WorkPhase::Preparing | WorkPhase::Ready)
    }

    /// The trainer committed a step of the epoch before when this one was already assigned. It says so before it says what it has
    /// prepared, and then the record is sent with the others.
    fn keep_late_record(&mut self, event: Event) {
        if let Event::Committed { record: Some(record), .. } = event {
            self.keep_record(*record);
        }
    }

    fn keep_record(&mut self, record: StepRecord) -> StepReport {
        let record = Some(self.reports.keep(record));
        StepReport { job_id: self.job_id.clone(), epoch: self.epoch, record }
    }

    /// What the coordinator has not said to have, in the order of the steps.
    fn reports_again(&self) -> impl Iterator<Item = ToCoordinator> {
        self.reports.iter().map(|(from_step, said)| {
            let (job_id, epoch) = (self.job_id.clone(), self.epoch);
            match said {
                Said::Figures(record) => {
                    ToCoordinator::Step(StepReport { job_id, epoch, record: Some(record.clone()) })
                }
                Said::Missing { through } => {
                    let through_step = *through;
                    ToCoordinator::RecordsMissing(RecordsMissing { job_id, epoch, from_step, through_step })
                }
            }
        })
    }

    /// Takes note of what the trainer reports, and says what the coordinator is to hear.
    fn report(&mut self, event: Event) -> Vec<ToCoordinator> {
        match event {
            Event::Prepared {
                committed_step,
                held,
                sealed_next,
                sums_from,
                data_digest,
                num_samples,
                num_params,
                inputs,
            } => {
                self.phase = WorkPhase::Ready;
                self.committed = committed_step;
                // A newcomer knows nothing of steps yet; what it had to say before still counts.
                if !held.is_empty() {
                    self.reports.forget_after(committed_step);
                }
                let prepared = Prepared {
                    job_id: self.job_id.clone(),
                    epoch: self.epoch,
                    committed_step,
                    data_digest: data_digest.to_vec(),
                    num_samples,
                    num_params,
                    held: held
                        .iter()
                        .map(|h| toroid_proto::Held { shape: Some((&h.shape).into()), rank: h.rank as u32 })
                        .collect(),
                    sealed_next,
                    inputs: Some(*inputs),
                    sums_from,
                };
                self.prepared = Some(prepared.clone());
                // What was said in the older epoch may have come too late to be taken. It goes first: with the last Prepared the epoch
                // begins, and if this place died on the way its records would be missing in the curve (T-4).
                self.reports_again().chain([ToCoordinator::Prepared(prepared)]).collect()
            }
            Event::Connected | Event::WarmedUp { .. } => Vec::new(),
            Event::Committed { step, record } => {
                // Older ones are said again.
                self.committed = self.committed.max(step);
                let Some(record) = record else { return Vec::new() };
                vec![ToCoordinator::Step(self.keep_record(*record))]
            }
            Event::RecordsMissing { from, through } => {
                self.reports.miss(from, through);
                // With those that this worker knows: in the order of the steps.
                self.reports_again().collect()
            }
            Event::Validated(validation) => {
                let step = validation.step;
                let report =
                    ValidationReport { job_id: self.job_id.clone(), epoch: self.epoch, validation: Some(validation) };
                self.validations.insert(step, report.clone());
                vec![ToCoordinator::Validation(report)]
            }
            Event::ShardWritten { step, file, write_s } => {
                let written = ShardWritten {
                    job_id: self.job_id.clone(),
                    epoch: self.epoch,
                    step,
                    rank: self.rank as u32,
                    file_json: serde_json::to_string(&file).expect("a shard file has only string keys"),
                    write_s,
                };
                self.shards.insert(step, written.clone());
                if self.shards.len() > MAX_SHARDS {
                    self.shards.pop_first();
                }
                vec![ToCoordinator::ShardWritten(written)]
            }
            Event::CheckpointFailed { step, error } => {
                let missed = CheckpointMissed { step, committed_step: self.committed, error, ..self.missed() };
                vec![ToCoordinator::CheckpointMissed(missed)]
            }
            Event::Published { step, bytes, path } => vec![self.published(step, bytes, path, String::new())],
            Event::PublishFailed { step, error } => vec![self.published(step, 0, String::new(), error)],
            Event::Removed { step, removed, kept } => {
                let kept = kept.into_iter().map(|(step, error)| KeptStep { step, error }).collect();
                let (job_id, epoch) = (self.job_id.clone(), self.epoch);
                let removed = StepsRemoved { job_id, epoch, step, removed, kept };
                self.removed = Some(removed.clone());
                vec![ToCoordinator::StepsRemoved(removed)]
            }
            Event::Finished { step } => {
                self.phase = WorkPhase::Finished;
                self.committed = step;
                vec![self.finished()]
            }
            Event::PeerLost { rank, error, damaged } => {
                let (job_id, epoch) = (self.job_id.clone(), self.epoch);
                self.halt(ToCoordinator::PeerLost(PeerLost { job_id, epoch, rank: rank as u32, error, damaged }))
            }
            Event::Unreached(missing) => {
                let (job_id, epoch) = (self.job_id.clone(), self.epoch);
                let peers = missing.into_iter().take(MAX_UNREACHED).map(|m| UnreachedPeer {
                    rank: m.rank as u32,
                    reason: format!("{} {}", m.address, m.problem),
                    called: m.called,
                });
                self.halt(ToCoordinator::Unreached(Unreached { job_id, epoch, peers: peers.collect() }))
            }
            Event::Failed { error, fatal, checkpoint, restore, corrupt_ranks } => {
                let (job_id, epoch) = (self.job_id.clone(), self.epoch);
                let corrupt_ranks = corrupt_ranks.into_iter().map(|rank| rank as u32).collect();
                let failed = Failed { job_id, epoch, error, fatal, restore, corrupt_ranks, ..Failed::default() };
                let failed = match checkpoint {
                    None => failed,
                    Some(BadCheckpoint { step, fault: ReadFault::Damaged }) => Failed { damaged_step: step, ..failed },
                    Some(BadCheckpoint { step, fault: ReadFault::Unreadable { manifest_read } }) => {
                        Failed { unreadable_step: step, manifest_read, ..failed }
                    }
                };
                self.halt(ToCoordinator::Failed(failed))
            }
        }
    }

    fn halt(&mut self, why: ToCoordinator) -> Vec<ToCoordinator> {
        self.phase = WorkPhase::Halted;
        self.halted = Some(why.clone());
        vec![why]
    }

    fn finished(&self) -> ToCoordinator {
        ToCoordinator::Finished(Finished {
            job_id: self.job_id.clone(),
            epoch: self.epoch,
            committed_step: self.committed,
        })
    }

    fn missed(&self) -> CheckpointMissed {
        CheckpointMissed { job_id: self.job_id.clone(), epoch: self.epoch, ..CheckpointMissed::default() }
    }

    fn published(&self, step: u64, bytes: u64, path: String, error: String) -> ToCoordinator {
        let (job_id, epoch) = (self.job_id.clone(), self.epoch);
        ToCoordinator::ManifestPublished(ManifestPublished { job_id, epoch, step, bytes, path, error })
    }

    /// What a coordinator that was away must hear again, in the order in which it happened.
    fn said_again(&self) -> Vec<ToCoordinator> {
        let mut again: Vec<ToCoordinator> = self.reports_again().collect();
        if self.phase == WorkPhase::Ready {
            again.extend(self.prepared.clone().map(ToCoordinator::Prepared));
        }
        again.extend(self.validations.values().cloned().map(ToCoordinator::Validation));
        again.extend(self.shards.values().cloned().map(ToCoordinator::ShardWritten));
        again.extend(self.removed.clone().map(ToCoordinator::StepsRemoved));
        if self.phase == WorkPhase::Finished {
            again.push(self.finished());
        }
        again.extend(self.halted.clone());
        again
    }
}

/// Parses what the coordinator decided for an epoch of `world` places.
fn heal_plan(heal: toroid_proto::Heal, world: usize) -> Result<HealPlan, String> {
    let origin = match &heal.origin {
        None => None,
        Some(origin) => {
            let shape = Shape::try_from(&origin.shape.unwrap_or_default())
                .map_err(|e| format!("cannot split the state anew as the coordinator says: {e}"))?;
            let ranks = origin.ranks.iter().map(|r| r.checked_sub(1).map(|r| r as usize)).collect();
            let origin = Origin { shape, ranks };
            if origin.ranks.len() != world || origin.ranks.iter().flatten().any(|r| *r >= shape.world()) {
                return Err(format!(
                    "cannot split the state anew as the coordinator says: expected ranks of {shape} for {world} places, found {:?}",
                    origin.ranks
                ));
            }
            Some(origin)
        }
    };
    Ok(HealPlan {
        step: heal.step,
        source: heal.source as usize,
        newcomers: heal.newcomers.into_iter().map(|r| r as usize).collect(),
        origin,
        recorded: heal.recorded_step,
    })
}

/// Parses an assignment; the error says what is wrong with it.
fn checked(assign: Assign) -> Result<Assignment, String> {
    let spec = checked_spec(&assign.job_json)?;
    let world = spec.shape.world();
    let peers: BTreeMap<usize, PeerAddr> = assign
        .peers
        .into_iter()
        .map(|p| (p.rank as usize, PeerAddr { worker_id: p.worker_id, address: p.data_address }))
        .collect();
    if peers.len() != world || peers.keys().last() != Some(&(world - 1)) || assign.rank as usize >= world {
        return Err(format!(
            "cannot take rank {} of {}: expected the addresses of {world} places, found {}",
            assign.rank,
            assign.job_id,
            peers.len()
        ));
    }
    let link_key = assign.link_key.as_slice().try_into().map_err(|_| {
        format!("cannot use the link key of {}: expected 32 bytes, found {}", assign.job_id, assign.link_key.len())
    })?;
    let owner_id = OwnerId::try_from(assign.owner_id.as_slice()).map_err(|e| {
        format!("cannot tell whose the checkpoint folder of {} is: {e}; are both of one version?", assign.job_id)
    })?;
    Ok(Assignment {
        owner: Owner::new(owner_id, &assign.job_id, &spec.name, assign.submitted_unix_ms),
        claim: if assign.begun_without_owner { Claim::Begun } else { Claim::New },
        job_id: assign.job_id,
        epoch: assign.epoch,
        rank: assign.rank as usize,
        spec: Arc::new(spec),
        peers,
        link_key,
        checkpoint_root: assign.checkpoint_root,
        heal: assign.heal,
        restore_step: (assign.restore_step > 0).then_some(assign.restore_step),
    })
}

fn checked_spec(json: &str) -> Result<JobSpec, String> {
    let spec: JobSpec = serde_json::from_str(json)
        .map_err(|e| format!("cannot read the job that the coordinator sent: {e}; are both of one version?"))?;
    spec.check().map_err(|e| format!("cannot run the job that the coordinator sent: {e}"))?;
    Ok(spec)
}

fn warm_up(ahead: proto::WarmUp) -> Result<WarmUp, WarmedUp> {
    let proto::WarmUp { job_id, rank, number, checkpoint_root, checkpoint_step, .. } = ahead;
    let refuse = |error| WarmedUp { job_id: job_id.clone(), number, error, ..WarmedUp::default() };
    let spec = checked_spec(&ahead.job_json).map_err(refuse)?;
    let (rank, world) = (rank as usize, spec.shape.world());
    if rank >= world {
        return Err(refuse(format!("cannot get ready for rank {rank} of {job_id}: it has {world} places")));
    }
    let checkpoint_step = (checkpoint_step > 0).then_some(checkpoint_step);
    Ok(WarmUp { job_id, spec: Arc::new(spec), rank, checkpoint_root, number, checkpoint_step })
}

fn knock(probe: &proto::Probe) -> Result<Knock, String> {
    let found = probe.key.len();
    let key = probe.key.as_slice().try_into();
    let key = key.map_err(|_| format!("was not dialled: expected a key of 32 bytes, found {found}"))?;
    let peer = PeerAddr { worker_id: probe.worker_id.clone(), address: probe.data_address.clone() };
    Ok(Knock { number: probe.number, peer, key })
}

#[cfg(test)]
mod tests;
