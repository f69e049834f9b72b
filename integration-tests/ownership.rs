//! A job writes and removes only what it owns (T-10), and no file of a user is replaced.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, path, run, run_ok, text_folder, toroid};

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
    let cluster = Cluster::start(2, 1)?;
    let folder = cluster.path().join("ck");
    let first = small_job(&folder, 1, 60, 20, "");
    let owner = cluster.train(&first)?;
    let list = run_ok(&["checkpoint", "list", path(&folder)])?;
    for job_file in [small_job(&folder, 2, 300, 100, ""), first] {
        let file = cluster.path().join("second.toml");
        std::fs::write(&file, job_file)?;
        let output = toroid().args(["submit", path(&file), "--coordinator", &cluster.url()]).output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "a second job was taken into {}", folder.display());
        for expected in [owner.id.as_str(), path(&folder), "checkpoint.path", "resume_from"] {
            ensure!(words.contains(expected), "`{expected}` is not in the error: {words}");
        }
    }
    ensure!(run_ok(&["checkpoint", "list", path(&folder)])? == list, "checkpoints of the first job are gone");
    run_ok(&["checkpoint", "verify", path(&folder)])?;
    // Its checkpoints can be read by others: that is how to go on from them.
    let more = format!("resume_from = \"{}\"", path(&folder.join("step-60")));
    cluster.train(&small_job(&cluster.path().join("elsewhere"), 1, 80, 20, &more))?;
    ensure!(run_ok(&["checkpoint", "list", path(&folder)])? == list, "going on from a checkpoint changed its folder");
    Ok(())
}

/// Only a regular file or nothing is replaced; a link stays a link.
#[test]
fn an_export_replaces_no_device_pipe_or_link() -> Result<()> {
    let cluster = Cluster::start(2, 1)?;
    let folder = cluster.path().join("ck");
    cluster.train(&small_job(&folder, 1, 3, 0, ""))?;
    let export = |file: &Path| run(&["checkpoint", "export", "3", path(file), "--from", path(&folder)]);

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
