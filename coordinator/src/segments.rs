//! The curve of a job where every coordinator finds it: in the folder of the job's checkpoints, which all of them share.
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
//! A head of `SEGMENT_BYTES` of rows becomes a segment, so a new leader copies little. Heads appear whole (rename), and are removed by
//! later ones. A row that was torn at the end of a head is none. Where rows are dropped, a new head says so; segments that it does not name any more
//! are left behind. Rows are those of `curve.csv`, which begins with its header.
//!
//! Beside them is what a coordinator has to say of the job's lost workers (`evidence`), whole in one file, which the newest leader that wrote one has written:
//! `<checkpoint.path>/curve/seen-<term>-<n>`.
//!
//! Deliberately absent: what a row says (`curve`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toroid_torus::ids::Term;
use toroid_torus::owner::{MAX_OWNER_BYTES, OWNER_NAME, Owner, OwnerId};

const FOLDER: &str = "curve";
/// What is not whole yet: `new-<term>-<n>`.
const NEW: &str = "new-";
const FORMAT: u32 = 1;
/// A whole file beside the curve.
const BESIDE: &str = "seen-";
/// Names of what is not whole yet must be others than those of whoever writes rows at the same time.
const BESIDE_FROM: u64 = 1 << 31;
/// Rows behind a head; beyond, they become a segment.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Heads are replaced while somebody reads them; by so many leaders in a row they are not.
const MAX_LOOKS: usize = 10;

#[derive(Debug, thiserror::Error)]
pub enum SegmentsError {
    #[error("{what} {path} failed: {error}")]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    #[error("{path} is not what a coordinator writes: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{root} is the checkpoint folder of {owner}: no curve is kept there for another job")]
    Owned { root: PathBuf, owner: Box<Owner> },
    #[error("{path} was written by a leader of a later term: this coordinator does not lead any more")]
    Deposed { path: PathBuf },
    /// Whoever begins to lead anew has it as it is.
    #[error("{folder} has the curve up to step {found}, and this coordinator has it up to step {known}")]
    Another { folder: PathBuf, found: u64, known: u64 },
}

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
    path: PathBuf,
    segments: Vec<Segment>,
    /// Where its rows begin and end.
    start: u64,
    end: u64,
}

/// The curve of one job, as the leader of one term keeps it.
#[derive(Debug)]
pub struct Segments {
    root: PathBuf,
    folder: PathBuf,
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
    segment_bytes: u64,
}

impl Segments {
    /// Of a job that keeps its checkpoints in `root`, a folder's path or `file://` URL. Looks at nothing yet.
    pub fn new(root: &str, owner: OwnerId, term: Term) -> Segments {
        let root = PathBuf::from(root.strip_prefix("file://").unwrap_or(root));
        let folder = root.join(FOLDER);
        Segments {
            root,
            folder,
            owner,
            term,
            num_files: 0,
            head: None,
            newest: 0,
            keep: None,
            is_unread: false,
            segment_bytes: SEGMENT_BYTES,
        }
    }

    /// For what is kept beside the curve, by another thread.
    pub fn beside(self) -> Segments {
        Segments { num_files: BESIDE_FROM, ..self }
    }

    /// What is kept beside the curve, at most so many bytes of it; `None`: nothing is.
    pub fn find_beside(&self, max_bytes: u64) -> Result<Option<Vec<u8>>, SegmentsError> {
        let Some((_, _, name)) = self.list(BESIDE)?.pop() else { return Ok(None) };
        self.check_owner()?;
        let (path, mut bytes) = (self.folder.join(name), Vec::new());
        let read = File::open(&path).and_then(|file| file.take(max_bytes).read_to_end(&mut bytes));
        read.map_err(failed("reading", &path))?;
        Ok(Some(bytes))
    }

    /// Keeps this in the place of what is kept beside the curve.
    pub fn keep_beside(&mut self, bytes: &[u8]) -> Result<(), SegmentsError> {
        self.check_owner()?;
        let name = format!("{BESIDE}{}", self.next_name());
        self.appear(&name, &[bytes])?;
        self.remove_older(self.list(BESIDE)?, &name);
        Ok(())
    }

