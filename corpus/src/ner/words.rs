//! Words as annotated corpora cut them: runs of letters and digits with what joins them, and each other sign by itself.

use std::ops::Range;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Bytes.
    pub span: Range<usize>,
    pub starts_sentence: bool,
}

impl Word {
    pub fn text<'a>(&self, text: &'a str) -> &'a str {
        &text[self.span.clone()]
    }
}

/// Points and commas join shorter words.
const MAX_JOINED_BYTES: usize = 64;

/// `John's` is two words, `Jean-Luc`, `U.S.` and `J.` are one each, and so are signs.
pub fn words(text: &str) -> Vec<Word> {
    let mut found: Vec<Word> = Vec::new();
    let mut chars = text.char_indices().peekable();
    // Since the last word: a sentence has ended, and how many lines.
    let (mut has_ended, mut num_lines) = (true, 0);
    while let Some((start, c)) = chars.next() {
        if c.is_whitespace() {
            num_lines += u32::from(c == '\n');
            continue;
        }
        let mut end = start + c.len_utf8();
        let is_behind_word = found.last().is_some_and(|word| word.span.end == start);
        if c.is_alphanumeric() || matches!(c, '\'' | '’') && is_behind_word {
            while let Some((at, next)) = chars.peek().copied() {
                let behind = text[at + next.len_utf8()..].chars().next();
                let goes_on = behind.is_some_and(char::is_alphanumeric);
                let joins = match next {
                    '-' | '_' | '&' => goes_on,
                    // O'Neil
                    '\'' | '’' => is_initial(&text[start..at]) && behind.is_some_and(char::is_uppercase),
                    // Of initials and abbreviations: one letter before it.
                    '.' | ',' => {
                        goes_on && at - start < MAX_JOINED_BYTES && is_short(&text[start..at])
                            || next == '.' && is_initial(&text[start..at])
                    }
                    _ => next.is_alphanumeric(),
                };
                if !joins {
                    break;
                }
                end = at + next.len_utf8();
                chars.next();
            }
        }
        let starts_sentence = has_ended || num_lines > 1;
        found.push(Word { span: start..end, starts_sentence });
        // Quotation marks and brackets stand between.
        has_ended = matches!(c, '.' | '!' | '?') || starts_sentence && !c.is_alphanumeric();
        num_lines = 0;
    }
    found
}

/// A number, or letters with points between them.
fn is_short(word: &str) -> bool {
    word.rsplit(['.', ',']).next().is_some_and(|last| last.chars().count() <= 1)
        || word.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b',')
}

/// A capital letter, alone or behind a point.
fn is_initial(word: &str) -> bool {
    let last = word.rsplit('.').next().unwrap_or("");
    let mut chars = last.chars();
    chars.next().is_some_and(char::is_uppercase) && chars.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_annotated_corpora_have_them() {
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<&str> = words(text).iter().map(|word| word.text(text)).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("John's dog (Jean-Luc) ran.", &["John", "'s", "dog", "(", "Jean-Luc", ")", "ran", "."]);
        check(
            "J. R. Smith of the U.S. paid 3,000.50.",
            &["J.", "R.", "Smith", "of", "the", "U.S.", "paid", "3,000.50", "."],
        );
        check("\u{1f600}Ödön O’Neil AT&T", &["\u{1f600}", "Ödön", "O’Neil", "AT&T"]);
        check("'Who?'", &["'", "Who", "?", "'"]);
        check("", &[]);
        let starts: Vec<bool> =
            words("One two. \"Three\nfour\n\nFive").iter().map(|word| word.starts_sentence).collect();
        assert_eq!(starts, [true, false, false, true, true, false, true]);
    }
}
