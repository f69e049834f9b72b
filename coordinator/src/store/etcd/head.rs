//! The two keys that say who leads and what was written last, as one transaction sees them.

use etcd_client::{GetOptions, KeyValue, TxnOp, TxnOpResponse, TxnResponse};
use serde::{Deserialize, Serialize};
use toroid_torus::ids::Term;

use super::config::EtcdConfig;

/// Whoever leads, as it stands under the leader's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// Of the process, drawn when it starts.
    pub id: String,
    /// `http://host:port` where users and workers reach it.
    pub address: String,
    pub term: Term,
}

/// The last write. Each write names the one before it, so that one whose answer was lost is known again, and none comes late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub term: Term,
    pub write: u64,
    pub id: String,
}

/// Both keys as one transaction has seen them.
pub(super) struct Seen {
    pub leader: Option<(Leader, KeyValue)>,
    pub head: Option<(Head, i64)>,
    /// Of the store.
    pub revision: i64,
}

impl EtcdConfig {
    /// What shows who leads and what was written last; read by [`EtcdConfig::seen`].
    pub(super) fn look(&self) -> [TxnOp; 2] {
        ["leader", "head"].map(|key| TxnOp::get(self.key(key), Some(GetOptions::new())))
    }

    pub(super) fn seen(&self, answer: &TxnResponse) -> Seen {
        let mut pairs = answer.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(mut get) => get.take_kvs().pop(),
            _ => None,
        });
        let (leader_key, head_key) = (self.key("leader"), self.key("head"));
        let (mut leader, mut head) = (None, None);
        for pair in &mut pairs {
            if pair.key() == leader_key.as_bytes() {
                // What cannot be read is somebody else's all the same.
                let unknown = || Leader { id: String::new(), address: String::new(), term: Term::default() };
                leader = Some((serde_json::from_slice(pair.value()).unwrap_or_else(|_| unknown()), pair));
            } else if pair.key() == head_key.as_bytes() {
                let unknown = || Head { term: Term::default(), write: 0, id: String::new() };
                head = Some((serde_json::from_slice(pair.value()).unwrap_or_else(|_| unknown()), pair.mod_revision()));
            }
        }
        Seen { leader, head, revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision) }
    }
}
