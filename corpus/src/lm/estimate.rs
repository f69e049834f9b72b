//! Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), from sorted n-grams.
//!
//! n-grams are reversed, the predicted word first, so that those with the same end stand together: the count of a shorter n-gram is the
//! number of different words before it. One that begins a sentence has no word before it and keeps the number of times it was seen.

use std::fmt::Write as _;
use std::path::Path;

use crate::durable::Durable;
use crate::error::Result;
use crate::lm::MAX_ORDER;
use crate::lm::train::{NONE, START_ID, UNKNOWN_ID};

/// Reversed, the rest [`NONE`].
type Gram = [u32; MAX_ORDER];

/// What is taken for the discounts of an order that has too few n-grams to tell.
const FALLBACK: [f64; 3] = [0.5, 1.0, 1.5];
/// The probability of the start of a sentence, which is never predicted; the figure of SRILM.
const NEVER: f64 = -99.0;

/// Counts of the n-grams of each order, sorted.
pub struct Grams {
    order: usize,
    last: Gram,
    /// Of order `n + 1`.
    tables: Vec<Vec<(Gram, u64)>>,
}

impl Grams {
    pub fn new(order: usize) -> Grams {
        Grams { order, last: [NONE; MAX_ORDER], tables: vec![Vec::new(); order] }
    }

    pub fn bytes(&self) -> u64 {
        // Probabilities come beside them later.
        let bytes = |table: &Vec<(Gram, u64)>| (table.capacity() * (size_of::<(Gram, u64)>() + 40)) as u64;
        self.tables.iter().map(bytes).sum()
    }

    /// The next of the longest n-grams, seen `count` times.
    pub fn push(&mut self, gram: &Gram, count: u64) {
        let len = gram.iter().position(|id| *id == NONE).unwrap_or(self.order).min(self.order);
        let num_same = gram.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        for n in num_same.min(len) + 1..=len {
            let mut ending = [NONE; MAX_ORDER];
            ending[..n].copy_from_slice(&gram[..n]);
            self.tables[n - 1].push((ending, 0));
            if let Some(shorter) = n.checked_sub(2).and_then(|at| self.tables[at].last_mut()) {
                shorter.1 += 1;
            }
        }
        if let Some(whole) = self.tables[len - 1].last_mut() {
            whole.1 += count;
        }
        self.last = *gram;
    }
}

/// What follows a context: how often in all, and how many words once, twice and more often.
#[derive(Clone, Copy, Default)]
struct Followers {
    total: u64,
    num: [u64; 3],
}

impl Followers {
    fn add(&mut self, count: u64) {
        self.total += count;
        if count > 0 {
            self.num[count.min(3) as usize - 1] += 1;
        }
    }

    /// What discounting leaves for words that did not follow.
    fn left(&self, discounts: &[f64; 3]) -> f64 {
        let mass: f64 = self.num.iter().zip(discounts).map(|(num, discount)| *num as f64 * discount).sum();
        if self.total == 0 { 1.0 } else { mass / self.total as f64 }
    }
}

/// A model as it is written to an ARPA file.
pub struct Estimated {
    words: Vec<String>,
    /// Of each order: n-grams with probabilities and backoffs, both as log10.
    levels: Vec<Vec<(Gram, f64, f64)>>,
    /// Orders whose discounts could not be estimated.
    pub fallbacks: Vec<usize>,
}

/// Discounts of 1, 2 and more, from how many n-grams were counted 1, 2, 3 and 4 times.
fn discounts(table: &[(Gram, u64)]) -> Option<[f64; 3]> {
    let mut num = [0u64; 5];
    table.iter().filter(|(_, count)| (1..=4).contains(count)).for_each(|(_, count)| num[*count as usize] += 1);
    if num[1..].contains(&0) {
        return None;
    }
    let num = num.map(|n| n as f64);
    let y = num[1] / (num[1] + 2.0 * num[2]);
    let found = [1, 2, 3].map(|k| k as f64 - (k + 1) as f64 * y * num[k + 1] / num[k]);
    let is_valid = found.iter().zip(1..).all(|(discount, k)| (0.0..=f64::from(k)).contains(discount));
    is_valid.then_some(found)
}

