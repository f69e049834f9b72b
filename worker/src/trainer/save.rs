//! Checkpoints beside the steps: threads of a place that write, publish and remove them.
//!
//! ```text
//!   trainer thread ── orders ──> checkpoint-writer      this place's shards, and those that are to be dropped again
//!                  '─ orders ──> checkpoint-publisher   rank 0: manifests, and the removal of older checkpoints
//!                                   '──> emit: what each order came to
//! ```
//!
//! Each thread does its orders one after the other, so a shard is dropped after it was written and written anew after it was dropped; a
//! manifest waits for nobody's disk but its own. An order whose code panics has failed at once, in words. Whether the place is still this
//! worker's is looked at when an order's turn comes, and again before each removal (T-1).
//!
//! Steps wait for a disk only where the shard before is still being written when the next is to be: there is memory for one that is
//! saved. After [`PATIENCE`] the next one has failed, so that no disk has a place taken for one that hangs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use toroid_session::{Assignment, Event, TrainerEvent};
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::{FORMAT, Manifest, ShardFile, Writer};

use super::prepare::Job;
use super::{Emit, Shared};
use crate::checkpoint::{Owned, ShardState};
use crate::comm::Fence;
use crate::device::Device;
use crate::system;

/// For so long, from when its thread began with it, an order may keep the trainer waiting: less than a place may stand still.
const PATIENCE: Duration = Duration::from_secs(2);
/// Whoever waits looks this often whether the epoch is over.
const LOOK: Duration = Duration::from_millis(20);

/// Orders that wait for a thread. A coordinator has few checkpoints in flight; beyond, an order has failed.
const MAX_ORDERS: usize = 64;

/// A coordinator that keeps to the protocol asks for nothing before.
const NOT_BEGUN: &str = "this place has not begun: whose the checkpoint folder is is looked at before the first step";

/// What a thread is to do. `run` emits what came of it, `failed` that it panicked or was not begun.
struct Order {
    run: Box<dyn FnOnce() + Send>,
    failed: Box<dyn FnOnce(String) + Send>,
}

/// A thread and the orders that wait for it; it is started by the first.
pub(super) struct Lane {
    name: &'static str,
    orders: Option<SyncSender<Order>>,
    open: Arc<Open>,
}

/// Orders that are not done.
struct Open {
    state: Mutex<OpenState>,
    changed: Condvar,
}

struct OpenState {
    num: usize,
    /// When the oldest of them was begun, or ordered where none was before it.
    since: Instant,
}

impl Lane {
    pub fn new(name: &'static str) -> Lane {
        let state = Mutex::new(OpenState { num: 0, since: system::now() });
        Lane { name, orders: None, open: Arc::new(Open { state, changed: Condvar::new() }) }
    }

    pub fn order(&mut self, run: impl FnOnce() + Send + 'static, failed: impl FnOnce(String) + Send + 'static) {
        let order = Order { run: Box::new(run), failed: Box::new(failed) };
        if let Some(system) = system::simulated() {
            let open = Arc::clone(&self.open);
            open.one_more();
            return system.order(self.name, Box::new(move || work(order, &open)));
        }
        let orders = match self.started() {
            Ok(orders) => orders,
            Err(error) => return (order.failed)(format!("cannot start the thread {}: {error}", self.name)),
        };
        self.open.one_more();
        let (order, why) = match orders.try_send(order) {
            Ok(()) => return,
            Err(TrySendError::Full(order)) => (order, format!("{MAX_ORDERS} others wait for the file system")),
            Err(TrySendError::Disconnected(order)) => (order, format!("the thread {} has ended", self.name)),
        };
        self.open.one_done();
        (order.failed)(why);
    }

    fn started(&mut self) -> std::io::Result<SyncSender<Order>> {
        if let Some(orders) = &self.orders {
            return Ok(orders.clone());
        }
        let (sender, orders) = sync_channel(MAX_ORDERS);
        let open = Arc::clone(&self.open);
        std::thread::Builder::new()
            .name(self.name.into())
            .spawn(move || orders.iter().for_each(|order| work(order, &open)))?;
        self.orders = Some(sender.clone());
        Ok(sender)
    }

