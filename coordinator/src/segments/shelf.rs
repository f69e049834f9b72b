//! Where the files of a curve lie, and what can go wrong there.

use std::fmt::Debug;

use toroid_torus::owner::Owner;

/// Of the checkpoints' root.
pub const FOLDER: &str = "curve";
/// Begins the name of what is not whole yet, where files come about piece by piece: `new-<term>-<n>`.
pub const NEW: &str = "new-";

#[derive(Debug, thiserror::Error)]
pub enum SegmentsError {
    #[error("{what} {path} failed: {error}")]
    Io { what: &'static str, path: String, error: Box<dyn std::error::Error + Send + Sync> },
    /// A store that does not answer, or answers that it cannot now, whatever it is asked.
    #[error("{what} {path} failed: {error}")]
    Unanswered { what: &'static str, path: String, error: Box<dyn std::error::Error + Send + Sync> },
    #[error("{path} is not what a coordinator writes: {reason}")]
    Damaged { path: String, reason: String },
    #[error("{root} is the checkpoint folder of {owner}: no curve is kept there for another job")]
    Owned { root: String, owner: Box<Owner> },
    #[error("{path} was written by a leader of a later term: this coordinator does not lead any more")]
    Deposed { path: String },
    /// Whoever begins to lead anew has it as it is.
    #[error("{folder} has the curve up to step {found}, and this coordinator has it up to step {known}")]
    Another { folder: String, found: u64, known: u64 },
}

/// Files of one folder, named as the curve names them.
pub trait Shelf: Debug + Send {
    /// Where the checkpoints are, in messages.
    fn root(&self) -> &str;

    /// Where the curve is, in messages.
    fn folder(&self) -> &str;

    /// What a file is called in messages.
    fn display(&self, name: &str) -> String {
        format!("{}/{name}", self.folder())
    }

    /// The store that has to answer; `None`: a file system.
    fn store(&self) -> Option<String> {
        None
    }

    /// Rows may be appended to a file.
    fn grows(&self) -> bool;

    /// Rows behind a head; beyond, they become a segment.
    fn segment_bytes(&self) -> u64;

    /// Names of all files; none where there is no such folder.
    fn names(&self) -> Result<Vec<String>, SegmentsError>;

    /// A file, at most so many bytes of it; `None`: there is none of this name.
    fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, SegmentsError>;

    /// Exactly these bytes.
    fn read_range(&self, name: &str, start: u64, end: u64) -> Result<Vec<u8>, SegmentsError>;

    /// The record of whose the checkpoints are.
    fn owner(&self) -> Result<Vec<u8>, SegmentsError>;

    /// Makes a file that is whole and durable when it can be seen.
    fn appear(&self, name: &str, parts: &[&[u8]]) -> Result<(), SegmentsError>;

    /// Makes rows durable behind the first `end` bytes of a file, in the place of all that is there. Only where files grow.
    fn append(&self, name: &str, end: u64, rows: &[u8]) -> Result<(), SegmentsError>;

    fn remove(&self, name: &str) -> Result<(), SegmentsError>;
}
