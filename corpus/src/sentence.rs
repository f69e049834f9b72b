//! A text in segments: sentences of prose, items of lists, lines of code, and what stands between them.
//!
//! Segments cover the text without gaps, so that what is left is the text less the segments that are removed. Lines of a paragraph belong
//! together however they are wrapped. Lines of code are segments of their own and say that they are code: a line that many programs have is
//! not superfluous in any of them.

use std::ops::Range;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub span: Range<usize>,
    pub is_code: bool,
}

/// A paragraph longer than this is cut at a line end.
const MAX_PARAGRAPH_BYTES: usize = 1 << 20;

pub fn segments(text: &str) -> Vec<Segment> {
    let mut found = Vec::new();
    let mut paragraph = 0..0;
    let mut is_fenced = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let span = at..at + line.len();
        at = span.end;
        let trimmed = line.trim();
        let is_fence = trimmed.starts_with("```") || trimmed.starts_with("~~~");
        let is_code = is_fenced || is_fence || is_code_line(line);
        is_fenced ^= is_fence;
        let is_alone = is_code || trimmed.is_empty() || begins_item(trimmed);
        if is_alone || paragraph.len() + line.len() > MAX_PARAGRAPH_BYTES {
            sentences(text, std::mem::replace(&mut paragraph, span.end..span.end), &mut found);
        }
        if is_code {
            found.push(Segment { span, is_code });
        } else if trimmed.is_empty() {
            // Space belongs to what is before it, and goes with it.
            match found.last_mut() {
                Some(last) if !last.is_code => last.span.end = span.end,
                _ => found.push(Segment { span, is_code: false }),
            }
        } else {
            paragraph = if paragraph.is_empty() { span } else { paragraph.start..span.end };
        }
    }
    sentences(text, paragraph, &mut found);
    found
}

/// Cuts a paragraph at the ends of its sentences, its own line ends taken for spaces.
fn sentences(text: &str, paragraph: Range<usize>, found: &mut Vec<Segment>) {
    let mut start = paragraph.start;
    for end in bounds(&text[paragraph.clone()]).into_iter().map(|end| paragraph.start + end) {
        found.push(Segment { span: start..end, is_code: false });
        start = end;
    }
}

/// What a character is to the end of a sentence (Unicode Standard Annex 29, table 4). Of the signs of rarer scripts the common ones are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Upper,
    Lower,
    Letter,
    Digit,
    /// `.`, which may also end an abbreviation.
    FullStop,
    /// `!`, `?` and others, which may not.
    Stop,
    Close,
    Space,
    Continue,
    Other,
}

fn kind(c: char) -> Kind {
    match c {
        'a'..='z' => Kind::Lower,
        'A'..='Z' => Kind::Upper,
        '0'..='9' => Kind::Digit,
        '.' | '\u{2024}' | '\u{fe52}' | '\u{ff0e}' => Kind::FullStop,
        '!' | '?' | '\u{589}' | '\u{61d}'..='\u{61f}' | '\u{6d4}' | '\u{700}'..='\u{702}' | '\u{964}' | '\u{965}' => {
            Kind::Stop
        }
        '\u{104a}' | '\u{104b}' | '\u{1362}' | '\u{1367}' | '\u{1368}' | '\u{17d4}' | '\u{17d5}' | '\u{203c}'
        | '\u{203d}' => Kind::Stop,
        '\u{2047}'..='\u{2049}' | '\u{3002}' | '\u{fe56}' | '\u{fe57}' | '\u{ff01}' | '\u{ff1f}' | '\u{ff61}' => {
            Kind::Stop
        }
        '"' | '\'' | '(' | ')' | '[' | ']' | '{' | '}' | '«' | '»' | '\u{2018}'..='\u{201f}' | '‹' | '›' => {
            Kind::Close
        }
        '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301b}' | '（' | '）' | '［' | '］' | '｛' | '｝' | '｢' | '｣' => {
            Kind::Close
        }
        ',' | '-' | ':' | ';' | '\u{60c}' | '\u{2013}' | '\u{2014}' | '、' | '，' | '：' | '\u{ff0d}' => {
            Kind::Continue
        }
        _ if c.is_ascii() => {
            if c.is_ascii_whitespace() || c == '\u{b}' {
                Kind::Space
            } else {
                Kind::Other
            }
        }
        _ if c.is_lowercase() => Kind::Lower,
        _ if c.is_uppercase() => Kind::Upper,
        _ if c.is_alphabetic() => Kind::Letter,
        _ if c.is_numeric() => Kind::Digit,
        _ if c.is_whitespace() => Kind::Space,
        _ => Kind::Other,
    }
}

