//! Text from a model: a prompt, and token after token behind it.
//!
//! ```text
//!   prompt --pieces--> Decode: cache, logits --sample--> token --> stop? --> whoever listens
//!                        ^------------------------------------'
//! ```
//!
//! `batch` decodes any sequences side by side; each is the text that it would be alone (`sample`, and M-5 of the model). [`generate`] is that for the
//! samples of one prompt. Where a model is, in one place or split over several, is a matter of whoever computes its logits ([`Decode`]).
//!
//! Deliberately absent: text (a token is a number).

mod batch;
pub(crate) mod sample;

use std::cell::RefCell;

use crate::model::Decode;

pub use batch::{Batch, Ended, Listener, Sequence};
pub use sample::{Key, Sampling};

/// What is to be generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// At least one token.
    pub prompt: &'a [u32],
    /// Texts, as many as the decoder has sequences.
    pub samples: usize,
    pub max_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// A text ends before any of these.
    pub stops: &'a [Vec<u32>],
    /// Tokens from this one on never come.
    pub num_tokens: usize,
}

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// One of the stops came.
    Stop,
    /// It has `max_tokens`.
    Length,
    /// The model reads no more tokens at a time.
    Context,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
        }
    }
}

/// A text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Without the stop.
    pub tokens: Vec<u32>,
    pub finish: Finish,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    #[error("the prompt is empty; give at least one token")]
    Empty,
    #[error(
        "the prompt has {found} tokens, and the model reads {most} at a time, of which at least one is to be generated"
    )]
    TooLong { found: usize, most: usize },
    #[error("the logits at position {position} are no numbers: the weights are of no use")]
    NotFinite { position: usize },
}

/// Generates texts. `said` is told of each sample's tokens as soon as they are certain to be no part of a stop.
///
/// # Errors
///
/// The prompt is empty or too long, or the model computes no numbers.
pub fn generate<D: Decode + ?Sized>(
    decoder: &mut D,
    request: &Request<'_>,
    said: impl FnMut(usize, &[u32]),
) -> Result<Vec<Text>, GenerateError> {
    let Request { prompt, samples, max_tokens, sampling, seed, num_tokens, stops } = *request;
    let most = decoder.max_tokens();
    let mut batch = Batch::new(samples, most, num_tokens);
    let said = &RefCell::new(said);
    for sample in 0..samples {
        let sequence =
            Sequence { prompt: prompt.into(), sample: sample as u64, seed, sampling, max_tokens, scores_prompt: false };
        sequence.check(most)?;
        let said = move |tokens: &[u32]| said.borrow_mut()(sample, tokens);
        batch.join(sequence, Writing { sample, stops, said, tokens: Vec::new(), num_said: 0 });
    }
    let empty = || Text { tokens: Vec::new(), finish: Finish::Length };
    let mut texts: Vec<Text> = (0..samples).map(|_| empty()).collect();
    while !batch.is_idle() {
        for Ended { mut listener, result } in batch.step(decoder) {
            let finish = result?;
            listener.say(true);
            texts[listener.sample] = Text { tokens: listener.tokens, finish };
        }
    }
    Ok(texts)
}

/// A text on its way.
struct Writing<'a, F> {
    sample: usize,
    stops: &'a [Vec<u32>],
    said: F,
    tokens: Vec<u32>,
    num_said: usize,
}

impl<F: FnMut(&[u32])> Listener for Writing<'_, F> {
    fn token(&mut self, token: u32, _logits: &[f32]) -> Option<Finish> {
        self.tokens.push(token);
        let ends_with = |stop: &&Vec<u32>| !stop.is_empty() && self.tokens.ends_with(stop);
        let stop = self.stops.iter().filter(ends_with).map(Vec::len).max();
        if let Some(len) = stop {
            self.tokens.truncate(self.tokens.len() - len);
        }
        self.say(stop.is_some());
        stop.map(|_| Finish::Stop)
    }
}

impl<F: FnMut(&[u32])> Writing<'_, F> {
    /// Tells what is certain and was not told.
    fn say(&mut self, is_end: bool) {
        let is_start = |stop: &Vec<u32>, len: &usize| *len < stop.len() && self.tokens.ends_with(&stop[..*len]);
        let of = |stop: &Vec<u32>| (1..stop.len()).rev().find(|len| is_start(stop, len)).unwrap_or(0);
        let held = if is_end { 0 } else { self.stops.iter().map(of).max().unwrap_or(0) };
        let certain = self.tokens.len() - held;
        if certain > self.num_said {
            (self.said)(&self.tokens[self.num_said..certain]);
            self.num_said = certain;
        }
    }
}
