//! What [`Bucket`](super::bucket::Bucket) asks of a store, asked of a real one.

use std::ops::Range;

use bytes::Bytes;
use toroid_storage::{Kind, PutNew, StorageError, Store, Upload};

use super::MAX_WHOLE_BYTES;
use super::bucket::{Failed, Listed, Sending, Service};
use crate::checkpoint::error::RefusedToAll;

/// Names in a folder, or folders.
const MAX_NAMES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Remote {
    store: Store,
    root: String,
}

impl Remote {
    /// Asks nobody yet.
    pub fn open(url: &str) -> Result<Remote, StorageError> {
        let store = Store::open(url)?;
        Ok(Remote { root: store.location().to_string(), store })
    }
}

/// Whoever asked says what of.
fn failed(error: StorageError) -> Failed {
    match error.kind() {
        Kind::Bucket | Kind::Credentials | Kind::Denied | Kind::Setup | Kind::Unsupported | Kind::Url => {
            Box::new(RefusedToAll(error.why().into()))
        }
        _ => error.why().into(),
    }
}

impl Service for Remote {
    fn root(&self) -> &str {
        &self.root
    }

    fn display(&self, name: &str) -> String {
        self.store.url_of(name)
    }

    fn size(&self, name: &str) -> Result<Option<u64>, Failed> {
        Ok(self.store.head(name).map_err(failed)?.map(|object| object.num_bytes))
    }

    fn get(&self, name: &str) -> Result<Option<Bytes>, Failed> {
        self.store.get(name, MAX_WHOLE_BYTES).map_err(failed)
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, Failed> {
        match self.store.get_range(name, range) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == Kind::Missing => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failed> {
        self.store.put(name, bytes).map_err(failed)
    }

    fn heeds_conditions(&self) -> Result<bool, Failed> {
        self.store.heeds_conditions().map_err(failed)
    }

    fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, Failed> {
        Ok(self.store.put_new(name, bytes).map_err(failed)? == PutNew::Created)
    }

    fn begin<'a>(&'a self, name: &str, total: u64) -> Result<Box<dyn Sending + 'a>, Failed> {
        Ok(Box::new(self.store.upload(name, Some(total)).map_err(failed)?))
    }

    fn list(&self, folder: &str) -> Result<Listed, Failed> {
        let found = self.store.list_folder(folder, MAX_NAMES).map_err(failed)?;
        let last = |name: String| name.rsplit_once('/').map_or_else(|| name.clone(), |(_, last)| last.to_string());
        let files = found.objects.into_iter().map(|object| (last(object.name), object.num_bytes)).collect();
        Ok(Listed { folders: found.folders, files })
    }

    fn delete(&self, names: &[String]) -> Result<(), Failed> {
        let deleted = match names {
            [name] => self.store.delete(name),
            names => self.store.delete_all(names),
        };
        deleted.map_err(failed)
    }
}

impl Sending for Upload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        Upload::write(self, bytes).map_err(failed)
    }

    fn finish(self: Box<Self>) -> Result<(), Failed> {
        Upload::finish(*self).map_err(failed)
    }
}
