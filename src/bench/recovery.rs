//! `toroid bench recovery`: from the death of a worker to the next committed step.
//!
//! A killed worker's connections are reset at once; one that is stopped or cut off is silent, which `failure_timeout` has to pass for.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum as _;
use serde::Serialize;

use super::{Ways, parse_shape};
use crate::chaos::CHAOS_DIR;
use crate::chaos::inject::{self, End, Kind, Plan};
use crate::chaos::report::{Report, Spread};
use crate::cluster::Signals;
use crate::cluster::children::Settings;
use crate::exit::Exit;
use crate::format::table;
use crate::incidents::ms;
use crate::local::job::{self, JobArgs};
use crate::local::{default_threads, positive};
use crate::output::FormatArgs;

/// More than any measurement waits for; the job is cancelled after the last fault.
const STEPS_PER_FAULT: u64 = 1000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Workers to kill at each shape and in each way
    #[arg(long, default_value_t = 20, value_name = "K", value_parser = positive)]
    kills: usize,
    /// Shapes of the job; several times for several
    #[arg(long, value_name = "TP,PP,DP", value_parser = parse_shape, default_values = ["2,2,2", "1,1,4"])]
    shape: Vec<Ways>,
    /// What is done to a worker; several times for several
    #[arg(long, value_enum, default_values = ["kill"], value_name = "FAULT")]
    how: Vec<Kind>,
    /// A silent worker is lost after this long; default: that of a coordinator
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    failure_timeout_ms: Option<u64>,
    /// Size of the model
    #[arg(long, default_value = "tiny", value_name = "PRESET")]
    preset: String,
    /// Text file or folder of text files to train on; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Workers beyond those that the job needs
    #[arg(long, default_value_t = 1, value_name = "N")]
    spares: usize,
    /// Of the victims
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Folder for everything that is kept
    #[arg(long, default_value = CHAOS_DIR, value_name = "FOLDER")]
    dir: PathBuf,
    /// Compute threads of each worker; default: cores divided by the job's places, at least 1
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    #[command(flatten)]
    format: FormatArgs,
}

/// One shape, one kind of death.
#[derive(Serialize)]
struct Measured {
    how: String,
    /// Silence before a death of this kind counts as one; 0 where it is seen at once.
    silence_s: f64,
    #[serde(flatten)]
    report: Report,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    ensure!(
        !args.how.contains(&Kind::Both),
        "--how both has no time of its own: name kill and stop, each with a --how"
    );
    let mut signals = Signals::new()?;
    let mut measured = Vec::new();
    for ways in &args.shape {
        for how in &args.how {
            match recovery(&args, *ways, *how, &mut signals).await? {
                Some(one) => measured.push(one),
                None => return Ok(Exit::Interrupted.into()),
            }
        }
    }
    args.format.answer(&measured, text(&measured))?;
    let is_passed = measured.iter().all(|one| one.report.is_passed());
    Ok(if is_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `None` where the user interrupted it.
async fn recovery(args: &Args, ways: Ways, how: Kind, signals: &mut Signals) -> Result<Option<Measured>> {
    let Ways { tp, pp, dp } = ways;
    let job = JobArgs { data: args.data.clone(), preset: args.preset.clone(), tp, pp, dp, job: None };
    let steps = args.kills as u64 * STEPS_PER_FAULT;
    let job = job::make(&job, steps, 0, toroid_worker::data::cargo_registry_sources())?;
    let threads = args.threads.unwrap_or_else(|| default_threads(job.spec.shape.world()));
    let failure_timeout = args.failure_timeout_ms.map(Duration::from_millis);
    let settings = Settings { failure_timeout, has_network: how.is_cut(), ..Settings::new(&args.dir, threads)? };
    let silence = match how {
        Kind::Kill => Duration::ZERO,
        _ => failure_timeout.unwrap_or(toroid_coordinator::Config::new(&args.dir).failure_timeout),
    };
    let (num_faults, seed, spares) = (args.kills, args.seed, args.spares);
    let plan = Plan { num_faults, seed, kind: how, spares, end: End::LastFault, ..Plan::nothing() };
    let outcome = inject::run(&settings, &job, plan, signals).await?;
    Ok(outcome.map(|o| Measured {
        how: how.to_possible_value().map_or_else(String::new, |value| value.get_name().into()),
        silence_s: silence.as_secs_f64(),
        report: Report::new(seed, &o.job, o.faults, o.problems),
    }))
}

/// A row a shape and kind of death, in milliseconds; failures below. `BEYOND`: the median less a step and the silence.
fn text(measured: &[Measured]) -> String {
    let header = [
        "SHAPE", "HOW", "FAULTS", "STEP MS", "RECOVERY", "P90", "MAX", "SILENCE", "BEYOND", "DETECT", "FENCE",
        "DECIDE", "HEAL", "REDO",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(measured.iter().map(row));
    let mut text = table(&rows);
    for one in measured {
        for problem in &one.report.problems {
            // Writing to a string does not fail.
            let _ = writeln!(text, "FAIL {} {}: {problem}", shape(&one.report), one.how);
        }
    }
    text
}

fn shape(report: &Report) -> String {
    let [tp, pp, dp] = report.shape;
    format!("{tp},{pp},{dp}")
}

fn row(one: &Measured) -> Vec<String> {
    let report = &one.report;
    let of = |figure: fn(&Spread) -> f64| report.recovery_s.as_ref().map_or_else(|| "-".into(), |s| ms(figure(s)));
    let beyond = report.recovery_s.map_or_else(|| "-".into(), |s| ms(s.median - report.step_s - one.silence_s));
    let mut row = vec![shape(report), one.how.clone(), report.faults.len().to_string(), ms(report.step_s)];
    row.extend([of(|s| s.median), of(|s| s.p90), of(|s| s.max), ms(one.silence_s), beyond]);
    row.extend(report.phases.iter().map(|phase| ms(phase.median_s)));
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::report::Fault;
    use toroid_proto as proto;

    #[test]
    fn a_death_is_a_row_and_a_failure_a_line() {
        let incident =
            proto::Incident { number: 1, fence_s: 0.001, heal_s: 0.19, resolved: true, ..Default::default() };
        let job = proto::Job {
            shape: Some(proto::Shape { tp: 2, pp: 2, dp: 2, dx: 2, dy: 1 }),
            incidents: vec![incident],
            curve: vec![proto::StepRecord { step: 1, step_s: 0.1, ..Default::default() }],
            ..Default::default()
        };
        let fault = Fault { worker: "w1".into(), rank: Some(1), how: "kill".into(), step: 1, recovery_s: Some(0.3) };
        let report = Report::new(0, &job, vec![fault], vec!["w2 ended by itself".into()]);
        assert_eq!(
            text(&[Measured { how: "stop".into(), silence_s: 0.15, report }]),
            "SHAPE  HOW   FAULTS  STEP MS  RECOVERY  P90  MAX  SILENCE  BEYOND  DETECT  FENCE  DECIDE  HEAL  REDO\n\
             2,2,2  stop  1       100      300       300  300  150      50      0       1      0       190   0\n\
             FAIL 2,2,2 stop: w2 ended by itself\n"
        );
    }
}
