//! From messages to a text in which is known what is trained, and what only the template wrote.
//!
//! What is trained comes from the template's `{% generation %}`, cut behind the end of the turn. A template without it is asked twice: what
//! comes before an answer, and what comes with it; the difference is the answer. Where the first is no beginning of the second, nobody can
//! say what the answer is, and the row is refused.
//!
//! What users wrote that reads like a token of the template is marked before it is rendered, so that the two are told apart behind it. A
//! template that looks at such words in a content would render another text: such rows are refused, too.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use toroid_chat::control::{has_mark, unmarked};
use toroid_chat::{BYTES, CHATML, Chat, ChatError, Control, Limits, Rendered, Template, Time, template_of};

use crate::chat::refusal::{Reason, Refusal, Usable};
use crate::chat::row::Message;
use crate::chat::tokenizer::{ChatTokens, Guarded, read_settings};
use crate::error::{Error, Result};

/// A text that a template makes of one row.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Which answers of a dialogue are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turns {
    All,
    Last,
}

/// A template with what belongs to its tokenizer.
pub struct Dialogues {
    template: Template,
    pub source: String,
    /// Where it comes from, for people.
    pub name: String,
    variables: Vec<(String, String)>,
    now: Time,
    /// What only the template may write.
    control: Option<Control>,
    is_bytes: bool,
}

/// What is rendered: marked where somebody wrote what only the template may write.
struct Asked {
    /// Each with what is between it and the next one: JSON.
    messages: Vec<String>,
    tools: Option<String>,
    is_marked: bool,
}

impl Dialogues {
    /// The template of a file, of the tokenizer's folder, or the default one.
    pub fn load(tokens: &ChatTokens, file: Option<&Path>, now: Time) -> Result<Dialogues> {
        let (source, name) = match (file, &tokens.template) {
            (Some(path), _) => (of_file(path)?, path.display().to_string()),
            (None, Some(source)) => (source.clone(), "that of the tokenizer's folder".to_owned()),
            (None, None) if tokens.is_bytes() => (BYTES.to_owned(), "default for bytes".to_owned()),
            (None, None) => (CHATML.to_owned(), "default (ChatML)".to_owned()),
        };
        let limits = Limits { text_bytes: MAX_TEXT_BYTES, ..Limits::default() };
        let template = Template::parse(&source, limits).map_err(|error| Error::Config(format!("{name}: {error}")))?;
        let (variables, is_bytes) = (tokens.variables.clone(), tokens.is_bytes());
        let mut found = Dialogues { template, source, name, variables, now, control: None, is_bytes };
        let control = match is_bytes {
            true => Control::of_bytes(&found.source, &found.probe()?),
            false => Control::of(tokens.control().map(str::to_owned).collect()),
        };
        found.control = control.map_err(Error::Config)?;
        Ok(found)
    }

    pub fn marks_trained(&self) -> bool {
        self.template.marks_trained()
    }

    /// What the template makes of a dialogue.
    fn probe(&self) -> Result<String> {
        let probe = [Message::of("user", "Question"), Message::of("assistant", "Answer")];
        let text = self.asked(&probe, None).and_then(|asked| self.text(&asked, 2, false));
        Ok(text.map_err(|refusal| Error::Config(format!("{}: {}", self.name, refusal.detail)))?.text)
    }

    fn asked(&self, messages: &[Message], tools: Option<&str>) -> Usable<Asked> {
        let mut is_in_tools = false;
        if let Some(tools) = tools {
            let tools: Value =
                serde_json::from_str(tools).map_err(|error| Refusal::new(Reason::BrokenJson, error.to_string()))?;
            is_in_tools = self.has_control(&tools) || has_mark(&tools);
        }
        let is_marked = messages.iter().any(|message| self.has_control(message.value()));
        let json = || messages.iter().map(|message| message.json.clone());
        let (Some(control), true) = (&self.control, is_marked || is_in_tools) else {
            return Ok(Asked { messages: json().collect(), tools: tools.map(str::to_owned), is_marked });
        };
        let refuse = |what: &str| Refusal::new(Reason::SpecialInContent, what);
        if self.is_bytes {
            return Err(refuse("a content has what ends or begins turns, and bytes cannot be told apart"));
        }
        if is_in_tools {
            return Err(refuse("a token that only the template may write is in the tools, or stands beside U+F8FD"));
        }
        let mut marked = Vec::with_capacity(messages.len());
        for (message, json) in messages.iter().zip(json()) {
            // The others stay as they came.
            marked.push(match self.has_control(message.value()) || has_mark(message.value()) {
                true => {
                    let mut value = message.value().clone();
                    control.mark_all(&mut value).map_err(refuse)?;
                    value.to_string()
                }
                false => json,
            });
        }
        Ok(Asked { messages: marked, tools: tools.map(str::to_owned), is_marked })
    }

    fn has_control(&self, value: &Value) -> bool {
        self.control.as_ref().is_some_and(|control| control.is_in_any(value))
    }

