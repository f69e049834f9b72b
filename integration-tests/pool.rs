//! Several jobs over one pool of workers, with real processes: priorities, preemption, hold, cordon, resume, and many small jobs.

use anyhow::{Context as _, Result, ensure};
use toroid_proto::{Job, JobState, WorkerInfo};
use toroid_testkit::jobs::{endless_job, short_job};
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost, is_whole, worker_of};

use crate::TOROID;

/// Jobs that run on eight workers; `make soak` has a thousand (TOROID_POOL_JOBS).
const NUM_JOBS: u64 = 24;
/// Of a job that is held while it makes them: steps take milliseconds, and a hold must not come after the last.
const NUM_HELD_STEPS: u64 = 300;

/// Never fewer replicas, so that it is the undisturbed run to the bit.
fn whole(job_file: &str, dp: usize) -> String {
    format!("{job_file}[fault_tolerance]\nmin_dp = {dp}\n")
}

fn has_event(job: &Job, kind: &str, text: &str) -> bool {
    job.events.iter().any(|event| event.kind == kind && event.text.contains(text))
}

/// The digests are those of all parameters at the end, and every figure of every step (T-4).
#[test]
fn two_jobs_share_nine_workers_and_the_lower_one_is_preempted_and_comes_back() -> Result<()> {
    let low_file = whole(&endless_job((1, 1, 4)), 4);
    let high_file = format!("priority = 5\n{low_file}");
    let mut cluster = Cluster::start(TOROID, 9, 1)?;
    let (high, low) = (cluster.submit(&high_file)?, cluster.submit(&low_file)?);
    cluster.wait_for(&low, "step 5", |job| job.curve.len() >= 5)?;
    let job = cluster.wait_for(&high, "step 5 and the spare", |job| job.curve.len() >= 5 && job.spares == 1)?;
    // No two holders of one shard: the spare takes one place, a worker of the other job the other.
    let (first, second) = (worker_of(&job, 0), worker_of(&job, 2));
    cluster.kill_workers(&[&first, &second])?;
    let given = format!("gives its workers to {high}, whose priority 5 is higher than 0");
    let is_stopped = |job: &Job| job.state() == JobState::Queued && has_event(job, "job.preempted", &given);
    let job = cluster.wait_for(&low, "its preemption", is_stopped)?;
    let saved = job.checkpoints.iter().map(|c| c.step).max().context("find its checkpoint")?;
    ensure!(job.committed_step == saved && job.curve.len() as u64 == saved, "saved is step {saved}: {job:#?}");
    ensure!(job.reason.contains("needs 4 workers, 3 are free"), "{}", job.reason);
    let listed = TOROID.run_ok(&["jobs", "--coordinator", &cluster.url()])?;
    ensure!(listed.contains("needs 4 workers, 3 are free"), "{listed}");
    cluster.wait_for(&high, "all of its places", |job| is_whole(job) && !job.incidents.is_empty())?;
    cluster.add_worker(1)?;
    let goes_on = |job: &Job| job.state() == JobState::Running && job.committed_step > saved + 5;
    cluster.wait_for(&low, "five more steps", goes_on)?;
    let (high, low) = (cluster.finish(&high)?, cluster.finish(&low)?);
    check_nothing_lost(&high)?;
    ensure!(low.lost_steps == 0 && low.incidents.is_empty(), "nothing failed in it: {:#?}", low.incidents);
    Undisturbed::as_far_as(&cluster, &low_file, &low)?.check_same(&cluster, &low)?;
    Undisturbed::as_far_as(&cluster, &low_file, &high)?.check_same(&cluster, &high)
}

