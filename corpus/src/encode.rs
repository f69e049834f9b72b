//! Documents as they are written: text, JSON, tokens.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tokenizers::Tokenizer;
use toroid_tokens::{BYTES_TOKENIZER, BYTES_VOCABULARY, HEADER_BYTES, Header, Kind, put_token, width_of};

use crate::config::{BYTES, Output, Pipeline, Shape};
use crate::doc::{Doc, char_boundary};
use crate::durable::Durable;
use crate::error::{At, Error, Result};

/// A longer text is encoded in parts, which end at line ends where there are any: a tokenizer takes some hundred bytes of memory a token.
const MAX_PART_BYTES: usize = 1 << 20;

/// What of a document goes into the output.
pub enum Encoder {
    Text,
    Jsonl,
    Tokens(Tokens),
}

impl Encoder {
    pub fn load(output: &Output) -> Result<Encoder> {
        Ok(match output.format {
            Shape::Text => Encoder::Text,
            Shape::Jsonl => Encoder::Jsonl,
            Shape::Tokens => Encoder::Tokens(Tokens::load(output)?),
        })
    }

    pub fn body(&self, pipeline: &Pipeline, doc: &Doc, body: &mut Vec<u8>) -> Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            id: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            key: &'a str,
            source: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            url: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            language: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            license: &'a str,
            text: &'a str,
        }
        body.clear();
        match self {
            Encoder::Text => body.extend(doc.text.as_bytes()),
            Encoder::Jsonl => {
                let source = &pipeline.sources[usize::from(doc.source)].name;
                let Doc { id, key, url, language, license, text, .. } = doc;
                let line = Line { id, key, source, url, language, license, text };
                serde_json::to_writer(body, &line).map_err(|error| Error::Ledger(error.to_string()))?;
            }
            Encoder::Tokens(tokens) => tokens.encode(&doc.text, body)?,
        }
        Ok(())
    }
}

/// A tokenizer: that of bytes, or one of a file.
pub struct Tokens {
    tokenizer: Option<Tokenizer>,
    path: PathBuf,
    vocabulary: u32,
    digest: [u8; 32],
    /// The token behind each document.
    end: Option<u32>,
}

impl Tokens {
    pub fn load(output: &Output) -> Result<Tokens> {
        let path = output.tokenizer.clone();
        if path.as_os_str() == BYTES {
            let (digest, vocabulary) = (BYTES_TOKENIZER, BYTES_VOCABULARY);
            return Ok(Tokens { tokenizer: None, path, vocabulary, digest, end: None });
        }
        let tokens = Tokens::open(&path)?;
        let token = |name: &String| {
            let id = tokens.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_to_id(name));
            let unknown = || Error::Config(format!("{}: has no token `{name}` for output.end_token", path.display()));
            id.ok_or_else(unknown)
        };
        let end = output.end_token.as_ref().map(token).transpose()?;
        Ok(Tokens { end, ..tokens })
    }

    /// A file as the library `tokenizers` writes it.
    pub fn open(path: &Path) -> Result<Tokens> {
        let wrong = |what: String| Error::Config(format!("{}: {what}", path.display()));
        let text = std::fs::read(path).at("read", path)?;
        let mut tokenizer =
            Tokenizer::from_bytes(&text).map_err(|error| wrong(format!("cannot be read as a tokenizer: {error}")))?;
        let dropout = serde_json::from_slice::<serde_json::Value>(&text)
            .ok()
            .and_then(|value| value["model"]["dropout"].as_f64());
        if dropout.is_some_and(|share| share > 0.0) {
            return Err(wrong("model.dropout makes other tokens each time; set it to null".into()));
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        let highest = tokenizer.get_vocab(true).into_values().max();
        let vocabulary =
            highest.and_then(|id| id.checked_add(1)).ok_or_else(|| wrong("its vocabulary is empty".into()))?;
        let digest = *blake3::hash(&text).as_bytes();
        Ok(Tokens { tokenizer: Some(tokenizer), path: path.to_owned(), vocabulary, digest, end: None })
    }

    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub fn width(&self) -> u32 {
        width_of(self.vocabulary)
    }

    /// Appends the tokens of a text, and the one behind it.
    pub fn encode(&self, text: &str, bytes: &mut Vec<u8>) -> Result<()> {
        let Some(tokenizer) = &self.tokenizer else {
            bytes.extend(text.as_bytes());
            return Ok(());
        };
        let width = self.width();
        for part in parts(text) {
            let cannot = |error| Error::Config(format!("{}: cannot encode a text: {error}", self.path.display()));
            let found = tokenizer.encode_fast(part, false).map_err(cannot)?;
            found.get_ids().iter().for_each(|id| put_token(*id, width, bytes));
        }
        self.end.iter().for_each(|id| put_token(*id, width, bytes));
        Ok(())
    }

    /// The text of tokens, special ones included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.tokenizer {
            Some(tokenizer) => {
                let cannot = |error| Error::Config(format!("{}: cannot decode tokens: {error}", self.path.display()));
                tokenizer.decode(ids, false).map_err(cannot)
            }
            None => {
                let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }
}