pub fn estimate(mut grams: Grams, words: Vec<String>) -> Estimated {
    // Neither is ever counted; one is a context, the other what is left for the unknown.
    let mut special = |id: u32| {
        let gram = [id, NONE, NONE, NONE, NONE];
        let at = grams.tables[0].partition_point(|(other, _)| *other < gram);
        grams.tables[0].insert(at, (gram, 0));
    };
    special(START_ID);
    special(UNKNOWN_ID);
    let mut fallbacks = Vec::new();
    let mut levels: Vec<Vec<(Gram, f64, f64)>> = Vec::new();
    // Words that can be predicted.
    let uniform = 1.0 / (grams.tables[0].len() - 1) as f64;
    let mut shorter: Vec<f64> = Vec::new();
    for n in 1..=grams.order {
        let table = &grams.tables[n - 1];
        let discounts = discounts(table).unwrap_or_else(|| {
            fallbacks.push(n);
            FALLBACK
        });
        let contexts: &[(Gram, u64)] = if n == 1 { &[] } else { &grams.tables[n - 2] };
        let context_of = |gram: &Gram| {
            let mut context = [NONE; MAX_ORDER];
            context[..n - 1].copy_from_slice(&gram[1..n]);
            contexts.binary_search_by(|(other, _)| other.cmp(&context)).unwrap_or(0)
        };
        let indices: Vec<u32> = table.iter().map(|(gram, _)| context_of(gram) as u32).collect();
        let mut followers = vec![Followers::default(); contexts.len().max(1)];
        table.iter().zip(&indices).for_each(|((_, count), context)| followers[*context as usize].add(*count));
        let (mut ending, mut level, mut probabilities) = (0, Vec::with_capacity(table.len()), Vec::new());
        for ((gram, count), context) in table.iter().zip(&indices) {
            let of = &followers[*context as usize];
            let discount = if *count == 0 { 0.0 } else { discounts[(*count).min(3) as usize - 1] };
            let own = if of.total == 0 { 0.0 } else { (*count as f64 - discount).max(0.0) / of.total as f64 };
            // Both tables are sorted by the words from the last on, so the ending of the next is never before that of this one.
            while n > 1 && contexts[ending].0[..n - 1] != gram[..n - 1] {
                ending += 1;
            }
            let below = if n == 1 { uniform } else { shorter[ending] };
            let p = own + of.left(&discounts) * below;
            probabilities.push(p);
            let is_start = n == 1 && gram[0] == START_ID;
            level.push((*gram, if is_start { NEVER } else { p.log10().max(NEVER) }, 0.0));
        }
        if let Some(contexts) = levels.last_mut() {
            contexts
                .iter_mut()
                .zip(&followers)
                .for_each(|(context, of)| context.2 = of.left(&discounts).log10().max(NEVER));
        }
        levels.push(level);
        shorter = probabilities;
    }
    Estimated { words, levels, fallbacks }
}

