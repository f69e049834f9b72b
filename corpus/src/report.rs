//! What came of a run: a table, JSON, and a page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Pipeline, Stage};
use crate::durable;
use crate::error::{Error, Result};
use crate::ledger::{self, Counts, Row};
use crate::read::Tally;
use crate::stage::write_json;
use crate::write::{Portion, Shard, Written};

/// Samples of each rule, from so many rows of a stage.
const MAX_SAMPLES: usize = 3;
const MAX_ROWS: usize = 5_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    pub name: String,
    pub method: String,
    pub counts: Counts,
    pub samples: Vec<Row>,
}

/// By whom an output was made.
const MADE_BY: &str = "toroid data run";

/// Whether it is a report of a run. Those of earlier versions do not say by whom they were made.
pub fn is_ours(report: &serde_json::Value) -> bool {
    match report.get("made_by") {
        Some(made_by) => made_by == MADE_BY,
        None => Report::deserialize(report).is_ok(),
    }
}

/// Nothing in it depends on how the pipeline was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    #[serde(default)]
    pub made_by: String,
    pub documents_read: u64,
    pub tokens_read: u64,
    pub bad_records: u64,
    /// Records of archives of other types; of repositories, files that are passed over.
    pub other_records: u64,
    /// Links and devices in folders.
    pub files_left_out: u64,
    pub stages: Vec<StageReport>,
    pub sources: BTreeMap<String, Portion>,
    /// Different ones; sampling may write some more than once.
    pub documents_out: u64,
    pub tokens_out: u64,
    pub files: Vec<Shard>,
    /// The S-curve of each MinHash stage: similarity, and how many pairs are compared.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Report {
    pub fn new(pipeline: &Pipeline, tally: &Tally, files_left_out: u64) -> Report {
        let curve = |(n, stage): (usize, &Stage)| match stage {
            Stage::Minhash(options) => {
                let points = (0..=50).map(|k| f64::from(k) / 50.0).map(|s| (s, options.bands().meets(s)));
                Some((crate::run::stage_name(n, stage), points.collect()))
            }
            _ => None,
        };
        Report {
            made_by: MADE_BY.to_owned(),
            documents_read: tally.num_docs,
            tokens_read: tally.bytes,
            bad_records: tally.num_bad,
            other_records: tally.num_other,
            files_left_out,
            stages: Vec::new(),
            sources: BTreeMap::new(),
            documents_out: tally.num_docs,
            tokens_out: tally.bytes,
            files: Vec::new(),
            curves: pipeline.stages.iter().enumerate().filter_map(curve).collect(),
        }
    }

    /// Adds what was written, and checks that all adds up (D-3).
    pub fn finish(&mut self, pipeline: &Pipeline, mix: &str, written: &Written) -> Result<()> {
        let temperature = pipeline.output.temperature;
        let method = temperature.map_or("weights of sources".into(), |t| format!("temperature {t}"));
        if let Some(counts) = &written.counts {
            self.stages.push(StageReport { name: mix.to_owned(), method, counts: counts.clone(), samples: Vec::new() });
        }
        let (mut docs, mut tokens) = (self.documents_read, self.tokens_read);
        for stage in &self.stages {
            stage.counts.check(&stage.name)?;
            if (stage.counts.docs_in, stage.counts.tokens_in) != (docs, tokens) {
                let found = (stage.counts.docs_in, stage.counts.tokens_in);
                return Err(Error::Ledger(format!(
                    "{}: {docs} documents, {tokens} tokens come in, it counts {found:?}",
                    stage.name
                )));
            }
            (docs, tokens) = (stage.counts.docs_out, stage.counts.tokens_out);
        }
        let found: u64 = written.shards.iter().map(|shard| shard.tokens).sum();
        if found != tokens {
            return Err(Error::Ledger(format!("{tokens} tokens are left, the files have {found}")));
        }
        (self.documents_out, self.tokens_out) = (docs, tokens);
        (self.sources, self.files) = (written.portions.clone(), written.shards.clone());
        Ok(())
    }

    /// Stage, method, what came in, what went.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ["stage", "method", "documents", "tokens", "removed", "tokens removed", "put in", "share"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for stage in &self.stages {
            let (counts, removed) = (&stage.counts, stage.counts.removed());
            rows.push(vec![
                stage.name.clone(),
                stage.method.clone(),
                grouped(counts.docs_in),
                grouped(counts.tokens_in),
                grouped(removed.docs),
                grouped(removed.tokens),
                grouped(removed.added),
                percent(removed.tokens, counts.tokens_in),
            ]);
        }
        let all = |of: fn(&ledger::RuleCounts) -> u64| self.stages.iter().map(|s| of(&s.counts.removed())).sum::<u64>();
        let (docs, tokens, added) = (all(|r| r.docs), all(|r| r.tokens), all(|r| r.added));
        let (num_in, tokens_in) = (grouped(self.documents_read), grouped(self.tokens_read));
        rows.push(vec![
            "all".into(),
            format!("{} bad records", grouped(self.bad_records)),
            num_in,
            tokens_in,
            grouped(docs),
            grouped(tokens),
            grouped(added),
            percent(tokens, self.tokens_read),
        ]);
        rows.push(vec!["left".into(), "".into(), grouped(self.documents_out), grouped(self.tokens_out)]);
        align(&rows)
    }
}

