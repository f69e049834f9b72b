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
use crate::read::parquet;
use crate::read::repository::{self, Attributes};
use crate::read::stream::{self, Broken, Line, Stream};
use crate::read::tar::{self, Member};
use crate::read::warc::{self, Page};
use crate::read::{BadRecord, Tally};

/// A piece has so many documents at most.
const MAX_DOCS: u32 = 1 << 20;
/// What a thread needs for a document, in documents, and the part of its memory that reading may take.
const ROOM_PER_BYTE: u64 = 12;
pub const READ_PART: u64 = 4;
/// What a document weighs in a piece besides its text and its id.
const DOC_BYTES: u64 = 64;
/// Escapes make a line longer than its text.
const LINE_FACTOR: u64 = 4;
const LINE_ROOM_BYTES: u64 = 1 << 20;

const NO_TEXT: &str = "no text";

/// Which part of which files a task reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub source: u16,
    pub files: Vec<Listed>,
    /// Records that begin there, of one plain file of lines, or rows of one Parquet file; all of the files otherwise.
    pub range: Option<(u64, u64)>,
}

impl Unit {
    /// What it has to read.
    pub fn bytes(&self) -> u64 {
        let whole = self.files.iter().map(|file| file.bytes).sum();
        // Ranges of Parquet files count rows.
        self.range.map_or(whole, |(start, end)| (end - start).min(whole))
    }
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
            if is_large && has_lines && !stream::is_compressed(&file)? {
                let num = file.bytes.div_ceil(unit_bytes);
                let range = |k: u64| Some((k * unit_bytes, ((k + 1) * unit_bytes).min(file.bytes)));
                units.extend((0..num).map(|k| new(vec![file.clone()], range(k))));
            } else if is_large && files::format(&file.relative, source.format) == Format::Parquet {
                units
                    .extend(ranges_of_rows(&file, unit_bytes)?.into_iter().map(|range| new(vec![file.clone()], range)));
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

/// Rows of a Parquet file whose row groups have about so many bytes together; the whole of a file that says nothing of them.
fn ranges_of_rows(file: &Listed, unit_bytes: u64) -> Result<Vec<Option<(u64, u64)>>> {
    let (mut ranges, mut start, mut row, mut bytes) = (Vec::new(), 0, 0, 0);
    for (num_rows, num_bytes) in parquet::groups(file)? {
        if bytes > 0 && bytes + num_bytes > unit_bytes {
            ranges.push(Some((start, row)));
            (start, bytes) = (row, 0);
        }
        row += num_rows;
        bytes += num_bytes;
    }
    ranges.push(if ranges.is_empty() { None } else { Some((start, row)) });
    Ok(ranges)
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

/// All parts of a unit that is read.
pub fn read_parts(folder: &Path, unit: usize) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    loop {
        let path = part_path(folder, unit, parts.len(), "json");
        let part = read_part(&path)?.ok_or_else(|| Error::damaged(&path, "it is not there"))?;
        let is_last = part.is_last;
        parts.push(part);
        if is_last {
            return Ok(parts);
        }
    }
}

/// What reading needs besides the unit.
pub struct Reader<'a> {
    pub pipeline: &'a Pipeline,
    pub folder: &'a Path,
    /// Text of a piece.
    pub piece_bytes: u64,
    /// What each thread has for what it reads: a record, the window of a decoder.
    pub room_bytes: u64,
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
                if writing.bytes() >= self.piece_bytes || writing.ids.starts.len() as u32 == MAX_DOCS {
                    // A file that is done is not opened again.
                    let (next_file, next_position) = if records.is_done { (n + 1, 0) } else { (n, records.position()) };
                    let next = Part { next_file, next_position, ..Part::default() };
                    self.end(number, writing, next)?;
                    num_parts += 1;
                    writing = self.begin(number, num_parts)?;
                }
                match records.next()? {
                    Record::Doc { position, doc } => {
                        self.check_room(&file.path, position, &doc)?;
                        writing.put(unit.source, source, file, position, *doc)?;
                    }
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

    /// Stages have words, shingles and sentences of a document in memory beside it.
    fn check_room(&self, path: &Path, position: u64, doc: &Doc) -> Result<()> {
        let num_bytes = tokens(&doc.text);
        if num_bytes * (ROOM_PER_BYTE / READ_PART) <= self.room_bytes {
            return Ok(());
        }
        let at = if position == u64::MAX { String::new() } else { format!(" at byte {position}") };
        let there_mib = (self.room_bytes * READ_PART / ROOM_PER_BYTE) >> 20;
        let place = format!("{}{at}", path.display());
        Err(Error::NoRoom { place, num_bytes, there_mib })
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
    /// What the piece weighs: small documents take memory, too.
    fn bytes(&self) -> u64 {
        self.tally.bytes + self.ids.text.len() as u64 + self.ids.starts.len() as u64 * DOC_BYTES
    }

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
    name: &'a str,
    attributes: Attributes,
    max_bytes: u64,
    /// Records that begin here or later belong to another unit.
    end: u64,
    fields: Fields,
    stream: Stream,
    /// Of a Parquet file, which has no stream of records.
    rows: Option<parquet::Rows>,
    /// The file cannot be opened as what it is called.
    broken: Option<Broken>,
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
        let is_compressed = stream::is_compressed(file)?;
        let format = files::format(&file.relative, source.format);
        // Behind a part of this unit, or from the unit's first record; that of a later range begins behind the line end before it.
        let goes_on = from > start;
        let at = if goes_on { from } else { start.saturating_sub(1) };
        let mut stream = Stream::open(file, if is_compressed { 0 } else { at }, reader.room_bytes)?;
        let mut is_done = false;
        if is_compressed && goes_on {
            is_done = stream.skip(path, at)?.is_err();
        } else if !goes_on && start > 0 && format != Format::Parquet {
            is_done = stream.skip_line(path, end)?.is_err();
        }
        let names = [source.text.as_str(), &source.id, &source.url, &source.domain];
        let fields = Fields::new(&names);
        let (mut rows, mut broken) = (None, None);
        if format == Format::Parquet {
            match parquet::Rows::open(file, &names, from.max(start))? {
                Ok(found) => rows = Some(found),
                Err(what) => broken = Some(what),
            }
        }
        let language = files::language(&file.relative);
        let name = file.relative.as_str();
        let attributes = match format {
            _ if !source.skip_generated && !source.skip_vendored => Attributes::default(),
            Format::Repository => Attributes::of_file(path, name)?,
            Format::Tar => Attributes::of_archive(file, reader.room_bytes)?,
            _ => Attributes::default(),
        };
        let (max_bytes, buffer) = (reader.pipeline.read.max_document_bytes, Vec::new());
        Ok(Records {
            path,
            source,
            format,
            language,
            name,
            attributes,
            max_bytes,
            end,
            fields,
            stream,
            rows,
            broken,
            buffer,
            is_done,
        })
    }

    fn next(&mut self) -> Result<Record> {
        if let Some(broken) = self.broken.take() {
            return Ok(self.broken(0, broken));
        }
        if self.is_done || self.position() >= self.end {
            return Ok(Record::End);
        }
        match self.format {
            Format::Text | Format::Auto => self.next_text(),
            Format::Lines => self.next_line(self.max_bytes, Self::of_line),
            Format::Jsonl => self.next_line(self.max_bytes * LINE_FACTOR + LINE_ROOM_BYTES, Self::of_json),
            Format::Warc => self.next_page(),
            Format::Repository => self.next_code(),
            Format::Tar => self.next_member(),
            Format::Parquet => self.next_row(),
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
        let num_bytes = match self.stream.exact(self.path, &mut self.buffer, self.max_bytes + 1)? {
            Ok(num_bytes) => num_bytes,
            Err(broken) => return Ok(self.broken(0, broken)),
        };
        if num_bytes > self.max_bytes {
            return Ok(self.bad(0, format!("longer than read.max_document_bytes = {}", self.max_bytes)));
        }
        self.stream.check_room(self.path, num_bytes)?;
        Ok(self.of_bytes(0, u64::MAX))
    }

    /// Made by a program or written by others, and not wanted.
    fn is_skipped(&self, name: &str) -> bool {
        let marks = self.attributes.marks(name);
        self.source.skip_generated && marks.is_generated || self.source.skip_vendored && marks.is_vendored
    }

    fn next_code(&mut self) -> Result<Record> {
        if self.is_skipped(self.name) {
            self.is_done = true;
            return Ok(Record::Other);
        }
        let record = self.next_text()?;
        Ok(self.code(record, self.name))
    }

    /// A file of a repository whose bytes, or the first of them, are in the buffer.
    fn code(&self, record: Record, name: &str) -> Record {
        match record {
            _ if repository::is_binary(&self.buffer) => Record::Other,
            Record::Doc { position, mut doc } => {
                doc.language = repository::language(name, &doc.text).to_owned();
                doc.license = repository::license(&doc.text);
                Record::Doc { position, doc }
            }
            Record::Bad { reason, .. } if reason == NO_TEXT => Record::Other,
            other => other,
        }
    }

    fn next_member(&mut self) -> Result<Record> {
        let position = self.stream.position;
        let (name, size) = match tar::next(&mut self.stream, self.path)? {
            Ok(Member::File { name, size }) => (name, size),
            Ok(Member::Other { size }) => (String::new(), size),
            Ok(Member::End) => return Ok(Record::End),
            Err(broken) => return Ok(self.broken(position, broken)),
        };
        let end = self.stream.position.saturating_add(size.saturating_add(tar::padding(size)));
        self.buffer.clear();
        let is_wanted = !name.is_empty() && !self.is_skipped(&name);
        let is_long = size > self.max_bytes;
        let mut num_bytes = 0;
        if is_wanted {
            // Of a file that is too long its beginning says whether it is text.
            let num = if is_long { size.min(1 << 13) } else { size };
            self.stream.check_room(self.path, num)?;
            num_bytes = match self.stream.exact(self.path, &mut self.buffer, num)? {
                Ok(num) => num,
                Err(broken) => return Ok(self.broken(position, broken)),
            };
        }
        let rest = end - self.stream.position;
        match self.stream.skip(self.path, rest)? {
            Ok(num) if num == rest => {}
            Ok(num) => {
                let found = num_bytes + num;
                let what = format!("the archive is cut: a file of {size} bytes has {}", found.min(size));
                return Ok(self.broken(position, Broken(what)));
            }
            Err(broken) => return Ok(self.broken(position, broken)),
        }
        if !is_wanted {
            return Ok(Record::Other);
        }
        let record = if is_long {
            self.bad(position, format!("longer than read.max_document_bytes = {}", self.max_bytes))
        } else {
            self.of_bytes(position, position)
        };
        Ok(match self.code(record, &name) {
            Record::Doc { position, doc } => Record::Doc { position, doc: Box::new(Doc { key: name, ..*doc }) },
            Record::Bad { position, reason, excerpt } => {
                Record::Bad { position, reason: format!("{name}: {reason}"), excerpt }
            }
            other => other,
        })
    }

    fn of_bytes(&mut self, start: u64, position: u64) -> Record {
        let bytes = self.buffer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.buffer);
        match std::str::from_utf8(bytes) {
            Ok("") => self.bad(start, NO_TEXT),
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
        let fields = [value(), value(), value(), value()];
        self.of_fields(position, fields)
    }

    fn of_fields(&self, position: u64, [text, key, url, domain]: [String; 4]) -> Record {
        if text.is_empty() {
            return self.bad(position, format!("no text in the field `{}`", self.source.text));
        }
        if text.len() as u64 > self.max_bytes {
            return self.bad(position, format!("longer than read.max_document_bytes = {}", self.max_bytes));
        }
        Record::Doc { position, doc: Box::new(Doc { key, url, domain, text, ..Doc::default() }) }
    }

    fn position(&self) -> u64 {
        self.rows.as_ref().map_or(self.stream.position, |rows| rows.position)
    }

    fn next_row(&mut self) -> Result<Record> {
        let position = self.position();
        let Some(rows) = &mut self.rows else { return Ok(Record::End) };
        let values = match rows.next(self.path, self.max_bytes)? {
            Ok(Some(values)) => values,
            Ok(None) => return Ok(Record::End),
            Err(broken) => return Ok(self.broken(position, broken)),
        };
        let mut values = values.into_iter();
        let mut value = || values.next().unwrap_or(Ok(None)).map(Option::unwrap_or_default);
        // Of the text alone it matters why it is not there.
        let (text, key, url, domain) =
            (value(), value().unwrap_or_default(), value().unwrap_or_default(), value().unwrap_or_default());
        Ok(match text {
            Ok(text) => self.of_fields(position, [text, key, url, domain]),
            Err(reason) => self.bad(position, reason),
        })
    }

    fn next_page(&mut self) -> Result<Record> {
        let position = self.stream.position;
        self.buffer.clear();
        Ok(match warc::next(&mut self.stream, self.path, self.max_bytes)? {
            Err(broken) => self.broken(position, broken),
            Ok(Page::End) => Record::End,
            Ok(Page::Other) => Record::Other,
            Ok(Page::Bad(reason)) => self.bad(position, reason),
            Ok(Page::Text { text, .. }) if text.is_empty() => self.bad(position, NO_TEXT),
            Ok(Page::Text { url, id, text }) => {
                Record::Doc { position, doc: Box::new(Doc { key: id, url, text, ..Doc::default() }) }
            }
        })
    }
}
