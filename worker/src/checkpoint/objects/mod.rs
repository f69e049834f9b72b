//! The files of checkpoints as named objects, `step-<n>/<file>` or `<file>` below a root: written whole and durable, or not at all.
//!
//! ```text
//!   Objects ── Folder    of this machine's file systems: staging file, fsync, rename, fsync of the folder
//!           ├─ Bucket    of an S3-compatible store: an object appears when its upload completes; nothing is ever renamed
//!           └─ Played    of a simulation: durable at once
//! ```
//!
//! What is renamed in a folder has an equivalent that is one small object in a bucket: a shard that is put aside has a marker beside it
//! ([`Objects::put_aside`]), and a checkpoint that is set aside loses its manifest to another name ([`Objects::set_aside`]).
//!
//! Deliberately absent: what the files are, and whose (`write`, `owned`).

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use toroid_torus::owner::{OwnerId, Stamp};

use super::CheckpointError;
use crate::system;

pub(super) mod bucket;
mod folder;
mod played;
mod store;

/// Begins the name of the folder of a checkpoint that was set aside, where folders can be renamed.
pub(super) const DAMAGED_PREFIX: &str = "damaged-";

/// Opens what a root names, a folder's path, a `file://` URL or an `s3://` URL. Nothing is made before the first write.
pub(super) fn open(root: &str) -> Result<Arc<dyn Objects>, CheckpointError> {
    if root.is_empty() {
        return Err(CheckpointError::Root {
            root: root.into(),
            what: "the path is empty; give a folder's path, a file:// URL or an s3:// URL".into(),
        });
    }
    let path = match root.split_once("://") {
        None => root,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(("file", _)) => {
            let what = "a file:// URL needs an absolute path, as in file:///data/checkpoints".into();
            return Err(CheckpointError::Root { root: root.into(), what });
        }
        Some(("s3", _)) if system::simulated().is_none() => {
            let store = store::Remote::open(root);
            let store = store.map_err(|e| CheckpointError::Root { root: root.into(), what: e.why().into() })?;
            return Ok(Arc::new(bucket::Bucket::new(Box::new(store))));
        }
        Some(("s3", path)) => path,
        Some((scheme, _)) => return Err(CheckpointError::Scheme { root: root.into(), scheme: scheme.into() }),
    };
    Ok(match system::simulated() {
        Some(system) => Arc::new(played::Played::new(path, system.folder(path))),
        None => Arc::new(folder::Folder::open(Path::new(path))?),
    })
}

/// Of an object that is read whole: manifests and records.
const MAX_WHOLE_BYTES: u64 = 512 << 20;
/// What is read at a time by whoever reads more.
const PIECE_BYTES: u64 = 8 << 20;

/// Whom the pieces of an object are shown to; an error of theirs ends it.
pub(super) type Shown<'a> = dyn FnMut(Bytes) -> Result<(), CheckpointError> + 'a;

/// Names are those of objects below the root, `step-<n>/<file>` or `<file>`; a `folder` is a `step-<n>`.
pub(super) trait Objects: Debug + Send + Sync {
    /// The root in messages, and as it is opened again.
    fn root(&self) -> &str;

    /// What `name` is called in messages.
    fn display(&self, name: &str) -> String;

    /// Size in bytes; `None` where there is no such object.
    fn size(&self, name: &str) -> Result<Option<u64>, CheckpointError>;

    /// Those of `folders` that have the object `name` in them.
    fn with_object(&self, folders: Vec<String>, name: &str) -> Result<Vec<String>, CheckpointError> {
        let has = |folder: String| match self.size(&format!("{folder}/{name}")) {
            Ok(size) => size.map(|_| Ok(folder)),
            Err(error) => Some(Err(error)),
        };
        folders.into_iter().filter_map(has).collect()
    }

    /// Sizes of these files of a folder, in their order; `None` where a file is not there, or is put aside. None is where the manifest of `stamp` was set
    /// aside as damaged.
    fn sizes_in(&self, folder: &str, stamp: &Stamp, files: &[&str]) -> Result<Vec<Option<u64>>, CheckpointError>;

    /// The whole object; `None` where there is none.
    fn read(&self, name: &str) -> Result<Option<Bytes>, CheckpointError>;

    /// Exactly the bytes `range`.
    fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, CheckpointError>;

