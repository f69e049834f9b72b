//! `toroid trace`: the spans that workers wrote with `--trace`, as tables and as a Chrome trace.
//!
//! ```text
//!   rank 0   compute        | forward          | forward | backward ...                              the phases of the step
//!            communication  | all-gather |tp|..|tp| stage transfer ...                               a lane without overlaps
//!                             hidden      exposed
//! ```
//!
//! Of a rank's time, by its own spans:
//!
//! - **exposed**: in calls that communicate. The trainer computes nothing meanwhile.
//! - **hidden**: between two such calls while a collective was in flight or a message to another stage on its way. The trainer computed.
//! - **late**: of the exposed time that in which somebody whom the call waited for had not come to it: that rank was computing, or waiting
//!   for one that was. No link makes this shorter. Clocks are those of the workers: on several hosts they must agree.
//! - **moving**: of the rest the time in which the calling thread ran: it copied and added, or looked whether there is something to copy.
//! - **idle**: what is left. Everybody was there, and this thread had to wait: bytes were on a wire, or who had to move them had no core.
//! - **on CPU**: how long the worker's threads ran on a core, in and out of calls. Where it is far below the time spent computing, the worker
//!   shares its cores with others; its peers find it late, and what it is to move lies idle.
//!
//! The share that is hidden is hidden over hidden and exposed; without late ranks, hidden over hidden, moving and idle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use toroid_worker::trace::{Kind, Span};

use crate::files::read_text;
use crate::format::table;
use crate::output::{self, FormatArgs};

/// Of the spans of one worker: its first steps.
const MAX_FILE_BYTES: u64 = 256 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that the workers were given with --trace
    folder: PathBuf,
    /// Chrome trace to write
    #[arg(long, default_value = "trace.json", value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Of one rank: medians over the steps, in milliseconds.
#[derive(Debug, Serialize)]
struct Report {
    ranks: Vec<Rank>,
    communication: Vec<Communication>,
    phases: Vec<Phase>,
}

#[derive(Debug, Serialize)]
struct Rank {
    rank: usize,
    step_ms: f64,
    /// Of the step what is not exposed.
    compute_ms: f64,
    cpu_ms: f64,
    #[serde(flatten)]
    times: Times,
    hidden_share: f64,
    hidden_share_without_late: f64,
}

/// All of one kind in a step.
#[derive(Debug, Serialize)]
struct Communication {
    rank: usize,
    what: String,
    #[serde(flatten)]
    times: Times,
}

#[derive(Debug, Serialize)]
struct Phase {
    rank: usize,
    phase: String,
    time_ms: f64,
    exposed_ms: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Times {
    hidden_ms: f64,
    exposed_ms: f64,
    late_ms: f64,
    moving_ms: f64,
    idle_ms: f64,
}

impl Times {
    /// Of the span `together_ms` were not late.
    fn add(&mut self, span: &Span, together_ms: f64) {
        let duration_ms = span.duration_us / 1e3;
        match span.kind {
            Kind::Hidden => self.hidden_ms += duration_ms,
            Kind::Exposed => {
                let moving_ms = (span.cpu_us.unwrap_or(0.0) / 1e3).min(together_ms);
                self.exposed_ms += duration_ms;
                self.late_ms += (duration_ms - together_ms).max(0.0);
                self.moving_ms += moving_ms;
                self.idle_ms += together_ms - moving_ms;
            }
            Kind::Phase => {}
        }
    }

    fn median(of_steps: &[Times]) -> Times {
        let figure = |which: fn(&Times) -> f64| median(of_steps.iter().map(which).collect());
        Times {
            hidden_ms: figure(|t| t.hidden_ms),
            exposed_ms: figure(|t| t.exposed_ms),
            late_ms: figure(|t| t.late_ms),
            moving_ms: figure(|t| t.moving_ms),
            idle_ms: figure(|t| t.idle_ms),
        }
    }

    fn hidden_share(&self) -> f64 {
        share(self.hidden_ms, self.exposed_ms)
    }

