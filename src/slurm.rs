//! `toroid slurm`: the batch script for a job of this shape. What the scripts do is in `deploy/slurm`, the same for all shapes; here are the lines
//! before that, which say how many nodes, for how long, and where things are.
//!
//! Deliberately absent: calls of Slurm. The script is for whoever submits it to read first.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use toroid_torus::job;
use toroid_worker::device::Choice;

use crate::files::read_text;
use crate::jobfile;
use crate::local::positive;
use crate::output;

const ALLOCATION: &str = include_str!("../deploy/slurm/allocation.sh");
const ARRAY: &str = include_str!("../deploy/slurm/array.sh");
/// What follows is the same for all jobs.
const MARKER: &str = "# ---- from here on";
/// Bound of what a cluster has.
const MAX_NODES: usize = 1 << 16;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a script for one allocation: coordinator, workers and spares on its nodes
    Allocation {
        #[command(flatten)]
        shape: Shape,
        /// Job file that it trains; the shape is the one in there
        #[arg(long, value_name = "FILE", conflicts_with_all = ["tp", "pp", "dp"])]
        job: Option<PathBuf>,
        /// Folder for everything that is kept, on a file system that all nodes share
        #[arg(long, default_value = "$PWD/toroid-run", value_name = "FOLDER")]
        dir: String,
    },
    /// Print a script for an array of one-node jobs, which bring workers to a coordinator that runs elsewhere
    Array {
        #[command(flatten)]
        shape: Shape,
        /// Address of the coordinator; of several, with commas between. Default: the variable TOROID_COORDINATOR when the script runs
        #[arg(long, value_name = "HOST:PORT[,...]")]
        coordinator: Option<String>,
        /// Tasks that wait for others to end, and are cold spares; default: as many as run at a time
        #[arg(long, value_name = "N")]
        waiting: Option<usize>,
    },
}

#[derive(Debug, clap::Args)]
pub struct Shape {
    /// Ways of tensor parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive)]
    tp: usize,
    /// Ways of pipeline parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive)]
    pp: usize,
    /// Ways of data parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive)]
    dp: usize,
    /// Nodes beyond those that the job needs
    #[arg(long, default_value_t = 1, value_name = "NODES")]
    spares: usize,
    /// Devices of each node, one worker each, as in cuda:0,cuda:1
    #[arg(long, default_value = "auto", value_name = "DEVICE[,...]", value_delimiter = ',')]
    devices: Vec<Choice>,
    /// Time limit of each Slurm job, as sbatch takes it
    #[arg(long, default_value = "24:00:00", value_name = "TIME", value_parser = word)]
    time: String,
    /// Seconds before the time limit at which workers begin to leave. Slurm may begin a minute earlier
    #[arg(long, default_value_t = 120, value_name = "S", value_parser = clap::value_parser!(u32).range(30..=65_535))]
    leave_s: u32,
    /// Name of the Slurm job
    #[arg(long, value_name = "NAME", value_parser = word)]
    name: Option<String>,
    #[arg(long, value_name = "NAME", value_parser = word, help = "Account that pays")]
    account: Option<String>,
    #[arg(long, value_name = "NAME", value_parser = word, help = "Partition of the nodes")]
    partition: Option<String>,
    /// Nodes that are not to be used
    #[arg(long, value_name = "NODES", value_parser = word)]
    exclude: Option<String>,
    /// A further line for sbatch without its `#SBATCH`, as in --reservation=r; more than once
    #[arg(long, value_name = "OPTION", value_parser = sbatch_option)]
    sbatch: Vec<String>,
    /// Folder below which job files may name paths, beside the one of the script; more than once
    #[arg(long, value_name = "FOLDER")]
    allow_root: Vec<String>,
}

/// What stands in a comment of the script must be one word.
fn word(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:,[]@/".contains(c));
    if is_word { Ok(text.into()) } else { Err("expected letters, digits and any of -_.:,[]@/".into()) }
}

fn sbatch_option(text: &str) -> Result<String, String> {
    let is_option = text.starts_with('-') && !text.contains(char::is_control);
    if is_option { Ok(text.into()) } else { Err("expected an option of sbatch, as in --reservation=r".into()) }
}

/// As a word of the shell. Variables stay what they are.
fn quoted(text: &str) -> Result<String> {
    ensure!(
        !text.contains(['"', '`', '\\', '}', '\n']) && !text.contains("$("),
        "`{text}` cannot stand in the script; name a folder without quotes, braces and backslashes"
    );
    Ok(text.into())
}

