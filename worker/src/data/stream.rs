//! The tokens of a source as one stream, wherever they lie.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use toroid_tokens::{BYTES_TOKENIZER, Kind, read_tokens};

use super::DataError;
use super::compared::AsMapped;
use super::fetch::Local;
use super::source::LeftOut;
use crate::checkpoint::AtomicFile;

/// The tokens of a source, in files that are mapped into memory. What is not looked at takes none, and what was looked at may be given
/// back by the system at any time.
#[derive(Debug)]
pub struct Tokens {
    pub(super) files: Vec<Mapped>,
    pub(super) digest: [u8; 32],
    pub(super) kind: Kind,
    pub(super) tokenizer: [u8; 32],
    pub(super) vocabulary: u32,
    pub(super) summary: String,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) was_cached: bool,
    pub(super) is_of_token_files: bool,
    /// Kept as long as they are used; `None` until they are all there.
    pub(super) _local: Option<Local>,
}

/// The tokens of one file.
#[derive(Debug)]
pub(super) struct Mapped {
    pub map: Mmap,
    /// Where they lie in the file.
    pub bytes: Range<usize>,
    /// Bytes a token: 1, 2 or 4.
    pub width: u32,
    /// Which tokens of the stream they are.
    pub tokens: Range<u64>,
    /// Which documents, of a file that has such.
    pub documents: Range<u64>,
    pub path: PathBuf,
    pub as_mapped: AsMapped,
}

impl Tokens {
    pub(super) fn num_files(&self) -> usize {
        self.files.len()
    }

    /// Refuses one of the files if somebody has written to it since it was mapped: that shows in the tokens.
    pub(super) fn check_file(&self, number: usize) -> Result<(), DataError> {
        let Mapped { path, as_mapped, .. } = &self.files[number];
        if as_mapped.was_changed(path) { Err(DataError::WrittenTo { path: path.clone() }) } else { Ok(()) }
    }

    /// Names all tokens, and what they mean: the same digest, the same samples.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Text, dialogues or preferences.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// blake3 of the tokenizer's file; zeros where a token is a byte.
    pub fn tokenizer(&self) -> [u8; 32] {
        self.tokenizer
    }

    pub fn are_bytes(&self) -> bool {
        self.tokenizer == BYTES_TOKENIZER
    }

    /// `toroid data run` has made them, and not this machine of a text.
    pub fn is_of_token_files(&self) -> bool {
        self.is_of_token_files
    }

    /// Each token is below it.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.files.last().map_or(0, |file| file.tokens.end)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the tokens are made of, as in `4,213 files, 31.4 MB of .rs text under /data`.
    pub fn source_summary(&self) -> String {
        self.summary.clone()
    }

    /// They were there already: nothing had to be made of a text.
    pub fn was_cached(&self) -> bool {
        self.was_cached
    }

    /// What of the source gives no tokens, by reason.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The tokens from `at` on, which are there.
    pub fn read(&self, mut at: u64, mut out: &mut [u32]) {
        let mut file = self.files.partition_point(|file| file.tokens.end <= at);
        while !out.is_empty() {
            let Mapped { map, bytes, width, tokens, .. } = &self.files[file];
            let num = usize::try_from(tokens.end - at).map_or(out.len(), |left| left.min(out.len()));
            let (now, rest) = out.split_at_mut(num);
            read_tokens(&map[bytes.clone()], *width, at - tokens.start, now);
            (out, at, file) = (rest, at + num as u64, file + 1);
        }
    }

    /// Writes tokens that are bytes as a text file, which gives the same tokens. It appears whole.
    pub fn write_text(&self, to: &Path) -> Result<(), DataError> {
        assert!(self.are_bytes(), "only bytes are text");
        let cannot = |cause| DataError::Cache { path: to.into(), bytes: self.len(), cause };
        let mut file = AtomicFile::create_as(to, &to.with_extension("partial")).map_err(cannot)?;
        // A token that is a byte takes a byte in every file.
        self.files.iter().try_for_each(|mapped| file.write_all(&mapped.map[mapped.bytes.clone()])).map_err(cannot)?;
        file.commit(&[]).map_err(cannot)
    }
}
