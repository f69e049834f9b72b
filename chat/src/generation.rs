//! `{% generation %}`: what is within it is trained on.
//!
//! Jinja knows no such tag, and transformers adds it as a call with a body. So here it becomes one: `{% generation %}x{% endgeneration %}` is
//! `{% call F() %}x{% endcall %}`, and `F` puts a mark before and behind what its body renders to. Marks are characters that neither the
//! template nor any argument has; they are taken out at the end, and where they were is the answer.

use std::ops::Range;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};

use crate::Rendered;

/// The function that is called instead.
pub const FUNCTION: &str = "__generation__";
/// The variable that tells it the marks.
pub const MARKS: &str = "__generation_marks__";

/// Renders its body between two marks.
pub fn marked(state: &mut State<'_, '_>, kwargs: Kwargs) -> Result<Value, Error> {
    let body: Value = kwargs.get("caller")?;
    kwargs.assert_all_used()?;
    let marks = state.lookup(MARKS).unwrap_or_default();
    let [before, behind] = [0, 1].map(|i| marks.get_item(&Value::from(i)));
    Ok(Value::from(format!("{}{}{}", before?, body.call(state, &[])?, behind?)))
}

/// The template with calls instead of the tags, line by line as before. What is in comments, in strings and within `{% raw %}` stays.
pub fn as_calls(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|at| at + 2),
            Some(b'{') => end_of_code(tag, "}}"),
            Some(b'%') => end_of_code(tag, "%}"),
            _ => Some(1),
        };
        // What has no end is for the parser to complain of.
        let Some(end) = end else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        rest = after;
        match name_of(tag) {
            Some((name, "generation")) => replace(&mut out, tag, name, &format!("call {FUNCTION}()")),
            Some((name, "endgeneration")) => replace(&mut out, tag, name, "endcall"),
            Some((_, "raw")) => {
                let raw = end_of_raw(rest);
                out.push_str(tag);
                out.push_str(&rest[..raw]);
                rest = &rest[raw..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

fn replace(out: &mut String, tag: &str, name: Range<usize>, by: &str) {
    out.push_str(&tag[..name.start]);
    out.push_str(by);
    out.push_str(&tag[name.end..]);
}

/// Past `close`, which ends the code at the start of `tag`; strings are skipped.
fn end_of_code(tag: &str, close: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the name of a `{% name ... %}` is, and the name; nothing for others.
fn name_of(tag: &str) -> Option<(Range<usize>, &str)> {
    let inner = tag.strip_prefix("{%")?;
    let trimmed = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
    let start = tag.len() - trimmed.len();
    let len = trimmed.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(trimmed.len());
    Some((start..start + len, &trimmed[..len]))
}

/// Where the `{% endraw %}` begins that ends raw text.
fn end_of_raw(text: &str) -> usize {
    let is_end = |at: &usize| name_of(&text[*at..]).is_some_and(|(_, name)| name == "endraw");
    text.match_indices("{%").map(|(at, _)| at).find(is_end).unwrap_or(text.len())
}

/// Two characters that are nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Marks([char; 2]);

impl Marks {
    /// Of a plane of private use, which nobody writes: a few are looked at where somebody does.
    pub fn absent_from<'a>(template: &str, arguments: impl Iterator<Item = &'a Value>) -> Marks {
        let mut used = std::collections::BTreeSet::new();
        let is_private = |c: &char| *c >= '\u{f0000}';
        used.extend(template.chars().filter(is_private));
        for argument in arguments {
            private_characters(argument, &mut |c| {
                used.insert(c);
            });
        }
        let mut free = ('\u{f0000}'..='\u{ffffd}').filter(|c| !used.contains(c));
        let mut next = || free.next().unwrap_or('\u{10fffd}');
        Marks([next(), next()])
    }

    pub fn value(self) -> Value {
        Value::from(self.0.map(String::from).to_vec())
    }

    /// The text without marks, and what was between them.
    pub fn take_from(self, text: &str) -> Result<Rendered, String> {
        let [before, behind] = self.0;
        let mut out = String::with_capacity(text.len());
        let (mut trained, mut start): (Vec<Range<usize>>, _) = (Vec::new(), None);
        for piece in text.split_inclusive([before, behind]) {
            out.push_str(piece.trim_end_matches([before, behind]));
            let mark = piece.chars().next_back().filter(|c| self.0.contains(c));
            match (mark, start) {
                (None, _) => {}
                (Some(mark), None) if mark == before => start = Some(out.len()),
                (Some(mark), Some(from)) if mark == behind => {
                    trained.push(from..out.len());
                    start = None;
                }
                (Some(_), _) => return Err("a generation block is within another, or was cut by a filter".into()),
            }
        }
        match start {
            None => Ok(Rendered { text: out, trained }),
            Some(_) => Err("the end of a generation block was cut off by a filter".into()),
        }
    }
}

/// Shows `f` all characters of private use in the strings of a value.
fn private_characters(value: &Value, f: &mut impl FnMut(char)) {
    if let Some(text) = value.as_str() {
        return text.chars().filter(|c| *c >= '\u{f0000}').for_each(f);
    }
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && value.kind() != ValueKind::Seq {
        return;
    }
    let Ok(items) = value.try_iter() else { return };
    for item in items {
        if is_map {
            let inner = value.get_item(&item).unwrap_or_default();
            private_characters(&inner, f);
        }
        private_characters(&item, f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_calls_where_they_are_tags() {
        let check = |source: &str, expected: &str| assert_eq!(as_calls(source), expected);
        check(
            "a{%- generation -%}\n{{ x }}{%+ endgeneration %}b",
            "a{%- call __generation__() -%}\n{{ x }}{%+ endcall %}b",
        );
        check(
            "{% if \"%}{% generation %}\" == 'a\\'%}' %}{% endif %}",
            "{% if \"%}{% generation %}\" == 'a\\'%}' %}{% endif %}",
        );
        check("{# {% generation %} #}{{ '{% generation %}' }}", "{# {% generation %} #}{{ '{% generation %}' }}");
        let raw = "{% raw %}{% generation %}{% endraw %}";
        check(&format!("{raw}{{% generation %}}"), &format!("{raw}{{% call __generation__() %}}"));
        for same in [
            "",
            "{",
            "{{",
            "{% generation",
            "{# {% generation %}",
            "{ % generation %}",
            "{% generations %}",
            "{% raw %}",
        ] {
            check(same, same);
        }
    }
}