    /// Removes those before this one; ascending.
    fn remove_older(&self, all: Vec<(Term, u64, String)>, newest: &str) {
        for (_, _, older) in all.into_iter().take_while(|(.., other)| other != newest) {
            // What stays is removed with the next.
            if let Err(error) = fs::remove_file(self.folder.join(&older)) {
                tracing::debug!("{older} in {} stays: {error}", self.folder.display());
            }
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What there is; `None`: nothing was ever kept.
    pub fn find(&self) -> Result<Option<Found>, SegmentsError> {
        let mut gone = None;
        for _ in 0..MAX_LOOKS {
            let heads = self.heads()?;
            let Some((term, _, name)) = heads.last() else { return Ok(None) };
            let path = self.folder.join(name);
            if *term > self.term {
                return Err(SegmentsError::Deposed { path });
            }
            self.check_owner()?;
            match fs::read(&path) {
                Ok(bytes) => return parse_head(&path, &bytes).map(Some),
                // A newer one has replaced it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => gone = Some((path, error)),
                Err(error) => return Err(failed("reading", &path)(error)),
            }
        }
        let (path, error) = gone.expect("it was looked at");
        Err(failed("reading", &path)(error))
    }

    /// All heads, ascending.
    fn heads(&self) -> Result<Vec<(Term, u64, String)>, SegmentsError> {
        self.list("head-")
    }

    /// Files of this kind by term and number, ascending.
    fn list(&self, kind: &str) -> Result<Vec<(Term, u64, String)>, SegmentsError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("listing", &self.folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("listing", &self.folder))?.file_name().to_string_lossy().into_owned();
            found.extend(parse_name(&name, kind).map(|(term, number)| (term, number, name)));
        }
        found.sort();
        Ok(found)
    }

