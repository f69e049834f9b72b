//! `toroid bench step`: tokens per second of whole optimizer steps, and what the process needed for them.
//!
//! ```text
//!   bench step --preset tiny,small --threads 1,2      a process for each combination: their peaks of memory are apart
//!        |-- bench step --preset tiny --threads 1 -o json
//!        |     the trainer of a worker, alone in its job: data, 8 micro-batches of 4, clip, AdamW, commit
//!        |     then the machine's own peak: the best of several products of 1024^3 with the same threads
//! ```
//!
//! Nothing is left out that a worker of a job of one place does, but validation and checkpoints. A step is timed from commit to
//! commit, in time of the clock and in time that the process's threads ran: on a machine with other work the second says more.

use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use toroid_session::{Assignment, Claim, Command, Event, PeerAddr, TrainerEvent};
use toroid_torus::ids::{Epoch, Rank};
use toroid_torus::job::{JobSpec, Products};
use toroid_torus::model::{ModelConfig, TOP_K};
use toroid_torus::owner::{Owner, OwnerId};
use toroid_worker::comm::{Fence, LinkChoice, Listener};
use toroid_worker::device::{Bf16, Bf16Choice, Buffer as _, CpuDevice, Device as _, Mat, MatMut};
use toroid_worker::trainer::{self, Emit, Environment, Order, Shared};

use super::median;
use crate::daemon::default_cache;
use crate::format::table;
use crate::local::job::{self, JobArgs};
use crate::local::positive;
use crate::output::FormatArgs;

/// Before those that count: caches, page tables and the packed operands are warm then.
const WARM_UP_STEPS: usize = 2;
/// Side of the products that measure the machine's peak, and how often they are made.
pub(super) const PEAK_SIDE: usize = 1024;
const PEAK_REPEATS: usize = 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sizes of the model
    #[arg(long, value_delimiter = ',', default_value = "tiny,small,medium", value_name = "PRESET,...")]
    preset: Vec<String>,
    /// Compute threads
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_name = "N,...", value_parser = positive)]
    threads: Vec<usize>,
    /// Rounding of the operands of products
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16", value_name = "KIND,...", value_parser = products)]
    products: Vec<Products>,
    /// How products of bf16 are computed: auto (what is fastest on this kind of processor, measured once), amx, avx512, or f32 after the operands
    /// are rounded
    #[arg(long, env = "TOROID_BF16", default_value_t, value_name = "WAY")]
    bf16: Bf16Choice,
    /// Steps that count, after two that do not
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = positive)]
    steps: usize,
    /// Text file or folder of text files to train on; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) fn products(text: &str) -> Result<Products, String> {
    match text {
        "f32" => Ok(Products::F32),
        "bf16" => Ok(Products::Bf16),
        _ => Err("expected f32 or bf16 (tf32 is f32 on a CPU)".into()),
    }
}

pub(super) fn name(products: Products) -> &'static str {
    match products {
        Products::F32 => "f32",
        Products::Tf32 => "tf32",
        Products::Bf16 => "bf16",
    }
}

/// What one combination gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Figures {
    preset: String,
    threads: usize,
    products: Products,
    /// By what they are computed: for bf16 `amx`, `avx512` or `f32`, which is after rounding.
    way: String,
    num_params: u64,
    tokens_per_step: u64,
    num_steps: usize,
    /// Median of the steps, by the clock.
    step_s: f64,
    /// Median of the steps, the time that threads of this process ran.
    step_cpu_s: f64,
    tokens_per_s: f64,
    /// Tokens per second that all threads together ran.
    tokens_per_cpu_s: f64,
    /// 10^9 operations of the model's products a second.
    gflops: f64,
    /// The same of the best product of 1024^3.
    peak_gflops: f64,
    /// In time that threads ran, of the same product.
    peak_gflops_per_cpu: f64,
    /// Share of the peak, both in time that threads ran.
    share_of_peak: f64,
    /// `VmHWM` of the process after the last step.
    peak_memory_bytes: u64,
    loss: f64,
    fingerprint: String,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut all = Vec::new();
    for preset in &args.preset {
        for (&products, &threads) in args.products.iter().flat_map(|p| args.threads.iter().map(move |t| (p, t))) {
            let one = Combination {
                preset,
                threads,
                products,
                bf16: args.bf16,
                steps: args.steps,
                data: args.data.as_deref(),
            };
            let is_only = args.preset.len() * args.threads.len() * args.products.len() == 1;
            all.push(if is_only { one.measure()? } else { one.in_a_process()? });
        }
    }
    args.format.answer(&all, text(&all))?;
    Ok(ExitCode::SUCCESS)
}

