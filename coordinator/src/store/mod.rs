//! Where a coordinator keeps its records.

mod redb;

use std::path::PathBuf;

use crate::machine::record::Record;

pub use self::redb::RedbStore;

/// Records by key. One coordinator has it at a time (T-8).
pub trait Store: Send {
    /// All records, as they were last written.
    fn load(&mut self) -> Result<Vec<Record>, StoreError>;

    /// Replaces the records with these keys, all or none. They are durable when this returns.
    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError>;

    /// Drops the records with these keys, all or none.
    fn remove(&mut self, keys: &[String]) -> Result<(), StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the store {path} is in use: another coordinator runs on this folder; stop that one or start this one on another folder"
    )]
    InUse { path: PathBuf },
    #[error(
        "the store {path} cannot be opened: {reason}; if it is damaged, restore it from a copy or move it away to begin with an empty one (folders of jobs stay, with their checkpoints, and new jobs get other ids)"
    )]
    Open { path: PathBuf, reason: String },
    #[error(
        "the store {path} is damaged: {reason}; restore it from a copy or move it away to begin with an empty one (folders of jobs stay, with their checkpoints, and new jobs get other ids)"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the store {path} could not be written: {reason}; nothing was decided since. Free space or repair the disk, then start the coordinator again: training goes on meanwhile"
    )]
    Write { path: PathBuf, reason: String },
}
