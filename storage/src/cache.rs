//! Objects of a store as files of this machine: fetched once a host, and kept within a bound.
//!
//! ```text
//!   <folder>/<key>/             what was fetched, complete
//!   <folder>/<key>.partial/     what is being fetched; its files are complete but for those that end with .fetching
//!   <folder>/<key>.lock         bytes of it, as text; written when it is used. Shared by who reads it, alone with who fetches or removes it
//!   <folder>/room.lock          of who makes room
//! ```
//!
//! The key is a digest of where the objects are and of their names, sizes and etags, so what has changed gets another one, and what has a name
//! is what the store had. A process that is killed leaves complete files, which the next one keeps, and locks that end with it.
//! Of several workers of a host one fetches; the others wait, and read the same files.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use crate::client::Object;
use crate::error::{Kind, StorageError};
use crate::store::Store;

/// Objects are fetched in pieces of this size, so many at once.
const PIECE_BYTES: u64 = 16 << 20;
const NUM_AT_ONCE: usize = 4;
/// Objects below one URL.
const NUM_OBJECTS_MAX: usize = 1_000_000;
/// How often it is begun again when objects are replaced meanwhile.
const NUM_BEGINNINGS: usize = 3;
/// Between two looks whether another has fetched it.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Whoever waits hears so often that it goes on.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Where no bound is given, what nobody uses leaves the cache until one part of so many of the file system is free.
const FREE_PART: u64 = 10;
/// What is needed is fetched as long as one part of so many stays free, or so many bytes: others write there, too.
const LAST_PART: u64 = 100;
const LAST_BYTES_MAX: u64 = 1 << 30;

/// Why objects are not there as files.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot {action} {}: {cause}; give another folder for the cache, or free space", .path.display())]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
    #[error("there is nothing at {url}: neither an object of this name nor any below it")]
    Nothing { url: String },
    #[error("{url} has {num_bytes} bytes, and the cache in {} has room for {max_bytes} (1 GiB of its file system stays free, of a small one a hundredth); make room there, or take less data", .folder.display())]
    TooLarge { url: String, num_bytes: u64, max_bytes: u64, folder: PathBuf },
    #[error("the cache in {} has no room for the {num_bytes} bytes of {url}: what else is in it ({in_use} bytes) is in use; make room there, or take less data", .folder.display())]
    Full { url: String, num_bytes: u64, in_use: u64, folder: PathBuf },
    #[error("nobody needs {url} any more")]
    Over { url: String },
}

/// Whoever waits for files.
pub trait Attend {
    /// Bytes that are there, of all; at least each second while it gets on, or a store is waited for within its bounds.
    fn advance(&mut self, num_bytes: u64, of: u64);
    /// It waits for another process that fetches the same, or waits no more.
    fn waits(&mut self, _is_waiting: bool) {}
    /// Whether nobody needs them any more.
    fn is_over(&self) -> bool;
}

/// Files of this machine, as long as it is kept.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    num_bytes: u64,
    /// Whoever makes room leaves it.
    _lock: File,
}

impl Fetched {
    /// The file of an object, or a folder with the objects below a prefix by their names.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }
}

/// A folder of this machine, shared by its processes.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
    max_bytes: Option<u64>,
}

/// How many bytes all that is in a cache may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    /// As long as there is something that nobody uses.
    wanted: u64,
    /// In any case.
    most: u64,
}

impl Bound {
    /// Of a file system with `all` bytes, of which `free` are, and `held` are the cache's.
    fn of_file_system(all: u64, free: u64, held: u64) -> Bound {
        let but = |stays_free| (free + held).saturating_sub(stays_free);
        Bound { wanted: but(all / FREE_PART), most: but((all / LAST_PART).min(LAST_BYTES_MAX)) }
    }
}

/// What is at a URL.
struct Set {
    objects: Vec<Object>,
    num_bytes: u64,
    key: String,
    /// Of the one object of this very name.
    file: Option<String>,
}

/// A part of an object that is to come.
struct Piece {
    /// Index of the object.
    object: usize,
    start: u64,
    end: u64,
}

impl Cache {
    /// `max_bytes`: bound of all that is in it; `None` where it is that of the file system.
    pub fn new(folder: PathBuf, max_bytes: Option<u64>) -> Cache {
        Cache { folder, max_bytes }
    }

