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

use regex::Regex;
use toroid_chat::{BYTES, CHATML, Chat, ChatError, Limits, Rendered, Template, Time, template_of};

use crate::chat::refusal::{Reason, Refusal, Usable};
use crate::chat::row::{Message, texts_in};
use crate::chat::tokenizer::{ChatTokens, Guarded, read_settings};
use crate::error::{Error, Result};

/// Put into what users wrote; a row that has it and needs it is refused.
const MARK: char = '\u{f8fd}';
/// A text that a template makes of one row.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// What looking for the tokens of a file may take.
const MAX_REGEX_BYTES: usize = 1 << 28;

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
    control: Option<Regex>,
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
        let control = if is_bytes { found.signs()? } else { tokens.control().map(str::to_owned).collect() };
        found.control = any_of(control)?;
        Ok(found)
    }

    pub fn marks_trained(&self) -> bool {
        self.template.marks_trained()
    }

    /// What reads like a sign of the template where tokens are bytes: `<|word|>`, and control characters.
    fn signs(&self) -> Result<Vec<String>> {
        let probe = [Message::of("user", "Question"), Message::of("assistant", "Answer")];
        let asked = self.asked(&probe, None).and_then(|asked| self.text(&asked, 2, false));
        let text = asked.map_err(|refusal| Error::Config(format!("{}: {}", self.name, refusal.detail)))?.text;
        let is_sign = |c: &char| ('\u{1}'..='\u{8}').contains(c);
        let mut signs: Vec<String> = text.chars().filter(is_sign).map(String::from).collect();
        let word = Regex::new(r"<\|[^|<>\s]{1,60}\|>").map_err(|error| Error::Config(error.to_string()))?;
        for place in [&self.source, &text] {
            signs.extend(word.find_iter(place).map(|found| found.as_str().to_owned()));
        }
        Ok(signs)
    }

    fn asked(&self, messages: &[Message], tools: Option<&str>) -> Usable<Asked> {
        let mut is_in_tools = false;
        if let Some(tools) = tools {
            texts_in(tools, &mut |text| is_in_tools |= self.has_control(text) || text.contains(MARK))?;
        }
        let mut is_marked = false;
        messages.iter().for_each(|message| message.texts(&mut |text| is_marked |= self.has_control(text)));
        let json = |messages: &[Message]| messages.iter().map(|message| message.json.clone()).collect();
        if !is_marked && !is_in_tools {
            return Ok(Asked { messages: json(messages), tools: tools.map(str::to_owned), is_marked });
        }
        let refuse = |what: &str| Err(Refusal::new(Reason::SpecialInContent, what));
        if self.is_bytes {
            return refuse("a content has what ends or begins turns, and bytes cannot be told apart");
        }
        let mut has_mark = false;
        messages.iter().for_each(|message| message.texts(&mut |text| has_mark |= text.contains(MARK)));
        if has_mark || is_in_tools {
            return refuse("a token that only the template may write is in the tools, or stands beside U+F8FD");
        }
        let marked: Usable<Vec<Message>> =
            messages.iter().map(|message| message.with_texts(&mut |text| self.marked(text))).collect();
        let marked = marked?;
        // Names of fields stay as they are, and what has one character cannot be marked within.
        let mut is_left = false;
        marked.iter().for_each(|message| message.texts(&mut |text| is_left |= self.has_control(text)));
        if is_left {
            return refuse("a token of one character, or in the name of a field, that only the template may write");
        }
        Ok(Asked { messages: json(&marked), tools: tools.map(str::to_owned), is_marked })
    }

    fn has_control(&self, text: &str) -> bool {
        self.control.as_ref().is_some_and(|control| control.is_match(text))
    }

    /// With a mark behind each character of what only the template may write; none if there is nothing.
    fn marked(&self, text: &str) -> Option<String> {
        let (mut marked, mut at) = (String::new(), 0);
        for found in self.control.as_ref()?.find_iter(text) {
            marked.push_str(&text[at..found.start()]);
            found.as_str().chars().for_each(|c| marked.extend([c, MARK]));
            at = found.end();
        }
        marked.push_str(&text[at..]);
        (at > 0).then_some(marked)
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
        let control: Vec<Range<usize>> =
            self.control.iter().flat_map(|control| control.find_iter(&text)).map(|found| found.range()).collect();
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
        let marks: Vec<usize> = text.match_indices(MARK).map(|(at, _)| at).collect();
        let moved_to = |at: usize| at - marks.partition_point(|mark| *mark < at) * MARK.len_utf8();
        let moved = |range: Range<usize>| moved_to(range.start)..moved_to(range.end);
        let without = text.chars().filter(|c| *c != MARK).collect();
        let (trained, control) = (trained.into_iter().map(moved).collect(), control.into_iter().map(moved).collect());
        Ok(Guarded { text: without, trained, control, is_injected: true })
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

/// The longest of these that stands somewhere; none of none.
fn any_of(mut words: Vec<String>) -> Result<Option<Regex>> {
    words.retain(|word| !word.is_empty());
    words.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    words.dedup();
    if words.is_empty() {
        return Ok(None);
    }
    let pattern: Vec<String> = words.iter().map(|word| regex::escape(word)).collect();
    // Words of a file that was read: they may be many, and are no patterns.
    let regex = regex::RegexBuilder::new(&pattern.join("|")).size_limit(MAX_REGEX_BYTES).build();
    let cannot =
        |error| Error::Config(format!("the tokenizer's {} added tokens cannot be looked for: {error}", words.len()));
    regex.map(Some).map_err(cannot)
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
