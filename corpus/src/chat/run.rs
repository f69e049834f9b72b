//! All rows of some files into a folder of token files, which appears whole.
//!
//! Lines are read in batches, made into tokens on several threads, and written in their order. A command that was killed leaves a folder
//! with another name, which the next one removes.

use std::path::{Path, PathBuf};

use toroid_tokens::Kind;

use crate::chat::balance::{self, Weighed};
use crate::chat::make::{Made, Maker, TooLong};
use crate::chat::refusal::{Reason, Refusal, Refused, Usable};
use crate::chat::report::{Balance, MADE_BY, Means, Report};
use crate::chat::rows::{MAX_ROW_BYTES, RowLine, Rows};
use crate::chat::write::{Spool, Writer};
use crate::durable::{self, Durable, LOCK, Lock, map_tasks};
use crate::error::{At, Error, Result};
use crate::ledger::excerpt;
use crate::owned::{self, Output};
use crate::stage::{Watch, write_json};

/// Rows of a task.
const TASK_ROWS: usize = 64;
/// Bytes of a batch, about: a step of the progress.
const STEP_BYTES: u64 = 8 << 20;
/// Of a row, what its excerpt is made of.
const MAX_EXCERPT_BYTES: usize = 1 << 10;
const REFUSED: &str = "refused.jsonl";
/// Behind the name of the output until it is complete.
const UNFINISHED: &str = ".toroid-unfinished";
/// In the folders of its splits.
const TOKENS: &str = "00000.tokens";

/// What is read, and where it goes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Files, and folders with files of rows.
    pub rows: Vec<PathBuf>,
    pub to: PathBuf,
    /// What the tokenizer is called in the report.
    pub tokenizer: String,
    pub max_refused_share: f64,
    /// As many pairs with a longer chosen answer as with a shorter one.
    pub balance_length: bool,
    /// The output does not depend on it.
    pub num_threads: usize,
}

/// A share of the rows, in a folder of its own: whoever trains on a folder takes all files in it.
struct Split {
    name: &'static str,
    writer: Writer,
    spool: Option<Spool>,
    weighed: Vec<Weighed>,
}

impl Split {
    fn create(folder: &Path, name: &'static str, maker: &Maker, is_balanced: bool) -> Result<Split> {
        let kind = if maker.how.is_preference { Kind::Preferences } else { Kind::Dialogues };
        durable::make_folder(&folder.join(name))?;
        let spool = is_balanced.then(|| Spool::create(folder.join(format!(".{name}.pairs")))).transpose()?;
        let writer = Writer::create(folder, &format!("{name}/{TOKENS}"), kind, &maker.tokens)?;
        Ok(Split { name, writer, spool, weighed: Vec::new() })
    }

    fn put(&mut self, made: &Made) -> Result<()> {
        if let Some(difference) = made.difference() {
            self.weighed.push((made.hash, difference));
        }
        match &mut self.spool {
            Some(spool) => spool.put(made),
            None => self.writer.put(made),
        }
    }

    /// Counts are added to the report.
    fn finish(mut self, seed: u64, report: &mut Report) -> Result<()> {
        let kept = match self.spool.is_some() {
            true => balance::kept(&self.weighed, seed),
            false => vec![true; self.weighed.len()],
        };
        if let Some(balance) = &mut report.balance {
            for ((_, difference), kept) in self.weighed.iter().zip(&kept) {
                balance.before.add(*difference);
                if *kept {
                    balance.after.add(*difference);
                }
            }
        }
        if let Some(spool) = self.spool.take() {
            spool.drain(&kept, &mut self.writer)?;
        }
        let left_out = kept.iter().filter(|kept| !**kept).count() as u64;
        report.unbalanced += left_out;
        report.used -= left_out;
        for (up_to, num) in self.writer.lengths() {
            *report.lengths.entry(up_to).or_default() += num;
        }
        report.files.insert(self.name.to_owned(), self.writer.finish()?);
        Ok(())
    }
}

/// Makes the folder.
pub fn run(options: &Options, maker: &Maker, watch: &dyn Watch) -> Result<Report> {
    check(options, maker)?;
    let output = Output { path: &options.to, option: "--to", is_ours };
    output.check()?;
    let unfinished = owned::beside(&options.to, UNFINISHED);
    let lock = Lock::take(&unfinished)?;
    // What a dead process left.
    owned::clear(&unfinished, &[LOCK])?;
    let report = write(options, maker, &unfinished, watch);
    if let Err(error) = report {
        drop(lock);
        owned::remove(&unfinished)?;
        return Err(error);
    }
    let report = report?;
    // The file of the lock goes into the output no more than what was left on the way.
    std::fs::remove_file(unfinished.join(LOCK)).at("remove", &unfinished)?;
    output.publish(&unfinished)?;
    drop(lock);
    Ok(report)
}

fn check(options: &Options, maker: &Maker) -> Result<()> {
    let how = &maker.how;
    let wrong = |what: &str| Err(Error::Config(what.to_owned()));
    if how.max_tokens < 2 {
        return wrong("--max-tokens is at least 2: an answer has a token before it");
    }
    if !(0.0..1.0).contains(&how.held_out) || !(0.0..=1.0).contains(&options.max_refused_share) {
        return wrong("--held-out is from 0 to less than 1, --max-refused from 0 to 1");
    }
    if options.balance_length && !how.is_preference {
        return wrong("--balance-length is for preferences, and these rows are dialogues");
    }
    Ok(())
}

fn is_ours(report: &serde_json::Value) -> bool {
    report["made_by"] == MADE_BY
}

