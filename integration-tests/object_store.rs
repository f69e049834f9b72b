//! Jobs that keep their checkpoints in an S3-compatible store, which is a real process: they are those of a folder, bit for bit, also where the
//! store is killed, stands still, or has what both holders of a shard had.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use toroid_proto::Job;
use toroid_testkit::jobs::ENDLESS;
use toroid_testkit::{Bucket, Cluster, assert_same_curve, path};

use crate::TOROID;
use crate::restoring::{quick_job, steady_job};

/// A cluster whose processes know the store.
fn cluster_with(bucket: &Bucket, num_workers: usize) -> Result<Cluster> {
    let variables = bucket.variables();
    let environment: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Cluster::with_environment(TOROID, num_workers, &environment)
}

/// A command of a user who knows it, too, which has to succeed.
fn toroid_ok(bucket: &Bucket, args: &[&str]) -> Result<String> {
    let output = TOROID.command().args(args).envs(bucket.variables()).output()?;
    ensure!(output.status.success(), "{args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// All parameters of a checkpoint below `root`, a folder or a URL.
fn export(cluster: &Cluster, bucket: &Bucket, root: &str, step: u64) -> Result<Vec<u8>> {
    let file = cluster.path().join("export.safetensors");
    toroid_ok(bucket, &["checkpoint", "export", &step.to_string(), path(&file), "--from", root])?;
    Ok(std::fs::read(&file)?)
}

/// T-6: each checkpoint that can be seen is whole.
fn verify(bucket: &Bucket, root: &str) -> Result<()> {
    let said = toroid_ok(bucket, &["checkpoint", "verify", root])?;
    ensure!(!said.is_empty(), "nothing was verified in {root}");
    Ok(())
}

#[test]
fn a_job_in_a_bucket_is_that_of_a_folder() -> Result<()> {
    let bucket = Bucket::start()?;
    let cluster = cluster_with(&bucket, 2)?;
    let folder = cluster.path().join("checkpoints");
    let url = bucket.url("runs/first");
    let there = cluster.train(&quick_job(2, 90, Path::new(&url), 20))?;
    let here = cluster.train(&quick_job(2, 90, &folder, 20))?;
    assert_same_curve(&here.curve, &there.curve);
    ensure!(export(&cluster, &bucket, &url, 90)? == export(&cluster, &bucket, path(&folder), 90)?, "parameters differ");
    verify(&bucket, &url)?;

    // Others begin with what is there: in another shape, and with the weights as Hugging Face's tools have them.
    let other = |what: &str| Path::new(&bucket.url("runs")).join(what);
    let resumed = format!("resume_from = \"{url}/step-80\"\n{}", quick_job(1, 90, &other("resumed"), 20));
    let resumed = cluster.train(&resumed.replace("global = 1", "global = 2"))?;
    ensure!(resumed.curve.first().is_some_and(|row| row.step == 81), "it goes on from step 80");
    let folder = bucket.url("runs/model");
    toroid_ok(&bucket, &["checkpoint", "export", "90", &folder, "--from", &url, "--format", "hf"])?;
    let begun = format!("init_from = \"{folder}\"\n{}", quick_job(2, 1, &other("begun"), 20));
    let (begun, last) = (cluster.train(&begun)?, &there.curve[there.curve.len() - 1]);
    let (found, before) = (begun.curve[0].loss, there.curve[0].loss);
    ensure!(found < before, "it begins with loss {found}: that job began with {before} and ended with {}", last.loss);
    let mut again = TOROID.command();
    again.args(["checkpoint", "export", "90", &folder, "--from", &url, "--format", "hf"]).envs(bucket.variables());
    ensure!(!again.output()?.status.success(), "an export never goes over another");
    Ok(())
}

/// T-6, T-12: without the store steps go on, what is not saved is said, and every checkpoint that can be seen is whole, whenever it was killed.
#[test]
fn steps_go_on_while_the_store_is_killed_or_stands_still() -> Result<()> {
    let mut bucket = Bucket::start()?;
    let cluster = cluster_with(&bucket, 2)?;
    let url = bucket.url("run");
    let id = cluster.submit(&steady_job(2, ENDLESS, Path::new(&url), 50).replace("keep = 3", "keep = 100000"))?;
    cluster.wait_for(&id, "two checkpoints", |job| job.checkpoints.len() > 1)?;
    for is_killed in [true, false] {
        match is_killed {
            true => bucket.kill(),
            false => bucket.signal(Signal::STOP)?,
        }
        let before = cluster.wait_for(&id, "the status to say what is not saved", |job| job.unsaved.is_some())?;
        let goes_on = |job: &Job| job.committed_step > before.committed_step + 100;
        let job = cluster.wait_for(&id, "steps without a store", goes_on)?;
        ensure!(job.unsaved.is_some() && job.incidents.is_empty(), "{:?}, {:?}", job.unsaved, job.incidents);
        match is_killed {
            true => bucket.start_again()?,
            false => bucket.signal(Signal::CONT)?,
        }
        let newest = |job: &Job| job.checkpoints.last().map_or(0, |c| c.step);
        let is_saved = |now: &Job| now.unsaved.is_none() && newest(now) > job.committed_step;
        cluster.wait_for(&id, "a checkpoint after that", is_saved)?;
    }
    cluster.finish(&id)?;
    verify(&bucket, &url)
}

/// Both holders of a shard die: the job goes on from what the store has, and ends as if nothing had been.
#[test]
fn both_holders_of_a_shard_die_and_the_bucket_has_it() -> Result<()> {
    let bucket = Bucket::start()?;
    let mut cluster = cluster_with(&bucket, 4)?;
    let url = bucket.url("run");
    let id = cluster.submit(&steady_job(2, ENDLESS, Path::new(&url), 20))?;
    let job = cluster.wait_for(&id, "two checkpoints", |job| job.checkpoints.len() > 1)?;
    let workers: Vec<&str> = job.places.iter().map(|place| place.worker_id.as_str()).collect();
    cluster.kill_workers(&workers)?;
    let is_restored = |job: &Job| job.incidents.iter().any(|i| i.rung == "restore" && i.resolved);
    cluster.wait_for(&id, "the restored job's steps", is_restored)?;
    let job = cluster.finish(&id)?;
    let restored = job.incidents.iter().find(|i| i.rung == "restore").context("it was just seen")?;
    ensure!(restored.resumed_step > 0 && restored.resumed_step % 20 == 0, "{restored:?}");
    verify(&bucket, &url)?;
    let undisturbed = cluster.train(&steady_job(2, job.committed_step, &cluster.path().join("undisturbed"), 20))?;
    assert_same_curve(&undisturbed.curve, &job.curve);
    Ok(())
}
