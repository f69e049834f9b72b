//! Whole pipelines, by the program that users run, on texts that are made from seeds.

mod chat;
mod damage;
mod duplicates;
mod languages;
mod others;
mod plans;
mod repositories;
mod same_bytes;
mod stores;
mod tables;
mod texts;
mod token_files;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use toroid_corpus::ledger::Row;
use toroid_corpus::report::Report;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_toroid-data");

/// A folder with sources and a pipeline.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn empty() -> Place {
        Place { dir: tempfile::tempdir().expect("a folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().expect("a parent")).expect("a folder");
        fs::write(self.path(name), contents).expect("write");
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.dir.path()).args(arguments);
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("start toroid-data")
    }

    /// Runs the pipeline, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Report {
        let output = self.output(&[&["run", "pipeline.toml", "-o", "json"], arguments].concat());
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{complaints}");
        serde_json::from_slice(&output.stdout).expect("a report")
    }

    /// What a run that must fail says.
    pub fn complaint(&self, arguments: &[&str]) -> String {
        let output = self.output(&[&["run", "pipeline.toml"], arguments].concat());
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn rows(&self, stage: &str) -> Vec<Row> {
        let text = fs::read_to_string(self.path(&format!("out/ledger/{stage}.jsonl"))).expect("rows");
        text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
    }

    /// All text that was written, in its order.
    pub fn text(&self) -> String {
        files(&self.path("out/text")).into_values().map(|bytes| String::from_utf8(bytes).expect("UTF-8")).collect()
    }
}

/// Contents of all files below a folder, by their relative paths.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("list") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).expect("read"));
            }
        }
    }
    found
}
