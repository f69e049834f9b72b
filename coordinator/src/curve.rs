//! A job's curve: `curve.csv` in its folder, one row a step, ascending.
//!
//! ```text
//! step,loss,ce,z_loss,balance_loss,grad_norm,lr,weight_decay,tokens,tokens_per_s,step_s,skipped,epoch,hidden_s,exposed_s,
//! expert_load
//! 1,5.55,5.54,17.2,1.01,2.5,0.001,0.1,4096,812.5,5.04,false,1,"510 514;509 515"
//! ```
//!
//! Numbers are written so that they read back to the same bits. `expert_load` has the layers apart by `;`, their experts by a space.
//! A step of which nobody has the figures any more has a row with its number and nothing else (T-12).
//! A row is durable when [`Curve::append`] returns; a row that was torn by a crash is cut off when the file is opened. In memory
//! are the places of the rows and the last one, so a long run costs 16 bytes a step.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use toroid_proto::StepRecord;

use crate::machine::{StepSummary, missing_record};

pub const FILE_NAME: &str = "curve.csv";
const HEADER: &str = "step,loss,ce,z_loss,balance_loss,grad_norm,lr,weight_decay,tokens,tokens_per_s,step_s,skipped,epoch,hidden_s,exposed_s,expert_load";
const NUM_PLAIN_COLUMNS: usize = 15;

#[derive(Debug, thiserror::Error)]
pub enum CurveError {
    #[error("{what} {path} failed: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} does not begin with the header of a curve; move it away or restore it from a copy")]
    Header { path: PathBuf },
    #[error("line {line} of {path} cannot be read: {reason}; correct it, or remove it and all lines after it")]
    Row { path: PathBuf, line: usize, reason: String },
}

/// Where a row lies.
#[derive(Debug, Clone, Copy)]
struct Row {
    step: u64,
    offset: u64,
}

#[derive(Debug)]
pub struct Curve {
    path: PathBuf,
    file: File,
    rows: Vec<Row>,
    /// Where the next row comes.
    end: u64,
    last: Option<StepRecord>,
}

