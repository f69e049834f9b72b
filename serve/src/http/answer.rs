//! Answers of `/v1/completions` and `/v1/chat/completions`: from events of the engine to JSON, whole or piece by piece.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::sse;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use toroid_worker::generate::Finish;

use super::Served;
use super::error::{ApiError, gone};
use super::request::{Asked, Kind, random, unix_seconds};
use crate::engine::Event;
use crate::tokens::Tokens;

/// A request that is being answered.
pub struct Answer {
    served: Arc<Served>,
    asked: Asked,
    id: String,
    created: u64,
    choices: Vec<Choice>,
}

/// A text as far as it was told.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    /// Bytes of the prompt at its beginning.
    num_echoed: usize,
    has_begun: bool,
    has_ended: bool,
    num_tokens: usize,
}

/// What an event adds to a choice.
#[derive(Debug, Default)]
struct Part {
    text: String,
    logs: Vec<Log>,
    finish: Option<Finish>,
}

/// A token with what is to be said of it.
#[derive(Debug)]
struct Log {
    token: u32,
    /// Characters of the text before it.
    offset: usize,
    /// `None`: nothing foretells the first token.
    logprob: Option<f64>,
    top: Vec<(u32, f64)>,
}

impl Answer {
    pub fn new(served: Arc<Served>, asked: Asked) -> Result<Answer, ApiError> {
        let prefix = match asked.kind {
            Kind::Completion => "cmpl",
            Kind::Chat => "chatcmpl",
        };
        let id = format!("{prefix}-{:016x}", random()?);
        let choices = (0..asked.prompts.len() * asked.n).map(|_| Choice::default()).collect();
        Ok(Answer { served, asked, id, created: unix_seconds(), choices })
    }

