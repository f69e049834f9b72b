//! The curve of a job where every coordinator finds it: beside the job's checkpoints, which all of them share.
//!
//! ```text
//!   <checkpoint.path>/curve/head-<term>-<n>                what there is: a line that names segments, then the rows after those
//!   <checkpoint.path>/curve/rows-<step>-<term>-<n>.csv     a segment: rows from that step on, never changed, never removed
//! ```
//!
//! The newest head counts, by its term and then its number, and nothing beside what it names. A leader writes under its own term alone: at
//! first a head with what it found in the newest one, then rows behind it. So whatever a leader of an older term does later, also in the middle
//! of any of this, is nothing to those who lead after it (T-8, T-13): its heads are older, and what the newest one names stays. A row that a leader has
//! acknowledged was durable before its leadership was over, and so before the next leader looked.
//!
//! Where files can grow (a `folder`) rows are appended to the newest head. Where they cannot (a `bucket`) each batch of rows is a new head that has those
//! of the one before, too, and that one goes. When a head has rows enough they become a segment, so a new leader copies little. Heads appear
//! whole, and are removed by later ones. A row that was torn at the end of a head is none. Where rows are dropped, a new head says so; segments that it
//! does not name any more are left behind. Rows are those of `curve.csv`, which begins with its header.
//!
//! Beside them is what a coordinator has to say of the job's lost workers (`evidence`), whole in one file, which the newest leader that wrote one has written:
//! `<checkpoint.path>/curve/seen-<term>-<n>`.
//!
//! Deliberately absent: what a row says (`curve`); waiting for a bucket (`carrier`).

use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use toroid_torus::ids::Term;
use toroid_torus::owner::{Owner, OwnerId};

mod bucket;
mod folder;
#[cfg(test)]
pub mod played;
mod shelf;

pub use shelf::SegmentsError;
use shelf::{NEW, Shelf};

const FORMAT: u32 = 1;
/// A whole file beside the curve.
const BESIDE: &str = "seen-";
/// Names of what is not whole yet must be others than those of whoever writes rows at the same time.
const BESIDE_FROM: u64 = 1 << 31;
/// A head has less than a segment of rows, or what came at once.
const MAX_HEAD_BYTES: u64 = 1 << 30;
/// Heads are replaced while somebody reads them; by so many leaders in a row they are not.
const MAX_LOOKS: usize = 10;

/// Rows that are never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Segment {
    file: String,
    /// Its newest step.
    last_step: u64,
    num_bytes: u64,
}

/// The first line of a head.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    format: u32,
    segments: Vec<Segment>,
}

/// What a head has.
#[derive(Debug, Default)]
pub struct Found {
    segments: Vec<Segment>,
    /// Rows after them.
    rows: Vec<u8>,
}

/// This leader's newest head.
#[derive(Debug)]
struct Head {
    name: String,
    segments: Vec<Segment>,
    /// Where its rows begin and end.
    start: u64,
    end: u64,
    /// They themselves, where they are written once more with those that come.
    rows: Option<Vec<u8>>,
}

/// The curve of one job, as the leader of one term keeps it.
#[derive(Debug)]
pub struct Segments {
    shelf: Box<dyn Shelf>,
    owner: OwnerId,
    term: Term,
    /// Files that this leader has begun to write.
    num_files: u64,
    head: Option<Head>,
    /// The newest step that is kept.
    newest: u64,
    /// Rows after this step are to be dropped.
    keep: Option<u64>,
    /// What is there could not be read.
    is_unread: bool,
    /// No write of a head has failed since the last that did not.
    is_tidy: bool,
    /// Rows behind a head; beyond, they become a segment.
    segment_bytes: u64,
}

impl Segments {
    /// Of a job that keeps its checkpoints in `root`, a folder's path, a `file://` URL or an `s3://` URL. Looks at nothing yet.
    pub fn new(root: &str, owner: OwnerId, term: Term) -> Result<Segments, SegmentsError> {
        Ok(Segments::on(shelf_of(root)?, owner, term))
    }

    #[cfg(test)]
    pub fn played(objects: &played::Objects, owner: OwnerId, term: Term) -> Segments {
        Segments::on(Box::new(objects.clone()), owner, term)
    }

    fn on(shelf: Box<dyn Shelf>, owner: OwnerId, term: Term) -> Segments {
        let segment_bytes = shelf.segment_bytes();
        Segments {
            shelf,
            owner,
            term,
            num_files: 0,
            head: None,
            newest: 0,
            keep: None,
            is_unread: false,
            is_tidy: true,
            segment_bytes,
        }
    }

