//! One body of tests for both stores, and what only several coordinators over one etcd meet: real etcd processes, nothing is mocked.

#[path = "store/crashes.rs"]
mod crashes;
#[path = "store/traps.rs"]
mod traps;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, CompactionOptions, ConnectOptions, GetOptions, Permission};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::Instant;
use toroid_coordinator::machine::Change;
use toroid_coordinator::machine::record::{FORMAT, Meta, Record};
use toroid_coordinator::store::etcd::{Candidate, EtcdConfig, EtcdStore, EtcdTls, History, Sight};
use toroid_coordinator::store::{RedbStore, Store, StoreError, Tenure};
use toroid_testkit::{Etcd, within};
use toroid_torus::ids::Term;

const TTL: Duration = Duration::from_secs(2);
/// Of those whose leases end only when a test takes them away: no busy machine is too slow to renew them, or to answer a call.
const CALM: Duration = Duration::from_secs(60);

/// `num_jobs` makes it as long as is wanted: some 20 bytes each.
fn meta(secret: u8, num_jobs: u64) -> Record {
    let num_jobs = (0..num_jobs).map(|n| (format!("job-{n:08}"), n)).collect::<BTreeMap<_, _>>();
    Record::Meta(Meta {
        format: FORMAT,
        secret: [secret; 32],
        num_jobs,
        retired: BTreeMap::new(),
        cordoned: BTreeMap::new(),
        cordoned_hosts: BTreeMap::new(),
        forgotten: Default::default(),
    })
}

fn incident(number: u64, cause: &str) -> Result<Record> {
    let json = format!(
        r#"{{"incident":{{"job":"a-1","number":{number},"unix_ms":1,"cause":"{cause}","seen_by":"silence","ranks":[],"workers":[],"rung":"spare",
        "reason":"","step":1,"resumed_step":1,"steps_lost":0,"epoch":1,"detect_s":0.0,"fence_s":0.0,"decide_s":0.0,"heal_s":0.0,"redo_s":0.0,
        "resolved":true}}}}"#
    );
    Ok(serde_json::from_str(&json)?)
}

fn put(put: Vec<Record>) -> Change {
    Change { put, remove: Vec::new() }
}

/// By key, as texts.
fn sorted(records: &[Record]) -> Vec<(String, String)> {
    let text = |record: &Record| (record.key(), serde_json::to_string(record).expect("records are JSON"));
    let mut all: Vec<_> = records.iter().map(text).collect();
    all.sort();
    all
}

async fn has(store: &mut dyn Store, expected: &[Record], what: &str) -> Result<()> {
    let found = sorted(&store.load().await?);
    ensure!(found == sorted(expected), "{what}: found {} records: {:.300}", found.len(), format!("{found:?}"));
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------------- the contract

/// What holds of every store; `open` opens the same one again and again.
async fn check_store(open: impl AsyncFn() -> Result<Box<dyn Store>>) -> Result<()> {
    let mut store = open().await?;
    has(&mut *store, &[], "a new store is empty").await?;
    let mut term = store.tenure().term();
    ensure!(term > Term::default(), "no leader has the term 0");
    let incidents: Vec<Record> = (1..=3).map(|n| incident(n, "one")).collect::<Result<_>>()?;
    let all: Vec<Record> = [meta(1, 2)].into_iter().chain(incidents.clone()).collect();
    store.commit(&put(all.clone())).await?;
    has(&mut *store, &all, "what was committed").await?;

    // One decision puts and removes.
    let keys = vec![incidents[0].key(), "none".into()];
    store.commit(&Change { put: vec![meta(2, 3)], remove: keys }).await?;
    let left = [vec![meta(2, 3)], incidents[1..].to_vec()].concat();
    has(&mut *store, &left, "one is replaced and one gone").await?;

    // Large ones, twice, and small again; and more than any store does at once.
    for (secret, num_jobs) in [(3, 100_000), (4, 90_000), (5, 1)] {
        store.commit(&put(vec![meta(secret, num_jobs)])).await?;
        let expected = [vec![meta(secret, num_jobs)], incidents[1..].to_vec()].concat();
        has(&mut *store, &expected, "a large value").await?;
    }
    let many: Vec<Record> = (1..=500).map(|n| incident(n, "many")).collect::<Result<_>>()?;
    store.commit(&put(many.clone())).await?;
    let all = [vec![meta(5, 1)], many.clone()].concat();
    has(&mut *store, &all, "many records at once").await?;

    // The next opening has all, and a greater term.
    for _ in 0..2 {
        store.resign().await;
        drop(store);
        store = open().await?;
        ensure!(store.tenure().term() > term, "{:?} follows {term:?}", store.tenure().term());
        term = store.tenure().term();
        has(&mut *store, &all, "the next opening").await?;
    }
    store.commit(&Change { put: Vec::new(), remove: many.iter().map(Record::key).collect() }).await?;
    has(&mut *store, &[meta(5, 1)], "many are removed").await?;
    store.resign().await;
    Ok(())
}

#[tokio::test]
async fn redb_is_a_store() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store");
    check_store(async || Ok(Box::new(RedbStore::open(&path)?) as Box<dyn Store>)).await
}