    /// All of it, when all of it is there.
    pub async fn whole(mut self, mut events: UnboundedReceiver<(usize, Event)>) -> Result<Value, ApiError> {
        let mut parts: Vec<Part> = self.choices.iter().map(|_| Part::default()).collect();
        while !self.has_ended() {
            let (index, event) = events.recv().await.ok_or_else(gone)?;
            let Part { text, logs, finish } = self.part(index, event)?;
            let part = &mut parts[index];
            part.text.push_str(&text);
            part.logs.extend(logs);
            part.finish = finish.or(part.finish);
        }
        let choices: Vec<Value> = parts.iter().enumerate().map(|(i, part)| self.choice(i, part)).collect();
        let mut body = self.head(match self.asked.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion",
        });
        body.insert("choices".into(), choices.into());
        body.insert("usage".into(), self.usage());
        Ok(body.into())
    }

    fn has_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.has_ended)
    }

    fn head(&self, object: &str) -> Map<String, Value> {
        let fingerprint = format!("fp_{}", &self.served.engine.digest[..12]);
        let head = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.served.name, "system_fingerprint": fingerprint,
        });
        match head {
            Value::Object(head) => head,
            _ => Map::new(),
        }
    }

    /// Prompts are counted once, however many texts they have.
    fn usage(&self) -> Value {
        let prompt: usize = self.asked.prompts.iter().map(Vec::len).sum();
        let completion: usize = self.choices.iter().map(|choice| choice.num_tokens).sum();
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }

    fn part(&mut self, index: usize, event: Event) -> Result<Part, ApiError> {
        let tokens = &self.served.engine.model.tokens;
        let choice = &mut self.choices[index];
        let prompt = &self.asked.prompts[index / self.asked.n];
        let mut part = Part::default();
        if self.asked.echo && !choice.has_begun {
            part.text = tokens.decode(prompt, true).map_err(|e| ApiError::field("prompt", format!("{e:#}")))?;
            choice.num_echoed = part.text.len();
            choice.text.push_str(&part.text);
        }
        choice.has_begun = true;
        match event {
            Event::Prompt(scores) => {
                let first = prompt.iter().take(1).map(|token| (*token, None, Vec::new()));
                let others = scores.into_iter().map(|score| (score.token, Some(score.logprob), score.top));
                let logs = first.chain(others).zip(Tokens::offsets(tokens, prompt));
                part.logs.extend(logs.map(|((token, logprob, top), offset)| Log { token, offset, logprob, top }));
            }
            Event::Piece { text, tokens: written } => {
                choice.text.push_str(&text);
                part.text.push_str(&text);
                for written in written {
                    let Some(score) = written.score else { continue };
                    let before = choice.text.get(..choice.num_echoed + written.offset).unwrap_or(&choice.text);
                    let offset = before.chars().count();
                    part.logs.push(Log { token: score.token, offset, logprob: Some(score.logprob), top: score.top });
                }
            }
            Event::End { finish, num_tokens } => {
                choice.num_tokens = num_tokens;
                choice.has_ended = true;
                part.finish = Some(finish);
            }
            Event::Failed(error) => return Err(ApiError::of_prompt(self.asked.kind.field(), &error)),
        }
        Ok(part)
    }

    /// A choice of a whole answer.
    fn choice(&self, index: usize, part: &Part) -> Value {
        let (logprobs, finish) = (self.logprobs(&part.logs), part.finish.map(reason));
        match self.asked.kind {
            Kind::Completion => {
                json!({ "index": index, "text": part.text, "logprobs": logprobs, "finish_reason": finish })
            }
            Kind::Chat => {
                let message = json!({ "role": "assistant", "content": part.text });
                json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
            }
        }
    }

    fn logprobs(&self, logs: &[Log]) -> Value {
        if self.asked.scores.is_none() {
            return Value::Null;
        }
        let tokens = &self.served.engine.model.tokens;
        match self.asked.kind {
            Kind::Completion => {
                let top = |log: &Log| -> Option<Map<String, Value>> {
                    log.logprob?;
                    // The token itself is among them, also where it is not one of the likeliest.
                    let own = (log.token, log.logprob?);
                    Some(log.top.iter().chain([&own]).map(|(token, p)| (tokens.name(*token), json!(p))).collect())
                };
                json!({
                    "tokens": logs.iter().map(|log| tokens.name(log.token)).collect::<Vec<_>>(),
                    "token_logprobs": logs.iter().map(|log| log.logprob).collect::<Vec<_>>(),
                    "top_logprobs": logs.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": logs.iter().map(|log| log.offset).collect::<Vec<_>>(),
                })
            }
            Kind::Chat => {
                let one = |token: u32, logprob: f64| json!({ "token": tokens.name(token), "logprob": logprob, "bytes": tokens.bytes(token) });
                let entry = |log: &Log| {
                    let mut entry = one(log.token, log.logprob?);
                    entry["top_logprobs"] = log.top.iter().map(|(token, p)| one(*token, *p)).collect();
                    Some(entry)
                };
                json!({ "content": logs.iter().filter_map(entry).collect::<Vec<_>>() })
            }
        }
    }

    /// The chunks of a stream that an event makes.
    fn chunks(&mut self, index: usize, event: Event) -> Result<Vec<Value>, ApiError> {
        let is_first = !self.choices[index].has_begun;
        let part = self.part(index, event)?;
        let mut deltas = Vec::new();
        let chat = |delta: Value, logprobs: Value, finish: Option<&str>| json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        if is_first && self.asked.kind == Kind::Chat {
            deltas.push(chat(json!({ "role": "assistant", "content": "" }), Value::Null, None));
        }
        if !part.text.is_empty() || !part.logs.is_empty() {
            let logprobs = self.logprobs(&part.logs);
            deltas.push(match self.asked.kind {
                Kind::Completion => {
                    json!({ "index": index, "text": part.text, "logprobs": logprobs, "finish_reason": null })
                }
                Kind::Chat => chat(json!({ "content": part.text }), logprobs, None),
            });
        }
        if let Some(finish) = part.finish.map(reason) {
            deltas.push(match self.asked.kind {
                Kind::Completion => {
                    json!({ "index": index, "text": "", "logprobs": null, "finish_reason": finish })
                }
                Kind::Chat => chat(json!({}), Value::Null, Some(finish)),
            });
        }
        let mut chunks: Vec<Value> = deltas.into_iter().map(|delta| self.chunk(vec![delta])).collect();
        if self.has_ended() && self.asked.streams_usage {
            let mut last = self.chunk(Vec::new());
            last["usage"] = self.usage();
            chunks.push(last);
        }
        Ok(chunks)
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.head(match self.asked.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        });
        chunk.insert("choices".into(), choices.into());
        chunk.into()
    }
}

/// In OpenAI's words.
fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Context => "length",
    }
}

/// An answer piece by piece. Dropped, as when its reader has gone, it lets go of its texts at once.
pub struct Chunks {
    answer: Answer,
    events: UnboundedReceiver<(usize, Event)>,
    ready: VecDeque<sse::Event>,
    is_done: bool,
}

impl Chunks {
    pub fn new(answer: Answer, events: UnboundedReceiver<(usize, Event)>) -> Chunks {
        Chunks { answer, events, ready: VecDeque::new(), is_done: false }
    }

    fn take(&mut self, event: Option<(usize, Event)>) {
        let chunks = event.ok_or_else(gone).and_then(|(index, event)| self.answer.chunks(index, event));
        self.is_done = chunks.is_err() || self.answer.has_ended();
        let chunks = chunks.unwrap_or_else(|error| vec![error.body()]);
        // JSON in one line.
        self.ready.extend(chunks.iter().map(|chunk| sse::Event::default().data(chunk.to_string())));
        if self.is_done {
            self.ready.push_back(sse::Event::default().data("[DONE]"));
        }
    }
}

impl tokio_stream::Stream for Chunks {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.is_done {
                return Poll::Ready(None);
            }
            match self.events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => self.take(event),
            }
        }
    }
}
