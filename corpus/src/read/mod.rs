//! From files to documents.
//!
//! Sources are cut into *units*: a range of a plain file, several small files, or a whole compressed file. Each is a task and writes pieces.
//! A unit that was interrupted goes on behind its last piece. Where something is within a file is said by the byte at which it begins, after
//! decompression, so the cuts show nowhere.

pub mod files;
pub mod html;
pub mod input;
pub mod json;
pub mod parquet;
pub mod repository;
pub mod stream;
pub mod tar;
pub mod unit;
pub mod warc;

use serde::{Deserialize, Serialize};

/// A record that is no document. They are kept aside with their reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRecord {
    pub source: String,
    pub file: String,
    /// The byte at which the record begins, after decompression.
    pub position: u64,
    pub reason: String,
    /// How the record begins, as far as it is text.
    pub excerpt: String,
}

/// What a unit found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub num_docs: u64,
    pub bytes: u64,
    pub num_bad: u64,
    /// Records of archives of other types; of repositories, files that are passed over.
    pub num_other: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.num_docs += other.num_docs;
        self.bytes += other.bytes;
        self.num_bad += other.num_bad;
        self.num_other += other.num_other;
    }
}
