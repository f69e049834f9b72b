//! `toroid top`: the cluster in a terminal, as it goes on.
//!
//! ```text
//!   driver   keys, signals, the coordinator's answers ──> inputs
//!   update   (model, input, now) ──> the model changes, and perhaps something is to be done; pure
//!   model    what is known and what is looked at, all of it bounded
//!   render   (model, now, room) ──> cells; pure
//!   terminal cells ──> escape sequences; gives the terminal back however this ends
//! ```
//!
//! What it shows is what `status -w`, `workers` and `incidents` show, by the same calls, and a coordinator's death is survived in the same way.
//! Deliberately absent: figures of its own.

mod driver;
mod model;
mod render;
mod terminal;
#[cfg(test)]
mod tests;
mod update;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Result;

use crate::client::Connection;
use crate::exit::{Exit, wrong_use};
use driver::End;
use model::Model;
use render::Palette;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's id, as `toroid jobs` lists it; default: the newest that goes on
    job: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let job = args.job.as_deref().unwrap_or("JOB");
        return Err(wrong_use(format!(
            "`toroid top` draws on a terminal and reads its keys, and this is none; `toroid status -w {job}` prints a line every few seconds"
        )));
    }
    let access = args.connection.access()?;
    let job = match args.job {
        // One that is not there is said before the screen is taken.
        Some(job) => crate::client::Client::find(&access).await?.job(&job, false).await?.id,
        None => String::new(),
    };
    let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let model = Model::new(args.connection.coordinator.join(","), job);
    Ok(match driver::run(access, model, Palette::new(has_colours)).await? {
        End::Quit => ExitCode::SUCCESS,
        End::Interrupted => Exit::Interrupted.into(),
    })
}
