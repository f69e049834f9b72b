//! Job files of tests.
//!
//! Their model is so small that a step takes milliseconds: what these tests look at is who does what when, and a larger model shows
//! nothing more of it. A test of faults takes an endless job and ends it when it has seen enough, so that no job is over too early.

use std::path::{Path, PathBuf};

use crate::{path, root};

/// (tp, pp, dp)
pub type Ways = (usize, usize, usize);

/// Some text to train on: this repository's own sources.
pub fn text_folder() -> PathBuf {
    root().join("torus/src")
}

/// Steps of an endless job.
pub const ENDLESS: u64 = 1_000_000;
/// Four layers, so that up to four stages have one each; KV heads are replicated at tp 4.
const MICRO: &str = "layers = 4\nd_model = 32\nheads = 4\nkv_heads = 2\nhead_dim = 8\nexperts = 4\nff = 32\nseq = 32\n";

/// A short job on this repository's sources. `more` is for the keys outside of all tables.
pub fn short_job(ways: Ways, steps: u64, more: &str) -> String {
    job(&text_folder(), ways, steps, &format!("{more}\n[model]\n{MICRO}"))
}

/// The same with the model `tiny`, where sizes or the time of a step matter.
pub fn tiny_job(ways: Ways, steps: u64, more: &str) -> String {
    tiny_job_on(&text_folder(), ways, steps, more)
}

/// The same on `text`, a file, or a folder with Rust sources.
pub fn tiny_job_on(text: &Path, ways: Ways, steps: u64, more: &str) -> String {
    job(text, ways, steps, &format!("{more}\n"))
}

/// More steps than any test waits for: `Cluster::finish` ends it. Learning rate and weight decay do not change, so
/// that a job of fewer steps is the same as far as it goes.
pub fn endless_job(ways: Ways) -> String {
    let constant = "[optimizer]\nfloor = 1.0\nweight_decay = 0.1\nweight_decay_final = 0.1\n";
    short_job(ways, ENDLESS, "").replace("[optimizer]\n", constant).replace("keep = 10", "keep = 100000")
}

/// An endless job that ends after so many steps.
pub fn ended(endless: &str, steps: u64) -> String {
    endless.replace(&format!("steps = {ENDLESS}\n"), &format!("steps = {steps}\n"))
}

/// The same job on several sources instead of one text: `name`, path, and further keys of each.
pub fn on_sources(job_file: &str, sources: &[(&str, &Path, &str)]) -> String {
    let (head, tail) = job_file.split_once("[data]\n").expect("a job with a table for its data");
    let (_, tail) = tail.split_once("[eval]\n").expect("the table for validations follows");
    let source = |(name, at, more): &(&str, &Path, &str)| {
        format!("[[data.source]]\nname = \"{name}\"\npath = \"{}\"\n{more}\n", path(at))
    };
    format!("{head}[data]\nvalidation = 0.1\n{}[eval]\n{tail}", sources.iter().map(source).collect::<String>())
}

/// `head`: keys outside of all tables, and the table of the model.
fn job(text: &Path, (tp, pp, dp): Ways, steps: u64, head: &str) -> String {
    // One file is taken whatever its name.
    let extensions = if text.is_file() { "" } else { "extensions = [\"rs\"]\n" };
    format!(
        "preset = \"tiny\"\nsteps = {steps}\nseed = 7\n{head}\
         [shape]\ntp = {tp}\npp = {pp}\ndp = {dp}\n\
         [batch]\nmicro_batch = 2\nglobal = 16\n\
         [optimizer]\nlr = 3e-3\nwarmup = 5\n\
         [data]\npath = \"{}\"\n{extensions}validation = 0.1\n\
         [eval]\nmicro_batches = 4\ninterval = 10\n\
         [checkpoint]\ninterval_steps = 10\nkeep = 10\n",
        path(text)
    )
}
