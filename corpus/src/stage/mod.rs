//! What stages have in common: pieces in, pieces out, verdicts between.

pub mod duplicates;
pub mod local;
pub mod minhash;
pub mod perplexity;
pub mod sentences;
pub mod stars;

use std::path::{Path, PathBuf};

use crate::config::{Pipeline, Stage};
use crate::doc::{Doc, Ordinal, field, u64_at};
use crate::durable::{self, map_tasks};
use crate::error::{At, Error, Result};
use crate::ledger::{Counts, Row, Rows, tokens};
use crate::open::Files;
use crate::piece::{PieceReader, PieceWriter};
use crate::runs::{Merge, Scratch};
use crate::step::{Over, Part};

/// Where the progress is shown.
pub trait Watch: Sync {
    /// A phase begins that has so many steps.
    fn begin(&self, what: &str, num_steps: u64);
    /// A step is done that went through so many bytes of text.
    fn step(&self, bytes: u64);
    /// Something that is worth a line.
    fn note(&self, text: &str);
}

/// What all stages of a run share.
pub struct Context<'a> {
    pub pipeline: &'a Pipeline,
    pub scratch: Scratch,
    pub num_threads: usize,
    pub memory_bytes: u64,
    /// Ranges of hashes that tasks bring together.
    pub num_shards: u64,
    /// Which of the items of a step are done here.
    pub part: Part,
    pub ids: Ids,
    pub watch: &'a dyn Watch,
}

impl Context<'_> {
    /// Of each thread, for what it sorts.
    pub fn thread_bytes(&self) -> u64 {
        self.memory_bytes / 4 / self.num_threads as u64
    }

    /// A task for each range of hashes. Their outputs say how many ranges there are: another number cuts elsewhere.
    pub fn shard_tasks(&self, folder: &Path, name: &str) -> Vec<(PathBuf, u64)> {
        let num = self.num_shards;
        (0..num).map(|shard| (folder.join(format!("{name}-{shard:04}-of-{num}")), shard)).collect()
    }

    pub fn priority(&self, doc: &Doc) -> u8 {
        self.pipeline.sources.get(usize::from(doc.source)).map_or(0, |source| source.priority)
    }

    /// Does this part of tasks whose output is one file each, those left out whose file is there.
    pub fn tasks<T: Sync>(
        &self,
        what: &str,
        tasks: &[(PathBuf, T)],
        work: impl Fn(&Path, &T) -> Result<u64> + Sync,
    ) -> Result<()> {
        let own = self.part.of(tasks);
        self.watch.begin(what, own.len() as u64);
        map_tasks(self.num_threads, own, |(path, task)| {
            let bytes = if path.exists() { 0 } else { work(path, task)? };
            self.watch.step(bytes);
            Ok(())
        })
        .map(drop)
    }
}

/// Ids of documents by their place.
pub struct Ids {
    files: Files,
}

impl Ids {
    pub fn new(paths: Vec<PathBuf>) -> Ids {
        Ids { files: Files::new(paths) }
    }

    pub fn paths(&self) -> &[PathBuf] {
        self.files.paths()
    }

    pub fn of(&self, ordinal: Ordinal) -> Result<String> {
        let piece = ordinal.piece();
        let number = |at: u64| -> Result<u64> {
            let mut bytes = [0; 4];
            self.files.read(piece, &mut bytes, at)?;
            Ok(u64::from(u32::from_le_bytes(bytes)))
        };
        let at = 4 + 8 * u64::from(ordinal.index());
        let (count, start, end) = (number(0)?, number(at)?, number(at + 4)?);
        let path = self.files.path(piece)?;
        if end < start || end - start > 1 << 20 || u64::from(ordinal.index()) >= count {
            return Err(Error::damaged(path, "an id that lies outside"));
        }
        let mut id = vec![0; (end - start) as usize];
        self.files.read(piece, &mut id, 4 + 8 * count + start)?;
        String::from_utf8(id).map_err(|_| Error::damaged(path, "an id that is not UTF-8"))
    }
}

/// The documents after a stage, as files in their order.
#[derive(Debug, Clone)]
pub struct Pieces {
    pub paths: Vec<PathBuf>,
}

