//! Checkpoints: written once by the primaries, published as a whole, read back under any shape (design section 7).
//!
//! ```text
//!   own (every place) -----------> toroid-owner.json                  once, before the first step: whose the folder is
//!   write_shard (every place) ---> step-<n>/shard-<rank>-of-<world>-epoch-<e>-by-<owner>.safetensors   durable when the call returns
//!   publish (place 0) -----------> step-<n>/manifest.json.epoch-<e>-by-<owner>.b3   its digest, as `b3sum --check` reads it
//!                                  step-<n>/manifest.json             last: who sees it sees a complete checkpoint
//!   load (any shape), export <---- the entries that cover what is asked for, each read whole and checked
//!   verify <---------------------- every byte, against the manifest
//! ```
//!
//! [`Storage`] only reads. Whoever writes or removes has an [`Owned`], which is made by looking whose the folder is.
//!
//! Invariants:
//!
//! - **T-6.** A manifest that can be seen is complete. [`Owned::publish`] looks at every file first; a manifest
//!   and the files that it names are never written to again, and [`Owned::remove`] takes the manifest first.
//! - **T-1.** What an epoch has published, or goes on from ([`Owned::claim`]), is removed by no order of an older epoch, be it
//!   carried out ever so late. Every epoch writes files of names of its own, and the first manifest of a step stays.
//! - **T-10.** A folder has one owner. It is looked at before anything is published or removed, and only files whose name says that
//!   this job has written them are removed.
//! - The bytes of a file depend on the state, the step and the rank alone. So a repeated write is harmless.
//! - No value reaches the caller that did not match its digest.
//!
//! Deliberately absent: when to write, which steps to keep and what to do about a fault (the coordinator decides),
//! asynchrony (the trainer has a thread for it; never call this from an async task without `spawn_blocking`), where the files lie (`objects`).

use std::path::Path;
use std::sync::Arc;

use toroid_hf::{Dtype, ExportError};
use toroid_session::ReadFault;
use toroid_torus::manifest::{MANIFEST_NAME, Manifest};
use toroid_torus::owner::{OwnerId, Stamp};

mod durable;
mod encode;
mod error;
mod exported;
mod initial;
mod objects;
mod owned;
mod read;
mod verify;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use durable::AtomicFile;
pub use durable::write_whole;
pub use error::CheckpointError;
pub use initial::{DRAWN_BESIDES, NotedTokenizer, check_tokenizer, digest_of_weights, load_initial, noted_tokenizer};
pub use owned::Owned;
pub use read::ShardStateMut;
pub use verify::{Fault, FaultKind};
pub use write::{ShardState, Written};

use objects::Objects;

use crate::system;

/// A folder of checkpoints, to read.
#[derive(Debug)]
pub struct Storage {
    objects: Arc<dyn Objects>,
    root: String,
}

impl Storage {
    /// Opens the checkpoints in `root`, a folder's path, a `file://` URL or an `s3://` URL. The folder is made by the first write.
    pub fn open(root: &str) -> Result<Storage, CheckpointError> {
        Ok(Storage::of(objects::open(root)?))
    }

    fn of(objects: Arc<dyn Objects>) -> Storage {
        Storage { root: objects.root().into(), objects }
    }

