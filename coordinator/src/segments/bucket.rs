//! A curve in a bucket: objects are whole, and never grow.

use std::time::Duration;

use toroid_storage::{Environment, Kind, StorageError, Store, Timing};
use toroid_torus::owner::{MAX_OWNER_BYTES, OWNER_NAME};

use super::shelf::{FOLDER, SegmentsError, Shelf};

/// Whoever asks tries again, and tells why; a leader that begins waits for it.
const TIMING: Timing =
    Timing { connect: Duration::from_secs(2), silence: Duration::from_secs(5), patience: Duration::from_secs(3) };
/// Files of one curve: segments are for good, and there are few heads.
const MAX_NAMES: usize = 1 << 20;

#[derive(Debug)]
pub struct Bucket {
    store: Store,
    root: String,
    folder: String,
}

impl Bucket {
    /// Asks nobody yet.
    pub fn open(root: &str) -> Result<Bucket, SegmentsError> {
        let store = Store::open_with(root, &Environment::of_process(), TIMING);
        let store = store.map_err(failed("opening", root))?;
        Ok(Bucket { root: store.location().to_string(), folder: store.url_of(FOLDER), store })
    }

    fn failed(&self, what: &'static str, name: &str) -> impl FnOnce(StorageError) -> SegmentsError + use<> {
        failed(what, &self.display(name))
    }
}

fn failed(what: &'static str, path: &str) -> impl FnOnce(StorageError) -> SegmentsError + use<> {
    let path = path.to_string();
    move |error| match (error.kind(), error.why().into()) {
        (Kind::Unreachable | Kind::Busy, error) => SegmentsError::Unanswered { what, path, error },
        (_, error) => SegmentsError::Io { what, path, error },
    }
}

/// As the store has it.
fn key(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

impl Shelf for Bucket {
    fn root(&self) -> &str {
        &self.root
    }

    fn folder(&self) -> &str {
        &self.folder
    }

    fn store(&self) -> Option<String> {
        Some(self.store.location().bucket().into())
    }

    fn grows(&self) -> bool {
        false
    }

    /// Each batch of rows is sent with as many before it.
    fn segment_bytes(&self) -> u64 {
        512 << 10
    }

    fn names(&self) -> Result<Vec<String>, SegmentsError> {
        let found = self.store.list_folder(FOLDER, MAX_NAMES).map_err(failed("listing", &self.folder))?;
        let last = |name: &str| name.rsplit_once('/').map_or(name, |(_, last)| last).to_string();
        Ok(found.objects.iter().map(|object| last(&object.name)).collect())
    }

    fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, SegmentsError> {
        let read = self.store.get(&key(name), max_bytes).map_err(self.failed("reading", name))?;
        Ok(read.map(Into::into))
    }

    fn read_range(&self, name: &str, start: u64, end: u64) -> Result<Vec<u8>, SegmentsError> {
        let read = self.store.get_range(&key(name), start..end).map_err(self.failed("reading", name))?;
        Ok(read.into())
    }

    fn owner(&self) -> Result<Vec<u8>, SegmentsError> {
        let path = self.store.url_of(OWNER_NAME);
        match self.store.get(OWNER_NAME, MAX_OWNER_BYTES).map_err(failed("reading", &path))? {
            Some(json) => Ok(json.into()),
            None => Err(SegmentsError::Io { what: "reading", path, error: "there is no such object".into() }),
        }
    }

    fn appear(&self, name: &str, parts: &[&[u8]]) -> Result<(), SegmentsError> {
        self.store.put(&key(name), parts.concat()).map_err(self.failed("writing", name))
    }

    fn append(&self, name: &str, _: u64, _: &[u8]) -> Result<(), SegmentsError> {
        unreachable!("{name} is an object, which does not grow")
    }

    fn remove(&self, name: &str) -> Result<(), SegmentsError> {
        match self.store.delete(&key(name)) {
            Err(error) if error.kind() != Kind::Missing => Err(self.failed("removing", name)(error)),
            _ => Ok(()),
        }
    }
}
