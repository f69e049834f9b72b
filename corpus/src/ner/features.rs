//! What is known of a word when its tag is chosen. A feature is the hash of its kind and its parts.

use xxhash_rust::xxh3;

use super::{Gazetteer, MAX_ENTRY_WORDS, OUTSIDE, Tag};
use crate::doc::mix;

/// Of a feature or a phrase, from its parts.
fn hash(kind: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(mix(kind.wrapping_add(0x9e37_79b9_7f4a_7c15)), |sum, part| mix(sum ^ part).wrapping_add(kind))
}

fn of_text(text: &str) -> u64 {
    xxh3::xxh3_64(text.as_bytes())
}

/// The key of an entry of a gazetteer.
pub fn phrase(words: &[&str]) -> u64 {
    let parts: Vec<u64> = words.iter().map(|word| of_text(&word.to_lowercase())).collect();
    hash(0, &parts)
}

/// `Xx`, `X.X`, `d-x`: letters and digits by their kind, runs as one; together with how it begins.
fn shape(word: &str) -> u64 {
    let kind = |c: char| match c {
        c if c.is_uppercase() => b'X',
        c if c.is_alphabetic() => b'x',
        c if c.is_numeric() => b'd',
        c if c.is_ascii() => c as u8,
        _ => b'?',
    };
    let mut shape: Vec<u8> = Vec::new();
    for c in word.chars().take(MAX_LOOKED_AT_CHARS).map(kind) {
        if shape.last() != Some(&c) || shape.len() == 1 {
            shape.push(c);
        }
    }
    xxh3::xxh3_64(&shape)
}

/// Longer words are looked at by their beginning.
const MAX_LOOKED_AT_CHARS: usize = 40;

/// What is known of a word whatever stands around it.
struct Known {
    word: u64,
    shape: u64,
    prefix: u64,
    suffixes: [u64; 2],
    is_capital: bool,
    /// Two bits a gazetteer: an entry begins here, or goes on.
    marks: u64,
}

/// Words with what is known of each.
pub struct Sentence<'a> {
    known: Vec<Known>,
    starts: &'a [bool],
}

impl<'a> Sentence<'a> {
    pub fn new(words: &[&str], starts: &'a [bool], gazetteers: &[Gazetteer]) -> Sentence<'a> {
        let mut known: Vec<Known> = words.iter().map(|word| know(word)).collect();
        for (n, gazetteer) in gazetteers.iter().enumerate() {
            mark(&mut known, gazetteer, 2 * n as u32);
        }
        Sentence { known, starts }
    }

    /// A word with a capital letter, or one behind such a word that is in a name.
    pub fn may_be_name(&self, at: usize, before: &[Tag]) -> bool {
        self.known[at].is_capital || before.last().is_some_and(|tag| *tag != OUTSIDE)
    }

    fn of(&self, at: usize, offset: isize) -> Option<&Known> {
        self.known.get(at.checked_add_signed(offset)?)
    }
}

fn know(word: &str) -> Known {
    let lower = word.to_lowercase();
    let chars: Vec<(usize, char)> = lower.char_indices().take(MAX_LOOKED_AT_CHARS).collect();
    let end = |n: usize| chars.get(n).map_or(lower.len(), |(at, _)| *at);
    let start = |n: usize| chars.len().checked_sub(n).map_or(0, |n| chars.get(n).map_or(lower.len(), |(at, _)| *at));
    Known {
        word: of_text(&lower),
        shape: shape(word),
        prefix: of_text(&lower[..end(3)]),
        suffixes: [of_text(&lower[start(2)..]), of_text(&lower[start(3)..])],
        is_capital: word.chars().next().is_some_and(char::is_uppercase),
        marks: 0,
    }
}

/// The longest entry from each word on that has a capital letter, and none within another one.
fn mark(known: &mut [Known], gazetteer: &Gazetteer, bit: u32) {
    let mut at = 0;
    while at < known.len() {
        let longest = (1..=MAX_ENTRY_WORDS.min(known.len() - at)).rev().find(|len| {
            let parts: Vec<u64> = known[at..at + len].iter().map(|known| known.word).collect();
            known[at].is_capital && gazetteer.entries.contains(&hash(0, &parts))
        });
        for (n, word) in known[at..at + longest.unwrap_or(0)].iter_mut().enumerate() {
            word.marks |= 1 << (bit + u32::from(n > 0));
        }
        at += longest.unwrap_or(1);
    }
}

/// The features of a word, given the tags of those before it.
pub fn features(sentence: &Sentence<'_>, at: usize, before: &[Tag], found: &mut Vec<u64>) {
    const NOTHING: u64 = 1;
    found.clear();
    let known = &sentence.known[at];
    let word = |offset: isize| sentence.of(at, offset).map_or(NOTHING, |known| known.word);
    let shape = |offset: isize| sentence.of(at, offset).map_or(NOTHING, |known| known.shape);
    let marks = |offset: isize| sentence.of(at, offset).map_or(0, |known| known.marks);
    let tag = |back: usize| at.checked_sub(back).map_or(u64::from(u8::MAX), |n| u64::from(before[n]));
    let starts = u64::from(sentence.starts.get(at).copied().unwrap_or(false));
    let (last, two) = (tag(1), tag(1) << 8 | tag(2));
    let mut add = |kind: u64, parts: &[u64]| found.push(hash(kind, parts));
    add(1, &[]);
    add(2, &[known.word]);
    add(3, &[known.shape, starts]);
    add(4, &[known.prefix]);
    known.suffixes.iter().zip(5..).for_each(|(suffix, kind)| add(kind, &[*suffix]));
    for (offset, kind) in [(-2, 10), (-1, 11), (1, 12), (2, 13)] {
        add(kind, &[word(offset)]);
        add(kind + 10, &[shape(offset)]);
    }
    add(30, &[last]);
    add(31, &[two]);
    add(32, &[last, known.word]);
    add(33, &[last, known.shape, shape(1)]);
    add(34, &[word(-1), known.word]);
    add(35, &[known.word, word(1)]);
    add(36, &[word(-1), known.shape]);
    add(37, &[known.shape, word(1)]);
    add(38, &[word(-2), word(-1)]);
    add(40, &[known.marks]);
    add(41, &[known.marks, last]);
    add(42, &[known.marks, marks(1)]);
    add(43, &[known.marks, marks(-1), last]);
    add(44, &[known.marks, known.shape, starts]);
}
