//! A pipeline from its sources to its output, from wherever the last attempt ended.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Pipeline, Stage};
use crate::durable::{self, Lock, map_tasks};
use crate::error::{At, Error, Result};
use crate::ledger::Counts;
use crate::read::Tally;
use crate::read::files::{self, Listed};
use crate::read::repository::ATTRIBUTES;
use crate::read::unit::{self, READ_PART, Reader, Unit};
use crate::report::{self, Report, StageReport};
use crate::runs::Scratch;
use crate::stage::{self, Context, Ids, Pieces, Watch, piece_path, read_json, write_json};
use crate::write;

/// Of what tasks write; another number does everything anew.
const FORMAT: u32 = 2;
const MIN_PIECE_BYTES: u64 = 1 << 20;
const MAX_PIECE_BYTES: u64 = 64 << 20;
/// What a thread needs for a piece, in pieces: the documents, and records of each sentence.
const MEMORY_PER_PIECE: u64 = 8;
/// Of a file in the lists of sources and units.
const FILE_BYTES: u64 = 512;
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
const MAX_SHARDS: u64 = 4096;

/// How a pipeline is run. None of it changes the output.
#[derive(Debug, Clone)]
pub struct Options {
    pub num_threads: usize,
    pub memory_bytes: u64,
    pub num_shards: u64,
    /// Text of a piece; follows from the memory if it is not given.
    pub piece_bytes: Option<u64>,
    /// Keep the documents after each stage, to change a later one without doing the earlier ones again.
    pub keep_stages: bool,
}

/// How the sources are cut: made once, so that who goes on finds the same pieces.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    piece_bytes: u64,
    units: Vec<Unit>,
    num_left_out: u64,
}

fn config(what: String) -> Error {
    Error::Config(what)
}

fn digest(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| config(error.to_string()))
}

/// What a stage depends on besides documents and options.
fn files_of(stage: &Stage) -> Result<Vec<Listed>> {
    let paths: &[PathBuf] = match stage {
        Stage::Perplexity(stage) => std::slice::from_ref(&stage.model),
        Stage::Contamination(stage) => &stage.sets,
        _ => &[],
    };
    let mut found = Vec::new();
    for path in paths {
        found.extend(files::list(path, &[])?.files);
    }
    Ok(found)
}

pub fn stage_name(n: usize, stage: &Stage) -> String {
    format!("{:02}-{}", n + 1, stage.name())
}

