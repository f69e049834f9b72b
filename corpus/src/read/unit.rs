//! One task of reading: its part of a source, as pieces of documents.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::address;
use crate::config::{Format, Pipeline, Source};
use crate::doc::Doc;
use crate::durable::{self, Durable};
use crate::error::{At, Error, Result};
use crate::ledger::{excerpt, tokens};
use crate::piece::PieceWriter;
use crate::read::files::{self, Listed};
use crate::read::json::Fields;
use crate::read::stream::{self, Broken, Line, Stream};
use crate::read::warc::{self, Page};
use crate::read::{BadRecord, Tally};

/// A piece has so many documents at most.
const MAX_DOCS: u32 = 1 << 20;
/// Escapes make a line longer than its text.
const LINE_FACTOR: u64 = 4;
const LINE_ROOM_BYTES: u64 = 1 << 20;

/// Which part of which files a task reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub source: u16,
    pub files: Vec<Listed>,
    /// Records that begin there, of one plain file of lines; all of the files otherwise.
    pub range: Option<(u64, u64)>,
}

/// Cuts the sources into units of about `unit_bytes`.
pub fn plan(pipeline: &Pipeline, unit_bytes: u64) -> Result<(Vec<Unit>, u64)> {
    let (mut units, mut num_left_out) = (Vec::new(), 0);
    for (n, source) in pipeline.sources.iter().enumerate() {
        let listing = files::list(&source.path, &source.extensions)?;
        num_left_out += listing.num_left_out;
        let new = |files: Vec<Listed>, range| Unit { source: n as u16, files, range };
        let mut small: Vec<Listed> = Vec::new();
        let mut small_bytes = 0;
        for file in listing.files {
            let has_lines = matches!(files::format(&file.relative, source.format), Format::Jsonl | Format::Lines);
            let is_large = file.bytes > unit_bytes;
            if !small.is_empty() && (is_large || small_bytes + file.bytes > unit_bytes) {
                units.push(new(std::mem::take(&mut small), None));
                small_bytes = 0;
            }
            if is_large && has_lines && !stream::is_compressed(&file.path)? {
                let num = file.bytes.div_ceil(unit_bytes);
                let range = |k: u64| Some((k * unit_bytes, ((k + 1) * unit_bytes).min(file.bytes)));
                units.extend((0..num).map(|k| new(vec![file.clone()], range(k))));
            } else {
                small_bytes += file.bytes;
                small.push(file);
            }
        }
        if !small.is_empty() {
            units.push(new(small, None));
        }
    }
    Ok((units, num_left_out))
}

/// A piece that a unit has written, and where it went on behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The next record: a file of the unit, and a position in it.
    pub next_file: usize,
    pub next_position: u64,
    pub is_last: bool,
    pub tally: Tally,
}

/// Where the parts of a unit lie.
pub fn part_path(folder: &Path, unit: usize, part: usize, ending: &str) -> PathBuf {
    folder.join(format!("unit-{unit:06}-{part:06}.{ending}"))
}

pub fn read_part(path: &Path) -> Result<Option<Part>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.at("read", path)?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| Error::damaged(path, error.to_string()))
}

/// What reading needs besides the unit.
pub struct Reader<'a> {
    pub pipeline: &'a Pipeline,
    pub folder: &'a Path,
    /// Text of a piece.
    pub piece_bytes: u64,
    pub max_window_bytes: u64,
}

/// Ids of a piece's documents, for those who name them: where each begins, and all of them.
struct Ids {
    starts: Vec<u32>,
    text: Vec<u8>,
}

/// A part while it is written.
struct Writing {
    docs: PieceWriter,
    ids: Ids,
    bad: Durable,
    tally: Tally,
    num: usize,
}

