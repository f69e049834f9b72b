//! Checkpoints beside the steps: threads of a place that write, publish and remove them.
//!
//! ```text
//!   trainer thread ── orders ──> checkpoint-writer      this place's shards, and those that are to be dropped again
//!                  '─ orders ──> checkpoint-publisher   rank 0: manifests, and the removal of older checkpoints
//!                                   '──> emit: what each order came to
//! ```
//!
//! Each thread does its orders one after the other, so a shard is dropped after it was written and written anew after it was dropped; a
//! manifest waits for nobody's disk but its own. Whether the place is still this
//! worker's is looked at when an order's turn comes, and again before each removal (T-1).
//!
//! Steps wait for a disk only where the shard before is still being written when the next is to be: there is memory for one that is
//! saved. After [`PATIENCE`] the next one has failed, so that no disk has a place taken for one that hangs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use toroid_session::{Assignment, Event};
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::{FORMAT, Manifest, ShardFile, Writer};

use super::emit::{Emit, EventOf};
use super::lane::{Lane, Waited};
use super::ppo::carried::Carried;
use super::publish::Publishing;
use super::samples::Samples;
use super::shared::Shared;
use crate::checkpoint::{CheckpointError, Owned, ShardState, Storage, Written};
use crate::comm::Fence;
use crate::device::Device;
use crate::optim::Shard;
use crate::system;

/// For so long, from when its thread began with it, an order may keep the trainer waiting: less than a place may stand still.
const PATIENCE: Duration = Duration::from_secs(2);
/// A coordinator that keeps to the protocol asks for nothing before.
const NOT_BEGUN: &str = "this place has not begun: whose the checkpoint folder is is looked at before the first step";

/// The checkpoints of one place.
pub(super) struct Checkpoints {
    storage: Arc<Storage>,
    /// The same folder, once it is known to be this job's: before the first step.
    owned: Option<Arc<Owned>>,
    writer: Lane,
    publisher: Lane,
    /// Skipped updates at the checkpoints that are being written, by step.
    skipped_at: BTreeMap<Step, u64>,
    /// Sees how far a shard is written.
    shared: Arc<Shared>,
}

/// The place that saves, and what ends its epoch.
#[derive(Clone, Copy)]
pub(super) struct Saver<'a> {
    pub place: &'a Assignment,
    pub fence: &'a Fence,
    pub emit: &'a Emit,
}

/// A committed step, and what a checkpoint says of it besides its state.
#[derive(Clone, Copy)]
pub(super) struct SavedStep {
    pub step: Step,
    /// Updates that were skipped until then.
    pub skipped: u64,
    /// Of a job of kind ppo.
    pub carried: Option<Carried>,
}

/// What rank 0 is to publish.
pub(super) struct ToPublish {
    pub step: Step,
    pub files: Vec<ShardFile>,
    /// Steps of older checkpoints, which are removed then.
    pub remove: Vec<Step>,
}

/// A disk or a store that is slow gets on, one that is dead does not.
fn how_far(written: &Written) -> String {
    match written.bytes() {
        (0, _) => ": nothing of it was taken so far; see whether the disk or the store is there".into(),
        (bytes, total) => {
            format!(": {bytes} of {total} bytes were taken so far; the disk or the store is slow, or gone since")
        }
    }
}

impl Checkpoints {
    pub fn new(storage: Arc<Storage>, shared: Arc<Shared>) -> Checkpoints {
        Checkpoints {
            storage,
            owned: None,
            writer: Lane::new("checkpoint-writer"),
            publisher: Lane::new("checkpoint-publisher"),
            skipped_at: BTreeMap::new(),
            shared,
        }
    }

    /// T-10: finds or makes the checkpoint folder this job's, as long as that is not known.
    pub fn own_folder(&mut self, place: &Assignment) -> Result<(), CheckpointError> {
        if self.owned.is_none() {
            self.owned = Some(Arc::new(self.storage.own(&place.owner, place.claim)?));
        }
        Ok(())
    }