    /// What is asked of it may take long, or be answered by nobody: a driver leaves that to others.
    pub fn is_remote(&self) -> bool {
        !self.shelf.grows()
    }

    /// Of a remote one, the store that has to answer.
    pub fn store(&self) -> Option<String> {
        self.shelf.store()
    }

    /// For what is kept beside the curve, by another thread.
    pub fn beside(self) -> Segments {
        Segments { num_files: BESIDE_FROM, ..self }
    }

    /// What is kept beside the curve, at most so many bytes of it; `None`: nothing is.
    pub fn find_beside(&self, max_bytes: u64) -> Result<Option<Vec<u8>>, SegmentsError> {
        let Some((_, _, name)) = self.list(BESIDE)?.pop() else { return Ok(None) };
        self.check_owner()?;
        self.shelf.read(&name, max_bytes)
    }

    /// Keeps this in the place of what is kept beside the curve.
    pub fn keep_beside(&mut self, bytes: &[u8]) -> Result<(), SegmentsError> {
        self.check_owner()?;
        let name = format!("{BESIDE}{}", self.next_name());
        self.shelf.appear(&name, &[bytes])?;
        self.remove_older(self.list(BESIDE)?, &name);
        Ok(())
    }

    /// Removes those before this one; ascending.
    fn remove_older(&self, all: Vec<(Term, u64, String)>, newest: &str) {
        let older = all.into_iter().map(|(.., name)| name).take_while(|other| other != newest);
        self.remove(older.collect());
    }

    /// What stays is removed with the next, or by the next leader.
    fn remove(&self, names: Vec<String>) {
        for name in names {
            if let Err(error) = self.shelf.remove(&name) {
                tracing::debug!("{} stays: {error}", self.shelf.display(&name));
            }
        }
    }

    /// What it is called in messages.
    pub fn folder(&self) -> &str {
        self.shelf.folder()
    }

    /// What there is; `None`: nothing was ever kept.
    pub fn find(&self) -> Result<Option<Found>, SegmentsError> {
        let mut gone = None;
        for _ in 0..MAX_LOOKS {
            let heads = self.heads()?;
            let Some((term, _, name)) = heads.last() else { return Ok(None) };
            let path = self.shelf.display(name);
            if *term > self.term {
                return Err(SegmentsError::Deposed { path });
            }
            self.check_owner()?;
            match self.shelf.read(name, MAX_HEAD_BYTES)? {
                Some(bytes) => return parse_head(path, &bytes).map(Some),
                // A newer one has replaced it.
                None => gone = Some(path),
            }
        }
        let (path, error) = (gone.unwrap_or_default(), io::Error::from(io::ErrorKind::NotFound).into());
        Err(SegmentsError::Io { what: "reading", path, error })
    }

    /// All heads, ascending.
    fn heads(&self) -> Result<Vec<(Term, u64, String)>, SegmentsError> {
        self.list("head-")
    }

    /// Files of this kind by term and number, ascending.
    fn list(&self, kind: &str) -> Result<Vec<(Term, u64, String)>, SegmentsError> {
        let parsed = |name: String| parse_name(&name, kind).map(|(term, number)| (term, number, name));
        let mut found: Vec<_> = self.shelf.names()?.into_iter().filter_map(parsed).collect();
        found.sort();
        Ok(found)
    }

    /// Nothing is written beside the checkpoints of another job, and nothing is read there (T-10). The first worker of a job claims the folder.
    fn check_owner(&self) -> Result<(), SegmentsError> {
        let json = self.shelf.owner()?;
        match Owner::parse(&json) {
            Ok(owner) if owner.id == self.owner => Ok(()),
            Ok(owner) => Err(SegmentsError::Owned { root: self.shelf.root().into(), owner: Box::new(owner) }),
            Err(reason) => {
                let path = format!("the owner's record in {}", self.shelf.root());
                Err(SegmentsError::Damaged { path, reason })
            }
        }
    }

    /// All rows of what was found.
    pub fn copy(&self, found: &Found, to: &mut impl Write) -> io::Result<()> {
        for segment in &found.segments {
            let (name, num) = (&segment.file, segment.num_bytes);
            to.write_all(&self.shelf.read_range(name, 0, num).map_err(io::Error::other)?)?;
        }
        to.write_all(&found.rows)
    }

