//! Sorted files of records of fixed size: how documents of different pieces are brought together in bounded memory.
//!
//! Records are compared byte by byte, so their fields are big-endian, the most important first. A task writes a sorted *run*; another
//! merges a range of all runs. More runs than can be open at a time are merged in groups first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::durable::Durable;
use crate::error::{At, Error, Result};

/// Runs that are open at a time.
const MAX_FAN_IN: usize = 128;
const READ_BYTES: usize = 64 << 10;
/// Runs of one merge are read through this much memory at most; few runs have larger buffers.
pub const MERGE_BYTES: u64 = (MAX_FAN_IN * READ_BYTES) as u64;

/// Where runs that are never needed again are written; they have no name once they are open.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    next: AtomicU64,
}

impl Scratch {
    pub fn new(folder: &Path) -> Scratch {
        Scratch { folder: folder.to_owned(), next: AtomicU64::new(0) }
    }

    /// A name that nothing else has.
    pub fn path(&self) -> PathBuf {
        self.folder.join(format!("run-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Writes records as a run that later tasks merge.
pub fn write_run<const N: usize>(path: &Path, records: &mut [[u8; N]]) -> Result<()> {
    records.sort_unstable();
    let mut file = Durable::create(path)?;
    file.put(records.as_flattened())?;
    file.finish()
}

/// A run from one position on.
struct Run<const N: usize> {
    file: BufReader<File>,
    path: PathBuf,
    num_left: u64,
}

impl<const N: usize> Run<N> {
    fn next(&mut self) -> Result<Option<[u8; N]>> {
        if self.num_left == 0 {
            return Ok(None);
        }
        let mut record = [0; N];
        self.file.read_exact(&mut record).at("read", &self.path)?;
        self.num_left -= 1;
        Ok(Some(record))
    }
}

/// Records of a run from the first that is not less than `from` up to the first that is not less than `to`; prefixes of records.
fn open_range<const N: usize>(path: &Path, from: &[u8], to: Option<&[u8]>) -> Result<Run<N>> {
    let file = File::open(path).at("open", path)?;
    let bytes = file.metadata().at("look at", path)?.len();
    if bytes % N as u64 != 0 {
        return Err(Error::damaged(path, format!("{bytes} bytes are no whole number of records of {N}")));
    }
    let num = bytes / N as u64;
    let find = |prefix: &[u8]| -> Result<u64> {
        let (mut low, mut high) = (0, num);
        let mut record = [0; N];
        while low < high {
            let middle = low + (high - low) / 2;
            file.read_exact_at(&mut record, middle * N as u64).at("read", path)?;
            if record[..prefix.len()] < *prefix { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    };
    let start = if from.is_empty() { 0 } else { find(from)? };
    let end = to.map_or(Ok(num), find)?;
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    reader.seek(SeekFrom::Start(start * N as u64)).at("read", path)?;
    Ok(Run { file: reader, path: path.to_owned(), num_left: end.saturating_sub(start) })
}

/// Sorted records of several runs, as an iterator.
pub struct Merge<const N: usize> {
    runs: Vec<Run<N>>,
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
    /// What was never written, sorted.
    memory: std::vec::IntoIter<[u8; N]>,
}

impl<const N: usize> Merge<N> {
    /// All records of the runs between two prefixes.
    pub fn of(paths: &[PathBuf], from: &[u8], to: Option<&[u8]>, scratch: &Scratch) -> Result<Merge<N>> {
        let mut runs = Vec::new();
        if paths.len() <= MAX_FAN_IN {
            for path in paths {
                runs.push(open_range(path, from, to)?);
            }
        } else {
            for group in paths.chunks(paths.len().div_ceil(MAX_FAN_IN).max(2)) {
                runs.push(spill(scratch, Merge::<N>::of(group, from, to, scratch)?)?);
            }
        }
        Merge::start(runs, Vec::new())
    }

    fn start(mut runs: Vec<Run<N>>, memory: Vec<[u8; N]>) -> Result<Merge<N>> {
        let mut heads = BinaryHeap::with_capacity(runs.len() + 1);
        for (n, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next()?.map(|record| Reverse((record, n))));
        }
        let mut memory = memory.into_iter();
        heads.extend(memory.next().map(|record| Reverse((record, runs.len()))));
        Ok(Merge { runs, heads, memory })
    }

    fn step(&mut self) -> Result<Option<[u8; N]>> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((record, n)) = *head;
        let next = match self.runs.get_mut(n) {
            Some(run) => run.next()?,
            None => self.memory.next(),
        };
        match next {
            Some(next) => *head = Reverse((next, n)),
            None => drop(std::collections::binary_heap::PeekMut::pop(head)),
        }
        Ok(Some(record))
    }
}

impl<const N: usize> Iterator for Merge<N> {
    type Item = Result<[u8; N]>;

    fn next(&mut self) -> Option<Result<[u8; N]>> {
        self.step().transpose()
    }
}

/// Writes sorted records to a file without a name.
fn spill<const N: usize>(scratch: &Scratch, records: impl Iterator<Item = Result<[u8; N]>>) -> Result<Run<N>> {
    let path = scratch.path();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).at("create", &path)?;
    // It goes when it is closed, also by SIGKILL.
    fs::remove_file(&path).at("remove", &path)?;
    let mut writer = BufWriter::with_capacity(READ_BYTES * 4, &file);
    let mut num_left = 0;
    for record in records {
        writer.write_all(&record?).at("write", &path)?;
        num_left += 1;
    }
    writer.flush().at("write", &path)?;
    drop(writer);
    let mut file = BufReader::with_capacity(READ_BYTES, file);
    file.seek(SeekFrom::Start(0)).at("read", &path)?;
    Ok(Run { file, path, num_left })
}

/// Sorts any number of records in bounded memory.
pub struct Sorter<'a, const N: usize> {
    scratch: &'a Scratch,
    buffer: Vec<[u8; N]>,
    capacity: usize,
    runs: Vec<Run<N>>,
}

impl<'a, const N: usize> Sorter<'a, N> {
    pub fn new(scratch: &'a Scratch, memory_bytes: u64) -> Sorter<'a, N> {
        // As a buffer that doubles needs room for both copies, it is made in steps.
        let capacity = (memory_bytes / N as u64).clamp(1024, 1 << 40) as usize;
        Sorter { scratch, buffer: Vec::new(), capacity, runs: Vec::new() }
    }

    pub fn push(&mut self, record: [u8; N]) -> Result<()> {
        if self.buffer.len() == self.capacity {
            self.flush()?;
        }
        if self.buffer.len() == self.buffer.capacity() {
            let more = (self.buffer.len().max(1024)).min(self.capacity - self.buffer.len());
            self.buffer.reserve_exact(more);
        }
        self.buffer.push(record);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.buffer.sort_unstable();
        if self.runs.len() == MAX_FAN_IN {
            let all = Merge::start(std::mem::take(&mut self.runs), Vec::new())?;
            self.runs.push(spill(self.scratch, all)?);
        }
        self.runs.push(spill(self.scratch, self.buffer.iter().map(|record| Ok(*record)))?);
        self.buffer.clear();
        Ok(())
    }

    pub fn finish(mut self) -> Result<Merge<N>> {
        self.buffer.sort_unstable();
        Merge::start(self.runs, self.buffer)
    }
}

/// Writes sorted records under a name.
pub fn save<const N: usize>(path: &Path, records: impl Iterator<Item = Result<[u8; N]>>) -> Result<u64> {
    let mut file = Durable::create(path)?;
    let mut num = 0;
    for record in records {
        file.put(&record?)?;
        num += 1;
    }
    file.finish()?;
    Ok(num)
}

/// Bounds of the `n`th of `num` ranges of all keys of eight bytes.
pub fn range(n: u64, num: u64) -> ([u8; 8], Option<[u8; 8]>) {
    let bound = |n: u64| ((u128::from(n) << 64) / u128::from(num)) as u64;
    (bound(n).to_be_bytes(), (n + 1 < num).then(|| bound(n + 1).to_be_bytes()))
}

/// Calls `take` with each run of records that are equal in their first `prefix` bytes; at most `max` of them at a time, and then the
/// first of the group again before the rest: a group may be larger than memory. `take` gets whether the group goes on from before.
pub fn groups<const N: usize>(
    records: impl Iterator<Item = Result<[u8; N]>>,
    prefix: usize,
    max: usize,
    mut take: impl FnMut(&[[u8; N]], bool) -> Result<()>,
) -> Result<()> {
    let mut group: Vec<[u8; N]> = Vec::new();
    let mut goes_on = false;
    for record in records {
        let record = record?;
        if group.first().is_some_and(|first| first[..prefix] != record[..prefix]) {
            take(&group, goes_on)?;
            goes_on = false;
            group.clear();
        } else if group.len() >= max.max(2) {
            take(&group, goes_on)?;
            goes_on = true;
            group.truncate(1);
        }
        group.push(record);
    }
    if group.is_empty() { Ok(()) } else { take(&group, goes_on) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::mix;

    fn records(num: u64) -> Vec<[u8; 12]> {
        let record = |n: u64| {
            let mut bytes = [0; 12];
            bytes[..8].copy_from_slice(&mix(n % (num / 2 + 1)).to_be_bytes());
            bytes[8..].copy_from_slice(&(n as u32).to_be_bytes());
            bytes
        };
        (0..num).map(record).collect()
    }

    #[test]
    fn records_that_do_not_fit_come_out_sorted() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path());
        // 400 runs of 1024: more than can be open at a time.
        let (mut all, mut sorter) = (records(409_600), Sorter::new(&scratch, 1));
        for record in &all {
            sorter.push(*record)?;
        }
        let sorted: Vec<_> = sorter.finish()?.collect::<Result<_>>()?;
        all.sort_unstable();
        assert!(sorted == all);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0, "runs have no names");
        Ok(())
    }

    #[test]
    fn ranges_of_many_runs_cover_all_records_once() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path());
        let mut all = records(6_000);
        let mut paths = Vec::new();
        for (n, part) in all.chunks(20).enumerate() {
            paths.push(dir.path().join(format!("{n}")));
            write_run(&paths[n], &mut part.to_vec())?;
        }
        all.sort_unstable();
        for num in [1, 2, 7] {
            let mut found = Vec::new();
            for n in 0..num {
                let (from, to) = range(n, num);
                let merge = Merge::<12>::of(&paths, &from, to.as_ref().map(|t| &t[..]), &scratch)?;
                found.extend(merge.collect::<Result<Vec<_>>>()?);
            }
            assert!(found == all, "{num} ranges");
        }
        Ok(())
    }

    #[test]
    fn a_group_beyond_memory_comes_in_parts_with_its_first() -> Result<()> {
        let mut parts = Vec::new();
        let all = [[1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [2, 4], [3, 0]];
        groups(all.into_iter().map(Ok), 1, 3, |group, goes_on| {
            parts.push((group.iter().map(|r| r[1]).collect::<Vec<_>>(), goes_on));
            Ok(())
        })?;
        assert_eq!(parts, [(vec![0], false), (vec![0, 1, 2], false), (vec![0, 3, 4], true), (vec![0], false)]);
        Ok(())
    }

    #[test]
    fn a_run_that_is_cut_is_named() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cut");
        fs::write(&path, [0; 13]).expect("write");
        let found = Merge::<12>::of(&[path], &[], None, &Scratch::new(dir.path())).map(drop);
        assert!(found.expect_err("cut").to_string().contains("cut is damaged"));
        Ok(())
    }
}
