//! Whose a folder of checkpoints is, and what its owner may do to it (T-10).
//!
//! ```text
//!   own:  toroid-owner.json    there is none, nor a step of anybody's  ->  written, at once or not at all (of two jobs one does it)
//!                              of this job                              ->  go on
//!                              of another job, or none beside steps     ->  refused in words
//! ```
//!
//! A job that was begun by a version without owners takes its folder over ([`Claim::Begun`]). What it had written then does not say whose it
//! is and is never removed.

use std::ops::Deref;
use std::sync::Arc;

use toroid_session::Claim;
use toroid_torus::failpoint;
use toroid_torus::manifest::{MANIFEST_NAME, Manifest, ShardFile, Writer};
use toroid_torus::owner::{MAX_OWNER_BYTES, OWNER_NAME, Owner, OwnerId, Stamp};

use super::objects::DAMAGED_PREFIX;
use super::{CheckpointError, Storage, digest_line, digest_name, name_in, step_of};

/// An empty file whose name has the epoch that goes on from the checkpoint.
const CLAIM_PREFIX: &str = "claimed-by-";

/// A folder of checkpoints whose owner is this job.
#[derive(Debug)]
pub struct Owned {
    storage: Arc<Storage>,
    owner: Owner,
    claim: Claim,
}

impl Deref for Owned {
    type Target = Storage;

    fn deref(&self) -> &Storage {
        &self.storage
    }
}

impl Storage {
    /// Makes the folder the one of `owner`, or finds that it is. Of two jobs that want it at once one is told that it is the other's.
    pub fn own(self: &Arc<Storage>, owner: &Owner, claim: Claim) -> Result<Owned, CheckpointError> {
        let owned = Owned { storage: Arc::clone(self), owner: owner.clone(), claim };
        owned.check_owner()?;
        Ok(owned)
    }

    /// The folder as that of `owner`, to go on from what it has written there. Nothing is made: where a file system is not mounted there is no
    /// record, nor a checkpoint.
    pub fn own_to_read(self: &Arc<Storage>, owner: &Owner, claim: Claim) -> Result<Owned, CheckpointError> {
        let owned = Owned { storage: Arc::clone(self), owner: owner.clone(), claim };
        owned.is_owner()?;
        Ok(owned)
    }

    /// Whose the folder is; `None` where nobody has said so.
    pub fn owner(&self) -> Result<Option<Owner>, CheckpointError> {
        let file = self.objects.display(OWNER_NAME);
        if self.objects.size(OWNER_NAME)?.is_some_and(|bytes| bytes > MAX_OWNER_BYTES) {
            let what = format!("it has more than {MAX_OWNER_BYTES} bytes");
            return Err(CheckpointError::OwnerDamaged { file, what });
        }
        let Some(json) = self.objects.read(OWNER_NAME)? else { return Ok(None) };
        Owner::parse(&json).map(Some).map_err(|what| CheckpointError::OwnerDamaged { file, what })
    }

    /// Whether `owner` has written the manifest of a step, as far as can be told: it may be damaged. `None`: there is none.
    fn is_manifest_of(&self, step: u64, owner: &OwnerId) -> Result<Option<bool>, CheckpointError> {
        let Some(json) = self.objects.read(&name_in(step, MANIFEST_NAME))? else { return Ok(None) };
        let said = serde_json::from_slice::<serde_json::Value>(&json).ok();
        let said = said.as_ref().and_then(|manifest| manifest.get("owner")?.as_str());
        if let Some(said) = said {
            return Ok(Some(said == owner.to_string()));
        }
        let line = digest_line(&json);
        for name in self.objects.names_in(&Manifest::folder(step))? {
            let is_digest = name.starts_with(MANIFEST_NAME) && name.ends_with(".b3") && owner.wrote(&name).is_some();
            if is_digest && self.objects.read(&name_in(step, &name))?.as_deref() == Some(line.as_bytes()) {
                return Ok(Some(true));
            }
        }
        Ok(Some(false))
    }
}

impl Owned {
    pub fn id(&self) -> OwnerId {
        self.owner.id
    }

    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// The folder is this job's: before anything in it is published or removed. Where a user has taken the record away it is made again.
    pub(super) fn check_owner(&self) -> Result<(), CheckpointError> {
        if self.is_owner()? {
            return Ok(());
        }
        let strangers = self.strangers()?;
        // Another place of this job may have written the record, and even steps, since it was looked for.
        if !strangers.is_empty() && !self.is_owner()? {
            return Err(CheckpointError::Unowned { root: self.root.clone(), found: strangers });
        }
        let stamp = Stamp { epoch: 0, owner: self.owner.id };
        let is_new = self.objects.write_new(OWNER_NAME, &stamp, self.owner.to_json().as_bytes())?;
        if is_new || self.is_owner()? {
            return Ok(());
        }
        let what = "it was there, and then it was not".into();
        Err(CheckpointError::OwnerDamaged { file: self.objects.display(OWNER_NAME), what })
    }

    /// False: the folder has no owner.
    fn is_owner(&self) -> Result<bool, CheckpointError> {
        match self.owner()? {
            None => Ok(false),
            Some(found) if found.id == self.owner.id => Ok(true),
            Some(found) => Err(CheckpointError::Owned { root: self.root.clone(), owner: Box::new(found) }),
        }
    }

