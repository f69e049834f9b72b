//! A text in segments: sentences of prose, items of lists, lines of code, and what stands between them.
//!
//! Segments cover the text without gaps, so that what is left is the text less the segments that are removed. Lines of a paragraph belong
//! together however they are wrapped. Lines of code are segments of their own and say that they are code: a line that many programs have is
//! not superfluous in any of them.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation as _;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub span: Range<usize>,
    pub is_code: bool,
}

/// A paragraph longer than this is cut where it stands: what is searched for ends of sentences is copied.
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

/// Cuts a paragraph at the ends of its sentences (Unicode Standard Annex 29), its own line ends taken for spaces.
fn sentences(text: &str, paragraph: Range<usize>, found: &mut Vec<Segment>) {
    let part = &text[paragraph.clone()];
    // Of the same length in bytes, so that positions stay.
    let unwrapped: String = part.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }).collect();
    let spans = unwrapped.split_sentence_bound_indices().map(|(at, sentence)| {
        let start = paragraph.start + at;
        Segment { span: start..start + sentence.len(), is_code: false }
    });
    found.extend(spans);
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
    fn a_very_long_line_is_segmented_in_bounded_pieces() {
        let text = "word ".repeat(1 << 20);
        assert_eq!(segments(&text).iter().map(|s| s.span.len()).sum::<usize>(), text.len());
    }
}
