//! SIGTERM to a worker, as from Kubernetes and Slurm: it stays as a holder until its place is moved, then ends with exit code 0.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use toroid_proto::{Job, JobState, WorkerInfo};
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost, is_whole, worker_of};

use crate::TOROID;

/// Nobody can take the place at first: it waits for the spare. The grace is five times the failure timeout, so 450 s here, which is
/// not what ends it.
#[test]
fn a_worker_that_is_terminated_ends_when_its_place_is_moved() -> Result<()> {
    let job_file = endless_job((1, 1, 4));
    let mut cluster = Cluster::with_failure_timeout(TOROID, 4, 1, 90_000)?;
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    let leaves = worker_of(&job, 0);
    cluster.signal(&leaves, Signal::TERM)?;
    let is_draining = |job: &Job| job.events.iter().any(|e| e.kind == "worker.draining" && e.worker_id == leaves);
    let job = cluster.wait_for(&id, "the coordinator to hear of it", is_draining)?;
    let after = job.committed_step + 2;
    let stays = |job: &Job| is_whole(job) && worker_of(job, 0) == leaves && job.committed_step >= after;
    cluster.wait_for(&id, "two more steps with it", stays)?;
    let spare = cluster.add_worker(1)?;
    let code = cluster.exit_code(&leaves)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    let job = cluster.finish(&id)?;
    ensure!(job.epoch == 2, "one move is one epoch: {:#?}", job.incidents);
    let [incident] = job.incidents.as_slice() else { anyhow::bail!("one move, but {:#?}", job.incidents) };
    ensure!(incident.rung == "drain" && incident.workers == [leaves], "{incident:#?}");
    let has_place =
        |e: &toroid_proto::Event| e.kind == "job.recovering" && e.text.contains(&format!("{spare} takes rank 0"));
    ensure!(job.events.iter().any(has_place), "{:#?}", job.events);
    check_nothing_lost(&job)?;
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

/// A second SIGTERM is obeyed at once, and so is the first by a spare.
#[test]
fn a_worker_that_is_terminated_twice_ends_at_once() -> Result<()> {
    let mut cluster = Cluster::with_failure_timeout(TOROID, 3, 1, 90_000)?;
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let job = cluster.wait_for(&id, "step 3 and a spare", |job| job.curve.len() >= 3 && job.spares == 1)?;
    let connected = cluster.connected();
    let spare = connected.iter().find(|w| w.rank < 0).context("find the spare")?.worker_id.clone();
    cluster.signal(&spare, Signal::TERM)?;
    ensure!(cluster.exit_code(&spare)? == Some(0));
    let leaves = worker_of(&job, 1);
    cluster.signal(&leaves, Signal::TERM)?;
    let is_draining = |job: &Job| job.events.iter().any(|e| e.kind == "worker.draining" && e.worker_id == leaves);
    cluster.wait_for(&id, "the coordinator to hear of it", is_draining)?;
    cluster.signal(&leaves, Signal::TERM)?;
    ensure!(cluster.exit_code(&leaves)? == Some(0));
    let is_gone = |workers: &[WorkerInfo]| workers.iter().all(|w| w.worker_id != leaves);
    cluster.wait_for_workers("the coordinator to see its end", is_gone)
}

/// A scale-down: all workers are asked to end. The job saves its newest step, stands by, and goes on from it with the workers that come
/// next.
#[test]
fn all_workers_are_terminated_and_no_step_is_lost() -> Result<()> {
    everybody_is_terminated(|_, _| Ok(()), |_| Ok(()))
}

/// The time limit of Slurm, or `scancel`: the coordinator is asked as the workers are, and ends only after them.
#[test]
fn the_coordinator_is_terminated_with_all_workers_and_no_step_is_lost() -> Result<()> {
    everybody_is_terminated(
        |cluster, id| {
            // The others were asked when it is: it ends because they are gone, not because its own time is over.
            let is_draining = |job: &Job| job.events.iter().any(|e| e.kind == "worker.draining");
            cluster.wait_for(id, "the coordinator to hear of it", is_draining)?;
            cluster.terminate_coordinator()
        },
        |cluster| {
            let code = cluster.coordinator_exit_code()?;
            ensure!(code == Some(0), "the coordinator ended with {code:?}");
            cluster.start_coordinator()
        },
    )
}

/// `asked`: when all workers were asked to end; `gone`: when they have ended.
fn everybody_is_terminated(
    asked: impl FnOnce(&mut Cluster, &str) -> Result<()>,
    gone: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    // Without an end: on a busy machine the coordinator may hear of it many steps late.
    let job_file = endless_job((1, 1, 2));
    let mut cluster = Cluster::with_failure_timeout(TOROID, 2, 1, 90_000)?;
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    let workers: Vec<String> = job.places.iter().map(|place| place.worker_id.clone()).collect();
    for worker in &workers {
        cluster.signal(worker, Signal::TERM)?;
    }
    asked(&mut cluster, &id)?;
    for worker in &workers {
        let code = cluster.exit_code(worker)?;
        ensure!(code == Some(0), "{worker} ended with {code:?}");
    }
    gone(&mut cluster)?;
    let job = cluster.wait_for(&id, "the job to stand by", |job| job.state() == JobState::Queued)?;
    let saved = job.checkpoints.last().map(|c| c.step as usize);
    ensure!(saved == Some(job.curve.len()), "step {saved:?} is saved of {}: {:#?}", job.curve.len(), job.events);
    for _ in 0..2 {
        cluster.add_worker(1)?;
    }
    let job = cluster.finish(&id)?;
    ensure!(
        job.lost_steps == 0 && job.incidents.iter().all(|i| i.resolved && i.steps_lost == 0),
        "{:#?}",
        job.incidents
    );
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}
