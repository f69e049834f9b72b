//! `toroid-data`, which `toroid data` runs: what was asked for, and how the progress is shown.
//!
//! Standard output has what was asked for, standard error what is said beside it. Exit codes: 0, 1 (failed), 2 (wrong use).

mod command_chat;
mod progress;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use toroid_corpus::config::{BYTES, Output, Pipeline, Stage};
use toroid_corpus::encode::Tokens;
use toroid_corpus::lm::{Model, train::Trainer};
use toroid_corpus::ner::{self, Entity, conll};
use toroid_corpus::plan::{How, Outcome, Plan};
use toroid_corpus::report::grouped;
use toroid_corpus::runs::Scratch;
use toroid_corpus::{explain, plan, read, run};
use toroid_tokens::{BYTES_TOKENIZER, Kind, TokenFile};

use crate::progress::{Progress, print};

/// From raw documents to text that is trained on, each removal explained
#[derive(Debug, Parser)]
#[command(name = "toroid data", bin_name = "toroid data", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline; the same command goes on where a killed one was
    Run(RunArgs),
    /// Write all tasks of a pipeline to a file, for machines that share the folders of sources, work and output
    Plan(PlanArgs),
    /// Do a task of a plan, or the share of one of several workers
    Task(TaskArgs),
    /// Say what became of a document, and why
    Explain(ExplainArgs),
    /// Train an n-gram model for the stage `perplexity`; writes an ARPA file
    Lm(LmArgs),
    /// Print the perplexity of each line of a text, one a line
    Perplexity(PerplexityArgs),
    /// Train or try a model that finds names, for the stage `pii`
    Ner(NerArgs),
    /// Make token files for post-training from rows of messages, or of preferences
    Chat(Box<command_chat::ChatArgs>),
    /// Check a token file and say what it has, or print a document of it
    Tokens(TokensArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The pipeline file
    pipeline: PathBuf,
    /// Print the pipeline with all its defaults, and what would be done; do nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads; all processors by default. The output does not depend on it
    #[arg(long)]
    threads: Option<usize>,
    /// Memory to keep to, as in 512M or 2G
    #[arg(long, default_value = "2G", value_parser = bytes)]
    memory: u64,
    /// Ranges of hashes that are brought together one at a time by each thread. The output does not depend on it
    #[arg(long, default_value_t = 16)]
    shards: u64,
    /// Text of a piece, as in 8M; follows from the memory by default. The output does not depend on it
    #[arg(long, value_parser = bytes)]
    piece: Option<u64>,
    /// Keep the documents after each stage: a later stage can be changed without doing the earlier ones again
    #[arg(long)]
    keep_stages: bool,
    /// Print the report as JSON instead of the table
    #[arg(short = 'o', long = "output", value_parser = ["table", "json"], default_value = "table")]
    output: String,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// The pipeline file
    pipeline: PathBuf,
    /// Ranges of hashes, and parts of what is read: tasks of each step. The output does not depend on it
    #[arg(long, default_value_t = 16)]
    shards: u64,
    /// Memory of a task, as in 512M or 2G: it decides how large pieces are
    #[arg(long, default_value = "2G", value_parser = bytes)]
    memory: u64,
    /// Threads of a task
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Text of a piece, as in 8M; follows from the memory by default. The output does not depend on it
    #[arg(long, value_parser = bytes)]
    piece: Option<u64>,
    /// Keep the documents after each stage
    #[arg(long)]
    keep_stages: bool,
    /// Where the plan goes
    #[arg(long, default_value = "plan.json")]
    to: PathBuf,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["id", "worker"]))]
struct TaskArgs {
    /// The plan, of `toroid data plan`
    plan: PathBuf,
    /// The task, as in `02-minhash.buckets.3`, or its number in the plan
    id: Option<String>,
    /// Do all tasks of this worker: those whose number, divided by --workers, leaves it
    #[arg(long, requires = "workers")]
    worker: Option<usize>,
    /// How many workers there are
    #[arg(long, requires = "worker")]
    workers: Option<usize>,
    /// Seconds to wait for the tasks before it; 0 for one task and a day for a worker by default
    #[arg(long)]
    wait_s: Option<u64>,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Memory to keep to, as in 512M or 2G
    #[arg(long, default_value = "2G", value_parser = bytes)]
    memory: u64,
    /// A folder of this machine for what is sorted on disk; the folder of work by default
    #[arg(long)]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// The id of a document, as in `mails:a.jsonl#120`, or the one that it came with
    id: String,
    /// The folder of an output, or the pipeline file that names it
    #[arg(long = "in", default_value = "pipeline.toml")]
    place: PathBuf,
}

