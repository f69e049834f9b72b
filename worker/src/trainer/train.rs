//! A place in an epoch: it connects, heals, and makes steps until the job is finished, the epoch is over or a peer is lost.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use toroid_proto::StepRecord;
use toroid_session::{Command, Event, HealPlan};
use toroid_torus::ids::{Epoch, Rank, Step};

use super::emit::{Emit, EventOf};
use super::environment::Environment;
use super::error::StepError;
use super::job::Job;
use super::observe::Deed;
use super::orders::{Inbox, Order};
use super::save::ToPublish;
use super::shared::Shared;
use super::{memory, resplit};
use crate::comm::nccl::{self, agree};
use crate::comm::{CommError, LinkPlan, Links, peers_of};
use crate::device::CachedAttention;

/// Whoever halts looks this often whether it may go on.
const HALT_LOOK: Duration = Duration::from_millis(10);

/// Connects, heals where the epoch asks for it, and makes steps until the job is finished, its epoch is over or a peer is lost.
pub(super) fn train<D: CachedAttention>(
    job: &mut Job<D>,
    heal: Option<&HealPlan>,
    environment: &Environment,
    inbox: &mut Inbox,
    emit: &Emit,
) {
    let events = EventOf::new(&job.assignment, emit);
    let report = |event| events.emit(event);
    // T-10: before the first step. By now all have data and weights, so a job that cannot begin leaves no record behind.
    if let Err(error) = job.checkpoints.own_folder(&job.assignment) {
        let (fatal, error) = (job.is_refused_by(&error), error.to_string());
        report(Event::Failed { error, fatal, checkpoint: None, restore: false, corrupt_ranks: Vec::new() });
        return environment.shared.enter("idle");
    }
    let mut links = job.links.take();
    let outcome = connect(job, heal, &mut links, environment).map_err(StepError::from).and_then(|()| {
        let links = links.as_mut().expect("connected above");
        report(Event::Connected);
        job.steps(links, heal, &environment.shared, inbox, emit)
    });
    if let Some(comm) = job.passes.device().comm() {
        comm.end();
    }
    // Connections to those who stay are kept for the next epoch.
    job.links = links;
    match outcome {
        Ok(()) => report(Event::Finished { step: job.committed }),
        Err(StepError::Comm(CommError::Fenced { .. })) | Err(StepError::Corrupt { seen: None, .. }) => {}
        Err(StepError::Comm(error @ (CommError::PeerLost { rank, .. } | CommError::Refused { rank, .. }))) => {
            report(Event::PeerLost { rank: Rank::new(rank), error: error.to_string(), damaged: false });
        }
        Err(StepError::Comm(error @ CommError::Corrupt { rank, .. })) => {
            report(Event::PeerLost { rank: Rank::new(rank), error: error.to_string(), damaged: true });
        }
        Err(StepError::Comm(CommError::Timeout { missing, .. })) => report(Event::Unreached(missing)),
        Err(error) => {
            let (restore, corrupt_ranks) = match &error {
                StepError::Corrupt { wrong, .. } => (wrong.is_empty(), wrong.iter().copied().map(Rank::new).collect()),
                StepError::Comm(_) | StepError::Data(_) | StepError::Weights(_) => (false, Vec::new()),
            };
            let fatal = matches!(error, StepError::Comm(CommError::Collectives(_)));
            let error = error.to_string();
            report(Event::Failed { error, fatal, checkpoint: None, restore, corrupt_ranks });
        }
    }
    environment.shared.enter("idle");
}

/// Makes the links that the epoch needs, and where there are GPUs their communicators.
pub(super) fn connect<D: CachedAttention>(
    job: &Job<D>,
    heal: Option<&HealPlan>,
    links: &mut Option<Links>,
    environment: &Environment,
) -> Result<(), CommError> {
    environment.shared.enter("connect");
    let assignment = &job.assignment;
    let rank = assignment.rank.index();
    let mut needed = peers_of(&assignment.spec.shape, rank);
    if let Some(origin) = heal.and_then(|h| h.origin.as_ref()) {
        needed.extend(resplit::peers(assignment, origin));
    }
    let peers = assignment.peers.iter().map(|(rank, peer)| (rank.index(), peer));
    let plan = LinkPlan {
        job_id: assignment.job_id.clone(),
        epoch: assignment.epoch,
        rank,
        key: assignment.link_key,
        peers: peers.filter(|(rank, _)| needed.contains(rank)).map(|(rank, peer)| (rank, peer.clone())).collect(),
    };
    let timeout = environment.shared.connect_limit().unwrap_or(environment.connect_timeout);
    let links = links.get_or_insert_with(|| Links::none(&job.fence));
    links.keep_at_most(memory::of_a_link(&assignment.spec, rank));
    environment.shared.set_waits_for(links.waits_for());
    links.advance(&environment.listener, plan, &job.fence, timeout)?;
    environment.shared.set_links(links.kinds());
    let comm = job.passes.device().comm();
    if let (Some(agreed), Some(comm)) = (agree(links, &assignment.spec.shape, comm)?, comm) {
        let (number, fence) = (assignment.epoch, job.fence.clone());
        comm.begin(agreed, nccl::Epoch { number, fence, waits_for: links.waits_for() })?;
    }
    if let Some(trace) = environment.shared.trace() {
        trace.begin(rank);
        links.set_trace(trace.clone());
    }
    Ok(())
}

