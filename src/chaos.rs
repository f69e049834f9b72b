//! `toroid chaos`: does the promise hold? A cluster on this machine, a job, faults on the way, and a verdict.
//!
//! ```text
//!   plan    who dies when (a seed names the victims)        inject   runs the job and does it
//!   verify  bit for bit the undisturbed run?                report   figures, and what does not hold
//! ```
//!
//! Exit code 0 only if everything holds: every fault recovered from, no committed step lost and, with `--verify`, every figure of every
//! step and all final parameters equal to those of the undisturbed run.

pub mod inject;
mod plan;
pub mod report;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use tokio::runtime::Runtime;
use toroid_proto as proto;
use toroid_worker::data;
use toroid_worker::device::Choice;

use crate::cluster::Signals;
use crate::cluster::children::Settings;
use crate::exit::Exit;
use crate::local::job::{self, JobArgs};
use crate::local::{default_threads, positive};
use crate::output::FormatArgs;

use inject::{End, Kind, Outcome, Plan};
use plan::{Phase, PhasePlan, default_steps, most_steps};
use report::Report;
use verify::Finished;

/// Everything is kept here, unless told otherwise.
pub const CHAOS_DIR: &str = ".toroid/chaos";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Optimizer updates to make; default: until the last fault is recovered from, and the next checkpoint
    #[arg(long, value_name = "N", conflicts_with = "job")]
    steps: Option<u64>,
    /// Workers to do it to
    #[arg(long, default_value_t = 10, value_name = "K", value_parser = positive)]
    kills: usize,
    /// Workers that fall at the same moment; never both holders of a shard
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = positive)]
    at_once: usize,
    /// Kill the coordinator too, after each fault, within the time of a step
    #[arg(long)]
    coordinator: bool,
    /// At most so many faults a minute; default: the next as soon as the job is at full strength again
    #[arg(long, value_name = "PER_MINUTE", value_parser = per_minute)]
    rate: Option<f64>,
    /// At least so many steps between two faults
    #[arg(long, value_name = "N", conflicts_with = "rate")]
    every_steps: Option<u64>,
    /// Always the worker of this rank; default: drawn
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// What is done to a worker
    #[arg(long, value_enum, default_value = "kill", value_name = "FAULT")]
    how: Kind,
    /// Workers kill themselves within this part of a step, each place at most once
    #[arg(long, value_enum, value_name = "PHASE", conflicts_with_all = ["rank", "how", "rate", "at_once", "coordinator"])]
    #[arg(hide = !cfg!(feature = "failpoint"))]
    phase: Option<Phase>,
    /// Workers beyond those that the job needs; those that are used are started again
    #[arg(long, default_value_t = 2, value_name = "N")]
    spares: usize,
    /// Train the same job undisturbed too, on a copy of the text, and compare every step and the parameters at the end
    #[arg(long)]
    verify: bool,
    /// Of the victims; default: drawn, and printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// A silent worker is lost after this long; what stopping a worker or cutting it off costs depends on it
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    failure_timeout_ms: Option<u64>,
    /// Folder for everything that is kept: jobs, curves, checkpoints, logs
    #[arg(long, default_value = CHAOS_DIR, value_name = "FOLDER")]
    dir: PathBuf,
    /// What every worker computes on, as in `toroid worker`
    #[arg(long, default_value_t, value_name = "DEVICE")]
    device: Choice,
    /// Compute threads of each worker; default: cores divided by the job's places, at least 1
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    #[command(flatten)]
    format: FormatArgs,
}

fn per_minute(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0".into()),
    }
}

