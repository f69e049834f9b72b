//! A job at one place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use toroid_proto::Inputs;
use toroid_session::{Assignment, HeldAs};
use toroid_torus::cursor::Cursor;
use toroid_torus::partition::Partition;
use toroid_torus::pipeline::Pipeline;

use super::earlier::Earlier;
use super::history::History;
use super::holders::Holders;
use super::kept::{Kept, Sealed};
use super::lane::Lane;
use super::validations::Validations;
use super::workspace::{Buffers, Groups};
use crate::checkpoint::{Owned, Storage};
use crate::comm::{Fence, LinkStats, Links};
use crate::data::{Dataset, LeftOut};
use crate::device::Device;
use crate::model::Stage;
use crate::optim::Shard;

/// A job at one place.
pub struct Job<D: Device + Clone> {
    pub assignment: Assignment,
    /// Ends the waits of an epoch that is over.
    pub(super) fence: Fence,
    pub(super) partition: Arc<Partition>,
    pub(super) stage: Stage<D>,
    pub(super) shard: Shard<D>,
    /// The copy of another place's shard; `None` without redundancy.
    pub(super) holders: Option<Holders<D>>,
    /// What the parts of this place, from `partition` to `buffers`, are made for. Until it is healed that may be another place than the
    /// assignment's.
    pub(super) made_for: HeldAs,
    /// The shards hold the state of `committed`; a newcomer's do not until it is healed.
    pub(super) has_state: bool,
    /// The state as it was split before, until all are known to have it as it is split now.
    pub(super) earlier: Option<Earlier<D>>,
    /// All that is needed to apply `committed + 1` is here: the gradients of both shards.
    pub(super) sealed: bool,
    /// This place's shard and its gradient when they were sealed.
    pub(super) sealed_own: Sealed,
    /// Inputs of the shard's last update; `None` where updates are not replayed.
    pub(super) kept: Option<Kept<D>>,
    /// What this place saw of silent data corruption in this epoch.
    pub(super) corrupt: Option<String>,
    /// Global sums of the newest steps, and of all that no coordinator has.
    pub(super) history: History,
    /// Of the last commit.
    pub(super) since: Instant,
    /// What the links had moved then.
    pub(super) moved_since: LinkStats,
    /// Kept from epoch to epoch.
    pub(super) links: Option<Links>,
    /// Step that was loaded from a checkpoint of another job, or 0.
    pub(super) start_step: Option<u64>,
    pub(super) validations: Validations,
    /// Step of the last validation.
    pub(super) validated: Option<u64>,
    pub(super) dataset: Dataset,
    pub(super) data_digest: [u8; 32],
    /// What of the job has no effect, or another than one may think.
    pub(super) notes: Vec<String>,
    pub(super) cursor: Cursor,
    pub(super) pipeline: Pipeline,
    pub(super) groups: Groups,
    pub(super) buffers: Buffers,
    /// The working parameters before this element are those of the committed step; the others may be on their way.
    pub(super) gathered: usize,
    /// Committed updates, skipped ones included.
    pub(super) committed: u64,
    /// Updates that were skipped because gradients were not finite.
    pub(super) skipped: u64,
    /// Skipped updates at the checkpoint that is being written.
    pub(super) skipped_at: Mutex<BTreeMap<u64, u64>>,
    pub(super) storage: Arc<Storage>,
    /// The same folder, once it is known to be this job's: before the first step.
    pub(super) owned: Option<Arc<Owned>>,
    pub(super) writer: Lane,
    pub(super) publisher: Lane,
}

impl<D: Device + Clone> Job<D> {
    pub fn data_digest(&self) -> [u8; 32] {
        self.data_digest
    }

    /// What is trained on, and what of it is left out (T-12).
    pub(super) fn inputs(&self) -> Inputs {
        let text = self.dataset.text();
        let left_out = |l: &LeftOut| toroid_proto::LeftOut {
            reason: l.reason.words().into(),
            num_files: l.num_files,
            bytes: l.bytes,
            first: l.first.clone(),
        };
        let left_out = text.left_out().iter().map(left_out).collect();
        Inputs { summary: text.source_summary(), left_out, notes: self.notes.clone() }
    }

    pub fn num_samples(&self) -> u64 {
        self.dataset.num_train()
    }
}