struct Nodes {
    num: usize,
    num_spares: usize,
    /// What the comment says.
    words: String,
}

impl Shape {
    fn nodes(&self) -> Result<Nodes> {
        let places = self.tp.checked_mul(self.pp).and_then(|n| n.checked_mul(self.dp)).filter(|n| *n <= MAX_NODES);
        let places = places.with_context(|| format!("tp, pp and dp make more than {MAX_NODES} places"))?;
        let per_node = self.devices.len().max(1);
        let num = places.div_ceil(per_node) + self.spares;
        ensure!(num <= MAX_NODES, "that is {num} nodes, at most {MAX_NODES}");
        let workers = if per_node == 1 { "one worker".to_string() } else { format!("{per_node} workers") };
        let words = format!("tp {} x pp {} x dp {} = {places} places", self.tp, self.pp, self.dp);
        Ok(Nodes { num, num_spares: self.spares, words: format!("{words}|{num} nodes of {workers} each") })
    }

    fn devices(&self) -> String {
        self.devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The lines for sbatch; `size` those that say how many nodes.
    fn header(&self, name: &str, size: &[String], log: &str, last: &[&str]) -> String {
        let mut lines = vec![format!("--job-name={}", self.name.as_deref().unwrap_or(name))];
        lines.extend_from_slice(size);
        lines.extend([
            "--exclusive".into(),
            format!("--time={}", self.time),
            format!("--signal=B:TERM@{}", self.leave_s),
        ]);
        let named = [("account", &self.account), ("partition", &self.partition), ("exclude", &self.exclude)];
        lines.extend(named.into_iter().filter_map(|(key, value)| Some(format!("--{key}={}", value.as_ref()?))));
        lines.extend(last.iter().map(ToString::to_string));
        lines.extend([format!("--output={log}"), "--open-mode=append".into()]);
        lines.extend(self.sbatch.iter().cloned());
        lines.iter().fold("#!/usr/bin/env bash\n".to_string(), |mut text, line| {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "#SBATCH {line}");
            text
        })
    }
}

/// A variable of the script, with what it is for in a column of its own.
fn variable(assignment: &str, comment: &str) -> String {
    format!("{:<36} # {comment}\n", format!(": \"${{{assignment}}}\""))
}

fn common(shape: &Shape) -> String {
    variable(&format!("TOROID_DEVICES:={}", shape.devices()), "of each node: one worker a device, as in cuda:0,cuda:1")
        + &variable("TOROID:=toroid", "the program, and what starts it: a container's command may be here")
}

fn roots(shape: &Shape) -> Result<String> {
    Ok(shape.allow_root.iter().map(|root| quoted(root)).collect::<Result<Vec<_>>>()?.join(":"))
}

fn body(script: &str) -> &str {
    script.find(MARKER).map_or(script, |at| &script[at..])
}

fn allocation(shape: &Shape, job: &str, dir: &str) -> Result<String> {
    let nodes = shape.nodes()?;
    let size = [format!("--nodes={}", nodes.num), "--ntasks-per-node=1".into()];
    let mut text = shape.header("toroid", &size, "toroid-%j.log", &["--no-kill", "--requeue"]);
    let (places, of_nodes) = nodes.words.split_once('|').unwrap_or_default();
    writeln!(text, "# {places} on {of_nodes}, {} of them spare", nodes.num_spares)?;
    text += &variable(&format!("TOROID_JOB:={}", quoted(job)?), "the job file");
    let kept = "what is kept, on a file system that all nodes share; the next allocation goes on from it";
    text += &variable(&format!("TOROID_DIR:={}", quoted(dir)?), kept);
    text += &variable(
        &format!("TOROID_ROOTS:={}", roots(shape)?),
        "further folders that the job file names, with colons between",
    );
    Ok(text + &common(shape) + "\n" + body(ALLOCATION))
}

