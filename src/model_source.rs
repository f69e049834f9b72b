//! Which model a command means, and its weights: a folder of Hugging Face's, or a checkpoint of wherever `toroid` commands look.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;
use toroid_hf::{Folder, safetensors_in};
use toroid_torus::job::Products;
use toroid_torus::manifest::Manifest;
use toroid_torus::model::{ModelConfig, Output};
use toroid_torus::units;
use toroid_worker::checkpoint::{NotedTokenizer, Storage, load_initial, noted_tokenizer};
use toroid_worker::model::whole_partition;

use crate::client::Connection;
use crate::find::{self, LOCAL_DIR};

/// bf16 and f16.
const MIN_ELEMENT_BYTES: u64 = 2;

/// The flags that name a model.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A folder that was exported with --format hf; or a folder of checkpoints, one checkpoint's folder, the folder of a job, of a coordinator or
    /// of `toroid local`; or a job's id
    #[arg(long, value_name = "PATH_OR_JOB", default_value = LOCAL_DIR)]
    pub from: String,
    /// Step of the checkpoint; default: the newest
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    #[command(flatten)]
    pub connection: Connection,
}

/// What the tokens of a model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokensOf {
    Bytes,
    /// Those of the `tokenizer.json` in the model's own folder.
    Folder,
    /// Those of one tokenizer, wherever its file is: hexadecimal blake3 of it.
    Digest(String),
    /// The model's folder, which is of somebody else's making, does not say it: bytes, unless a tokenizer is named.
    Unsaid,
}

enum Place {
    Folder(PathBuf),
    Checkpoint(Storage, Box<Manifest>),
}

/// A model that was found and not read yet.
pub struct ModelSource {
    /// For messages.
    pub what: String,
    pub model: ModelConfig,
    pub products: Products,
    pub tokens: TokensOf,
    place: Place,
}

impl ModelSource {
    pub fn open(runtime: &Runtime, args: &ModelArgs) -> Result<ModelSource> {
        match Folder::open(Path::new(&args.from)) {
            Ok(Some(_)) if args.step.is_some() => bail!(
                "{} is a folder of Hugging Face's, which is one model and has no steps; leave --step out, or name the checkpoints that it was exported from",
                args.from
            ),
            Ok(Some(folder)) => ModelSource::of_folder(Path::new(&args.from), &folder),
            Ok(None) => ModelSource::of_checkpoint(runtime, args),
            Err(problems) => bail!("cannot generate with {}: {}", args.from, problems.join("; ")),
        }
    }

