//! Text and token files, as tokens, as samples.
//!
//! ```text
//!   fetch    what lies in an object store, in the cache, once a host                 -> files
//!   source   a text file, or a folder of them in the order of their relative paths   -> one stream of bytes
//!   text     the stream as a token file in the cache, made once a host, mapped       -> Tokens
//!   files    token files that `toroid data run` has written, mapped                  -> Tokens
//!   Dialogues  documents, each or several of them a sample, with what of them is trained
//!   Dataset  the tokens cut into a train and a validation part, and into samples     -> inputs and targets by id
//!   Sources  the data sets of a job, with the order of its samples over all of them
//! ```
//!
//! Invariants:
//!
//! - The tokens depend on the relative paths and the contents of the files alone: two hosts with the same files get the
//!   same digest.
//! - No sample of the train part has a token of the validation part.
//!
//! - A file is used only after this process has found the digest of its tokens right, and that none is outside its vocabulary.
//! - All tokens of a job are of one tokenizer, and the model has its vocabulary.
//! - What of a source gives no tokens is told, by reason (T-12).
//!
//! Deliberately absent: which sample comes when (`toroid_torus::mixture`); a tokenizer: a byte of text is a token, and token files have
//! numbers.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

mod attend;
mod batch;
mod compared;
mod dataset;
mod dialogues;
mod fetch;
mod files;
mod map;
mod prepare;
mod source;
mod sources;
mod stream;
mod text;

#[cfg(test)]
mod tests;

use toroid_tokens::{Kind, TokensError};
use toroid_torus::job::JobKind;

pub use attend::Attend;
pub use batch::Batch;
pub use dataset::Dataset;
pub(crate) use fetch::{Local, fetch};
pub(crate) use map::map_file;
pub use prepare::{Size, prepare, size, size_of_token_files};
pub use source::{LeftOut, Reason};
pub use sources::Sources;
pub use stream::Tokens;

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(
        "cannot read the text in {}: {cause}; data.path names a text file or a folder of them, or token files, on every worker's host",
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
    #[error(
        "{} was written to while the job reads it, and the job's samples with it; put the former file there, and begin again",
        .path.display()
    )]
    WrittenTo { path: PathBuf },
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
    #[error(
        "cannot use the token file {}: {cause}; have the command that made it (`toroid data run`, `toroid data chat`) write it again, or take it out of its folder",
        .path.display()
    )]
    TokenFile { path: PathBuf, cause: TokensError },
    #[error(
        "{what} has tokens of {found}, and {other} of {expected}; a job trains on tokens of one tokenizer: make them with the same one"
    )]
    Tokenizers { what: String, found: String, other: String, expected: String },
    #[error(
        "the tokens of {source_summary} are below {vocabulary}, and model.vocab is {vocab}; set model.vocab to {vocabulary} or more"
    )]
    Vocabulary { source_summary: String, vocabulary: u32, vocab: usize },
    #[error("{} has {what}; bring them together in fewer, larger ones", .path.display())]
    TooMany { path: PathBuf, what: String },
    #[error(
        "max_bytes = {max_bytes} is for text, and {} has token files, which are taken whole; leave it out, and choose files by a folder of their own",
        .path.display()
    )]
    NotForTokens { path: PathBuf, max_bytes: u64 },
    #[error(
        "the sources have {found} samples in all with their max_epochs, and the job takes {needed} ({steps} steps of {of_step}): {by_source}; \
         lower steps, or raise max_epochs"
    )]
    Exhausted { found: u64, needed: u64, steps: u64, of_step: u64, by_source: String },
    #[error(
        "kind = \"{}\" of the job trains on {expected}, and {source_summary} has {found}; {}",
        .kind.name(), from_where(.expected)
    )]
    Kind { kind: JobKind, expected: Kind, found: Kind, source_summary: String },
    #[error(
        "document {document} of {} has {found} tokens, and with model.seq = {seq} at most {most} fit in a sample; \
         raise model.seq, or make the file again with a lower --max-tokens",
        .path.display()
    )]
    TooLong { path: PathBuf, document: u64, found: u64, most: u64, seq: usize },
    #[error("too few for {part}: {source_summary} gives {found} samples in all; give more, or change data.validation")]
    TooFew { part: &'static str, found: u64, source_summary: String },
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

fn from_where(expected: &Kind) -> &'static str {
    match expected {
        Kind::Text => "give the kind that the data are for",
        Kind::Dialogues | Kind::Preferences => "`toroid data chat` makes such files",
    }
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
