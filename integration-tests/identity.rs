//! Who real workers are, by id and by certificate, where their links are, below which folders they open paths, and what a worker's log says while
//! it has no coordinator.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use toroid_proto::{Job, JobState, WorkerInfo};
use toroid_security::issue::Authority;
use toroid_testkit::jobs::{endless_job, short_job};
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
    let twin = ["--id", "w1", "--coordinator", &url, "--credentials", path(&credentials), "--allow-root", "/"];
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

/// It is given no credentials: those of a worker are found, not those of whoever started the cluster.
#[test]
fn a_worker_that_is_started_by_hand_is_a_worker_and_nothing_more() -> Result<()> {
    let cluster = Cluster::start(TOROID, 1, 1)?;
    let url = cluster.url();
    let (_by_hand, _) =
        worker(&cluster, "by-hand", &["--id", "by-hand", "--coordinator", url.trim_start_matches("https://")])?;
    let is_there = |workers: &[WorkerInfo]| workers.iter().any(|w| w.worker_id == "by-hand");
    cluster.wait_for_workers("the worker that was started by hand", is_there)
}

/// The stream ends with the certificate; the worker comes back at once with the renewed one, and its job sees nothing of it.
#[test]
fn a_worker_whose_certificate_ends_goes_on_with_the_renewed_one() -> Result<()> {
    const SHORT: Duration = Duration::from_secs(40);
    const DAY: Duration = Duration::from_secs(86_400);
    let mut cluster = Cluster::start(TOROID, 0, 1)?;
    let authority = Authority::open(&cluster.certificates())?;
    let name = "worker".parse().map_err(anyhow::Error::msg)?;
    authority.renew(&name, SHORT)?;
    let ids = [cluster.add_worker(1)?, cluster.add_worker(1)?];
    let id = cluster.submit(&endless_job((1, 1, 2)).replace("[shape]", "[fault_tolerance]\nmin_dp = 2\n[shape]"))?;
    cluster.wait_for(&id, "the first steps", |job| job.committed_step > 2)?;
    authority.renew(&name, DAY)?;
    for worker in &ids {
        let log = cluster.log(worker);
        cluster.wait_for_log(&log, "the certificate has ended")?;
        cluster.wait_for_log(&log, "the coordinator answers, after")?;
    }
    let seen = cluster.job(&id).context("find the job")?.committed_step;
    let job = cluster.wait_for(&id, "steps after it", |job| job.committed_step > seen + 3)?;
    ensure!((job.epoch, job.incidents.len(), job.lost_steps) == (1, 0, 0), "it was taken for a death: {job:#?}");
    Ok(())
}

/// The coordinator allows every path here; each worker looks again.
#[test]
fn a_worker_opens_no_path_that_its_own_operator_does_not_allow() -> Result<()> {
    let cluster = Cluster::start(TOROID, 0, 1)?;
    let (url, credentials) = (cluster.url(), cluster.certificates().join("worker"));
    let args = ["--coordinator", &url, "--credentials", path(&credentials), "--allow-root", path(cluster.path())];
    let (_confined, _) = worker(&cluster, "confined", &args)?;
    let outside = tempfile::tempdir()?;
    std::fs::write(outside.path().join("text.rs"), "nobody else's business ".repeat(4000))?;
    // Within the folder, as far as its name says.
    std::os::unix::fs::symlink(outside.path(), cluster.path().join("within"))?;
    let job_file = short_job((1, 1, 1), 3, "");
    let data = job_file.lines().find(|line| line.trim_start().starts_with("path")).context("find the data")?;
    let text = cluster.path().join("text.rs");
    std::fs::write(&text, "what it may read ".repeat(4000))?;
    for named in [outside.path().join("text.rs"), cluster.path().join("within/text.rs")] {
        let id = cluster.submit(&job_file.replace(data, &format!("path = {:?}", path(&named))))?;
        let refused = cluster.wait_for(&id, "the refusal", |_| false).expect_err("nobody reads it").to_string();
        ensure!(refused.contains("is not allowed: ") && refused.contains("the operator of the worker"), "{refused}");
    }
    cluster.train(&job_file.replace(data, &format!("path = {:?}", path(&text)))).map(drop)
}

/// Listeners are where they were told to be, and nowhere else; and links that others can read are shown.
#[test]
fn ports_are_where_they_are_named_and_plain_links_are_shown() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 0, 1)?;
    for _ in 0..2 {
        cluster.add_worker_with(1, &["--links", "tcp"])?;
    }
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let is_shown = |job: &Job| job.places.iter().all(|place| place.links == [("tcp".to_string(), 1)].into());
    cluster.wait_for(&id, "its links", is_shown)?;
    let url = cluster.url();
    let status = TOROID.run_ok(&["status", &id, "--coordinator", &url])?;
    ensure!(status.contains("2 tcp in clear text; whoever is in between can read those of w"), "{status}");
    let json = TOROID.run_ok(&["workers", "-o", "json", "--coordinator", &url])?;
    ensure!(json.contains("\"links\":{\"tcp\":1}") || json.contains("\"tcp\": 1"), "{json}");
    for child in ["coordinator", "w0", "w1"] {
        let addresses = listening(cluster.pid(child).context("find the process")?)?;
        ensure!(
            !addresses.is_empty() && addresses.iter().all(|at| at.starts_with("0100007F:")),
            "{child}: {addresses:?}"
        );
    }
    Ok(())
}

/// Where a process listens by TCP, as the kernel writes it: the address in hexadecimal.
fn listening(pid: u32) -> Result<Vec<String>> {
    const LISTEN: &str = "0A";
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        // One may be closed meanwhile.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let inode =
            target.to_string_lossy().strip_prefix("socket:[").map(|rest| rest.trim_end_matches(']').to_string());
        inodes.extend(inode);
    }
    let mut addresses = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == LISTEN && inodes.iter().any(|inode| inode == fields[9]) {
                addresses.push(fields[1].to_string());
            }
        }
    }
    Ok(addresses)
}
