//! Rows as a model will see them: the text of their tokens, with what is trained marked.

use std::fmt::Write as _;

use crate::chat::make::{Made, Maker};
use crate::chat::rows::Rows;
use crate::chat::tokenizer::Example;
use crate::error::Result;

/// Rows that are looked at for so many that can be used.
const MAX_ROWS: usize = 10_000;
/// Around what is trained: for terminals, and for all else.
const COLOUR: [&str; 2] = ["\u{1b}[32m", "\u{1b}[0m"];
const BRACKETS: [&str; 2] = ["⟦", "⟧"];

/// The first `num` rows that can be used, and those before them that cannot, with their reasons.
pub fn preview(rows: &mut Rows, maker: &Maker, num: usize, is_coloured: bool) -> Result<String> {
    let (mut text, mut num_shown, mut num_rows) = (String::new(), 0, 0);
    'rows: loop {
        let batch = rows.batch()?;
        if batch.is_empty() {
            break;
        }
        for line in &batch {
            if num_shown == num || num_rows == MAX_ROWS {
                break 'rows;
            }
            num_rows += 1;
            let place = format!("{}: line {}", rows.name(line.file), line.number);
            match maker.make(&line.bytes) {
                Ok(made) => {
                    num_shown += 1;
                    show(&made, &place, maker, is_coloured, &mut text)?;
                }
                Err(refusal) => {
                    let _ = writeln!(text, "--- {place}: refused, {}: {}\n", refusal.reason, refusal.detail);
                }
            }
        }
    }
    Ok(text)
}

fn show(made: &Made, place: &str, maker: &Maker, is_coloured: bool, text: &mut String) -> Result<()> {
    let names = if maker.how.is_preference { ["chosen", "rejected"] } else { ["dialogue", ""] };
    for (document, name) in made.documents.iter().zip(names) {
        let (num, trained) = (document.tokens.len(), document.num_trained());
        let held_out = if made.is_held_out { ", held out" } else { "" };
        let margin = if maker.how.is_preference { format!(", margin {}", made.margin) } else { String::new() };
        let _ = writeln!(text, "--- {place}: {name}, {num} tokens, {trained} of them trained{margin}{held_out}");
        let _ = writeln!(text, "{}\n", marked(document, maker, is_coloured)?);
    }
    Ok(())
}

/// The text of tokens with marks around what is trained.
pub fn marked(document: &Example, maker: &Maker, is_coloured: bool) -> Result<String> {
    let [open, close] = if is_coloured { COLOUR } else { BRACKETS };
    let (mut text, mut at) = (String::new(), 0);
    for run in document.trained.chunk_by(|a, b| a == b) {
        let part = visible(&maker.tokens.decode(&document.tokens[at..at + run.len()])?);
        at += run.len();
        if run[0] {
            text.extend([open, &part, close]);
        } else {
            text.push_str(&part);
        }
    }
    Ok(text)
}

/// Control characters as their pictures: what a dialogue says is not obeyed by the terminal.
fn visible(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(c),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}
