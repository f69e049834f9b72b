//! `toroid`, the one binary: every command of the user, and the daemons.
//!
//! ```text
//!   local       a whole cluster of child processes of this binary      coordinator, worker   daemon
//!   chaos       faults on such a cluster, and a verdict                 bench   figures of this machine
//!   submit      jobfile (paths), then progress and summary (--wait)     status, jobs, workers, events, cancel, resume, drain   status
//!   incidents   what failed and what it cost                            trace   what the time of steps went to
//!   plan        what a job needs, before it is run
//!   checkpoint  now, list, verify, export; find: which folder is meant  client, watch: gRPC    format, json, output
//! ```
//!
//! Standard output has what was asked for, standard error what is said beside it. Exit codes: 0, 1 (failed), 2 (wrong use), 130
//! (interrupted). Deliberately absent: decisions about jobs; they are the coordinator's.

#![forbid(unsafe_code)]

mod bench;
mod chaos;
mod checkpoint;
mod client;
mod daemon;
mod find;
mod format;
mod incidents;
mod jobfile;
mod json;
mod local;
mod output;
mod plan;
mod progress;
mod status;
mod submit;
mod summary;
mod trace;
mod watch;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Trains Mixture-of-Experts language models on machines that die
#[derive(Debug, Parser)]
#[command(name = "toroid", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train on this machine: starts a coordinator, workers and spares, and shows the progress
    Local(Box<local::Args>),
    /// Run a coordinator
    Coordinator(daemon::CoordinatorArgs),
    /// Run a worker
    Worker(daemon::WorkerArgs),
    /// Submit a job file; prints the job's id
    Submit(submit::Args),
    /// Show a job
    Status(status::StatusArgs),
    /// List the jobs
    Jobs(status::ListArgs),
    /// List the connected workers, spares included
    Workers(status::ListArgs),
    /// Stop a job for good; its checkpoints stay
    Cancel(status::CancelArgs),
    /// Have a job go on that waits for a checkpoint that can be read
    Resume(status::ResumeArgs),
    /// Show what happened to a job
    Events(status::EventsArgs),
    /// Show what failed in a job, what was done about it and what it cost
    Incidents(incidents::Args),
    /// Move the place of a worker to a spare, so that the worker can be stopped
    Drain(status::DrainArgs),
    /// Ask for, list, verify and export checkpoints
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Break a job on this machine on purpose: kills and stops workers, and says whether anything was lost
    Chaos(Box<chaos::Args>),
    /// Show what the time of steps went to, from what workers wrote with --trace; writes it for chrome://tracing and Perfetto
    Trace(trace::Args),
    /// Measure
    #[command(subcommand)]
    Bench(bench::Command),
    /// Plan a job before any device is paid for: memory, traffic, pipeline, step time, goodput
    Plan(Box<plan::Args>),
    /// Show the versions of program, protocol and checkpoint format
    Version,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if output::is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let is_daemon = matches!(command, Command::Coordinator(_) | Command::Worker(_));
    log_to_stderr(if is_daemon { "info" } else { "warn" });
    // Clients run on this thread alone. For `local` it matters: its children live as long as the thread that started them.
    let mut builder = if is_daemon { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let code = dispatch(&runtime, command);
    // A thread may wait for standard input still; it must not hold up the end.
    runtime.shutdown_background();
    code
}

