//! How one of several coordinators comes to lead.
//!
//! ```text
//!   look: who leads? ──somebody──> watch the leader's key, for a while ──┐
//!     ^ ^   '──nobody──> lease; one transaction: no leader, and nothing was written since we looked ──> leads
//!     | '─────────────────────────────── another was faster <────────────────'                          |
//!     '──────────────────────────────────────────────────────────────────────────────── its lease ended ┘
//! ```
//!
//! A watch is only what makes it quick: the library never opens a broken one again, a compacted one ends, and a member that is cut off is silent.
//! So after half a lease at most it looks again, by a transaction, which no stale member answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use toroid_torus::failpoint;
use toroid_torus::ids::Term;

use super::client::Members;
use super::config::EtcdConfig;
use super::head::{Head, Leader, Prefix, Seen};
use super::history::History;
use super::lease;
use super::records::{EtcdStore, Led};
use super::service::{CallError, Compare, Op, Service, Txn};

/// Between two attempts while etcd does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// What a standby knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    pub leader: Option<Leader>,
    /// Why it cannot see, or lead.
    pub trouble: Option<String>,
}

/// A coordinator that leads when nobody else does.
pub struct Candidate<S: Service = Members> {
    etcd: S,
    prefix: Prefix,
    address: String,
    id: String,
    ttl: Duration,
    history: Option<History>,
    /// A term that was heard elsewhere: the store may be a copy from before it.
    heard: Term,
}

impl Candidate {
    /// `address`: where users and workers reach it, `http://host:port`; `id`: of this process, random; `ttl`: of its lease, in whole seconds.
    pub fn new(config: EtcdConfig, address: String, id: String, ttl: Duration) -> Candidate {
        let (prefix, history) = (config.prefix.clone(), config.history);
        let members = Members::new(Arc::new(config), call_limit(ttl));
        Candidate { history, ..Candidate::over(members, &prefix, address, id, ttl) }
    }
}

/// How long one call may take: a lease outlasts some that nobody answers.
pub fn call_limit(ttl: Duration) -> Duration {
    ttl / 4
}

impl<S: Service> Candidate<S> {
    /// The same, over another service.
    pub fn over(etcd: S, prefix: &str, address: String, id: String, ttl: Duration) -> Candidate<S> {
        let (prefix, history) = (Prefix(prefix.into()), Some(History::default()));
        Candidate { etcd, prefix, address, id, ttl, history, heard: Term::default() }
    }

    /// It leads with terms greater than this one.
    pub fn lead_beyond(&mut self, heard: Term) {
        self.heard = self.heard.max(heard);
    }

    /// Waits until it leads, for as long as that takes, and tells what it sees meanwhile. May be dropped at any time: what it has begun then ends
    /// with its lease.
    pub async fn campaign(&mut self, sight: &watch::Sender<Sight>) -> EtcdStore<S> {
        loop {
            match self.attempt(sight).await {
                Ok(Some(store)) => return store,
                Ok(None) => {}
                Err(error) => {
                    let trouble = self.etcd.failures();
                    let trouble = if trouble.is_empty() { error.to_string() } else { trouble };
                    tell(sight, |sight| sight.trouble = Some(trouble));
                    self.etcd.sleep_until(self.etcd.now() + RETRY).await;
                }
            }
        }
    }

    async fn attempt(&mut self, sight: &watch::Sender<Sight>) -> Result<Option<EtcdStore<S>>, CallError> {
        let seen = self.look().await?;
        match &seen.leader {
            // A leadership of this process that has ended here and not there yet.
            Some((leader, created)) if leader.id == self.id => {
                self.remove_leader(*created).await?;
                Ok(None)
            }
            Some((leader, _)) => {
                tell(sight, |sight| *sight = Sight { leader: Some(leader.clone()), trouble: None });
                self.etcd.watch(&self.prefix.key("leader"), seen.revision, self.ttl / 2).await;
                Ok(None)
            }
            None => {
                tell(sight, |sight| sight.leader = None);
                self.stand(&seen).await
            }
        }
    }