    fn hidden_share_without_late(&self) -> f64 {
        share(self.hidden_ms, self.moving_ms + self.idle_ms)
    }
}

/// 1 where there is nothing.
fn share(part: f64, rest: f64) -> f64 {
    if part + rest > 0.0 { part / (part + rest) } else { 1.0 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let spans = read(&args.folder)?;
    let trace = serde_json::to_string(&chrome(&spans)).context("write the trace as JSON")?;
    std::fs::write(&args.out, trace).with_context(|| format!("write {}", args.out.display()))?;
    let report = report(&spans);
    args.format.answer(&report, text(&report))?;
    output::note(format_args!("wrote {}; open it in chrome://tracing or ui.perfetto.dev", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

pub fn read(folder: &Path) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("read the folder {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("read the folder {}", folder.display()))?.path();
        if path.extension().is_none_or(|ending| ending != "jsonl") {
            continue;
        }
        let text = read_text(&path, "the spans in", MAX_FILE_BYTES)?;
        for (number, line) in (1..).zip(text.lines()) {
            let at = || format!("line {number} of {} is no span of a trace", path.display());
            spans.push(serde_json::from_str::<Span>(line).with_context(at)?);
        }
    }
    let folder = folder.display();
    ensure!(!spans.is_empty(), "no spans in {folder}; start workers with --trace {folder} and let them commit a step");
    spans.sort_by(|a, b| (a.rank, a.start_us).partial_cmp(&(b.rank, b.start_us)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(spans)
}

/// In the trace event format of Chrome, times in microseconds from the first span on.
fn chrome(spans: &[Span]) -> Value {
    const LANES: [&str; 2] = ["compute", "communication"];
    let begin = spans.iter().map(|span| span.start_us).fold(f64::INFINITY, f64::min);
    let ranks: BTreeSet<usize> = spans.iter().map(|span| span.rank).collect();
    let mut events = Vec::new();
    for rank in ranks {
        let name = format!("rank {rank}");
        events.push(json!({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}}));
        for (lane, name) in LANES.iter().enumerate() {
            events.push(json!({"ph": "M", "name": "thread_name", "pid": rank, "tid": lane, "args": {"name": name}}));
        }
    }
    let together = together(spans);
    events.extend(spans.iter().zip(together).map(|(span, together)| {
        let (lane, category, args) = match span.kind {
            Kind::Phase => (0, "phase", json!({"step": span.step, "cpu_us": span.cpu_us})),
            Kind::Hidden => (1, "hidden", json!({"step": span.step})),
            Kind::Exposed => {
                let late_us = (span.duration_us - length(&together)).max(0.0);
                (1, "exposed", json!({"step": span.step, "waited_for": span.waited_for, "late_us": late_us, "cpu_us": span.cpu_us}))
            }
        };
        let name = if span.kind == Kind::Hidden { format!("{} (hidden)", span.name) } else { span.name.clone() };
        json!({
            "ph": "X", "name": name, "cat": category, "pid": span.rank, "tid": lane, "ts": span.start_us - begin,
            "dur": span.duration_us, "args": args,
        })
    }));
    json!({"traceEvents": events, "displayTimeUnit": "ms"})
}

/// Start and end in microseconds, ascending and apart.
type Intervals = Vec<(f64, f64)>;

fn length(intervals: &Intervals) -> f64 {
    intervals.iter().map(|(start, end)| end - start).sum()
}

fn common(a: &[(f64, f64)], b: &[(f64, f64)]) -> Intervals {
    let mut both = Vec::new();
    for &(start, end) in a {
        let first = b.partition_point(|other| other.1 <= start);
        let touching = b[first..].iter().take_while(|other| other.0 < end);
        both.extend(touching.map(|other| (start.max(other.0), end.min(other.1))));
    }
    both
}

/// Of each exposed span, when it was not late: everybody that it waited for was in a call, too, and that call was not late.
///
/// The largest such times: from all of every span what is late by others is taken away, again and again, until nothing is.
fn together(spans: &[Span]) -> Vec<Intervals> {
    let whole = |span: &Span| match span.kind {
        Kind::Exposed => vec![(span.start_us, span.start_us + span.duration_us)],
        Kind::Phase | Kind::Hidden => Vec::new(),
    };
    let mut times: Vec<Intervals> = spans.iter().map(whole).collect();
    loop {
        let mut of_rank: BTreeMap<usize, Intervals> = BTreeMap::new();
        for (span, times) in spans.iter().zip(&times) {
            of_rank.entry(span.rank).or_default().extend(times);
        }
        let mut changed = false;
        for (span, times) in spans.iter().zip(&mut times) {
            // A rank that wrote nothing down says nothing about being late.
            for peer in span.waited_for.iter().filter_map(|peer| of_rank.get(peer)) {
                let left = common(times, peer);
                changed |= length(&left) < length(times);
                *times = left;
            }
        }
        if !changed {
            return times;
        }
    }
}

/// Of the steps but the first, which touches memory for the first time, where there are others.
fn report(all: &[Span]) -> Report {
    let first = all.iter().map(|span| span.step).min();
    let is_only = all.iter().all(|span| Some(span.step) == first);
    let counts = |span: &Span| is_only || Some(span.step) != first;
    let together = together(all);
    let mut ranks: BTreeMap<usize, BTreeMap<u64, (Times, f64, f64)>> = BTreeMap::new();
    let mut kinds: BTreeMap<(usize, &str), BTreeMap<u64, Times>> = BTreeMap::new();
    let mut phases: BTreeMap<(usize, &str), BTreeMap<u64, [f64; 2]>> = BTreeMap::new();
    let mut order: Vec<(usize, &str)> = Vec::new();
    for (span, together) in all.iter().zip(&together).filter(|(span, _)| counts(span)) {
        let (duration_ms, together_ms) = (span.duration_us / 1e3, length(together) / 1e3);
        let (times, step_ms, cpu_ms) = ranks.entry(span.rank).or_default().entry(span.step).or_default();
        times.add(span, together_ms);
        let key = (span.rank, span.name.as_str());
        match span.kind {
            Kind::Phase => {
                *step_ms += duration_ms;
                *cpu_ms += span.cpu_us.unwrap_or(0.0) / 1e3;
                if !order.contains(&key) {
                    order.push(key);
                }
                phases.entry(key).or_default().entry(span.step).or_default()[0] += duration_ms;
            }
            Kind::Hidden | Kind::Exposed => {
                kinds.entry(key).or_default().entry(span.step).or_default().add(span, together_ms);
            }
        }
    }
    for (rank, span, phase) in in_phases(all).into_iter().filter(|(_, span, _)| counts(span)) {
        phases.entry((rank, phase)).or_default().entry(span.step).or_default()[1] += span.duration_us / 1e3;
    }
    let rank = |(rank, steps): (usize, BTreeMap<u64, (Times, f64, f64)>)| {
        let steps: Vec<(Times, f64, f64)> = steps.into_values().collect();
        let times = Times::median(&steps.iter().map(|(times, ..)| *times).collect::<Vec<_>>());
        Rank {
            rank,
            step_ms: median(steps.iter().map(|(_, step_ms, _)| *step_ms).collect()),
            compute_ms: median(steps.iter().map(|(times, step_ms, _)| step_ms - times.exposed_ms).collect()),
            cpu_ms: median(steps.iter().map(|(.., cpu_ms)| *cpu_ms).collect()),
            hidden_share: times.hidden_share(),
            hidden_share_without_late: times.hidden_share_without_late(),
            times,
        }
    };
    let kind = |((rank, what), steps): ((usize, &str), BTreeMap<u64, Times>)| {
        let times = Times::median(&steps.into_values().collect::<Vec<_>>());
        Communication { rank, what: what.to_owned(), times }
    };
    let phase = |(rank, phase): (usize, &str)| {
        let of_steps = |which: usize| median(phases[&(rank, phase)].values().map(|of_step| of_step[which]).collect());
        Phase { rank, phase: phase.to_owned(), time_ms: of_steps(0), exposed_ms: of_steps(1) }
    };
    Report {
        ranks: ranks.into_iter().map(rank).collect(),
        communication: kinds.into_iter().map(kind).collect(),
        phases: order.into_iter().map(phase).collect(),
    }
}

/// The exposed spans of each rank with the phase that they began in. Spans come by rank and time.
fn in_phases(spans: &[Span]) -> Vec<(usize, &Span, &str)> {
    let mut phases: BTreeMap<usize, Vec<(f64, &str)>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.kind == Kind::Phase) {
        phases.entry(span.rank).or_default().push((span.start_us, &span.name));
    }
    let exposed = spans.iter().filter(|span| span.kind == Kind::Exposed);
    let found = exposed.filter_map(|span| {
        let of_rank = phases.get(&span.rank)?;
        let after = of_rank.partition_point(|(start, _)| *start <= span.start_us);
        Some((span.rank, span, of_rank[after.checked_sub(1)?].1))
    });
    found.collect()
}

fn text(report: &Report) -> String {
    let ms = |ms: f64| format!("{ms:.2}");
    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    let figures = |t: &Times| [t.hidden_ms, t.exposed_ms, t.late_ms, t.idle_ms, t.moving_ms].map(ms);
    let header = [
        "RANK",
        "STEP MS",
        "COMPUTE MS",
        "ON CPU MS",
        "HIDDEN MS",
        "EXPOSED MS",
        "LATE MS",
        "IDLE MS",
        "MOVING MS",
        "HIDDEN",
        "WITHOUT LATE",
    ];
    let mut ranks = vec![header.map(String::from).to_vec()];
    ranks.extend(report.ranks.iter().map(|r| {
        let mut row = vec![r.rank.to_string(), ms(r.step_ms), ms(r.compute_ms), ms(r.cpu_ms)];
        row.extend(figures(&r.times));
        row.extend([percent(r.hidden_share), percent(r.hidden_share_without_late)]);
        row
    }));
    let header = ["RANK", "COMMUNICATION", "HIDDEN MS", "EXPOSED MS", "LATE MS", "IDLE MS", "MOVING MS"];
    let mut kinds = vec![header.map(String::from).to_vec()];
    kinds.extend(report.communication.iter().map(|c| {
        let mut row = vec![c.rank.to_string(), c.what.clone()];
        row.extend(figures(&c.times));
        row
    }));
    let mut phases = vec![["RANK", "PHASE", "MS", "EXPOSED MS"].map(String::from).to_vec()];
    phases.extend(
        report.phases.iter().map(|p| vec![p.rank.to_string(), p.phase.clone(), ms(p.time_ms), ms(p.exposed_ms)]),
    );
    [table(&ranks), table(&kinds), table(&phases)].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(rank: usize, name: &str, kind: Kind, start_ms: f64, ms: f64) -> Span {
        let (start_us, duration_us) = (start_ms * 1e3, ms * 1e3);
        let cpu_us = (kind != Kind::Hidden).then_some(duration_us / 2.0);
        Span { rank, step: 2, name: name.into(), kind, waited_for: Vec::new(), cpu_us, start_us, duration_us }
    }

    fn waits(span: Span, waited_for: &[usize]) -> Span {
        Span { waited_for: waited_for.to_vec(), ..span }
    }

    fn spans() -> Vec<Span> {
        vec![
            Span { step: 1, ..span(1, "forward", Kind::Phase, 0.0, 90.0) },
            span(1, "forward", Kind::Phase, 100.0, 6.0),
            span(1, "tp", Kind::Exposed, 101.0, 1.5),
            span(1, "backward", Kind::Phase, 106.0, 4.0),
            span(1, "reduce-scatter", Kind::Hidden, 106.0, 3.0),
            span(1, "reduce-scatter", Kind::Exposed, 109.0, 1.0),
        ]
    }

    #[test]
    fn what_is_hidden_is_told_from_what_is_not() {
        assert_eq!(
            text(&report(&spans())),
            "RANK  STEP MS  COMPUTE MS  ON CPU MS  HIDDEN MS  EXPOSED MS  LATE MS  IDLE MS  MOVING MS  HIDDEN  WITHOUT LATE\n\
             1     10.00    7.50        5.00       3.00       2.50        0.00     1.25     1.25       55%     55%\n\
             \n\
             RANK  COMMUNICATION   HIDDEN MS  EXPOSED MS  LATE MS  IDLE MS  MOVING MS\n\
             1     reduce-scatter  3.00       1.00        0.00     0.50     0.50\n\
             1     tp              0.00       1.50        0.00     0.75     0.75\n\
             \n\
             RANK  PHASE     MS    EXPOSED MS\n\
             1     forward   6.00  1.50\n\
             1     backward  4.00  1.00\n"
        );
    }

    /// Rank 0 waits for rank 1, which waits for rank 2, which computes until 104: nobody transfers anything before.
    #[test]
    fn a_wait_for_who_waits_for_a_late_rank_is_late() {
        let spans = [
            waits(span(0, "tp", Kind::Exposed, 100.0, 5.0), &[1]),
            waits(span(1, "forward", Kind::Exposed, 101.0, 4.0), &[2]),
            span(2, "forward", Kind::Exposed, 104.0, 3.0),
        ];
        let times: Vec<f64> = together(&spans).iter().map(|t| length(t) / 1e3).collect();
        assert_eq!(times, [1.0, 1.0, 3.0]);
    }

    #[test]
    fn who_waits_for_each_other_is_not_late() {
        let spans = [
            waits(span(0, "tp", Kind::Exposed, 100.0, 5.0), &[1]),
            waits(span(1, "tp", Kind::Exposed, 102.0, 3.0), &[0]),
        ];
        let times: Vec<f64> = together(&spans).iter().map(|t| length(t) / 1e3).collect();
        assert_eq!(times, [3.0, 3.0]);
    }

    #[test]
    fn the_chrome_trace_has_a_process_a_rank_and_lanes_for_computing_and_communication() {
        let trace = chrome(&spans());
        let events = trace["traceEvents"].as_array().expect("a list");
        assert_eq!(events.len(), 3 + 6);
        let communication = &events[5];
        assert_eq!(communication["ph"], "X");
        assert_eq!((&communication["pid"], &communication["tid"]), (&json!(1), &json!(1)));
        assert_eq!((&communication["ts"], &communication["dur"]), (&json!(101_000.0), &json!(1_500.0)));
        assert_eq!(events[7]["name"], "reduce-scatter (hidden)");
    }

    #[test]
    fn a_folder_without_spans_is_refused_in_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = read(folder.path()).expect_err("there is nothing").to_string();
        assert!(error.contains("start workers with --trace"), "{error}");
        std::fs::write(folder.path().join("w0.jsonl"), "no span\n").expect("write");
        let error = read(folder.path()).expect_err("it is no span").to_string();
        assert!(error.contains("line 1 of"), "{error}");
    }
}
