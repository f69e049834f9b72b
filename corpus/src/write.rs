//! The output: documents of all sources in an order that follows from their texts, as files of bounded size.
//!
//! Each piece is written in the order of its documents' keys, with an index; the indices of all pieces say where files begin and end, and
//! each file is a task that merges its range of all pieces. What a source is to have less of, or more, is decided document by document.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Pipeline, Shape};
use crate::doc::{Ordinal, mix, text_hash, u32_at, u64_at};
use crate::durable::{self, Durable, run_tasks};
use crate::encode::{Encoder, TokenWriter};
use crate::error::{At, Error, Result};
use crate::ledger::{Counts, Row, Rows, tokens};
use crate::mix::{self, Share};
use crate::open::Files;
use crate::owned;
use crate::runs::{self, Merge, Sorter};
use crate::stage::{self, Context, Work, outputs, piece_path, read_json, write_json};
use crate::step::Over;

/// Key, ordinal, copy, where it lies in its piece, how long that is, how long the text is.
const RECORD_BYTES: usize = 8 + 8 + 4 + 8 + 4 + 4;
/// Key, ordinal and copy: what the order is by.
const ORDER_BYTES: usize = 20;
/// Another number for the order than for how often a document is there.
const ORDER_SALT: u64 = 0x5bd1_e995_9d1b_58d3;

/// A file of the output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub file: String,
    pub docs: u64,
    /// Tokens of its documents, separators left out.
    pub tokens: u64,
    pub bytes: u64,
    /// Of token files: tokens of their tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_tokens: Option<u64>,
    pub blake3: String,
}

/// What of a source is in the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Portion {
    pub docs: u64,
    pub tokens: u64,
    /// Passes over what the stages left of it.
    pub epochs: f64,
}

/// Where a document is in the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub id: String,
    pub file: String,
    /// The byte at which it begins there, or its line as JSON.
    pub position: u64,
    pub bytes: u64,
}

pub struct Written {
    pub shards: Vec<Shard>,
    pub portions: BTreeMap<String, Portion>,
    /// What sampling left out and repeated; nothing where all is written once.
    pub counts: Option<Counts>,
}

fn has_shares(pipeline: &Pipeline) -> bool {
    pipeline.output.temperature.is_some() || pipeline.sources.iter().any(|source| source.weight.is_some())
}

/// What the output is made of, and where.
pub struct Job<'a> {
    /// Its folder has what is needed until the output is there; its name is that of the mix in the ledger.
    pub work: Work<'a>,
    /// Where the output is until it is complete.
    pub out: &'a Path,
    /// Of what it is the output.
    pub digest: &'a str,
}

type Step = (&'static str, Over, fn(&Job<'_>) -> Result<()>);

/// How the output is made; [`written`] is what came of it.
pub const STEPS: &[Step] = &[
    ("sources", Over::Pieces, sources),
    ("shares", Over::Whole, shares),
    ("order", Over::Pieces, shuffle),
    ("bounds", Over::Whole, bounds),
    ("files", Over::Files, write_shards),
];

/// Documents and tokens of each source that the stages left.
fn sources(job: &Job<'_>) -> Result<()> {
    let work = &job.work;
    work.context.tasks("write: sources", &work.per_piece("sources"), |path, piece| {
        let mut found: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
        let mut bytes = 0;
        for doc in work.input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            let sum = found.entry(doc.source).or_default();
            *sum = (sum.0 + 1, sum.1 + tokens(&doc.text));
        }
        write_json(path, &found)?;
        Ok(bytes)
    })
}

fn shares_path(work: &Work<'_>) -> PathBuf {
    work.folder.join("shares.json")
}

/// How often each source is gone through.
fn shares(job: &Job<'_>) -> Result<()> {
    let (work, pipeline) = (&job.work, job.work.context.pipeline);
    let mut portions = vec![Portion::default(); pipeline.sources.len()];
    for path in outputs(work.per_piece("sources")) {
        for (source, (num_docs, num_tokens)) in read_json::<BTreeMap<u16, (u64, u64)>>(&path)? {
            let missing = || Error::damaged(&path, "a source that the pipeline has not");
            let portion = portions.get_mut(usize::from(source)).ok_or_else(missing)?;
            portion.docs += num_docs;
            portion.tokens += num_tokens;
        }
    }
    let epochs = epochs(pipeline, &portions)?;
    for (portion, epochs) in portions.iter_mut().zip(epochs) {
        portion.epochs = epochs;
    }
    write_json(&shares_path(work), &portions)
}

