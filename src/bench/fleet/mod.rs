//! `toroid bench fleet`: one coordinator with thousands of workers, on one machine.
//!
//! ```text
//!   this process ── starts ──> the coordinator, as it is used: certificates, its own store
//!       |  orders, a line each                      ^  streams of the real protocol
//!       '────────> processes of players ────────────'  client and session are the real ones, the trainers are played (`player`)
//! ```
//!
//! Steps are committed because this process says so to all players at a time, which stands for their all-reduce. Coordinator and players share
//! the machine's cores: the coordinator's processor time is its own process's, and times that it is waited for have the players' in them.

mod connections;
mod dashboards;
mod player;
pub mod players;
mod report;
mod stages;
mod usage;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chaos::CHAOS_DIR;
use crate::client::Client;
use crate::cluster::Signals;
use crate::cluster::children::{COORDINATOR, Children, Settings, last_words};
use crate::exit::Exit;
use crate::local::positive;
use crate::output::{self, FormatArgs};
use crate::scratch::BENCH;
use report::Report;
use usage::Usage;
use words::{Order, Status};

const WORKERS_OF_A_HOST: usize = 8;
const HOSTS_OF_A_RACK: usize = 8;
/// Less than a coordinator's `--max-connections-per-address`, which dashboards and this process count against as well.
const MAX_CONNECTIONS: usize = 4000;
/// Nothing that is waited for takes so long.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Workers, spares included. Their trainers are played: nothing is trained, and the loss is invented. Several numbers: a fleet of each, one after
    /// the other, and a column of the table for each
    #[arg(long = "workers", default_value = "2048", value_name = "N[,N...]", value_parser = positive, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Those of the fleet that is measured.
    #[arg(skip)]
    workers: usize,
    /// Of them, those without a place; default: a sixteenth, and what the shape leaves over
    #[arg(long, value_name = "N")]
    spares: Option<usize>,
    /// How often each says that it is there
    #[arg(long, default_value_t = 1, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..=100))]
    heartbeat_hz: u32,
    /// Steps a second that the job is said to make
    #[arg(long, default_value_t = 1.0, value_name = "HZ")]
    step_hz: f64,
    /// Processes that hold the workers' streams
    #[arg(long, default_value_t = 1, value_name = "P", value_parser = positive)]
    processes: usize,
    /// Workers that share a connection; real ones have one each, which takes as many open files at either end
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    streams_per_connection: u32,
    /// Workers behind an agent, as those of a host are by `toroid agent`; 0: none has one
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1024), conflicts_with = "streams_per_connection")]
    workers_per_agent: u32,
    /// A silent worker is lost after this long
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    failure_timeout_ms: u64,
    /// How long the fleet is measured while nothing fails
    #[arg(long, default_value_t = 20.0, value_name = "S")]
    seconds: f64,
    /// Single workers that die, one after the other
    #[arg(long, default_value_t = 20, value_name = "K")]
    kills: usize,
    /// Whole hosts that die, of 8 workers
    #[arg(long, default_value_t = 5, value_name = "K")]
    kill_hosts: usize,
    /// Whole racks that die, of 8 hosts, where there are spares for one
    #[arg(long, default_value_t = 2, value_name = "K")]
    kill_racks: usize,
    /// Dashboards that are open for as long, and then one more that reads nothing
    #[arg(long, default_value_t = 0, value_name = "D")]
    dashboards: usize,
    /// Kill the coordinator under all of them, and start it again
    #[arg(long)]
    restart: bool,
    /// Members of an etcd for the coordinator's records; default: a store of its own
    #[arg(long, value_name = "URL[,URL...]", value_delimiter = ',')]
    etcd: Vec<String>,
    /// Keep the fleet until Ctrl-C once it stands, and print where its dashboard is
    #[arg(long)]
    hold: bool,
    /// Folder for everything that is kept while it runs
    #[arg(long, default_value = CHAOS_DIR, value_name = "FOLDER")]
    dir: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

impl Args {
    /// Numbers of the workers of a process, `first..end`.
    fn of_process(&self, number: usize) -> (usize, usize) {
        let at = |number: usize| number * self.workers / self.processes;
        (at(number), at(number + 1))
    }