impl Reader<'_> {
    /// Reads a unit from where it was left.
    pub fn run(&self, number: usize, unit: &Unit) -> Result<()> {
        let (mut num_parts, mut from) = (0, Part::default());
        while let Some(part) = read_part(&part_path(self.folder, number, num_parts, "json"))? {
            if part.is_last {
                return Ok(());
            }
            (num_parts, from) = (num_parts + 1, part);
        }
        let source = &self.pipeline.sources[usize::from(unit.source)];
        let mut writing = self.begin(number, num_parts)?;
        for (n, file) in unit.files.iter().enumerate().skip(from.next_file) {
            let start = if n == from.next_file { from.next_position } else { 0 };
            let mut records = Records::open(self, source, file, unit.range, start)?;
            loop {
                if writing.tally.bytes >= self.piece_bytes || writing.ids.starts.len() as u32 == MAX_DOCS {
                    // A file that is done is not opened again.
                    let (next_file, next_position) =
                        if records.is_done { (n + 1, 0) } else { (n, records.stream.position) };
                    let next = Part { next_file, next_position, ..Part::default() };
                    self.end(number, writing, next)?;
                    num_parts += 1;
                    writing = self.begin(number, num_parts)?;
                }
                match records.next()? {
                    Record::Doc { position, doc } => writing.put(unit.source, source, file, position, *doc)?,
                    Record::Bad { position, reason, excerpt } => {
                        let (source, file) = (source.name.clone(), file.relative.clone());
                        writing.put_bad(&BadRecord { source, file, position, reason, excerpt })?;
                    }
                    Record::Other => writing.tally.num_other += 1,
                    Record::End => break,
                }
            }
        }
        self.end(number, writing, Part { is_last: true, ..Part::default() })
    }

    fn begin(&self, unit: usize, num: usize) -> Result<Writing> {
        let path = |ending| part_path(self.folder, unit, num, ending);
        let ids = Ids { starts: Vec::new(), text: Vec::new() };
        let docs = PieceWriter::create(&path("docs"))?;
        Ok(Writing { docs, ids, bad: Durable::create(&path("bad"))?, tally: Tally::default(), num })
    }

    /// What says that the part is there is written last.
    fn end(&self, unit: usize, writing: Writing, part: Part) -> Result<()> {
        let path = |ending| part_path(self.folder, unit, writing.num, ending);
        let mut ids = Durable::create(&path("ids"))?;
        let count = writing.ids.starts.len() as u32;
        ids.put(&count.to_le_bytes())?;
        let ends = writing.ids.starts.iter().skip(1).copied().chain([writing.ids.text.len() as u32]);
        for (start, end) in writing.ids.starts.iter().zip(ends) {
            ids.put(&start.to_le_bytes())?;
            ids.put(&end.to_le_bytes())?;
        }
        ids.put(&writing.ids.text)?;
        ids.finish()?;
        writing.bad.finish()?;
        writing.docs.finish()?;
        let part = Part { tally: writing.tally, ..part };
        let text = serde_json::to_vec(&part).map_err(|error| Error::Ledger(error.to_string()))?;
        durable::write(&path("json"), &text)
    }
}

impl Writing {
    fn put(&mut self, number: u16, source: &Source, file: &Listed, position: u64, mut doc: Doc) -> Result<()> {
        doc.index = self.ids.starts.len() as u32;
        doc.source = number;
        let at = if position == u64::MAX { String::new() } else { format!("#{position}") };
        doc.id = format!("{}:{}{at}", source.name, file.relative);
        if doc.domain.is_empty() {
            doc.domain = address::host(&doc.url).unwrap_or_else(|| source.name.clone());
        }
        self.ids.starts.push(self.ids.text.len() as u32);
        self.ids.text.extend(doc.id.as_bytes());
        self.tally.num_docs += 1;
        self.tally.bytes += tokens(&doc.text);
        self.docs.put(&doc)
    }

    fn put_bad(&mut self, bad: &BadRecord) -> Result<()> {
        self.tally.num_bad += 1;
        let line = serde_json::to_string(bad).map_err(|error| Error::Ledger(error.to_string()))?;
        writeln!(self.bad, "{line}").at("write", Path::new("the list of bad records"))
    }
}

/// One record of a file.
enum Record {
    /// A position of `u64::MAX` is the whole file.
    Doc {
        position: u64,
        doc: Box<Doc>,
    },
    Bad {
        position: u64,
        reason: String,
        excerpt: String,
    },
    Other,
    End,
}

/// The records of a file from a position on.
struct Records<'a> {
    path: &'a Path,
    source: &'a Source,
    format: Format,
    language: &'static str,
    max_bytes: u64,
    /// Records that begin here or later belong to another unit.
    end: u64,
    fields: Fields,
    stream: Stream,
    buffer: Vec<u8>,
    is_done: bool,
}

