//! The files of a checkpoint folder as named objects: written whole and durable, or not at all.
//!
//! What is read, listed and deleted goes through [`object_store`], with a current-thread tokio runtime of its own, so callers stay
//! synchronous. Files are written by [`AtomicFile`]: a staging file beside the target (`<name>.<stamp>#<n>`), fsync of the file, rename, fsync of
//! the folder and of every folder made on the way. `object_store` does the same, but takes every byte as memory of its own: with two
//! copies of a shard and a sync that begins when all is written, checkpoints reached a fifth of the disk's speed. Two things it leaves to
//! us in any case: it does not sync a folder after a delete, and it cannot rename a folder.
//!
//! Another store (S3) needs another `Arc<dyn ObjectStore>` here, its multipart upload behind [`Upload`], and the local leaves left out.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::{fs, io};

use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Runtime;
use toroid_torus::owner::{OWNER_NAME, Stamp};

use super::{AtomicFile, CheckpointError};
use crate::system::{self, Folder};

#[derive(Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    /// Absolute; need not exist yet.
    folder: PathBuf,
    prefix: Key,
    /// In a simulation, instead of all these.
    played: Option<Arc<dyn Folder>>,
}

impl Objects {
    pub fn local(folder: &Path) -> Result<Objects, CheckpointError> {
        let root = folder.display().to_string();
        let bad = |what: String| CheckpointError::Root { root: root.clone(), what };
        let store = Arc::new(LocalFileSystem::new());
        if let Some(system) = system::simulated() {
            let played = Some(system.folder(&root));
            return Ok(Objects { store, runtime: None, folder: folder.into(), prefix: Key::default(), played });
        }
        let folder = resolve(folder).map_err(|e| bad(e.to_string()))?;
        if folder.exists() && !folder.is_dir() {
            return Err(bad("it is a file".into()));
        }
        let prefix = Key::from_absolute_path(&folder).map_err(|e| bad(e.to_string()))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CheckpointError::Runtime)?;
        Ok(Objects { store, runtime: Some(runtime), folder, prefix, played: None })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `name` is called in messages.
    pub fn display(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn key(&self, name: &str) -> Key {
        name.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("the runtime lives as long as the store").block_on(future)
    }

    /// Size in bytes; `None` where there is no such object.
    pub fn size(&self, name: &str) -> Result<Option<u64>, CheckpointError> {
        if self.played.is_some() {
            return Ok(self.read(name)?.map(|bytes| bytes.len() as u64));
        }
        match self.wait(self.store.head(&self.key(name))) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.cannot_read(name, e)),
        }
    }

    /// The whole object; `None` where there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        if let Some(folder) = &self.played {
            return folder.read(name).map_err(|e| self.cannot_read(name, e));
        }
        let key = self.key(name);
        match self.wait(async { self.store.get(&key).await?.bytes().await }) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.cannot_read(name, e)),
        }
    }

    /// Exactly the bytes `range`.
    pub fn read_range(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<impl Deref<Target = [u8]> + use<>, CheckpointError> {
        if self.played.is_some() {
            let whole = self.read(name)?.ok_or_else(|| CheckpointError::Missing { file: self.display(name) })?;
            let part = whole.get(range.start as usize..range.end as usize).map(<[u8]>::to_vec);
            let part = part.ok_or_else(|| self.cannot_read(name, format!("{} bytes, not {range:?}", whole.len())))?;
            return Ok(part.into());
        }
        match self.wait(self.store.get_range(&self.key(name), range.clone())) {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            Ok(bytes) => Err(self.cannot_read(name, format!("{} bytes at {range:?}", bytes.len()))),
            Err(object_store::Error::NotFound { .. }) => Err(CheckpointError::Missing { file: self.display(name) }),
            Err(e) => Err(self.cannot_read(name, e)),
        }
    }

    /// Starts an object of `total` bytes by the writer of `stamp`; nobody sees it before [`Upload::finish`].
    pub fn upload(&self, name: &str, stamp: &Stamp, total: u64) -> Result<Upload<'_>, CheckpointError> {
        if let Some(folder) = &self.played {
            let file = Target::Played(Arc::clone(folder), Vec::new());
            return Ok(Upload { objects: self, name: name.into(), total, num_written: 0, file });
        }
        // All places of a job write the owner's record at once; every other object has one writer.
        if name != OWNER_NAME {
            self.remove_staging(name, stamp);
        }
        let target = self.folder.join(name);
        let staging = self.folder.join(Objects::staging_name(name, stamp));
        let create = || {
            make_folder(target.parent().unwrap_or(&self.folder)).and_then(|()| AtomicFile::create_as(&target, &staging))
        };
        // The folder may have been empty, and removed as such, between the two.
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(),
            file => file,
        };
        let file = file.map_err(|e| self.cannot_write(name, total, e))?;
        let file = Target::File(file);
        Ok(Upload { objects: self, name: name.into(), total, num_written: 0, file })
    }

    /// Writes a small object.
    pub fn write(&self, name: &str, stamp: &Stamp, bytes: &[u8]) -> Result<(), CheckpointError> {
        let mut upload = self.upload(name, stamp, bytes.len() as u64)?;
        upload.write(bytes)?;
        upload.finish()
    }

    /// Writes a small object unless there is one of this name already; says whether it did.
    pub fn write_new(&self, name: &str, stamp: &Stamp, bytes: &[u8]) -> Result<bool, CheckpointError> {
        let mut upload = self.upload(name, stamp, bytes.len() as u64)?;
        upload.write(bytes)?;
        upload.finish_new()
    }

    /// Names of the folders and of the objects directly below `name` (the root: an empty name).
    pub fn list(&self, name: &str) -> Result<(Vec<String>, Vec<String>), CheckpointError> {
        if self.played.is_some() {
            let (mut folders, mut files) = (BTreeSet::new(), Vec::new());
            for below in self.played_names(name)? {
                match below.split_once('/') {
                    Some((folder, _)) => drop(folders.insert(folder.to_string())),
                    None => files.push(below),
                }
            }
            return Ok((folders.into_iter().collect(), files));
        }
        let key = if name.is_empty() { self.prefix.clone() } else { self.key(name) };
        let list = self.wait(self.store.list_with_delimiter(Some(&key))).map_err(|e| self.cannot_read(name, e))?;
        let last = |key: &Key| key.filename().map(String::from);
        let folders = list.common_prefixes.iter().filter_map(last).collect();
        Ok((folders, list.objects.iter().filter_map(|o| last(&o.location)).collect()))
    }

    /// Names below `name`, which is left out of them.
    fn played_names(&self, name: &str) -> Result<Vec<String>, CheckpointError> {
        let Some(folder) = &self.played else { return Ok(Vec::new()) };
        let below = if name.is_empty() { String::new() } else { format!("{name}/") };
        let names = folder.names(&below).map_err(|e| self.cannot_read(name, e))?;
        Ok(names.iter().filter_map(|n| n.strip_prefix(&below)).map(String::from).collect())
    }

    /// Deletes an object, durably. It is no error that there is none.
    pub fn delete(&self, name: &str) -> Result<(), CheckpointError> {
        self.delete_all("", &[name.to_string()])
    }

    /// Deletes files of one folder, durably when it returns, in their order. It is no error that there are none of some names.
    pub fn delete_all(&self, folder: &str, names: &[String]) -> Result<(), CheckpointError> {
        let mut parents = BTreeSet::new();
        for name in names {
            let name = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if let Some(folder) = &self.played {
                folder.remove(&name).map_err(|e| self.cannot_change("delete", &name, e))?;
                continue;
            }
            let path = self.folder.join(&name);
            match fs::remove_file(&path) {
                Ok(()) => parents.insert(path.parent().map_or_else(|| self.folder.clone(), Path::to_path_buf)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(self.cannot_change("delete", &name, e)),
            };
        }
        let sync = |parent: &PathBuf| match sync_folder(parent) {
            // Who has deleted the last file of it has deleted the folder, too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        };
        parents.iter().try_for_each(sync).map_err(|e| self.cannot_change("delete files in", folder, e))
    }

    /// Renames a file within its folder; says whether there was one. Not durable: who dies now may have done it or not.
    pub fn rename(&self, folder: &str, from: &str, to: &str) -> Result<bool, CheckpointError> {
        if let Some(played) = &self.played {
            let renamed = played.rename(&format!("{folder}/{from}"), &format!("{folder}/{to}"));
            return renamed.map_err(|e| self.cannot_change("rename", &format!("{folder}/{from}"), e));
        }
        let folder_path = self.folder.join(folder);
        match fs::rename(folder_path.join(from), folder_path.join(to)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.cannot_change("rename", &format!("{folder}/{from}"), e)),
        }
    }

    /// A name for `file` by which nobody takes it for what it was: that of a write that was not finished.
    pub fn staging_name(file: &str, stamp: &Stamp) -> String {
        format!("{file}.{stamp}#{}", unique())
    }

    /// Deletes a folder if nothing is in it; says whether it is gone.
    pub fn delete_empty_folder(&self, name: &str) -> Result<bool, CheckpointError> {
        if self.played.is_some() {
            // A played folder is there as long as something is in it.
            return Ok(self.played_names(name)?.is_empty());
        }
        match fs::remove_dir(self.folder.join(name)) {
            Ok(()) => sync_folder(&self.folder).map(|()| true).map_err(|e| self.cannot_change("delete", name, e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(self.cannot_change("delete", name, e)),
        }
    }

    /// Names of all that is in a folder, what is being written included, which [`Objects::list`] does not show; none where there is no such
    /// folder.
    pub fn names_in(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        if self.played.is_some() {
            return Ok(self.played_names(folder)?.into_iter().filter(|name| !name.contains('/')).collect());
        }
        let entries = match fs::read_dir(self.folder.join(folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(self.cannot_read(folder, e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| self.cannot_read(folder, e))?.file_name();
            // No name of ours is anything else.
            names.extend(name.into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Renames a folder to the first free name of `to`, `to.2`, `to.3`, ..., durably; returns that name.
    pub fn rename_folder(&self, from: &str, to: &str) -> Result<String, CheckpointError> {
        let played = self.played.as_ref().map(|_| self.list("")).transpose()?;
        let is_free = |name: &String| match &played {
            Some((folders, _)) => !folders.contains(name),
            None => !self.folder.join(name).exists(),
        };
        let to = if is_free(&to.to_string()) {
            to.to_string()
        } else {
            (2u64..).map(|n| format!("{to}.{n}")).find(is_free).expect("there are fewer folders than u64s")
        };
        if let Some(folder) = &self.played {
            let is_there = folder.rename(from, &to).map_err(|e| self.cannot_change("rename", from, e))?;
            let missing = || self.cannot_change("rename", from, io::Error::from(io::ErrorKind::NotFound));
            return is_there.then_some(to).ok_or_else(missing);
        }
        fs::rename(self.folder.join(from), self.folder.join(&to))
            .and_then(|()| sync_folder(&self.folder))
            .map_err(|e| self.cannot_change("rename", from, e))?;
        Ok(to)
    }

    /// Removes what writers of `name` in this epoch of this job, and in earlier ones, that died or failed have left. Of two writers of one
    /// object, the later one wins.
    fn remove_staging(&self, name: &str, stamp: &Stamp) {
        let target = self.folder.join(name);
        let (Some(folder), Some(file)) = (target.parent(), target.file_name().and_then(|f| f.to_str())) else { return };
        let Ok(entries) = fs::read_dir(folder) else { return };
        let is_staging = |path: &PathBuf| {
            let found = path.file_name().and_then(|f| f.to_str());
            let rest = found.and_then(|f| f.strip_prefix(file)).filter(|rest| rest.contains('#'));
            rest.and_then(|rest| stamp.owner.wrote(rest)).is_some_and(|epoch| epoch <= stamp.epoch)
        };
        for path in entries.filter_map(Result::ok).map(|e| e.path()).filter(is_staging) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the rest of an unfinished write");
            }
        }
    }

    fn cannot_read(&self, name: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CheckpointError {
        CheckpointError::Read { file: self.display(name), cause: cause.into() }
    }

    fn cannot_change(
        &self,
        action: &'static str,
        name: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> CheckpointError {
        CheckpointError::Change { action, file: self.display(name), cause: cause.into() }
    }

    fn cannot_write(&self, name: &str, bytes: u64, error: io::Error) -> CheckpointError {
        let file = self.display(name);
        let kind = error.kind();
        if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) {
            return CheckpointError::NoSpace { file, bytes, cause: error };
        }
        CheckpointError::Write { file, bytes, cause: error.into() }
    }
}

impl Drop for Objects {
    /// A runtime that is dropped in an async context panics; nothing is in flight here that had to be waited for.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An object on its way; dropped before [`Upload::finish`], nothing of it remains.
pub(super) struct Upload<'a> {
    objects: &'a Objects,
    name: String,
    /// Bytes of the whole object.
    total: u64,
    num_written: u64,
    file: Target,
}

enum Target {
    File(AtomicFile),
    /// In a simulation: all that was written so far.
    Played(Arc<dyn Folder>, Vec<u8>),
}

impl Upload<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.num_written += bytes.len() as u64;
        let written = match &mut self.file {
            Target::File(file) => file.write_all(bytes),
            Target::Played(_, all) => all.write_all(bytes),
        };
        written.map_err(|e| self.objects.cannot_write(&self.name, self.total, e))
    }

    /// Makes the object visible, durably.
    pub fn finish(self) -> Result<(), CheckpointError> {
        self.check_size();
        let made = match self.file {
            Target::File(file) => file.commit(&[]),
            Target::Played(folder, all) => folder.write(&self.name, &all),
        };
        made.map_err(|e| self.objects.cannot_write(&self.name, self.total, e))
    }

    /// The same unless there is one of its name already; says whether there was none.
    pub fn finish_new(self) -> Result<bool, CheckpointError> {
        self.check_size();
        let made = match self.file {
            Target::File(file) => file.commit_new(),
            Target::Played(folder, all) => folder.write_new(&self.name, &all),
        };
        made.map_err(|e| self.objects.cannot_write(&self.name, self.total, e))
    }

    fn check_size(&self) {
        assert_eq!(self.num_written, self.total, "the upload of {} has another size than was said", self.name);
    }
}

/// Makes a folder and those above it, durably.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else { return Ok(()) };
    make_folder(parent)?;
    match fs::create_dir(folder) {
        // Another place was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made.and_then(|()| sync_folder(parent)),
    }
}

/// `path` made absolute and free of links and `..` as far as it exists.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for existing in absolute.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            let rest = absolute.strip_prefix(existing).expect("an ancestor is a prefix");
            return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
        }
    }
    Ok(absolute)
}

/// Never twice, not even in two containers whose processes have one number. Digits only: `object_store` does not list such files.
fn unique() -> String {
    static NUM_MADE: AtomicU64 = AtomicU64::new(0);
    static OF_PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    format!("{:020}{}", *OF_PROCESS, NUM_MADE.fetch_add(1, Ordering::Relaxed))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
