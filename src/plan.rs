//! `toroid plan`: what a job needs and how fast it can be, before any device is paid for. The formulas are [`toroid_torus::plan`]'s; here
//! are the flags and the table.

mod sources;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;
use toroid_torus::job::{self, JobSpec};
use toroid_torus::plan::{DataPlan, Failures, Kind, Machine, Plan, plan};
use toroid_torus::scaling::{Allocation, Prediction, Scaling, operations_per_token};
use toroid_worker::device::{Buffer as _, CpuDevice, Device as _, Mat, MatMut};

use crate::exit::Exit;
use crate::format::{bytes, count, duration, percent, rate, seconds, short_count, short_number, table};
use crate::jobfile;
use crate::local::{default_threads, positive};
use crate::output::FormatArgs;
use crate::scale::report;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job file; without one the flags of model, shape and batch below
    #[arg(value_name = "FILE", conflicts_with_all = ["preset", "tp", "pp", "dp", "micro_batch", "micro_batches"])]
    file: Option<PathBuf>,
    /// Size of the model: micro, tiny, small, medium, 1b, 67b
    #[arg(long, default_value = "67b")]
    preset: String,
    /// Ways of tensor parallelism
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = positive)]
    tp: usize,
    /// Ways of pipeline parallelism
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = positive)]
    pp: usize,
    /// Ways of data parallelism
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = positive)]
    dp: usize,
    /// Samples of a micro-batch
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive)]
    micro_batch: usize,
    /// Micro-batches of each replica and step
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = positive)]
    micro_batches: usize,
    /// TFLOP/s that matrix products reach on a worker; default: 40% of an H100's dense bf16 peak
    #[arg(long, default_value_t = 400.0, value_name = "TFLOPS", value_parser = above_zero, conflicts_with = "measured")]
    device_tflops: f64,
    /// Measure the products of this machine's CPU instead, for a moment
    #[arg(long)]
    measured: bool,
    /// GB/s between a device and its memory; default: an H100's HBM3
    #[arg(long, default_value_t = 3350.0, value_name = "GB/S", value_parser = above_zero)]
    memory_gbps: f64,
    /// GB/s that a worker sends to its tensor-parallel neighbours; default: NVLink 4, one direction
    #[arg(long, default_value_t = 450.0, value_name = "GB/S", value_parser = above_zero)]
    tp_gbps: f64,
    /// GB/s that a worker sends to all others; default: a network port of 400 Gbit/s for each worker
    #[arg(long, default_value_t = 50.0, value_name = "GB/S", value_parser = above_zero)]
    link_gbps: f64,
    /// Microseconds from sending a message to its arrival, beyond its bytes
    #[arg(long, default_value_t = 10.0, value_name = "US", value_parser = not_negative)]
    latency_us: f64,
    /// Hours between failures of one worker, on average; default: as in the training of Llama 3 (419 in 54 days of 16,384 GPUs)
    #[arg(long, default_value_t = 50_000.0, value_name = "HOURS", value_parser = above_zero)]
    mtbf_h: f64,
    /// Seconds until a dead worker is noticed; default: the failure timeout, which a silent death takes
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = not_negative)]
    detect_s: f64,
    /// Seconds until all have read the last checkpoint and go on
    #[arg(long, default_value_t = 120.0, value_name = "S", value_parser = not_negative)]
    restore_s: f64,
    /// Seconds between checkpoints; default: as the job file says
    #[arg(long, value_name = "S", value_parser = above_zero)]
    checkpoint_interval_s: Option<f64>,
    /// Predict the loss by the laws that `toroid scale` has found (its laws.json)
    #[arg(long, value_name = "FILE")]
    law: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
}

fn above_zero(text: &str) -> Result<f64, String> {
    number(text).and_then(|n| if n > 0.0 { Ok(n) } else { Err("expected a number above 0".into()) })
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).and_then(|n| if n >= 0.0 { Ok(n) } else { Err("expected 0 or more".into()) })
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n <= 1e12 => Ok(n),
        _ => Err("expected a number of at most 1e12".into()),
    }
}

/// What `-o json` prints; seconds and bytes.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    name: &'a str,
    shape: [usize; 3],
    torus: [usize; 2],
    machine: Machine,
    failures: Failures,
    #[serde(flatten)]
    plan: Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<Foretold>,
    /// `null` where no job file was given, or its data is not known here.
    data: Option<DataPlan>,
    /// Why it is not.
    data_unknown: Option<String>,
}

/// What loss the job will end with, nats a token, by the laws of its family.
#[derive(Debug, Serialize)]
struct Foretold {
    #[serde(flatten)]
    prediction: Prediction,
    /// Operations of the job, without embedding and head.
    compute: f64,
    /// How many times as much as the largest run that the laws are fitted to.
    beyond: f64,
    /// For as much computation: operations a token, and tokens, that would end with the lowest loss.
    best: Allocation,
}

