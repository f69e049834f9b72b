//! A text as it is written: what of it is certain, and where a stop ends it.

use crate::tokens::{Added, Stream};

/// Turns tokens into text that may be told. A stop ends the text before itself; what may become one is held back.
pub struct Writer {
    stream: Stream,
    stops: Vec<String>,
    /// Text that was not told.
    held: String,
    /// Bytes that were.
    num_told: usize,
}

/// What a token adds to the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Text that is certain now.
    pub text: String,
    /// Where the last tokens begin that were pushed, in bytes of the whole text: see [`Added`].
    pub starts: Vec<usize>,
    /// A stop came: the text has ended.
    pub is_stopped: bool,
}

impl Writer {
    pub fn new(stream: Stream, mut stops: Vec<String>) -> Writer {
        stops.retain(|stop| !stop.is_empty());
        Writer { stream, stops, held: String::new(), num_told: 0 }
    }

    /// Bytes of it that were told.
    pub fn num_told(&self) -> usize {
        self.num_told
    }

    pub fn push(&mut self, token: u32) -> Piece {
        let new = self.stream.push(token);
        self.add(new)
    }

    /// No more tokens come.
    pub fn end(&mut self) -> Piece {
        let new = self.stream.end();
        let mut piece = self.add(new);
        let held = std::mem::take(&mut self.held);
        self.num_told += held.len();
        piece.text.push_str(&held);
        piece
    }

    fn add(&mut self, new: Added) -> Piece {
        let before = self.num_told + self.held.len();
        let starts = new.starts.iter().map(|start| before + start).collect();
        self.held.push_str(&new.text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            let text = std::mem::take(&mut self.held);
            self.num_told += text.len();
            return Piece { text, starts, is_stopped: true };
        }
        let may_become = |stop: &String| {
            let lens = (1..stop.len()).rev().filter(|len| stop.is_char_boundary(*len));
            lens.into_iter().find(|len| self.held.ends_with(&stop[..*len])).unwrap_or(0)
        };
        let kept = self.stops.iter().map(may_become).max().unwrap_or(0);
        let text: String = self.held.drain(..self.held.len() - kept).collect();
        self.num_told += text.len();
        Piece { text, starts, is_stopped: false }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tokens::Tokens;

    fn check(text: &str, stops: &[&str], expected: &str, is_stopped: bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut writer = Writer::new(Tokens::stream(&Arc::new(Tokens::Bytes)), stops.clone());
        let mut found = String::new();
        for byte in text.bytes() {
            let piece = writer.push(byte.into());
            found += &piece.text;
            if piece.is_stopped {
                assert_eq!((found.as_str(), true), (expected, is_stopped), "{text} {stops:?}");
                return;
            }
            assert!(text.starts_with(&found));
        }
        let piece = writer.end();
        found += &piece.text;
        assert_eq!((found.as_str(), piece.is_stopped), (expected, is_stopped), "{text} {stops:?}");
    }

    #[test]
    fn a_text_ends_before_the_first_stop_and_nothing_of_it_is_told() {
        check("one two three", &["two"], "one ", true);
        check("one two three", &["three", "tw"], "one ", true);
        check("one two", &["twofold", ""], "one two", false);
        check("aaab", &["aab"], "a", true);
        check("aü😀b", &["😀"], "aü", true);
        check("aü", &["ü!"], "aü", false);
        check("", &["x"], "", false);
    }
}
