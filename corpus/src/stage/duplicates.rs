//! Documents that are equal by a key: the first by rank stays.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3;

use crate::address::{self, Form};
use crate::doc::{Doc, Ordinal, Rank, u64_at};
use crate::error::Result;
use crate::ledger::{Counts, tokens};
use crate::runs::{self, Merge, Sorter};
use crate::stage::{Context, Pieces, VERDICT_BYTES, Verdict, remove};

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

pub fn url(context: &Context<'_>, form: &Form, name: &str, input: &Pieces, folder: &Path) -> Result<(Pieces, Counts)> {
    let key = |doc: &Doc| Some(xxh3::xxh3_128(address::normalize(&doc.url, form)?.as_bytes()));
    by_key(context, name, input, folder, "same-url", key)
}

pub fn exact(context: &Context<'_>, name: &str, input: &Pieces, folder: &Path) -> Result<(Pieces, Counts)> {
    by_key(context, name, input, folder, "same-text", |doc| Some(xxh3::xxh3_128(doc.text.as_bytes())))
}

fn by_key(
    context: &Context<'_>,
    name: &str,
    input: &Pieces,
    folder: &Path,
    rule: &str,
    key: impl Fn(&Doc) -> Option<u128> + Sync,
) -> Result<(Pieces, Counts)> {
    let keys = context.tasks(&format!("{name}: keys"), &input.tasks(folder, "keys"), |path, piece| {
        let (mut records, mut bytes) = (Vec::new(), 0);
        for doc in input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            let rank = || Rank::of(context.priority(&doc), &doc.text);
            records.extend(key(&doc).map(|key| record(key, rank(), Ordinal::new(*piece, doc.index))));
        }
        runs::write_run(path, &mut records)?;
        Ok(bytes)
    })?;
    let verdicts = verdicts(context, name, folder, &keys)?;
    remove(context, name, input, folder, &verdicts, &[rule])
}

/// Of each group of equal keys all but the first go.
pub fn verdicts(context: &Context<'_>, name: &str, folder: &Path, keys: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let tasks = context.shard_tasks(folder, "same");
    context.tasks(&format!("{name}: equal ones"), &tasks, |path, shard| {
        let (from, to) = runs::range(*shard, context.num_shards);
        let records = Merge::<RECORD_BYTES>::of(keys, &from, to.as_ref().map(|to| &to[..]), &context.scratch)?;
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
