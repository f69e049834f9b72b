//! A job writes and removes only what it owns (T-10), and no file of a user is replaced.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use toroid_proto::{Job, JobState};
use toroid_testkit::jobs::{ENDLESS, text_folder};
use toroid_testkit::{Cluster, SmallDisk, assert_same_curve, check_nothing_lost, is_whole, path, worker_of};

use crate::TOROID;

/// A job with steps of milliseconds that saves every `interval` steps into `folder`.
fn small_job(folder: &Path, seed: u64, steps: u64, interval: u64, more: &str) -> String {
    format!(
        "steps = {steps}\nseed = {seed}\n{more}\n[shape]\ndp = 2\n\
         [model]\nlayers = 1\nd_model = 16\nheads = 2\nkv_heads = 2\nhead_dim = 8\nexperts = 4\nff = 16\nseq = 16\n\
         [batch]\nmicro_batch = 1\nglobal = 4\n\
         [data]\npath = \"{}\"\nextensions = [\"rs\"]\n\
         [checkpoint]\ninterval_steps = {interval}\npath = \"{}\"\n",
        path(&text_folder()),
        path(folder)
    )
}

/// T-10: whatever is submitted into the folder of another job, or a second time into the same, is refused, and every checkpoint stays.
#[test]
fn t10_a_job_in_the_folder_of_another_is_refused_and_removes_nothing() -> Result<()> {
    let cluster = Cluster::start(TOROID, 2, 1)?;
    let folder = cluster.path().join("ck");
    let first = small_job(&folder, 1, 60, 20, "");
    let owner = cluster.train(&first)?;
    let list = TOROID.run_ok(&["checkpoint", "list", path(&folder)])?;
    for job_file in [small_job(&folder, 2, 300, 100, ""), first] {
        let file = cluster.path().join("second.toml");
        std::fs::write(&file, job_file)?;
        let output = TOROID.command().args(["submit", path(&file), "--coordinator", &cluster.url()]).output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "a second job was taken into {}", folder.display());
        for expected in [owner.id.as_str(), path(&folder), "checkpoint.path", "resume_from"] {
            ensure!(words.contains(expected), "`{expected}` is not in the error: {words}");
        }
    }
    ensure!(TOROID.run_ok(&["checkpoint", "list", path(&folder)])? == list, "checkpoints of the first job are gone");
    TOROID.run_ok(&["checkpoint", "verify", path(&folder)])?;
    // Its checkpoints can be read by others: that is how to go on from them.
    let more = format!("resume_from = \"{}\"", path(&folder.join("step-60")));
    cluster.train(&small_job(&cluster.path().join("elsewhere"), 1, 80, 20, &more))?;
    ensure!(
        TOROID.run_ok(&["checkpoint", "list", path(&folder)])? == list,
        "going on from a checkpoint changed its folder"
    );
    Ok(())
}

/// Only a regular file or nothing is replaced; a link stays a link.
#[test]
fn an_export_replaces_no_device_pipe_or_link() -> Result<()> {
    let cluster = Cluster::start(TOROID, 2, 1)?;
    let folder = cluster.path().join("ck");
    cluster.train(&small_job(&folder, 1, 3, 0, ""))?;
    let export = |file: &Path| TOROID.run(&["checkpoint", "export", "3", path(file), "--from", path(&folder)]);

    let pipe = cluster.path().join("pipe");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success());
    let device = cluster.path().join("full");
    let made = Command::new("mknod").args([path(&device), "c", "1", "7"]).status()?;
    let devices = if made.success() { vec![pipe, device] } else { vec![pipe] };
    for file in devices {
        let before = std::fs::symlink_metadata(&file)?.file_type();
        let output = export(&file)?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && words.contains("is not a regular file"), "{}: {words}", file.display());
        let after = std::fs::symlink_metadata(&file)?.file_type();
        ensure!((before.is_fifo(), before.is_char_device()) == (after.is_fifo(), after.is_char_device()));
    }
    let (target, link) = (cluster.path().join("target.safetensors"), cluster.path().join("link"));
    std::fs::write(&target, "to be replaced")?;
    std::os::unix::fs::symlink(&target, &link)?;
    ensure!(export(&link)?.status.success());
    ensure!(std::fs::symlink_metadata(&link)?.is_symlink(), "the link was replaced");
    ensure!(std::fs::metadata(&target)?.len() > 1000, "the link was not followed");
    Ok(())
}

