//! Labels of workers, and what a job asks of them: names with values, as in `gpu = "h100"`.
//!
//! Some are a worker's own ([`RESERVED`]): they say where it is and what it computes on, and nobody gives them to it.

use std::collections::BTreeMap;

/// By name.
pub type Labels = BTreeMap<String, String>;

/// Labels of a worker, or that a job asks for, at most.
pub const NUM_LABELS_MAX: usize = 32;
/// Of a name or a value.
pub const LABEL_BYTES_MAX: usize = 63;
/// What a worker is known by anyway: `device` is `cpu` or `cuda`, the others are what it was started with.
pub const RESERVED: [&str; 4] = ["device", "host", "rack", "zone"];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error("there are {found} labels; at most {NUM_LABELS_MAX} are possible")]
    Number { found: usize },
    #[error(
        "the {what} `{found}` is not possible; expected 1 to {LABEL_BYTES_MAX} letters, digits and `-`, `_`, `.`, `/`"
    )]
    Text { what: &'static str, found: String },
    #[error("`{name}` is known of every worker and cannot be given as a label; leave it out")]
    Reserved { name: String },
    #[error("`{found}` is no label; expected NAME=VALUE, as in gpu=h100")]
    Form { found: String },
}

/// Labels that a job may ask for.
pub fn check(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > NUM_LABELS_MAX {
        return Err(LabelError::Number { found: labels.len() });
    }
    labels.iter().try_for_each(|(name, value)| check_text("name", name).and_then(|()| check_text("value", value)))
}

/// Labels that a worker may be given.
pub fn check_own(labels: &Labels) -> Result<(), LabelError> {
    check(labels)?;
    match labels.keys().find(|name| RESERVED.contains(&name.as_str())) {
        Some(name) => Err(LabelError::Reserved { name: name.clone() }),
        None => Ok(()),
    }
}

/// Reads `gpu=h100`.
pub fn parse(text: &str) -> Result<(String, String), LabelError> {
    let (name, value) = text.split_once('=').ok_or_else(|| LabelError::Form { found: shortened(text) })?;
    check_text("name", name)?;
    check_text("value", value)?;
    Ok((name.into(), value.into()))
}

/// `gpu = h100, zone = a`.
pub fn in_words(labels: &Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

fn check_text(what: &'static str, text: &str) -> Result<(), LabelError> {
    let is_possible = |c: u8| c.is_ascii_alphanumeric() || b"-_./".contains(&c);
    let fits = (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_possible);
    if fits { Ok(()) } else { Err(LabelError::Text { what, found: shortened(text) }) }
}

/// An error names no text of any length.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(LABEL_BYTES_MAX).collect();
    if short.len() < text.len() {
        short += "...";
    }
    short
}
