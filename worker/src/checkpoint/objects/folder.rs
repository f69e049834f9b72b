//! A folder of this machine's file systems, or of one that several machines share.
//!
//! Files are written by [`AtomicFile`]: a staging file beside the target (`<name>.<stamp>#<n>`), fsync of the file, rename, fsync of
//! the folder and of every folder made on the way.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use toroid_torus::owner::{OWNER_NAME, OwnerId, Stamp};

use super::{Aside, DAMAGED_PREFIX, MAX_WHOLE_BYTES, Objects, Target, cannot_change, cannot_read};
use crate::checkpoint::{AtomicFile, CheckpointError};

#[derive(Debug)]
pub(super) struct Folder {
    /// Absolute; need not exist yet.
    path: PathBuf,
    root: String,
}

impl Folder {
    pub fn open(folder: &Path) -> Result<Folder, CheckpointError> {
        let bad = |what: String| CheckpointError::Root { root: folder.display().to_string(), what };
        let path = resolve(folder).map_err(|e| bad(e.to_string()))?;
        if path.exists() && !path.is_dir() {
            return Err(bad("it is a file; give the path of a folder".into()));
        }
        Ok(Folder { root: path.display().to_string(), path })
    }

    /// Names of the entries of a folder that `is_wanted`; none where there is no such folder.
    fn entries(&self, folder: &str, is_wanted: fn(&fs::DirEntry) -> bool) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(self.path.join(folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(cannot_read(self.display(folder), e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| cannot_read(self.display(folder), e))?;
            if is_wanted(&entry) {
                // No name of ours is anything else.
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn delete_paths(&self, folder: &str, names: impl Iterator<Item = String>) -> Result<(), CheckpointError> {
        let mut parents = BTreeSet::new();
        for name in names {
            let path = self.path.join(&name);
            match fs::remove_file(&path) {
                Ok(()) => parents.insert(path.parent().map_or_else(|| self.path.clone(), Path::to_path_buf)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(cannot_change("delete", self.display(&name), e)),
            };
        }
        let sync = |parent: &PathBuf| match sync_folder(parent) {
            // Who has deleted the last file of it has deleted the folder, too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        };
        parents.iter().try_for_each(sync).map_err(|e| cannot_change("delete files in", self.display(folder), e))
    }

    /// Renames a file within its folder; says whether there was one. Not durable: who dies now may have done it or not.
    fn rename(&self, folder: &str, from: &str, to: &str) -> Result<bool, CheckpointError> {
        let path = self.path.join(folder);
        match fs::rename(path.join(from), path.join(to)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(cannot_change("rename", self.display(&format!("{folder}/{from}")), e)),
        }
    }

    /// Removes what writers of `name` in this epoch of this job, and in earlier ones, that died or failed have left. Of two writers of one
    /// object, the later one wins.
    fn remove_staging(&self, name: &str, stamp: &Stamp) {
        let target = self.path.join(name);
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

    fn start(&self, name: &str, stamp: &Stamp, total: u64) -> Result<Writing<'_>, CheckpointError> {
        // All places of a job write the owner's record at once; every other object has one writer.
        if name != OWNER_NAME {
            self.remove_staging(name, stamp);
        }
        let target = self.path.join(name);
        let staging = self.path.join(staging_name(name, stamp));
        let create = || {
            make_folder(target.parent().unwrap_or(&self.path)).and_then(|()| AtomicFile::create_as(&target, &staging))
        };
        // The folder may have been empty, and removed as such, between the two.
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(),
            file => file,
        };
        let file = file.map_err(|e| cannot_write(self.display(name), total, e))?;
        Ok(Writing { to: self, name: name.into(), total, file })
    }
}

impl Objects for Folder {
    fn root(&self) -> &str {
        &self.root
    }

    fn display(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn size(&self, name: &str) -> Result<Option<u64>, CheckpointError> {
        match fs::metadata(self.path.join(name)) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(cannot_read(self.display(name), e)),
        }
    }

    fn sizes_in(&self, folder: &str, _: &Stamp, files: &[&str]) -> Result<Vec<Option<u64>>, CheckpointError> {
        files.iter().map(|file| self.size(&format!("{folder}/{file}"))).collect()
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        let read = || {
            let file = File::open(self.path.join(name))?;
            let (len, mut bytes) = (file.metadata()?.len(), Vec::new());
            // A device has no length, and no end.
            if len <= MAX_WHOLE_BYTES {
                file.take(MAX_WHOLE_BYTES + 1).read_to_end(&mut bytes)?;
            }
            match len.max(bytes.len() as u64) <= MAX_WHOLE_BYTES {
                true => Ok(bytes),
                false => Err(io::Error::other(format!("it has more than {MAX_WHOLE_BYTES} bytes"))),
            }
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(cannot_read(self.display(name), e)),
        }
    }

    fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        let read = || {
            let file = File::open(self.path.join(name))?;
            let len = file.metadata()?.len();
            if len < range.end {
                return Err(io::Error::other(format!("it has {len} bytes, bytes {range:?} are asked for")));
            }
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok(bytes.into())
        };
        read().map_err(|e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => CheckpointError::Missing { file: self.display(name) },
            _ => cannot_read(self.display(name), e),
        })
    }

    fn begin<'a>(&'a self, name: &str, stamp: &Stamp, total: u64) -> Result<Box<dyn Target + 'a>, CheckpointError> {
        Ok(Box::new(self.start(name, stamp, total)?))
    }

    fn write(&self, name: &str, stamp: &Stamp, bytes: &[u8]) -> Result<(), CheckpointError> {
        let mut writing = self.start(name, stamp, bytes.len() as u64)?;
        writing.write(bytes)?;
        Box::new(writing).finish()
    }

    fn write_new(&self, name: &str, stamp: &Stamp, bytes: &[u8]) -> Result<bool, CheckpointError> {
        let total = bytes.len() as u64;
        let mut writing = self.start(name, stamp, total)?;
        writing.write(bytes)?;
        writing.file.commit_new().map_err(|e| cannot_write(self.display(name), total, e))
    }

    fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        self.entries("", |entry| entry.path().is_dir())
    }

