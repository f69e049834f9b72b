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

mod children;
mod job;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use toroid_proto as proto;

use crate::client::Client;
use crate::daemon::num_cores;
use crate::find::LOCAL_DIR;
use crate::json::is_ended;
use crate::output;
use crate::progress::Progress;
use crate::submit::exit_code;
use crate::summary;
use crate::watch::Follow;

use children::{Children, Ended, Role, last_words};

/// A restarted coordinator answers long before.
const PATIENCE: Duration = Duration::from_secs(60);
/// After an interrupt, the coordinator has this long to take the job back.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);
/// A coordinator that does not answer has ended by then, or is at fault in another way.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Between the end of the coordinator and its next start: its port may still be busy.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// Children may end so often without a step being made in between, beyond the number of workers.
const MAX_DEATHS: usize = 6;
/// As shells have it for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text file or folder of text files to train on; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH", conflicts_with = "job")]
    data: Option<PathBuf>,
    /// Size of the model: tiny, small, medium, 1b, 67b
    #[arg(long, default_value = "tiny", conflicts_with = "job")]
    preset: String,
    /// Ways of tensor parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive, conflicts_with = "job")]
    tp: usize,
    /// Ways of pipeline parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive, conflicts_with = "job")]
    pp: usize,
    /// Ways of data parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive, conflicts_with = "job")]
    dp: usize,
    /// Optimizer updates to make
    #[arg(long, default_value_t = 200, value_name = "N", conflicts_with = "job")]
    steps: u64,
    /// Seed of weights and sample order
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "job")]
    seed: u64,
    /// Workers beyond those that the job needs
    #[arg(long, default_value_t = 1, value_name = "N")]
    spares: usize,
    /// A job file instead of the flags above
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Folder for everything that is kept: jobs, curves, checkpoints, logs
    #[arg(long, default_value = LOCAL_DIR, value_name = "FOLDER")]
    dir: PathBuf,
    /// Compute threads of each worker; default: cores divided by the job's places, at least 1
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
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

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, at least 1".into()),
        Ok(n) => Ok(n),
    }
}

/// How a run ended that no error ended.
enum Outcome {
    /// The job, with its curve.
    Ended(Box<proto::Job>),
    Interrupted,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let job = job::make(&args, toroid_worker::data::cargo_registry_sources())?;
    let mut signals = Signals::new()?;
    let threads = args.threads.unwrap_or_else(|| (num_cores() / job.spec.shape.world()).max(1));
    let children = Children::new(&args.dir, args.port, threads)?;
    let mut cluster = Cluster { children, progress: Progress::new(args.quiet), deaths: 0, max_deaths: MAX_DEATHS };
    let outcome = cluster.train(&job, args.spares, &mut signals).await;
    cluster.progress.finish();
    if let Ok(Outcome::Ended(job)) = &outcome {
        output::print(summary::text(job))?;
        if args.keep {
            cluster.run_on(&mut signals).await?;
        }
    }
    tokio::select! {
        () = cluster.children.stop() => {}
        // Who asks twice does not want to wait: the children are killed as this process ends.
        () = signals.next() => {}
    }
    Ok(match outcome? {
        Outcome::Ended(job) => exit_code(&job),
        Outcome::Interrupted => ExitCode::from(INTERRUPTED),
    })
}

struct Cluster {
    children: Children,
    progress: Progress,
    /// Children that ended since the last step.
    deaths: usize,
    max_deaths: usize,
}

impl Cluster {
    async fn train(&mut self, job: &job::LocalJob, spares: usize, signals: &mut Signals) -> Result<Outcome> {
        let started = tokio::select! {
            started = self.start(job, spares) => started,
            () = signals.next() => return Ok(Outcome::Interrupted),
        };
        let id = started.context("start a local cluster")?;
        let mut follow = Follow::new(&self.children.url(), &id, PATIENCE);
        loop {
            tokio::select! {
                update = follow.next() => match update? {
                    None => break,
                    Some(update) => {
                        if !update.steps.is_empty() {
                            self.deaths = 0;
                        }
                        self.progress.update(&update);
                    }
                },
                ended = self.children.ended() => self.replace(ended).await?,
                () = signals.next() => {
                    self.interrupt(&id).await;
                    return Ok(Outcome::Interrupted);
                }
            }
        }
        let job = Client::connect(&self.children.url()).await?.job(&id, true).await?;
        Ok(Outcome::Ended(Box::new(job)))
    }

