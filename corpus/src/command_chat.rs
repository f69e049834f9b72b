//! `toroid data chat`: rows of messages to token files for post-training.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use toroid_chat::Time;
use toroid_corpus::chat::make::{How, Maker, TooLong};
use toroid_corpus::chat::preview;
use toroid_corpus::chat::row::Margins;
use toroid_corpus::chat::rows::Rows;
use toroid_corpus::chat::run::{self, Options};
use toroid_corpus::chat::template::{Dialogues, Turns};
use toroid_corpus::chat::tokenizer::ChatTokens;
use toroid_corpus::report::grouped;

use crate::progress::{Progress, print};

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Files of rows (JSON lines, also gzip and zstd), or folders with such files; also s3://BUCKET/PREFIX
    #[arg(required = true)]
    rows: Vec<PathBuf>,
    /// The folder for the token files, the report and the list of refused rows
    #[arg(long, required_unless_present = "preview")]
    to: Option<PathBuf>,
    /// What the rows are; by default, what the first of them is
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// `bytes`, a tokenizer.json, or a folder with one, its tokenizer_config.json and its chat_template.jinja
    #[arg(long, default_value = "bytes")]
    tokenizer: PathBuf,
    /// A chat template of Jinja, or a tokenizer_config.json that has one; that of the tokenizer's folder, or a default one, otherwise
    #[arg(long)]
    template: Option<PathBuf>,
    /// An added token of the tokenizer that contents may have, as `<think>`; all others are text there
    #[arg(long = "content-token")]
    content_tokens: Vec<String>,
    /// Which answers of a dialogue are trained
    #[arg(long, value_enum, default_value = "all")]
    turns: TurnsArg,
    /// Tokens of a dialogue, or of a prompt with one of its answers
    #[arg(long, default_value_t = 1024)]
    max_tokens: usize,
    /// What becomes of a longer one: it is refused, the front of its prompt is cut, or it ends the command
    #[arg(long, value_enum, default_value = "drop")]
    too_long: TooLongArg,
    /// Where margins of preferences come from: the field `margin`, the difference of scores, or nowhere
    #[arg(long, value_enum, default_value = "given")]
    margin: MarginArg,
    /// Share of the rows that is held out to validate; rows of one prompt are on the same side
    #[arg(long, default_value_t = 0.0)]
    held_out: f64,
    /// Which rows are held out, and which pairs go to balance lengths, follows from it and from the rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave pairs out until as many have a longer chosen answer as have a shorter one
    #[arg(long)]
    balance_length: bool,
    /// Share of the rows that may be refused
    #[arg(long = "max-refused", default_value_t = 0.05)]
    max_refused: f64,
    /// The day that templates take for today, as in 2026-01-31
    #[arg(long, default_value = "2026-01-01", value_parser = day)]
    date: Time,
    /// Threads; all processors by default. The output does not depend on it
    #[arg(long)]
    threads: Option<usize>,
    /// Show the first N rows that can be used, with what is trained in colour or in ⟦⟧, and those before them that cannot; write nothing
    #[arg(long, value_name = "N")]
    preview: Option<usize>,
    /// Print the report as JSON instead of the table
    #[arg(short = 'o', long = "output", value_parser = ["table", "json"], default_value = "table")]
    output: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Dialogues,
    Preferences,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TurnsArg {
    All,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TooLongArg {
    Drop,
    Cut,
    Fail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MarginArg {
    Given,
    Scores,
    None,
}

/// A day at noon.
fn day(text: &str) -> Result<Time, String> {
    let mut parts = text.splitn(3, '-').map(|part| part.parse::<u16>().ok());
    let mut part = || parts.next().flatten();
    match (part(), part(), part()) {
        (Some(year), Some(month @ 1..=12), Some(day @ 1..=31)) => {
            Ok(Time { year, month: month as u8, day: day as u8, hour: 12, minute: 0, second: 0 })
        }
        _ => Err("expected a day, as in 2026-01-31".into()),
    }
}

pub fn chat(args: &ChatArgs) -> Result<()> {
    let tokens = ChatTokens::load(&args.tokenizer, &args.content_tokens)?;
    let dialogues = Dialogues::load(&tokens, args.template.as_deref(), args.date)?;
    let is_preference = match args.kind {
        Some(kind) => kind == Kind::Preferences,
        None => Rows::are_preferences(&args.rows)?,
    };
    let how = How {
        is_preference,
        margins: match args.margin {
            MarginArg::Given => Margins::Given,
            MarginArg::Scores => Margins::Scores,
            MarginArg::None => Margins::None,
        },
        turns: match args.turns {
            TurnsArg::All => Turns::All,
            TurnsArg::Last => Turns::Last,
        },
        max_tokens: args.max_tokens,
        too_long: match args.too_long {
            TooLongArg::Drop => TooLong::Drop,
            TooLongArg::Cut => TooLong::Cut,
            TooLongArg::Fail => TooLong::Fail,
        },
        held_out: args.held_out,
        seed: args.seed,
    };
    let maker = Maker::new(tokens, dialogues, how)?;
    if let Some(num) = args.preview {
        let is_coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        return print(&preview::preview(&mut Rows::open(&args.rows)?, &maker, num, is_coloured)?);
    }
    let Some(to) = &args.to else { bail!("name a folder with --to, or look at rows with --preview N") };
    let options = Options {
        rows: args.rows.clone(),
        to: std::path::absolute(to).context("find the folder that this runs in")?,
        tokenizer: args.tokenizer.display().to_string(),
        max_refused_share: args.max_refused,
        balance_length: args.balance_length,
        num_threads: args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())),
    };
    let (progress, start) = (Progress::new()?, Instant::now());
    let report = run::run(&options, &maker, &progress)?;
    progress.end();
    progress.bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    progress.line(&format!(
        "{} rows in {seconds:.1} s: {:.0} rows/s",
        grouped(report.rows),
        report.rows as f64 / seconds.max(1e-6)
    ));
    if args.output == "json" {
        return print(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    print(&report.table())?;
    let out = to.display();
    print(&format!("\ntoken files: {out}/train   report: {out}/report.json   refused rows: {out}/refused.jsonl\n"))
}
