//! What became of a document, from the ledger of an output.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{At, Error, Result};
use crate::ledger::Row;
use crate::read::BadRecord;
use crate::write::Kept;

/// Rows that are shown of one document.
const MAX_ROWS: usize = 1_000;
const MAX_LINE_BYTES: u64 = 4 << 20;

/// What is known of documents with an id, theirs or ours.
#[derive(Debug, Default)]
pub struct Explained {
    pub bad: Vec<BadRecord>,
    pub rows: Vec<Row>,
    pub kept: Vec<Kept>,
    /// There are more rows than are shown.
    pub has_more: bool,
}

/// The lines of a file that have the id somewhere, as what they are.
fn lines_with<T: DeserializeOwned>(path: &Path, id: &str, mut take: impl FnMut(T) -> bool) -> Result<()> {
    let mut file = BufReader::new(File::open(path).at("open", path)?);
    // As it stands in JSON.
    let quoted = serde_json::to_string(id).map_err(|error| Error::Ledger(error.to_string()))?;
    let finder = memchr::memmem::Finder::new(quoted.trim_matches('"'));
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut file).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).at("read", path)? == 0 {
            return Ok(());
        }
        if finder.find(&line).is_some() {
            let value = serde_json::from_slice(&line).map_err(|error| Error::damaged(path, error.to_string()))?;
            if !take(value) {
                return Ok(());
            }
        }
    }
}

/// Looks through the ledger of an output for an id.
pub fn explain(out: &Path, id: &str) -> Result<Explained> {
    let folder = out.join("ledger");
    let mut stages: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&folder).at("list", &folder)? {
        let path = entry.at("list", &folder)?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
            stages.push(path);
        }
    }
    stages.sort();
    let mut found = Explained::default();
    for path in stages {
        lines_with::<Row>(&path, id, |row| {
            if row.id == id || row.key == id {
                if found.rows.len() < MAX_ROWS { found.rows.push(row) } else { found.has_more = true }
            }
            !found.has_more
        })?;
    }
    // Documents are kept under our ids alone; the rows above say which has this key.
    let ids: Vec<String> = found.rows.iter().map(|row| row.id.clone()).chain([id.to_owned()]).collect();
    lines_with::<Kept>(&folder.join("kept.jsonl"), id, |kept| {
        if ids.contains(&kept.id) {
            found.kept.push(kept);
        }
        found.kept.len() < MAX_ROWS
    })?;
    lines_with::<BadRecord>(
        &folder.join("bad.jsonl"),
        id.rsplit_once('#').map_or(id, |(file, _)| file).rsplit(':').next().unwrap_or(id),
        |bad| {
            if format!("{}:{}#{}", bad.source, bad.file, bad.position) == id
                || format!("{}:{}", bad.source, bad.file) == id
            {
                found.bad.push(bad);
            }
            found.bad.len() < MAX_ROWS
        },
    )?;
    Ok(found)
}

impl Explained {
    pub fn is_empty(&self) -> bool {
        self.bad.is_empty() && self.rows.is_empty() && self.kept.is_empty()
    }

    /// In words, a line for each thing that happened.
    pub fn lines(&self) -> Vec<String> {
        let bad = self
            .bad
            .iter()
            .map(|bad| format!("{}:{} at byte {}: no document: {}", bad.source, bad.file, bad.position, bad.reason));
        let rows = self.rows.iter().map(|row| {
            let what = if row.whole {
                "removed".to_owned()
            } else if row.tokens > 0 && row.added > 0 {
                format!("bytes {} to {} replaced", row.start, row.end)
            } else if row.tokens > 0 {
                format!("bytes {} to {} removed", row.start, row.end)
            } else {
                "written more than once".to_owned()
            };
            let mut line = format!("{}: {}: {what} by the rule {}", row.id, row.stage, row.rule);
            line.extend(row.score.map(|score| format!(", score {score:.4}")));
            line.extend(row.kept.iter().map(|kept| format!("; {kept} stays for it")));
            if !row.excerpt.is_empty() {
                line.push_str(&format!("\n    {:?}", row.excerpt));
            }
            line
        });
        let kept = self.kept.iter().map(|kept| {
            let at = match kept.file.rsplit_once('.') {
                Some((_, "txt")) => "byte",
                Some((_, "tokens")) => "token",
                _ => "line",
            };
            format!("{}: in {} at {at} {}, {} bytes", kept.id, kept.file, kept.position, kept.bytes)
        });
        let more = self.has_more.then(|| format!("there are more than {MAX_ROWS} rows; the files in ledger/ have all"));
        bad.chain(rows).chain(kept).chain(more).collect()
    }
}
