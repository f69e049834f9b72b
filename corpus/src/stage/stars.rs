//! Who stays of documents that share buckets, in bounded memory: the choice of [`crate::star`], block by block.
//!
//! ```text
//!   candidates by rank --cut--> blocks that fit in memory
//!   block k: its candidates, with the lists of who stays that were sent to it
//!              -> star::choose -> who goes; each list on to the next block that has a member of its bucket
//! ```
//!
//! A list is written and read once for each block that has members of its bucket, so the work on disk grows with the places in buckets and
//! not with the pairs of blocks. Where all candidates fit, there is one block and nothing is written.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::doc::{KeyMap, KeySet, mix, u32_at, u64_at};
use crate::error::{At, Error, Result};
use crate::runs::{Merge, Scratch, Sorter};
use crate::star;

/// A document in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub bucket: u64,
    /// How many members of the bucket come before it by rank.
    pub position: u32,
}

/// A document, or a sentence, with what it takes to compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<const N: usize> {
    pub payload: [u8; N],
    pub places: Vec<Place>,
}

/// Who goes, and who stays for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gone<const N: usize> {
    pub payload: [u8; N],
    pub kept: [u8; N],
    pub score: f32,
}

pub struct Options<'a> {
    pub scratch: &'a Scratch,
    pub num_threads: usize,
    /// Of those of a bucket that stay, so many (the first by rank) are compared with those after them.
    pub max_bucket: u32,
    pub memory_bytes: u64,
}

/// Where a stage whose verdicts are in `near` says how many places nobody is compared with.
pub fn left_out_path(near: &Path) -> PathBuf {
    near.with_extension("left-out")
}

// What a block takes in memory, with what is made on the way.
const DOC_BYTES: u64 = 96;
const PLACE_BYTES: u64 = 32;
const BUCKET_BYTES: u64 = 96;
/// Of somebody before the block that stays, in the list of a bucket.
const ENTRY_BYTES: u64 = 80;

/// Chooses among candidates, which `candidates` gives twice in the order of their ranks; calls `gone` for each that goes, in that order.
/// Returns how many places in buckets of candidates that stay are beyond `max_bucket`: for their sake nobody is compared with those.
pub fn choose<const N: usize, I: Iterator<Item = Result<Candidate<N>>>>(
    options: &Options<'_>,
    candidates: impl Fn() -> Result<I>,
    like: impl Fn(&[u8; N], &[u8; N]) -> Result<Option<f32>> + Sync,
    mut gone: impl FnMut(Gone<N>) -> Result<()>,
) -> Result<u64> {
    let (lens, crossings) = cut(options, candidates()?)?;
    let mut crossings = crossings.peekable();
    let mut candidates = candidates()?;
    let post = Post { prefix: options.scratch.path() };
    let bounds = star::Bounds { num_threads: options.num_threads, max_bucket: options.max_bucket };
    let (mut number, mut num_left_out) = (0, 0);
    for (k, len) in lens.iter().enumerate() {
        let mut block = Block::default();
        for _ in 0..*len {
            let changed = || Error::Ledger("there are fewer candidates than a moment before".into());
            block.push(candidates.next().ok_or_else(changed)??);
        }
        block.take(post.receive(k as u32)?)?;
        let num_before = block.before.len();
        let Block { before, payloads, candidates, kept_in, buckets } = &mut block;
        let payload = |n: usize| if n < num_before { &before[n].1 } else { &payloads[n - num_before] };
        let like = |a, b| like(payload(a), payload(b));
        let chosen = star::choose(candidates, num_before, kept_in, &mut num_left_out, bounds, like)?;
        for (own, chosen) in payloads.iter().zip(chosen) {
            if let Some((kept, score)) = chosen {
                gone(Gone { payload: *own, kept: *payload(kept as usize), score })?;
            }
        }
        let number_of = |n: u32| {
            if (n as usize) < num_before { before[n as usize].0 } else { number + u64::from(n) - num_before as u64 }
        };
        let mut letters = Vec::new();
        while let Some(crossing) = crossings.next_if(|c| c.as_ref().map_or(true, |c| u32_at(c, 0) == k as u32)) {
            let crossing = crossing?;
            let bucket = u64_at(&crossing, 4);
            if let Some(local) = buckets.get(&mix(bucket)).filter(|local| !kept_in[**local as usize].is_empty()) {
                letters.push((u32_at(&crossing, 12), bucket, *local));
            }
        }
        letters.sort_unstable();
        for letters in letters.chunk_by(|a, b| a.0 == b.0) {
            let lists = letters.iter().map(|(_, bucket, local)| (*bucket, &kept_in[*local as usize][..]));
            post.send(letters[0].0, lists, |n| (number_of(n), *payload(n as usize)))?;
        }
        number += len;
    }
    Ok(num_left_out)
}

