//! What a worker's trainer and its other threads see of each other: checkpoints that were asked for, and where the trainer is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use toroid_session::AfterCheckpoint;
use toroid_torus::ids::{Rank, Step};

#[cfg(any(test, feature = "failpoint"))]
use super::failpoint::Failpoints;
use super::observe::Observer;
use crate::checkpoint::Written;
use crate::comm::{LinkKind, WaitsFor};
use crate::spans::Spans;
use crate::sync::lock;
use crate::system;
use crate::trace::Trace;

/// What the trainer does while it reads data and makes or loads its state; the coordinator knows this word and the next.
pub(super) const PREPARE: &str = "prepare";
/// Another process of this host makes the token file that it needs.
pub(super) const WAIT_FOR_TOKENS: &str = "wait for token file";

/// What both threads see: checkpoints asked for, and where the trainer is.
#[derive(Default)]
pub struct Shared {
    requests: Mutex<Requests>,
    committed: AtomicU64,
    /// The coordinator has the records up to here, as rank 0 knows it.
    recorded: AtomicU64,
    operation: Mutex<&'static str>,
    waits_for: Mutex<Option<WaitsFor>>,
    /// Of the present epoch.
    links: Mutex<BTreeMap<LinkKind, usize>>,
    progress: AtomicU64,
    #[cfg(any(test, feature = "failpoint"))]
    pub(super) failpoints: Failpoints,
    /// The step whose gradients this place holds, not yet committed; 0: none.
    sealed: AtomicU64,
    computed: Mutex<Computed>,
    /// The coordinator is not heard.
    is_cut_off: AtomicBool,
    /// How long the links of an epoch may take to be up, in milliseconds; 0: the coordinator has not said it yet.
    connect_limit_ms: AtomicU64,
    /// After which silence the coordinator takes a worker for lost, in milliseconds; 0: it has not said it yet.
    failure_timeout_ms: AtomicU64,
    /// The shard that is being written.
    saving: Mutex<Option<Arc<Saving>>>,
    trace: Option<Trace>,
    spans: Spans,
    observer: Option<Box<dyn Observer>>,
}

/// Time that the trainer computed in the steps that it has made, all since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Computed {
    pub num_steps: u64,
    /// Without what it waited for others.
    pub time: Duration,
}

/// A shard that is being written.
#[derive(Debug)]
pub struct Saving {
    pub step: Step,
    pub since: Instant,
    pub written: Written,
}

/// Checkpoints that were asked for, and how far steps may go.
#[derive(Debug, Default)]
struct Requests {
    /// Steps to be saved.
    steps: BTreeSet<Step>,
    /// No step is made beyond this one: its state is to be the last.
    halt_at: Option<Step>,
    /// The step after the committed one is being made.
    is_stepping: bool,
}

/// How a request for a checkpoint stands to the committed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// The trainer writes it right after that commit.
    Ahead,
    /// This very step was just committed: the trainer must be told with [`Command::Checkpoint`](toroid_session::Command::Checkpoint).
    Now,
    TooLate {
        committed: Step,
    },
}

impl Shared {
    /// For one worker process.
    pub fn of_process(trace: Option<Trace>, spans: Spans) -> Shared {
        Shared {
            #[cfg(any(test, feature = "failpoint"))]
            failpoints: Failpoints::from_environment(),
            trace,
            spans,
            ..Shared::default()
        }
    }

    /// For one whose trainer is observed.
    pub fn observed(observer: Box<dyn Observer>) -> Shared {
        Shared { observer: Some(observer), ..Shared::default() }
    }

    pub(super) fn observer(&self) -> Option<&dyn Observer> {
        self.observer.as_deref()
    }

    /// With this work behind it, and with this step sealed.
    #[cfg(test)]
    pub fn that_has_worked(num_steps: u64, time: Duration, sealed: Step) -> Shared {
        let shared = Shared { computed: Mutex::new(Computed { num_steps, time }), ..Shared::default() };
        shared.set_sealed(sealed);
        shared
    }

    #[cfg(test)]
    pub(super) fn that_fails(failpoints: Failpoints) -> Shared {
        Shared { failpoints, ..Shared::default() }
    }

    /// Asks for a checkpoint of `step`.
    pub fn request_checkpoint(&self, step: Step, then: AfterCheckpoint) -> Requested {
        let mut requests = lock(&self.requests);
        let committed = self.committed();
        // Whoever is past it cannot halt at it any more, and those who do would be waited for.
        let is_past = then == AfterCheckpoint::Halt && requests.is_stepping && step == committed;
        if step < committed || is_past {
            return Requested::TooLate { committed };
        }
        if then == AfterCheckpoint::Halt {
            requests.halt_at = requests.halt_at.max(Some(step));
        }
        if step == committed {
            return Requested::Now;
        }
        requests.steps.insert(step);
        Requested::Ahead
    }

    /// Takes back what was asked for. Whoever halts at that step goes on to do so.
    pub fn withdraw_checkpoint(&self, step: Step) {
        lock(&self.requests).steps.remove(&step);
    }