    /// The object at the URL of `store`, or the objects below it, as files.
    pub fn fetch(&self, store: &Store, attend: &mut dyn Attend) -> Result<Fetched, CacheError> {
        fs::create_dir_all(&self.folder).map_err(|e| io_error("make", &self.folder, e))?;
        let mut beginnings = 0;
        loop {
            beginnings += 1;
            let set = look(store)?;
            match self.fetch_set(store, &set, attend) {
                Err(CacheError::Storage(error)) if error.kind() == Kind::Changed && beginnings < NUM_BEGINNINGS => {
                    info!("{error}; begun again with what is there now");
                }
                result => return result,
            }
        }
    }

    fn fetch_set(&self, store: &Store, set: &Set, attend: &mut dyn Attend) -> Result<Fetched, CacheError> {
        let path = self.folder.join(&set.key);
        let lock_path = self.folder.join(format!("{}.lock", set.key));
        let cannot_lock = |e| io_error("make and lock", &lock_path, e);
        let over = || CacheError::Over { url: store.url_of("") };
        loop {
            let lock =
                File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(cannot_lock)?;
            wait_for(attend, || lock.try_lock_shared()).map_err(cannot_lock)?.ok_or_else(over)?;
            if path.is_dir() {
                // The order in which entries are removed is that of their use.
                let _ = lock.set_modified(SystemTime::now());
                let path = set.file.as_ref().map_or_else(|| path.clone(), |file| path.join(file));
                return Ok(Fetched { path, num_bytes: set.num_bytes, _lock: lock });
            }
            lock.unlock().map_err(cannot_lock)?;
            wait_for(attend, || lock.try_lock()).map_err(cannot_lock)?.ok_or_else(over)?;
            if !path.is_dir() {
                lock.write_all_at(format!("{:<20}", set.num_bytes).as_bytes(), 0).map_err(cannot_lock)?;
                self.make_room(store, set)?;
                let partial = self.folder.join(format!("{}.partial", set.key));
                fill(store, set, &partial, attend)?;
                fs::rename(&partial, &path).map_err(|e| io_error("rename", &partial, e))?;
            }
            lock.unlock().map_err(cannot_lock)?;
        }
    }

    /// Removes what was used longest ago, until the set fits. Its own lock is held.
    fn make_room(&self, store: &Store, set: &Set) -> Result<(), CacheError> {
        let path = self.folder.join("room.lock");
        let room =
            File::create(&path).and_then(|file| file.lock().map(|()| file)).map_err(|e| io_error("lock", &path, e))?;
        let mut entries = self.entries(&set.key).map_err(|e| io_error("list", &self.folder, e))?;
        let mut used: u64 = entries.iter().map(|entry| entry.num_bytes).sum();
        let bound = match self.max_bytes {
            Some(max_bytes) => Bound { wanted: max_bytes, most: max_bytes },
            None => {
                let system =
                    rustix::fs::statvfs(&self.folder).map_err(|e| io_error("look at", &self.folder, e.into()))?;
                let partial = self.folder.join(format!("{}.partial", set.key));
                // What was fetched before a kill is a part of what is to come.
                let there = bytes_below(&partial).map_err(|e| io_error("look at", &partial, e))?;
                let held = used + there;
                Bound::of_file_system(system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize, held)
            }
        };
        let (url, num_bytes, folder) = (store.url_of(""), set.num_bytes, self.folder.clone());
        if num_bytes > bound.most {
            return Err(CacheError::TooLarge { url, num_bytes, max_bytes: bound.most, folder });
        }
        entries.sort_by_key(|entry| entry.used);
        for entry in entries {
            if used + num_bytes <= bound.wanted {
                break;
            }
            if entry.remove(&self.folder).map_err(|e| io_error("remove", &self.folder.join(&entry.key), e))? {
                info!("{} leaves the cache in {}: {} bytes", entry.key, self.folder.display(), entry.num_bytes);
                used -= entry.num_bytes;
            }
        }
        drop(room);
        if used + num_bytes > bound.most {
            return Err(CacheError::Full { url, num_bytes, in_use: used, folder });
        }
        Ok(())
    }

