//! The model of etcd that the simulation has coordinators lead over answers as a real etcd does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toroid_coordinator::store::etcd::service::{Compare, Op, Range, Service as _, Txn};
use toroid_coordinator::store::etcd::{EtcdConfig, Kind, Members};
use toroid_simulation::etcd::{Etcd as Model, Refusal};
use toroid_testkit::{Etcd, Patience};
use toroid_torus::cursor::splitmix64;

const NUM_CALLS: u64 = 600;
const KEYS: [&str; 6] = ["/a/1", "/a/2", "/a/22", "/a0", "/b", "/c"];
const TTL: Duration = Duration::from_secs(600);

/// The same calls for both. Leases of the model are numbered from 1, etcd's have numbers of its own.
struct Both {
    model: Model,
    etcd: Members,
    /// By the model's number.
    leases: BTreeMap<i64, i64>,
}

fn refused(refusal: Refusal) -> Kind {
    match refusal {
        Refusal::LeaseNotFound => Kind::LeaseGone,
        Refusal::DuplicateKey => Kind::Other,
    }
}

impl Both {
    fn at_etcd(&self, ops: &[Op]) -> Vec<Op> {
        let number = |lease: &i64| self.leases.get(lease).copied().unwrap_or(*lease);
        let op = |op: &Op| match op {
            Op::Put { key, value, lease } => {
                Op::Put { key: key.clone(), value: value.clone(), lease: lease.as_ref().map(number) }
            }
            other => other.clone(),
        };
        ops.iter().map(op).collect()
    }

    async fn txn(&mut self, txn: &Txn) -> Result<()> {
        let asked =
            Txn { when: txn.when.clone(), then: self.at_etcd(&txn.then), otherwise: self.at_etcd(&txn.otherwise) };
        let found = self.etcd.txn("compare", &asked).await.map_err(|error| error.kind);
        let expected = self.model.txn(txn).map(|(answer, _)| answer).map_err(refused);
        ensure!(found == expected, "{txn:?}: etcd says {found:?}, the model {expected:?}");
        Ok(())
    }

    async fn list(&mut self, range: &Range) -> Result<()> {
        let found = self.etcd.list("compare", range).await?;
        let expected = self.model.list(range);
        ensure!(found == expected, "{range:?}: etcd says {found:?}, the model {expected:?}");
        Ok(())
    }

    async fn grant(&mut self, ttl: Duration) -> Result<i64> {
        let (found, number) = (self.etcd.grant(ttl).await?, self.model.grant(0, ttl.as_micros() as u64));
        self.leases.insert(number, found);
        Ok(number)
    }

    async fn renew(&mut self, lease: i64) -> Result<()> {
        let found = self.etcd.renew(self.leases[&lease]).await.map_err(|error| error.kind);
        let expected = self.model.renew(0, lease).map_err(refused);
        ensure!(found == expected, "renewing lease {lease}: etcd says {found:?}, the model {expected:?}");
        Ok(())
    }

    async fn revoke(&mut self, lease: i64) -> Result<()> {
        let found = self.etcd.revoke(self.leases[&lease]).await.map_err(|error| error.kind);
        let expected = self.model.revoke(lease).map(drop).map_err(refused);
        ensure!(found == expected, "revoking lease {lease}: etcd says {found:?}, the model {expected:?}");
        Ok(())
    }
}

