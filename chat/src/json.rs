//! `tojson` as Python's `json.dumps` writes: `, ` and `: ` between, keys in their order, no character escaped that JSON allows.

use std::fmt::Write as _;

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

use crate::invalid;

/// As deep as templates may go.
const MAX_DEPTH: usize = 100;

/// Arguments of `json.dumps`.
struct Style {
    ensure_ascii: bool,
    /// `None`: all in one line.
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// `value | tojson(indent=None, separators=None, sort_keys=False, ensure_ascii=False)`
pub fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent.filter(|value| !value.is_none()) {
        None => None,
        Some(value) => Some(match (value.as_str(), value.as_usize()) {
            (Some(text), _) => text.to_string(),
            (None, Some(n)) if n <= 64 => " ".repeat(n),
            _ => return Err(invalid("indent of tojson must be a text, or a number up to 64")),
        }),
    };
    let separators: Option<(String, String)> = match kwargs.get::<Option<Value>>("separators")?.filter(|s| !s.is_none())
    {
        None => None,
        Some(pair) => {
            let part = |i: usize| pair.get_item(&Value::from(i)).map(|part| part.to_string());
            Some((part(0)?, part(1)?))
        }
    };
    let default = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or_else(|| (default.into(), ": ".into()));
    let style = Style {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item,
        key,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson goes {MAX_DEPTH} levels deep and no deeper")));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.all("{", "}", keys, depth, out, |key, out| {
                    self.text(&key_text(key)?, out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect();
                self.all("[", "]", items, depth, out, |item, out| self.write(item, depth + 1, out))?;
            }
            kind => return Err(invalid(format!("tojson takes no {kind}"))),
        }
        Ok(())
    }

    fn all(
        &self,
        open: &str,
        close: &str,
        items: Vec<Value>,
        depth: usize,
        out: &mut String,
        one: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push_str(open);
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            one(item, out)?;
        }
        if !items.is_empty() {
            line(depth, out);
        }
        out.push_str(close);
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // A String takes all that is written to it.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// As Python writes a key that is no text.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(invalid(format!("tojson takes no key that is a {kind}"))),
    }
}

/// Whole numbers as they are, others as Python's `repr`: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x),
        _ => value.to_string(),
    }
}

fn float(x: f64) -> String {
    if !x.is_finite() {
        let infinity = if x > 0.0 { "Infinity" } else { "-Infinity" };
        return if x.is_nan() { "NaN" } else { infinity }.into();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By Python's `repr`.
    #[test]
    fn numbers_are_written_as_python_does() {
        let found = [0.1, 1.0, -0.0, 1e16, 1.5e300, 1e-5, 1.25e-7, 123456789012345.6, 1e15, 0.0001].map(float);
        let expected = [
            "0.1",
            "1.0",
            "-0.0",
            "1e+16",
            "1.5e+300",
            "1e-05",
            "1.25e-07",
            "123456789012345.6",
            "1000000000000000.0",
            "0.0001",
        ];
        assert_eq!(found, expected);
    }
}