impl Foretold {
    fn new(spec: &JobSpec, laws: &Scaling) -> Foretold {
        let size = operations_per_token(&spec.model);
        let tokens = (spec.steps * spec.batch.samples() * spec.model.seq as u64) as f64;
        let compute = size * tokens;
        Foretold {
            prediction: laws.predict(size, tokens),
            compute,
            beyond: compute / laws.max_compute,
            best: laws.allocate(compute),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "loss     {} with {} operations; {} for {} operations a token and {} tokens, which is best\n",
            report::prediction(&self.prediction),
            short_number(self.compute),
            report::prediction(&self.best.prediction),
            short_number(self.best.size),
            short_number(self.best.tokens),
        );
        if let Some(warning) = report::warning(self.beyond) {
            text += &format!("warning: this job is {warning}\n");
        }
        text
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut spec = spec(args)?;
    if let Some(seconds) = args.checkpoint_interval_s {
        (spec.checkpoint.interval_s, spec.checkpoint.interval_steps) = (seconds, 0);
    }
    let machine = Machine {
        flops: if args.measured { measured_flops() } else { 1e12 * args.device_tflops },
        memory_bytes_per_s: 1e9 * args.memory_gbps,
        tp_bytes_per_s: 1e9 * args.tp_gbps,
        link_bytes_per_s: 1e9 * args.link_gbps,
        latency_s: 1e-6 * args.latency_us,
    };
    let failures = Failures { mtbf_s: 3600.0 * args.mtbf_h, detect_s: args.detect_s, restore_s: args.restore_s };
    let plan = plan(&spec, &machine, &failures);
    let shape = &spec.shape;
    let loss = match &args.law {
        Some(file) => Some(Foretold::new(&spec, report::Laws::read(file)?.of_operations()?)),
        None => None,
    };
    let mut text = text(&spec, &machine, &failures, &plan);
    // Flags name no data.
    let data = args.file.is_some().then(|| sources::plan(&spec));
    match &data {
        Some(Ok(data)) => text.push_str(&format!("\n{}", sources::text(data))),
        Some(Err(error)) => text.push_str(&format!("data     epochs are not known: {error:#}\n")),
        None => {}
    }
    if let Some(loss) = &loss {
        text.push_str(&loss.text());
    }
    let (data, data_unknown) = match data.transpose() {
        Ok(data) => (data, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let answer = Answer {
        name: &spec.name,
        shape: [shape.tp(), shape.pp(), shape.dp()],
        torus: [shape.width(), shape.height()],
        machine,
        failures,
        plan,
        loss,
        data,
        data_unknown,
    };
    let is_refused = answer.data.as_ref().is_some_and(|data| data.missing_samples > 0);
    args.format.answer(&answer, text)?;
    // As `toroid submit` ends with such a job.
    Ok(if is_refused { Exit::Failed.into() } else { ExitCode::SUCCESS })
}

fn spec(args: &Args) -> Result<JobSpec> {
    if let Some(file) = &args.file {
        let (text, _) = jobfile::read(file)?;
        return job::parse(&text).with_context(|| format!("plan {}", file.display()));
    }
    let Args { preset, tp, pp, dp, micro_batch, micro_batches, .. } = args;
    let text = format!(
        "preset = {preset:?}\nsteps = 1\nshape = {{ tp = {tp}, pp = {pp}, dp = {dp} }}\n\
         batch = {{ micro_batch = {micro_batch}, micro_batches = {micro_batches} }}\ndata.path = \"none\"\n"
    );
    job::parse(&text).context("plan a job of these flags")
}

/// Operations a second of a large product on all of this machine's cores: the best of some, since others may be computing too.
fn measured_flops() -> f64 {
    const N: usize = 1024;
    const TRIES: usize = 8;
    let device = CpuDevice::new(default_threads(1));
    let [mut a, mut b, mut c] = [0; 3].map(|_| device.alloc(N * N));
    device.fill(a.all_mut(), 0.5);
    device.fill(b.all_mut(), 0.25);
    let one = |c: &mut _| {
        let start = Instant::now();
        let (a, b) = (Mat::new(a.all(), N, N), Mat::new(b.all(), N, N));
        device.matmul(job::Products::F32, 1.0, a, b, 0.0, MatMut::new(toroid_worker::device::Buffer::all_mut(c), N, N));
        black_box(&c);
        start.elapsed().as_secs_f64()
    };
    let best = (0..TRIES).map(|_| one(&mut c)).fold(f64::INFINITY, f64::min);
    2.0 * (N * N * N) as f64 / best
}

fn text(spec: &JobSpec, machine: &Machine, failures: &Failures, plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!(
        "{}: {} parameters, {} of them for each token, on {} places: {}",
        spec.name,
        short_count(plan.num_params),
        short_count(plan.num_active_params),
        count(plan.num_places as u64),
        spec.shape,
    ));
    line(format!(
        "{} tokens a step, {} micro-batches of {} for each replica\n",
        short_count(plan.tokens_per_step),
        plan.micro_batches_per_replica,
        count((spec.batch.micro_batch * spec.model.seq) as u64),
    ));
    line(memory_table(plan));
    line(traffic_table(plan));
    line(pipeline_table(plan));
    line(format!(
        "step     {} = pipeline {} + collectives {} + optimizer {}",
        seconds(plan.step.total),
        seconds(plan.step.pipeline),
        seconds(plan.step.collectives),
        seconds(plan.step.optimizer),
    ));
    line(format!(
        "speed    {} tokens/s with {}FLOP/s a worker, of which the model uses {}",
        rate(plan.tokens_per_s),
        operations(machine.flops),
        percent(plan.flops_utilization),
    ));
    let goodput = &plan.goodput;
    line(format!(
        "goodput  {:.3}% with second holders, {:.3}% with a checkpoint every {} alone",
        100.0 * goodput.with_redundancy,
        100.0 * goodput.without_redundancy,
        duration(goodput.checkpoint_interval_s),
    ));
    line(format!(
        "         one worker fails in {}, here {:.2} a day; a death costs {} and the step; both holders at once: {:.1e} a day",
        duration(failures.mtbf_s),
        goodput.failures_per_day,
        seconds(goodput.recovery_s),
        goodput.restores_per_day,
    ));
    out
}

/// A column a stage where there are few, else the first, the largest and the last.
fn memory_table(plan: &Plan) -> String {
    let last = plan.memory.len() - 1;
    let largest = (0..=last).max_by_key(|s| plan.memory[*s].total()).unwrap_or(0);
    let mut shown: Vec<usize> = if last < 6 { (0..=last).collect() } else { vec![0, largest, last] };
    shown.sort_unstable();
    shown.dedup();
    let mut rows = vec![
        std::iter::once("MEMORY OF A WORKER".to_string())
            .chain(shown.iter().map(|s| format!("STAGE {s} ({} LAYERS)", plan.memory[*s].num_layers)))
            .collect::<Vec<_>>(),
    ];
    let parts = plan.memory[0].parts();
    for (i, (name, _)) in parts.iter().enumerate() {
        let of_stages = shown.iter().map(|s| bytes(plan.memory[*s].parts()[i].1));
        rows.push(std::iter::once(name.to_string()).chain(of_stages).collect());
    }
    let totals = shown.iter().map(|s| bytes(plan.memory[*s].total()));
    rows.push(std::iter::once("total".to_string()).chain(totals).collect());
    table(&rows)
}

fn traffic_table(plan: &Plan) -> String {
    let mut rows = vec![["TRAFFIC OF A WORKER AND STEP", "SENT", "MESSAGES", "TAKES"].map(String::from).to_vec()];
    for t in &plan.traffic {
        let name = match t.kind {
            Kind::TpSums => "sums over tp",
            Kind::StageTransfers => "stage transfers",
            Kind::ReduceScatter => "reduce-scatter over dp",
            Kind::Seal => "seal: to the second holder",
            Kind::Commit => "commit: sums over the torus",
            Kind::AllGather => "all-gather over dp",
        };
        let takes = if t.kind == Kind::StageTransfers { "hidden".into() } else { seconds(t.seconds) };
        rows.push(vec![name.into(), bytes(t.bytes), count(t.messages), takes]);
    }
    table(&rows)
}

fn pipeline_table(plan: &Plan) -> String {
    let header = ["PIPELINE", "BUBBLE", "OF EQUAL STAGES", "STEP", "IN FLIGHT", "LARGEST WORKER"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for p in &plan.pipelines {
        let name = if p.is_executable { p.schedule.clone() } else { format!("{} (planned only)", p.schedule) };
        rows.push(vec![
            name,
            percent(p.bubble),
            percent(p.bubble_of_equal_stages),
            seconds(p.step_s),
            format!("{:.1}", p.in_flight),
            bytes(p.memory_bytes),
        ]);
    }
    table(&rows)
}

/// Operations a second: `198 G`.
fn operations(flops: f64) -> String {
    if flops < 1e12 { format!("{:.0} G", flops / 1e9) } else { format!("{:.0} T", flops / 1e12) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_testkit::parse;

    fn planned(line: &str) -> (JobSpec, Plan) {
        let args: Args = parse(&line.split_whitespace().collect::<Vec<_>>());
        let spec = spec(&args).expect("a job");
        let machine = Machine {
            flops: 4e14,
            memory_bytes_per_s: 3e12,
            tp_bytes_per_s: 4e11,
            link_bytes_per_s: 5e10,
            latency_s: 1e-5,
        };
        let failures = Failures { mtbf_s: 1e8, detect_s: 5.0, restore_s: 120.0 };
        let plan = plan(&spec, &machine, &failures);
        let text = text(&spec, &machine, &failures, &plan);
        let of_policy = spec.ppo.iter().flat_map(|_| ["frozen models", "cache of generation"]);
        for part in ["MEMORY OF A WORKER", "TRAFFIC", "1f1b", "zero-bubble", "goodput  "].into_iter().chain(of_policy) {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        (spec, plan)
    }

    #[test]
    fn the_large_recipe_is_planned_from_its_file_as_from_flags() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/67b.toml");
        let (of_file, of_flags) = (planned(file), planned(""));
        assert_eq!(of_file.0.shape.world(), 2048);
        // The description's figures: 67.2 and 16.7 billion.
        let in_billions = [of_file.1.num_params, of_file.1.num_active_params].map(|n| (n as f64 / 1e8).round() / 10.0);
        assert_eq!(in_billions, [67.2, 16.7]);
        assert_eq!(of_file.1.memory, of_flags.1.memory);
        assert_eq!(of_file.1.step, of_flags.1.step);
    }

    /// Prompts are taken once an iteration, and not once a step; models that are only asked need memory, too.
    #[test]
    fn a_policy_is_planned_by_its_iterations() {
        let (spec, plan) = planned(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ppo.toml"));
        assert_eq!((spec.steps_of_iteration(), spec.samples_needed()), (8, 50 * 64));
        let names: Vec<&str> = plan.memory[0].parts().into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"frozen models") && names.contains(&"cache of generation"), "{names:?}");
        let data = toroid_torus::plan::of_data(&spec, &[1000]).expect("a plan");
        assert_eq!((data.sources[0].given, data.sources[0].epochs, data.missing_samples), (3200, 3.2, 0));
    }

    #[test]
    fn epochs_are_those_of_what_lies_at_the_paths() -> Result<()> {
        let dir = tempfile::tempdir()?;
        // 128 tokens a sample, and one that follows: 10 samples of the text.
        std::fs::write(dir.path().join("prose.txt"), "x".repeat(10 * 128 + 1))?;
        let tokens = toroid_tokens::file_of(&[&[7; 30 * 128 + 1]], 256, toroid_tokens::BYTES_TOKENIZER);
        std::fs::write(dir.path().join("code.tokens"), tokens)?;
        let file = dir.path().join("job.toml");
        let write = |more: &str, prose: &str| {
            let text = format!(
                "steps = 10\nbatch.global = 8\n[data]\nvalidation = 0.0\n{more}\n[[data.source]]\nname = 'code'\npath = 'code.tokens'\n\
                 [[data.source]]\nname = 'prose'\n{prose}\n"
            );
            std::fs::write(&file, text)
        };
        let of_file = || -> Result<(JobSpec, Result<DataPlan>)> {
            let args: Args = parse(&[file.to_str().context("test folders have UTF-8 names")?]);
            let spec = spec(&args)?;
            let plan = sources::plan(&spec);
            Ok((spec, plan))
        };
        let epochs = |plan: &DataPlan| plan.sources.iter().map(|s| (s.given, s.epochs)).collect::<Vec<_>>();
        write("", "path = 'prose.txt'")?;
        let plan = of_file()?.1?;
        assert_eq!((epochs(&plan), plan.missing_samples), (vec![(60, 2.0), (20, 2.0)], 0));
        write("temperature = 1e6", "path = 'prose.txt'\nmax_epochs = 2.0")?;
        let plan = of_file()?.1?;
        assert_eq!(epochs(&plan), [(60, 2.0), (20, 2.0)]);
        assert_eq!(plan.sources[1].ends_in_step, Some(5));
        assert!(
            sources::text(&plan).contains("2.00 of at most 2, after step 5 the others have its share"),
            "{}",
            sources::text(&plan)
        );
        // By hand, where the path is on other machines.
        write("", "path = '/none'\ntokens = 1281")?;
        assert_eq!(epochs(&of_file()?.1?), [(60, 2.0), (20, 2.0)]);
        write("", "path = '/none'")?;
        let error = of_file()?.1.err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(
            error.contains("count the tokens of prose; or give data.source.tokens") && error.contains("/none"),
            "{error}"
        );
        write("", "path = 'prose.txt'\ntokens = 100")?;
        let error = of_file()?.1.err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(error.contains("source prose has 100 tokens"), "{error}");
        Ok(())
    }

    #[test]
    fn one_worker_is_planned_too() {
        let (_, plan) = planned("--preset tiny --tp 1 --pp 1 --dp 1");
        assert!(plan.traffic.iter().all(|t| t.bytes == 0 && t.messages == 0), "{:?}", plan.traffic);
        assert!(plan.pipelines.iter().all(|p| p.bubble == 0.0));
    }
}
