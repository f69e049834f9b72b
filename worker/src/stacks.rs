//! What all threads of this process are in, for who asks why it gets on with nothing.
//!
//! ```text
//!   watchdog ── take ──> for each thread: signal ──> its handler writes addresses into SLOT ──> names and lines, here
//! ```
//!
//! A handler runs in the middle of anything, so it does what is safe there and nothing else: it asks the kernel for its thread's number, walks its own
//! stack and stores addresses in a static array. It runs on the thread's own stack: the one that is kept for an overflow is too small for the walk. No memory is allocated and no lock of ours is taken. The walk is libgcc's `_Unwind_Backtrace`, which
//! with glibc 2.35 or later finds the tables of a frame without a lock; before it takes the one of `dl_iterate_phdr`, which an interrupted thread holds only while
//! it loads a library. Whatever a thread makes of the signal is waited for with a limit: one that does not answer (it is stopped, or in the kernel
//! for good) is named without a stack. Names are looked up by the thread that asks.
//!
//! A process that is stopped (SIGSTOP) runs none of this: nothing can be had of it from inside.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Threads whose stacks are taken; the others are counted.
const MAX_THREADS: usize = 64;
/// Of one stack, from the innermost.
const MAX_FRAMES: usize = 48;
/// Of the innermost frames, those of the handler and of the kernel's way into it.
const MAX_OWN_FRAMES: usize = 12;
/// Lines in all, and bytes of each.
const MAX_LINES: usize = 160;
const MAX_LINE_BYTES: usize = 200;
/// How long a thread has to answer.
const ANSWERS_WITHIN: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(1);

/// Nobody is asked.
const FREE: i32 = 0;
/// A handler writes.
const WRITING: i32 = -1;
/// A handler has written.
const WRITTEN: i32 = -2;

/// Who is asked (the number of a thread), or how far that is.
static SLOT: AtomicI32 = AtomicI32::new(FREE);
static FRAMES: [AtomicUsize; MAX_FRAMES + MAX_OWN_FRAMES] =
    [const { AtomicUsize::new(0) }; MAX_FRAMES + MAX_OWN_FRAMES];
static NUM_FRAMES: AtomicUsize = AtomicUsize::new(0);
/// One asks at a time.
static ASKING: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();
/// The error of installing the handler; 0: there is one.
static INSTALL_ERROR: AtomicU64 = AtomicU64::new(0);

/// Of the real-time signals one that no library here uses: the C library has the first two, and debuggers and profilers take SIGPROF and SIGURG.
fn signal() -> i32 {
    libc::SIGRTMIN() + 9
}

fn install() -> Result<(), std::io::Error> {
    INSTALL.call_once(|| {
        let handler: extern "C" fn(i32) = writes_down_its_stack;
        // SAFETY: the structure is plain data of which zeros are valid, and `sigaction` is given valid pointers. The handler keeps to what is
        // safe in one, as the module says; SA_RESTART has interrupted calls go on.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut())
        };
        if installed != 0 {
            let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
            INSTALL_ERROR.store(u64::from(code.unsigned_abs()), Ordering::SeqCst);
        }
    });
    match INSTALL_ERROR.load(Ordering::SeqCst) {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code as i32)),
    }
}

/// The handler: the thread that was asked writes down where it is.
#[inline(never)]
extern "C" fn writes_down_its_stack(_signal: i32) {
    // SAFETY: both only ask for or give the address of a number of this thread.
    let (thread, errno) = unsafe { (libc::gettid(), libc::__errno_location()) };
    // SAFETY: the address is that of this thread's own number.
    let before = unsafe { *errno };
    if SLOT.compare_exchange(thread, WRITING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        let mut num = 0;
        // SAFETY: what must not run at the same time is looking up names, which this does not: it only walks the stack.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                FRAMES[num].store(frame.ip() as usize, Ordering::Relaxed);
                num += 1;
                num < FRAMES.len()
            });
        }
        NUM_FRAMES.store(num, Ordering::Relaxed);
        SLOT.store(WRITTEN, Ordering::Release);
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// The addresses of one thread's stack, from the innermost.
fn frames_of(thread: i32) -> Option<Vec<usize>> {
    SLOT.compare_exchange(FREE, thread, Ordering::AcqRel, Ordering::Relaxed).ok()?;
    // SAFETY: a number of a thread of this process, or of one that has ended since, which is an error.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
    let begun = Instant::now();
    while sent == 0 && SLOT.load(Ordering::Acquire) != WRITTEN && begun.elapsed() < ANSWERS_WITHIN {
        std::thread::park_timeout(LOOK);
    }
    if SLOT.compare_exchange(WRITTEN, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        let num = NUM_FRAMES.load(Ordering::Relaxed);
        return Some(FRAMES[..num].iter().map(|ip| ip.load(Ordering::Relaxed)).collect());
    }
    // One that answers later finds nobody who asks. One that is in the middle of it keeps the slot, and nobody is asked any more.
    let _ = SLOT.compare_exchange(thread, FREE, Ordering::AcqRel, Ordering::Relaxed);
    None
}

