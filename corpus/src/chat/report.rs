//! What became of all rows: a table for people, JSON for programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chat::balance::Lengths;
use crate::chat::refusal::Reason;
use crate::chat::write::Written;
use crate::report::{align, grouped, percent};

/// By whom a folder was made.
pub const MADE_BY: &str = "toroid data chat";

/// Pairs before and behind balancing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    pub before: Lengths,
    pub after: Lengths,
    /// Whether pairs were left out for it.
    pub is_asked_for: bool,
}

/// What rendered and encoded the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Means {
    pub tokenizer: String,
    /// blake3 of its file; empty for bytes.
    pub tokenizer_digest: String,
    pub vocabulary: u32,
    pub template: String,
    pub template_digest: String,
    /// `generation`: the template's own marks; `difference`: what an answer adds to what is before it.
    pub trained_by: String,
    pub end_of_turn: u32,
    pub end_of_turn_text: String,
    pub max_tokens: u64,
    pub too_long: String,
}

/// Nothing in it depends on how the command was run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub made_by: String,
    /// `dialogues` or `preferences`.
    pub kind: String,
    pub rows: u64,
    /// Rows in the token files.
    pub used: u64,
    pub refused: BTreeMap<Reason, u64>,
    /// Pairs that balancing left out.
    pub unbalanced: u64,
    /// Rows whose prompts lost their fronts.
    pub cut_prompts: u64,
    /// Messages behind the last answer of a dialogue, which are left out.
    pub cut_messages: u64,
    /// Rows in which somebody wrote a token that only the template may write; it is text there.
    pub injected: u64,
    /// By the name of their folder: `train`, `held-out`.
    pub files: BTreeMap<String, Written>,
    /// Documents with so many tokens at most.
    pub lengths: BTreeMap<u64, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    pub means: Means,
    pub notes: Vec<String>,
}

impl Report {
    pub fn num_refused(&self) -> u64 {
        self.refused.values().sum()
    }

    pub fn table(&self) -> String {
        let mut rows = vec![cells(["", "", "rows", "share"])];
        let mut row = |name: &str, what: &str, num: u64| {
            rows.push(cells([name, what, &grouped(num), &percent(num, self.rows)]));
        };
        row("read", "", self.rows);
        for (reason, num) in &self.refused {
            row("refused", &reason.to_string(), *num);
        }
        if self.unbalanced > 0 {
            row("left out", "to balance lengths", self.unbalanced);
        }
        row("used", &self.kind, self.used);
        for (what, num) in
            [("prompt cut in front", self.cut_prompts), ("special tokens in contents, as text", self.injected)]
        {
            if num > 0 {
                row("  of these", what, num);
            }
        }
        let mut text = align(&rows);
        let mut files = vec![cells(["", "file", "documents", "tokens", "trained", "longest"])];
        for (name, file) in &self.files {
            let [documents, tokens, longest] = [file.documents, file.tokens, file.longest].map(grouped);
            let trained = percent(file.trained_tokens, file.tokens);
            files.push(cells([name, &file.file, &documents, &tokens, &trained, &longest]));
        }
        text.push('\n');
        text.push_str(&align(&files));
        let Means { tokenizer, vocabulary, template, trained_by, end_of_turn, end_of_turn_text, .. } = &self.means;
        text.push_str(&format!(
            "\ntokenizer {tokenizer}, vocabulary {}; template: {template}\n",
            grouped(u64::from(*vocabulary))
        ));
        text.push_str(&format!(
            "trained by {trained_by}; a turn ends with token {end_of_turn} ({end_of_turn_text:?})\n"
        ));
        if self.cut_messages > 0 {
            text.push_str(&format!("{} messages behind the last answers were left out\n", grouped(self.cut_messages)));
        }
        if let Some(balance) = self.balance {
            let right = |lengths: Lengths| format!("{:.1}%", lengths.accuracy_of_longer() * 100.0);
            let (before, after) = (right(balance.before), right(balance.after));
            text.push_str(&match balance.is_asked_for {
                true => format!(
                    "the longer answer is the chosen one in {before} of pairs before balancing, in {after} now\n"
                ),
                false => format!(
                    "the longer answer is the chosen one in {before} of pairs; --balance-length makes it half\n"
                ),
            });
        }
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    }
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
