//! A model of etcd's store: revisions, transactions, leases. What it answers is compared with a real etcd by a test of this crate.
//!
//! Time is an argument. Deliberately absent: members, the network and what goes wrong there; see `leaders`.

use std::collections::{BTreeMap, BTreeSet};

use toroid_coordinator::store::etcd::service::{Answer, Compare, Op, Page, Pair, Range, Txn};

use crate::network::Micros;

#[derive(Debug, Clone)]
struct Entry {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    lease: Option<i64>,
}

#[derive(Debug, Clone)]
struct Lease {
    ttl: Micros,
    until: Micros,
}

/// Why etcd does nothing of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    LeaseNotFound,
    DuplicateKey,
}

/// What one revision has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

#[derive(Debug, Clone)]
pub struct Etcd {
    revision: i64,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
}

impl Default for Etcd {
    /// A new one is at revision 1.
    fn default() -> Etcd {
        Etcd { revision: 1, entries: BTreeMap::new(), leases: BTreeMap::new(), next_lease: 1 }
    }
}

impl Etcd {
    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Created { key, revision } => self.entries.get(key).map_or(0, |e| e.created) == *revision,
            Compare::Modified { key, revision } => self.entries.get(key).map_or(0, |e| e.modified) == *revision,
        }
    }

    /// All of it or nothing, and what it has changed.
    pub fn txn(&mut self, txn: &Txn) -> Result<(Answer, Vec<Change>), Refusal> {
        for ops in [&txn.then, &txn.otherwise] {
            refuse_twice(ops)?;
        }
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let has_lease = |op: &Op| match op {
            Op::Put { lease: Some(lease), .. } => self.leases.contains_key(lease),
            _ => true,
        };
        if !ops.iter().all(has_lease) {
            return Err(Refusal::LeaseNotFound);
        }
        // All that one transaction writes has one revision; what changes nothing has none.
        let next = self.revision + 1;
        let (mut changes, mut pairs) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let created = self.entries.get(key).map_or(next, |e| e.created);
                    let entry = Entry { value: value.clone(), created, modified: next, lease: *lease };
                    self.entries.insert(key.clone(), entry);
                    changes.push(Change::Put { key: key.clone(), value: value.clone() });
                }
                Op::Get { key } => pairs.extend(self.entries.get(key).map(|entry| pair(key, entry, false))),
                Op::Delete { key } => changes.extend(self.delete(key)),
                Op::DeletePrefix { prefix } => {
                    let keys = self.entries.range(prefix.clone()..).map(|(key, _)| key);
                    let keys: Vec<String> = keys.take_while(|key| key.starts_with(prefix)).cloned().collect();
                    changes.extend(keys.iter().filter_map(|key| self.delete(key)));
                }
            }
        }
        if !changes.is_empty() {
            self.revision = next;
        }
        Ok((Answer { succeeded, revision: self.revision, pairs }, changes))
    }

    fn delete(&mut self, key: &str) -> Option<Change> {
        self.entries.remove(key).map(|_| Change::Delete { key: key.into() })
    }

    pub fn list(&self, range: &Range) -> Page {
        let limit = usize::try_from(range.limit).unwrap_or(usize::MAX);
        let mut found = self.entries.range(range.from.clone()..range.end.clone());
        let pairs = found.by_ref().take(limit).map(|(key, entry)| pair(key, entry, range.keys_only)).collect();
        Page { revision: self.revision, pairs, has_more: found.next().is_some() }
    }

    pub fn grant(&mut self, now: Micros, ttl: Micros) -> i64 {
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, until: now + ttl });
        id
    }

    pub fn renew(&mut self, now: Micros, id: i64) -> Result<(), Refusal> {
        let lease = self.leases.get_mut(&id).ok_or(Refusal::LeaseNotFound)?;
        lease.until = now + lease.ttl;
        Ok(())
    }

    /// With a lease go its keys.
    pub fn revoke(&mut self, id: i64) -> Result<Vec<Change>, Refusal> {
        self.leases.remove(&id).ok_or(Refusal::LeaseNotFound)?;
        let keys = self.entries.iter().filter(|(_, entry)| entry.lease == Some(id)).map(|(key, _)| key);
        let keys: Vec<String> = keys.cloned().collect();
        let changes: Vec<Change> = keys.iter().filter_map(|key| self.delete(key)).collect();
        self.revision += i64::from(!changes.is_empty());
        Ok(changes)
    }

    /// Ends the leases whose time is over.
    pub fn expire(&mut self, now: Micros) -> Vec<Change> {
        let over: Vec<i64> = self.leases.iter().filter(|(_, lease)| lease.until <= now).map(|(id, _)| *id).collect();
        over.into_iter().flat_map(|id| self.revoke(id).unwrap_or_default()).collect()
    }

    /// A new leader among its members gives all leases their whole time again.
    pub fn extend(&mut self, now: Micros) {
        self.leases.values_mut().for_each(|lease| lease.until = now + lease.ttl);
    }

    /// When the next lease is over.
    pub fn next_end(&self) -> Option<Micros> {
        self.leases.values().map(|lease| lease.until).min()
    }

    /// The lease of a key.
    pub fn lease_of(&self, key: &str) -> Option<i64> {
        self.entries.get(key)?.lease
    }

    pub fn value(&self, key: &str) -> Option<&[u8]> {
        Some(&self.entries.get(key)?.value)
    }

    /// When a key was modified; `None`: it is not there.
    pub fn modified(&self, key: &str) -> Option<i64> {
        Some(self.entries.get(key)?.modified)
    }
}

fn pair(key: &str, entry: &Entry, is_key_only: bool) -> Pair {
    let value = if is_key_only { Vec::new() } else { entry.value.clone() };
    Pair { key: key.into(), value, created: entry.created, modified: entry.modified }
}

/// etcd takes no transaction that writes a key twice, or puts what it deletes.
fn refuse_twice(ops: &[Op]) -> Result<(), Refusal> {
    let mut put = BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op
            && !put.insert(key)
        {
            return Err(Refusal::DuplicateKey);
        }
    }
    let deletes_put = ops.iter().any(|op| match op {
        Op::Delete { key } => put.contains(key),
        Op::DeletePrefix { prefix } => put.iter().any(|key| key.starts_with(prefix)),
        Op::Put { .. } | Op::Get { .. } => false,
    });
    if deletes_put { Err(Refusal::DuplicateKey) } else { Ok(()) }
}
