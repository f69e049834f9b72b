//! Where a coordinator keeps its records, and whose word counts.
//!
//! ```text
//!   Store     load, commit(Change): one decision, all of it or nothing      redb   one file, locked
//!   Tenure    the term of this leadership, until when it lasts              etcd   several coordinators, one lease
//! ```
//!
//! Invariants: **T-8** what a coordinator writes is refused once another one leads; **T-13** each opening has a term greater than all before,
//! durable before it does anything. Deliberately absent: what records mean.

pub mod etcd;
mod redb;
mod tenure;
mod value;

use std::path::PathBuf;

use crate::machine::Change;
use crate::machine::RestoreError;
use crate::machine::record::Record;

pub use self::redb::RedbStore;
pub use self::tenure::Tenure;

/// Records by key. One coordinator has it at a time (T-8).
#[tonic::async_trait]
pub trait Store: Send {
    /// The leadership that this opening is.
    fn tenure(&self) -> Tenure;

    /// All records, as they were last written.
    async fn load(&mut self) -> Result<Vec<Record>, StoreError>;

    /// Makes one decision durable, all of it or nothing. Tries again for as long as the leadership lasts where the store can be away; meanwhile
    /// [`Tenure::trouble`] says why. After an error nothing more is to be decided.
    async fn commit(&mut self, change: &Change) -> Result<(), StoreError>;

    /// Gives the leadership back, so that another coordinator need not wait for its end.
    async fn resign(&mut self);
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
    #[error(
        "the records under {prefix} in etcd are damaged: {reason}; restore etcd from a snapshot, or name another prefix to begin with an empty store (folders of jobs stay, with their checkpoints, and new jobs get other ids)"
    )]
    DamagedInEtcd { prefix: String, reason: String },
    /// A newer version has led here.
    #[error(transparent)]
    Format(#[from] RestoreError),
    /// The coordinator does not lead any more: it decides nothing, and may lead again later.
    #[error("this coordinator does not lead any more: {reason}")]
    Deposed { reason: String },
}
