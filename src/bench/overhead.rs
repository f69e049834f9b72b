//! `toroid bench overhead`: what fault tolerance costs while nothing fails.
//!
//! The same job is trained again and again on a local cluster, each round once with everything off (no second holder of a shard, so no
//! seal exchange, digest or second update; heartbeats an hour apart), once with second holders alone, once with what a replay needs, and
//! once as it comes. Workers write down what each phase takes (`toroid_worker::trace`), so that a second table says where the cost is. The order
//! turns from round to round; what is compared are the medians of steps of one round, so that a machine that gets slower or
//! faster in between does not count.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use toroid_worker::trace::{Kind, Span};

use super::{Ways, median, parse_shape};
use crate::chaos::CHAOS_DIR;
use crate::chaos::inject::{self, Plan};
use crate::chaos::report::Spread;
use crate::cluster::Signals;
use crate::cluster::children::Settings;
use crate::exit::Exit;
use crate::format::table;
use crate::incidents::ms;
use crate::local::job::{self, JobArgs, LocalJob};
use crate::local::{default_threads, positive};
use crate::output::FormatArgs;
use crate::scratch::BENCH;

/// Heartbeats and keepalives derive from it; no measurement lasts so long.
const NO_FAILURE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The first steps of a run touch memory for the first time.
const WARM_UP_STEPS: usize = 2;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ways of tensor, pipeline and data parallelism
    #[arg(long, value_name = "TP,PP,DP", value_parser = parse_shape, default_value = "2,1,2")]
    shape: Ways,
    /// Size of the model
    #[arg(long, default_value = "small", value_name = "PRESET")]
    preset: String,
    /// Rounds; each trains the job four times
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = positive)]
    rounds: usize,
    /// Optimizer updates of each run that are measured
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    steps: usize,
    /// Text file or folder of text files to train on; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH")]
    data: Option<std::path::PathBuf>,
    /// Folder for everything that is kept
    #[arg(long, default_value = CHAOS_DIR, value_name = "FOLDER")]
    dir: std::path::PathBuf,
    /// Compute threads of each worker; default: cores divided by the job's places, at least 1
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    #[command(flatten)]
    format: FormatArgs,
}

/// What is on.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    redundancy: bool,
    replay: bool,
    heartbeats: bool,
}

/// The first is what the others are compared with.
const VARIANTS: [Variant; 4] = [
    Variant { name: "off", redundancy: false, replay: false, heartbeats: false },
    Variant { name: "second holders, digests", redundancy: true, replay: false, heartbeats: false },
    Variant { name: "and inputs kept for replay", redundancy: true, replay: true, heartbeats: false },
    Variant { name: "and heartbeats (as it comes)", redundancy: true, replay: true, heartbeats: true },
];

#[derive(Debug, Serialize)]
struct Report {
    variants: Vec<Row>,
    phases: Vec<Phase>,
}

/// What a rank spends on a phase in a step; in the order of a step.
#[derive(Debug, PartialEq, Serialize)]
struct Phase {
    phase: String,
    /// By variant: mean over ranks and steps, seconds.
    mean_s: [f64; VARIANTS.len()],
}

#[derive(Debug, Serialize)]
struct Row {
    variant: &'static str,
    /// Median over the rounds of a round's median step.
    step_s: f64,
    /// Median over the rounds of the step over that of the round's first variant, and how far the rounds lie apart.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    // By variant, by round: the median step, in seconds.
    let mut steps: [Vec<f64>; VARIANTS.len()] = Default::default();
    let mut spans: [Vec<Span>; VARIANTS.len()] = Default::default();
    for round in 0..args.rounds {
        for turn in 0..VARIANTS.len() {
            let index = (round + turn) % VARIANTS.len();
            match median_step(&args, VARIANTS[index], &mut signals).await? {
                Some((step, seen)) => {
                    steps[index].push(step);
                    spans[index].extend(seen);
                }
                None => return Ok(Exit::Interrupted.into()),
            }
        }
    }
    let report = Report { variants: rows(&steps), phases: phases(&spans, args.rounds) };
    args.format.answer(&report, text(&report))?;
    Ok(ExitCode::SUCCESS)
}

/// Of one run, in seconds, with the spans of its steps; `None` where the user interrupted it.
async fn median_step(args: &Args, variant: Variant, signals: &mut Signals) -> Result<Option<(f64, Vec<Span>)>> {
    let job = job_of(args, variant)?;
    let folder = args.dir.join("bench-overhead");
    BENCH.make_anew(&folder)?;
    let settings = Settings {
        failure_timeout: (!variant.heartbeats).then_some(NO_FAILURE_TIMEOUT),
        trace: Some(folder.clone()),
        ..Settings::new(&args.dir, args.threads.unwrap_or_else(|| default_threads(job.spec.shape.world())))?
    };
    let Some(outcome) = inject::run(&settings, &job, Plan::nothing(), signals).await? else { return Ok(None) };
    ensure!(outcome.problems.is_empty(), "the run with {} failed: {}", variant.name, outcome.problems.join("; "));
    let measured = outcome.job.curve.iter().skip(WARM_UP_STEPS).map(|record| record.step_s);
    let step = Spread::of(measured).context("the run made no step")?.median;
    let spans = crate::trace::read(&folder)?;
    Ok(Some((step, spans.into_iter().filter(|span| span.step > WARM_UP_STEPS as u64).collect())))
}