fn dispatch(runtime: &Runtime, command: Command) -> Result<ExitCode> {
    match command {
        Command::Local(args) => runtime.block_on(local::run(*args)),
        Command::Coordinator(args) => runtime.block_on(daemon::coordinator(args)),
        Command::Worker(args) => runtime.block_on(daemon::worker(args)),
        Command::Submit(args) => runtime.block_on(submit::run(args)),
        Command::Status(args) => runtime.block_on(status::status(args)),
        Command::Jobs(args) => runtime.block_on(status::jobs(args)),
        Command::Workers(args) => runtime.block_on(status::workers(args)),
        Command::Trace(args) => trace::run(&args),
        Command::Cancel(args) => runtime.block_on(status::cancel(args)),
        Command::Resume(args) => runtime.block_on(status::resume(args)),
        Command::Events(args) => runtime.block_on(status::events(args)),
        Command::Incidents(args) => runtime.block_on(incidents::run(args)),
        Command::Drain(args) => runtime.block_on(status::drain(args)),
        Command::Checkpoint(command) => checkpoint::run(runtime, command),
        Command::Chaos(args) => chaos::run(runtime, *args),
        Command::Bench(command) => runtime.block_on(bench::run(command)),
        Command::Plan(args) => plan::run(&args),
        Command::Version => {
            output::line(format_args!("toroid {}", toroid_proto::BUILD_VERSION))?;
            output::line(format_args!("protocol {}", toroid_proto::PROTOCOL_VERSION))?;
            output::line(format_args!("checkpoint format {}", toroid_torus::manifest::FORMAT))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// RUST_LOG says what is logged; `default_level` where it does not.
fn log_to_stderr(default_level: &str) {
    let wanted = std::env::var_os("RUST_LOG").map(|value| value.to_string_lossy().into_owned());
    let (filter, complaint) = log_filter(wanted.as_deref(), default_level);
    let has_colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_ansi(has_colours).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
}

/// What is logged, and what is wrong with what was asked for.
fn log_filter(wanted: Option<&str>, default_level: &str) -> (Targets, Option<String>) {
    let default = || default_level.parse().expect("a level of our own");
    match wanted.filter(|text| !text.trim().is_empty()).map(|text| (text, text.parse())) {
        None => (default(), None),
        Some((_, Ok(filter))) => (filter, None),
        Some((text, Err(error))) => {
            let expected = "expected a level, or levels of parts as in `info,toroid_worker=debug`";
            (
                default(),
                Some(format!("cannot read RUST_LOG=`{text}` ({error}): {expected}; the level is {default_level}")),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use tracing::Level;

    #[test]
    fn rust_log_names_levels_and_parts_and_a_bad_one_is_complained_of() {
        let check = |wanted, worker, h2| {
            let (filter, complaint) = log_filter(wanted, "info");
            let level = |target, level| filter.would_enable(target, &level);
            assert_eq!(level("toroid_worker::comm", Level::DEBUG), worker, "{wanted:?}");
            assert_eq!(level("h2", Level::INFO), h2, "{wanted:?}");
            complaint
        };
        assert_eq!(check(None, false, true), None);
        assert_eq!(check(Some(" "), false, true), None);
        assert_eq!(check(Some("debug"), true, true), None);
        assert_eq!(check(Some("toroid_worker=debug"), true, false), None);
        assert_eq!(check(Some("debug,h2=warn"), true, false), None);
        let complaint = check(Some("toroid_worker=loud"), false, true).expect("a complaint");
        assert!(complaint.contains("toroid_worker=loud") && complaint.contains("the level is info"), "{complaint}");
    }

    #[test]
    fn the_command_line_is_consistent_and_every_flag_is_documented() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let mut commands = vec![command];
        while let Some(command) = commands.pop() {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
            }
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            commands.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn commands_read_as_documented() {
        let check = |line: &str, is_valid: bool| {
            let found = Cli::try_parse_from(line.split(' '));
            assert_eq!(found.is_ok(), is_valid, "{line}: {found:?}");
        };
        for line in [
            "toroid local",
            "toroid local --tp 2 --pp 1 --dp 1 --steps 8 --spares 1 --data d --dir x --threads 1 --port 0 --keep --seed 3 --quiet",
            "toroid local --job job.toml --spares 0",
            "toroid coordinator --dir d --listen 0.0.0.0:7070 --heartbeat-interval-ms 100 --failure-timeout-ms 500 --join-token t",
            "toroid worker --coordinator http://h:1 --host a --listen 10.0.0.1:0 --advertise h --device cuda:1 --cuda-graphs off --threads 2 --cache c --id w",
            "toroid submit job.toml --wait",
            "toroid status tiny-1 -w -o json --no-curve --coordinator h:7070",
            "toroid jobs -o json",
            "toroid workers",
            "toroid cancel tiny-1",
            "toroid resume tiny-1",
            "toroid resume tiny-1 --from-scratch --coordinator h:7070",
            "toroid events tiny-1 -f",
            "toroid incidents tiny-1 -o json",
            "toroid drain w3 --coordinator h:7070",
            "toroid checkpoint now tiny-1",
            "toroid checkpoint list tiny-1",
            "toroid checkpoint verify path 10",
            "toroid checkpoint verify path",
            "toroid checkpoint export 10 out.safetensors --from path",
            "toroid local --no-kill",
            "toroid chaos",
            "toroid chaos --tp 1 --pp 1 --dp 4 --steps 90 --kills 3 --rate 6 --rank 2 --how both --spares 1 --verify --seed 9 -o json",
            "toroid chaos --job job.toml --every-steps 20 --how cut-link --failure-timeout-ms 1000 --dir d --threads 1",
            "toroid chaos --phase reduce-scatter --kills 2 --device cuda",
            "toroid bench recovery --kills 20 --shape 2,2,2 --shape 1,1,4 -o json",
            "toroid plan",
            "toroid plan job.toml --mtbf-h 1000 --link-gbps 25 -o json",
            "toroid plan --preset 1b --tp 2 --pp 2 --dp 2 --micro-batches 16 --measured",
            "toroid version",
        ] {
            check(line, true);
        }
        for line in [
            "toroid",
            "toroid local --job job.toml --steps 8",
            "toroid local --tp 0",
            "toroid coordinator",
            "toroid coordinator --dir d --heartbeat-interval-ms 0",
            "toroid worker --threads 0",
            "toroid worker --device gpu",
            "toroid worker --cuda-graphs maybe",
            "toroid jobs --coordinator https://h:1",
            "toroid checkpoint export ten out.safetensors",
            "toroid status",
            "toroid local --kill-one --no-kill",
            "toroid chaos --kills 0",
            "toroid chaos --rate -1",
            "toroid chaos --rate 1 --every-steps 5",
            "toroid chaos --phase lunch",
            "toroid chaos --phase commit --rank 1",
            "toroid bench recovery --shape 2,2",
            "toroid plan job.toml --tp 2",
            "toroid plan --mtbf-h 0",
            "toroid plan --measured --device-tflops 3",
        ] {
            check(line, false);
        }
    }
}
