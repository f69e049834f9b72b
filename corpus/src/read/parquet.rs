//! Rows of Parquet files: of each the wanted columns, by their paths.
//!
//! Only the columns that are wanted are read, page by page: a row group may be larger than memory, and a page must fit. A column that repeats (a list of texts) gives its
//! values joined by line ends.

use std::path::Path;

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use toroid_storage::StorageError;

use crate::error::{At, Result};
use crate::read::files::Listed;
use crate::read::input::Input;
use crate::read::stream::Broken;

/// What stands in paths of lists below the name of the list, as writers have it.
const LIST_PARTS: [&str; 5] = ["list", "element", "item", "bag", "array_element"];

type Found<T> = Result<std::result::Result<T, Broken>>;

/// Bytes of texts, or why there are none.
pub type Value = std::result::Result<Option<String>, String>;

/// An error of the disk, or of the store, ends the run; one of the contents is a bad record.
fn sort<T>(path: &Path, result: std::result::Result<T, ParquetError>) -> Found<T> {
    let error = match result {
        Ok(value) => return Ok(Ok(value)),
        Err(error) => error,
    };
    if let ParquetError::External(inner) = &error {
        let inner = inner.downcast_ref::<std::io::Error>();
        if let Some(code) = inner.and_then(std::io::Error::raw_os_error) {
            return Err(std::io::Error::from_raw_os_error(code)).at("read", path);
        }
        if let Some(error) = inner.and_then(|e| e.get_ref()?.downcast_ref::<StorageError>()) {
            return Err(error.clone().into());
        }
    }
    Ok(Err(Broken(format!("cannot be read as Parquet ({error})"))))
}

macro_rules! or_broken {
    ($path:expr, $result:expr) => {
        match sort($path, $result)? {
            Ok(value) => value,
            Err(broken) => return Ok(Err(broken)),
        }
    };
}

fn open(file: &Listed) -> Found<SerializedFileReader<Input>> {
    sort(&file.path, SerializedFileReader::new(Input::open_for_columns(file)?))
}

/// Rows and bytes of each row group; none if the file cannot be read.
pub fn groups(file: &Listed) -> Result<Vec<(u64, u64)>> {
    let Ok(file) = open(file)? else { return Ok(Vec::new()) };
    let size = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(file.metadata().row_groups().iter().map(|g| (size(g.num_rows()), size(g.compressed_size()))).collect())
}

/// A column of one row group.
struct Column {
    reader: ColumnReader,
    /// A value is there where its level is this one; a higher one than 0 of the other means that rows have several.
    max_def_level: i16,
    max_rep_level: i16,
}

/// The rows of a file from one of them on.
pub struct Rows {
    file: SerializedFileReader<Input>,
    /// Of each wanted field the number of its column, if the file has it.
    wanted: Vec<Option<usize>>,
    columns: Vec<Option<Column>>,
    next_group: usize,
    num_left: u64,
    /// The number of the next row.
    pub position: u64,
}

impl Rows {
    pub fn open(file: &Listed, fields: &[&str], position: u64) -> Found<Rows> {
        let (path, opened) = (&file.path, open(file)?);
        let file = match opened {
            Ok(file) => file,
            Err(broken) => return Ok(Err(broken)),
        };
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let is_field = |field: &str, n: usize| {
            let column = schema.column(n);
            let mut parts = column.path().parts();
            while column.max_rep_level() > 0 && parts.last().is_some_and(|part| LIST_PARTS.contains(&part.as_str())) {
                parts = &parts[..parts.len() - 1];
            }
            parts.join(".") == field
        };
        let wanted = fields.iter().map(|field| (0..schema.num_columns()).find(|n| is_field(field, *n))).collect();
        let mut rows = Rows { file, wanted, columns: Vec::new(), next_group: 0, num_left: 0, position: 0 };
        // Whole row groups before it, and the rows before it of its own.
        while let Some(num) = rows.rows_of(rows.next_group).filter(|num| rows.position + num <= position) {
            rows.position += num;
            rows.next_group += 1;
        }
        while rows.position < position {
            match rows.next(path, u64::MAX)? {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(broken) => return Ok(Err(broken)),
            }
        }
        Ok(Ok(rows))
    }