/// Cuts a long text behind its last line end within the limit, or its last space, or where a character ends.
fn parts(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let limit = char_boundary(text, MAX_PART_BYTES);
        let cut = if text.len() <= limit {
            text.len()
        } else {
            let start = &text[..limit];
            start.rfind('\n').or_else(|| start.rfind(' ')).map_or(limit, |at| at + 1)
        };
        let (part, rest) = text.split_at(cut);
        text = rest;
        Some(part)
    })
}

/// A token file while it is written.
pub struct TokenWriter<'a> {
    tokens: &'a Tokens,
    file: Durable,
    hasher: blake3::Hasher,
    num_tokens: u64,
}

impl<'a> TokenWriter<'a> {
    pub fn create(path: &Path, tokens: &'a Tokens) -> Result<TokenWriter<'a>> {
        let mut file = Durable::create(path)?;
        file.put(&[0; HEADER_BYTES])?;
        Ok(TokenWriter { tokens, file, hasher: blake3::Hasher::new(), num_tokens: 0 })
    }

    /// Which token of the file is the first of this document.
    pub fn put(&mut self, body: &[u8]) -> Result<u64> {
        let position = self.num_tokens;
        self.num_tokens += body.len() as u64 / u64::from(self.tokens.width());
        self.hasher.update(body);
        self.file.put(body)?;
        Ok(position)
    }

    /// Writes where documents end, from the bytes of each, and the header. Returns the number of tokens.
    pub fn finish(mut self, lens: impl Iterator<Item = Result<u64>>) -> Result<u64> {
        let width = self.tokens.width();
        let mut header = Header {
            kind: Kind::Text,
            width,
            num_tokens: self.num_tokens,
            num_documents: 0,
            vocabulary: self.tokens.vocabulary,
            tokenizer: self.tokens.digest,
            tokens_digest: *self.hasher.finalize().as_bytes(),
            ends_digest: [0; 32],
            trained_digest: [0; 32],
            margins_digest: [0; 32],
        };
        self.file.put(&vec![0; header.padding() as usize])?;
        let (mut ends, mut end) = (blake3::Hasher::new(), 0u64);
        for len in lens {
            end += len? / u64::from(width);
            header.num_documents += 1;
            ends.update(&end.to_le_bytes());
            self.file.put(&end.to_le_bytes())?;
        }
        header.ends_digest = *ends.finalize().as_bytes();
        self.file.overwrite(&header.to_bytes(), 0)?;
        self.file.finish()?;
        Ok(self.num_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_line_ends() {
        let check = |text: &str| {
            let found: Vec<&str> = parts(text).collect();
            assert_eq!(found.concat(), text);
            assert!(found.iter().all(|part| part.len() <= MAX_PART_BYTES));
            found.len()
        };
        assert_eq!((check(""), check("a\nb")), (0, 1));
        let line = "word \u{1f600}\n".repeat(1 << 17);
        assert_eq!(check(&line), 2);
        assert!(parts(&line).all(|part| part.ends_with('\n')));
        assert!(check(&"\u{1f600}".repeat(1 << 19)) > 1);
        let spaces = "word ".repeat(1 << 19);
        assert!(parts(&spaces).all(|part| part.ends_with(' ')));
    }
}
