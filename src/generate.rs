//! `toroid generate`: text from a checkpoint, or from a folder of Hugging Face's, on this machine's CPU.
//!
//! A token is a byte. What is generated appears as it comes, never with half a character.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::runtime::Runtime;
use toroid_hf::Folder;
use toroid_torus::job::Products;
use toroid_torus::model::ModelConfig;
use toroid_worker::checkpoint::{Storage, load_initial};
use toroid_worker::device::{CachedAttention as _, CpuDevice};
use toroid_worker::generate::{Finish, Request, Sampling, generate};
use toroid_worker::model::{Decoder, whole_partition};

use crate::client::Connection;
use crate::daemon::num_cores;
use crate::files::read_text;
use crate::find::{self, LOCAL_DIR};
use crate::output::{self, FormatArgs};

/// A token is a byte.
const NUM_BYTES: usize = 256;
/// bf16 and f16.
const MIN_ELEMENT_BYTES: u64 = 2;
/// More than any model reads at a time.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder that was exported with --format hf; or a folder of checkpoints, one checkpoint's folder, the folder of a job, of a coordinator or
    /// of `toroid local`; or a job's id
    #[arg(long, value_name = "PATH_OR_JOB", default_value = LOCAL_DIR)]
    from: String,
    /// Step of the checkpoint; default: the newest
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Text to go on from
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// File with the text to go on from
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 200, value_name = "N")]
    max_tokens: usize,
    /// Divides the logits; 0: always the likeliest token
    #[arg(long, default_value_t = 1.0, value_name = "T", value_parser = temperature)]
    temperature: f64,
    /// Only the likeliest tokens that have so much probability together may come; 1: any
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = share)]
    top_p: f64,
    /// Only so many likeliest tokens may come; 0: any
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// A text ends before this one; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Texts
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    samples: u16,
    /// Compute threads; default: one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

fn number(text: &str, is_possible: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    let number: f64 = text.parse::<f64>().map_err(|e| e.to_string())?;
    if is_possible(number) { Ok(number) } else { Err(format!("expected {expected}")) }
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, |t| t == 0.0 || (1e-3..=1e3).contains(&t), "0, or 0.001 to 1000")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |p| (0.0..=1.0).contains(&p), "0 to 1")
}

/// A model in memory.
struct Loaded {
    what: String,
    model: ModelConfig,
    products: Products,
    params: Vec<f32>,
}

