//! `toroid simulate`: how much of its time a job trains on thousands of machines that fail for weeks, by the coordinator's real machine on virtual
//! time, beside a launcher that starts all again from a checkpoint.
//!
//! ```text
//!   flags --> Scenario, Settings --Model--> how long each part takes (formulas of `toroid plan`, assumptions)
//!   seed  --fleet--> what fails when --\
//!                                       >-- world:    Machine, workers by events --> Account --\
//!                                       >-- launcher: restarts from checkpoints  --> Account ---report, study--> tables, JSON, plots
//! ```

mod account;
mod compare;
mod fleet;
mod launcher;
mod model;
mod report;
mod study;
#[cfg(test)]
mod tests;
mod words;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;
use toroid_torus::plan::Machine;

use crate::exit::wrong_use;
use crate::format::table;
use crate::local::positive;
use crate::output::FormatArgs;
use compare::{simulate, spares_of};
use fleet::{Kind, Mix};
use model::{Model, Scenario, Settings};
use report::Outcome;

/// Scenarios of one command, at most.
const MAX_SCENARIOS: usize = 1000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Places of the job; several make several runs, as with all flags that take a list
    #[arg(long, value_delimiter = ',', default_values_t = [2048], value_name = "N,...", value_parser = positive)]
    places: Vec<usize>,
    /// Mean time between failures that come to a place: 48h, 20min, 90s
    #[arg(long, value_delimiter = ',', default_values = ["48h", "4h", "20min"], value_name = "TIME,...", value_parser = time)]
    failure_every: Vec<f64>,
    /// Spares in percent of the places; rounded up to whole hosts of 8
    #[arg(long, value_delimiter = ',', default_values_t = [1.0], value_name = "PERCENT,...", value_parser = not_negative)]
    spares: Vec<f64>,
    /// Time between checkpoints
    #[arg(long, value_delimiter = ',', default_values = ["10min"], value_name = "TIME,...", value_parser = time)]
    interval: Vec<f64>,
    /// Whether each shard has a second holder: yes, no, or both one after the other
    #[arg(long, value_delimiter = ',', default_values = ["yes"], value_name = "yes,no")]
    second_holder: Vec<YesNo>,
    /// How long is simulated
    #[arg(long, default_value_t = 7.0, value_name = "DAYS", value_parser = above_zero)]
    days: f64,
    /// Of what fails when
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Run the study of the documentation instead and write its tables into this page, between its two marks, and its plots into images beside it
    #[arg(long, value_name = "PAGE", conflicts_with_all = ["failure_every", "spares", "interval", "second_holder", "days"])]
    study: Option<PathBuf>,
    /// Failures of each run of the study, on average: so long it is
    #[arg(long, default_value_t = 100.0, value_name = "N", requires = "study", value_parser = above_zero)]
    num_failures: f64,
    #[command(flatten)]
    assumed: Assumed,
    #[command(flatten)]
    format: FormatArgs,
}

/// What is taken for given: of the job, of its machines, of their failures.
#[derive(Debug, clap::Args)]
struct Assumed {
    /// Size of the model, as `toroid plan` has them. 8 micro-batches of 2 samples a replica and step
    #[arg(long, default_value = "67b", value_name = "NAME")]
    preset: String,
    /// Ways of tensor parallelism
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = positive)]
    tp: usize,
    /// Ways of pipeline parallelism
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = positive)]
    pp: usize,
    /// Shares of failures: a worker dies, a host, a rack (8 hosts), a switch (4 racks) falls silent, a worker hangs, a worker is slow. After the causes
    /// published of Llama 3's 419 interruptions; how many of them are silent, hang or are slow is an assumption
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [72.0, 14.0, 2.0, 1.0, 6.0, 5.0], value_name = "W,H,R,S,HANG,SLOW", value_parser = not_negative)]
    mix: Vec<f64>,
    /// TFLOP/s that matrix products reach on a worker
    #[arg(long, default_value_t = 400.0, value_name = "TFLOPS", value_parser = above_zero)]
    device_tflops: f64,
    /// GB/s that a worker sends to others: a network port of 400 Gbit/s
    #[arg(long, default_value_t = 50.0, value_name = "GB/S", value_parser = above_zero)]
    link_gbps: f64,
    /// GB/s between a host and where checkpoints lie
    #[arg(long, default_value_t = 1.0, value_name = "GB/S", value_parser = above_zero)]
    storage_gbps: f64,
    /// GB/s at which a worker copies its state aside for a checkpoint, while it makes no step: PCIe 5
    #[arg(long, default_value_t = 25.0, value_name = "GB/S", value_parser = above_zero)]
    copy_gbps: f64,
    /// Failure timeout of the coordinator
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = above_zero)]
    failure_timeout_s: f64,
    /// From the end of a process until it is noticed
    #[arg(long, default_value_t = 0.1, value_name = "S", value_parser = not_negative)]
    notice_s: f64,
    /// Time of the coordinator for each place in which it begins an epoch; default: as `toroid bench fleet` measured it on two busy cores
    #[arg(long, default_value_t = 130.0, value_name = "US", value_parser = not_negative)]
    decide_us: f64,
    /// Until a newcomer has its links
    #[arg(long, default_value_t = 0.5, value_name = "S", value_parser = not_negative)]
    connect_s: f64,
    /// Until a worker, a host, a rack or switch is back
    #[arg(long, value_delimiter = ',', num_args = 1, default_values = ["30min", "4h", "2h"], value_name = "W,H,R", value_parser = time)]
    repair: Vec<f64>,
    /// Until somebody moves the place of a slow worker that was named, or resumes a job that has failed
    #[arg(long, default_value = "10min", value_name = "TIME", value_parser = time)]
    operator: f64,
    /// The launcher: until all processes are started and linked again, beside reading the checkpoint
    #[arg(long, default_value = "120s", value_name = "TIME", value_parser = time)]
    restart: f64,
    /// The launcher: until a hanging worker is noticed; default: that of NCCL's watchdog in PyTorch
    #[arg(long, default_value = "10min", value_name = "TIME", value_parser = time)]
    hang_timeout: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum YesNo {
    Yes,
    No,
}

