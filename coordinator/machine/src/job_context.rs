//! What every part of a job may look at, and the context in which a part acts.
//!
//! ```text
//!   Job ── owns ──> Core { record, epoch, curve, deadlines }      read by all parts, changed by Job
//!     └─── owns ──> parts: Checkpoints, Incidents, Hangs, ...     each owns its fields
//!                     │ acts through
//!                     └──> JobContext<Part>: reads the core; changes the part's own section of the record;
//!                                            says events, sends to ranks, sets deadlines
//! ```
//!
//! - The record cannot be changed without being stored and told ([`Kept::edit`]), but where that is said to be left for later
//!   ([`Kept::edit_later`]).
//! - A part can change its own [`Section`] of the record only.

use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use super::api::{Output, Reply, RequestError, RequestId};
use super::clock::Now;
use super::context::{Context, Outbox};
use super::curve::Curve;
use super::deadlines::Deadlines;
use super::epoch::EpochState;
use super::limits::Limits;
use super::pool::Pool;
use super::record::{Event, JobRecord};
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::ids::{Rank, Step, WorkerId};

/// A job's record. Whoever changes it has it stored, and watchers told.
#[derive(Debug)]
pub(crate) struct Kept {
    record: JobRecord,
}

impl Deref for Kept {
    type Target = JobRecord;

    fn deref(&self) -> &JobRecord {
        &self.record
    }
}

impl Kept {
    pub fn new(record: JobRecord) -> Kept {
        Kept { record }
    }

    pub fn edit(&mut self, out: &mut Outbox) -> &mut JobRecord {
        out.changed(&self.record.id);
        &mut self.record
    }

    /// For what is stored with the next change, since a coordinator that is started again finds it out from the workers or loses little by it.
    pub fn edit_later(&mut self) -> &mut JobRecord {
        &mut self.record
    }

    pub fn into_record(self) -> JobRecord {
        self.record
    }
}

/// What all parts of a job read.
#[derive(Debug)]
pub(crate) struct Core {
    pub record: Kept,
    pub epoch: EpochState,
    pub curve: Curve,
    pub deadlines: Deadlines,
}

impl Core {
    pub fn world(&self) -> usize {
        self.record.shape.world()
    }

    pub fn total(&self) -> Step {
        Step::new(self.record.spec.steps)
    }

    /// Highest step known to be committed in this epoch (T-2: ranks are at most one apart).
    pub fn committed(&self) -> Step {
        let known = self.epoch.committed().max(self.curve.progress().last_step());
        known.max(self.epoch.base_step()).max(self.record.restore_step)
    }

    pub fn has_all_places(&self) -> bool {
        self.record.places.num_empty() == 0
    }

    /// Trains with all places filled and connected.
    pub fn is_whole(&self) -> bool {
        self.epoch.is_started() && self.epoch.awaited().is_empty() && self.has_all_places()
    }

    /// The state is kept twice, as long as there are two places.
    pub fn is_redundant(&self) -> bool {
        self.record.spec.fault_tolerance.redundancy && self.record.spec.shape.world() > 1
    }

    /// There are fewer replicas than the job file asks for.
    pub fn is_degraded(&self) -> bool {
        self.record.shape.dp() < self.record.spec.shape.dp()
    }

    /// The next epoch can have its state from the places.
    pub fn can_heal(&self) -> bool {
        self.record.has_state && self.is_redundant() && !failpoint!(AlwaysRestore)
    }

    pub fn describe(&self, rank: Rank) -> String {
        format!("{} (rank {rank})", self.record.worker_at(rank).map_or("nobody", WorkerId::as_str))
    }

    pub fn event(&mut self, cx: &mut Context<'_>, kind: &str, text: impl Into<String>) {
        self.worker_event(cx, kind, text, "");
    }

