//! The ledger: why each document or part of one is not in the output.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::doc::Doc;
use crate::durable::Durable;
use crate::error::{At, Error, Result};

/// Characters of a removed text that a row shows.
const EXCERPT_CHARS: usize = 160;

/// One removal. Positions are bytes of the document's text as the stage found it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// As in `03-minhash`.
    pub stage: String,
    pub id: String,
    /// The id that the document came with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    pub rule: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The document that stays for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    pub start: u64,
    pub end: u64,
    /// The whole document went.
    pub whole: bool,
    /// What went, and what was put in its place.
    pub tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub added: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excerpt: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How many tokens a text is: bytes, as the trainer has them.
pub fn tokens(text: &str) -> u64 {
    text.len() as u64
}

/// What a stage did to a piece, or to all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub docs_in: u64,
    pub tokens_in: u64,
    pub docs_out: u64,
    pub tokens_out: u64,
    /// Rows, documents and tokens removed by rule, and tokens put in.
    pub rules: BTreeMap<String, RuleCounts>,
    /// Comparisons and the like that a stage tells of.
    pub notes: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounts {
    pub rows: u64,
    pub docs: u64,
    pub tokens: u64,
    pub added: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.docs_in += other.docs_in;
        self.tokens_in += other.tokens_in;
        self.docs_out += other.docs_out;
        self.tokens_out += other.tokens_out;
        for (rule, more) in &other.rules {
            let sum = self.rules.entry(rule.clone()).or_default();
            sum.rows += more.rows;
            sum.docs += more.docs;
            sum.tokens += more.tokens;
            sum.added += more.added;
        }
        for (note, more) in &other.notes {
            *self.notes.entry(note.clone()).or_default() += more;
        }
    }

    fn row(&mut self, row: &Row) {
        let sum = self.rules.entry(row.rule.clone()).or_default();
        sum.rows += 1;
        sum.docs += u64::from(row.whole);
        sum.tokens += row.tokens;
        sum.added += row.added;
    }

    pub fn removed(&self) -> RuleCounts {
        let mut all = RuleCounts::default();
        for rule in self.rules.values() {
            all.rows += rule.rows;
            all.docs += rule.docs;
            all.tokens += rule.tokens;
            all.added += rule.added;
        }
        all
    }

    /// D-3: documents and tokens in, less those of the rows, are those out.
    pub fn check(&self, what: &str) -> Result<()> {
        let removed = self.removed();
        let fails = |unit: &str, entered: u64, removed: u64, added: u64, left: u64| {
            Error::Ledger(format!("{what}: {entered} {unit} in, {removed} removed, {added} put in, {left} out"))
        };
        if self.docs_in.checked_sub(removed.docs) != Some(self.docs_out) {
            return Err(fails("documents", self.docs_in, removed.docs, 0, self.docs_out));
        }
        if (self.tokens_in + removed.added).checked_sub(removed.tokens) != Some(self.tokens_out) {
            return Err(fails("tokens", self.tokens_in, removed.tokens, removed.added, self.tokens_out));
        }
        Ok(())
    }
}

/// Rows of one stage about one piece.
pub struct Rows {
    stage: String,
    file: Durable,
    pub counts: Counts,
}

impl Rows {
    pub fn create(stage: &str, path: &Path) -> Result<Rows> {
        Ok(Rows { stage: stage.to_owned(), file: Durable::create(path)?, counts: Counts::default() })
    }

    /// A row about the whole document. The text is told unless it must not be.
    pub fn whole(&mut self, doc: &Doc, row: Row) -> Result<()> {
        let tokens = tokens(&doc.text);
        self.put(
            doc,
            Row { start: 0, end: doc.text.len() as u64, whole: true, tokens, excerpt: excerpt(&doc.text), ..row },
        )
    }

    /// A row about a part of it.
    pub fn part(&mut self, doc: &Doc, text: &str, span: std::ops::Range<usize>, row: Row) -> Result<()> {
        let part = &text[span.clone()];
        let (start, end) = (span.start as u64, span.end as u64);
        self.put(doc, Row { start, end, tokens: tokens(part), excerpt: excerpt(part), ..row })
    }

    pub fn put(&mut self, doc: &Doc, row: Row) -> Result<()> {
        let row = Row { stage: self.stage.clone(), id: doc.id.clone(), key: doc.key.clone(), ..row };
        self.counts.row(&row);
        let mut line = serde_json::to_vec(&row).map_err(|error| Error::Ledger(error.to_string()))?;
        line.push(b'\n');
        self.file.put(&line)
    }

    pub fn finish(self) -> Result<Counts> {
        self.file.finish()?;
        Ok(self.counts)
    }
}

pub fn excerpt(text: &str) -> String {
    let mut chars = text.chars();
    let mut found: String = chars.by_ref().take(EXCERPT_CHARS).collect();
    if chars.next().is_some() {
        found.push('…');
    }
    found
}

/// Calls `take` with the rows of a file until it says that it has enough.
pub fn each_row(path: &Path, mut take: impl FnMut(Row) -> bool) -> Result<()> {
    let file = std::fs::File::open(path).at("open", path)?;
    let rows = serde_json::Deserializer::from_reader(std::io::BufReader::new(file)).into_iter::<Row>();
    for row in rows {
        let row = row.map_err(|error| Error::damaged(path, error.to_string()))?;
        if !take(row) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_does_not_add_up_is_a_fault() {
        let mut counts = Counts { docs_in: 3, tokens_in: 30, docs_out: 2, tokens_out: 22, ..Counts::default() };
        assert!(counts.check("x").is_err());
        counts.row(&Row { rule: "a".into(), whole: true, tokens: 10, ..Row::default() });
        assert!(counts.check("x").expect_err("two tokens too many").to_string().contains("30 tokens in, 10 removed"));
        counts.row(&Row { rule: "b".into(), tokens: 3, added: 5, ..Row::default() });
        counts.check("x").expect("it adds up");
    }
}
