//! `toroid agent`: one process of a host that speaks to the coordinator for all workers of the host ([`toroid_worker::control::agent`]).
//!
//! It ends on SIGINT and SIGTERM, at once: its workers go on, and come back by another agent or by themselves.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use toroid_telemetry::settings::Format;
use toroid_worker::control::agent::{Config, listen, run};
use toroid_worker::control::carrier::UNIX;

use crate::access::LocalRole;
use crate::client;
use crate::daemon::{LISTENS_ON, asked_to_end, host_name, raise_open_files};
use crate::exit::wrong_use;
use crate::output;

/// As of a worker: how long an attempt may take, and a coordinator may be silent.
const FAILURE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: client::Connection,
    /// Socket at which workers of this host reach it, by `toroid worker --coordinator unix:PATH`; processes of this user alone
    #[arg(long, env = "TOROID_AGENT", value_name = "PATH")]
    listen: PathBuf,
    /// Its name in the coordinator's log; default: that of the host. Whom it may speak for is a matter of its certificate
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Name of this machine; default: its host name
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// End with the process that started this one, and when standard input ends
    #[arg(long)]
    die_with_parent: bool,
    /// Form of the log: text for people, or json, an object a line
    #[arg(long, env = "TOROID_LOG_FORMAT", default_value_t, value_name = "FORM")]
    pub log_format: Format,
}

pub async fn agent(args: Args) -> Result<ExitCode> {
    raise_open_files();
    let mut asked = asked_to_end(args.die_with_parent)?;
    if let Some(other) = args.connection.coordinator.iter().find(|url| url.starts_with(UNIX)) {
        return Err(wrong_use(format!("{other} is the socket of an agent; name the coordinator's own address")));
    }
    let access = args.connection.access_as(LocalRole::Worker)?;
    let host = args.host.unwrap_or_else(host_name);
    let config = Config {
        coordinators: access.urls,
        credentials: access.credentials,
        name: args.name.unwrap_or_else(|| host.clone()),
        host,
        failure_timeout: FAILURE_TIMEOUT,
    };
    let listener = listen(&args.listen).await?;
    let version = &toroid_proto::build().version;
    output::line(format_args!("toroid agent {version} {LISTENS_ON}{UNIX}{}", args.listen.display()))?;
    tokio::select! {
        ended = run(listener, config) => ended.context("run the agent")?,
        // The sender is gone only when this process ends.
        _ = asked.wait_for(|times| *times > 0) => {}
    }
    // Its socket stays: the next agent replaces it, which may be there already.
    Ok(ExitCode::SUCCESS)
}
