//! What runs showed, for people and for programs: tables, JSON and plots.

use std::collections::BTreeMap;

use serde::Serialize;

use super::account::{Account, Cause, Counts};
use super::model::Scenario;
use crate::format::{count, duration};
use crate::svg::{Axis, Mark, Plot, Scale, Series};

/// Of Toroid, or of the launcher.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Committed steps that stay, times the time of a step with all places, over all time: 0 to 1.
    pub goodput: f64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Seconds by cause.
    pub time_s: BTreeMap<&'static str, f64>,
}

impl From<&Account> for Summary {
    fn from(account: &Account) -> Summary {
        let time_s = Cause::ALL.into_iter().map(|cause| (cause.name(), account.of(cause).as_secs_f64())).collect();
        Summary { goodput: account.goodput(), counts: account.counts.clone(), time_s }
    }
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub scenario: Scenario,
    pub step_s: f64,
    pub toroid: Summary,
    pub launcher: Summary,
}

/// As in `99.962%`.
pub fn share(value: f64) -> String {
    format!("{:.3}%", 100.0 * value)
}

/// How much of the time is not goodput has more to say than how much is.
fn summary_cells(s: &Summary) -> [String; 4] {
    [share(s.goodput), count(s.counts.deaths), count(s.counts.restores), count(s.counts.lost_steps)]
}

pub type Rows = Vec<Vec<String>>;

fn rows(header: &[&str], body: impl Iterator<Item = Vec<String>>) -> Rows {
    std::iter::once(header.iter().map(|cell| cell.to_string()).collect()).chain(body).collect()
}

/// A row a run.
pub fn runs(outcomes: &[Outcome]) -> Rows {
    let header = [
        "PLACES",
        "SPARES",
        "ONE FAILURE IN",
        "CHECKPOINT EVERY",
        "SECOND HOLDER",
        "GOODPUT",
        "DEATHS",
        "FROM A CHECKPOINT",
        "LOST STEPS",
        "LAUNCHER",
        "ITS LOST STEPS",
    ];
    let row = |o: &Outcome| {
        let s = &o.scenario;
        let places = [count(s.places as u64), count(s.spares as u64)];
        let times = [duration(s.failure_every_s), duration(s.interval_s)];
        let holder = if s.second_holder { "yes" } else { "no" };
        let launcher = [share(o.launcher.goodput), count(o.launcher.counts.lost_steps)];
        let cells = places.into_iter().chain(times).chain([holder.to_string()]);
        cells.chain(summary_cells(&o.toroid)).chain(launcher).collect()
    };
    rows(&header, outcomes.iter().map(row))
}

/// What the time of each run went to, as shares of it.
pub fn times(outcomes: &[Outcome]) -> Rows {
    let mut header = vec!["PLACES", "ONE FAILURE IN", ""];
    header.extend(Cause::ALL.map(Cause::name));
    let row = |o: &Outcome, who: &str, summary: &Summary| {
        let total: f64 = summary.time_s.values().sum();
        let first = [count(o.scenario.places as u64), duration(o.scenario.failure_every_s), who.to_string()];
        let of = |cause: Cause| match summary.time_s[cause.name()] / total {
            0.0 => "-".to_string(),
            value => share(value),
        };
        first.into_iter().chain(Cause::ALL.map(of)).collect::<Vec<String>>()
    };
    let both = |o: &Outcome| [row(o, "toroid", &o.toroid), row(o, "launcher", &o.launcher)];
    rows(&header, outcomes.iter().flat_map(both))
}

/// The same table for a page.
pub fn markdown(rows: &Rows) -> String {
    let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = String::new();
    for (number, cells) in rows.iter().enumerate() {
        let lower = |cell: &String| cell.to_lowercase();
        text += &if number == 0 { line(&cells.iter().map(lower).collect()) } else { line(cells) };
        if number == 0 {
            text += &format!("|{}\n", "---|".repeat(cells.len()));
        }
    }
    text
}

/// Goodput in percent over what `x` says of each run; `name` tells series apart.
pub fn plot(title: &str, x: Axis, outcomes: &[Outcome], of: impl Fn(&Outcome) -> (f64, Vec<(String, f64)>)) -> Plot {
    let mut by_name: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for (x, values) in outcomes.iter().map(of) {
        for (name, value) in values {
            match by_name.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push((x, 100.0 * value)),
                None => by_name.push((name, vec![(x, 100.0 * value)])),
            }
        }
    }
    let mut series = Vec::new();
    for (name, mut points) in by_name {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(Series { name: name.clone(), mark: Mark::Line, points: points.clone() });
        series.push(Series { name, mark: Mark::Dots, points });
    }
    Plot { title: title.into(), x, y: Axis::new("goodput, %", Scale::Linear), series }
}
