//! Stages that look at one document at a time.

use std::path::Path;

use crate::config::{Contamination, Heuristics, License, Pii};
use crate::contamination::Sets;
use crate::doc::replaced;
use crate::error::Result;
use crate::heuristics as rules;
use crate::ledger::{Counts, Row, tokens};
use crate::pii::{Finder, mask};
use crate::stage::{Context, Pieces, rewrite};

pub fn heuristics(
    context: &Context<'_>,
    options: &Heuristics,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<(Pieces, Counts)> {
    rewrite(
        context,
        name,
        input,
        folder,
        |_| Ok(()),
        |(), doc, rows| {
            if !doc.language.is_empty() {
                return Ok(true);
            }
            let lines = rules::lines(&doc.text, options);
            let left = replaced(&doc.text, lines.iter().map(|(span, _)| (span, "")));
            if let Some((rule, score)) = rules::broken(&left, options) {
                rows.whole(doc, Row { rule: rule.to_owned(), score: Some(score), ..Row::default() })?;
                return Ok(false);
            }
            let text = std::mem::replace(&mut doc.text, left);
            for (span, rule) in lines {
                rows.part(doc, &text, span, Row { rule: rule.to_owned(), ..Row::default() })?;
            }
            Ok(true)
        },
    )
}

/// The ledger says where and of which kind, and never what.
pub fn pii(
    context: &Context<'_>,
    options: &Pii,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<(Pieces, Counts)> {
    let finder = Finder::new(&options.kinds, options.keep_authors)?;
    rewrite(
        context,
        name,
        input,
        folder,
        |_| Ok(()),
        |(), doc, rows| {
            if options.skip_code && !doc.language.is_empty() {
                return Ok(true);
            }
            let found = finder.find(&doc.text);
            let Some(first) = found.first().filter(|_| options.remove_documents) else {
                for m in &found {
                    let (start, end) = (m.span.start as u64, m.span.end as u64);
                    let (rule, added) = (m.kind.name().to_owned(), tokens(m.kind.placeholder()));
                    rows.put(doc, Row { rule, start, end, tokens: end - start, added, ..Row::default() })?;
                }
                if !found.is_empty() {
                    doc.text = mask(&doc.text, &found);
                }
                return Ok(true);
            };
            let end = doc.text.len() as u64;
            let (rule, score) = (first.kind.name().to_owned(), Some(found.len() as f64));
            rows.put(
                doc,
                Row { rule, score, start: 0, end, whole: true, tokens: tokens(&doc.text), ..Row::default() },
            )?;
            Ok(false)
        },
    )
}

pub fn contamination(
    context: &Context<'_>,
    options: &Contamination,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<(Pieces, Counts)> {
    let sets = Sets::load(&options.sets, options.ngram_words, context.memory_bytes / 2)?;
    rewrite(
        context,
        name,
        input,
        folder,
        |_| Ok(Vec::new()),
        |hashes, doc, rows| {
            let num = sets.num_matches(&doc.text, hashes);
            if num < options.min_matches {
                return Ok(true);
            }
            let row = Row { rule: "in-evaluation-set".into(), score: Some(num as f64), ..Row::default() };
            rows.whole(doc, row)?;
            Ok(false)
        },
    )
}

pub fn license(
    context: &Context<'_>,
    options: &License,
    name: &str,
    input: &Pieces,
    folder: &Path,
) -> Result<(Pieces, Counts)> {
    let nothing = |_| Ok(());
    rewrite(context, name, input, folder, nothing, |(), doc, rows| {
        if options.allows(&doc.license) {
            return Ok(true);
        }
        let rule = if doc.license.is_empty() { "no-license".to_owned() } else { doc.license.clone() };
        rows.whole(doc, Row { rule, ..Row::default() })?;
        Ok(false)
    })
}
