//! `toroid checkpoint`: ask a job for one, pin one, list them, check every byte of them, export the parameters.
//!
//! `now`, `pin` and `unpin` are for the coordinator to decide. The others read the files themselves and need no coordinator; [`crate::find`] says which files.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::runtime::Runtime;
use toroid_hf::Dtype;
use toroid_storage::Store;
use toroid_worker::checkpoint::Storage;

use crate::client::Connection;
use crate::find::{self, Found, LOCAL_DIR};
use crate::format::{bytes, count, table};
use crate::output::{self, FormatArgs};
use crate::words;

/// Of a file, at a time.
const SEND_BYTES: usize = 1 << 20;
/// Below a prefix: more than these are not looked at.
const MAX_OBJECTS: usize = 1 << 20;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Ask a running job for a checkpoint; prints the step whose state will be saved. Of a job of kind ppo that is the end of an iteration
    Now {
        /// The job's id, as `toroid jobs` lists it
        job: String,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Keep a checkpoint of a job until it is unpinned, whatever `checkpoint.keep` says
    Pin {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Let a checkpoint go when newer ones come, as those do that nobody pinned
    Unpin {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the complete checkpoints of a job or in a folder; of a job of a coordinator also why each is kept
    List {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Read every byte of checkpoints and name what is damaged; exit code 1 if anything is
    Verify {
        #[command(flatten)]
        place: Place,
        /// The step; default: all of them
        step: Option<u64>,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Write all parameters of a checkpoint as one safetensors file, whole tensors in f32, or as a folder of Hugging Face's
    Export {
        /// The step
        step: u64,
        /// The file to write, or s3://BUCKET/KEY; with --format hf the folder or prefix, which must be absent or empty
        file: PathBuf,
        #[command(flatten)]
        written: Written,
        /// Folder or job, as for `list`; the folder of `toroid local` stands for its newest job
        #[arg(long, value_name = "PATH_OR_JOB", default_value = LOCAL_DIR)]
        from: String,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
}

/// How an export is written.
#[derive(Debug, clap::Args)]
pub struct Written {
    /// hf: a folder that Hugging Face's GraniteMoeSharedForCausalLM loads, with its tokenizer
    #[arg(long = "format", value_enum, default_value_t, value_name = "FORMAT")]
    files: Files,
    /// Type of the elements, with --format hf
    #[arg(long, value_enum, default_value_t)]
    dtype: ExportDtype,
    /// Bytes of tensors in each file, with --format hf
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30, value_parser = clap::value_parser!(u64).range(1..))]
    shard_bytes: u64,
    /// A folder whose tokenizer and chat template come along, with --format hf; default: the folder of the job's init_from
    #[arg(long, value_name = "FOLDER")]
    words_from: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Files {
    #[default]
    Safetensors,
    Hf,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum ExportDtype {
    #[default]
    F32,
    Bf16,
}

/// A target among the checkpoints would be written over one of their files.
fn refuse_within(root: &str, target: &Path) -> Result<()> {
    let is_within = match target.to_str().filter(|target| toroid_storage::is_store(target)) {
        Some(url) => url.strip_prefix(root).is_some_and(|rest| rest.starts_with('/')),
        None => {
            let absolute = std::path::absolute(target).with_context(|| format!("find {}", target.display()))?;
            let parent = absolute.parent().unwrap_or(Path::new("/"));
            // A folder that is not there yet has no links in its name.
            parent.canonicalize().unwrap_or_else(|_| parent.into()).starts_with(root)
        }
    };
    ensure!(!is_within, "{} lies in {root}, which is kept for checkpoints; export to another place", target.display());
    Ok(())
}

impl Written {
    /// Returns how many bytes were written.
    fn write(&self, storage: &Storage, step: u64, path: &Path) -> Result<u64> {
        let dtype = match self.dtype {
            ExportDtype::F32 => Dtype::F32,
            ExportDtype::Bf16 => Dtype::Bf16,
        };
        refuse_within(storage.root(), path)?;
        match self.files {
            Files::Safetensors if dtype != Dtype::F32 => {
                bail!("one safetensors file has f32 alone; add --format hf for --dtype bf16")
            }
            Files::Safetensors if self.words_from.is_some() => {
                bail!("one safetensors file has no tokenizer beside it; add --format hf for --words-from")
            }
            Files::Safetensors => Ok(storage.export(step, path)?),
            Files::Hf => {
                let manifest = storage.manifest(step)?;
                let carried = words::carried(&manifest, self.words_from.as_deref())?;
                let has_tokenizer = carried.iter().any(|(name, _)| name == words::TOKENIZER);
                let written = match path.to_str().filter(|url| toroid_storage::is_store(url)) {
                    Some(url) => self.write_to_store(storage, step, url, dtype, carried)?,
                    None => storage.export_hf(step, path, dtype, self.shard_bytes, carried)?.bytes,
                };
                if let Some(tokenizer) = manifest.tokenizer.filter(|_| !has_tokenizer) {
                    output::note(format_args!(
                        "the tokens are not bytes: name the folder of the tokenizer.json whose blake3 is {tokenizer} with --words-from, or copy it into {}",
                        path.display()
                    ));
                }
                if dtype == Dtype::Bf16 {
                    output::note(
                        "bf16 has 8 bits of mantissa: where two experts are nearly as good, a router in bf16 may choose another than the \
                         model that was trained",
                    );
                }
                Ok(written)
            }
        }
    }
}

impl Written {
    /// A folder of this machine (below `TMPDIR`) first, then its files as objects. `config.json`, without which nobody takes it for a model, comes last.
    fn write_to_store(
        &self,
        storage: &Storage,
        step: u64,
        url: &str,
        dtype: Dtype,
        carried: Vec<(String, Vec<u8>)>,
    ) -> Result<u64> {
        let store = Store::open(url)?;
        ensure!(
            store.list("", MAX_OBJECTS)?.is_empty(),
            "there are objects below {url}; export to a prefix that has none"
        );
        let staging =
            tempfile::tempdir().context("make a folder for the files before they are sent (TMPDIR says where)")?;
        let folder = staging.path().join("model");
        let written = storage.export_hf(step, &folder, dtype, self.shard_bytes, carried)?;
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            files.push(entry.with_context(|| format!("list {}", folder.display()))?.path());
        }
        files.sort_by_key(|file| file.ends_with("config.json"));
        for file in files {
            send(&store, &file)?;
        }
        Ok(written.bytes)
    }
}

/// A file becomes the object of its name.
fn send(store: &Store, file: &Path) -> Result<()> {
    let reading = || format!("read {}", file.display());
    let name = file.file_name().and_then(|name| name.to_str()).with_context(reading)?;
    let mut source = std::fs::File::open(file).with_context(reading)?;
    let num_bytes = source.metadata().with_context(reading)?.len();
    let (mut upload, mut buffer) = (store.upload(name, Some(num_bytes))?, vec![0; SEND_BYTES]);
    loop {
        match source.read(&mut buffer).with_context(reading)? {
            0 => break,
            num => upload.write(&buffer[..num])?,
        }
    }
    Ok(upload.finish()?)
}

#[derive(Debug, clap::Args)]
pub struct Which {
    /// The job's id, as `toroid jobs` lists it
    job: String,
    /// The step of a checkpoint that is there, as `toroid checkpoint list` has it
    step: u64,
}

#[derive(Debug, clap::Args)]
pub struct Place {
    /// A folder of checkpoints, one checkpoint's folder, the folder of a job, of a coordinator or of `toroid local`; or a
    /// job's id: at the coordinator that is named, else in .toroid and then at the coordinator
    #[arg(value_name = "PATH_OR_JOB")]
    path_or_job: String,
    #[command(flatten)]
    connection: Connection,
}

impl Place {
    async fn find(&self) -> Result<Found> {
        find::checkpoints(&self.path_or_job, &self.connection).await
    }
}

/// Storage is synchronous: only what asks a coordinator runs on `runtime`.
pub fn run(runtime: &Runtime, command: Command) -> Result<ExitCode> {
    match command {
        Command::Now { job, format, connection } => {
            let step = runtime.block_on(async { connection.open().await?.checkpoint(&job).await })?;
            let text = format_args!("the state after step {step} will be saved\n");
            format.answer(&json!({ "job_id": &job, "step": step }), text)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Pin { which: Which { job, step }, format, connection } => {
            let path = runtime.block_on(async { connection.open().await?.pin(&job, step).await })?;
            let text = format_args!("step {step} stays until `toroid checkpoint unpin {job} {step}`: {path}\n");
            format.answer(&json!({ "job_id": &job, "step": step, "path": &path }), text)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Unpin { which: Which { job, step }, format, connection } => {
            let stays = runtime.block_on(async { connection.open().await?.unpin(&job, step).await })?;
            let next = match stays {
                true => "is kept like any other again",
                false => "is outdated: it goes when the job publishes its next checkpoint",
            };
            format.answer(
                &json!({ "job_id": &job, "step": step, "stays": stays }),
                format_args!("step {step} is not pinned any more, and {next}\n"),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List { place, format } => list(&runtime.block_on(place.find())?, format),
        Command::Verify { place, step, format } => verify(&runtime.block_on(place.find())?, step, format),
        Command::Export { step, file, written, from, format, connection } => {
            let found = runtime.block_on(find::checkpoints(&from, &connection))?;
            check_step(&found, step)?;
            let storage = open(&found)?;
            let size = written
                .write(&storage, step, &file)
                .with_context(|| format!("export step {step} of {}", found.what))?;
            let (what, path, in_words) = (found.what, file.display(), bytes(size));
            let text = format_args!("wrote the parameters of step {step} of {what} to {path} ({in_words})\n");
            format.answer(&json!({ "step": step, "file": &file, "bytes": size }), text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn open(found: &Found) -> Result<Storage> {
    Storage::open(&found.root).with_context(|| format!("open {}", found.what))
}

/// The folder of one checkpoint and another step are a contradiction.
fn check_step(found: &Found, step: u64) -> Result<()> {
    match found.step {
        Some(named) if named != step => bail!(
            "the folder is that of step {named}, and step {step} is asked for; name the folder that has all of them, {}",
            found.root
        ),
        _ => Ok(()),
    }
}

/// The steps asked for; those that are there where none was named.
fn steps(storage: &Storage, found: &Found, step: Option<u64>) -> Result<Vec<u64>> {
    if let Some(step) = step {
        check_step(found, step)?;
    }
    match step.or(found.step) {
        Some(step) => Ok(vec![step]),
        None => storage.steps().with_context(|| format!("look for {}", found.what)),
    }
}

/// A complete checkpoint, for programs; one that cannot be read has a fault and nothing else.
#[derive(Debug, Default, Serialize)]
struct Listed {
    step: u64,
    bytes: u64,
    num_files: usize,
    samples: u64,
    job_id: String,
    path: String,
    fault: Option<String>,
    /// Why it is not removed when newer ones come: pinned, for good, newest; `None`: it is, or no coordinator was asked.
    kept: Option<&'static str>,
}

fn list(found: &Found, format: FormatArgs) -> Result<ExitCode> {
    let storage = open(found)?;
    let kept = |step: u64| found.kept.as_ref().and_then(|kept| kept.get(&step).copied());
    let listed = |step: u64| match storage.manifest(step) {
        Ok(manifest) => Listed {
            step,
            bytes: manifest.bytes(),
            num_files: manifest.files.len(),
            samples: manifest.samples,
            job_id: manifest.job_id.clone(),
            path: storage.step_path(step),
            fault: None,
            kept: kept(step),
        },
        Err(error) => Listed { step, fault: Some(error.to_string()), kept: kept(step), ..Listed::default() },
    };
    let all: Vec<Listed> = steps(&storage, found, None)?.into_iter().map(listed).collect();
    let text = match &all[..] {
        [] => format!("there is no complete checkpoint in {}\n", storage.root()),
        all => {
            let header = ["STEP", "SIZE", "FILES", "SAMPLES", "JOB", "KEPT", "PATH"].map(String::from).to_vec();
            let mut rows: Vec<Vec<String>> = std::iter::once(header).chain(all.iter().map(row)).collect();
            if found.kept.is_none() {
                rows.iter_mut().for_each(|row| drop(row.remove(KEPT_COLUMN)));
            }
            table(&rows)
        }
    };
    format.answer(&all, text)?;
    Ok(ExitCode::SUCCESS)
}

const KEPT_COLUMN: usize = 5;

fn row(listed: &Listed) -> Vec<String> {
    let Listed { step, bytes: size, num_files, samples, job_id, path, fault, kept } = listed;
    let kept = kept.unwrap_or("-").to_string();
    match fault {
        Some(fault) => {
            vec![step.to_string(), "damaged".into(), "-".into(), "-".into(), "-".into(), kept, fault.clone()]
        }
        None => {
            let size = bytes(*size);
            vec![step.to_string(), size, num_files.to_string(), count(*samples), job_id.clone(), kept, path.clone()]
        }
    }
}

/// One checkpoint that was read, for programs.
#[derive(Debug, Serialize)]
struct Verified {
    step: u64,
    /// None where it is whole.
    faults: Vec<String>,
    /// That were read where it is whole.
    bytes: u64,
}

fn verify(found: &Found, step: Option<u64>, format: FormatArgs) -> Result<ExitCode> {
    let storage = open(found)?;
    let steps = steps(&storage, found, step)?;
    if steps.is_empty() {
        bail!("there is no complete checkpoint in {}", storage.root());
    }
    let mut all: Vec<Verified> = Vec::new();
    for step in steps {
        let faults = storage.verify(step).with_context(|| format!("verify step {step} of {}", found.what))?;
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let bytes = match faults.is_empty() {
            true => storage.manifest(step).with_context(|| format!("read the manifest of step {step}"))?.bytes(),
            false => 0,
        };
        let verified = Verified { step, faults, bytes };
        // To read all of them may take long: each is told as soon as it is read.
        if !format.is_json() {
            output::print(verified.text())?;
        }
        all.push(verified);
    }
    if format.is_json() {
        output::json(&all)?;
    }
    if all.iter().all(|verified| verified.faults.is_empty()) {
        return Ok(ExitCode::SUCCESS);
    }
    output::note(what_to_do(Path::new(storage.root())));
    Ok(ExitCode::FAILURE)
}

impl Verified {
    fn text(&self) -> String {
        let step = self.step;
        match &self.faults[..] {
            [] => format!("step {step}: whole, {} read\n", bytes(self.bytes)),
            faults => faults.iter().map(|fault| format!("step {step}: {fault}\n")).collect(),
        }
    }
}

fn what_to_do(root: &Path) -> String {
    format!(
        "damaged checkpoints are of no use: restore them from a copy, or move their folders out of {} so that the checkpoint \
         before is used",
        root.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_one_step_and_another_step_are_a_contradiction() {
        let found = |step| Found { root: "/c".into(), step, what: "the checkpoints in /c".into(), kept: None };
        let error = check_step(&found(Some(20)), 30).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("step 20") && error.contains("step 30") && error.contains("/c"), "{error}");
        assert!(check_step(&found(Some(20)), 20).is_ok() && check_step(&found(None), 30).is_ok());
    }
}
