//! A whole file in memory: its parts, the checks of all of them, and what is read of them.

use std::ops::Range;

use crate::bytes::{field, u32_at, u64_at};
use crate::error::TokensError;
use crate::header::{END_BYTES, Header, MARGIN_BYTES};
use crate::kind::Kind;

/// Tokens are looked at in pieces of this size, which holds whole tokens of each width.
const PIECE_BYTES: usize = 4 << 20;

/// A whole file in memory, or mapped into it.
#[derive(Debug, Clone, Copy)]
pub struct TokenFile<'a> {
    pub header: Header,
    tokens: &'a [u8],
    padding: &'a [u8],
    ends: &'a [u8],
    trained: &'a [u8],
    margins: &'a [u8],
}

/// A pair of preferences: tokens of two documents, and by how much the first is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    pub chosen: Range<u64>,
    pub rejected: Range<u64>,
    pub margin: f32,
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
        let rest = &bytes[header.num_bytes()..];
        let (tokens, rest) = rest.split_at((header.num_tokens * u64::from(header.width)) as usize);
        let (padding, rest) = rest.split_at(header.padding() as usize);
        let (ends, rest) = rest.split_at((header.num_documents * END_BYTES) as usize);
        let (trained, margins) = rest.split_at(header.trained_bytes() as usize);
        Ok(TokenFile { header, tokens, padding, ends, trained, margins })
    }

    /// Goes through all of it: the digests, that ends never fall, that no token is outside the vocabulary; of version 4 also that each
    /// document can be trained on, and that pairs have one prompt, two answers and a margin.
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
        if self.padding.iter().any(|byte| *byte != 0) {
            return Err(TokensError::Padding { part: "tokens" });
        }
        self.check_ends()?;
        if let Some(at) = outside {
            return Err(TokensError::Token { at, token: self.token(at), vocabulary: self.header.vocabulary });
        }
        if self.header.kind == Kind::Text {
            return Ok(());
        }
        self.check_trained()?;
        (0..self.header.num_pairs()).try_for_each(|pair| self.check_pair(pair))
    }

    fn check_ends(&self) -> Result<(), TokensError> {
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
        Ok(())
    }

    /// That the bits are those of the header, and that each document has a trained token with one before it.
    fn check_trained(&self) -> Result<(), TokensError> {
        if *blake3::hash(self.trained).as_bytes() != self.header.trained_digest {
            return Err(TokensError::TrainedDigest);
        }
        if *blake3::hash(self.margins).as_bytes() != self.header.margins_digest {
            return Err(TokensError::MarginsDigest);
        }
        if (self.header.num_tokens..self.trained.len() as u64 * 8).any(|n| is_set(self.trained, n)) {
            return Err(TokensError::Padding { part: "bits of trained tokens" });
        }
        for document in 0..self.header.num_documents {
            let tokens = self.document(document);
            let first = self.first_trained(tokens.clone()).ok_or(TokensError::Untrained { document })?;
            if first == tokens.start {
                return Err(TokensError::FirstTrained { document });
            }
        }
        Ok(())
    }

    /// Of a pair whose documents have trained tokens.
    fn check_pair(&self, pair: u64) -> Result<(), TokensError> {
        let Pair { chosen, rejected, margin } = self.pair(pair);
        if !margin.is_finite() {
            return Err(TokensError::Margin { pair, margin: margin.to_string() });
        }
        let [chosen, rejected] = [chosen, rejected].map(|tokens| {
            let first = self.first_trained(tokens.clone()).expect("each document has a trained token");
            let width = u64::from(self.header.width);
            let of = |range: Range<u64>| &self.tokens[(range.start * width) as usize..(range.end * width) as usize];
            (of(tokens.start..first), of(first..tokens.end))
        });
        match (chosen.0 == rejected.0, chosen.1 == rejected.1) {
            (false, _) => Err(TokensError::Prompts { pair }),
            (true, true) => Err(TokensError::SameAnswers { pair }),
            (true, false) => Ok(()),
        }
    }

    /// The first trained token of a range.
    pub fn first_trained(&self, mut tokens: Range<u64>) -> Option<u64> {
        tokens.find(|token| self.is_trained(*token))
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

    /// A pair of preferences, by number.
    pub fn pair(&self, n: u64) -> Pair {
        assert!(n < self.header.num_pairs(), "there are {} pairs, asked for {n}", self.header.num_pairs());
        let margin = f32::from_le_bytes(field(self.margins, n as usize * MARGIN_BYTES as usize));
        Pair { chosen: self.document(2 * n), rejected: self.document(2 * n + 1), margin }
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

    /// Whether the token `at`, which is below their number, is trained: each of text is.
    pub fn is_trained(&self, at: u64) -> bool {
        self.header.kind == Kind::Text || is_set(self.trained, at)
    }

    /// All tokens as they lie, `width` bytes each.
    pub fn bytes(&self) -> &'a [u8] {
        self.tokens
    }

    /// All bits of trained tokens as they lie; none of text.
    pub fn trained_bytes(&self) -> &'a [u8] {
        self.trained
    }
}

fn is_set(bits: &[u8], at: u64) -> bool {
    bits[(at / 8) as usize] >> (at % 8) & 1 == 1
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

/// Whether the tokens from `at` on are trained, of a file's bits as they lie, into `out`.
pub fn read_trained(bits: &[u8], at: u64, out: &mut [bool]) {
    out.iter_mut().zip(at..).for_each(|(out, at)| *out = is_set(bits, at));
}
