//! Words as stages compare them: after NFC and in small letters.
//!
//! A word is a longest run of letters, digits, marks and underscores; of scripts that are written without spaces each character is one.
//! What stands between words is no part of any.

use std::borrow::Cow;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfc_quick};
use xxhash_rust::xxh3;

/// NFC; a text that is so already is not copied.
pub fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || is_combining_mark(c)
}

/// Characters of scripts that put no spaces between words.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c),
        0x0e01..=0x0e30 | 0x0e81..=0x0eb0 | 0x3041..=0x3096 | 0x30a1..=0x30fa | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff
        | 0x20000..=0x3ffff)
}

/// Calls `take` with each word, normalized.
pub fn each_word(text: &str, take: impl FnMut(&str)) {
    if text.is_ascii() { each_ascii(text, take) } else { each_unicode(&nfc(text), take) }
}

fn each_ascii(text: &str, mut take: impl FnMut(&str)) {
    let is_part = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let mut lower = String::new();
    let mut rest = text;
    while let Some(start) = rest.as_bytes().iter().position(is_part) {
        rest = &rest[start..];
        let end = rest.as_bytes().iter().position(|b| !is_part(b)).unwrap_or(rest.len());
        lower.clear();
        lower.push_str(&rest[..end]);
        lower.make_ascii_lowercase();
        take(&lower);
        rest = &rest[end..];
    }
}

fn each_unicode(text: &str, mut take: impl FnMut(&str)) {
    let mut word = String::new();
    let mut end = |word: &mut String| {
        if !word.is_empty() {
            take(word);
            word.clear();
        }
    };
    for c in text.chars() {
        if c.is_ascii() {
            if c.is_ascii_alphanumeric() || c == '_' { word.push(c.to_ascii_lowercase()) } else { end(&mut word) }
        } else if stands_alone(c) {
            end(&mut word);
            word.push(c);
            end(&mut word);
        } else if is_word_char(c) {
            word.extend(c.to_lowercase());
        } else {
            end(&mut word);
        }
    }
    end(&mut word);
}

/// A number for each word, in their order.
pub fn word_hashes(text: &str, hashes: &mut Vec<u64>) {
    hashes.clear();
    each_word(text, |word| hashes.push(xxh3::xxh3_64(word.as_bytes())));
}

/// The same for texts with the same words in the same order, and for no others.
pub fn identity(hashes: &[u64]) -> u128 {
    let mut hasher = xxh3::Xxh3::new();
    hashes.iter().for_each(|hash| hasher.update(&hash.to_le_bytes()));
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each_word(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn words_are_found_in_any_script() {
        let check = |text: &str, expected: &[&str]| assert_eq!(words(text), expected, "{text:?}");
        check("", &[]);
        check("... --- !!! \u{1f600}", &[]);
        check("Hello, World_1! 3.14", &["hello", "world_1", "3", "14"]);
        check("a\0b\r\nc", &["a", "b", "c"]);
        check("ÄRGER Straße", &["ärger", "straße"]);
        // The same word, composed and not.
        check("e\u{301}t\u{e9}", &["été"]);
        check("Привет, МИР", &["привет", "мир"]);
        check("日本語abc", &["日", "本", "語", "abc"]);
        check("हिन्दी", &["हिन्दी"]);
    }

    #[test]
    fn ascii_is_no_case_of_its_own() {
        let text = "The_quick (brown) fox's 12 jumps; over\tTHE lazy-dog.";
        let mut other = Vec::new();
        each_unicode(text, |word| other.push(word.to_owned()));
        assert_eq!(words(text), other);
    }
}
