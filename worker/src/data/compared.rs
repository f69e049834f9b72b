//! Which files this process has gone through and found right: each once, however often it is opened.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What tells a file from another, or from itself before it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity([u64; 5]);

impl Identity {
    pub fn of(metadata: &fs::Metadata) -> Identity {
        let changed = [metadata.ctime().cast_unsigned(), metadata.ctime_nsec().cast_unsigned()];
        Identity([metadata.dev(), metadata.ino(), metadata.len(), changed[0], changed[1]])
    }
}

/// How a file was when it was mapped. What takes its name from then on is another one, and nothing of what is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AsMapped {
    file: [u64; 2],
    len: u64,
    written: [i64; 2],
}

impl AsMapped {
    pub fn of(metadata: &fs::Metadata) -> AsMapped {
        AsMapped {
            file: [metadata.dev(), metadata.ino()],
            len: metadata.len(),
            written: [metadata.mtime(), metadata.mtime_nsec()],
        }
    }

    /// It has been written to since.
    pub fn was_changed(&self, path: &Path) -> bool {
        let now = fs::metadata(path).map(|metadata| AsMapped::of(&metadata));
        now.is_ok_and(|now| now.file == self.file && now != *self)
    }
}

static COMPARED: Mutex<BTreeMap<PathBuf, Identity>> = Mutex::new(BTreeMap::new());

fn compared() -> MutexGuard<'static, BTreeMap<PathBuf, Identity>> {
    // A thread that panicked with the lock has left the map whole: it does single inserts.
    COMPARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has `check` go through the file, unless it was found right before.
pub(super) fn once<E>(path: &Path, identity: Identity, check: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    if compared().get(path) == Some(&identity) {
        return Ok(());
    }
    check()?;
    compared().insert(path.into(), identity);
    Ok(())
}