pub fn run(runtime: &Runtime, args: &Args) -> Result<ExitCode> {
    let prompt = prompt(args)?;
    let loaded = match Folder::open(Path::new(&args.from)) {
        Ok(Some(folder)) => of_folder(Path::new(&args.from), &folder)?,
        Ok(None) => of_checkpoint(runtime, args)?,
        Err(problems) => bail!("cannot generate with {}: {}", args.from, problems.join("; ")),
    };
    let Loaded { what, model, products, params } = loaded;
    let seq = model.seq;
    let device = CpuDevice::new(args.threads.map_or_else(num_cores, usize::from));
    if !device.rows_are_independent() {
        output::note(
            "this processor has no AVX-512: logits differ by rounding from those of training, and so may a text from one machine to another",
        );
    }
    let samples = usize::from(args.samples);
    let mut decoder = Decoder::new(device, &model, products, &params, samples);
    drop(params);
    let prompt_tokens = tokens_of(&prompt);
    let stops: Vec<Vec<u32>> = args.stop.iter().map(|stop| tokens_of(stop)).collect();
    let request = Request {
        prompt: &prompt_tokens,
        samples,
        max_tokens: args.max_tokens,
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p },
        seed: args.seed,
        stops: &stops,
        num_tokens: NUM_BYTES,
    };
    // One text appears as it comes; several when they are whole.
    let is_live = samples == 1 && !args.format.is_json();
    let (mut stream, mut written) = (Characters::default(), Ok(()));
    let start = Instant::now();
    let found = generate(&mut decoder, &request, |_, tokens| {
        if is_live && written.is_ok() {
            written = output::print(stream.push(tokens));
        }
    });
    let (texts, seconds) = (found.with_context(|| format!("generate with {what}"))?, start.elapsed().as_secs_f64());
    written?;
    let num_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    let per_second = num_tokens as f64 / seconds.max(1e-9);
    let whole = |tokens: &[u32]| {
        let mut stream = Characters::default();
        stream.push(tokens) + &stream.end()
    };
    let rows: Vec<_> = texts
        .iter()
        .map(|text| json!({ "text": whole(&text.tokens), "tokens": text.tokens, "finish": text.finish.name() }))
        .collect();
    let value = json!({
        "from": &what, "prompt_tokens": prompt_tokens.len(), "samples": rows, "seconds": seconds, "tokens_per_s": per_second,
    });
    let text = match is_live {
        true => stream.end() + "\n",
        false => {
            texts.iter().enumerate().map(|(i, text)| format!("--- {}\n{}\n", i + 1, whole(&text.tokens))).collect()
        }
    };
    args.format.answer(&value, text)?;
    if !args.format.is_json() {
        output::note(format_args!("{num_tokens} tokens in {seconds:.1} s ({per_second:.0} a second) by {what}"));
        if texts.iter().any(|text| text.finish == Finish::Context) {
            output::note(format_args!(
                "a text ends where it has, with its prompt, the {seq} tokens that the model reads at a time"
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn prompt(args: &Args) -> Result<String> {
    match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(file)) => read_text(file, "the prompt in", MAX_PROMPT_BYTES),
        (None, None) => bail!("give --prompt or --prompt-file"),
    }
}

fn tokens_of(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn of_folder(path: &Path, folder: &Folder) -> Result<Loaded> {
    let what = path.display().to_string();
    if folder.has_byte_tokens().map_err(anyhow::Error::msg)? == Some(false) {
        bail!(
            "the tokens of {what} are those of its tokenizer.json; toroid generate knows models whose tokens are bytes"
        );
    }
    let (model, mut params) = (folder.model().clone(), Vec::new());
    check_weights_are_there(path, &model)?;
    let partition = whole_partition(&model);
    params.resize(partition.padded_len, 0.0);
    load_initial(path, &model, &partition, &mut params)?;
    Ok(Loaded { what, model, products: Products::F32, params })
}

/// A configuration may name any dims: memory is taken for no more than the files can have.
fn check_weights_are_there(path: &Path, model: &ModelConfig) -> Result<()> {
    let entries = std::fs::read_dir(path).with_context(|| format!("look for the weights in {}", path.display()))?;
    let weights =
        entries.filter_map(Result::ok).filter(|entry| entry.path().extension().is_some_and(|e| e == "safetensors"));
    let bytes: u64 = weights.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
    let needed = num_params(model).and_then(|num| num.checked_mul(MIN_ELEMENT_BYTES));
    if needed.is_none_or(|needed| needed > bytes) {
        bail!(
            "the files of weights in {} have {bytes} bytes: they cannot have the model that its config.json describes",
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

fn of_checkpoint(runtime: &Runtime, args: &Args) -> Result<Loaded> {
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
    let step = step.map_or_else(newest, |step| Ok(Some(step))).with_context(|| format!("look for {}", found.what))?;
    let Some(step) = step else { bail!("there is no complete checkpoint in {}", storage.root()) };
    let what = format!("step {step} of {}", found.what);
    let manifest = storage.manifest(step).with_context(|| format!("read {what}"))?;
    if let Some(tokenizer) = &manifest.tokenizer {
        bail!(
            "the tokens of {what} are those of the tokenizer {tokenizer} (blake3 of its file); toroid generate knows models whose tokens are bytes"
        );
    }
    let (model, products) = (manifest.job.model.clone(), manifest.job.products);
    ensure!(
        model.output.is_tokens(),
        "{what} has a reward model, which gives scores and no tokens; name one of kind pretrain or sft"
    );
    let params = storage.load_params(&manifest, &whole_partition(&model)).with_context(|| format!("read {what}"))?;
    Ok(Loaded { what, model, products, params })
}

/// Bytes that become text as soon as they are whole characters; what is none becomes U+FFFD.
#[derive(Debug, Default)]
struct Characters {
    pending: Vec<u8>,
}

impl Characters {
    fn push(&mut self, tokens: &[u32]) -> String {
        // Whoever generates has no token beyond the bytes.
        self.pending.extend(tokens.iter().map(|token| *token as u8));
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let good = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..good]));
                    // Without a length the rest may still become a character.
                    let bad = error.error_len();
                    self.pending.drain(..good + bad.unwrap_or(0));
                    match bad {
                        Some(_) => text.push(char::REPLACEMENT_CHARACTER),
                        None => return text,
                    }
                }
            }
        }
    }

    /// What never became a character.
    fn end(&mut self) -> String {
        let is_empty = std::mem::take(&mut self.pending).is_empty();
        if is_empty { String::new() } else { char::REPLACEMENT_CHARACTER.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes come, the text is that of all of them together.
    #[test]
    fn characters_appear_when_they_are_whole() {
        let bytes = b"a\xc3\xbc\xf0\x9f\x98\x80\xff\xe6\x9d z\xe6\x9d".map(u32::from);
        for size in 1..bytes.len() {
            let mut stream = Characters::default();
            let pieces: Vec<String> = bytes.chunks(size).map(|piece| stream.push(piece)).collect();
            assert_eq!(pieces.concat() + &stream.end(), "aü😀\u{fffd}\u{fffd} z\u{fffd}", "in pieces of {size}");
        }
        let mut stream = Characters::default();
        assert_eq!(
            (stream.push(&[0xc3]), stream.push(&[0xbc]), stream.end()),
            (String::new(), "ü".into(), String::new())
        );
    }
}