/// How many candidates each block has, and (block, bucket, next block with that bucket), sorted.
fn cut<const N: usize>(
    options: &Options<'_>,
    candidates: impl Iterator<Item = Result<Candidate<N>>>,
) -> Result<(Vec<u64>, Merge<16>)> {
    let budget = options.memory_bytes / 2;
    let sorted_bytes = options.memory_bytes / 8;
    let mut buckets_of_blocks = Sorter::<12>::new(options.scratch, sorted_bytes);
    let mut lens = Vec::new();
    let (mut buckets, mut len, mut bytes) = (KeySet::default(), 0u64, 0u64);
    let cost =
        |place: &Place| PLACE_BYTES + BUCKET_BYTES + ENTRY_BYTES * u64::from(place.position.min(options.max_bucket));
    for candidate in candidates {
        let candidate = candidate?;
        let own = DOC_BYTES + N as u64 + candidate.places.len() as u64 * PLACE_BYTES;
        let news = |buckets: &KeySet| -> u64 {
            candidate.places.iter().filter(|place| !buckets.contains(&mix(place.bucket))).map(cost).sum()
        };
        let mut added = own + news(&buckets);
        if len > 0 && bytes + added > budget {
            lens.push(std::mem::take(&mut len));
            (buckets, bytes) = (KeySet::default(), 0);
            added = own + news(&buckets);
        }
        let block = u32::try_from(lens.len()).map_err(|_| Error::Ledger("more than 2^32 blocks".into()))?;
        for place in &candidate.places {
            if buckets.insert(mix(place.bucket)) {
                buckets_of_blocks.push(join(&[&place.bucket.to_be_bytes(), &block.to_be_bytes()]))?;
            }
        }
        bytes += added;
        len += 1;
    }
    if len > 0 {
        lens.push(len);
    }
    let mut crossings = Sorter::<16>::new(options.scratch, sorted_bytes);
    // Where there is one block, no bucket is in two.
    if lens.len() > 1 {
        let mut last: Option<[u8; 12]> = None;
        for next in buckets_of_blocks.finish()? {
            let next = next?;
            if let Some(last) = last.filter(|last| last[..8] == next[..8]) {
                crossings.push(join(&[&last[8..], &last[..8], &next[8..]]))?;
            }
            last = Some(next);
        }
    }
    Ok((lens, crossings.finish()?))
}

