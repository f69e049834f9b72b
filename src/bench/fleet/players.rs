//! A process of players: hears orders, runs the workers, tells how they stand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use toroid_proto::{Register, build};
use toroid_security::{Credentials, Files};
use toroid_session::client::{Client, Settings};
use toroid_torus::ids::{Epoch, Step};

use super::connections::Connections;
use super::player::{Player, World, play};
use super::words::{Order, now_us};
use super::{HOSTS_OF_A_RACK, WORKERS_OF_A_HOST};
use crate::local::positive;
use crate::output;

/// Between two words on how they stand: what changes at a time is said once.
const INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the coordinator
    #[arg(long)]
    coordinator: String,
    /// Folder of a worker's credentials
    #[arg(long)]
    credentials: PathBuf,
    /// Number of the first worker, of all processes
    #[arg(long)]
    first: usize,
    /// Number of workers in this process
    #[arg(long, value_parser = positive)]
    workers: usize,
    /// Streams of workers that share one connection
    #[arg(long, value_parser = positive)]
    streams_per_connection: usize,
    /// Workers behind one agent; 0: none has one
    #[arg(long)]
    workers_per_agent: usize,
    /// That of the coordinator
    #[arg(long)]
    failure_timeout_ms: u64,
}

impl Args {
    fn failure_timeout(&self) -> Duration {
        Duration::from_millis(self.failure_timeout_ms)
    }
}

/// A worker that lives, or is to be replaced.
struct Seat {
    number: usize,
    /// How often it was replaced.
    generation: u32,
    rank: Arc<AtomicI64>,
    /// `None`: it was killed.
    kill: Option<oneshot::Sender<()>>,
}

impl Seat {
    fn host(&self) -> usize {
        self.number / WORKERS_OF_A_HOST
    }
}

struct Players {
    args: Args,
    world: Arc<World>,
    seats: Vec<Seat>,
    playing: JoinSet<()>,
}

/// Ends with its standard input.
pub async fn run(args: Args) -> Result<ExitCode> {
    crate::daemon::raise_open_files();
    let files = Files::of_folder(&args.credentials);
    let credentials = Credentials::tls(files, None).context("read the credentials of the players")?;
    let (url, per) = (args.coordinator.clone(), args.streams_per_connection);
    let connections = Arc::new(match args.workers_per_agent {
        0 => Connections::new(url, credentials, (per, args.workers), args.failure_timeout()),
        per => Connections::by_agents(url, credentials, per, args.failure_timeout()),
    });
    let seat = |at| Seat { number: args.first + at, generation: 0, rank: Arc::new(AtomicI64::new(-1)), kill: None };
    let seats = (0..args.workers).map(seat).collect();
    let mut players = Players { args, world: Arc::new(World::new(connections)), seats, playing: JoinSet::new() };
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    players.tell()?;
    loop {
        tokio::select! {
            line = orders.next_line() => match line.context("read an order")? {
                Some(line) => players.obey(serde_json::from_str(&line).context("understand an order")?).await?,
                None => return Ok(ExitCode::SUCCESS),
            },
            () = players.world.changed() => {
                tokio::time::sleep(INTERVAL).await;
                players.tell()?;
            }
            Some(_) = players.playing.join_next() => {}
        }
    }
}

impl Players {
    fn tell(&self) -> Result<()> {
        output::line(serde_json::to_string(&self.world.take()).context("write how the players stand")?)
    }

    async fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Join => {
                self.world.connections.start_agents(self.seats.len(), self.args.first);
                (0..self.seats.len()).for_each(|at| self.start(at));
            }
            Order::Step { epoch, step } => drop(self.world.steps.send_replace((Epoch::new(epoch), Step::new(step)))),
            Order::Echo { per_s } => drop(self.world.echo_per_s.send_replace(per_s)),
            Order::Kill { ranks, hosts } => {
                self.world.note(|status| status.killed = 0);
                let is_named = |seat: &Seat| {
                    let rank = u32::try_from(seat.rank.load(Ordering::Relaxed));
                    rank.is_ok_and(|rank| ranks.contains(&rank)) || hosts.contains(&seat.host())
                };
                for seat in self.seats.iter_mut().filter(|seat| is_named(seat)) {
                    // Whoever has ended is dead already.
                    let _ = seat.kill.take().map(|kill| kill.send(()));
                }
            }
            Order::Replace => {
                let is_dead = |seat: &Seat| seat.kill.as_ref().is_none_or(oneshot::Sender::is_closed);
                let dead: Vec<usize> = (0..self.seats.len()).filter(|at| is_dead(&self.seats[*at])).collect();
                for at in dead {
                    self.seats[at].generation += 1;
                    self.start(at);
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, at: usize) {
        let (seat, args) = (&mut self.seats[at], &self.args);
        let (kill, killed) = oneshot::channel();
        seat.kill = Some(kill);
        seat.rank = Arc::new(AtomicI64::new(-1));
        let host = seat.host();
        let identity = Register {
            // Behind an agent it begins with the name in the certificate, which all have in common here.
            worker_id: format!("worker-{}-{}", seat.number, seat.generation),
            host: format!("h{host}"),
            rack: format!("r{}", host / HOSTS_OF_A_RACK),
            // Nobody dials it.
            data_address: format!("10.{}.{}.{}:7000", host >> 16 & 255, host >> 8 & 255, host & 255),
            device: format!("cuda:{}", seat.number % WORKERS_OF_A_HOST),
            fingerprint: "played".into(),
            pid: std::process::id(),
            incarnation: now_us() << 20 | seat.number as u64 & 0xf_ffff,
            secret: blake3::hash(&now_us().to_le_bytes()).as_bytes().to_vec(),
            ..build().register()
        };
        let settings = Settings {
            coordinators: vec![args.coordinator.clone()],
            heartbeat: Duration::from_secs(1),
            failure_timeout: args.failure_timeout(),
            leave_grace: Duration::from_secs(25),
            own_leave_grace: None,
        };
        let player = Player::new(Arc::clone(&self.world), at, identity, Arc::clone(&seat.rank));
        self.world.note(|status| status.alive += 1);
        self.playing.spawn(play(Client::new(settings), player, killed));
    }
}
