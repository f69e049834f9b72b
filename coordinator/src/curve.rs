//! A job's curve: `curve.csv` in its folder, one row a step, ascending.
//!
//! ```text
//! step,loss,ce,z_loss,balance_loss,grad_norm,lr,weight_decay,tokens,tokens_per_s,step_s,skipped,epoch,hidden_s,exposed_s,
//! expert_load
//! 1,5.55,5.54,17.2,1.01,2.5,0.001,0.1,4096,812.5,5.04,false,1,"510 514;509 515"
//! ```
//!
//! Jobs of other kinds than pre-training have four columns more, see `row`. Numbers are written so that they read back to the same bits. `expert_load` has the layers apart by `;`, their experts by a space.
//! A step of which nobody has the figures any more has a row with its number and nothing else (T-12).
//! A row is durable when [`Curve::append`] returns; a row that was torn by a crash is cut off when the file is opened. In memory
//! are the places of the rows and the last one, so a long run costs 32 bytes a step.
//!
//! The file is open only while it is read or written: a coordinator has more jobs than it may open files. Rows that cannot be written
//! stay in memory until they can ([`Curve::flush`]). A file that is damaged is an error of [`Curve::open`]; [`Curve::salvage`] takes
//! the rows that can be read. Where several coordinators share a store, rows are in [`Segments`] first, and the file is the leader's copy of them: at once, or
//! when a `Carrier` has brought them there.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use toroid_proto::StepRecord;
use toroid_torus::ids::Step;

use crate::carrier::{Carrier, Late};
use crate::machine::{StepSummary, missing_record};
use crate::segments::{Found, Segments, SegmentsError};

mod row;

use row::{Columns, format, parse};

