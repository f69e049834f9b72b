//! What was measured, for programs and as a table.

use std::fmt::Write as _;

use serde::Serialize;

use crate::chaos::report::Spread;
use crate::format::{bytes, seconds, table};

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub workers: usize,
    pub spares: usize,
    /// tp, pp, dp
    pub shape: [usize; 3],
    pub heartbeat_hz: u32,
    pub streams_per_connection: usize,
    /// 0: none has one.
    pub workers_per_agent: usize,
    pub num_agents: usize,
    pub player_processes: usize,
    /// Nothing is trained: this says so to whoever reads the figures alone.
    pub trains: bool,
    pub join: Join,
    pub steady: Steady,
    pub deaths: Vec<Deaths>,
    pub dashboards: Option<Watched>,
    pub restart: Option<Restart>,
    pub store_bytes: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Join {
    /// From the order to dial to the Welcome of the last, and until the last place was told to start.
    pub welcomed_s: f64,
    pub placed_s: f64,
    /// Of the coordinator, in that time.
    pub cpu_s: f64,
    pub received_bytes: u64,
    pub written_bytes: u64,
    pub rss_bytes_before: u64,
    pub rss_bytes: u64,
    pub rss_bytes_per_worker: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Steady {
    pub seconds: f64,
    /// Of the coordinator: share of one core.
    pub cores: f64,
    pub messages_per_s: f64,
    pub sent_bytes_per_s: f64,
    pub received_bytes_per_s: f64,
    pub written_bytes_per_s: f64,
    /// There and back.
    pub heartbeat_s: Option<Spread>,
    /// From a step's record to its acknowledgement, durable.
    pub record_s: Option<Spread>,
    pub rss_bytes: u64,
    pub streams_lost: u64,
}

/// Deaths of one kind.
#[derive(Debug, Serialize)]
pub struct Deaths {
    /// worker, host, rack
    pub what: &'static str,
    pub workers: usize,
    /// From the end of the first stream until the last place was told of the epoch that follows, and until it was told to start.
    pub told_s: Option<Spread>,
    pub decided_s: Option<Spread>,
    /// Of the coordinator, and bytes to the workers, each time.
    pub cpu_s: f64,
    pub received_bytes: u64,
    pub written_bytes: u64,
    /// Epochs that each of them took.
    pub epochs: f64,
    /// How often the state had to come from a checkpoint, as both holders of a shard were lost.
    pub restores: usize,
}

#[derive(Debug, Serialize)]
pub struct Watched {
    pub dashboards: usize,
    pub seconds: f64,
    pub cores: f64,
    /// Beyond the same without dashboards.
    pub cores_more: f64,
    pub read_bytes_per_s: f64,
    pub rss_bytes: u64,
    /// The same with one more that reads nothing.
    pub stalled: Stalled,
}

#[derive(Debug, Serialize)]
pub struct Stalled {
    pub seconds: f64,
    pub cores: f64,
    pub rss_bytes: u64,
    /// By the others.
    pub read_bytes_per_s: f64,
    pub still_open: usize,
}

#[derive(Debug, Serialize)]
pub struct Restart {
    /// From SIGKILL until all workers had their Welcome again.
    pub welcomed_s: f64,
    pub cpu_s: f64,
    /// Epochs that it cost: 0 where all kept their places.
    pub epochs: u64,
}

fn percent(cores: f64) -> String {
    format!("{:.1}% of a core", 100.0 * cores)
}

fn spread(of: Option<&Spread>) -> String {
    of.map_or_else(
        || "-".into(),
        |s| format!("median {}, p99 {}, worst {}", seconds(s.median), seconds(s.p99), seconds(s.max)),
    )
}

impl Report {
    pub fn text(&self) -> String {
        let mut rows: Vec<[String; 2]> = Vec::new();
        let mut row = |what: &str, found: String| rows.push([what.into(), found]);
        let [tp, pp, dp] = self.shape;
        let shared = match self.workers_per_agent {
            0 => format!("{} workers a connection", self.streams_per_connection),
            per => format!("{per} workers an agent, {} agents", self.num_agents),
        };
        row("WORKERS", format!("{}, of which {} are spares; tp {tp} x pp {pp} x dp {dp}", self.workers, self.spares));
        row(
            "HEARTBEATS",
            format!("{} Hz, {shared}, {} processes of players", self.heartbeat_hz, self.player_processes),
        );
        let Join { welcomed_s, placed_s, cpu_s, received_bytes, written_bytes, .. } = &self.join;
        row("ALL JOIN", format!("welcome after {}, placed after {}", seconds(*welcomed_s), seconds(*placed_s)));
        row(
            "",
            format!(
                "{} of processor, {} to workers, {} written",
                seconds(*cpu_s),
                bytes(*received_bytes),
                bytes(*written_bytes)
            ),
        );
        row("MEMORY", format!("{}, {} a worker", bytes(self.join.rss_bytes), bytes(self.join.rss_bytes_per_worker)));
        let s = &self.steady;
        row("COORDINATOR", format!("{}, {:.0} messages/s", percent(s.cores), s.messages_per_s));
        row(
            "",
            format!(
                "{}/s to it, {}/s from it, {}/s written",
                bytes(s.sent_bytes_per_s as u64),
                bytes(s.received_bytes_per_s as u64),
                bytes(s.written_bytes_per_s as u64)
            ),
        );
        row("HEARTBEAT", format!("there and back: {}", spread(s.heartbeat_s.as_ref())));
        row("STEP RECORD", format!("until it is durable: {}", spread(s.record_s.as_ref())));
        for d in &self.deaths {
            let times = if d.workers == 1 { String::new() } else { format!(" of {} workers", d.workers) };
            row(
                &format!("A {} DIES", d.what.to_uppercase()),
                format!("decided{times}: {}", spread(d.decided_s.as_ref())),
            );
            row("", format!("all told: {}", spread(d.told_s.as_ref())));
            let restores =
                if d.restores > 0 { format!(", {} times from a checkpoint", d.restores) } else { String::new() };
            row(
                "",
                format!(
                    "{} of processor, {} to workers, {} written, {:.1} epochs{restores}",
                    seconds(d.cpu_s),
                    bytes(d.received_bytes),
                    bytes(d.written_bytes),
                    d.epochs
                ),
            );
        }
        if let Some(w) = &self.dashboards {
            row(
                "DASHBOARDS",
                format!(
                    "{} open: {} more, {}/s read, memory {}",
                    w.dashboards,
                    percent(w.cores_more),
                    bytes(w.read_bytes_per_s as u64),
                    bytes(w.rss_bytes)
                ),
            );
            row(
                "",
                format!(
                    "one more that reads nothing: {}, memory {}",
                    percent(w.stalled.cores),
                    bytes(w.stalled.rss_bytes)
                ),
            );
        }
        if let Some(r) = &self.restart {
            row(
                "COORDINATOR DIES",
                format!(
                    "all have it again after {}, {} of processor, {} epochs",
                    seconds(r.welcomed_s),
                    seconds(r.cpu_s),
                    r.epochs
                ),
            );
        }
        row("STORE", bytes(self.store_bytes).to_string());
        let mut text = table(&rows.into_iter().map(Vec::from).collect::<Vec<_>>());
        // Writing to a string does not fail.
        let _ = writeln!(text, "Nothing is trained: the workers' trainers are played, and the loss is invented.");
        text
    }
}

/// Fleets side by side: how what one costs grows with its workers.
pub fn growth(of: &[Report]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |what: &str, found: &dyn Fn(&Report) -> Option<String>| {
        let found: Vec<Option<String>> = of.iter().map(found).collect();
        if found.iter().any(Option::is_some) {
            let cells = found.into_iter().map(|cell| cell.unwrap_or_else(|| "-".into()));
            rows.push([what.to_string()].into_iter().chain(cells).collect());
        }
    };
    row("WORKERS", &|r| Some(r.workers.to_string()));
    row("AGENTS", &|r| (r.workers_per_agent > 0).then(|| r.num_agents.to_string()));
    row("ALL PLACED", &|r| Some(seconds(r.join.placed_s)));
    row("  processor", &|r| Some(seconds(r.join.cpu_s)));
    row("MEMORY A WORKER", &|r| Some(bytes(r.join.rss_bytes_per_worker).to_string()));
    row("COORDINATOR", &|r| Some(percent(r.steady.cores)));
    row("  processor a message", &|r| Some(seconds(r.steady.cores / r.steady.messages_per_s)));
    row("HEARTBEAT, median", &|r| r.steady.heartbeat_s.as_ref().map(|s| seconds(s.median)));
    for what in ["worker", "host", "rack"] {
        let find = |r: &Report| r.deaths.iter().position(|d| d.what == what);
        let median = |spread: &Option<Spread>| spread.as_ref().map(|s| seconds(s.median));
        row(&format!("A {} DIES, all told", what.to_uppercase()), &|r| median(&r.deaths[find(r)?].told_s));
        row("  decided", &|r| median(&r.deaths[find(r)?].decided_s));
        row("  processor", &|r| Some(seconds(r.deaths[find(r)?].cpu_s)));
        row("  processor a worker", &|r| Some(seconds(r.deaths[find(r)?].cpu_s / r.workers as f64)));
        row("  epochs", &|r| Some(format!("{:.1}", r.deaths[find(r)?].epochs)));
    }
    row("DASHBOARDS, more", &|r| r.dashboards.as_ref().map(|d| percent(d.cores_more)));
    row("COORDINATOR DIES", &|r| r.restart.as_ref().map(|restart| seconds(restart.welcomed_s)));
    row("  processor", &|r| r.restart.as_ref().map(|restart| seconds(restart.cpu_s)));
    row("  epochs", &|r| r.restart.as_ref().map(|restart| restart.epochs.to_string()));
    row("STORE", &|r| Some(bytes(r.store_bytes).to_string()));
    table(&rows)
}
