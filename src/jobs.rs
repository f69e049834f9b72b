//! `toroid jobs`: the list of jobs, by page, and taking one off it.

use std::process::ExitCode;

use anyhow::Result;
use toroid_proto as proto;
use toroid_proto::json::{self, state_word};

use crate::client::Connection;
use crate::format::{count, rate, table, time};
use crate::output::{self, FormatArgs};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Show so many jobs, the newest
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Show the jobs before those of another call, which names this page
    #[arg(long, default_value = "", value_name = "PAGE")]
    page: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take a job that has ended off the list; its folder stays, and its id is given to no other
    Rm {
        /// The job's id, as `toroid jobs` lists it
        job: String,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
}

pub async fn run(args: Args) -> Result<ExitCode> {
    if let Some(Command::Rm { job, format, connection }) = args.command {
        let folder = connection.open().await?.remove(&job).await?;
        let text =
            format_args!("{job} is no longer listed; its folder {folder} stays, remove it where you need it no more\n");
        format.answer(&serde_json::json!({ "job_id": &job, "folder": &folder }), text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (mut jobs, next) = args.connection.open().await?.jobs(args.limit as usize, args.page).await?;
    // The newest next to the prompt.
    jobs.reverse();
    let text = match &jobs[..] {
        [] => "no jobs yet; submit one with `toroid submit job.toml`\n".into(),
        jobs => job_table(jobs),
    };
    args.format.answer(&jobs.iter().map(|job| json::Job::new(job, false)).collect::<Vec<_>>(), text)?;
    if !next.is_empty() {
        output::note(format_args!(
            "there are older jobs: `toroid jobs --page {next}` shows them, --limit more at once"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn job_table(jobs: &[proto::Job]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_how_far_each_job_is() {
        let job = proto::Job {
            id: "tiny-1".into(),
            state: proto::JobState::Running.into(),
            reason: "all 2 workers are prepared".into(),
            committed_step: 120,
            total_steps: 200,
            last_step: Some(proto::StepRecord { loss: 2.34567, ..Default::default() }),
            tokens_per_s: 13_411.6,
            places: vec![proto::PlaceInfo::default(); 2],
            places_alive: 1,
            ..Default::default()
        };
        let text = job_table(&[job]);
        assert!(text.contains("JOB     STATE    PRIORITY  USER  STEP     LOSS"), "{text}");
        assert!(text.contains("tiny-1  running  0         -     120/200  2.3457  13,412    1/2"), "{text}");
    }
}
