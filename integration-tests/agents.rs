//! Workers of a host behind an agent: the same curve, deaths that are theirs alone, and an agent whose own death costs nothing.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use toroid_proto::Job;
use toroid_testkit::jobs::{endless_job, short_job};
use toroid_testkit::{Cluster, assert_same_curve, check_nothing_lost, worker_of};

use crate::TOROID;

const AGENT: &str = "agent";
/// What a worker says that had lost the coordinator.
const BACK: &str = "the coordinator answers, after";

/// So many workers behind one agent.
fn cluster(num_workers: usize, failure_timeout_ms: u32) -> Result<(Cluster, PathBuf)> {
    let mut cluster = Cluster::with_failure_timeout(TOROID, 0, 1, failure_timeout_ms)?;
    let socket = cluster.start_agent(AGENT)?;
    for _ in 0..num_workers {
        cluster.add_worker_behind(&socket)?;
    }
    Ok((cluster, socket))
}

fn is_without_incident(job: &Job) -> Result<()> {
    ensure!(job.incidents.is_empty() && job.epoch == 1 && job.lost_steps == 0, "{:#?}", job.incidents);
    Ok(())
}

#[test]
fn a_curve_behind_an_agent_has_the_bits_of_one_without() -> Result<()> {
    let job_file = short_job((1, 2, 2), 20, "");
    let direct = Cluster::start(TOROID, 4, 1)?.train(&job_file)?;
    let (mut cluster, _) = cluster(4, 5000)?;
    let behind = cluster.train(&job_file)?;
    assert_same_curve(&direct.curve, &behind.curve);
    ensure!(behind.curve.len() == 20 && cluster.dead_workers().is_empty());
    Ok(())
}

/// It is missed at once, long before the failure timeout, and nobody else is.
#[test]
fn a_worker_killed_behind_an_agent_is_replaced_and_nobody_else_is_disturbed() -> Result<()> {
    let (mut cluster, _) = cluster(4, 60_000)?;
    let id = cluster.submit(&endless_job((1, 1, 3)))?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    let (dies, stay) = (worker_of(&job, 1), [worker_of(&job, 0), worker_of(&job, 2)]);
    cluster.kill_worker(&dies)?;
    let job = cluster.wait_for(&id, "another to take its place", |job| {
        worker_of(job, 1) != dies && job.incidents.iter().all(|incident| incident.resolved) && job.epoch == 2
    })?;
    let job = cluster.wait_for(&id, "two more steps", |now| now.committed_step > job.committed_step + 2)?;
    ensure!([worker_of(&job, 0), worker_of(&job, 2)] == stay, "{:#?}", job.incidents);
    ensure!(job.incidents.len() == 1 && job.epoch == 2, "{:#?}", job.incidents);
    check_nothing_lost(&job)
}

/// They come back by themselves, and keep their places: no epoch, no step.
#[test]
fn an_agent_that_is_killed_or_stands_still_costs_no_step_and_no_epoch() -> Result<()> {
    let (mut cluster, socket) = cluster(2, 30_000)?;
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    cluster.kill_worker(AGENT)?;
    for rank in 0..2 {
        cluster.wait_for_log(&cluster.log(&worker_of(&job, rank)), BACK)?;
    }
    let job = cluster.wait_for(&id, "steps without the agent", |now| now.committed_step > job.committed_step + 20)?;
    is_without_incident(&job)?;

    // Others find it at its place when it is started again.
    ensure!(cluster.start_agent(AGENT)? == socket);
    let spare = cluster.add_worker_behind(&socket)?;
    cluster.wait_for_workers("the third", |workers| workers.iter().any(|w| w.worker_id == spare))?;
    cluster.wait_for_log(&cluster.log(AGENT), "speaks for the workers of this host")?;
    let before = cluster.job(&id).map_or(0, |job| job.committed_step);
    cluster.signal(AGENT, Signal::STOP)?;
    cluster.wait_for_log(&cluster.log(&spare), BACK)?;
    let job = cluster.wait_for(&id, "steps beside it", |now| now.committed_step > before + 5)?;
    is_without_incident(&job)?;
    ensure!(cluster.connected().len() == 3, "{:?}", cluster.connected());
    cluster.signal(AGENT, Signal::CONT)?;
    ensure!(cluster.dead_workers().iter().all(|name| name == AGENT), "{:?}", cluster.dead_workers());
    Ok(())
}

/// Those that have no other way wait for it, and go on by the one that is started again.
#[test]
fn workers_that_know_an_agent_alone_come_back_by_the_next_one() -> Result<()> {
    let mut cluster = Cluster::with_failure_timeout(TOROID, 0, 1, 30_000)?;
    let socket = cluster.start_agent(AGENT)?;
    for _ in 0..2 {
        cluster.add_worker_by_agent_alone(&socket)?;
    }
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    cluster.kill_worker(AGENT)?;
    cluster.start_agent(AGENT)?;
    for rank in 0..2 {
        cluster.wait_for_log(&cluster.log(&worker_of(&job, rank)), BACK)?;
    }
    let job = cluster.wait_for(&id, "more steps", |now| now.committed_step > job.committed_step + 20)?;
    is_without_incident(&job)
}

/// The coordinator is started again: the agent dials it, its workers register by the agent, and keep their places.
#[test]
fn workers_behind_an_agent_keep_their_places_over_a_restart_of_the_coordinator() -> Result<()> {
    let (mut cluster, _) = cluster(2, 30_000)?;
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let job = cluster.wait_for(&id, "more steps", |now| now.committed_step > job.committed_step + 20)?;
    is_without_incident(&job)?;
    let words = "an agent speaks for the workers of a host";
    cluster.wait_for_log(&cluster.log(toroid::cluster::children::COORDINATOR), words)
}

#[test]
fn an_agent_and_its_users_say_what_is_wrong() -> Result<()> {
    let fails = |line: &[&str], words: &str| -> Result<()> {
        let output = TOROID.command().args(line).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && text.contains(words), "{line:?}: {text}");
        Ok(())
    };
    fails(&["jobs", "--coordinator", "unix:/nobody"], "takes workers alone")?;
    fails(&["agent", "--listen", "/nobody", "--coordinator", "unix:/x"], "name the coordinator's own address")?;
    fails(&["worker", "--device", "cpu", "--coordinator", "unix:/nobody"], "say it with --listen")?;
    let file = tempfile::NamedTempFile::new()?;
    let path = toroid_testkit::path(file.path());
    fails(&["agent", "--listen", path], "another file is there")
}
