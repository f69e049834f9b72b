//! The fields of a request, taken one by one: what nobody takes is refused by its name, so that nothing is silently ignored.

use std::collections::BTreeMap;
use std::fmt::Display;

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::ApiError;

/// Characters of a value that is not what it should be, in messages.
const MAX_FOUND: usize = 80;

/// The object of a body; a field that is `null` is not there.
#[derive(Debug)]
pub struct Fields(BTreeMap<String, Box<RawValue>>);

impl Fields {
    pub fn of(body: &[u8]) -> Result<Fields, ApiError> {
        let found: Result<BTreeMap<String, Box<RawValue>>, _> = serde_json::from_slice(body);
        let wrong = |error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is no object of JSON: {error}"));
        let mut found = found.map_err(wrong)?;
        found.retain(|_, value| value.get() != "null");
        Ok(Fields(found))
    }

    /// As it was sent.
    pub fn take_raw(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.0.remove(name)
    }

    pub fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.0.remove(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| {
            let found: String = raw.get().chars().take(MAX_FOUND).collect();
            let rest = if found.len() < raw.get().len() { "..." } else { "" };
            ApiError::field(name, format!("`{name}` must be {expected}, found {found}{rest}"))
        })
    }

    /// A number from `least` to `most`, else `default`.
    pub fn number<T: DeserializeOwned + PartialOrd + Display + Copy>(
        &mut self,
        name: &str,
        range: (T, T),
        default: T,
    ) -> Result<T, ApiError> {
        self.number_if_there(name, range).map(|found| found.unwrap_or(default))
    }

    /// A number from `least` to `most`, if the field is there.
    pub fn number_if_there<T: DeserializeOwned + PartialOrd + Display + Copy>(
        &mut self,
        name: &str,
        (least, most): (T, T),
    ) -> Result<Option<T>, ApiError> {
        let expected = format!("a number from {least} to {most}");
        match self.take::<T>(name, &expected)? {
            Some(found) if !(found >= least && found <= most) => {
                Err(ApiError::field(name, format!("`{name}` must be {expected}, found {found}")))
            }
            found => Ok(found),
        }
    }

    /// A field that means nothing with any of these values, the only ones that are taken.
    pub fn only(&mut self, name: &str, values: &[Value]) -> Result<(), ApiError> {
        let Some(found) = self.take::<Value>(name, "JSON")? else { return Ok(()) };
        let is_same = |value: &Value| *value == found || value.as_f64().is_some_and(|v| found.as_f64() == Some(v));
        if values.iter().any(is_same) {
            return Ok(());
        }
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        let message =
            format!("`{name}` is not supported, but for {}, which means that it is not there", values.join(" or "));
        Err(ApiError::field(name, message))
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), ApiError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError {
                code: Some("unsupported_parameter"),
                ..ApiError::field(&name, format!("the field `{name}` is not supported; leave it out"))
            }),
        }
    }
}
