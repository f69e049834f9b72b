//! The audit record: who changed what from where, and what came of it; lines of JSON in the coordinator's folder.
//!
//! ```text
//!   audit/audit.jsonl      the newest      audit.1.jsonl ... audit.8.jsonl      older ones
//!   {"n":7,"at":"...","unix_ms":...,"who":"certificate alice (submit)","from":"10.0.0.7","call":"CancelJob","what":"tiny-1","state":"asked"}
//!   {"n":7,...,"state":"done","result":"OK"}
//! ```
//!
//! The first line is durable before the change is made, the second before its answer is sent: no change is without a record, whenever the
//! coordinator dies; one that is `asked` alone may have been made. Where the record cannot be written nothing is changed.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tonic::{Response, Status};

use crate::caller::Caller;
use crate::clock::unix_ms;

/// A file that is longer is put aside, and another begun.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Files that are kept beside the newest.
const NUM_OLD: usize = 8;
/// Of a name in a record: what users send is cut.
const MAX_WHAT_BYTES: usize = 256;
/// Records that are given at a time.
pub(crate) const MAX_RECORDS: usize = 1000;
/// Of a line that is read back.
const MAX_LINE_BYTES: usize = 4096;

#[derive(Clone)]
pub(crate) struct Audit(Arc<Mutex<Log>>);

struct Log {
    folder: PathBuf,
    file: File,
    bytes: u64,
    next: u64,
    max_bytes: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    n: u64,
    unix_ms: i64,
    who: &'a str,
    from: &'a str,
    call: &'a str,
    what: &'a str,
    /// asked, done or refused
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
}

fn newest(folder: &Path) -> PathBuf {
    folder.join("audit.jsonl")
}

fn old(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("audit.{n}.jsonl"))
}

impl Log {
    fn open(folder: &Path, max_bytes: u64) -> io::Result<Log> {
        std::fs::create_dir_all(folder)?;
        let path = newest(folder);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut bytes = file.metadata()?.len();
        let mut file = file;
        // A line that was cut short by a death stays one of its own.
        if bytes > 0 && !ends_with_newline(&path)? {
            file.write_all(b"\n")?;
            bytes += 1;
        }
        let numbers = tail(folder, 100)?
            .into_iter()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok()?.get("n")?.as_u64());
        Ok(Log { folder: folder.into(), file, bytes, next: numbers.max().map_or(1, |n| n + 1), max_bytes })
    }

    /// Durable when it returns.
    fn write(&mut self, line: &Line<'_>) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        self.bytes += text.len() as u64;
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..NUM_OLD).rev() {
            if old(&self.folder, n).exists() {
                std::fs::rename(old(&self.folder, n), old(&self.folder, n + 1))?;
            }
        }
        std::fs::rename(newest(&self.folder), old(&self.folder, 1))?;
        self.file = OpenOptions::new().create(true).append(true).open(newest(&self.folder))?;
        self.bytes = 0;
        File::open(&self.folder)?.sync_all()
    }
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The newest lines, at most `limit`, the oldest first.
fn tail(folder: &Path, limit: usize) -> io::Result<Vec<String>> {
    let mut lines: VecDeque<String> = VecDeque::new();
    for path in (0..=NUM_OLD).map(|n| if n == 0 { newest(folder) } else { old(folder, n) }) {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            opened => opened?,
        };
        let mut found: VecDeque<String> = VecDeque::new();
        for line in BufReader::new(file).split(b'\n') {
            let mut line = line?;
            line.truncate(MAX_LINE_BYTES);
            found.push_back(String::from_utf8_lossy(&line).into_owned());
            if found.len() > limit {
                found.pop_front();
            }
        }
        while lines.len() < limit {
            match found.pop_back() {
                Some(line) => lines.push_front(line),
                None => break,
            }
        }
        if lines.len() == limit {
            break;
        }
    }
    Ok(lines.into())
}

/// A change that was asked for.
struct Entry {
    n: u64,
    who: String,
    from: String,
    call: String,
    what: String,
}

