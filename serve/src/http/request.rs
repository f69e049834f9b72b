//! What is asked for by `/v1/completions` and `/v1/chat/completions`, checked.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};
use toroid_chat::Time;
use toroid_worker::generate::{Sampling, Sequence};

use super::error::ApiError;
use super::fields::Fields;
use crate::model::Model;

/// Texts of a prompt.
const MAX_N: usize = 128;
/// Likeliest tokens that are told of.
const MAX_TOP: usize = 20;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// What OpenAI's completions generate where nothing is said.
const DEFAULT_MAX_TOKENS: usize = 16;
const MAX_TOKENS: usize = 1 << 30;

/// Texts that are asked for.
#[derive(Debug)]
pub struct Asked {
    pub kind: Kind,
    pub prompts: Vec<Vec<u32>>,
    /// Texts of each prompt.
    pub n: usize,
    /// `None`: as many as there is room for.
    pub max_tokens: Option<usize>,
    pub sampling: Sampling,
    pub seed: u64,
    pub stops: Vec<String>,
    /// Log-probabilities are told, with so many likeliest tokens.
    pub scores: Option<usize>,
    /// The answer begins with the prompt.
    pub echo: bool,
    pub is_streamed: bool,
    /// A stream ends with the numbers of tokens.
    pub streams_usage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Completion,
    Chat,
}

impl Kind {
    /// The field that has the prompt.
    pub fn field(self) -> &'static str {
        match self {
            Kind::Completion => "prompt",
            Kind::Chat => "messages",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

/// A prompt in text or in tokens, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl Asked {
    /// A body of `/v1/completions`.
    pub fn completion(body: &[u8], model: &Model, name: &str) -> Result<Asked, ApiError> {
        let mut fields = Fields::of(body)?;
        check_model(&mut fields, name)?;
        let expected = "a text, a list of texts, a list of token ids or a list of such lists";
        let prompts: Option<Prompts> = fields.take("prompt", expected)?;
        let prompts = prompts.ok_or_else(|| ApiError::field("prompt", format!("`prompt` is missing: {expected}")))?;
        let scores = fields.take::<usize>("logprobs", "a number of tokens")?;
        if scores.is_some_and(|top| top > MAX_TOP) {
            return Err(ApiError::field("logprobs", format!("`logprobs` must be at most {MAX_TOP}")));
        }
        let echo = fields.take("echo", "true or false")?.unwrap_or(false);
        fields.only("suffix", &[json!("")])?;
        let max_tokens = fields.number("max_tokens", (0, MAX_TOKENS), DEFAULT_MAX_TOKENS)?;
        if max_tokens == 0 && !echo {
            return Err(ApiError::field("max_tokens", "`max_tokens` may be 0 only with `echo`"));
        }
        let asked = Asked { max_tokens: Some(max_tokens), scores, echo, ..common(&mut fields, Kind::Completion)? };
        let best_of = fields.take::<usize>("best_of", "a number of texts")?;
        if best_of.is_some_and(|num| num != asked.n) {
            return Err(ApiError::field("best_of", "`best_of` is not supported, but for the value of `n`"));
        }
        fields.end()?;
        let prompts = match prompts {
            Prompts::Text(text) => vec![encoded(model, &text)?],
            Prompts::Texts(texts) => texts.iter().map(|text| encoded(model, text)).collect::<Result<_, _>>()?,
            Prompts::Tokens(tokens) => vec![tokens],
            Prompts::TokenLists(lists) => lists,
        };
        if prompts.is_empty() {
            return Err(ApiError::field("prompt", "`prompt` is an empty list; give at least one"));
        }
        check_tokens(&prompts, model)?;
        Ok(Asked { prompts, ..asked })
    }

    /// A body of `/v1/chat/completions`.
    pub fn chat(body: &[u8], model: &Model, name: &str) -> Result<Asked, ApiError> {
        let mut fields = Fields::of(body)?;
        check_model(&mut fields, name)?;
        let Some(template) = &model.chat else {
            return Err(ApiError::field(
                "messages",
                "this model has no chat template; start the server with --chat-template FILE",
            ));
        };
        let messages = fields.take_raw("messages");
        let messages =
            messages.ok_or_else(|| ApiError::field("messages", "`messages` is missing: a list of messages"))?;
        let messages = plain_messages(messages.get())?;
        let has_scores = fields.take("logprobs", "true or false")?.unwrap_or(false);
        let top = fields.number("top_logprobs", (0, MAX_TOP), 0)?;
        if top > 0 && !has_scores {
            return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        let mut limit = |name| fields.number_if_there(name, (1, MAX_TOKENS));
        let (old, new) = (limit("max_tokens")?, limit("max_completion_tokens")?);
        fields.only("response_format", &[json!({ "type": "text" })])?;
        fields.only("tools", &[json!([])])?;
        fields.only("tool_choice", &[json!("none"), json!("auto")])?;
        let scores = has_scores.then_some(top);
        let asked = Asked { max_tokens: new.or(old), scores, ..common(&mut fields, Kind::Chat)? };
        fields.end()?;
        let prompt = template.prompt(&messages, now(), &model.tokens);
        let prompt = prompt.map_err(|e| ApiError::field("messages", format!("{e:#}")))?;
        check_tokens(std::slice::from_ref(&prompt), model)?;
        Ok(Asked { prompts: vec![prompt], ..asked })
    }

    /// What the engine is to do, prompt by prompt; `context`: tokens of a text with its prompt at most.
    pub fn sequences(&self, context: usize) -> impl Iterator<Item = Sequence> + '_ {
        let scores_prompt = self.echo && self.scores.is_some();
        let samples = move |prompt: &Vec<u32>| {
            let (prompt, max_tokens) = (prompt.clone(), self.max_tokens.unwrap_or(context));
            let of = move |sample| Sequence {
                prompt: prompt.clone(),
                sample,
                seed: self.seed,
                sampling: self.sampling,
                max_tokens,
                scores_prompt,
            };
            (0..self.n as u64).map(of)
        };
        self.prompts.iter().flat_map(samples)
    }
}

/// What both kinds have.
fn common(fields: &mut Fields, kind: Kind) -> Result<Asked, ApiError> {
    let temperature = fields.number("temperature", (0.0, 1000.0), 1.0)?;
    if temperature > 0.0 && temperature < 1e-3 {
        return Err(ApiError::field("temperature", "`temperature` must be 0, or from 0.001 to 1000"));
    }
    let top_p = fields.number("top_p", (0.0, 1.0), 1.0)?;
    let top_k = fields.number("top_k", (-1, i64::from(u32::MAX)), 0)?;
    let sampling = Sampling { temperature, top_p, top_k: usize::try_from(top_k).unwrap_or(0) };
    let seed = match fields.take::<i64>("seed", "a whole number")? {
        // Any 64 bits are a seed.
        Some(seed) => seed as u64,
        None => random()?,
    };
    let stops = match fields.take("stop", "a text or a list of texts")? {
        None => Vec::new(),
        Some(Texts::One(stop)) => vec![stop],
        Some(Texts::Many(stops)) => stops,
    };
    if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        let message = format!("`stop` must be at most {MAX_STOPS} texts of at most {MAX_STOP_BYTES} bytes");
        return Err(ApiError::field("stop", message));
    }
    let is_streamed = fields.take("stream", "true or false")?.unwrap_or(false);
    let options: Option<StreamOptions> = fields.take("stream_options", "an object with `include_usage`")?;
    for name in ["presence_penalty", "frequency_penalty"] {
        fields.only(name, &[json!(0)])?;
    }
    fields.only("logit_bias", &[json!({})])?;
    // Who asks is for the log of a proxy.
    fields.take::<String>("user", "a text")?;
    Ok(Asked {
        kind,
        prompts: Vec::new(),
        n: fields.number("n", (1, MAX_N), 1)?,
        max_tokens: None,
        sampling,
        seed,
        stops,
        scores: None,
        echo: false,
        is_streamed,
        streams_usage: options.is_some_and(|options| options.include_usage),
    })
}

