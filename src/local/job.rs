//! The job of a cluster on this machine: from a job file, or from flags.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;
use toroid_torus::job::{self, JobSpec, SourceConfig};
use toroid_torus::model::ModelConfig;
use toroid_worker::data;

use super::positive;
use crate::jobfile;

/// Of the default text, this much: enough for thousands of steps, read in a moment.
const DEFAULT_TEXT_BYTES: u64 = 32 << 20;
/// Fits `tiny` and `small`, and runs of some hundred steps.
const LEARNING_RATE: f64 = 3e-3;
/// Rows of embedding and head are as many as tokens of the vocabulary, up to a multiple of this for each way of tensor parallelism.
const VOCAB_MULTIPLE: usize = 64;
/// Where both holders of a shard die together, this costs at most so many steps.
const CHECKPOINT_INTERVAL_STEPS: u64 = 50;

/// What to train: the flags that `local` and `chaos` share.
#[derive(Debug, Clone, clap::Args)]
pub struct JobArgs {
    /// Text file or folder of text files to train on, or token files; default: the Rust sources in cargo's registry folder
    #[arg(long, value_name = "PATH", conflicts_with = "job")]
    pub data: Option<PathBuf>,
    /// Size of the model: micro, tiny, small, medium, 1b, 67b
    #[arg(long, default_value = "tiny", conflicts_with = "job")]
    pub preset: String,
    /// Ways of tensor parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive, conflicts_with = "job")]
    pub tp: usize,
    /// Ways of pipeline parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive, conflicts_with = "job")]
    pub pp: usize,
    /// Ways of data parallelism
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = positive, conflicts_with = "job")]
    pub dp: usize,
    /// A job file instead of the flags above
    #[arg(long, value_name = "FILE")]
    pub job: Option<PathBuf>,
}

/// A job, ready to be submitted.
#[derive(Debug)]
pub struct LocalJob {
    pub toml: String,
    pub spec: JobSpec,
    /// What it trains on, in words.
    pub data: String,
}

impl LocalJob {
    /// The same with `table.key` set to `value`.
    pub fn with(self, table: &str, key: &str, value: impl Into<toml::Value>) -> Result<LocalJob> {
        let mut file: toml::Table = toml::from_str(&self.toml).context("read the job file again")?;
        let entry = file.entry(table).or_insert_with(|| toml::Table::new().into());
        let keys = entry.as_table_mut().with_context(|| format!("`{table}` of the job file is no table"))?;
        keys.insert(key.into(), value.into());
        let toml = toml::to_string(&file).context("write the job file")?;
        let spec = job::parse(&toml).with_context(|| format!("set {table}.{key} in the job file"))?;
        Ok(LocalJob { toml, spec, data: self.data })
    }
}

/// The keys of a job file that flags decide.
#[derive(Serialize)]
struct File<'a> {
    preset: &'a str,
    steps: u64,
    seed: u64,
    shape: Shape,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Model>,
    optimizer: Optimizer,
    data: Data<'a>,
    checkpoint: Checkpoint,
}

#[derive(Serialize)]
struct Shape {
    tp: usize,
    pp: usize,
    dp: usize,
}

#[derive(Serialize)]
struct Model {
    vocab: usize,
}

#[derive(Serialize)]
struct Optimizer {
    lr: f64,
}

#[derive(Serialize)]
struct Data<'a> {
    path: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    extensions: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Checkpoint {
    interval_steps: u64,
}

/// `steps` and `seed` are read where no job file is named. `registry`: the folder of cargo's sources, the text that is trained on
/// where none is named.
pub fn make(args: &JobArgs, steps: u64, seed: u64, registry: Option<PathBuf>) -> Result<LocalJob> {
    let (toml, data) = match &args.job {
        Some(file) => {
            let (toml, _) = jobfile::read(file)?;
            (toml, None)
        }
        None => of_flags(args, steps, seed, registry)?,
    };
    let spec = job::parse(&toml).with_context(|| match &args.job {
        Some(file) => format!("read the job file {}", file.display()),
        None => "make a job of these flags".to_string(),
    })?;
    let data = data.unwrap_or_else(|| format!("training on {}", spec.data.in_words()));
    Ok(LocalJob { toml, spec, data })
}

fn of_flags(args: &JobArgs, steps: u64, seed: u64, registry: Option<PathBuf>) -> Result<(String, Option<String>)> {
    let (data, words) = match &args.data {
        Some(url) if url.to_str().is_some_and(toroid_storage::is_store) => ((url.clone(), None, None), None),
        Some(path) => {
            let path = path.canonicalize().with_context(|| format!("read the text to train on, {}", path.display()))?;
            ((path, None, None), None)
        }
        None => {
            let path = registry.context(
                "there is no text to train on: cargo's registry folder has no sources; name a text file or a folder with --data",
            )?;
            let words = format!(
                "training on the Rust sources of the dependencies in cargo's registry folder ({})",
                path.display()
            );
            ((path, Some(["rs"]), Some(DEFAULT_TEXT_BYTES)), Some(words))
        }
    };
    let model = match &args.data {
        Some(path) => model_for(path, args)?,
        None => None,
    };
    let file = File {
        preset: &args.preset,
        steps,
        seed,
        shape: Shape { tp: args.tp, pp: args.pp, dp: args.dp },
        model,
        optimizer: Optimizer { lr: LEARNING_RATE },
        data: Data { path: &data.0, extensions: data.1, max_bytes: data.2 },
        checkpoint: Checkpoint { interval_steps: CHECKPOINT_INTERVAL_STEPS },
    };
    Ok((toml::to_string(&file).context("write the job file")?, words))
}

