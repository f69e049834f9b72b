//! `toroid local`: a whole cluster on this machine, one job on it, and what it came to.
//!
//! ```text
//!   toroid local ── starts, watches, starts again ──> toroid coordinator, toroid worker x (places + spares)
//!        └───────── gRPC like any other user: submit, watch, cancel ──────┘
//!
//!   .toroid/coordinator/  the coordinator's folder: store, jobs/<id>/{job.toml, curve.csv, checkpoints/}
//!   .toroid/cache/        token files          .toroid/logs/  coordinator.log, w0.log, ...
//! ```
//!
//! The children are processes, so that they can be killed as on a real cluster: `kill -9` a worker or the coordinator and see.
//! This process takes no part in training and decides nothing about jobs; it only replaces children that ended.

pub mod job;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use toroid_proto as proto;
use toroid_worker::device::Choice;

use crate::cluster::children::Settings;
use crate::cluster::{Cluster, PATIENCE, Signals};
use crate::daemon::num_cores;
use crate::dashboard::Dashboard;
use crate::exit::Exit;
use crate::find::LOCAL_DIR;
use crate::output;
use crate::progress::Progress;
use crate::submit::exit_code;
use crate::summary;
use crate::watch::Follow;

use job::{JobArgs, LocalJob};

/// Of the demo's steps, so many percent are made when a worker is killed.
const KILL_AT_PERCENT: u64 = 40;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Optimizer updates to make
    #[arg(long, default_value_t = 200, value_name = "N", conflicts_with = "job")]
    steps: u64,
    /// Seed of weights and sample order
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "job")]
    seed: u64,
    /// Workers beyond those that the job needs
    #[arg(long, default_value_t = 1, value_name = "N")]
    spares: usize,
    /// Kill a worker on the way, to show what that costs; the default where neither --data nor --job is given
    #[arg(long)]
    kill_one: bool,
    /// Kill no worker
    #[arg(long, conflicts_with = "kill_one")]
    no_kill: bool,
    /// Folder for everything that is kept: jobs, curves, checkpoints, logs
    #[arg(long, default_value = LOCAL_DIR, value_name = "FOLDER")]
    dir: PathBuf,
    /// Compute threads of each worker; default: cores divided by the job's places, at least 1
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// What every worker computes on, as in `toroid worker`
    #[arg(long, default_value_t, value_name = "DEVICE")]
    device: Choice,
    /// Port of the coordinator on this machine; 0: any free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    port: u16,
    /// Let coordinator and workers run on when the job has ended, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Show only the summary
    #[arg(short, long)]
    quiet: bool,
}

pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, at least 1".into()),
        Ok(n) => Ok(n),
    }
}

/// Of each worker, where nobody said otherwise: together they fill this machine.
pub fn default_threads(num_places: usize) -> usize {
    (num_cores() / num_places).max(1)
}

impl Args {
    /// The step after which a worker is to be killed. Who trains on a text of their own has not asked for that.
    fn kill_step(&self, job: &LocalJob) -> Option<u64> {
        let is_demo = self.job.data.is_none() && self.job.job.is_none();
        let is_wanted = self.kill_one || (is_demo && !self.no_kill && self.spares > 0 && job.spec.shape.world() > 1);
        is_wanted.then(|| (job.spec.steps * KILL_AT_PERCENT / 100).max(1))
    }
}

/// How a run ended that no error ended.
enum Outcome {
    /// The job, with its curve.
    Ended(Box<proto::Job>),
    Interrupted,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let job = job::make(&args.job, args.steps, args.seed, toroid_worker::data::cargo_registry_sources())?;
    let mut signals = Signals::new()?;
    let threads = args.threads.unwrap_or_else(|| default_threads(job.spec.shape.world()));
    let settings = Settings { port: args.port, device: args.device, ..Settings::new(&args.dir, threads)? };
    let kill_step = args.kill_step(&job);
    let mut run = Run { cluster: Cluster::new(&settings, Progress::new(args.quiet))?, kill_step };
    let outcome = run.train(&job, args.spares, &mut signals).await;
    run.cluster.progress.finish();
    if let Ok(Outcome::Ended(job)) = &outcome {
        output::print(summary::text(job))?;
        if args.keep {
            run.go_on(&mut signals).await?;
        }
    }
    // Who asks twice does not want to wait.
    run.cluster.stop(signals.next()).await;
    Ok(match outcome? {
        Outcome::Ended(job) => exit_code(&job),
        Outcome::Interrupted => Exit::Interrupted.into(),
    })
}

