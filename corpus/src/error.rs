//! What can go wrong with a pipeline, in words for who runs it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toroid_storage::StorageError;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{what} {}: {error}", path.display())]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    /// Something in the pipeline file, or in how the command was called.
    #[error("{0}")]
    Config(String),
    /// A file that a former task wrote is not what that task writes.
    #[error("{} is damaged ({what}); remove it and run again: its task is then done anew", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{bad} of {total} records are bad, more than read.max_bad_share = {share} allows; see {}, mend the source or raise the share",
        list.display()
    )]
    TooManyBad { bad: u64, total: u64, share: f64, list: PathBuf },
    #[error(
        "{refused} of {total} rows cannot be used ({reasons}), more than --max-refused = {share} allows; see {}, mend them or raise the share",
        list.display()
    )]
    TooManyRefused { refused: u64, total: u64, share: f64, reasons: String, list: PathBuf },
    #[error("{what} needs {needed_mib} MiB and --memory leaves {there_mib} MiB for it; give it more")]
    Memory { what: &'static str, needed_mib: u64, there_mib: u64 },
    #[error(
        "{place}: a document of {num_bytes} bytes; the memory of a thread has room for {there_mib} MiB; raise --memory, take fewer \
         --threads, or lower read.max_document_bytes: it is a bad record then"
    )]
    NoRoom { place: String, num_bytes: u64, there_mib: u64 },
    #[error(
        "{}: has files in it and no {mark}, so it may be somebody's and nothing in it is touched; if it is of an earlier version of this \
         program, remove it, else move it or name another folder", path.display()
    )]
    NotOurs { path: PathBuf, mark: &'static str },
    #[error("{} is in use by another process; wait for it, or name another folder with `work`", path.display())]
    InUse { path: PathBuf },
    #[error("{}: line {line}: {what}", path.display())]
    Model { path: PathBuf, line: u64, what: String },
    /// The ledger does not answer for every token: a fault of ours.
    #[error("the ledger does not add up: {0}")]
    Ledger(String),
}

impl Error {
    pub fn damaged(path: &Path, what: impl Into<String>) -> Error {
        Error::Damaged { path: path.to_owned(), what: what.into() }
    }
}

/// Names the file that an operation was about.
pub trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| match error.downcast() {
            // It names the object itself.
            Ok(error) => Error::Storage(error),
            Err(error) => Error::Io { what, path: path.to_owned(), error },
        })
    }
}
