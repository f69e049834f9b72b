//! `toroid bench`: figures of this machine, as tables for people and as JSON.
//!
//! Deliberately absent: what others reach on it; `bench/peers/` has programs for that.

mod allreduce;
mod checkpoint;
mod fleet;
mod overhead;
mod products;
mod recovery;
mod scaling;
mod step;
mod storage;

use std::process::ExitCode;

use anyhow::Result;

use crate::chaos::report::Spread;
use crate::local::positive;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Sum buffers over processes: time, bandwidth, and the share of what raw copies over the same links reach
    Allreduce(allreduce::Args),
    /// Kill workers of a local cluster and measure how long the job stands still
    Recovery(recovery::Args),
    /// What fault tolerance costs while nothing fails: the same job with it and without, in turn
    Overhead(overhead::Args),
    /// How long a step waits for a checkpoint, and how fast it is written, beside the disk itself
    Checkpoint(checkpoint::Args),
    /// One coordinator with thousands of workers whose trainers are played: processor, memory, latencies, deaths
    Fleet(fleet::Args),
    /// Workers for `fleet`, which starts this
    #[command(hide = true)]
    FleetPlayers(fleet::players::Args),
    /// The share of the machine's peak that each kind of product of a step reaches
    Products(products::Args),
    /// How much of the cores several workers make use of: one job in several shapes, and in one worker with as many threads
    Scaling(scaling::Args),
    /// Speed and memory of whole optimizer steps in one worker, beside the machine's own peak
    Step(step::Args),
    /// How fast an object store takes a large object from this machine, and gives it back
    Storage(storage::Args),
}

pub async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Allreduce(args) => allreduce::run(args),
        Command::Recovery(args) => recovery::run(args).await,
        Command::Overhead(args) => overhead::run(args).await,
        Command::Checkpoint(args) => checkpoint::run(args).await,
        Command::Fleet(args) => fleet::run(args).await,
        Command::FleetPlayers(args) => fleet::players::run(args).await,
        Command::Products(args) => products::run(&args),
        Command::Scaling(args) => scaling::run(args).await,
        Command::Step(args) => step::run(&args),
        Command::Storage(args) => storage::run(&args),
    }
}

/// One of the numbers; NaN of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

/// Ways of tensor, pipeline and data parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ways {
    tp: usize,
    pp: usize,
    dp: usize,
}

fn parse_shape(text: &str) -> Result<Ways, String> {
    let ways: Result<Vec<usize>, String> = text.split(',').map(|n| positive(n.trim())).collect();
    match ways?.as_slice() {
        &[tp, pp, dp] => Ok(Ways { tp, pp, dp }),
        found => Err(format!("expected three numbers as in 2,2,2, found {}", found.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_or_refused_in_words() {
        assert_eq!(parse_shape("1,2, 4"), Ok(Ways { tp: 1, pp: 2, dp: 4 }));
        assert!(parse_shape("2,2").is_err_and(|e| e.contains("three numbers")));
        assert!(parse_shape("2,0,2").is_err_and(|e| e.contains("at least 1")));
    }
}