    /// Waits until all that was ordered is done, but not for an order that lasts longer than `patience`, nor when `is_over`.
    fn wait(&self, patience: Duration, is_over: impl Fn() -> bool) -> Waited {
        let mut state = super::lock(&self.open.state);
        loop {
            let lasts = system::now() - state.since;
            match () {
                () if state.num == 0 => return Waited::Done,
                () if is_over() => return Waited::Over,
                () if lasts >= patience => return Waited::Lasts(lasts),
                () => {}
            }
            let look = LOOK.min(patience - lasts);
            if let Some(system) = system::simulated() {
                drop(state);
                system.wait(Some(system.now() + look));
                state = super::lock(&self.open.state);
                continue;
            }
            let wait = self.open.changed.wait_timeout(state, look);
            state = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// All that was ordered is done.
    #[cfg(test)]
    pub fn wait_for_all(&self) {
        assert_eq!(self.wait(Duration::MAX, || false), Waited::Done);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    Done,
    Over,
    /// An order takes this long already.
    Lasts(Duration),
}

impl Open {
    fn one_more(&self) {
        let mut state = super::lock(&self.state);
        if state.num == 0 {
            state.since = system::now();
        }
        state.num += 1;
    }

    fn one_done(&self) {
        let mut state = super::lock(&self.state);
        (state.num, state.since) = (state.num - 1, system::now());
        self.changed.notify_all();
    }
}

fn work(Order { run, failed }: Order, open: &Open) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("it said nothing");
        failed(format!("its thread panicked, which is a bug of Toroid: {text}"));
    }
    open.one_done();
}

impl<D: Device + Clone> Job<D> {
    /// As [`Job::write_checkpoint`], if `step` is the committed one. Where the state is not yet split for this place, the epoch has ended
    /// before it was, and what was asked for in it is void.
    pub(super) fn write_checkpoint_of(&mut self, step: u64, emit: &Emit) {
        if self.made_for != self.assignment.held_as() || !self.has_state {
            return;
        }
        if step == self.committed {
            return self.write_checkpoint(emit);
        }
        emit(self.assignment.event(Event::CheckpointFailed { step, error: String::new() }));
    }

    /// Writes this place's shard of the committed state in the background. The next update leaves the memory that is not written yet.
    pub(super) fn write_checkpoint(&mut self, emit: &Emit) {
        let step = self.committed;
        let event = EventOf::new(&self.assignment, emit);
        match self.writer.wait(PATIENCE, || self.fence.epoch() > self.assignment.epoch) {
            Waited::Done => {}
            // What was asked for in it is void.
            Waited::Over => return,
            Waited::Lasts(time) => {
                let error = format!(
                    "the disk is too slow: what is written of the checkpoint before takes {:.1} s so far",
                    time.as_secs_f64()
                );
                return event.emit(Event::CheckpointFailed { step, error });
            }
        }
        let Some(storage) = self.owned.clone() else {
            return event.emit(Event::CheckpointFailed { step, error: NOT_BEGUN.into() });
        };
        let writer = self.writer_of(&storage);
        super::lock(&self.skipped_at).insert(step, self.skipped);
        let state = self.shard.snapshot(self.stage.device());
        let partition = Arc::clone(&self.partition);
        let range = self.shard.range.clone();
        let panicked = event.clone();
        let write = move || {
            let start = system::now();
            let state = ShardState { param: &state.param, exp_avg: &state.exp_avg, exp_avg_sq: &state.exp_avg_sq };
            event.emit(match storage.write_shard(step, writer, &partition, range, state) {
                Ok(file) => {
                    Event::ShardWritten { step, file: Box::new(file), write_s: (system::now() - start).as_secs_f64() }
                }
                Err(error) => Event::CheckpointFailed { step, error: error.to_string() },
            });
        };
        self.writer.order(write, move |error| panicked.emit(Event::CheckpointFailed { step, error }));
    }

    fn writer_of(&self, storage: &Owned) -> Writer {
        let Assignment { epoch, rank, spec, .. } = &self.assignment;
        Writer { epoch: *epoch, rank: *rank, world: spec.shape.world(), owner: storage.id() }
    }

    /// Takes away what this place has written of a checkpoint that will not be published, once it is written.
    pub(super) fn drop_shard(&mut self, step: u64) {
        let Some(storage) = self.owned.clone() else { return };
        let writer = self.writer_of(&storage);
        let warn = move |error: String| {
            tracing::warn!("cannot take away what was written of the checkpoint of step {step}: {error}");
        };
        let run = move || {
            if let Err(error) = storage.drop_shard(step, writer) {
                warn(error.to_string());
            }
        };
        self.writer.order(run, warn);
    }

    /// Writes the manifest of `step` (T-6: every shard is durable by now), then removes the checkpoints that are no longer kept. Not
    /// where this place may be another's by now (T-1): whoever has it is told to do it, and so is this one once it is connected again.
    pub(super) fn publish(
        &mut self,
        step: u64,
        files: Vec<ShardFile>,
        remove: Vec<u64>,
        shared: &Arc<Shared>,
        emit: &Emit,
    ) {
        let event = EventOf::new(&self.assignment, emit);
        let Some(storage) = self.owned.clone() else {
            return event.emit(Event::PublishFailed { step, error: NOT_BEGUN.into() });
        };
        let spec = &self.assignment.spec;
        let manifest = Manifest {
            format: FORMAT,
            job_id: self.assignment.job_id.clone(),
            owner: Some(storage.id()),
            step,
            epoch: self.assignment.epoch,
            shape: spec.shape,
            job: JobSpec::clone(spec),
            samples: step * spec.batch.samples(),
            skipped_steps: super::lock(&self.skipped_at).get(&step).copied().unwrap_or(self.skipped),
            data_digest: blake3::Hash::from_bytes(self.data_digest()).to_hex().to_string(),
            files,
        };
        let (fence, shared) = (self.fence.clone(), Arc::clone(shared));
        let publishing = Publishing { storage, manifest, remove, fence, shared, event: event.clone() };
        let failed = move |error| event.emit(Event::PublishFailed { step, error });
        self.publisher.order(move || publishing.run(), failed);
    }
}

/// Emits events of one job and epoch.
#[derive(Clone)]
struct EventOf {
    job_id: String,
    epoch: u64,
    emit: Emit,
}

impl EventOf {
    fn new(assignment: &Assignment, emit: &Emit) -> EventOf {
        EventOf { job_id: assignment.job_id.clone(), epoch: assignment.epoch, emit: Arc::clone(emit) }
    }

