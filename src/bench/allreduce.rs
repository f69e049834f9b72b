//! `toroid bench allreduce`: the all-reduce of training, as nccl-tests shows it, over processes of this machine.
//!
//! ```text
//!   parent -- starts a process a rank, hears its address, tells all addresses --> ranks: links, then by size
//!             a check of the sum, rounds of all-reduces, rounds of raw copies     --> rank 0 prints a line of JSON a size
//! ```
//!
//! *Algorithm bandwidth* is size / time. *Bus bandwidth* is that times 2(n-1)/n: what each rank sends. *Raw* is the time in which every
//! rank sends as many bytes to its neighbour as the all-reduce makes it send, over the same connections, as they come: no frames, no
//! sums, no order. The share is raw time / time.
//!
//! Deliberately absent: other machines' figures, and other programs': `scripts/bench_allreduce.py` runs gloo beside it.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toroid_worker::comm::{
    Algorithm, Channel, Fence, Group, LinkChoice, Links, Listener, PeerAddr, Plan, all_gather_f64, all_reduce_sum,
    all_reduce_torus, exchange_raw,
};

use super::median;
use crate::format::table;
use crate::local::positive;
use crate::output;
use crate::status::Format;

const WARM_UP: usize = 3;
/// Of the copy in memory.
const COPIES: usize = 7;
/// A round takes about so long, within bounds of its repeats.
const ROUND: Duration = Duration::from_millis(60);
const REPEATS_MAX: usize = 2000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const KIB: usize = 1 << 10;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Processes; several times for several
    #[arg(long, value_name = "N", value_parser = positive, default_values = ["2", "4", "8", "16"])]
    ranks: Vec<usize>,
    /// Sizes in KiB; several times for several
    #[arg(long, value_name = "KIB", value_parser = positive,
          default_values = ["1", "4", "16", "64", "256", "1024", "4096", "16384", "65536"])]
    size: Vec<usize>,
    /// Links between the processes: auto, shm, unix or tcp
    #[arg(long, default_value = "auto", value_name = "KIND")]
    links: LinkChoice,
    /// Sum over a torus of X by Y and not in one line; as many ranks as X times Y
    #[arg(long, value_name = "X,Y", value_parser = parse_torus)]
    torus: Option<Torus>,
    /// Schedules: auto (by size, as in training), ring or direct
    #[arg(long, default_value = "auto", value_name = "KIND")]
    algorithm: Algorithm,
    /// Rounds that a time is the median of
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = positive)]
    rounds: usize,
    /// Command that starts a rank elsewhere, {} stands for its number: "ip netns exec rank{}", "ssh host{}"
    #[arg(long, default_value = "", value_name = "COMMAND")]
    launch: String,
    /// Where a rank listens, {} stands for its number
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    listen: String,
    /// Text or JSON
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
    /// Be this rank of a measurement
    #[arg(long, hide = true, value_name = "R")]
    rank: Option<usize>,
}

/// Members along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Torus {
    dx: usize,
    dy: usize,
}

fn parse_torus(text: &str) -> Result<Torus, String> {
    let sides: Result<Vec<usize>, String> = text.split(',').map(|n| positive(n.trim())).collect();
    match sides?.as_slice() {
        &[dx, dy] => Ok(Torus { dx, dy }),
        found => Err(format!("expected two numbers as in 4,4, found {}", found.len())),
    }
}

