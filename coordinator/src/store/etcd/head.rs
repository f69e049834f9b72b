//! The two keys that say who leads and what was written last, as one transaction sees them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toroid_torus::ids::Term;

use super::service::{Answer, Op, Pair};

/// Whoever leads, as it stands under the leader's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Of the process, drawn when it starts.
    pub id: String,
    /// `http://host:port` where users and workers reach it.
    pub address: String,
    pub term: Term,
}

/// The last write. Each write names the one before it, so that one whose answer was lost is known again, and none comes late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub term: Term,
    pub write: u64,
    pub id: String,
}

/// Both keys as one transaction has seen them.
pub(super) struct Seen {
    /// And the revision at which the key was created.
    pub leader: Option<(Leader, i64)>,
    /// And the revision at which it was written.
    pub head: Option<(Head, i64)>,
    /// Of the store.
    pub revision: i64,
}

/// Where a cluster has its keys.
#[derive(Debug, Clone)]
pub(super) struct Prefix(pub Arc<str>);

impl Prefix {
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// What shows who leads and what was written last; read by [`Prefix::seen`].
    pub fn look(&self) -> Vec<Op> {
        ["leader", "head"].map(|name| Op::Get { key: self.key(name) }).into()
    }

    pub fn seen(&self, answer: &Answer) -> Seen {
        let find = |name: &str| {
            let key = self.key(name);
            answer.pairs.iter().find(|pair| pair.key == key)
        };
        // What cannot be read is somebody else's all the same.
        let leader = |pair: &Pair| {
            let unknown = || Leader { id: String::new(), address: String::new(), term: Term::default() };
            (serde_json::from_slice(&pair.value).unwrap_or_else(|_| unknown()), pair.created)
        };
        let head = |pair: &Pair| {
            let unknown = || Head { term: Term::default(), write: 0, id: String::new() };
            (serde_json::from_slice(&pair.value).unwrap_or_else(|_| unknown()), pair.modified)
        };
        Seen { leader: find("leader").map(leader), head: find("head").map(head), revision: answer.revision }
    }
}