    /// Goes on from what was found.
    pub fn take_over(&mut self, found: Found) -> Result<(), SegmentsError> {
        self.newest = self.newest_in(&found)?;
        self.publish(found.segments, &found.rows)
    }

    /// The same of one that is only read, unless its job goes on later.
    pub fn remember(&mut self, found: &Found) -> Result<(), SegmentsError> {
        self.newest = self.newest_in(found)?;
        Ok(())
    }

    /// What is there cannot be read now: nothing is written before it is.
    pub fn leave_unread(&mut self) {
        self.is_unread = true;
    }

    /// Puts these rows in the place of all that there are.
    pub fn replace(&mut self, rows: &mut impl io::BufRead, source: &Path) -> Result<(), SegmentsError> {
        let (mut segments, mut tail) = (Vec::new(), Vec::new());
        while rows.read_until(b'\n', &mut tail).map_err(|error| failed_to_read(source, error))? > 0 {
            if tail.len() as u64 >= self.segment_bytes {
                segments.push(self.write_segment(&tail)?);
                tail.clear();
            }
        }
        self.take_over(Found { segments, rows: tail })
    }

    /// Rows after step `keep` go, with the next [`Segments::write`].
    pub fn cut(&mut self, keep: u64) {
        if keep < self.newest {
            self.keep = Some(self.keep.map_or(keep, |before| before.min(keep)));
        }
    }

    /// There is something to be written, whether there are new rows or not.
    pub fn is_behind(&self) -> bool {
        self.keep.is_some() || self.is_unread
    }

    /// Makes rows durable, ascending by step. Those that are kept already are passed over.
    pub fn write(&mut self, rows: &[(u64, String)]) -> Result<(), SegmentsError> {
        if self.is_unread {
            self.begin()?;
            self.is_unread = false;
        }
        if let Some(keep) = self.keep {
            self.drop_after(keep)?;
            self.keep = None;
        }
        let new = &rows[rows.partition_point(|(step, _)| *step <= self.newest)..];
        let Some((newest, _)) = new.last() else { return Ok(()) };
        if self.head.is_none() {
            self.begin()?;
        }
        let text: String = new.iter().map(|(_, row)| row.as_str()).collect();
        let head = self.head();
        if head.end - head.start >= self.segment_bytes {
            let segment = self.write_segment(&self.head_rows()?)?;
            let segments = self.head().segments.iter().cloned().chain([segment]).collect();
            self.publish(segments, text.as_bytes())?;
        } else {
            self.append(text.as_bytes())?;
        }
        self.newest = *newest;
        Ok(())
    }

    fn head(&self) -> &Head {
        self.head.as_ref().expect("it was begun")
    }

    fn head_rows(&self) -> Result<Vec<u8>, SegmentsError> {
        let head = self.head();
        match &head.rows {
            Some(rows) => Ok(rows.clone()),
            None => self.shelf.read_range(&head.name, head.start, head.end),
        }
    }

    /// A head of this term, with what the newest has.
    fn begin(&mut self) -> Result<(), SegmentsError> {
        let known = self.newest;
        let found = self.find()?.unwrap_or_default();
        let newest = self.newest_in(&found)?;
        if newest != known {
            return Err(SegmentsError::Another { folder: self.folder().into(), found: newest, known });
        }
        self.take_over(found)
    }

    fn drop_after(&mut self, keep: u64) -> Result<(), SegmentsError> {
        if self.head.is_none() {
            self.begin()?;
        }
        let mut segments = self.head().segments.clone();
        let num_kept = segments.partition_point(|segment| segment.last_step <= keep);
        let rows = match segments.get(num_kept) {
            Some(segment) => self.shelf.read_range(&segment.file, 0, segment.num_bytes)?,
            None => self.head_rows()?,
        };
        segments.truncate(num_kept);
        let mut end = 0;
        for line in rows.split_inclusive(|byte| *byte == b'\n') {
            if step_of(line).ok_or_else(|| self.unreadable())? > keep {
                break;
            }
            end += line.len();
        }
        self.publish(segments, &rows[..end])?;
        self.newest = keep;
        Ok(())
    }

    /// 0: nothing was kept.
    fn newest_in(&self, found: &Found) -> Result<u64, SegmentsError> {
        let last = found.segments.last().map_or(0, |segment| segment.last_step);
        Ok(self.newest_of(&found.rows)?.unwrap_or(last))
    }

