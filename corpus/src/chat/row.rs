//! Rows of JSON as they come, and the dialogues and preferences in them.
//!
//! ```text
//!   messages                                      a dialogue: [{role, content}, ...]
//!   prompt, response or completion                a question or messages, and an answer
//!   instruction, input, output                    alpaca's
//!   prompt, chosen, rejected                      a preference: texts or messages; margin or scores beside them
//! ```
//!
//! What is wrong with a row is found here as far as it needs no template and no tokens.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::chat::refusal::{Reason, Refusal, Usable};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
const ASSISTANT: &str = "assistant";

/// What somebody says. `json` is the object as it came, with its fields in their order: templates see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: String,
    /// The text alone.
    pub content: String,
    value: Value,
    pub json: String,
}

impl Message {
    pub fn of(role: &str, content: &str) -> Message {
        let value = json!({"role": role, "content": content});
        // In the order in which people write it.
        let json = format!("{{\"role\":{},\"content\":{}}}", value["role"], value["content"]);
        Message { role: role.into(), content: content.into(), value, json }
    }

    fn parse(raw: &RawValue) -> Usable<Message> {
        let mut value: Value = serde_json::from_str(raw.get()).map_err(broken)?;
        let unknown = |detail: String| Refusal::new(Reason::UnknownRole, detail);
        let role = match value.get("role").and_then(Value::as_str) {
            Some(role) if ROLES.contains(&role) => role.to_owned(),
            Some(role) => {
                return Err(unknown(format!("the role `{:.40}`; {} are known", role, ROLES.join(", "))));
            }
            None => return Err(unknown("a message has no role".into())),
        };
        let (content, is_parts) = match value.get("content") {
            Some(Value::String(text)) => (text.clone(), false),
            Some(Value::Array(parts)) => (text_of(parts)?, true),
            None | Some(Value::Null) if value.get("tool_calls").is_some() => (String::new(), false),
            _ => return Err(Refusal::new(Reason::NoText, format!("the content of a message of `{role}` is no text"))),
        };
        if is_parts {
            value["content"] = Value::String(content.clone());
        }
        let json = if is_parts { value.to_string() } else { raw.get().to_owned() };
        Ok(Message { role, content, value, json })
    }

    pub fn is_answer(&self) -> bool {
        self.role == ASSISTANT
    }

    fn has_words(&self) -> bool {
        !self.content.trim().is_empty()
            || self.value.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
    }

    /// The object itself.
    pub fn value(&self) -> &Value {
        &self.value
    }
}

/// Texts of parts, as newer interfaces have them.
fn text_of(parts: &[Value]) -> Usable<String> {
    let text = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (Some("text") | None, Some(Value::String(text))) => Ok(text.clone()),
        (kind, _) => Err(Refusal::new(Reason::NoText, format!("a part of kind `{}`", kind.unwrap_or("none")))),
    };
    parts.iter().map(text).collect()
}

/// A row that can be rendered.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    Dialogue {
        /// The last one is an answer.
        messages: Vec<Message>,
        /// Messages of others behind the last answer, which are not there any more.
        num_cut: usize,
        /// Descriptions of functions, in JSON.
        tools: Option<String>,
    },
    Preference {
        prompt: Vec<Message>,
        /// The chosen and the rejected.
        answers: [Message; 2],
        margin: f32,
        tools: Option<String>,
    },
}

/// Where margins of preferences come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Margins {
    /// The field `margin`, 0 where there is none.
    Given,
    /// The difference of the scores, which must be there.
    Scores,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    completion: Option<&'a RawValue>,
    #[serde(borrow)]
    instruction: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    chosen: Option<&'a RawValue>,
    #[serde(borrow)]
    rejected: Option<&'a RawValue>,
    #[serde(borrow)]
    margin: Option<&'a RawValue>,
    #[serde(borrow, alias = "chosen_score", alias = "chosen_rating")]
    score_chosen: Option<&'a RawValue>,
    #[serde(borrow, alias = "rejected_score", alias = "rejected_rating")]
    score_rejected: Option<&'a RawValue>,
}

fn broken(error: serde_json::Error) -> Refusal {
    Refusal::new(Reason::BrokenJson, error.to_string())
}

/// Whether a line is a preference, by its fields alone; nothing if it is no row.
pub fn is_preference(line: &[u8]) -> Option<bool> {
    let fields: Fields<'_> = serde_json::from_str(std::str::from_utf8(line).ok()?).ok()?;
    Some(fields.chosen.is_some() || fields.rejected.is_some())
}

