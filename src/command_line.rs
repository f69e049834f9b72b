//! The command line: what was asked for, which function does it, and with which exit code it ends.
//!
//! Standard output has what was asked for, standard error what is said beside it. Exit codes are [`crate::exit`]'s.

use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use toroid_telemetry::Telemetry;
use toroid_telemetry::settings::{Format, Service, Settings};
use toroid_worker::log::Log;
use tracing::Span;

use crate::output::FormatArgs;
use crate::{
    admin, agent, bench, calls, certs, chaos, checkpoint, companion, daemon, dashboard, doctor, events, exit, explain,
    generate, incidents, jobs, local, output, plan, queue, scale, shell, simulate, slurm, status, submit, top, trace,
    workers,
};

/// Trains Mixture-of-Experts language models on machines that die
#[derive(Debug, Parser)]
#[command(name = "toroid", version, max_term_width = 120, after_help = exit::HELP)]
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
    /// Speak for all workers of this host, over one connection to the coordinator: for clusters of thousands
    Agent(agent::Args),
    /// Submit a job file; prints the job's id
    Submit(submit::Args),
    /// Show a job
    Status(status::StatusArgs),
    /// Say in plain words what happened to a job, what it cost and what to do
    Explain(explain::Args),
    /// Watch the cluster in this terminal: places, loss, speed, incidents, queue
    Top(top::Args),
    /// Check this machine, and a cluster where one is named, and say what to do about what is wrong
    Doctor(doctor::Args),
    /// List the jobs, or take one off the list
    Jobs(jobs::Args),
    /// Show the dashboard in a browser of this machine
    Dashboard(dashboard::Args),
    /// List the connected workers, spares included
    Workers(workers::WorkersArgs),
    /// Stop a job for good; its checkpoints stay
    Cancel(queue::JobArgs),
    /// Have a job go on that has ended, from its newest checkpoint, or that waits for a checkpoint that can be read
    Resume(queue::ResumeArgs),
    /// Give a job no places until it is released; one that has places is saved first
    Hold(queue::JobArgs),
    /// Let a job run that is held
    Release(queue::JobArgs),
    /// Give a worker no place any more, whatever process has its id
    Cordon(workers::CordonArgs),
    /// Give a worker places again that was cordoned
    Uncordon(workers::UncordonArgs),
    /// Show what happened to a job
    Events(events::Args),
    /// Show what failed in a job, what was done about it and what it cost
    Incidents(incidents::Args),
    /// Move the place of a worker to a spare, so that the worker can be stopped
    Drain(workers::DrainArgs),
    /// Ask for, pin, list, verify and export checkpoints
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Generate text with a checkpoint, or with a folder of Hugging Face's
    Generate(generate::Args),
    /// Break a job on this machine on purpose: kills and stops workers, and says whether anything was lost
    Chaos(Box<chaos::Args>),
    /// Show what the time of steps went to, from what workers wrote with --trace; writes it for chrome://tracing and Perfetto
    Trace(trace::Args),
    /// Make a private CA and certificates for a test or a small cluster
    #[command(subcommand)]
    Certs(certs::Command),
    /// Make, list and revoke tokens, for who has no certificate
    #[command(subcommand)]
    Token(admin::TokenCommand),
    /// Show who changed what
    Audit(admin::AuditArgs),
    /// Measure
    #[command(subcommand)]
    Bench(bench::Command),
    /// Plan a job before any device is paid for: memory, traffic, pipeline, step time, goodput
    Plan(Box<plan::Args>),
    /// Find out by many small trainings what a large one will reach: scaling laws, with intervals and plots
    Scale(Box<scale::Args>),
    /// Simulate weeks of a job on thousands of machines that fail: goodput, what deaths cost, beside restarts from checkpoints
    Simulate(Box<simulate::Args>),
    /// Print a batch script for Slurm
    #[command(subcommand)]
    Slurm(slurm::Command),
    /// Make text to train on from raw documents, each removal explained: `toroid data --help`
    #[command(disable_help_flag = true)]
    Data(companion::Args),
    /// Serve a model over HTTP as OpenAI does: `toroid serve --help`
    #[command(disable_help_flag = true)]
    Serve(companion::Args),
    /// Ask a model what it should not answer, and report: `toroid redteam --help`
    #[command(disable_help_flag = true)]
    Redteam(companion::Args),
    /// Show the versions of program, protocol and checkpoint format
    Version(FormatArgs),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write the pages of all commands into a folder
    Man(shell::ManArgs),
}