fn array(shape: &Shape, coordinator: Option<&str>, waiting: Option<usize>) -> Result<String> {
    let nodes = shape.nodes()?;
    let waiting = waiting.unwrap_or(nodes.num);
    ensure!(waiting <= MAX_NODES, "that is {waiting} tasks that wait, at most {MAX_NODES}");
    let tasks = format!("--array=0-{}%{}", nodes.num + waiting - 1, nodes.num);
    let size = [tasks, "--nodes=1".into(), "--ntasks=1".into()];
    let mut text = shape.header("toroid-worker", &size, "toroid-worker-%A_%a.log", &["--requeue"]);
    let (places, of_nodes) = nodes.words.split_once('|').unwrap_or_default();
    let rest = format!("{waiting} more tasks wait and take their places");
    writeln!(text, "# {places}: {of_nodes} at a time, {} of them spare; {rest}", nodes.num_spares)?;
    text += &match coordinator {
        Some(coordinator) => variable(&format!("TOROID_COORDINATOR:={}", quoted(coordinator)?), "the coordinator"),
        None => ": \"${TOROID_COORDINATOR:?name the coordinator, HOST:PORT}\"\n".into(),
    };
    text += ": \"${TOROID_CREDENTIALS:?name the folder with the certificate of workers}\"\n";
    let named = if shape.allow_root.is_empty() { "$PWD".to_string() } else { roots(shape)? };
    text += &variable(&format!("TOROID_ROOTS:={named}"), "folders that job files name, with colons between");
    Ok(text + &common(shape) + "\n" + body(ARRAY))
}

pub fn run(command: Command) -> Result<()> {
    let script = match command {
        Command::Allocation { mut shape, job, dir } => {
            if let Some(file) = &job {
                let text = read_text(file, "the job file", jobfile::MAX_BYTES)?;
                let spec = job::parse(&text).with_context(|| format!("read {}", file.display()))?;
                (shape.tp, shape.pp, shape.dp) = (spec.shape.tp(), spec.shape.pp(), spec.shape.dp());
            }
            let job = job.map_or_else(|| "job.toml".into(), |file| file.display().to_string());
            allocation(&shape, &job, &dir)?
        }
        Command::Array { shape, coordinator, waiting } => array(&shape, coordinator.as_deref(), waiting)?,
    };
    output::line(script.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(line: &[&str]) -> Shape {
        toroid_testkit::parse(line)
    }

    /// What is in `deploy/slurm` is what the command prints when nothing is asked for.
    #[test]
    fn the_scripts_of_the_repository_are_those_that_are_printed() {
        assert_eq!(allocation(&shape(&[]), "job.toml", "$PWD/toroid-run").expect("print the script"), ALLOCATION);
        assert_eq!(array(&shape(&[]), None, None).expect("print the script"), ARRAY);
    }

    #[test]
    fn a_shape_says_how_many_nodes() {
        let gpus = shape(&[
            "--tp",
            "8",
            "--pp",
            "4",
            "--dp",
            "64",
            "--devices",
            "cuda:0,cuda:1,cuda:2,cuda:3",
            "--spares",
            "3",
        ]);
        let script = allocation(&gpus, "67b.toml", "/shared/run").expect("print the script");
        assert!(script.contains("#SBATCH --nodes=515\n"), "{script}");
        assert!(script.contains("TOROID_DEVICES:=cuda:0,cuda:1,cuda:2,cuda:3}"), "{script}");
        let few = [
            "--dp",
            "1",
            "--account",
            "lab",
            "--exclude",
            "n[3-5]",
            "--sbatch=--reservation=r",
            "--allow-root",
            "/data",
        ];
        let script = array(&shape(&few), Some("c1:7070,c2:7070"), Some(2)).expect("print the script");
        for line in
            ["#SBATCH --array=0-6%5", "#SBATCH --account=lab", "#SBATCH --exclude=n[3-5]", "#SBATCH --reservation=r"]
        {
            assert!(script.lines().any(|found| found == line), "{line}: {script}");
        }
        assert!(script.contains("TOROID_COORDINATOR:=c1:7070,c2:7070}") && script.contains("TOROID_ROOTS:=/data}"));
    }

    #[test]
    fn nothing_gets_out_of_its_place_in_the_script() {
        assert!(word("lab\n#SBATCH --x").is_err() && word("").is_err() && word("n[1-3],n7").is_ok());
        assert!(sbatch_option("reservation").is_err() && sbatch_option("--a\nrm").is_err());
        for text in ["$(rm)", "a\"b", "a}b", "`rm`"] {
            assert!(allocation(&shape(&[]), "job.toml", text).is_err(), "{text}");
        }
        assert!(shape(&["--tp", "65536", "--dp", "65536"]).nodes().is_err());
    }
}