impl Pieces {
    /// One task for each piece, with an output of this name.
    pub fn tasks(&self, folder: &Path, name: &str) -> Vec<(PathBuf, u32)> {
        (0..self.paths.len() as u32).map(|piece| (folder.join(format!("{name}-{piece:06}")), piece)).collect()
    }

    pub fn open(&self, piece: u32) -> Result<PieceReader> {
        PieceReader::open(&self.paths[piece as usize])
    }
}

pub fn piece_path(folder: &Path, piece: u32, ending: &str) -> PathBuf {
    folder.join(format!("piece-{piece:06}.{ending}"))
}

/// Reads what a task wrote as JSON.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).at("read", path)?;
    serde_json::from_slice(&text).map_err(|error| Error::damaged(path, error.to_string()))
}

pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| Error::Ledger(error.to_string()))?;
    durable::write(path, &text)
}

/// A stage of a run: what its steps work on.
pub struct Work<'a> {
    pub context: &'a Context<'a>,
    /// As in `03-minhash`.
    pub name: &'a str,
    pub input: &'a Pieces,
    pub folder: &'a Path,
}

impl Work<'_> {
    /// One task for each piece, with an output of this name.
    pub fn per_piece(&self, name: &str) -> Vec<(PathBuf, u32)> {
        self.input.tasks(self.folder, name)
    }

    /// One task for each range of hashes.
    pub fn per_range(&self, name: &str) -> Vec<(PathBuf, u64)> {
        self.context.shard_tasks(self.folder, name)
    }

    /// Says which step of the stage it is.
    pub fn tasks<T: Sync>(
        &self,
        what: &str,
        tasks: &[(PathBuf, T)],
        work: impl Fn(&Path, &T) -> Result<u64> + Sync,
    ) -> Result<()> {
        self.context.tasks(&format!("{}: {what}", self.name), tasks, work)
    }
}

/// Where tasks leave their outputs.
pub fn outputs<T>(tasks: Vec<(PathBuf, T)>) -> Vec<PathBuf> {
    tasks.into_iter().map(|(path, _)| path).collect()
}

/// Writes the pieces anew, as `change` has them: it writes rows of what it removes, and says whether the document stays.
pub fn rewrite<S>(
    work: &Work<'_>,
    begin: impl Fn(u32) -> Result<S> + Sync,
    change: impl Fn(&mut S, &mut Doc, &mut Rows) -> Result<bool> + Sync,
) -> Result<()> {
    let Work { context, name, input, folder } = *work;
    let pieces: Vec<u32> = (0..input.paths.len() as u32).collect();
    let own = context.part.of(&pieces);
    context.watch.begin(name, own.len() as u64);
    durable::run_tasks(context.num_threads, own, |piece| {
        let path = |ending| piece_path(folder, *piece, ending);
        if path("json").exists() {
            context.watch.step(0);
            return Ok(());
        }
        let mut state = begin(*piece)?;
        let mut rows = Rows::create(name, &path("rows"))?;
        let mut writer = PieceWriter::create(&path("docs"))?;
        for doc in input.open(*piece)? {
            let mut doc = doc?;
            rows.counts.docs_in += 1;
            rows.counts.tokens_in += tokens(&doc.text);
            if change(&mut state, &mut doc, &mut rows)? {
                rows.counts.docs_out += 1;
                rows.counts.tokens_out += tokens(&doc.text);
                writer.put(&doc)?;
            }
        }
        writer.finish()?;
        let counts = rows.finish()?;
        counts.check(&format!("{name}, piece {piece}"))?;
        write_json(&path("json"), &counts)?;
        context.watch.step(counts.tokens_in);
        Ok(())
    })
}

/// What became of all pieces of a stage.
pub fn counts(work: &Work<'_>) -> Result<Counts> {
    let mut all = Counts::default();
    for piece in 0..work.input.paths.len() as u32 {
        all.add(&read_json(&piece_path(work.folder, piece, "json"))?);
    }
    Ok(all)
}

/// Why a document goes, and which one stays for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    pub ordinal: Ordinal,
    pub kept: Ordinal,
    pub score: f32,
    /// An index into the names of a stage's rules.
    pub rule: u8,
}

pub const VERDICT_BYTES: usize = 21;

