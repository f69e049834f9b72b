//! Documents that are equal by a key: the first by rank stays.

use std::path::PathBuf;

use xxhash_rust::xxh3;

use crate::address::{self, Form};
use crate::config::Exact;
use crate::doc::{Doc, Ordinal, Rank, u64_at};
use crate::error::Result;
use crate::ledger::tokens;
use crate::runs::{self, Merge, Sorter};
use crate::stage::{Steps, VERDICT_BYTES, Verdict, Work, outputs, remove};
use crate::step::Over;

const KEY_BYTES: usize = 16;
/// Key, rank, ordinal.
pub const RECORD_BYTES: usize = KEY_BYTES + Rank::BYTES + 8;
/// Members of a group that are in memory at a time.
const MAX_GROUP: usize = 1 << 16;

pub fn record(key: u128, rank: Rank, ordinal: Ordinal) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..KEY_BYTES].copy_from_slice(&key.to_be_bytes());
    record[KEY_BYTES..][..Rank::BYTES].copy_from_slice(&rank.0);
    record[KEY_BYTES + Rank::BYTES..].copy_from_slice(&ordinal.to_bytes());
    record
}

pub const URL: &Steps<Form> = &[
    ("keys", Over::Pieces, url_keys),
    ("same", Over::Hashes, |work, _| verdicts(work)),
    ("remove", Over::Pieces, same_url),
];

pub const EXACT: &Steps<Exact> = &[
    ("keys", Over::Pieces, text_keys),
    ("same", Over::Hashes, |work, _| verdicts(work)),
    ("remove", Over::Pieces, same_text),
];

fn url_keys(work: &Work<'_>, form: &Form) -> Result<()> {
    keys(work, |doc: &Doc| Some(xxh3::xxh3_128(address::normalize(&doc.url, form)?.as_bytes())))
}

fn text_keys(work: &Work<'_>, _: &Exact) -> Result<()> {
    keys(work, |doc| Some(xxh3::xxh3_128(doc.text.as_bytes())))
}

fn same_url(work: &Work<'_>, _: &Form) -> Result<()> {
    remove(work, &outputs(work.per_range("same")), &["same-url"])
}

fn same_text(work: &Work<'_>, _: &Exact) -> Result<()> {
    remove(work, &outputs(work.per_range("same")), &["same-text"])
}

fn keys(work: &Work<'_>, key: impl Fn(&Doc) -> Option<u128> + Sync) -> Result<()> {
    let context = work.context;
    work.tasks("keys", &work.per_piece("keys"), |path, piece| {
        let (mut records, mut bytes) = (Sorter::new(&context.scratch, context.thread_bytes()), 0);
        for doc in work.input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            let rank = || Rank::of(context.priority(&doc), &doc.text);
            if let Some(key) = key(&doc) {
                records.push(record(key, rank(), Ordinal::new(*piece, doc.index)))?;
            }
        }
        runs::save(path, records.finish()?)?;
        Ok(bytes)
    })
}

/// Of each group of equal `keys` all but the first go.
pub fn verdicts(work: &Work<'_>) -> Result<()> {
    let context = work.context;
    let keys = outputs(work.per_piece("keys"));
    work.tasks("equal ones", &work.per_range("same"), |path, shard| {
        let (from, to) = runs::range(*shard, context.num_shards);
        let records = Merge::<RECORD_BYTES>::of(&keys, &from, to.as_ref().map(|to| &to[..]), &context.scratch)?;
        let mut found = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.thread_bytes());
        runs::groups(records, KEY_BYTES, MAX_GROUP, |group, _| {
            let ordinal = |record: &[u8]| Ordinal(u64_at(record, KEY_BYTES + Rank::BYTES));
            let kept = ordinal(&group[0]);
            let of = |record| Verdict { ordinal: ordinal(record), kept, score: 1.0, rule: 0 };
            group[1..].iter().try_for_each(|record| found.push(of(record).to_bytes()))
        })?;
        runs::save(path, found.finish()?)?;
        Ok(0)
    })
}

/// Documents whose equal goes for a third one go for that one (D-4): `same` has verdicts about equal ones, `near` those about the others.
pub fn join(work: &Work<'_>) -> Result<()> {
    let context = work.context;
    let near = work.folder.join("near");
    let tasks: Vec<(PathBuf, PathBuf)> =
        outputs(work.per_range("joined")).into_iter().zip(outputs(work.per_range("same"))).collect();
    let open = |path: &PathBuf| Merge::<VERDICT_BYTES>::of(std::slice::from_ref(path), &[], None, &context.scratch);
    work.tasks("verdicts", &tasks, |path, same| {
        // By who stays, to go through both side by side.
        let mut by_kept = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
        for record in open(same)? {
            let Verdict { ordinal, kept, score, rule } = Verdict::of_bytes(&record?);
            by_kept.push(Verdict { ordinal: kept, kept: ordinal, score, rule }.to_bytes())?;
        }
        let mut joined = Sorter::<VERDICT_BYTES>::new(&context.scratch, context.thread_bytes() / 2);
        let mut near = open(&near)?.peekable();
        for record in by_kept.finish()? {
            let Verdict { ordinal: kept, kept: ordinal, score, rule } = Verdict::of_bytes(&record?);
            let is_before = |next: &Result<[u8; VERDICT_BYTES]>| {
                next.as_ref().map_or(true, |next| Verdict::of_bytes(next).ordinal < kept)
            };
            while near.next_if(is_before).transpose()?.is_some() {}
            let moved = match near.peek() {
                Some(Ok(next)) => Some(Verdict::of_bytes(next)).filter(|next| next.ordinal == kept),
                _ => None,
            };
            let verdict = moved.map_or(Verdict { ordinal, kept, score, rule }, |moved| Verdict { ordinal, ..moved });
            joined.push(verdict.to_bytes())?;
        }
        runs::save(path, joined.finish()?)?;
        Ok(0)
    })
}
