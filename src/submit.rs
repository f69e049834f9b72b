//! `toroid submit`: a job file to the coordinator, and its progress where that is asked for.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;
use toroid_proto::{self as proto, json};

use crate::client::Connection;
use crate::jobfile::{self, Resolved};
use crate::output::{self, FormatArgs};
use crate::progress::Progress;
use crate::summary;
use crate::watch::{Follow, PATIENCE};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job file (docs/job-file.md lists its keys); relative paths in it are taken from its own folder
    file: PathBuf,
    /// Priority instead of that of the job file, -100 to 100: jobs of a higher one are served first
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Whose quota the job counts against: at most 64 letters, digits and -, _, ., @; default: the name of the user of this process
    #[arg(long, env = "USER", default_value = "", value_name = "NAME")]
    user: String,
    /// Show the progress until the job ends; exit code 0 only if it is done
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// What was submitted, for programs.
#[derive(Debug, Serialize)]
struct Submitted<'a> {
    job_id: &'a str,
    /// Paths of the job file that were taken from its folder.
    resolved: &'a [Resolved],
    /// What in the job file has no effect, or another than one may think.
    notes: &'a [String],
}

/// Prints the job's id, alone on standard output where JSON is not asked for, so that a script can go on with it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (job_toml, resolved) = jobfile::read(&args.file)?;
    // What is not valid is the coordinator's to refuse.
    let notes = toroid_torus::job::parse(&job_toml).map(|spec| spec.notes()).unwrap_or_default();
    let request = proto::SubmitJobRequest { job_toml, user: args.user, priority: args.priority };
    let job = args.connection.open().await?.submit_as(request).await?;
    for path in &resolved {
        output::note(format_args!("{} = {} is taken as {}", path.key, path.from, path.to));
    }
    // Of a job that is waited for the answer is what it came to.
    if !(args.wait && args.format.is_json()) {
        let submitted = Submitted { job_id: &job, resolved: &resolved, notes: &notes };
        args.format.answer(&submitted, format_args!("{job}\n"))?;
    }
    notes.iter().for_each(|text| output::note(format_args!("note: {text}")));
    if !args.wait {
        output::note(format_args!("submitted; see how it does with `toroid status {job} -w`"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut follow = Follow::new(args.connection.access()?, &job, PATIENCE);
    let mut progress = Progress::new(false);
    while let Some(update) = follow.next().await? {
        progress.update(&update);
    }
    progress.finish();
    let job = args.connection.open().await.context("get the job's end")?.job(&job, true).await?;
    args.format.answer(&json::Job::new(&job, false), summary::text(&job))?;
    Ok(exit_code(&job))
}

/// Success only where the job is done.
pub fn exit_code(job: &proto::Job) -> ExitCode {
    if job.state() == proto::JobState::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