    /// All but that of `key`.
    fn entries(&self, key: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(other) = name.strip_suffix(".lock").filter(|other| *other != key && *other != "room") else {
                continue;
            };
            let there = [self.folder.join(other), self.folder.join(format!("{other}.partial"))];
            if there.iter().any(|path| path.exists()) {
                let num_bytes = fs::read_to_string(file.path())?.trim().parse().unwrap_or(0);
                entries.push(Entry { key: other.into(), num_bytes, used: file.metadata()?.modified()? });
            }
        }
        Ok(entries)
    }
}

struct Entry {
    key: String,
    num_bytes: u64,
    used: SystemTime,
}

impl Entry {
    /// Whether it is gone; `false` where somebody uses it. Its lock's file stays: whoever removed it would let two in at once.
    fn remove(&self, folder: &Path) -> io::Result<bool> {
        let lock = File::options().write(true).open(folder.join(format!("{}.lock", self.key)))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let (path, partial) = (folder.join(&self.key), folder.join(format!("{}.partial", self.key)));
        // Renamed first: what has the entry's name is whole.
        if path.exists() && !partial.exists() {
            fs::rename(&path, &partial)?;
        }
        for path in [path, partial] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }
}

/// Bytes that a folder's files take of their file system.
fn bytes_below(folder: &Path) -> io::Result<u64> {
    let mut num_bytes = 0;
    let files = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        files => files?,
    };
    for file in files {
        let file = file?;
        let metadata = file.metadata()?;
        num_bytes += if metadata.is_dir() { bytes_below(&file.path())? } else { metadata.blocks() * 512 };
    }
    Ok(num_bytes)
}

fn io_error(action: &'static str, path: &Path, cause: io::Error) -> CacheError {
    CacheError::Io { action, path: path.into(), cause }
}

/// `None` where nobody needs it any more.
fn wait_for(attend: &mut dyn Attend, try_lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<Option<()>> {
    let mut is_waiting = false;
    let locked = loop {
        match try_lock() {
            Ok(()) => break Ok(Some(())),
            Err(TryLockError::Error(error)) => break Err(error),
            Err(TryLockError::WouldBlock) if attend.is_over() => break Ok(None),
            Err(TryLockError::WouldBlock) if is_waiting => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                is_waiting = true;
                attend.waits(true);
            }
        }
    };
    if is_waiting {
        attend.waits(false);
    }
    locked
}

/// What is at the URL of a store.
fn look(store: &Store) -> Result<Set, CacheError> {
    let url = store.url_of("");
    let file = store.location().prefix().rsplit('/').next().filter(|name| !name.is_empty()).map(String::from);
    let whole = if file.is_some() { store.head("")? } else { None };
    let (objects, file) = match whole {
        Some(object) => (vec![object], file),
        None => (store.list("", NUM_OBJECTS_MAX)?, None),
    };
    if objects.is_empty() {
        return Err(CacheError::Nothing { url });
    }
    let mut key = blake3::Hasher::new();
    for part in [store.endpoint(), &url, file.as_deref().unwrap_or("/")] {
        key.update(part.as_bytes()).update(b"\n");
    }
    for object in &objects {
        key.update(
            format!("{}\n{}\n{}\n", object.name, object.num_bytes, object.etag.as_deref().unwrap_or("")).as_bytes(),
        );
    }
    let num_bytes = objects.iter().map(|object| object.num_bytes).sum();
    Ok(Set { objects, num_bytes, key: key.finalize().to_hex()[..32].to_string(), file })
}