/// Where sentences end: rules SB6 to SB11 of the annex. Each character is looked at a few times, however the text is made.
fn bounds(text: &str) -> Vec<usize> {
    let (mut found, mut from, mut previous) = (Vec::new(), 0, Kind::Other);
    while let Some(c) = text[from..].chars().next() {
        let own = kind(c);
        let before = std::mem::replace(&mut previous, own);
        from += c.len_utf8();
        if !matches!(own, Kind::FullStop | Kind::Stop) {
            continue;
        }
        let rest = &text[from..];
        let is_full_stop = own == Kind::FullStop;
        let is_within = match rest.chars().next().map(kind) {
            Some(Kind::Digit) => true,
            Some(Kind::Upper) => matches!(before, Kind::Upper | Kind::Lower),
            _ => false,
        };
        let rest = rest.trim_start_matches(|c| kind(c) == Kind::Close).trim_start_matches(|c| kind(c) == Kind::Space);
        let mut after = rest.chars().map(kind);
        let stops =
            |kind: &Kind| matches!(kind, Kind::Upper | Kind::Lower | Kind::Letter | Kind::FullStop | Kind::Stop);
        let goes_on = matches!(after.clone().next(), Some(Kind::FullStop | Kind::Stop | Kind::Continue));
        if goes_on || is_full_stop && (is_within || after.find(stops) == Some(Kind::Lower)) {
            continue;
        }
        from = text.len() - rest.len();
        previous = Kind::Other;
        found.push(from);
    }
    if found.last().copied().unwrap_or(0) < text.len() {
        found.push(text.len());
    }
    found
}

/// A line that begins an item of a list, or a heading.
fn begins_item(trimmed: &str) -> bool {
    let is_bullet = |rest: &str| rest.starts_with([' ', '\t']);
    if trimmed.strip_prefix(['-', '*', '+', '•', '#', '>', '|']).is_some_and(|r| is_bullet(r.trim_start_matches('#')))
    {
        return true;
    }
    let digits = trimmed.trim_start_matches(|c: char| c.is_ascii_digit());
    digits.len() < trimmed.len()
        && trimmed.len() - digits.len() <= 3
        && digits.strip_prefix(['.', ')']).is_some_and(is_bullet)
}

/// Code by its form: braces and semicolons at the end, or deep indentation together with signs that prose has not.
fn is_code_line(line: &str) -> bool {
    let trimmed = line.trim();
    let ends = trimmed.ends_with(['{', '}', ';']) || trimmed.ends_with("->") || trimmed.ends_with("=>");
    let is_indented = line.starts_with("    ") || line.starts_with('\t');
    let has_signs = trimmed.contains(['(', '=', '[', '<', '{', '/', '#', '"']) || trimmed.ends_with(':');
    let is_comment = trimmed.starts_with("//") || trimmed.starts_with("/*") || trimmed.starts_with("#include");
    !trimmed.is_empty() && (ends || is_comment || is_indented && has_signs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_segmentation::UnicodeSegmentation as _;

    fn check(text: &str, expected: &[(&str, bool)]) {
        let found = segments(text);
        let parts: Vec<(&str, bool)> = found.iter().map(|s| (&text[s.span.clone()], s.is_code)).collect();
        assert_eq!(parts, expected, "{text:?}");
        assert_eq!(found.iter().map(|s| &text[s.span.clone()]).collect::<String>(), text);
    }

    #[test]
    fn prose_is_cut_at_sentences_however_it_is_wrapped() {
        check("", &[]);
        check("One. Two two\nstill two. Three", &[("One. ", false), ("Two two\nstill two. ", false), ("Three", false)]);
        check("Ein Satz.\r\n\r\nNoch einer!", &[("Ein Satz.\r\n\r\n", false), ("Noch einer!", false)]);
        check("Это раз. Это два.", &[("Это раз. ", false), ("Это два.", false)]);
        check("これは文です。次の文。", &[("これは文です。", false), ("次の文。", false)]);
        check("\n\nA \u{1f600} b.", &[("\n\n", false), ("A \u{1f600} b.", false)]);
    }

    #[test]
    fn items_of_lists_stand_alone_and_code_is_told_apart() {
        check(
            "Buy:\n- milk\n- eggs and\n  bread\n2) tea\n",
            &[("Buy:\n", false), ("- milk\n", false), ("- eggs and\n  bread\n", false), ("2) tea\n", false)],
        );
        check(
            "Call it.\n```\nlet x = 1\n```\nDone. It is.",
            &[
                ("Call it.\n", false),
                ("```\n", true),
                ("let x = 1\n", true),
                ("```\n", true),
                ("Done. ", false),
                ("It is.", false),
            ],
        );
        check("fn main() {\n    run();\n}\n", &[("fn main() {\n", true), ("    run();\n", true), ("}\n", true)]);
    }

    #[test]
    fn sentences_end_where_the_standard_says() {
        const PARTS: [&str; 36] = [
            "a", "B", "word", "Word", " ", "  ", ".", ".", "!", "?", "\"", "'", "(", ")", ",", "-", ":", "3", "14",
            "\t", "/", "_", "U.S", "...", "é", "É", "日", "。", "«", "»", "“", "”", "？", "、", "я", "Я",
        ];
        for seed in 0..20_000u64 {
            let part = |n: u64| PARTS[(crate::doc::mix(seed * 1000 + n) % 36) as usize];
            let text: String = (0..1 + seed % 40).map(part).collect();
            let expected: Vec<usize> = text.split_sentence_bound_indices().map(|(at, s)| at + s.len()).collect();
            assert_eq!(bounds(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn hostile_texts_take_linear_time() {
        // What looks ahead from each sign again and again takes hours for these.
        for text in
            [format!("é.{}", " ".repeat(4 << 20)), ". ".repeat(2 << 20), ".(".repeat(2 << 20), ".1".repeat(2 << 20)]
        {
            bounds(&text);
        }
    }

    #[test]
    fn a_very_long_line_is_segmented_in_bounded_pieces() {
        let text = "word ".repeat(1 << 20);
        assert_eq!(segments(&text).iter().map(|s| s.span.len()).sum::<usize>(), text.len());
    }
}