    /// The model for `sequences` texts of up to `tokens` tokens with their prompts, of which it reads no more than it can.
    ///
    /// # Errors
    ///
    /// This machine has not the memory for their keys and values.
    pub fn with_room(&self, sequences: usize, tokens: usize) -> Result<ModelConfig> {
        let model = ModelConfig { seq: tokens.min(self.model.seq), ..self.model.clone() };
        let product = |dims: &[usize]| dims.iter().try_fold(size_of::<f32>(), |all, dim| all.checked_mul(*dim));
        let keys_and_values = product(&[model.layers, sequences, model.seq, 2, model.kv_heads, model.head_dim]);
        let turns = product(&[model.seq, model.head_dim]);
        let bytes = keys_and_values.and_then(|bytes| bytes.checked_add(turns?));
        if bytes.is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok()) {
            return Ok(model);
        }
        let bytes = bytes.map_or("more bytes than can be counted".into(), |bytes| units::bytes(bytes as u64));
        bail!(
            "keys and values of {sequences} texts of {} tokens by {} take {bytes}, which this machine does not give; ask for fewer tokens (--context of \
             `toroid serve`, else --max-tokens) or fewer texts at a time",
            model.seq,
            self.what
        )
    }

    /// The folder of Hugging Face's that it is; `None`: a checkpoint.
    pub fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(path) => Some(path),
            Place::Checkpoint(..) => None,
        }
    }

    /// All parameters, as [`whole_partition`] lays them out.
    pub fn params(&self) -> Result<Vec<f32>> {
        let partition = whole_partition(&self.model);
        match &self.place {
            Place::Folder(path) => {
                let mut params = vec![0.0; partition.padded_len];
                load_initial(path, &self.model, &partition, &mut params)?;
                Ok(params)
            }
            Place::Checkpoint(storage, manifest) => {
                storage.load_params(manifest, &partition).with_context(|| format!("read {}", self.what))
            }
        }
    }

    fn of_folder(path: &Path, folder: &Folder) -> Result<ModelSource> {
        // Before anything goes through its layers.
        check_weights_are_there(path, folder.model())?;
        let has_byte_tokens = folder.has_byte_tokens().map_err(anyhow::Error::msg)?;
        let tokens = match (noted_tokenizer(path)?, has_byte_tokens) {
            (Some(NotedTokenizer::Digest(digest)), _) => TokensOf::Digest(digest),
            (Some(NotedTokenizer::Bytes), Some(false)) => bail!(
                "the tokens of {0} are bytes, by its files of weights, and its tokenizer.json has others; remove that file, or name the folder of \
                 its model",
                path.display()
            ),
            (Some(NotedTokenizer::Bytes), _) | (None, Some(true)) => TokensOf::Bytes,
            (None, Some(false)) => TokensOf::Folder,
            (None, None) => TokensOf::Unsaid,
        };
        let (what, model) = (path.display().to_string(), folder.model().clone());
        Ok(ModelSource { what, model, products: Products::F32, tokens, place: Place::Folder(path.into()) })
    }

    fn of_checkpoint(runtime: &Runtime, args: &ModelArgs) -> Result<ModelSource> {
        let found = runtime.block_on(find::checkpoints(&args.from, &args.connection))?;
        let storage = Storage::open(&found.root).with_context(|| format!("open {}", found.what))?;
        let step = match (args.step, found.step) {
            (Some(asked), Some(named)) if asked != named => {
                bail!(
                    "the folder is that of step {named}, and step {asked} is asked for; name the folder that has all of them, {}",
                    found.root
                )
            }
            (asked, named) => asked.or(named),
        };
        let newest = || storage.steps().map(|steps| steps.last().copied());
        let step =
            step.map_or_else(newest, |step| Ok(Some(step))).with_context(|| format!("look for {}", found.what))?;
        let Some(step) = step else { bail!("there is no complete checkpoint in {}", storage.root()) };
        let what = format!("step {step} of {}", found.what);
        let manifest = storage.manifest(step).with_context(|| format!("read {what}"))?;
        let tokens = manifest.tokenizer.as_ref().map_or(TokensOf::Bytes, |digest| TokensOf::Digest(digest.to_string()));
        let products = manifest.job.products;
        ensure!(
            manifest.job.model.output.has_logits(),
            "{what} has a reward model, which gives scores and no tokens; name one of kind pretrain, sft or ppo"
        );
        // What a policy expects of a text is of no use once it is trained.
        let model = ModelConfig { output: Output::Tokens, ..manifest.job.model.clone() };
        Ok(ModelSource { what, model, products, tokens, place: Place::Checkpoint(storage, Box::new(manifest)) })
    }
}

/// A configuration may name any dims: memory is taken for no more than the files can have.
fn check_weights_are_there(path: &Path, model: &ModelConfig) -> Result<()> {
    let looking = || format!("look for the weights in {}", path.display());
    let mut bytes = 0;
    for file in safetensors_in(path).with_context(looking)? {
        // Of what a link leads to.
        let found = std::fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?;
        ensure!(found.is_file(), "{} is no regular file; the weights are files, fetch it again", file.display());
        bytes += found.len();
    }
    let needed = num_params(model).and_then(|num| num.checked_mul(MIN_ELEMENT_BYTES));
    if needed.is_none_or(|needed| needed > bytes) {
        bail!(
            "the files of weights in {} have {bytes} bytes: they cannot have the model that its config.json describes; mend that, or fetch all files",
            path.display()
        );
    }
    Ok(())
}

/// Parameters, unless there are more than a number has room for.
fn num_params(model: &ModelConfig) -> Option<u64> {
    let product = |dims: &[usize]| dims.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim as u64));
    let (d, ff, experts) = (model.d_model, model.ff, model.experts);
    let layer = [
        product(&[experts, 3, d, ff])?,
        product(&[model.heads, model.head_dim, d])?,
        product(&[model.kv_heads, model.head_dim, d])?,
    ];
    let layer = layer.into_iter().try_fold(0u64, u64::checked_add)?;
    layer.checked_mul(model.layers as u64)?.checked_add(product(&[2, model.vocab, d])?)
}