/// Runs the pipeline; what came of it.
pub fn run(pipeline: &Pipeline, options: &Options, watch: &dyn Watch) -> Result<Report> {
    if options.memory_bytes < MIN_MEMORY_BYTES {
        return Err(config(format!("--memory is at least {} MiB", MIN_MEMORY_BYTES >> 20)));
    }
    if options.num_threads == 0 || options.num_shards == 0 || options.num_shards > MAX_SHARDS {
        return Err(config(format!("--threads is at least 1, --shards from 1 to {MAX_SHARDS}")));
    }
    check_output(pipeline)?;
    let _lock = Lock::take(&pipeline.work)?;
    let scratch = pipeline.work.join("scratch");
    durable::remove_folder(&scratch)?;
    durable::make_folder(&scratch)?;
    let (plan, first, mut chain) = plan(pipeline, options)?;
    let read = read(pipeline, options, watch, &plan, &first)?;
    let context = Context {
        pipeline,
        scratch: Scratch::new(&scratch),
        num_threads: options.num_threads,
        memory_bytes: options.memory_bytes,
        num_shards: options.num_shards,
        ids: Ids::new(read.pieces.paths.iter().map(|path| path.with_extension("ids")).collect()),
        watch,
    };
    let mut folders = Vec::new();
    for (n, stage) in pipeline.stages.iter().enumerate() {
        chain = digest(&[&chain, &json(stage)?, &json(&files_of(stage)?)?]);
        folders.push(pipeline.work.join(format!("{}-{chain}", stage_name(n, stage))));
    }
    let output = &pipeline.output;
    let tokenizer = if output.has_tokenizer_file() { files::list(&output.tokenizer, &[])?.files } else { Vec::new() };
    let last = digest(&[&chain, &json(output)?, &json(&tokenizer)?, "write"]);
    let final_folder = pipeline.work.join(format!("{:02}-write-{last}", folders.len() + 1));
    tidy(&pipeline.work, &[&[first, final_folder.clone()], &folders[..]].concat())?;
    let mut report = Report::new(pipeline, &read.tally, plan.num_left_out);
    let done_path = pipeline.work.join("done");
    let is_there = std::fs::read_to_string(&done_path).is_ok_and(|found| found == last);
    if is_there && pipeline.output.path.join("report.json").exists() {
        watch.note("everything is done already");
        durable::remove_folder(&final_folder)?;
        return read_json(&pipeline.output.path.join("report.json"));
    }
    let (pieces, stages) = stages(&context, options, read.pieces, &folders)?;
    report.stages = stages;
    let out = unfinished(&pipeline.output.path);
    write::begin(&out, pipeline.output.format, &last)?;
    durable::make_folder(&final_folder)?;
    durable::sweep(&final_folder)?;
    let mix = format!("{:02}-mix", folders.len() + 1);
    let written = write::run(&context, &mix, &pieces, &final_folder, &out)?;
    report.finish(pipeline, &mix, &written)?;
    let num_pieces = pieces.paths.len() as u32;
    ledger(&mut report, &out, &folders, num_pieces, written.counts.is_some().then_some(&final_folder))?;
    let bad: Vec<PathBuf> = context.ids.paths().iter().map(|path| path.with_extension("bad")).collect();
    write::join(&bad, &out.join("ledger/bad.jsonl"))?;
    let kept: Vec<PathBuf> = (0..written.shards.len()).map(|n| out.join(format!("ledger/.kept-{n:05}"))).collect();
    write::join(&kept, &out.join("ledger/kept.jsonl"))?;
    report::save(&report, &out)?;
    publish(&out, &pipeline.output.path)?;
    durable::write(&done_path, last.as_bytes())?;
    // What the output was made of; the documents before it stay.
    durable::remove_folder(&final_folder)?;
    durable::remove_folder(&scratch)?;
    Ok(report)
}

/// Where the output is until it is complete.
fn unfinished(out: &Path) -> PathBuf {
    let name = out.file_name().map_or_else(|| "out".into(), |name| name.to_string_lossy().into_owned());
    out.with_file_name(format!("{name}.unfinished"))
}

/// Nothing of anybody else's is replaced.
fn check_output(pipeline: &Pipeline) -> Result<()> {
    let out = &pipeline.output.path;
    let is_empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    if out.exists() && !is_empty && !out.join("report.json").exists() {
        return Err(config(format!(
            "{}: is there already, and no output of this program (it has no report.json); name another output.path",
            out.display()
        )));
    }
    Ok(())
}

/// The output appears whole. Killed on the way, the next run makes it again from the documents.
fn publish(unfinished: &Path, out: &Path) -> Result<()> {
    let old = out.with_file_name(format!("{}.old", out.file_name().map_or("out".into(), |n| n.to_string_lossy())));
    if out.exists() {
        durable::remove_folder(&old)?;
        std::fs::rename(out, &old).at("rename", out)?;
    }
    std::fs::rename(unfinished, out).at("rename into place", unfinished)?;
    durable::remove_folder(&old)?;
    // Names with a dot are ours: marks, and parts of what was joined.
    for folder in [out, &out.join("ledger")] {
        remove_files(folder, &|name| name.starts_with('.'))?;
    }
    Ok(())
}

