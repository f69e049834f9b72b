//! `toroid bench checkpoint`: how long a step waits for a checkpoint, and how fast it is written.
//!
//! One job with a checkpoint every few steps. A step's time runs from commit to commit, so what is copied aside after a commit counts
//! for the step that follows, and so does what the writing takes away from its computing. The disk is measured in the same folder while
//! the same job computes: after each checkpoint one file of its size is written in order and synced. The step that begins then is in no
//! figure.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use toroid_proto as proto;
use toroid_worker::checkpoint::Storage;

use super::{Ways, parse_shape};
use crate::chaos::CHAOS_DIR;
use crate::chaos::inject::{self, Plan};
use crate::chaos::report::Spread;
use crate::cluster::Signals;
use crate::cluster::children::Settings;
use crate::exit::Exit;
use crate::format::table;
use crate::local::job::{self, JobArgs, LocalJob};
use crate::local::{default_threads, positive};
use crate::output::FormatArgs;
use crate::scratch::BENCH;

/// One write to the disk.
const BLOCK_BYTES: usize = 8 << 20;
/// How often the disk's writer looks for the next checkpoint.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const MIB: f64 = (1 << 20) as f64;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ways of tensor, pipeline and data parallelism
    #[arg(long, value_name = "TP,PP,DP", value_parser = parse_shape, default_value = "1,1,1")]
    shape: Ways,
    /// Size of the model
    #[arg(long, default_value = "small", value_name = "PRESET")]
    preset: String,
    /// Checkpoints to measure
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    checkpoints: usize,
    /// Steps from one to the next
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(3..))]
    every: u64,
    /// Text file or folder of text files to train on; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Folder for everything that is kept; its disk is measured
    #[arg(long, default_value = CHAOS_DIR, value_name = "FOLDER")]
    dir: PathBuf,
    /// Compute threads of each worker; default: cores divided by the job's places, at least 1
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    bytes: u64,
    /// Median step after a commit that was not saved, seconds.
    step_s: f64,
    /// Median step after a commit that was.
    saved_step_s: f64,
    /// Part of a step that a checkpoint costs.
    stall: f64,
    /// Median time until a checkpoint's slowest shard was durable.
    write_s: f64,
    /// Median time of one file of the same size, in between.
    disk_s: f64,
    /// Of the disk's speed.
    disk_share: f64,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let folder =
        std::path::absolute(args.dir.join("bench-checkpoints")).context("find the folder of the checkpoints")?;
    BENCH.make_anew(&folder)?;
    let job = job_of(&args, &folder)?;
    let threads = args.threads.unwrap_or_else(|| default_threads(job.spec.shape.world()));
    let settings = Settings::new(&args.dir, threads)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let disk = tokio::task::spawn_blocking({
        let (folder, is_over) = (folder.clone(), Arc::clone(&is_over));
        move || measure_disk(&folder, &is_over)
    });
    let outcome = inject::run(&settings, &job, Plan::nothing(), &mut signals).await;
    is_over.store(true, Ordering::Relaxed);
    let raw = disk.await.context("measure the disk")?;
    BENCH.remove(&folder)?;
    let Some(outcome) = outcome? else { return Ok(Exit::Interrupted.into()) };
    ensure!(outcome.problems.is_empty(), "the run failed: {}", outcome.problems.join("; "));
    let figures = figures(&outcome.job, args.every, raw?).context("the run made too few steps to compare")?;
    args.format.answer(&figures, text(&figures))?;
    Ok(ExitCode::SUCCESS)
}

fn job_of(args: &Args, folder: &Path) -> Result<LocalJob> {
    let Ways { tp, pp, dp } = args.shape;
    let flags = JobArgs { data: args.data.clone(), preset: args.preset.clone(), tp, pp, dp, job: None };
    // The first one is left out: its memory is touched for the first time.
    let steps = (args.checkpoints as u64 + 2) * args.every;
    let job = job::make(&flags, steps, 0, toroid_worker::data::cargo_registry_sources())?;
    let path = folder.to_str().context("the folder for everything that is kept needs a name in UTF-8")?;
    // All stay, with their figures.
    job.with("checkpoint", "interval_steps", args.every as i64)?
        .with("checkpoint", "keep", args.checkpoints as i64 + 2)?
        .with("checkpoint", "path", path)
}

