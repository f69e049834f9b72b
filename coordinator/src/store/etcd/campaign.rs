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

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, WatchOptions, WatchResponse};
use tokio::sync::watch;
use tokio::time::Instant;
use toroid_torus::ids::Term;

use super::client::{CallError, Members};
use super::config::EtcdConfig;
use super::head::{Head, Leader, Seen};
use super::lease;
use super::records::{EtcdStore, Led};

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
pub struct Candidate {
    config: Arc<EtcdConfig>,
    members: Members,
    address: String,
    id: String,
    ttl: Duration,
}

impl Candidate {
    /// `address`: where users and workers reach it, `http://host:port`; `id`: of this process, random; `ttl`: of its lease, in whole seconds.
    pub fn new(config: EtcdConfig, address: String, id: String, ttl: Duration) -> Candidate {
        let config = Arc::new(config);
        // A lease outlasts some calls that nobody answers.
        let members = Members::new(Arc::clone(&config), ttl / 4);
        Candidate { config, members, address, id, ttl }
    }

    /// Waits until it leads, for as long as that takes, and tells what it sees meanwhile. May be dropped at any time: what it has begun then ends
    /// with its lease.
    pub async fn campaign(&mut self, sight: &watch::Sender<Sight>) -> EtcdStore {
        loop {
            match self.attempt(sight).await {
                Ok(Some(store)) => return store,
                Ok(None) => {}
                Err(error) => {
                    let trouble = self.members.failures();
                    let trouble = if trouble.is_empty() { error.to_string() } else { trouble };
                    tell(sight, |sight| sight.trouble = Some(trouble));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn attempt(&mut self, sight: &watch::Sender<Sight>) -> Result<Option<EtcdStore>, CallError> {
        let seen = self.look().await?;
        match &seen.leader {
            // A leadership of this process that has ended here and not there yet.
            Some((leader, key)) if leader.id == self.id => {
                self.remove_leader(key.create_revision()).await?;
                Ok(None)
            }
            Some((leader, _)) => {
                tell(sight, |sight| *sight = Sight { leader: Some(leader.clone()), trouble: None });
                self.watch(seen.revision).await;
                Ok(None)
            }
            None => {
                tell(sight, |sight| sight.leader = None);
                self.stand(&seen).await
            }
        }
    }

    async fn look(&mut self) -> Result<Seen, CallError> {
        let txn = Txn::new().and_then(self.config.look());
        let answer = self.members.call("see who leads", |mut client| async move { client.txn(txn).await }).await?;
        Ok(self.config.seen(&answer))
    }

    /// Returns when something happened to the leader's key after `revision`, or may have.
    async fn watch(&mut self, revision: i64) {
        let key = self.config.key("leader");
        let watching = async move |mut client: etcd_client::Client| {
            let options = WatchOptions::new().with_start_revision(revision + 1);
            let mut stream = client.watch(key, Some(options)).await?;
            while let Some(answer) = stream.message().await? {
                if is_news(&answer) {
                    break;
                }
            }
            Ok(())
        };
        let mut members = self.members.clone();
        members.limit = self.ttl / 2;
        // Whatever it came to, it looks again: at another member where this one fails or says nothing at all.
        if let Err(error) = members.call("watch the leader", watching).await {
            tracing::trace!("{error}");
        }
    }

    /// Nobody leads: tries to.
    async fn stand(&mut self, seen: &Seen) -> Result<Option<EtcdStore>, CallError> {
        let ttl_s = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let sent = Instant::now();
        let grant = |mut client: etcd_client::Client| async move { client.lease_grant(ttl_s, None).await };
        let granted = self.members.call("get a lease", grant).await?;
        // Some members give longer ones than were asked for; never shorter.
        let (lease, until) = (granted.id(), lease::counted(sent, self.ttl));
        let (last, head_revision) = seen.head.as_ref().map_or((Term::default(), 0), |(head, at)| (head.term, *at));
        let term = last.next();
        let leader = Leader { id: self.id.clone(), address: self.address.clone(), term };
        let head = Head { term, write: 0, id: self.id.clone() };
        let json = |value: Result<Vec<u8>, serde_json::Error>| value.expect("names and numbers are JSON");
        let (leader_key, head_key) = (self.config.key("leader"), self.config.key("head"));
        let txn = Txn::new()
            .when([
                Compare::create_revision(leader_key.as_str(), CompareOp::Equal, 0),
                Compare::mod_revision(head_key.as_str(), CompareOp::Equal, head_revision),
            ])
            .and_then([
                TxnOp::put(leader_key, json(serde_json::to_vec(&leader)), Some(PutOptions::new().with_lease(lease))),
                TxnOp::put(head_key, json(serde_json::to_vec(&head)), None),
            ])
            .or_else(self.config.look());
        // Whether a transaction was done that was not answered, the next one says: it is refused if so, and shows why.
        while Instant::now() < until {
            let txn = txn.clone();
            let answer = self.members.call("begin to lead", |mut client| async move { client.txn(txn).await }).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!("{error}");
                    tokio::time::sleep(RETRY / 4).await;
                    continue;
                }
            };
            let seen = self.config.seen(&answer);
            // Created in this transaction, it has the revision of this transaction.
            let (created, head_revision) = match (answer.succeeded(), &seen.leader, &seen.head) {
                (true, ..) => (seen.revision, seen.revision),
                (false, Some((found, key)), Some((_, head_revision))) if *found == leader => {
                    (key.create_revision(), *head_revision)
                }
                (false, ..) => {
                    self.give_up(lease).await;
                    return Ok(None);
                }
            };
            let led = Led { leader: found(&self.config, leader), created, head_revision, lease, until, ttl: self.ttl };
            return Ok(Some(EtcdStore::new(Arc::clone(&self.config), self.members.clone(), led)));
        }
        let error = self.members.call("begin to lead", |mut client| async move { client.status().await }).await.err();
        error.map_or(Ok(None), Err)
    }

    /// A lease that is good for nothing ends by itself; sooner is kinder.
    async fn give_up(&mut self, lease: i64) {
        let revoke = |mut client: etcd_client::Client| async move { client.lease_revoke(lease).await };
        if let Err(error) = self.members.call("give a lease back", revoke).await {
            tracing::debug!("{error}");
        }
    }

    async fn remove_leader(&mut self, created: i64) -> Result<(), CallError> {
        let key = self.config.key("leader");
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, created)])
            .and_then([TxnOp::delete(key, None)]);
        self.members
            .call("end an earlier leadership", |mut client| async move { client.txn(txn).await })
            .await
            .map(drop)
    }
}

fn found(config: &EtcdConfig, leader: Leader) -> Leader {
    tracing::info!(term = leader.term.get(), prefix = config.prefix, "this coordinator leads");
    leader
}

fn tell(sight: &watch::Sender<Sight>, change: impl FnOnce(&mut Sight)) {
    sight.send_if_modified(|sight| {
        let before = sight.clone();
        change(sight);
        *sight != before
    });
}

/// It was changed, or the watch has ended: compacted, canceled.
fn is_news(answer: &WatchResponse) -> bool {
    answer.canceled() || answer.compact_revision() > 0 || !answer.events().is_empty()
}