impl Verdict {
    pub fn to_bytes(self) -> [u8; VERDICT_BYTES] {
        let mut bytes = [0; VERDICT_BYTES];
        bytes[..8].copy_from_slice(&self.ordinal.to_bytes());
        bytes[8..16].copy_from_slice(&self.kept.to_bytes());
        bytes[16..20].copy_from_slice(&self.score.to_be_bytes());
        bytes[20] = self.rule;
        bytes
    }

    pub fn of_bytes(bytes: &[u8; VERDICT_BYTES]) -> Verdict {
        let (ordinal, kept) = (Ordinal(u64_at(bytes, 0)), Ordinal(u64_at(bytes, 8)));
        Verdict { ordinal, kept, score: f32::from_be_bytes(field(bytes, 16)), rule: bytes[20] }
    }
}

/// Records about the documents of one piece, from sorted files that begin with ordinals.
pub fn of_piece<const N: usize>(paths: &[PathBuf], piece: u32, scratch: &Scratch) -> Result<Merge<N>> {
    let to = piece.checked_add(1).map(u32::to_be_bytes);
    Merge::of(paths, &piece.to_be_bytes(), to.as_ref().map(|to| &to[..]), scratch)
}

/// Removes the documents that verdicts name.
pub fn remove(work: &Work<'_>, verdicts: &[PathBuf], rules: &[&str]) -> Result<()> {
    let context = work.context;
    let begin = |piece| Ok((piece, of_piece::<VERDICT_BYTES>(verdicts, piece, &context.scratch)?.peekable()));
    rewrite(work, begin, |(piece, verdicts), doc, rows| {
        let ordinal = Ordinal::new(*piece, doc.index);
        let Some(record) = verdicts.next_if(|next| match next {
            Ok(record) => Verdict::of_bytes(record).ordinal == ordinal,
            Err(_) => true,
        }) else {
            return Ok(true);
        };
        let verdict = Verdict::of_bytes(&record?);
        let (rule, kept) = (rules[usize::from(verdict.rule)].to_owned(), Some(context.ids.of(verdict.kept)?));
        let score = Some(f64::from(verdict.score));
        rows.whole(doc, Row { rule, score, kept, ..Row::default() })?;
        Ok(false)
    })
}

/// What does the items of a part.
type Do<'a> = dyn Fn(&Work<'_>) -> Result<()> + 'a;

/// A step of a stage. What is in the folder already is not done again.
pub struct StageStep<'a> {
    pub name: &'static str,
    pub over: Over,
    pub run: Box<Do<'a>>,
}

/// The steps of a stage with these options: name, what its items are, and what does those of a part.
pub type Steps<O> = [(&'static str, Over, fn(&Work<'_>, &O) -> Result<()>)];

/// The steps of a stage in their order. Each goes through what the steps before it have left.
pub fn steps(stage: &Stage) -> Vec<StageStep<'_>> {
    fn of<'a, O>(steps: &'static Steps<O>, options: &'a O) -> Vec<StageStep<'a>> {
        let bound = steps.iter().map(|(name, over, run)| {
            let run = Box::new(move |work: &Work<'_>| run(work, options));
            StageStep { name, over: *over, run }
        });
        bound.collect()
    }
    match stage {
        Stage::Url(form) => of(duplicates::URL, form),
        Stage::Exact(options) => of(duplicates::EXACT, options),
        Stage::Minhash(options) => of(minhash::STEPS, options),
        Stage::Sentences(options) => of(sentences::STEPS, options),
        Stage::Heuristics(options) => of(local::HEURISTICS, options),
        Stage::Perplexity(options) => of(perplexity::STEPS, options),
        Stage::Pii(options) => of(local::PII, options),
        Stage::Contamination(options) => of(local::CONTAMINATION, options),
        Stage::License(options) => of(local::LICENSE, options),
        Stage::Language(options) => of(local::LANGUAGE, options),
    }
}

/// What a stage tells of besides documents, once its steps are done.
pub fn note(stage: &Stage, work: &Work<'_>) -> Result<Option<(String, u64)>> {
    match stage {
        Stage::Minhash(_) => minhash::note(work).map(Some),
        Stage::Sentences(_) => sentences::note(work).map(Some),
        _ => Ok(None),
    }
}
