//! A pipeline from its sources to its output, step by step, from wherever the last attempt ended.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Output, Pipeline, Stage};
use crate::durable::{self, Lock, run_tasks};
use crate::error::{At, Error, Result};
use crate::ledger::Counts;
use crate::owned;
use crate::read::Tally;
use crate::read::files::{self, Listed};
use crate::read::input;
use crate::read::repository::ATTRIBUTES;
use crate::read::unit::{self, READ_PART, Reader, Unit};
use crate::report::{self, Report, StageReport};
use crate::runs::Scratch;
use crate::send;
use crate::stage::{self, Context, Ids, Pieces, Watch, Work, piece_path, read_json, write_json};
use crate::step::{Over, Part};
use crate::write::{self, Job};

/// Of what tasks write; another number does everything anew.
const FORMAT: u32 = 4;
const MIN_PIECE_BYTES: u64 = 1 << 20;
const MAX_PIECE_BYTES: u64 = 64 << 20;
/// What a thread needs for a piece, in pieces: the documents, and records of each sentence.
const MEMORY_PER_PIECE: u64 = 8;
/// Of a file in the lists of sources and units.
const FILE_BYTES: u64 = 512;
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
pub const MAX_SHARDS: u64 = 4096;
const DONE: &str = "done";

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

impl Options {
    pub fn check(&self) -> Result<()> {
        if self.memory_bytes < MIN_MEMORY_BYTES {
            return Err(config(format!("--memory is at least {} MiB", MIN_MEMORY_BYTES >> 20)));
        }
        if self.num_threads == 0 || self.num_shards == 0 || self.num_shards > MAX_SHARDS {
            return Err(config(format!("--threads is at least 1, --shards from 1 to {MAX_SHARDS}")));
        }
        Ok(())
    }
}

/// How the sources are cut: made once, so that who goes on finds the same pieces.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cut {
    piece_bytes: u64,
    pub units: Vec<Unit>,
    num_left_out: u64,
}

/// What came of reading: how many pieces each unit has, and what was found in all.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    num_parts: Vec<usize>,
    tally: Tally,
}

/// Where everything is, named by the digests of what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub read: PathBuf,
    pub stages: Vec<PathBuf>,
    pub write: PathBuf,
    /// Of the output.
    pub digest: String,
}

/// What steps belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Read,
    Stage(usize),
    Write,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// As in `02-minhash.buckets`.
    pub name: String,
    pub phase: Phase,
    pub over: Over,
    /// Which of its phase; the last one closes the phase.
    number: usize,
}

fn config(what: String) -> Error {
    Error::Config(what)
}

pub fn digest(parts: &[&str]) -> String {
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
        Stage::Pii(stage) => stage.names.as_slice(),
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

/// All steps of a pipeline in their order.
pub fn steps(pipeline: &Pipeline) -> Vec<Step> {
    let mut all = Vec::new();
    let mut phase = |phase, prefix: &str, steps: &[(&str, Over)]| {
        let close = [(DONE, Over::Whole)];
        for (number, (name, over)) in steps.iter().chain(&close).enumerate() {
            all.push(Step { name: format!("{prefix}.{name}"), phase, over: *over, number });
        }
    };
    phase(Phase::Read, "00-read", &[("units", Over::Units)]);
    for (n, stage) in pipeline.stages.iter().enumerate() {
        let steps: Vec<_> = stage::steps(stage).iter().map(|step| (step.name, step.over)).collect();
        phase(Phase::Stage(n), &stage_name(n, stage), &steps);
    }
    let steps: Vec<_> = write::STEPS.iter().map(|(name, over, _)| (*name, *over)).collect();
    phase(Phase::Write, &format!("{:02}-write", pipeline.stages.len() + 1), &steps);
    all
}

/// The folder of work for this process alone, unless the output would replace what is not ours.
pub fn own(pipeline: &Pipeline) -> Result<Lock> {
    output(pipeline).check()?;
    Lock::take(&pipeline.work)
}

/// Runs the pipeline in this process; what came of it.
pub fn run(pipeline: &Pipeline, options: &Options, watch: &dyn Watch) -> Result<Report> {
    let _lock = own(pipeline)?;
    let run = Run::begin(pipeline, options, watch)?;
    let all = steps(pipeline);
    let phase = |phase| all.iter().filter(move |step| step.phase == phase);
    phase(Phase::Read).try_for_each(|step| run.step(step, Part::ALL))?;
    if run.is_done() {
        watch.note("everything is done already");
        durable::remove_folder(&run.layout.write)?;
        run.send()?;
        return read_json(&pipeline.output.path.join("report.json"));
    }
    let num_done = run.num_done()?;
    for n in 0..pipeline.stages.len() {
        if n < num_done {
            run.close_stage(n)?;
        } else {
            phase(Phase::Stage(n)).try_for_each(|step| run.step(step, Part::ALL))?;
        }
    }
    phase(Phase::Write).try_for_each(|step| run.step(step, Part::ALL))?;
    read_json(&pipeline.output.path.join("report.json"))
}

/// A pipeline whose sources are cut.
pub struct Run<'a> {
    pub pipeline: &'a Pipeline,
    pub options: &'a Options,
    pub watch: &'a dyn Watch,
    pub layout: Layout,
    pub cut: Cut,
    /// Of this process.
    pub scratch: PathBuf,
}

