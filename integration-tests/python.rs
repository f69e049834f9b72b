//! Scripts of this folder, in the virtual environment that `make test` makes: foreign clients, readers and a browser.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toroid_testkit::root;

/// The script as a command without its arguments.
pub fn command(script: &str) -> Result<Command> {
    let python = root().join(".venv/bin/python");
    ensure!(python.exists(), "{} is missing: run scripts/setup.sh (make test does)", python.display());
    let mut command = Command::new(python);
    command.arg(root().join("integration-tests").join(script));
    Ok(command)
}

/// Runs it to its end, which has to be a good one; what it has said.
pub fn run(args: &[&str]) -> Result<String> {
    let output = command(args[0])?.args(&args[1..]).output().with_context(|| format!("run {}", args[0]))?;
    let text = String::from_utf8_lossy(&output.stdout).to_string() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {text}", args[0]);
    Ok(text)
}