/// Calls by chance, always the same ones.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 += 1;
        splitmix64(self.0) % n
    }

    fn key(&mut self) -> String {
        KEYS[self.below(KEYS.len() as u64) as usize].into()
    }

    fn op(&mut self, num_leases: u64) -> Op {
        match self.below(8) {
            0..4 => {
                let lease = (self.below(3) == 0).then(|| 1 + self.below(num_leases + 1) as i64);
                Op::Put { key: self.key(), value: vec![self.below(256) as u8; 3], lease }
            }
            4..6 => Op::Get { key: self.key() },
            6 => Op::Delete { key: self.key() },
            _ => Op::DeletePrefix { prefix: ["/a/", "/a/2", "/x"][self.below(3) as usize].into() },
        }
    }

    fn ops(&mut self, num_leases: u64) -> Vec<Op> {
        (0..self.below(4)).map(|_| self.op(num_leases)).collect()
    }

    /// Half of what is compared is so.
    fn compare(&mut self, model: &Model) -> Compare {
        let key = self.key();
        let range = Range { from: key.clone(), end: format!("{key}\0"), limit: 1, keys_only: true };
        let pair = model.list(&range).pairs.pop();
        let is_so = i64::from(self.below(2) == 0);
        let revision = |of: Option<i64>| of.unwrap_or(0) + 1 - is_so;
        match self.below(2) {
            0 => Compare::Created { revision: revision(pair.map(|pair| pair.created)), key },
            _ => Compare::Modified { revision: revision(pair.map(|pair| pair.modified)), key },
        }
    }
}

#[tokio::test]
async fn the_model_of_etcd_answers_as_etcd_does() -> Result<()> {
    let real = Etcd::start(1)?;
    let members = Members::new(Arc::new(EtcdConfig::new(real.urls())), Duration::from_secs(10));
    let mut both = Both { model: Model::default(), etcd: members, leases: BTreeMap::new() };
    let mut draw = Draw(12);
    for _ in 0..NUM_CALLS {
        let num_leases = both.leases.len() as u64;
        match draw.below(20) {
            0 => drop(both.grant(TTL).await?),
            1 if num_leases > 0 => both.renew(1 + draw.below(num_leases) as i64).await?,
            2 if num_leases > 0 => both.revoke(1 + draw.below(num_leases) as i64).await?,
            3..6 => {
                let keys_only = draw.below(2) == 0;
                let range = Range { from: "/".into(), end: "0".into(), limit: 1 + draw.below(7) as i64, keys_only };
                both.list(&range).await?;
            }
            _ => {
                let when = (0..draw.below(3)).map(|_| draw.compare(&both.model)).collect();
                let txn = Txn { when, then: draw.ops(num_leases), otherwise: draw.ops(num_leases) };
                both.txn(&txn).await?;
            }
        }
    }
    leases_end(&mut both).await?;
    watches_tell(&mut both).await
}

/// With a lease that nobody renews go its keys, in one revision.
async fn leases_end(both: &mut Both) -> Result<()> {
    let lease = both.grant(Duration::from_secs(2)).await?;
    let put = |key: &str| Op::Put { key: key.into(), value: b"x".to_vec(), lease: Some(lease) };
    both.txn(&Txn { then: vec![put("/c"), put("/b")], ..Txn::default() }).await?;
    let get = Txn { then: vec![Op::Get { key: "/c".into() }], ..Txn::default() };
    let mut patience = Patience::new();
    while !both.etcd.txn("compare", &get).await?.pairs.is_empty() {
        patience.look(|| 0).context("wait for the end of a lease")?;
    }
    both.model.expire(Duration::from_secs(3).as_micros() as u64);
    both.list(&Range { from: "/".into(), end: "0".into(), limit: 100, keys_only: false }).await?;
    both.renew(lease).await
}

/// What has happened since a revision is told at once, also where that has been compacted; else at the end of the time.
async fn watches_tell(both: &mut Both) -> Result<()> {
    let put = Txn { then: vec![Op::Put { key: "/c".into(), value: b"y".to_vec(), lease: None }], ..Txn::default() };
    both.txn(&put).await?;
    let modified = both.model.modified("/c").context("it was put")?;
    let long = Duration::from_secs(3600);
    toroid_testkit::within("what has happened before", both.etcd.clone().watch("/c", modified - 1, long)).await;
    let mut watching = both.etcd.clone();
    let told = toroid_testkit::within("what happens then", watching.watch("/c", modified, long));
    let (_, written) = tokio::join!(told, both.txn(&put));
    written
}