    async fn look(&mut self) -> Result<Seen, CallError> {
        let txn = Txn { then: self.prefix.look(), ..Txn::default() };
        Ok(self.prefix.seen(&self.etcd.txn("see who leads", &txn).await?))
    }

    /// Nobody leads: tries to.
    async fn stand(&mut self, seen: &Seen) -> Result<Option<EtcdStore<S>>, CallError> {
        let sent = self.etcd.now();
        let lease = self.etcd.grant(self.ttl).await?;
        let until = lease::counted(sent, self.ttl);
        let (last, head_revision) = seen.head.as_ref().map_or((Term::default(), 0), |(head, at)| (head.term, *at));
        let term = if failpoint!(SameTerm) && last != Term::default() { last } else { last.max(self.heard).next() };
        let leader = Leader { id: self.id.clone(), address: self.address.clone(), term };
        let head = Head { term, write: 0, id: self.id.clone() };
        let json = |value: Result<Vec<u8>, serde_json::Error>| value.expect("names and numbers are JSON");
        let (leader_key, head_key) = (self.prefix.key("leader"), self.prefix.key("head"));
        let nobody_leads = Compare::Created { key: leader_key.clone(), revision: 0 };
        let nothing_is_new = Compare::Modified { key: head_key.clone(), revision: head_revision };
        let txn = Txn {
            when: if failpoint!(LeadUnasked) { Vec::new() } else { vec![nobody_leads, nothing_is_new] },
            then: vec![
                Op::Put { key: leader_key, value: json(serde_json::to_vec(&leader)), lease: Some(lease) },
                Op::Put { key: head_key, value: json(serde_json::to_vec(&head)), lease: None },
            ],
            otherwise: self.prefix.look(),
        };
        // Whether a transaction was done that was not answered, the next one says: it is refused if so, and shows why.
        let mut failed = None;
        while self.etcd.now() < until {
            let answer = match self.etcd.txn("begin to lead", &txn).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!("{error}");
                    failed = Some(error);
                    self.etcd.sleep_until(self.etcd.now() + RETRY / 4).await;
                    continue;
                }
            };
            let seen = self.prefix.seen(&answer);
            // Created in this transaction, it has the revision of this transaction.
            let (created, head_revision) = match (answer.succeeded, &seen.leader, &seen.head) {
                (true, ..) => (seen.revision, seen.revision),
                (false, Some((found, created)), Some((_, head_revision))) if *found == leader => {
                    (*created, *head_revision)
                }
                (false, ..) => {
                    self.give_up(lease).await;
                    return Ok(None);
                }
            };
            tracing::info!(term = leader.term.get(), prefix = &*self.prefix.0, "this coordinator leads");
            let led = Led { leader, created, head_revision, lease, until, ttl: self.ttl };
            return Ok(Some(EtcdStore::new(self.etcd.clone(), self.prefix.clone(), self.history, led)));
        }
        failed.map_or(Ok(None), Err)
    }

    /// A lease that is good for nothing ends by itself; sooner is kinder.
    async fn give_up(&mut self, lease: i64) {
        if let Err(error) = self.etcd.revoke(lease).await {
            tracing::debug!("{error}");
        }
    }

    async fn remove_leader(&mut self, created: i64) -> Result<(), CallError> {
        let key = self.prefix.key("leader");
        let txn = Txn {
            when: vec![Compare::Created { key: key.clone(), revision: created }],
            then: vec![Op::Delete { key }],
            otherwise: Vec::new(),
        };
        self.etcd.txn("end an earlier leadership", &txn).await.map(drop)
    }
}

fn tell(sight: &watch::Sender<Sight>, change: impl FnOnce(&mut Sight)) {
    sight.send_if_modified(|sight| {
        let before = sight.clone();
        change(sight);
        *sight != before
    });
}