/// Storage is synchronous: only the clusters run on `runtime`.
pub fn run(runtime: &Runtime, args: Args) -> Result<ExitCode> {
    let default = match args.phase {
        Some(_) => default_steps(args.kills, args.every_steps),
        None => most_steps(args.kills, args.every_steps),
    };
    let steps = args.steps.unwrap_or(default);
    let mut job = job::make(&args.job, steps, 0, data::cargo_registry_sources())?;
    if args.verify {
        job = pin_text(job, &args.dir)?;
    }
    let plan = plan_of(&args, &job)?;
    let seed = plan.seed;
    let threads = args.threads.unwrap_or_else(|| default_threads(job.spec.shape.world()));
    let settings = Settings {
        device: args.device,
        failure_timeout: args.failure_timeout_ms.map(Duration::from_millis),
        has_network: args.how.is_cut(),
        ..Settings::new(&args.dir, threads)?
    };
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let mut train = |plan| runtime.block_on(inject::run(&settings, &job, plan, &mut signals));
    let Some(outcome) = train(plan)? else {
        return Ok(Exit::Interrupted.into());
    };
    let (mut report, disturbed) = judge(seed, outcome, args.verify, args.dir.join("disturbed.safetensors"))?;
    // It ends where the disturbed run did, so it comes second.
    if let Some(disturbed) = disturbed {
        let end =
            if disturbed.step < disturbed.job.total_steps { End::Checkpoint(disturbed.step) } else { End::LastStep };
        let Some(outcome) = train(Plan { end, ..Plan::nothing() })? else {
            return Ok(Exit::Interrupted.into());
        };
        ensure!(outcome.problems.is_empty(), "the undisturbed run failed: {}", outcome.problems.join("; "));
        let undisturbed = Finished::export(outcome.job, disturbed.step, args.dir.join("undisturbed.safetensors"))?;
        report.problems.extend(verify::differences(&undisturbed, &disturbed)?);
        report.is_verified = true;
    }
    args.format.answer(&report, report.text())?;
    Ok(if report.is_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same job on a copy of its text, so that nobody changes it between two runs that are compared. Token files are not written to once
/// they have their name, and runs on others would be told by their digests.
fn pin_text(job: job::LocalJob, dir: &Path) -> Result<job::LocalJob> {
    let cannot = || format!("copy the text of {} for both runs", job.spec.data.in_words());
    let (is_mixed, mut sources) = (!job.spec.data.sources.is_empty(), job.spec.data.all_sources());
    for (n, source) in sources.iter_mut().enumerate() {
        let tokens = data::prepare(source, &dir.join("cache"), &mut |_| {}).with_context(cannot)?;
        if tokens.is_of_token_files() {
            continue;
        }
        let copy = dir.join(if is_mixed { format!("text-{n}") } else { "text".into() });
        tokens.write_text(&copy).with_context(cannot)?;
        source.path = copy.canonicalize().with_context(cannot)?;
        source.extensions = Vec::new();
    }
    if is_mixed {
        let sources = toml::Value::try_from(&sources).with_context(cannot)?;
        return job.with("data", "source", sources);
    }
    let copy = sources[0].path.to_str().context("the folder for everything that is kept must have a name in UTF-8")?;
    let extensions = sources[0].extensions.clone();
    job.with("data", "path", copy)?.with("data", "extensions", extensions)
}

fn plan_of(args: &Args, job: &job::LocalJob) -> Result<Plan> {
    let world = job.spec.shape.world();
    ensure!(
        args.phase.is_none() || cfg!(feature = "failpoint"),
        "--phase needs workers that kill themselves, which are in the binary for tests alone: cargo run --release -p toroid-failpoint \
         --features failpoint -- chaos --phase ..."
    );
    if let Some(rank) = args.rank {
        ensure!(rank < world, "--rank {rank} is no place of {}: ranks are 0 to {}", job.spec.shape, world - 1);
    }
    ensure!(
        args.at_once == 1 || !args.how.is_cut(),
        "--how {} cuts one worker off at a time: --at-once goes with kill and stop",
        args.how.to_possible_value().as_ref().map_or("cut", |value| value.get_name())
    );
    let phases = args.phase.map(|phase| PhasePlan::new(phase, args.kills, args.every_steps, &job.spec)).transpose()?;
    if let Some(last) = phases.as_ref().map(PhasePlan::last_step) {
        let steps = job.spec.steps;
        ensure!(last < steps, "the last fault is due in step {last}, and the job has {steps}: give more --steps");
    }
    let ends_when_done = args.steps.is_none() && args.job.job.is_none() && phases.is_none();
    Ok(Plan {
        end: if ends_when_done { End::CheckpointAfterFaults } else { End::LastStep },
        num_faults: phases.as_ref().map_or(args.kills, PhasePlan::num_deaths),
        seed: args.seed.map_or_else(drawn_seed, Ok)?,
        kind: args.how,
        rank: args.rank,
        at_once: args.at_once,
        kills_coordinator: args.coordinator,
        min_pause: args.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(60.0 / rate)),
        min_steps: args.every_steps.unwrap_or(0),
        spares: if args.phase == Some(Phase::Heal) { 1 } else { args.spares },
        phases,
    })
}

/// So that soaks differ; it is printed, and can be given again: 32 bits are enough, and shorter.
fn drawn_seed() -> Result<u64> {
    Ok(getrandom::u32().context("draw a seed")?.into())
}

/// The report, and what is to be compared, if the run came to its end. `parameters`: the file for those of the run.
fn judge(seed: u64, outcome: Outcome, verifies: bool, parameters: PathBuf) -> Result<(Report, Option<Finished>)> {
    let Outcome { job, faults, coordinator_kills, readmitted, end_step, problems } = outcome;
    let mut report = Report::new(seed, &job, faults, problems);
    (report.coordinator_kills, report.readmitted) = (coordinator_kills, readmitted);
    let end_step = end_step.or((job.state() == proto::JobState::Done).then_some(job.total_steps));
    let finished = match end_step {
        Some(step) if verifies => Some(Finished::export(job, step, parameters)?),
        _ => None,
    };
    Ok((report, finished))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_testkit::parse;

    /// As when cargo fetches a crate between the two runs that are compared.
    #[test]
    fn both_runs_read_the_text_as_it_was_before_the_first() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (text, cache) = (dir.path().join("src"), dir.path().join("cache"));
        std::fs::create_dir(&text)?;
        std::fs::write(text.join("a.rs"), "fn a() {}\n".repeat(50))?;
        std::fs::write(text.join("b.md"), "no source")?;
        let args = parse::<Args>(&[]);
        let made = || job::make(&args.job, 9, 0, Some(text.clone()));
        let digest = |job: &job::LocalJob| -> Result<[u8; 32]> {
            Ok(data::prepare(&job.spec.data.all_sources()[0], &cache, &mut |_| {})?.digest())
        };
        let before = digest(&made()?)?;
        let pinned = pin_text(made()?, &dir.path().join("kept"))?;
        assert_eq!(digest(&pinned)?, before, "the copy gives the same tokens");
        std::fs::write(text.join("c.rs"), "fn c() {}\n")?;
        assert_ne!(digest(&made()?)?, before, "the source gives others now");
        assert_eq!(digest(&pinned)?, before);
        Ok(())
    }
}
