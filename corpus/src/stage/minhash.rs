//! Documents that say nearly the same.
//!
//! ```text
//!   text -> words -> identity            equal words: the first by rank stays
//!                 '-> sketch -> bands    of those that stay: buckets of equal bands
//!                        buckets -> candidates by rank -> sets of shingles -> star::choose: verified
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::config::Minhash;
use crate::doc::{Ordinal, Rank, field, u32_at, u64_at};
use crate::durable::Durable;
use crate::error::{At, Error, Result};
use crate::ledger::{Counts, tokens};
use crate::runs::{self, Merge, Sorter};
use crate::shingle::{self, similarity};
use crate::stage::{Context, Pieces, VERDICT_BYTES, Verdict, duplicates, of_piece, read_json, remove, write_json};
use crate::star::{self, Candidates};
use crate::words;

const RULES: [&str; 2] = ["same-words", "near-duplicate"];
/// Key of a band, rank, ordinal.
const BAND_BYTES: usize = 8 + Rank::BYTES + 8;
/// Rank, ordinal, shard and number of a bucket, whether later ones are compared with it.
const CANDIDATE_BYTES: usize = Rank::BYTES + 8 + 2 + 4 + 1;
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
    let mut verdicts = join(context, name, folder, &same, &near)?;
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
        let (mut records, mut bytes) = (Vec::new(), 0);
        for doc in input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            words::word_hashes(&doc.text, &mut hashes);
            if hashes.is_empty() {
                continue;
            }
            let rank = Rank::of(context.priority(&doc), &doc.text);
            let ordinal = Ordinal::new(*piece, doc.index);
            records.push(duplicates::record(words::identity(&hashes), rank, ordinal));
            shingle::shingles(&hashes, options.shingle_words, &mut set);
            shingle::sketch(&set, options.seed, &mut values);
            bands.keys(&values, &mut keys);
            file.put(&rank.0)?;
            file.put(&ordinal.to_bytes())?;
            keys.iter().try_for_each(|key| file.put(&key.to_be_bytes()))?;
        }
        file.finish()?;
        runs::write_run(path, &mut records)?;
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
        let (mut records, mut sketch) = (Vec::new(), vec![0; len]);
        for _ in 0..num {
            file.read_exact(&mut sketch).at("read", &sketches)?;
            let is_it = |next: &Result<[u8; VERDICT_BYTES]>| {
                next.as_ref().map_or(true, |v| v[..8] == sketch[Rank::BYTES..HEAD])
            };
            if gone.next_if(is_it).transpose()?.is_some() {
                continue;
            }
            records.extend(sketch[HEAD..].chunks_exact(8).map(|key| {
                let mut record = [0; BAND_BYTES];
                record[..8].copy_from_slice(key);
                record[8..].copy_from_slice(&sketch[..HEAD]);
                record
            }));
        }
        runs::write_run(path, &mut records)?;
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
                let registers = num_members < options.max_bucket;
                let mut record = [0; CANDIDATE_BYTES];
                record[..Rank::BYTES + 8].copy_from_slice(&member[8..]);
                record[21..23].copy_from_slice(&(*shard as u16).to_be_bytes());
                record[23..27].copy_from_slice(&(found.num_buckets as u32 - 1).to_be_bytes());
                record[27] = u8::from(registers);
                found.num_left_out += u64::from(!registers);
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
    let num_buckets: u64 = shards.iter().map(|shard| shard.num_buckets).sum();
    if num_buckets > u64::from(u32::MAX) {
        return Err(Error::Config("minhash: more than 2^32 buckets; process the corpus in parts".into()));
    }
    let mut bases = Vec::new();
    shards.iter().fold(0, |base, shard| {
        bases.push(base as u32);
        base + shard.num_buckets
    });
    let paths: Vec<PathBuf> = shards.iter().map(|shard| shard.path.clone()).collect();
    let (mut candidates, mut ordinals) = (Candidates::default(), Vec::new());
    let (mut buckets, mut last) = (Vec::new(), None);
    for record in Merge::<CANDIDATE_BYTES>::of(&paths, &[], None, &context.scratch)? {
        let record = record?;
        let ordinal = Ordinal(u64_at(&record, Rank::BYTES));
        if last.is_some_and(|last| last != ordinal) {
            candidates.push(&buckets);
            buckets.clear();
            // The other half is for the sets that are compared, and for what follows.
            let (needed, there) = (candidates.bytes() + ordinals.len() as u64 * 32, context.memory_bytes / 2);
            if needed > there {
                let (needed_mib, there_mib) = (needed.div_ceil(1 << 20), there >> 20);
                return Err(Error::Memory { what: "minhash: who shares a bucket with whom", needed_mib, there_mib });
            }
        }
        if last != Some(ordinal) {
            ordinals.push(ordinal);
            last = Some(ordinal);
        }
        let shard = usize::from(u16::from_be_bytes(field(&record, 21)));
        buckets.push((bases[shard] + u32_at(&record, 23), record[27] == 1));
    }
    if last.is_some() {
        candidates.push(&buckets);
    }
    let sets = Sets::make(context, options, name, input, folder, &ordinals)?;
    context.watch.begin(&format!("{name}: comparisons of {} candidates", ordinals.len()), 1);
    let chosen = star::choose(&candidates, context.num_threads, |kept, other| {
        let (a, b) = (sets.get(ordinals[kept])?, sets.get(ordinals[other])?);
        let score = similarity(&a, &b, options.measure);
        Ok((score >= options.threshold).then_some(score as f32))
    })?;
    let found = ordinals.iter().zip(chosen).filter_map(|(ordinal, chosen)| {
        let (kept, score) = chosen?;
        Some(Verdict { ordinal: *ordinal, kept: ordinals[kept as usize], score, rule: 1 }.to_bytes())
    });
    let mut found: Vec<[u8; VERDICT_BYTES]> = found.collect();
    runs::write_run(near, &mut found)?;
    context.watch.step(0);
    Ok(())
}

