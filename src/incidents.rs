//! What failed, what was done about it and what it cost: `toroid incidents`, and the same words for status and summaries.
//!
//! The coordinator measures an incident; here it is only shown. Phases, in the order in which they pass:
//! detect (last sign of life to seen), fence (to the new epoch on its way), decide (to the last report), heal (to the first commit),
//! redo (the step that was being made, and after a restore those that were lost). All but detect add up to the total.

use std::process::ExitCode;

use anyhow::Result;
use toroid_proto as proto;
use toroid_proto::json;

use crate::client::Connection;
use crate::format::{duration, table, time};
use crate::output::FormatArgs;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let job = args.connection.open().await?.job(&args.job, false).await?;
    let text = match &job.incidents[..] {
        [] => format!("{} had no incident\n", job.id),
        incidents => format!("{}{}\n", incident_table(incidents), totals(&job)),
    };
    args.format.answer(&job.incidents.iter().map(json::Incident::from).collect::<Vec<_>>(), text)?;
    Ok(ExitCode::SUCCESS)
}

/// The phases of an incident by name, in seconds, in the order in which they pass.
pub fn phases(i: &proto::Incident) -> [(&'static str, f64); 5] {
    [("detect", i.detect_s), ("fence", i.fence_s), ("decide", i.decide_s), ("heal", i.heal_s), ("redo", i.redo_s)]
}

/// Milliseconds without their fraction.
pub fn ms(seconds: f64) -> String {
    format!("{:.0}", 1e3 * seconds)
}

fn incident_table(incidents: &[proto::Incident]) -> String {
    let header =
        ["NO", "WHEN", "RANKS", "RUNG", "LOST", "DETECT", "FENCE", "DECIDE", "HEAL", "REDO", "TOTAL MS", "CAUSE"];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(incidents.iter().map(|i| {
        let ranks = i.ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut row = vec![i.number.to_string(), time(i.unix_ms), ranks, i.rung.clone(), i.steps_lost.to_string()];
        row.extend(phases(i).map(|(_, s)| ms(s)));
        row.push(if i.resolved { ms(i.total_s) } else { "(lasts)".into() });
        row.push(i.cause.clone());
        row
    }));
    table(&rows)
}

/// All incidents of a job in one line: how many, what they cost.
pub fn totals(job: &proto::Job) -> String {
    let (n, lost) = (job.incidents.len(), steps(job.lost_steps));
    format!("{n} incident{}: {} of the job's time, {lost} lost", if n == 1 { "" } else { "s" }, duration(job.lost_s))
}

/// One incident in one line: who, by which rung, what it cost.
pub fn line(i: &proto::Incident) -> String {
    if !i.resolved {
        return format!("{} at step {} ({}), not over yet: {}", i.cause, i.step, rung(i), i.reason);
    }
    let by_phase = phases(i).map(|(name, s)| format!("{name} {}", ms(s))).join(", ");
    format!(
        "{} at step {} ({}): {} lost, {} ms ({by_phase})",
        i.cause,
        i.step,
        rung(i),
        steps(i.steps_lost),
        ms(i.total_s)
    )
}

/// As short as a status line has it: `last incident 0.4 s, no step lost`.
pub fn short(i: &proto::Incident) -> String {
    match i.resolved {
        true => format!("last incident {}, {} lost", duration(i.total_s), steps(i.steps_lost)),
        false => format!("incident {} lasts", i.number),
    }
}

fn rung(i: &proto::Incident) -> &str {
    if i.rung.is_empty() { "undecided" } else { &i.rung }
}

fn steps(n: u64) -> String {
    match n {
        0 => "no step".into(),
        1 => "1 step".into(),
        _ => format!("{n} steps"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident() -> proto::Incident {
        proto::Incident {
            number: 3,
            unix_ms: 1_795_514_334_000,
            cause: "w3 closed its stream".into(),
            ranks: vec![3, 5],
            rung: "spare".into(),
            reason: "spare w8 takes the place of w3".into(),
            step: 41,
            resumed_step: 41,
            fence_s: 0.002,
            decide_s: 0.0204,
            heal_s: 0.1496,
            total_s: 0.412,
            resolved: true,
            ..Default::default()
        }
    }

    #[test]
    fn an_incident_says_what_it_cost() {
        assert_eq!(
            line(&incident()),
            "w3 closed its stream at step 41 (spare): no step lost, 412 ms (detect 0, fence 2, decide 20, heal 150, redo 0)"
        );
        assert_eq!(short(&incident()), "last incident 0.4 s, no step lost");
        let lasting = proto::Incident { resolved: false, rung: String::new(), ..incident() };
        assert_eq!(
            line(&lasting),
            "w3 closed its stream at step 41 (undecided), not over yet: spare w8 takes the place of w3"
        );
        assert_eq!(short(&lasting), "incident 3 lasts");
    }

    #[test]
    fn the_table_has_a_row_an_incident() {
        assert_eq!(
            incident_table(&[incident()]),
            "NO  WHEN                 RANKS  RUNG   LOST  DETECT  FENCE  DECIDE  HEAL  REDO  TOTAL MS  CAUSE\n\
             3   2026-11-24 09:58:54  3,5    spare  0     0       2      20      150   0     412       w3 closed its stream\n"
        );
        let job = proto::Job { incidents: vec![incident(); 2], lost_s: 0.824, lost_steps: 1, ..Default::default() };
        assert_eq!(totals(&job), "2 incidents: 0.8 s of the job's time, 1 step lost");
    }
}
