//! Counting n-grams: each word with the words before it, sorted, in bounded memory.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::lm::estimate::{self, Grams};
use crate::lm::{END, MAX_ORDER, START, UNKNOWN};
use crate::runs::{Scratch, Sorter};
use crate::words::each_word;

/// A word and the `MAX_ORDER - 1` before it, the last first.
const RECORD_BYTES: usize = MAX_ORDER * 4;
/// No word: what is before the start of a sentence.
pub const NONE: u32 = 0;
pub const START_ID: u32 = 1;
pub const END_ID: u32 = 2;
pub const UNKNOWN_ID: u32 = 3;

pub struct Trainer<'a> {
    order: usize,
    memory_bytes: u64,
    ids: HashMap<String, u32>,
    words: Vec<String>,
    vocabulary_bytes: u64,
    sorter: Sorter<'a, RECORD_BYTES>,
    line: Vec<u32>,
}

impl<'a> Trainer<'a> {
    /// `memory_bytes` for all: a third each for words, for sorting and for what comes of it.
    pub fn new(order: usize, memory_bytes: u64, scratch: &'a Scratch) -> Result<Trainer<'a>> {
        if !(2..=MAX_ORDER).contains(&order) {
            return Err(Error::Config(format!("the order of a model is from 2 to {MAX_ORDER}, not {order}")));
        }
        let words: Vec<String> = ["", START, END, UNKNOWN].map(str::to_owned).to_vec();
        let ids = words.iter().cloned().zip(0..).skip(1).collect();
        let sorter = Sorter::new(scratch, memory_bytes / 3);
        Ok(Trainer { order, memory_bytes, ids, words, vocabulary_bytes: 0, sorter, line: Vec::new() })
    }

    /// Takes the lines of a text, those without words left out.
    pub fn add(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let mut ids = std::mem::take(&mut self.line);
            ids.clear();
            ids.push(START_ID);
            each_word(line, |word| ids.push(self.id(word)));
            if ids.len() > 1 {
                ids.push(END_ID);
                self.count(&ids)?;
            }
            self.line = ids;
        }
        let there = self.memory_bytes / 3;
        if self.vocabulary_bytes > there {
            return Err(memory("the vocabulary", self.vocabulary_bytes, there));
        }
        Ok(())
    }

    fn id(&mut self, word: &str) -> u32 {
        if let Some(id) = self.ids.get(word) {
            return *id;
        }
        let id = self.words.len() as u32;
        self.ids.insert(word.to_owned(), id);
        self.words.push(word.to_owned());
        self.vocabulary_bytes += 2 * (word.len() as u64 + 32) + 16;
        id
    }

    fn count(&mut self, ids: &[u32]) -> Result<()> {
        for at in 1..ids.len() {
            let mut record = [0; RECORD_BYTES];
            let history = ids[..=at].iter().rev().take(self.order);
            history.zip(record.chunks_exact_mut(4)).for_each(|(id, bytes)| bytes.copy_from_slice(&id.to_be_bytes()));
            self.sorter.push(record)?;
        }
        Ok(())
    }

    /// The model that what was added makes.
    pub fn finish(self) -> Result<estimate::Estimated> {
        let there = self.memory_bytes / 3;
        let mut grams = Grams::new(self.order);
        let mut last: Option<([u32; MAX_ORDER], u64)> = None;
        for record in self.sorter.finish()? {
            let record = record?;
            let mut ids = [NONE; MAX_ORDER];
            record.chunks_exact(4).zip(&mut ids).for_each(|(bytes, id)| *id = crate::doc::u32_at(bytes, 0));
            match &mut last {
                Some((same, count)) if *same == ids => *count += 1,
                _ => {
                    if let Some((ids, count)) = last.replace((ids, 1)) {
                        grams.push(&ids, count);
                    }
                    if grams.bytes() > there {
                        return Err(memory("the n-grams of the model", grams.bytes(), there));
                    }
                }
            }
        }
        let Some((ids, count)) = last else {
            return Err(Error::Config("there are no words to train a model on".into()));
        };
        grams.push(&ids, count);
        Ok(estimate::estimate(grams, self.words))
    }
}

fn memory(what: &'static str, needed: u64, there: u64) -> Error {
    Error::Memory { what, needed_mib: needed.div_ceil(1 << 20), there_mib: there >> 20 }
}
