//! Parts of a file as they are written, and whole files of what is in memory.

use crate::header::{Header, width_of};
use crate::kind::Kind;

/// Appends a token; it is below the vocabulary.
pub fn put_token(token: u32, width: u32, bytes: &mut Vec<u8>) {
    bytes.extend(&token.to_le_bytes()[..width as usize]);
}

/// A document of version 4: its tokens, and which of them are trained, as many.
pub type Document<'a> = (&'a [u32], &'a [bool]);

/// Bits of trained tokens, as they come. Whole groups of 8 bytes can be taken out on the way.
#[derive(Debug, Clone, Default)]
pub struct Trained {
    bytes: Vec<u8>,
    /// Bits of the last byte that are used; 0: all.
    used: u32,
}

impl Trained {
    pub fn push(&mut self, is_trained: bool) {
        if self.used == 0 {
            self.bytes.push(0);
        }
        let last = self.bytes.last_mut().expect("a byte was pushed when the last one was full");
        *last |= u8::from(is_trained) << self.used;
        self.used = (self.used + 1) % 8;
    }

    /// The bytes that are complete, to be written.
    pub fn take_whole(&mut self) -> Vec<u8> {
        let rest = self.bytes.split_off(self.bytes.len() - usize::from(self.used > 0));
        std::mem::replace(&mut self.bytes, rest)
    }

    /// All that were not taken, and zeros behind them: `num_written` bytes were taken before.
    pub fn finish(mut self, num_written: u64) -> Vec<u8> {
        while !(num_written + self.bytes.len() as u64).is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.bytes
    }
}

/// The whole file of documents that are in memory, whose tokens are below `vocabulary`.
pub fn file_of(documents: &[&[u32]], vocabulary: u32, tokenizer: [u8; 32]) -> Vec<u8> {
    whole(Kind::Text, documents, Vec::new(), Vec::new(), (vocabulary, tokenizer))
}

/// The same of dialogues.
pub fn dialogues_file_of(documents: &[Document<'_>], vocabulary: u32, tokenizer: [u8; 32]) -> Vec<u8> {
    trained_file_of(Kind::Dialogues, documents, &[], (vocabulary, tokenizer))
}

/// The same of pairs of a chosen and a rejected answer with their margin.
pub fn preferences_file_of(pairs: &[([Document<'_>; 2], f32)], vocabulary: u32, tokenizer: [u8; 32]) -> Vec<u8> {
    let documents: Vec<Document<'_>> = pairs.iter().flat_map(|(pair, _)| *pair).collect();
    let margins: Vec<f32> = pairs.iter().map(|(_, margin)| *margin).collect();
    trained_file_of(Kind::Preferences, &documents, &margins, (vocabulary, tokenizer))
}

fn trained_file_of(
    kind: Kind,
    documents: &[Document<'_>],
    margins: &[f32],
    (vocabulary, tokenizer): (u32, [u8; 32]),
) -> Vec<u8> {
    let mut trained = Trained::default();
    documents.iter().flat_map(|(_, trained)| trained.iter()).for_each(|bit| trained.push(*bit));
    let margins = margins.iter().flat_map(|margin| margin.to_le_bytes()).collect();
    let tokens: Vec<&[u32]> = documents.iter().map(|(tokens, _)| *tokens).collect();
    whole(kind, &tokens, trained.finish(0), margins, (vocabulary, tokenizer))
}

fn whole(
    kind: Kind,
    documents: &[&[u32]],
    trained: Vec<u8>,
    margins: Vec<u8>,
    (vocabulary, tokenizer): (u32, [u8; 32]),
) -> Vec<u8> {
    let width = width_of(vocabulary);
    let (mut tokens, mut ends, mut num_tokens) = (Vec::new(), Vec::new(), 0u64);
    for document in documents {
        document.iter().for_each(|token| put_token(*token, width, &mut tokens));
        num_tokens += document.len() as u64;
        ends.extend(num_tokens.to_le_bytes());
    }
    let digest = |bytes: &[u8]| *blake3::hash(bytes).as_bytes();
    let [trained_digest, margins_digest] = match kind {
        Kind::Text => [[0; 32]; 2],
        _ => [digest(&trained), digest(&margins)],
    };
    let header = Header {
        kind,
        width,
        num_tokens,
        num_documents: documents.len() as u64,
        vocabulary,
        tokenizer,
        tokens_digest: digest(&tokens),
        ends_digest: digest(&ends),
        trained_digest,
        margins_digest,
    };
    tokens.resize(tokens.len() + header.padding() as usize, 0);
    [header.to_bytes(), tokens, ends, trained, margins].concat()
}
