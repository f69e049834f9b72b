//! Models from ARPA files, ours and others', and what they say of a text.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::doc::{KeyMap, mix};
use crate::error::{At, Error, Result};
use crate::lm::{END, START, UNKNOWN};
use crate::words::each_word;

/// No line of an ARPA file is longer.
const MAX_LINE_BYTES: u64 = 1 << 20;
const MAX_ORDER: usize = 10;
/// What an unknown word has in a model that has no `<unk>`; the figure of KenLM.
const UNSEEN: f32 = -100.0;

pub struct Model {
    order: usize,
    ids: HashMap<String, u32>,
    unknown: u32,
    start: u32,
    end: u32,
    /// By the words from the last on: log10 of probability and backoff.
    grams: KeyMap<(f32, f32)>,
}

fn extend(key: u64, id: u32) -> u64 {
    mix(key.rotate_left(5) ^ u64::from(id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

struct Lines {
    file: BufReader<File>,
    path: PathBuf,
    number: u64,
    line: String,
}

impl Lines {
    fn next(&mut self) -> Result<Option<&str>> {
        self.line.clear();
        let num = (&mut self.file).take(MAX_LINE_BYTES).read_line(&mut self.line).at("read", &self.path)?;
        self.number += 1;
        if num as u64 == MAX_LINE_BYTES {
            return Err(self.wrong("the line is longer than 1 MiB; this is no ARPA file"));
        }
        Ok((num > 0).then(|| self.line.trim_end_matches(['\n', '\r'])))
    }

    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::Model { path: self.path.clone(), line: self.number, what: what.into() }
    }
}

impl Model {
    /// Reads a file whose n-grams fit into the memory.
    pub fn load(path: &Path, memory_bytes: u64) -> Result<Model> {
        let file = BufReader::new(File::open(path).at("open", path)?);
        let mut lines = Lines { file, path: path.to_owned(), number: 0, line: String::new() };
        let mut counts: Vec<u64> = Vec::new();
        loop {
            let Some(line) = lines.next()? else { return Err(lines.wrong("the file ends before its n-grams")) };
            if line.ends_with("-grams:") {
                break;
            }
            let count =
                line.strip_prefix("ngram ").map(|rest| rest.split_once('=').and_then(|(_, n)| n.trim().parse().ok()));
            match count {
                Some(Some(count)) => counts.push(count),
                Some(None) => return Err(lines.wrong("expected `ngram N=COUNT`")),
                None => {}
            }
        }
        if counts.is_empty() || counts.len() > MAX_ORDER {
            return Err(lines.wrong(format!("expected counts of 1 to {MAX_ORDER} orders, found {}", counts.len())));
        }
        let num = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        // A table that is half full, and the words.
        let needed = num.saturating_mul(40).saturating_add(counts[0].saturating_mul(64));
        if needed > memory_bytes {
            let (needed_mib, there_mib) = (needed.div_ceil(1 << 20), memory_bytes >> 20);
            return Err(Error::Memory { what: "the n-gram model", needed_mib, there_mib });
        }
        let mut model = Model {
            order: counts.len(),
            ids: HashMap::new(),
            unknown: u32::MAX - 1,
            start: u32::MAX - 1,
            end: u32::MAX - 1,
            grams: KeyMap::with_capacity_and_hasher(num as usize, Default::default()),
        };
        for (n, count) in counts.iter().enumerate() {
            if n > 0 {
                model.skip_to(&mut lines, n + 1)?;
            }
            for _ in 0..*count {
                model.take(&mut lines, n + 1)?;
            }
        }
        let id = |word: &str| model.ids.get(word).copied();
        let (start, end) = (id(START), id(END));
        let (Some(start), Some(end)) = (start, end) else { return Err(lines.wrong("the model has no <s> or no </s>")) };
        (model.start, model.end) = (start, end);
        model.unknown = id(UNKNOWN).unwrap_or(model.unknown);
        Ok(model)
    }

    fn skip_to(&self, lines: &mut Lines, n: usize) -> Result<()> {
        let wanted = format!("\\{n}-grams:");
        loop {
            match lines.next()? {
                Some("") => {}
                Some(line) if line == wanted => return Ok(()),
                _ => return Err(lines.wrong(format!("expected `{wanted}`"))),
            }
        }
    }

    fn take(&mut self, lines: &mut Lines, n: usize) -> Result<()> {
        let Some(line) = lines.next()? else {
            return Err(lines.wrong("the file ends before the n-grams that it counts"));
        };
        let mut parts = line.split(['\t', ' ']).filter(|part| !part.is_empty());
        let p: Option<f32> = parts.next().and_then(|p| p.parse().ok());
        let words: Vec<&str> = parts.by_ref().take(n).collect();
        let backoff: Option<f32> = parts.next().map_or(Some(0.0), |b| b.parse().ok());
        let (Some(p), Some(backoff), true) = (p, backoff, words.len() == n && parts.next().is_none()) else {
            return Err(lines.wrong(format!("expected a probability, {n} words and perhaps a backoff")));
        };
        let mut key = 0;
        for word in words.iter().rev() {
            let known = self.ids.get(*word).copied();
            let id = match (known, n) {
                (Some(id), _) => id,
                (None, 1) => self.ids.len() as u32,
                (None, _) => return Err(lines.wrong("an n-gram has a word that is no 1-gram")),
            };
            if known.is_none() {
                self.ids.insert((*word).to_owned(), id);
            }
            key = extend(key, id);
        }
        self.grams.insert(key, (p, backoff));
        Ok(())
    }

    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.ids.keys().map(String::as_str)
    }

    /// log10 of the probability of a word after others.
    pub fn score(&self, history: &[&str], word: &str) -> f64 {
        let id = |word: &str| self.ids.get(word).copied().unwrap_or(self.unknown);
        let history: Vec<u32> = history.iter().map(|word| id(word)).collect();
        self.log_p(&history, id(word))
    }

    fn log_p(&self, history: &[u32], word: u32) -> f64 {
        let history = &history[history.len().saturating_sub(self.order - 1)..];
        let mut key = extend(0, word);
        let (mut found, mut num_found) = (UNSEEN, 1);
        if let Some((p, _)) = self.grams.get(&key) {
            found = *p;
        }
        for (n, id) in history.iter().rev().enumerate() {
            key = extend(key, *id);
            if let Some((p, _)) = self.grams.get(&key) {
                (found, num_found) = (*p, n + 2);
            }
        }
        let (mut context, mut backoffs) = (0, 0.0);
        for (n, id) in history.iter().rev().enumerate() {
            context = extend(context, *id);
            if n + 1 >= num_found {
                backoffs += self.grams.get(&context).map_or(0.0, |(_, backoff)| f64::from(*backoff));
            }
        }
        f64::from(found) + backoffs
    }

    /// Of a text by its lines; none without words.
    pub fn perplexity(&self, text: &str) -> Option<f64> {
        let (mut sum, mut num) = (0.0, 0u64);
        let mut ids = Vec::new();
        for line in text.lines() {
            ids.clear();
            ids.push(self.start);
            each_word(line, |word| ids.push(self.ids.get(word).copied().unwrap_or(self.unknown)));
            if ids.len() == 1 {
                continue;
            }
            ids.push(self.end);
            for at in 1..ids.len() {
                sum += self.log_p(&ids[..at], ids[at]);
                num += 1;
            }
        }
        (num > 0).then(|| 10f64.powf(-sum / num as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Model> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("m");
        std::fs::write(&path, text).expect("write");
        Model::load(&path, 1 << 20)
    }

    const SMALL: &str = "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-99\t<s>\t-0.5\n-1\t</s>\n-0.7\ta\t-0.25\n-2\t<unk>\n\n\
        \\2-grams:\n-0.3\t<s> a\n-0.2\ta </s>\n\n\\end\\\n";

    #[test]
    fn backoffs_are_added_where_an_n_gram_is_missing() -> Result<()> {
        let model = load(SMALL)?;
        let check = |history: &[&str], word: &str, expected: f64| {
            assert!((model.score(history, word) - expected).abs() < 1e-6, "{history:?} {word}");
        };
        check(&["<s>"], "a", -0.3);
        check(&["a"], "a", -0.25 - 0.7);
        check(&["<s>"], "b", -0.5 - 2.0);
        check(&["b"], "a", -0.7);
        let perplexity = model.perplexity("A\nb").expect("words");
        assert!((perplexity - 10f64.powf((0.3 + 0.2 + 2.5 + 1.0) / 4.0)).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn damaged_models_are_named_by_line() {
        let check = |text: &str, expected: &str| {
            let error = load(text).map(drop).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "line 1: the file ends before its n-grams");
        check(&SMALL.replace("-0.7\ta", "x\ta"), "line 8: expected a probability");
        check(&SMALL.replace("<s> a", "<s> z"), "a word that is no 1-gram");
        check(&SMALL.replace("1=4", "1=999999999"), "the n-gram model needs");
        check(&SMALL.replace("1=4", "1=5"), "expected a probability");
        check(&SMALL[..SMALL.len() - 30], "the file ends before the n-grams that it counts");
    }
}
