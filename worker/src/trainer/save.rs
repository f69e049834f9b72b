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

use std::sync::Arc;
use std::time::Duration;

use toroid_session::{Assignment, Event};
use toroid_torus::manifest::Writer;

use super::emit::{Emit, EventOf};
use super::job::Job;
use super::lane::Waited;
use crate::checkpoint::{Owned, ShardState};
use crate::device::Device;
use crate::sync::lock;
use crate::system;

/// For so long, from when its thread began with it, an order may keep the trainer waiting: less than a place may stand still.
const PATIENCE: Duration = Duration::from_secs(2);
/// A coordinator that keeps to the protocol asks for nothing before.
pub(super) const NOT_BEGUN: &str =
    "this place has not begun: whose the checkpoint folder is is looked at before the first step";

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
        lock(&self.skipped_at).insert(step, self.skipped);
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
}
