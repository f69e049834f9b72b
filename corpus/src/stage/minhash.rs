//! Documents that say nearly the same.
//!
//! ```text
//!   text -> words -> identity            equal words: the first by rank stays
//!                 '-> sketch -> bands    of those that stay: buckets of equal bands
//!                        buckets -> candidates by rank -> sets of shingles on disk -> stars::choose: verified
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::config::Minhash;
use crate::doc::{Ordinal, Rank, field, u32_at, u64_at};
use crate::durable::Durable;
use crate::error::{At, Result};
use crate::ledger::tokens;
use crate::open::Files;
use crate::runs::{self, Merge, Sorter};
use crate::shingle::{self, similarity};
use crate::stage::stars::{self, Candidate, Gone, Place};
use crate::stage::{
    Pieces, Steps, VERDICT_BYTES, Verdict, Work, duplicates, of_piece, outputs, read_json, remove, write_json,
};
use crate::step::Over;
use crate::words;

const RULES: [&str; 2] = ["same-words", "near-duplicate"];
/// Key of a band, rank, ordinal.
const BAND_BYTES: usize = 8 + Rank::BYTES + 8;
/// Rank, ordinal, bucket (shard, number within it), how many members come before it.
const CANDIDATE_BYTES: usize = Rank::BYTES + 8 + 8 + 4;
/// Members of a bucket that are in memory at a time.
const MAX_GROUP: usize = 1 << 16;

pub const STEPS: &Steps<Minhash> = &[
    ("sketches", Over::Pieces, sketches),
    ("same", Over::Hashes, |work, _| duplicates::verdicts(work)),
    ("bands", Over::Pieces, bands),
    ("buckets", Over::Hashes, candidates),
    ("candidates", Over::Whole, wanted),
    ("shingles", Over::Pieces, sets),
    ("near", Over::Whole, decide),
    ("verdicts", Over::Hashes, |work, _| duplicates::join(work)),
    ("remove", Over::Pieces, remove_all),
];

fn remove_all(work: &Work<'_>, _: &Minhash) -> Result<()> {
    let mut verdicts = outputs(work.per_range("joined"));
    verdicts.push(work.folder.join("near"));
    remove(work, &verdicts, &RULES)
}

/// How much a stage left out.
pub fn note(work: &Work<'_>) -> Result<(String, u64)> {
    let num_left_out = read_json(&stars::left_out_path(&work.folder.join("near")))?;
    Ok(("places in buckets beyond max_bucket, of documents that stay".into(), num_left_out))
}

/// For each document with words: its identity, and beside it the keys of its bands in the order of documents.
fn sketches(work: &Work<'_>, options: &Minhash) -> Result<()> {
    let context = work.context;
    let bands = options.bands();
    context.watch.note(&format!("{}: {}", work.name, bands.curve()));
    work.tasks("sketches", &work.per_piece("keys"), |path, piece| {
        let mut file = Durable::create(&work.folder.join(format!("sketches-{piece:06}")))?;
        let (mut hashes, mut set, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut values = vec![0; bands.num_values()];
        let (mut records, mut bytes) = (Sorter::new(&context.scratch, context.thread_bytes()), 0);
        for doc in work.input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            words::word_hashes(&doc.text, &mut hashes);
            if hashes.is_empty() {
                continue;
            }
            let rank = Rank::of(context.priority(&doc), &doc.text);
            let ordinal = Ordinal::new(*piece, doc.index);
            records.push(duplicates::record(words::identity(&hashes), rank, ordinal))?;
            shingle::shingles(&hashes, options.shingle_words, &mut set);
            shingle::sketch(&set, options.seed, &mut values);
            bands.keys(&values, &mut keys);
            file.put(&rank.0)?;
            file.put(&ordinal.to_bytes())?;
            keys.iter().try_for_each(|key| file.put(&key.to_be_bytes()))?;
        }
        file.finish()?;
        runs::save(path, records.finish()?)?;
        Ok(bytes)
    })
}

/// Records of bands, sorted by their keys, of the documents that no other has the words of.
fn bands(work: &Work<'_>, options: &Minhash) -> Result<()> {
    const HEAD: usize = Rank::BYTES + 8;
    let context = work.context;
    let len = HEAD + options.bands().bands * 8;
    let same = outputs(work.per_range("same"));
    work.tasks("bands", &work.per_piece("bands"), |path, piece| {
        let sketches = work.folder.join(format!("sketches-{piece:06}"));
        let mut file = BufReader::new(File::open(&sketches).at("open", &sketches)?);
        let mut gone = of_piece::<VERDICT_BYTES>(&same, *piece, &context.scratch)?.peekable();
        let num = file.get_ref().metadata().at("look at", &sketches)?.len() / len as u64;
        let mut records = Sorter::new(&context.scratch, context.thread_bytes());
        let mut sketch = vec![0; len];
        for _ in 0..num {
            file.read_exact(&mut sketch).at("read", &sketches)?;
            let is_it = |next: &Result<[u8; VERDICT_BYTES]>| {
                next.as_ref().map_or(true, |v| v[..8] == sketch[Rank::BYTES..HEAD])
            };
            if gone.next_if(is_it).transpose()?.is_some() {
                continue;
            }
            for key in sketch[HEAD..].chunks_exact(8) {
                let mut record = [0; BAND_BYTES];
                record[..8].copy_from_slice(key);
                record[8..].copy_from_slice(&sketch[..HEAD]);
                records.push(record)?;
            }
        }
        runs::save(path, records.finish()?)?;
        Ok(0)
    })
}

