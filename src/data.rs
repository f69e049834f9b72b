//! `toroid data`: a program of its own, which is found as cargo finds its subcommands.
//!
//! What makes text to train on needs parsers and compressors that training does not; whoever trains does not build them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

const PROGRAM: &str = "toroid-data";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `toroid-data` is to do
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Becomes `toroid-data`; returns only if it cannot.
pub fn run(args: &Args) -> Result<ExitCode> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(PROGRAM));
    let error = Command::new(&program).args(&args.arguments).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!(
            "there is no `{PROGRAM}` beside this program or on the PATH; build it with `cargo build --release -p toroid-corpus` in the repository"
        );
    }
    Err(anyhow::Error::new(error).context(format!("start {}", program.display())))
}
