//! Token files with the boundaries of documents: their layout, and what is checked before one is believed.
//!
//! ```text
//!   0    magic, 8 bytes: TOROIDTK
//!   8    version, u32: 3
//!   12   bytes a token, u32: 1, 2 or 4
//!   16   tokens, u64
//!   24   documents, u64
//!   32   size of the vocabulary, u32: each token is below it
//!   36   0, u32
//!   40   blake3 of the tokenizer's file, 32 bytes; zeros where a token is a byte of UTF-8
//!   72   blake3 of the tokens, 32 bytes
//!   104  blake3 of the ends, 32 bytes
//!   136  blake3 of all before, 32 bytes
//!   168  tokens, then zeros up to a multiple of 8
//!        ends, u64 a document: the number of tokens up to its end
//! ```
//!
//! All numbers are little-endian. Documents follow each other without separators and may be empty: the ends never fall, and the last one is
//! the number of tokens. The file ends behind the ends.
//!
//! Pure: bytes in, numbers out. Version 2, without documents, is made and read by training alone.

#![forbid(unsafe_code)]

use std::ops::Range;

use thiserror::Error;

pub const MAGIC: [u8; 8] = *b"TOROIDTK";
pub const VERSION: u32 = 3;
pub const HEADER_BYTES: usize = 168;
/// Of the header, all but its own digest.
const SIGNED_BYTES: usize = HEADER_BYTES - 32;
/// Names the tokenizer of which a token is a byte.
pub const BYTES_TOKENIZER: [u8; 32] = [0; 32];
/// Tokens of that tokenizer.
pub const BYTES_VOCABULARY: u32 = 256;
const END_BYTES: u64 = 8;
/// Tokens are looked at in pieces of this size, which holds whole tokens of each width.
const PIECE_BYTES: usize = 4 << 20;

/// Why bytes are no token file.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TokensError {
    #[error("it has {found} bytes, the header of a token file has {HEADER_BYTES}")]
    Short { found: usize },
    #[error("it does not begin with `TOROIDTK`")]
    Magic,
    #[error("it has version {found}, {VERSION} is read here")]
    Version { found: u32 },
    #[error("the digest of its header is another: it was changed or cut")]
    HeaderDigest,
    #[error("it has {found} bytes a token, 1, 2 and 4 are known")]
    Width { found: u32 },
    #[error("a vocabulary of {vocabulary} does not fit in {width} bytes a token, or is empty")]
    Vocabulary { vocabulary: u32, width: u32 },
    #[error("it has {found} bytes, its header says {expected}")]
    Length { found: u64, expected: u64 },
    #[error("the digest of its tokens is another: they were changed")]
    TokensDigest,
    #[error("the digest of its ends is another: they were changed")]
    EndsDigest,
    #[error("document {document} ends at token {end}, the one before it at {before}, and there are {tokens}")]
    Ends { document: u64, end: u64, before: u64, tokens: u64 },
    #[error("token {at} is {token}, the vocabulary has {vocabulary}")]
    Token { at: u64, token: u32, vocabulary: u32 },
}

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
    /// Bytes a token.
    pub width: u32,
    pub num_tokens: u64,
    pub num_documents: u64,
    /// Each token is below it.
    pub vocabulary: u32,
    pub tokenizer: [u8; 32],
    pub tokens_digest: [u8; 32],
    pub ends_digest: [u8; 32],
}

impl Header {
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&self.width.to_le_bytes());
        put(&self.num_tokens.to_le_bytes());
        put(&self.num_documents.to_le_bytes());
        put(&self.vocabulary.to_le_bytes());
        put(&[0; 4]);
        put(&self.tokenizer);
        put(&self.tokens_digest);
        put(&self.ends_digest);
        let digest = blake3::hash(&bytes[..SIGNED_BYTES]);
        bytes[SIGNED_BYTES..].copy_from_slice(digest.as_bytes());
        bytes
    }

    /// The header of a file that begins with these bytes.
    pub fn parse(bytes: &[u8]) -> Result<Header, TokensError> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(TokensError::Short { found: bytes.len() })?;
        if bytes[..8] != MAGIC {
            return Err(TokensError::Magic);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(TokensError::Version { found: version });
        }
        if blake3::hash(&bytes[..SIGNED_BYTES]).as_bytes()[..] != bytes[SIGNED_BYTES..] {
            return Err(TokensError::HeaderDigest);
        }
        let header = Header {
            width: u32_at(bytes, 12),
            num_tokens: u64_at(bytes, 16),
            num_documents: u64_at(bytes, 24),
            vocabulary: u32_at(bytes, 32),
            tokenizer: field(bytes, 40),
            tokens_digest: field(bytes, 72),
            ends_digest: field(bytes, 104),
        };
        let Header { width, vocabulary, .. } = header;
        if !matches!(width, 1 | 2 | 4) {
            return Err(TokensError::Width { found: width });
        }
        if vocabulary == 0 || width_of(vocabulary) > width {
            return Err(TokensError::Vocabulary { vocabulary, width });
        }
        Ok(header)
    }

    /// Bytes between the tokens and the ends.
    pub fn padding(&self) -> u64 {
        (END_BYTES - self.num_tokens.wrapping_mul(u64::from(self.width)) % END_BYTES) % END_BYTES
    }

    /// Bytes of the whole file; none if they are more than can be counted.
    pub fn file_bytes(&self) -> Option<u64> {
        let tokens = self.num_tokens.checked_mul(u64::from(self.width))?.checked_add(self.padding())?;
        tokens.checked_add(self.num_documents.checked_mul(END_BYTES)?)?.checked_add(HEADER_BYTES as u64)
    }
}

