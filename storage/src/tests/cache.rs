//! Objects as files of this machine.

use std::fs;
use std::path::Path;

use toroid_testkit::Bucket;

use super::proxy::Turn;
use super::{behind, bytes, open};
use crate::{Attend, Cache, CacheError, Store, Timing};

/// Whoever waits, until so many bytes are there.
struct Until(u64, u64);

impl Attend for Until {
    fn advance(&mut self, num_bytes: u64, _: u64) {
        self.1 = num_bytes;
    }

    fn is_over(&self) -> bool {
        self.1 >= self.0
    }
}

fn fetch(cache: &Cache, store: &Store) -> Result<crate::Fetched, CacheError> {
    cache.fetch(store, &mut Until(u64::MAX, 0))
}

/// Folders of what is complete.
fn num_entries(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.is_dir() && path.extension().is_none()).count()
}

#[test]
fn objects_are_fetched_once_and_again_when_they_change() {
    let bucket = Bucket::start().unwrap();
    let (store, proxy) = behind(&bucket, Timing::default(), |_, _| Turn::Forward);
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().join("cache"), None);
    let error = fetch(&cache, &store.below("text").unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("there is nothing at s3://bucket/text"), "{error}");
    let large = bytes(20 << 20);
    store.put("text/a.txt", "one").unwrap();
    store.put("text/deep/b.txt", large.clone()).unwrap();
    store.put("text/empty.txt", "").unwrap();
    let text = store.below("text").unwrap();
    let fetched = fetch(&cache, &text).unwrap();
    assert_eq!(fs::read(fetched.path().join("a.txt")).unwrap(), b"one");
    assert!(fs::read(fetched.path().join("deep/b.txt")).unwrap() == large);
    assert_eq!(fs::read(fetched.path().join("empty.txt")).unwrap(), b"");
    assert_eq!(fetched.num_bytes(), large.len() as u64 + 3);
    let num_read = || proxy.seen().iter().filter(|what| what.starts_with("GET /bucket/")).count();
    let before = num_read();
    assert_eq!(fetch(&cache, &text).unwrap().path(), fetched.path());
    assert_eq!(num_read(), before, "nothing is read again");
    store.put("text/a.txt", "two").unwrap();
    let changed = fetch(&cache, &text).unwrap();
    assert_eq!(fs::read(changed.path().join("a.txt")).unwrap(), b"two");
    assert_eq!(fs::read(fetched.path().join("a.txt")).unwrap(), b"one", "what is in use stays");

    let one = fetch(&cache, &store.below("text/a.txt").unwrap()).unwrap();
    assert_eq!(
        (one.path().file_name().unwrap().to_str(), fs::read(one.path()).unwrap()),
        (Some("a.txt"), b"two".to_vec())
    );
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let bucket = Bucket::start().unwrap();
    let (store, folder) = (open(&bucket, ""), tempfile::tempdir().unwrap());
    let cache = Cache::new(folder.path().into(), Some(250_000));
    let below: Vec<_> = (0..4)
        .map(|n| {
            store.put(&format!("{n}"), bytes(100_000)).unwrap();
            store.below(&format!("{n}")).unwrap()
        })
        .collect();
    let first = fetch(&cache, &below[0]).unwrap();
    let second = fetch(&cache, &below[1]).unwrap();
    let error = fetch(&cache, &below[2]).unwrap_err();
    assert!(error.to_string().contains("what else is in it (200000 bytes) is in use"), "{error}");
    let gone = second.path().to_owned();
    drop(second);
    let third = fetch(&cache, &below[2]).unwrap();
    assert!(first.path().is_file() && third.path().is_file() && !gone.exists());
    drop((first, third));
    drop(fetch(&cache, &below[3]).unwrap());
    assert_eq!(num_entries(folder.path()), 2);
    store.put("large", bytes(250_001)).unwrap();
    let error = fetch(&cache, &store.below("large").unwrap()).unwrap_err();
    assert!(error.to_string().contains("has 250001 bytes, and the cache in"), "{error}");
}

#[test]
fn what_was_fetched_before_a_kill_is_kept() {
    let bucket = Bucket::start().unwrap();
    let (store, proxy) = behind(&bucket, Timing::default(), |_, _| Turn::Forward);
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().into(), None);
    for n in 0..50 {
        store.put(&format!("text/{n:02}"), bytes(1000 + n)).unwrap();
    }
    let text = store.below("text").unwrap();
    let error = cache.fetch(&text, &mut Until(10_000, 0)).unwrap_err();
    assert_eq!(error.to_string(), "nobody needs s3://bucket/text any more");
    assert_eq!(num_entries(folder.path()), 0, "nothing that is not complete has a name");
    let num_read = || proxy.seen().iter().filter(|what| what.starts_with("GET /bucket/text/")).count();
    let before = num_read();
    assert!(before < 50);
    let fetched = fetch(&cache, &text).unwrap();
    assert_eq!(num_read(), 50, "what was there is not read again");
    for n in 0..50 {
        assert_eq!(fs::read(fetched.path().join(format!("{n:02}"))).unwrap().len(), 1000 + n);
    }
}

#[test]
fn of_several_at_once_one_fetches() {
    let bucket = Bucket::start().unwrap();
    let (store, proxy) = behind(&bucket, Timing::default(), |_, _| Turn::Forward);
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().into(), None);
    store.put("text/a", bytes(100_000)).unwrap();
    store.put("text/b", bytes(100_000)).unwrap();
    let text = store.below("text").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fetch(&cache, &text).unwrap().num_bytes(), 200_000));
        }
    });
    assert_eq!(proxy.seen().iter().filter(|what| what.starts_with("GET /bucket/text/")).count(), 2);
}
