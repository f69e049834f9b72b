//! Programs of their own that `toroid COMMAND` stands for, found as cargo finds its subcommands: `toroid-data`, `toroid-serve`.
//!
//! What makes text to train on needs parsers and compressors, and what serves a model tokenizers and templates, that training does not; whoever trains
//! does not build them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

/// A program beside this one.
#[derive(Debug, Clone, Copy)]
pub struct Companion {
    program: &'static str,
    /// The package that has it.
    package: &'static str,
}

pub const DATA: Companion = Companion { program: "toroid-data", package: "toroid-corpus" };
pub const SERVE: Companion = Companion { program: "toroid-serve", package: "toroid-serve" };

/// Arguments that are passed on as they are.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What it is to do
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

impl Companion {
    /// Becomes the program; returns only if it cannot.
    pub fn run(self, arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
        let Companion { program, package } = self;
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
        let path = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(program));
        let error = Command::new(&path).args(arguments).exec();
        if error.kind() == std::io::ErrorKind::NotFound {
            bail!(
                "there is no `{program}` beside this program or on the PATH; build it with `cargo build --release -p {package}` in the repository"
            );
        }
        Err(anyhow::Error::new(error).context(format!("start {}", path.display())))
    }
}