/// Columns; the first two to the left.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let num = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..num).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(n, (cell, width))| if n < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Thousands set apart by commas.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

pub(crate) fn percent(part: u64, of: u64) -> String {
    format!("{:.2}%", if of == 0 { 0.0 } else { part as f64 / of as f64 * 100.0 })
}

/// The first rows of each rule.
pub fn samples(path: &Path) -> Result<Vec<Row>> {
    let (mut found, mut num_by_rule, mut num) = (Vec::new(), BTreeMap::<String, usize>::new(), 0);
    ledger::each_row(path, |row| {
        let of_rule = num_by_rule.entry(row.rule.clone()).or_default();
        *of_rule += 1;
        num += 1;
        if *of_rule <= MAX_SAMPLES {
            found.push(row);
        }
        num < MAX_ROWS
    })?;
    Ok(found)
}

pub fn save(report: &Report, out: &Path) -> Result<()> {
    durable::write(&out.join("report.html"), page(report).as_bytes())?;
    write_json(&out.join("report.json"), report)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%}td,th{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}.bar{height:.7em;background:#3b6ea5}\
.gone{background:#c9622c}code{background:#f4f4f4;padding:.1em .3em;white-space:pre-wrap;word-break:break-word}\
h2{margin-top:2em}small{color:#666}";

/// One file that needs no other: nothing is loaded from anywhere.
fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><title>Corpus report</title><style>{STYLE}</style><h1>Corpus report</h1>\
         <p>{} documents, {} tokens (bytes) were read; {} documents, {} tokens are left. {} records were bad: \
         <code>ledger/bad.jsonl</code>.</p>",
        grouped(report.documents_read),
        grouped(report.tokens_read),
        grouped(report.documents_out),
        grouped(report.tokens_out),
        grouped(report.bad_records),
    );
    page.push_str("<h2>Stages</h2><table><tr><th>stage<th>method<th>documents in<th>tokens in<th>documents removed<th>tokens removed<th>put in<th>share");
    for stage in &report.stages {
        let (counts, removed) = (&stage.counts, stage.counts.removed());
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            escape(&stage.name),
            escape(&stage.method),
            grouped(counts.docs_in),
            grouped(counts.tokens_in),
            grouped(removed.docs),
            grouped(removed.tokens),
            grouped(removed.added),
            percent(removed.tokens, counts.tokens_in)
        );
    }
    page.push_str("</table><h2>What is left after each stage</h2><table>");
    let after = |stage: &StageReport| (stage.name.clone(), stage.counts.docs_out, stage.counts.tokens_out);
    let steps = [("read".to_owned(), report.documents_read, report.tokens_read)]
        .into_iter()
        .chain(report.stages.iter().map(after));
    for (name, docs, tokens) in steps {
        let width = tokens as f64 / report.tokens_read.max(1) as f64 * 100.0;
        let _ = write!(
            page,
            "<tr><td>{}<td style=\"width:60%\"><div class=bar style=\"width:{:.2}%\"></div><td>{}<td>{}",
            escape(&name),
            width.min(100.0),
            grouped(docs),
            grouped(tokens)
        );
    }
    page.push_str("</table>");
    for (name, points) in &report.curves {
        let line: Vec<String> =
            points.iter().map(|(s, p)| format!("{:.1},{:.1}", s * 400.0, 200.0 - p * 200.0)).collect();
        let _ = write!(
            page,
            "<h2>{}: which pairs are compared</h2><svg width=440 height=230 viewBox=\"-20 -5 440 230\">\
             <path d=\"M0 0V200H400\" fill=none stroke=#999 /><polyline points=\"{}\" fill=none stroke=#3b6ea5 stroke-width=2 />\
             <text x=200 y=218 font-size=12 text-anchor=middle>similarity from 0 to 1</text></svg>",
            escape(name),
            line.join(" ")
        );
    }
    for stage in &report.stages {
        rules(&mut page, stage);
    }
    page.push_str("<h2>Sources in the output</h2><table><tr><th>source<th><th>documents<th>tokens<th>epochs");
    for (name, portion) in &report.sources {
        let (docs, tokens) = (grouped(portion.docs), grouped(portion.tokens));
        let _ = write!(page, "<tr><td>{}<td><td>{docs}<td>{tokens}<td>{:.3}", escape(name), portion.epochs);
    }
    page.push_str("</table>\n");
    page
}

