//! Why bytes are no token file.

use thiserror::Error;

use crate::kind::Kind;

/// What is wrong with a file; its path is known to whoever read it.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TokensError {
    #[error("it has {found} bytes, the header of a token file has {expected}")]
    Short { found: usize, expected: usize },
    #[error("it does not begin with `TOROIDTK`")]
    Magic,
    #[error("it has version {found}, 3 and 4 are read here")]
    Version { found: u32 },
    #[error("the digest of its header is another: it was changed or cut")]
    HeaderDigest,
    #[error("its kind is {found}, version 4 has 1 (dialogues) and 2 (preferences)")]
    UnknownKind { found: u32 },
    #[error("it has {found}, and {expected} is wanted here; {}", found.advice())]
    Kind { found: Kind, expected: Kind },
    #[error("it has {found} bytes a token, 1, 2 and 4 are known")]
    Width { found: u32 },
    #[error("a vocabulary of {vocabulary} does not fit in {width} bytes a token, or is empty")]
    Vocabulary { vocabulary: u32, width: u32 },
    #[error("it has preferences and {documents} documents, which are no pairs")]
    Odd { documents: u64 },
    #[error("it has {found} bytes, its header says {expected}")]
    Length { found: u64, expected: u64 },
    #[error("the digest of its tokens is another: they were changed")]
    TokensDigest,
    #[error("the digest of its ends is another: they were changed")]
    EndsDigest,
    #[error("the digest of its bits of trained tokens is another: they were changed")]
    TrainedDigest,
    #[error("the digest of its margins is another: they were changed")]
    MarginsDigest,
    #[error("bytes or bits that fill up its {part} are not 0")]
    Padding { part: &'static str },
    #[error("document {document} ends at token {end}, the one before it at {before}, and there are {tokens}")]
    Ends { document: u64, end: u64, before: u64, tokens: u64 },
    #[error("token {at} is {token}, the vocabulary has {vocabulary}")]
    Token { at: u64, token: u32, vocabulary: u32 },
    #[error("document {document} has no trained token: nothing could be learned from it")]
    Untrained { document: u64 },
    #[error("the first token of document {document} is trained, and no token before it foretells it")]
    FirstTrained { document: u64 },
    #[error("the prompts of pair {pair} differ: the tokens before the first trained one must be the same")]
    Prompts { pair: u64 },
    #[error("the two answers of pair {pair} are the same")]
    SameAnswers { pair: u64 },
    #[error("the margin of pair {pair} is {margin}; a finite number is wanted")]
    Margin { pair: u64, margin: String },
}