impl<'a> Records<'a> {
    fn open(
        reader: &Reader<'_>,
        source: &'a Source,
        file: &'a Listed,
        range: Option<(u64, u64)>,
        from: u64,
    ) -> Result<Records<'a>> {
        let path = &file.path;
        let (start, end) = range.unwrap_or((0, u64::MAX));
        let is_compressed = stream::is_compressed(path)?;
        // Behind a part of this unit, or from the unit's first record; that of a later range begins behind the line end before it.
        let goes_on = from > start;
        let at = if goes_on { from } else { start.saturating_sub(1) };
        let mut stream = Stream::open(path, if is_compressed { 0 } else { at }, reader.max_window_bytes)?;
        let mut is_done = false;
        if is_compressed && goes_on {
            is_done = stream.skip(path, at)?.is_err();
        } else if !goes_on && start > 0 {
            is_done = stream.skip_line(path, end)?.is_err();
        }
        let format = files::format(&file.relative, source.format);
        let fields = Fields::new(&[&source.text, &source.id, &source.url, &source.domain]);
        let language = files::language(&file.relative);
        let max_bytes = reader.pipeline.read.max_document_bytes;
        Ok(Records { path, source, format, language, max_bytes, end, fields, stream, buffer: Vec::new(), is_done })
    }

    fn next(&mut self) -> Result<Record> {
        if self.is_done || self.stream.position >= self.end {
            return Ok(Record::End);
        }
        match self.format {
            Format::Text | Format::Auto => self.next_text(),
            Format::Lines => self.next_line(self.max_bytes, Self::of_line),
            Format::Jsonl => self.next_line(self.max_bytes * LINE_FACTOR + LINE_ROOM_BYTES, Self::of_json),
            Format::Warc => self.next_page(),
        }
    }

    fn bad(&self, position: u64, reason: impl Into<String>) -> Record {
        let start = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(1 << 10)]).into_owned();
        Record::Bad { position, reason: reason.into(), excerpt: excerpt(&start) }
    }

    /// Nothing can be read behind it.
    fn broken(&mut self, position: u64, Broken(what): Broken) -> Record {
        self.is_done = true;
        self.bad(position, what)
    }

    fn next_text(&mut self) -> Result<Record> {
        self.is_done = true;
        if let Err(broken) = self.stream.exact(self.path, &mut self.buffer, self.max_bytes + 1)? {
            return Ok(self.broken(0, broken));
        }
        if self.buffer.len() as u64 > self.max_bytes {
            return Ok(self.bad(0, format!("longer than read.max_document_bytes = {}", self.max_bytes)));
        }
        Ok(self.of_bytes(0, u64::MAX))
    }

    fn of_bytes(&mut self, start: u64, position: u64) -> Record {
        let bytes = self.buffer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.buffer);
        match std::str::from_utf8(bytes) {
            Ok("") => self.bad(start, "no text"),
            Ok(text) => {
                let doc = Doc { text: text.to_owned(), language: self.language.to_owned(), ..Doc::default() };
                Record::Doc { position, doc: Box::new(doc) }
            }
            Err(error) => self.bad(start, format!("invalid UTF-8 at byte {}", error.valid_up_to())),
        }
    }

    fn next_line(&mut self, max_bytes: u64, make: fn(&mut Self, u64) -> Record) -> Result<Record> {
        loop {
            let position = self.stream.position;
            if position >= self.end {
                return Ok(Record::End);
            }
            match self.stream.line(self.path, &mut self.buffer, max_bytes)? {
                Err(broken) => return Ok(self.broken(position, broken)),
                Ok(Line::End) => return Ok(Record::End),
                Ok(Line::TooLong(n)) => {
                    return Ok(self.bad(position, format!("a line of {n} bytes, {max_bytes} are allowed")));
                }
                Ok(Line::Whole) if self.buffer.iter().all(u8::is_ascii_whitespace) => {}
                Ok(Line::Whole) => return Ok(make(self, position)),
            }
        }
    }

    fn of_line(&mut self, position: u64) -> Record {
        self.of_bytes(position, position)
    }

    fn of_json(&mut self, position: u64) -> Record {
        let line = self.buffer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.buffer);
        let mut values = match self.fields.read(line) {
            Ok(values) => values.into_iter(),
            Err(reason) => return self.bad(position, reason),
        };
        let mut value = || values.next().flatten().unwrap_or_default();
        let (text, key, url, domain) = (value(), value(), value(), value());
        if text.is_empty() {
            return self.bad(position, format!("no text in the field `{}`", self.source.text));
        }
        if text.len() as u64 > self.max_bytes {
            return self.bad(position, format!("longer than read.max_document_bytes = {}", self.max_bytes));
        }
        Record::Doc { position, doc: Box::new(Doc { key, url, domain, text, ..Doc::default() }) }
    }

    fn next_page(&mut self) -> Result<Record> {
        let position = self.stream.position;
        self.buffer.clear();
        Ok(match warc::next(&mut self.stream, self.path, self.max_bytes)? {
            Err(broken) => self.broken(position, broken),
            Ok(Page::End) => Record::End,
            Ok(Page::Other) => Record::Other,
            Ok(Page::Bad(reason)) => self.bad(position, reason),
            Ok(Page::Text { text, .. }) if text.is_empty() => self.bad(position, "no text"),
            Ok(Page::Text { url, id, text }) => {
                Record::Doc { position, doc: Box::new(Doc { key: id, url, text, ..Doc::default() }) }
            }
        })
    }
}
