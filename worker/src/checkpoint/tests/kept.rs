//! Where the checkpoints of a test lie: a folder, or a bucket of a store that is played in memory and fails as it is told.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::super::objects::bucket::{Bucket, Failed, Listed, Sending, Service};
use super::*;

/// Does the same in a folder and in a bucket, which job 1 has.
pub(super) fn in_each(test: impl Fn(Kept, Owned)) {
    for kept in [Kept::folder(), Kept::bucket()] {
        let storage = kept.own(1);
        test(kept, storage);
    }
}

/// Checkpoints as somebody sees them who knows where they lie. Names are below their root.
pub(super) struct Kept {
    temporary: tempfile::TempDir,
    store: Option<Store>,
}

impl Kept {
    pub fn folder() -> Kept {
        Kept { temporary: tempfile::tempdir().unwrap(), store: None }
    }

    pub fn bucket() -> Kept {
        Kept { store: Some(Store::default()), ..Kept::folder() }
    }

    pub fn storage(&self) -> Arc<Storage> {
        Arc::new(match &self.store {
            Some(store) => Storage::of(Arc::new(Bucket::new(Box::new(store.clone())))),
            None => Storage::open(self.root().to_str().unwrap()).unwrap(),
        })
    }

    pub fn own(&self, number: u8) -> Owned {
        self.storage().own(&owner(number), Claim::New).unwrap()
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// A file of this machine beside them.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.beside("checkpoints")
    }

    /// As messages have it.
    pub fn path(&self, name: &str) -> String {
        match &self.store {
            Some(store) => store.display(name),
            None => self.root().join(name).display().to_string(),
        }
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        match &self.store {
            Some(store) => store.objects()[name].to_vec(),
            None => std::fs::read(self.root().join(name)).unwrap(),
        }
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        if let Some(store) = &self.store {
            store.objects().insert(name.into(), Bytes::copy_from_slice(bytes.as_ref()));
            return;
        }
        let path = self.root().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn remove(&self, name: &str) {
        match &self.store {
            Some(store) => drop(store.objects().remove(name).unwrap()),
            None => std::fs::remove_file(self.root().join(name)).unwrap(),
        }
    }

    /// Gives a file, or all in a folder, another name.
    pub fn rename(&self, from: &str, to: &str) {
        let Some(store) = &self.store else {
            return std::fs::rename(self.root().join(from), self.root().join(to)).unwrap();
        };
        let mut objects = store.objects();
        let renamed = |name: &str| Some(format!("{to}{}", name.strip_prefix(from)?));
        let names: Vec<String> = objects.keys().filter(|name| renamed(name).is_some()).cloned().collect();
        for name in names {
            let bytes = objects.remove(&name).unwrap();
            objects.insert(renamed(&name).unwrap(), bytes);
        }
    }

    /// Names of all that there is, in their order.
    pub fn files(&self) -> Vec<String> {
        match &self.store {
            Some(store) => store.objects().keys().cloned().collect(),
            None => files_below(&self.root()),
        }
    }
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing is done.
    Refused,
    /// It is done, and the answer is lost.
    AnswerLost,
}

/// Which requests fail: told by what is asked and by the name.
type Fails = dyn Fn(&str, &str) -> Option<Fault> + Send + Sync;

/// A store that answers what others do at once, as S3 does.
#[derive(Clone, Default)]
pub(super) struct Store(Arc<State>);

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<String, Bytes>>,
    fails: Mutex<Option<Box<Fails>>>,
    /// It takes a second object of one name in any case.
    ignores_conditions: AtomicBool,
    /// Uploads that are neither finished nor aborted.
    open: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a played store")
    }
}

impl Store {
    pub fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.objects.lock().unwrap()
    }

    pub fn fail(&self, fails: impl Fn(&str, &str) -> Option<Fault> + Send + Sync + 'static) {
        *self.0.fails.lock().unwrap() = Some(Box::new(fails));
    }

    pub fn work_again(&self) {
        *self.0.fails.lock().unwrap() = None;
    }

    pub fn ignore_conditions(&self) {
        self.0.ignores_conditions.store(true, Ordering::SeqCst);
    }

    pub fn open_uploads(&self) -> Vec<String> {
        self.0.open.lock().unwrap().clone()
    }

    fn ask<T>(&self, what: &str, name: &str, act: impl FnOnce() -> T) -> Result<T, Failed> {
        let fault = self.0.fails.lock().unwrap().as_ref().and_then(|fails| fails(what, name));
        let done = (fault != Some(Fault::Refused)).then(act);
        match (fault, done) {
            (None, Some(done)) => Ok(done),
            _ => Err(format!("cannot {what} {name}: the store answered 503 SlowDown").into()),
        }
    }

    fn put_whole(&self, name: &str, bytes: Bytes) {
        self.objects().insert(name.into(), bytes);
    }
}

impl Service for Store {
    fn root(&self) -> &str {
        "s3://bucket/run"
    }

    fn display(&self, name: &str) -> String {
        format!("s3://bucket/run/{name}")
    }

    fn size(&self, name: &str) -> Result<Option<u64>, Failed> {
        self.ask("head", name, || self.objects().get(name).map(|bytes| bytes.len() as u64))
    }

    fn get(&self, name: &str) -> Result<Option<Bytes>, Failed> {
        self.ask("get", name, || self.objects().get(name).cloned())
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, Failed> {
        let Some(whole) = self.get(name)? else { return Ok(None) };
        let end = (whole.len() as u64).min(range.end);
        if range.start >= end {
            return Err("the store answered 416 InvalidRange".into());
        }
        Ok(Some(whole.slice(range.start as usize..end as usize)))
    }

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failed> {
        self.ask("put", name, || self.put_whole(name, bytes))
    }

    fn heeds_conditions(&self) -> Result<bool, Failed> {
        self.ask("look", "", || !self.0.ignores_conditions.load(Ordering::SeqCst))
    }

    fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, Failed> {
        self.ask("put new", name, || {
            let mut objects = self.objects();
            if objects.contains_key(name) {
                return false;
            }
            objects.insert(name.into(), bytes);
            true
        })
    }

    fn begin<'a>(&'a self, name: &str, _: u64) -> Result<Box<dyn Sending + 'a>, Failed> {
        self.ask("begin", name, || {
            self.0.open.lock().unwrap().push(name.into());
            let upload: Box<dyn Sending> = Box::new(Writing { to: self, name: name.into(), all: Vec::new() });
            upload
        })
    }

    fn list(&self, folder: &str) -> Result<Listed, Failed> {
        self.ask("list", folder, || {
            let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
            let mut listed = Listed::default();
            for (name, bytes) in self.objects().iter() {
                let Some(rest) = name.strip_prefix(&below) else { continue };
                match rest.split_once('/') {
                    Some((folder, _)) if listed.folders.last().is_some_and(|last| last == folder) => {}
                    Some((folder, _)) => listed.folders.push(folder.into()),
                    None => drop(listed.files.insert(rest.into(), bytes.len() as u64)),
                }
            }
            listed
        })
    }

    fn delete(&self, names: &[String]) -> Result<(), Failed> {
        names.iter().try_for_each(|name| self.ask("delete", name, || drop(self.objects().remove(name))))
    }
}

struct Writing<'a> {
    to: &'a Store,
    name: String,
    all: Vec<u8>,
}

impl Sending for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        self.to.ask("send", &self.name, || ())?;
        self.all.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), Failed> {
        let all = std::mem::take(&mut self.all);
        self.to.ask("complete", &self.name, || self.to.put_whole(&self.name, all.into()))
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.to.0.open.lock().unwrap().retain(|name| *name != self.name);
    }
}
