//! Documents that a language model finds the least likely of their domain.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3;

use crate::config::Perplexity;
use crate::doc::{Ordinal, u64_at};
use crate::error::{Error, Result};
use crate::ledger::{Row, tokens};
use crate::lm::Model;
use crate::runs::{self, Merge, Sorter};
use crate::stage::{Context, Steps, Work, outputs, read_json, rewrite, write_json};
use crate::step::Over;

/// Domain, perplexity, ordinal. Perplexities are positive, so their bits have their order.
const RECORD_BYTES: usize = 24;
/// Of a domain in the table of thresholds.
const DOMAIN_BYTES: u64 = 48;

fn domain_key(domain: &str) -> u64 {
    xxh3::xxh3_64(domain.as_bytes())
}

pub const STEPS: &Steps<Perplexity> =
    &[("scores", Over::Pieces, scores), ("thresholds", Over::Whole, thresholds), ("remove", Over::Pieces, remove)];

fn remove(work: &Work<'_>, _: &Perplexity) -> Result<()> {
    let scores = outputs(work.per_piece("scores"));
    let thresholds: Thresholds = read_json(&work.folder.join("thresholds"))?;
    let begin = |piece: u32| -> Result<HashMap<u32, f64>> {
        let of_piece = &scores[piece as usize..=piece as usize];
        let records = Merge::<RECORD_BYTES>::of(of_piece, &[], None, &work.context.scratch)?;
        records.map(|r| r.map(|r| (Ordinal(u64_at(&r, 16)).index(), f64::from_bits(u64_at(&r, 8))))).collect()
    };
    rewrite(work, begin, |scores, doc, rows| {
        // A document without words has no perplexity.
        let Some(perplexity) = scores.get(&doc.index) else { return Ok(true) };
        if *perplexity <= thresholds.for_domain(&doc.domain) {
            return Ok(true);
        }
        rows.whole(doc, Row { rule: "perplexity".into(), score: Some(*perplexity), ..Row::default() })?;
        Ok(false)
    })
}

fn scores(work: &Work<'_>, options: &Perplexity) -> Result<()> {
    let context = work.context;
    let tasks = work.per_piece("scores");
    if context.part.of(&tasks).iter().all(|(path, _)| path.exists()) {
        return Ok(());
    }
    let model = Model::load(&options.model, context.memory_bytes / 2)?;
    work.tasks("scores", &tasks, |path, piece| {
        let (mut records, mut bytes) = (Sorter::new(&context.scratch, context.thread_bytes()), 0);
        for doc in work.input.open(*piece)? {
            let doc = doc?;
            bytes += tokens(&doc.text);
            let Some(perplexity) = model.perplexity(&doc.text) else { continue };
            let mut record = [0; RECORD_BYTES];
            record[..8].copy_from_slice(&domain_key(&doc.domain).to_be_bytes());
            record[8..16].copy_from_slice(&perplexity.to_bits().to_be_bytes());
            record[16..].copy_from_slice(&Ordinal::new(*piece, doc.index).to_bytes());
            records.push(record)?;
        }
        runs::save(path, records.finish()?)?;
        Ok(bytes)
    })
}

fn thresholds(work: &Work<'_>, options: &Perplexity) -> Result<()> {
    let path = work.folder.join("thresholds");
    if path.exists() {
        return Ok(());
    }
    write_json(&path, &Thresholds::of(work.context, options, &outputs(work.per_piece("scores")))?)
}

/// Above which perplexity documents go.
#[derive(Debug, Serialize, Deserialize)]
struct Thresholds {
    /// Bits of the perplexity by the hash of a domain.
    domains: BTreeMap<u64, u64>,
    /// Of all domains with few documents together.
    others: u64,
}

impl Thresholds {
    fn of(context: &Context<'_>, options: &Perplexity, scores: &[PathBuf]) -> Result<Thresholds> {
        // Side by side: one counts the documents of a domain, the other goes through them.
        let all = || Merge::<RECORD_BYTES>::of(scores, &[], None, &context.scratch);
        let mut ahead = all()?.peekable();
        let is_large = |count: u64| count >= options.min_domain_documents;
        let max_domains = context.memory_bytes / 4 / DOMAIN_BYTES;
        let mut others = Sorter::<8>::new(&context.scratch, context.thread_bytes());
        let (mut domains, mut num_others) = (BTreeMap::new(), 0);
        let (mut domain, mut nth, mut count) = (None, 0, 0u64);
        for record in all()? {
            let record = record?;
            let (key, bits) = (u64_at(&record, 0), u64_at(&record, 8));
            nth = if domain == Some(key) { nth + 1 } else { 0 };
            if domain != Some(key) {
                (domain, count) = (Some(key), 0);
                while ahead.next_if(|r| r.as_ref().map_or(true, |r| u64_at(r, 0) == key)).transpose()?.is_some() {
                    count += 1;
                }
            }
            if !is_large(count) {
                num_others += 1;
                others.push(bits.to_be_bytes())?;
            } else if nth == quantile_index(count, options.quantile) {
                domains.insert(key, bits);
                if domains.len() as u64 > max_domains {
                    let needed_mib = (domains.len() as u64 * DOMAIN_BYTES) >> 20;
                    let there_mib = context.memory_bytes >> 22;
                    let what = "thresholds of so many domains (a higher min_domain_documents makes fewer)";
                    return Err(Error::Memory { what, needed_mib, there_mib });
                }
            }
        }
        let others = nth_of(others.finish()?, quantile_index(num_others, options.quantile))?;
        Ok(Thresholds { domains, others: others.to_bits() })
    }

    fn for_domain(&self, domain: &str) -> f64 {
        f64::from_bits(self.domains.get(&domain_key(domain)).copied().unwrap_or(self.others))
    }
}

/// Which of so many sorted values is the quantile: the smallest that is not less than this share of them.
fn quantile_index(num: u64, quantile: f64) -> u64 {
    ((num as f64 * quantile).ceil() as u64).clamp(1, num.max(1)) - 1
}

fn nth_of(mut values: Merge<8>, nth: u64) -> Result<f64> {
    let value = values.nth(nth as usize).transpose()?;
    Ok(value.map_or(f64::INFINITY, |bytes| f64::from_bits(u64::from_be_bytes(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_leaves_its_share() {
        use crate::runs::Scratch;
        for (num, quantile, expected) in
            [(100, 0.95, 94), (100, 1.0, 99), (100, 0.0, 0), (1, 0.5, 0), (0, 0.9, 0), (3, 0.5, 1)]
        {
            assert_eq!(quantile_index(num, quantile), expected, "{num} {quantile}");
        }
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path());
        let mut sorter = Sorter::<8>::new(&scratch, 1 << 20);
        [3.5, 0.25, 1000.0].iter().for_each(|p: &f64| sorter.push(p.to_bits().to_be_bytes()).expect("it fits"));
        assert_eq!(nth_of(sorter.finish().expect("sorted"), 2).expect("three"), 1000.0);
    }
}