struct Combination<'a> {
    preset: &'a str,
    threads: usize,
    products: Products,
    bf16: Bf16Choice,
    steps: usize,
    data: Option<&'a Path>,
}

impl Combination<'_> {
    /// Runs this program for this combination alone.
    fn in_a_process(&self) -> Result<Figures> {
        let program = std::env::current_exe().context("find this program's file")?;
        let mut command = process::Command::new(program);
        command.args(["bench", "step", "-o", "json", "--preset", self.preset, "--products", name(self.products)]);
        command.args(["--threads", &self.threads.to_string(), "--steps", &self.steps.to_string()]);
        command.args(["--bf16", &self.bf16.to_string()]);
        if let Some(data) = self.data {
            command.arg("--data").arg(data);
        }
        let output = command.stderr(Stdio::inherit()).output().context("start a process for a measurement")?;
        let what = || format!("measure {} with {} threads", self.preset, self.threads);
        if !output.status.success() {
            bail!("cannot {}: its process ended with {}; what it said is above", what(), output.status);
        }
        let figures: Vec<Figures> = serde_json::from_slice(&output.stdout).with_context(what)?;
        figures.into_iter().next().with_context(|| format!("{}: no figures", what()))
    }

    fn measure(&self) -> Result<Figures> {
        let spec = self.spec()?;
        let device = CpuDevice::open(self.threads, self.bf16, &default_cache()).context("compute on the CPU")?;
        let way = match self.products {
            Products::Bf16 => device.bf16(),
            Products::F32 | Products::Tf32 => Bf16::F32,
        };
        let steps = train(&device, &spec)?;
        let peak_memory_bytes = peak_memory()?;
        let [peak_gflops, peak_gflops_per_cpu] = machine_peak(&device, self.products);
        let tokens_per_step = spec.batch.samples() * spec.model.seq as u64;
        let operations = flops_per_token(&spec.model) * tokens_per_step as f64;
        let counted = &steps[WARM_UP_STEPS..];
        let step_s = median(counted.iter().map(|s| s.wall_s));
        let step_cpu_s = median(counted.iter().map(|s| s.cpu_s));
        Ok(Figures {
            preset: self.preset.into(),
            threads: self.threads,
            products: self.products,
            way: way.to_string(),
            num_params: spec.model.num_params(),
            tokens_per_step,
            num_steps: counted.len(),
            step_s,
            step_cpu_s,
            tokens_per_s: tokens_per_step as f64 / step_s,
            tokens_per_cpu_s: tokens_per_step as f64 / step_cpu_s,
            gflops: operations / step_s / 1e9,
            peak_gflops,
            peak_gflops_per_cpu,
            share_of_peak: operations / step_cpu_s / 1e9 / peak_gflops_per_cpu,
            peak_memory_bytes,
            loss: steps.last().map_or(f64::NAN, |s| s.loss),
            fingerprint: device.fingerprint(self.products),
        })
    }

    /// Without validation: the steps are what is measured.
    fn spec(&self) -> Result<JobSpec> {
        let (data, preset) = (self.data.map(Path::to_path_buf), self.preset.to_string());
        let args = JobArgs { data, preset, tp: 1, pp: 1, dp: 1, job: None };
        let steps = (WARM_UP_STEPS + self.steps) as u64;
        let mut spec = job::make(&args, steps, 0, toroid_worker::data::cargo_registry_sources())?.spec;
        spec.products = self.products;
        spec.eval.num_micro_batches = 0;
        Ok(spec)
    }
}

/// A committed step.
#[derive(Debug, Clone, Copy)]
struct Step {
    wall_s: f64,
    cpu_s: f64,
    loss: f64,
}

