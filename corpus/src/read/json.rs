//! Wanted fields of an object of JSON; all others are passed over without being kept.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Fields by their paths, as in `meta.url`.
#[derive(Debug, Clone)]
pub struct Fields {
    paths: Vec<Vec<String>>,
}

impl Fields {
    pub fn new(paths: &[&str]) -> Fields {
        Fields { paths: paths.iter().map(|path| path.split('.').map(str::to_owned).collect()).collect() }
    }

    /// The values of the fields: texts, or numbers as texts. In words why there are none.
    pub fn read(&self, line: &[u8]) -> Result<Vec<Option<String>>, String> {
        if std::str::from_utf8(line).is_err() {
            return Err("invalid UTF-8".into());
        }
        let mut values = vec![None; self.paths.len()];
        let wanted: Vec<(usize, &[String])> = self.paths.iter().map(Vec::as_slice).enumerate().collect();
        let mut input = serde_json::Deserializer::from_slice(line);
        Object { wanted, values: &mut values, is_top: true }
            .deserialize(&mut input)
            .and_then(|()| input.end())
            .map_err(|error| format!("broken JSON ({error})"))?;
        Ok(values)
    }
}

/// A value of which some fields are wanted, or the whole if a path is at its end.
struct Object<'a> {
    wanted: Vec<(usize, &'a [String])>,
    values: &'a mut Vec<Option<String>>,
    is_top: bool,
}

impl Object<'_> {
    fn set(self, value: String) {
        for (slot, path) in self.wanted {
            if path.is_empty() {
                self.values[slot] = Some(value.clone());
            }
        }
    }

    fn scalar<E: serde::de::Error>(self, value: String) -> Result<(), E> {
        if self.is_top {
            return Err(E::custom("the line is no object"));
        }
        self.set(value);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let below = self.wanted.iter().filter(|(_, path)| path.first().is_some_and(|first| *first == name));
            let wanted: Vec<(usize, &[String])> = below.map(|(slot, path)| (*slot, &path[1..])).collect();
            if wanted.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Object { wanted, values: self.values, is_top: false })?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if self.is_top {
            return Err(A::Error::custom("the line is no object"));
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.scalar(value.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<(), E> {
        self.scalar(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(value.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(value.to_string())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(value.to_string())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        if self.is_top { Err(E::custom("the line is no object")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_paths() {
        let fields = Fields::new(&["text", "meta.url", "id"]);
        let check = |line: &str, expected: [Option<&str>; 3]| {
            let found = fields.read(line.as_bytes()).expect(line);
            assert_eq!(found.iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{line}");
        };
        check(
            r#"{"text": "a\u00e9\n", "id": 7, "meta": {"url": "u", "x": [1, {}]}}"#,
            [Some("aé\n"), Some("u"), Some("7")],
        );
        check(r#"{"meta": "no object", "text": null}"#, [None, None, None]);
        check(r#"{"text": ["a"], "meta": {"text": "b"}}"#, [None, None, None]);
        check(r#"{"text": "first", "text": "last"}"#, [Some("last"), None, None]);
    }

    #[test]
    fn what_is_no_object_says_so() {
        let fields = Fields::new(&["text"]);
        let check = |line: &[u8], expected: &str| {
            let error = fields.read(line).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        };
        check(b"[1]", "the line is no object");
        check(b"\"text\"", "the line is no object");
        check(b"null", "the line is no object");
        check(b"{\"text\": \"a\"} more", "broken JSON (trailing characters");
        check(b"{\"text\": \"a", "broken JSON (EOF");
        check(b"{\"text\": \"\xff\"}", "invalid UTF-8");
        check("[".repeat(1 << 20).as_bytes(), "broken JSON");
    }
}
