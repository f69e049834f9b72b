//! Chat templates: what `apply_chat_template` of Hugging Face's transformers makes of messages, byte for byte.
//!
//! A template is Jinja2 with what transformers gives it: `trim_blocks`, `lstrip_blocks`, `raise_exception`, `strftime_now`, a `tojson` that
//! escapes no HTML, loop controls, and `{% generation %}`, which marks the text that the assistant says and that is trained on.
//!
//! ```text
//!   template --generation--> template without {% generation %} --minijinja--> text with marks --generation--> text, ranges
//! ```
//!
//! A template comes with a model, so from strangers: it reads nothing but its arguments, and its size, its steps, its depth and its output
//! are bounded ([`Limits`]). Time is an argument: the same chat is the same text tomorrow.
//!
//! What users write that reads like a token of the template is text: [`Control`] finds it, [`Aliases`] has a tokenizer tell the two apart.
//!
//! Deliberately absent: templates by name, files.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind};

mod aliases;
pub mod control;
mod generation;
mod json;
mod time;

pub use aliases::Aliases;
pub use control::Control;
pub use time::Time;

/// A template for tokenizers with the tokens of ChatML, `<|im_start|>` and `<|im_end|>`. It marks what is trained.
pub const CHATML: &str = include_str!("chatml.jinja");
/// A template for tokens that are bytes: ASCII's own marks for the start of a heading (1) and of a text (2), and the end of a text (3), which
/// ends each turn. It marks what is trained.
pub const BYTES: &str = include_str!("bytes.jinja");

/// A template has a few KB; the largest that are published some 30.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// The one template of an environment.
const NAME: &str = "chat";

/// What rendering may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of the template, and bytes of what it writes, captured text included.
    pub fuel: u64,
    /// Bytes of the text.
    pub text_bytes: usize,
    /// Macros and loops within one another.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { fuel: 20_000_000, text_bytes: 16 << 20, depth: 100 }
    }
}

/// Messages as they come, in JSON, and what else a template asks for.
#[derive(Debug, Clone, Default)]
pub struct Chat<'a> {
    /// An array of objects with `role` and `content`, in JSON.
    pub messages: &'a str,
    /// An array of descriptions of functions, in JSON; `None`: there are none.
    pub tools: Option<&'a str>,
    /// An array of objects to answer from, in JSON; `None`: there are none.
    pub documents: Option<&'a str>,
    /// The text ends where the assistant is to go on.
    pub add_generation_prompt: bool,
    /// Other variables: name and JSON. `bos_token` and the like, and what a template documents.
    pub variables: &'a [(&'a str, &'a str)],
    /// What `strftime_now` takes for now.
    pub now: Time,
}

/// What became of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Bytes of `text` that were within `{% generation %}`, ascending; none where the template has no such tag.
    pub trained: Vec<Range<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The template cannot be read.
    #[error("the chat template is wrong{}: {what}", at(.line))]
    Syntax { line: Option<usize>, what: String },
    /// The template itself refuses these messages.
    #[error("the chat template refuses these messages{}: {what}", at(.line))]
    Refused { line: Option<usize>, what: String },
    /// The template fails with these messages.
    #[error("the chat template fails with these messages{}: {what}", at(.line))]
    Failed { line: Option<usize>, what: String },
    #[error("the chat template has {found} bytes, at most {MAX_TEMPLATE_BYTES} are taken")]
    TooLarge { found: usize },
    /// An argument is not JSON.
    #[error("{name} is not JSON: {what}")]
    Json { name: String, what: String },
}

/// Names and texts of the tokens that a `tokenizer_config.json` names, which templates take for variables: `bos_token`, `eos_token` and the like.
pub fn special_tokens(config: &serde_json::Value) -> impl Iterator<Item = (&str, &str)> {
    let named = config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
    named.filter_map(|(name, value)| Some((name.as_str(), value.as_str().or_else(|| value.get("content")?.as_str())?)))
}

