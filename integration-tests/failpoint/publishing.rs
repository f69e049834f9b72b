//! A rank 0 that is stopped or dies around the one moment at which a checkpoint becomes visible: nothing that it still does reaches the
//! job (T-1), and what it has made visible counts (T-6).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use toroid_proto::{Job, WorkerInfo};
use toroid_testkit::jobs::{endless_job, short_job};
use toroid_testkit::{Cluster, Undisturbed, path, worker_of};

use crate::TOROID;

const STEPS: u64 = 20;

/// A cluster of `world` workers, the first of which does something to itself, and a job in which that one is rank 0.
fn start(ways: (usize, usize, usize), failpoint: &str) -> Result<(Cluster, String, String)> {
    start_job(ways, failpoint, &short_job(ways, STEPS, ""))
}

fn start_job(ways: (usize, usize, usize), failpoint: &str, job_file: &str) -> Result<(Cluster, String, String)> {
    let world = ways.0 * ways.1 * ways.2;
    let mut cluster = Cluster::with_failure_timeout(TOROID, 0, 1, 3000)?;
    let first = cluster.add_worker_that_fails(failpoint)?;
    for _ in 1..world {
        cluster.add_worker(1)?;
    }
    cluster.wait_for_workers("all workers", |workers| workers.len() == world)?;
    let id = cluster.submit(job_file)?;
    let job = cluster.wait_for(&id, "places", |job| job.places.len() == world)?;
    ensure!(worker_of(&job, 0) == first, "{first} was started first and is to be rank 0: {:?}", job.places);
    Ok((cluster, id, first))
}

/// Names and contents of everything in a folder.
fn contents(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?))
    };
    entries.map(file).collect()
}

/// T-1: it has looked whether its place is still its own, is stopped, and goes on when another has published in its place.
#[test]
fn t1_a_rank_0_that_was_stopped_before_publishing_writes_nothing_into_the_job() -> Result<()> {
    let ways = (1, 1, 2);
    let (mut cluster, id, stopped) = start(ways, &format!("stop=publish@{STEPS}"))?;
    cluster.add_worker(1)?;
    let job = cluster.done(&id)?;
    ensure!(worker_of(&job, 0) != stopped && job.incidents.len() == 1, "{stopped} was to be replaced: {job:#?}");
    let folder = cluster.checkpoints(&id);
    let last = folder.join(format!("step-{STEPS}"));
    let before = contents(&last)?;
    let manifest: serde_json::Value = serde_json::from_slice(before.get("manifest.json").context("no manifest")?)?;
    ensure!(manifest["epoch"] == job.epoch && job.epoch == 2, "published by epoch {}", manifest["epoch"]);

    cluster.signal(&stopped, Signal::CONT)?;
    // The trainer's answer to what it was told in between comes after the rest of the publishing: it has nothing to do any more.
    let is_spare = |w: &WorkerInfo| w.worker_id == stopped && w.rank < 0 && w.silent_s < 1.0;
    cluster.wait_for_workers("the stopped worker to come back as a spare", |workers| workers.iter().any(is_spare))?;
    let log = cluster.log(&stopped);
    cluster.wait_for_log(&log, "is not published")?;
    let after = contents(&last)?;
    let changed = || before.keys().chain(after.keys()).filter(|name| before.get(*name) != after.get(*name));
    ensure!(after == before, "the checkpoint of step {STEPS} has changed: {:?}", changed().collect::<Vec<_>>());
    TOROID.run_ok(&["checkpoint", "verify", path(&folder)])?;
    let after = cluster.job(&id).context("find the job")?;
    ensure!(
        (after.epoch, &after.checkpoints) == (job.epoch, &job.checkpoints),
        "its return changed the job: {after:#?}"
    );
    cluster.kill_worker(&stopped)?;
    Undisturbed::train(&cluster, &short_job(ways, STEPS, ""), STEPS)?.check_same(&cluster, &job)
}

/// T-6: the last step is published, but nobody was told, and the job goes on with fewer replicas, whose shards are other ones.
#[test]
fn t6_a_last_checkpoint_that_a_dead_rank_0_has_published_ends_the_job_with_fewer_replicas() -> Result<()> {
    let ways = (1, 1, 3);
    let (mut cluster, id, dead) = start(ways, &format!("kill=published@{STEPS}"))?;
    let job = cluster.done(&id)?;
    let is_shrunk = |job: &Job| job.places.len() == 2 && job.incidents.iter().any(|i| i.rung == "shrink");
    ensure!(cluster.dead_workers() == [dead.as_str()] && is_shrunk(&job), "{dead} was to die: {job:#?}");
    cluster.bury(&dead)?;
    TOROID.run_ok(&["checkpoint", "verify", path(&cluster.checkpoints(&id))])?;
    cluster.add_worker(1)?;
    Undisturbed::train(&cluster, &short_job(ways, STEPS, ""), STEPS)?.check_same(&cluster, &job)
}

/// The disk under rank 0 does not answer while it publishes: steps go on, and nobody is replaced.
#[test]
fn a_publishing_that_does_not_come_back_keeps_no_step_waiting() -> Result<()> {
    let ways = (1, 1, 2);
    let (cluster, id, _) = start_job(ways, "hang=publish@10", &endless_job(ways))?;
    let job = cluster.wait_for(&id, "steps beyond the checkpoint", |job| job.committed_step >= 200)?;
    ensure!(job.checkpoints.is_empty() && job.incidents.is_empty(), "{job:#?}");
    TOROID.run_ok(&["cancel", &id, "--coordinator", &cluster.url()])?;
    Ok(())
}

/// T-12: a publisher that panics has failed that checkpoint, at once and in words, and publishes the next.
#[test]
fn a_publisher_that_panics_costs_that_checkpoint_alone() -> Result<()> {
    let (cluster, id, _) = start((1, 1, 2), "panic=publish@10")?;
    let job = cluster.done(&id)?;
    let failed: Vec<&str> =
        job.events.iter().filter(|e| e.kind == "checkpoint.failed").map(|e| e.text.as_str()).collect();
    ensure!(
        failed.len() == 1
            && failed[0].starts_with("step 10: ")
            && failed[0].contains("could not publish the manifest: its thread panicked, which is a bug of Toroid"),
        "{failed:#?}"
    );
    ensure!(job.checkpoints.iter().map(|c| c.step).eq([STEPS]) && job.incidents.is_empty(), "{job:#?}");
    ensure!(!cluster.checkpoints(&id).join("step-10").exists(), "what was written of the failed one stays");
    Ok(())
}
