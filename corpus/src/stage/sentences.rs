//! Sentences that stand in several places, or nearly so: the one in the first document by rank stays.
//!
//! ```text
//!   text -> segments -> words -> identity   equal words: the first stays
//!                            '-> SimHash    of those that stay: buckets by blocks -> who has a neighbour -> simhash::choose
//! ```
//!
//! Equal ones never meet in a bucket, so a sentence that a million documents have costs a million records and no more.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Sentences;
use crate::doc::{Doc, Ordinal, Rank, replaced, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::ledger::{Counts, Row, Rows, tokens};
use crate::runs::{self, Merge, Sorter};
use crate::sentence;
use crate::simhash;
use crate::stage::{Context, Pieces, of_piece, rewrite};
use crate::words;

const RULES: [&str; 2] = ["same-sentence", "near-sentence"];
const TOO_LITTLE: &str = "too-little-left";
const KEY_BYTES: usize = 16;
/// Rank of the document, its ordinal, which of its segments, SimHash.
const PLACE_BYTES: usize = Rank::BYTES + 8 + 4 + 8;
const RECORD_BYTES: usize = KEY_BYTES + PLACE_BYTES;
/// What a block of a SimHash has, the SimHash, its number by rank.
const BUCKET_BYTES: usize = 4 + 8 + 4;
/// Ordinal and segment that goes, ordinal and segment that stays, distance, rule.
const VERDICT_BYTES: usize = 12 + 12 + 1 + 1;
const MAX_GROUP: usize = 1 << 16;

pub fn run(
    context: &Context<'_>,
    options: &Sentences,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<(Pieces, Counts)> {
    let records = segments(context, options, name, input, folder)?;
    let (same, first) = equal(context, name, folder, &records)?;
    let near = folder.join("near");
    if !near.exists() {
        decide(context, options, name, &first, &near)?;
    }
    let mut verdicts = join(context, name, folder, &same, &near)?;
    verdicts.push(near);
    let begin = |piece| Ok((piece, of_piece::<VERDICT_BYTES>(&verdicts, piece, &context.scratch)?.peekable()));
    rewrite(context, name, input, folder, begin, |(piece, verdicts), doc, rows| {
        let ordinal = Ordinal::new(*piece, doc.index).to_bytes();
        let is_of_doc =
            |next: &Result<[u8; VERDICT_BYTES]>| next.as_ref().map_or(true, |verdict| verdict[..8] == ordinal);
        let mut found = Vec::new();
        while let Some(verdict) = verdicts.next_if(is_of_doc) {
            found.push(verdict?);
        }
        if found.is_empty() { Ok(true) } else { cut(context, options, doc, &found, rows) }
    })
}

/// Removes the segments that verdicts name; the document as a whole if too little is left.
fn cut(
    context: &Context<'_>,
    options: &Sentences,
    doc: &mut Doc,
    verdicts: &[[u8; VERDICT_BYTES]],
    rows: &mut Rows,
) -> Result<bool> {
    let segments = sentence::segments(&doc.text);
    let span = |verdict: &[u8; VERDICT_BYTES]| {
        let segment = segments.get(u32_at(verdict, 8) as usize);
        segment.map(|segment| segment.span.clone()).ok_or_else(|| Error::Ledger("a verdict names no segment".into()))
    };
    let spans = verdicts.iter().map(span).collect::<Result<Vec<_>>>()?;
    let kept = replaced(&doc.text, spans.iter().map(|span| (span, "")));
    let mut num_words = 0;
    words::each_word(&kept, |_| num_words += 1);
    if num_words < options.min_left_words {
        rows.whole(doc, Row { rule: TOO_LITTLE.into(), score: Some(num_words as f64), ..Row::default() })?;
        return Ok(false);
    }
    let text = std::mem::replace(&mut doc.text, kept);
    for (verdict, span) in verdicts.iter().zip(spans) {
        let rule = RULES[usize::from(verdict[25])].to_owned();
        let (score, kept) = (Some(f64::from(verdict[24])), Some(context.ids.of(Ordinal(u64_at(verdict, 12)))?));
        rows.part(doc, &text, span, Row { rule, score, kept, ..Row::default() })?;
    }
    Ok(true)
}

/// A record of each sentence that is long enough and no code.
fn segments(
    context: &Context<'_>,
    options: &Sentences,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    context.tasks(&format!("{name}: SimHash"), &input.tasks(folder, "sentences"), |path, piece| {
        let (mut hashes, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        for doc in input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            let mut record = [0; RECORD_BYTES];
            record[16..29].copy_from_slice(&Rank::of(context.priority(&doc), &doc.text).0);
            record[29..37].copy_from_slice(&Ordinal::new(*piece, doc.index).to_bytes());
            for (n, segment) in sentence::segments(&doc.text).iter().enumerate().filter(|(_, segment)| !segment.is_code)
            {
                words::word_hashes(&doc.text[segment.span.clone()], &mut hashes);
                let Some(hash) = simhash::simhash(&hashes).filter(|_| hashes.len() >= options.min_words) else {
                    continue;
                };
                record[..16].copy_from_slice(&words::identity(&hashes).to_be_bytes());
                record[37..41].copy_from_slice(&(n as u32).to_be_bytes());
                record[41..].copy_from_slice(&hash.to_be_bytes());
                records.push(record);
            }
        }
        runs::write_run(path, &mut records)?;
        Ok(bytes)
    })
}

/// Verdicts about sentences that are equal to others, and the first of each, by rank.
fn equal(
    context: &Context<'_>,
    name: &str,
    folder: &Path,
    records: &[PathBuf],
) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let tasks = context.shard_tasks(folder, "same");
    let firsts = context.shard_tasks(folder, "first");
    let same = context.tasks(&format!("{name}: equal ones"), &tasks, |path, shard| {
        let (from, to) = runs::range(*shard, context.num_shards);
        let records = Merge::<RECORD_BYTES>::of(records, &from, to.as_ref().map(|to| &to[..]), &context.scratch)?;
        let mut verdicts = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
        let mut found = Sorter::<PLACE_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
        runs::groups(records, KEY_BYTES, MAX_GROUP, |group, goes_on| {
            if !goes_on {
                let mut place = [0; PLACE_BYTES];
                place.copy_from_slice(&group[0][KEY_BYTES..]);
                found.push(place)?;
            }
            group[1..].iter().try_for_each(|record| verdicts.push(verdict(&record[29..41], &group[0][29..41], 0, 0)))
        })?;
        runs::save(&firsts[*shard as usize].0, found.finish()?)?;
        runs::save(path, verdicts.finish()?)?;
        Ok(0)
    })?;
    Ok((same, firsts.into_iter().map(|(path, _)| path).collect()))
}

/// `gone` and `kept` are an ordinal and a segment each.
fn verdict(gone: &[u8], kept: &[u8], distance: u8, rule: u8) -> [u8; VERDICT_BYTES] {
    let mut verdict = [0; VERDICT_BYTES];
    verdict[..12].copy_from_slice(gone);
    verdict[12..24].copy_from_slice(kept);
    (verdict[24], verdict[25]) = (distance, rule);
    verdict
}

/// Which sentences go for others that differ by little.
fn decide(context: &Context<'_>, options: &Sentences, name: &str, first: &[PathBuf], near: &Path) -> Result<()> {
    // In the order of rank, so that a number says who comes before whom.
    let places = || Merge::<PLACE_BYTES>::of(first, &[], None, &context.scratch);
    let mut num = 0u64;
    for place in places()? {
        place?;
        num += 1;
    }
    if num > u64::from(u32::MAX) {
        return Err(Error::Config(format!(
            "sentences: {num} different ones are more than 2^32; process the corpus in parts"
        )));
    }
    let marks: Vec<AtomicU64> = (0..num.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    let blocks: Vec<(u32, u32)> = simhash::blocks(options.distance).collect();
    context.watch.begin(&format!("{name}: {num} different ones"), blocks.len() as u64);
    crate::durable::run_tasks(context.num_threads, &blocks, |block| {
        let mut sorter = Sorter::<BUCKET_BYTES>::new(&context.scratch, context.thread_bytes());
        for (number, place) in places()?.enumerate() {
            let hash = u64_at(&place?, 25);
            let mut record = [0; BUCKET_BYTES];
            record[..4].copy_from_slice(&simhash::key(hash, *block).to_be_bytes());
            record[4..12].copy_from_slice(&hash.to_be_bytes());
            record[12..].copy_from_slice(&(number as u32).to_be_bytes());
            sorter.push(record)?;
        }
        let mut mark = |n: u32| {
            marks[n as usize / 64].fetch_or(1 << (n % 64), Ordering::Relaxed);
        };
        let (mut bucket, mut key): (Vec<(u64, u32)>, u32) = (Vec::new(), 0);
        for record in sorter.finish()? {
            let record = record?;
            if u32_at(&record, 0) != key {
                simhash::mark_near(&bucket, options.distance, &mut mark);
                bucket.clear();
                key = u32_at(&record, 0);
            }
            bucket.push((u64_at(&record, 4), u32_at(&record, 12)));
        }
        simhash::mark_near(&bucket, options.distance, &mut mark);
        context.watch.step(0);
        Ok(())
    })?;
    let num_marked: u64 = marks.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum();
    let needed = simhash::bytes(num_marked, options.distance);
    if needed > context.memory_bytes / 2 {
        let (needed_mib, there_mib) = (needed.div_ceil(1 << 20), (context.memory_bytes / 2) >> 20);
        return Err(Error::Memory { what: "sentences that have near ones", needed_mib, there_mib });
    }
    let (mut hashes, mut at) = (Vec::new(), Vec::new());
    for (n, place) in places()?.enumerate() {
        let place = place?;
        if marks[n / 64].load(Ordering::Relaxed) >> (n % 64) & 1 == 1 {
            hashes.push(u64_at(&place, 25));
            at.push(crate::doc::field::<12>(&place, Rank::BYTES));
        }
    }
    let chosen = simhash::choose(&hashes, options.distance);
    let found = chosen.iter().enumerate().filter_map(|(n, kept)| {
        let kept = (*kept)? as usize;
        Some(verdict(&at[n], &at[kept], (hashes[n] ^ hashes[kept]).count_ones() as u8, 1))
    });
    let mut found: Vec<[u8; VERDICT_BYTES]> = found.collect();
    runs::write_run(near, &mut found)
}

/// Sentences whose equal goes for a third one go for that one.
fn join(context: &Context<'_>, name: &str, folder: &Path, same: &[PathBuf], near: &Path) -> Result<Vec<PathBuf>> {
    let moved: Vec<[u8; VERDICT_BYTES]> =
        Merge::<VERDICT_BYTES>::of(&[near.to_owned()], &[], None, &context.scratch)?.collect::<Result<_>>()?;
    let tasks: Vec<(PathBuf, &PathBuf)> =
        context.shard_tasks(folder, "joined").into_iter().map(|(path, _)| path).zip(same).collect();
    context.tasks(&format!("{name}: verdicts"), &tasks, |path, same| {
        let records = Merge::<VERDICT_BYTES>::of(&[(*same).clone()], &[], None, &context.scratch)?;
        let joined = records.map(|record| {
            let record = record?;
            let at = moved.binary_search_by(|moved| moved[..12].cmp(&record[12..24]));
            Ok(at.map_or(record, |at| verdict(&record[..12], &moved[at][12..24], moved[at][24], 1)))
        });
        runs::save(path, joined)?;
        Ok(0)
    })
}
