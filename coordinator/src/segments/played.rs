//! A bucket of tests, in memory, which answers or does not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use toroid_torus::owner::{Owner, OwnerId};

use super::shelf::{SegmentsError, Shelf};

#[derive(Debug, Clone)]
pub struct Objects(Arc<State>);

#[derive(Debug)]
struct State {
    owner: OwnerId,
    all: Mutex<BTreeMap<String, Vec<u8>>>,
    is_dead: AtomicBool,
    num_heads: AtomicU64,
}

impl Objects {
    pub fn of(owner: OwnerId) -> Objects {
        let (all, is_dead, num_heads) = Default::default();
        Objects(Arc::new(State { owner, all, is_dead, num_heads }))
    }

    /// Whether every request fails from now on.
    pub fn set_dead(&self, is_dead: bool) {
        self.0.is_dead.store(is_dead, Ordering::SeqCst);
    }

    /// Heads that were ever written.
    pub fn num_heads(&self) -> u64 {
        self.0.num_heads.load(Ordering::SeqCst)
    }

    fn ask(&self) -> Result<MutexGuard<'_, BTreeMap<String, Vec<u8>>>, SegmentsError> {
        match self.0.is_dead.load(Ordering::SeqCst) {
            true => {
                let error = "the store answered 503 SlowDown".into();
                Err(SegmentsError::Unanswered { what: "asking", path: self.folder().into(), error })
            }
            false => Ok(self.0.all.lock().unwrap()),
        }
    }

    fn failed(&self, why: &str) -> SegmentsError {
        SegmentsError::Io { what: "asking", path: self.folder().into(), error: why.into() }
    }
}

impl Shelf for Objects {
    fn root(&self) -> &str {
        "s3://bucket/run"
    }

    fn folder(&self) -> &str {
        "s3://bucket/run/curve"
    }

    fn store(&self) -> Option<String> {
        Some("bucket".into())
    }

    fn grows(&self) -> bool {
        false
    }

    fn segment_bytes(&self) -> u64 {
        200
    }

    fn names(&self) -> Result<Vec<String>, SegmentsError> {
        Ok(self.ask()?.keys().cloned().collect())
    }

    fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, SegmentsError> {
        let read = self.ask()?.get(name).cloned();
        assert!(read.as_ref().is_none_or(|bytes| bytes.len() as u64 <= max_bytes));
        Ok(read)
    }

    fn read_range(&self, name: &str, start: u64, end: u64) -> Result<Vec<u8>, SegmentsError> {
        let whole = self.read(name, u64::MAX)?.ok_or_else(|| self.failed("there is no such object"))?;
        Ok(whole[start as usize..end as usize].to_vec())
    }

    fn owner(&self) -> Result<Vec<u8>, SegmentsError> {
        drop(self.ask()?);
        Ok(Owner::new(self.0.owner, "j-1", "j", 1).to_json().into())
    }

    fn appear(&self, name: &str, parts: &[&[u8]]) -> Result<(), SegmentsError> {
        self.ask()?.insert(name.into(), parts.concat());
        self.0.num_heads.fetch_add(u64::from(name.starts_with("head-")), Ordering::SeqCst);
        Ok(())
    }

    fn append(&self, name: &str, _: u64, _: &[u8]) -> Result<(), SegmentsError> {
        panic!("{name} does not grow")
    }

    fn remove(&self, name: &str) -> Result<(), SegmentsError> {
        self.ask()?.remove(name).map(drop).ok_or_else(|| self.failed("there is no such object"))
    }
}