fn above_zero(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|n| if n > 0.0 { Ok(n) } else { Err("expected a number above 0".into()) })
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (0.0..=1e9).contains(&n) => Ok(n),
        _ => Err("expected a number from 0 to 1e9".into()),
    }
}

/// Seconds of a time with its unit; at least a second.
fn time(text: &str) -> Result<f64, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit_s = match unit {
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err("expected a number with its unit: 90s, 20min, 48h, 7d".into()),
    };
    match number.parse::<f64>().map(|n| n * unit_s) {
        Ok(seconds) if (1.0..=1e9).contains(&seconds) => Ok(seconds),
        _ => Err("expected a time from 1s to 11574d".into()),
    }
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    settings: &'a Settings,
    runs: Vec<&'a Outcome>,
}

impl Args {
    fn settings(&self) -> Result<Settings> {
        let a = &self.assumed;
        let mix: [f64; 6] = a.mix.clone().try_into().map_err(|found: Vec<f64>| {
            let kinds = Kind::ALL.map(Kind::name).join(", ");
            wrong_use(format!("--mix has {} shares; expected one for each of {kinds}", found.len()))
        })?;
        if mix.iter().sum::<f64>() <= 0.0 {
            return Err(wrong_use("the shares of --mix are all 0; expected one above 0"));
        }
        let repair_s: [f64; 3] = a.repair.clone().try_into().map_err(|found: Vec<f64>| {
            wrong_use(format!("--repair has {} times; expected those of a worker, a host, a rack", found.len()))
        })?;
        let giga = 1e9;
        let machine = Machine {
            flops: 1e12 * a.device_tflops,
            memory_bytes_per_s: 3350.0 * giga,
            tp_bytes_per_s: 450.0 * giga,
            link_bytes_per_s: a.link_gbps * giga,
            latency_s: 10e-6,
        };
        Ok(Settings {
            preset: a.preset.clone(),
            machine,
            storage_bytes_per_s: a.storage_gbps * giga,
            copy_bytes_per_s: a.copy_gbps * giga,
            mix: Mix(mix),
            failure_timeout_s: a.failure_timeout_s,
            heartbeat_interval_s: a.failure_timeout_s / 5.0,
            notice_s: a.notice_s,
            decide_us: a.decide_us,
            connect_s: a.connect_s,
            repair_s,
            operator_s: a.operator,
            restart_s: a.restart,
            hang_timeout_s: a.hang_timeout,
        })
    }

    /// All that its lists make.
    fn scenarios(&self) -> Result<Vec<Scenario>> {
        let lists = [self.places.len(), self.failure_every.len(), self.spares.len(), self.interval.len()];
        let num = lists.iter().product::<usize>() * self.second_holder.len();
        if num > MAX_SCENARIOS {
            return Err(wrong_use(format!("the lists make {num} runs; expected at most {MAX_SCENARIOS}")));
        }
        let mut all = Vec::new();
        for places in &self.places {
            for failure_every_s in &self.failure_every {
                for percent in &self.spares {
                    for interval_s in &self.interval {
                        for holder in &self.second_holder {
                            all.push(Scenario {
                                places: *places,
                                spares: spares_of(*places, percent / 100.0),
                                tp: self.assumed.tp,
                                pp: self.assumed.pp,
                                failure_every_s: *failure_every_s,
                                interval_s: *interval_s,
                                second_holder: *holder == YesNo::Yes,
                                days: self.days,
                                seed: self.seed,
                            });
                        }
                    }
                }
            }
        }
        Ok(all)
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let (settings, scenarios) = (args.settings()?, args.scenarios()?);
    if let Some(page) = &args.study {
        let base = scenarios.first().context("there is a scenario of the defaults")?;
        let study = study::run(base, &settings, &args.places, args.num_failures)?;
        let places: Vec<String> = args.places.iter().map(usize::to_string).collect();
        let command = format!(
            "toroid simulate --study {} --places {} --num-failures {} --seed {}",
            page.display(),
            places.join(","),
            args.num_failures,
            args.seed
        );
        study.write(page, &command)?;
        let runs: Vec<&Outcome> = study.outcomes().collect();
        let text = format!("the study is in {}\n", page.display());
        args.format.answer(&Answer { settings: &settings, runs }, text)?;
        return Ok(ExitCode::SUCCESS);
    }
    // A shape that does not divide is told before anything runs.
    for scenario in &scenarios {
        Model::new(scenario.clone(), settings.clone())?;
    }
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        outcomes.push(simulate(scenario, &settings)?);
    }
    let (runs, times) = (table(&report::runs(&outcomes)), table(&report::times(&outcomes)));
    let step = outcomes.first().map_or(0.0, |o| o.step_s);
    let text = format!("{runs}\n{times}\n{} days, a step takes {step:.3} s with all places\n", args.days);
    args.format.answer(&Answer { settings: &settings, runs: outcomes.iter().collect() }, text)?;
    Ok(ExitCode::SUCCESS)
}