    /// Nothing is written beside the checkpoints of another job, and nothing is read there (T-10). The first worker of a job claims the folder.
    fn check_owner(&self) -> Result<(), SegmentsError> {
        let path = self.root.join(OWNER_NAME);
        let mut json = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_OWNER_BYTES).read_to_end(&mut json));
        read.map_err(failed("reading", &path))?;
        match Owner::parse(&json) {
            Ok(owner) if owner.id == self.owner => Ok(()),
            Ok(owner) => Err(SegmentsError::Owned { root: self.root.clone(), owner: Box::new(owner) }),
            Err(reason) => Err(SegmentsError::Damaged { path, reason }),
        }
    }

    /// All rows of what was found.
    pub fn copy(&self, found: &Found, to: &mut impl Write) -> io::Result<()> {
        for segment in &found.segments {
            let file = File::open(self.folder.join(&segment.file))?;
            let copied = io::copy(&mut file.take(segment.num_bytes), to)?;
            if copied < segment.num_bytes {
                let (name, num) = (&segment.file, segment.num_bytes);
                return Err(io::Error::other(format!("{name} has {copied} bytes of {num}")));
            }
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
        while rows.read_until(b'\n', &mut tail).map_err(failed("reading", source))? > 0 {
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
        let (path, start, end) = self.place();
        if end - start >= self.segment_bytes {
            let rows = read_range(&path, start, end)?;
            let segment = self.write_segment(&rows)?;
            let segments = self.segments().iter().cloned().chain([segment]).collect();
            self.publish(segments, &[])?;
        }
        let text: String = new.iter().map(|(_, row)| row.as_str()).collect();
        self.append(text.as_bytes())?;
        self.newest = *newest;
        Ok(())
    }

    fn segments(&self) -> &[Segment] {
        self.head.as_ref().map_or(&[], |head| &head.segments)
    }

    /// Of the rows behind the head.
    fn place(&self) -> (PathBuf, u64, u64) {
        let head = self.head.as_ref().expect("it was begun");
        (head.path.clone(), head.start, head.end)
    }

    /// A head of this term, with what the newest has.
    fn begin(&mut self) -> Result<(), SegmentsError> {
        let known = self.newest;
        let found = self.find()?.unwrap_or_default();
        let newest = self.newest_in(&found)?;
        if newest != known {
            return Err(SegmentsError::Another { folder: self.folder.clone(), found: newest, known });
        }
        self.take_over(found)
    }

    fn drop_after(&mut self, keep: u64) -> Result<(), SegmentsError> {
        if self.head.is_none() {
            self.begin()?;
        }
        let mut segments = self.segments().to_vec();
        let num_kept = segments.partition_point(|segment| segment.last_step <= keep);
        let rows = match segments.get(num_kept) {
            Some(segment) => read_range(&self.folder.join(&segment.file), 0, segment.num_bytes)?,
            None => {
                let (path, start, end) = self.place();
                read_range(&path, start, end)?
            }
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
        SegmentsError::Damaged { path: self.folder.clone(), reason: "a row does not begin with its step".into() }
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
        self.appear(&file, &[rows])?;
        Ok(Segment { file, last_step, num_bytes: rows.len() as u64 })
    }

    /// Makes the head that counts from now on, and removes those before.
    fn publish(&mut self, segments: Vec<Segment>, rows: &[u8]) -> Result<(), SegmentsError> {
        self.check_owner()?;
        let name = format!("head-{}", self.next_name());
        let contents = Contents { format: FORMAT, segments };
        let mut line = serde_json::to_vec(&contents).expect("names and numbers are JSON");
        line.push(b'\n');
        self.appear(&name, &[&line, rows])?;
        let start = line.len() as u64;
        let path = self.folder.join(&name);
        self.head = Some(Head { path, segments: contents.segments, start, end: start + rows.len() as u64 });
        let (heads, begun) = (self.heads()?, self.list(NEW)?);
        self.remove_older(heads, &name);
        self.remove_older(begun.into_iter().filter(|(term, ..)| *term < self.term).collect(), &name);
        Ok(())
    }

    /// A file that is whole and durable when it can be seen.
    fn appear(&self, name: &str, parts: &[&[u8]]) -> Result<(), SegmentsError> {
        fs::create_dir_all(&self.folder).map_err(failed("making", &self.folder))?;
        let new = format!("{NEW}{:016x}-{:08x}", self.term.get(), self.num_files);
        let (path, new) = (self.folder.join(name), self.folder.join(new));
        let write = || {
            let mut file = File::create(&new)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(failed("writing", &path))
    }

    /// Rows behind the head.
    fn append(&mut self, rows: &[u8]) -> Result<(), SegmentsError> {
        let head = self.head.as_mut().expect("it was begun");
        let write = || {
            // What is gone was taken away, or a later leader has removed it.
            let mut file = OpenOptions::new().write(true).open(&head.path)?;
            // What a failed write has left behind.
            if file.metadata()?.len() != head.end {
                file.set_len(head.end)?;
            }
            file.seek(SeekFrom::Start(head.end))?;
            file.write_all(rows)?;
            file.sync_data()
        };
        write().map_err(failed("writing", &head.path))?;
        head.end += rows.len() as u64;
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SegmentsError + use<> {
    let path = path.to_path_buf();
    move |error| SegmentsError::Io { what, path, error }
}

fn parse_name(name: &str, kind: &str) -> Option<(Term, u64)> {
    let (term, number) = name.strip_prefix(kind)?.split_once('-')?;
    Some((Term::new(u64::from_str_radix(term, 16).ok()?), u64::from_str_radix(number, 16).ok()?))
}

fn parse_head(path: &Path, bytes: &[u8]) -> Result<Found, SegmentsError> {
    let damaged = |reason: String| SegmentsError::Damaged { path: path.into(), reason };
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

fn read_range(path: &Path, start: u64, end: u64) -> Result<Vec<u8>, SegmentsError> {
    let mut rows = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut rows)
    });
    read.map_err(failed("reading", path))?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> OwnerId {
        OwnerId::from_random([7; 16])
    }

    /// The folder of a job's checkpoints as its first worker claims it.
    fn claimed() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(OWNER_NAME), Owner::new(owner(), "j-1", "j", 1).to_json()).unwrap();
        root
    }

    fn of_term(root: &Path, term: u64) -> Segments {
        Segments { segment_bytes: 200, ..Segments::new(root.to_str().unwrap(), owner(), Term::new(term)) }
    }

    fn row(step: u64, by: u64) -> (u64, String) {
        (step, format!("{step},{by},\"\"\n"))
    }

    fn rows(steps: std::ops::RangeInclusive<u64>, by: u64) -> Vec<(u64, String)> {
        steps.map(|step| row(step, by)).collect()
    }

    /// What whoever leads next finds.
    fn seen(root: &Path) -> String {
        let reader = of_term(root, u64::MAX);
        let mut text = Vec::new();
        if let Some(found) = reader.find().unwrap() {
            reader.copy(&found, &mut text).unwrap();
        }
        String::from_utf8(text).unwrap()
    }

    fn text(rows: &[(u64, String)]) -> String {
        rows.iter().map(|(_, row)| row.as_str()).collect()
    }

    fn lead(root: &Path, term: u64) -> Segments {
        let mut segments = of_term(root, term);
        if let Some(found) = segments.find().unwrap() {
            segments.take_over(found).unwrap();
        }
        segments
    }

    fn names(root: &Path, prefix: &str) -> usize {
        let entries = fs::read_dir(root.join(FOLDER)).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(prefix)).count()
    }

    /// Numbers from a seed.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// Leaders come, write, drop rows and are replaced, some of them before their first head is there; those that were replaced go on at any time, with
    /// all that a leader may do, what they had found long ago included.
    #[test]
    fn t8_t13_the_newest_leaders_rows_are_all_that_counts_whatever_earlier_ones_do() {
        for seed in 0..60 {
            let (root, mut random) = (claimed(), Random(seed));
            let mut model: Vec<(u64, String)> = Vec::new();
            let mut term = 1;
            let mut leader = lead(root.path(), term);
            let (mut deposed, mut late) = (Vec::<Segments>::new(), Vec::<(Segments, Found)>::new());
            for _ in 0..60 {
                match random.below(10) {
                    0..=3 => {
                        let newest = model.last().map_or(0, |(step, _)| *step);
                        let new = rows(newest + 1..=newest + 1 + random.below(12), term);
                        leader.write(&new).unwrap();
                        model.extend(new);
                    }
                    4 => {
                        let keep = random.below(model.len() as u64 + 2);
                        leader.cut(keep);
                        leader.write(&[]).unwrap();
                        model.truncate(usize::try_from(keep).unwrap().min(model.len()));
                    }
                    5 => {
                        term += 1;
                        // One that finds what there is, and stands still before it writes.
                        if random.below(2) == 0 {
                            let candidate = of_term(root.path(), term);
                            late.extend(candidate.find().unwrap().map(|found| (candidate, found)));
                            term += 1;
                        }
                        deposed.push(std::mem::replace(&mut leader, lead(root.path(), term)));
                        // A new leader that has found nothing has no head yet.
                        if model.is_empty() {
                            deposed.clear();
                            late.clear();
                        }
                    }
                    6 if !late.is_empty() => {
                        let (mut candidate, found) = late.swap_remove(random.below(late.len() as u64) as usize);
                        // Whether that fails is nothing to anybody.
                        let _ = candidate.take_over(found);
                        deposed.push(candidate);
                    }
                    _ if !deposed.is_empty() => {
                        let which = random.below(deposed.len() as u64) as usize;
                        let old = &mut deposed[which];
                        if random.below(3) == 0 {
                            old.cut(random.below(old.newest + 1));
                        }
                        let from = old.keep.unwrap_or(old.newest) + 1;
                        let _ = old.write(&rows(from..=from + random.below(12), 999));
                    }
                    _ => {}
                }
                assert_eq!(seen(root.path()), text(&model), "seed {seed}");
            }
        }
    }

    #[test]
    fn segments_are_as_many_as_there_are_rows_for_and_heads_are_one() {
        let root = claimed();
        for term in 1..=40 {
            let mut leader = lead(root.path(), term);
            (0..10).for_each(|n| leader.write(&[row((term - 1) * 10 + n + 1, 1)]).unwrap());
        }
        let expected = text(&rows(1..=400, 1));
        assert_eq!(seen(root.path()), expected);
        assert_eq!(names(root.path(), "head-"), 1);
        let num_segments = names(root.path(), "rows-");
        assert!((2..=expected.len() / 200).contains(&num_segments), "{num_segments} segments");
        assert_eq!(names(root.path(), ""), 1 + num_segments, "nothing else is left");
    }

    #[test]
    fn a_head_that_was_torn_anywhere_has_its_whole_rows() {
        let root = claimed();
        let mut leader = lead(root.path(), 1);
        leader.write(&rows(1..=30, 1)).unwrap();
        leader.write(&rows(31..=35, 1)).unwrap();
        let (path, start, end) = leader.place();
        let whole = fs::read(&path).unwrap();
        assert!(start < end && whole.len() as u64 == end);
        for len in start..=end {
            fs::write(&path, &whole[..len as usize]).unwrap();
            let lines = whole[start as usize..len as usize].iter().filter(|byte| **byte == b'\n').count() as u64;
            assert_eq!(seen(root.path()), text(&rows(1..=30 + lines, 1)), "cut to {len} bytes");
        }
    }

    #[test]
    fn what_a_failed_write_left_behind_is_no_row() {
        let root = claimed();
        let mut leader = lead(root.path(), 1);
        leader.write(&rows(1..=3, 1)).unwrap();
        let (path, ..) = leader.place();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"4,half").unwrap();
        leader.write(&rows(1..=5, 1)).unwrap();
        assert_eq!(seen(root.path()), text(&rows(1..=5, 1)), "those that were kept are not written twice");
        let away = root.path().join("away");
        fs::rename(root.path().join(FOLDER), &away).unwrap();
        assert!(matches!(leader.write(&[row(6, 1)]), Err(SegmentsError::Io { .. })));
        fs::rename(&away, root.path().join(FOLDER)).unwrap();
        leader.write(&[row(6, 1)]).unwrap();
        assert_eq!(seen(root.path()), text(&rows(1..=6, 1)));
    }

    #[test]
    fn t10_nothing_is_written_beside_the_checkpoints_of_another_job() {
        let root = claimed();
        let mut stranger = Segments::new(root.path().to_str().unwrap(), OwnerId::from_random([8; 16]), Term::new(1));
        assert!(matches!(stranger.write(&[row(1, 1)]), Err(SegmentsError::Owned { .. })));
        fs::remove_file(root.path().join(OWNER_NAME)).unwrap();
        assert!(matches!(stranger.write(&[row(1, 1)]), Err(SegmentsError::Io { .. })), "nobody has claimed it");
        assert!(!root.path().join(FOLDER).exists());
    }

    #[test]
    fn a_leader_that_others_have_followed_says_so() {
        let root = claimed();
        let mut first = lead(root.path(), 1);
        first.write(&rows(1..=3, 1)).unwrap();
        lead(root.path(), 2);
        assert!(matches!(of_term(root.path(), 1).find(), Err(SegmentsError::Deposed { .. })));
        assert!(first.write(&[row(4, 1)]).is_err(), "its head is gone");
        assert_eq!(seen(root.path()), text(&rows(1..=3, 1)));
        // One that has read nothing writes nothing over what is there.
        let mut blind = of_term(root.path(), 3);
        blind.leave_unread();
        assert!(matches!(blind.write(&[]), Err(SegmentsError::Another { found: 3, known: 0, .. })));
    }

    #[test]
    fn all_rows_are_replaced_at_once() {
        let root = claimed();
        let mut leader = lead(root.path(), 1);
        leader.write(&rows(1..=60, 1)).unwrap();
        let new = text(&rows(1..=70, 2));
        let mut next = of_term(root.path(), 2);
        next.replace(&mut new.as_bytes(), Path::new("curve.csv")).unwrap();
        assert_eq!(seen(root.path()), new);
        next.write(&[row(71, 2)]).unwrap();
        assert_eq!(seen(root.path()), text(&rows(1..=71, 2)));
    }
}
