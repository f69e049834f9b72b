//! Rules about the form of a text: Gopher's (Rae et al. 2021, appendix A.1) and C4's (Raffel et al. 2020, section 2.2).

use std::ops::Range;

use xxhash_rust::xxh3;

use crate::config::Heuristics;
use crate::doc::{KeyMap, KeySet, mix};

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];
const SYMBOLS: [&str; 3] = ["#", "...", "…"];

/// The first rule that a text breaks, and by what.
pub fn broken(text: &str, rules: &Heuristics) -> Option<(&'static str, f64)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let num = words.len();
    if num < rules.min_words {
        return Some(("too-few-words", num as f64));
    }
    if num > rules.max_words {
        return Some(("too-many-words", num as f64));
    }
    if num == 0 {
        return None;
    }
    let share = |count: usize, of: usize| if of == 0 { 0.0 } else { count as f64 / of as f64 };
    let mean = share(words.iter().map(|word| word.chars().count()).sum(), num);
    if mean < rules.min_mean_word_chars || mean > rules.max_mean_word_chars {
        return Some(("word-length", mean));
    }
    let symbols = share(SYMBOLS.iter().map(|symbol| text.matches(symbol).count()).sum(), num);
    if symbols > rules.max_symbols_per_word {
        return Some(("symbols", symbols));
    }
    let alphabetic = share(words.iter().filter(|word| word.chars().any(char::is_alphabetic)).count(), num);
    if alphabetic < rules.min_alphabetic_words {
        return Some(("few-letters", alphabetic));
    }
    let bare = |word: &&str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    if rules.min_stop_words > 0 {
        let mut found = [false; STOP_WORDS.len()];
        for word in words.iter().filter(|word| word.len() <= 8).map(bare) {
            STOP_WORDS.iter().position(|stop| *stop == word).into_iter().for_each(|n| found[n] = true);
        }
        let num_found = found.iter().filter(|is_found| **is_found).count();
        if num_found < rules.min_stop_words {
            return Some(("stop-words", num_found as f64));
        }
    }
    broken_by_lines(text, rules).or_else(|| broken_by_repetition(&words, rules)).or_else(|| {
        if rules.drop_lorem_ipsum && contains_ignoring_case(text, "lorem ipsum") {
            Some(("lorem-ipsum", 1.0))
        } else if rules.drop_curly_brackets && text.contains('{') {
            Some(("curly-bracket", 1.0))
        } else {
            None
        }
    })
}

fn contains_ignoring_case(text: &str, what: &str) -> bool {
    let first = |b: u8| [b.to_ascii_lowercase(), b.to_ascii_uppercase()];
    let [lower, upper] = first(what.as_bytes()[0]);
    memchr::memchr2_iter(lower, upper, text.as_bytes()).any(|at| {
        let part = text.as_bytes().get(at..at + what.len());
        part.is_some_and(|part| part.eq_ignore_ascii_case(what.as_bytes()))
    })
}

fn broken_by_lines(text: &str, rules: &Heuristics) -> Option<(&'static str, f64)> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let share = |count: usize| count as f64 / lines.len().max(1) as f64;
    let bullets = share(lines.iter().filter(|line| line.starts_with(['-', '*', '•', '‣', '●'])).count());
    if bullets > rules.max_bullet_lines {
        return Some(("bullets", bullets));
    }
    let ellipses = share(lines.iter().filter(|line| line.ends_with("...") || line.ends_with('…')).count());
    if ellipses > rules.max_ellipsis_lines {
        return Some(("ellipses", ellipses));
    }
    let mut seen = KeySet::default();
    let (mut num_repeated, mut repeated_chars, mut all_chars) = (0, 0, 0);
    for line in &lines {
        let num_chars = line.chars().count();
        all_chars += num_chars;
        if !seen.insert(xxh3::xxh3_64(line.as_bytes())) {
            num_repeated += 1;
            repeated_chars += num_chars;
        }
    }
    let repeated = share(num_repeated);
    if repeated > rules.max_repeated_lines {
        return Some(("repeated-lines", repeated));
    }
    let repeated = repeated_chars as f64 / all_chars.max(1) as f64;
    (repeated > rules.max_repeated_line_chars).then_some(("repeated-line-chars", repeated))
}

