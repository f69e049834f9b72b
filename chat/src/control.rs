//! What only a template may write: the tokens that begin and end turns. Whoever else writes such words writes text ([decision
//! 103](../../docs/decisions/103-contents-have-no-special-tokens.md)).
//!
//! ```text
//!   messages --mark_all--> marked messages --template--> marked text --find--> what the template wrote --unmarked--> text, ranges
//! ```

use std::ops::Range;

use regex::Regex;
use serde_json::Value;

/// Put into what users wrote; what has it already and needs it is refused.
const MARK: char = '\u{f8fd}';
/// What looking for the tokens of a file may take.
const MAX_REGEX_BYTES: usize = 1 << 28;
/// What ends and begins turns where tokens are bytes: `<|word|>`.
const SIGN: &str = r"<\|[^|<>\s]{1,60}\|>";

/// Words that only a template may write.
#[derive(Debug)]
pub struct Control(Regex);

impl Control {
    /// Of a tokenizer's tokens; `None`: there are none. The longest that stands somewhere is the one. An error says why they cannot be looked for.
    pub fn of(mut words: Vec<String>) -> Result<Option<Control>, String> {
        words.retain(|word| !word.is_empty());
        words.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        words.dedup();
        if words.is_empty() {
            return Ok(None);
        }
        let pattern: Vec<String> = words.iter().map(|word| regex::escape(word)).collect();
        // Words of a file that was read: they may be many, and are no patterns.
        let regex = regex::RegexBuilder::new(&pattern.join("|")).size_limit(MAX_REGEX_BYTES).build();
        let cannot = |error| format!("the tokenizer's {} added tokens cannot be looked for: {error}", words.len());
        regex.map(|regex| Some(Control(regex))).map_err(cannot)
    }

    /// Of a template whose tokens are bytes: control characters in `text`, which it has rendered, and `<|word|>` there and in its `source`.
    pub fn of_bytes(source: &str, text: &str) -> Result<Option<Control>, String> {
        let is_sign = |c: &char| ('\u{1}'..='\u{8}').contains(c);
        let mut signs: Vec<String> = text.chars().filter(is_sign).map(String::from).collect();
        let word = Regex::new(SIGN).map_err(|error| error.to_string())?;
        for place in [source, text] {
            signs.extend(word.find_iter(place).map(|found| found.as_str().to_owned()));
        }
        Control::of(signs)
    }

    pub fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// Whether any text in a value of JSON has one.
    pub fn is_in_any(&self, value: &Value) -> bool {
        let mut found = false;
        texts_of(value, &mut |text| found |= self.is_in(text));
        found
    }

    /// Where they stand in a text.
    pub fn find(&self, text: &str) -> Vec<Range<usize>> {
        self.0.find_iter(text).map(|found| found.range()).collect()
    }

    /// Marks all texts of messages that have one. An error says what cannot be marked.
    pub fn mark_all(&self, messages: &mut Value) -> Result<(), &'static str> {
        if has_mark(messages) {
            return Err("a token that only the template may write stands beside U+F8FD");
        }
        change_texts(messages, &mut |text| self.marked(text));
        // Names of fields stay as they are, and what has one character cannot be marked within.
        match self.is_in_any(messages) {
            true => Err("a token of one character, or in the name of a field, that only the template may write"),
            false => Ok(()),
        }
    }

    /// With a mark behind each character of what only the template may write; none if there is nothing.
    fn marked(&self, text: &str) -> Option<String> {
        let (mut marked, mut at) = (String::new(), 0);
        for found in self.0.find_iter(text) {
            marked.push_str(&text[at..found.start()]);
            found.as_str().chars().for_each(|c| marked.extend([c, MARK]));
            at = found.end();
        }
        marked.push_str(&text[at..]);
        (at > 0).then_some(marked)
    }
}

/// Whether any text in a value of JSON has the mark.
pub fn has_mark(value: &Value) -> bool {
    let mut found = false;
    texts_of(value, &mut |text| found |= text.contains(MARK));
    found
}

/// A text without marks, and where these ranges of it are then.
pub fn unmarked<const N: usize>(text: &str, ranges: [Vec<Range<usize>>; N]) -> (String, [Vec<Range<usize>>; N]) {
    let marks: Vec<usize> = text.match_indices(MARK).map(|(at, _)| at).collect();
    let moved_to = |at: usize| at - marks.partition_point(|mark| *mark < at) * MARK.len_utf8();
    let moved = |range: Range<usize>| moved_to(range.start)..moved_to(range.end);
    let ranges = ranges.map(|ranges| ranges.into_iter().map(moved).collect());
    (text.chars().filter(|c| *c != MARK).collect(), ranges)
}

/// All texts in a value of JSON, for `look`; names of fields are texts, too.
pub fn texts_of(value: &Value, look: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(values) => values.iter().for_each(|value| texts_of(value, look)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            look(name);
            texts_of(value, look);
        }),
        _ => {}
    }
}

/// Names of fields stay.
fn change_texts(value: &mut Value, change: &mut dyn FnMut(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(other) = change(text) {
                *text = other;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| change_texts(value, change)),
        Value::Object(fields) => fields.values_mut().for_each(|value| change_texts(value, change)),
        _ => {}
    }
}