impl<'a> Run<'a> {
    /// Cuts the sources, or finds how they were cut, and removes what other pipelines and dead processes left. The caller has the folder
    /// for itself: [`own`].
    pub fn begin(pipeline: &'a Pipeline, options: &'a Options, watch: &'a dyn Watch) -> Result<Run<'a>> {
        options.check()?;
        // Hours before it is needed.
        pipeline.output.store.as_deref().map_or(Ok(()), send::check)?;
        let (cut, layout) = lay_out(pipeline, options)?;
        let ours = [&[layout.read.clone(), layout.write.clone()], &layout.stages[..]].concat();
        tidy(&pipeline.work, &ours)?;
        let scratch = pipeline.work.join(SCRATCH);
        durable::make_folder(&scratch)?;
        let run = Run { pipeline, options, watch, layout, cut, scratch };
        let out = run.unfinished();
        owned::check(&out)?;
        write::tidy(&out, &file_name(&pipeline.output.path))?;
        let folders = ours.into_iter().chain(write::folders(&out, pipeline.output.format));
        folders.filter(|folder| folder.exists()).try_for_each(|folder| durable::sweep(&folder))?;
        run.check_room()?;
        Ok(run)
    }

    /// With pieces as they were cut.
    pub fn check_room(&self) -> Result<()> {
        let num_threads = self.options.num_threads as u64;
        let needed = self.cut.piece_bytes * MEMORY_PER_PIECE * 2 * num_threads;
        if needed > self.options.memory_bytes.max(MIN_PIECE_BYTES * MEMORY_PER_PIECE * 2 * num_threads) {
            let (needed_mib, there_mib) = (needed >> 20, self.options.memory_bytes >> 20);
            return Err(Error::Memory { what: "going on with pieces as they were cut", needed_mib, there_mib });
        }
        Ok(())
    }

    /// Whether the output of this pipeline is there.
    pub fn is_done(&self) -> bool {
        let is_it = std::fs::read_to_string(self.done_path()).is_ok_and(|found| found == self.layout.digest);
        is_it && self.pipeline.output.path.join("report.json").exists()
    }

    fn done_path(&self) -> PathBuf {
        self.pipeline.work.join(DONE)
    }

    /// How many stages need not be done again: up to the last one whose documents are there. Marks of later ones go: nothing can go on
    /// behind them.
    pub fn num_done(&self) -> Result<usize> {
        let folders = &self.layout.stages;
        if !self.layout.read.join("pieces.json").exists() {
            return Ok(0);
        }
        let num_pieces = self.pieces(0)?.paths.len() as u32;
        let has_docs = |folder: &PathBuf| {
            folder.join(DONE).exists() && (0..num_pieces).all(|piece| piece_path(folder, piece, "docs").exists())
        };
        let num_done = (0..folders.len()).rev().find(|n| has_docs(&folders[*n])).map_or(0, |n| n + 1);
        for (n, folder) in folders.iter().enumerate() {
            match (n < num_done, folder.join(DONE).exists()) {
                (true, false) => return Err(Error::damaged(folder, "an earlier stage than the last one is not done")),
                (false, true) => durable::remove_folder(folder)?,
                _ => {}
            }
        }
        Ok(num_done)
    }

    /// Does a part of a step; what is there already is not done again.
    pub fn step(&self, step: &Step, part: Part) -> Result<()> {
        let is_last = |num_steps: usize| step.number == num_steps;
        match step.phase {
            Phase::Read if is_last(1) => self.close_read(),
            Phase::Read => self.read(part),
            Phase::Stage(n) => {
                let steps = stage::steps(&self.pipeline.stages[n]);
                if is_last(steps.len()) {
                    return self.close_stage(n);
                }
                durable::make_folder(&self.layout.stages[n])?;
                let (context, input, name) = (self.context(part)?, self.pieces(n)?, self.stage_name(n));
                let folder = &self.layout.stages[n];
                (steps[step.number].run)(&Work { context: &context, name: &name, input: &input, folder })
            }
            Phase::Write => {
                durable::make_folder(&self.layout.write)?;
                let (context, input) = (self.context(part)?, self.pieces(self.pipeline.stages.len())?);
                let name = format!("{:02}-mix", self.pipeline.stages.len() + 1);
                let work = Work { context: &context, name: &name, input: &input, folder: &self.layout.write };
                let out = self.unfinished();
                let job = Job { work, out: &out, digest: &self.layout.digest };
                if is_last(write::STEPS.len()) {
                    return self.close_write(&job);
                }
                (write::STEPS[step.number].2)(&job)
            }
        }
    }

    /// What a phase reads from, and what it writes to.
    pub fn folders(&self, phase: Phase) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let Layout { read, stages, write, .. } = &self.layout;
        let documents = |stage: usize| stage.checked_sub(1).map_or(read, |before| &stages[before]).clone();
        match phase {
            Phase::Read => {
                (self.pipeline.sources.iter().map(|source| source.path.clone()).collect(), vec![read.clone()])
            }
            Phase::Stage(n) => (vec![documents(n)], vec![stages[n].clone()]),
            Phase::Write => (vec![documents(stages.len())], vec![write.clone(), self.unfinished()]),
        }
    }

