//! What a coordinator knows, for people and (`-o json`) for programs: `status`, `jobs`, `workers`, `events`; `cancel` and `drain`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use toroid_proto as proto;
use toroid_proto::json::{self, state_word};

use crate::client::{Client, Connection};
use crate::format::{bytes, count, duration, percent, rate, seconds, short_count, table, time};
use crate::incidents;
use crate::links;
use crate::output;
use crate::progress::event_line;
use crate::queue;
use crate::watch::Follow;

/// Jobs go on without a coordinator; whoever watches one gives it this long to come back.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two lines of a watched job where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Of the newest events, this many are shown with a status.
const NUM_EVENTS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// Stay, and show every change until the job ends; exit code 0 only if it is done
    #[arg(short, long)]
    watch: bool,
    /// Text, or JSON with the whole curve; with --watch one JSON document a line, without the curve
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
    /// Leave the curve out of the JSON
    #[arg(long)]
    no_curve: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Text or JSON
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct WorkersArgs {
    /// A worker that is put aside for a while, or whose host is, may be given a place again at once
    #[arg(long, value_name = "ID", conflicts_with = "output")]
    readmit: Option<String>,
    /// The id of a worker that is not connected is free for whoever registers it next: its secret or certificate is lost
    #[arg(long, value_name = "ID", conflicts_with_all = ["output", "readmit"])]
    forget: Option<String>,
    /// The worker's process ends at once, as if its machine had died: a trial of what that costs. `toroid drain` takes a machine out of use
    #[arg(long, value_name = "ID", conflicts_with_all = ["output", "readmit", "forget"])]
    kill: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// Stay, and show new events until the job ends
    #[arg(short, long)]
    follow: bool,
    /// Text, or one JSON document a line
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The worker's id, as `toroid workers` lists it
    worker: String,
    #[command(flatten)]
    connection: Connection,
}

