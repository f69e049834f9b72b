//! Whoever writes is killed at any instant, and files are cut: the last stored decision is found again, or an error says that it is not.
//!
//! `TOROID_STORE_KILLS` says how often; 50 times where it is not set.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::{Client, GetOptions};
use toroid_coordinator::machine::Change;
use toroid_coordinator::machine::record::Record;
use toroid_coordinator::store::etcd::EtcdConfig;
use toroid_coordinator::store::{RedbStore, Store as _};
use toroid_testkit::Etcd;

use super::{admin, incident, lead_calmly, meta, sorted, take_lease_away};

const KILLS: &str = "TOROID_STORE_KILLS";
/// The store that a process of this test writes to until it is killed.
const WRITES_TO: &str = "TOROID_TEST_WRITES_TO";

fn num_kills() -> Result<u64> {
    match std::env::var(KILLS) {
        Ok(text) => text.parse().with_context(|| format!("read {KILLS} = {text}")),
        Err(_) => Ok(50),
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

// ------------------------------------------------------------------------------------------------------------------------------- redb

/// Of two records in every decision, large and small, and one that comes and goes.
fn decision(number: u64) -> Result<Change> {
    let text = number.to_string();
    let records = vec![incident(1, &text)?, meta(number as u8, number * 37 % 500), incident(2, &text)?];
    let (third, key) = (incident(3, &text)?, incident(3, "")?.key());
    Ok(match number % 2 {
        0 => Change { put: records.into_iter().chain([third]).collect(), remove: Vec::new() },
        _ => Change { put: records, remove: vec![key] },
    })
}

/// The number of the decision that these records are; 0: none was stored.
fn number_of(records: &[Record]) -> Result<u64> {
    let number = records.iter().find_map(|record| match record {
        Record::Incident(incident) => incident.cause.parse().ok(),
        _ => None,
    });
    let number = number.unwrap_or(0);
    let expected = if number == 0 { Vec::new() } else { decision(number)?.put };
    ensure!(sorted(records) == sorted(&expected), "some of the records are not of decision {number}: {records:?}");
    Ok(number)
}

/// Stores one decision after the other, and says which it has stored, until it is killed.
async fn write_until_killed(path: &Path) -> Result<()> {
    let mut store = RedbStore::open(path)?;
    let mut number = number_of(&store.load().await?)?;
    let mut out = std::io::stdout().lock();
    loop {
        writeln!(out, "stored {number}")?;
        out.flush()?;
        number += 1;
        store.commit(&decision(number)?).await?;
    }
}

/// Kills a process that writes at some instant; the last number that it said to have stored.
fn kill_a_writer(path: &Path, random: &mut Random) -> Result<u64> {
    let test = "crashes::redb_has_the_last_stored_decision_whenever_its_process_is_killed_and_wherever_its_file_is_cut";
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(WRITES_TO, path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a process that writes")?;
    let mut lines = BufReader::new(child.stdout.take().context("take its output")?).lines();
    let number_in = |line: &str| line.strip_prefix("stored ").and_then(|number| number.parse::<u64>().ok());
    let mut stored = None;
    for _ in 0..=random.below(6) {
        loop {
            let Some(line) = lines.next() else { bail!("it ended by itself: {:?}", child.wait()) };
            if let Some(number) = number_in(&line?) {
                stored = Some(number);
                break;
            }
        }
    }
    // Some instant of the decisions that follow.
    let (since, pause) = (Instant::now(), Duration::from_micros(random.below(5000)));
    while since.elapsed() < pause {
        std::hint::spin_loop();
    }
    child.kill()?;
    child.wait()?;
    // The last line may be half of one.
    let said = lines.map_while(Result::ok).filter_map(|line| number_in(&line)).last();
    said.or(stored).context("it has said what it has stored")
}

/// What is found in the file; `None`: it is refused, with words that say what to do.
async fn number_in(path: &Path) -> Result<Option<u64>> {
    let found = match RedbStore::open(path) {
        Ok(mut store) => store.load().await,
        Err(error) => Err(error),
    };
    match found {
        Ok(records) => number_of(&records).map(Some),
        Err(error) if error.to_string().contains("restore it from a copy") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn redb_has_the_last_stored_decision_whenever_its_process_is_killed_and_wherever_its_file_is_cut() -> Result<()> {
    if let Some(path) = std::env::var_os(WRITES_TO) {
        return write_until_killed(&PathBuf::from(path)).await;
    }
    let folder = tempfile::tempdir()?;
    let (path, copy) = (folder.path().join("store"), folder.path().join("copy"));
    let mut random = Random(7);
    let (mut num_between, mut num_refused, mut num_same) = (0, 0, 0);
    for kill in 0..num_kills()? {
        let said = kill_a_writer(&path, &mut random)?;
        // As it was left, and cut.
        std::fs::copy(&path, &copy)?;
        let found = number_in(&path).await?.with_context(|| format!("kill {kill}: the store is refused"))?;
        ensure!(found == said || found == said + 1, "kill {kill}: decision {said} was stored, {found} is found");
        num_between += u64::from(found > said);
        let len = copy.metadata()?.len();
        let cut = random.below(len);
        std::fs::File::options().write(true).open(&copy)?.set_len(cut)?;
        match number_in(&copy).await.with_context(|| format!("kill {kill}: cut to {cut} of {len} bytes"))? {
            None => num_refused += 1,
            // Of an empty file nobody can say what it was; beside folders of jobs a coordinator refuses it.
            Some(0) if cut == 0 => {}
            Some(number) => {
                ensure!(
                    number == found,
                    "kill {kill}: cut to {cut} of {len} bytes, {number} is found, and {found} was stored"
                );
                num_same += 1;
            }
        }
    }
    eprintln!(
        "{num_between} times a decision was stored and not yet told; of cut files {num_refused} were refused, {num_same} had all"
    );
    ensure!(num_refused > 0, "no cut was seen");
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------------------------- etcd

/// More than one transaction takes.
const MAX_INCIDENTS: u64 = 250;

/// Incidents, and a record of many pages.
fn many(cause: &str, secret: u8, num_incidents: u64, num_jobs: u64) -> Result<Vec<Record>> {
    (1..=num_incidents).map(|n| incident(n, cause)).chain([Ok(meta(secret, num_jobs))]).collect()
}

/// How often `head` was written: once by each write.
async fn num_writes(admin: &mut Client) -> Result<i64> {
    let head = admin.get("/toroid/default/head", None).await?;
    Ok(head.kvs().first().context("there is one")?.version())
}

async fn reached(mut admin: Client, wanted: i64) -> Result<()> {
    while num_writes(&mut admin).await? < wanted {}
    Ok(())
}

/// A leader dies between any two writes of one decision: the next one finds all of it or nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_in_etcd_is_whole_or_not_there_wherever_its_leader_dies() -> Result<()> {
    let etcd = Etcd::start_with(1, &["--quota-backend-bytes", "8589934592"])?;
    let mut admin = admin(&etcd).await?;
    let (mut num_old, mut num_new, mut kills, mut random) = (0, 0, 0, Random(7));
    let config = EtcdConfig::new(etcd.urls());
    let mut store = lead_calmly(config.clone(), "a").await;
    let wanted = num_kills()?;
    while kills < wanted {
        // Their numbers of records and pages differ each time.
        let size = |random: &mut Random| (101 + random.below(MAX_INCIDENTS - 100), random.below(4) * 25_000);
        let ((old_incidents, old_jobs), (new_incidents, new_jobs)) = (size(&mut random), size(&mut random));
        let old = many("old", 1, old_incidents, old_jobs)?;
        let new = many("new", 2, new_incidents, new_jobs)?;
        let whole = |records: &[Record], num: u64| {
            let rest = (num + 1..=MAX_INCIDENTS).map(|n| Ok(incident(n, "")?.key()));
            anyhow::Ok(Change { put: records.to_vec(), remove: rest.collect::<Result<_>>()? })
        };
        let (before, change) = (whole(&old, old_incidents)?, whole(&new, new_incidents)?);
        for after in 1.. {
            store.commit(&before).await?;
            let head = num_writes(&mut admin).await?;
            let is_done = {
                let mut writing = store.commit(&change);
                tokio::select! {
                    biased;
                    reached = reached(admin.clone(), head + after) => reached.map(|()| false)?,
                    written = &mut writing => written.map(|()| true)?,
                }
            };
            drop(store);
            take_lease_away(&mut admin).await?;
            store = lead_calmly(config.clone(), "a").await;
            let found = sorted(&store.load().await?);
            let (is_old, is_new) = (found == sorted(&old), found == sorted(&new));
            ensure!(is_old || is_new, "after {after} writes there is something between");
            check_pages(&mut admin).await?;
            if is_done {
                break;
            }
            (num_old, num_new, kills) = (num_old + u32::from(is_old), num_new + u32::from(is_new), kills + 1);
        }
    }
    eprintln!("{kills} leaders died: {num_old} times the old decision, {num_new} times the new one");
    ensure!(num_old > 1 && num_new > 1, "{num_old} times the old decision, {num_new} times the new one");
    Ok(())
}

/// There are pages of one value at most: nothing is left of what was given up.
async fn check_pages(admin: &mut Client) -> Result<()> {
    let pages = admin.get("/toroid/default/page/", Some(GetOptions::new().with_prefix().with_keys_only())).await?;
    let generations: std::collections::BTreeSet<&str> =
        pages.kvs().iter().filter_map(|page| page.key_str().ok()?.split('/').nth(4)).collect();
    ensure!(generations.len() <= 1, "pages of {generations:?} are left");
    Ok(())
}