/// Passes over each source.
fn epochs(pipeline: &Pipeline, portions: &[Portion]) -> Result<Vec<f64>> {
    if !has_shares(pipeline) {
        return Ok(vec![1.0; portions.len()]);
    }
    let share = |(n, portion): (usize, &Portion)| {
        let source = &pipeline.sources[n];
        let tempered = pipeline.output.temperature.map(|t| mix::tempered(portion.tokens, t));
        Share {
            tokens: portion.tokens,
            weight: tempered.or(source.weight).unwrap_or(1.0),
            max_epochs: source.max_epochs,
        }
    };
    let shares: Vec<Share> = portions.iter().enumerate().map(share).collect();
    mix::epochs(&shares, pipeline.output.bytes)
}

/// What came of all steps.
pub fn written(job: &Job<'_>) -> Result<Written> {
    let pipeline = job.work.context.pipeline;
    let portions: Vec<Portion> = read_json(&shares_path(&job.work))?;
    let names = pipeline.sources.iter().map(|source| source.name.clone());
    let num = read_bounds(&job.work)?.len();
    let shards = (0..num).map(|n| read_json(&shard_path(job.out, n))).collect::<Result<_>>()?;
    let counts = if has_shares(pipeline) { Some(stage::counts(&job.work)?) } else { None };
    Ok(Written { shards, portions: names.zip(portions).collect(), counts })
}

/// Each piece in the order of the output, with the rows of what is left out or repeated.
fn shuffle(job: &Job<'_>) -> Result<()> {
    let Work { context, name, input, folder } = job.work;
    let encoder = Encoder::load(&context.pipeline.output)?;
    let portions: Vec<Portion> = read_json(&shares_path(&job.work))?;
    let pieces: Vec<u32> = (0..input.paths.len() as u32).collect();
    let own = context.part.of(&pieces);
    let indices = input.tasks(folder, "index");
    let seed = context.pipeline.output.seed;
    context.watch.begin("write: order", own.len() as u64);
    run_tasks(context.num_threads, own, |piece| {
        let json = piece_path(folder, *piece, "json");
        if json.exists() {
            context.watch.step(0);
            return Ok(());
        }
        let mut rows = Rows::create(name, &piece_path(folder, *piece, "rows"))?;
        let mut file = Durable::create(&piece_path(folder, *piece, "texts"))?;
        let mut records = Sorter::new(&context.scratch, context.thread_bytes());
        let (mut at, mut text) = (0u64, Vec::new());
        for doc in input.open(*piece)? {
            let doc = doc?;
            let num_tokens = tokens(&doc.text);
            rows.counts.docs_in += 1;
            rows.counts.tokens_in += num_tokens;
            let hash = text_hash(&doc.text);
            let epochs = portions.get(usize::from(doc.source)).map_or(0.0, |portion| portion.epochs);
            let num_copies = mix::copies(epochs, mix(hash ^ mix(seed)));
            if num_copies == 0 {
                rows.whole(&doc, Row { rule: "not-sampled".into(), ..Row::default() })?;
                continue;
            }
            let added = num_tokens * u64::from(num_copies - 1);
            if num_copies > 1 {
                let score = Some(f64::from(num_copies));
                rows.put(&doc, Row { rule: "repeated".into(), score, added, ..Row::default() })?;
            }
            rows.counts.docs_out += 1;
            rows.counts.tokens_out += num_tokens + added;
            encoder.body(context.pipeline, &doc, &mut text)?;
            let too_long = |_| {
                Error::Config(format!(
                    "{}: is longer than 4 GiB as it is written; lower read.max_document_bytes",
                    doc.id
                ))
            };
            let num_bytes = u32::try_from(text.len()).map_err(too_long)?;
            for copy in 0..num_copies {
                let key = mix(hash ^ mix(seed ^ ORDER_SALT).wrapping_add(u64::from(copy)));
                let mut record = [0; RECORD_BYTES];
                record[..8].copy_from_slice(&key.to_be_bytes());
                record[8..16].copy_from_slice(&Ordinal::new(*piece, doc.index).to_bytes());
                record[16..20].copy_from_slice(&copy.to_be_bytes());
                record[20..28].copy_from_slice(&at.to_be_bytes());
                record[28..32].copy_from_slice(&num_bytes.to_be_bytes());
                record[32..].copy_from_slice(&(num_tokens as u32).to_be_bytes());
                records.push(record)?;
            }
            file.put(&text)?;
            at += text.len() as u64;
        }
        file.finish()?;
        runs::save(&indices[*piece as usize].0, records.finish()?)?;
        let counts = rows.finish()?;
        counts.check(&format!("{name}, piece {piece}"))?;
        write_json(&json, &counts)?;
        context.watch.step(counts.tokens_in);
        Ok(())
    })
}

