//! Files of source repositories: their language, their licence, and what others have made or written.

use std::path::Path;

use crate::doc::char_boundary;
use crate::error::{Error, Result};
use crate::read::files::{self, Listed};
use crate::read::input;
use crate::read::stream::Stream;
use crate::read::tar::{self, Member};

/// Git takes a file for binary that has a zero in so many bytes.
const BINARY_BYTES: usize = 8000;
/// A licence is stated at the beginning.
const HEADER_BYTES: usize = 4 << 10;
const MAX_ATTRIBUTES_BYTES: u64 = 1 << 20;
/// Of one repository; what is stated behind them is not looked at.
const MAX_RULES: usize = 10_000;
pub const ATTRIBUTES: &str = ".gitattributes";

pub fn is_binary(bytes: &[u8]) -> bool {
    memchr::memchr(0, &bytes[..bytes.len().min(BINARY_BYTES)]).is_some()
}

/// By the name of the file, or its first line as in `#!/usr/bin/env python3`; empty for prose.
pub fn language(name: &str, text: &str) -> &'static str {
    match files::language(name) {
        "" => text.strip_prefix("#!").map_or("", |rest| interpreter(rest.lines().next().unwrap_or(""))),
        language => language,
    }
}

fn interpreter(line: &str) -> &'static str {
    const LANGUAGES: [(&str, &[&str]); 14] = [
        ("shell", &["sh", "bash", "zsh", "dash", "ksh", "fish"]),
        ("python", &["python", "pypy"]),
        ("perl", &["perl"]),
        ("ruby", &["ruby"]),
        ("javascript", &["node", "nodejs"]),
        ("typescript", &["deno", "ts-node"]),
        ("php", &["php"]),
        ("lua", &["lua", "luajit"]),
        ("r", &["Rscript"]),
        ("julia", &["julia"]),
        ("haskell", &["runghc", "runhaskell"]),
        ("scala", &["scala"]),
        ("ocaml", &["ocaml"]),
        ("awk", &["awk", "gawk", "mawk"]),
    ];
    let base = |word: &str| word.rsplit('/').next().unwrap_or("").to_owned();
    let mut words = line.split_whitespace();
    let mut name = words.next().map_or_else(String::new, base);
    if name == "env" {
        name = words.find(|word| !word.starts_with('-') && !word.contains('=')).map_or_else(String::new, base);
    }
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    LANGUAGES.iter().find(|(_, names)| names.contains(&name)).map_or("", |(language, _)| language)
}

/// The licence that a file states at its beginning, as an SPDX expression; empty if it states none that is known.
pub fn license(text: &str) -> String {
    let start = &text[..char_boundary(text, HEADER_BYTES)];
    const TAG: &str = "SPDX-License-Identifier:";
    if let Some(at) = start.find(TAG) {
        let line = start[at + TAG.len()..].lines().next().unwrap_or("");
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-.+() :".contains(c);
        let end = line.find(|c| !is_part(c)).unwrap_or(line.len());
        let expression = line[..end].trim().trim_end_matches(['-', ' ']);
        if !expression.is_empty() {
            return expression.split_whitespace().collect::<Vec<_>>().join(" ");
        }
    }
    // Without the signs of comments and sentences.
    let words = start.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    let words = words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect::<Vec<_>>().join(" ");
    let has = |phrase: &str| words.contains(phrase);
    let later = if has("any later version") { "or-later" } else { "only" };
    let gnu = |name: &str| {
        let version =
            ["3", "2.1", "2"].into_iter().find(|v| has(&format!("version {v} ")) || has(&format!("license v{v} ")));
        version.map(|v| format!("{name}-{}-{later}", if v.contains('.') { v.to_owned() } else { format!("{v}.0") }))
    };
    let found = if has("licensed under the apache license version 2.0") {
        Some("Apache-2.0".to_owned())
    } else if has("permission is hereby granted free of charge to any person obtaining a copy") {
        Some("MIT".to_owned())
    } else if has("gnu affero general public license") {
        gnu("AGPL")
    } else if has("gnu lesser general public license") || has("gnu library general public license") {
        gnu("LGPL")
    } else if has("gnu general public license") {
        gnu("GPL")
    } else if has("mozilla public license v 2.0") || has("mozilla public license version 2.0") {
        Some("MPL-2.0".to_owned())
    } else if has("redistribution and use in source and binary forms") {
        Some(if has("neither the name") { "BSD-3-Clause" } else { "BSD-2-Clause" }.to_owned())
    } else if has("boost software license version 1.0") {
        Some("BSL-1.0".to_owned())
    } else if has("this is free and unencumbered software released into the public domain") {
        Some("Unlicense".to_owned())
    } else {
        None
    };
    found.unwrap_or_default()
}

/// What `.gitattributes` say of one path: made by a program, or written by others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    pub is_generated: bool,
    pub is_vendored: bool,
}

/// Rules of the `.gitattributes` of a repository, those of outer folders first.
#[derive(Debug, Default)]
pub struct Attributes {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Where it is stated, with a slash at the end; empty at the top.
    folder: String,
    /// Between slashes; one alone is compared with the file's own name.
    parts: Vec<String>,
    generated: Option<bool>,
    vendored: Option<bool>,
}