struct Run {
    cluster: Cluster,
    /// A worker is killed once this step is committed.
    kill_step: Option<u64>,
}

impl Run {
    async fn train(&mut self, job: &LocalJob, spares: usize, signals: &mut Signals) -> Result<Outcome> {
        let started = tokio::select! {
            started = self.start(job, spares) => started,
            () = signals.next() => return Ok(Outcome::Interrupted),
        };
        let id = started.context("start a local cluster")?;
        let mut follow = Follow::new(self.cluster.access(), &id, PATIENCE);
        loop {
            tokio::select! {
                update = follow.next() => match update? {
                    None => break,
                    Some(update) => self.update(&update).await,
                },
                ended = self.cluster.children.ended() => drop(self.cluster.replace(ended, None).await?),
                () = signals.next() => {
                    self.cluster.interrupt(&id).await;
                    return Ok(Outcome::Interrupted);
                }
            }
        }
        let job = self.cluster.client().await?.job(&id, true).await?;
        Ok(Outcome::Ended(Box::new(job)))
    }

    /// Starts everything and submits the job; returns its id.
    async fn start(&mut self, job: &LocalJob, spares: usize) -> Result<String> {
        let id = self.cluster.open().await?.submit(job.toml.clone()).await?;
        let num_workers = job.spec.shape.world() + spares;
        for _ in 0..num_workers {
            self.cluster.start_worker(None)?;
        }
        let progress = &self.cluster.progress;
        progress.line(&job.data);
        let (url, logs) = (self.cluster.url(), self.cluster.children.logs().display());
        progress.line(&format!("job {id} on {}", job.spec.shape));
        progress.line(&format!("coordinator at {url}, {num_workers} workers ({spares} spare), logs in {logs}"));
        let dashboard = Dashboard::open(self.cluster.access(), 0).await?;
        progress.line(&format!("dashboard at {}", dashboard.address()));
        // Ends with this process. That a page cannot be served is no reason to stop training.
        tokio::spawn(async move {
            if let Err(error) = dashboard.serve().await {
                output::note(format_args!("{error:#}"));
            }
        });
        progress.line(&format!("see more with `toroid status {id} -w --coordinator {url}`"));
        Ok(id)
    }

    async fn update(&mut self, update: &proto::JobUpdate) {
        if !update.steps.is_empty() {
            self.cluster.advanced();
        }
        self.cluster.progress.update(update);
        let Some(job) = &update.job else { return };
        let is_due = self.kill_step.is_some_and(|step| job.committed_step >= step);
        if is_due && job.state() == proto::JobState::Running {
            self.kill_step = None;
            self.kill_one(job).await;
        }
    }

    /// `kill -9` for the worker in the middle of the torus.
    async fn kill_one(&mut self, job: &proto::Job) {
        let Some(victim) = job.places.get(job.places.len() / 2).filter(|place| place.alive) else { return };
        let (worker, rank, step) = (&victim.worker_id, victim.rank, job.committed_step);
        self.cluster.progress.line(&format!(
            "killing {worker} (rank {rank}) after step {step} with SIGKILL, to show what that costs; --no-kill leaves it out"
        ));
        if let Err(error) = self.cluster.children.signal(worker, Signal::KILL).await {
            self.cluster.progress.line(&format!("nobody was killed: {error:#}"));
        }
    }

    /// After the job's end, for whoever wants to look or to submit another.
    async fn go_on(&mut self, signals: &mut Signals) -> Result<()> {
        let url = self.cluster.url();
        self.cluster.progress.line(&format!("coordinator ({url}) and workers run on until Ctrl-C"));
        loop {
            tokio::select! {
                ended = self.cluster.children.ended() => drop(self.cluster.replace(ended, None).await?),
                () = signals.next() => return Ok(()),
            }
        }
    }
}
