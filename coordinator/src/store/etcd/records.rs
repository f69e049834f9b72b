//! The records of the coordinator that leads: each write asks whether it does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use toroid_torus::failpoint;

use super::client::Members;
use super::head::{Head, Leader, Prefix};
use super::history::{self, History, Written};
use super::keys::{self, Edit, Pointer, Value};
use super::lease;
use super::service::{Compare, Kind, Op, Page, Range, Service, Txn};
use crate::machine::Change;
use crate::machine::record::Record;
use crate::store::tenure::{Lease, Tenure, Trouble};
use crate::store::value::{META, check_format, decode, encode};
use crate::store::{Store, StoreError};

/// Between two attempts to write.
const RETRY: Duration = Duration::from_millis(50);
/// Keys in one answer when all are read: values are 64 KiB at most, and pages 256 KiB.
const KEYS_AT_ONCE: i64 = 500;
const PAGES_AT_ONCE: i64 = 64;
const JOURNAL: &str = "journal";

/// A leadership that has begun.
pub(super) struct Led {
    pub leader: Leader,
    /// Revision at which the leader's key was made.
    pub created: i64,
    /// At which `head` was last written.
    pub head_revision: i64,
    pub lease: i64,
    /// It is counted on until then.
    pub until: Instant,
    pub ttl: Duration,
}

/// The store of the coordinator that leads.
pub struct EtcdStore<S: Service = Members> {
    etcd: S,
    prefix: Prefix,
    leader: Leader,
    created: i64,
    lease_id: i64,
    /// Of `head`, as this leader wrote it last.
    head_revision: i64,
    num_writes: u64,
    /// The pages of each large value, by key.
    generations: BTreeMap<String, String>,
    tenure: Tenure,
    trouble: watch::Sender<Option<Trouble>>,
    written: watch::Sender<Written>,
}

impl<S: Service> EtcdStore<S> {
    pub(super) fn new(etcd: S, prefix: Prefix, history: Option<History>, led: Led) -> EtcdStore<S> {
        let Led { leader, created, head_revision, lease, until, ttl } = led;
        let (renewed, received) = watch::channel(Lease::Until(Some(until)));
        let (trouble, troubled) = watch::channel(None);
        let tenure = Tenure::new(leader.term, received, troubled);
        etcd.spawn(lease::keep(etcd.clone(), lease, ttl, renewed));
        let (written, seen) = watch::channel(Written { revision: head_revision, bytes: 0 });
        if let Some(history) = history {
            etcd.spawn(history::forget(etcd.clone(), history, seen));
        }
        EtcdStore {
            etcd,
            prefix,
            leader,
            created,
            lease_id: lease,
            head_revision,
            num_writes: 0,
            generations: BTreeMap::new(),
            tenure,
            trouble,
            written,
        }
    }

    // ------------------------------------------------------------------------------------------------------------- writing

    /// Makes one transaction, as often as it takes to know what became of it.
    async fn write(&mut self, edits: &[Edit]) -> Result<(), StoreError> {
        self.num_writes += 1;
        let head = Head { term: self.leader.term, write: self.num_writes, id: self.leader.id.clone() };
        let (leader_key, head_key) = (self.prefix.key("leader"), self.prefix.key("head"));
        let json = serde_json::to_vec(&head).expect("names and numbers are JSON");
        let leads = Compare::Created { key: leader_key, revision: self.created };
        let is_next = Compare::Modified { key: head_key.clone(), revision: self.head_revision };
        let compares = [(leads, failpoint!(WriteWithoutLeading)), (is_next, failpoint!(WriteInAnyOrder))];
        let edits = edits.iter().map(|edit| self.operation(edit));
        let txn = Txn {
            when: compares.into_iter().filter(|(_, is_left_out)| !is_left_out).map(|(compare, _)| compare).collect(),
            then: edits.chain([Op::Put { key: head_key, value: json, lease: None }]).collect(),
            otherwise: self.prefix.look(),
        };
        loop {
            if let Some(reason) = self.tenure.over_at(self.etcd.now()).filter(|_| !failpoint!(WriteWithoutLeading)) {
                return Err(StoreError::Deposed { reason });
            }
            let answer = match self.etcd.txn("store a decision", &txn).await {
                Ok(answer) => answer,
                Err(error) if error.kind == Kind::Silent && failpoint!(SilenceIsDone) => return Ok(()),
                Err(_) => {
                    self.troubled();
                    self.pause().await;
                    continue;
                }
            };
            let seen = self.prefix.seen(&answer);
            let written = match (answer.succeeded, &seen.leader, &seen.head) {
                (true, ..) => seen.revision,
                // It was done before, and the answer was lost.
                (false, Some((_, created)), Some((found, at))) if *created == self.created && *found == head => *at,
                (false, leader, _) => {
                    let reason = match leader {
                        Some((leader, _)) if leader.id == self.leader.id => {
                            "something else has written to its records".into()
                        }
                        Some((leader, _)) => format!("{} leads, with term {}", leader.address, leader.term.get()),
                        None => "its lease has run out".into(),
                    };
                    return Err(StoreError::Deposed { reason });
                }
            };
            self.head_revision = written;
            self.written.send_modify(|all| {
                *all = Written { revision: written, bytes: all.bytes + txn.num_bytes() };
            });
            if self.trouble.send_replace(None).is_some() {
                tracing::info!("the store answers again");
            }
            return Ok(());
        }
    }