/// Fetches what is not in `partial` yet.
fn fill(store: &Store, set: &Set, partial: &Path, attend: &mut dyn Attend) -> Result<(), CacheError> {
    fs::create_dir_all(partial).map_err(|e| io_error("make", partial, e))?;
    let path_of = |object: &Object| partial.join(set.file.as_deref().unwrap_or(&object.name));
    let (mut pieces, mut there) = (VecDeque::new(), 0);
    let mut missing = Vec::new();
    for (index, object) in set.objects.iter().enumerate() {
        let path = path_of(object);
        let num_pieces = object.num_bytes.div_ceil(PIECE_BYTES).max(1);
        missing.push(AtomicUsize::new(num_pieces as usize));
        if path.is_file() {
            there += object.num_bytes;
            continue;
        }
        let starts = (0..num_pieces).map(|piece| piece * PIECE_BYTES);
        pieces.extend(starts.map(|start| Piece {
            object: index,
            start,
            end: object.num_bytes.min(start + PIECE_BYTES),
        }));
    }
    if there > 0 {
        info!("{there} of {} bytes of {} were there from before", set.num_bytes, store.url_of(""));
    }
    attend.advance(there, set.num_bytes);
    let (pieces, is_over) = (Mutex::new(pieces), AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..NUM_AT_ONCE {
            let (tell, pieces, missing, is_over) = (tell.clone(), &pieces, &missing, &is_over);
            scope.spawn(move || {
                let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(piece) = next().filter(|_| !is_over.load(Ordering::Relaxed)) {
                    let object = &set.objects[piece.object];
                    let fetched = fetch_piece(store, object, &path_of(object), &piece, &missing[piece.object]);
                    let failed = fetched.is_err();
                    // Nobody listens any more where another piece has failed.
                    if tell.send(fetched).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(tell);
        let (mut failed, mut said) = (None, Instant::now());
        loop {
            if said.elapsed() >= SAY_EVERY {
                attend.advance(there, set.num_bytes);
                said = Instant::now();
            }
            match told.recv_timeout(LOCK_PAUSE) {
                Ok(Ok(num_bytes)) => {
                    there += num_bytes;
                    attend.advance(there, set.num_bytes);
                }
                Ok(Err(error)) => drop(failed.get_or_insert(error)),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if failed.is_none() && attend.is_over() {
                failed = Some(CacheError::Over { url: store.url_of("") });
            }
            is_over.store(failed.is_some(), Ordering::Relaxed);
        }
        if let Some(error) = &failed {
            warn!("{} of {} bytes of {} are in the cache: {error}", there, set.num_bytes, store.url_of(""));
        }
        failed.map_or(Ok(()), Err)
    })
}

/// Returns its bytes. The last piece of an object gives its file the name.
fn fetch_piece(
    store: &Store,
    object: &Object,
    path: &Path,
    piece: &Piece,
    missing: &AtomicUsize,
) -> Result<u64, CacheError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".fetching");
    let fetching = PathBuf::from(name);
    let cannot_write = |e| io_error("write", &fetching, e);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| io_error("make", folder, e))?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(&fetching).map_err(cannot_write)?;
    if piece.start < piece.end {
        let bytes = store.get_range_of(object, piece.start..piece.end)?;
        file.write_all_at(&bytes, piece.start).map_err(cannot_write)?;
    }
    if missing.fetch_sub(1, Ordering::AcqRel) == 1 {
        file.set_len(object.num_bytes).and_then(|()| file.sync_all()).map_err(cannot_write)?;
        fs::rename(&fetching, path).map_err(cannot_write)?;
    }
    Ok(piece.end - piece.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn a_file_system_that_is_nearly_full_still_takes_what_is_needed() {
        let bound = Bound::of_file_system(252 * GB, 20 * GB, 0);
        assert_eq!(bound, Bound { wanted: 0, most: 20 * GB - (1 << 30) });
        assert_eq!(Bound::of_file_system(10 * GB, GB, 3 * GB), Bound { wanted: 3 * GB, most: 3 * GB + 9 * GB / 10 });
        assert_eq!(Bound::of_file_system(10 * GB, GB / 10, 0), Bound { wanted: 0, most: 0 });
    }

    #[test]
    fn what_was_fetched_before_a_kill_has_its_room_already() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(bytes_below(&folder.path().join("none")).unwrap(), 0);
        fs::create_dir(folder.path().join("deep")).unwrap();
        for name in ["a", "deep/b.fetching"] {
            fs::write(folder.path().join(name), vec![1; 100_000]).unwrap();
        }
        let num_bytes = bytes_below(folder.path()).unwrap();
        assert!((200_000..300_000).contains(&num_bytes), "{num_bytes}");
        let (all, left) = (10 * GB, GB);
        let (before, after) =
            (Bound::of_file_system(all, left, 0), Bound::of_file_system(all, left - num_bytes, num_bytes));
        assert_eq!(before, after, "a kill changes nothing");
    }
}
