//! Worker ids of real processes, and what a worker's log says while it has no coordinator.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use toroid_proto::JobState;
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Process, free_port, path};

use crate::TOROID;

/// Starts a worker with these arguments; returns it with its log.
fn worker(cluster: &Cluster, name: &str, args: &[&str]) -> Result<(Process, PathBuf)> {
    let log = cluster.log(name);
    let file = std::fs::File::create(&log)?;
    let child = TOROID
        .command()
        .args(["worker", "--threads", "1", "--listen", "127.0.0.1:0", "--cache", path(&cluster.path().join("cache"))])
        .args(args)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("start a worker")?;
    Ok((Process(child), log))
}

#[test]
fn two_processes_of_one_id_do_not_evict_each_other() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 2, 1)?;
    let id = cluster.submit(&endless_job((1, 1, 2)).replace("[shape]", "[fault_tolerance]\nmin_dp = 2\n[shape]"))?;
    cluster.wait_for(&id, "the first steps", |job| job.committed_step > 2)?;
    let url = cluster.url();
    let credentials = cluster.certificates().join("worker");
    let twin = ["--id", "w1", "--coordinator", &url, "--credentials", path(&credentials)];
    let (_twin, log) = worker(&cluster, "twin", &twin)?;
    cluster.wait_for_log(&log, "the worker id `w1` is in use: process ")?;
    let seen = cluster.job(&id).context("find the job")?.committed_step;
    let job = cluster.wait_for(&id, "steps beside it", |job| job.committed_step > seen + 3)?;
    ensure!((job.epoch, job.incidents.len()) == (1, 0), "somebody was evicted: {:#?}", job.incidents);
    // Once the first is gone the second is taken, and takes the place.
    cluster.kill_worker("w1")?;
    cluster.wait_for_log(&log, "the coordinator answers")?;
    let seen = job.committed_step;
    let job = cluster.wait_for(&id, "steps with the second", |job| job.epoch == 2 && job.committed_step > seen)?;
    ensure!(job.state() != JobState::Failed && job.lost_steps == 0, "{}", job.reason);
    Ok(())
}

#[test]
fn a_worker_without_a_coordinator_says_so_at_once() -> Result<()> {
    let cluster = Cluster::start(TOROID, 0, 1)?;
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let (_lonely, log) = worker(&cluster, "lonely", &["--coordinator", &nobody])?;
    cluster.wait_for_log(&log, &format!("no coordinator at {nobody} since 0 s"))?;
    cluster.wait_for_log(&log, "nothing listens there")
}
