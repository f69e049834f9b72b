//! `toroid jobs`: the list of jobs, by page, and taking one off it.

use std::process::ExitCode;

use anyhow::Result;

use toroid_proto::json;

use crate::client::Connection;
use crate::output;
use crate::status::{Format, job_table, print_json};

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
    /// Text or JSON
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Format,
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
        connection: Connection,
    },
}

pub async fn run(args: Args) -> Result<ExitCode> {
    if let Some(Command::Rm { job, connection }) = args.command {
        let folder = connection.open().await?.remove(&job).await?;
        output::line(format_args!(
            "{job} is no longer listed; its folder {folder} stays, remove it where you need it no more"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (mut jobs, next) = args.connection.open().await?.jobs(args.limit as usize, args.page).await?;
    // The newest next to the prompt.
    jobs.reverse();
    match args.output {
        Format::Json => print_json(&jobs.iter().map(|job| json::Job::new(job, false)).collect::<Vec<_>>())?,
        Format::Text if jobs.is_empty() => output::line("no jobs yet; submit one with `toroid submit job.toml`")?,
        Format::Text => output::print(job_table(&jobs))?,
    }
    if !next.is_empty() {
        output::note(format_args!(
            "there are older jobs: `toroid jobs --page {next}` shows them, --limit more at once"
        ));
    }
    Ok(ExitCode::SUCCESS)
}
