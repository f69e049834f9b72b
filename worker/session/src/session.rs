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

use toroid_proto as proto;
use toroid_proto::coordinator_message::Body as FromCoordinator;
use toroid_proto::worker_message::Body as ToCoordinator;
use toroid_proto::{Assign, Failed, PublishManifest, RefusalKind, Stopped, WarmedUp, Welcome};
use toroid_torus::failpoint;
use toroid_torus::geometry::Shape;
use toroid_torus::ids::{Epoch, JobId, Rank, Step, Term};
use toroid_torus::manifest::ShardFile;
use toroid_torus::owner::OwnerId;

use crate::parse;
use crate::work::{Work, WorkPhase};
use crate::{Action, AfterCheckpoint, Command, Event, Knock, TrainerEvent};

/// What the session hears.
#[derive(Debug)]
pub enum Input {
    FromCoordinator(FromCoordinator),
    Trainer(TrainerEvent),
    /// A checkpoint was asked for, but this step was committed already.
    CheckpointTooLate {
        epoch: Epoch,
        step: Step,
        committed: Step,
    },
}

/// What the session wants done.
#[derive(Debug)]
pub enum Output {
    Send(ToCoordinator),
    Act(Action),
    /// Another worker is to be dialled, and answered; what came of it goes to the coordinator as `Probed`.
    Probe(Knock),
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

/// What Register and Heartbeat say about this worker's work.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Standing {
    pub job_id: JobId,
    pub epoch: Epoch,
    pub rank: Rank,
    pub committed_step: Step,
    /// Of the job.
    pub owner: Option<OwnerId>,
    /// Of the job in this epoch.
    pub shape: Option<Shape>,
    /// What the worker's client adds: whose terms it counts, and the greatest that it has heard.
    pub store: Vec<u8>,
    pub term: Term,
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
            rank: w.rank,
            committed_step: w.committed,
            owner: Some(w.owner),
            shape: Some(w.spec.shape),
            ..Standing::default()
        })
    }

    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::FromCoordinator(message) => self.heard(message),
            Input::Trainer(event) => self.reported(event),
            Input::CheckpointTooLate { epoch, step, committed } => match &self.work {
                Some(work) if work.epoch == epoch => {
                    vec![Output::Send(work.missed(step, committed, String::new()))]
                }
                _ => Vec::new(),
            },
        }
    }

    fn heard(&mut self, message: FromCoordinator) -> Vec<Output> {
        match message {
            FromCoordinator::Welcome(welcome) => self.welcome(&welcome),
            FromCoordinator::Refused(refused) => match refused.kind() {
                RefusalKind::IdInUse => vec![Output::IdInUse { reason: refused.reason }],
                RefusalKind::Unspecified => vec![Output::Refused { reason: refused.reason }],
                // The client has seen to it.
                RefusalKind::Apart => Vec::new(),
            },
            FromCoordinator::Assign(assign) => self.assign(assign),
            FromCoordinator::WarmUp(ahead) if self.work.is_none() => match parse::warm_up(ahead) {
                Ok(ahead) => vec![Output::Act(Action::Trainer(Command::WarmUp(Box::new(ahead))))],
                Err(refusal) => vec![Output::Send(ToCoordinator::WarmedUp(refusal))],
            },
            // The client has seen to the latter.
            FromCoordinator::WarmUp(_) | FromCoordinator::Kill(_) => Vec::new(),
            FromCoordinator::Probe(probe) => match parse::knock(&probe) {
                Ok(knock) => vec![Output::Probe(knock)],
                Err(error) => vec![Output::Send(ToCoordinator::Probed(proto::Probed { number: probe.number, error }))],
            },
            FromCoordinator::Stop(stop) => self.stop(&stop.job_id, Epoch::new(stop.epoch), &stop.reason),
            FromCoordinator::Start(start) => match self.current(&start.job_id, Epoch::new(start.epoch)) {
                Some(work) if work.phase == WorkPhase::Ready => {
                    let epoch = Epoch::new(start.epoch);
                    work.phase = WorkPhase::Training;
                    if let Some(heal) = &start.heal {
                        work.reports.acknowledged(Step::new(heal.recorded_step));
                        work.reports.forget_after(Step::new(heal.step));
                    }
                    match start.heal.map(|heal| parse::heal_plan(heal, work.world)).transpose() {
                        Ok(heal) => vec![Output::Act(Action::Trainer(Command::Start { epoch, heal }))],
                        Err(error) => {
                            let (fatal, checkpoint, restore, corrupt_ranks) = (true, None, false, Vec::new());
                            let failed = Event::Failed { error, fatal, checkpoint, restore, corrupt_ranks };
                            work.report(failed).into_iter().map(Output::Send).collect()
                        }
                    }
                }
                _ => Vec::new(),
            },
            FromCoordinator::CheckpointAt(at) => match self.current(&at.job_id, Epoch::new(at.epoch)) {
                Some(_) => {
                    let (epoch, step) = (Epoch::new(at.epoch), Step::new(at.step));
                    let then = if at.halt { AfterCheckpoint::Halt } else { AfterCheckpoint::GoOn };
                    vec![Output::Act(Action::RequestCheckpoint { epoch, step, then })]
                }
                None => Vec::new(),
            },
            FromCoordinator::PublishManifest(publish) => self.publish(publish),
            FromCoordinator::DropCheckpoint(dropped) => {
                let (epoch, step) = (Epoch::new(dropped.epoch), Step::new(dropped.step));
                let Some(work) = self.current(&dropped.job_id, epoch) else { return Vec::new() };
                work.shards.remove(&step);
                vec![Output::Act(Action::DropCheckpoint { epoch, step })]
            }
            FromCoordinator::StepAck(ack) => {
                let Some(work) = self.work.as_mut().filter(|w| w.job_id == ack.job_id.as_str()) else {
                    return Vec::new();
                };
                let step = Step::new(ack.step);
                work.reports.acknowledged(step);
                vec![Output::Act(Action::Recorded { step })]
            }
            FromCoordinator::ReportSteps(asked) => {
                let (epoch, from) = (Epoch::new(asked.epoch), Step::new(asked.from_step));
                match self.current(&asked.job_id, epoch) {
                    // What this worker does not know any more its trainer may.
                    Some(work) if !work.reports.reaches_back_to(from) => {
                        vec![Output::Act(Action::Trainer(Command::Report { epoch, from }))]
                    }
                    Some(work) => work.reports_again().map(Output::Send).collect(),
                    None => Vec::new(),
                }
            }
        }
    }

    /// T-1: what carries another job or another epoch is not for us.
    fn current(&mut self, job_id: &str, epoch: Epoch) -> Option<&mut Work> {
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
        let (job_id, epoch) = (JobId::from(assign.job_id.as_str()), Epoch::new(assign.epoch));
        if self.work.as_ref().is_some_and(|w| w.job_id == job_id && w.epoch >= epoch) {
            return Vec::new();
        }
        let assignment = match parse::assignment(assign, self.work.as_ref()) {
            Ok(assignment) => assignment,
            Err(error) => {
                let (job_id, epoch) = (job_id.into(), epoch.get());
                let failed = Failed { job_id, epoch, error, fatal: true, ..Failed::default() };
                return vec![Output::Send(ToCoordinator::Failed(failed))];
            }
        };
        let before = self.work.take().filter(|w| w.job_id == job_id);
        self.work = Some(Work::new(&assignment, before));
        let fence = (!failpoint!(DoNotFence)).then_some(Output::Act(Action::Fence { epoch }));
        fence.into_iter().chain([Output::Act(Action::Prepare(Box::new(assignment)))]).collect()
    }

    fn stop(&mut self, job_id: &str, epoch: Epoch, reason: &str) -> Vec<Output> {
        // A stop of a newer epoch than ours ends ours too.
        let Some(work) = self.work.as_ref().filter(|w| w.job_id == job_id && w.epoch <= epoch) else {
            return Vec::new();
        };
        let mut out = vec![Output::Note(format!("rank {} of {job_id} stops: {reason}", work.rank))];
        out.extend(self.drop_work(epoch));
        let (job_id, epoch) = (job_id.to_string(), epoch.get());
        out.push(Output::Send(ToCoordinator::Stopped(Stopped { job_id, epoch })));
        out
    }

    fn drop_work(&mut self, epoch: Epoch) -> Vec<Output> {
        self.work = None;
        vec![Output::Act(Action::Fence { epoch: epoch.next() }), Output::Act(Action::Trainer(Command::Drop { epoch }))]
    }

    fn publish(&mut self, publish: PublishManifest) -> Vec<Output> {
        let (epoch, step) = (Epoch::new(publish.epoch), Step::new(publish.step));
        let Some(work) = self.current(&publish.job_id, epoch) else { return Vec::new() };
        let files: Result<Vec<ShardFile>, _> = publish.files_json.iter().map(|f| serde_json::from_str(f)).collect();
        match files {
            Ok(files) => vec![Output::Act(Action::Trainer(Command::Publish {
                epoch,
                step,
                files,
                remove: publish.remove_steps.into_iter().map(Step::new).collect(),
            }))],
            Err(error) => {
                let error = format!("cannot read the list of shards that the coordinator sent: {error}");
                vec![Output::Send(work.published(step, 0, String::new(), error))]
            }
        }
    }

    fn reported(&mut self, event: TrainerEvent) -> Vec<Output> {
        let TrainerEvent { job_id, epoch, event } = event;
        if let Event::WarmedUp { number, error, data_digest, unseen } = event {
            let (data_digest, unseen) = (data_digest.to_vec(), unseen.unwrap_or_default());
            let warmed_up =
                WarmedUp { job_id: job_id.into(), number, error: error.unwrap_or_default(), data_digest, unseen };
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