    /// Each process has its own.
    fn num_agents(&self) -> usize {
        let of = |number| match (self.of_process(number), self.workers_per_agent as usize) {
            (_, 0) => 0,
            ((first, end), per) => (end - first).div_ceil(per),
        };
        (0..self.processes).map(of).sum()
    }
}

/// Ways of tensor, pipeline and data parallelism for as many places as go into them.
fn shape_of(places: usize) -> Result<[usize; 3]> {
    let ways = if places >= 256 { 4 } else { 2 };
    let dp = places / (ways * ways);
    ensure!(dp > 0, "{places} places are too few: expected at least {}", ways * ways);
    Ok([ways, ways, dp])
}

/// A small model, which nobody makes. Shapes have to fit it.
fn job_of([tp, pp, dp]: [usize; 3]) -> String {
    format!(
        "name = \"fleet\"\nsteps = 1000000000\nshape = {{ tp = {tp}, pp = {pp}, dp = {dp} }}\n\
         [model]\nlayers = 4\nd_model = 32\nheads = 4\nkv_heads = 4\nhead_dim = 8\nexperts = 4\nff = 16\nseq = 16\n\
         [data]\npath = \"/nobody/reads/it\"\nvalidation = 0.0\n[checkpoint]\ninterval_s = 0.0\n\
         [fault_tolerance]\nmin_dp = {dp}\n"
    )
}

/// A process of players.
struct Process {
    orders: ChildStdin,
    status: Status,
}

/// The coordinator, its fleet, and what is known of it.
struct Fleet {
    children: Children,
    processes: Vec<Process>,
    told: mpsc::Receiver<(usize, Status)>,
    signals: Signals,
    client: Client,
    job: String,
    shape: [usize; 3],
    /// Places of the job.
    world: usize,
    /// Between two steps.
    step: Duration,
    settles: Duration,
    /// No step is made: somebody is being killed.
    is_paused: bool,
    next_step_at: Instant,
    committed: (u64, u64),
    acknowledged_us: Vec<u64>,
    echoed_us: Vec<u64>,
    dir: PathBuf,
}

/// The user wants no more of it.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