    fn operation(&self, edit: &Edit) -> Op {
        match edit {
            Edit::Put { key, value } => Op::Put { key: self.prefix.key(key), value: value.clone(), lease: None },
            Edit::Remove { key } => Op::Delete { key: self.prefix.key(key) },
            Edit::RemovePages { generation } => {
                Op::DeletePrefix { prefix: self.prefix.key(&format!("page/{generation}/")) }
            }
        }
    }

    async fn pause(&self) {
        self.etcd.sleep_until(self.etcd.now() + RETRY).await;
    }

    fn troubled(&self) {
        let (reason, now) = (self.etcd.failures(), self.etcd.now());
        let is_new = self.trouble.borrow().is_none();
        if is_new {
            tracing::warn!("the store does not answer, decisions wait: {reason}");
        }
        self.trouble.send_modify(|trouble| {
            let since = trouble.as_ref().map_or(now, |trouble| trouble.since);
            *trouble = Some(Trouble { since, reason });
        });
    }

    /// Writes a value's pages, if it is that large; what is left to do is one edit, or one more that drops the pages before.
    async fn put(&mut self, key: String, bytes: Vec<u8>) -> Result<Vec<Edit>, StoreError> {
        let (term, next) = (self.leader.term.get(), self.num_writes + 1);
        let (value, pages) = keys::split(bytes, || format!("{term:016x}-{next:016x}"));
        for group in keys::grouped(pages) {
            self.write(&group).await?;
        }
        let before = match &value {
            Value::Inline(_) => self.generations.remove(&key),
            Value::Paged(pointer) => self.generations.insert(key.clone(), pointer.generation.clone()),
        };
        let before = before.map(|generation| Edit::RemovePages { generation });
        Ok([Edit::Put { key, value: value.to_bytes() }].into_iter().chain(before).collect())
    }

    fn remove(&mut self, key: String) -> Vec<Edit> {
        let pages = self.generations.remove(&key).map(|generation| Edit::RemovePages { generation });
        [Edit::Remove { key }].into_iter().chain(pages).collect()
    }

    /// All of them or none: more than one transaction takes are in the journal before the first is done.
    async fn edit(&mut self, edits: Vec<Edit>) -> Result<(), StoreError> {
        let mut groups = keys::grouped(edits);
        match groups.len() {
            0 => Ok(()),
            1 => self.write(&groups.remove(0)).await,
            _ => {
                let journal = keys::to_journal(&groups.concat());
                let journal = [blake3::hash(&journal).as_bytes().as_slice(), &journal].concat();
                for edits in keys::grouped(self.put(JOURNAL.into(), journal).await?) {
                    self.write(&edits).await?;
                }
                self.carry_out(groups).await
            }
        }
    }

    /// Does what the journal has, and drops it.
    async fn carry_out(&mut self, groups: Vec<Vec<Edit>>) -> Result<(), StoreError> {
        for group in groups {
            self.write(&group).await?;
        }
        let end = self.remove(JOURNAL.into());
        self.write(&end).await
    }

