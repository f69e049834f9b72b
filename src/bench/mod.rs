//! `toroid bench`: figures of this machine, as tables for people and as JSON.
//!
//! Deliberately absent: what others reach on it; `bench/peers/` has programs for that.

mod allreduce;
mod recovery;

use std::process::ExitCode;

use anyhow::Result;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Sum buffers over processes: time, bandwidth, and the share of what raw copies over the same links reach
    Allreduce(allreduce::Args),
    /// Kill workers of a local cluster and measure how long the job stands still
    Recovery(recovery::Args),
}

pub async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Allreduce(args) => allreduce::run(args),
        Command::Recovery(args) => recovery::run(args).await,
    }
}
