//! `toroid bench scaling`: what is left of the cores when several workers train a job that one process could train.
//!
//! The same job, with the same samples in every step, is trained on a local cluster: in each round once by one worker with all the threads,
//! then in each shape by workers with one thread each. The order turns from round to round, and what is compared are the medians of steps of
//! one round, so that a machine that gets slower or faster in between does not count.
//!
//! Efficiency is tokens/s over those of the one worker with as many threads as the shape's workers have together, but no more than the
//! machine has cores: beyond those one worker would only get slower, which would flatter the others.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{Ways, median, parse_shape};
use crate::chaos::CHAOS_DIR;
use crate::chaos::inject::{self, Plan};
use crate::cluster::Signals;
use crate::cluster::children::Settings;
use crate::exit::Exit;
use crate::format::table;
use crate::incidents::ms;
use crate::local::job::{self, JobArgs, LocalJob};
use crate::local::{default_threads, positive};
use crate::output::FormatArgs;

/// The first steps of a run touch memory for the first time.
const WARM_UP_STEPS: usize = 2;
const SHAPES: [&str; 4] = ["1,1,2", "2,1,1", "1,2,1", "2,2,2"];
const ONE: Ways = Ways { tp: 1, pp: 1, dp: 1 };

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ways of tensor, pipeline and data parallelism; may be given more than once
    #[arg(long = "shape", value_name = "TP,PP,DP", value_parser = parse_shape, default_values = SHAPES)]
    shapes: Vec<Ways>,
    /// Size of the model
    #[arg(long, default_value = "small", value_name = "PRESET")]
    preset: String,
    /// Rounds; each trains the job in every shape and in one worker
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = positive)]
    rounds: usize,
    /// Optimizer updates of each run that are measured
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = positive)]
    steps: usize,
    /// Text file or folder of text files to train on; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH")]
    data: Option<std::path::PathBuf>,
    /// Folder for everything that is kept
    #[arg(long, default_value = CHAOS_DIR, value_name = "FOLDER")]
    dir: std::path::PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Workers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cluster {
    ways: Ways,
    /// Of each worker.
    threads: usize,
}

impl Cluster {
    fn num_workers(&self) -> usize {
        self.ways.tp * self.ways.pp * self.ways.dp
    }

    fn one_worker(threads: usize) -> Cluster {
        Cluster { ways: ONE, threads }
    }

    fn name(&self) -> String {
        format!("({},{},{})", self.ways.tp, self.ways.pp, self.ways.dp)
    }
}

/// What a run gave: medians over its steps.
#[derive(Debug, Clone, Copy)]
struct Measured {
    step_s: f64,
    tokens_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    shape: String,
    num_workers: usize,
    threads: usize,
    /// Median over the rounds of a round's median step.
    step_s: f64,
    tokens_per_s: f64,
    /// Median over the rounds of tokens/s over those of the one worker of the same round, and how far the rounds lie apart.
    efficiency: f64,
    efficiency_min: f64,
    efficiency_max: f64,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let cores = default_threads(1);
    let shapes: Vec<Cluster> = args.shapes.iter().map(|&ways| Cluster { ways, threads: 1 }).collect();
    let one_for = |cluster: &Cluster| Cluster::one_worker((cluster.num_workers() * cluster.threads).min(cores));
    let mut clusters: Vec<Cluster> = Vec::new();
    for cluster in shapes.iter().map(one_for).chain(shapes.iter().copied()) {
        if !clusters.contains(&cluster) {
            clusters.push(cluster);
        }
    }
    // By index in `clusters`, by round.
    let mut measured: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    for round in 0..args.rounds {
        for turn in 0..clusters.len() {
            let index = (round + turn) % clusters.len();
            match measure(&args, clusters[index], &mut signals).await? {
                Some(found) => measured.entry(index).or_default().push(found),
                None => return Ok(Exit::Interrupted.into()),
            }
        }
    }
    let of = |cluster: &Cluster| {
        let index = clusters.iter().position(|c| c == cluster);
        index.and_then(|index| measured.get(&index)).context("a cluster was not measured")
    };
    let rows: Result<Vec<Row>> =
        clusters.iter().map(|cluster| Ok(row(cluster, of(cluster)?, of(&one_for(cluster))?))).collect();
    let rows = rows?;
    args.format.answer(&rows, text(&rows))?;
    Ok(ExitCode::SUCCESS)
}

