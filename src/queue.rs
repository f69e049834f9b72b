//! What users do about the queue and the pool: hold and release jobs, have one that has ended go on, cordon workers.

use std::process::ExitCode;

use anyhow::Result;
use toroid_proto as proto;
use toroid_proto::json::state_word;

use crate::client::Connection;
use crate::output;

#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The job's id, as `toroid jobs` lists it
    job: String,
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
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct CordonArgs {
    /// The worker's id, as `toroid workers` lists it; it need not be connected
    worker: String,
    /// Why, for those who see it
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct UncordonArgs {
    /// The worker's id
    worker: String,
    #[command(flatten)]
    connection: Connection,
}

/// How a job is after what was done to it.
pub fn show(job: &proto::Job) -> Result<ExitCode> {
    output::line(format_args!("{} is {}: {}", job.id, state_word(job.state()), job.reason))?;
    Ok(ExitCode::SUCCESS)
}

pub async fn hold(args: JobArgs) -> Result<ExitCode> {
    let job = args.connection.open().await?.hold(&args.job).await?;
    show(&job)
}

pub async fn release(args: JobArgs) -> Result<ExitCode> {
    let job = args.connection.open().await?.release(&args.job).await?;
    show(&job)
}

pub async fn resume(args: ResumeArgs) -> Result<ExitCode> {
    let ResumeArgs { job, steps, from_scratch, connection } = args;
    let job = connection.open().await?.resume(&job, from_scratch, steps.unwrap_or(0)).await?;
    show(&job)
}

pub async fn cordon(args: CordonArgs) -> Result<ExitCode> {
    let worker = &args.worker;
    let job = args.connection.open().await?.cordon(worker, args.reason).await?;
    match job.as_str() {
        "" => output::line(format_args!("{worker} is given no place until `toroid uncordon {worker}`"))?,
        job => output::line(format_args!(
            "{worker} is given no other place until `toroid uncordon {worker}`; it keeps that in {job}, which `toroid drain {worker}` moves"
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn uncordon(args: UncordonArgs) -> Result<ExitCode> {
    let reason = args.connection.open().await?.uncordon(&args.worker).await?;
    let why = if reason.is_empty() { String::new() } else { format!("; it was cordoned: {reason}") };
    output::line(format_args!("{} may be given a place again{why}", args.worker))?;
    Ok(ExitCode::SUCCESS)
}
