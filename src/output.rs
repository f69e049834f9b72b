//! Where words go: answers to standard output, everything said beside them to standard error.
//!
//! `println!` panics when the reader of a pipe is gone (`toroid events -f JOB | head -1`). Here that is an error, and [`is_gone`]
//! lets the program end on it without a complaint.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// In which form a command answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// `-o`, the same for each command that has an answer.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct FormatArgs {
    /// Text or JSON
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: Format,
}

impl FormatArgs {
    pub fn is_json(self) -> bool {
        self.output == Format::Json
    }

    /// The answer as it was asked for. `text` ends its last line itself.
    pub fn answer(self, value: &impl Serialize, text: impl Display) -> Result<()> {
        match self.output {
            Format::Text => print(text),
            Format::Json => json(value),
        }
    }
}

/// Writes an answer for programs.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).context("write the answer as JSON")?)
}

/// Said of an answer that could not be written.
const WRITE: &str = "write to standard output";

/// Writes an answer, as it is, at once.
pub fn print(text: impl Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).context(WRITE)
}

/// Writes a line of an answer.
pub fn line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Says something beside the answer. Where nobody reads it any more, nothing is lost.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The reader of the answer went away, which is its right.
pub fn is_gone(error: &anyhow::Error) -> bool {
    let is_broken = error.root_cause().downcast_ref().is_some_and(|e: &io::Error| e.kind() == ErrorKind::BrokenPipe);
    is_broken && error.chain().any(|cause| cause.to_string() == WRITE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_without_a_reader_ends_silently() {
        let broken = || io::Error::from(ErrorKind::BrokenPipe);
        let full = io::Error::from(ErrorKind::StorageFull);
        assert!(is_gone(&Err::<(), _>(broken()).context(WRITE).context("show the job").expect_err("it is an error")));
        assert!(!is_gone(&Err::<(), _>(broken()).context("talk to the coordinator").expect_err("it is an error")));
        assert!(!is_gone(&Err::<(), _>(full).context(WRITE).expect_err("it is an error")));
    }
}