/// `None` where the user interrupted it.
async fn measure(args: &Args, cluster: Cluster, signals: &mut Signals) -> Result<Option<Measured>> {
    let job = job_of(args, cluster.ways)?;
    let settings = Settings::new(&args.dir, cluster.threads)?;
    let Some(outcome) = inject::run(&settings, &job, Plan::nothing(), signals).await? else { return Ok(None) };
    ensure!(outcome.problems.is_empty(), "the run at {} failed: {}", cluster.name(), outcome.problems.join("; "));
    let records = || outcome.job.curve.iter().skip(WARM_UP_STEPS);
    ensure!(records().next().is_some(), "the run at {} made no step that counts", cluster.name());
    Ok(Some(Measured {
        step_s: median(records().map(|r| r.step_s)),
        tokens_per_s: median(records().map(|r| r.tokens as f64 / r.step_s)),
    }))
}

/// With the samples of one worker's step, without validation: the steps are what is measured.
fn job_of(args: &Args, Ways { tp, pp, dp }: Ways) -> Result<LocalJob> {
    let steps = (args.steps + WARM_UP_STEPS) as u64;
    let make = |tp, pp, dp| {
        let flags = JobArgs { data: args.data.clone(), preset: args.preset.clone(), tp, pp, dp, job: None };
        job::make(&flags, steps, 0, toroid_worker::data::cargo_registry_sources())
    };
    let samples = i64::try_from(make(1, 1, 1)?.spec.batch.samples()).context("count the samples of a step")?;
    make(tp, pp, dp)?.with("batch", "global", samples)?.with("eval", "micro_batches", 0)
}

fn row(cluster: &Cluster, own: &[Measured], one: &[Measured]) -> Row {
    let ratios: Vec<f64> = own.iter().zip(one).map(|(own, one)| own.tokens_per_s / one.tokens_per_s).collect();
    Row {
        shape: cluster.name(),
        num_workers: cluster.num_workers(),
        threads: cluster.threads,
        step_s: median(own.iter().map(|m| m.step_s)),
        tokens_per_s: median(own.iter().map(|m| m.tokens_per_s)),
        efficiency_min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        efficiency_max: ratios.iter().copied().fold(0.0, f64::max),
        efficiency: median(ratios),
    }
}

fn text(rows: &[Row]) -> String {
    let header = ["SHAPE", "WORKERS", "THREADS EACH", "STEP MS", "TOKENS/S", "EFFICIENCY", "LEAST", "MOST"];
    let mut cells = vec![header.map(String::from).to_vec()];
    let percent = |ratio: f64| format!("{:.1}%", 100.0 * ratio);
    cells.extend(rows.iter().map(|row| {
        vec![
            row.shape.clone(),
            row.num_workers.to_string(),
            row.threads.to_string(),
            ms(row.step_s),
            format!("{:.0}", row.tokens_per_s),
            percent(row.efficiency),
            percent(row.efficiency_min),
            percent(row.efficiency_max),
        ]
    }));
    table(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(tokens_per_s: &[f64]) -> Vec<Measured> {
        tokens_per_s.iter().map(|&tokens_per_s| Measured { step_s: 1000.0 / tokens_per_s, tokens_per_s }).collect()
    }

    #[test]
    fn a_round_is_compared_with_itself() {
        let one = measured(&[1000.0, 2000.0, 500.0]);
        let two = Cluster { ways: Ways { tp: 1, pp: 1, dp: 2 }, threads: 1 };
        let rows = [row(&Cluster::one_worker(2), &one, &one), row(&two, &measured(&[900.0, 1900.0, 400.0]), &one)];
        assert_eq!(
            text(&rows),
            "SHAPE    WORKERS  THREADS EACH  STEP MS  TOKENS/S  EFFICIENCY  LEAST   MOST\n\
             (1,1,1)  1        2             1000     1000      100.0%      100.0%  100.0%\n\
             (1,1,2)  2        1             1111     900       90.0%       80.0%   95.0%\n"
        );
    }

    #[test]
    fn every_shape_has_the_samples_of_one_worker() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("text.txt");
        std::fs::write(&file, "torus and ring, ring and torus. ".repeat(4000))?;
        let args = Args {
            shapes: Vec::new(),
            preset: "tiny".into(),
            rounds: 1,
            steps: 3,
            data: Some(file),
            dir: dir.path().into(),
            format: FormatArgs::default(),
        };
        let samples = job_of(&args, ONE)?.spec.batch.samples();
        for text in SHAPES {
            let spec = job_of(&args, parse_shape(text).map_err(anyhow::Error::msg)?)?.spec;
            assert_eq!((spec.batch.samples(), spec.eval.num_micro_batches, spec.steps), (samples, 0, 5), "{text}");
        }
        Ok(())
    }
}