impl Curve {
    /// Opens the curve in `folder`, or begins one.
    pub fn open(folder: &Path) -> Result<(Curve, Vec<StepSummary>), CurveError> {
        let path = folder.join(FILE_NAME);
        let failed = |what, source| CurveError::Io { what, path: path.clone(), source };
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(|e| failed("opening", e))?;
        let mut curve = Curve { path: path.clone(), file, rows: Vec::new(), end: 0, last: None };
        let len = curve.file.metadata().map_err(|e| failed("reading", e))?.len();
        // A file that ends within its header holds no step yet.
        if len <= HEADER.len() as u64 {
            curve.truncate(0)?;
            curve.write(format!("{HEADER}\n").as_bytes())?;
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed("syncing the folder of", e))?;
            return Ok((curve, Vec::new()));
        }
        let summaries = curve.scan()?;
        if curve.end < len {
            curve.truncate(curve.end)?;
        }
        Ok((curve, summaries))
    }

    /// Reads all rows up to the first torn one, which must be the last.
    fn scan(&mut self) -> Result<Vec<StepSummary>, CurveError> {
        let failed = |source| CurveError::Io { what: "reading", path: self.path.clone(), source };
        let mut reader = BufReader::new(&self.file);
        let mut line = Vec::new();
        let mut summaries: Vec<StepSummary> = Vec::new();
        let (mut number, mut end, mut last) = (0, 0, None);
        let mut torn: Option<String> = None;
        loop {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line).map_err(failed)?;
            if bytes == 0 {
                break;
            }
            if let Some(reason) = torn {
                return Err(CurveError::Row { path: self.path.clone(), line: number, reason });
            }
            number += 1;
            let text = str::from_utf8(&line).ok().and_then(|l| l.strip_suffix('\n'));
            if number == 1 {
                if text != Some(HEADER) {
                    return Err(CurveError::Header { path: self.path.clone() });
                }
                end = bytes as u64;
                continue;
            }
            let before = summaries.last().map_or(0, |s| s.step);
            match text.ok_or_else(|| "it is not a whole line of text".to_string()).and_then(parse) {
                Ok(record) if record.step > before => {
                    self.rows.push(Row { step: record.step, offset: end });
                    summaries.push(StepSummary::from(&record));
                    last = Some(record).filter(|r| !r.missing).or(last);
                    end += bytes as u64;
                }
                Ok(record) => torn = Some(format!("step {} follows step {before}", record.step)),
                Err(reason) => torn = Some(reason),
            }
        }
        (self.end, self.last) = (end, last);
        Ok(summaries)
    }

    pub fn append(&mut self, record: &StepRecord) -> Result<(), CurveError> {
        let before = self.rows.last().map_or(0, |r| r.step);
        assert!(record.step > before, "step {} cannot follow step {before}", record.step);
        let row = Row { step: record.step, offset: self.end };
        self.write(format(record).as_bytes())?;
        self.rows.push(row);
        self.last = Some(record.clone());
        Ok(())
    }

    /// Rows of steps of which nobody has the figures any more.
    pub fn append_gap(&mut self, steps: RangeInclusive<u64>) -> Result<(), CurveError> {
        /// Written at once.
        const CHUNK_BYTES: usize = 1 << 20;
        let mut rows = String::new();
        for step in steps.clone() {
            self.rows.push(Row { step, offset: self.end + rows.len() as u64 });
            rows.push_str(&format_missing(step));
            if rows.len() >= CHUNK_BYTES || step == *steps.end() {
                self.write(rows.as_bytes())?;
                rows.clear();
            }
        }
        Ok(())
    }

    /// Drops the rows after step `keep`.
    pub fn cut(&mut self, keep: u64) -> Result<(), CurveError> {
        let num_kept = self.rows.partition_point(|r| r.step <= keep);
        let Some(first) = self.rows.get(num_kept) else { return Ok(()) };
        let end = first.offset;
        self.truncate(end)?;
        self.rows.truncate(num_kept);
        self.last = None;
        for row in self.rows.iter().rev() {
            self.last = self.read(row.step, 1)?.pop().filter(|r| !r.missing);
            if self.last.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// The rows from step `from` on, at most `max`.
    pub fn read(&self, from: u64, max: usize) -> Result<Vec<StepRecord>, CurveError> {
        let first = self.rows.partition_point(|r| r.step < from);
        let past = self.rows.len().min(first.saturating_add(max));
        let Some(row) = self.rows[..past].get(first) else { return Ok(Vec::new()) };
        let end = self.rows.get(past).map_or(self.end, |r| r.offset);
        let mut bytes = vec![0; (end - row.offset) as usize];
        let failed = |source| CurveError::Io { what: "reading", path: self.path.clone(), source };
        self.file.read_exact_at(&mut bytes, row.offset).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        let bad = |(i, reason)| CurveError::Row { path: self.path.clone(), line: first + i + 2, reason };
        text.lines().enumerate().map(|(i, line)| parse(line).map_err(|reason| bad((i, reason)))).collect()
    }

    /// The newest with figures.
    pub fn last(&self) -> Option<&StepRecord> {
        self.last.as_ref()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CurveError> {
        let (file, end) = (&mut self.file, self.end);
        let written =
            file.seek(SeekFrom::Start(end)).and_then(|_| file.write_all(bytes)).and_then(|()| file.sync_data());
        written.map_err(|source| CurveError::Io { what: "writing", path: self.path.clone(), source })?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> Result<(), CurveError> {
        let cut = self.file.set_len(len).and_then(|()| self.file.sync_data());
        cut.map_err(|source| CurveError::Io { what: "cutting", path: self.path.clone(), source })?;
        self.end = len;
        Ok(())
    }
}

fn format(r: &StepRecord) -> String {
    let mut row = format!("{},{},{},{},{},{}", r.step, r.loss, r.ce, r.z_loss, r.balance_loss, r.grad_norm);
    let columns = (r.lr, r.weight_decay, r.tokens, r.tokens_per_s, r.step_s, r.skipped, r.epoch);
    let (lr, weight_decay, tokens, tokens_per_s, step_s, skipped, epoch) = columns;
    let (hidden_s, exposed_s) = (r.hidden_s, r.exposed_s);
    let written = write!(
        row,
        ",{lr},{weight_decay},{tokens},{tokens_per_s},{step_s},{skipped},{epoch},{hidden_s},{exposed_s},\""
    );
    written.expect("a string takes everything");
    let num_experts = r.expert_load.len() / (r.num_layers as usize).max(1);
    for (i, load) in r.expert_load.iter().enumerate() {
        let separator = match i {
            0 => "",
            i if num_experts > 0 && i % num_experts == 0 => ";",
            _ => " ",
        };
        write!(row, "{separator}{load}").expect("a string takes everything");
    }
    row.push_str("\"\n");
    row
}

fn format_missing(step: u64) -> String {
    format!("{step}{},\"\"\n", ",".repeat(NUM_PLAIN_COLUMNS - 1))
}

fn parse(line: &str) -> Result<StepRecord, String> {
    let (plain, load) = line.split_once(",\"").ok_or("it has no quoted last column")?;
    let load = load.strip_suffix('"').ok_or("its last column does not end with a quote")?;
    let columns: Vec<&str> = plain.split(',').collect();
    if columns.len() != NUM_PLAIN_COLUMNS {
        return Err(format!("it has {} columns before the last, expected {NUM_PLAIN_COLUMNS}", columns.len()));
    }
    if load.is_empty() && columns[1..].iter().all(|c| c.is_empty()) {
        return Ok(missing_record(number(columns[0], "step")?));
    }
    let layers: Vec<&str> = if load.is_empty() { Vec::new() } else { load.split(';').collect() };
    let counts = layers.iter().flat_map(|l| l.split(' '));
    let expert_load: Result<Vec<u64>, String> = counts.map(|c| number(c, "a count of expert_load")).collect();
    Ok(StepRecord {
        step: number(columns[0], "step")?,
        loss: number(columns[1], "loss")?,
        ce: number(columns[2], "ce")?,
        z_loss: number(columns[3], "z_loss")?,
        balance_loss: number(columns[4], "balance_loss")?,
        grad_norm: number(columns[5], "grad_norm")?,
        lr: number(columns[6], "lr")?,
        weight_decay: number(columns[7], "weight_decay")?,
        tokens: number(columns[8], "tokens")?,
        tokens_per_s: number(columns[9], "tokens_per_s")?,
        step_s: number(columns[10], "step_s")?,
        skipped: number(columns[11], "skipped")?,
        epoch: number(columns[12], "epoch")?,
        hidden_s: number(columns[13], "hidden_s")?,
        exposed_s: number(columns[14], "exposed_s")?,
        expert_load: expert_load?,
        num_layers: layers.len() as u32,
        missing: false,
    })
}

fn number<T: std::str::FromStr>(text: &str, column: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no {column}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            loss: 5.0 / 3.0,
            ce: f64::from_bits(0x3ff0_0000_0000_0001),
            z_loss: 1e-300,
            balance_loss: f64::MAX,
            grad_norm: f64::INFINITY,
            lr: f64::MIN_POSITIVE / 2.0,
            weight_decay: -0.0,
            tokens: u64::MAX,
            tokens_per_s: 0.1 + 0.2,
            step_s: 0.0,
            skipped: step.is_multiple_of(2),
            epoch: 3,
            hidden_s: 1.0 / 3.0,
            exposed_s: 1e-9,
            expert_load: (0..6).map(|e| e * step).collect(),
            num_layers: 3,
            missing: false,
        }
    }

    fn filled(num: u64) -> (tempfile::TempDir, Curve) {
        let folder = tempfile::tempdir().unwrap();
        let mut curve = Curve::open(folder.path()).unwrap().0;
        (1..=num).for_each(|step| curve.append(&record(step)).unwrap());
        (folder, curve)
    }

    fn steps(records: &[StepRecord]) -> Vec<u64> {
        records.iter().map(|r| r.step).collect()
    }

    #[test]
    fn every_bit_reads_back_also_after_a_restart() {
        let (folder, curve) = filled(4);
        let expected: Vec<StepRecord> = (1..=4).map(record).collect();
        assert_eq!(curve.read(0, 100).unwrap(), expected);
        let (again, summaries) = Curve::open(folder.path()).unwrap();
        assert_eq!(again.read(0, 100).unwrap(), expected);
        assert_eq!(again.last(), expected.last());
        assert_eq!(summaries, expected.iter().map(StepSummary::from).collect::<Vec<_>>());
        let bits = |r: &StepRecord| [r.ce, r.lr, r.weight_decay, r.tokens_per_s].map(f64::to_bits);
        assert_eq!(bits(&again.read(2, 1).unwrap()[0]), bits(&record(2)));
    }

    #[test]
    fn the_file_is_what_the_readme_says() {
        let (folder, mut curve) = filled(0);
        let plain =
            StepRecord { step: 1, loss: 5.5, expert_load: vec![1, 2, 3, 4], num_layers: 2, ..Default::default() };
        curve.append(&plain).unwrap();
        let none = StepRecord { step: 2, ..Default::default() };
        curve.append(&none).unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        let rows = "1,5.5,0,0,0,0,0,0,0,0,0,false,0,0,0,\"1 2;3 4\"\n2,0,0,0,0,0,0,0,0,0,0,false,0,0,0,\"\"\n";
        assert_eq!(text, format!("{HEADER}\n{rows}"));
        assert_eq!(curve.read(1, 2).unwrap(), [plain, none]);
    }

    #[test]
    fn ranges_of_rows_are_by_step() {
        let (_folder, mut curve) = filled(3);
        curve.append(&record(7)).unwrap();
        assert_eq!(steps(&curve.read(2, 2).unwrap()), [2, 3]);
        assert_eq!(steps(&curve.read(4, 9).unwrap()), [7], "a hole is passed over");
        assert_eq!(curve.read(8, 9).unwrap(), []);
        assert_eq!(curve.read(1, 0).unwrap(), []);
    }

    #[test]
    fn t12_a_gap_has_rows_that_say_so() {
        let (folder, mut curve) = filled(2);
        curve.append_gap(3..=5).unwrap();
        assert_eq!(curve.last(), Some(&record(2)), "the newest with figures");
        curve.append(&record(6)).unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert_eq!(text.lines().nth(3), Some("3,,,,,,,,,,,,,,,\"\""));
        let columns = text.lines().next().unwrap().split(',').count();
        assert_eq!(text.lines().nth(4).unwrap().split(',').count(), columns);
        let (again, summaries) = Curve::open(folder.path()).unwrap();
        assert_eq!(summaries.iter().map(|s| s.missing).collect::<Vec<_>>(), [false, false, true, true, true, false]);
        let rows = again.read(1, 9).unwrap();
        assert_eq!(steps(&rows), [1, 2, 3, 4, 5, 6]);
        assert!(rows[2].missing && rows[2].loss.is_nan() && !rows[5].missing);
        curve.cut(4).unwrap();
        assert_eq!(curve.last(), Some(&record(2)));
        assert_eq!(Curve::open(folder.path()).unwrap().0.last(), Some(&record(2)));
    }

    #[test]
    fn a_cut_drops_what_comes_after() {
        let (folder, mut curve) = filled(5);
        curve.cut(9).unwrap();
        assert_eq!(curve.last().map(|r| r.step), Some(5));
        curve.cut(3).unwrap();
        assert_eq!(curve.last().map(|r| r.step), Some(3));
        curve.append(&record(4)).unwrap();
        assert_eq!(steps(&Curve::open(folder.path()).unwrap().0.read(0, 9).unwrap()), [1, 2, 3, 4]);
        curve.cut(0).unwrap();
        assert_eq!((curve.last(), curve.read(0, 9).unwrap().len()), (None, 0));
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_was_torn() {
        let (folder, _) = filled(3);
        let path = folder.path().join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (mut curve, summaries) = Curve::open(folder.path()).unwrap();
            let num_lines = whole[..len].iter().filter(|b| **b == b'\n').count();
            assert_eq!(summaries.len(), num_lines.saturating_sub(1), "cut to {len} bytes");
            curve.append(&record(4)).unwrap();
            assert_eq!(Curve::open(folder.path()).unwrap().0.last(), Some(&record(4)), "cut to {len} bytes");
        }
    }

    #[test]
    fn a_bad_line_in_the_middle_is_named() {
        let (folder, _) = filled(3);
        let path = folder.path().join(FILE_NAME);
        let good = std::fs::read_to_string(&path).unwrap();
        let damaged = |from: &str, to: &str| {
            std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
            Curve::open(folder.path()).unwrap_err().to_string()
        };
        assert!(damaged("\n2,1.6", "\n2,x1.6").contains("line 3 of"));
        assert!(damaged("\n2,1.6", "\n2,x1.6").contains("is no loss"));
        assert!(damaged("\n2,", "\n1,").contains("step 1 follows step 1"));
        assert!(damaged("\n2,", "\n2,2,").contains("16 columns before the last, expected 15"));
        assert!(damaged("step,loss", "loss,step").contains("does not begin with the header"));
    }
}