#[tokio::test]
async fn etcd_is_a_store() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let open = async || Ok(Box::new(lead_calmly(EtcdConfig::new(etcd.urls()), "a").await) as Box<dyn Store>);
    check_store(open).await?;
    // No page is left of what was large.
    let mut admin = admin(&etcd).await?;
    let pages = admin.get("/toroid/default/page/", Some(GetOptions::new().with_prefix().with_count_only())).await?;
    ensure!(pages.count() == 0, "{} pages are left", pages.count());
    let journal = admin.get("/toroid/default/journal", None).await?;
    ensure!(journal.kvs().is_empty(), "the journal is left");
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------- several coordinators

fn candidate(config: EtcdConfig, id: &str) -> Candidate {
    candidate_for(config, id, TTL)
}

fn candidate_for(config: EtcdConfig, id: &str, ttl: Duration) -> Candidate {
    Candidate::new(config, format!("http://{id}:7070"), id.into(), ttl)
}

async fn lead_calmly(config: EtcdConfig, id: &str) -> EtcdStore {
    let sight = watch::channel(Sight::default()).0;
    within("a leader", candidate_for(config, id, CALM).campaign(&sight)).await
}

async fn lead(etcd: &Etcd, id: &str) -> EtcdStore {
    lead_with(EtcdConfig::new(etcd.urls()), id).await
}

async fn lead_with(config: EtcdConfig, id: &str) -> EtcdStore {
    let sight = watch::channel(Sight::default()).0;
    within("a leader", candidate(config, id).campaign(&sight)).await
}

