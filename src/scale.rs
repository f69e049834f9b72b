//! `toroid scale`: many small trainings of one family, and the laws that predict the large one. The fits are [`toroid_torus::scaling`]'s.
//!
//! ```text
//!   FILE --study--> trainings --conduct--> jobs at the coordinator --> runs.csv --\
//!                                                     --fit CSV -----------------> Scaling --report--> text, laws.json, plots
//! ```

mod conduct;
pub mod report;
mod runs_file;
mod study;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use toroid_torus::scaling::{Allocation, Run, Scaling};

use crate::client::Connection;
use crate::exit::wrong_use;
use crate::format::{count, num, short_count, short_number, table};
use crate::output::{self, FormatArgs};
use report::Laws;
use runs_file::Measure;
use study::Study;

const RUNS: &str = "runs.csv";
const LOCK: &str = "lock";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The study: budgets, sizes, learning rates and batches (docs/scaling-laws.md lists its keys)
    #[arg(value_name = "FILE", required_unless_present = "fit")]
    file: Option<PathBuf>,
    /// Fit the laws alone, to runs of a table with the columns parameters, tokens, loss, and perhaps operations_per_token, lr, batch_tokens
    #[arg(long, value_name = "CSV", conflicts_with_all = ["file", "dry_run"])]
    fit: Option<PathBuf>,
    /// List the trainings and what they cost, and start none
    #[arg(long)]
    dry_run: bool,
    /// Folder for runs, laws and plots; default: that of the study's file without its ending. With --fit nothing is written without it
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Predict the best model of so many operations; may be given several times
    #[arg(long, value_name = "OPERATIONS", value_parser = operations)]
    compute: Vec<f64>,
    /// Fit the largest budget, too, instead of predicting it
    #[arg(long)]
    no_hold_out: bool,
    /// Of the samples of runs that intervals are taken from
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

fn operations(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("expected a finite number above 0, as in 1e21".into()),
    }
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    laws: Laws,
    allocations: Vec<Allocation>,
    /// Trainings that did not reach their end.
    failed: Vec<String>,
}

/// A training as `--dry-run -o json` lists it.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    name: &'a str,
    budget: f64,
    operations_per_token: f64,
    num_params: u64,
    tokens: u64,
    steps: u64,
    lr: f64,
    batch_tokens: u64,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    if let Some(table) = &args.fit {
        let (measure, runs) = runs_file::read(table)?;
        return answer(&args, measure, &runs, args.to.as_deref(), Vec::new());
    }
    let Some(file) = &args.file else { return Err(wrong_use("name a study, or a table of runs with --fit")) };
    let study = Study::read(file)?;
    if args.dry_run {
        args.format.answer(&listed(&study), listing(&study))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::note(listing(&study));
    let folder = args.to.clone().unwrap_or_else(|| file.with_extension(""));
    study.check_fits(!args.no_hold_out)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // Two that conduct one study would make each training twice.
    let lock = folder.join(LOCK);
    let held = File::create(&lock).with_context(|| format!("make {}", lock.display()))?;
    if let Err(error) = held.try_lock() {
        bail!(
            "cannot lock {}: {error}; is another `toroid scale` at work on this study? --to names another folder",
            lock.display()
        );
    }
    let outcome = conduct::conduct(&study, args.connection.access()?, &folder.join(RUNS)).await?;
    let runs = study
        .trainings
        .iter()
        .filter_map(|t| outcome.finished.iter().find(|f| f.name == t.name).map(|f| t.run(f.loss)));
    let runs: Vec<Run> = runs.collect();
    let failed = outcome.failed.into_iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    answer(&args, Measure::OperationsPerToken, &runs, Some(&folder), failed)
}

fn answer(args: &Args, measure: Measure, runs: &[Run], to: Option<&Path>, failed: Vec<String>) -> Result<ExitCode> {
    let fitting = || match args.no_hold_out {
        true => "fit the laws",
        false => {
            "fit the laws to all runs but those of the largest budget, which is held out (--no-hold-out fits it, too)"
        }
    };
    let scaling = Scaling::fit(runs, !args.no_hold_out, args.seed).with_context(fitting)?;
    let allocations: Vec<Allocation> = args.compute.iter().map(|c| scaling.allocate(*c)).collect();
    if let Some(folder) = to {
        report::write(folder, measure, &scaling)?;
        output::note(format_args!("laws and plots are in {}", folder.display()));
    }
    for reason in &failed {
        output::note(format_args!("left out of the fit: {reason}"));
    }
    let text = report::text(measure, &scaling, &allocations);
    let code = if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    args.format.answer(&Answer { laws: Laws::new(measure, scaling), allocations, failed }, text)?;
    Ok(code)
}

fn listed(study: &Study) -> Vec<Listed<'_>> {
    let one = |t| {
        let training: &study::Training = t;
        Listed {
            name: &training.name,
            budget: training.budget,
            operations_per_token: training.size,
            num_params: training.num_params,
            tokens: training.tokens(),
            steps: training.spec.steps,
            lr: training.spec.optimizer.lr,
            batch_tokens: training.batch_tokens(),
        }
    };
    study.trainings.iter().map(one).collect()
}

/// What will be run, and what it costs.
fn listing(study: &Study) -> String {
    let header = ["TRAINING", "BUDGET", "PARAMETERS", "OPERATIONS A TOKEN", "TOKENS", "STEPS", "LR", "BATCH"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for t in listed(study) {
        rows.push(vec![
            t.name.into(),
            short_number(t.budget),
            short_count(t.num_params),
            short_number(t.operations_per_token),
            short_count(t.tokens),
            count(t.steps),
            short_number(t.lr),
            count(t.batch_tokens),
        ]);
    }
    let total: f64 = study.trainings.iter().map(study::Training::compute).sum();
    let mut text = table(&rows);
    text += &format!(
        "{} of {}, {} operations in all without embedding and head; each ends its own cosine\n",
        num(study.trainings.len(), "training"),
        study.name,
        short_number(total),
    );
    for left_out in &study.left_out {
        text += &format!(
            "left out: {} would have {:.0} steps, not {} to {}\n",
            left_out.name, left_out.steps, study.min_steps, study.max_steps
        );
    }
    text
}