    /// The text of the first `num` messages.
    fn text(&self, asked: &Asked, num: usize, add_generation_prompt: bool) -> Usable<Rendered> {
        let messages = format!("[{}]", asked.messages[..num].join(","));
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, json)| (&**name, &**json)).collect();
        let chat = Chat {
            messages: &messages,
            tools: asked.tools.as_deref(),
            documents: None,
            add_generation_prompt,
            variables: &variables,
            now: self.now,
        };
        self.template.render(&chat).map_err(|error| match error {
            ChatError::Json { .. } => Refusal::new(Reason::BrokenJson, error.to_string()),
            error => Refusal::new(Reason::TemplateRefuses, error.to_string()),
        })
    }

    /// A dialogue; the last of its messages is an answer.
    pub fn dialogue(&self, messages: &[Message], tools: Option<&str>, turns: Turns) -> Usable<Guarded> {
        let asked = self.asked(messages, tools)?;
        if turns == Turns::Last {
            return self.answer(&asked);
        }
        let whole = self.text(&asked, messages.len(), false)?;
        if self.marks_trained() {
            return self.guarded(&asked, whole);
        }
        let mut trained = Vec::new();
        for (n, _) in messages.iter().enumerate().filter(|(_, message)| message.is_answer()) {
            let before = self.text(&asked, n, true)?.text;
            let with = if n + 1 == messages.len() { whole.text.clone() } else { self.text(&asked, n + 1, false)?.text };
            if !with.starts_with(&before) || !whole.text.starts_with(&with) {
                let what = format!("the template renders what is before message {} otherwise than with it", n + 1);
                return Err(Refusal::new(
                    Reason::Ambiguous,
                    what + "; take --turns last, or mark it with {% generation %}",
                ));
            }
            trained.push(before.len()..with.len());
        }
        self.guarded(&asked, Rendered { text: whole.text, trained })
    }

    /// A prompt and an answer, which alone is trained.
    pub fn pair(&self, prompt: &[Message], answer: &Message, tools: Option<&str>) -> Usable<Guarded> {
        let messages = [prompt, std::slice::from_ref(answer)].concat();
        self.answer(&self.asked(&messages, tools)?)
    }

    fn answer(&self, asked: &Asked) -> Usable<Guarded> {
        let num = asked.messages.len();
        let before = self.text(asked, num - 1, true)?.text;
        let whole = self.text(asked, num, false)?;
        if !whole.text.starts_with(&before) {
            let what = "the template renders what is before the answer otherwise than with it";
            return Err(Refusal::new(Reason::Ambiguous, what));
        }
        let trained = match self.marks_trained() {
            true => {
                let clipped = whole.trained.into_iter().map(|range| range.start.max(before.len())..range.end);
                clipped.filter(|range| range.start < range.end).collect()
            }
            false => std::iter::once(before.len()..whole.text.len()).collect(),
        };
        self.guarded(asked, Rendered { text: whole.text, trained })
    }

    /// Finds what the template alone may write, ends what is trained behind the end of the turn, and takes the marks out.
    fn guarded(&self, asked: &Asked, rendered: Rendered) -> Usable<Guarded> {
        let Rendered { text, trained } = rendered;
        let control: Vec<Range<usize>> = self.control.iter().flat_map(|control| control.find(&text)).collect();
        let mut trained: Vec<Range<usize>> = trained.into_iter().filter(|range| !range.is_empty()).collect();
        let num = trained.len();
        for (n, range) in trained.iter_mut().enumerate() {
            match end_of_turn(&text, range, &control) {
                Some(end) => range.end = end,
                // Blocks of one turn, as of thoughts and words, follow each other.
                None if self.marks_trained() && n + 1 < num => {}
                None => return Err(self.no_end(&text[range.clone()])),
            }
        }
        if trained.is_empty() {
            return Err(Refusal::new(Reason::Untrained, "the template marks nothing of it"));
        }
        if !asked.is_marked {
            return Ok(Guarded { text, trained, control, is_injected: false });
        }
        let (text, [trained, control]) = unmarked(&text, [trained, control]);
        Ok(Guarded { text, trained, control, is_injected: true })
    }

    fn no_end(&self, answer: &str) -> Refusal {
        let end: String = answer.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
        let what = format!("no token that ends turns stands at the end of what is trained, which is `{end}`");
        let reason = if self.marks_trained() { Reason::NoEndOfTurn } else { Reason::Ambiguous };
        Refusal::new(reason, what)
    }

    /// That marks changed nothing but where they are: a template may look for words.
    pub fn check_injected(&self, guarded: &Guarded, messages: &[Message], tools: Option<&str>) -> Usable<()> {
        if !guarded.is_injected {
            return Ok(());
        }
        let json = messages.iter().map(|message| message.json.clone()).collect();
        let asked = Asked { messages: json, tools: tools.map(str::to_owned), is_marked: false };
        if self.text(&asked, messages.len(), false)?.text == guarded.text {
            return Ok(());
        }
        let what = "the template looks for a token in a content, which only it may write; see --content-token";
        Err(Refusal::new(Reason::SpecialInContent, what))
    }
}

/// Behind the last token that ends a turn, if only white space follows it in the range.
fn end_of_turn(text: &str, range: &Range<usize>, control: &[Range<usize>]) -> Option<usize> {
    let behind = control.partition_point(|found| found.end <= range.end);
    let last = control[..behind].last().filter(|found| found.start >= range.start)?;
    text[last.end..range.end].trim().is_empty().then_some(last.end)
}

/// A template, or a `tokenizer_config.json` with one.
fn of_file(path: &Path) -> Result<String> {
    let text = read_settings(path)?;
    let text = text.ok_or_else(|| Error::Config(format!("{}: there is no such file", path.display())))?;
    if path.extension().is_none_or(|ending| ending != "json") {
        return Ok(text);
    }
    let config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Error::Config(format!("{}: {error}", path.display())))?;
    let template = template_of(&config).map(str::to_owned);
    template.ok_or_else(|| Error::Config(format!("{}: it has no chat_template", path.display())))
}
