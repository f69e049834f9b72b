//! A model with all that is needed to talk to it: weights, tokens, chat template, which tokens end a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use toroid::files::{read_regular_if_there, read_text};
use toroid::model_source::{ModelArgs, ModelSource, TokensOf};
use toroid_chat::control::unmarked;
use toroid_chat::{Aliases, Chat, ChatError, Control, Limits, Template, Time, special_tokens, template_of};
use toroid_torus::model::ModelConfig;
use toroid_worker::model::whole_partition;

use crate::tokens::Tokens;

/// Files beside the weights have a few KB.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
pub const TEMPLATE_NAME: &str = "chat_template.jinja";

/// The flags that name a model, its tokenizer and its template.
#[derive(Debug, clap::Args)]
pub struct ServedArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The tokenizer.json of a model whose tokens are not bytes, instead of the one in its folder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// A chat template (Jinja) instead of the one in the model's folder
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// An added token of the tokenizer that is one also where a message has it; may be given several times. All others are text there
    #[arg(long = "content-token", value_name = "TOKEN")]
    pub content_tokens: Vec<String>,
}

/// A model that was found, with its words but without its weights.
pub struct Model {
    pub source: ModelSource,
    pub tokens: Arc<Tokens>,
    pub chat: Option<ChatTemplate>,
    /// A text ends before any of these tokens.
    pub ends: Vec<u32>,
    /// `tokenizer_config.json`, as far as it is known.
    pub tokenizer_config: Value,
}

/// A template with what it came from.
pub struct ChatTemplate {
    pub text: String,
    template: Template,
    /// Names and JSON of `bos_token` and the like.
    variables: Vec<(String, String)>,
    /// What only the template may write.
    control: Option<Control>,
    /// `None`: tokens are bytes.
    aliases: Option<Aliases>,
}

impl ChatTemplate {
    fn new(
        text: String,
        variables: Vec<(String, String)>,
        tokens: &Tokens,
        content: &[String],
    ) -> Result<ChatTemplate> {
        let template = Template::parse(&text, Limits::default())?;
        let mut chat = ChatTemplate { text, template, variables, control: None, aliases: tokens.aliases(content)? };
        let control = match &chat.aliases {
            Some(aliases) => Control::of(aliases.names().map(str::to_string).collect()),
            None => {
                let probe = json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }]);
                Control::of_bytes(&chat.text, &chat.render(&probe.to_string(), Time::default())?)
            }
        };
        chat.control = control.map_err(Error::msg)?;
        Ok(chat)
    }

    /// The tokens that the assistant goes on from; `messages` is JSON. What reads like a token of the template in them is text (decision 103).
    pub fn prompt(&self, messages: &str, now: Time, tokens: &Tokens) -> Result<Vec<u32>> {
        let mut value: Value = serde_json::from_str(messages).context("read the messages")?;
        let text = self.render(messages, now)?;
        let Some(control) = self.control.as_ref().filter(|control| control.is_in_any(&value)) else {
            // The template itself has what begins a text.
            return tokens.encode(&text, false);
        };
        let Some(aliases) = &self.aliases else {
            bail!("a message has what ends or begins turns, and bytes cannot be told apart; leave it out");
        };
        control.mark_all(&mut value).map_err(|what| anyhow!("a message has {what}; leave it out"))?;
        let marked = self.render(&value.to_string(), now)?;
        let (unmarked, [written]) = unmarked(&marked, [control.find(&marked)]);
        ensure!(
            unmarked == text,
            "the template looks for a token in a message, which only it may write; leave it out, or start with --content-token"
        );
        let (text, _) = aliases.rewrite(&text, &written, &[]);
        let aliased = aliases.tokenizer().map_err(Error::msg)?;
        let found = aliased.encode_fast(text, false).map_err(|error| anyhow!("{error}")).context("encode a text")?;
        let mut prompt = found.get_ids().to_vec();
        aliases.restore(&mut prompt, written.len()).map_err(|what| anyhow!("a message has {what}; leave it out"))?;
        Ok(prompt)
    }

    /// The text that the assistant goes on from.
    fn render(&self, messages: &str, now: Time) -> Result<String, ChatError> {
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, json)| (&**name, &**json)).collect();
        let chat = Chat { messages, add_generation_prompt: true, variables: &variables, now, ..Chat::default() };
        Ok(self.template.render(&chat)?.text)
    }
}

impl Model {
    pub fn open(runtime: &Runtime, args: &ServedArgs) -> Result<Model> {
        let source = ModelSource::open(runtime, &args.model)?;
        Model::of(source, args.tokenizer.as_deref(), args.chat_template.as_deref(), &args.content_tokens)
    }