fn remove_files(folder: &Path, is_needless: &dyn Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if is_needless(&name) {
            std::fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Removes folders of other pipelines and other inputs.
fn tidy(work: &Path, ours: &[PathBuf]) -> Result<()> {
    for entry in std::fs::read_dir(work).at("list", work)? {
        let path = entry.at("list", work)?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let is_of_a_stage =
            name.len() > 3 && name.as_bytes()[..2].iter().all(u8::is_ascii_digit) && name.as_bytes()[2] == b'-';
        if is_of_a_stage && !ours.contains(&path) {
            durable::remove_folder(&path)?;
        }
    }
    Ok(())
}

/// How the sources are cut, where their pieces are, and the digest of both.
fn plan(pipeline: &Pipeline, options: &Options) -> Result<(Plan, PathBuf, String)> {
    let per_thread = options.memory_bytes / 2 / options.num_threads as u64;
    let fitting = (per_thread / MEMORY_PER_PIECE).clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
    let piece_bytes = options.piece_bytes.unwrap_or(fitting);
    let mut inputs = Vec::new();
    for source in &pipeline.sources {
        inputs.push(files::list(&source.path, &source.extensions)?.files);
        // What they say decides what is read of a repository, also where only some endings are.
        if !source.extensions.is_empty()
            && let Ok(attributes) = files::list(&source.path, &[ATTRIBUTES.to_owned()])
        {
            inputs.push(attributes.files);
        }
    }
    let num_files: usize = inputs.iter().map(Vec::len).sum();
    let (needed, there) = (num_files as u64 * FILE_BYTES, options.memory_bytes / 4);
    if needed > there {
        let what = "the list of so many files (put small ones together in archives or lines)";
        return Err(Error::Memory { what, needed_mib: needed.div_ceil(1 << 20), there_mib: there >> 20 });
    }
    // Weights and the like matter to the output alone.
    let read_options = |n: usize| {
        let source = &pipeline.sources[n];
        let names = [&source.text, &source.id, &source.url, &source.domain];
        let skips = (source.skip_generated, source.skip_vendored);
        json(&(&source.name, source.format, &source.extensions, names, skips, source.priority))
    };
    let sources: Vec<String> = (0..pipeline.sources.len()).map(read_options).collect::<Result<_>>()?;
    let inputs =
        digest(&[&FORMAT.to_string(), &json(&inputs)?, &json(&sources)?, &json(&pipeline.read.max_document_bytes)?]);
    let folder = pipeline.work.join(format!("00-read-{inputs}"));
    let path = folder.join("plan.json");
    let plan = if path.exists() {
        read_json(&path)?
    } else {
        durable::make_folder(&folder)?;
        let (units, num_left_out) = unit::plan(pipeline, piece_bytes)?;
        let plan = Plan { piece_bytes, units, num_left_out };
        write_json(&path, &plan)?;
        plan
    };
    let needed = plan.piece_bytes * MEMORY_PER_PIECE * 2 * options.num_threads as u64;
    if needed > options.memory_bytes.max(MIN_PIECE_BYTES * MEMORY_PER_PIECE * 2 * options.num_threads as u64) {
        let (needed_mib, there_mib) = (needed >> 20, options.memory_bytes >> 20);
        return Err(Error::Memory { what: "going on with pieces as they were cut", needed_mib, there_mib });
    }
    let chain = digest(&[&inputs, &plan.piece_bytes.to_string()]);
    Ok((plan, folder, chain))
}

struct ReadDone {
    pieces: Pieces,
    tally: Tally,
}

fn read(pipeline: &Pipeline, options: &Options, watch: &dyn Watch, plan: &Plan, folder: &Path) -> Result<ReadDone> {
    durable::sweep(folder)?;
    watch.begin("read", plan.units.len() as u64);
    let room_bytes = options.memory_bytes / READ_PART / options.num_threads as u64;
    let reader = Reader { pipeline, folder, piece_bytes: plan.piece_bytes, room_bytes };
    let numbers: Vec<usize> = (0..plan.units.len()).collect();
    let found = map_tasks(options.num_threads, &numbers, |n| {
        reader.run(*n, &plan.units[*n])?;
        let (mut tally, mut paths) = (Tally::default(), Vec::new());
        while let Some(part) = unit::read_part(&unit::part_path(folder, *n, paths.len(), "json"))? {
            tally.add(&part.tally);
            paths.push(unit::part_path(folder, *n, paths.len(), "docs"));
        }
        watch.step(tally.bytes);
        Ok((tally, paths))
    })?;
    let mut done = ReadDone { pieces: Pieces { paths: Vec::new() }, tally: Tally::default() };
    for (tally, paths) in found {
        done.tally.add(&tally);
        done.pieces.paths.extend(paths);
    }
    let Tally { num_docs, num_bad, .. } = done.tally;
    let (total, share) = (num_docs + num_bad, pipeline.read.max_bad_share);
    if num_bad as f64 > share * total as f64 {
        let list = pipeline.work.join("bad.jsonl");
        let parts: Vec<PathBuf> = done.pieces.paths.iter().map(|path| path.with_extension("bad")).collect();
        write::join(&parts, &list)?;
        return Err(Error::TooManyBad { bad: num_bad, total, share, list });
    }
    Ok(done)
}

/// Does the stages that are not done; each leaves its documents, rows and counts.
fn stages(
    context: &Context<'_>,
    options: &Options,
    read: Pieces,
    folders: &[PathBuf],
) -> Result<(Pieces, Vec<StageReport>)> {
    let num = read.paths.len() as u32;
    let pieces_of = |folder: &Path| Pieces { paths: (0..num).map(|piece| piece_path(folder, piece, "docs")).collect() };
    let has_docs =
        |folder: &PathBuf| folder.join("done").exists() && pieces_of(folder).paths.iter().all(|path| path.exists());
    // The last stage whose documents are there; what is done behind it cannot be gone on from.
    let num_done = (0..folders.len()).rev().find(|n| has_docs(&folders[*n])).map_or(0, |n| n + 1);
    let (mut pieces, mut reports) = (read, Vec::new());
    for (n, folder) in folders.iter().enumerate() {
        let stage = &context.pipeline.stages[n];
        let name = stage_name(n, stage);
        let done = folder.join("done");
        let is_done = n < num_done && done.exists();
        if n >= num_done && done.exists() {
            durable::remove_folder(folder)?;
        }
        let counts: Counts = if is_done {
            pieces = pieces_of(folder);
            read_json(&done)?
        } else {
            if n < num_done {
                return Err(Error::damaged(folder, "an earlier stage than the last one is not done"));
            }
            durable::make_folder(folder)?;
            durable::sweep(folder)?;
            let (found, counts) = stage::run(context, stage, &name, &pieces, folder)?;
            counts.check(&name)?;
            write_json(&done, &counts)?;
            pieces = found;
            counts
        };
        clean(folder, n > 0 && !options.keep_stages, n.checked_sub(1).map(|before| &folders[before]))?;
        let removed = counts.removed();
        let line = format!("{name}: {} documents and {} tokens removed", removed.docs, removed.tokens);
        context.watch.note(&line);
        reports.push(StageReport { name, method: stage.method(), counts, samples: Vec::new() });
    }
    Ok((pieces, reports))
}

/// Removes what nobody needs once a stage is done: its records, and the documents before it.
fn clean(folder: &Path, with_documents: bool, before: Option<&PathBuf>) -> Result<()> {
    remove_files(folder, &|name| !name.starts_with("piece-") && name != "done")?;
    match before.filter(|_| with_documents) {
        Some(before) => remove_files(before, &|name| name.ends_with(".docs")),
        None => Ok(()),
    }
}

/// One file of rows for each stage, and samples of them for the report.
fn ledger(report: &mut Report, out: &Path, folders: &[PathBuf], num_pieces: u32, mix: Option<&PathBuf>) -> Result<()> {
    let all: Vec<&PathBuf> = folders.iter().chain(mix).collect();
    for (stage, folder) in report.stages.iter_mut().zip(all) {
        let parts: Vec<PathBuf> = (0..num_pieces).map(|piece| piece_path(folder, piece, "rows")).collect();
        let path = out.join(format!("ledger/{}.jsonl", stage.name));
        write::join(&parts, &path)?;
        stage.samples = report::samples(&path)?;
    }
    Ok(())
}