impl Attributes {
    /// Those that hold for a file of a folder: from the top of the source down to it.
    pub fn of_file(path: &Path, relative: &str) -> Result<Attributes> {
        if input::url(path).is_some() {
            return Err(Error::Config(format!(
                "{}: `.gitattributes` are not looked for in stores; put the files of a repository in an archive of tar, or set \
                 skip_generated = false and skip_vendored = false",
                path.display()
            )));
        }
        let depth = relative.matches('/').count();
        let mut found = Attributes::default();
        let folders: Vec<&Path> = path.ancestors().skip(1).take(depth + 1).collect();
        for (n, folder) in folders.into_iter().rev().enumerate() {
            let prefix: String = relative.split_inclusive('/').take(n).collect();
            let file = folder.join(ATTRIBUTES);
            let is_small = std::fs::metadata(&file).is_ok_and(|m| m.is_file() && m.len() <= MAX_ATTRIBUTES_BYTES);
            if let Some(text) = std::fs::read(&file).ok().filter(|_| is_small) {
                found.add(&prefix, &text);
            }
        }
        Ok(found)
    }

    /// Those of an archive, wherever they stand in it. What is wrong with it says who reads it for its files.
    pub fn of_archive(file: &Listed, room_bytes: u64) -> Result<Attributes> {
        let (path, mut stream) = (&file.path, Stream::open(file, 0, room_bytes)?);
        let (mut found, mut text) = (Attributes::default(), Vec::new());
        loop {
            let (name, size) = match tar::next(&mut stream, path)? {
                Ok(Member::File { name, size }) => (name, size),
                Ok(Member::Other { size }) => (String::new(), size),
                Ok(Member::End) | Err(_) => return Ok(found),
            };
            let mut rest = size.saturating_add(tar::padding(size));
            let folder = name.strip_suffix(ATTRIBUTES).filter(|folder| folder.is_empty() || folder.ends_with('/'));
            if let Some(folder) = folder.filter(|_| size <= MAX_ATTRIBUTES_BYTES) {
                match stream.exact(path, &mut text, size)? {
                    Ok(num) => rest = rest.saturating_sub(num),
                    Err(_) => return Ok(found),
                }
                found.add(folder, &text);
            }
            if stream.skip(path, rest)?.is_err() {
                return Ok(found);
            }
        }
    }

    /// Reads one file of them. `folder` is where it lies, with a slash at the end.
    pub fn add(&mut self, folder: &str, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines().map(str::trim) {
            let quoted = line.strip_prefix('"').and_then(|rest| rest.split_once('"'));
            let Some((pattern, marks)) = quoted.or_else(|| line.split_once(char::is_whitespace)) else { continue };
            let is_rule = !pattern.is_empty() && !pattern.starts_with(['#', '[', '!']);
            let mark = |name: &str| {
                marks.split_whitespace().rev().find_map(|mark| {
                    let (value, mark) = match mark.strip_prefix(['-', '!']) {
                        Some(mark) => (false, mark),
                        None => (!mark.ends_with("=false"), mark),
                    };
                    (mark.split('=').next() == Some(name)).then_some(value)
                })
            };
            let (generated, vendored) = (mark("linguist-generated"), mark("linguist-vendored"));
            if !is_rule || generated.is_none() && vendored.is_none() || self.rules.len() >= MAX_RULES {
                continue;
            }
            // A slash at the beginning, or within, ties the pattern to the folder.
            let mut parts: Vec<String> = pattern.trim_start_matches('/').split('/').map(str::to_owned).collect();
            if parts.len() == 1 && pattern.starts_with('/') {
                parts.insert(0, String::new());
            }
            self.rules.push(Rule { folder: folder.to_owned(), parts, generated, vendored });
        }
        // Of rules of one folder the later wins, and those of inner folders win over all.
        self.rules.sort_by_key(|rule| rule.folder.matches('/').count());
    }

    pub fn marks(&self, path: &str) -> Marks {
        let mut marks = Marks::default();
        for rule in &self.rules {
            let Some(below) = path.strip_prefix(rule.folder.as_str()) else { continue };
            if rule.matches(below) {
                marks.is_generated = rule.generated.unwrap_or(marks.is_generated);
                marks.is_vendored = rule.vendored.unwrap_or(marks.is_vendored);
            }
        }
        marks
    }
}

impl Rule {
    fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        match &self.parts[..] {
            [name] => path.last().is_some_and(|own| is_like(name, own)),
            parts => {
                let parts = if parts[0].is_empty() { &parts[1..] } else { parts };
                wild(parts, &path, |part| part == "**", |part, name| is_like(part, name))
            }
        }
    }
}

/// One part of a path against a pattern with `*`, `?` and `[a-z]`.
fn is_like(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    wild(&tokens(pattern), &name, |token| matches!(token, Token::Any), Token::is)
}

enum Token {
    Any,
    One,
    Is(char),
    /// Ranges, and whether the character must be outside of them.
    In(Vec<(char, char)>, bool),
}

