//! Checkpoints of jobs whose steps take milliseconds: each that was asked for is made, and one that a worker cannot read is a fault of
//! that worker until others have it, too (T-11).

use anyhow::{Context, Result, ensure};
use toroid_proto::{Job, JobState};
use toroid_testkit::jobs::{ENDLESS, text_folder};
use toroid_testkit::{Cluster, assert_same_curve, path};

use crate::TOROID;

/// A job of steps of milliseconds, which saves the state at every `interval` steps in `folder`.
pub fn quick_job(dp: usize, steps: u64, folder: &std::path::Path, interval: u64) -> String {
    format!(
        "preset = \"tiny\"\nsteps = {steps}\nseed = 7\n\
         [model]\nlayers = 1\nd_model = 16\nheads = 2\nkv_heads = 1\nhead_dim = 8\nexperts = 2\nff = 16\nseq = 32\n\
         [shape]\ndp = {dp}\n\
         [batch]\nmicro_batch = 1\nglobal = {dp}\n\
         [data]\npath = \"{}\"\nextensions = [\"rs\"]\n\
         [checkpoint]\ninterval_steps = {interval}\nkeep = 3\npath = \"{}\"\n",
        path(&text_folder()),
        path(folder)
    )
}

/// The same, whose learning rate and weight decay do not depend on how many steps it has: one of fewer steps is the same as far as it goes. An
/// endless one is not over before the test has done to it what it came for. A step has 16 times the work, so that a test's last look at
/// it is not thousands of steps ago.
pub fn steady_job(dp: usize, steps: u64, folder: &std::path::Path, interval: u64) -> String {
    let steady = "[optimizer]\nwarmup = 5\nfloor = 1.0\nweight_decay = 0.1\nweight_decay_final = 0.1\n";
    let (few, more) = (format!("global = {dp}\n"), format!("global = {}\n", 16 * dp));
    quick_job(dp, steps, folder, interval).replace(&few, &more) + steady
}

fn num_damaged(folder: &std::path::Path) -> Result<usize> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let names = entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().filter(|name| name.starts_with("damaged-")).count())
}

/// T-11: both workers die, and the first that takes a place lacks the folder of the checkpoints. The spare that has it takes that place,
/// and no checkpoint is given up.
#[test]
fn t11_a_newcomer_that_cannot_see_the_checkpoints_costs_the_job_none() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 2, 1)?;
    let folder = cluster.path().join("checkpoints");
    std::fs::create_dir(&folder)?;
    let id = cluster.submit(&steady_job(2, ENDLESS, &folder, 50))?;
    let job = cluster.wait_for(&id, "three checkpoints", |job| job.checkpoints.len() >= 3)?;
    let workers: Vec<&str> = job.places.iter().map(|place| place.worker_id.as_str()).collect();
    cluster.kill_workers(&workers)?;
    let blind = cluster.add_worker_without(1, &folder)?;
    cluster.add_worker(1)?;
    // The good spare comes when the blind one has shown what it cannot do.
    let has_failed = |job: &Job| job.events.iter().any(|e| e.text.contains("cannot"));
    let job = cluster.wait_for(&id, "the blind worker to fail", has_failed)?;
    let newest = job.checkpoints.last().map(|c| c.step);
    cluster.add_worker(1)?;
    let is_restored = |job: &Job| job.incidents.iter().any(|i| i.rung == "restore" && i.resolved);
    cluster.wait_for(&id, "the restored job's steps", is_restored)?;
    let job = cluster.finish(&id)?;
    ensure!(job.places.iter().all(|place| place.worker_id != blind), "{blind} was given a place: {:#?}", job.places);
    ensure!(num_damaged(&folder)? == 0, "checkpoints were set aside: {:#?}", job.events);
    let restored = job.incidents.iter().find(|i| i.rung == "restore").map(|i| i.resumed_step);
    ensure!(
        restored.is_some() && restored == newest,
        "went on from {restored:?}, not {newest:?}: {:#?}",
        job.incidents
    );
    let lost: u64 = job.incidents.iter().map(|i| i.steps_lost).sum();
    ensure!(job.lost_steps == lost, "{} steps lost in the status, {lost} in the incidents", job.lost_steps);
    let undisturbed = cluster.train(&steady_job(2, job.committed_step, &cluster.path().join("undisturbed"), 50))?;
    assert_same_curve(&undisturbed.curve, &job.curve);
    Ok(())
}