impl Estimated {
    /// n-grams of each order.
    pub fn num_grams(&self) -> Vec<usize> {
        self.levels.iter().map(Vec::len).collect()
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = Durable::create(path)?;
        let mut text = String::from("\\data\\\n");
        // Writing to a string cannot fail.
        for (n, level) in self.levels.iter().enumerate() {
            let _ = writeln!(text, "ngram {}={}", n + 1, level.len());
        }
        for (n, level) in self.levels.iter().enumerate() {
            let _ = writeln!(text, "\n\\{}-grams:", n + 1);
            for (gram, p, backoff) in level {
                let _ = write!(text, "{p:.7}\t");
                for (at, id) in gram[..=n].iter().rev().enumerate() {
                    text.push_str(if at == 0 { "" } else { " " });
                    text.push_str(&self.words[*id as usize]);
                }
                if n + 1 < self.levels.len() {
                    let _ = write!(text, "\t{backoff:.7}");
                }
                text.push('\n');
                if text.len() > 1 << 18 {
                    file.put(text.as_bytes())?;
                    text.clear();
                }
            }
        }
        text.push_str("\n\\end\\\n");
        file.put(text.as_bytes())?;
        file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::Model;
    use crate::lm::train::Trainer;
    use crate::runs::Scratch;

    fn model(text: &str, order: usize) -> Result<(Model, Vec<usize>)> {
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path());
        let mut trainer = Trainer::new(order, 64 << 20, &scratch)?;
        trainer.add(text)?;
        let estimated = trainer.finish()?;
        let path = dir.path().join("m.arpa");
        estimated.save(&path)?;
        Ok((Model::load(&path, u64::MAX)?, estimated.num_grams()))
    }

    /// Sentences of a small language with enough n-grams of each count.
    fn text() -> String {
        let word = |n: u64| {
            ["the", "a", "cat", "dog", "sees", "likes", "big", "old", "and", "is"][(crate::doc::mix(n) % 10) as usize]
        };
        let line = |n: u64| (0..3 + n % 9).map(|k| word(n * 7 + k * k * 3)).collect::<Vec<_>>().join(" ");
        (0..400).map(|n| line(n % 170) + "\n").collect()
    }

    #[test]
    fn probabilities_of_what_may_follow_add_up_to_one() -> Result<()> {
        let (model, num) = model(&text(), 4)?;
        assert_eq!(num.len(), 4);
        for context in
            [vec![], vec!["<s>"], vec!["<s>", "the"], vec!["cat", "sees"], vec!["the", "old", "cat"], vec!["no"]]
        {
            let sum: f64 = model.words().filter(|w| *w != "<s>").map(|w| 10f64.powf(model.score(&context, w))).sum();
            assert!((sum - 1.0).abs() < 1e-4, "after {context:?}: {sum}");
        }
        Ok(())
    }

    #[test]
    fn known_text_is_less_perplexing_than_strange_text() -> Result<()> {
        let (model, _) = model(&text(), 5)?;
        let known = text().lines().take(20).collect::<Vec<_>>().join("\n");
        let shuffled: Vec<&str> = known.split_whitespace().rev().collect();
        let (known, shuffled) = (model.perplexity(&known), model.perplexity(&shuffled.join(" ")));
        let strange = model.perplexity("quantum zebra xylophone");
        println!("known {known:?}, shuffled {shuffled:?}, strange {strange:?}");
        assert!(known < shuffled && shuffled < strange);
        assert_eq!(model.perplexity("... \n\n"), None, "no words have no perplexity");
        Ok(())
    }

    #[test]
    fn counts_are_those_of_the_definition() {
        // "a b a" and "a b": of order 2 as often as seen, of order 1 by how many words stand before.
        let mut grams = Grams::new(2);
        let (s, e, a, b) = (START_ID, 2, 4, 5);
        let mut seen = [([a, s], 2), ([a, b], 1), ([b, a], 2), ([e, a], 1), ([e, b], 1)];
        seen.sort_unstable();
        seen.iter().for_each(|([w, h], count)| grams.push(&[*w, *h, 0, 0, 0], *count));
        let counts =
            |table: &Vec<(Gram, u64)>| table.iter().map(|(gram, count)| (gram[0], gram[1], *count)).collect::<Vec<_>>();
        assert_eq!(counts(&grams.tables[0]), [(e, 0, 2), (a, 0, 2), (b, 0, 1)]);
        assert_eq!(counts(&grams.tables[1]), [(e, a, 1), (e, b, 1), (a, s, 2), (a, b, 1), (b, a, 2)]);
    }
}