    /// Opens one checkpoint by its folder, `.../step-<n>`: the storage around it, and its step.
    pub fn open_step(path: &str) -> Result<(Storage, u64), CheckpointError> {
        let refuse = || CheckpointError::StepPath { path: path.into() };
        let (root, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or((".", path));
        let step = step_of(name).ok_or_else(refuse)?;
        Ok((Storage::open(if root.is_empty() { "/" } else { root })?, step))
    }

    /// Writes a file of its own into the folder, reads it back and removes it. The error says which of these failed.
    pub fn check_access(&self) -> Result<(), CheckpointError> {
        // Others do the same at the same time, from other hosts.
        let mut id = [0; 16];
        system::fill_random(&mut id).map_err(|e| {
            let what = format!("the system's random source cannot be read: {e}");
            CheckpointError::Root { root: self.root.clone(), what }
        })?;
        let stamp = Stamp { epoch: 0, owner: OwnerId::from_random(id) };
        let name = format!(".access-{}", stamp.owner);
        let written = name.as_bytes();
        let result = self.objects.write(&name, &stamp, written).and_then(|()| match self.objects.read(&name)? {
            Some(read) if read == written => Ok(()),
            _ => {
                let what = "a file that was just written is not read back; use another folder (checkpoint.path)".into();
                Err(CheckpointError::Root { root: self.root.clone(), what })
            }
        });
        // Where it cannot be removed nothing can be, and that is worth an error, too.
        result.and(self.objects.delete(&name))
    }

    /// Absolute path of the folder.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Absolute path of the checkpoint of `step`, whether it is there or not.
    pub fn step_path(&self, step: u64) -> String {
        self.objects.display(&Manifest::folder(step))
    }

    /// Steps with a complete checkpoint, ascending.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let folders = self.objects.folders()?.into_iter().filter(|name| step_of(name).is_some()).collect();
        let complete = self.objects.with_object(folders, MANIFEST_NAME)?;
        let mut steps: Vec<u64> = complete.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The manifest of a complete checkpoint, checked against its digest.
    pub fn manifest(&self, step: u64) -> Result<Manifest, CheckpointError> {
        self.find_manifest(step)?.ok_or_else(|| self.not_found(step))
    }

    /// The manifest, or `None` where none can be seen.
    fn find_manifest(&self, step: u64) -> Result<Option<Manifest>, CheckpointError> {
        let Some(json) = self.objects.read(&name_in(step, MANIFEST_NAME))? else { return Ok(None) };
        let file = self.objects.display(&name_in(step, MANIFEST_NAME));
        // Of whoever has published it; those who came too late may have left theirs.
        let names = self.objects.names_in(&Manifest::folder(step))?;
        let names: Vec<&String> = names.iter().filter(|n| n.starts_with(MANIFEST_NAME) && n.ends_with(".b3")).collect();
        let expected = digest_line(&json);
        let mut is_found = false;
        for name in &names {
            is_found |= self.objects.read(&name_in(step, name))?.as_deref() == Some(expected.as_bytes());
        }
        if !is_found {
            let what = match names.first() {
                None => "the .b3 file, which holds its digest, is missing".to_string(),
                Some(name) => format!("it does not match its digest in {name}"),
            };
            return Err(CheckpointError::ManifestDamaged { file, what });
        }
        let parsed = std::str::from_utf8(&json)
            .map_err(|e| toroid_torus::manifest::ManifestError::Parse(e.to_string()))
            .and_then(Manifest::parse);
        let manifest = parsed.map_err(|cause| CheckpointError::Manifest { file: file.clone(), cause })?;
        if manifest.step != step {
            let what = format!("it is of step {}, expected {step}: the folder was renamed", manifest.step);
            return Err(CheckpointError::ManifestDamaged { file, what });
        }
        Ok(Some(manifest))
    }

    /// What an error of reading this checkpoint says about it; `manifest_read`: it came after that. Where another has set it aside meanwhile, it was damaged.
    pub fn read_fault(&self, step: u64, error: &CheckpointError, manifest_read: bool) -> ReadFault {
        match error.is_damage() || self.objects.is_set_aside(&Manifest::folder(step)).unwrap_or(false) {
            true => ReadFault::Damaged,
            false => ReadFault::Unreadable { manifest_read },
        }
    }

    fn not_found(&self, step: u64) -> CheckpointError {
        let available = self.steps().unwrap_or_default();
        CheckpointError::NotFound { step, root: self.root.clone(), available }
    }

    /// Writes all parameters as one safetensors file, whole tensors in f32 under the names of the model, or as an object where `file` is its URL.
    /// Returns the number of bytes.
    pub fn export(&self, step: u64, file: &Path) -> Result<u64, CheckpointError> {
        read::export(&*self.objects, &self.manifest(step)?, file)
    }

    /// Writes all parameters as a folder that Hugging Face's `GraniteMoeSharedForCausalLM` loads; arguments as in [`toroid_hf::Options`].
    pub fn export_hf(
        &self,
        step: u64,
        folder: &Path,
        dtype: Dtype,
        shard_bytes: u64,
        carried: Vec<(String, Vec<u8>)>,
    ) -> Result<toroid_hf::Written, ExportError<CheckpointError>> {
        let manifest = self.manifest(step).map_err(ExportError::Tensor)?;
        read::export_hf(&*self.objects, &manifest, folder, dtype, shard_bytes, carried)
    }
}

/// The step that a folder's name stands for.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (Manifest::folder(step) == name).then_some(step)
}

/// Name of `file` of `step` in the storage.
fn name_in(step: u64, file: &str) -> String {
    format!("{}/{file}", Manifest::folder(step))
}

/// Holds the digest of the manifest that an epoch publishes, in the format of `b3sum`.
fn digest_name(stamp: &Stamp) -> String {
    format!("{MANIFEST_NAME}.{stamp}.b3")
}

fn digest_line(json: &[u8]) -> String {
    format!("{}  {MANIFEST_NAME}\n", blake3::hash(json).to_hex())
}