pub async fn run(args: Args) -> Result<ExitCode> {
    let mut reports = Vec::new();
    for workers in args.sizes.iter().copied() {
        match measure(&Args { workers, ..args.clone() }).await {
            Ok(report) => reports.push(report),
            Err(error) if error.is::<Interrupted>() => return Ok(Exit::Interrupted.into()),
            Err(error) => return Err(error.context(format!("measure a fleet of {workers} workers"))),
        }
    }
    match reports.as_slice() {
        [report] => args.format.answer(report, report.text())?,
        several => args.format.answer(&several, report::growth(several))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args) -> Result<Report> {
    let dir = args.dir.join("bench-fleet");
    BENCH.make_anew(&dir)?;
    let mut fleet = Fleet::start(args, &dir).await?;
    let measured = fleet.measure(args).await;
    fleet.stop().await;
    BENCH.remove(&dir)?;
    measured
}

impl Fleet {
    async fn start(args: &Args, dir: &std::path::Path) -> Result<Fleet> {
        let spares = args.spares.unwrap_or(args.workers.div_ceil(16));
        let places = args.workers.checked_sub(spares).context("--spares are more than --workers")?;
        let shape = shape_of(places)?;
        let world = shape.iter().product();
        let connections = args.workers.div_ceil(args.streams_per_connection.max(args.workers_per_agent) as usize);
        ensure!(
            connections <= MAX_CONNECTIONS,
            "{connections} connections are more than the {MAX_CONNECTIONS} that a coordinator takes from one address; let workers share some with --streams-per-connection or --workers-per-agent"
        );
        ensure!(args.step_hz > 0.0 && args.step_hz <= 1000.0, "--step-hz is more than 0 and at most 1000");
        let heartbeat = Some(Duration::from_secs(1) / args.heartbeat_hz);
        let failure_timeout = Some(Duration::from_millis(args.failure_timeout_ms));
        let settings = Settings { heartbeat, failure_timeout, etcd: args.etcd.clone(), ..Settings::new(dir, 1)? };
        let signals = Signals::new()?;
        let mut children = Children::new(&settings)?;
        children.start_coordinator().await?;
        let mut client = Client::find(&children.access()).await?;
        let job = client.submit(job_of(shape)).await.context("submit the job of the fleet")?;
        let (tell, told) = mpsc::channel(256);
        let mut processes = Vec::new();
        for number in 0..args.processes {
            let (first, end) = args.of_process(number);
            let orders = players(&mut children, args, (first, end - first), number, tell.clone())?;
            processes.push(Process { orders, status: Status::default() });
        }
        let mut fleet = Fleet {
            children,
            processes,
            told,
            signals,
            client,
            job,
            shape,
            world,
            step: Duration::from_secs_f64(1.0 / args.step_hz),
            settles: stages::settles(args.seconds),
            is_paused: true,
            next_step_at: Instant::now(),
            committed: (0, 0),
            acknowledged_us: Vec::new(),
            echoed_us: Vec::new(),
            dir: dir.into(),
        };
        // Each says how it stands once it is ready.
        for _ in 0..args.processes {
            fleet.hear().await?;
        }
        Ok(fleet)
    }

    async fn measure(&mut self, args: &Args) -> Result<Report> {
        let mut report = Report {
            workers: args.workers,
            spares: args.workers - self.world,
            shape: self.shape,
            heartbeat_hz: args.heartbeat_hz,
            streams_per_connection: args.streams_per_connection as usize,
            workers_per_agent: args.workers_per_agent as usize,
            num_agents: args.num_agents(),
            player_processes: args.processes,
            ..Report::default()
        };
        output::note(format_args!("{} workers join", args.workers));
        report.join = self.join(args.workers).await?;
        if args.hold {
            self.hold(args.workers).await?;
        }
        output::note(format_args!("nothing fails for {} s", args.seconds));
        report.steady = self.steady(args.seconds).await?;
        if args.dashboards > 0 {
            output::note(format_args!("{} dashboards are open", args.dashboards));
            report.dashboards = Some(self.watched(args.dashboards, args.seconds, report.steady.cores).await?);
        }
        report.deaths = self.deaths(args).await?;
        if args.restart {
            output::note("the coordinator dies");
            report.restart = Some(self.restart().await?);
        }
        report.store_bytes =
            std::fs::metadata(self.dir.join(COORDINATOR).join("coordinator.redb")).map_or(0, |m| m.len());
        Ok(report)
    }

    async fn stop(self) {
        // Players end with their orders.
        drop(self.processes);
        let mut children = self.children;
        children.stop().await;
    }

    fn coordinator(&self) -> Result<Usage> {
        Usage::of(self.children.pid(COORDINATOR).context("find the coordinator, which has ended")?)
    }

    async fn order(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order).context("write an order")? + "\n";
        for process in &mut self.processes {
            process.orders.write_all(line.as_bytes()).await.context("give an order to the players")?;
        }
        Ok(())
    }

    /// Waits for the next word of the players, and has a step made where it is time.
    async fn hear(&mut self) -> Result<()> {
        let makes_steps = !self.is_paused && self.is_started();
        tokio::select! {
            told = self.told.recv() => {
                let (from, mut status) = told.context("hear from the players, which have ended")?;
                ensure!(status.ended.is_empty(), "workers ended by themselves: {}", status.ended.join("; "));
                self.acknowledged_us.append(&mut status.acknowledged_us);
                self.echoed_us.append(&mut status.echoed_us);
                self.processes[from].status = status;
            }
            ended = self.children.ended() => {
                let words = last_words(&ended.log, 0).unwrap_or_default();
                bail!("{} ended with {}: {words}", ended.name, ended.status);
            }
            () = self.signals.next() => return Err(anyhow::Error::new(Interrupted)),
            () = tokio::time::sleep_until(self.next_step_at), if makes_steps => self.make_step().await?,
        }
        Ok(())
    }

    async fn make_step(&mut self) -> Result<()> {
        let epoch = self.epoch();
        let step = if self.committed.0 == epoch { self.committed.1 } else { self.max(|s| s.base_step) } + 1;
        self.committed = (epoch, step);
        self.next_step_at = Instant::now() + self.step;
        self.order(&Order::Step { epoch, step }).await
    }

    /// Hears until that is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Fleet) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            match tokio::time::timeout_at(deadline, self.hear()).await {
                Ok(heard) => heard?,
                Err(_) => {
                    let job = self.client.job(&self.job, false).await.map_or_else(|e| e.to_string(), |j| j.reason);
                    bail!(
                        "waited {} s for {what}; {} of {} workers have their Welcome, epoch {} was started by {} of {} places: {job}",
                        PATIENCE.as_secs(),
                        self.sum(|s| s.welcomed),
                        self.sum(|s| s.alive),
                        self.epoch(),
                        self.of_epoch(|s| s.started),
                        self.world
                    );
                }
            }
        }
        Ok(())
    }

    /// Hears for so long.
    async fn during(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Ok(heard) = tokio::time::timeout_at(end, self.hear()).await {
            heard?;
        }
        Ok(())
    }

    /// Serves the fleet's dashboard until the user has seen enough. Whoever is killed there is replaced.
    async fn hold(&mut self, workers: usize) -> Result<()> {
        let dashboard = crate::dashboard::Dashboard::open(self.children.access(), 0).await?;
        output::line(format_args!("{} {}", dashboard.address(), self.job))?;
        self.is_paused = false;
        let serving = tokio::spawn(dashboard.serve());
        let held = loop {
            if let Err(error) = self.hear().await {
                break error;
            }
            if self.sum(|status| status.alive) < workers {
                self.order(&Order::Replace).await?;
                self.until("those that were replaced", |fleet| fleet.sum(|s| s.alive) == workers).await?;
            }
        };
        serving.abort();
        Err(held)
    }

    // ---------------------------------------------------------------------------------------------- how the players stand

    fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.processes.iter().map(|process| &process.status)
    }

    fn sum(&self, of: impl Fn(&Status) -> usize) -> usize {
        self.statuses().map(of).sum()
    }

    fn max(&self, of: impl Fn(&Status) -> u64) -> u64 {
        self.statuses().map(of).max().unwrap_or(0)
    }

    fn total(&self, of: impl Fn(&Status) -> u64) -> u64 {
        self.statuses().map(of).sum()
    }

    /// The newest that anybody was told of.
    fn epoch(&self) -> u64 {
        self.max(|status| status.epoch)
    }

    fn of_epoch(&self, of: impl Fn(&Status) -> usize) -> usize {
        let epoch = self.epoch();
        self.statuses().filter(|status| status.epoch == epoch).map(of).sum()
    }

    /// All places were told to start in the newest epoch.
    fn is_started(&self) -> bool {
        self.of_epoch(|status| status.started) == self.world
    }
}