type Order = [u8; ORDER_BYTES];

fn bounds_path(work: &Work<'_>) -> PathBuf {
    work.folder.join("bounds")
}

fn read_bounds(work: &Work<'_>) -> Result<Vec<Order>> {
    let path = bounds_path(work);
    let bytes = std::fs::read(&path).at("read", &path)?;
    let (bounds, rest) = bytes.as_chunks::<ORDER_BYTES>();
    if rest.is_empty() { Ok(bounds.to_vec()) } else { Err(Error::damaged(&path, "half an entry at its end")) }
}

/// The first document of each file, and room for all of them.
fn bounds(job: &Job<'_>) -> Result<()> {
    let (work, context) = (&job.work, job.work.context);
    begin(job.out, context.pipeline.output.format, job.digest)?;
    if bounds_path(work).exists() {
        return Ok(());
    }
    // What a document takes besides what is written of it.
    let beside = match context.pipeline.output.format {
        Shape::Text => context.pipeline.output.separator.len() as u64,
        Shape::Jsonl => 1,
        Shape::Tokens => 8,
    };
    let index = outputs(work.per_piece("index"));
    let mut file = Durable::create(&bounds_path(work))?;
    let (mut is_first, mut bytes) = (true, 0u64);
    for record in Merge::<RECORD_BYTES>::of(&index, &[], None, &context.scratch)? {
        let record = record?;
        let len = u64::from(u32_at(&record, 28)) + beside;
        if is_first || bytes + len > context.pipeline.output.shard_bytes {
            file.put(&record[..ORDER_BYTES])?;
            (is_first, bytes) = (false, 0);
        }
        bytes += len;
    }
    file.finish()
}

/// Beside the file, and gone with it.
fn shard_path(out: &Path, n: usize) -> PathBuf {
    out.join(format!("ledger/.shard-{n:05}.json"))
}

fn write_shards(job: &Job<'_>) -> Result<()> {
    let Work { context, input, folder, .. } = job.work;
    let encoder = Encoder::load(&context.pipeline.output)?;
    let (index, bounds) = (outputs(job.work.per_piece("index")), read_bounds(&job.work)?);
    let texts = Files::new((0..input.paths.len() as u32).map(|piece| piece_path(folder, piece, "texts")).collect());
    let tasks: Vec<(PathBuf, usize)> = (0..bounds.len()).map(|n| (shard_path(job.out, n), n)).collect();
    context.tasks("write: files", &tasks, |json, n| {
        let shard = write_shard(context, &encoder, *n, job.out, &texts, (&index, &bounds))?;
        write_json(json, &shard)?;
        Ok(shard.tokens)
    })
}

