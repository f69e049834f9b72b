//! Lines of files, in their order, in batches.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::read::files::{self, Listed};
use crate::read::input;
use crate::read::stream::{Broken, Line, Stream};

/// A longer line is refused.
pub const MAX_ROW_BYTES: u64 = 16 << 20;
/// Of a batch, which is in memory.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_ROWS: usize = 8192;
/// Lines that are looked at to find out of which kind rows are.
const MAX_PROBED: usize = 10_000;
/// Endings of files that are taken from folders.
const ENDINGS: [&str; 2] = [".jsonl", ".ndjson"];

/// Where a line is, and its bytes.
#[derive(Debug)]
pub struct RowLine {
    /// The file, by its number in the list.
    pub file: usize,
    /// The first is 1.
    pub number: u64,
    /// Of a line that is too long, none.
    pub bytes: Vec<u8>,
    pub num_bytes: u64,
}

impl RowLine {
    pub fn is_too_long(&self) -> bool {
        self.num_bytes > MAX_ROW_BYTES && self.bytes.is_empty()
    }
}

/// Files of rows, read one after the other.
pub struct Rows {
    files: Vec<Listed>,
    next_file: usize,
    open: Option<(Stream, u64)>,
}

impl Rows {
    /// Files as they are named; of folders, those with rows, compressed or not.
    pub fn open(paths: &[PathBuf]) -> Result<Rows> {
        let endings: Vec<String> =
            ENDINGS.iter().flat_map(|e| ["", ".gz", ".zst", ".zstd"].map(|packed| format!("{e}{packed}"))).collect();
        let mut found = Vec::new();
        for path in paths {
            let below = files::list(path, if path.is_file() { &[] } else { &endings })?.files;
            found.extend(below.into_iter().map(|file| Listed { relative: name_of(path, &file), ..file }));
        }
        Ok(Rows { files: found, next_file: 0, open: None })
    }

    pub fn name(&self, file: usize) -> &str {
        &self.files[file].relative
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What is next; an empty line is none. A file that is cut or changes is an error: nobody knows which rows it has not.
    fn next(&mut self) -> Result<Option<RowLine>> {
        loop {
            let Some((stream, number)) = &mut self.open else {
                let Some(file) = self.files.get(self.next_file) else { return Ok(None) };
                files::check_unchanged(file)?;
                self.open = Some((Stream::open(file, 0, MAX_ROW_BYTES)?, 0));
                self.next_file += 1;
                continue;
            };
            let file = self.next_file - 1;
            let path = &self.files[file].path;
            let mut bytes = Vec::new();
            let before = stream.position;
            let line = stream.line(path, &mut bytes, MAX_ROW_BYTES)?.map_err(|Broken(what)| {
                Error::Config(format!("{}: {what} after {number} lines; mend the file or leave it out", path.display()))
            })?;
            *number += 1;
            let (number, num_bytes) = (*number, stream.position - before);
            match line {
                Line::End => self.open = None,
                Line::Whole if bytes.iter().all(u8::is_ascii_whitespace) => {}
                Line::Whole => {
                    if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                        bytes.drain(..3);
                    }
                    return Ok(Some(RowLine { file, number, bytes, num_bytes }));
                }
                Line::TooLong(num_bytes) => {
                    return Ok(Some(RowLine { file, number, bytes: Vec::new(), num_bytes }));
                }
            }
        }
    }

    /// Some lines; none at the end.
    pub fn batch(&mut self) -> Result<Vec<RowLine>> {
        let (mut batch, mut num_bytes) = (Vec::new(), 0);
        while num_bytes < BATCH_BYTES && batch.len() < BATCH_ROWS {
            let Some(line) = self.next()? else { break };
            num_bytes += line.bytes.len();
            batch.push(line);
        }
        Ok(batch)
    }

    /// Whether the rows are preferences: whether the first that can be read is one.
    pub fn are_preferences(paths: &[PathBuf]) -> Result<bool> {
        let mut rows = Rows::open(paths)?;
        for _ in 0..MAX_PROBED {
            let Some(line) = rows.next()? else { break };
            if let Some(is_one) = super::row::is_preference(&line.bytes) {
                return Ok(is_one);
            }
        }
        Ok(false)
    }
}

/// As the user named it, and what is below a folder behind it.
fn name_of(path: &Path, file: &Listed) -> String {
    match input::url(path) {
        Some(_) => file.path.display().to_string(),
        None if path.is_dir() => path.join(&file.relative).display().to_string(),
        None => path.display().to_string(),
    }
}
