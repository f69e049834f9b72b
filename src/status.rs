//! `toroid status`: a job in a line and in detail, once or until it ends; for people and (`-o json`) for programs.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use toroid_proto as proto;
use toroid_proto::json::{self, state_word};

use crate::client::{Client, Connection};
use crate::exit::wrong_use;
use crate::format::{bytes, count, duration, now_unix_ms, percent, rate, seconds, short_count, table, time};
use crate::incidents;
use crate::links;
use crate::output::{self, Format, FormatArgs};
use crate::progress::event_line;
use crate::watch::{Follow, PATIENCE};

/// Between two lines of a watched job where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Of the newest events, this many are shown with a status.
const NUM_EVENTS: usize = 5;

#[derive(Debug, clap::Args)]
#[command(mut_arg("output", |arg| arg.help("Text, or JSON with the whole curve; with --watch one JSON document a line, without the curve")))]
pub struct StatusArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// Stay, and show every change until the job ends; exit code 0 only if it is done
    #[arg(short, long)]
    watch: bool,
    /// Leave the curve out of the JSON
    #[arg(long)]
    no_curve: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

pub async fn status(args: StatusArgs) -> Result<ExitCode> {
    if args.no_curve && !args.format.is_json() {
        return Err(wrong_use("--no-curve leaves something out of the JSON, which was not asked for: add `-o json`"));
    }
    if args.watch {
        return watch(args).await;
    }
    let mut client = args.connection.open().await?;
    let job = client.job(&args.job, false).await?;
    if args.format.is_json() && !args.no_curve {
        print_with_curve(&mut client, &job).await?;
    } else {
        args.format.answer(&json::Job::new(&job, false), details(&job, now_unix_ms()))?;
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
    let mut screen = Screen::new(args.format.output);
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
        parts.extend(last.policy.iter().map(|p| format!("score {:.4}  KL {:.3}", p.score, p.kl)));
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
    parts.extend(job.saving.as_ref().map(saving));
    parts.extend(job.unsaved.as_ref().map(|unsaved| {
        let for_s = (now_unix_ms - unsaved.since_unix_ms) as f64 / 1e3;
        format!("step {} not saved for {} ({})", unsaved.step, duration(for_s), tries(unsaved.num_tries))
    }));
    parts.extend(job.incidents.last().map(incidents::short));
    parts.join("  ")
}

/// `checkpoint 200: 61.0% of 12.4 GB, 3 of 8 places, 410.0 MB/s`
fn saving(saving: &proto::Saving) -> String {
    let proto::Saving { step, bytes: written, total_bytes, places_done, places, bytes_per_s } = saving;
    let mut text = format!("checkpoint {step}: ");
    if *total_bytes > 0 {
        text += &format!("{} of {}, ", percent(*written as f64 / *total_bytes as f64), bytes(*total_bytes));
    }
    text += &format!("{places_done} of {places} places");
    if *bytes_per_s > 0.0 {
        text += &format!(", {}/s", bytes(*bytes_per_s as u64));
    }
    text
}

/// What the answers of a policy are worth, and how far it went for that.
pub fn policy(p: &proto::PolicyStep) -> String {
    let (score, kl, kl_coef, answer_tokens) = (p.score, p.kl, p.kl_coef, p.answer_tokens);
    let (clipped, stopped) = (percent(p.clip_fraction), percent(p.stopped));
    format!(
        "score {score:.4}; KL {kl:.3} nats an answer (coefficient {kl_coef:.4}); {clipped} of the tokens clipped; {answer_tokens:.1} tokens \
         an answer, {stopped} stop"
    )
}

/// Pairs of a validation that a reward model ranks right: a tie is none, and not wrong either.
pub fn accuracy(v: &proto::Validation) -> String {
    let share = 100.0 * v.correct as f64 / v.tokens.max(1) as f64;
    format!("{share:.1}% of {} pairs right, {} tied", v.tokens, v.ties)
}

/// Of the last step of a job that trains on dialogues, preferences or answers of its own.
fn taught(last: &proto::StepRecord) -> Option<String> {
    if let Some(p) = &last.policy {
        return Some(policy(p));
    }
    match (last.trained_tokens, last.pairs) {
        (Some(0), _) => Some("no token of the last step is trained: it has no loss but the routers'".into()),
        (Some(trained), _) => Some(format!("loss over {trained} trained tokens of {} in the last step", last.tokens)),
        (None, 0) => None,
        (None, pairs) => {
            let (correct, ties) = (last.correct, last.ties);
            let accuracy = 100.0 * correct as f64 / pairs as f64;
            Some(format!("accuracy {accuracy:.1}%: {correct} of {pairs} pairs in the last step, {ties} ties besides"))
        }
    }
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
    rows.extend(job.last_step.iter().filter_map(taught).map(|what| row("learned", what)));
    rows.extend(curve_flaws(job).map(|(figures, what)| row("curve", format!("{figures}: {what}"))));
    if let Some(v) = job.validations.last() {
        // Of tokens that are no bytes it is not known.
        let of_bytes =
            if v.bits_per_byte == 0.0 { "".into() } else { format!(", {:.4} bits per byte", v.bits_per_byte) };
        let has_pairs = job.last_step.as_ref().is_some_and(|last| last.pairs > 0);
        let (of, right) = if has_pairs { ("pair", format!(", {}", accuracy(v))) } else { ("token", String::new()) };
        rows.push(row("validation", format!("{:.4} nats per {of}{of_bytes}{right} at step {}", v.ce, v.step)));
        let names = job.inputs.iter().flat_map(|inputs| &inputs.sources);
        rows.extend(names.zip(&v.sources).map(|(source, v)| row("", format!("{:.4} of {}", v.ce, source.name))));
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
        rows.extend(lines("sources", inputs.sources.iter().map(source).collect()));
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
    let (worker, slowness) = (&s.worker_id, slowness(s));
    let (from, to) = (s.from_step + 1, s.to_step);
    format!("{worker} (rank {}) {slowness}, over steps {from} to {to}; `toroid drain {worker}` moves its place", s.rank)
}

/// How much slower it is, as what is said of its worker.
pub fn slowness(s: &proto::Straggler) -> String {
    format!(
        "computes {:.1} times as long as its {} peers: {} a step and not {}",
        s.factor,
        s.num_peers,
        seconds(s.compute_s),
        seconds(s.peers_s)
    )
}

fn left_out(l: &proto::LeftOut) -> String {
    let more = if l.num_files > l.first.len() as u64 { ", ..." } else { "" };
    let files = if l.num_files == 1 { "file" } else { "files" };
    format!("{} {files}, {}: {} ({}{more})", count(l.num_files), bytes(l.bytes), l.reason, l.first.join(", "))
}

/// `code: 40.0% of the samples, 1.25 epochs of 12,345 so far (at most 4)`.
pub fn source(s: &proto::Source) -> String {
    let most = if s.max_epochs == 0.0 { String::new() } else { format!(" (at most {})", s.max_epochs) };
    let (share, samples) = (percent(s.share), count(s.num_samples));
    format!("{}: {share} of the samples, {:.2} epochs of {samples} so far{most}", s.name, s.epochs)
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
                ..Default::default()
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
    fn a_checkpoint_that_is_being_written_is_shown() {
        let saving = proto::Saving {
            step: 120,
            bytes: 7_564_000_000,
            total_bytes: 12_400_000_000,
            places_done: 3,
            places: 8,
            bytes_per_s: 410e6,
        };
        let job = proto::Job { saving: Some(saving), ..running() };
        let text = line(&job, NOW_UNIX_MS);
        let expected = "checkpoint 42 s ago (step 100)  checkpoint 120: 61.0% of 12.4 GB, 3 of 8 places, 410.0 MB/s";
        assert!(text.ends_with(expected), "{text}");
        // All that has begun is written, and some have not said how much theirs is.
        let saving = proto::Saving { total_bytes: 0, bytes: 0, bytes_per_s: 0.0, ..saving };
        let job = proto::Job { saving: Some(saving), ..running() };
        assert!(line(&job, NOW_UNIX_MS).ends_with("checkpoint 120: 3 of 8 places"));
    }

    #[test]
    fn what_each_kind_learned_is_shown() {
        let check = |record: proto::StepRecord, in_line: &str, in_details: &str| {
            let job = proto::Job { last_step: Some(record), ..running() };
            let (line, details) = (line(&job, NOW_UNIX_MS), details(&job, NOW_UNIX_MS));
            assert!(line.contains(in_line) && details.contains(in_details), "{line}\n{details}");
        };
        let record = || proto::StepRecord { loss: 0.25, tokens: 100, ..Default::default() };
        let policy = proto::PolicyStep {
            score: 0.8125,
            kl: 1.23456,
            kl_coef: 0.05,
            clip_fraction: 0.125,
            answer_tokens: 17.25,
            stopped: 0.9375,
            ..Default::default()
        };
        check(
            proto::StepRecord { policy: Some(policy), trained_tokens: Some(60), ..record() },
            "loss 0.2500  score 0.8125  KL 1.235  ",
            "score 0.8125; KL 1.235 nats an answer (coefficient 0.0500); 12.5% of the tokens clipped; 17.2 tokens an answer, 93.8% stop",
        );
        let trained = proto::StepRecord { trained_tokens: Some(60), ..record() };
        check(trained, "loss 0.2500  13,412", "loss over 60 trained tokens of 100 in the last step");
        let pairs = proto::StepRecord { pairs: 8, correct: 6, ties: 1, ..record() };
        check(pairs, "loss 0.2500  13,412", "accuracy 75.0%: 6 of 8 pairs in the last step, 1 ties besides");
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
            sources: vec![proto::Source {
                name: "code".into(),
                num_samples: 12_345,
                share: 0.4,
                epochs: 1.254,
                max_epochs: 4.0,
                ..Default::default()
            }],
        };
        let text = details(&proto::Job { stragglers: vec![straggler], inputs: Some(inputs), ..running() }, NOW_UNIX_MS);
        for words in [
            "w1 (rank 1) computes 2.5 times as long as its 3 peers: 40.0 ms a step and not 16.0 ms, over steps 121 to 140",
            "3 files, 1.2 MB of text under /data",
            "1,200 files, 3.0 MB: not UTF-8 text (a.bin, b.png, ...)",
            "a note",
            "code: 40.0% of the samples, 1.25 epochs of 12,345 so far (at most 4)",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
    }
}