    /// Whether the step after `committed` may be made; then it is being made until it is committed.
    pub(super) fn begin_step(&self, committed: Step) -> bool {
        let mut requests = lock(&self.requests);
        requests.is_stepping = requests.halt_at.is_none_or(|step| step > committed);
        requests.is_stepping
    }

    /// Marks `step` as committed and says whether a checkpoint of it was asked for.
    pub(super) fn commit(&self, step: Step) -> bool {
        let mut requests = lock(&self.requests);
        requests.is_stepping = false;
        self.committed.store(step.get(), Ordering::SeqCst);
        if let Some(trace) = &self.trace {
            trace.commit(step.get());
        }
        self.spans.commit(step);
        let wanted = requests.steps.contains(&step);
        requests.steps = requests.steps.split_off(&step.next());
        wanted
    }

    pub(super) fn reset(&self, committed: Step) {
        *lock(&self.requests) = Requests::default();
        self.committed.store(committed.get(), Ordering::SeqCst);
        self.set_sealed(Step::ZERO);
        self.recorded.store(0, Ordering::SeqCst);
    }

    pub fn committed(&self) -> Step {
        Step::new(self.committed.load(Ordering::SeqCst))
    }

    /// This place holds all that is needed to apply `step`; 0: of no step.
    pub(super) fn set_sealed(&self, step: Step) {
        self.sealed.store(step.get(), Ordering::SeqCst);
    }

    /// Whether this place holds all that is needed to apply the step after `committed`.
    pub fn has_sealed_after(&self, committed: Step) -> bool {
        Step::new(self.sealed.load(Ordering::SeqCst)) == committed.next()
    }

    pub fn computed(&self) -> Computed {
        *lock(&self.computed)
    }

    /// A step is made, in which the trainer computed for this long.
    pub(super) fn computed_step(&self, time: Duration) {
        let mut computed = lock(&self.computed);
        computed.num_steps += 1;
        computed.time += time;
    }

    /// The coordinator has the records up to `step` on disk.
    pub fn set_recorded(&self, step: Step) {
        self.recorded.fetch_max(step.get(), Ordering::SeqCst);
    }

    pub(super) fn recorded(&self) -> Step {
        Step::new(self.recorded.load(Ordering::SeqCst))
    }

    /// Whether the control stream lives. Without it a place may have been given to another.
    pub fn set_connected(&self, is_connected: bool) {
        self.is_cut_off.store(!is_connected, Ordering::SeqCst);
    }

    pub fn set_connect_limit(&self, limit_ms: u32) {
        self.connect_limit_ms.store(u64::from(limit_ms), Ordering::Relaxed);
    }

    pub fn set_failure_timeout(&self, timeout_ms: u32) {
        self.failure_timeout_ms.store(u64::from(timeout_ms), Ordering::Relaxed);
    }

    pub fn failure_timeout(&self) -> Option<Duration> {
        let ms = self.failure_timeout_ms.load(Ordering::Relaxed);
        (ms > 0).then_some(Duration::from_millis(ms))
    }

    pub(super) fn connect_limit(&self) -> Option<Duration> {
        let ms = self.connect_limit_ms.load(Ordering::Relaxed);
        (ms > 0).then_some(Duration::from_millis(ms))
    }

    pub(super) fn is_connected(&self) -> bool {
        !self.is_cut_off.load(Ordering::SeqCst)
    }

    pub fn operation(&self) -> &'static str {
        *lock(&self.operation)
    }

    /// Grows while the trainer gets on with one long operation.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    pub(super) fn advance(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_waits_for(&self, waits_for: WaitsFor) {
        *lock(&self.waits_for) = Some(waits_for);
    }

    /// What this place tells of itself for traces.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    pub(super) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// Ranks that the trainer waits for now.
    pub fn waits_for(&self) -> Vec<Rank> {
        let ranks = lock(&self.waits_for).as_ref().map(WaitsFor::ranks).unwrap_or_default();
        ranks.into_iter().map(Rank::new).collect()
    }

    /// How many links of each kind the place has.
    pub fn set_links(&self, kinds: BTreeMap<LinkKind, usize>) {
        *lock(&self.links) = kinds;
    }

    pub fn saving(&self) -> Option<Arc<Saving>> {
        lock(&self.saving).clone()
    }

    /// The shard of this step is being written from now on.
    pub(super) fn begin_saving(&self, step: Step) -> Arc<Saving> {
        let saving = Arc::new(Saving { step, since: system::now(), written: Written::default() });
        *lock(&self.saving) = Some(Arc::clone(&saving));
        saving
    }

    pub(super) fn end_saving(&self) {
        *lock(&self.saving) = None;
    }

    pub fn links(&self) -> BTreeMap<LinkKind, usize> {
        lock(&self.links).clone()
    }

    pub(super) fn enter(&self, operation: &'static str) {
        *lock(&self.operation) = operation;
        if let Some(trace) = &self.trace {
            trace.enter(operation);
        }
        self.spans.enter(operation, self.committed().next());
        self.pass(operation, self.committed().next());
    }

    /// A test may want this process dead or stopped here.
    pub(super) fn pass(&self, point: &str, step: Step) {
        #[cfg(any(test, feature = "failpoint"))]
        self.failpoints.pass(point, step.get());
        system::pass(point, step.get());
    }
}