/// Waits until the leadership has been prolonged beyond that.
async fn renewed_beyond(tenure: &Tenure, end: Instant) -> Result<()> {
    within("the renewals of the lease", async {
        while tenure.over_at(end).is_some() {
            ensure!(tenure.over().is_none(), "{:?}", tenure.over());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    })
    .await
}

async fn admin(etcd: &Etcd) -> Result<Client> {
    Ok(Client::connect(etcd.urls(), None).await?)
}

/// The leader's lease is gone, as if it had run out unnoticed.
async fn take_lease_away(admin: &mut Client) -> Result<()> {
    let leader = admin.get("/toroid/default/leader", None).await?;
    let lease = leader.kvs().first().context("there is a leader")?.lease();
    admin.lease_revoke(lease).await?;
    Ok(())
}

#[tokio::test]
async fn t8_who_does_not_lead_any_more_writes_nothing() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let mut first = lead(&etcd, "a").await;
    first.commit(&put(vec![meta(1, 1)])).await?;
    take_lease_away(&mut admin(&etcd).await?).await?;
    let mut second = lead(&etcd, "b").await;
    assert_eq!(second.tenure().term(), first.tenure().term().next());
    second.commit(&put(vec![meta(2, 1)])).await?;
    let refused = first.commit(&put(vec![meta(3, 1)])).await;
    ensure!(matches!(refused, Err(StoreError::Deposed { .. })), "{refused:?}");
    has(&mut second, &[meta(2, 1)], "what the second has written").await?;
    ensure!(second.tenure().over().is_none(), "the second leads on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_gone_ends_the_leadership() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let store = lead(&etcd, "a").await;
    let mut tenure = store.tenure();
    take_lease_away(&mut admin(&etcd).await?).await?;
    let reason = within("the end of the leadership", tenure.end()).await;
    ensure!(reason.contains("lease"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_also_where_its_watch_was_compacted_and_its_prefix_quiet() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let first = lead(&etcd, "a").await;
    let (sight, mut seen) = watch::channel(Sight::default());
    let config = EtcdConfig::new(etcd.urls());
    let campaign = tokio::spawn(async move { candidate(config, "b").campaign(&sight).await.tenure().term() });
    let is_seen = |sight: &Sight| sight.leader.as_ref().is_some_and(|leader| leader.address == "http://a:7070");
    let leader = within("the standby to see the leader", seen.wait_for(is_seen)).await?.leader.clone();
    assert_eq!(leader.context("it was seen")?.term, first.tenure().term());
    // Much happens, nothing of it under the prefix, and all of it is compacted.
    let mut admin = admin(&etcd).await?;
    let mut revision = 0;
    for n in 0..100 {
        revision = admin.put("/other", n.to_string(), None).await?.header().context("it has one")?.revision();
    }
    admin.compact(revision, None).await?;
    take_lease_away(&mut admin).await?;
    assert_eq!(within("the standby to lead", campaign).await?, first.tenure().term().next());
    Ok(())
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_made_once() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let mut store = lead(&etcd, "a").await;
    let mut admin = admin(&etcd).await?;
    let head = async |admin: &mut Client| -> Result<i64> {
        Ok(admin.get("/toroid/default/head", None).await?.kvs().first().context("there is one")?.version())
    };
    let before = head(&mut admin).await?;
    // Etcd stands still beyond the deadline of a call, and does afterwards what it was asked for.
    for n in 0..3 {
        etcd.signal(0, Signal::STOP)?;
        let tenure = store.tenure();
        let change = put(vec![meta(n, 1)]);
        let mut writing = store.commit(&change);
        let trouble = async {
            while tenure.trouble().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            written = &mut writing => panic!("etcd stands still: {written:?}"),
            () = trouble => {}
        }
        let text = tenure.trouble().context("it is known")?;
        ensure!(text.contains("does not answer since") && text.contains("decisions wait"), "{text}");
        etcd.signal(0, Signal::CONT)?;
        within("the write", writing).await?;
        ensure!(tenure.trouble().is_none(), "it answers again");
        assert_eq!(head(&mut admin).await?, before + i64::from(n) + 1, "each write is made once");
    }
    has(&mut store, &[meta(2, 1)], "the last write").await
}

// ------------------------------------------------------------------------------------------------------------------ what etcd says

/// What a candidate says that cannot see or lead.
async fn trouble_of(config: EtcdConfig) -> Result<String> {
    trouble_within(config, TTL).await
}

async fn trouble_within(config: EtcdConfig, ttl: Duration) -> Result<String> {
    let (sight, mut seen) = watch::channel(Sight::default());
    let mut candidate = candidate_for(config, "x", ttl);
    // On a busy machine an etcd that answers may be slow first.
    let is_told =
        |sight: &Sight| sight.trouble.as_ref().is_some_and(|trouble| !trouble.contains("did not answer within"));
    let trouble = async {
        let found = seen.wait_for(is_told).await?;
        found.trouble.clone().context("it was waited for")
    };
    within("what keeps it from leading", async {
        tokio::select! {
            _ = candidate.campaign(&sight) => anyhow::bail!("it leads"),
            trouble = trouble => trouble,
        }
    })
    .await
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    ensure!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
    Ok(())
}

/// Etcd keeps what a key ever was: without somebody who drops that, records of a few KiB fill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_does_not_fill_etcd() -> Result<()> {
    const QUOTA_BYTES: usize = 16 << 20;
    // 24 bytes each.
    const NUM_JOBS: u64 = 2000;
    let etcd = Etcd::start_with(1, &["--quota-backend-bytes", &QUOTA_BYTES.to_string()])?;
    let history = History { every: Duration::from_secs(3600), max_bytes: 1 << 20 };
    let mut store = lead_with(EtcdConfig { history: Some(history), ..EtcdConfig::new(etcd.urls()) }, "a").await;
    for n in 0..4 * QUOTA_BYTES / (24 * NUM_JOBS as usize) {
        within("a write", store.commit(&put(vec![meta(n as u8, NUM_JOBS)]))).await?;
        ensure!(store.tenure().trouble().is_none(), "write {n}: {:?}", store.tenure().trouble());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_without_space_is_said_and_the_decision_waits() -> Result<()> {
    let etcd = Etcd::start_with(1, &["--quota-backend-bytes", "4194304"])?;
    let mut store = lead(&etcd, "a").await;
    store.commit(&put(vec![meta(1, 1)])).await?;
    let mut admin = admin(&etcd).await?;
    while admin.put("/other", vec![7; 1 << 20], None).await.is_ok() {}
    let tenure = store.tenure();
    let change = put(vec![meta(2, 1)]);
    let mut writing = store.commit(&change);
    tokio::select! {
        written = &mut writing => panic!("there is no space: {written:?}"),
        () = async {
            while tenure.trouble().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    says(&tenure.trouble().context("it is known")?, &["decisions wait", "no space left", "alarm disarm"])?;
    // It leads on: its lease is renewed meanwhile.
    tokio::select! {
        written = &mut writing => panic!("there is no space: {written:?}"),
        renewed = renewed_beyond(&tenure, Instant::now() + TTL * 2) => renewed?,
    }
    let revision = admin.get("/other", None).await?.header().context("it has one")?.revision();
    admin.delete("/other", None).await?;
    admin.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
    admin.defragment().await?;
    let (disarm, space) = (etcd_client::AlarmAction::Deactivate, etcd_client::AlarmType::Nospace);
    let member = admin.member_list().await?.members().first().context("there is one")?.id();
    let mut of_member = etcd_client::AlarmOptions::new();
    of_member.with_member(member);
    admin.alarm(disarm, space, Some(of_member)).await?;
    within("the write", writing).await?;
    has(&mut store, &[meta(2, 1)], "what waited").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_quorum_and_a_missing_etcd_are_said() -> Result<()> {
    let mut etcd = Etcd::start(3)?;
    let config = EtcdConfig::new(etcd.urls());
    let mut store = lead(&etcd, "a").await;
    store.commit(&put(vec![meta(1, 1)])).await?;
    let leader = etcd.leader()?;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    etcd.kill(leader)?;
    etcd.kill(others[0])?;
    let mut tenure = store.tenure();
    let change = put(vec![meta(2, 1)]);
    let ended = within("the end of its lease", store.commit(&change)).await;
    ensure!(matches!(ended, Err(StoreError::Deposed { .. })), "{ended:?}");
    within("the end of its lease", tenure.end()).await;
    let text = trouble_of(config.clone()).await?;
    says(&text, &["could not see who leads"])?;
    etcd.restart(others[0])?;
    etcd.wait_until_healthy()?;
    let mut again = lead_with(config, "b").await;
    let found = sorted(&again.load().await?);
    ensure!(found == sorted(&[meta(1, 1)]) || found == sorted(&[meta(2, 1)]), "{found:?}");
    drop(etcd);
    says(
        &trouble_of(EtcdConfig::new(["http://127.0.0.1:1"])).await?,
        &["http://127.0.0.1:1", "could not see who leads"],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_etcd_are_known_by_their_password_and_may_do_what_they_may() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let mut admin = admin(&etcd).await?;
    admin.user_add("root", "r", None).await?;
    admin.role_add("root").await?;
    admin.user_grant_role("root", "root").await?;
    admin.user_add("toroid", "secret", None).await?;
    admin.role_add("toroid").await?;
    admin.user_grant_role("toroid", "toroid").await?;
    admin.auth_enable().await?;
    let as_user =
        |password: &str| EtcdConfig { user: Some(("toroid".into(), password.into())), ..EtcdConfig::new(etcd.urls()) };
    says(&trouble_within(EtcdConfig::new(etcd.urls()), CALM).await?, &["wants to know who asks", "--etcd-user"])?;
    let wrong = trouble_within(as_user("wrong"), CALM).await?;
    says(&wrong, &["does not take the user `toroid` with this password", "TOROID_ETCD_PASSWORD"])?;
    ensure!(!wrong.contains("wrong"), "the password is nobody's business: {wrong}");
    says(&trouble_within(as_user("secret"), CALM).await?, &["`toroid`", "grant-permission", "/toroid/default/"])?;

    let options = ConnectOptions::new().with_user("root", "r");
    let mut root = Client::connect(etcd.urls(), Some(options)).await?;
    root.role_grant_permission("toroid", Permission::read_write("/toroid/default/").with_range_end("/toroid/default0"))
        .await?;
    let mut store = lead_calmly(as_user("secret"), "a").await;
    store.commit(&put(vec![meta(1, 1)])).await?;
    has(&mut store, &[meta(1, 1)], "with a user").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_spoken_to_over_tls_and_only_who_is_trusted() -> Result<()> {
    let etcd = Etcd::start_with_tls()?;
    let identity = || Some((etcd.pem("etcd.pem"), etcd.pem("etcd.key")));
    let trusting = |ca: &Path, identity| EtcdConfig {
        tls: Some(EtcdTls { ca: ca.into(), identity }),
        ..EtcdConfig::new(etcd.urls())
    };
    let mut store = lead_with(trusting(&etcd.pem("ca.pem"), identity()), "a").await;
    store.commit(&put(vec![meta(1, 1)])).await?;
    has(&mut store, &[meta(1, 1)], "over TLS").await?;
    let other = Etcd::start_with_tls()?;
    for config in [trusting(&other.pem("ca.pem"), identity()), trusting(&etcd.pem("ca.pem"), None)] {
        let refused = trouble_of(config).await?;
        says(&refused, &["could not see who leads", "https://"])?;
        eprintln!("{refused}");
    }
    let missing = trouble_of(trusting(Path::new("/none.pem"), None)).await?;
    says(&missing, &["cannot read /none.pem"])
}
