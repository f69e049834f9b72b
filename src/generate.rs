//! `toroid generate`: text from a checkpoint, or from a folder of Hugging Face's, on this machine's CPU, in one place or split over several.
//!
//! A token is a byte; models with a tokenizer are handed over to `toroid-serve`. What is generated appears as it comes, never with half a character.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::runtime::Runtime;
use toroid_torus::geometry::Shape;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition;
use toroid_worker::device::{Bf16Choice, CpuDevice};
use toroid_worker::generate::{Finish, GenerateError, Request, Sampling, generate};
use toroid_worker::model::Split;

use crate::companion;
use crate::daemon::{default_cache, num_cores};
use crate::files::read_text;
use crate::model_source::{ModelArgs, ModelSource, TokensOf};
use crate::output::{self, FormatArgs};

/// A token is a byte.
const NUM_BYTES: usize = 256;
/// More than any model reads at a time.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to go on from
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file", conflicts_with = "prompt_file")]
    pub prompt: Option<String>,
    /// File with the text to go on from
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub max_tokens: usize,
    /// Divides the logits; 0: always the likeliest token
    #[arg(long, default_value_t = 1.0, value_name = "T", value_parser = temperature)]
    pub temperature: f64,
    /// Only the likeliest tokens that have so much probability together may come; 1: any
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = share)]
    pub top_p: f64,
    /// Only so many likeliest tokens may come; 0: any
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// A text ends before this one; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Texts
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub samples: u16,
    #[command(flatten)]
    compute: ComputeArgs,
    /// The tokenizer.json of a model whose tokens are not bytes, instead of the one in its folder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
}

fn number(text: &str, is_possible: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    let number: f64 = text.parse::<f64>().map_err(|e| e.to_string())?;
    if is_possible(number) { Ok(number) } else { Err(format!("expected {expected}")) }
}

pub fn temperature(text: &str) -> Result<f64, String> {
    number(text, |t| t == 0.0 || (1e-3..=1e3).contains(&t), "0, or 0.001 to 1000")
}

pub fn share(text: &str) -> Result<f64, String> {
    number(text, |p| (0.0..=1.0).contains(&p), "0 to 1")
}

/// How this machine's CPU computes.
#[derive(Debug, clap::Args)]
pub struct ComputeArgs {
    /// TP ranks: each layer's heads, experts and the vocabulary are split over so many places of this process, as in a job of that tp, whose bits
    /// the logits then have
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    tp: u16,
    /// PP stages: the layers are split over so many places, which compute one after the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pp: u16,
    /// Compute threads, divided among the places of --tp and --pp, each of which has at least one; default: one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Products of bf16: auto (what is fastest on this kind of processor, measured once), amx, avx512, or f32 after the operands are rounded; as
    /// those of workers
    #[arg(long, env = "TOROID_BF16", default_value_t, value_name = "WAY")]
    bf16: Bf16Choice,
}

impl ComputeArgs {
    /// The places that `model`, which is called `what`, is split over.
    pub fn split(&self, what: &str, model: &ModelConfig) -> Result<Split<CpuDevice>> {
        let ComputeArgs { tp, pp, .. } = *self;
        let tried = || format!("split {what} by --tp {tp} and --pp {pp}");
        let shape = Shape::new(tp.into(), pp.into(), 1).with_context(tried)?;
        partition::check(model, &shape).with_context(tried)?;
        let threads = shares(self.threads.map_or_else(num_cores, usize::from), shape.world());
        // By what products of bf16 are computed is the same everywhere: it is asked for once.
        let first = CpuDevice::open(threads[0], self.bf16, &default_cache()).context("compute on the CPU")?;
        let others: Vec<CpuDevice> = threads[1..].iter().map(|threads| first.with_threads(*threads)).collect();
        Ok(Split::new(shape, [vec![first], others].concat()))
    }
}

/// `threads` divided among `num` places, each of which has at least one.
fn shares(threads: usize, num: usize) -> Vec<usize> {
    (0..num).map(|i| (threads / num + usize::from(i < threads % num)).max(1)).collect()
}

pub fn run(runtime: &Runtime, args: &Args) -> Result<ExitCode> {
    let source = ModelSource::open(runtime, &args.model)?;
    let are_bytes = matches!(source.tokens, TokensOf::Bytes | TokensOf::Unsaid);
    if !are_bytes || args.tokenizer.is_some() {
        // Tokenizers are built into `toroid-serve`; its `generate` has the same flags.
        return companion::SERVE.run(std::env::args_os().skip(1));
    }
    let prompt = args.prompt()?;
    let split = args.split(&source)?;
    let samples = usize::from(args.samples);
    let prompt_tokens = tokens_of(&prompt);
    let model = source.with_room(samples, args.context(&source, prompt_tokens.len())?)?;
    let decoder = split.decoder(&model, source.products, &source.params()?, samples);
    let mut decoder = decoder.context("start the threads that compute")?;
    let stops: Vec<Vec<u32>> = args.stop.iter().map(|stop| tokens_of(stop)).collect();
    let request = Request {
        prompt: &prompt_tokens,
        samples,
        max_tokens: args.max_tokens,
        sampling: args.sampling(),
        seed: args.seed,
        stops: &stops,
        num_tokens: NUM_BYTES,
    };
    let (mut stream, mut written) = (Characters::default(), Ok(()));
    let start = Instant::now();
    let found = generate(&mut *decoder, &request, |_, tokens| {
        if args.is_live() && written.is_ok() {
            written = output::print(stream.push(tokens));
        }
    });
    let texts = found.with_context(|| format!("generate with {}", source.what))?;
    let seconds = start.elapsed().as_secs_f64();
    written?;
    if args.is_live() {
        output::print(stream.end())?;
    }
    let whole = |tokens: &[u32]| {
        let mut stream = Characters::default();
        stream.push(tokens) + &stream.end()
    };
    let texts =
        texts.into_iter().map(|text| Said { text: whole(&text.tokens), tokens: text.tokens, finish: text.finish });
    args.answer(&source, prompt_tokens.len(), &texts.collect::<Vec<_>>(), seconds)
}

