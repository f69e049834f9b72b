//! The header: what a file says of itself.

use crate::bytes::{field, u32_at, u64_at};
use crate::error::TokensError;
use crate::kind::Kind;

pub const MAGIC: [u8; 8] = *b"TOROIDTK";
/// Text.
pub const VERSION: u32 = 3;
/// Dialogues and preferences.
pub const VERSION_TRAINED: u32 = 4;
/// Bytes of the header of version 3, the shortest.
pub const HEADER_BYTES: usize = 168;
/// Bytes of the header of version 4, the longest.
pub const HEADER_BYTES_MAX: usize = 232;
/// Its own digest is at its end.
const DIGEST_BYTES: usize = 32;
pub(crate) const END_BYTES: u64 = 8;
pub(crate) const MARGIN_BYTES: u64 = 4;
/// Bits of trained tokens are written in groups of so many bytes.
const TRAINED_BYTES: u64 = 8;

/// Bytes that a token of such a vocabulary takes.
pub fn width_of(vocabulary: u32) -> u32 {
    match vocabulary {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    }
}

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Bytes a token.
    pub width: u32,
    pub num_tokens: u64,
    pub num_documents: u64,
    /// Each token is below it.
    pub vocabulary: u32,
    pub tokenizer: [u8; 32],
    pub tokens_digest: [u8; 32],
    pub ends_digest: [u8; 32],
    /// Of the bits of trained tokens with what fills them up; zeros for text.
    pub trained_digest: [u8; 32],
    /// Of the margins; for dialogues that of no bytes, zeros for text.
    pub margins_digest: [u8; 32],
}

impl Header {
    /// Bytes that it takes: 168 for text, 232 for the others.
    pub fn num_bytes(&self) -> usize {
        if self.kind == Kind::Text { HEADER_BYTES } else { HEADER_BYTES_MAX }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let version = if self.kind == Kind::Text { VERSION } else { VERSION_TRAINED };
        let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX);
        bytes.extend(MAGIC);
        bytes.extend(version.to_le_bytes());
        bytes.extend(self.width.to_le_bytes());
        bytes.extend(self.num_tokens.to_le_bytes());
        bytes.extend(self.num_documents.to_le_bytes());
        bytes.extend(self.vocabulary.to_le_bytes());
        bytes.extend(self.kind.number().to_le_bytes());
        bytes.extend(self.tokenizer);
        bytes.extend(self.tokens_digest);
        bytes.extend(self.ends_digest);
        if self.kind != Kind::Text {
            bytes.extend(self.trained_digest);
            bytes.extend(self.margins_digest);
        }
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// The header of a file that begins with these bytes; [`HEADER_BYTES_MAX`] of them are enough.
    pub fn parse(bytes: &[u8]) -> Result<Header, TokensError> {
        let short = |expected| TokensError::Short { found: bytes.len(), expected };
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(short(HEADER_BYTES))?;
        if head[..8] != MAGIC {
            return Err(TokensError::Magic);
        }
        let num_bytes = match u32_at(head, 8) {
            VERSION => HEADER_BYTES,
            VERSION_TRAINED => HEADER_BYTES_MAX,
            found => return Err(TokensError::Version { found }),
        };
        let head = bytes.get(..num_bytes).ok_or(short(num_bytes))?;
        let (signed, digest) = head.split_at(num_bytes - DIGEST_BYTES);
        if blake3::hash(signed).as_bytes()[..] != *digest {
            return Err(TokensError::HeaderDigest);
        }
        let (kind, [trained_digest, margins_digest]) = match num_bytes {
            HEADER_BYTES => (Kind::Text, [[0; 32]; 2]),
            _ => {
                let found = u32_at(head, 36);
                let kind = Kind::of_version_4(found).ok_or(TokensError::UnknownKind { found })?;
                (kind, [field(head, 136), field(head, 168)])
            }
        };
        let header = Header {
            kind,
            width: u32_at(head, 12),
            num_tokens: u64_at(head, 16),
            num_documents: u64_at(head, 24),
            vocabulary: u32_at(head, 32),
            tokenizer: field(head, 40),
            tokens_digest: field(head, 72),
            ends_digest: field(head, 104),
            trained_digest,
            margins_digest,
        };
        header.check().map(|()| header)
    }

    fn check(&self) -> Result<(), TokensError> {
        let Header { width, vocabulary, num_documents, .. } = *self;
        if !matches!(width, 1 | 2 | 4) {
            return Err(TokensError::Width { found: width });
        }
        if vocabulary == 0 || width_of(vocabulary) > width {
            return Err(TokensError::Vocabulary { vocabulary, width });
        }
        if self.kind == Kind::Preferences && !num_documents.is_multiple_of(2) {
            return Err(TokensError::Odd { documents: num_documents });
        }
        Ok(())
    }

    /// An error that says what to do with it, if it is of another kind.
    pub fn expect(&self, expected: Kind) -> Result<(), TokensError> {
        if self.kind == expected { Ok(()) } else { Err(TokensError::Kind { found: self.kind, expected }) }
    }

    /// Bytes between the tokens and the ends.
    pub fn padding(&self) -> u64 {
        (END_BYTES - self.num_tokens.wrapping_mul(u64::from(self.width)) % END_BYTES) % END_BYTES
    }

    /// Bytes of the bits of trained tokens, with what fills them up; none for text.
    pub fn trained_bytes(&self) -> u64 {
        if self.kind == Kind::Text { 0 } else { self.num_tokens.div_ceil(8 * TRAINED_BYTES) * TRAINED_BYTES }
    }

    /// Pairs of preferences; none of other kinds.
    pub fn num_pairs(&self) -> u64 {
        if self.kind == Kind::Preferences { self.num_documents / 2 } else { 0 }
    }

    /// Bytes of the whole file; none if they are more than can be counted.
    pub fn file_bytes(&self) -> Option<u64> {
        let tokens = self.num_tokens.checked_mul(u64::from(self.width))?.checked_add(self.padding())?;
        let ends = self.num_documents.checked_mul(END_BYTES)?;
        let beside = self.trained_bytes().checked_add(self.num_pairs().checked_mul(MARGIN_BYTES)?)?;
        tokens.checked_add(ends)?.checked_add(beside)?.checked_add(self.num_bytes() as u64)
    }
}
