//! An n-gram model of our own: trained with modified Kneser-Ney smoothing, kept as an ARPA file, asked for perplexities.
//!
//! Its words are those of [`crate::words`], its sentences the lines of a text. The perplexity of a text is
//! `10^(-sum log10 p / (words + lines))`, ends of sentences counted as words, as in KenLM and CCNet (Wenzek et al. 2020).

pub mod arpa;
pub mod estimate;
pub mod train;

pub use arpa::Model;

pub const START: &str = "<s>";
pub const END: &str = "</s>";
pub const UNKNOWN: &str = "<unk>";

/// No n-gram has more words.
pub const MAX_ORDER: usize = 5;
