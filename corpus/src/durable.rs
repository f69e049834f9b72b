//! Files that appear whole or not at all, tasks on several threads, and a folder that one process owns.
//!
//! A task's output is written under another name, made durable and renamed. Whoever finds it need not do the task: after SIGKILL at any
//! instant the same command goes on from there. What a dead process left under other names is removed by the next one.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher as _;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::error::{At, Error, Result};
use crate::owned;

const BUFFER_BYTES: usize = 1 << 18;
/// In a folder that one process owns.
pub const LOCK: &str = "lock";
const UNFINISHED: &str = ".unfinished-";

/// A name that no other process has, on this machine or another one.
pub fn process_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    // Keys of the standard library's tables are drawn anew by each process.
    NAME.get_or_init(|| format!("{:x}-{:016x}", std::process::id(), RandomState::new().hash_one(std::process::id())))
}

/// A file that can be seen under its name once it is complete and on the disk. Two processes may make the same one at once: the last counts.
pub struct Durable {
    file: BufWriter<File>,
    unfinished: PathBuf,
    path: PathBuf,
    is_finished: bool,
}

impl Durable {
    pub fn create(path: &Path) -> Result<Durable> {
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
        let unfinished = path.with_file_name(format!("{UNFINISHED}{}-{name}", process_name()));
        let file = File::create(&unfinished).at("create", &unfinished)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Durable { file, unfinished, path: path.to_owned(), is_finished: false })
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).at("write", &self.path)
    }

    /// Bytes in the place of earlier ones.
    pub fn overwrite(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.flush().and_then(|()| self.file.get_ref().write_all_at(bytes, at)).at("write", &self.path)
    }

    pub fn finish(mut self) -> Result<()> {
        self.file.flush().at("write", &self.path)?;
        self.file.get_ref().sync_all().at("make durable", &self.path)?;
        fs::rename(&self.unfinished, &self.path).at("rename into place", &self.path)?;
        self.is_finished = true;
        sync_folder(&self.path)
    }
}

impl Write for Durable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if !self.is_finished {
            // A file of a task that failed; the next run removes what cannot be removed now.
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}

/// A rename is durable when its folder is.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).at("make durable", folder)
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Durable::create(path)?;
    file.put(bytes)?;
    file.finish()
}

pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).at("create folder", path)
}

/// Removes what a process that died left unfinished in this folder.
pub fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file that another process may remove at the same time.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

/// Removes a folder of ours if it is there.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

/// Holds a folder, which is ours then, or a step; the system lets go of it when the process ends, however it does.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// The folder for this process alone.
    pub fn take(folder: &Path) -> Result<Lock> {
        Lock::of_folder(folder, File::try_lock)
    }

    /// The folder for this process and others that share it.
    pub fn share(folder: &Path) -> Result<Lock> {
        Lock::of_folder(folder, File::try_lock_shared)
    }

    /// Waits until no other process has the file.
    pub fn wait(path: &Path) -> Result<Lock> {
        let file = File::create(path).at("create", path)?;
        file.lock().at("lock", path)?;
        Ok(Lock { _file: file })
    }

    fn of_folder(folder: &Path, lock: fn(&File) -> std::result::Result<(), fs::TryLockError>) -> Result<Lock> {
        owned::claim(folder)?;
        let path = folder.join(LOCK);
        let file = File::create(&path).at("create", &path)?;
        match lock(&file) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::InUse { path: folder.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(source).at("lock", &path),
        }
    }
}

/// Does the tasks on `num_threads` threads; the error of the first task that failed, in their order.
pub fn run_tasks<T: Sync>(num_threads: usize, tasks: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    map_tasks(num_threads, tasks, work).map(drop)
}

/// What the tasks made, in their order. After a failure no other task begins.
pub fn map_tasks<T: Sync, R: Send>(
    num_threads: usize,
    tasks: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Vec<Mutex<Option<Result<R>>>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..num_threads.clamp(1, tasks.len().max(1)) {
            scope.spawn(|| {
                while !has_failed.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = tasks.get(n) else { return };
                    let result = work(task);
                    has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    *results[n].lock().expect("no task panics while it holds this") = Some(result);
                }
            });
        }
    });
    let results = results.into_iter().filter_map(|r| r.into_inner().expect("no task panics while it holds this"));
    results.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_when_it_is_complete_and_what_is_left_over_goes() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x");
        let mut file = Durable::create(&path)?;
        file.put(b"half")?;
        assert!(!path.exists());
        // As if the process had died: nothing is dropped.
        std::mem::forget(file);
        sweep(dir.path())?;
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
        write(&path, b"whole")?;
        assert_eq!(fs::read(&path).expect("read"), b"whole");
        Ok(())
    }

    #[test]
    fn a_folder_has_one_owner() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let lock = Lock::take(dir.path())?;
        assert!(matches!(Lock::take(dir.path()), Err(Error::InUse { .. })));
        assert!(matches!(Lock::share(dir.path()), Err(Error::InUse { .. })));
        drop(lock);
        let shares = [Lock::share(dir.path())?, Lock::share(dir.path())?];
        assert!(matches!(Lock::take(dir.path()), Err(Error::InUse { .. })));
        drop(shares);
        Lock::take(dir.path()).map(drop)
    }

    #[test]
    fn tasks_come_back_in_their_order_and_the_first_error_counts() -> Result<()> {
        let tasks: Vec<u64> = (0..100).collect();
        assert_eq!(map_tasks(3, &tasks, |n| Ok(n * n))?, tasks.iter().map(|n| n * n).collect::<Vec<_>>());
        let failed = run_tasks(2, &tasks, |n| match n {
            7 => Err(Error::Config("seven".into())),
            _ => Ok(()),
        });
        assert_eq!(failed.expect_err("one failed").to_string(), "seven");
        Ok(())
    }
}
