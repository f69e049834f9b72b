//! A worker whose trainer computes for ever and whose heartbeats go on: it is found by who waits for whom, and what its threads were in is told.

use anyhow::{Context, Result, ensure};
use toroid_proto::Job;
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, check_nothing_lost, is_whole};

use crate::TOROID;

/// Long enough that a busy machine makes nobody look dead.
const FAILURE_TIMEOUT_MS: u32 = 3000;

#[test]
fn an_endless_loop_is_told_by_rank_and_with_the_function_that_it_is_in() -> Result<()> {
    let job_file = endless_job((1, 1, 4));
    let mut cluster = Cluster::with_failure_timeout(TOROID, 3, 1, FAILURE_TIMEOUT_MS)?;
    let hangs = cluster.add_worker_that_fails("spin=backward@15")?;
    let id = cluster.submit(&job_file)?;
    let has_place = |job: &Job| job.places.iter().any(|place| place.worker_id == hangs);
    let before = cluster.wait_for(&id, "the worker to have a place", has_place)?;
    let rank = before.places.iter().position(|place| place.worker_id == hangs).context("find its rank")? as u32;
    cluster.add_worker(1)?;
    // Looking up the names takes a while, also after another has its place.
    let is_told = |job: &Job| {
        is_whole(job) && job.incidents.iter().flat_map(|i| &i.evidence).any(|evidence| evidence.kind == "stacks")
    };
    cluster.wait_for(&id, "another worker in the place, and the stacks", is_told)?;
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    let [incident] = job.incidents.as_slice() else { anyhow::bail!("one endless loop, but {:#?}", job.incidents) };
    ensure!(incident.ranks == [rank] && incident.workers == [hangs.clone()], "{incident:#?}");
    ensure!(incident.cause.contains("hangs in backward") && incident.cause.contains("wait for it"), "{incident:#?}");
    let stacks = incident.evidence.iter().find(|evidence| evidence.kind == "stacks").context("find the stacks")?;
    let lines = &stacks.lines;
    ensure!(stacks.worker_id == hangs && lines[0].contains("nothing in backward"), "{lines:#?}");
    let trainer = lines.iter().position(|line| line == "thread trainer").context("find the trainer's stack")?;
    let innermost: Vec<&String> = lines[trainer + 1..].iter().take(4).collect();
    ensure!(innermost.iter().any(|line| line.contains("computes_for_ever")), "{lines:#?}");
    let log = incident.evidence.iter().find(|evidence| evidence.kind == "log").context("find its log")?;
    ensure!(log.lines.iter().any(|line| line.contains("computes for ever in phase backward")), "{:#?}", log.lines);
    Ok(())
}