/// Numbers and names of all threads but the calling one, the trainer's first.
fn threads() -> std::io::Result<Vec<(i32, String)>> {
    // SAFETY: it has no argument and cannot fail.
    let own = unsafe { libc::gettid() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse().unwrap_or(own);
        // One that has ended meanwhile has none.
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if number != own {
            found.push((number, name.trim().to_string()));
        }
    }
    found.sort_by_key(|(number, name)| (name != "trainer", *number));
    Ok(found)
}

/// The stacks of all other threads in words: a line for each thread, then one for each of its frames from the innermost. Threads that are in the same
/// place are named together.
pub fn take() -> std::io::Result<Vec<String>> {
    take_of(threads()?)
}

/// The same of these threads.
fn take_of(threads: Vec<(i32, String)>) -> std::io::Result<Vec<String>> {
    let _turn = lock(&ASKING);
    install()?;
    let num_more = threads.len().saturating_sub(MAX_THREADS);
    let mut stacks: Vec<(Option<Vec<usize>>, Vec<String>)> = Vec::new();
    for (number, name) in threads.into_iter().take(MAX_THREADS) {
        let frames = frames_of(number);
        match stacks.iter_mut().find(|(other, _)| *other == frames) {
            Some((_, names)) => names.push(name),
            None => stacks.push((frames, vec![name])),
        }
    }
    let mut names = BTreeMap::new();
    let mut lines = Vec::new();
    for (frames, threads) in stacks {
        let what = if threads.len() == 1 { "thread" } else { "threads" };
        let answered = if frames.is_some() { "" } else { " (no answer)" };
        lines.push(format!("{what} {}{answered}", threads.join(", ")));
        let words = frames.iter().flatten().map(|ip| names.entry(*ip).or_insert_with(|| in_words(*ip)).clone());
        let words: Vec<Vec<String>> = words.collect();
        // The handler's own frames, and the one through which the kernel calls it.
        let innermost = &words[..words.len().min(MAX_OWN_FRAMES)];
        let own = innermost.iter().rposition(|names| names.iter().any(|name| name.contains(HANDLER)));
        let from = own.map_or(0, |own| own + 2);
        let words = words.into_iter().skip(from).flatten().take_while(|name| !name.starts_with(BEGINNING));
        lines.extend(words.map(|name| format!("  {name}")));
    }
    if num_more > 0 {
        lines.push(format!("{num_more} more threads"));
    }
    if lines.len() > MAX_LINES {
        let num_left_out = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("{num_left_out} more lines"));
    }
    Ok(lines.into_iter().map(cut).collect())
}

/// As its frames are called, with or without a path before.
const HANDLER: &str = "writes_down_its_stack";
/// Below it the standard library begins a thread.
const BEGINNING: &str = "__rust_begin_short_backtrace";

fn cut(mut line: String) -> String {
    let mut end = line.len().min(MAX_LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

/// The function at an address, with what was inlined there, from the innermost.
fn in_words(ip: usize) -> Vec<String> {
    let mut names = Vec::new();
    backtrace::resolve(ip as *mut c_void, |symbol| {
        let Some(name) = symbol.name() else { return };
        let file = symbol.filename().and_then(Path::file_name).map(|file| file.to_string_lossy());
        let at = match (file, symbol.lineno()) {
            (Some(file), Some(line)) => format!(" at {file}:{line}"),
            _ => String::new(),
        };
        // `{:#}` leaves out the hash.
        names.push(format!("{name:#}{at}"));
    });
    if names.is_empty() {
        names.push(format!("{ip:#x}"));
    }
    names
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[inline(never)]
    fn waits_in_this_function(is_there: &AtomicBool, ends: &AtomicBool) {
        is_there.store(true, Ordering::SeqCst);
        while !ends.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_thread_that_computes_is_found_in_its_function_and_one_that_waits_too() {
        let (is_there, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (waiting, waits) = std::sync::mpsc::channel::<()>();
        let spins = std::thread::Builder::new().name("spins".into()).spawn({
            let (is_there, ends) = (is_there.clone(), ends.clone());
            move || waits_in_this_function(&is_there, &ends)
        });
        let parked = std::thread::Builder::new().name("parked".into()).spawn(move || waits.recv().is_err());
        while !is_there.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // Tests beside this one have threads of their own, more than are told of.
        let own = |(_, name): &(i32, String)| ["spins", "parked"].contains(&name.as_str());
        let both = || threads().unwrap().into_iter().filter(own).collect::<Vec<_>>();
        // A thread has its name only once it runs.
        while both().len() < 2 {
            std::thread::yield_now();
        }
        let lines = take_of(both()).unwrap();
        ends.store(true, Ordering::SeqCst);
        drop(waiting);
        spins.unwrap().join().unwrap();
        assert!(parked.unwrap().join().unwrap(), "what waits goes on waiting");
        let at = lines.iter().position(|line| line == "thread spins").unwrap_or_else(|| panic!("{lines:#?}"));
        let innermost: Vec<&String> = lines[at + 1..].iter().take(4).collect();
        assert!(innermost.iter().any(|line| line.contains("waits_in_this_function")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("parked")), "{lines:#?}");
        assert!(lines.iter().all(|line| !line.contains(HANDLER)), "its own frames are left out: {lines:#?}");
        assert!(lines.len() <= MAX_LINES + 1);
    }
}
