//! Text to tokens and back: tokens are bytes, or those of a `tokenizer.json`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use tokenizers::Tokenizer;
use toroid::files::read_bytes;
use toroid::generate::Characters;

/// Bytes, and the ids of their tokens.
const NUM_BYTES: usize = 256;
/// The largest that are published have some 30 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Of tokens whose text has not become whole characters, after which it is taken as it is.
const MAX_PENDING: usize = 32;

/// A tokenizer.
pub enum Tokens {
    Bytes,
    File(Box<TokenizerFile>),
}

pub struct TokenizerFile {
    tokenizer: Tokenizer,
    /// Hexadecimal blake3 of the file.
    digest: String,
    /// The highest id and one.
    num_tokens: usize,
}

impl Tokens {
    /// Reads a file as the library `tokenizers` writes it.
    pub fn open(path: &Path) -> Result<Tokens> {
        let bytes = read_bytes(path, "the tokenizer", MAX_FILE_BYTES)?;
        let what = || format!("read the tokenizer {}", path.display());
        // S-1: the same text is the same tokens each time.
        let settings: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let dropout = settings.as_ref().and_then(|value| value["model"]["dropout"].as_f64());
        if dropout.is_some_and(|share| share > 0.0) {
            bail!("model.dropout of {} makes other tokens each time; set it to null", path.display());
        }
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| anyhow!("{error}")).with_context(what)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}")).with_context(what)?;
        let highest = tokenizer.get_vocab(true).into_values().max();
        let Some(highest) = highest else { bail!("the vocabulary of {} is empty", path.display()) };
        let digest = blake3::hash(&bytes).to_hex().to_string();
        Ok(Tokens::File(Box::new(TokenizerFile { tokenizer, digest, num_tokens: highest as usize + 1 })))
    }

    /// Tokens from this one on are not known.
    pub fn num_tokens(&self) -> usize {
        match self {
            Tokens::Bytes => NUM_BYTES,
            Tokens::File(file) => file.num_tokens,
        }
    }

    /// Hexadecimal blake3 of the tokenizer's file; `None`: tokens are bytes.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Tokens::Bytes => None,
            Tokens::File(file) => Some(&file.digest),
        }
    }

    /// `special`: what the tokenizer itself puts around a text (a token that begins it) is added.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self {
            Tokens::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Tokens::File(file) => {
                let found = file.tokenizer.encode_fast(text, special);
                Ok(found.map_err(|error| anyhow!("{error}")).context("encode a text")?.get_ids().to_vec())
            }
        }
    }

    /// The text of tokens that are known; special ones, which begin and end texts, have none unless `special`.
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String> {
        match self {
            Tokens::Bytes => {
                let mut characters = Characters::default();
                Ok(characters.push(ids) + &characters.end())
            }
            Tokens::File(file) => {
                let text = file.tokenizer.decode(ids, !special);
                text.map_err(|error| anyhow!("{error}")).context("decode tokens")
            }
        }
    }

    /// The id of a token by its text in the vocabulary.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        match self {
            Tokens::Bytes => None,
            Tokens::File(file) => file.tokenizer.token_to_id(text),
        }
    }

    /// The id of a special token by its text: it has none where it comes, so that no stop could be found there.
    pub fn special(&self, text: &str) -> Option<u32> {
        let Tokens::File(file) = self else { return None };
        let id = file.tokenizer.token_to_id(text)?;
        let added = file.tokenizer.get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special).then_some(id)
    }

    /// A text that only this token has, as well as that can be: its own, or `bytes:\xe2` where it is a part of a character.
    pub fn name(&self, id: u32) -> String {
        match self {
            Tokens::Bytes if id < 0x80 => char::from(id as u8).into(),
            Tokens::Bytes => format!("bytes:\\x{id:02x}"),
            Tokens::File(file) => {
                let text = file.tokenizer.decode(&[id], false).unwrap_or_default();
                let is_whole = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
                if is_whole { text } else { file.tokenizer.id_to_token(id).unwrap_or_default() }
            }
        }
    }

    /// The bytes of [`Tokens::name`], or the byte that it stands for.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        match self {
            Tokens::Bytes => vec![id as u8],
            Tokens::File(_) => self.name(id).into_bytes(),
        }
    }

    /// A text of these tokens that is to come.
    pub fn stream(tokens: &Arc<Tokens>) -> Stream {
        Stream { tokens: Arc::clone(tokens), characters: Characters::default(), ids: Vec::new(), num_told: 0 }
    }
}

