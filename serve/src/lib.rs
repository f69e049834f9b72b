//! Uses what was trained: `toroid serve`, `toroid redteam`, and `toroid generate` for models with a tokenizer.
//!
//! ```text
//!   serving     the server's flags          http/      OpenAI's API: requests, answers, connections
//!   generating  a text on the terminal      redteam/   probes, detectors, reports
//!        '------------ engine: the thread that computes; texts join its batch and leave it -----'
//!   model       weights, tokens, template, which tokens end a text       tokens   bytes, or a tokenizer.json
//!   writer      text as it is written, and its stops                      scores   log-probabilities     figures  what is counted
//! ```
//!
//! A program of its own: tokenizers, templates and patterns are what training needs not, and `make demo` builds nothing of it. It depends on `toroid`
//! to find models as every command does.
//!
//! Invariant **S-1**: a text follows from the weights, its prompt, its seed and its number alone: not from what else is asked for, nor from who hung
//! up meanwhile, where rows are independent (G-1 of the batch, `worker/src/generate/batch.rs`).
//!
//! Deliberately absent: training, several models in one process, TP and PP.

#![forbid(unsafe_code)]

mod engine;
mod figures;
mod generating;
mod http;
mod model;
mod redteam;
mod scores;
mod serving;
mod tokens;
mod writer;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::Builder;
use toroid::output;

/// Threads that answer; what is computed has its own.
const NUM_THREADS: usize = 2;

/// Serve a model, ask it what it should not answer, generate text
#[derive(Debug, Parser)]
#[command(name = "toroid-serve", bin_name = "toroid", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over HTTP, as OpenAI does
    Serve(Box<serving::Args>),
    /// Ask a model what it should not answer, and report what it said
    #[command(subcommand)]
    Redteam(redteam::Command),
    /// Generate text with a checkpoint, or with a folder of Hugging Face's
    Generate(Box<toroid::generate::Args>),
}

/// Does what these arguments ask for; the first is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Whoever is gone needs no words.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) if output::is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    let runtime = Builder::new_multi_thread().worker_threads(NUM_THREADS).enable_all().build();
    let runtime = runtime.context("start the threads that answer")?;
    match command {
        Command::Serve(args) => serving::run(&runtime, &args),
        Command::Redteam(command) => redteam::run(&runtime, command),
        Command::Generate(args) => generating::run(&runtime, *args),
    }
}

#[test]
fn the_command_line_is_one() {
    use clap::CommandFactory as _;

    Cli::command().debug_assert();
}