/// Buckets of one range of keys.
#[derive(Debug, Default, Serialize)]
struct Shard {
    num_buckets: u64,
    num_places: u64,
}

fn records_path(shard: &Path) -> PathBuf {
    shard.with_extension("records")
}

/// Who shares a bucket with whom.
fn candidates(work: &Work<'_>, _: &Minhash) -> Result<()> {
    let context = work.context;
    let bands = outputs(work.per_piece("bands"));
    work.tasks("buckets", &work.per_range("buckets"), |path, shard| {
        let (from, to) = runs::range(*shard, context.num_shards);
        let records = Merge::<BAND_BYTES>::of(&bands, &from, to.as_ref().map(|to| &to[..]), &context.scratch)?;
        let mut sorter = Sorter::<CANDIDATE_BYTES>::new(&context.scratch, context.thread_bytes());
        let mut found = Shard::default();
        let mut num_members = 0u32;
        runs::groups(records, 8, MAX_GROUP, |group, goes_on| {
            if !goes_on {
                if group.len() == 1 {
                    return Ok(());
                }
                num_members = 0;
                found.num_buckets += 1;
            }
            for member in &group[usize::from(goes_on)..] {
                let mut record = [0; CANDIDATE_BYTES];
                record[..Rank::BYTES + 8].copy_from_slice(&member[8..]);
                record[21..29].copy_from_slice(&(shard << 48 | (found.num_buckets - 1)).to_be_bytes());
                record[29..].copy_from_slice(&num_members.to_be_bytes());
                found.num_places += 1;
                num_members = num_members.saturating_add(1);
                sorter.push(record)?;
            }
            Ok(())
        })?;
        runs::save(&records_path(path), sorter.finish()?)?;
        write_json(path, &found)?;
        Ok(0)
    })
}

/// Documents that share buckets, by rank.
struct ByRank {
    records: std::iter::Peekable<Merge<CANDIDATE_BYTES>>,
}

impl ByRank {
    fn open(work: &Work<'_>) -> Result<ByRank> {
        let paths: Vec<PathBuf> = outputs(work.per_range("buckets")).iter().map(|path| records_path(path)).collect();
        Ok(ByRank { records: Merge::of(&paths, &[], None, &work.context.scratch)?.peekable() })
    }
}

impl Iterator for ByRank {
    type Item = Result<Candidate<8>>;

    fn next(&mut self) -> Option<Result<Candidate<8>>> {
        let first = match self.records.next()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        let place = |record: &[u8]| Place { bucket: u64_at(record, 21), position: u32_at(record, 29) };
        let mut candidate = Candidate { payload: field(&first, Rank::BYTES), places: vec![place(&first)] };
        let is_of_it =
            |next: &Result<[u8; CANDIDATE_BYTES]>| next.as_ref().map_or(true, |next| next[..21] == first[..21]);
        while let Some(record) = self.records.next_if(is_of_it) {
            match record {
                Ok(record) => candidate.places.push(place(&record)),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(candidate))
    }
}

/// Of whom shingles are needed.
fn wanted(work: &Work<'_>, _: &Minhash) -> Result<()> {
    let path = work.folder.join("wanted");
    if path.exists() {
        return Ok(());
    }
    work.context.watch.begin(&format!("{}: candidates", work.name), 1);
    let mut wanted = Sorter::<8>::new(&work.context.scratch, work.context.memory_bytes / 8);
    for candidate in ByRank::open(work)? {
        wanted.push(candidate?.payload)?;
    }
    runs::save(&path, wanted.finish()?)?;
    work.context.watch.step(0);
    Ok(())
}

/// The shingles of those whose buckets have others in them.
fn sets(work: &Work<'_>, options: &Minhash) -> Result<()> {
    let context = work.context;
    let wanted = work.folder.join("wanted");
    work.tasks("shingles", &work.per_piece("sets"), |path, piece| {
        let wanted = of_piece::<8>(std::slice::from_ref(&wanted), *piece, &context.scratch)?;
        write_sets(path, &shingles_path(work.folder, *piece), work.input, *piece, wanted, options.shingle_words)
    })
}

fn shingles_path(folder: &Path, piece: u32) -> PathBuf {
    folder.join(format!("shingles-{piece:06}"))
}

/// Who stays, written as verdicts about the others.
fn decide(work: &Work<'_>, options: &Minhash) -> Result<()> {
    let (context, near) = (work.context, work.folder.join("near"));
    if near.exists() {
        return Ok(());
    }
    let sets = Sets::open(work);
    context.watch.begin(&format!("{}: comparisons", work.name), 1);
    let mut found = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.memory_bytes / 8);
    let choice = stars::Options {
        scratch: &context.scratch,
        num_threads: context.num_threads,
        max_bucket: options.max_bucket,
        memory_bytes: context.memory_bytes / 4,
    };
    let like = |kept: &[u8; 8], other: &[u8; 8]| {
        let (a, b) = (sets.get(Ordinal(u64_at(kept, 0)))?, sets.get(Ordinal(u64_at(other, 0)))?);
        let score = similarity(&a, &b, options.measure);
        Ok((score >= options.threshold).then_some(score as f32))
    };
    let gone = |gone: Gone<8>| {
        let (ordinal, kept) = (Ordinal(u64_at(&gone.payload, 0)), Ordinal(u64_at(&gone.kept, 0)));
        found.push(Verdict { ordinal, kept, score: gone.score, rule: 1 }.to_bytes())
    };
    let num_left_out = stars::choose(&choice, || ByRank::open(work), like, gone)?;
    write_json(&stars::left_out_path(&near), &num_left_out)?;
    runs::save(&near, found.finish()?)?;
    context.watch.step(0);
    Ok(())
}