#[test]
fn users_hold_release_cordon_and_resume() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 3, 1)?;
    let url = cluster.url();
    let run = |command: &[&str]| TOROID.run_ok(&[command, &["--coordinator", url.as_str()]].concat());
    let job_file = whole(&short_job((1, 1, 2), NUM_HELD_STEPS, ""), 2);
    let undisturbed = Undisturbed::train(&cluster, &job_file, NUM_HELD_STEPS)?;
    let id = cluster.submit(&job_file)?;
    run(&["hold", &id])?;
    let is_held = |job: &Job| job.state() == JobState::Queued && job.is_held;
    let held = cluster.wait_for(&id, "the hold", is_held)?;
    ensure!(held.reason.contains("toroid release"), "{}", held.reason);
    let spare = cluster.connected().first().context("find a worker")?.worker_id.clone();
    run(&["cordon", &spare, "--reason", "for a test"])?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let is_out =
        |workers: &[WorkerInfo]| workers.len() == 3 && workers.iter().any(|w| w.worker_id == spare && w.is_cordoned);
    cluster.wait_for_workers("all of them, one cordoned", is_out)?;
    run(&["release", &id])?;
    let job = cluster.done(&id)?;
    let has_place = |job: &Job| job.places.iter().any(|place| place.worker_id == spare);
    ensure!(!has_place(&job), "it was cordoned: {job:#?}");
    undisturbed.check_same(&cluster, &job)?;
    ensure!(run(&["uncordon", &spare])?.contains("for a test"));
    let refused = TOROID.run(&["resume", &id, "--coordinator", &cluster.url()])?;
    ensure!(!refused.status.success(), "all its steps are made");
    run(&["resume", &id, "--steps", "310"])?;
    let job = cluster.done(&id)?;
    ensure!(job.curve.len() == 310 && has_event(&job, "job.resumed", "up to step 310 instead of 300"), "{job:#?}");
    Ok(())
}

/// What the coordinator keeps in memory of a job that is listed, at most, besides what it has without any.
const KIB_PER_JOB: u64 = 128;
const KIB_BESIDES: u64 = 64 << 10;
/// What a worker has more after many jobs than after its first.
const WORKER_KIB: u64 = 32 << 10;
/// Files and sockets that a process may have more: a connection that is not closed yet.
const FILES: usize = 8;

/// One after another and side by side. What the coordinator holds of a job is bounded (docs/queue.md), a worker holds nothing of one that has
/// ended, and no file stays open.
#[test]
fn many_small_jobs_run_on_eight_workers() -> Result<()> {
    let num_jobs = match std::env::var("TOROID_POOL_JOBS") {
        Ok(text) => text.parse().with_context(|| format!("TOROID_POOL_JOBS = {text:?} is no number"))?,
        Err(_) => NUM_JOBS,
    };
    let cluster = Cluster::start(TOROID, 8, 1)?;
    cluster.wait_for_workers("all of them", |workers| workers.len() == 8)?;
    let before = cluster.coordinator_usage()?;
    let workers_before = cluster.workers_usage()?;
    let file = |n: u64| {
        let ways = [(1, 1, 1), (1, 1, 2), (1, 1, 1), (1, 1, 4)][n as usize % 4];
        short_job(ways, 2, &format!("priority = {}\n", n % 3))
            .replace("micro_batches = 4", "micro_batches = 0")
            .replace("interval = 10\n", "")
    };
    let ids: Vec<String> = (0..num_jobs).map(|n| cluster.submit(&file(n))).collect::<Result<_>>()?;
    let waiting = cluster.coordinator_usage()?;
    for id in &ids {
        let job = cluster.done(id)?;
        ensure!(job.lost_steps == 0 && job.curve.len() == 2, "{job:#?}");
    }
    let after = cluster.coordinator_usage()?;
    println!("{num_jobs} jobs: coordinator before {before:?}, with all of them submitted {waiting:?}, after {after:?}");
    ensure!(after.num_files <= before.num_files + FILES, "files stay open: {before:?}, {after:?}");
    // A record, its events, a summary of its steps.
    let grown_kib = after.peak_kib.saturating_sub(before.peak_kib);
    let limit_kib = KIB_BESIDES + num_jobs * KIB_PER_JOB;
    ensure!(grown_kib <= limit_kib, "{grown_kib} KiB for {num_jobs} jobs: {before:?}, {after:?}");
    for (worker, after) in cluster.workers_usage()? {
        let before = workers_before.get(&worker).with_context(|| format!("{worker} was there before"))?;
        println!("{worker} before {before:?}, after {after:?}");
        ensure!(after.num_files <= before.num_files + FILES, "{worker} keeps files open: {before:?}, {after:?}");
        let grown_kib = after.peak_kib.saturating_sub(before.peak_kib);
        ensure!(grown_kib <= WORKER_KIB, "{worker} has {grown_kib} KiB more: {before:?}, {after:?}");
    }
    Ok(())
}
