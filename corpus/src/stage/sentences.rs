//! Sentences that stand in several places, or nearly so: the one in the first document by rank stays.
//!
//! ```text
//!   text -> segments -> words -> identity   equal words: the first stays
//!                            '-> SimHash    of those that stay: buckets of tables -> who has a neighbour -> stars::choose
//! ```
//!
//! Equal ones never meet in a bucket, so a sentence that a million documents have costs a million records and no more.

use std::iter::Peekable;
use std::path::{Path, PathBuf};

use crate::config::Sentences;
use crate::doc::{Doc, Ordinal, Rank, replaced, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::ledger::{Row, Rows, tokens};
use crate::runs::{self, Merge, Sorter};
use crate::sentence;
use crate::simhash;
use crate::stage::stars::{self, Candidate, Gone, Place};
use crate::stage::{Context, Steps, Work, of_piece, outputs, read_json, rewrite, write_json};
use crate::step::Over;
use crate::words;

const RULES: [&str; 2] = ["same-sentence", "near-sentence"];
const TOO_LITTLE: &str = "too-little-left";
const KEY_BYTES: usize = 16;
/// Rank of the document, its ordinal, which of its segments, SimHash.
const PLACE_BYTES: usize = Rank::BYTES + 8 + 4 + 8;
const RECORD_BYTES: usize = KEY_BYTES + PLACE_BYTES;
/// The bits of a table that a SimHash has, its number by rank, the SimHash.
const BUCKET_BYTES: usize = 8 + 4 + 8;
/// Number by rank, bucket, how many members come before it.
const MEMBER_BYTES: usize = 4 + 8 + 4;
/// SimHash, ordinal, segment: what the choice passes on.
const PAYLOAD_BYTES: usize = 8 + 12;
/// Ordinal and segment that goes, ordinal and segment that stays, distance, rule.
const VERDICT_BYTES: usize = 12 + 12 + 1 + 1;
const MAX_GROUP: usize = 1 << 16;
/// In a larger bucket each member is taken for one that has a neighbour, without looking.
const MAX_LOOKED_AT: usize = 1 << 12;
/// Of the sentences of a bucket that have neighbours and stay, so many (the first by rank) are compared with those after them.
const MAX_BUCKET: u32 = 1 << 10;

pub const STEPS: &Steps<Sentences> = &[
    ("sentences", Over::Pieces, segments),
    ("same", Over::Hashes, equal),
    ("number", Over::Whole, number),
    ("neighbours", Over::Tables, neighbours),
    ("near", Over::Whole, decide),
    ("verdicts", Over::Hashes, join),
    ("remove", Over::Pieces, remove),
];

fn remove(work: &Work<'_>, options: &Sentences) -> Result<()> {
    let context = work.context;
    let mut verdicts = outputs(work.per_range("joined"));
    verdicts.push(work.folder.join("near"));
    let begin = |piece| Ok((piece, of_piece::<VERDICT_BYTES>(&verdicts, piece, &context.scratch)?.peekable()));
    rewrite(work, begin, |(piece, verdicts), doc, rows| {
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

/// How much the stage left out.
pub fn note(work: &Work<'_>) -> Result<(String, u64)> {
    let num_left_out = read_json(&stars::left_out_path(&work.folder.join("near")))?;
    Ok((format!("places in buckets beyond {MAX_BUCKET}, of sentences that stay"), num_left_out))
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
fn segments(work: &Work<'_>, options: &Sentences) -> Result<()> {
    let context = work.context;
    work.tasks("SimHash", &work.per_piece("sentences"), |path, piece| {
        let mut records = Sorter::new(&context.scratch, context.thread_bytes());
        let (mut hashes, mut bytes) = (Vec::new(), 0);
        for doc in work.input.open(*piece)? {
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
                records.push(record)?;
            }
        }
        runs::save(path, records.finish()?)?;
        Ok(bytes)
    })
}

/// Verdicts about sentences that are equal to others, and the first of each, by rank.
fn equal(work: &Work<'_>, _: &Sentences) -> Result<()> {
    let context = work.context;
    let (records, firsts) = (outputs(work.per_piece("sentences")), outputs(work.per_range("first")));
    work.tasks("equal ones", &work.per_range("same"), |path, shard| {
        let (from, to) = runs::range(*shard, context.num_shards);
        let records = Merge::<RECORD_BYTES>::of(&records, &from, to.as_ref().map(|to| &to[..]), &context.scratch)?;
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
        runs::save(&firsts[*shard as usize], found.finish()?)?;
        runs::save(path, verdicts.finish()?)?;
        Ok(0)
    })
}

/// `gone` and `kept` are an ordinal and a segment each.
fn verdict(gone: &[u8], kept: &[u8], distance: u8, rule: u8) -> [u8; VERDICT_BYTES] {
    let mut verdict = [0; VERDICT_BYTES];
    verdict[..12].copy_from_slice(gone);
    verdict[12..24].copy_from_slice(kept);
    (verdict[24], verdict[25]) = (distance, rule);
    verdict
}

/// Sentences by rank, with the buckets in which they have neighbours; those that have none are left out.
struct ByRank {
    places: std::iter::Enumerate<Merge<PLACE_BYTES>>,
    members: Peekable<Merge<MEMBER_BYTES>>,
}

impl ByRank {
    fn step(&mut self) -> Result<Option<Candidate<PAYLOAD_BYTES>>> {
        let number = match self.members.peek() {
            Some(Ok(member)) => u32_at(member, 0),
            Some(Err(_)) => return self.members.next().transpose().map(|_| None),
            None => return Ok(None),
        };
        let mut places = Vec::new();
        while let Some(member) = self.members.next_if(|m| m.as_ref().map_or(true, |m| u32_at(m, 0) == number)) {
            let member = member?;
            places.push(Place { bucket: u64_at(&member, 4), position: u32_at(&member, 12) });
        }
        for (n, place) in self.places.by_ref() {
            let place = place?;
            if n as u64 == u64::from(number) {
                let mut payload = [0; PAYLOAD_BYTES];
                payload[..8].copy_from_slice(&place[25..]);
                payload[8..].copy_from_slice(&place[Rank::BYTES..25]);
                return Ok(Some(Candidate { payload, places }));
            }
        }
        Err(Error::Ledger("a bucket names no sentence".into()))
    }
}

impl Iterator for ByRank {
    type Item = Result<Candidate<PAYLOAD_BYTES>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Different sentences in the order of rank, so that a number says who comes before whom.
fn places(work: &Work<'_>) -> Result<Merge<PLACE_BYTES>> {
    Merge::of(&outputs(work.per_range("first")), &[], None, &work.context.scratch)
}

/// Counts the different sentences.
fn number(work: &Work<'_>, _: &Sentences) -> Result<()> {
    let path = work.folder.join("number");
    if path.exists() {
        return Ok(());
    }
    let mut num = 0u64;
    for place in places(work)? {
        place?;
        num += 1;
    }
    if num > u64::from(u32::MAX) {
        return Err(Error::Config(format!(
            "sentences: {num} different ones are more than 2^32; process the corpus in parts"
        )));
    }
    write_json(&path, &num)
}

/// Of each table of bits, where its members go, its number and its bits.
fn tables(work: &Work<'_>, options: &Sentences) -> Result<Vec<(PathBuf, (u64, u64))>> {
    let tables = simhash::tables(options.distance, read_json(&work.folder.join("number"))?);
    Ok((0..).zip(tables).map(|(n, mask)| (work.folder.join(format!("members-{n:03}")), (n, mask))).collect())
}

/// Who has a neighbour in a table.
fn neighbours(work: &Work<'_>, options: &Sentences) -> Result<()> {
    work.tasks("neighbours", &tables(work, options)?, |path, (n, mask)| {
        members(work.context, options, path, places(work)?, (*n, *mask))?;
        write_json(path, &())?;
        Ok(0)
    })
}

/// Which sentences go for others that differ by little.
fn decide(work: &Work<'_>, options: &Sentences) -> Result<()> {
    let (context, near) = (work.context, work.folder.join("near"));
    if near.exists() {
        return Ok(());
    }
    let members = outputs(tables(work, options)?);
    let members: Vec<PathBuf> = members.iter().map(|path| records_path(path)).collect();
    context.watch.begin(&format!("{}: comparisons", work.name), 1);
    let choice = stars::Options {
        scratch: &context.scratch,
        num_threads: context.num_threads,
        max_bucket: MAX_BUCKET,
        memory_bytes: context.memory_bytes / 2,
    };
    let candidates = || {
        let members = Merge::of(&members, &[], None, &context.scratch)?.peekable();
        Ok(ByRank { places: places(work)?.enumerate(), members })
    };
    let distance = |a: &[u8], b: &[u8]| (u64_at(a, 0) ^ u64_at(b, 0)).count_ones();
    let like = |a: &[u8; PAYLOAD_BYTES], b: &[u8; PAYLOAD_BYTES]| {
        let distance = distance(a, b);
        Ok((distance <= options.distance).then_some(distance as f32))
    };
    let mut found = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.memory_bytes / 8);
    let gone = |gone: Gone<PAYLOAD_BYTES>| {
        let distance = distance(&gone.payload, &gone.kept) as u8;
        found.push(verdict(&gone.payload[8..], &gone.kept[8..], distance, 1))
    };
    let num_left_out = stars::choose(&choice, candidates, like, gone)?;
    write_json(&stars::left_out_path(&near), &num_left_out)?;
    runs::save(&near, found.finish()?)?;
    context.watch.step(0);
    Ok(())
}

fn records_path(members: &Path) -> PathBuf {
    members.with_extension("records")
}

/// Of one table: the sentences that have a neighbour in their bucket, by number.
fn members(
    context: &Context<'_>,
    options: &Sentences,
    path: &Path,
    places: Merge<PLACE_BYTES>,
    (table, mask): (u64, u64),
) -> Result<()> {
    let mut sorter = Sorter::<BUCKET_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
    for (number, place) in places.enumerate() {
        let hash = u64_at(&place?, 25);
        let mut record = [0; BUCKET_BYTES];
        record[..8].copy_from_slice(&(hash & mask).to_be_bytes());
        record[8..12].copy_from_slice(&(number as u32).to_be_bytes());
        record[12..].copy_from_slice(&hash.to_be_bytes());
        sorter.push(record)?;
    }
    let mut found = Sorter::<MEMBER_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
    let (mut bucket, mut position) = (table << 48, 0u32);
    runs::groups(sorter.finish()?, 8, MAX_LOOKED_AT, |group, goes_on| {
        if !goes_on {
            (bucket, position) = (bucket + 1, 0);
        }
        let mut is_near = vec![goes_on || group.len() >= MAX_LOOKED_AT; group.len()];
        if !is_near[0] {
            let hashes: Vec<(u64, u32)> = group.iter().zip(0..).map(|(record, n)| (u64_at(record, 12), n)).collect();
            simhash::mark_near(&hashes, options.distance, &mut |n| is_near[n as usize] = true);
        }
        for (record, _) in group.iter().zip(&is_near).skip(usize::from(goes_on)).filter(|(_, is_near)| **is_near) {
            let mut member = [0; MEMBER_BYTES];
            member[..4].copy_from_slice(&record[8..12]);
            member[4..12].copy_from_slice(&bucket.to_be_bytes());
            member[12..].copy_from_slice(&position.to_be_bytes());
            position = position.saturating_add(1);
            found.push(member)?;
        }
        Ok(())
    })?;
    runs::save(&records_path(path), found.finish()?)?;
    Ok(())
}

/// Sentences whose equal goes for a third one go for that one.
fn join(work: &Work<'_>, _: &Sentences) -> Result<()> {
    let context = work.context;
    let near = work.folder.join("near");
    let tasks: Vec<(PathBuf, PathBuf)> =
        outputs(work.per_range("joined")).into_iter().zip(outputs(work.per_range("same"))).collect();
    let open = |path: &PathBuf| Merge::<VERDICT_BYTES>::of(std::slice::from_ref(path), &[], None, &context.scratch);
    work.tasks("verdicts", &tasks, |path, same| {
        // By which one stays, to go through both side by side.
        let turned = |record: &[u8; VERDICT_BYTES]| verdict(&record[12..24], &record[..12], record[24], record[25]);
        let mut by_kept = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
        for record in open(same)? {
            by_kept.push(turned(&record?))?;
        }
        let mut joined = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
        let mut near = open(&near)?.peekable();
        for record in by_kept.finish()? {
            let record = record?;
            while near.next_if(|n| n.as_ref().map_or(true, |n| n[..12] < record[..12])).transpose()?.is_some() {}
            joined.push(match near.peek() {
                Some(Ok(moved)) if moved[..12] == record[..12] => {
                    verdict(&record[12..24], &moved[12..24], moved[24], 1)
                }
                _ => turned(&record),
            })?;
        }
        runs::save(path, joined.finish()?)?;
        Ok(0)
    })
}