    fn emit(&self, event: Event) {
        (self.emit)(TrainerEvent { job_id: self.job_id.clone(), epoch: self.epoch, event });
    }
}

/// An order to publish.
struct Publishing {
    storage: Arc<Owned>,
    manifest: Manifest,
    remove: Vec<u64>,
    fence: Fence,
    shared: Arc<Shared>,
    event: EventOf,
}

impl Publishing {
    fn may_act(&self) -> bool {
        self.shared.is_connected() && self.fence.epoch() <= self.manifest.epoch
    }

    fn run(self) {
        let step = self.manifest.step;
        if !self.may_act() {
            return tracing::warn!(
                "step {step} is not published: this worker does not know whether its place is still its own"
            );
        }
        self.shared.pass("publish", step);
        let event = match self.storage.publish(&self.manifest) {
            Ok(bytes) => Event::Published { step, bytes, path: self.storage.step_path(step) },
            Err(error) => {
                tracing::warn!("the checkpoint of step {step} is not published: {error}");
                Event::PublishFailed { step, error: error.to_string() }
            }
        };
        self.shared.pass("published", step);
        let published = matches!(event, Event::Published { .. });
        self.event.emit(event);
        if published && !self.remove.is_empty() {
            self.remove_older();
        }
    }

    fn remove_older(&self) {
        let (mut removed, mut kept) = (Vec::new(), Vec::new());
        for old in self.remove.iter().copied().take_while(|_| self.may_act()) {
            match self.storage.remove(old, self.manifest.epoch) {
                Ok(()) => removed.push(old),
                Err(error) => {
                    tracing::warn!("cannot remove the checkpoint of step {old}, it stays where it is: {error}");
                    kept.push((old, error.to_string()));
                }
            }
        }
        self.event.emit(Event::Removed { step: self.manifest.step, removed, kept });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn orders_are_done_in_turn_and_a_panic_is_the_failure_of_its_own_at_once() {
        let (said, heard) = channel();
        let mut lane = Lane::new("a-test");
        for number in 0..4 {
            let (done, failed) = (said.clone(), said.clone());
            let run = move || {
                assert!(number != 1, "number {number} cannot be done");
                done.send(Ok(number)).expect("it is heard");
            };
            lane.order(run, move |error| failed.send(Err(error)).expect("it is heard"));
        }
        lane.wait_for_all();
        let heard: Vec<Result<i32, String>> = heard.try_iter().collect();
        let panicked = "its thread panicked, which is a bug of Toroid: number 1 cannot be done".to_string();
        assert_eq!(heard, [Ok(0), Err(panicked), Ok(2), Ok(3)]);
        lane.wait_for_all();
    }

    #[test]
    fn nobody_waits_for_a_disk_that_does_not_answer_nor_beyond_the_epoch() {
        let (go, wait) = channel::<()>();
        let mut lane = Lane::new("a-test");
        assert_eq!(lane.wait(Duration::ZERO, || true), Waited::Done);
        lane.order(move || assert!(wait.recv().is_err(), "nothing is sent"), |_| {});
        assert!(matches!(lane.wait(Duration::from_millis(1), || false), Waited::Lasts(_)));
        assert_eq!(lane.wait(Duration::MAX, || true), Waited::Over);
        drop(go);
        assert_eq!(lane.wait(Duration::MAX, || false), Waited::Done);
    }

    #[test]
    fn orders_beyond_the_bound_have_failed() {
        let (said, heard) = channel();
        let (go, wait) = channel::<()>();
        let (begins, begun) = channel();
        let mut lane = Lane::new("a-test");
        let hold = move || {
            begins.send(()).expect("it is heard");
            assert!(wait.recv().is_err(), "nothing is sent");
        };
        lane.order(hold, |_| {});
        begun.recv().expect("the thread has taken it");
        for _ in 0..MAX_ORDERS + 2 {
            let failed = said.clone();
            lane.order(|| {}, move |error| failed.send(error).expect("it is heard"));
        }
        let errors: Vec<String> = heard.try_iter().collect();
        assert_eq!(errors, ["64 others wait for the file system"; 2]);
        drop(go);
        lane.wait_for_all();
    }
}