/// A text that was generated.
#[derive(Debug, Clone)]
pub struct Said {
    pub text: String,
    pub tokens: Vec<u32>,
    pub finish: Finish,
}

impl Args {
    /// A single text appears as it comes; several when they are whole.
    pub fn is_live(&self) -> bool {
        self.samples == 1 && !self.format.is_json()
    }

    /// Tokens of a text with its prompt at most: memory is taken for no more. An error is that the prompt has no room.
    pub fn context(&self, source: &ModelSource, prompt: usize) -> Result<usize> {
        let most = source.model.seq;
        if prompt > most || (prompt == most && self.max_tokens > 0) {
            return Err(GenerateError::TooLong { found: prompt, most })
                .with_context(|| format!("generate with {}", source.what));
        }
        Ok(prompt.saturating_add(self.max_tokens).clamp(2, most.max(2)))
    }

    pub fn model(&self) -> &ModelArgs {
        &self.model
    }

    pub fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p }
    }

    pub fn split(&self, source: &ModelSource) -> Result<Split<CpuDevice>> {
        self.compute.split(&source.what, &source.model)
    }

    pub fn prompt(&self) -> Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(file)) => read_text(file, "the prompt in", MAX_PROMPT_BYTES),
            (None, None) => bail!("give --prompt or --prompt-file"),
        }
    }

    /// Says what was generated; a text that is live was printed already.
    pub fn answer(&self, source: &ModelSource, prompt_tokens: usize, texts: &[Said], seconds: f64) -> Result<ExitCode> {
        let (what, seq) = (&source.what, source.model.seq);
        let num_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let per_second = num_tokens as f64 / seconds.max(1e-9);
        let rows: Vec<_> = texts
            .iter()
            .map(|said| json!({ "text": said.text, "tokens": said.tokens, "finish": said.finish.name() }))
            .collect();
        let value = json!({
            "from": what, "prompt_tokens": prompt_tokens, "samples": rows, "seconds": seconds, "tokens_per_s": per_second,
        });
        let text = match self.is_live() {
            true => "\n".into(),
            false => {
                texts.iter().enumerate().map(|(i, said)| format!("--- {}\n{}\n", i + 1, said.text)).collect::<String>()
            }
        };
        self.format.answer(&value, text)?;
        if !self.format.is_json() {
            output::note(format_args!("{num_tokens} tokens in {seconds:.1} s ({per_second:.0} a second) by {what}"));
            if texts.iter().any(|text| text.finish == Finish::Context) {
                output::note(format_args!(
                    "a text ends where it has, with its prompt, the {seq} tokens that the model reads at a time"
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn tokens_of(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Bytes that become text as soon as they are whole characters; what is none becomes U+FFFD.
#[derive(Debug, Default)]
pub struct Characters {
    pending: Vec<u8>,
}

impl Characters {
    /// What the tokens, each of them a byte, have made whole.
    pub fn push(&mut self, tokens: &[u32]) -> String {
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
    pub fn end(&mut self) -> String {
        let is_empty = std::mem::take(&mut self.pending).is_empty();
        if is_empty { String::new() } else { char::REPLACEMENT_CHARACTER.into() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        compute: ComputeArgs,
    }

    /// One clear line for what cannot be split; what can is, with at least one thread a place.
    #[test]
    fn a_split_fits_the_model_or_is_refused() {
        let model = ModelConfig::preset("micro").expect("a preset");
        let split = |flags: &str| {
            let words = ["generate"].into_iter().chain(flags.split(' '));
            let command = Command::try_parse_from(words).map_err(|e| e.to_string())?;
            command.compute.split("m", &model).map_err(|e| format!("{e:#}"))
        };
        let refused = |flags: &str| split(flags).err().unwrap_or_else(|| panic!("{flags} was taken"));
        assert_eq!(
            refused("--tp 3"),
            "split m by --tp 3 and --pp 1: tp 3 does not divide heads = 4; choose a tp that divides it"
        );
        assert_eq!(
            refused("--tp 2 --pp 5"),
            "split m by --tp 2 and --pp 5: pp 5 is more than the 4 layers; every stage needs at least one"
        );
        assert!(refused("--tp 60000 --pp 60000").contains("a job has at most"));
        assert!(refused("--tp 0").contains("0 is not in 1.."));
        let taken = split("--tp 4 --pp 2 --threads 1").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((taken.shape().tp(), taken.shape().pp()), (4, 2));
        assert_eq!(shares(7, 3), [3, 2, 2]);
        assert_eq!(shares(1, 2), [1, 1]);
    }

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