    fn context(&self, part: Part) -> Result<Context<'_>> {
        let ids = self.pieces(0)?.paths.iter().map(|path| path.with_extension("ids")).collect();
        Ok(Context {
            pipeline: self.pipeline,
            scratch: Scratch::new(&self.scratch),
            num_threads: self.options.num_threads,
            memory_bytes: self.options.memory_bytes,
            num_shards: self.options.num_shards,
            part,
            ids: Ids::new(ids),
            watch: self.watch,
        })
    }

    fn stage_name(&self, n: usize) -> String {
        stage_name(n, &self.pipeline.stages[n])
    }

    fn found(&self) -> Result<Found> {
        read_json(&self.layout.read.join("pieces.json"))
    }

    /// The documents before a stage, or behind the last one.
    fn pieces(&self, stage: usize) -> Result<Pieces> {
        let num_parts = self.found()?.num_parts;
        let read = num_parts.iter().enumerate().flat_map(|(unit, num)| (0..*num).map(move |part| (unit, part)));
        let path = |(piece, (unit, part))| match stage.checked_sub(1) {
            None => unit::part_path(&self.layout.read, unit, part, "docs"),
            Some(before) => piece_path(&self.layout.stages[before], piece, "docs"),
        };
        Ok(Pieces { paths: (0..).zip(read).map(path).collect() })
    }

    fn read(&self, part: Part) -> Result<()> {
        let folder = &self.layout.read;
        let numbers: Vec<usize> = (0..self.cut.units.len()).collect();
        let own = part.of(&numbers);
        if folder.join("pieces.json").exists() {
            return Ok(());
        }
        self.watch.begin("read", own.len() as u64);
        let (num_threads, piece_bytes) = (self.options.num_threads, self.cut.piece_bytes);
        let room_bytes = self.options.memory_bytes / READ_PART / num_threads as u64;
        let reader = Reader { pipeline: self.pipeline, folder, piece_bytes, room_bytes };
        run_tasks(num_threads, own, |n| {
            let unit = &self.cut.units[*n];
            unit.files.iter().try_for_each(files::check_unchanged)?;
            reader.run(*n, unit)?;
            let parts = unit::read_parts(folder, *n)?;
            self.watch.step(parts.iter().map(|part| part.tally.bytes).sum());
            Ok(())
        })
    }

    /// Numbers the pieces, unless more is bad than may be.
    fn close_read(&self) -> Result<()> {
        let folder = &self.layout.read;
        let path = folder.join("pieces.json");
        if !path.exists() {
            durable::sweep(folder)?;
            let mut found = Found { num_parts: Vec::new(), tally: Tally::default() };
            for unit in 0..self.cut.units.len() {
                let parts = unit::read_parts(folder, unit)?;
                parts.iter().for_each(|part| found.tally.add(&part.tally));
                found.num_parts.push(parts.len());
            }
            write_json(&path, &found)?;
        }
        let Tally { num_docs, num_bad, .. } = self.found()?.tally;
        let (total, share) = (num_docs + num_bad, self.pipeline.read.max_bad_share);
        if num_bad as f64 > share * total as f64 {
            let list = self.pipeline.work.join("bad.jsonl");
            write::join(&self.beside_read("bad")?, &list)?;
            return Err(Error::TooManyBad { bad: num_bad, total, share, list });
        }
        Ok(())
    }

    /// What lies beside each piece as it was read.
    fn beside_read(&self, ending: &str) -> Result<Vec<PathBuf>> {
        Ok(self.pieces(0)?.paths.iter().map(|path| path.with_extension(ending)).collect())
    }

    /// Counts what a stage did, and removes what nobody needs behind it: its records, and the documents before it.
    fn close_stage(&self, n: usize) -> Result<()> {
        let (folder, name) = (&self.layout.stages[n], self.stage_name(n));
        let done = folder.join(DONE);
        if !done.exists() {
            let (context, input, stage) = (self.context(Part::ALL)?, self.pieces(n)?, &self.pipeline.stages[n]);
            let work = Work { context: &context, name: &name, input: &input, folder };
            let mut counts = stage::counts(&work)?;
            counts.notes.extend(stage::note(stage, &work)?);
            counts.check(&name)?;
            write_json(&done, &counts)?;
        }
        remove_files(folder, &|name| !name.starts_with("piece-") && name != DONE)?;
        if n > 0 && !self.options.keep_stages {
            remove_files(&self.layout.stages[n - 1], &|name| name.ends_with(".docs"))?;
        }
        let removed = read_json::<Counts>(&done)?.removed();
        self.watch.note(&format!("{name}: {} documents and {} tokens removed", removed.docs, removed.tokens));
        Ok(())
    }

    /// Where the output is until it is complete. What another pipeline left of the same output is not gone on with.
    fn unfinished(&self) -> PathBuf {
        let out = &self.pipeline.output.path;
        out.with_file_name(format!("{}{}{}", file_name(out), write::UNFINISHED, self.layout.digest))
    }

    /// Report and ledger; the output appears, and what it was made of goes. The documents before it stay.
    fn close_write(&self, job: &Job<'_>) -> Result<()> {
        if !self.is_done() {
            self.publish(job)?;
        }
        self.send()
    }

    /// Sends the output to where it shall be, too. It is done here already: killed on the way, sending goes on.
    fn send(&self) -> Result<()> {
        let Some(url) = &self.pipeline.output.store else { return Ok(()) };
        let num_bytes = send::send(&self.pipeline.output.path, url, self.watch)?;
        self.watch.note(&format!("{url}: the output is there, {num_bytes} bytes of it were sent"));
        Ok(())
    }

    fn publish(&self, job: &Job<'_>) -> Result<()> {
        let (out, to) = (job.out, &self.pipeline.output.path);
        let is_there = |folder: &Path| write::is_of(folder, &self.layout.digest);
        if is_there(out) || !is_there(to) {
            let mut report = Report::new(self.pipeline, &self.found()?.tally, self.cut.num_left_out);
            for (n, stage) in self.pipeline.stages.iter().enumerate() {
                let counts = read_json(&self.layout.stages[n].join(DONE))?;
                let name = self.stage_name(n);
                report.stages.push(StageReport { name, method: stage.method(), counts, samples: Vec::new() });
            }
            let written = write::written(job)?;
            report.finish(self.pipeline, job.work.name, &written)?;
            let mix = written.counts.is_some().then_some(&self.layout.write);
            ledger(&mut report, out, &self.layout.stages, job.work.input.paths.len() as u32, mix)?;
            write::join(&self.beside_read("bad")?, &out.join("ledger/bad.jsonl"))?;
            let kept: Vec<PathBuf> =
                (0..written.shards.len()).map(|n| out.join(format!("ledger/.kept-{n:05}"))).collect();
            write::join(&kept, &out.join("ledger/kept.jsonl"))?;
            report::save(&report, out)?;
            // Tasks of a plan that died did not remove what they had begun.
            write::folders(out, self.pipeline.output.format).iter().try_for_each(|folder| durable::sweep(folder))?;
            output(self.pipeline).publish(out)?;
        }
        durable::write(&self.done_path(), self.layout.digest.as_bytes())?;
        // Names with a dot are ours: marks, parts of what was joined, and what a task that was done twice was about to write.
        let [documents, ledger] = write::folders(to, self.pipeline.output.format);
        for folder in [to, &documents, &ledger] {
            remove_files(folder, &|name| name.starts_with('.'))?;
        }
        durable::remove_folder(&self.layout.write)?;
        remove_scratch(&self.pipeline.work)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "out".into(), |name| name.to_string_lossy().into_owned())
}

