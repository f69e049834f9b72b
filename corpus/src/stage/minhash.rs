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

use serde::{Deserialize, Serialize};

use crate::config::Minhash;
use crate::doc::{Ordinal, Rank, field, u32_at, u64_at};
use crate::durable::Durable;
use crate::error::{At, Result};
use crate::ledger::{Counts, tokens};
use crate::open::Files;
use crate::runs::{self, Merge, Sorter};
use crate::shingle::{self, similarity};
use crate::stage::stars::{self, Candidate, Gone, Place};
use crate::stage::{Context, Pieces, VERDICT_BYTES, Verdict, duplicates, of_piece, read_json, remove, write_json};
use crate::words;

const RULES: [&str; 2] = ["same-words", "near-duplicate"];
/// Key of a band, rank, ordinal.
const BAND_BYTES: usize = 8 + Rank::BYTES + 8;
/// Rank, ordinal, bucket (shard, number within it), how many members come before it.
const CANDIDATE_BYTES: usize = Rank::BYTES + 8 + 8 + 4;
/// Members of a bucket that are in memory at a time.
const MAX_GROUP: usize = 1 << 16;

pub fn run(
    context: &Context<'_>,
    options: &Minhash,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<(Pieces, Counts)> {
    context.watch.note(&format!("{name}: {}", options.bands().curve()));
    let keys = sketches(context, options, name, input, folder)?;
    let same = duplicates::verdicts(context, name, folder, &keys)?;
    let buckets = bands(context, options, name, input, folder, &same)?;
    let shards = candidates(context, options, name, folder, &buckets)?;
    let near = folder.join("near");
    if !near.exists() {
        decide(context, options, name, input, folder, &shards, &near)?;
    }
    let mut verdicts = duplicates::join(context, name, folder, &same, &near)?;
    verdicts.push(near);
    let (pieces, mut counts) = remove(context, name, input, folder, &verdicts, &RULES)?;
    let left_out: u64 = shards.iter().map(|shard| shard.num_left_out).sum();
    counts.notes.insert("places in buckets beyond max_bucket".into(), left_out);
    Ok((pieces, counts))
}

/// For each document with words: its identity, and beside it the keys of its bands in the order of documents.
fn sketches(
    context: &Context<'_>,
    options: &Minhash,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let bands = options.bands();
    context.tasks(&format!("{name}: sketches"), &input.tasks(folder, "keys"), |path, piece| {
        let mut file = Durable::create(&folder.join(format!("sketches-{piece:06}")))?;
        let (mut hashes, mut set, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut values = vec![0; bands.num_values()];
        let (mut records, mut bytes) = (Sorter::new(&context.scratch, context.thread_bytes()), 0);
        for doc in input.open(*piece)? {
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
fn bands(
    context: &Context<'_>,
    options: &Minhash,
    name: &str,
    input: &Pieces,
    folder: &Path,
    same: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    const HEAD: usize = Rank::BYTES + 8;
    let len = HEAD + options.bands().bands * 8;
    context.tasks(&format!("{name}: bands"), &input.tasks(folder, "bands"), |path, piece| {
        let sketches = folder.join(format!("sketches-{piece:06}"));
        let mut file = BufReader::new(File::open(&sketches).at("open", &sketches)?);
        let mut gone = of_piece::<VERDICT_BYTES>(same, *piece, &context.scratch)?.peekable();
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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Shard {
    path: PathBuf,
    num_buckets: u64,
    num_places: u64,
    num_left_out: u64,
}

/// Who shares a bucket with whom.
fn candidates(
    context: &Context<'_>,
    options: &Minhash,
    name: &str,
    folder: &Path,
    bands: &[PathBuf],
) -> Result<Vec<Shard>> {
    let tasks = context.shard_tasks(folder, "buckets");
    let found = context.tasks(&format!("{name}: buckets"), &tasks, |path, shard| {
        let (from, to) = runs::range(*shard, context.num_shards);
        let records = Merge::<BAND_BYTES>::of(bands, &from, to.as_ref().map(|to| &to[..]), &context.scratch)?;
        let mut sorter = Sorter::<CANDIDATE_BYTES>::new(&context.scratch, context.thread_bytes());
        let mut found = Shard { path: path.with_extension("records"), ..Shard::default() };
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
                found.num_left_out += u64::from(num_members >= options.max_bucket);
                found.num_places += 1;
                num_members = num_members.saturating_add(1);
                sorter.push(record)?;
            }
            Ok(())
        })?;
        runs::save(&found.path, sorter.finish()?)?;
        write_json(path, &found)?;
        Ok(0)
    })?;
    found.iter().map(|path| read_json(path)).collect()
}

/// Documents that share buckets, by rank.
struct ByRank {
    records: std::iter::Peekable<Merge<CANDIDATE_BYTES>>,
}

impl ByRank {
    fn open(context: &Context<'_>, shards: &[Shard]) -> Result<ByRank> {
        let paths: Vec<PathBuf> = shards.iter().map(|shard| shard.path.clone()).collect();
        Ok(ByRank { records: Merge::of(&paths, &[], None, &context.scratch)?.peekable() })
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

/// Who stays, written as verdicts about the others.
fn decide(
    context: &Context<'_>,
    options: &Minhash,
    name: &str,
    input: &Pieces,
    folder: &Path,
    shards: &[Shard],
    near: &Path,
) -> Result<()> {
    let mut wanted = Sorter::<8>::new(&context.scratch, context.memory_bytes / 8);
    let mut num = 0u64;
    for candidate in ByRank::open(context, shards)? {
        wanted.push(candidate?.payload)?;
        num += 1;
    }
    let wanted_path = folder.join("wanted");
    runs::save(&wanted_path, wanted.finish()?)?;
    let sets = Sets::make(context, options, name, input, folder, &wanted_path)?;
    context.watch.begin(&format!("{name}: comparisons of {num} candidates"), 1);
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
    stars::choose(&choice, || ByRank::open(context, shards), like, gone)?;
    runs::save(near, found.finish()?)?;
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
    fn make(
        context: &Context<'_>,
        options: &Minhash,
        name: &str,
        input: &Pieces,
        folder: &Path,
        wanted: &PathBuf,
    ) -> Result<Sets> {
        let shingles = |piece: u32| folder.join(format!("shingles-{piece:06}"));
        let tasks = input.tasks(folder, "sets");
        let places = context.tasks(&format!("{name}: shingles"), &tasks, |path, piece| {
            let wanted = of_piece::<8>(std::slice::from_ref(wanted), *piece, &context.scratch)?;
            write_sets(path, &shingles(*piece), input, *piece, wanted, options.shingle_words)
        })?;
        let shingles = Files::new(tasks.iter().map(|(_, piece)| shingles(*piece)).collect());
        Ok(Sets { places: Files::new(places), shingles, cache: Mutex::default(), max_bytes: context.memory_bytes / 4 })
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