/// Starts a process of players, whose words are told with its number.
fn players(
    children: &mut Children,
    args: &Args,
    (first, workers): (usize, usize),
    number: usize,
    tell: mpsc::Sender<(usize, Status)>,
) -> Result<ChildStdin> {
    let credentials = children.certificates().join(crate::access::LocalRole::Worker.name());
    let pairs = [
        ("--coordinator", OsString::from(children.url())),
        ("--credentials", credentials.into()),
        ("--first", first.to_string().into()),
        ("--workers", workers.to_string().into()),
        ("--streams-per-connection", args.streams_per_connection.to_string().into()),
        ("--workers-per-agent", args.workers_per_agent.to_string().into()),
        ("--failure-timeout-ms", args.failure_timeout_ms.to_string().into()),
    ];
    let mut line: Vec<OsString> = ["bench", "fleet-players"].map(OsString::from).into();
    line.extend(pairs.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
    let (orders, words) = children.start_aside(&format!("players-{number}"), &line)?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(words).lines();
        // Its end is told by whoever waits for the process.
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(status) = serde_json::from_str(&line) else {
                tracing::warn!("a process of players says what is not understood: {line}");
                continue;
            };
            if tell.send((number, status)).await.is_err() {
                return;
            }
        }
    });
    Ok(orders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_torus::job;

    #[test]
    fn each_size_has_a_job_that_is_valid() -> Result<()> {
        for places in [4, 57, 240, 1920, 7680, 30_720, 65_536] {
            let shape = shape_of(places)?;
            let spec = job::parse(&job_of(shape))?;
            let world: usize = shape.iter().product();
            assert_eq!(spec.shape.world(), world);
            assert!(world <= places && world + 16 > places, "{places}: {world}");
        }
        assert!(shape_of(3).is_err_and(|e| e.to_string().contains("too few")));
        Ok(())
    }
}