fn output(pipeline: &Pipeline) -> owned::Output<'_> {
    owned::Output { path: &pipeline.output.path, option: "output.path", is_ours: report::is_ours }
}

fn remove_files(folder: &Path, is_needless: &dyn Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        if is_needless(&file_name(&path)) {
            durable::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes folders of other pipelines and other inputs, and what dead processes sorted.
fn tidy(work: &Path, ours: &[PathBuf]) -> Result<()> {
    remove_scratch(work)?;
    for entry in std::fs::read_dir(work).at("list", work)? {
        let path = entry.at("list", work)?.path();
        let name = file_name(&path);
        let is_of_a_stage =
            name.len() > 3 && name.as_bytes()[..2].iter().all(u8::is_ascii_digit) && name.as_bytes()[2] == b'-';
        if is_of_a_stage && !ours.contains(&path) {
            durable::remove_folder(&path)?;
        }
    }
    Ok(())
}

/// Folders in which processes sort.
pub const SCRATCH: &str = "scratch";

fn remove_scratch(work: &Path) -> Result<()> {
    for entry in std::fs::read_dir(work).at("list", work)? {
        let path = entry.at("list", work)?.path();
        if file_name(&path).starts_with(SCRATCH) {
            durable::remove_folder(&path)?;
        }
    }
    Ok(())
}

/// How the sources are cut, and where everything is.
fn lay_out(pipeline: &Pipeline, options: &Options) -> Result<(Cut, Layout)> {
    let per_thread = options.memory_bytes / 2 / options.num_threads as u64;
    let fitting = (per_thread / MEMORY_PER_PIECE).clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
    let piece_bytes = options.piece_bytes.unwrap_or(fitting);
    let mut inputs = Vec::new();
    for source in &pipeline.sources {
        inputs.push(files::list(&source.path, &source.extensions)?.files);
        // What they say decides what is read of a repository, also where only some endings are. In stores they are not looked for.
        if !source.extensions.is_empty()
            && input::url(&source.path).is_none()
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
    let path = folder.join("units.json");
    let cut: Cut = if path.exists() {
        read_json(&path)?
    } else {
        durable::make_folder(&folder)?;
        let (units, num_left_out) = unit::plan(pipeline, piece_bytes)?;
        let cut = Cut { piece_bytes, units, num_left_out };
        write_json(&path, &cut)?;
        cut
    };
    let mut chain = digest(&[&inputs, &cut.piece_bytes.to_string()]);
    let mut stages = Vec::new();
    for (n, stage) in pipeline.stages.iter().enumerate() {
        chain = digest(&[&chain, &json(stage)?, &json(&files_of(stage)?)?]);
        stages.push(pipeline.work.join(format!("{}-{chain}", stage_name(n, stage))));
    }
    let output = &pipeline.output;
    let tokenizer = if output.has_tokenizer_file() { files::list(&output.tokenizer, &[])?.files } else { Vec::new() };
    // Where it is sent changes nothing in it.
    let made = Output { store: None, ..output.clone() };
    let digest = digest(&[&chain, &json(&made)?, &json(&tokenizer)?, "write"]);
    let write = pipeline.work.join(format!("{:02}-write-{digest}", stages.len() + 1));
    Ok((cut, Layout { read: folder, stages, write, digest }))
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
