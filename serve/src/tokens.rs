//! Text to tokens and back: tokens are bytes, or those of a `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use tokenizers::Tokenizer;
use toroid::files::read_regular;
use toroid::generate::Characters;
use toroid_chat::Aliases;
use toroid_hf::bytes_tokenizer;

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
    /// GPT-2's characters for bytes, where words are written in them.
    byte_level: Option<BTreeMap<char, u8>>,
    /// What is no word is written as bytes, each as `<0xNN>`.
    has_byte_fallback: bool,
}

impl TokenizerFile {
    /// The bytes that a token stands for, where the decoder goes by bytes; `None`: it goes by texts, or the token is an added one.
    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        if self.tokenizer.get_added_tokens_decoder().contains_key(&id) {
            return None;
        }
        let word = self.tokenizer.id_to_token(id)?;
        if let Some(byte) = self.has_byte_fallback.then(|| fallback_byte(&word)).flatten() {
            return Some(vec![byte]);
        }
        let table = self.byte_level.as_ref()?;
        word.chars().map(|c| table.get(&c).copied()).collect()
    }
}

/// The byte of `<0xNN>`.
fn fallback_byte(word: &str) -> Option<u8> {
    let digits = word.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// As OpenAI calls a part of a character.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold("bytes:".into(), |name, byte| name + &format!("\\x{byte:02x}"))
}

impl Tokens {
    /// Reads a file as the library `tokenizers` writes it.
    pub fn open(path: &Path) -> Result<Tokens> {
        let bytes = read_regular(path, "the tokenizer", MAX_FILE_BYTES)?;
        let what = || format!("read the tokenizer {}", path.display());
        // S-1: the same text is the same tokens each time.
        let settings: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let decoders = settings.as_ref().map(|settings| kinds_of(&settings["decoder"])).unwrap_or_default();
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
        let table = || (0..=u8::MAX).map(|byte| (bytes_tokenizer::character(byte), byte)).collect();
        Ok(Tokens::File(Box::new(TokenizerFile {
            tokenizer,
            digest,
            num_tokens: highest as usize + 1,
            byte_level: decoders.iter().any(|kind| kind == "ByteLevel").then(table),
            has_byte_fallback: decoders.iter().any(|kind| kind == "ByteFallback"),
        })))
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

    /// Of its added tokens, which only a chat template may write, but for `content`; `None`: tokens are bytes.
    pub fn aliases(&self, content: &[String]) -> Result<Option<Aliases>> {
        match (self, content) {
            (Tokens::Bytes, []) => Ok(None),
            (Tokens::Bytes, [token, ..]) => bail!("--content-token {token}: bytes have no such tokens; leave it out"),
            (Tokens::File(file), content) => {
                let json = file.tokenizer.to_string(false).map_err(|error| anyhow!("{error}"))?;
                let aliases = Aliases::new(&file.tokenizer, serde_json::from_str(&json)?, content);
                aliases.map(Some).map_err(|what| anyhow!("the tokenizer: {what}"))
            }
        }
    }

    /// A text that only this token has, as well as that can be: its own, or `bytes:\xe2` where it is a part of a character.
    pub fn name(&self, id: u32) -> String {
        match self {
            Tokens::Bytes if id < 0x80 => char::from(id as u8).into(),
            Tokens::Bytes => escaped(&[id as u8]),
            Tokens::File(file) => {
                if let Some(bytes) = file.bytes(id) {
                    return String::from_utf8(bytes).unwrap_or_else(|error| escaped(error.as_bytes()));
                }
                let text = file.tokenizer.decode(&[id], false).unwrap_or_default();
                let is_whole = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
                if is_whole { text } else { file.tokenizer.id_to_token(id).unwrap_or_default() }
            }
        }
    }

    /// The bytes of [`Tokens::name`], or those that it stands for.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        match self {
            Tokens::Bytes => vec![id as u8],
            Tokens::File(file) => file.bytes(id).unwrap_or_else(|| self.name(id).into_bytes()),
        }
    }

    /// A text of these tokens that is to come.
    pub fn stream(tokens: &Arc<Tokens>) -> Stream {
        let (tokens, characters) = (Arc::clone(tokens), Characters::default());
        Stream { tokens, characters, special: false, ids: Vec::new(), num_told: 0 }
    }

    /// For each token, how many characters of the text of all of them, special ones included, are before it. It begins within a character where
    /// it is a later part of one.
    pub fn offsets(tokens: &Arc<Tokens>, ids: &[u32]) -> Vec<usize> {
        let mut stream = Stream { special: true, ..Tokens::stream(tokens) };
        let (mut offsets, mut num_told) = (Vec::with_capacity(ids.len()), 0);
        let mut settle = |offsets: &mut Vec<usize>, Added { text, starts }: Added| {
            let first = offsets.len() - starts.len();
            for (offset, start) in offsets[first..].iter_mut().zip(starts) {
                *offset = num_told + text[..start].chars().count();
            }
            num_told += text.chars().count();
        };
        for id in ids {
            offsets.push(0);
            settle(&mut offsets, stream.push(*id));
        }
        settle(&mut offsets, stream.end());
        offsets
    }
}