impl Token {
    fn is(&self, c: &char) -> bool {
        match self {
            Token::Any | Token::One => true,
            Token::Is(own) => own == c,
            Token::In(ranges, is_outside) => ranges.iter().any(|(low, high)| (low..=high).contains(&c)) != *is_outside,
        }
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let (mut found, mut rest) = (Vec::new(), pattern);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let class = if c == '[' { rest.char_indices().skip(1).find(|(_, c)| *c == ']') } else { None };
        found.push(match (c, class) {
            ('*', _) => Token::Any,
            ('?', _) => Token::One,
            ('[', Some((end, _))) => {
                let inside = &rest[..end];
                rest = &rest[end + 1..];
                let outside = inside.strip_prefix(['!', '^']);
                let chars: Vec<char> = outside.unwrap_or(inside).chars().collect();
                let (mut ranges, mut at) = (Vec::new(), 0);
                while at < chars.len() {
                    let is_range = chars.get(at + 1) == Some(&'-') && at + 2 < chars.len();
                    ranges.push((chars[at], chars[if is_range { at + 2 } else { at }]));
                    at += if is_range { 3 } else { 1 };
                }
                Token::In(ranges, outside.is_some())
            }
            ('\\', _) => match rest.chars().next() {
                Some(next) => {
                    rest = &rest[next.len_utf8()..];
                    Token::Is(next)
                }
                None => Token::Is(c),
            },
            _ => Token::Is(c),
        });
    }
    found
}

/// Whether a pattern covers all of a text. Only the last star is ever tried again, so this takes their product at most.
fn wild<P, T>(pattern: &[P], text: &[T], is_star: impl Fn(&P) -> bool, is_one: impl Fn(&P, &T) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if p < pattern.len() && is_star(&pattern[p]) {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && is_one(&pattern[p], &text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(is_star)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_say_what_others_made_or_wrote() {
        let mut attributes = Attributes::default();
        attributes.add("sub/", b"kept.pb.rs -linguist-generated\n*.x linguist-vendored\n");
        attributes.add(
            "",
            b"# comment\n*.pb.rs linguist-generated=true\nthird_party/** linguist-vendored\n/top.c linguist-generated\n\
              docs/*.md linguist-generated\n\"a b.txt\" text linguist-vendored\nlib[0-9].[!h] linguist-vendored\n*.x -linguist-vendored\n",
        );
        let check = |path: &str, is_generated: bool, is_vendored: bool| {
            assert_eq!(attributes.marks(path), Marks { is_generated, is_vendored }, "{path}");
        };
        check("a.rs", false, false);
        check("deep/er/a.pb.rs", true, false);
        check("sub/kept.pb.rs", false, false);
        check("sub/other.pb.rs", true, false);
        check("third_party/a/b.c", false, true);
        check("not/third_party/a/b.c", false, false);
        check("top.c", true, false);
        check("sub/top.c", false, false);
        check("docs/a.md", true, false);
        check("docs/deep/a.md", false, false);
        check("a b.txt", false, true);
        check("lib7.c", false, true);
        check("lib7.h", false, false);
        check("lib.c", false, false);
        check("sub/a.x", false, true);
        check("a.x", false, false);
    }

    #[test]
    fn stars_take_no_exponential_time() {
        let pattern = "*a".repeat(400) + "b";
        assert!(!is_like(&pattern, &"a".repeat(4_000)));
    }

    #[test]
    fn languages_are_known_by_name_or_first_line() {
        let check =
            |name: &str, text: &str, expected: &str| assert_eq!(language(name, text), expected, "{name} {text}");
        check("a.rs", "#!/bin/sh", "rust");
        check("run", "#!/bin/sh -e\n", "shell");
        check("run", "#! /usr/bin/env -S PATH=/x python3.11 -u\n", "python");
        check("run", "#!/usr/bin/env", "");
        check("run", "#!", "");
        check("README", "no script", "");
        check("dir/Makefile", "", "make");
    }

    #[test]
    fn licences_are_those_that_files_state() {
        let check = |text: &str, expected: &str| assert_eq!(license(text), expected, "{text}");
        check("// SPDX-License-Identifier: Apache-2.0 OR MIT\nfn", "Apache-2.0 OR MIT");
        check("/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */", "GPL-2.0 WITH Linux-syscall-note");
        check("<!-- SPDX-License-Identifier: MIT-->", "MIT");
        check(" * Licensed under the Apache License,\n * Version 2.0 (the \"License\");", "Apache-2.0");
        check(
            "# under the terms of the GNU General Public License as published by\n# the Free Software Foundation; either version 2 of the License, or\n# (at your option) any later version.",
            "GPL-2.0-or-later",
        );
        check("GNU Lesser General Public License, version 2.1 as", "LGPL-2.1-only");
        check("Redistribution and use in source and binary forms, with ... * Neither the name of", "BSD-3-Clause");
        check("Permission is hereby granted, free of charge, to any person\n// obtaining a copy", "MIT");
        check("the mail says licence", "");
        check(&("x".repeat(5_000) + "SPDX-License-Identifier: MIT"), "");
    }
}
