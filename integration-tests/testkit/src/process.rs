//! The binary under test, its flags, and processes that a test starts by itself.

use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// The binary under test.
#[derive(Debug, Clone, Copy)]
pub struct Toroid {
    executable: &'static str,
}

impl Toroid {
    /// `executable`: as cargo names it to a test, `env!("CARGO_BIN_EXE_toroid")`.
    pub const fn at(executable: &'static str) -> Toroid {
        Toroid { executable }
    }

    pub fn executable(self) -> &'static str {
        self.executable
    }

    pub fn command(self) -> Command {
        let mut command = Command::new(self.executable);
        command.stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    /// Runs it to its end.
    pub fn run(self, args: &[&str]) -> Result<Output> {
        self.command().args(args).output().with_context(|| format!("run toroid {}", args.join(" ")))
    }

    /// Runs it, which has to succeed, and returns what it printed.
    pub fn run_ok(self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "toroid {} failed: {stderr}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A process that ends with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The flags of one command, as the command line would read them.
pub fn parse<A: clap::Args>(flags: &[&str]) -> A {
    #[derive(Parser)]
    struct Cli<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    Cli::parse_from(std::iter::once(&"toroid").chain(flags)).args
}
