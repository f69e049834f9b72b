//! Token files with the boundaries of documents: their layout, and what is checked before one is believed.
//!
//! ```text
//!   0    magic, 8 bytes: TOROIDTK
//!   8    version, u32: 3 (text), or 4 (dialogues and preferences)
//!   12   bytes a token, u32: 1, 2 or 4
//!   16   tokens, u64
//!   24   documents, u64
//!   32   size of the vocabulary, u32: each token is below it
//!   36   kind, u32: 1 dialogues, 2 preferences; 0 in version 3
//!   40   blake3 of the tokenizer's file, 32 bytes; zeros where a token is a byte of UTF-8
//!   72   blake3 of the tokens, 32 bytes
//!   104  blake3 of the ends, 32 bytes
//!        version 4 alone:
//!   136    blake3 of the trained bits, 32 bytes
//!   168    blake3 of the margins, 32 bytes
//!        blake3 of all before, 32 bytes: at 136 in version 3, at 200 in version 4
//!        tokens (at 168 in version 3, at 232 in version 4), then zeros up to a multiple of 8
//!        ends, u64 a document: the number of tokens up to its end
//!        version 4 alone:
//!          trained, a bit a token: token n is bit n % 8 of byte n / 8; then zeros up to a multiple of 8 bytes
//!          margins, f32 a pair; none of dialogues
//! ```
//!
//! All numbers are little-endian. Documents follow each other without separators; those of text may be empty: the ends never fall, and the
//! last one is the number of tokens. The file ends behind its last part.
//!
//! Each document of version 4 has a trained token, and its first token is none: a loss is always there, and always has a context. Of
//! preferences, documents 2i and 2i + 1 are the chosen and the rejected of pair i. Up to the first trained token, the prompt, they are the
//! same; from there on they differ.
//!
//! Pure: bytes in, numbers out. Version 2, without documents, is made and read by training alone.

#![forbid(unsafe_code)]

mod bytes;
mod error;
mod file;
mod header;
mod kind;
mod write;

pub use error::TokensError;
pub use file::{Pair, TokenFile, read_tokens, read_trained};
pub use header::{HEADER_BYTES, HEADER_BYTES_MAX, Header, MAGIC, VERSION, VERSION_TRAINED, width_of};
pub use kind::Kind;
pub use write::{Document, Trained, dialogues_file_of, file_of, preferences_file_of, put_token};

/// Names the tokenizer of which a token is a byte.
pub const BYTES_TOKENIZER: [u8; 32] = [0; 32];
/// Tokens of that tokenizer.
pub const BYTES_VOCABULARY: u32 = 256;

#[cfg(test)]
mod tests;