/// Trains a job of one place as a worker does.
fn train(device: &CpuDevice, spec: &JobSpec) -> Result<Vec<Step>> {
    let listener = Listener::bind("127.0.0.1:0", "bench", LinkChoice::Auto).context("listen on the loopback")?;
    let folder = std::env::temp_dir().join(format!("toroid-bench-{}", std::process::id()));
    let peer = PeerAddr { worker_id: "bench".into(), address: listener.local_addr().to_string() };
    let assignment = Assignment {
        job_id: "bench-1".into(),
        epoch: Epoch::new(1),
        rank: Rank::ZERO,
        spec: Arc::new(spec.clone()),
        peers: Arc::new([(Rank::ZERO, peer)].into()),
        link_key: [0; 32],
        checkpoint_root: folder.join("checkpoints").display().to_string(),
        owner: Owner::new(OwnerId::from_random([1; 16]), "bench-1", "bench-1", 0),
        claim: Claim::New,
        restore_step: None,
        heal: false,
    };
    let environment = Environment {
        roots: toroid_security::Roots::everywhere(),
        listener,
        shared: Arc::new(Shared::default()),
        cache_dir: folder.join("cache"),
        connect_timeout: Duration::from_secs(10),
    };
    let (orders, to_do) = mpsc::channel();
    let seen = Arc::new(Mutex::new(Seen {
        orders: Some(orders.clone()),
        steps: Vec::new(),
        failed: None,
        last: Instants::now(),
    }));
    let at_event = Arc::clone(&seen);
    let emit: Emit = Arc::new(move |event| lock(&at_event).take(event));
    let fence = Fence::new().context("make an event for the fence")?;
    orders.send(Order::Prepare(Box::new(assignment), fence)).context("give the trainer its place")?;
    drop(orders);
    // It ends when `Seen` drops the channel.
    device.enter(|| trainer::run(device, &environment, to_do, &emit));
    // What is left there is of no use to anyone; a job of its own makes it anew.
    let _ = std::fs::remove_dir_all(&folder);
    let seen = lock(&seen);
    match &seen.failed {
        Some(error) => Err(anyhow!("the trainer failed: {error}")),
        None => Ok(seen.steps.clone()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What the trainer said, and how to answer it.
struct Seen {
    /// Dropped at the end: the trainer then ends.
    orders: Option<mpsc::Sender<Order>>,
    steps: Vec<Step>,
    failed: Option<String>,
    /// When the last step was committed, or the links were made.
    last: Instants,
}

impl Seen {
    fn take(&mut self, event: TrainerEvent) {
        match event.event {
            Event::Prepared { .. } => {
                let start = Command::Start { epoch: event.epoch, heal: None }.into();
                if self.orders.as_ref().is_none_or(|orders| orders.send(start).is_err()) {
                    self.fail("it ended before its start".into());
                }
            }
            Event::Connected => self.last = Instants::now(),
            Event::Committed { record, .. } => {
                let now = Instants::now();
                let wall_s = (now.wall - self.last.wall).as_secs_f64();
                let cpu_s = (now.cpu - self.last.cpu).as_secs_f64();
                self.steps.push(Step { wall_s, cpu_s, loss: record.map_or(f64::NAN, |r| r.loss) });
                self.last = now;
            }
            Event::Finished { .. } => self.orders = None,
            Event::Failed { error, .. } | Event::PeerLost { error, .. } => self.fail(error),
            Event::Unreached(missing) => self.fail(format!("no link to {missing:?}")),
            _ => {}
        }
    }

    fn fail(&mut self, error: String) {
        self.failed = Some(error);
        self.orders = None;
    }
}

/// Now, by the clock and by the time that all threads of this process ran.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instants {
    wall: Instant,
    pub(super) cpu: Duration,
}

impl Instants {
    pub(super) fn now() -> Instants {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        // Times of a process are not negative.
        Instants { wall: Instant::now(), cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32) }
    }
}

/// The most memory that this process ever had, in bytes.
fn peak_memory() -> Result<u64> {
    const PATH: &str = "/proc/self/status";
    let status = std::fs::read_to_string(PATH).with_context(|| format!("read {PATH}"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).with_context(|| format!("{PATH} has no VmHWM"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read VmHWM {line:?}"))?;
    Ok(kib * 1024)
}

/// 10^9 operations a second of the best of [`PEAK_REPEATS`] products: by the clock, and by time that threads ran, which counts as
/// many seconds as threads.
fn machine_peak(device: &CpuDevice, products: Products) -> [f64; 2] {
    const N: usize = PEAK_SIDE;
    let [mut a, mut b, mut c] = [(); 3].map(|()| device.alloc(N * N));
    device.fill(a.all_mut(), 0.5);
    device.fill(b.all_mut(), 0.25);
    let mut best = [0.0_f64; 2];
    for _ in 0..PEAK_REPEATS {
        let start = Instants::now();
        let to = MatMut::new(c.all_mut(), N, N);
        device.matmul(products, 1.0, Mat::new(a.all(), N, N), Mat::new(b.all(), N, N), 0.0, to);
        let end = Instants::now();
        let operations = 2.0 * (N as f64).powi(3) / 1e9;
        best[0] = best[0].max(operations / (end.wall - start.wall).as_secs_f64());
        best[1] = best[1].max(operations / (end.cpu - start.cpu).as_secs_f64());
    }
    best
}

/// Operations of the model's products for a token: forward, and twice as many backward; of the scores of attention those that are
/// not masked. What is recomputed does not count.
fn flops_per_token(model: &ModelConfig) -> f64 {
    let ModelConfig { layers, d_model: d, heads, kv_heads, head_dim, experts, ff, seq, vocab, .. } = *model;
    let attention = d * (2 * heads + 2 * kv_heads) * head_dim;
    let scores = heads * head_dim * (seq + 1);
    let layer = attention + scores + d * experts + (TOP_K + 1) * 3 * d * ff;
    (3 * 2 * (layers * layer + vocab * d)) as f64
}

/// A row a combination.
fn text(all: &[Figures]) -> String {
    let header = [
        "PRESET",
        "PRODUCTS",
        "BY",
        "THREADS",
        "STEP MS",
        "TOKENS/S",
        "TOKENS/CPU-S",
        "GFLOP/S",
        "PEAK",
        "SHARE",
        "MEMORY MB",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(all.iter().map(|f| {
        vec![
            f.preset.clone(),
            name(f.products).into(),
            f.way.clone(),
            f.threads.to_string(),
            format!("{:.0}", f.step_s * 1e3),
            format!("{:.0}", f.tokens_per_s),
            format!("{:.0}", f.tokens_per_cpu_s),
            format!("{:.0}", f.gflops),
            format!("{:.0}", f.peak_gflops),
            format!("{:.0}%", f.share_of_peak * 100.0),
            (f.peak_memory_bytes >> 20).to_string(),
        ]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            preset: "tiny".into(),
            threads: 2,
            products: Products::Bf16,
            way: "avx512".into(),
            num_params: 2_102_400,
            tokens_per_step: 4096,
            num_steps: 5,
            step_s: 0.1,
            step_cpu_s: 0.16,
            tokens_per_s: 40_960.0,
            tokens_per_cpu_s: 25_600.0,
            gflops: 120.4,
            peak_gflops: 300.0,
            peak_gflops_per_cpu: 150.0,
            share_of_peak: 0.502,
            peak_memory_bytes: 300 << 20,
            loss: 5.5,
            fingerprint: "cpu".into(),
        }
    }

    #[test]
    fn a_combination_is_a_row() {
        assert_eq!(
            text(&[figures()]),
            "PRESET  PRODUCTS  BY      THREADS  STEP MS  TOKENS/S  TOKENS/CPU-S  GFLOP/S  PEAK  SHARE  MEMORY MB\n\
             tiny    bf16      avx512  2        100      40960     25600         120      300   50%    300\n"
        );
    }

    #[test]
    fn figures_go_from_process_to_process() -> Result<()> {
        let written = serde_json::to_string(&[figures()])?;
        assert_eq!(serde_json::from_str::<Vec<Figures>>(&written)?, [figures()]);
        Ok(())
    }

    /// Counted by hand for a model of one layer: 64 of attention, 12 of scores, 8 of the router, 144 of experts, 1024 of the head.
    #[test]
    fn operations_are_those_of_the_products() -> Result<()> {
        let tiny = ModelConfig::preset("tiny").context("a preset")?;
        let small =
            ModelConfig { layers: 1, d_model: 4, heads: 2, kv_heads: 2, head_dim: 2, experts: 2, ff: 4, ..tiny };
        let model = ModelConfig { seq: 2, vocab: 256, ..small };
        assert_eq!(flops_per_token(&model), 6.0 * (64.0 + 12.0 + 8.0 + 144.0 + 1024.0));
        Ok(())
    }

    #[test]
    fn the_trainer_makes_the_steps_that_were_asked_for() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("text.txt");
        std::fs::write(&file, "torus and ring, ring and torus. ".repeat(4000))?;
        let one = Combination {
            preset: "tiny",
            threads: 2,
            products: Products::F32,
            bf16: Bf16Choice::Auto,
            steps: 1,
            data: Some(&file),
        };
        let mut spec = one.spec()?;
        spec.batch.num_micro_batches = 1;
        let steps = train(&CpuDevice::new(2), &spec)?;
        assert_eq!(steps.len(), WARM_UP_STEPS + 1);
        assert!(steps.iter().all(|s| s.wall_s > 0.0 && s.cpu_s > 0.0 && s.loss.is_finite()), "{steps:?}");
        Ok(())
    }
}