/// The command line as it is described, for tests of what is made from it.
#[cfg(test)]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what these arguments ask for; the first is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Cli::command().try_get_matches_from(arguments);
    let (name, cli) = match parsed.and_then(|found| Ok((name_of(&found), Cli::from_arg_matches(&found)?))) {
        Ok(found) => found,
        // Help that was asked for is one as well, with the exit code 0.
        Err(error) => {
            // Whoever is gone needs no words.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match execute(&name, cli.command) {
        Ok(code) => code,
        Err(error) if output::is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            exit::of(&error).into()
        }
    }
}

/// As in `toroid checkpoint now`.
fn name_of(found: &ArgMatches) -> String {
    let (mut name, mut found) = (String::from("toroid"), found);
    while let Some((command, of_command)) = found.subcommand() {
        name = format!("{name} {command}");
        found = of_command;
    }
    name
}

fn execute(name: &str, command: Command) -> Result<ExitCode> {
    let is_daemon = matches!(command, Command::Coordinator(_) | Command::Worker(_) | Command::Agent(_));
    let (telemetry, log, is_json) = start_telemetry(&command);
    // Clients run on this thread alone. For `local` it matters: its children live as long as the thread that started them.
    let is_busy = is_daemon && !matches!(command, Command::Agent(_));
    let mut builder = if is_busy { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let span = if is_daemon { Span::none() } else { calls::of_command(name) };
    let mut code = span.in_scope(|| dispatch(&runtime, command, log));
    calls::end_command(span, &code);
    // Each line of such a log is JSON, the last one too.
    if is_json && let Err(error) = &code {
        tracing::error!("{error:#}");
        code = Ok(exit::of(error).into());
    }
    // A thread may wait for standard input still; it must not hold up the end.
    runtime.shutdown_background();
    telemetry.end();
    code
}

fn dispatch(runtime: &Runtime, command: Command, log: Arc<Log>) -> Result<ExitCode> {
    match command {
        Command::Local(args) => runtime.block_on(local::run(*args)),
        Command::Coordinator(args) => runtime.block_on(daemon::coordinator(args)),
        Command::Worker(args) => runtime.block_on(daemon::worker(args, log)),
        Command::Agent(args) => runtime.block_on(agent::agent(args)),
        Command::Submit(args) => runtime.block_on(submit::run(args)),
        Command::Status(args) => runtime.block_on(status::status(args)),
        Command::Explain(args) => runtime.block_on(explain::run(args)),
        Command::Top(args) => runtime.block_on(top::run(args)),
        Command::Doctor(args) => runtime.block_on(doctor::run(args)),
        Command::Jobs(args) => runtime.block_on(jobs::run(args)),
        Command::Workers(args) => runtime.block_on(workers::workers(args)),
        Command::Dashboard(args) => runtime.block_on(dashboard::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Trace(args) => trace::run(&args),
        Command::Cancel(args) => runtime.block_on(queue::cancel(args)),
        Command::Resume(args) => runtime.block_on(queue::resume(args)),
        Command::Hold(args) => runtime.block_on(queue::hold(args)),
        Command::Release(args) => runtime.block_on(queue::release(args)),
        Command::Cordon(args) => runtime.block_on(workers::cordon(args)),
        Command::Uncordon(args) => runtime.block_on(workers::uncordon(args)),
        Command::Events(args) => runtime.block_on(events::run(args)),
        Command::Incidents(args) => runtime.block_on(incidents::run(args)),
        Command::Drain(args) => runtime.block_on(workers::drain(args)),
        Command::Checkpoint(command) => checkpoint::run(runtime, command),
        Command::Chaos(args) => chaos::run(runtime, *args),
        Command::Generate(args) => generate::run(runtime, &args),
        Command::Bench(command) => runtime.block_on(bench::run(command)),
        Command::Certs(command) => certs::run(command),
        Command::Token(command) => runtime.block_on(admin::token(command)),
        Command::Audit(args) => runtime.block_on(admin::audit(args)),
        Command::Plan(args) => plan::run(&args),
        Command::Scale(args) => runtime.block_on(scale::run(*args)),
        Command::Simulate(args) => simulate::run(*args),
        Command::Slurm(command) => slurm::run(command).map(|()| ExitCode::SUCCESS),
        Command::Data(args) => companion::DATA.run(args.arguments),
        Command::Serve(args) => companion::SERVE.run(iter::once("serve".into()).chain(args.arguments)),
        Command::Redteam(args) => companion::SERVE.run(iter::once("redteam".into()).chain(args.arguments)),
        Command::Version(format) => version(format),
        Command::Completions(args) => shell::completions(Cli::command(), &args),
        Command::Man(args) => shell::man(Cli::command(), &args),
    }
}

fn version(format: FormatArgs) -> Result<ExitCode> {
    let toroid_proto::Build { version, protocol, links, numerics } = toroid_proto::build();
    let checkpoint = toroid_torus::manifest::FORMAT;
    let range = |versions: &toroid_proto::Versions| serde_json::json!([versions.oldest, versions.newest]);
    let value = serde_json::json!({
        "version": version, "protocol": protocol.newest, "protocols": range(protocol), "links": range(links), "numerics": numerics,
        "checkpoint_format": checkpoint,
    });
    let text = format_args!(
        "toroid {version}\nprotocol {protocol}\nprotocol of links {links}\nnumerics {numerics}\ncheckpoint format {checkpoint}\n"
    );
    format.answer(&value, text)?;
    Ok(ExitCode::SUCCESS)
}

/// Daemons say more, in the form that their flags ask for; a worker's log is known to its place, too.
fn start_telemetry(command: &Command) -> (Telemetry, Arc<Log>, bool) {
    let (default_level, format, service) = match command {
        Command::Coordinator(args) => ("info", args.log_format(), Some(Service::Coordinator)),
        Command::Worker(args) => ("info", args.log_format(), Some(Service::Worker)),
        Command::Agent(args) => ("info", args.log_format, None),
        // They stay for long and ask all the time, or have children that tell of themselves.
        Command::Top(_) | Command::Dashboard(_) | Command::Local(_) | Command::Chaos(_) | Command::Bench(_) => {
            ("warn", Format::Text, None)
        }
        _ => ("warn", Format::Text, Some(Service::Command)),
    };
    let log = Arc::<Log>::default();
    let context = matches!(command, Command::Worker(_)).then(|| daemon::context(log.clone()));
    (Telemetry::start(Settings { default_level, format, service }, context), log, format == Format::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "toroid coordinator --dir d --listen 0.0.0.0:7070 --heartbeat-interval-ms 100 --failure-timeout-ms 500 --join-token t --keep-jobs 9 --keep-jobs-days 7",
            "toroid worker --coordinator http://h:1 --host a --listen 10.0.0.1:0 --advertise h --device cuda:1 --bf16 avx512 --cuda-graphs off --threads 2 --cache c --id w",
            "toroid agent --listen /run/toroid --coordinator h:1,h:2 --credentials certs/node-7 --name node-7",
            "toroid worker --coordinator unix:/run/toroid,h:7070",
            "toroid submit job.toml --wait",
            "toroid status tiny-1 -w -o json --no-curve --coordinator h:7070",
            "toroid jobs -o json",
            "toroid jobs --limit 5 --page 17",
            "toroid jobs rm tiny-1 --coordinator h:7070",
            "toroid workers",
            "toroid workers --readmit w3",
            "toroid workers --forget w3 --credentials certs/root",
            "toroid workers --kill w3",
            "toroid jobs --coordinator https://h:1 --ca ca.pem --token t",
            "toroid jobs --coordinator h:1 --ca ca.pem --cert cert.pem --key key.pem",
            "toroid certs init --dir certs --cluster lab",
            "toroid certs issue alice --role operate --days 30",
            "toroid certs issue coordinator --role coordinator --host c.example --host 10.0.0.1",
            "toroid certs renew alice",
            "toroid certs revoke alice --dir certs",
            "toroid certs list",
            "toroid token create ci --role submit --days 30",
            "toroid token list",
            "toroid token revoke t-00",
            "toroid audit --limit 20",
            "toroid cancel tiny-1",
            "toroid resume tiny-1",
            "toroid resume tiny-1 --steps 500",
            "toroid hold tiny-1",
            "toroid release tiny-1 --coordinator h:7070",
            "toroid cordon w3 --reason fan",
            "toroid uncordon w3",
            "toroid cordon --host node-7 --reason fan",
            "toroid uncordon --host node-7 -o json",
            "toroid submit job.toml --priority -3 --user ada",
            "toroid coordinator --dir d --quota ada=8 --quota bob=2 --default-quota 4 --aging-s 60",
            "toroid worker --log-format json --trace-steps 50",
            "toroid coordinator --dir d --log-format text",
            "toroid worker --label gpu=h100 --label disk=fast",
            "toroid resume tiny-1 --from-scratch --coordinator h:7070",
            "toroid events tiny-1 -f",
            "toroid incidents tiny-1 -o json",
            "toroid drain w3 --coordinator h:7070",
            "toroid checkpoint now tiny-1",
            "toroid checkpoint pin tiny-1 10",
            "toroid checkpoint unpin tiny-1 10",
            "toroid checkpoint list tiny-1",
            "toroid checkpoint verify path 10",
            "toroid checkpoint verify path",
            "toroid checkpoint export 10 out.safetensors --from path",
            "toroid local --no-kill",
            "toroid chaos",
            "toroid chaos --tp 1 --pp 1 --dp 4 --steps 90 --kills 3 --rate 6 --rank 2 --how both --spares 1 --verify --seed 9 -o json",
            "toroid chaos --job job.toml --every-steps 20 --how cut-link --failure-timeout-ms 1000 --dir d --threads 1",
            "toroid chaos --phase reduce-scatter --kills 2 --device cuda",
            "toroid bench storage s3://bucket/prefix --size 100 --rounds 2 -o json",
            "toroid bench recovery --kills 20 --shape 2,2,2 --shape 1,1,4 -o json",
            "toroid plan",
            "toroid plan job.toml --mtbf-h 1000 --link-gbps 25 -o json",
            "toroid simulate --places 2048,16384 --failure-every 48h,20min --spares 0,0.5 --interval 1min --second-holder yes,no --days 2 -o json",
            "toroid simulate --study docs/scale.md --num-failures 5",
            "toroid plan --preset 1b --tp 2 --pp 2 --dp 2 --micro-batches 16 --measured",
            "toroid worker --restart --devices cuda:0,cuda:1 --listen fd00::1 --rack-map racks",
            "toroid worker --interface eth0,10.0.0.0/8 --listen 0.0.0.0:7071",
            "toroid coordinator --dir d --listen [::]:7070 --interface fd00::/8",
            "toroid slurm allocation --tp 1 --pp 1 --dp 8 --spares 2 --time 1:00:00 --account lab --dir /shared/run",
            "toroid slurm allocation --job job.toml --devices cuda:0,cuda:1 --sbatch=--reservation=r",
            "toroid slurm array --coordinator c:7070 --waiting 4 --exclude n[1-3] --leave-s 300",
            "toroid data",
            "toroid data run pipeline.toml --threads 2 --help",
            "toroid version",
            "toroid version -o json",
            "toroid explain tiny-1",
            "toroid explain tiny-1 3 -o json --coordinator h:7070",
            "toroid top",
            "toroid top tiny-1 --coordinator h:7070",
            "toroid doctor",
            "toroid doctor --dir d --coordinator h:7070 -o json",
            "toroid completions bash",
            "toroid man",
            "toroid man pages",
            "toroid submit job.toml -o json",
            "toroid cancel tiny-1 -o json",
            "toroid drain w3 -o json",
            "toroid cordon w3 -o json",
            "toroid uncordon w3 -o json",
            "toroid hold tiny-1 -o json",
            "toroid release tiny-1 -o json",
            "toroid resume tiny-1 -o json",
            "toroid jobs rm tiny-1 -o json",
            "toroid checkpoint now tiny-1 -o json",
            "toroid checkpoint pin tiny-1 10 -o json",
            "toroid checkpoint unpin tiny-1 10 -o json",
            "toroid checkpoint list tiny-1 -o json",
            "toroid checkpoint verify path 10 -o json",
            "toroid checkpoint export 10 out.safetensors -o json",
            "toroid generate --from hf --prompt a --max-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 5 --stop x --stop y --seed 3 --samples 2 -o json",
            "toroid certs list -o json",
            "toroid token list -o json",
            "toroid audit -o json",
            "toroid workers --readmit w3 -o json",
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
            "toroid worker --coordinator unix:run",
            "toroid agent",
            "toroid worker --devices cuda:0,cuda:1",
            "toroid worker --restart --devices cuda:0 --id w",
            "toroid worker --restart --die-with-parent",
            "toroid slurm",
            "toroid slurm allocation --job job.toml --tp 2",
            "toroid slurm array --sbatch reservation=r",
            "toroid worker --log-format xml",
            "toroid worker --trace-steps 0",
            "toroid worker --device gpu",
            "toroid worker --cuda-graphs maybe",
            "toroid worker --bf16 tiles",
            "toroid jobs --coordinator ftp://h:1",
            "toroid certs issue alice",
            "toroid certs issue a/b --role view",
            "toroid certs issue alice --role root",
            "toroid token create ci --role submit --days 367",
            "toroid status tiny-1 --cert a --ca b",
            "toroid jobs --limit 0",
            "toroid jobs rm",
            "toroid resume tiny-1 --steps 0",
            "toroid coordinator --dir d --quota ada",
            "toroid coordinator --dir d --quota ada=0",
            "toroid coordinator --dir d --aging-s 0",
            "toroid worker --label gpu",
            "toroid worker --label zone=a",
            "toroid coordinator --dir d --keep-jobs 0",
            "toroid checkpoint export ten out.safetensors",
            "toroid generate --from hf",
            "toroid generate --prompt a --temperature -1",
            "toroid generate --prompt a --top-p 2",
            "toroid checkpoint pin tiny-1",
            "toroid cordon",
            "toroid cordon w3 --host node-7",
            "toroid status",
            "toroid workers --readmit w3 --kill w3",
            "toroid workers --readmit w3 --forget w3",
            "toroid explain tiny-1 0",
            "toroid completions cmd",
            "toroid local --kill-one --no-kill",
            "toroid chaos --kills 0",
            "toroid chaos --rate -1",
            "toroid chaos --rate 1 --every-steps 5",
            "toroid chaos --phase lunch",
            "toroid chaos --phase commit --rank 1",
            "toroid bench recovery --shape 2,2",
            "toroid plan job.toml --tp 2",
            "toroid plan --mtbf-h 0",
            "toroid simulate --places 0",
            "toroid simulate --failure-every -4h",
            "toroid simulate --failure-every 4",
            "toroid simulate --spares -1",
            "toroid simulate --study docs/scale.md --days 3",
            "toroid plan --measured --device-tflops 3",
        ] {
            check(line, false);
        }
    }

    /// The first clause that stands in the text twice.
    fn said_twice(text: &str) -> Option<&str> {
        const MIN_BYTES: usize = 8;
        let clauses: Vec<&str> =
            text.split([':', ';', '(', ')', '\n']).map(str::trim).filter(|c| c.len() >= MIN_BYTES).collect();
        clauses.iter().enumerate().find(|(n, clause)| clauses[..*n].contains(clause)).map(|(_, clause)| *clause)
    }

    #[test]
    fn a_clause_that_stands_twice_is_found() {
        assert_eq!(said_twice("tp 2 does not divide 5: tp 2 does not divide 5"), Some("tp 2 does not divide 5"));
        assert_eq!(said_twice("opening x failed: No such file (os error 2)"), None);
    }

    #[test]
    fn errors_say_nothing_twice() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let job = |name: &str, text: &str| -> Result<String> {
            std::fs::write(path(name), text)?;
            Ok(path(name))
        };
        let base = "name = \"x\"\nsteps = 4\n[data]\npath = \"/data\"\n";
        let mut lines = Vec::new();
        let bad_jobs = [
            "[shape]\ntp = 2\n[model]\nkv_heads = 5\nheads = 10\n",
            "[shape]\ntp = 3\n",
            "[shape]\npp = 99\n",
            "[shape]\ndp = 4\ndx = 3\ndy = 2\n",
            "[shape]\ndp = 0\n",
            "[model]\nlayerz = 3\n",
            "[model]\npreset = \"none\"\n",
            "[model]\nlayers = \"many\"\n",
            "[batch]\nglobal = 7\nmicro_batch = 2\n",
            "[optimizer]\nlr = -1.0\n",
            "[checkpoint]\nkeep = 0\n",
            "this is no TOML",
        ];
        for (n, bad) in bad_jobs.into_iter().enumerate() {
            lines.push(format!("toroid plan {}", job(&format!("{n}.toml"), &format!("{base}{bad}"))?));
        }
        lines.push(format!("toroid plan {}", path("none.toml")));
        lines.push(format!("toroid submit {} --coordinator 127.0.0.1:0", path("none.toml")));
        lines.push(format!("toroid submit {} --coordinator 127.0.0.1:0", job("good.toml", base)?));
        lines.push("toroid status x --coordinator 127.0.0.1:0".into());
        lines.push("toroid jobs --coordinator no.such.host.invalid:1".into());
        lines.push("toroid jobs rm x --coordinator 127.0.0.1:0".into());
        lines.push(format!("toroid trace {}", path("none")));
        lines.push(format!("toroid checkpoint list {}", path("none")));
        lines.push(format!("toroid checkpoint verify {} 3", path("good.toml")));
        lines.push(format!("toroid checkpoint export 3 {} --from {}", path("out"), dir.path().display()));
        lines.push(format!("toroid coordinator --listen 127.0.0.1:0 --dir {}", path("good.toml")));
        lines.push(format!("toroid coordinator --listen 127.0.0.1:0 --failure-timeout-ms 2 --dir {}", path("data")));
        std::fs::create_dir_all(path("damaged"))?;
        std::fs::write(path("damaged/coordinator.redb"), "no store")?;
        lines.push(format!("toroid coordinator --listen 127.0.0.1:0 --dir {}", path("damaged")));
        lines.push("toroid coordinator --listen 192.0.2.1:9 --dir x".into());

        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let mut num_errors = 0;
        for line in lines {
            let cli = Cli::try_parse_from(line.split(' ')).with_context(|| line.clone())?;
            // A plan of a job that is possible after all is no error.
            let Err(error) = dispatch(&runtime, cli.command, Arc::default()) else { continue };
            let text = format!("{error:#}");
            assert_eq!(said_twice(&text), None, "{line}: {text}");
            num_errors += 1;
        }
        runtime.shutdown_background();
        assert!(num_errors > 18, "only {num_errors} of the lines are errors");
        Ok(())
    }
}