/// Tokens that become text as soon as it is whole characters.
pub struct Stream {
    tokens: Arc<Tokens>,
    /// Of bytes.
    characters: Characters,
    /// Of a file: those whose text was told last, since what a token's text is depends on the ones before, and those whose text was not told.
    ids: Vec<u32>,
    /// How many of them were told.
    num_told: usize,
}

impl Stream {
    /// What a token adds.
    pub fn push(&mut self, token: u32) -> String {
        let Tokens::File(file) = &*self.tokens else { return self.characters.push(&[token]) };
        self.ids.push(token);
        let text = |ids: &[u32]| file.tokenizer.decode(ids, true).unwrap_or_default();
        let (before, all) = (text(&self.ids[..self.num_told]), text(&self.ids));
        let is_cut = all.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.num_told < MAX_PENDING;
        let new = all.get(before.len()..).filter(|new| !new.is_empty() && !is_cut);
        let Some(new) = new else { return String::new() };
        self.ids.drain(..self.num_told);
        self.num_told = self.ids.len();
        new.into()
    }

    /// What never became whole.
    pub fn end(&mut self) -> String {
        let Tokens::File(file) = &*self.tokens else { return self.characters.end() };
        let text = |ids: &[u32]| file.tokenizer.decode(ids, true).unwrap_or_default();
        let (before, all) = (text(&self.ids[..self.num_told]), text(&self.ids));
        self.num_told = self.ids.len();
        all.get(before.len()..).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes' own tokenizer, as a file, is the bytes; its pieces are whole characters.
    #[test]
    fn a_file_and_bytes_are_the_same_text_however_it_comes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tokenizer.json");
        let mut model = toroid_torus::model::ModelConfig::preset("tiny").context("a preset")?;
        model.vocab = 300;
        std::fs::write(&path, toroid_hf::bytes_tokenizer::tokenizer_json(&model).to_string())?;
        let file = Tokens::open(&path)?;
        let text = "aü😀 fn main()\n漢字";
        let file = Arc::new(file);
        for tokens in [Arc::new(Tokens::Bytes), Arc::clone(&file)] {
            let ids = tokens.encode(text, true)?;
            assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
            assert_eq!(tokens.decode(&ids, false)?, text);
            let mut stream = Tokens::stream(&tokens);
            let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
            assert_eq!(pieces.concat(), text);
            assert_eq!((&pieces[1][..], &pieces[2][..]), ("", "ü"));
            let mut cut = Tokens::stream(&tokens);
            assert_eq!(
                (cut.push(b'a'.into()), cut.push(0xc3), cut.end()),
                ("a".into(), String::new(), "\u{fffd}".into())
            );
        }
        assert_eq!((file.num_tokens(), file.id_of("<|pad|>")), (257, Some(256)));
        assert_eq!((Tokens::Bytes.name(97), Tokens::Bytes.name(0xc3)), ("a".into(), "bytes:\\xc3".into()));
        Ok(())
    }

    #[test]
    fn what_is_no_tokenizer_is_named() {
        let error = |path: &str| format!("{:#}", Tokens::open(Path::new(path)).err().expect("an error"));
        assert!(error("/no/such/file").contains("read the tokenizer /no/such/file"));
        assert!(error("/proc/self/cmdline").contains("read the tokenizer /proc/self/cmdline"));
    }

    #[test]
    fn a_tokenizer_that_draws_its_tokens_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tokenizer.json");
        let model = toroid_torus::model::ModelConfig::preset("tiny").context("a preset")?;
        let mut settings = toroid_hf::bytes_tokenizer::tokenizer_json(&model);
        settings["model"]["dropout"] = 0.1.into();
        std::fs::write(&path, settings.to_string())?;
        let error = format!("{:#}", Tokens::open(&path).err().context("an error")?);
        assert!(error.contains("model.dropout of") && error.contains("set it to null"), "{error}");
        Ok(())
    }
}