/// Tokens that become text as soon as it is whole characters.
pub struct Stream {
    tokens: Arc<Tokens>,
    /// Of bytes.
    characters: Characters,
    /// Special tokens have text.
    special: bool,
    /// Of a file: those whose text was told last, since what a token's text is depends on the ones before, and those whose text was not told.
    ids: Vec<u32>,
    /// How many of them were told.
    num_told: usize,
}

/// What a token adds to a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    pub text: String,
    /// Where in it the last tokens begin that were pushed: those whose text had not come and the new one. Of those whose text has still not come
    /// it is the end of the text.
    pub starts: Vec<usize>,
}

impl Stream {
    pub fn push(&mut self, token: u32) -> Added {
        self.ids.push(token);
        match Arc::clone(&self.tokens).as_ref() {
            Tokens::Bytes => {
                let text = self.characters.push(&[token]);
                self.added_bytes(text)
            }
            Tokens::File(file) => self.added(file, false),
        }
    }

    /// What never became whole.
    pub fn end(&mut self) -> Added {
        match Arc::clone(&self.tokens).as_ref() {
            Tokens::Bytes => {
                let text = self.characters.end();
                self.added_bytes(text)
            }
            Tokens::File(file) => self.added(file, true),
        }
    }

    /// `text` is what has become of the first bytes.
    fn added_bytes(&mut self, text: String) -> Added {
        let starts = starts_of(&self.ids.iter().map(|id| vec![*id as u8]).collect::<Vec<_>>());
        let num_settled = starts.partition_point(|start| *start < text.len());
        self.ids.drain(..num_settled);
        Added { text, starts }
    }

    fn added(&mut self, file: &TokenizerFile, is_end: bool) -> Added {
        let text = |ids: &[u32]| file.tokenizer.decode(ids, !self.special).unwrap_or_default();
        let (before, all) = (text(&self.ids[..self.num_told]), text(&self.ids));
        let num_new = self.ids.len() - self.num_told;
        let is_cut = !is_end && all.ends_with(char::REPLACEMENT_CHARACTER) && num_new < MAX_PENDING;
        let new = all.get(before.len()..).filter(|new| !new.is_empty() && !is_cut).unwrap_or_default().to_string();
        if new.is_empty() {
            return Added { text: new, starts: vec![0; num_new] };
        }
        let bytes: Option<Vec<Vec<u8>>> = self.ids[self.num_told..].iter().map(|id| file.bytes(*id)).collect();
        // What the ones before have in common with the whole text is before a token that is no bytes.
        let start = |num: usize| {
            let found = text(&self.ids[..self.num_told + num]);
            let found = found.get(before.len()..).unwrap_or_default().chars();
            found.zip(new.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
        };
        let starts = match bytes.filter(|bytes| String::from_utf8_lossy(&bytes.concat()) == new) {
            Some(bytes) => starts_of(&bytes),
            None => std::iter::once(0).chain((1..num_new).map(start)).collect(),
        };
        self.ids.drain(..self.num_told);
        self.num_told = self.ids.len();
        Added { text: new, starts }
    }
}

/// Where each of these begins in the text that all of them are: what is no UTF-8 becomes U+FFFD, as in `String::from_utf8_lossy`.
fn starts_of(parts: &[Vec<u8>]) -> Vec<usize> {
    let bytes = parts.concat();
    let (mut of_bytes, mut at) = (Vec::with_capacity(bytes.len() + 1), 0);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            of_bytes.extend(std::iter::repeat_n(at, character.len_utf8()));
            at += character.len_utf8();
        }
        of_bytes.extend(chunk.invalid().iter().map(|_| at));
        at += if chunk.invalid().is_empty() { 0 } else { char::REPLACEMENT_CHARACTER.len_utf8() };
    }
    of_bytes.push(at);
    let ends = parts.iter().scan(0, |end, part| {
        *end += part.len();
        Some(*end)
    });
    std::iter::once(0).chain(ends).take(parts.len()).map(|begin| of_bytes[begin]).collect()
}

