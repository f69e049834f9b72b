//! From a rendered dialogue to tokens, of which some are trained.
//!
//! Tokens that only the template may write are recognized where the template wrote them. What users write is never taken for one: rows in
//! which somebody wrote `<|im_end|>` are encoded by a second tokenizer, in which such tokens have other names (aliases), and the template's
//! own are replaced by these before.
//!
//! What is trained is encoded apart from what is before it, as a model meets it that is asked: its prompt ends where the answer begins.
//! Tokenizers that put a space before each text cannot be cut so; there a token belongs to the answer if a byte of it does.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;
use toroid_chat::{Aliases, special_tokens, template_of};
use toroid_tokens::{BYTES_TOKENIZER, BYTES_VOCABULARY};

use crate::chat::refusal::{Reason, Refusal, Usable};
use crate::config::BYTES;
use crate::encode::{open_tokenizer, vocabulary_of};
use crate::error::{At, Error, Result};

/// Settings and templates beside a tokenizer.
const MAX_SETTINGS_BYTES: u64 = 16 << 20;

/// A rendered dialogue. Ranges are of bytes of the text, in order, and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    pub text: String,
    pub trained: Vec<Range<usize>>,
    /// What the template wrote that only it may write.
    pub control: Vec<Range<usize>>,
    /// Somebody else wrote something that reads the same.
    pub is_injected: bool,
}

/// Tokens of a dialogue, and which of them are trained, as many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    pub tokens: Vec<u32>,
    pub trained: Vec<bool>,
}

impl Example {
    pub fn num_trained(&self) -> usize {
        self.trained.iter().filter(|trained| **trained).count()
    }

    pub fn first_trained(&self) -> Option<usize> {
        self.trained.iter().position(|trained| *trained)
    }

    /// Without what is behind the last trained token.
    pub fn up_to_trained(mut self) -> Example {
        let end = self.trained.iter().rposition(|trained| *trained).map_or(0, |last| last + 1);
        self.tokens.truncate(end);
        self.trained.truncate(end);
        self
    }

    fn push(&mut self, tokens: impl Iterator<Item = u32>, is_trained: bool) {
        self.tokens.extend(tokens);
        self.trained.resize(self.tokens.len(), is_trained);
    }
}

/// A tokenizer with what lies beside it.
pub struct ChatTokens {
    /// None where tokens are bytes.
    file: Option<File>,
    pub vocabulary: u32,
    pub digest: [u8; 32],
    /// Of its settings, for templates: names such as `bos_token`, and JSON.
    pub variables: Vec<(String, String)>,
    /// The template of its folder.
    pub template: Option<String>,
}

struct File {
    path: PathBuf,
    tokenizer: Tokenizer,
    aliases: Aliases,
    puts_space: bool,
}

fn wrong(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Config(format!("{}: {what}", path.display()))
}

impl ChatTokens {
    /// `bytes`, a `tokenizer.json`, or a folder with one and its settings. `content_tokens` are those of the added tokens that contents may
    /// have.
    pub fn load(path: &Path, content_tokens: &[String]) -> Result<ChatTokens> {
        if path.as_os_str() == BYTES {
            if let Some(token) = content_tokens.first() {
                return Err(Error::Config(format!(
                    "--content-token {token}: bytes have no such tokens; name a --tokenizer"
                )));
            }
            let (digest, vocabulary) = (BYTES_TOKENIZER, BYTES_VOCABULARY);
            return Ok(ChatTokens { file: None, vocabulary, digest, variables: Vec::new(), template: None });
        }
        let folder = path.is_dir().then_some(path);
        let (variables, template) = folder.map_or(Ok((Vec::new(), None)), settings)?;
        let path = folder.map_or(path.to_owned(), |folder| folder.join("tokenizer.json"));
        let (tokenizer, text) = open_tokenizer(&path)?;
        let vocabulary = vocabulary_of(&tokenizer, &path)?;
        let digest = *blake3::hash(&text).as_bytes();
        let file = Some(File::new(path, tokenizer, &text, content_tokens)?);
        Ok(ChatTokens { file, vocabulary, digest, variables, template })
    }

    pub fn is_bytes(&self) -> bool {
        self.file.is_none()
    }

    /// What only the template may write; nothing where tokens are bytes.
    pub fn control(&self) -> impl Iterator<Item = &str> {
        self.file.iter().flat_map(|file| file.aliases.names())
    }

    /// Whether a token is one of those.
    pub fn is_control(&self, token: u32) -> bool {
        self.file.as_ref().is_some_and(|file| file.aliases.is_control(token))
    }