/// A whole file in memory, or mapped into it.
#[derive(Debug, Clone, Copy)]
pub struct TokenFile<'a> {
    pub header: Header,
    tokens: &'a [u8],
    ends: &'a [u8],
}

impl<'a> TokenFile<'a> {
    /// Checks the header and the length, and reads nothing else.
    pub fn new(bytes: &'a [u8]) -> Result<TokenFile<'a>, TokensError> {
        let header = Header::parse(bytes)?;
        let (found, expected) = (bytes.len() as u64, header.file_bytes().unwrap_or(u64::MAX));
        if found != expected {
            return Err(TokensError::Length { found, expected });
        }
        // The length is that of the slice, so all of it fits.
        let (tokens, rest) = bytes[HEADER_BYTES..].split_at((header.num_tokens * u64::from(header.width)) as usize);
        Ok(TokenFile { header, tokens, ends: &rest[header.padding() as usize..] })
    }

    /// Goes through all of it: the digests, that ends never fall, that no token is outside the vocabulary.
    pub fn check(&self) -> Result<(), TokensError> {
        self.check_telling(&mut |_| {})
    }

    /// The same; `advance` is told again and again how many bytes of tokens have been looked at.
    pub fn check_telling(&self, advance: &mut dyn FnMut(u64)) -> Result<(), TokensError> {
        let (mut hasher, mut done, mut outside) = (blake3::Hasher::new(), 0, None);
        for piece in self.tokens.chunks(PIECE_BYTES) {
            hasher.update(piece);
            outside =
                outside.or_else(|| self.first_outside(piece).map(|n| (done / self.header.width as usize + n) as u64));
            done += piece.len();
            advance(done as u64);
        }
        if *hasher.finalize().as_bytes() != self.header.tokens_digest {
            return Err(TokensError::TokensDigest);
        }
        if *blake3::hash(self.ends).as_bytes() != self.header.ends_digest {
            return Err(TokensError::EndsDigest);
        }
        let tokens = self.header.num_tokens;
        let mut before = 0;
        for document in 0..self.header.num_documents {
            let end = self.end(document);
            let is_last = document + 1 == self.header.num_documents;
            if end < before || end > tokens || is_last && end != tokens {
                return Err(TokensError::Ends { document, end, before, tokens });
            }
            before = end;
        }
        if self.header.num_documents == 0 && tokens > 0 {
            return Err(TokensError::Ends { document: 0, end: 0, before: 0, tokens });
        }
        let vocabulary = self.header.vocabulary;
        match outside {
            Some(at) => Err(TokensError::Token { at, token: self.token(at), vocabulary }),
            None => Ok(()),
        }
    }

    /// The first token of a piece that the vocabulary has not.
    fn first_outside(&self, piece: &[u8]) -> Option<usize> {
        let vocabulary = self.header.vocabulary;
        match self.header.width {
            1 => piece.iter().position(|token| u32::from(*token) >= vocabulary),
            2 => piece.chunks_exact(2).position(|token| u32::from(u16::from_le_bytes(field(token, 0))) >= vocabulary),
            _ => piece.chunks_exact(4).position(|token| u32_at(token, 0) >= vocabulary),
        }
    }

    fn end(&self, document: u64) -> u64 {
        u64_at(self.ends, document as usize * END_BYTES as usize)
    }

    /// The tokens of a document, by number.
    pub fn document(&self, n: u64) -> Range<u64> {
        assert!(n < self.header.num_documents, "there are {} documents, asked for {n}", self.header.num_documents);
        n.checked_sub(1).map_or(0, |before| self.end(before))..self.end(n)
    }

    /// The document of a token: the first that ends behind it.
    pub fn document_of(&self, token: u64) -> u64 {
        let (mut low, mut high) = (0, self.header.num_documents);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.end(middle) > token { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// The token `at`, which is below their number.
    pub fn token(&self, at: u64) -> u32 {
        let at = at as usize;
        match self.header.width {
            1 => u32::from(self.tokens[at]),
            2 => u32::from(u16::from_le_bytes(field(self.tokens, at * 2))),
            _ => u32_at(self.tokens, at * 4),
        }
    }

    /// All tokens as they lie, `width` bytes each.
    pub fn bytes(&self) -> &'a [u8] {
        self.tokens
    }
}

/// Tokens from `at` on, of a file's tokens as they lie, with `width` bytes each, into `out`.
pub fn read_tokens(bytes: &[u8], width: u32, at: u64, out: &mut [u32]) {
    let bytes = &bytes[at as usize * width as usize..][..out.len() * width as usize];
    match width {
        1 => out.iter_mut().zip(bytes).for_each(|(out, token)| *out = u32::from(*token)),
        2 => {
            let tokens = bytes.chunks_exact(2).map(|token| u32::from(u16::from_le_bytes(field(token, 0))));
            out.iter_mut().zip(tokens).for_each(|(out, token)| *out = token);
        }
        _ => out.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(out, token)| *out = u32_at(token, 0)),
    }
}

/// Appends a token; it is below the vocabulary.
pub fn put_token(token: u32, width: u32, bytes: &mut Vec<u8>) {
    bytes.extend(&token.to_le_bytes()[..width as usize]);
}

/// The whole file of documents that are in memory, whose tokens are below `vocabulary`.
pub fn file_of(documents: &[&[u32]], vocabulary: u32, tokenizer: [u8; 32]) -> Vec<u8> {
    let width = width_of(vocabulary);
    let (mut tokens, mut ends, mut num_tokens) = (Vec::new(), Vec::new(), 0u64);
    for document in documents {
        document.iter().for_each(|token| put_token(*token, width, &mut tokens));
        num_tokens += document.len() as u64;
        ends.extend(num_tokens.to_le_bytes());
    }
    let header = Header {
        width,
        num_tokens,
        num_documents: documents.len() as u64,
        vocabulary,
        tokenizer,
        tokens_digest: *blake3::hash(&tokens).as_bytes(),
        ends_digest: *blake3::hash(&ends).as_bytes(),
    };
    tokens.resize(tokens.len() + header.padding() as usize, 0);
    [&header.to_bytes()[..], &tokens, &ends].concat()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(documents: &[&[u32]], vocabulary: u32) -> Vec<u8> {
        file_of(documents, vocabulary, [7; 32])
    }

    #[test]
    fn documents_come_back_whatever_the_width() {
        for vocabulary in [256, 257, 65_536, 65_537, u32::MAX] {
            let documents: [&[u32]; 5] = [&[], &[1, 2, vocabulary - 1], &[], &[0], &[]];
            let bytes = file(&documents, vocabulary);
            let found = TokenFile::new(&bytes).expect("a token file");
            found.check().expect("whole");
            assert_eq!(found.header.num_documents, 5);
            for (n, expected) in documents.iter().enumerate() {
                let at = found.document(n as u64);
                let tokens: Vec<u32> = at.clone().map(|at| found.token(at)).collect();
                assert_eq!(tokens, *expected, "document {n} of {vocabulary}");
                let mut tokens = vec![7; expected.len()];
                read_tokens(found.bytes(), found.header.width, at.start, &mut tokens);
                assert_eq!(tokens, *expected, "document {n} of {vocabulary}, read at once");
            }
            assert_eq!([0, 2, 3].map(|token| found.document_of(token)), [1, 1, 3]);
        }
        let empty = file(&[], 256);
        TokenFile::new(&empty).and_then(|file| file.check()).expect("an empty file");
    }

    #[test]
    fn each_changed_byte_and_each_cut_is_seen() {
        let bytes = file(&[&[1, 2, 3], &[300, 4]], 400);
        let is_whole = |bytes: &[u8]| TokenFile::new(bytes).and_then(|file| file.check());
        is_whole(&bytes).expect("whole");
        let padding = HEADER_BYTES + 10..HEADER_BYTES + 16;
        for at in (0..bytes.len()).filter(|at| !padding.contains(at)) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(is_whole(&changed).is_err(), "byte {at}");
            assert!(is_whole(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_no_writer_makes_is_named() {
        let check = |change: &dyn Fn(&mut Header), expected: TokensError| {
            let bytes = file(&[&[1, 2, 3], &[300, 4]], 400);
            let mut header = Header::parse(&bytes).expect("a header");
            change(&mut header);
            let bytes = [&header.to_bytes()[..], &bytes[HEADER_BYTES..]].concat();
            assert_eq!(TokenFile::new(&bytes).and_then(|file| file.check()), Err(expected));
        };
        check(&|header| header.width = 3, TokensError::Width { found: 3 });
        check(&|header| header.vocabulary = 70_000, TokensError::Vocabulary { vocabulary: 70_000, width: 2 });
        check(&|header| header.vocabulary = 0, TokensError::Vocabulary { vocabulary: 0, width: 2 });
        check(&|header| header.vocabulary = 300, TokensError::Token { at: 3, token: 300, vocabulary: 300 });
        check(&|header| header.num_tokens = u64::MAX, TokensError::Length { found: 200, expected: u64::MAX });
        check(&|header| header.num_tokens = 8, TokensError::TokensDigest);
        let mut bytes = file(&[&[1, 2], &[3]], 256);
        let len = bytes.len();
        bytes[len - 16] = 9;
        let mut header = Header::parse(&bytes).expect("a header");
        header.ends_digest = *blake3::hash(&bytes[len - 16..]).as_bytes();
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        let expected = TokensError::Ends { document: 0, end: 9, before: 0, tokens: 3 };
        assert_eq!(TokenFile::new(&bytes).and_then(|file| file.check()), Err(expected));
        assert_eq!(TokenFile::new(b"no").map(drop), Err(TokensError::Short { found: 2 }));
    }
}
