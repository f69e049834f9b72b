//! What is asked of etcd, and the clock by which leases are counted: all that the code of this folder knows of the world.
//!
//! [`Members`](super::Members) is etcd; a simulation plays it. Words are etcd's: a revision counts the writes of the whole store, and a key has that at which
//! it was created and that at which it was last modified.

use std::time::Duration;

use tokio::time::Instant;

/// Why a call came to nothing, in words that say what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{words}")]
pub struct CallError {
    pub kind: Kind,
    pub words: String,
}

/// What can be told apart by what etcd answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing came within the deadline: whether it was done is not known.
    Silent,
    NoSpace,
    NoQuorum,
    /// The user is not taken, or none is named where one must be.
    User,
    Permission,
    LeaseGone,
    Other,
}

/// What must be so for a transaction to be done. Of a key that is not there both revisions are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    Created { key: String, revision: i64 },
    Modified { key: String, revision: i64 },
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Goes with its lease, where it has one.
    Put {
        key: String,
        value: Vec<u8>,
        lease: Option<i64>,
    },
    Get {
        key: String,
    },
    Delete {
        key: String,
    },
    /// All keys that begin so.
    DeletePrefix {
        prefix: String,
    },
}

/// `then` where all of `when` holds, and `otherwise` if not; all of it at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub when: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// Keys and values that it writes.
    pub fn num_bytes(&self) -> u64 {
        let of = |op: &Op| match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } | Op::Get { key } => key.len(),
            Op::DeletePrefix { prefix } => prefix.len(),
        };
        self.then.iter().map(|op| of(op) as u64).sum()
    }
}

/// A key as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: Vec<u8>,
    pub created: i64,
    pub modified: i64,
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `then` was done.
    pub succeeded: bool,
    /// Of the store, with this transaction.
    pub revision: i64,
    /// What its gets have found.
    pub pairs: Vec<Pair>,
}

/// Keys from `from` on, below `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub from: String,
    pub end: String,
    pub limit: i64,
    pub keys_only: bool,
}

/// A part of a range, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Of the store as it was seen: a member that was paused may know an old one only.
    pub revision: i64,
    pub pairs: Vec<Pair>,
    pub has_more: bool,
}

/// The members of an etcd cluster, of which one is asked at a time, and the clock. `what` of a call: as in "could not `what`". Each call has a deadline; after one
/// that failed the next member is asked.
pub trait Service: Clone + Send + Sync + 'static {
    /// Monotonic.
    fn now(&self) -> Instant;
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send;
    /// Beside whoever asks.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);

    fn txn(&mut self, what: &'static str, txn: &Txn) -> impl Future<Output = Result<Answer, CallError>> + Send;
    fn list(&mut self, what: &'static str, range: &Range) -> impl Future<Output = Result<Page, CallError>> + Send;
    /// A lease that lasts so long, or longer.
    fn grant(&mut self, ttl: Duration) -> impl Future<Output = Result<i64, CallError>> + Send;
    fn renew(&mut self, lease: i64) -> impl Future<Output = Result<(), CallError>> + Send;
    fn revoke(&mut self, lease: i64) -> impl Future<Output = Result<(), CallError>> + Send;
    /// Drops what was before `revision`, but for the values that keys have at it.
    fn compact(&mut self, revision: i64) -> impl Future<Output = Result<(), CallError>> + Send;
    /// Returns when something happened to a key after `revision`, or may have; `limit` is the longest that it takes.
    fn watch(&mut self, key: &str, revision: i64, limit: Duration) -> impl Future<Output = ()> + Send;

    /// The next call goes to another member.
    fn next(&mut self);
    /// What every member that was tried since the last answer has said.
    fn failures(&self) -> String;
}