    fn rows_of(&self, group: usize) -> Option<u64> {
        self.file.metadata().row_groups().get(group).and_then(|group| u64::try_from(group.num_rows()).ok())
    }

    /// The values of the next row; of texts longer than `max_bytes` the reason why they are not there.
    pub fn next(&mut self, path: &Path, max_bytes: u64) -> Found<Option<Vec<Value>>> {
        while self.num_left == 0 {
            let Some(num) = self.rows_of(self.next_group) else { return Ok(Ok(None)) };
            let group = or_broken!(path, self.file.get_row_group(self.next_group));
            self.columns.clear();
            for column in &self.wanted {
                self.columns.push(match column {
                    Some(n) => {
                        let about = group.metadata().column(*n).column_descr();
                        let (max_def_level, max_rep_level) = (about.max_def_level(), about.max_rep_level());
                        let reader = or_broken!(path, group.get_column_reader(*n));
                        Some(Column { reader, max_def_level, max_rep_level })
                    }
                    None => None,
                });
            }
            self.num_left = num;
            self.next_group += 1;
        }
        let mut row = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            let Some(column) = column else {
                row.push(Ok(None));
                continue;
            };
            let Some(value) = or_broken!(path, column.next(max_bytes)) else {
                let what = "cannot be read as Parquet (a column has fewer rows than its group)";
                return Ok(Err(Broken(what.into())));
            };
            row.push(value);
        }
        self.num_left -= 1;
        self.position += 1;
        Ok(Ok(Some(row)))
    }
}

impl Column {
    /// The value of the next row; none at the end.
    fn next(&mut self, max_bytes: u64) -> std::result::Result<Option<Value>, ParquetError> {
        let levels = (self.max_def_level, self.max_rep_level);
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => next(reader, levels, max_bytes, |value| {
                let text = std::str::from_utf8(value.data());
                text.map(str::to_owned).map_err(|error| format!("invalid UTF-8 at byte {}", error.valid_up_to()))
            }),
            ColumnReader::Int32ColumnReader(reader) => next(reader, levels, max_bytes, |value| Ok(value.to_string())),
            ColumnReader::Int64ColumnReader(reader) => next(reader, levels, max_bytes, |value| Ok(value.to_string())),
            _ => Err(ParquetError::General("a column that is wanted has neither texts nor whole numbers".into())),
        }
    }
}

/// One row at a time: of long texts no others are kept beside it.
fn next<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    (max_def_level, max_rep_level): (i16, i16),
    max_bytes: u64,
    text: impl Fn(&T::T) -> std::result::Result<String, String>,
) -> std::result::Result<Option<Value>, ParquetError> {
    let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (num_rows, num_values, _) = reader.read_records(1, Some(&mut defined), Some(&mut repeated), &mut values)?;
    if num_rows == 0 {
        return Ok(None);
    }
    let is_there = max_def_level == 0 || defined.contains(&max_def_level);
    if !is_there || num_values == 0 {
        return Ok(Some(Ok(None)));
    }
    let mut joined = String::new();
    for (n, value) in values.iter().take(num_values).enumerate() {
        match text(value) {
            Ok(part) => {
                if n > 0 && max_rep_level > 0 {
                    joined.push('\n');
                }
                joined.push_str(&part);
            }
            Err(what) => return Ok(Some(Err(what))),
        }
        if joined.len() as u64 > max_bytes {
            return Ok(Some(Err(format!("longer than read.max_document_bytes = {max_bytes}"))));
        }
    }
    Ok(Some(Ok(Some(joined))))
}