pub const FILE_NAME: &str = "curve.csv";
/// Of a line; a report of a step, which becomes one, has at most 16 MiB.
const MAX_LINE_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CurveError {
    #[error("{what} {path} failed: {error}")]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    #[error("{path} does not begin with the header of a curve; move it away or restore it from a copy")]
    Header { path: PathBuf },
    #[error("line {line} of {path} cannot be read: {reason}; correct it, or remove it and all lines after it")]
    Row { path: PathBuf, line: usize, reason: String },
    #[error(transparent)]
    Shared(#[from] SegmentsError),
    #[error("{}", .0.reason)]
    Late(Late),
}

impl CurveError {
    /// Only a leadership that begins anew knows the curve as it is.
    pub fn is_outdated(&self) -> bool {
        match self {
            CurveError::Shared(error) => matches!(error, SegmentsError::Another { .. } | SegmentsError::Deposed { .. }),
            CurveError::Late(late) => late.is_outdated,
            CurveError::Io { .. } | CurveError::Header { .. } | CurveError::Row { .. } => false,
        }
    }
}

/// Where other coordinators find the rows; the file is a copy then.
#[derive(Debug)]
enum Shared {
    Here(Box<Segments>),
    Carried(Carrier),
}

/// Where a row lies.
#[derive(Debug, Clone, Copy)]
struct Row {
    step: u64,
    offset: u64,
    bytes: u64,
}

#[derive(Debug)]
pub struct Curve {
    path: PathBuf,
    columns: Columns,
    /// Ascending by step.
    rows: Vec<Row>,
    /// Where the next row comes.
    end: u64,
    /// The file has something behind `end` that was to be cut off and could not be.
    is_longer: bool,
    last: Option<StepRecord>,
    /// What could not be written yet, ascending and after `rows`.
    unwritten: VecDeque<StepRecord>,
    unwritten_bytes: usize,
    shared: Option<Shared>,
}

/// What a file has, whatever is wrong with it.
#[derive(Default)]
struct Scan {
    columns: Columns,
    rows: Vec<(Row, StepSummary)>,
    last: Option<StepRecord>,
    /// Behind the last row before the first fault.
    end: u64,
    /// The first fault.
    fault: Option<CurveError>,
    num_lines: usize,
}

/// What was taken out of a damaged file.
#[derive(Debug)]
pub struct Salvage {
    pub curve: Curve,
    pub summaries: Vec<StepSummary>,
    /// Rows that there seem to be; some cannot be read.
    pub num_rows: usize,
}

impl Curve {
    /// Opens the curve in `folder`, or begins one.
    pub fn open(folder: &Path) -> Result<(Curve, Vec<StepSummary>), CurveError> {
        let mut curve = Curve::empty(folder);
        let failed = |what, error| CurveError::Io { what, path: folder.join(FILE_NAME), error };
        let file = match File::open(&curve.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                curve.flush()?;
                File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed("syncing the folder of", e))?;
                return Ok((curve, Vec::new()));
            }
            Err(e) => return Err(failed("opening", e)),
        };
        let len = file.metadata().map_err(|e| failed("reading", e))?.len();
        // A file that ends within its header holds no step yet.
        if len <= Columns::Plain.header().len() as u64 {
            curve.is_longer = len > 0;
            curve.flush()?;
            return Ok((curve, Vec::new()));
        }
        let scan = curve.scan(file)?;
        if let Some(fault) = scan.fault {
            return Err(fault);
        }
        let summaries = curve.take(scan);
        if curve.end < len {
            curve.is_longer = true;
            curve.flush()?;
        }
        Ok((curve, summaries))
    }

    /// A curve that is not on disk: the first row, or [`Curve::flush`], makes the file.
    pub fn empty(folder: &Path) -> Curve {
        Curve {
            path: folder.join(FILE_NAME),
            columns: Columns::default(),
            rows: Vec::new(),
            end: 0,
            is_longer: false,
            last: None,
            unwritten: VecDeque::new(),
            unwritten_bytes: 0,
            shared: None,
        }
    }

    /// Makes the file in `folder` anew of what other coordinators have left.
    pub fn copy_from(segments: &Segments, found: &Found, folder: &Path) -> Result<(), CurveError> {
        let (path, new) = (folder.join(FILE_NAME), folder.join(format!("{FILE_NAME}.new")));
        let copy = || {
            let mut file = BehindHeader { file: BufWriter::new(File::create(&new)?), head: Some(Vec::new()) };
            segments.copy(found, &mut file)?;
            file.finish()?;
            std::fs::rename(&new, &path)
        };
        copy().map_err(|error| CurveError::Io { what: "copying the curve to", path, error })
    }

    /// From now on rows are in `segments` before they are in the file.
    pub fn share(&mut self, segments: Segments) {
        self.shared = Some(Shared::Here(Box::new(segments)));
    }

    /// From now on `carrier` brings rows to others before they are in the file.
    pub fn carry(&mut self, carrier: Carrier) {
        self.shared = Some(Shared::Carried(carrier));
    }

    /// Puts the rows of the file in the place of those in `segments`.
    pub fn replace_in(&self, segments: &mut Segments) -> Result<(), CurveError> {
        let failed = |error| CurveError::Io { what: "reading", path: self.path.clone(), error };
        let mut file = File::open(&self.path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.columns.header().len() as u64 + 1)).map_err(failed)?;
        Ok(segments.replace(&mut BufReader::new(file), &self.path)?)
    }

    /// The rows of a damaged file that can be read, each step once, ascending. The file stays as it is; such a curve is only read.
    pub fn salvage(folder: &Path) -> Result<Salvage, CurveError> {
        let mut curve = Curve::empty(folder);
        let failed = |error| CurveError::Io { what: "opening", path: folder.join(FILE_NAME), error };
        let mut scan = curve.scan(File::open(&curve.path).map_err(failed)?)?;
        // The header is none.
        let num_rows = scan.num_lines.saturating_sub(1);
        scan.rows.sort_by_key(|(row, _)| row.step);
        scan.rows.dedup_by_key(|(row, _)| row.step);
        let summaries = curve.take(scan);
        if let Some(row) = curve.rows.last() {
            curve.last = curve.read(row.step, 1, usize::MAX)?.pop();
        }
        Ok(Salvage { curve, summaries, num_rows })
    }

    /// Writes the rows of a salvaged curve into a new file; the damaged one is kept beside it under the name that is returned.
    pub fn rewrite(&mut self) -> Result<PathBuf, CurveError> {
        let failed = |what, path: &Path, error| CurveError::Io { what, path: path.into(), error };
        let mut number = 1;
        let kept = loop {
            let kept = self.path.with_file_name(format!("{FILE_NAME}.damaged-{number}"));
            if !kept.exists() {
                break kept;
            }
            number += 1;
        };
        let new = self.path.with_file_name(format!("{FILE_NAME}.new"));
        let mut file = File::create(&new).map_err(|e| failed("making", &new, e))?;
        let header = self.columns.header();
        file.write_all(format!("{header}\n").as_bytes()).map_err(|e| failed("writing", &new, e))?;
        let mut end = header.len() as u64 + 1;
        let mut rows = Vec::with_capacity(self.rows.len());
        /// Rows that are in memory at a time.
        const CHUNK: usize = 1000;
        for (index, chunk) in self.rows.chunks(CHUNK).enumerate() {
            for record in self.read_rows(index * CHUNK, chunk)? {
                let text = format(self.columns, &record);
                file.write_all(text.as_bytes()).map_err(|e| failed("writing", &new, e))?;
                rows.push(Row { step: record.step, offset: end, bytes: text.len() as u64 });
                end += text.len() as u64;
            }
        }
        file.sync_all().map_err(|e| failed("writing", &new, e))?;
        // At no moment is there no curve: a crash leaves the damaged one, and a copy of it.
        let copied = std::fs::copy(&self.path, &kept).and_then(|_| File::open(&kept)?.sync_all());
        copied.map_err(|e| failed("keeping the damaged file as", &kept, e))?;
        std::fs::rename(&new, &self.path).map_err(|e| failed("replacing", &self.path, e))?;
        (self.rows, self.end) = (rows, end);
        Ok(kept)
    }

    fn take(&mut self, scan: Scan) -> Vec<StepSummary> {
        (self.columns, self.end, self.last) = (scan.columns, scan.end, scan.last);
        let (rows, summaries) = scan.rows.into_iter().unzip();
        self.rows = rows;
        summaries
    }

    /// Reads all rows. One that cannot be read is torn where it is the last, else a fault.
    fn scan(&self, file: File) -> Result<Scan, CurveError> {
        let failed = |error| CurveError::Io { what: "reading", path: self.path.clone(), error };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        let mut scan = Scan::default();
        let (mut offset, mut before) = (0, 0);
        let mut torn: Option<String> = None;
        loop {
            line.clear();
            let bytes = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(failed)? as u64;
            if bytes == 0 {
                return Ok(scan);
            }
            if let Some(reason) = torn.take() {
                let fault = CurveError::Row { path: self.path.clone(), line: scan.num_lines, reason };
                scan.fault.get_or_insert(fault);
            }
            scan.num_lines += 1;
            let start = offset;
            offset += bytes;
            let text = str::from_utf8(&line).ok().and_then(|l| l.strip_suffix('\n'));
            if scan.num_lines == 1 {
                let columns = text.and_then(Columns::of_header);
                match columns {
                    Some(columns) => scan.columns = columns,
                    None => scan.fault = Some(CurveError::Header { path: self.path.clone() }),
                }
                scan.end = offset;
                // Of a file without a header the first line may be a row.
                if columns.is_some() || line.starts_with(b"step,") {
                    continue;
                }
            }
            let whole = text.ok_or_else(|| "it is not a whole line of text".to_string());
            let record = match whole.and_then(|t| parse(t.trim_end_matches('\r'))) {
                Ok(record) => record,
                Err(reason) => {
                    torn = Some(reason);
                    continue;
                }
            };
            let reason = match record.step > before {
                true if text.is_some_and(|t| t.ends_with('\r')) => Some("it ends with a carriage return".into()),
                true => None,
                false => Some(format!("step {} follows step {before}", record.step)),
            };
            if let Some(reason) = reason {
                let fault = CurveError::Row { path: self.path.clone(), line: scan.num_lines, reason };
                scan.fault.get_or_insert(fault);
            }
            before = before.max(record.step);
            let row = Row { step: record.step, offset: start, bytes };
            // Where the first line does not say it, the first row shows which columns there are.
            if let (true, Some(CurveError::Header { .. })) = (scan.rows.is_empty(), &scan.fault) {
                scan.columns = text.map_or(scan.columns, Columns::of_row);
            }
            scan.rows.push((row, StepSummary::from(&record)));
            if scan.fault.is_none() {
                scan.end = offset;
                scan.last = Some(record).filter(|r| !r.missing).or(scan.last);
            }
        }
    }

    /// A row that cannot be written is kept in memory, and is in the curve as the others are: [`Curve::flush`] tries again.
    pub fn append(&mut self, record: &StepRecord) -> Result<(), CurveError> {
        self.push(record);
        self.flush()
    }

    /// A row that [`Curve::flush`] writes.
    pub fn push(&mut self, record: &StepRecord) {
        let before = self.newest_step();
        assert!(record.step > before, "step {} cannot follow step {before}", record.step);
        if before == 0 && !record.missing && Columns::of_record(record) != self.columns {
            // Only the first row says which columns there are: the file has none yet, and begins anew.
            (self.columns, self.end, self.is_longer) = (Columns::of_record(record), 0, true);
        }
        let row = format(self.columns, record);
        self.unwritten_bytes += row.len();
        self.unwritten.push_back(record.clone());
        if !record.missing {
            self.last = Some(record.clone());
        }
        if let Some(Shared::Carried(carrier)) = &self.shared {
            carrier.push(record.step, row);
        }
    }

    /// Rows of steps of which nobody has the figures any more, as [`Curve::push`].
    pub fn push_gap(&mut self, steps: RangeInclusive<u64>) {
        steps.for_each(|step| self.push(&missing_record(Step::new(step))));
    }

    /// The newest step that has a row.
    pub fn newest_step(&self) -> u64 {
        self.unwritten.back().map_or_else(|| self.written_step(), |r| r.step)
    }

    /// The newest step whose row is written, as those before it are.
    pub fn written_step(&self) -> u64 {
        self.rows.last().map_or(0, |r| r.step)
    }

    /// Drops the rows after step `keep`.
    pub fn cut(&mut self, keep: u64) -> Result<(), CurveError> {
        self.unwritten.retain(|r| r.step <= keep);
        self.unwritten_bytes = self.unwritten.iter().map(|r| format(self.columns, r).len()).sum();
        match &mut self.shared {
            Some(Shared::Here(segments)) => segments.cut(keep),
            Some(Shared::Carried(carrier)) => carrier.cut(keep),
            None => {}
        }
        let num_kept = self.rows.partition_point(|r| r.step <= keep);
        if let Some(first) = self.rows.get(num_kept) {
            self.end = first.offset;
            self.is_longer = true;
            self.rows.truncate(num_kept);
        }
        if self.last.as_ref().is_some_and(|r| r.step > keep) {
            self.last = self.unwritten.iter().rev().find(|r| !r.missing).cloned();
        }
        for step in self.rows.iter().rev().map(|row| row.step) {
            if self.last.is_some() {
                break;
            }
            self.last = self.read(step, 1, usize::MAX)?.pop().filter(|r| !r.missing);
        }
        self.flush()
    }

    /// Writes what could not be written before: where others bring the rows to a bucket, those that are there.
    pub fn flush(&mut self) -> Result<(), CurveError> {
        let (durable, late) = match &self.shared {
            Some(Shared::Carried(carrier)) => (carrier.durable(), carrier.late()),
            Some(Shared::Here(_)) | None => (u64::MAX, None),
        };
        let written = self.write_through(durable);
        late.map_or(written, |late| Err(CurveError::Late(late)))
    }

    /// Writes rows up to step `newest`.
    fn write_through(&mut self, newest: u64) -> Result<(), CurveError> {
        let mut text = if self.end == 0 { format!("{}\n", self.columns.header()) } else { String::new() };
        let num = self.unwritten.partition_point(|r| r.step <= newest);
        let formatted: Vec<(u64, String)> =
            self.unwritten.iter().take(num).map(|r| (r.step, format(self.columns, r))).collect();
        let (mut end, mut rows) = (self.end + text.len() as u64, Vec::new());
        for (step, row) in &formatted {
            rows.push(Row { step: *step, offset: end, bytes: row.len() as u64 });
            end += row.len() as u64;
            text.push_str(row);
        }
        if let Some(Shared::Here(segments)) = &mut self.shared {
            segments.write(&formatted)?;
        }
        if text.is_empty() && !self.is_longer {
            return Ok(());
        }
        let failed = |what| move |error| (what, error);
        let write = || {
            // What is gone was taken away: a new file would hide that, and lack all rows before.
            let options = OpenOptions::new().write(true).create(self.end == 0).truncate(false).open(&self.path);
            let mut file = options.map_err(failed("opening"))?;
            let len = file.metadata().map_err(failed("reading"))?.len();
            if len < self.end {
                let error = format!("it has {len} bytes, and had {}; somebody else has written to it", self.end);
                return Err(("writing", io::Error::other(error)));
            }
            // Also what a failed write has left behind.
            if len > self.end {
                file.set_len(self.end).map_err(failed("cutting"))?;
            }
            file.seek(SeekFrom::Start(self.end)).map_err(failed("writing"))?;
            file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(failed("writing"))
        };
        write().map_err(|(what, error)| CurveError::Io { what, path: self.path.clone(), error })?;
        self.rows.extend(rows);
        self.unwritten.drain(..num);
        self.unwritten_bytes -= formatted.iter().map(|(_, row)| row.len()).sum::<usize>();
        (self.end, self.is_longer) = (end, false);
        Ok(())
    }

    /// Rows that are not on disk, and how long they are there.
    pub fn num_unwritten(&self) -> usize {
        self.unwritten.len()
    }

    pub fn unwritten_bytes(&self) -> usize {
        self.unwritten_bytes
    }

    /// What is on disk is what there is.
    pub fn is_flushed(&self) -> bool {
        self.unwritten.is_empty() && !self.is_longer && !matches!(&self.shared, Some(Shared::Here(s)) if s.is_behind())
    }

    /// The rows from step `from` on, at most `max_rows` of them, and at least one but no more than have `max_bytes` in the file.
    pub fn read(&self, from: u64, max_rows: usize, max_bytes: usize) -> Result<Vec<StepRecord>, CurveError> {
        let first = self.rows.partition_point(|r| r.step < from);
        let mut bytes = 0;
        let mut is_within = |len: u64| {
            let is_first = bytes == 0;
            bytes += len;
            is_first || bytes <= max_bytes as u64
        };
        let wanted: Vec<Row> =
            self.rows[first..].iter().take(max_rows).take_while(|r| is_within(r.bytes)).copied().collect();
        let mut records = self.read_rows(first, &wanted)?;
        if first + wanted.len() == self.rows.len() {
            let rest = self.unwritten.iter().filter(|r| r.step >= from).take(max_rows - records.len());
            records.extend(rest.take_while(|r| is_within(format(self.columns, r).len() as u64)).cloned());
        }
        Ok(records)
    }

    fn read_rows(&self, first: usize, rows: &[Row]) -> Result<Vec<StepRecord>, CurveError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |error| CurveError::Io { what: "reading", path: self.path.clone(), error };
        let file = File::open(&self.path).map_err(failed)?;
        let mut records = Vec::with_capacity(rows.len());
        // Rows lie one behind the other, but in a file that is damaged.
        let is_next = |a: &Row, b: &Row| a.offset + a.bytes == b.offset;
        for run in rows.chunk_by(is_next) {
            let len: u64 = run.iter().map(|r| r.bytes).sum();
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, run[0].offset).map_err(failed)?;
            for line in String::from_utf8_lossy(&bytes).lines() {
                let bad = |reason| CurveError::Row { path: self.path.clone(), line: first + records.len() + 2, reason };
                records.push(parse(line).map_err(bad)?);
            }
        }
        Ok(records)
    }

    /// The newest with figures.
    pub fn last(&self) -> Option<&StepRecord> {
        self.last.as_ref()
    }
}

/// Writes rows behind the header that the first of them asks for.
struct BehindHeader {
    file: BufWriter<File>,
    /// The beginning of the first row, until all of it is there.
    head: Option<Vec<u8>>,
}

impl BehindHeader {
    fn finish(mut self) -> io::Result<()> {
        if let Some(head) = self.head.take() {
            self.begin(&head)?;
        }
        self.file.flush()
    }

    fn begin(&mut self, head: &[u8]) -> io::Result<()> {
        let first = String::from_utf8_lossy(head);
        let columns = Columns::of_row(first.lines().next().unwrap_or_default());
        writeln!(self.file, "{}", columns.header())?;
        self.file.write_all(head)
    }
}

impl io::Write for BehindHeader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(mut head) = self.head.take() else { return self.file.write(bytes) };
        head.extend(bytes);
        match head.contains(&b'\n') {
            true => self.begin(&head)?,
            false => self.head = Some(head),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests;
