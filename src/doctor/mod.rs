//! `toroid doctor`: is this machine fit for workers, is a cluster well, and what is to be done where not.
//!
//! ```text
//!   machine   kernel, processor, memory, limits   ──┐
//!   disk      a folder: speed, room, links         ─┤
//!   gpu       driver and libraries, a real opening ─┼──> Check: state, found, expected, what to do ──> text, JSON, exit code
//!   network   names, addresses, a port             ─┤
//!   cluster   coordinator, workers, jobs, paths    ──┘
//! ```
//!
//! Every part runs beside the others and has a deadline: what does not end is told as such, and nothing here hangs. What is judged is judged by
//! pure functions; reading is apart from them.

mod check;
mod cluster;
mod disk;
mod gpu;
mod machine;
mod network;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;

use crate::access::CredentialArgs;
use crate::client::{Connection, parse_url};
use crate::exit::Exit;
use crate::output::{self, FormatArgs};
use check::{Check, Report, State};

/// For what reads files and names, and writes one file.
const LIMIT: Duration = Duration::from_secs(10);
/// For opening a GPU, which compiles its kernels the first time.
const GPU_LIMIT: Duration = Duration::from_secs(120);
/// For the cluster, in all.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30);

/// What waits for files, names or devices, on a thread of its own.
type Part = Box<dyn FnOnce() -> Vec<Check> + Send>;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for checkpoints, or a coordinator's: a file of 64 MiB is written there, and removed
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    dir: PathBuf,
    /// Address of a coordinator, or of several with commas between, whose cluster is checked too
    #[arg(long, env = "TOROID_COORDINATOR", value_name = "HOST:PORT[,...]", value_delimiter = ',', value_parser = parse_url)]
    coordinator: Vec<String>,
    /// A token in the place of a certificate, over TLS only
    #[arg(long, env = "TOROID_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Exit code 0 where nothing is wrong; what is only unusual is no fault.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Args { dir, coordinator, token, credentials, format } = args;
    let mut parts: JoinSet<(usize, Vec<Check>)> = JoinSet::new();
    let blocking: [(&'static str, Duration, Part); 4] = [
        ("machine", LIMIT, Box::new(machine::checks)),
        ("disk", LIMIT, Box::new(move || disk::checks(&dir))),
        ("gpu", GPU_LIMIT, Box::new(gpu::checks)),
        ("network", LIMIT, Box::new(network::checks)),
    ];
    let num_blocking = blocking.len();
    for (order, (name, limit, part)) in blocking.into_iter().enumerate() {
        parts.spawn(async move {
            let done = tokio::time::timeout(limit, tokio::task::spawn_blocking(part)).await;
            let checks = match done {
                Ok(Ok(checks)) => checks,
                Ok(Err(error)) => vec![Check::unknown(name, format!("looking failed: {error}"))],
                Err(_) => vec![overdue(name, limit)],
            };
            (order, checks)
        });
    }
    if coordinator.is_empty() {
        output::note("only this machine is checked; --coordinator HOST:PORT checks a cluster too");
    } else {
        let connection = Connection { coordinator, token, credentials };
        parts.spawn(async move {
            let done = tokio::time::timeout(CLUSTER_LIMIT, cluster::checks(&connection)).await;
            (num_blocking, done.unwrap_or_else(|_| vec![overdue("cluster", CLUSTER_LIMIT)]))
        });
    }
    let mut found = parts.join_all().await;
    found.sort_by_key(|(order, _)| *order);
    let report = Report::new(found.into_iter().flat_map(|(_, checks)| checks).collect());
    format.answer(&report, report.text())?;
    Ok(if report.is_well { ExitCode::SUCCESS } else { Exit::Failed.into() })
}

fn overdue(name: &str, limit: Duration) -> Check {
    Check {
        name: name.into(),
        state: State::Wrong,
        found: format!("no answer within {} s", limit.as_secs()),
        expected: "an answer at once".into(),
        to_do: "something that was asked does not answer: a network folder, a name server, a device driver, a coordinator; `dmesg -T` may say which".into(),
    }
}
