//! `toroid trace`: the spans that workers wrote with `--trace`, as a table and as a Chrome trace.
//!
//! In the trace a rank is a process with two lanes, its phases and its communication. *Exposed* is the time of a rank in calls that
//! communicate: the trainer computes nothing meanwhile, waits for slower ranks included. What is moved while a rank computes, by its peers or by
//! the kernel, is in no such call, and so in no figure here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use toroid_worker::trace::{Kind, Span};

use crate::format::table;
use crate::output;
use crate::status::Format;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that the workers were given with --trace
    folder: PathBuf,
    /// Chrome trace to write
    #[arg(long, default_value = "trace.json", value_name = "FILE")]
    out: PathBuf,
    /// Text or JSON
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
}

/// One phase of one rank: medians over the steps, in milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    rank: usize,
    phase: String,
    time_ms: f64,
    exposed_ms: f64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let spans = read(&args.folder)?;
    let trace = serde_json::to_string(&chrome(&spans)).context("write the trace as JSON")?;
    std::fs::write(&args.out, trace).with_context(|| format!("write {}", args.out.display()))?;
    let rows = rows(&spans);
    match args.output {
        Format::Text => output::print(text(&rows))?,
        Format::Json => output::line(serde_json::to_string_pretty(&rows).context("write the figures as JSON")?)?,
    }
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
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
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
    let begin = spans.iter().map(|span| span.start_us).fold(f64::INFINITY, f64::min);
    let lanes = [(Kind::Phase, "phases"), (Kind::Communication, "communication")];
    let ranks: std::collections::BTreeSet<usize> = spans.iter().map(|span| span.rank).collect();
    let mut events = Vec::new();
    for rank in ranks {
        let name = format!("rank {rank}");
        events.push(json!({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}}));
        for (lane, name) in lanes {
            let lane = lane as usize;
            events.push(json!({"ph": "M", "name": "thread_name", "pid": rank, "tid": lane, "args": {"name": name}}));
        }
    }
    events.extend(spans.iter().map(|span| {
        json!({
            "ph": "X", "name": span.name, "pid": span.rank, "tid": span.kind as usize, "ts": span.start_us - begin,
            "dur": span.duration_us, "args": {"step": span.step},
        })
    }));
    json!({"traceEvents": events, "displayTimeUnit": "ms"})
}

/// By rank and phase in the order in which a step goes through them; the first step, which touches memory for the first time, is
/// left out where there are others. A rank's last row is the whole step.
fn rows(spans: &[Span]) -> Vec<Row> {
    const WHOLE: &str = "(step)";
    let first = spans.iter().map(|span| span.step).min();
    let is_only = spans.iter().all(|span| Some(span.step) == first);
    let mut order: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    let mut sums: BTreeMap<(usize, &str), BTreeMap<u64, [f64; 2]>> = BTreeMap::new();
    for span in spans.iter().filter(|span| is_only || Some(span.step) != first) {
        let next = order.len();
        order.entry((span.rank, &span.name)).or_insert(next);
        for name in [span.name.as_str(), WHOLE] {
            let of_step = sums.entry((span.rank, name)).or_default().entry(span.step).or_default();
            of_step[usize::from(span.kind == Kind::Communication)] += span.duration_us / 1e3;
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for ((rank, phase), steps) in sums {
        let median = |which: usize| {
            let mut values: Vec<f64> = steps.values().map(|of_step| of_step[which]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        rows.push(Row { rank, phase: phase.to_owned(), time_ms: median(0), exposed_ms: median(1) });
    }
    rows.sort_by_key(|row| (row.rank, order.get(&(row.rank, row.phase.as_str())).copied().unwrap_or(usize::MAX)));
    rows
}

fn text(rows: &[Row]) -> String {
    let mut cells = vec![["RANK", "PHASE", "MS", "EXPOSED MS", "EXPOSED"].map(String::from).to_vec()];
    cells.extend(rows.iter().map(|row| {
        let share = if row.time_ms > 0.0 { 100.0 * row.exposed_ms / row.time_ms } else { 0.0 };
        vec![
            row.rank.to_string(),
            row.phase.clone(),
            format!("{:.2}", row.time_ms),
            format!("{:.2}", row.exposed_ms),
            format!("{share:.0}%"),
        ]
    }));
    table(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans() -> Vec<Span> {
        let span = |step, name: &str, kind, start_ms: f64, ms: f64| {
            let (start_us, duration_us) = (start_ms * 1e3, ms * 1e3);
            Span { rank: 1, step, name: name.into(), kind, start_us, duration_us }
        };
        vec![
            span(1, "forward", Kind::Phase, 0.0, 90.0),
            span(2, "forward", Kind::Phase, 100.0, 6.0),
            span(2, "forward", Kind::Communication, 101.0, 1.5),
            span(2, "backward", Kind::Phase, 106.0, 4.0),
            span(2, "backward", Kind::Communication, 106.0, 1.0),
        ]
    }

    #[test]
    fn a_phase_is_a_row_and_says_what_was_not_hidden() {
        assert_eq!(
            text(&rows(&spans())),
            "RANK  PHASE     MS     EXPOSED MS  EXPOSED\n\
             1     forward   6.00   1.50        25%\n\
             1     backward  4.00   1.00        25%\n\
             1     (step)    10.00  2.50        25%\n"
        );
    }

    #[test]
    fn the_chrome_trace_has_a_process_a_rank_and_a_lane_a_kind() {
        let trace = chrome(&spans());
        let events = trace["traceEvents"].as_array().expect("a list");
        assert_eq!(events.len(), 3 + 5);
        let communication = &events[5];
        assert_eq!(communication["ph"], "X");
        assert_eq!((&communication["pid"], &communication["tid"]), (&json!(1), &json!(1)));
        assert_eq!((&communication["ts"], &communication["dur"]), (&json!(101_000.0), &json!(1_500.0)));
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