/// The dialogue or the preference of a line.
pub fn read(line: &[u8], margins: Margins) -> Usable<Row> {
    let text = std::str::from_utf8(line)
        .map_err(|error| Refusal::new(Reason::InvalidUtf8, format!("at byte {} of the line", error.valid_up_to())))?;
    // A derived reader takes a list of values for an object, too.
    if !text.trim_start().starts_with('{') {
        return Err(Refusal::new(Reason::BrokenJson, "the line is no object"));
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(broken)?;
    let tools = fields.tools.map(|tools| tools.get().to_owned());
    let of_prompt = fields.response.or(fields.completion);
    match (fields.messages, fields.prompt, of_prompt, fields.instruction, fields.chosen.zip(fields.rejected)) {
        (_, prompt, None, None, Some((chosen, rejected))) => {
            let (prompt, answers) = pair(prompt, chosen, rejected)?;
            Ok(Row::Preference { prompt, answers, margin: margin(&fields, margins)?, tools })
        }
        (Some(messages), None, None, None, None) => dialogue(parse_messages(messages)?, tools),
        (None, Some(prompt), Some(answer), None, None) => {
            let mut messages = system(&fields)?;
            messages.extend(spoken(prompt, "user", "prompt")?);
            messages.extend(spoken(answer, ASSISTANT, "response")?);
            dialogue(messages, tools)
        }
        (None, None, None, Some(instruction), None) => {
            let output = fields.output.ok_or_else(|| unknown("`instruction` without `output`"))?;
            let (instruction, output) = (string(instruction, "instruction")?, string(output, "output")?);
            let input = fields.input.map_or(Ok(String::new()), |input| string(input, "input"))?;
            let asked = if input.trim().is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
            let mut messages = system(&fields)?;
            messages.extend([Message::of("user", &asked), Message::of(ASSISTANT, &output)]);
            dialogue(messages, tools)
        }
        _ if fields.chosen.is_some() != fields.rejected.is_some() => {
            Err(unknown("one of `chosen` and `rejected` alone"))
        }
        _ => Err(unknown(
            "expected `messages`, or `prompt` and `response` (or `completion`), or `instruction` and `output`, or `chosen` and `rejected`",
        )),
    }
}

fn unknown(detail: &str) -> Refusal {
    Refusal::new(Reason::UnknownFields, detail)
}

fn string(raw: &RawValue, field: &str) -> Usable<String> {
    serde_json::from_str(raw.get()).map_err(|_| Refusal::new(Reason::NoText, format!("`{field}` is no text")))
}

fn system(fields: &Fields<'_>) -> Usable<Vec<Message>> {
    let text = fields.system.map_or(Ok(String::new()), |system| string(system, "system"))?;
    Ok(if text.is_empty() { Vec::new() } else { vec![Message::of("system", &text)] })
}

fn parse_messages(raw: &RawValue) -> Usable<Vec<Message>> {
    let raw: Vec<&RawValue> = serde_json::from_str(raw.get())
        .map_err(|_| Refusal::new(Reason::NoText, "expected a list of messages with `role` and `content`"))?;
    raw.into_iter().map(Message::parse).collect()
}

/// Messages, or a text that `role` says.
fn spoken(raw: &RawValue, role: &str, field: &str) -> Usable<Vec<Message>> {
    if raw.get().starts_with('[') { parse_messages(raw) } else { Ok(vec![Message::of(role, &string(raw, field)?)]) }
}

fn dialogue(mut messages: Vec<Message>, tools: Option<String>) -> Usable<Row> {
    let Some(last) = messages.iter().rposition(Message::is_answer) else {
        return Err(Refusal::new(
            Reason::NoAssistantTurn,
            format!("{} messages, none of the assistant", messages.len()),
        ));
    };
    let num_cut = messages.len() - last - 1;
    messages.truncate(last + 1);
    check_answers(&messages)?;
    Ok(Row::Dialogue { messages, num_cut, tools })
}

fn check_answers(messages: &[Message]) -> Usable<()> {
    match messages.iter().position(|message| message.is_answer() && !message.has_words()) {
        Some(n) => Err(Refusal::new(Reason::EmptyAnswer, format!("message {} of {}", n + 1, messages.len()))),
        None => Ok(()),
    }
}

/// The prompt and the two answers, in whichever of the usual forms they come.
fn pair(prompt: Option<&RawValue>, chosen: &RawValue, rejected: &RawValue) -> Usable<(Vec<Message>, [Message; 2])> {
    let prompt = prompt.map(|prompt| spoken(prompt, "user", "prompt")).transpose()?;
    let [chosen, rejected] = [(chosen, "chosen"), (rejected, "rejected")].map(|(raw, field)| {
        let messages = spoken(raw, ASSISTANT, field)?;
        let (answer, before) = messages
            .split_last()
            .ok_or_else(|| Refusal::new(Reason::NoAssistantTurn, format!("`{field}` has no messages")))?;
        if !answer.is_answer() {
            let found = format!("`{field}` ends with a message of `{}`", answer.role);
            return Err(Refusal::new(Reason::NoAssistantTurn, found));
        }
        Ok((before.to_vec(), answer.clone()))
    });
    let ((before, chosen), (other, rejected)) = (chosen?, rejected?);
    let differ = |detail: &str| Err(Refusal::new(Reason::PromptsDiffer, detail));
    if !are_same(&before, &other) {
        return differ("what comes before the last message of `chosen` is not what comes before that of `rejected`");
    }
    let prompt = match (prompt, before.is_empty()) {
        (None, true) => return Err(unknown("`chosen` and `rejected` are answers, and there is no `prompt`")),
        (None, false) => before,
        (Some(prompt), true) => prompt,
        // Whole conversations, and their prompt once more beside them.
        (Some(prompt), false) => match &prompt[..] {
            [only] if before.iter().any(|message| message.role == "user" && message.content == only.content) => before,
            _ if before.len() >= prompt.len() && are_same(&before[..prompt.len()], &prompt) => before,
            _ => return differ("`prompt` is not what `chosen` and `rejected` begin with"),
        },
    };
    check_answers(&prompt)?;
    for (answer, field) in [(&chosen, "chosen"), (&rejected, "rejected")] {
        if !answer.has_words() {
            return Err(Refusal::new(Reason::EmptyAnswer, format!("`{field}`")));
        }
    }
    if are_same(std::slice::from_ref(&chosen), std::slice::from_ref(&rejected)) {
        return Err(Refusal::new(Reason::SameAnswers, "`chosen` is `rejected`"));
    }
    Ok((prompt, [chosen, rejected]))
}

fn are_same(some: &[Message], others: &[Message]) -> bool {
    some.len() == others.len() && some.iter().zip(others).all(|(one, other)| one.value == other.value)
}

fn margin(fields: &Fields<'_>, margins: Margins) -> Usable<f32> {
    let number = |raw: &RawValue, field: &str| {
        let found = serde_json::from_str::<f64>(raw.get()).ok().filter(|n| (*n as f32).is_finite());
        found.ok_or_else(|| Refusal::new(Reason::BadMargin, format!("`{field}` is `{:.40}`", raw.get())))
    };
    let given = fields.margin.map(|raw| number(raw, "margin")).transpose()?;
    let scores = match (fields.score_chosen, fields.score_rejected) {
        (Some(chosen), Some(rejected)) => Some((number(chosen, "score_chosen")?, number(rejected, "score_rejected")?)),
        (None, None) => None,
        _ => return Err(Refusal::new(Reason::BadMargin, "only one of the two answers has a score")),
    };
    if let Some((chosen, rejected)) = scores {
        let found = format!("chosen {chosen}, rejected {rejected}");
        if chosen == rejected {
            return Err(Refusal::new(Reason::Tie, found));
        }
        if chosen < rejected {
            return Err(Refusal::new(Reason::Contradiction, found));
        }
    }
    if let Some(margin) = given.filter(|margin| *margin < 0.0) {
        return Err(Refusal::new(Reason::Contradiction, format!("a margin of {margin}")));
    }
    match (margins, scores) {
        (Margins::None, _) => Ok(0.0),
        (Margins::Given, _) => Ok(given.unwrap_or(0.0) as f32),
        (Margins::Scores, Some((chosen, rejected))) => {
            let margin = (chosen - rejected) as f32;
            let too_large = || Refusal::new(Reason::BadMargin, format!("scores of {chosen} and {rejected}"));
            Some(margin).filter(|margin| margin.is_finite()).ok_or_else(too_large)
        }
        (Margins::Scores, None) => {
            Err(Refusal::new(Reason::BadMargin, "--margin scores, and the row has no scores of its answers"))
        }
    }
}