/// n-grams of words: how much of the text the most frequent one is, and how much stood there before.
fn broken_by_repetition(words: &[&str], rules: &Heuristics) -> Option<(&'static str, f64)> {
    let hashes: Vec<u64> = words.iter().map(|word| xxh3::xxh3_64(word.as_bytes())).collect();
    let lens: Vec<usize> = words.iter().map(|word| word.chars().count()).collect();
    let all_chars: usize = lens.iter().sum::<usize>() + words.len().saturating_sub(1);
    // Those of n words, from those of one fewer.
    let mut ngrams = hashes.clone();
    let extend = |ngrams: &mut Vec<u64>, n: usize| {
        ngrams.truncate((words.len() + 1).saturating_sub(n));
        ngrams.iter_mut().zip(hashes.iter().skip(n - 1)).for_each(|(ngram, word)| *ngram = mix(*ngram ^ *word));
    };
    let mut ends = vec![0];
    ends.extend(lens.iter().scan(0, |sum, len| {
        *sum += len;
        Some(*sum)
    }));
    let chars = |at: usize, n: usize| ends[at + n] - ends[at] + n - 1;
    const TOP: [(usize, &str); 3] = [(2, "top-2-gram"), (3, "top-3-gram"), (4, "top-4-gram")];
    for ((n, rule), limit) in TOP.into_iter().zip(rules.max_top_ngram_chars) {
        extend(&mut ngrams, n);
        let mut counts: KeyMap<(usize, usize)> = KeyMap::default();
        let mut best = 0;
        for (at, ngram) in ngrams.iter().enumerate() {
            let (count, len) = counts.entry(*ngram).or_insert((0, chars(at, n)));
            *count += 1;
            best = best.max(if *count > 1 { *count * *len } else { 0 });
        }
        let share = best as f64 / all_chars.max(1) as f64;
        if share > limit {
            return Some((rule, share));
        }
    }
    const REPEATED: [(usize, &str); 6] = [
        (5, "repeated-5-grams"),
        (6, "repeated-6-grams"),
        (7, "repeated-7-grams"),
        (8, "repeated-8-grams"),
        (9, "repeated-9-grams"),
        (10, "repeated-10-grams"),
    ];
    for ((n, rule), limit) in REPEATED.into_iter().zip(rules.max_repeated_ngram_chars) {
        extend(&mut ngrams, n);
        let mut seen = KeySet::default();
        let (mut at, mut repeated) = (0, 0);
        while at + n <= words.len() {
            // Characters that are repeated are counted once.
            if seen.insert(ngrams[at]) {
                at += 1;
            } else {
                repeated += chars(at, n);
                at += n;
            }
        }
        let share = repeated as f64 / all_chars.max(1) as f64;
        if share > limit {
            return Some((rule, share));
        }
    }
    None
}

/// Lines that go, with their line ends, and the rule.
pub fn lines(text: &str, rules: &Heuristics) -> Vec<(Range<usize>, &'static str)> {
    if !rules.drop_unfinished_lines && rules.drop_lines_with.is_empty() {
        return Vec::new();
    }
    let words: Vec<String> = rules.drop_lines_with.iter().map(|word| word.to_lowercase()).collect();
    let (mut found, mut at) = (Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        let span = at..at + line.len();
        at = span.end;
        let trimmed = line.trim();
        let is_finished = trimmed.is_empty() || trimmed.ends_with(['.', '!', '?', '"', '”', '。', '！', '？']);
        let lower = trimmed.to_lowercase();
        if rules.drop_unfinished_lines && !is_finished {
            found.push((span, "unfinished-line"));
        } else if words.iter().any(|word| lower.contains(word.as_str())) {
            found.push((span, "line-with-word"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROSE: &str = "The committee met on Tuesday to talk about the bridge that had been closed since the flood. Most of those who spoke \
        had lived with the detour for months, and they wanted to know when it would end. Nobody could say. The engineers have a plan for the \
        piers but no money for it, while the county has money and wants another plan.";

    fn check(text: &str, expected: Option<&str>) {
        let found = broken(text, &Heuristics::default());
        assert_eq!(found.map(|(rule, _)| rule), expected, "{found:?}: {text}");
    }

    #[test]
    fn rules_name_themselves() {
        check(PROSE, None);
        check("Too short.", Some("too-few-words"));
        check("", Some("too-few-words"));
        check(&"a b ".repeat(60), Some("word-length"));
        check(&PROSE.replace(' ', " # "), Some("word-length"));
        check(&"number 12345 98765 ".repeat(30), Some("few-letters"));
        check(&PROSE.replace(". ", "... # # # # # # # # "), Some("symbols"));
        check(
            &PROSE
                .replace("the", "der")
                .replace("The", "Der")
                .replace("to", "zu")
                .replace("that", "das")
                .replace("of", "von")
                .replace("and", "und")
                .replace("have", "hat")
                .replace("with", "mit"),
            Some("stop-words"),
        );
        check(&format!("{PROSE}\n").repeat(3), Some("repeated-lines"));
        check(&format!("{PROSE} {PROSE}"), Some("repeated-5-grams"));
        check(&format!("{PROSE} Lorem Ipsum dolor."), Some("lorem-ipsum"));
        check(&format!("{PROSE} {}", "buy it now ".repeat(30)), Some("top-2-gram"));
    }

    #[test]
    fn lines_go_where_it_is_asked_for() {
        let rules = Heuristics {
            drop_unfinished_lines: true,
            drop_lines_with: vec!["JavaScript".into()],
            ..Heuristics::default()
        };
        let text = "A sentence.\nMenu\nPlease enable javascript.\n\nEnd!";
        assert_eq!(lines(text, &rules), [(12..17, "unfinished-line"), (17..43, "line-with-word")]);
        assert!(lines(text, &Heuristics::default()).is_empty());
    }
}
