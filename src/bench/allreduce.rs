//! `toroid bench allreduce`: the all-reduce of training, as nccl-tests shows it, over processes of this machine.
//!
//! ```text
//!   parent -- starts a process a rank, hears its address, tells all addresses --> ranks: links, then by size
//!             a check of sum, steps and bytes, then rounds, each of
//!             all-reduces, raw copies, raw messages                               --> rank 0 prints a line of JSON a size
//! ```
//!
//! *Algorithm bandwidth* is size / time. *Bus bandwidth* is that times 2(n-1)/n: what each rank sends. There are two limits, both
//! without frames and sums over links of the same kind; a share is the limit's time / the all-reduce's, within each round:
//!
//! - *Raw* copies: every rank sends to its neighbour, in one piece, as many bytes as the all-reduce makes it send. The limit of bytes. Of
//!   more than two ranks nobody waits for all others, and with small sizes a rank is many calls ahead of its neighbour.
//! - *Raw messages*: the bytes of each step of the all-reduce's own schedule, to those that it sends to, and the next step when those of this
//!   one have come. The limit of what has to wait.
//!
//! Steps and bytes are counted, and a count that is not the formula's is an error: `2(dx-1) + 2(dy-1)` steps by rings, 2 a line where
//! everyone sends to everyone, 1 for an exchange of all values; `2(n-1)` times the buffer by all ranks together, or `n(n-1)` times.
//!
//! Deliberately absent: other machines' figures, and other programs': `scripts/bench_allreduce.py` runs gloo beside it.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toroid_session::PeerAddr;
use toroid_torus::collective::{self as schedules, Schedule, chunk_range};
use toroid_torus::ids::Epoch;
use toroid_worker::comm::{
    Algorithm, Channel, Fence, Group, HEADER_LEN, LinkChoice, LinkPlan, Links, Listener, Path, RawRecv, RawSend,
    all_gather_f64, all_reduce_sum, all_reduce_torus, exchange_raw, slices_of_chunk,
};

use super::median;
use crate::format::table;
use crate::local::positive;
use crate::output::{self, FormatArgs};