/// T-11: nobody sees the folder. The job keeps its curve, waits for a user, and goes on from where it was once the folder is back.
#[test]
fn t11_a_job_whose_checkpoints_nobody_sees_waits_for_a_user() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 1, 1)?;
    let (folder, away) = (cluster.path().join("checkpoints"), cluster.path().join("away"));
    let id = cluster.submit(&steady_job(1, ENDLESS, &folder, 40))?;
    let job = cluster.wait_for(&id, "a checkpoint", |job| !job.checkpoints.is_empty())?;
    cluster.kill_worker(&job.places[0].worker_id)?;
    std::fs::rename(&folder, &away)?;
    let job = cluster.job(&id).context("find the job")?;
    let (newest, had) = (job.checkpoints.last().map_or(0, |c| c.step), job.curve.len());
    for _ in 0..2 {
        cluster.add_worker(1)?;
    }
    let waits = |job: &Job| job.state() == JobState::Queued && job.reason.contains("toroid resume");
    let job = cluster.wait_for(&id, "the job to wait for a user", waits)?;
    ensure!(job.curve.len() >= had, "the curve was cut to {} of {had} steps", job.curve.len());
    std::fs::rename(&away, &folder)?;
    let said = TOROID.run_ok(&["resume", &id, "--coordinator", &cluster.url()])?;
    ensure!(said.contains(&id), "{said}");
    let goes_on = |job: &Job| job.incidents.last().is_some_and(|incident| incident.resolved);
    cluster.wait_for(&id, "the resumed job's steps", goes_on)?;
    let job = cluster.finish(&id)?;
    let resumed = job.incidents.last().map(|incident| incident.resumed_step);
    ensure!(resumed == Some(newest), "went on from {resumed:?}, not from {newest}: {:#?}", job.events);
    let undisturbed = cluster.train(&steady_job(1, job.committed_step, &cluster.path().join("undisturbed"), 40))?;
    assert_same_curve(&undisturbed.curve, &job.curve);
    let refused = TOROID.run(&["resume", &undisturbed.id, "--coordinator", &cluster.url()])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("cannot be resumed up to step"), "{refused:?}");
    Ok(())
}

/// T-12: asked for by steps means at that very step, be it that hundreds of them pass between two heartbeats.
#[test]
fn t12_every_multiple_of_interval_steps_is_saved_in_a_fast_job() -> Result<()> {
    let cluster = Cluster::start(TOROID, 2, 1)?;
    let job_file = quick_job(2, 420, &cluster.path().join("checkpoints"), 50).replace("keep = 3", "keep = 100");
    let job = cluster.train(&job_file)?;
    let saved: Vec<u64> = job.checkpoints.iter().map(|c| c.step).collect();
    // Who shares a disk with others that write may have to leave one out, and then says so.
    let is_told = |step: u64| {
        let starts = format!("step {step}: ");
        job.events
            .iter()
            .any(|e| e.text.starts_with(&starts) && e.text.contains("the checkpoint before is still being written"))
    };
    let mut due: Vec<u64> = (50..=400).step_by(50).filter(|step| !is_told(*step)).collect();
    due.push(420);
    ensure!(saved == due, "{saved:?}: {:#?}", job.events);
    Ok(())
}

/// What it resumes from is its last step already: it is done, and keeps nobody waiting.
#[test]
fn a_job_that_resumes_at_its_last_step_is_done() -> Result<()> {
    let cluster = Cluster::start(TOROID, 2, 1)?;
    let folder = cluster.path().join("checkpoints");
    cluster.train(&quick_job(2, 20, &folder, 10))?;
    let resume = format!("resume_from = \"{}\"\nseed = 7\n", path(&folder.join("step-20")));
    let job_file = quick_job(2, 20, &cluster.path().join("resumed"), 10).replace("seed = 7\n", &resume);
    let job = cluster.train(&job_file)?;
    ensure!(job.curve.is_empty() && job.checkpoints.iter().map(|c| c.step).eq([20]), "{job:#?}");
    Ok(())
}