    /// Checkpoints in the folder that this job has not written.
    fn strangers(&self) -> Result<Vec<String>, CheckpointError> {
        let folders = self.objects.folders()?;
        let mut strangers = Vec::new();
        for name in folders {
            let Some(step) = step_of(name.strip_prefix(DAMAGED_PREFIX).unwrap_or(&name)) else { continue };
            let names = self.objects.names_in(&name)?;
            let is_own = names.iter().any(|file| self.owner.id.wrote(file).is_some());
            let was_begun = || self.claim == Claim::Begun && self.was_written_before(&name, step);
            if !names.is_empty() && !is_own && !was_begun() {
                strangers.push(name);
            }
        }
        strangers.sort_unstable();
        Ok(strangers)
    }

    /// By this job, in a version without owners. What has no manifest, or one that cannot be read, is nobody's checkpoint.
    fn was_written_before(&self, folder: &str, step: u64) -> bool {
        if folder != Manifest::folder(step) {
            return true;
        }
        match self.find_manifest(step) {
            Ok(Some(manifest)) => manifest.owner.is_none() && manifest.job_id == self.owner.job_id,
            Ok(None) | Err(_) => true,
        }
    }

    /// Removes what this job has written of a checkpoint in epochs up to `epoch`, be it complete or not: the manifest first, so that nobody
    /// takes the rest for a checkpoint (T-6). What a later epoch has published or claimed stays: who was stopped with this order and
    /// replaced meanwhile has nothing to say about it (T-1). What others have put there stays (T-10).
    pub fn remove(&self, step: u64, epoch: u64) -> Result<(), CheckpointError> {
        self.check_owner()?;
        if let Some(later) = self.newest_epoch(step)?.filter(|later| *later > epoch) {
            return Err(CheckpointError::Claimed { step, root: self.root.clone(), epoch, later });
        }
        let folder = Manifest::folder(step);
        match self.is_manifest_of(step, &self.owner.id)? {
            Some(true) if failpoint!(RemoveFilesFirst) => {}
            Some(true) => self.objects.delete(&name_in(step, MANIFEST_NAME))?,
            Some(false) => return Err(CheckpointError::NotWritten { step, root: self.root.clone() }),
            None => {}
        }
        let is_own = |name: &String| {
            failpoint!(RemoveStrangers) || self.owner.id.wrote(name).is_some_and(|written| written <= epoch)
        };
        let own: Vec<String> = self.objects.names_in(&folder)?.into_iter().filter(is_own).collect();
        self.objects.delete_all(&folder, &own)?;
        if failpoint!(RemoveFilesFirst) {
            self.objects.delete(&name_in(step, MANIFEST_NAME))?;
        }
        if !self.objects.delete_empty_folder(&folder)? {
            let folder = self.objects.display(&folder);
            tracing::warn!(step, %folder, "files stay in a removed checkpoint that this job has not written up to epoch {epoch}");
        }
        Ok(())
    }

    /// Takes away what a place has written of a checkpoint that has failed, finished or not. A step that can be seen stays whole, also where
    /// it comes to be seen at this very moment (T-6): the files are put aside first, so that [`Owned::publish`], which looks at them last
    /// of all, misses them, and are put back where there is a manifest by then.
    pub fn drop_shard(&self, step: u64, writer: Writer) -> Result<(), CheckpointError> {
        self.check_owner()?;
        if self.is_visible(step)? {
            return Ok(());
        }
        let (folder, stamp) = (Manifest::folder(step), writer.stamp());
        let digest = (writer.rank == 0).then(|| digest_name(&stamp));
        let mut moved = Vec::new();
        let put_aside = [ShardFile::name_of(&writer)].into_iter().chain(digest).try_for_each(|name| {
            moved.extend(self.objects.put_aside(&folder, &name, &stamp)?);
            Ok(())
        });
        // Also where it cannot be told.
        let is_needed = put_aside.and_then(|()| self.is_visible(step));
        if !matches!(is_needed, Ok(false)) {
            moved.iter().try_for_each(|aside| self.objects.put_back(&folder, aside))?;
            return is_needed.map(|_| ());
        }
        self.objects.delete_aside(&folder, &moved)?;
        // Other places have theirs there as long as they have not dropped them.
        self.objects.delete_empty_folder(&folder).map(|_| ())
    }

    fn is_visible(&self, step: u64) -> Result<bool, CheckpointError> {
        Ok(self.objects.size(&name_in(step, MANIFEST_NAME))?.is_some())
    }

    /// `epoch` goes on from this checkpoint: no order of an older one removes it any more.
    pub fn claim(&self, step: u64, epoch: u64) -> Result<(), CheckpointError> {
        let stamp = Stamp { epoch, owner: self.owner.id };
        self.objects.write(&name_in(step, &format!("{CLAIM_PREFIX}{stamp}")), &stamp, &[])
    }

    /// The newest epoch that has published or claimed a step. A manifest that cannot be read is nobody's.
    fn newest_epoch(&self, step: u64) -> Result<Option<u64>, CheckpointError> {
        let published = self.find_manifest(step).ok().flatten().map(|manifest| manifest.epoch);
        let names = self.objects.names_in(&Manifest::folder(step))?;
        let claims = names.iter().filter(|n| n.starts_with(CLAIM_PREFIX)).filter_map(|n| self.owner.id.wrote(n));
        Ok(claims.chain(published).max())
    }

    /// Has a damaged checkpoint not offered any more, but kept to be looked at: where folders can be renamed as `damaged-step-<n>`. Returns where.
    pub fn set_aside(&self, step: u64, reason: &str) -> Result<String, CheckpointError> {
        self.check_owner()?;
        let path = self.objects.set_aside(&Manifest::folder(step), &self.owner.id)?;
        tracing::warn!(step, %path, reason, "set a damaged checkpoint aside");
        Ok(path)
    }
}