/// Sets by document, and how many bytes they take.
type Cache = (HashMap<Ordinal, Arc<Vec<u64>>>, u64);

/// Where a set begins, and how many shingles it has.
const AT_BYTES: usize = 8 + 4;

/// Sets of shingles of the candidates, on disk, the last ones in memory.
struct Sets {
    /// Of each piece the places of the sets by the documents' numbers, and the sets.
    places: Files,
    shingles: Files,
    cache: Mutex<Cache>,
    max_bytes: u64,
}

impl Sets {
    fn open(work: &Work<'_>) -> Sets {
        let tasks = work.per_piece("sets");
        let shingles = Files::new(tasks.iter().map(|(_, piece)| shingles_path(work.folder, *piece)).collect());
        let max_bytes = work.context.memory_bytes / 4;
        Sets { places: Files::new(outputs(tasks)), shingles, cache: Mutex::default(), max_bytes }
    }

    fn get(&self, ordinal: Ordinal) -> Result<Arc<Vec<u64>>> {
        if let Some(set) = self.cache.lock().expect("nothing panics while it holds this").0.get(&ordinal) {
            return Ok(set.clone());
        }
        let mut at = [0; AT_BYTES];
        self.places.read(ordinal.piece(), &mut at, u64::from(ordinal.index()) * AT_BYTES as u64)?;
        let mut bytes = vec![0; u32_at(&at, 8) as usize * 8];
        self.shingles.read(ordinal.piece(), &mut bytes, u64_at(&at, 0))?;
        let set: Vec<u64> = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(field(b, 0))).collect();
        let set = Arc::new(set);
        let mut cache = self.cache.lock().expect("nothing panics while it holds this");
        let more = bytes.len() as u64 + 128;
        if cache.1 + more > self.max_bytes {
            *cache = Default::default();
        }
        cache.1 += more;
        cache.0.insert(ordinal, set.clone());
        Ok(set)
    }
}

/// Writes the shingles of each wanted document of a piece, and where they lie.
fn write_sets(path: &Path, shingles: &Path, input: &Pieces, piece: u32, wanted: Merge<8>, n: usize) -> Result<u64> {
    let mut wanted = wanted.peekable();
    let (mut places, mut body) = (Vec::new(), Durable::create(shingles)?);
    let (mut hashes, mut set, mut at, mut bytes) = (Vec::new(), Vec::new(), 0u64, 0);
    // Most pieces of a corpus without duplicates need not be read.
    let docs = if wanted.peek().is_some() { Some(input.open(piece)?) } else { None };
    for doc in docs.into_iter().flatten() {
        let doc = doc?;
        bytes += tokens(&doc.text);
        let ordinal = Ordinal::new(piece, doc.index);
        if wanted.next_if(|next| next.as_ref().map_or(true, |next| u64_at(next, 0) == ordinal.0)).transpose()?.is_none()
        {
            continue;
        }
        words::word_hashes(&doc.text, &mut hashes);
        shingle::shingles(&hashes, n, &mut set);
        places.resize(doc.index as usize * AT_BYTES, 0);
        places.extend(at.to_be_bytes());
        places.extend((set.len() as u32).to_be_bytes());
        set.iter().try_for_each(|shingle| body.put(&shingle.to_le_bytes()))?;
        at += set.len() as u64 * 8;
    }
    body.finish()?;
    // What says that the sets are there is written last.
    crate::durable::write(path, &places)?;
    Ok(bytes)
}