/// The kinds of a decoder, and of those that it is made of.
fn kinds_of(decoder: &serde_json::Value) -> Vec<String> {
    let own = decoder["type"].as_str().map(str::to_string);
    let parts = decoder["decoders"].as_array().into_iter().flatten().flat_map(kinds_of);
    own.into_iter().chain(parts).collect()
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
            let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).text).collect();
            assert_eq!(pieces.concat(), text);
            assert_eq!((&pieces[1][..], &pieces[2][..]), ("", "ü"));
            let mut cut = Tokens::stream(&tokens);
            assert_eq!(
                (cut.push(b'a'.into()).text, cut.push(0xc3).text, cut.end().text),
                ("a".into(), String::new(), "\u{fffd}".into())
            );
        }
        assert_eq!((file.num_tokens(), file.id_of("<|pad|>")), (257, Some(256)));
        assert_eq!((Tokens::Bytes.name(97), Tokens::Bytes.name(0xc3)), ("a".into(), "bytes:\\xc3".into()));
        Ok(())
    }

    /// A tokenizer of bytes with `changed` settings; its added token `<|pad|>` comes behind all others.
    fn file(changed: impl FnOnce(&mut serde_json::Value)) -> Result<Arc<Tokens>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tokenizer.json");
        let mut model = toroid_torus::model::ModelConfig::preset("tiny").context("a preset")?;
        model.vocab = 300;
        let mut settings = toroid_hf::bytes_tokenizer::tokenizer_json(&model);
        changed(&mut settings);
        std::fs::write(&path, settings.to_string())?;
        Tokens::open(&path).map(Arc::new)
    }

    /// Parts of characters have names and bytes of their own, with GPT-2's characters for bytes and with `<0xNN>` for what is no word.
    #[test]
    fn a_part_of_a_character_is_named_by_its_bytes() -> Result<()> {
        let byte_level = file(|settings| settings["model"]["vocab"]["âĤ"] = 256.into())?;
        for (id, name, bytes) in [
            (0xbe, "bytes:\\xbe", &[0xbe][..]),
            (b'a'.into(), "a", b"a"),
            (b' '.into(), " ", b" "),
            (256, "bytes:\\xe2\\x82", &[0xe2, 0x82]),
            (257, "<|pad|>", b"<|pad|>"),
        ] {
            assert_eq!((byte_level.name(id), byte_level.bytes(id)), (name.to_string(), bytes.to_vec()), "{id}");
        }
        let fallback = file(|settings| {
            settings["decoder"] =
                serde_json::json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
            settings["pre_tokenizer"] = serde_json::Value::Null;
            settings["model"]["byte_fallback"] = true.into();
            settings["model"]["vocab"]["<0xE2>"] = 256.into();
            settings["model"]["vocab"]["<0x41>"] = 257.into();
        })?;
        assert_eq!((fallback.name(256), fallback.bytes(256)), ("bytes:\\xe2".into(), vec![0xe2]));
        assert_eq!((fallback.name(257), fallback.bytes(257)), ("A".into(), vec![0x41]));
        assert_eq!((fallback.name(b'a'.into()), fallback.bytes(b'a'.into())), ("a".into(), b"a".to_vec()));
        Ok(())
    }

    /// Each token begins where the text of the ones before it ends, special ones and broken characters included.
    #[test]
    fn a_token_begins_behind_the_text_of_those_before() -> Result<()> {
        let byte_level = file(|settings| settings["model"]["vocab"]["âĤ"] = 256.into())?;
        let bytes = Arc::new(Tokens::Bytes);
        let check = |tokens: &Arc<Tokens>, ids: &[u32], expected: &[usize]| {
            assert_eq!(Tokens::offsets(tokens, ids), expected, "{ids:?}");
        };
        check(&byte_level, &[257, 116, 104, 257], &[0, 7, 8, 9]);
        for tokens in [&byte_level, &bytes] {
            check(tokens, &[0xc3, 0xbc, 97], &[0, 0, 1]);
            check(tokens, &[97, 0xe2, 97, 98], &[0, 1, 2, 3]);
            check(tokens, &[0xe2, 0x82, 97], &[0, 0, 1]);
            check(tokens, &[0xe2, 0xe2, 0x82, 0xac, 97], &[0, 1, 1, 1, 2]);
            check(tokens, &[0xff, 0xff, 97, 0xe2], &[0, 1, 2, 3]);
        }
        check(&byte_level, &[97, 256, 97, 256, 0xac, 98], &[0, 1, 2, 3, 3, 4]);
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