impl<D: CachedAttention> Job<D> {
    fn steps(
        &mut self,
        links: &mut Links,
        heal: Option<&HealPlan>,
        shared: &Arc<Shared>,
        inbox: &mut Inbox,
        emit: &Emit,
    ) -> Result<(), StepError> {
        let last = Step::new(self.assignment.spec.steps);
        if let Some(plan) = heal {
            self.heal(links, shared, plan, emit)?;
        }
        self.passes.start_gather(links, shared, self.shards.own())?;
        self.validate_if_due(links, shared, emit)?;
        self.curve.restart_clock(links.stats());
        while self.committed < last {
            self.serve(inbox, shared, emit)?;
            while !shared.begin_step(self.committed) {
                shared.enter("halt");
                inbox.wait_for(HALT_LOOK);
                self.serve(inbox, shared, emit)?;
            }
            let record = self.step(links, shared)?;
            self.show(shared, self.committed, Deed::Committed);
            self.show_state(shared);
            self.committed(record, shared, emit);
            self.passes.start_gather(links, shared, self.shards.own())?;
            if self.validate_if_due(links, shared, emit)? {
                self.curve.restart_clock(links.stats());
            }
        }
        // What others still wait for goes out before this place stops to call.
        self.passes.finish_gather(links)?;
        if let Some(comm) = self.passes.device().comm() {
            comm.settle()?;
        }
        Ok(links.flush()?)
    }

    /// Says that a step is committed, and saves it where that was asked for.
    fn committed(&mut self, record: Option<StepRecord>, shared: &Shared, emit: &Emit) {
        let step = self.committed;
        let checkpoint = shared.commit(step);
        let record = record.map(Box::new);
        emit(self.assignment.event(Event::Committed { step, record }));
        if checkpoint {
            self.write_checkpoint(emit);
            shared.enter("checkpoint");
        }
    }

    /// Validates before the first step, after the last and at the interval; says whether it did.
    fn validate_if_due(&mut self, links: &mut Links, shared: &Shared, emit: &Emit) -> Result<bool, CommError> {
        let is_due = self.curve.is_validation_due(&self.assignment.spec, self.committed);
        if is_due {
            self.validate(links, shared, emit)?;
            self.curve.set_validated(self.committed);
        }
        Ok(is_due)
    }

    /// Does what the session asks for between two steps.
    fn serve(&mut self, inbox: &mut Inbox, shared: &Arc<Shared>, emit: &Emit) -> Result<(), CommError> {
        let epoch = self.assignment.epoch;
        self.fence.check(epoch)?;
        loop {
            match inbox.try_next() {
                Ok(Order::Command(Command::Publish { epoch: e, step, files, remove })) if e == epoch => {
                    self.publish(ToPublish { step, files, remove }, shared, emit);
                }
                Ok(Order::Command(Command::Checkpoint { epoch: e, step })) if e == epoch => {
                    self.write_checkpoint_of(step, emit)
                }
                Ok(Order::Command(Command::DropShard { epoch: e, step })) if e == epoch => {
                    self.checkpoints.drop_shard(&self.assignment, step);
                }
                Ok(Order::Command(Command::Report { epoch: e, from })) if e == epoch => self.report_since(from, emit),
                Ok(Order::Command(
                    Command::Publish { .. }
                    | Command::Checkpoint { .. }
                    | Command::DropShard { .. }
                    | Command::Report { .. }
                    | Command::Start { .. }
                    | Command::WarmUp(_),
                )) => {}
                Ok(later @ (Order::Prepare(..) | Order::Command(Command::Drop { .. }))) => {
                    inbox.put_back(later);
                    return Err(CommError::Fenced { epoch, raised: self.fence.epoch() });
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(CommError::Fenced { epoch, raised: Epoch::LAST }),
            }
        }
    }
}
