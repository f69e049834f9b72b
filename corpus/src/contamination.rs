//! n-grams of evaluation sets, which no training text should have.

use std::path::{Path, PathBuf};

use crate::doc::{KeySet, mix};
use crate::error::{At, Error, Result};
use crate::words;

/// No evaluation set is longer.
const MAX_SET_BYTES: u64 = 1 << 30;

/// Hashes of all n-grams of the sets.
pub struct Sets {
    n: usize,
    ngrams: KeySet,
}

fn ngrams(hashes: &[u64], n: usize) -> impl Iterator<Item = u64> {
    hashes.windows(n).map(move |words| words.iter().fold(n as u64, |hash, word| mix(hash ^ *word)))
}

impl Sets {
    /// Texts shorter than an n-gram say nothing and are left out.
    pub fn load(paths: &[PathBuf], n: usize, memory_bytes: u64) -> Result<Sets> {
        let mut sets = Sets { n, ngrams: KeySet::default() };
        for path in paths {
            for file in crate::read::files::list(path, &[])?.files {
                sets.add_file(&file.path)?;
                let needed = sets.ngrams.capacity() as u64 * 10;
                if needed > memory_bytes {
                    let (needed_mib, there_mib) = (needed.div_ceil(1 << 20), memory_bytes >> 20);
                    return Err(Error::Memory { what: "the n-grams of evaluation sets", needed_mib, there_mib });
                }
            }
        }
        if sets.ngrams.is_empty() {
            let what =
                format!("contamination: the sets have no text of {n} words; lower ngram_words or name other files");
            return Err(Error::Config(what));
        }
        Ok(sets)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::metadata(path).at("look at", path)?.len();
        if bytes > MAX_SET_BYTES {
            return Err(Error::Config(format!("{}: an evaluation set has at most 1 GiB", path.display())));
        }
        let text = std::fs::read(path).at("read", path)?;
        let Ok(text) = std::str::from_utf8(&text) else {
            return Err(Error::Config(format!("{}: an evaluation set is UTF-8 text", path.display())));
        };
        let is_json = path.extension().is_some_and(|e| e == "jsonl" || e == "json");
        for line in text.lines().filter(|_| is_json) {
            match serde_json::from_str::<serde_json::Value>(line) {
                Ok(value) => self.add_value(&value),
                Err(_) => self.add(line),
            }
        }
        if !is_json {
            self.add(text);
        }
        Ok(())
    }

    fn add_value(&mut self, value: &serde_json::Value) {
        match value {
            serde_json::Value::String(text) => self.add(text),
            serde_json::Value::Array(values) => values.iter().for_each(|value| self.add_value(value)),
            serde_json::Value::Object(fields) => fields.values().for_each(|value| self.add_value(value)),
            _ => {}
        }
    }

    fn add(&mut self, text: &str) {
        let mut hashes = Vec::new();
        words::word_hashes(text, &mut hashes);
        self.ngrams.extend(ngrams(&hashes, self.n));
    }

    /// How many n-grams of a text are in a set.
    pub fn num_matches(&self, text: &str, hashes: &mut Vec<u64>) -> usize {
        words::word_hashes(text, hashes);
        ngrams(hashes, self.n).filter(|ngram| self.ngrams.contains(ngram)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_found_however_it_is_written() -> Result<()> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("eval.jsonl");
        std::fs::write(
            &path,
            "{\"q\": {\"text\": [\"What is the capital of France?\"]}, \"n\": 3}\nno json but text here\n",
        )
        .expect("write");
        let sets = Sets::load(std::slice::from_ref(&path), 5, 1 << 20)?;
        let num = |text: &str| sets.num_matches(text, &mut Vec::new());
        assert_eq!(num("He asked: WHAT is the -- capital of france, then left"), 2);
        assert_eq!(num("no json but text here"), 1);
        assert_eq!(num("the capital of Spain is another question of the kind"), 0);
        assert!(
            Sets::load(&[path], 50, 1 << 20).map(drop).expect_err("none").to_string().contains("no text of 50 words")
        );
        Ok(())
    }
}