    /// Coordinator first, so that a folder in use is noticed before anything else happens. Returns the job's id.
    async fn start(&mut self, job: &job::LocalJob, spares: usize) -> Result<String> {
        self.children.start_coordinator().await?;
        let mut client = match self.take_over().await {
            Ok(client) => client,
            Err(error) => return Err(self.coordinators_words().await.unwrap_or(error)),
        };
        let id = client.submit(job.toml.clone()).await?;
        let num_workers = job.spec.shape.world() + spares;
        self.max_deaths += num_workers;
        for _ in 0..num_workers {
            self.children.start_worker()?;
        }
        self.progress.line(&job.data);
        let (url, logs) = (self.children.url(), self.children.logs().display());
        self.progress.line(&format!("job {id} on {}", job.spec.shape));
        self.progress.line(&format!("coordinator at {url}, {num_workers} workers ({spares} spare), logs in {logs}"));
        self.progress.line(&format!("see more with `toroid status {id} -w --coordinator {url}`"));
        Ok(id)
    }

    /// Cancels what an earlier run in this folder left unfinished: it would take the workers.
    async fn take_over(&self) -> Result<Client> {
        let mut client = Client::connect(&self.children.url()).await?;
        for old in client.jobs().await?.iter().filter(|job| !is_ended(job.state())) {
            client.cancel(&old.id).await?;
            self.progress.line(&format!("cancelled {}, which an earlier run left unfinished", old.id));
        }
        Ok(client)
    }

    /// Why the coordinator ended, if it did: it listens before it opens its folder.
    async fn coordinators_words(&mut self) -> Option<anyhow::Error> {
        let ended = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.children.ended()).await.ok()?;
        last_words(&ended.log, 0).map(anyhow::Error::msg)
    }

    /// A child ended that should not have: another one takes over, unless they keep ending.
    async fn replace(&mut self, ended: Ended) -> Result<()> {
        self.deaths += 1;
        let Ended { role, name, status, log } = ended;
        let words = last_words(&log, 0).map_or_else(String::new, |words| format!("; its last words: {words}"));
        if self.deaths > self.max_deaths {
            bail!("{} processes ended without a step being made, the last was {name} ({status}){words}", self.deaths);
        }
        match role {
            Role::Coordinator => {
                tokio::time::sleep(RESTART_PAUSE).await;
                self.children.restart_coordinator()?;
                self.progress
                    .line(&format!("the coordinator ended ({status}) and was started again on the same folder"));
            }
            Role::Worker => {
                let spare = self.children.start_worker()?;
                let log = log.display();
                self.progress
                    .line(&format!("worker {name} ended ({status}), see {log}; {spare} was started as a spare"));
            }
        }
        Ok(())
    }

    /// After the job's end, for whoever wants to look or to submit another.
    async fn run_on(&mut self, signals: &mut Signals) -> Result<()> {
        self.progress.line(&format!("coordinator ({}) and workers run on until Ctrl-C", self.children.url()));
        loop {
            tokio::select! {
                ended = self.children.ended() => self.replace(ended).await?,
                () = signals.next() => return Ok(()),
            }
        }
    }

    async fn interrupt(&self, id: &str) {
        self.progress.line(&format!("interrupted: cancelling {id}"));
        let cancel = async { Client::connect(&self.children.url()).await?.cancel(id).await };
        match tokio::time::timeout(CANCEL_TIMEOUT, cancel).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.progress.line(&format!("the job could not be cancelled: {error:#}")),
            Err(_) => {
                self.progress.line("the coordinator did not answer in time; the next `toroid local` cancels the job")
            }
        }
    }
}

/// What asks this process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