#[derive(Debug, Args)]
struct LmArgs {
    /// Files or folders of text to train on
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Where the model goes
    #[arg(long, default_value = "model.arpa")]
    to: PathBuf,
    /// Words of the longest n-gram
    #[arg(long, default_value_t = 5)]
    order: usize,
    /// Memory to keep to, as in 512M or 2G
    #[arg(long, default_value = "2G", value_parser = bytes)]
    memory: u64,
}

#[derive(Debug, Args)]
struct PerplexityArgs {
    /// The model, an ARPA file
    model: PathBuf,
    /// The text
    text: PathBuf,
}

#[derive(Debug, Args)]
struct NerArgs {
    #[command(subcommand)]
    command: NerCommand,
}

#[derive(Debug, Subcommand)]
enum NerCommand {
    /// Train on annotated text: a word a line, its tag (B-PER, I-LOC, O) in the last column, an empty line between sentences
    Train(NerTrainArgs),
    /// Say how many names of annotated text a model finds, by kind
    Score(NerScoreArgs),
}

#[derive(Debug, Args)]
struct NerTrainArgs {
    /// Files of annotated text
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Where the model goes
    #[arg(long, default_value = "names.ner")]
    to: PathBuf,
    /// A file with a name a line, such as first names or cities; 8 of them at most
    #[arg(long = "gazetteer")]
    gazetteers: Vec<PathBuf>,
    /// Passes over the text
    #[arg(long, default_value_t = 5)]
    epochs: u32,
    /// Features that stand there less often are left out
    #[arg(long, default_value_t = 2)]
    min_count: u32,
    /// The order of sentences follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the text is and under which licence, for whoever uses the model
    #[arg(long)]
    trained_on: String,
}