    fn names_in(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        self.entries(folder, |_| true)
    }

    fn delete(&self, name: &str) -> Result<(), CheckpointError> {
        self.delete_paths("", [name.to_string()].into_iter())
    }

    fn delete_all(&self, folder: &str, files: &[String]) -> Result<(), CheckpointError> {
        self.delete_paths(folder, files.iter().map(|file| format!("{folder}/{file}")))
    }

    fn delete_empty_folder(&self, folder: &str) -> Result<bool, CheckpointError> {
        match fs::remove_dir(self.path.join(folder)) {
            Ok(()) => {
                sync_folder(&self.path).map(|()| true).map_err(|e| cannot_change("delete", self.display(folder), e))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(cannot_change("delete", self.display(folder), e)),
        }
    }

    fn put_aside(&self, folder: &str, file: &str, stamp: &Stamp) -> Result<Option<Aside>, CheckpointError> {
        let by = staging_name(file, stamp);
        Ok(self.rename(folder, file, &by)?.then(|| Aside { file: file.into(), by }))
    }

    fn put_back(&self, folder: &str, aside: &Aside) -> Result<(), CheckpointError> {
        self.rename(folder, &aside.by, &aside.file).map(|_| ())
    }

    fn delete_aside(&self, folder: &str, asides: &[Aside]) -> Result<(), CheckpointError> {
        self.delete_paths(folder, asides.iter().map(|aside| format!("{folder}/{}", aside.by)))
    }

    /// Renames the folder to the first free name of `damaged-<folder>`, `damaged-<folder>.2`, ...
    fn set_aside(&self, folder: &str, _: &OwnerId) -> Result<String, CheckpointError> {
        let to = free_name(&damaged_name(folder), |name| !self.path.join(name).exists());
        fs::rename(self.path.join(folder), self.path.join(&to))
            .and_then(|()| sync_folder(&self.path))
            .map_err(|e| cannot_change("rename", self.display(folder), e))?;
        Ok(self.display(&to))
    }

    fn is_set_aside(&self, folder: &str) -> Result<bool, CheckpointError> {
        Ok(is_set_aside(&self.folders()?, folder))
    }
}

/// A file on its way.
struct Writing<'a> {
    to: &'a Folder,
    name: String,
    total: u64,
    file: AtomicFile,
}

impl Target for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_all(bytes).map_err(|e| cannot_write(self.to.display(&self.name), self.total, e))
    }

    fn finish(self: Box<Self>) -> Result<(), CheckpointError> {
        self.file.commit(&[]).map_err(|e| cannot_write(self.to.display(&self.name), self.total, e))
    }
}

/// A name for `file` by which nobody takes it for what it was: that of a write that was not finished.
pub(super) fn staging_name(file: &str, stamp: &Stamp) -> String {
    format!("{file}.{stamp}#{}", unique())
}

pub(super) fn damaged_name(folder: &str) -> String {
    format!("{DAMAGED_PREFIX}{folder}")
}

/// The first free name of `name`, `name.2`, `name.3`, ...
pub(super) fn free_name(name: &str, is_free: impl Fn(&String) -> bool) -> String {
    let numbered = (2u64..).map(|n| format!("{name}.{n}"));
    [name.to_string()].into_iter().chain(numbered).find(is_free).expect("there are fewer folders than u64s")
}

/// There is what was set aside of `folder`, and nothing else.
pub(super) fn is_set_aside(folders: &[String], folder: &str) -> bool {
    let damaged = damaged_name(folder);
    let numbered = format!("{damaged}.");
    !folders.iter().any(|name| name == folder)
        && folders.iter().any(|name| *name == damaged || name.starts_with(&numbered))
}

pub(super) fn cannot_write(file: String, bytes: u64, error: io::Error) -> CheckpointError {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) {
        return CheckpointError::NoSpace { file, bytes, cause: error };
    }
    CheckpointError::Write { file, bytes, cause: error.into() }
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

/// Never twice, not even in two containers whose processes have one number.
fn unique() -> String {
    static NUM_MADE: AtomicU64 = AtomicU64::new(0);
    static OF_PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    format!("{:020}{}", *OF_PROCESS, NUM_MADE.fetch_add(1, Ordering::Relaxed))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
