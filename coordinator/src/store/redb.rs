//! Records in one file: redb, whose commits are durable when they return and all or nothing.
//!
//! A value is the blake3 digest of the record's JSON (32 bytes) and the JSON. redb checks its own pages only when it repairs a
//! file, so the digest is what finds a flipped bit. redb locks the file, which keeps a second coordinator out (T-8); it panics on
//! some damaged files, which is caught here where its pages are read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};

use super::{Store, StoreError};
use crate::machine::record::Record;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const DIGEST_BYTES: usize = 32;

pub struct RedbStore {
    path: PathBuf,
    database: Database,
}

impl RedbStore {
    /// Opens the file, or makes an empty one.
    pub fn open(path: &Path) -> Result<RedbStore, StoreError> {
        let open = || match Database::create(path) {
            Ok(database) => Ok(RedbStore { path: path.into(), database }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse { path: path.into() }),
            Err(error) => Err(StoreError::Open { path: path.into(), reason: error.to_string() }),
        };
        unless_it_panics(open, |reason| StoreError::Open { path: path.into(), reason })
    }

    fn read(&self) -> Result<Vec<Record>, StoreError> {
        let damaged = |reason: String| StoreError::Damaged { path: self.path.clone(), reason };
        let transaction = self.database.begin_read().map_err(|e| damaged(e.to_string()))?;
        let table = match transaction.open_table(RECORDS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(damaged(error.to_string())),
        };
        let mut records = Vec::new();
        for entry in table.iter().map_err(|e| damaged(e.to_string()))? {
            let (key, value) = entry.map_err(|e| damaged(e.to_string()))?;
            records.push(decode(key.value(), value.value()).map_err(damaged)?);
        }
        Ok(records)
    }

    fn write(&self, records: &[Record]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for record in records {
                table.insert(record.key().as_str(), encode(record).as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Store for RedbStore {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        unless_it_panics(|| self.read(), |reason| StoreError::Damaged { path: self.path.clone(), reason })
    }

    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.write(records).map_err(|e| StoreError::Write { path: self.path.clone(), reason: e.to_string() })
    }
}

fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("a record has only string keys");
    let mut value = blake3::hash(&json).as_bytes().to_vec();
    value.extend(json);
    value
}

fn decode(key: &str, value: &[u8]) -> Result<Record, String> {
    let Some((digest, json)) = value.split_at_checked(DIGEST_BYTES) else {
        return Err(format!("the record `{key}` has only {} bytes", value.len()));
    };
    if blake3::hash(json).as_bytes() != digest {
        return Err(format!("the record `{key}` does not match its digest"));
    }
    let record: Record = serde_json::from_slice(json)
        .map_err(|e| format!("the record `{key}` cannot be read: {e}; was it written by another version?"))?;
    if record.key() != key {
        return Err(format!("the record `{key}` is that of `{}`", record.key()));
    }
    Ok(record)
}

/// Runs what reads a file that may be damaged. Nothing of it is used after a panic.
fn unless_it_panics<T>(
    read: impl FnOnce() -> Result<T, StoreError>,
    error: impl FnOnce(String) -> StoreError,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(error(format!("the file is not consistent ({text})")))
    })
}