    /// The number of a token by its name.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.file.as_ref()?.tokenizer.token_to_id(name)
    }

    /// What the tokenizer itself would put before a text, as transformers does without a template.
    pub fn put_before(&self) -> Option<String> {
        let file = self.file.as_ref()?;
        let ids = file.tokenizer.encode_fast("b", true).ok()?;
        let first = ids.get_ids().first().filter(|id| file.aliases.is_control(**id))?;
        file.tokenizer.id_to_token(*first)
    }

    pub fn encode(&self, rendered: &Guarded) -> Usable<Example> {
        let Some(file) = &self.file else {
            let mut example = Example::default();
            for (part, is_trained) in parts(rendered.text.len(), &rendered.trained) {
                example.push(rendered.text.as_bytes()[part].iter().map(|byte| u32::from(*byte)), is_trained);
            }
            return Ok(example);
        };
        if !rendered.is_injected {
            return file.encode(&file.tokenizer, &rendered.text, &rendered.trained);
        }
        let refuse = |what: &str| Refusal::new(Reason::SpecialInContent, what);
        let aliased = file.aliases.tokenizer().map_err(refuse)?;
        let (text, trained) = file.aliases.rewrite(&rendered.text, &rendered.control, &rendered.trained);
        let mut example = file.encode(aliased, &text, &trained)?;
        file.aliases.restore(&mut example.tokens, rendered.control.len()).map_err(|what| refuse(&what))?;
        Ok(example)
    }

    /// The text of tokens, special ones included.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let Some(file) = &self.file else {
            let bytes: Vec<u8> = tokens.iter().map(|token| *token as u8).collect();
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        };
        file.tokenizer
            .decode(tokens, false)
            .map_err(|error| wrong(&file.path, format!("cannot decode tokens: {error}")))
    }
}

impl File {
    fn new(path: PathBuf, tokenizer: Tokenizer, text: &[u8], content_tokens: &[String]) -> Result<File> {
        let json: Value = serde_json::from_slice(text).map_err(|error| wrong(&path, error))?;
        let aliases = Aliases::new(&tokenizer, json, content_tokens).map_err(|what| wrong(&path, what))?;
        let first = tokenizer.encode_fast("b", false).ok().and_then(|found| found.get_ids().first().copied());
        let puts_space = first.and_then(|id| tokenizer.id_to_token(id)).is_none_or(|token| token != "b");
        Ok(File { path, tokenizer, aliases, puts_space })
    }

    fn encode(&self, tokenizer: &Tokenizer, text: &str, trained: &[Range<usize>]) -> Usable<Example> {
        let cannot = |error| Refusal::new(Reason::TemplateRefuses, format!("the tokenizer cannot encode it: {error}"));
        let mut example = Example::default();
        if self.puts_space {
            let found = tokenizer.encode(text, false).map_err(cannot)?;
            let overlaps = |(start, end): &(usize, usize)| trained.iter().any(|r| *start < r.end && r.start < *end);
            example.tokens = found.get_ids().to_vec();
            example.trained = found.get_offsets().iter().map(overlaps).collect();
            return Ok(example);
        }
        for (part, is_trained) in parts(text.len(), trained) {
            let found = tokenizer.encode_fast(&text[part], false).map_err(cannot)?;
            example.push(found.get_ids().iter().copied(), is_trained);
        }
        Ok(example)
    }
}

/// What is trained and what is not, in turns; nothing empty.
fn parts(len: usize, trained: &[Range<usize>]) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut at = 0;
    let mut cuts = Vec::with_capacity(2 * trained.len() + 1);
    for range in trained {
        cuts.extend([(at..range.start, false), (range.clone(), true)]);
        at = range.end;
    }
    cuts.push((at..len, false));
    cuts.into_iter().filter(|(range, _)| !range.is_empty())
}

type Settings = (Vec<(String, String)>, Option<String>);

/// Names of tokens for templates, and the template, of a folder of Hugging Face's.
fn settings(folder: &Path) -> Result<Settings> {
    let path = folder.join("tokenizer_config.json");
    let config: Value = match read_settings(&path)? {
        Some(text) => serde_json::from_str(&text).map_err(|error| wrong(&path, error))?,
        None => Value::Null,
    };
    let variables =
        special_tokens(&config).map(|(name, text)| (name.to_owned(), Value::from(text).to_string())).collect();
    let of_file = read_settings(&folder.join("chat_template.jinja"))?;
    Ok((variables, of_file.or_else(|| template_of(&config).map(str::to_owned))))
}

/// A file that need not be there.
pub fn read_settings(path: &Path) -> Result<Option<String>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => {
            let bytes = other.at("look at", path)?.len();
            if bytes > MAX_SETTINGS_BYTES {
                return Err(wrong(path, format!("it has {bytes} bytes, at most {MAX_SETTINGS_BYTES} are read")));
            }
        }
    }
    std::fs::read_to_string(path).at("read", path).map(Some)
}
