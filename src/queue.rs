//! What users have jobs do: cancel, hold, release, and have one that has ended go on.

use std::process::ExitCode;

use anyhow::Result;
use toroid_proto as proto;
use toroid_proto::json::{self, state_word};

use crate::client::Connection;
use crate::output::FormatArgs;

#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// Optimizer updates in all, of a job that has ended; default: as many as before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Give up its checkpoints, which are removed with the next one, and begin from the initial weights
    #[arg(long)]
    from_scratch: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// How a job is after what was done to it.
fn show(job: &proto::Job, format: FormatArgs) -> Result<ExitCode> {
    let text = format_args!("{} is {}: {}\n", job.id, state_word(job.state()), job.reason);
    format.answer(&json::Job::new(job, false), text)?;
    Ok(ExitCode::SUCCESS)
}

pub async fn cancel(args: JobArgs) -> Result<ExitCode> {
    let job = args.connection.open().await?.cancel(&args.job).await?;
    show(&job, args.format)
}

pub async fn hold(args: JobArgs) -> Result<ExitCode> {
    let job = args.connection.open().await?.hold(&args.job).await?;
    show(&job, args.format)
}

pub async fn release(args: JobArgs) -> Result<ExitCode> {
    let job = args.connection.open().await?.release(&args.job).await?;
    show(&job, args.format)
}

pub async fn resume(args: ResumeArgs) -> Result<ExitCode> {
    let ResumeArgs { job, steps, from_scratch, format, connection } = args;
    let job = connection.open().await?.resume(&job, from_scratch, steps.unwrap_or(0)).await?;
    show(&job, format)
}