fn write_shard(
    context: &Context<'_>,
    encoder: &Encoder,
    n: usize,
    out: &Path,
    texts: &Files,
    (index, bounds): (&[PathBuf], &[Order]),
) -> Result<Shard> {
    let to = bounds.get(n + 1).map(|order| &order[..]);
    let records = || Merge::<RECORD_BYTES>::of(index, &bounds[n], to, &context.scratch);
    let mut shard = Shard::default();
    let mut file = match encoder {
        Encoder::Tokens(tokens) => {
            shard.file = format!("tokens/{n:05}.tokens");
            Writer::Tokens(TokenWriter::create(&out.join(&shard.file), tokens)?)
        }
        Encoder::Text => {
            shard.file = format!("text/{n:05}.txt");
            let separator = context.pipeline.output.separator.as_bytes();
            Writer::Text { file: Durable::create(&out.join(&shard.file))?, num_bytes: 0, separator }
        }
        Encoder::Jsonl => {
            shard.file = format!("text/{n:05}.jsonl");
            Writer::Jsonl { file: Durable::create(&out.join(&shard.file))?, num_lines: 0 }
        }
    };
    let mut kept = Durable::create(&out.join(format!("ledger/.kept-{n:05}")))?;
    let mut text = Vec::new();
    for record in records()? {
        let record = record?;
        let ordinal = Ordinal(u64_at(&record, 8));
        text.resize(u32_at(&record, 28) as usize, 0);
        texts.read(ordinal.piece(), &mut text, u64_at(&record, 20))?;
        let position = file.put(&text)?;
        let bytes = u64::from(u32_at(&record, 32));
        let row = Kept { id: context.ids.of(ordinal)?, file: shard.file.clone(), position, bytes };
        let mut line = serde_json::to_vec(&row).map_err(|error| Error::Ledger(error.to_string()))?;
        line.push(b'\n');
        kept.put(&line)?;
        shard.docs += 1;
        shard.tokens += bytes;
    }
    kept.finish()?;
    match file {
        Writer::Text { file, .. } | Writer::Jsonl { file, .. } => file.finish()?,
        Writer::Tokens(file) => {
            let lens = records()?.map(|record| record.map(|record| u64::from(u32_at(&record, 28))));
            shard.encoded_tokens = Some(file.finish(lens)?);
        }
    }
    let path = out.join(&shard.file);
    let mut hasher = blake3::Hasher::new();
    shard.bytes = File::open(&path).and_then(|mut file| std::io::copy(&mut file, &mut hasher)).at("read", &path)?;
    shard.blake3 = hasher.finalize().to_hex().to_string();
    Ok(shard)
}

/// A file of the output while it is written.
enum Writer<'a> {
    Text { file: Durable, num_bytes: u64, separator: &'a [u8] },
    Jsonl { file: Durable, num_lines: u64 },
    Tokens(TokenWriter<'a>),
}

impl Writer<'_> {
    /// Where the document begins: a byte, a line, a token.
    fn put(&mut self, body: &[u8]) -> Result<u64> {
        match self {
            Writer::Text { file, num_bytes, separator } => {
                if *num_bytes > 0 {
                    file.put(separator)?;
                    *num_bytes += separator.len() as u64;
                }
                file.put(body)?;
                let position = *num_bytes;
                *num_bytes += body.len() as u64;
                Ok(position)
            }
            Writer::Jsonl { file, num_lines } => {
                file.put(body)?;
                file.put(b"\n")?;
                *num_lines += 1;
                Ok(*num_lines)
            }
            Writer::Tokens(file) => file.put(body),
        }
    }
}

/// Puts files one after the other into one, and removes them.
pub fn join(parts: &[PathBuf], path: &Path) -> Result<u64> {
    let mut file = Durable::create(path)?;
    let mut num_bytes = 0;
    for part in parts {
        let mut from = File::open(part).at("open", part)?;
        num_bytes += std::io::copy(&mut from, &mut file).at("write", path)?;
    }
    file.finish()?;
    Ok(num_bytes)
}

/// Whether a folder has the output of this digest, or parts of it.
pub fn is_of(out: &Path, digest: &str) -> bool {
    std::fs::read_to_string(out.join(".of")).is_ok_and(|found| found == digest)
}

/// Behind the name of an output, before its digest, until it is complete.
pub const UNFINISHED: &str = ".unfinished-";

/// Removes what other pipelines left unfinished of the output of this name.
pub fn tidy(ours: &Path, name: &str) -> Result<()> {
    let folder = ours.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let found = path.file_name().map_or_else(String::new, |found| found.to_string_lossy().into_owned());
        let is_one = found.strip_prefix(name).is_some_and(|rest| rest.starts_with(UNFINISHED));
        if is_one && path.file_name() != ours.file_name() && path.join(".of").exists() && owned::check(&path).is_ok() {
            owned::remove(&path)?;
        }
    }
    Ok(())
}

/// What an output has its files in.
pub fn folders(out: &Path, format: Shape) -> [PathBuf; 2] {
    [format.folder(), "ledger"].map(|name| out.join(name))
}

/// Makes room for the output, or goes on with what is there of it.
fn begin(out: &Path, format: Shape, digest: &str) -> Result<()> {
    if is_of(out, digest) {
        return Ok(());
    }
    owned::claim(out)?;
    owned::clear(out, &[])?;
    folders(out, format).iter().try_for_each(|folder| durable::make_folder(folder))?;
    durable::write(&out.join(".of"), digest.as_bytes())
}
