//! What a worker asks of its machine: the time, waiting, threads, links, folders of checkpoints, random bytes.
//!
//! ```text
//!   trainer, comm, checkpoint ──> now, pause, random ...      outside of a simulation: the operating system, directly
//!                                    '──> System               in one: what plays the machine, entered on this thread
//! ```
//!
//! A simulation runs the workers of a whole cluster on one thread, in virtual time. Code that waits asks [`simulated`] first: where there
//! is a [`System`], [`System::wait`] gives the turn to others and comes back when something has happened to this worker.
//!
//! Deliberately absent: decisions. Whatever differs between a simulation and a machine is one call of this trait wide.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Plays the machine of whichever worker runs at the moment.
pub trait System {
    fn now(&self) -> Instant;

    /// Comes back when something has happened to this worker since the last time, or at `until`.
    fn wait(&self, until: Option<Instant>);

    /// The trainer, or a thread beside it, has got to this point of its work on `step`. It may stay there for a while.
    fn pass(&self, point: &str, step: u64);

    /// Has the thread of that name do this after all it was given before.
    fn order(&self, thread: &'static str, work: Box<dyn FnOnce() + Send>);

    /// Begins to connect to who listens at `address`.
    fn connect(&self, address: &str) -> io::Result<Box<dyn Stream>>;

    /// The oldest call for this worker's listener, with the address of the caller.
    fn accept(&self) -> io::Result<(Box<dyn Stream>, String)>;

    /// The folder at `root`, whether it is there or not.
    fn folder(&self, root: &str) -> Arc<dyn Folder>;

    /// Whether this worker's host has what is at `path`.
    fn can_see(&self, path: &Path) -> bool;

    fn fill_random(&self, bytes: &mut [u8]);
}

/// A connection to another worker: bytes in order, never waiting. Dropping it closes it.
pub trait Stream: Send {
    /// Whether it is connected; the error where it cannot be.
    fn connected(&self) -> io::Result<bool>;

    /// Reads what is there; 0 where the other side has closed it and all it sent is read.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// There are bytes to read, or the end, or an error.
    fn can_read(&self) -> bool;

    fn can_write(&self) -> bool;

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(&parts.iter().fold(Vec::new(), |mut all, part| {
            all.extend_from_slice(part);
            all
        }))
    }
}

impl std::fmt::Debug for dyn Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a played connection")
    }
}

/// A folder of named files, `folder/file` or `file`. What is written is durable at once.
pub trait Folder: Send + Sync {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the file, or makes it.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file unless it is there; says whether it did.
    fn write_new(&self, name: &str, bytes: &[u8]) -> io::Result<bool>;

    /// Says whether there was one.
    fn remove(&self, name: &str) -> io::Result<bool>;

    /// Renames a file, or a folder with all that is in it; says whether there was one.
    fn rename(&self, from: &str, to: &str) -> io::Result<bool>;

    /// All names below this one, folders left out, in their order.
    fn names(&self, below: &str) -> io::Result<Vec<String>>;
}

impl std::fmt::Debug for dyn Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a played folder")
    }
}

thread_local! {
    static PLAYED: RefCell<Option<Rc<dyn System>>> = const { RefCell::new(None) };
}

/// What plays the machine on this thread, where anything does.
pub fn simulated() -> Option<Rc<dyn System>> {
    PLAYED.with(|played| played.borrow().clone())
}

/// Has `system` play the machine on this thread; `None`: nothing does any more.
pub fn play(system: Option<Rc<dyn System>>) {
    PLAYED.set(system);
}

pub fn now() -> Instant {
    simulated().map_or_else(Instant::now, |system| system.now())
}

/// Bytes that nobody can guess.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    match simulated() {
        Some(system) => system.fill_random(bytes),
        None => getrandom::fill(bytes).map_err(io::Error::other)?,
    }
    Ok(())
}

/// The trainer gets to a point of its work. Outside of a simulation nobody looks.
pub(crate) fn pass(point: &str, step: u64) {
    if let Some(system) = simulated() {
        system.pass(point, step);
    }
}
