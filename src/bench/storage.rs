//! `toroid bench storage`: how fast an object store takes a large object from this machine, and gives it back.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use toroid_storage::{Store, measure};

use super::median;
use crate::format::table;
use crate::local::positive;
use crate::output::FormatArgs;

const MB: f64 = 1e6;
const CHECK_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of the store; an object below it is written, read and deleted
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    url: String,
    /// Size of the object, MB
    #[arg(long, default_value_t = 1000, value_name = "MB", value_parser = positive)]
    size: usize,
    /// How often
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = positive)]
    rounds: usize,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    bytes: u64,
    /// Of each round, seconds until the object was there.
    write_s: Vec<f64>,
    read_s: Vec<f64>,
    /// Medians.
    write_bytes_per_s: f64,
    read_bytes_per_s: f64,
}

/// Waits for the store: not for a thread of tokio's.
pub fn run(args: &Args) -> Result<ExitCode> {
    let store = Store::open(&args.url)?;
    // What is wrong with the environment shows at once, and not after all tries.
    store.check(CHECK_PATIENCE)?;
    let name = format!("toroid-bench-{}", std::process::id());
    let bytes = args.size as u64 * MB as u64;
    let measured = rounds(&store, &name, bytes, args.rounds);
    store.delete(&name)?;
    let figures = measured?;
    args.format.answer(&figures, text(&figures))?;
    Ok(ExitCode::SUCCESS)
}

fn rounds(store: &Store, name: &str, bytes: u64, num: usize) -> Result<Figures> {
    let (mut write_s, mut read_s) = (Vec::new(), Vec::new());
    for _ in 0..num {
        write_s.push(measure::write(store, name, bytes)?.as_secs_f64());
        read_s.push(measure::read(store, name, bytes)?.as_secs_f64());
    }
    let speed = |seconds: &[f64]| bytes as f64 / median(seconds.iter().copied());
    Ok(Figures { bytes, write_bytes_per_s: speed(&write_s), read_bytes_per_s: speed(&read_s), write_s, read_s })
}

fn text(figures: &Figures) -> String {
    let mut rows = vec![["ROUND", "WRITE", "READ"].map(String::from).to_vec()];
    for (round, (write, read)) in figures.write_s.iter().zip(&figures.read_s).enumerate() {
        let speed = |seconds: &f64| format!("{:.0} MB/s", figures.bytes as f64 / MB / seconds);
        rows.push(vec![(round + 1).to_string(), speed(write), speed(read)]);
    }
    table(&rows)
}