/// After each checkpoint that is published in `folder`, seconds to write as many bytes beside it.
fn measure_disk(folder: &Path, is_over: &AtomicBool) -> Result<Vec<f64>> {
    let path = folder.to_str().context("the folder for everything that is kept needs a name in UTF-8")?;
    let storage = Storage::open(path)?;
    let (mut seconds, mut measured) = (Vec::new(), 0);
    while !is_over.load(Ordering::Relaxed) {
        if let Some(step) = storage.steps()?.into_iter().next_back().filter(|step| *step > measured) {
            seconds.push(raw_write(folder, storage.manifest(step)?.bytes())?);
            measured = step;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(seconds)
}

/// Seconds to write so many bytes in order and to sync them.
fn raw_write(folder: &Path, bytes: u64) -> Result<f64> {
    let path = folder.join("bench-raw-write");
    let name = || format!("measure the disk with {}", path.display());
    let block = vec![0x5a_u8; BLOCK_BYTES];
    let start = Instant::now();
    let mut file = std::fs::File::create(&path).with_context(name)?;
    let mut left = bytes;
    while left > 0 {
        let part = left.min(BLOCK_BYTES as u64);
        file.write_all(&block[..part as usize]).with_context(name)?;
        left -= part;
    }
    file.sync_all().with_context(name)?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(&path).with_context(name)?;
    Ok(seconds)
}

/// `None` of too few steps. Of a job that saves the multiples of `every`, the step after the one after those is where the disk is measured.
fn figures(job: &proto::Job, every: u64, raw: Vec<f64>) -> Option<Figures> {
    let after_saved = |after: u64| {
        let measured = job.curve.iter().filter(|r| r.step > every + 2);
        measured.filter(move |r| (r.step - 1) % every == after).map(|r| r.step_s)
    };
    let median = |values: Vec<f64>| Spread::of(values).map(|s| s.median);
    let saved_step_s = median(after_saved(0).collect())?;
    let step_s = median((2..every).flat_map(after_saved).collect())?;
    let bytes = job.checkpoints.last()?.bytes;
    let write_s = median(job.checkpoints.iter().skip(1).map(|c| c.write_s).collect())?;
    let disk_s = median(raw)?;
    let stall = (saved_step_s - step_s) / step_s;
    Some(Figures { bytes, step_s, saved_step_s, stall, write_s, disk_s, disk_share: disk_s / write_s })
}

fn text(f: &Figures) -> String {
    let speed = |seconds: f64| format!("{:.0} MiB/s", f.bytes as f64 / MIB / seconds);
    let rows = [
        ["checkpoint".into(), format!("{:.1} MiB", f.bytes as f64 / MIB)],
        ["step".into(), format!("{:.1} ms", 1e3 * f.step_s)],
        ["step after a saved one".into(), format!("{:.1} ms", 1e3 * f.saved_step_s)],
        ["stall".into(), format!("{:+.1}% of a step", 1e2 * f.stall)],
        ["written with".into(), speed(f.write_s)],
        ["disk, one file in order".into(), speed(f.disk_s)],
        ["share of the disk's speed".into(), format!("{:.0}%", 1e2 * f.disk_share)],
    ];
    table(&rows.map(Vec::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_after_saved_ones_are_compared_with_the_others() {
        let record = |step, step_s| proto::StepRecord { step, step_s, ..Default::default() };
        let checkpoint = |step, write_s| proto::CheckpointInfo { step, bytes: 1 << 20, write_s, ..Default::default() };
        let job = proto::Job {
            // Saved are 3, 6, 9; what comes before step 6 is not measured.
            curve: [9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.5, 8.0, 1.0, 1.7, 8.0, 1.2]
                .into_iter()
                .zip(1..)
                .map(|(step_s, step)| record(step, step_s))
                .collect(),
            checkpoints: vec![checkpoint(3, 9.0), checkpoint(6, 0.5), checkpoint(9, 0.5)],
            ..Default::default()
        };
        let figures = figures(&job, 3, vec![0.4, 0.4]);
        let expected = Figures {
            bytes: 1 << 20,
            step_s: 1.0,
            saved_step_s: 1.5,
            stall: 0.5,
            write_s: 0.5,
            disk_s: 0.4,
            disk_share: 0.8,
        };
        assert_eq!(figures, Some(expected));
    }
}
