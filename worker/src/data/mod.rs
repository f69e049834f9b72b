//! Text, as tokens, as samples.
//!
//! ```text
//!   fetch    what lies in an object store, in the cache, once a host                 -> files
//!   source   a text file, or a folder of them in the order of their relative paths    -> one stream of bytes
//!   tokens   the stream as a token file in the cache, made once a host, mapped        -> TokenFile
//!   Dataset  the token file cut into a train and a validation part, and into samples  -> inputs and targets by id
//! ```
//!
//! Invariants:
//!
//! - The tokens depend on the relative paths and the contents of the files alone: two hosts with the same files get the
//!   same digest.
//! - No sample of the train part has a token of the validation part.
//!
//! - A token file is used only after this process has found the digest of its tokens right.
//! - What of a source gives no text is told, by reason (T-12).
//!
//! Deliberately absent: which sample comes when (`toroid_torus::cursor`); a tokenizer: a byte is a token, so any
//! vocabulary of at least 256 will do.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

mod dataset;
mod fetch;
mod map;
mod source;
mod tokens;

#[cfg(test)]
mod tests;

pub use dataset::Dataset;
pub use fetch::{Local, fetch};
pub(crate) use map::map_file;
pub use source::{LeftOut, Reason};
pub use tokens::{Attend, TokenFile};

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(
        "cannot read the text in {}: {cause}; data.path names a text file or a folder of them, on every worker's host",
        .path.display()
    )]
    Source { path: PathBuf, cause: io::Error },
    #[error(
        "cannot read {}: {cause}; make it readable for the worker, or leave it out by data.extensions",
        .path.display()
    )]
    Read { path: PathBuf, cause: io::Error },
    #[error(
        "{} changed while it was read: {found} bytes, expected {expected}; start again when nobody writes to it",
        .path.display()
    )]
    Changed { path: PathBuf, expected: u64, found: u64 },
    #[error("there is no text in {}: {what}", .path.display())]
    NoText { path: PathBuf, what: String },
    #[error(
        "data.path is one file, {}, and data.extensions takes only files that end with .{extensions}; leave \
         data.extensions out, or name a folder",
        .path.display()
    )]
    Ending { path: PathBuf, extensions: String },
    #[error("data.path cannot be fetched: {0}")]
    Fetch(toroid_storage::CacheError),
    #[error("nobody needs the text any more: the epoch that it was prepared for is over")]
    Over,
    #[error(
        "too little text for {part}: {found} tokens in {source_summary}, expected at least {needed} (model.seq + 1); \
         give more text, {hint}"
    )]
    TooLittle { part: &'static str, needed: u64, found: u64, source_summary: String, hint: &'static str },
    #[error(
        "cannot make and lock {}: {cause}; give the worker a cache folder that it may write to, on a file system with \
         locks",
        .path.display()
    )]
    Lock { path: PathBuf, cause: io::Error },
    #[error(
        "cannot write {} (about {bytes} bytes): {cause}; free that much space or give the worker another cache folder",
        .path.display()
    )]
    Cache { path: PathBuf, bytes: u64, cause: io::Error },
}

/// The sources of the crates that cargo has fetched on this machine, a text that every Rust developer has; `None` where
/// there are none.
pub fn cargo_registry_sources() -> Option<PathBuf> {
    registry_sources(std::env::var_os("CARGO_HOME"), std::env::var_os("HOME"))
}

fn registry_sources(cargo_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let set = |value: Option<OsString>| value.filter(|v| !v.is_empty()).map(PathBuf::from);
    let cargo = set(cargo_home).or_else(|| set(home).map(|home| home.join(".cargo")))?;
    Some(cargo.join("registry").join("src")).filter(|folder| folder.is_dir())
}