/// The last step's state waits for room on the disk, and the status says so from the first failure on. That a worker is killed meanwhile
/// costs nothing.
#[test]
fn a_job_waits_with_its_last_state_until_the_disk_has_room() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 3, 1)?;
    let disk = cluster.path().join("disk");
    let mounted = SmallDisk::mount(&disk, "64k")?;
    let id = cluster.submit(&small_job(&disk, 1, 30, 0, ""))?;
    let num_failed = |job: &Job| job.unsaved.as_ref().map_or(0, |unsaved| unsaved.num_tries);
    let job = cluster.wait_for(&id, "the second failure", |job| num_failed(job) >= 2)?;
    ensure!(job.committed_step == 30 && job.checkpoints.is_empty(), "{job:?}");
    let line = TOROID.run_ok(&["status", &id, "--coordinator", &cluster.url()])?;
    let first = line.lines().next().unwrap_or_default();
    ensure!(first.contains("not saved") && first.contains("step 30"), "{line}");
    ensure!(job.unsaved.as_ref().is_some_and(|u| u.step == 30 && u.error.to_lowercase().contains("space")), "{job:?}");
    let json = TOROID.run_ok(&["status", &id, "-o", "json", "--coordinator", &cluster.url()])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let unsaved = json.pointer("/unsaved/step").or(json.pointer("/0/unsaved/step"));
    ensure!(unsaved == Some(&serde_json::json!(30)), "{json:#}");

    let victim = worker_of(&job, 1);
    cluster.kill_worker(&victim)?;
    let has_tried = |job: &Job| is_whole(job) && worker_of(job, 1) != victim && num_failed(job) > 3;
    let job = cluster.wait_for(&id, "whoever took the place to fail, too", has_tried)?;
    ensure!(job.reason == "all steps are committed, the last is not saved yet", "{}", job.reason);
    check_nothing_lost(&job)?;
    mounted.resize("64m")?;
    let job = cluster.done(&id)?;
    ensure!(job.checkpoints.iter().map(|c| c.step).collect::<Vec<_>>() == [30] && job.unsaved.is_none(), "{job:?}");
    TOROID.run_ok(&["checkpoint", "verify", path(&disk), "30"])?;
    let steps: Vec<_> = std::fs::read_dir(disk.join("step-30"))?.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
    ensure!(steps.len() == 4, "two shards, the manifest and its digest, and nothing of what failed: {steps:?}");

    let elsewhere = cluster.path().join("elsewhere");
    let undisturbed = cluster.train(&small_job(&elsewhere, 1, 30, 0, ""))?;
    assert_same_curve(&undisturbed.curve, &job.curve);
    let parameters = |folder: &Path| -> Result<Vec<u8>> {
        let file = cluster.path().join("weights.safetensors");
        TOROID.run_ok(&["checkpoint", "export", "30", path(&file), "--from", path(folder)])?;
        Ok(std::fs::read(file)?)
    };
    ensure!(parameters(&disk)? == parameters(&elsewhere)?, "the final parameters differ");
    Ok(())
}

/// A checkpoint of an interval that does not fit is told, what was written of it is taken away, and the next one is tried.
#[test]
fn a_full_disk_costs_the_checkpoints_for_which_it_has_no_room() -> Result<()> {
    let cluster = Cluster::start(TOROID, 2, 1)?;
    let disk = cluster.path().join("disk");
    let mounted = SmallDisk::mount(&disk, "64k")?;
    let id = cluster.submit(&small_job(&disk, 1, ENDLESS, 50, ""))?;
    let num_failed = |job: &Job| job.events.iter().filter(|e| e.kind == "checkpoint.failed").count();
    let job = cluster.wait_for(&id, "the second failure", |job| num_failed(job) >= 2)?;
    ensure!(job.state() == JobState::Running && job.unsaved.is_some_and(|u| u.next_try_s == 0.0), "it goes on");
    mounted.resize("64m")?;
    let job = cluster.finish(&id)?;
    let failed = job.events.iter().filter(|e| e.kind == "checkpoint.failed");
    let steps: Vec<u64> = failed
        .map(|e| e.text.trim_start_matches("step ").split(':').next().unwrap_or("").parse())
        .collect::<Result<_, _>>()?;
    for step in steps {
        let folder = disk.join(format!("step-{step}"));
        ensure!(!folder.exists(), "{} stays of a checkpoint that failed", folder.display());
    }
    Ok(())
}
