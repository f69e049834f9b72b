//! `toroid explain`: what happened to a job, in plain words and short paragraphs, with what to do about it.
//!
//! ```text
//!   proto::Job, proto::WorkerInfo, now ──> incident (one that was)     ──> Explanation ──> text, JSON
//!                                     └──> now (what is unusual)       ──┘
//!   fault   what kind of failure a cause is: what it means, what to do
//! ```
//!
//! Pure but for [`run`]. The coordinator says what it has seen and why it did what it did; here are only the words around that, and what
//! whoever runs the machines does next.

mod fault;
mod incident;
mod now;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use toroid_proto::{self as proto, json};

use crate::client::Connection;
use crate::exit::not_found;
use crate::format::{now_unix_ms, wrap};
use crate::output::FormatArgs;

/// Columns of the text.
const WIDTH: usize = 100;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// The incident's number, as `toroid incidents` lists it; default: the newest, and what is unusual now
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    incident: Option<u64>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// What is looked at: a job, the workers that are connected, and when.
#[derive(Debug, Clone, Copy)]
struct Situation<'a> {
    job: &'a proto::Job,
    workers: &'a [proto::WorkerInfo],
    now_unix_ms: i64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Explanation {
    title: String,
    sections: Vec<Section>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Section {
    heading: String,
    paragraphs: Vec<String>,
    /// Lines of somebody else, as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quotes: Vec<Quote>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Quote {
    of: String,
    lines: Vec<String>,
}

impl Section {
    fn new(heading: impl Into<String>, paragraphs: Vec<String>) -> Section {
        Section { heading: heading.into(), paragraphs, quotes: Vec::new() }
    }
}

impl Explanation {
    fn text(&self) -> String {
        let mut text = wrap(&self.title, WIDTH, "");
        for section in &self.sections {
            text += &format!("\n{}\n", section.heading);
            for paragraph in &section.paragraphs {
                text += &wrap(paragraph, WIDTH, "  ");
            }
            for quote in &section.quotes {
                text += &format!("  {}:\n", quote.of);
                for line in &quote.lines {
                    text += format!("    {line}").trim_end();
                    text.push('\n');
                }
            }
        }
        // Logs of workers may have colours, and worse, in them.
        text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
    }
}

/// For programs: the words, and the incident that they are about.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    job_id: &'a str,
    incident: Option<json::Incident<'a>>,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let mut client = args.connection.open().await?;
    let job = client.job(&args.job, false).await?;
    let workers = client.workers().await?;
    let situation = Situation { job: &job, workers: &workers, now_unix_ms: now_unix_ms() };
    let about = match args.incident {
        None => job.incidents.last(),
        Some(number) => Some(find(&job, number)?),
    };
    let explanation = explain(&situation, about, args.incident.is_none());
    let answer = Answer { job_id: &job.id, incident: about.map(json::Incident::from), explanation: &explanation };
    args.format.answer(&answer, explanation.text())?;
    Ok(ExitCode::SUCCESS)
}

fn find(job: &proto::Job, number: u64) -> Result<&proto::Incident> {
    job.incidents.iter().find(|i| i.number == number).ok_or_else(|| {
        let there = match (job.incidents.first(), job.incidents.last()) {
            (Some(first), Some(last)) => format!("there are {} to {}", first.number, last.number),
            _ => "it had none".into(),
        };
        not_found(format!("{} has no incident {number}; {there} (`toroid incidents {}`)", job.id, job.id))
    })
}

/// An incident, and what is unusual now where that is asked for.
fn explain(situation: &Situation<'_>, about: Option<&proto::Incident>, with_now: bool) -> Explanation {
    let unusual = if with_now { now::unusual(situation) } else { Vec::new() };
    match about {
        Some(incident) => {
            let mut explanation = incident::explain(situation, incident);
            explanation.sections.extend(unusual);
            explanation
        }
        None => {
            let title = format!("{} had no incident. {}", situation.job.id, now::in_a_sentence(situation.job));
            let nothing = || Section::new("Now", vec!["Nothing is unusual.".into()]);
            Explanation { title, sections: if unusual.is_empty() { vec![nothing()] } else { unusual } }
        }
    }
}