    /// Shows the bytes `range` to `f`, piece by piece in their order.
    fn for_each_piece(&self, name: &str, range: Range<u64>, f: &mut Shown<'_>) -> Result<(), CheckpointError> {
        for start in range.clone().step_by(PIECE_BYTES as usize) {
            f(self.read_range(name, start..range.end.min(start + PIECE_BYTES))?)?;
        }
        Ok(())
    }

    /// Starts an object of `total` bytes by the writer of `stamp`; see `upload`.
    fn begin<'a>(&'a self, name: &str, stamp: &Stamp, total: u64) -> Result<Box<dyn Target + 'a>, CheckpointError>;

    /// Writes a small object.
    fn write(&self, name: &str, stamp: &Stamp, bytes: &[u8]) -> Result<(), CheckpointError>;

    /// Writes a small object unless there is one of this name already; says whether it did. Of several writers at once one does.
    fn write_new(&self, name: &str, stamp: &Stamp, bytes: &[u8]) -> Result<bool, CheckpointError>;

    /// Names of the folders.
    fn folders(&self) -> Result<Vec<String>, CheckpointError>;

    /// Names of all that is in a folder, what is being written included where it can be seen; none where there is no such folder.
    fn names_in(&self, folder: &str) -> Result<Vec<String>, CheckpointError>;

    /// Deletes an object, durably. It is no error that there is none.
    fn delete(&self, name: &str) -> Result<(), CheckpointError>;

    /// Deletes files of a folder, durably when it returns. It is no error that there are none of some names.
    fn delete_all(&self, folder: &str, files: &[String]) -> Result<(), CheckpointError>;

    /// Deletes a folder if nothing is in it; says whether it is gone.
    fn delete_empty_folder(&self, folder: &str) -> Result<bool, CheckpointError>;

    /// Has [`Objects::sizes_in`] not find a file any more; `None`: there was none.
    fn put_aside(&self, folder: &str, file: &str, stamp: &Stamp) -> Result<Option<Aside>, CheckpointError>;

    /// Has it found again.
    fn put_back(&self, folder: &str, aside: &Aside) -> Result<(), CheckpointError>;

    /// Deletes files that were put aside.
    fn delete_aside(&self, folder: &str, asides: &[Aside]) -> Result<(), CheckpointError>;

    /// The damaged checkpoint in `folder` is not seen as one any more, and kept for whoever looks; returns where.
    fn set_aside(&self, folder: &str, owner: &OwnerId) -> Result<String, CheckpointError>;

    /// There is what was set aside of this folder, and no checkpoint.
    fn is_set_aside(&self, folder: &str) -> Result<bool, CheckpointError>;
}

/// A file that was put aside.
#[derive(Debug)]
pub(super) struct Aside {
    file: String,
    /// What there is of it: its other name, or the marker beside it.
    by: String,
}

impl dyn Objects {
    /// Starts an object of `total` bytes by the writer of `stamp`; nobody sees it before [`Upload::finish`].
    pub fn upload(&self, name: &str, stamp: &Stamp, total: u64) -> Result<Upload<'_>, CheckpointError> {
        Ok(Upload { name: name.into(), total, num_written: 0, target: self.begin(name, stamp, total)? })
    }
}

/// Where the bytes of an object go; dropped before it is finished, nothing of it remains.
pub(super) trait Target {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError>;

    /// Makes the object visible, durably.
    fn finish(self: Box<Self>) -> Result<(), CheckpointError>;
}

/// An object on its way; dropped before [`Upload::finish`], nothing of it remains.
pub(super) struct Upload<'a> {
    name: String,
    /// Bytes of the whole object.
    total: u64,
    num_written: u64,
    target: Box<dyn Target + 'a>,
}

impl Upload<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.num_written += bytes.len() as u64;
        self.target.write(bytes)
    }

    /// Makes the object visible, durably.
    pub fn finish(self) -> Result<(), CheckpointError> {
        assert_eq!(self.num_written, self.total, "the upload of {} has another size than was said", self.name);
        self.target.finish()
    }
}

/// What the error of an operation is about.
fn cannot_read(file: String, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CheckpointError {
    CheckpointError::Read { file, cause: cause.into() }
}

fn cannot_change(
    action: &'static str,
    file: String,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CheckpointError {
    CheckpointError::Change { action, file, cause: cause.into() }
}
