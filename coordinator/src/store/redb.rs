//! Records in one file: redb, whose commits are durable when they return and all or nothing.
//!
//! A value is what [`super::value`] makes of the record. redb locks the file, which keeps a second coordinator out (T-8); each opening counts one
//! term more (T-13). It takes the pages of a file on trust and panics on some damaged ones, even when it closes them; so all pages are
//! checked when the file is opened, and a panic of redb becomes an error here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};

use toroid_torus::ids::Term;

use super::value::{META, check_format, decode, encode};
use super::{Store, StoreError, Tenure};
use crate::machine::Change;
use crate::machine::record::Record;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// One number: the term of whoever opened the store last.
const TERMS: TableDefinition<'_, &str, u64> = TableDefinition::new("terms");
const TERM: &str = "term";

pub struct RedbStore {
    path: PathBuf,
    /// `None` only while it is dropped.
    database: Option<Database>,
    term: Term,
}

impl RedbStore {
    /// Opens the file, or makes an empty one.
    pub fn open(path: &Path) -> Result<RedbStore, StoreError> {
        RedbStore::open_beyond(path, Term::default())
    }

    /// The same, with a term greater than `heard`: the file may be a copy from before it.
    pub fn open_beyond(path: &Path, heard: Term) -> Result<RedbStore, StoreError> {
        let failed = |reason| StoreError::Open { path: path.into(), reason };
        let open = || {
            let database = match Database::create(path) {
                Ok(database) => database,
                Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::InUse { path: path.into() }),
                Err(error) => return Err(failed(error.to_string())),
            };
            let mut store = RedbStore { path: path.into(), database: Some(database), term: Term::default() };
            match store.database.as_mut().expect("set above").check_integrity() {
                Ok(true) => {
                    store.term = store.next_term(heard).map_err(|e| failed(e.to_string()))?;
                    Ok(store)
                }
                // What redb could put together again need not be what was written last.
                Ok(false) => Err(StoreError::Damaged {
                    path: path.into(),
                    reason: "its pages do not match their checksums".into(),
                }),
                Err(error) => Err(failed(error.to_string())),
            }
        };
        unless_it_panics(open, failed)
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("only dropping takes it")
    }

    fn read(&self) -> Result<Vec<Record>, StoreError> {
        let damaged = |reason: String| StoreError::Damaged { path: self.path.clone(), reason };
        let transaction = self.database().begin_read().map_err(|e| damaged(e.to_string()))?;
        let table = match transaction.open_table(RECORDS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(damaged(error.to_string())),
        };
        if let Some(meta) = table.get(META).map_err(|e| damaged(e.to_string()))? {
            check_format(meta.value())?;
        }
        let mut records = Vec::new();
        for entry in table.iter().map_err(|e| damaged(e.to_string()))? {
            let (key, value) = entry.map_err(|e| damaged(e.to_string()))?;
            records.push(decode(key.value(), value.value()).map_err(damaged)?);
        }
        Ok(records)
    }

    /// Counts this opening.
    fn next_term(&self, heard: Term) -> Result<Term, redb::Error> {
        let transaction = self.database().begin_write()?;
        let term = {
            let mut table = transaction.open_table(TERMS)?;
            let last = table.get(TERM)?.map_or(0, |term| term.value());
            let term = Term::new(last).max(heard).next();
            table.insert(TERM, term.get())?;
            term
        };
        transaction.commit()?;
        Ok(term)
    }

    fn write(&self, change: &Change) -> Result<(), redb::Error> {
        let transaction = self.database().begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for key in &change.remove {
                table.remove(key.as_str())?;
            }
            for record in &change.put {
                table.insert(record.key().as_str(), encode(record).as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

#[tonic::async_trait]
impl Store for RedbStore {
    fn tenure(&self) -> Tenure {
        Tenure::locked(self.term)
    }

    async fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        unless_it_panics(|| self.read(), |reason| StoreError::Damaged { path: self.path.clone(), reason })
    }

    async fn commit(&mut self, change: &Change) -> Result<(), StoreError> {
        let failed = |reason| StoreError::Write { path: self.path.clone(), reason };
        unless_it_panics(|| self.write(change).map_err(|e| failed(e.to_string())), failed)
    }

    /// The lock goes with the process.
    async fn resign(&mut self) {}
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        let database = self.database.take();
        let closed = catch_unwind(AssertUnwindSafe(|| drop(database)));
        if closed.is_err() {
            tracing::error!(path = %self.path.display(), "the store could not be closed in order: it is damaged");
        }
    }
}

/// Runs what uses a file that may be damaged. Nothing of it is used after a panic.
fn unless_it_panics<T>(
    work: impl FnOnce() -> Result<T, StoreError>,
    error: impl FnOnce(String) -> StoreError,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(error(format!("the file is not consistent ({text})")))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::machine::record::{FORMAT, Meta};

    fn meta(count: u64) -> Record {
        Record::Meta(Meta {
            format: FORMAT,
            secret: [count as u8; 32],
            num_jobs: BTreeMap::from([("a".into(), count)]),
            retired: BTreeMap::new(),
            cordoned: BTreeMap::new(),
            cordoned_hosts: BTreeMap::new(),
            forgotten: Default::default(),
        })
    }

    fn put(record: Record) -> Change {
        Change { put: vec![record], remove: Vec::new() }
    }

    #[tokio::test]
    async fn a_store_that_was_not_closed_has_all_that_was_committed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut store = RedbStore::open(&path).unwrap();
        for count in 0..5 {
            store.commit(&put(meta(count))).await.unwrap();
            // What a killed coordinator leaves behind.
            let left = folder.path().join(format!("left-{count}"));
            std::fs::copy(&path, &left).unwrap();
            let mut again = RedbStore::open(&left).unwrap();
            assert_eq!(again.load().await.unwrap(), [meta(count)]);
            assert_eq!(again.tenure().term(), store.tenure().term().next());
        }
    }

    #[test]
    fn t13_a_copy_leads_with_a_term_beyond_those_that_were_heard() {
        let folder = tempfile::tempdir().unwrap();
        let (path, heard) = (folder.path().join("store"), Term::new(7));
        assert_eq!(RedbStore::open(&path).unwrap().tenure().term(), Term::new(1));
        assert_eq!(RedbStore::open_beyond(&path, heard).unwrap().tenure().term(), Term::new(8));
        assert_eq!(RedbStore::open_beyond(&path, heard).unwrap().tenure().term(), Term::new(9));
    }

    #[test]
    fn a_second_one_is_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let _first = RedbStore::open(&path).unwrap();
        assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_damaged_file_is_an_error_or_what_was_written_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        RedbStore::open(&path).unwrap().commit(&put(meta(1))).await.unwrap();
        let good = std::fs::read(&path).unwrap();
        let mut num_errors = 0;
        let mut check = async |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            let found = match RedbStore::open(&path) {
                Ok(mut store) => store.load().await,
                Err(error) => Err(error),
            };
            match found {
                Ok(records) => assert_eq!(records, [meta(1)], "{what}"),
                Err(error) => {
                    num_errors += 1;
                    assert!(error.to_string().contains("move it away"), "{what}: {error}");
                }
            }
        };
        // Bytes that hold something, and some of those that do not.
        let places = (0..good.len()).filter(|i| good[*i] != 0 || i % 65_537 == 0).step_by(61);
        for place in places {
            let mut bytes = good.clone();
            bytes[place] ^= 0x40;
            check(&bytes, &format!("byte {place} is flipped")).await;
        }
        for len in [1, 100, good.len() / 2] {
            check(&good[..len], &format!("cut to {len} bytes")).await;
        }
        check(b"step,loss\n1,5.5\n", "not a store at all").await;
        assert!(num_errors > 4, "only {num_errors} of the faults were found");
    }

    /// Whatever the newer version has beside it.
    #[tokio::test]
    async fn the_store_of_a_newer_version_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut store = RedbStore::open(&path).unwrap();
        let Record::Meta(newer) = meta(1) else { panic!("it is a meta record") };
        let newer = Record::Meta(Meta { format: FORMAT + 1, ..newer });
        store.commit(&put(newer)).await.unwrap();
        let transaction = store.database().begin_write().unwrap();
        transaction.open_table(RECORDS).unwrap().insert("a/later/kind", b"of record".as_slice()).unwrap();
        transaction.commit().unwrap();
        let error = store.load().await.unwrap_err().to_string();
        assert!(error.contains(&format!("format {}", FORMAT + 1)) && error.contains("or a newer one"), "{error}");
    }

    #[test]
    fn a_record_that_lies_under_another_key_or_changed_is_found() {
        let value = encode(&meta(1));
        assert_eq!(decode("meta", &value), Ok(meta(1)));
        assert!(decode("job/a-1", &value).unwrap_err().contains("is that of `meta`"));
        assert!(decode("meta", &value[..10]).unwrap_err().contains("only 10 bytes"));
        for byte in 0..value.len() {
            let mut changed = value.clone();
            changed[byte] ^= 1;
            assert!(decode("meta", &changed).is_err(), "byte {byte}");
        }
    }
}