/// The template of a `tokenizer_config.json`, or the default one of several.
pub fn template_of(config: &serde_json::Value) -> Option<&str> {
    let template = config.get("chat_template")?;
    let is_default = |named: &&serde_json::Value| named.get("name").and_then(|name| name.as_str()) == Some("default");
    let of_list = || template.as_array()?.iter().find(is_default)?.get("template")?.as_str();
    template.as_str().or_else(of_list)
}

fn at(line: &Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" in line {line}"))
}

/// Begins the message of an error that a template raises, so that it is told from others.
const RAISED: &str = "\u{f8ff}raised\u{f8ff}";

/// A template, read.
pub struct Template {
    environment: Environment<'static>,
    /// To find characters that it has not.
    source: String,
    limits: Limits,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("source", &self.source).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// It is no template; the line is named.
    pub fn parse(source: &str, limits: Limits) -> Result<Template, ChatError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::TooLarge { found: source.len() });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| told(&e))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(limits.fuel));
        environment.set_recursion_limit(limits.depth);
        environment.set_debug(true);
        environment.add_filter("tojson", json::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function(generation::FUNCTION, generation::marked);
        environment.add_template_owned(NAME, generation::as_calls(source)).map_err(|e| told(&e))?;
        Ok(Template { environment, source: source.into(), limits })
    }

    /// Whether it has a `{% generation %}`.
    pub fn marks_trained(&self) -> bool {
        generation::as_calls(&self.source) != self.source
    }

    /// The text of a chat.
    ///
    /// # Errors
    ///
    /// The template refuses the messages, fails with them or goes beyond its limits; or an argument is not JSON.
    pub fn render(&self, chat: &Chat<'_>) -> Result<Rendered, ChatError> {
        let value = |name: &str, text: &str| -> Result<Value, ChatError> {
            serde_json::from_str(text).map_err(|e| ChatError::Json { name: name.into(), what: e.to_string() })
        };
        // An absent list is None, not undefined: templates compare with both.
        let optional = |name: &str, text: Option<&str>| text.map_or(Ok(Value::from(())), |text| value(name, text));
        let mut variables = vec![
            ("messages", value("messages", chat.messages)?),
            ("tools", optional("tools", chat.tools)?),
            ("documents", optional("documents", chat.documents)?),
            ("add_generation_prompt", Value::from(chat.add_generation_prompt)),
        ];
        for (name, text) in chat.variables {
            variables.push((name, value(name, text)?));
        }
        let marks = generation::Marks::absent_from(&self.source, variables.iter().map(|(_, value)| value));
        variables.push((generation::MARKS, marks.value()));
        let now = chat.now;
        let strftime_now = move |format: &str| now.strftime(format).map_err(invalid);
        variables.push(("strftime_now", Value::from_function(strftime_now)));
        let context: BTreeMap<&str, Value> = variables.into_iter().collect();
        let mut text = Bounded { bytes: Vec::new(), limit: self.limits.text_bytes };
        let template = self.environment.get_template(NAME).map_err(|e| told(&e))?;
        template.render_captured_to(Value::from(context), &mut text).map_err(|e| told(&e))?;
        let failed = |what: String| ChatError::Failed { line: None, what };
        let text = String::from_utf8(text.bytes).map_err(|e| failed(e.to_string()))?;
        marks.take_from(&text).map_err(failed)
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(invalid(format!("{RAISED}{message}")))
}

/// An error of a function that templates call.
fn invalid(what: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, what.into())
}

/// The innermost error with a line, in our words.
fn told(error: &minijinja::Error) -> ChatError {
    let mut found = error;
    let mut line = found.line();
    while let Some(inner) = std::error::Error::source(found).and_then(|source| source.downcast_ref()) {
        found = inner;
        line = found.line().or(line);
    }
    let detail = found.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(RAISED) {
        return ChatError::Refused { line, what: message.into() };
    }
    let what = if detail.is_empty() { found.kind().to_string() } else { format!("{}: {detail}", found.kind()) };
    match error.kind() {
        ErrorKind::SyntaxError => ChatError::Syntax { line, what },
        _ => ChatError::Failed { line, what },
    }
}

/// Takes no more than so many bytes.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("the text has more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
