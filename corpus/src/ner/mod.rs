//! Names of persons, places and organizations: an averaged perceptron over words, from left to right.
//!
//! ```text
//!   text -> words -> features of a word, its neighbours and the tags before it -> sums of weights -> tag (BIO)
//!              '--> longest entries of gazetteers
//! ```
//!
//! M. Collins, "Discriminative training methods for hidden Markov models", EMNLP 2002; the features are those of L. Ratinov and D. Roth,
//! "Design challenges and misconceptions in named entity recognition", CoNLL 2009. Only words with a capital letter begin a name, and only
//! they and what follows a name are looked at: most words of a text cost nothing.
//!
//! Weights are whole numbers, so a model finds the same on every machine. Deliberately absent: a model. Whoever trains one states what it was
//! trained on; docs/data.md says what can be had.

pub mod conll;
mod features;
mod file;
pub mod train;
pub mod words;

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::doc::{KeyMap, KeySet};
use features::{Sentence, features, phrase};
use words::Word;

/// What a name is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entity {
    Person,
    Location,
    Organization,
}

impl Entity {
    pub const ALL: [Entity; 3] = [Entity::Person, Entity::Location, Entity::Organization];

    pub fn name(self) -> &'static str {
        match self {
            Entity::Person => "person",
            Entity::Location => "location",
            Entity::Organization => "organization",
        }
    }
}

/// 0 is outside; `1 + 2 * entity` begins a name, `2 + 2 * entity` goes on with it.
pub type Tag = u8;
pub const NUM_TAGS: usize = 1 + 2 * Entity::ALL.len();
pub const OUTSIDE: Tag = 0;

fn entity_of(tag: Tag) -> Option<Entity> {
    tag.checked_sub(1).and_then(|n| Entity::ALL.get(usize::from(n / 2)).copied())
}

fn begins(tag: Tag) -> bool {
    tag % 2 == 1
}

/// Whether a tag may stand behind another one: only a name that has begun goes on.
fn may_follow(before: Tag, tag: Tag) -> bool {
    tag == OUTSIDE || begins(tag) || before != OUTSIDE && entity_of(before) == entity_of(tag)
}

pub fn tag(entity: Entity, is_first: bool) -> Tag {
    1 + 2 * entity as u8 + u8::from(!is_first)
}

/// A list of names that were known before: entries of one to four words by their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gazetteer {
    pub name: String,
    pub entries: KeySet,
}

/// Words of the longest entry of a gazetteer.
pub const MAX_ENTRY_WORDS: usize = 4;
/// More lists do not fit in the marks of a word.
pub const MAX_GAZETTEERS: usize = 8;

impl Gazetteer {
    /// Of lines with an entry each. Entries of more words are left out.
    pub fn of_lines(name: &str, text: &str) -> Gazetteer {
        let mut entries = KeySet::default();
        for line in text.lines() {
            let line_words = words::words(line);
            let parts: Vec<&str> = line_words.iter().map(|word| word.text(line)).collect();
            if (1..=MAX_ENTRY_WORDS).contains(&parts.len()) {
                entries.insert(phrase(&parts));
            }
        }
        Gazetteer { name: name.to_owned(), entries }
    }
}

/// A name in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub entity: Entity,
    /// Bytes.
    pub span: Range<usize>,
}

type Weights = [i16; NUM_TAGS];

/// A trained tagger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    gazetteers: Vec<Gazetteer>,
    weights: KeyMap<Weights>,
    /// What it was trained on, in the words of who did it.
    pub trained_on: String,
}

impl Model {
    pub fn num_features(&self) -> usize {
        self.weights.len()
    }

    /// The names of a text, in their order; no two overlap.
    pub fn find(&self, text: &str) -> Vec<Name> {
        let words = words::words(text);
        let parts: Vec<&str> = words.iter().map(|word| word.text(text)).collect();
        let starts: Vec<bool> = words.iter().map(|word| word.starts_sentence).collect();
        let tags = self.tags(&parts, &starts);
        names(&words, &tags)
    }

    /// A tag for each word. `starts` says which of them begin a sentence.
    pub fn tags(&self, words: &[&str], starts: &[bool]) -> Vec<Tag> {
        let sentence = Sentence::new(words, starts, &self.gazetteers);
        let mut tags = Vec::with_capacity(words.len());
        let mut found = Vec::new();
        for at in 0..words.len() {
            if !sentence.may_be_name(at, &tags) {
                tags.push(OUTSIDE);
                continue;
            }
            features(&sentence, at, &tags, &mut found);
            let mut sums = [0i64; NUM_TAGS];
            for weights in found.iter().filter_map(|feature| self.weights.get(feature)) {
                sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += i64::from(*weight));
            }
            tags.push(best(&sums, tags.last().copied().unwrap_or(OUTSIDE)));
        }
        tags
    }
}

/// The tag with the largest sum that may follow; of equal ones the first.
fn best(sums: &[i64; NUM_TAGS], before: Tag) -> Tag {
    let mut best = OUTSIDE;
    for tag in 1..NUM_TAGS as Tag {
        if may_follow(before, tag) && sums[usize::from(tag)] > sums[usize::from(best)] {
            best = tag;
        }
    }
    best
}

fn names(words: &[Word], tags: &[Tag]) -> Vec<Name> {
    let mut found: Vec<Name> = Vec::new();
    let mut before = OUTSIDE;
    for (word, tag) in words.iter().zip(tags) {
        match entity_of(*tag) {
            Some(_) if !begins(*tag) && before != OUTSIDE => {
                if let Some(name) = found.last_mut() {
                    name.span.end = word.span.end;
                }
            }
            Some(entity) => found.push(Name { entity, span: word.span.clone() }),
            None => {}
        }
        before = *tag;
    }
    found
}

/// Names found, those that are meant, and how many of them agree to the word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    pub found: u64,
    pub meant: u64,
    pub right: u64,
}

impl Score {
    fn share(part: u64, whole: u64) -> f64 {
        if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
    }

    pub fn precision(&self) -> f64 {
        Score::share(self.right, self.found)
    }

    pub fn recall(&self) -> f64 {
        Score::share(self.right, self.meant)
    }

    pub fn f1(&self) -> f64 {
        Score::share(2 * self.right, self.found + self.meant)
    }
}

/// How well a model finds the names of annotated text, by kind.
pub fn score(model: &Model, documents: &[conll::Sentence]) -> HashMap<Entity, Score> {
    let mut scores: HashMap<Entity, Score> = HashMap::new();
    for sentence in documents {
        let parts: Vec<&str> = sentence.words.iter().map(String::as_str).collect();
        let starts: Vec<bool> = (0..parts.len()).map(|n| n == 0).collect();
        let (found, meant) = (runs(&model.tags(&parts, &starts)), runs(&sentence.tags));
        for (entity, _) in &found {
            scores.entry(*entity).or_default().found += 1;
        }
        for name in &meant {
            let score = scores.entry(name.0).or_default();
            score.meant += 1;
            score.right += u64::from(found.contains(name));
        }
    }
    scores
}

/// Names as runs of words.
fn runs(tags: &[Tag]) -> Vec<(Entity, Range<usize>)> {
    let mut found: Vec<(Entity, Range<usize>)> = Vec::new();
    for (n, tag) in tags.iter().enumerate() {
        match (entity_of(*tag), found.last_mut()) {
            (Some(_), Some((_, run))) if !begins(*tag) && run.end == n => run.end = n + 1,
            (Some(entity), _) => found.push((entity, n..n + 1)),
            (None, _) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
