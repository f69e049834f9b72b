//! `toroid events`: what happened to a job, one line each, as it happens where that is asked for.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use toroid_proto as proto;
use toroid_proto::json;

use crate::client::Connection;
use crate::output::{self, Format, FormatArgs};
use crate::progress::event_line;
use crate::watch::{Follow, PATIENCE};

#[derive(Debug, clap::Args)]
#[command(mut_arg("output", |arg| arg.help("Text, or one JSON document a line")))]
pub struct Args {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// Stay, and show new events until the job ends
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let print = |events: &[proto::Event]| -> Result<()> {
        for event in events {
            match args.format.output {
                Format::Text => output::line(event_line(event))?,
                Format::Json => {
                    output::line(serde_json::to_string(&json::Event::from(event)).context("write an event as JSON")?)?
                }
            }
        }
        Ok(())
    };
    if !args.follow {
        print(&args.connection.open().await?.job(&args.job, false).await?.events)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut follow = Follow::new(args.connection.access()?, &args.job, PATIENCE);
    while let Some(update) = follow.next().await? {
        print(&update.events)?;
    }
    Ok(ExitCode::SUCCESS)
}