fn check_model(fields: &mut Fields, name: &str) -> Result<(), ApiError> {
    match fields.take::<String>("model", "a text")? {
        Some(asked) if asked != name => Err(ApiError {
            status: axum::http::StatusCode::NOT_FOUND,
            code: Some("model_not_found"),
            ..ApiError::field("model", format!("there is no model `{asked}` here; the one that is served is `{name}`"))
        }),
        _ => Ok(()),
    }
}

fn encoded(model: &Model, text: &str) -> Result<Vec<u32>, ApiError> {
    model.tokens.encode(text, true).map_err(|error| ApiError::field("prompt", format!("{error:#}")))
}

fn check_tokens(prompts: &[Vec<u32>], model: &Model) -> Result<(), ApiError> {
    let num = model.num_tokens();
    match prompts.iter().flatten().find(|token| **token as usize >= num) {
        None => Ok(()),
        Some(token) => Err(ApiError::field(
            "prompt",
            format!("the prompt has the token {token}; tokens of this model are below {num}"),
        )),
    }
}

/// Messages as templates expect them: a content in parts is one text. What is no text is refused.
fn plain_messages(raw: &str) -> Result<String, ApiError> {
    let wrong = |what: String| ApiError::field("messages", what);
    let mut messages: Vec<Value> =
        serde_json::from_str(raw).map_err(|error| wrong(format!("`messages` must be a list of objects: {error}")))?;
    if messages.is_empty() {
        return Err(wrong("`messages` is empty; give at least one".into()));
    }
    let mut has_parts = false;
    for (i, message) in messages.iter_mut().enumerate() {
        if !message["role"].is_string() {
            return Err(wrong(format!("message {i} has no `role`, expected `system`, `user` or `assistant`")));
        }
        match &message["content"] {
            Value::String(_) => {}
            Value::Array(parts) => {
                let text = |part: &Value| (part["type"] == "text").then(|| Some(part["text"].as_str()?.to_string()))?;
                let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                let texts = texts
                    .ok_or_else(|| wrong(format!("message {i} has a part that is no text; only text is supported")))?;
                message["content"] = json!(texts.join("\n"));
                has_parts = true;
            }
            _ => return Err(wrong(format!("message {i} has no `content`, expected a text"))),
        }
    }
    // As they were sent, keys in their order, where nothing had to be changed.
    Ok(if has_parts { Value::Array(messages).to_string() } else { raw.into() })
}

/// Of the system.
pub fn random() -> Result<u64, ApiError> {
    let failed = |error| {
        ApiError::new(
            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
            format!("the system gives no random bytes: {error}"),
        )
    };
    getrandom::u64().map_err(failed)
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// In UTC, for templates that say the date.
fn now() -> Time {
    // `2026-11-24 09:58:54`
    let text = toroid_torus::units::time(unix_seconds() as i64 * 1000);
    let mut numbers = text.split(['-', ' ', ':']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (year, mut small) = (next(), || u8::try_from(next()).unwrap_or(0));
    Time { year, month: small(), day: small(), hour: small(), minute: small(), second: small() }
}
