//! Annotated text as the shared tasks of CoNLL have it: a word a line, its tag in the last column, an empty line between sentences.

use std::path::Path;

use super::{Entity, OUTSIDE, Tag, tag};
use crate::error::{At, Error, Result};

/// A sentence with a tag for each word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sentence {
    pub words: Vec<String>,
    pub tags: Vec<Tag>,
}

/// A longer line is no word.
const MAX_LINE_BYTES: usize = 1 << 12;

fn entity(name: &str) -> Option<Entity> {
    match name.to_ascii_uppercase().as_str() {
        "PER" | "PERSON" => Some(Entity::Person),
        "LOC" | "LOCATION" | "GPE" => Some(Entity::Location),
        "ORG" | "ORGANIZATION" => Some(Entity::Organization),
        _ => None,
    }
}

/// Reads tags as BIO, IO or BIOES, by whatever name for persons, places and organizations; what else is annotated is outside.
pub fn read(path: &Path) -> Result<Vec<Sentence>> {
    let text = std::fs::read_to_string(path).at("read", path)?;
    let (mut all, mut sentence, mut before) = (Vec::new(), Sentence::default(), None);
    for (n, line) in text.lines().chain([""]).enumerate() {
        let wrong = |what: &str| Error::Model { path: path.to_owned(), line: n as u64 + 1, what: what.to_owned() };
        if line.len() > MAX_LINE_BYTES {
            return Err(wrong(&format!("{} bytes, a word and its tag have {MAX_LINE_BYTES} at most", line.len())));
        }
        let mut columns = line.split([' ', '\t']).filter(|column| !column.is_empty());
        let Some(word) = columns.next().filter(|word| *word != "-DOCSTART-") else {
            if !sentence.words.is_empty() {
                all.push(std::mem::take(&mut sentence));
            }
            before = None;
            continue;
        };
        let column = columns.next_back().ok_or_else(|| wrong("a word without a tag in a second column"))?;
        let (prefix, name) = column.split_once('-').unwrap_or(("", column));
        let found = entity(name);
        if found.is_none() && prefix.is_empty() && column != "O" && !column.chars().all(|c| c.is_ascii_uppercase()) {
            return Err(wrong(&format!("`{column}` is no tag, as in B-PER, I-LOC or O")));
        }
        // A name goes on where its kind does, unless it is said to begin.
        let is_first = found != before || matches!(prefix, "B" | "S" | "U");
        sentence.words.push(word.to_owned());
        sentence.tags.push(found.map_or(OUTSIDE, |entity| tag(entity, is_first)));
        before = found;
    }
    if all.is_empty() {
        return Err(Error::Model {
            path: path.to_owned(),
            line: 1,
            what: "there is no annotated sentence in it".into(),
        });
    }
    Ok(all)
}