/// Sets by document, and how many bytes they take.
type Cache = (HashMap<Ordinal, Arc<Vec<u64>>>, u64);

/// Sets of shingles of the candidates, on disk, the last ones in memory.
struct Sets {
    files: HashMap<u32, (PathBuf, File)>,
    /// Sorted by ordinal: where the set begins, and how many shingles it has.
    index: Vec<(Ordinal, u64, u32)>,
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
        ordinals: &[Ordinal],
    ) -> Result<Sets> {
        let mut sorted = ordinals.to_vec();
        sorted.sort_unstable();
        let pieces: Vec<&[Ordinal]> = sorted.chunk_by(|a, b| a.piece() == b.piece()).collect();
        let task = |wanted: &&[Ordinal]| (folder.join(format!("sets-{:06}", wanted[0].piece())), wanted[0].piece());
        let tasks: Vec<(PathBuf, u32)> = pieces.iter().map(task).collect();
        // Of documents that were done before a death the lengths are read with the sets.
        let paths = context.tasks(&format!("{name}: shingles"), &tasks, |path, piece| {
            let at = pieces.partition_point(|wanted| wanted[0].piece() < *piece);
            write_sets(path, input.open(*piece)?, pieces[at], options.shingle_words)
        })?;
        let (mut files, mut index) = (HashMap::new(), Vec::with_capacity(sorted.len()));
        for (wanted, path) in pieces.iter().zip(paths) {
            let file = File::open(&path).at("open", &path)?;
            let mut reader = BufReader::new(&file);
            let mut at = wanted.len() as u64 * 4;
            for ordinal in *wanted {
                let mut len = [0; 4];
                reader.read_exact(&mut len).at("read", &path)?;
                index.push((*ordinal, at, u32::from_le_bytes(len)));
                at += u64::from(u32::from_le_bytes(len)) * 8;
            }
            files.insert(wanted[0].piece(), (path, file));
        }
        Ok(Sets { files, index, cache: Mutex::default(), max_bytes: context.memory_bytes / 4 })
    }

    fn get(&self, ordinal: Ordinal) -> Result<Arc<Vec<u64>>> {
        if let Some(set) = self.cache.lock().expect("nothing panics while it holds this").0.get(&ordinal) {
            return Ok(set.clone());
        }
        let at = self.index.binary_search_by_key(&ordinal, |(ordinal, ..)| *ordinal);
        let missing = || Error::Ledger("a candidate has no set of shingles".into());
        let (_, start, len) = self.index[at.map_err(|_| missing())?];
        let (path, file) = self.files.get(&ordinal.piece()).ok_or_else(missing)?;
        let mut bytes = vec![0; len as usize * 8];
        file.read_exact_at(&mut bytes, start).at("read", path)?;
        let set: Vec<u64> = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(field(b, 0))).collect();
        let set = Arc::new(set);
        let mut cache = self.cache.lock().expect("nothing panics while it holds this");
        if cache.1 + bytes.len() as u64 > self.max_bytes {
            *cache = Default::default();
        }
        cache.1 += bytes.len() as u64 + 64;
        cache.0.insert(ordinal, set.clone());
        Ok(set)
    }
}

/// The number of shingles of each wanted document, then the shingles.
fn write_sets(
    path: &Path,
    docs: impl Iterator<Item = Result<crate::doc::Doc>>,
    wanted: &[Ordinal],
    n: usize,
) -> Result<u64> {
    let (mut lens, mut body) = (Vec::new(), Vec::new());
    let (mut hashes, mut set, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut wanted = wanted.iter().peekable();
    for doc in docs {
        let doc = doc?;
        bytes += tokens(&doc.text);
        if wanted.next_if(|next| next.index() == doc.index).is_none() {
            continue;
        }
        words::word_hashes(&doc.text, &mut hashes);
        shingle::shingles(&hashes, n, &mut set);
        lens.extend((set.len() as u32).to_le_bytes());
        set.iter().for_each(|shingle| body.extend(shingle.to_le_bytes()));
    }
    let mut file = Durable::create(path)?;
    file.put(&lens)?;
    file.put(&body)?;
    file.finish()?;
    Ok(bytes)
}

/// Documents whose equal goes for a third one go for that one (D-4).
fn join(context: &Context<'_>, name: &str, folder: &Path, same: &[PathBuf], near: &Path) -> Result<Vec<PathBuf>> {
    let moved: Vec<Verdict> = Merge::<VERDICT_BYTES>::of(&[near.to_owned()], &[], None, &context.scratch)?
        .map(|record| record.map(|record| Verdict::of_bytes(&record)))
        .collect::<Result<_>>()?;
    let tasks: Vec<(PathBuf, &PathBuf)> =
        context.shard_tasks(folder, "joined").into_iter().map(|(path, _)| path).zip(same).collect();
    context.tasks(&format!("{name}: verdicts"), &tasks, |path, same| {
        let records = Merge::<VERDICT_BYTES>::of(&[(*same).clone()], &[], None, &context.scratch)?;
        let joined = records.map(|record| {
            let verdict = Verdict::of_bytes(&record?);
            let at = moved.binary_search_by_key(&verdict.kept, |moved| moved.ordinal);
            Ok(at.map_or(verdict, |at| Verdict { ordinal: verdict.ordinal, ..moved[at] }).to_bytes())
        });
        runs::save(path, joined)?;
        Ok(0)
    })
}