impl Audit {
    /// In this folder, which is made where it is not there.
    pub fn open(folder: &Path) -> io::Result<Audit> {
        Ok(Audit(Arc::new(Mutex::new(Log::open(folder, MAX_FILE_BYTES)?))))
    }

    /// Writes off the threads that serve: it waits for the disk.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Log) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let log = Arc::clone(&self.0);
        // What a panic left is a whole file.
        let done = tokio::task::spawn_blocking(move || act(&mut log.lock().unwrap_or_else(PoisonError::into_inner)));
        let done = done.await.map_err(io::Error::other).flatten();
        done.map_err(|error| {
            Status::unavailable(format!(
                "the audit record cannot be written or read ({error}), and nothing is changed without one; mend the disk of the coordinator"
            ))
        })
    }

    /// Makes a change, with a record of it.
    pub async fn change<T>(
        &self,
        caller: Option<&Caller>,
        call: &str,
        what: &str,
        change: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let caller = caller.ok_or_else(|| Status::internal("the call came past the gate: please report it"))?;
        let entry = Entry {
            n: 0,
            who: caller.to_string(),
            from: caller.address.to_string(),
            call: call.into(),
            what: cut(what),
        };
        let entry = self.write(entry, "asked", None).await?;
        let answer = change.await;
        let result = match &answer {
            Ok(_) => "OK".to_string(),
            Err(status) => cut(&format!("{:?}: {}", status.code(), status.message())),
        };
        self.write(entry, "done", Some(result)).await?;
        answer
    }

    /// A change that its caller may not make.
    pub async fn refused(&self, caller: &Caller, path: &str, why: &str) {
        let call = path.rsplit('/').next().unwrap_or(path).to_string();
        let (who, from) = (caller.to_string(), caller.address.to_string());
        let entry = Entry { n: 0, who, from, call, what: String::new() };
        if let Err(status) = self.write(entry, "refused", Some(cut(why))).await {
            tracing::warn!("{}", status.message());
        }
    }

    async fn write(&self, entry: Entry, state: &'static str, result: Option<String>) -> Result<Entry, Status> {
        self.with(move |log| {
            let mut entry = entry;
            if entry.n == 0 {
                entry.n = log.next;
                log.next += 1;
            }
            log.write(&Line {
                n: entry.n,
                unix_ms: unix_ms(),
                who: &entry.who,
                from: &entry.from,
                call: &entry.call,
                what: &entry.what,
                state,
                result: result.as_deref(),
            })?;
            Ok(entry)
        })
        .await
    }

    /// The newest records, the oldest of them first.
    pub async fn newest(&self, limit: usize) -> Result<Vec<String>, Status> {
        self.with(move |log| tail(&log.folder, limit)).await
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_WHAT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> Line<'static> {
        let (who, from, call, what, state) = ("certificate alice (submit)", "10.0.0.7", "CancelJob", "tiny-1", "asked");
        Line { n, unix_ms: 1, who, from, call, what, state, result: None }
    }

    #[test]
    fn files_are_put_aside_and_the_newest_lines_found_over_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), 500).unwrap();
        (1..=100).for_each(|n| log.write(&line(n)).unwrap());
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, NUM_OLD + 1);
        let numbers = |limit| -> Vec<u64> {
            let lines = tail(dir.path(), limit).unwrap();
            lines.iter().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["n"].as_u64().unwrap()).collect()
        };
        assert_eq!(numbers(5), [96, 97, 98, 99, 100]);
        assert!(numbers(1000).len() > 10);
    }

    #[test]
    fn a_line_that_was_cut_short_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        Log::open(dir.path(), 1 << 20).unwrap().write(&line(41)).unwrap();
        let mut file = OpenOptions::new().append(true).open(newest(dir.path())).unwrap();
        file.write_all(b"{\"n\":42,\"wh").unwrap();
        let mut log = Log::open(dir.path(), 1 << 20).unwrap();
        log.write(&line(43)).unwrap();
        let lines = tail(dir.path(), 10).unwrap();
        assert_eq!(lines.len(), 3);
        assert!(lines[2].contains("\"n\":43"), "{lines:?}");
    }
}
