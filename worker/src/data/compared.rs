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