    pub fn worker_event(&mut self, cx: &mut Context<'_>, kind: &str, text: impl Into<String>, worker: &str) {
        let event = Event {
            unix_ms: cx.now.unix_ms,
            kind: kind.into(),
            text: text.into(),
            step: self.committed(),
            epoch: self.record.epoch,
            worker: worker.into(),
        };
        self.record.edit(cx.out).push_event(event.clone());
        cx.out.effects.push(Output::Event { job: self.record.id.clone(), event });
    }

    pub fn send(&self, cx: &mut Context<'_>, rank: Rank, body: Body) {
        let worker = self.record.worker_at(rank).and_then(|w| cx.pool.get(w));
        if let Some(worker) = worker {
            cx.out.send(worker.stream, body);
        }
    }

    pub fn send_all(&self, cx: &mut Context<'_>, body: &Body) {
        for rank in Rank::all(self.record.places.len()) {
            self.send(cx, rank, body.clone());
        }
    }

    /// The context of a part of the job.
    pub fn context<'a, 'b, S: Section>(&'a mut self, cx: &'a mut Context<'b>) -> JobContext<'a, 'b, S> {
        JobContext { core: self, cx, section: PhantomData }
    }
}

/// What of a job's record belongs to a part of the job.
pub(crate) trait Section {
    type Fields<'a>;

    fn fields(record: &mut JobRecord) -> Self::Fields<'_>;
}

/// What a part of a job may do beyond its own fields. It reads the core as if this were it.
pub(crate) struct JobContext<'a, 'b, S> {
    core: &'a mut Core,
    cx: &'a mut Context<'b>,
    section: PhantomData<S>,
}

impl<S> Deref for JobContext<'_, '_, S> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core
    }
}

impl<S: Section> JobContext<'_, '_, S> {
    /// By the monotonic clock.
    pub fn now(&self) -> Duration {
        self.cx.now.monotonic
    }

    pub fn moment(&self) -> Now {
        self.cx.now
    }

    pub fn limits(&self) -> Limits {
        self.cx.config.limits
    }

    pub fn pool(&self) -> &Pool {
        self.cx.pool
    }

    /// The part's own section of the record; it is stored, and watchers are told.
    pub fn edit(&mut self) -> S::Fields<'_> {
        S::fields(self.core.record.edit(self.cx.out))
    }

    /// The same, stored with the next change.
    pub fn edit_later(&mut self) -> S::Fields<'_> {
        S::fields(self.core.record.edit_later())
    }

    pub fn deadlines(&mut self) -> &mut Deadlines {
        &mut self.core.deadlines
    }

    pub fn event(&mut self, kind: &str, text: impl Into<String>) {
        self.core.event(self.cx, kind, text);
    }

    pub fn worker_event(&mut self, kind: &str, text: impl Into<String>, worker: &str) {
        self.core.worker_event(self.cx, kind, text, worker);
    }

    pub fn send(&mut self, rank: Rank, body: Body) {
        self.core.send(self.cx, rank, body);
    }

    pub fn send_all(&mut self, body: &Body) {
        self.core.send_all(self.cx, body);
    }

    pub fn reply(&mut self, request: RequestId, reply: Result<Reply, RequestError>) {
        self.cx.out.reply(request, reply);
    }

    /// An incident of the job is to be stored.
    pub fn store_incident(&mut self, number: u64) {
        let job = self.core.record.id.clone();
        self.cx.out.changed(&job);
        self.cx.out.dirty_incidents.insert((job, number));
    }

    /// A page of the job's validations is to be stored, or dropped where it is not there any more.
    pub fn store_validations(&mut self, page: u64) {
        let job = self.core.record.id.clone();
        self.cx.out.dirty_validations.insert((job, page));
    }

    /// The worker has to show again that it can fill a place.
    pub fn forget_proof(&mut self, worker: &str) {
        self.cx.pool.forget_proof(worker);
    }

    /// Places may have to be filled: it is looked at when all of the input is known.
    pub fn unsettle(&mut self) {
        self.cx.out.unsettled = true;
    }
}