/// One size at one number of ranks. Times are medians of rounds, in microseconds; bandwidths in GB/s (1e9 bytes).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    ranks: usize,
    bytes: usize,
    links: String,
    time_us: f64,
    time_min_us: f64,
    time_max_us: f64,
    raw_time_us: f64,
    alg_gb_s: f64,
    bus_gb_s: f64,
    raw_bus_gb_s: f64,
    share_of_raw: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// A copy of 64 MiB within one process.
    memory_copy_gb_s: f64,
    cores: usize,
    results: Vec<Measured>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(rank) = args.rank {
        be_rank(&args, rank).with_context(|| format!("rank {rank}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(Torus { dx, dy }) = args.torus {
        ensure!(args.ranks == [dx * dy], "a torus of {dx} by {dy} has {} ranks: add --ranks {}", dx * dy, dx * dy);
    }
    let mut results = Vec::new();
    for &ranks in &args.ranks {
        results.extend(measure_ranks(&args, ranks).with_context(|| format!("measure {ranks} ranks"))?);
    }
    let report = Report { memory_copy_gb_s: memory_copy(), cores: crate::daemon::num_cores(), results };
    match args.output {
        Format::Text => output::print(text(&report))?,
        Format::Json => output::line(serde_json::to_string_pretty(&report).context("write the figures as JSON")?)?,
    }
    Ok(ExitCode::SUCCESS)
}

// The parent

/// A process that is one rank. Killed when it is dropped.
struct Rank {
    child: Child,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rank {
    fn start(args: &Args, ranks: usize, rank: usize) -> Result<Rank> {
        let program = std::env::current_exe().context("find this program")?;
        let launch = args.launch.replace("{}", &rank.to_string());
        let mut words = launch.split_whitespace();
        let mut command = match words.next() {
            Some(launcher) => std::process::Command::new(launcher),
            None => std::process::Command::new(&program),
        };
        if !launch.trim().is_empty() {
            command.args(words).arg(program);
        }
        command.args(["bench", "allreduce", "--ranks", &ranks.to_string(), "--rank", &rank.to_string()]);
        command.args(["--links", &args.links.to_string(), "--rounds", &args.rounds.to_string()]);
        command.args(["--listen", &args.listen.replace("{}", &rank.to_string())]);
        if let Some(Torus { dx, dy }) = args.torus {
            command.args(["--torus", &format!("{dx},{dy}")]);
        }
        let algorithm = match args.algorithm {
            Algorithm::Auto => "auto",
            Algorithm::Ring => "ring",
            Algorithm::Direct => "direct",
        };
        command.args(["--algorithm", algorithm]);
        for size in &args.size {
            command.args(["--size", &size.to_string()]);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a process for a rank")?;
        let (Some(input), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped")
        };
        Ok(Rank { child, input, lines: BufReader::new(out).lines() })
    }

    fn line(&mut self) -> Result<String> {
        match self.lines.next() {
            Some(line) => line.context("hear from a rank"),
            None => bail!("a rank ended early; what it said is above"),
        }
    }
}

fn measure_ranks(args: &Args, ranks: usize) -> Result<Vec<Measured>> {
    let mut processes: Vec<Rank> = (0..ranks).map(|rank| Rank::start(args, ranks, rank)).collect::<Result<_>>()?;
    let addresses: Vec<String> = processes.iter_mut().map(Rank::line).collect::<Result<_>>()?;
    let told = serde_json::to_string(&addresses).context("write the addresses")?;
    for process in &mut processes {
        writeln!(process.input, "{told}").context("tell a rank the addresses of all")?;
    }
    let mut results = Vec::new();
    for _ in &args.size {
        let line = processes[0].line()?;
        let measured: Measured = serde_json::from_str(&line).with_context(|| format!("understand {line:?}"))?;
        output::note(format_args!(
            "{ranks} ranks, {}: {:.1} us, {:.2} GB/s",
            size(measured.bytes),
            measured.time_us,
            measured.bus_gb_s
        ));
        results.push(measured);
    }
    for process in &mut processes {
        let status = process.child.wait().context("wait for a rank")?;
        ensure!(status.success(), "a rank ended with {status}");
    }
    Ok(results)
}

fn memory_copy() -> f64 {
    let (from, mut to) = (vec![1_u8; 64 << 20], vec![0_u8; 64 << 20]);
    let times = (0..COPIES).map(|_| {
        let start = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        start.elapsed().as_secs_f64()
    });
    from.len() as f64 / median(times) / 1e9
}

fn size(bytes: usize) -> String {
    if bytes >= KIB * KIB { format!("{} MiB", bytes / KIB / KIB) } else { format!("{} KiB", bytes / KIB) }
}

fn text(report: &Report) -> String {
    let header =
        ["RANKS", "SIZE", "LINKS", "TIME US", "MIN", "MAX", "ALG GB/S", "BUS GB/S", "RAW GB/S", "SHARE OF RAW"];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(report.results.iter().map(|m| {
        let mut row = vec![m.ranks.to_string(), size(m.bytes), m.links.clone()];
        row.extend([m.time_us, m.time_min_us, m.time_max_us].map(|us| format!("{us:.1}")));
        row.extend([m.alg_gb_s, m.bus_gb_s, m.raw_bus_gb_s].map(|gb| format!("{gb:.2}")));
        row.push(format!("{:.0}%", m.share_of_raw * 100.0));
        row
    }));
    let mut text = table(&rows);
    // Writing to a string does not fail.
    let _ = writeln!(text, "{} cores, memory copy {:.1} GB/s", report.cores, report.memory_copy_gb_s);
    text
}

// A rank

fn be_rank(args: &Args, rank: usize) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("bind the life to the parent's")?;
    let &[ranks] = &args.ranks[..] else { bail!("a rank belongs to one measurement") };
    let worker_id = |rank| format!("bench-{rank}");
    let listener = Listener::bind(&args.listen, &worker_id(rank), args.links)?;
    output::line(listener.local_addr())?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("hear the addresses of all ranks")?;
    let addresses: Vec<String> = serde_json::from_str(&line).context("understand the addresses of all ranks")?;
    ensure!(addresses.len() == ranks, "{} addresses for {ranks} ranks", addresses.len());
    let peers = addresses.into_iter().enumerate().filter(|(peer, _)| *peer != rank);
    let peers = peers.map(|(peer, address)| (peer, PeerAddr { worker_id: worker_id(peer), address })).collect();
    // Loopback and one user's processes of one measurement: the key keeps nobody out who could not do worse.
    let mut plan = Plan { job_id: "bench".into(), epoch: 1, rank, key: [0; 32], peers };
    let fence = Fence::new()?;
    let mut links = Links::establish(&listener, plan.clone(), &fence, CONNECT_TIMEOUT)?;
    // Raw bytes have connections of their own: who waits for a frame would take them for one.
    let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    plan.epoch += 1;
    plan.peers.retain(|peer, _| [next, before].contains(peer));
    let raw = Links::establish(&listener, plan, &fence, CONNECT_TIMEOUT)?;
    let mut group = Group::line((0..ranks).collect(), rank);
    // A line in training goes by its size; one schedule at all sizes is for comparisons.
    let is_line = args.torus.is_none() && args.algorithm == Algorithm::Auto;
    if let Some(Torus { dx, dy }) = args.torus {
        (group.dx, group.dy) = (dx, dy);
    }
    let (algorithm, rounds) = (args.algorithm, args.rounds);
    let mut bench = Bench { group, is_line, algorithm, rounds, next, before, raw, scratch: Vec::new() };
    for size in &args.size {
        let measured = bench.measure(&mut links, size * KIB)?;
        if rank == 0 {
            output::line(serde_json::to_string(&measured).context("write a figure")?)?;
        }
    }
    Ok(())
}

struct Bench {
    group: Group,
    is_line: bool,
    algorithm: Algorithm,
    rounds: usize,
    next: usize,
    before: usize,
    raw: Links,
    scratch: Vec<f32>,
}

impl Bench {
    fn measure(&mut self, links: &mut Links, bytes: usize) -> Result<Measured> {
        let n = self.group.ranks.len();
        let mut buf = vec![self.group.me as f32 + 1.0; bytes / size_of::<f32>()];
        self.all_reduce(links, &mut buf)?;
        let expected = (n * (n + 1) / 2) as f32;
        ensure!(buf.iter().all(|x| *x == expected), "the sum of 1 to {n} is {expected}, found another");
        buf.fill(0.0);
        let times = self.times(links, |bench, links| bench.all_reduce(links, &mut buf))?;

        let sent = vec![1_u8; 2 * (n - 1) * bytes / n];
        let mut received = vec![0_u8; sent.len()];
        let raw = if n == 1 {
            times.clone()
        } else {
            self.times(links, |bench, _| {
                let Bench { raw, next, before, .. } = bench;
                Ok(exchange_raw(raw, *next, *before, &sent, &mut received)?)
            })?
        };
        let (time, raw) = (median(times.clone()), median(raw));
        let kinds: Vec<String> = links.kinds().keys().map(ToString::to_string).collect();
        let bus = |time: f64| sent.len() as f64 / time / 1e9;
        Ok(Measured {
            ranks: n,
            bytes,
            links: kinds.join("+"),
            time_us: time * 1e6,
            time_min_us: times.iter().copied().fold(f64::MAX, f64::min) * 1e6,
            time_max_us: times.iter().copied().fold(0.0, f64::max) * 1e6,
            raw_time_us: raw * 1e6,
            alg_gb_s: bytes as f64 / time / 1e9,
            bus_gb_s: bus(time),
            raw_bus_gb_s: bus(raw),
            share_of_raw: raw / time,
        })
    }

    fn all_reduce(&mut self, links: &mut Links, buf: &mut [f32]) -> Result<()> {
        let Bench { group, algorithm, scratch, .. } = self;
        if self.is_line {
            all_reduce_sum(links, group, Channel::Dp, buf, scratch)?;
        } else {
            all_reduce_torus(links, group, *algorithm, Channel::Dp, buf, scratch)?;
        }
        Ok(())
    }

    /// The largest value of all ranks; nobody goes on before all have come.
    fn largest(&self, links: &mut Links, value: f64) -> Result<f64> {
        let all = all_gather_f64(links, &self.group.ranks, Channel::Global, &[value])?;
        Ok(all.into_iter().fold(f64::MIN, f64::max))
    }

    /// Seconds of one call, by round.
    fn times(
        &mut self,
        links: &mut Links,
        mut call: impl FnMut(&mut Bench, &mut Links) -> Result<()>,
    ) -> Result<Vec<f64>> {
        for _ in 0..WARM_UP.min(self.rounds) {
            call(self, links)?;
        }
        self.largest(links, 0.0)?;
        let start = Instant::now();
        call(self, links)?;
        let one = self.largest(links, start.elapsed().as_secs_f64())?;
        let repeats = ((ROUND.as_secs_f64() / one) as usize).clamp(1, REPEATS_MAX);
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            self.largest(links, 0.0)?;
            let start = Instant::now();
            for _ in 0..repeats {
                call(self, links)?;
            }
            self.largest(links, 0.0)?;
            times.push(start.elapsed().as_secs_f64() / repeats as f64);
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_row() {
        let measured = Measured {
            ranks: 2,
            bytes: 4 << 20,
            links: "shm".into(),
            time_us: 1000.0,
            time_min_us: 900.0,
            time_max_us: 1100.0,
            raw_time_us: 800.0,
            alg_gb_s: 4.19,
            bus_gb_s: 4.19,
            raw_bus_gb_s: 5.24,
            share_of_raw: 0.8,
        };
        let report = Report { memory_copy_gb_s: 10.0, cores: 2, results: vec![measured] };
        assert_eq!(
            text(&report),
            "RANKS  SIZE   LINKS  TIME US  MIN    MAX     ALG GB/S  BUS GB/S  RAW GB/S  SHARE OF RAW\n\
             2      4 MiB  shm    1000.0   900.0  1100.0  4.19      4.19      5.24      80%\n\
             2 cores, memory copy 10.0 GB/s\n"
        );
    }

    #[test]
    fn a_torus_has_two_sides() {
        assert_eq!(parse_torus("4, 2"), Ok(Torus { dx: 4, dy: 2 }));
        assert!(parse_torus("4").is_err_and(|e| e.contains("two numbers")));
        assert!(parse_torus("4,0").is_err_and(|e| e.contains("at least 1")));
    }

    #[test]
    fn sizes_are_in_binary_units() {
        assert_eq!([size(1 << 10), size(256 << 10), size(64 << 20)], ["1 KiB", "256 KiB", "64 MiB"]);
    }
}