#[derive(Debug, Args)]
struct NerScoreArgs {
    /// The model
    model: PathBuf,
    /// Files of annotated text
    #[arg(required = true)]
    texts: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct TokensArgs {
    /// The token file
    file: PathBuf,
    /// Print the text of this document; the first is 0
    #[arg(long)]
    document: Option<u64>,
    /// The tokenizer.json that the file was made with; it needs none if its tokens are bytes
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

/// A number of bytes, with K, M or G of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.trim_end_matches(['i', 'B', 'b']).split_at_checked(text.len().saturating_sub(1)) {
        _ if text.ends_with(|c: char| c.is_ascii_digit()) => (text, 1),
        _ => {
            let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let factor = match text[number.len()..].to_ascii_uppercase().as_str() {
                "K" | "KB" | "KIB" => 1 << 10,
                "M" | "MB" | "MIB" => 1 << 20,
                "G" | "GB" | "GIB" => 1 << 30,
                _ => 0,
            };
            (number, factor)
        }
    };
    let number: Option<u64> = digits.parse().ok();
    let found = number.and_then(|number| number.checked_mul(factor)).filter(|n| *n > 0);
    found.ok_or_else(|| "expected a number of bytes, as in 512M or 2G".into())
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run_pipeline(&args)?,
        Command::Plan(args) => make_plan(&args)?,
        Command::Task(args) => do_tasks(&args)?,
        Command::Explain(args) => return explain_document(&args),
        Command::Lm(args) => train(&args)?,
        Command::Perplexity(args) => perplexity(&args)?,
        Command::Ner(args) => names(&args.command)?,
        Command::Chat(args) => command_chat::chat(&args)?,
        Command::Tokens(args) => tokens(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_pipeline(args: &RunArgs) -> Result<()> {
    let path = if args.dry_run {
        args.pipeline.clone()
    } else {
        // As plans have them: what a plan left can be gone on with.
        std::path::absolute(&args.pipeline).context("find the folder that this runs in")?
    };
    let pipeline = Pipeline::load(&path)?;
    if args.dry_run {
        return print(&dry_run(&pipeline)?);
    }
    let num_threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let options = run::Options {
        num_threads,
        memory_bytes: args.memory,
        num_shards: args.shards,
        piece_bytes: args.piece,
        keep_stages: args.keep_stages,
    };
    let (progress, start) = (Progress::new()?, Instant::now());
    let report = run::run(&pipeline, &options, &progress)?;
    progress.end();
    progress.bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let rate = |n: u64| n as f64 / seconds.max(1e-6);
    progress.line(&format!(
        "{} documents in {seconds:.1} s: {:.1} MB/s, {:.0} documents/s",
        grouped(report.documents_read),
        rate(report.tokens_read) / 1e6,
        rate(report.documents_read)
    ));
    if args.output == "json" {
        return print(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    print(&report.table())?;
    let out = pipeline.output.path.display();
    let folder = pipeline.output.format.folder();
    print(&format!("{folder}: {out}/{folder}   report: {out}/report.html   ledger: {out}/ledger\n"))
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn make_plan(args: &PlanArgs) -> Result<()> {
    // Machines have working folders of their own.
    let path = std::path::absolute(&args.pipeline).context("find the folder that this runs in")?;
    let pipeline = Pipeline::load(&path)?;
    let options = run::Options {
        num_threads: args.threads,
        memory_bytes: args.memory,
        num_shards: args.shards,
        piece_bytes: args.piece,
        keep_stages: args.keep_stages,
    };
    let progress = Progress::new()?;
    let plan = plan::make(&pipeline, &options, &progress)?;
    plan.save(&args.to)?;
    let num_done = plan.tasks.iter().filter(|task| plan.is_done(task)).count();
    let (steps, tasks, to) = (plan.steps.len(), plan.tasks.len(), args.to.display());
    print(&format!("{to}: {tasks} tasks of {steps} steps, {num_done} of them done\n"))
}

fn do_tasks(args: &TaskArgs) -> Result<()> {
    let plan = Plan::load(&args.plan)?;
    let (tasks, patience) = match (&args.id, args.worker.zip(args.workers)) {
        (Some(id), _) => (vec![plan.find(id)?], Duration::ZERO),
        (None, Some((worker, workers))) => {
            anyhow::ensure!(
                worker < workers,
                "--worker is from 0 to {}, as there are --workers {workers}",
                workers - 1
            );
            ((worker..plan.tasks.len()).step_by(workers).collect(), DAY)
        }
        (None, None) => anyhow::bail!("name a task, or --worker and --workers"),
    };
    let patience = args.wait_s.map_or(patience, Duration::from_secs);
    let how = How { num_threads: args.threads, memory_bytes: args.memory, scratch: args.scratch.clone(), patience };
    let progress = Progress::new()?;
    for number in tasks {
        let outcome = plan.task(number, &how, &progress)?;
        progress.end();
        let done = if outcome == Outcome::Done { "done" } else { "was done" };
        print(&format!("{}: {done}\n", plan.tasks[number].id))?;
    }
    Ok(())
}

/// The pipeline with its defaults, and what its sources and stages are.
fn dry_run(pipeline: &Pipeline) -> Result<String> {
    let mut text = pipeline.to_toml()?;
    text.push_str("\n# What would be done:\n");
    for source in &pipeline.sources {
        let listing = read::files::list(&source.path, &source.extensions)?;
        let num_bytes: u64 = listing.files.iter().map(|file| file.bytes).sum();
        let (num, bytes) = (grouped(listing.files.len() as u64), grouped(num_bytes));
        text.push_str(&format!("# read {}: {num} files, {bytes} bytes\n", source.name));
    }
    for (n, stage) in pipeline.stages.iter().enumerate() {
        text.push_str(&format!("# {}: {}\n", run::stage_name(n, stage), stage.method()));
        if let Stage::Minhash(options) = stage {
            text.push_str(&format!("#   compared, by similarity: {}\n", options.bands().curve()));
        }
    }
    text.push_str(&format!("# write {}\n", pipeline.output.path.display()));
    Ok(text)
}

fn explain_document(args: &ExplainArgs) -> Result<ExitCode> {
    let out = if args.place.is_dir() { args.place.clone() } else { Pipeline::load(&args.place)?.output.path };
    let found = explain::explain(&out, &args.id)?;
    if found.is_empty() {
        let hint = "ids are `source:file#byte`, or those that documents came with";
        anyhow::bail!(
            "{}: nothing is known of `{}`; {hint}, and those are found only if a stage changed them",
            out.display(),
            args.id
        );
    }
    for line in found.lines() {
        print(&(line + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn train(args: &LmArgs) -> Result<()> {
    let folder = args.to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = Scratch::new(folder);
    let mut trainer = Trainer::new(args.order, args.memory, &scratch)?;
    let mut num_bytes = 0u64;
    for path in &args.texts {
        for file in read::files::list(path, &[])?.files {
            let bytes = std::fs::read(&file.path).with_context(|| format!("read {}", file.path.display()))?;
            num_bytes += bytes.len() as u64;
            trainer.add(&String::from_utf8_lossy(&bytes))?;
        }
    }
    let model = trainer.finish()?;
    model.save(&args.to)?;
    for order in &model.fallbacks {
        let what = "too few n-grams to estimate its discounts; 0.5, 1 and 1.5 are taken";
        writeln!(std::io::stderr(), "order {order}: {what}")?;
    }
    let num: Vec<String> = model.num_grams().iter().map(|n| grouped(*n as u64)).collect();
    print(&format!(
        "{}: n-grams of each order: {}, from {} bytes\n",
        args.to.display(),
        num.join(" "),
        grouped(num_bytes)
    ))
}

fn perplexity(args: &PerplexityArgs) -> Result<()> {
    let model = Model::load(&args.model, u64::MAX)?;
    let text = std::fs::read_to_string(&args.text).with_context(|| format!("read {}", args.text.display()))?;
    let mut lines = String::new();
    for line in text.lines() {
        let value = model.perplexity(line).map_or("-".into(), |p| format!("{p:.6}"));
        lines.push_str(&(value + "\n"));
    }
    print(&lines)
}

fn annotated(paths: &[PathBuf]) -> Result<Vec<conll::Sentence>> {
    let found: toroid_corpus::Result<Vec<Vec<conll::Sentence>>> = paths.iter().map(|path| conll::read(path)).collect();
    Ok(found?.concat())
}

fn names(command: &NerCommand) -> Result<()> {
    match command {
        NerCommand::Train(args) => {
            let sentences = annotated(&args.texts)?;
            let mut gazetteers = Vec::new();
            for path in &args.gazetteers {
                let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                gazetteers.push(ner::Gazetteer::of_lines(&name, &text));
            }
            let (num_epochs, min_count, seed) = (args.epochs, args.min_count, args.seed);
            let options = ner::train::Options { num_epochs, min_count, seed, trained_on: args.trained_on.clone() };
            let model = ner::train::train(&sentences, gazetteers, &options)?;
            model.save(&args.to)?;
            let (num, of) = (grouped(model.num_features() as u64), grouped(sentences.len() as u64));
            print(&format!("{}: {num} features, from {of} sentences\n", args.to.display()))
        }
        NerCommand::Score(args) => {
            let model = ner::Model::load(&args.model)?;
            let scores = ner::score(&model, &annotated(&args.texts)?);
            print(&format!("trained on {}\n", model.trained_on))?;
            for entity in Entity::ALL {
                let score = scores.get(&entity).copied().unwrap_or_default();
                let (precision, recall, f1) = (score.precision(), score.recall(), score.f1());
                let (name, num) = (entity.name(), grouped(score.meant));
                print(&format!("{name}: precision {precision:.4}, recall {recall:.4}, F1 {f1:.4} of {num} names\n"))?;
            }
            Ok(())
        }
    }
}

fn tokens(args: &TokensArgs) -> Result<()> {
    let path = args.file.display();
    let bytes = std::fs::read(&args.file).with_context(|| format!("read {path}"))?;
    let file = TokenFile::new(&bytes).and_then(|file| file.check().map(|()| file));
    let file = file.with_context(|| format!("{path} is no whole token file"))?;
    let TokenFile { header, .. } = file;
    let output = Output { tokenizer: args.tokenizer.clone().unwrap_or(BYTES.into()), ..Output::default() };
    let Some(document) = args.document else {
        let tokenizer = match header.tokenizer {
            BYTES_TOKENIZER => BYTES.to_owned(),
            digest => digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let (num_tokens, num_documents) = (grouped(header.num_tokens), grouped(header.num_documents));
        let (width, vocabulary) = (header.width, grouped(u64::from(header.vocabulary)));
        let num_trained = (0..header.num_tokens).filter(|at| file.is_trained(*at)).count() as u64;
        let of_kind = match header.kind {
            Kind::Text => "text".to_owned(),
            Kind::Dialogues => format!("dialogues, {} tokens trained", grouped(num_trained)),
            Kind::Preferences => {
                format!("{} preferences, {} tokens trained", grouped(header.num_pairs()), grouped(num_trained))
            }
        };
        return print(&format!(
            "{path}: whole; {of_kind}; {num_documents} documents, {num_tokens} tokens of {width} bytes, vocabulary {vocabulary}, tokenizer {tokenizer}\n"
        ));
    };
    anyhow::ensure!(document < header.num_documents, "{path}: has {} documents, the first is 0", header.num_documents);
    let tokenizer = Tokens::load(&output)?;
    anyhow::ensure!(
        tokenizer.digest() == header.tokenizer,
        "{path}: was made with another tokenizer than {}; name it with --tokenizer",
        output.tokenizer.display()
    );
    let ids: Vec<u32> = file.document(document).map(|at| file.token(at)).collect();
    print(&(tokenizer.decode(&ids)? + "\n"))
}
