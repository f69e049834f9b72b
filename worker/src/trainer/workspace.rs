//! What a place allocates before it knows the values: data, stage, buffers, memory for two shards. A spare makes it ahead (`WarmUp`).
//!
//! Preparing is most of what a death costs beyond the step itself. A spare with a workspace only has to connect and pull its shards.
//! A workspace fits every place of the same (tp, pp) coordinate, so it fits every place of a job with tp = pp = 1. Where it does not
//! fit, its tokens are still used.
//!
//! Deliberately absent: state. What is in the buffers means nothing until a source or a heal has written it.

use std::sync::Arc;

use toroid_torus::ids::{Epoch, Rank, Step};
use toroid_torus::job::{JobSpec, SourceConfig};
use toroid_torus::partition::partition;

use super::attends::Attends;
use super::environment::Environment;
use super::error::PrepareError;
use super::memory;
use super::passes::{Passes, pipeline_of};
use super::ppo::models::Models;
use super::shards::Shards;
use crate::checkpoint::{CheckpointError, Storage};
use crate::comm::Fence;
use crate::data::{self, DataError, Sources, Tokens};
use crate::device::CachedAttention;

pub struct Workspace<D: CachedAttention> {
    spec: Arc<JobSpec>,
    rank: Rank,
    checkpoint_root: String,
    /// Of each source.
    tokens: Vec<Arc<Tokens>>,
    pub(super) sources: Sources,
    pub(super) storage: Arc<Storage>,
    pub(super) parts: Parts<D>,
}

/// What of a job is made for one place of one shape.
pub(super) struct Parts<D: CachedAttention> {
    pub passes: Passes<D>,
    pub shards: Shards<D>,
    /// Of a job of kind ppo.
    pub models: Option<Models<D>>,
}

impl<D: CachedAttention> Parts<D> {
    /// For the place of `rank`; `kept`: the models of another place of the same (tp, pp) coordinate, with what is in them.
    pub fn new(device: &D, spec: &JobSpec, rank: usize, kept: Option<Models<D>>) -> Parts<D> {
        let place = spec.shape.place(rank);
        let partition = Arc::new(partition(&spec.model, &spec.shape, place.tp, place.pp));
        let passes = Passes::new(device, spec, rank, &partition);
        let before = device.allocated_bytes();
        let shards = Shards::new(device, spec, rank, &partition);
        let optimizer_bytes = device.allocated_bytes() - before;
        let models = match kept {
            Some(models) => Some(models.move_to(device, spec, rank, &partition)),
            None => Models::new(device, spec, rank, &partition),
        };
        tracing::info!("memory: {}", memory::report(spec, rank, passes.allocated(), optimizer_bytes));
        Parts { passes, shards, models }
    }

    /// For another place of the same (tp, pp) coordinate, with as many micro-batches in flight.
    fn move_to(self, device: &D, spec: &JobSpec, rank: usize) -> Parts<D> {
        let (passes, shards) = (self.passes.move_to(spec, rank), self.shards.move_to(device, spec, rank));
        Parts { passes, shards, models: self.models }
    }
}

impl<D: CachedAttention> Workspace<D> {
    /// Makes the workspace of the place of `rank`, and reuses as much of `used` as fits. `fence` is that of the place's epoch, where there
    /// is one.
    pub fn make(
        device: &D,
        environment: &Environment,
        (spec, rank): (&Arc<JobSpec>, Rank),
        checkpoint_root: &str,
        fence: Option<(&Fence, Epoch)>,
        used: Option<Workspace<D>>,
    ) -> Result<Workspace<D>, PrepareError> {
        spec.check()?;
        environment.roots.check(spec, [("checkpoint.path", checkpoint_root)])?;
        let used = match used {
            Some(used) if used.fits(spec, rank, checkpoint_root) => {
                return Ok(Workspace { rank, parts: used.parts.move_to(device, spec, rank.index()), ..used });
            }
            used => used.filter(|used| used.spec.data == spec.data).map(|used| used.tokens),
        };
        let tokens = match used {
            Some(tokens) => tokens,
            None => {
                let mut attends = Attends { shared: &environment.shared, fence };
                let mut prepare = |source: &SourceConfig| {
                    let tokens = data::prepare(source, &environment.cache_dir, &mut attends)?;
                    tell_of(&source.name, &tokens);
                    Ok(Arc::new(tokens))
                };
                spec.data.all_sources().iter().map(&mut prepare).collect::<Result<Vec<_>, DataError>>()?
            }
        };
        Ok(Workspace {
            spec: Arc::clone(spec),
            rank,
            checkpoint_root: checkpoint_root.into(),
            sources: Sources::new(spec, &tokens)?,
            tokens,
            storage: Arc::new(Storage::open(checkpoint_root).map_err(PrepareError::Open)?),
            parts: {
                memory::reserve_memory(device, spec, rank.index())?;
                Parts::new(device, spec, rank.index(), None)
            },
        })
    }

    /// Shows that files can be written to the folder of checkpoints, read and removed.
    pub fn check_storage(&self) -> Result<(), CheckpointError> {
        self.storage.check_access()
    }

    /// Why the checkpoint of `step` is not seen, if it is not.
    pub fn unseen(&self, step: Option<Step>) -> Option<String> {
        self.storage.manifest(step?.get()).err().map(|e| e.to_string())
    }

    fn fits(&self, spec: &JobSpec, rank: Rank, checkpoint_root: &str) -> bool {
        // Another shape may not have that rank at all.
        if *self.spec != *spec {
            return false;
        }
        let (own, place) = (spec.shape.place(self.rank.index()), spec.shape.place(rank.index()));
        (own.tp, own.pp) == (place.tp, place.pp)
            && self.checkpoint_root == checkpoint_root
            && self.parts.passes.in_flight() == pipeline_of(spec, rank.index()).in_flight()
    }
}

/// The log of each worker says what it trains on and what of it is left out.
fn tell_of(name: &str, tokens: &Tokens) {
    let how = if tokens.was_cached() { "found and compared" } else { "read" };
    // A source that the job only gives a path has no name.
    let what = if name.is_empty() { "text".into() } else { format!("text of {name}") };
    tracing::info!("{what}: {}, {how}", tokens.source_summary());
    for left in tokens.left_out() {
        let (files, why, first) = (left.num_files, left.reason.words(), left.first.join(", "));
        tracing::warn!("{what}: {files} of the files are left out: {why}, {} bytes; the first: {first}", left.bytes);
    }
}
