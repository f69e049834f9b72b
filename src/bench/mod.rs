//! `toroid bench`: figures of this machine, each kind in a file of its own. Tables for people, `-o json` for programs.

use std::process::ExitCode;

use anyhow::Result;

mod recovery;
mod step;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Kill workers of a local cluster and measure how long the job stands still
    Recovery(recovery::RecoveryArgs),
    /// Make whole optimizer steps in one worker and measure speed and memory
    Step(step::StepArgs),
}

pub async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Recovery(args) => recovery::run(args).await,
        Command::Step(args) => step::run(&args),
    }
}