fn join<const M: usize>(parts: &[&[u8]]) -> [u8; M] {
    let (mut joined, mut at) = ([0; M], 0);
    for part in parts {
        joined[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    joined
}

/// Somebody that stays: its number by rank among all candidates, and what it takes to compare it.
type Kept<const N: usize> = (u64, [u8; N]);

/// Candidates that are in memory. Numbers are local: first those before the block that stay, then its own.
struct Block<const N: usize> {
    before: Vec<Kept<N>>,
    payloads: Vec<[u8; N]>,
    candidates: star::Candidates,
    /// Local numbers of buckets.
    buckets: KeyMap<u32>,
    kept_in: Vec<Vec<u32>>,
}

impl<const N: usize> Default for Block<N> {
    fn default() -> Self {
        let (before, payloads, kept_in) = (Vec::new(), Vec::new(), Vec::new());
        Block { before, payloads, candidates: Default::default(), buckets: Default::default(), kept_in }
    }
}

impl<const N: usize> Block<N> {
    fn push(&mut self, candidate: Candidate<N>) {
        self.payloads.push(candidate.payload);
        let (buckets, kept_in) = (&mut self.buckets, &mut self.kept_in);
        let places = candidate.places.iter().map(|place| {
            *buckets.entry(mix(place.bucket)).or_insert_with(|| {
                kept_in.push(Vec::new());
                kept_in.len() as u32 - 1
            })
        });
        self.candidates.push(places);
    }

    fn take(&mut self, lists: Vec<(u64, Vec<Kept<N>>)>) -> Result<()> {
        self.before = lists.iter().flat_map(|(_, list)| list).copied().collect();
        self.before.sort_unstable();
        self.before.dedup();
        for (bucket, list) in lists {
            let missing = || Error::Ledger("a list was sent to a block without its bucket".into());
            let local = *self.buckets.get(&mix(bucket)).ok_or_else(missing)?;
            let at = |kept: &Kept<N>| self.before.partition_point(|before| before < kept) as u32;
            self.kept_in[local as usize] = list.iter().map(at).collect();
        }
        Ok(())
    }
}

/// Lists on their way to later blocks: a file for each block that gets some.
struct Post {
    prefix: PathBuf,
}

impl Post {
    fn path(&self, block: u32) -> PathBuf {
        self.prefix.with_extension(format!("to-{block}"))
    }

    fn send<'a, const N: usize>(
        &self,
        block: u32,
        lists: impl Iterator<Item = (u64, &'a [u32])>,
        kept: impl Fn(u32) -> Kept<N>,
    ) -> Result<()> {
        let path = self.path(block);
        let file = File::options().append(true).create(true).open(&path).at("open", &path)?;
        let mut file = BufWriter::new(file);
        let mut put = |bytes: &[u8]| file.write_all(bytes).at("write", &path);
        for (bucket, list) in lists {
            put(&bucket.to_be_bytes())?;
            put(&(list.len() as u32).to_be_bytes())?;
            for n in list {
                let (number, payload) = kept(*n);
                put(&number.to_be_bytes())?;
                put(&payload)?;
            }
        }
        file.flush().at("write", &path)
    }

    fn receive<const N: usize>(&self, block: u32) -> Result<Vec<(u64, Vec<Kept<N>>)>> {
        let path = self.path(block);
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("open", &path)?,
        };
        // It goes when it is closed.
        fs::remove_file(&path).at("remove", &path)?;
        let mut left = file.metadata().at("look at", &path)?.len();
        let mut file = BufReader::new(file);
        let mut lists = Vec::new();
        while left > 0 {
            let (bucket, len) =
                (u64::from_be_bytes(exact(&mut file, &path)?), u32::from_be_bytes(exact(&mut file, &path)?));
            let mut list = Vec::with_capacity(len as usize);
            for _ in 0..len {
                list.push((u64::from_be_bytes(exact(&mut file, &path)?), exact(&mut file, &path)?));
            }
            left = left.saturating_sub(12 + u64::from(len) * (8 + N as u64));
            lists.push((bucket, list));
        }
        Ok(lists)
    }
}

fn exact<const M: usize>(file: &mut BufReader<File>, path: &Path) -> Result<[u8; M]> {
    let mut bytes = [0; M];
    file.read_exact(&mut bytes).at("read", path)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents with some buckets each, of which a few are crowded.
    fn documents(num: u64) -> Vec<Candidate<8>> {
        let mut members = std::collections::BTreeMap::<u64, u32>::new();
        let places = |n: u64| {
            let mut buckets: Vec<u64> =
                (0..1 + mix(n) % 5).map(|b| mix(n * 31 + b) % (1 + num / [3, 200][(b % 2) as usize])).collect();
            buckets.sort_unstable();
            buckets.dedup();
            let place = |bucket| {
                let position = members.entry(bucket).or_default();
                *position += 1;
                Place { bucket, position: *position - 1 }
            };
            buckets.into_iter().map(place).collect::<Vec<_>>()
        };
        (0..num)
            .map(places)
            .enumerate()
            .map(|(n, places)| Candidate { payload: (n as u64).to_be_bytes(), places })
            .collect()
    }

    fn like(a: &[u8; 8], b: &[u8; 8]) -> Result<Option<f32>> {
        let sum = u64::from_be_bytes(*a) * 7_001 + u64::from_be_bytes(*b);
        Ok(mix(sum).is_multiple_of(5).then_some((sum % 100) as f32))
    }

    struct Chosen {
        /// Who goes for whom.
        gone: Vec<(u64, u64)>,
        num_left_out: u64,
        num_blocks: usize,
    }

    fn choose_of(all: &[Candidate<8>], memory_bytes: u64, max_bucket: u32, num_threads: usize) -> Chosen {
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path());
        let options = Options { scratch: &scratch, num_threads, max_bucket, memory_bytes };
        let mut found = Vec::new();
        let (lens, _) = cut(&options, all.iter().cloned().map(Ok)).expect("cut");
        let gone = |gone: Gone<8>| {
            found.push((u64::from_be_bytes(gone.payload), u64::from_be_bytes(gone.kept)));
            Ok(())
        };
        let num_left_out = choose(&options, || Ok(all.iter().cloned().map(Ok)), like, gone).expect("chosen");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0, "nothing is left behind");
        Chosen { gone: found, num_left_out, num_blocks: lens.len() }
    }

    #[test]
    fn blocks_choose_as_one_does_whatever_their_size() {
        for (num, max_bucket) in [(600, u32::MAX), (600, 3)] {
            let all = documents(num);
            // The definition.
            let mut expected = Vec::new();
            let (mut compared, mut num_left_out) = (std::collections::BTreeMap::<u64, Vec<usize>>::new(), 0);
            for n in 0..all.len() {
                let others = all[n].places.iter().flat_map(|place| compared.get(&place.bucket).into_iter().flatten());
                let is_like =
                    |other: &usize| like(&all[*other].payload, &all[n].payload).expect("nothing fails").is_some();
                if let Some(kept) = others.copied().filter(is_like).min() {
                    expected.push((n as u64, kept as u64));
                    continue;
                }
                for place in &all[n].places {
                    let of_bucket = compared.entry(place.bucket).or_default();
                    let has_room = of_bucket.len() < max_bucket as usize;
                    num_left_out += u64::from(!has_room);
                    of_bucket.extend(has_room.then_some(n));
                }
            }
            assert!(expected.len() > 100);
            assert_eq!(num_left_out > 100, max_bucket == 3);
            for (memory_bytes, num_blocks) in [(u64::MAX, 1..=1), (200_000, 2..=60), (1, 600..=600)] {
                for num_threads in [1, 2, 3] {
                    let found = choose_of(&all, memory_bytes, max_bucket, num_threads);
                    let case = format!("{memory_bytes} bytes, at most {max_bucket} of a bucket, {num_threads} threads");
                    assert!(num_blocks.contains(&found.num_blocks), "{case}: {} blocks", found.num_blocks);
                    assert_eq!(found.gone, expected, "{case}");
                    assert_eq!(found.num_left_out, num_left_out, "{case}");
                }
            }
        }
    }

    #[test]
    fn versions_that_all_stay_take_comparisons_that_grow_with_their_number() {
        // As versions of one text have it: some of 20 buckets each.
        let document = |n: u64| {
            let buckets = (0..20).filter(|b| mix(n * 20 + b).is_multiple_of(3));
            Candidate {
                payload: n.to_be_bytes(),
                places: buckets.map(|bucket| Place { bucket, position: n as u32 }).collect(),
            }
        };
        let compared = |num: u64, memory_bytes| {
            let dir = tempfile::tempdir().expect("a folder");
            let scratch = Scratch::new(dir.path());
            let options = Options { scratch: &scratch, num_threads: 2, max_bucket: 16, memory_bytes };
            let num_compared = std::sync::atomic::AtomicU64::new(0);
            let compare = |_: &[u8; 8], _: &[u8; 8]| {
                num_compared.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(None)
            };
            let never = |_: Gone<8>| Err(Error::Ledger("all of them stay".into()));
            choose(&options, || Ok((0..num).map(document).map(Ok)), compare, never).expect("chosen");
            num_compared.into_inner()
        };
        // Few are compared with all; those after them with the same few.
        let counts = [1_000, 2_000, 4_000].map(|num| compared(num, u64::MAX));
        let grown = [counts[1] - counts[0], counts[2] - counts[1]];
        assert!(grown[1] as f64 / grown[0] as f64 <= 2.02, "{counts:?}");
        assert!(counts[2] <= 4_000 * 20 * 16 / 3, "{counts:?}");
        assert_eq!(compared(4_000, 1 << 20), counts[2], "blocks change nothing");
    }

    #[test]
    fn a_cluster_of_many_blocks_sends_its_first_from_block_to_block() {
        let num = 20_000u64;
        let place = |n: u64, bucket| Place { bucket, position: n as u32 };
        let document = |n: u64| Candidate { payload: n.to_be_bytes(), places: (0..20).map(|b| place(n, b)).collect() };
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path());
        let options = Options { scratch: &scratch, num_threads: 1, max_bucket: 16, memory_bytes: 1 << 20 };
        let num_compared = std::sync::atomic::AtomicU64::new(0);
        let mut num_gone = 0u64;
        let compare = |_: &[u8; 8], _: &[u8; 8]| {
            num_compared.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(Some(1.0))
        };
        let gone = |gone: Gone<8>| {
            assert_eq!(gone.kept, [0; 8]);
            num_gone += 1;
            Ok(())
        };
        choose(&options, || Ok((0..num).map(document).map(Ok)), compare, gone).expect("chosen");
        assert_eq!(num_gone, num - 1);
        assert_eq!(num_compared.into_inner(), num - 1, "each is compared once");
    }
}