/// What of the preset token files change: their vocabulary may be larger.
fn model_for(path: &Path, args: &JobArgs) -> Result<Option<Model>> {
    // Nobody has fetched it yet; a worker says so where the vocabulary is larger.
    if path.to_str().is_some_and(toroid_storage::is_store) {
        return Ok(None);
    }
    let size = data::size_of_token_files(&SourceConfig::unnamed(path)).context("look for token files to train on")?;
    // A preset that is not known is complained of with all other keys.
    let preset = ModelConfig::preset(&args.preset).map_or(usize::MAX, |preset| preset.vocab);
    let vocabulary = size.map_or(0, |size| size.vocabulary as usize);
    let vocab = vocabulary.next_multiple_of(VOCAB_MULTIPLE * args.tp);
    Ok((vocabulary > preset).then_some(Model { vocab }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toroid_testkit::parse;

    #[test]
    fn flags_become_a_job_file() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().canonicalize()?;
        let text = path.to_str().context("test folders have UTF-8 names")?;
        let job = make(&parse(&["--data", text, "--tp", "1", "--pp", "4", "--dp", "3"]), 9, 5, None)?;
        assert_eq!((job.spec.shape.tp(), job.spec.shape.pp(), job.spec.shape.dp()), (1, 4, 3));
        assert_eq!((job.spec.steps, job.spec.seed, job.spec.name.as_str()), (9, 5, "tiny"));
        assert_eq!((job.spec.data.path.as_path(), job.spec.data.extensions.len()), (path.as_path(), 0));
        assert_eq!(job.data, format!("training on {text}"));
        assert_eq!(job::parse(&job.toml)?, job.spec);
        Ok(())
    }

    #[test]
    fn token_files_say_how_large_the_vocabulary_is() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let vocab = |vocabulary: u32| -> Result<usize> {
            std::fs::write(dir.path().join("a.tokens"), toroid_tokens::file_of(&[&[1, 2]], vocabulary, [7; 32]))?;
            let text = dir.path().to_str().context("test folders have UTF-8 names")?;
            Ok(make(&parse(&["--data", text]), 9, 5, None)?.spec.model.vocab)
        };
        assert_eq!((vocab(300)?, vocab(512)?, vocab(513)?, vocab(50_257)?), (512, 512, 640, 50_304));
        std::fs::write(dir.path().join("a.tokens"), "not one")?;
        let error = vocab_error(dir.path());
        assert!(error.contains("a.tokens") && error.contains("it has 7 bytes"), "{error}");
        Ok(())
    }

    fn vocab_error(path: &Path) -> String {
        let path = path.to_string_lossy();
        make(&parse(&["--data", &path]), 9, 5, None).err().map(|e| format!("{e:#}")).unwrap_or_default()
    }

    #[test]
    fn a_key_is_set_and_checked() -> Result<()> {
        let job = make(&parse(&[]), 9, 0, Some("/cargo/registry/src".into()))?;
        let off = job.with("fault_tolerance", "redundancy", false)?.with("checkpoint", "keep", 7)?;
        assert_eq!((off.spec.fault_tolerance.redundancy, off.spec.checkpoint.keep), (false, 7));
        assert!(off.with("checkpoint", "keeep", 7).is_err_and(|e| format!("{e:#}").contains("did you mean `keep`")));
        Ok(())
    }

    #[test]
    fn without_a_text_it_trains_on_cargos_sources_and_says_so() -> Result<()> {
        let job = make(&parse(&[]), 9, 0, Some("/cargo/registry/src".into()))?;
        assert!(job.data.contains("Rust sources of the dependencies in cargo's registry folder"), "{}", job.data);
        assert_eq!(job.spec.data.extensions, ["rs"]);
        assert_eq!(job.spec.data.max_bytes, 32 << 20);
        assert_eq!(job.spec.shape.world(), 8);
        Ok(())
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_started() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("job.toml");
        std::fs::write(&file, "stepz = 3\n")?;
        let file = file.to_str().context("test folders have UTF-8 names")?;
        for (line, expected) in [
            (vec![], "--data"),
            (vec!["--data", "/nowhere/at/all"], "/nowhere/at/all"),
            (vec!["--data", "/", "--preset", "huge"], "huge"),
            (vec!["--data", "/", "--pp", "5"], "pp 5"),
            (vec!["--job", file], "did you mean `steps`"),
            (vec!["--job", "/none.toml"], "/none.toml"),
        ] {
            let error = make(&parse(&line), 9, 0, None).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
        Ok(())
    }
}
