//! Newcomers that cannot fill a place: they are found and named, and cost nobody else a place (T-11).

use anyhow::{Result, ensure};
use toroid_proto::{Job, JobState, WarmUpState, WorkerInfo};
use toroid_testkit::jobs::{endless_job, text_folder};
use toroid_testkit::{Cluster, check_nothing_lost, worker_of};

use crate::TOROID;

/// Nobody resolves the name, and TCP is all it takes.
const NO_HOST: [&str; 4] = ["--advertise", "nohost.invalid", "--links", "tcp"];
/// Nobody listens there.
const NO_PORT: [&str; 4] = ["--advertise", "127.0.0.1:9", "--links", "tcp"];

fn is(workers: &[WorkerInfo], worker: &str, state: WarmUpState) -> bool {
    workers.iter().any(|w| w.worker_id == worker && w.warm_up() == state)
}

/// A spare that cannot fill a place is shown with the reason, and passed over for one that can when a worker dies.
fn check_passed_over(add: impl FnOnce(&mut Cluster) -> Result<String>, reason: &str) -> Result<()> {
    let mut cluster = Cluster::with_failure_timeout(TOROID, 2, 1, 2000)?;
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    let (stays, dies) = (worker_of(&job, 0), worker_of(&job, 1));
    let bad = add(&mut cluster)?;
    cluster.wait_for_workers("the spare to be found unfit", |workers| is(workers, &bad, WarmUpState::Failed))?;
    let shown = TOROID.run_ok(&["workers", "--coordinator", &cluster.url()])?;
    ensure!(shown.contains(&format!("failed for {id}")) && shown.contains(reason), "{shown}");
    let json = TOROID.run_ok(&["workers", "-o", "json", "--coordinator", &cluster.url()])?;
    ensure!(json.contains("\"failed\"") && json.contains(reason), "{json}");
    let good = cluster.add_worker(1)?;
    cluster.wait_for_workers("the other spare to be ready", |workers| is(workers, &good, WarmUpState::Ready))?;
    cluster.kill_worker(&dies)?;
    let job = cluster.wait_for(&id, "the spare to take the place", |job| worker_of(job, 1) == good)?;
    let job = cluster.wait_for(&id, "two more steps", |now| now.committed_step > job.committed_step + 2)?;
    ensure!(worker_of(&job, 0) == stays, "{:#?}", job.incidents);
    ensure!(job.epoch == 2, "one death is one epoch: {:#?}", job.incidents);
    check_nothing_lost(&job)
}

#[test]
fn t11_a_spare_whose_name_nobody_resolves_is_shown_and_passed_over() -> Result<()> {
    check_passed_over(|cluster| cluster.add_worker_with(1, &NO_HOST), "nohost.invalid")
}

#[test]
fn t11_a_spare_that_nobody_can_dial_is_shown_and_passed_over() -> Result<()> {
    check_passed_over(|cluster| cluster.add_worker_with(1, &NO_PORT), "127.0.0.1:9")
}

#[test]
fn t11_a_spare_without_the_data_is_shown_and_passed_over() -> Result<()> {
    check_passed_over(|cluster| cluster.add_worker_without(1, &text_folder()), "cannot prepare the data")
}

/// Nobody else is there, so it gets the place before it has shown anything: the epoch shows it, and it goes again.
fn check_goes_again(add: impl FnOnce(&mut Cluster) -> Result<String>) -> Result<()> {
    let mut cluster = Cluster::with_failure_timeout(TOROID, 2, 1, 1000)?;
    let job_file = endless_job((1, 1, 2)).replace("[shape]\n", "[fault_tolerance]\nmin_dp = 2\n[shape]\n");
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 5", |job| job.curve.len() >= 5)?;
    let stays = worker_of(&job, 0);
    cluster.kill_worker(&worker_of(&job, 1))?;
    let bad = add(&mut cluster)?;
    let is_told = |job: &Job| job.events.iter().any(|e| e.kind == "worker.unfit" && e.worker_id == bad);
    let job = cluster.wait_for(&id, "the newcomer to be found unfit", is_told)?;
    ensure!(!matches!(job.state(), JobState::Failed | JobState::Done), "{}", job.reason);
    let good = cluster.add_worker(1)?;
    let job = cluster.wait_for(&id, "another to take the place", |job| worker_of(job, 1) == good)?;
    let job = cluster.wait_for(&id, "two more steps", |now| now.committed_step > job.committed_step + 2)?;
    ensure!(worker_of(&job, 0) == stays, "{:#?}", job.incidents);
    check_nothing_lost(&job)
}

#[test]
fn t11_a_newcomer_that_nobody_can_dial_loses_its_place_and_nobody_else() -> Result<()> {
    check_goes_again(|cluster| cluster.add_worker_with(1, &NO_HOST))
}

#[test]
fn t11_a_newcomer_without_the_data_loses_its_place_and_the_job_goes_on() -> Result<()> {
    check_goes_again(|cluster| cluster.add_worker_without(1, &text_folder()))
}

#[test]
fn an_address_that_cannot_be_dialled_is_refused_with_how_to_write_it() -> Result<()> {
    let output = TOROID.command().args(["worker", "--device", "cpu", "--advertise", "[::1]"]).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && text.contains("[::1]:port"), "{text}");
    Ok(())
}