fn write(options: &Options, maker: &Maker, folder: &Path, watch: &dyn Watch) -> Result<Report> {
    let mut rows = Rows::open(&options.rows)?;
    let mut report = begin(options, maker);
    let mut train = Split::create(folder, "train", maker, options.balance_length)?;
    let mut held_out = match maker.how.held_out > 0.0 {
        true => Some(Split::create(folder, "held-out", maker, options.balance_length)?),
        false => None,
    };
    let mut refused = Durable::create(&folder.join(REFUSED))?;
    watch.begin("read and encode", rows.bytes() / STEP_BYTES + 1);
    loop {
        let batch = rows.batch()?;
        if batch.is_empty() {
            break;
        }
        let tasks: Vec<&[RowLine]> = batch.chunks(TASK_ROWS).collect();
        let made = map_tasks(options.num_threads, &tasks, |lines| {
            Ok(lines.iter().map(|line| make(maker, line)).collect::<Vec<_>>())
        })?;
        for (line, made) in batch.iter().zip(made.into_iter().flatten()) {
            report.rows += 1;
            match made {
                Ok(made) => {
                    count(&mut report, &made);
                    held_out.as_mut().filter(|_| made.is_held_out).unwrap_or(&mut train).put(&made)?;
                }
                Err(refusal) => refuse(&mut report, &mut refused, maker, rows.name(line.file), line, refusal)?,
            }
        }
        watch.step(batch.iter().map(|line| line.num_bytes).sum());
    }
    refused.finish()?;
    check_refused(options, &report, folder)?;
    let seed = maker.how.seed;
    train.finish(seed, &mut report)?;
    if let Some(held_out) = held_out {
        held_out.finish(seed, &mut report)?;
    }
    if report.files["train"].documents == 0 {
        return Err(Error::Config(format!("of {} rows none is left to train on", report.rows)));
    }
    durable::write(&folder.join("chat_template.jinja"), maker.dialogues.source.as_bytes())?;
    write_json(&folder.join("report.json"), &report)?;
    Ok(report)
}

fn make(maker: &Maker, line: &RowLine) -> Usable<Made> {
    if line.is_too_long() {
        let what = format!("a line of {} bytes, at most {MAX_ROW_BYTES} are taken", line.num_bytes);
        return Err(Refusal::new(Reason::LineTooLong, what));
    }
    maker.make(&line.bytes)
}

fn begin(options: &Options, maker: &Maker) -> Report {
    let (tokens, dialogues, how) = (&maker.tokens, &maker.dialogues, &maker.how);
    let means = Means {
        tokenizer: options.tokenizer.clone(),
        tokenizer_digest: if tokens.is_bytes() {
            String::new()
        } else {
            blake3::Hash::from_bytes(tokens.digest).to_hex().to_string()
        },
        vocabulary: tokens.vocabulary,
        template: dialogues.name.clone(),
        template_digest: blake3::hash(dialogues.source.as_bytes()).to_hex().to_string(),
        trained_by: if dialogues.marks_trained() { "generation" } else { "difference" }.to_owned(),
        end_of_turn: maker.end,
        end_of_turn_text: tokens.decode(&[maker.end]).unwrap_or_default(),
        max_tokens: how.max_tokens as u64,
        too_long: format!("{:?}", how.too_long).to_lowercase(),
    };
    let is_asked_for = options.balance_length;
    let balance = how.is_preference.then_some(Balance { is_asked_for, ..Balance::default() });
    let kind = if how.is_preference { Kind::Preferences } else { Kind::Dialogues };
    let notes = maker.notes.clone();
    Report { made_by: MADE_BY.to_owned(), kind: kind.to_string(), balance, means, notes, ..Report::default() }
}

fn count(report: &mut Report, made: &Made) {
    report.used += 1;
    report.cut_prompts += u64::from(made.is_cut);
    report.cut_messages += made.num_cut_messages;
    report.injected += u64::from(made.is_injected);
}

fn refuse(
    report: &mut Report,
    list: &mut Durable,
    maker: &Maker,
    file: &str,
    line: &RowLine,
    Refusal { reason, detail }: Refusal,
) -> Result<()> {
    if reason == Reason::TooLong && maker.how.too_long == TooLong::Fail {
        let advice = "raise --max-tokens, or take --too-long drop or cut";
        return Err(Error::Config(format!("{file}: line {}: {detail}; {advice}", line.number)));
    }
    *report.refused.entry(reason).or_default() += 1;
    let excerpt = excerpt(&String::from_utf8_lossy(&line.bytes[..line.bytes.len().min(MAX_EXCERPT_BYTES)]));
    let row = Refused { file: file.to_owned(), line: line.number, reason, detail, excerpt };
    let mut text = serde_json::to_vec(&row).map_err(|error| Error::Ledger(error.to_string()))?;
    text.push(b'\n');
    list.put(&text)
}

fn check_refused(options: &Options, report: &Report, folder: &Path) -> Result<()> {
    let (refused, total, share) = (report.num_refused(), report.rows, options.max_refused_share);
    if total > 0 && refused as f64 <= share * total as f64 {
        return Ok(());
    }
    if total == 0 {
        return Err(Error::Config("there is no row in the files".into()));
    }
    let list = owned::beside(&options.to, &format!(".{REFUSED}"));
    std::fs::rename(folder.join(REFUSED), &list).at("rename into place", &list)?;
    let mut reasons: Vec<(u64, Reason)> = report.refused.iter().map(|(reason, num)| (*num, *reason)).collect();
    reasons.sort_by(|a, b| b.cmp(a));
    let reasons: Vec<String> = reasons.iter().map(|(num, reason)| format!("{reason} {num}")).collect();
    Err(Error::TooManyRefused { refused, total, share, reasons: reasons.join(", "), list })
}