fn job_of(args: &Args, variant: Variant) -> Result<LocalJob> {
    let Ways { tp, pp, dp } = args.shape;
    let flags = JobArgs { data: args.data.clone(), preset: args.preset.clone(), tp, pp, dp, job: None };
    let steps = (args.steps + WARM_UP_STEPS) as u64;
    let job = job::make(&flags, steps, 0, toroid_worker::data::cargo_registry_sources())?;
    job.with("fault_tolerance", "redundancy", variant.redundancy)?.with("fault_tolerance", "replay", variant.replay)
}

fn rows(steps: &[Vec<f64>; VARIANTS.len()]) -> Vec<Row> {
    let rows = VARIANTS.iter().zip(steps).map(|(variant, own)| {
        let ratios: Vec<f64> = own.iter().zip(&steps[0]).map(|(step, off)| step / off).collect();
        Row {
            variant: variant.name,
            step_s: median(own.iter().copied()),
            ratio_min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratio_max: ratios.iter().copied().fold(0.0, f64::max),
            ratio: median(ratios),
        }
    });
    rows.collect()
}

/// `num_rounds`: runs of each variant, all of the same ranks and steps.
fn phases(spans: &[Vec<Span>; VARIANTS.len()], num_rounds: usize) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    // The variant with all phases has their order.
    let order = spans.last().into_iter().chain(spans).flatten().filter(|span| span.kind == Kind::Phase);
    for span in order {
        if phases.iter().all(|p| p.phase != span.name) {
            phases.push(Phase { phase: span.name.clone(), mean_s: [0.0; VARIANTS.len()] });
        }
    }
    for (variant, spans) in spans.iter().enumerate() {
        let steps: BTreeSet<(usize, u64)> = spans.iter().map(|span| (span.rank, span.step)).collect();
        let num_steps = num_rounds * steps.len();
        for phase in &mut phases {
            let of_phase = spans.iter().filter(|s| s.kind == Kind::Phase && s.name == phase.phase);
            // The sum of nothing is -0.
            let sum = 0.0 + of_phase.map(|s| s.duration_us / 1e6).sum::<f64>();
            phase.mean_s[variant] = sum / num_steps.max(1) as f64;
        }
    }
    phases
}

fn text(report: &Report) -> String {
    let Report { variants: rows, phases } = report;
    let mut cells = vec![["WITH", "STEP MS", "COST", "LEAST", "MOST"].map(String::from).to_vec()];
    let percent = |ratio: f64| format!("{:+.1}%", 100.0 * (ratio - 1.0));
    cells.extend(rows.iter().map(|row| {
        vec![row.variant.into(), ms(row.step_s), percent(row.ratio), percent(row.ratio_min), percent(row.ratio_max)]
    }));
    let mut by_phase = vec![["MS A STEP", "OFF", "HOLDERS", "REPLAY", "ALL"].map(String::from).to_vec()];
    by_phase.extend(phases.iter().map(|phase| {
        let times = phase.mean_s.iter().map(|s| format!("{:.2}", 1e3 * s));
        std::iter::once(phase.phase.clone()).chain(times).collect()
    }));
    format!("{}\n{}", table(&cells), table(&by_phase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_compared_with_itself() {
        let rows = rows(&[vec![1.0, 2.0, 4.0], vec![1.02, 2.02, 4.0], vec![1.02, 2.02, 4.0], vec![1.1, 2.06, 4.04]]);
        let span = |rank, step, name: &str, kind, ms: f64| Span {
            rank,
            step,
            name: name.into(),
            kind,
            waited_for: Vec::new(),
            cpu_us: None,
            start_us: 0.0,
            duration_us: 1e3 * ms,
        };
        // Two ranks and two rounds of one step; what is communicated within a phase is a part of it.
        let all = [(0, 1.0), (1, 3.0), (0, 1.0), (1, 3.0)].into_iter().flat_map(|(rank, ms)| {
            [
                span(rank, 3, "digest", Kind::Phase, ms),
                span(rank, 3, "commit", Kind::Phase, 4.0),
                span(rank, 3, "digest", Kind::Phase, ms),
                span(rank, 3, "commit", Kind::Exposed, 4.0),
            ]
        });
        let off = [(0, 5.0), (1, 6.0)]
            .repeat(2)
            .into_iter()
            .map(|(rank, ms)| span(rank, 3, "commit", Kind::Phase, ms))
            .collect();
        let report = Report { variants: rows, phases: phases(&[off, Vec::new(), Vec::new(), all.collect()], 2) };
        assert_eq!(
            text(&report),
            "WITH                          STEP MS  COST   LEAST  MOST\n\
             off                           2000     +0.0%  +0.0%  +0.0%\n\
             second holders, digests       2020     +1.0%  +0.0%  +2.0%\n\
             and inputs kept for replay    2020     +1.0%  +0.0%  +2.0%\n\
             and heartbeats (as it comes)  2060     +3.0%  +1.0%  +10.0%\n\
             \n\
             MS A STEP  OFF   HOLDERS  REPLAY  ALL\n\
             digest     0.00  0.00     0.00    4.00\n\
             commit     5.50  0.00     0.00    4.00\n"
        );
    }
}
