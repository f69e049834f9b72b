//! TensorBoard's own reader sees the curve: all of it, once, also after the coordinator was killed.

use anyhow::{Result, ensure};
use toroid_testkit::jobs::short_job;
use toroid_testkit::{Cluster, is_whole, path};

use crate::{TOROID, python};

#[test]
fn tensorboard_reads_each_step_once_also_after_the_coordinator_was_killed() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 2, 1)?;
    let id = cluster.submit(&short_job((1, 1, 2), 400, ""))?;
    let folder = cluster.path().join("coordinator/jobs").join(&id);
    let files = || std::fs::read_dir(folder.join("tensorboard")).map_or(0, Iterator::count);
    // Twice: with files of one coordinator before, and of two.
    for num_files in 1..=2 {
        cluster.wait_for(&id, "event files", |job| is_whole(job) && files() >= num_files)?;
        let before = cluster.wait_for(&id, "a few steps", |job| job.committed_step > 3)?.committed_step;
        cluster.kill_coordinator()?;
        cluster.start_coordinator()?;
        cluster.wait_for(&id, "more steps", |job| job.committed_step > before)?;
    }
    let job = cluster.done(&id)?;
    let said = python::run(&["read_events.py", path(&folder), "400"])?;
    let expected = format!("400 steps, {} validations", job.validations.len());
    ensure!(said.contains(&expected), "expected {expected}, found {said}");
    Ok(())
}
