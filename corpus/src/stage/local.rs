//! Stages that look at one document at a time.

use crate::config::{Contamination, Heuristics, Language, License, Pii};
use crate::contamination::Sets;
use crate::doc::replaced;
use crate::error::Result;
use crate::heuristics as rules;
use crate::language::guess;
use crate::ledger::{Row, tokens};
use crate::ner::Model;
use crate::pii::{Finder, mask};
use crate::stage::{Steps, Work, rewrite};
use crate::step::Over;

pub const HEURISTICS: &Steps<Heuristics> = &[("remove", Over::Pieces, heuristics)];
pub const PII: &Steps<Pii> = &[("mask", Over::Pieces, pii)];
pub const CONTAMINATION: &Steps<Contamination> = &[("remove", Over::Pieces, contamination)];
pub const LICENSE: &Steps<License> = &[("remove", Over::Pieces, license)];
pub const LANGUAGE: &Steps<Language> = &[("remove", Over::Pieces, language)];

fn heuristics(work: &Work<'_>, options: &Heuristics) -> Result<()> {
    rewrite(
        work,
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
fn pii(work: &Work<'_>, options: &Pii) -> Result<()> {
    let mut finder = Finder::new(&options.kinds, options.keep_authors)?;
    if let Some(path) = &options.names {
        finder = finder.with_names(Model::load(path)?, &options.name_kinds);
    }
    rewrite(
        work,
        |_| Ok(()),
        |(), doc, rows| {
            if options.skip_code && !doc.language.is_empty() {
                return Ok(true);
            }
            // Capital letters mean other things in code.
            let is_prose = doc.language.is_empty();
            let found = if is_prose { finder.find_with_names(&doc.text) } else { finder.find(&doc.text) };
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

fn contamination(work: &Work<'_>, options: &Contamination) -> Result<()> {
    let sets = Sets::load(&options.sets, options.ngram_words, work.context.memory_bytes / 2)?;
    rewrite(
        work,
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

fn license(work: &Work<'_>, options: &License) -> Result<()> {
    let nothing = |_| Ok(());
    rewrite(work, nothing, |(), doc, rows| {
        if options.allows(&doc.license) {
            return Ok(true);
        }
        let rule = if doc.license.is_empty() { "no-license".to_owned() } else { doc.license.clone() };
        rows.whole(doc, Row { rule, ..Row::default() })?;
        Ok(false)
    })
}

fn language(work: &Work<'_>, options: &Language) -> Result<()> {
    let nothing = |_| Ok(());
    rewrite(work, nothing, |(), doc, rows| {
        if !doc.language.is_empty() {
            return Ok(true);
        }
        let found = guess(&doc.text).filter(|(_, confidence)| *confidence >= options.min_confidence);
        let stays = found.map_or(options.keep_unsure, |(code, _)| options.keep.iter().any(|kept| kept == code));
        if !stays {
            let rule = found.map_or("unsure", |(code, _)| code).to_owned();
            let score = found.map(|(_, confidence)| confidence);
            rows.whole(doc, Row { rule, score, ..Row::default() })?;
        }
        Ok(stays)
    })
}