    // ------------------------------------------------------------------------------------------------------------- reading

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::DamagedInEtcd { prefix: self.prefix.0.to_string(), reason }
    }

    /// One answer about keys that is no older than this leadership: what a paused member says may be.
    async fn get(&mut self, range: Range) -> Result<Page, StoreError> {
        let [from, end] = [range.from, range.end].map(|key| self.prefix.key(&key));
        let range = Range { from, end, ..range };
        loop {
            if let Some(reason) = self.tenure.over_at(self.etcd.now()) {
                return Err(StoreError::Deposed { reason });
            }
            match self.etcd.list("read the records", &range).await {
                Ok(page) if page.revision >= self.head_revision || failpoint!(TakeStaleRead) => return Ok(page),
                Ok(_) => self.etcd.next(),
                Err(_) => self.troubled(),
            }
            self.pause().await;
        }
    }

    /// Keys below a folder, without the prefix of the cluster, with their values.
    async fn list(
        &mut self,
        folder: &str,
        at_once: i64,
        keys_only: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut pairs = Vec::new();
        // A slash is followed by a zero among the characters.
        let (mut from, end) = (format!("{folder}/"), format!("{folder}0"));
        loop {
            let range = Range { from, end: end.clone(), limit: at_once, keys_only };
            let Page { pairs: found, has_more, .. } = self.get(range).await?;
            for pair in found {
                let key = pair.key.strip_prefix(&self.prefix.key("")).unwrap_or(&pair.key).to_string();
                pairs.push((key, pair.value));
            }
            match pairs.last() {
                Some((last, _)) if has_more => from = format!("{last}\0"),
                _ => return Ok(pairs),
            }
        }
    }

    /// A value under its key, with its pages.
    async fn whole(&mut self, key: &str, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        let fault = |reason: String| format!("the value of `{key}` cannot be read: {reason}");
        let Pointer { generation, num_pages, num_bytes } = match Value::from_bytes(bytes) {
            Ok(Value::Inline(bytes)) => return Ok(bytes),
            Ok(Value::Paged(pointer)) => pointer,
            Err(reason) => return Err(self.damaged(fault(reason))),
        };
        let pages = self.list(&format!("page/{generation}"), PAGES_AT_ONCE, false).await?;
        let value = pages.iter().map(|(_, page)| page.as_slice()).collect::<Vec<_>>().concat();
        if pages.len() != num_pages as usize || value.len() as u64 != num_bytes {
            let found = (pages.len(), value.len());
            let reason =
                format!("{num_pages} pages of {num_bytes} bytes are expected, {} of {} found", found.0, found.1);
            return Err(self.damaged(fault(reason)));
        }
        self.generations.insert(key.into(), generation);
        Ok(value)
    }

    /// Carries out what an earlier leader had in its journal.
    async fn finish_journal(&mut self) -> Result<(), StoreError> {
        // The key itself, and nothing behind it.
        let range = Range { from: JOURNAL.into(), end: format!("{JOURNAL}\0"), limit: 1, keys_only: false };
        let Some(pair) = self.get(range).await?.pairs.pop() else { return Ok(()) };
        let journal = self.whole(JOURNAL, &pair.value).await?;
        let (digest, journal) = journal.split_at_checked(32).unwrap_or_default();
        if blake3::hash(journal).as_bytes() != digest {
            return Err(self.damaged("the journal does not match its digest".into()));
        }
        let edits = keys::from_journal(journal).map_err(|reason| self.damaged(reason))?;
        tracing::info!("a decision of {} edits of an earlier leader is carried out to its end", edits.len());
        self.carry_out(keys::grouped(edits)).await
    }

    /// Pages that nothing points to: their value was not put, or a leader ended before it dropped them.
    async fn collect(&mut self) -> Result<(), StoreError> {
        let pages = self.list("page", KEYS_AT_ONCE * 20, true).await?;
        let kept: BTreeSet<&str> = self.generations.values().map(String::as_str).collect();
        let found = pages.iter().filter_map(|(key, _)| keys::generation_of(key));
        let lost: BTreeSet<String> = found.filter(|generation| !kept.contains(generation)).map(String::from).collect();
        let edits = lost.into_iter().map(|generation| Edit::RemovePages { generation }).collect();
        for group in keys::grouped(edits) {
            self.write(&group).await?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl<S: Service> Store for EtcdStore<S> {
    fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    async fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        self.generations.clear();
        self.finish_journal().await?;
        let mut found = Vec::new();
        for (key, bytes) in self.list("record", KEYS_AT_ONCE, false).await? {
            let value = self.whole(&key, &bytes).await?;
            let name = key.strip_prefix("record/").unwrap_or(&key);
            if name == META {
                check_format(&value)?;
            }
            found.push((name.to_string(), value));
        }
        let decoded = |(name, value): &(String, Vec<u8>)| decode(name, value).map_err(|reason| self.damaged(reason));
        let records = found.iter().map(decoded).collect::<Result<Vec<_>, _>>()?;
        self.collect().await?;
        Ok(records)
    }

    async fn commit(&mut self, change: &Change) -> Result<(), StoreError> {
        let mut edits = Vec::new();
        for record in &change.put {
            if failpoint!(StoreJobByJob) && matches!(record, Record::Job(_)) {
                self.edit(std::mem::take(&mut edits)).await?;
            }
            edits.extend(self.put(keys::record_key(&record.key()), encode(record)).await?);
        }
        for key in change.remove.iter().filter(|_| !failpoint!(KeepRemoved)) {
            edits.extend(self.remove(keys::record_key(key)));
        }
        self.edit(edits).await
    }

    async fn resign(&mut self) {
        match self.etcd.revoke(self.lease_id).await {
            Ok(()) => tracing::info!(term = self.leader.term.get(), "this coordinator has given its leadership back"),
            Err(error) => tracing::info!("the leadership ends with its lease: {error}"),
        }
    }
}

/// The record that lies under `record/NAME`; `None`: its pages lie elsewhere. For whoever watches what is written.
pub fn record_of(name: &str, value: &[u8]) -> Result<Option<Record>, String> {
    match Value::from_bytes(value)? {
        Value::Inline(bytes) => decode(name, &bytes).map(Some),
        Value::Paged(_) => Ok(None),
    }
}