/// The rules of a stage, with samples of what they removed.
fn rules(page: &mut String, stage: &StageReport) {
    if stage.counts.rules.is_empty() {
        return;
    }
    let most = stage.counts.rules.values().map(|rule| rule.tokens).max().unwrap_or(0).max(1);
    let _ = write!(page, "<h2>{}</h2><table><tr><th>rule<th><th>rows<th>documents<th>tokens", escape(&stage.name));
    for (rule, counts) in &stage.counts.rules {
        let _ = write!(
            page,
            "<tr><td>{}<td style=\"width:45%\"><div class=\"bar gone\" style=\"width:{:.2}%\"></div><td>{}<td>{}<td>{}",
            escape(rule),
            counts.tokens as f64 / most as f64 * 100.0,
            grouped(counts.rows),
            grouped(counts.docs),
            grouped(counts.tokens)
        );
    }
    page.push_str("</table>");
    for row in &stage.samples {
        let _ = write!(page, "<p><b>{}</b> {}", escape(&row.rule), escape(&row.id));
        if let Some(score) = row.score {
            let _ = write!(page, ", score {score:.3}");
        }
        if let Some(kept) = &row.kept {
            let _ = write!(page, ", stays: {}", escape(kept));
        }
        let _ = write!(page, " <small>bytes {} to {}</small>", row.start, row.end);
        if !row.excerpt.is_empty() {
            let _ = write!(page, "<br><code>{}</code>", escape(&row.excerpt));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stand_in_columns() {
        let rows = [vec!["a".into(), "bc".into(), "1".into()], vec!["abc".into(), "d".into(), "1,000".into()]];
        assert_eq!(align(&rows), "a    bc      1\nabc  d   1,000\n");
        assert_eq!((grouped(0), grouped(1234567)), ("0".into(), "1,234,567".into()));
        assert_eq!(percent(1, 0), "0.00%");
        assert_eq!(escape("<a b=\"&\">"), "&lt;a b=&quot;&amp;&quot;&gt;");
    }
}