    /// With a tokenizer and a chat template instead of the model's own, where they are named.
    pub fn of(
        source: ModelSource,
        tokenizer: Option<&Path>,
        template: Option<&Path>,
        content_tokens: &[String],
    ) -> Result<Model> {
        let tokens = Arc::new(tokens(&source, tokenizer)?);
        let config = |name: &str| source.folder().map_or(Ok(Value::Null), |folder| read_json(&folder.join(name)));
        let (tokenizer_config, generation) = (config("tokenizer_config.json")?, config("generation_config.json")?);
        let chat = chat_template(&source, template, &tokenizer_config, &tokens, content_tokens)?;
        let ends = ends(&generation, &tokenizer_config, &tokens, source.model.vocab)
            .with_context(|| format!("read generation_config.json of {}", source.what))?;
        ensure!(
            !matches!(*tokens, Tokens::Bytes) || source.model.vocab >= tokens.num_tokens(),
            "the model of {} has {} tokens, which cannot be bytes; give --tokenizer",
            source.what,
            source.model.vocab
        );
        ensure!(
            matches!(*tokens, Tokens::Bytes) || tokens.num_tokens() <= source.model.vocab,
            "the tokenizer of {} has tokens up to {}, and the model those below {}: they are not made for each other",
            source.what,
            tokens.num_tokens() - 1,
            source.model.vocab
        );
        Ok(Model { source, tokens, chat, ends, tokenizer_config })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.source.model
    }

    /// Tokens from this one on never come, and may not be in prompts.
    pub fn num_tokens(&self) -> usize {
        self.tokens.num_tokens().min(self.source.model.vocab)
    }
}

/// Hexadecimal blake3 of parameters in f32, in the order of the model: the same for a checkpoint and what was exported of it.
pub fn digest(model: &ModelConfig, params: &[f32]) -> String {
    blake3::hash(bytemuck::cast_slice(&params[..whole_partition(model).len])).to_hex().to_string()
}

fn tokens(source: &ModelSource, named: Option<&Path>) -> Result<Tokens> {
    let own = source.folder().map(|folder| folder.join("tokenizer.json")).filter(|path| path.exists());
    match (&source.tokens, named.map(Path::to_path_buf).or(own)) {
        (TokensOf::Bytes, _) if named.is_none() => Ok(Tokens::Bytes),
        (TokensOf::Bytes, _) => bail!("the tokens of {} are bytes; leave --tokenizer out", source.what),
        (TokensOf::Folder | TokensOf::Unsaid, Some(path)) => Tokens::open(&path),
        (TokensOf::Unsaid, None) => Ok(Tokens::Bytes),
        (TokensOf::Folder, None) => bail!("the tokenizer.json of {} is gone; name it with --tokenizer", source.what),
        (TokensOf::Digest(digest), None) => bail!(
            "the tokens of {} are those of the tokenizer {digest} (blake3 of its file); name that file with --tokenizer",
            source.what
        ),
        (TokensOf::Digest(digest), Some(path)) => {
            let tokens = Tokens::open(&path)?;
            let found = tokens.digest().unwrap_or_default();
            ensure!(
                found == digest,
                "the tokens of {} are those of the tokenizer {digest} (blake3 of its file); {} has the blake3 {found}: name the right one with \
                 --tokenizer",
                source.what,
                path.display()
            );
            Ok(tokens)
        }
    }
}

/// The template that is named, else that of the folder, in a file of its own or within its `tokenizer_config.json`.
fn chat_template(
    source: &ModelSource,
    named: Option<&Path>,
    config: &Value,
    tokens: &Tokens,
    content_tokens: &[String],
) -> Result<Option<ChatTemplate>> {
    let own = source.folder().map(|folder| folder.join(TEMPLATE_NAME)).filter(|path| path.exists());
    let (text, what) = match (named.map(Path::to_path_buf).or(own), template_of(config)) {
        (Some(path), _) => (read_text(&path, "the chat template", MAX_TEMPLATE_BYTES)?, path.display().to_string()),
        (None, Some(text)) => (text.to_string(), format!("the tokenizer_config.json of {}", source.what)),
        (None, None) => return Ok(None),
    };
    let variables = special_tokens(config).map(|(name, text)| (name.into(), json!(text).to_string())).collect();
    ChatTemplate::new(text, variables, tokens, content_tokens).with_context(|| format!("read {what}")).map(Some)
}

/// What `generation_config.json` says, else the end of the tokenizer's configuration.
fn ends(generation: &Value, tokenizer: &Value, tokens: &Tokens, vocab: usize) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab);
        id.with_context(|| {
            format!("its eos_token_id has {value}, expected numbers of tokens, which are below {vocab}; mend it")
        })
    };
    let named = match &generation["eos_token_id"] {
        Value::Null => Vec::new(),
        Value::Array(ids) => ids.iter().map(id).collect::<Result<_>>()?,
        one => vec![id(one)?],
    };
    if !named.is_empty() {
        return Ok(named);
    }
    let end = special_tokens(tokenizer).find(|(name, _)| *name == "eos_token");
    Ok(end.and_then(|(_, text)| tokens.id_of(text)).into_iter().collect())
}

/// `null`: there is no such file.
fn read_json(path: &Path) -> Result<Value> {
    let Some(bytes) = read_regular_if_there(path, "the configuration", MAX_CONFIG_BYTES)? else {
        return Ok(Value::Null);
    };
    serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
}
