//! What a job comes to where nothing is done to it, and what may be asked of one to which something was done.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use toroid_proto::{Incident, Job, JobState, StepRecord, Validation};

use crate::{Cluster, jobs};

/// What a job came to where nothing was done to it.
pub struct Undisturbed {
    pub job: Job,
    parameters: Vec<u8>,
    steps: u64,
}

impl Undisturbed {
    pub fn train(cluster: &Cluster, job_file: &str, steps: u64) -> Result<Undisturbed> {
        let job = cluster.train(job_file).context("train undisturbed")?;
        let parameters = cluster.export(&job.id, steps)?;
        Ok(Undisturbed { job, parameters, steps })
    }

    /// As far as an endless job came that was ended.
    pub fn as_far_as(cluster: &Cluster, job_file: &str, job: &Job) -> Result<Undisturbed> {
        let steps = job.committed_step;
        Undisturbed::train(cluster, &jobs::ended(job_file, steps), steps)
    }

    /// T-4: every figure of every step, every validation and all parameters.
    pub fn check_same(&self, cluster: &Cluster, job: &Job) -> Result<()> {
        assert_same_curve(&self.job.curve, &job.curve);
        assert_eq!(validations(&self.job), validations(job));
        ensure!(self.parameters == cluster.export(&job.id, self.steps)?, "the final parameters differ");
        Ok(())
    }
}

/// By step, each once: one that was being made when a worker died is made again.
fn validations(job: &Job) -> Vec<Validation> {
    let mut validations = job.validations.clone();
    validations.dedup();
    validations
}

/// T-3: no incident cost a committed step, and all are over.
pub fn check_nothing_lost(job: &Job) -> Result<()> {
    let is_fine = |incident: &&Incident| incident.resolved && incident.steps_lost == 0 && incident.rung != "restore";
    let bad: Vec<_> = job.incidents.iter().filter(|incident| !is_fine(incident)).collect();
    ensure!(bad.is_empty(), "these incidents cost steps or are not over: {bad:#?}");
    ensure!(!job.incidents.is_empty(), "there was no incident at all");
    ensure!(job.lost_steps == 0, "{} steps were lost", job.lost_steps);
    Ok(())
}

/// Every place has a worker and the incidents so far are over.
pub fn is_whole(job: &Job) -> bool {
    job.state() == JobState::Running
        && job.places.iter().all(|place| place.alive)
        && job.incidents.iter().all(|incident| incident.resolved)
}

pub fn worker_of(job: &Job, rank: usize) -> String {
    job.places[rank].worker_id.clone()
}

/// What must be equal to the bit in two runs of one job: everything but times and epochs.
fn figures(curve: &[StepRecord]) -> Vec<StepRecord> {
    let timeless = |r: &StepRecord| StepRecord {
        tokens_per_s: 0.0,
        step_s: 0.0,
        hidden_s: 0.0,
        exposed_s: 0.0,
        epoch: 0,
        ..r.clone()
    };
    curve.iter().map(timeless).collect()
}

/// Compares two curves bit for bit and names the first step that differs.
pub fn assert_same_curve(left: &[StepRecord], right: &[StepRecord]) {
    assert_eq!(left.len(), right.len(), "the curves have different lengths");
    for (l, r) in figures(left).iter().zip(&figures(right)) {
        assert_eq!(l, r, "step {} differs", l.step);
    }
}

/// The file that a rank has written into a checkpoint, whatever the epoch.
pub fn shard_file(step: &Path, rank: usize) -> Result<PathBuf> {
    let is_of_rank = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str());
        name.is_some_and(|n| n.starts_with(&format!("shard-{rank:05}-of-")) && n.ends_with(".safetensors"))
    };
    let entries = std::fs::read_dir(step).with_context(|| format!("list {}", step.display()))?;
    let mut files = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(is_of_rank);
    files.next().with_context(|| format!("find the shard of rank {rank} in {}", step.display()))
}