    /// Writes this place's shard of the committed state in the background. The next update leaves the memory that is not written yet.
    pub fn write<D: Device>(&mut self, by: Saver<'_>, of: SavedStep, device: &D, shard: &Shard<D>) {
        let step = of.step;
        let event = EventOf::new(by.place, by.emit);
        match self.writer.wait(PATIENCE, || by.fence.epoch() > by.place.epoch) {
            Waited::Done => {}
            // What was asked for in it is void.
            Waited::Over => return,
            Waited::Lasts(time) => {
                let error = format!(
                    "the checkpoint before is still being written, for {:.1} s by now{}",
                    time.as_secs_f64(),
                    self.shared.saving().map_or_else(String::new, |saving| how_far(&saving.written))
                );
                return event.emit(Event::CheckpointFailed { step, error });
            }
        }
        let Some(storage) = self.owned.clone() else {
            return event.emit(Event::CheckpointFailed { step, error: NOT_BEGUN.into() });
        };
        let writer = writer_of(by.place, &storage);
        self.skipped_at.insert(step, of.skipped);
        let state = shard.snapshot(device);
        let partition = Arc::clone(&shard.partition);
        let range = shard.range.clone();
        let panicked = (event.clone(), Arc::clone(&self.shared));
        let shared = Arc::clone(&self.shared);
        let write = move || {
            let saving = shared.begin_saving(step);
            let state = ShardState { param: &state.param, exp_avg: &state.exp_avg, exp_avg_sq: &state.exp_avg_sq };
            let part = (&*partition, range);
            let made = storage.write_shard_counted(step.get(), writer, part, state, &saving.written);
            shared.end_saving();
            event.emit(match made {
                Ok(mut file) => {
                    if let Some(carried) = of.carried {
                        carried.put_in(&mut file);
                    }
                    let write_s = (system::now() - saving.since).as_secs_f64();
                    Event::ShardWritten { step, file: Box::new(file), write_s }
                }
                Err(error) => Event::CheckpointFailed { step, error: error.to_string() },
            });
        };
        let failed = move |error| {
            let (event, shared) = panicked;
            shared.end_saving();
            event.emit(Event::CheckpointFailed { step, error });
        };
        self.writer.order(write, failed);
    }

    /// Takes away what this place has written of a checkpoint that will not be published, once it is written.
    pub fn drop_shard(&mut self, place: &Assignment, step: Step) {
        let Some(storage) = self.owned.clone() else { return };
        let writer = writer_of(place, &storage);
        let warn = move |error: String| {
            tracing::warn!("cannot take away what was written of the checkpoint of step {step}: {error}");
        };
        let run = move || {
            if let Err(error) = storage.drop_shard(step.get(), writer) {
                warn(error.to_string());
            }
        };
        self.writer.order(run, warn);
    }

    /// Writes the manifest of a step (T-6: every shard is durable by now), then removes the checkpoints that are no longer kept. Not
    /// where this place may be another's by now (T-1): whoever has it is told to do it, and so is this one once it is connected again.
    /// `skipped`: updates until now, for a step that this place has not saved itself.
    pub fn publish(&mut self, by: Saver<'_>, what: ToPublish, skipped: u64, samples: &Samples, shared: &Arc<Shared>) {
        let ToPublish { step, files, remove } = what;
        let event = EventOf::new(by.place, by.emit);
        let Some(storage) = self.owned.clone() else {
            return event.emit(Event::PublishFailed { step, error: NOT_BEGUN.into() });
        };
        let spec = &by.place.spec;
        let manifest = Manifest {
            format: FORMAT,
            job_id: by.place.job_id.to_string(),
            owner: Some(storage.id()),
            step: step.get(),
            epoch: by.place.epoch.get(),
            shape: spec.shape,
            job: JobSpec::clone(spec),
            samples: spec.samples_of(step.get()),
            skipped_steps: self.skipped_at.get(&step).copied().unwrap_or(skipped),
            data_digest: blake3::Hash::from_bytes(samples.data_digest()).to_hex().to_string(),
            tokenizer: samples.tokenizer(),
            files,
        };
        let (fence, shared) = (by.fence.clone(), Arc::clone(shared));
        let publishing = Publishing { storage, manifest, remove, fence, shared, event: event.clone() };
        let failed = move |error| event.emit(Event::PublishFailed { step, error });
        self.publisher.order(move || publishing.run(), failed);
    }

    #[cfg(test)]
    pub fn writer(&mut self) -> &mut Lane {
        &mut self.writer
    }

    #[cfg(test)]
    pub fn publisher(&mut self) -> &mut Lane {
        &mut self.publisher
    }
}

fn writer_of(place: &Assignment, storage: &Owned) -> Writer {
    let Assignment { epoch, rank, spec, .. } = place;
    Writer { epoch: epoch.get(), rank: rank.index(), world: spec.shape.world(), owner: storage.id() }
}
