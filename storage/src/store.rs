//! The operations of a store, for threads that wait. What they wait for runs on two threads that all stores of a process share.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::client::{Client, Listing, Object, PutNew, Wanted};
use crate::environment::Environment;
use crate::error::{Kind, StorageError};
use crate::location::Location;
use crate::patience::Timing;
use crate::upload::Upload;

/// Of this process; it lasts as long as the process does.
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

fn runtime() -> std::io::Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if runtime.is_none() {
        *runtime = Some(Builder::new_multi_thread().worker_threads(2).thread_name("storage").enable_all().build()?);
    }
    Ok(runtime.as_ref().map(|runtime| runtime.handle().clone()).unwrap_or_else(Handle::current))
}

/// Objects below one prefix of one bucket. Cheap to clone. Every method waits, and may be called by any thread that may wait: within a task of
/// tokio that is one of `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Store {
    client: Arc<Client>,
    handle: Handle,
}

impl Store {
    /// Opens `s3://BUCKET/PREFIX` with the environment of this process. Asks nobody yet; [`Store::check`] does.
    pub fn open(url: &str) -> Result<Store, StorageError> {
        Store::open_with(url, &Environment::of_process(), Timing::default())
    }

    pub fn open_with(url: &str, environment: &Environment, timing: Timing) -> Result<Store, StorageError> {
        let location = Location::parse(url)?;
        let cannot = |e: std::io::Error| StorageError::new(Kind::Setup, "open", url, format!("no threads for it: {e}"));
        let handle = runtime().map_err(cannot)?;
        Ok(Store { client: Arc::new(Client::new(location, environment, timing)?), handle })
    }

    pub fn location(&self) -> &Location {
        &self.client.location
    }

    /// The same store, with `name` added to the prefix.
    pub fn below(&self, name: &str) -> Result<Store, StorageError> {
        Ok(Store { client: Arc::new(self.client.below(name)?), handle: self.handle.clone() })
    }

    /// Where the store is; empty where it is AWS's own.
    pub fn endpoint(&self) -> &str {
        self.client.endpoint.as_deref().unwrap_or_default()
    }

    /// What `name` is called in messages.
    pub fn url_of(&self, name: &str) -> String {
        self.client.location.url_of(name)
    }

    /// Whether the bucket is there and may be listed; for those who start something, within `patience`.
    pub fn check(&self, patience: Duration) -> Result<(), StorageError> {
        let client = Arc::clone(&self.client);
        self.wait(async move { client.check(patience).await })
    }

    /// Writes an object, in the place of any that is there.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), StorageError> {
        let (client, name, bytes) = (Arc::clone(&self.client), name.to_string(), bytes.into());
        self.wait(async move { client.put(&name, bytes).await })
    }

    /// Writes an object unless there is one of this name. Of several writers one is told [`PutNew::Created`], where the store heeds conditions:
    /// see [`Store::heeds_conditions`].
    pub fn put_new(&self, name: &str, bytes: impl Into<Bytes>) -> Result<PutNew, StorageError> {
        let (client, name, bytes) = (Arc::clone(&self.client), name.to_string(), bytes.into());
        self.wait(async move { client.put_new(&name, bytes).await })
    }

    /// Whether the store heeds conditions of writes. Asks it once, with a small object below the prefix that is deleted again.
    pub fn heeds_conditions(&self) -> Result<bool, StorageError> {
        let client = Arc::clone(&self.client);
        self.wait(async move { client.heeds_conditions().await })
    }

    /// Begins an object of `num_bytes`, or of as many as will be, that nobody sees before [`Upload::finish`].
    pub fn upload(&self, name: &str, num_bytes: Option<u64>) -> Result<Upload, StorageError> {
        Upload::new(Arc::clone(&self.client), self.handle.clone(), name, num_bytes)
    }

    /// The whole object; `None` where there is none. An error where it has more than `max_bytes`.
    pub fn get(&self, name: &str, max_bytes: u64) -> Result<Option<Bytes>, StorageError> {
        let (client, name) = (Arc::clone(&self.client), name.to_string());
        self.wait(async move { client.get(&name, Wanted::default(), max_bytes).await })
    }

    /// Exactly the bytes `range`; an error of [`Kind::Missing`] where there is no such object, and another where it ends before.
    pub fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.read_range(name, range, None)
    }

    /// The same, of the object as it was listed: an error of [`Kind::Changed`] where it was replaced since.
    pub fn get_range_of(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.read_range(&object.name, range, object.etag.clone())
    }

    fn read_range(&self, name: &str, range: Range<u64>, etag: Option<String>) -> Result<Bytes, StorageError> {
        let (client, named) = (Arc::clone(&self.client), name.to_string());
        let num_bytes = range.end.saturating_sub(range.start);
        let wanted = Wanted { range: Some(range.clone()), etag };
        let bytes = self.wait(async move { client.get(&named, wanted, num_bytes).await })?;
        let error = |kind, what: String| StorageError::new(kind, "read", &self.url_of(name), what);
        let bytes = bytes.ok_or_else(|| error(Kind::Missing, "there is no such object".into()))?;
        if bytes.len() as u64 != num_bytes {
            let what = format!("{} bytes at {range:?}, expected {num_bytes}: it ends before", bytes.len());
            return Err(error(Kind::Refused, what));
        }
        Ok(bytes)
    }

    /// An object, unless there is none.
    pub fn head(&self, name: &str) -> Result<Option<Object>, StorageError> {
        let (client, name) = (Arc::clone(&self.client), name.to_string());
        self.wait(async move { client.head(&name).await })
    }

    /// Every object below `name` (the prefix itself where it is empty), in the order of their keys; an error where there are more than `max`.
    pub fn list(&self, name: &str, max: usize) -> Result<Vec<Object>, StorageError> {
        let (client, name) = (Arc::clone(&self.client), name.to_string());
        self.wait(async move { client.list(&name, max).await })
    }

    /// What is directly below `name`; an error where that is more than `max`.
    pub fn list_folder(&self, name: &str, max: usize) -> Result<Listing, StorageError> {
        let (client, name) = (Arc::clone(&self.client), name.to_string());
        self.wait(async move { client.list_folder(&name, max).await })
    }

    /// Deletes an object. It is no error that there is none.
    pub fn delete(&self, name: &str) -> Result<(), StorageError> {
        let (client, name) = (Arc::clone(&self.client), name.to_string());
        self.wait(async move { client.delete(&name).await })
    }

    /// Deletes objects, in no order: what must go before other things is deleted before, by a call of its own.
    pub fn delete_all(&self, names: &[String]) -> Result<(), StorageError> {
        let (client, names) = (Arc::clone(&self.client), names.to_vec());
        self.wait(async move { client.delete_all(&names).await })
    }

    fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        wait(&self.handle, work)
    }
}

/// Runs `work` on the storage threads until it is done.
pub(crate) fn wait<T: Send + 'static>(handle: &Handle, work: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = mpsc::sync_channel(1);
    handle.spawn(async move {
        // Whoever waits for it is there: nobody else has the other end.
        let _ = done.send(work.await);
    });
    result.recv().expect("work on a store does not panic, and its threads last as long as the process")
}