    fn newest_of(&self, rows: &[u8]) -> Result<Option<u64>, SegmentsError> {
        let last = rows.split_inclusive(|byte| *byte == b'\n').next_back();
        last.map(|line| step_of(line).ok_or_else(|| self.unreadable())).transpose()
    }

    fn unreadable(&self) -> SegmentsError {
        SegmentsError::Damaged { path: self.folder().into(), reason: "a row does not begin with its step".into() }
    }

    // ------------------------------------------------------------------------------------------------------------- files

    fn next_name(&mut self) -> String {
        self.num_files += 1;
        format!("{:016x}-{:08x}", self.term.get(), self.num_files)
    }

    fn write_segment(&mut self, rows: &[u8]) -> Result<Segment, SegmentsError> {
        let (first, last) = (step_of(rows), self.newest_of(rows)?);
        let (Some(first), Some(last_step)) = (first, last) else { return Err(self.unreadable()) };
        let file = format!("rows-{first:012}-{}.csv", self.next_name());
        self.shelf.appear(&file, &[rows])?;
        Ok(Segment { file, last_step, num_bytes: rows.len() as u64 })
    }

    /// Makes the head that counts from now on, and removes those before.
    fn publish(&mut self, segments: Vec<Segment>, rows: &[u8]) -> Result<(), SegmentsError> {
        self.check_owner()?;
        let name = format!("head-{}", self.next_name());
        let contents = Contents { format: FORMAT, segments };
        let mut line = serde_json::to_vec(&contents).expect("names and numbers are JSON");
        line.push(b'\n');
        // What a write that has failed has left, be it done or not, is found by looking.
        let is_tidy = std::mem::replace(&mut self.is_tidy, false);
        self.shelf.appear(&name, &[&line, rows])?;
        self.is_tidy = true;
        let start = line.len() as u64;
        let kept = (!self.shelf.grows()).then(|| rows.to_vec());
        let end = start + rows.len() as u64;
        let head = Head { name: name.clone(), segments: contents.segments, start, end, rows: kept };
        match self.head.replace(head) {
            // With each batch of rows: others' heads were removed with the first.
            Some(before) if is_tidy && !self.shelf.grows() => self.remove(vec![before.name]),
            _ => {
                let (heads, begun) = (self.heads()?, self.list(NEW)?);
                self.remove_older(heads, &name);
                self.remove_older(begun.into_iter().filter(|(term, ..)| *term < self.term).collect(), &name);
            }
        }
        Ok(())
    }

    /// Rows behind the head.
    fn append(&mut self, rows: &[u8]) -> Result<(), SegmentsError> {
        let head = self.head.as_mut().expect("it was begun");
        if let Some(before) = &head.rows {
            let (segments, all) = (head.segments.clone(), [before, rows].concat());
            return self.publish(segments, &all);
        }
        self.shelf.append(&head.name, head.end, rows)?;
        head.end += rows.len() as u64;
        Ok(())
    }
}

fn shelf_of(root: &str) -> Result<Box<dyn Shelf>, SegmentsError> {
    Ok(match toroid_storage::is_store(root) {
        true => Box::new(bucket::Bucket::open(root)?),
        false => Box::new(folder::Folder::new(root)),
    })
}

fn failed_to_read(path: &Path, error: io::Error) -> SegmentsError {
    SegmentsError::Io { what: "reading", path: path.display().to_string(), error: error.into() }
}

fn parse_name(name: &str, kind: &str) -> Option<(Term, u64)> {
    let (term, number) = name.strip_prefix(kind)?.split_once('-')?;
    Some((Term::new(u64::from_str_radix(term, 16).ok()?), u64::from_str_radix(number, 16).ok()?))
}

fn parse_head(path: String, bytes: &[u8]) -> Result<Found, SegmentsError> {
    let damaged = |reason: String| SegmentsError::Damaged { path: path.clone(), reason };
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no first line".into()))?;
    let contents: Contents = serde_json::from_slice(&bytes[..end]).map_err(|error| damaged(error.to_string()))?;
    if contents.format != FORMAT {
        return Err(damaged(format!("it has format {}, this program reads format {FORMAT}", contents.format)));
    }
    let rows = &bytes[end + 1..];
    // Behind the last whole line is what was torn.
    let whole = rows.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    Ok(Found { segments: contents.segments, rows: rows[..whole].to_vec() })
}

/// Of the first row.
fn step_of(rows: &[u8]) -> Option<u64> {
    let digits = rows.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&rows[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