const WARM_UP: usize = 3;
/// Of the copy in memory.
const COPIES: usize = 7;
/// A round takes about so long, within bounds of its repeats.
const ROUND: Duration = Duration::from_millis(60);
const REPEATS_MAX: usize = 20_000;
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
    #[command(flatten)]
    format: FormatArgs,
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
    /// One after the other, each of messages at once.
    steps: usize,
    /// Of payload, by a rank, on average.
    sent_bytes: f64,
    time_us: f64,
    time_min_us: f64,
    time_max_us: f64,
    raw_time_us: f64,
    raw_messages_us: f64,
    alg_gb_s: f64,
    bus_gb_s: f64,
    raw_bus_gb_s: f64,
    share_of_raw: f64,
    share_of_raw_messages: f64,
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
    args.format.answer(&report, text(&report))?;
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
    let header = [
        "RANKS",
        "SIZE",
        "LINKS",
        "STEPS",
        "SENT",
        "TIME US",
        "MIN",
        "MAX",
        "ALG GB/S",
        "BUS GB/S",
        "RAW GB/S",
        "OF RAW",
        "OF RAW MESSAGES",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(report.results.iter().map(|m| {
        let mut row = vec![m.ranks.to_string(), size(m.bytes), m.links.clone(), m.steps.to_string()];
        row.push(format!("{:.0}", m.sent_bytes));
        row.extend([m.time_us, m.time_min_us, m.time_max_us].map(|us| format!("{us:.1}")));
        row.extend([m.alg_gb_s, m.bus_gb_s, m.raw_bus_gb_s].map(|gb| format!("{gb:.2}")));
        row.extend([m.share_of_raw, m.share_of_raw_messages].map(|share| format!("{:.0}%", share * 100.0)));
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
    let peers = peers.map(|(peer, address)| (peer, PeerAddr { worker_id: worker_id(peer).into(), address })).collect();
    // Loopback and one user's processes of one measurement: the key keeps nobody out who could not do worse.
    let mut plan = LinkPlan { job_id: "bench".into(), epoch: Epoch::new(1), rank, key: [0; 32], peers };
    let fence = Fence::new()?;
    let mut links = Links::establish(&listener, plan.clone(), &fence, CONNECT_TIMEOUT)?;
    // Raw bytes have connections of their own: who waits for a frame would take them for one.
    plan.epoch = plan.epoch.next();
    let raw = Links::establish(&listener, plan, &fence, CONNECT_TIMEOUT)?;
    let mut group = Group::line((0..ranks).collect(), rank);
    // A line in training goes by its size; one schedule at all sizes is for comparisons.
    let is_line = args.torus.is_none() && args.algorithm == Algorithm::Auto;
    if let Some(Torus { dx, dy }) = args.torus {
        (group.dx, group.dy) = (dx, dy);
    }
    let (algorithm, rounds) = (args.algorithm, args.rounds);
    let mut bench = Bench { group, is_line, algorithm, rounds, raw, scratch: Vec::new() };
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
    raw: Links,
    scratch: Vec<f32>,
}

/// What every rank does in a call of one kind.
#[derive(Clone, Copy)]
enum Kind {
    AllReduce,
    Raw,
    RawMessages,
}

const KINDS: [Kind; 3] = [Kind::AllReduce, Kind::Raw, Kind::RawMessages];

/// What calls of one size work on.
struct Buffers {
    values: Vec<f32>,
    sent: Vec<u8>,
    received: Vec<u8>,
    schedule: Schedule,
}

impl Bench {
    fn measure(&mut self, links: &mut Links, bytes: usize) -> Result<Measured> {
        let (n, len) = (self.group.ranks.len(), bytes / size_of::<f32>());
        let mut values = vec![self.group.me as f32 + 1.0; len];
        let (steps, sent_bytes) = self.counted(links, &mut values)?;
        let expected = (n * (n + 1) / 2) as f32;
        ensure!(values.iter().all(|x| *x == expected), "the sum of 1 to {n} is {expected}, found another");
        values.fill(0.0);
        // An exchange sends more than 2(n-1)/n of a buffer.
        let most = bytes * n.max(2);
        let mut buffers =
            Buffers { values, sent: vec![1; most], received: vec![0; most], schedule: self.schedule(len) };
        let rounds = self.times(links, &mut buffers)?;
        let times = |kind: Kind| rounds.iter().map(move |round| round[kind as usize]);
        let share = |of: Kind| median(rounds.iter().map(move |round| round[of as usize] / round[0]));
        let (time, raw) = (median(times(Kind::AllReduce)), median(times(Kind::Raw)));
        let kinds: Vec<String> = links.kinds().keys().map(ToString::to_string).collect();
        let bus = |time: f64| ring_bytes(n, bytes) as f64 / time / 1e9;
        Ok(Measured {
            ranks: n,
            bytes,
            links: kinds.join("+"),
            steps,
            sent_bytes,
            time_us: time * 1e6,
            time_min_us: times(Kind::AllReduce).fold(f64::MAX, f64::min) * 1e6,
            time_max_us: times(Kind::AllReduce).fold(0.0, f64::max) * 1e6,
            raw_time_us: raw * 1e6,
            raw_messages_us: median(times(Kind::RawMessages)) * 1e6,
            alg_gb_s: bytes as f64 / time / 1e9,
            bus_gb_s: bus(time),
            raw_bus_gb_s: bus(raw),
            share_of_raw: share(Kind::Raw),
            share_of_raw_messages: share(Kind::RawMessages),
        })
    }

    fn path(&self, len: usize) -> Path {
        let n = self.group.ranks.len();
        if self.is_line { Path::on_line(n, len) } else { Path::on_torus(self.algorithm, n, len) }
    }

    fn schedule(&self, len: usize) -> Schedule {
        let Group { dx, dy, me, .. } = self.group;
        match self.path(len) {
            Path::Exchange => schedules::all_gather_direct(dx * dy, 1, me),
            Path::Direct | Path::Chunks => schedules::all_reduce_direct(dx, dy, me),
            Path::Ring => schedules::all_reduce(dx, dy, me),
        }
    }

    /// Makes one all-reduce. Its steps, and the bytes of payload that a rank sends on average, both counted on the links; an error where they
    /// are not what the formulas say.
    fn counted(&mut self, links: &mut Links, values: &mut [f32]) -> Result<(usize, f64)> {
        let Group { dx, dy, me, .. } = self.group;
        let (n, len) = (dx * dy, values.len());
        let path = self.path(len);
        // Members of a row and of a column, and the chunks that it moves as one.
        let lines = if path == Path::Exchange { [(n, 1), (1, 1)] } else { [(dx, dy), (dy, 1)] };
        let in_line = |peer: usize, is_row: bool| {
            path == Path::Exchange && is_row || if is_row { peer / dx == me / dx } else { peer % dx == me % dx }
        };
        let count = |bench: &Bench, links: &Links, is_row: bool| -> u64 {
            let peers = bench.group.ranks.iter().enumerate().filter(|(peer, _)| *peer != me && in_line(*peer, is_row));
            peers.map(|(_, rank)| links.num_sent(*rank, Channel::Dp)).sum()
        };
        let before = (links.stats(), [true, false].map(|is_row| count(self, links, is_row)));
        self.all_reduce(links, values)?;
        let after = (links.stats(), [true, false].map(|is_row| count(self, links, is_row)));
        let frames = after.0.frames_sent - before.0.frames_sent;
        let payload = after.0.bytes_sent - before.0.bytes_sent - frames * HEADER_LEN as u64;

        let slices = if matches!(path, Path::Exchange | Path::Chunks) { 1 } else { slices_of_chunk(n, len) };
        let mut steps = 0;
        for (number, (members, chunks)) in lines.into_iter().enumerate() {
            let messages = (after.1[number] - before.1[number]) as usize;
            // In one step of a line, to how many and in how many pieces each.
            let peers = if path == Path::Ring { 1 } else { members.max(2) - 1 };
            let in_step = peers * if slices == 1 { 1 } else { chunks * slices };
            ensure!(
                messages.is_multiple_of(in_step),
                "an all-reduce of {len} elements sent {messages} messages along a line of {members}, which are no whole steps of {in_step}; report this as a bug"
            );
            steps += messages / in_step;
        }
        let all = all_gather_f64(links, &self.group.ranks, Channel::Global, &[payload as f64])?;
        let sent: f64 = all.iter().sum();
        let (expected_steps, times) = match path {
            Path::Exchange => (usize::from(n > 1), n * (n - 1)),
            Path::Direct | Path::Chunks => (2 * usize::from(dx > 1) + 2 * usize::from(dy > 1), 2 * (n - 1)),
            Path::Ring => (2 * (dx - 1) + 2 * (dy - 1), 2 * (n - 1)),
        };
        let expected = times * len * size_of::<f32>();
        ensure!(
            steps == expected_steps && sent == expected as f64,
            "an all-reduce of {len} elements on {dx} x {dy} should take {expected_steps} steps and {expected} bytes of all ranks, counted are {steps} and {sent}; report this as a bug"
        );
        Ok((steps, sent / n as f64))
    }

    fn call(&mut self, links: &mut Links, kind: Kind, buffers: &mut Buffers) -> Result<()> {
        let Buffers { values, sent, received, schedule } = buffers;
        let Group { ranks, me, .. } = &self.group;
        let (n, bytes) = (ranks.len(), size_of_val(&values[..]));
        match kind {
            Kind::AllReduce => return self.all_reduce(links, values),
            Kind::Raw if n == 1 => {}
            Kind::Raw => {
                let len = ring_bytes(n, bytes);
                let mut sends = [RawSend { to: ranks[(me + 1) % n], data: &sent[..len] }];
                let mut recvs = [RawRecv { from: ranks[(me + n - 1) % n], into: &mut received[..len] }];
                exchange_raw(&mut self.raw, &mut sends, &mut recvs)?;
            }
            Kind::RawMessages => {
                // An exchange moves the whole buffer as each member's chunk.
                let whole = if self.path(values.len()) == Path::Exchange { bytes * n } else { bytes };
                let range = |chunks: &std::ops::Range<usize>| chunk_range(whole, schedule.num_chunks, chunks);
                for step in &schedule.steps {
                    let sends = step.sends.iter().map(|s| RawSend { to: ranks[s.to], data: &sent[range(&s.chunks)] });
                    let mut rest = &mut received[..];
                    let recvs = step.recvs.iter().map(|r| {
                        let (into, left) = std::mem::take(&mut rest).split_at_mut(range(&r.chunks).len());
                        rest = left;
                        RawRecv { from: ranks[r.from], into }
                    });
                    let (mut sends, mut recvs) = (sends.collect::<Vec<_>>(), recvs.collect::<Vec<_>>());
                    exchange_raw(&mut self.raw, &mut sends, &mut recvs)?;
                }
            }
        }
        Ok(())
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

    /// Seconds of one call of each of [`KINDS`], by round.
    fn times(&mut self, links: &mut Links, buffers: &mut Buffers) -> Result<Vec<[f64; 3]>> {
        let mut repeats = [0; 3];
        for kind in KINDS {
            for _ in 0..WARM_UP.min(self.rounds) {
                self.call(links, kind, buffers)?;
            }
            // One call alone tells little where ranks share cores: as many more until they take a good part of a round.
            let mut calls = 1;
            let took = loop {
                self.largest(links, 0.0)?;
                let start = Instant::now();
                for _ in 0..calls {
                    self.call(links, kind, buffers)?;
                }
                let took = self.largest(links, start.elapsed().as_secs_f64())?;
                if took * 4.0 >= ROUND.as_secs_f64() || calls >= REPEATS_MAX {
                    break took;
                }
                calls *= 4;
            };
            repeats[kind as usize] = ((calls as f64 * ROUND.as_secs_f64() / took) as usize).clamp(1, REPEATS_MAX);
        }
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let mut round = [0.0; 3];
            for kind in KINDS {
                self.largest(links, 0.0)?;
                let start = Instant::now();
                for _ in 0..repeats[kind as usize] {
                    self.call(links, kind, buffers)?;
                }
                self.largest(links, 0.0)?;
                round[kind as usize] = start.elapsed().as_secs_f64() / repeats[kind as usize] as f64;
            }
            rounds.push(round);
        }
        Ok(rounds)
    }
}

/// What each of `n` ranks sends in an all-reduce by rings, bytes.
fn ring_bytes(n: usize, bytes: usize) -> usize {
    2 * (n - 1) * bytes / n
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
            steps: 2,
            sent_bytes: 4194304.0,
            time_us: 1000.0,
            time_min_us: 900.0,
            time_max_us: 1100.0,
            raw_time_us: 800.0,
            raw_messages_us: 900.0,
            alg_gb_s: 4.19,
            bus_gb_s: 4.19,
            raw_bus_gb_s: 5.24,
            share_of_raw: 0.8,
            share_of_raw_messages: 0.9,
        };
        let report = Report { memory_copy_gb_s: 10.0, cores: 2, results: vec![measured] };
        assert_eq!(
            text(&report),
            "RANKS  SIZE   LINKS  STEPS  SENT     TIME US  MIN    MAX     ALG GB/S  BUS GB/S  RAW GB/S  OF RAW  OF RAW MESSAGES\n\
             2      4 MiB  shm    2      4194304  1000.0   900.0  1100.0  4.19      4.19      5.24      80%     90%\n\
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