pub async fn status(args: StatusArgs) -> Result<ExitCode> {
    if args.no_curve && args.output == Format::Text {
        bail!("--no-curve leaves something out of the JSON, which was not asked for: add `-o json`");
    }
    if args.watch {
        return watch(args).await;
    }
    let with_curve = args.output == Format::Json && !args.no_curve;
    let mut client = args.connection.open().await?;
    let job = client.job(&args.job, false).await?;
    match args.output {
        Format::Text => output::print(details(&job, now_unix_ms()))?,
        Format::Json if with_curve => print_with_curve(&mut client, &job).await?,
        Format::Json => print_json(&json::Job::new(&job, false))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the curve as it comes: it may be longer than this program should hold.
async fn print_with_curve(client: &mut Client, job: &proto::Job) -> Result<()> {
    let text = serde_json::to_string_pretty(&json::Job::new(job, false)).context("write the status as JSON")?;
    let open = text.strip_suffix("\n}").context("write the status as JSON: it does not end as an object does")?;
    output::print(format_args!("{open},\n  \"curve\": ["))?;
    // What is committed after `job` was asked for is not of this answer.
    let mut curve = match &job.last_step {
        Some(last) => Some(client.curve(&job.id, last.step).await?),
        None => None,
    };
    let mut separator = "";
    while let Some(curve) = &mut curve
        && let Some(steps) = curve.next().await?
    {
        let mut piece = String::new();
        for step in &steps {
            let row = serde_json::to_string(&json::StepRecord::from(step)).context("write a step as JSON")?;
            piece.push_str(&format!("{separator}\n    {row}"));
            separator = ",";
        }
        output::print(piece)?;
    }
    output::line("\n  ]\n}")
}

async fn watch(args: StatusArgs) -> Result<ExitCode> {
    let mut follow = Follow::new(args.connection.access()?, &args.job, PATIENCE);
    let mut screen = Screen::new(args.output);
    let mut state = proto::JobState::Unspecified;
    while let Some(proto::JobUpdate { job: Some(job), .. }) = follow.next().await? {
        state = job.state();
        screen.show(&job)?;
    }
    Ok(if state == proto::JobState::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a watched job is shown.
enum Screen {
    /// Each state takes the place of the one before; so many lines are there now.
    Terminal {
        num_lines: usize,
    },
    Lines {
        last: Option<(proto::JobState, Instant)>,
    },
    Json,
}

impl Screen {
    fn new(output: Format) -> Screen {
        match (output, std::io::stdout().is_terminal()) {
            (Format::Json, _) => Screen::Json,
            (Format::Text, true) => Screen::Terminal { num_lines: 0 },
            (Format::Text, false) => Screen::Lines { last: None },
        }
    }

    fn show(&mut self, job: &proto::Job) -> Result<()> {
        match self {
            Screen::Json => {
                let text = serde_json::to_string(&json::Job::new(job, false)).context("write the status as JSON")?;
                output::line(text)?;
            }
            Screen::Terminal { num_lines } => {
                let text = details(job, now_unix_ms());
                let back = if *num_lines > 0 { format!("\x1b[{num_lines}A\x1b[J") } else { String::new() };
                output::print(format_args!("{back}{text}"))?;
                *num_lines = text.lines().count();
            }
            Screen::Lines { last } => {
                let is_due = last.is_none_or(|(state, at)| state != job.state() || at.elapsed() >= LINE_INTERVAL);
                if is_due {
                    output::line(line(job, now_unix_ms()))?;
                    *last = Some((job.state(), Instant::now()));
                }
            }
        }
        Ok(())
    }
}

pub async fn workers(args: WorkersArgs) -> Result<ExitCode> {
    let WorkersArgs { readmit, forget, kill, list: args } = args;
    if let Some(worker) = kill {
        let job = args.connection.open().await?.kill(&worker).await?;
        let what = match job.as_str() {
            "" => "it was a spare".into(),
            job => format!("`toroid incidents {job}` says what it costs"),
        };
        output::line(format_args!("{worker} was told to end at once; {what}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(worker) = forget {
        args.connection.open().await?.forget_worker(&worker).await?;
        output::line(format_args!("{worker} is free for whoever registers it next"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(worker) = readmit {
        let why = args.connection.open().await?.readmit(&worker).await?;
        output::line(format_args!("{worker} is a spare again; it was put aside since {why}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let workers = args.connection.open().await?.workers().await?;
    match args.output {
        Format::Json => print_json(&workers.iter().map(json::Worker::from).collect::<Vec<_>>())?,
        Format::Text if workers.is_empty() => {
            let url = args.connection.coordinator.join(",");
            let how = format_args!("no workers are connected; start some with `toroid worker --coordinator {url}`");
            output::line(how)?;
        }
        Format::Text => output::print(worker_table(&workers))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn events(args: EventsArgs) -> Result<ExitCode> {
    let print = |events: &[proto::Event]| -> Result<()> {
        for event in events {
            match args.output {
                Format::Text => output::line(event_line(event))?,
                Format::Json => {
                    output::line(serde_json::to_string(&json::Event::from(event)).context("write an event as JSON")?)?
                }
            }
        }
        Ok(())
    };
    if !args.follow {
        print(&args.connection.open().await?.job(&args.job, false).await?.events)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut follow = Follow::new(args.connection.access()?, &args.job, PATIENCE);
    while let Some(update) = follow.next().await? {
        print(&update.events)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn cancel(args: CancelArgs) -> Result<ExitCode> {
    let job = args.connection.open().await?.cancel(&args.job).await?;
    queue::show(&job)
}

pub async fn drain(args: DrainArgs) -> Result<ExitCode> {
    let drained = args.connection.open().await?.drain(&args.worker).await?;
    output::line(drain_line(&args.worker, &drained))?;
    Ok(ExitCode::SUCCESS)
}

fn drain_line(worker: &str, drained: &proto::DrainWorkerResponse) -> String {
    match (drained.job_id.as_str(), drained.replacement.as_str()) {
        ("", _) => format!("{worker} was a spare and gets no place any more: stop it whenever you like"),
        (job, "") => {
            format!("{worker} leaves {job} once a spare is there to take its place; `toroid events {job} -f` says when")
        }
        (job, spare) => {
            format!("{spare} takes the place of {worker} in {job}; `toroid incidents {job}` says what it cost")
        }
    }
}

pub fn print_json(value: &impl Serialize) -> Result<()> {
    output::line(serde_json::to_string_pretty(value).context("write the answer as JSON")?)
}

fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The status line: state, step of total, ETA, loss, tokens/s, goodput, places alive, spares, age of the last checkpoint,
/// last incident and what it cost.
fn line(job: &proto::Job, now_unix_ms: i64) -> String {
    let mut parts = vec![format!("{} {}", job.id, state_word(job.state()))];
    parts.push(format!("step {}/{}", job.committed_step, job.total_steps));
    if !json::is_ended(job.state()) && job.eta_s > 0.0 {
        parts.push(format!("ETA {}", duration(job.eta_s)));
    }
    if let Some(last) = &job.last_step {
        parts.push(format!("loss {:.4}", last.loss));
        parts.push(format!("{} tokens/s", rate(job.tokens_per_s)));
        parts.push(format!("goodput {}", percent(job.goodput)));
    }
    parts.push(format!("places {}/{}", job.places_alive, job.places.len()));
    parts.extend(fewer_replicas(job).map(|dp| format!("dp {dp}")));
    parts.push(match job.spares_aside {
        0 => format!("spares {}", job.spares),
        n => format!("spares {} ({n} put aside)", job.spares),
    });
    parts.push(match job.checkpoints.iter().max_by_key(|c| c.step) {
        None => "no checkpoint".into(),
        Some(c) => format!("checkpoint {} ago (step {})", duration((now_unix_ms - c.unix_ms) as f64 / 1e3), c.step),
    });
    parts.extend(curve_flaws(job).map(|(figures, _)| figures));
    parts.extend(job.unsaved.as_ref().map(|unsaved| {
        let for_s = (now_unix_ms - unsaved.since_unix_ms) as f64 / 1e3;
        format!("step {} not saved for {} ({})", unsaved.step, duration(for_s), tries(unsaved.num_tries))
    }));
    parts.extend(job.incidents.last().map(incidents::short));
    parts.join("  ")
}

/// The status line, and what it is about.
fn details(job: &proto::Job, now_unix_ms: i64) -> String {
    let row = |name: &str, value: String| vec![format!("  {name}"), value];
    let mut rows = vec![row("reason", job.reason.clone())];
    if !job.store_trouble.is_empty() {
        rows.push(row("store", job.store_trouble.clone()));
    }
    let user = if job.user.is_empty() { String::new() } else { format!(" of {}", job.user) };
    let held = if job.is_held { ", held by a user" } else { "" };
    let waited = duration(job.waited_s);
    rows.push(row("queue", format!("priority {}{user}{held}; it has waited for {waited} in all", job.priority)));
    if !job.damaged.is_empty() {
        rows.push(row("damaged", job.damaged.clone()));
    }
    if let Some(s) = &job.shape {
        let (width, height) = (s.tp * s.dx, s.pp * s.dy);
        let dp = fewer_replicas(job).unwrap_or_else(|| s.dp.to_string());
        let places = format!("tp {} x pp {} x dp {dp} on a {width} x {height} torus, epoch {}", s.tp, s.pp, job.epoch);
        rows.push(row("model", format!("{} parameters; {places}", short_count(job.num_params))));
    }
    rows.extend(links::of_job(job).map(|links| row("links", links)));
    if let (Some(last), true) = (&job.last_step, job.first_loss != 0.0) {
        let loss = format!("{:.4} at first, {:.4} now; gradient norm {:.3}", job.first_loss, last.loss, last.grad_norm);
        rows.push(row("loss", loss));
    }
    rows.extend(curve_flaws(job).map(|(figures, what)| row("curve", format!("{figures}: {what}"))));
    if let Some(v) = job.validations.last() {
        let figures = format!("{:.4} nats per token, {:.4} bits per byte at step {}", v.ce, v.bits_per_byte, v.step);
        rows.push(row("validation", figures));
    }
    if let Some(c) = job.checkpoints.iter().max_by_key(|c| c.step) {
        rows.push(row("checkpoint", format!("{}, {} in {}", c.path, bytes(c.bytes), duration(c.write_s))));
    }
    if let Some(unsaved) = &job.unsaved {
        rows.push(row("not saved", format!("step {}: {}", unsaved.step, unsaved.error)));
        if unsaved.step == job.total_steps && !json::is_ended(job.state()) {
            let next = duration(unsaved.next_try_s);
            let what = format!(
                "the workers keep its state and try again in {next}, for a day; `toroid cancel {}` gives it up",
                job.id
            );
            rows.push(row("", what));
        }
    }
    if let Some(last) = job.incidents.last() {
        rows.push(row("incidents", incidents::totals(job)));
        rows.push(row("the last", incidents::line(last)));
    }
    rows.extend(job.stragglers.iter().enumerate().map(|(i, s)| row(if i == 0 { "slow" } else { "" }, slow(s))));
    if let Some(inputs) = &job.inputs {
        if !inputs.summary.is_empty() {
            rows.push(row("text", inputs.summary.clone()));
        }
        let lines = |name: &'static str, lines: Vec<String>| {
            lines.into_iter().enumerate().map(move |(i, line)| row(if i == 0 { name } else { "" }, line))
        };
        rows.extend(lines("left out", inputs.left_out.iter().map(left_out).collect()));
        rows.extend(lines("notes", inputs.notes.clone()));
    }
    let missing: Vec<String> = job.places.iter().filter(|p| !p.alive).take(8).map(place).collect();
    if !missing.is_empty() && !json::is_ended(job.state()) {
        rows.push(row("missing", missing.join(", ")));
    }
    rows.push(row(
        "times",
        format!(
            "submitted {}, started {}, ended {}",
            time(job.submitted_unix_ms),
            time(job.started_unix_ms),
            time(job.finished_unix_ms)
        ),
    ));
    if !job.folder.is_empty() {
        rows.push(row("folder", job.folder.clone()));
    }
    let newest = &job.events[job.events.len().saturating_sub(NUM_EVENTS)..];
    rows.extend(newest.iter().enumerate().map(|(i, e)| row(if i == 0 { "events" } else { "" }, event_line(e))));
    format!("{}\n{}", line(job, now_unix_ms), table(&rows))
}

/// What makes a place a straggler.
fn slow(s: &proto::Straggler) -> String {
    format!(
        "{} (rank {}) computes {:.1} times as long as its {} peers: {} a step and not {}, over steps {} to {}; `toroid drain {}` moves its place",
        s.worker_id,
        s.rank,
        s.factor,
        s.num_peers,
        seconds(s.compute_s),
        seconds(s.peers_s),
        s.from_step + 1,
        s.to_step,
        s.worker_id
    )
}

fn left_out(l: &proto::LeftOut) -> String {
    let more = if l.num_files > l.first.len() as u64 { ", ..." } else { "" };
    let files = if l.num_files == 1 { "file" } else { "files" };
    format!("{} {files}, {}: {} ({}{more})", count(l.num_files), bytes(l.bytes), l.reason, l.first.join(", "))
}

/// What the curve does not have, and what that means.
fn curve_flaws(job: &proto::Job) -> impl Iterator<Item = (String, &'static str)> {
    let skipped = (job.skipped_steps > 0).then(|| {
        let what = "gradients were not finite, no update was made; these steps are `true` under `skipped` in curve.csv";
        (format!("skipped {}", job.skipped_steps), what)
    });
    let missing = (job.missing_steps > 0).then(|| {
        let what =
            "committed while no coordinator was there, and nobody has their figures any more; their rows are empty";
        (format!("without figures {}", job.missing_steps), what)
    });
    skipped.into_iter().chain(missing)
}

fn tries(num: u64) -> String {
    if num == 1 { "1 try".into() } else { format!("{} tries", count(num)) }
}

/// "3 of 4" where a job has fewer replicas than its job file asks for.
fn fewer_replicas(job: &proto::Job) -> Option<String> {
    let (now, all) = (job.shape.as_ref()?.dp, job.full_shape.as_ref()?.dp);
    (now < all).then(|| format!("{now} of {all}"))
}

fn place(p: &proto::PlaceInfo) -> String {
    let worker = if p.worker_id.is_empty() { "nobody" } else { &p.worker_id };
    format!("rank {} at ({}, {}), {worker}", p.rank, p.x, p.y)
}

pub fn job_table(jobs: &[proto::Job]) -> String {
    let header = ["JOB", "STATE", "PRIORITY", "USER", "STEP", "LOSS", "TOKENS/S", "PLACES", "SUBMITTED", "REASON"];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.id.clone(),
            state_word(job.state()).to_string(),
            job.priority.to_string(),
            if job.user.is_empty() { "-".into() } else { job.user.clone() },
            format!("{}/{}", count(job.committed_step), count(job.total_steps)),
            job.last_step.as_ref().map_or_else(|| "-".into(), |s| format!("{:.4}", s.loss)),
            rate(job.tokens_per_s),
            format!("{}/{}", job.places_alive, job.places.len()),
            time(job.submitted_unix_ms),
            job.reason.clone(),
        ]
    }));
    table(&rows)
}

/// What a worker holds of its device's memory, and what is free where that is known.
fn memory(worker: &proto::WorkerInfo) -> String {
    match (worker.memory_bytes, worker.memory_free_bytes) {
        (0, _) => "-".into(),
        (held, 0) => bytes(held),
        (held, free) => format!("{}, {} free", bytes(held), bytes(free)),
    }
}

/// How long a worker computes a step, and that it is a straggler where it is one.
fn computes(worker: &proto::WorkerInfo) -> String {
    match (worker.compute_s, worker.slow_factor) {
        (0.0, _) => "-".into(),
        (s, 0.0) => seconds(s),
        (s, factor) => format!("{}, slow: {factor:.1} times its peers", seconds(s)),
    }
}

/// Whether a worker without a place has shown that it can fill one.
fn warm_up(worker: &proto::WorkerInfo) -> String {
    let proto::WorkerInfo { warm_up_job: job, warm_up_reason: reason, .. } = worker;
    match worker.warm_up() {
        proto::WarmUpState::Unspecified => "-".into(),
        proto::WarmUpState::Proving => format!("for {job}: {reason}"),
        proto::WarmUpState::Ready => format!("ready for {job}"),
        proto::WarmUpState::Failed if worker.warm_up_retry_s > 0.0 => {
            format!("failed for {job}: {reason}; tried again in {}", duration(worker.warm_up_retry_s))
        }
        proto::WarmUpState::Failed => format!("failed for {job}: {reason}"),
    }
}

fn worker_table(workers: &[proto::WorkerInfo]) -> String {
    let header = [
        "WORKER",
        "HOST",
        "PID",
        "DEVICE",
        "MEMORY",
        "JOB",
        "RANK",
        "COMPUTES A STEP",
        "SILENT",
        "FINGERPRINT",
        "LINKS",
        "WARM-UP",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(workers.iter().map(|w| {
        let (job, rank) = match w.state() {
            proto::WorkerState::Aside => ("(aside)", "-".to_string()),
            proto::WorkerState::Retired => ("(drained)", "-".to_string()),
            proto::WorkerState::Cordoned => ("(cordoned)", "-".to_string()),
            _ if w.rank < 0 => ("(spare)", "-".to_string()),
            _ => (w.job_id.as_str(), w.rank.to_string()),
        };
        let (silent, fingerprint) = (duration(w.silent_s), w.fingerprint.clone());
        vec![
            w.worker_id.clone(),
            w.host.clone(),
            w.pid.to_string(),
            w.device.clone(),
            memory(w),
            job.into(),
            rank,
            computes(w),
            silent,
            fingerprint,
            links::in_words(&w.links),
            warm_up(w),
        ]
    }));
    workers.iter().filter_map(kept_out).fold(table(&rows), |text, line| text + &line + "\n")
}

/// Why a worker without a place is given none.
fn kept_out(w: &proto::WorkerInfo) -> Option<String> {
    let id = &w.worker_id;
    match w.state() {
        proto::WorkerState::Aside => Some(format!(
            "{id} is put aside for {} more: {}; `toroid workers --readmit {id}` ends that",
            duration(w.aside_s),
            w.state_reason
        )),
        proto::WorkerState::Retired | proto::WorkerState::Cordoned => {
            Some(format!("{id} is no spare: {}", w.state_reason))
        }
        _ if w.is_cordoned => Some(format!("{id} is cordoned: it keeps its place and gets no other")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_UNIX_MS: i64 = 1_795_514_334_000;

    fn running() -> proto::Job {
        let place = |rank: u32, alive| proto::PlaceInfo {
            rank,
            x: rank,
            y: 0,
            worker_id: if alive { format!("w{rank}") } else { String::new() },
            alive,
            ..Default::default()
        };
        proto::Job {
            id: "tiny-1".into(),
            state: proto::JobState::Running.into(),
            reason: "all 2 workers are prepared".into(),
            shape: Some(proto::Shape { tp: 2, pp: 1, dp: 1, dx: 1, dy: 1 }),
            epoch: 1,
            committed_step: 120,
            total_steps: 200,
            num_params: 1_900_000,
            last_step: Some(proto::StepRecord { loss: 2.34567, grad_norm: 0.5, ..Default::default() }),
            first_loss: 5.55,
            tokens_per_s: 13_411.6,
            eta_s: 35.2,
            goodput: 0.981,
            places: vec![place(0, true), place(1, false)],
            places_alive: 1,
            spares: 1,
            checkpoints: vec![proto::CheckpointInfo {
                step: 100,
                path: "/r/step-100".into(),
                bytes: 27_100_000,
                unix_ms: NOW_UNIX_MS - 42_000,
                write_s: 0.3,
            }],
            submitted_unix_ms: NOW_UNIX_MS - 60_000,
            ..Default::default()
        }
    }

    #[test]
    fn the_line_has_all_that_one_asks_first() {
        assert_eq!(
            line(&running(), NOW_UNIX_MS),
            "tiny-1 running  step 120/200  ETA 35 s  loss 2.3457  13,412 tokens/s  goodput 98.1%  places 1/2  spares 1  \
             checkpoint 42 s ago (step 100)"
        );
        let queued = proto::Job { id: "a-1".into(), state: proto::JobState::Queued.into(), ..Default::default() };
        assert_eq!(line(&queued, NOW_UNIX_MS), "a-1 queued  step 0/0  places 0/0  spares 0  no checkpoint");
    }

    #[test]
    fn fewer_replicas_than_asked_for_are_shown() {
        let shape = |dp| Some(proto::Shape { tp: 2, pp: 1, dp, dx: dp, dy: 1 });
        let job = proto::Job { shape: shape(3), full_shape: shape(4), ..running() };
        assert!(line(&job, NOW_UNIX_MS).contains("places 1/2  dp 3 of 4  spares 1"), "{}", line(&job, NOW_UNIX_MS));
        assert!(details(&job, NOW_UNIX_MS).contains("tp 2 x pp 1 x dp 3 of 4 on a 6 x 1 torus"));
        let job = proto::Job { full_shape: shape(3), ..job };
        assert!(!line(&job, NOW_UNIX_MS).contains("dp 3"), "{}", line(&job, NOW_UNIX_MS));
    }

    #[test]
    fn t12_steps_without_an_update_or_without_figures_are_shown() {
        let job = proto::Job { skipped_steps: 197, missing_steps: 211, ..running() };
        let text = details(&job, NOW_UNIX_MS);
        assert!(line(&job, NOW_UNIX_MS).ends_with("skipped 197  without figures 211"), "{text}");
        assert!(text.contains("skipped 197: gradients were not finite"), "{text}");
        assert!(text.contains("without figures 211: committed while"), "{text}");
        assert!(!details(&running(), NOW_UNIX_MS).contains("figures"));
    }

    #[test]
    fn the_details_name_who_is_missing_only_while_the_job_lives() {
        let mut job = running();
        let text = details(&job, NOW_UNIX_MS);
        for words in
            ["all 2 workers are prepared", "1.9 M parameters", "rank 1 at (1, 0), nobody", "/r/step-100, 27.1 MB"]
        {
            assert!(text.contains(words), "{text}");
        }
        assert!(text.contains("started -, ended -"), "{text}");
        job.state = proto::JobState::Done.into();
        assert!(!details(&job, NOW_UNIX_MS).contains("nobody"));
    }

    #[test]
    fn the_last_incident_and_what_it_cost_are_shown() {
        let mut job = running();
        let incident =
            proto::Incident { cause: "w1 fell silent".into(), total_s: 0.41, resolved: true, ..Default::default() };
        job.incidents = vec![incident];
        assert!(line(&job, NOW_UNIX_MS).ends_with("last incident 0.4 s, no step lost"), "{}", line(&job, NOW_UNIX_MS));
        let text = details(&job, NOW_UNIX_MS);
        assert!(text.contains("w1 fell silent at step 0") && text.contains("1 incident:"), "{text}");
    }

    #[test]
    fn a_drain_says_where_the_place_goes() {
        let drained = |job_id: &str, replacement: &str| {
            drain_line("w3", &proto::DrainWorkerResponse { job_id: job_id.into(), replacement: replacement.into() })
        };
        assert!(drained("", "").contains("w3 was a spare"));
        assert!(drained("tiny-1", "").contains("once a spare is there"));
        assert!(drained("tiny-1", "w8").starts_with("w8 takes the place of w3 in tiny-1"));
    }

    #[test]
    fn the_newest_events_come_with_the_details() {
        let mut job = running();
        let event = |i| proto::Event {
            unix_ms: NOW_UNIX_MS,
            kind: "k".into(),
            text: format!("event {i}"),
            ..Default::default()
        };
        job.events = (0..9).map(event).collect();
        let text = details(&job, NOW_UNIX_MS);
        assert!(!text.contains("event 3") && text.contains("event 4") && text.contains("event 8"), "{text}");
    }

    #[test]
    fn tables_list_jobs_and_workers() {
        let text = job_table(&[running()]);
        assert!(text.contains("JOB     STATE    PRIORITY  USER  STEP     LOSS"), "{text}");
        assert!(text.contains("tiny-1  running  0         -     120/200  2.3457  13,412    1/2"), "{text}");
        let worker = |worker_id: &str, rank| proto::WorkerInfo {
            worker_id: worker_id.into(),
            host: "h".into(),
            device: "cpu".into(),
            fingerprint: "f".into(),
            job_id: if rank < 0 { String::new() } else { "tiny-1".into() },
            rank,
            silent_s: 0.25,
            pid: 4242,
            memory_bytes: if rank < 0 { 0 } else { 60_000_000_000 },
            memory_free_bytes: 20_000_000_000,
            compute_s: if rank < 0 { 0.0 } else { 0.0412 },
            slow_factor: f64::from(rank.max(0)),
            warm_up: if rank < 0 { proto::WarmUpState::Failed } else { proto::WarmUpState::Unspecified }.into(),
            warm_up_job: if rank < 0 { "tiny-1".into() } else { String::new() },
            warm_up_reason: if rank < 0 { "no data".into() } else { String::new() },
            warm_up_retry_s: if rank < 0 { 5.0 } else { 0.0 },
            links: (rank >= 0).then(|| ("tcp".to_string(), 2)).into_iter().collect(),
            ..Default::default()
        };
        assert_eq!(
            worker_table(&[worker("w0", 0), worker("w1", -1)]),
            "WORKER  HOST  PID   DEVICE  MEMORY                 JOB      RANK  COMPUTES A STEP  SILENT  FINGERPRINT  LINKS                WARM-UP\n\
             w0      h     4242  cpu     60.0 GB, 20.0 GB free  tiny-1   0     41.2 ms          0.2 s   f            2 tcp in clear text  -\n\
             w1      h     4242  cpu     -                      (spare)  -     -                0.2 s   f            -                    failed for tiny-1: no data; tried again in 5.0 s\n"
        );
        assert!(worker_table(&[worker("w2", 2)]).contains("41.2 ms, slow: 2.0 times its peers"));
        let mut aside = worker("w1", -1);
        aside.set_state(proto::WorkerState::Aside);
        (aside.state_reason, aside.aside_s) = ("it was lost 3 times within 10 minutes".into(), 1740.0);
        let text = worker_table(&[aside]);
        assert!(text.contains("(aside)  -") && !text.contains("(spare)"), "{text}");
        let why = "w1 is put aside for 29 min";
        assert!(text.contains(why) && text.contains("3 times within") && text.contains("--readmit w1"), "{text}");
        let mut cordoned = worker("w1", -1);
        cordoned.set_state(proto::WorkerState::Cordoned);
        cordoned.state_reason = "a user cordoned it".into();
        let text = worker_table(&[cordoned, proto::WorkerInfo { is_cordoned: true, ..worker("w2", 2) }]);
        assert!(text.contains("(cordoned)") && text.contains("w1 is no spare: a user cordoned it"), "{text}");
        assert!(text.contains("w2 is cordoned: it keeps its place"), "{text}");
    }

    #[test]
    fn what_is_slow_and_what_is_left_out_is_shown() {
        let straggler = proto::Straggler {
            rank: 1,
            worker_id: "w1".into(),
            factor: 2.5,
            compute_s: 0.04,
            peers_s: 0.016,
            num_peers: 3,
            from_step: 120,
            to_step: 140,
        };
        let left_out = proto::LeftOut {
            reason: "not UTF-8 text".into(),
            num_files: 1200,
            bytes: 3_000_000,
            first: vec!["a.bin".into(), "b.png".into()],
        };
        let inputs = proto::Inputs {
            summary: "3 files, 1.2 MB of text under /data".into(),
            left_out: vec![left_out],
            notes: vec!["a note".into()],
        };
        let text = details(&proto::Job { stragglers: vec![straggler], inputs: Some(inputs), ..running() }, NOW_UNIX_MS);
        for words in [
            "w1 (rank 1) computes 2.5 times as long as its 3 peers: 40.0 ms a step and not 16.0 ms, over steps 121 to 140",
            "3 files, 1.2 MB of text under /data",
            "1,200 files, 3.0 MB: not UTF-8 text (a.bin, b.png, ...)",
            "a note",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
    }
}
