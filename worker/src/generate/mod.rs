//! Text from a model: a prompt, and token after token behind it.
//!
//! ```text
//!   prompt --pieces--> Decoder: cache, logits --sample--> token --> stop? --> whoever listens
//!                         ^------------------------------------'
//! ```
//!
//! All samples of a prompt are decoded side by side; each is the text that it would be alone (`sample`, and M-5 of the model).
//!
//! Deliberately absent: text (a token is a number), TP and PP, several prompts at a time.

mod sample;

use crate::device::{CachePlace, CachedAttention};
use crate::model::{Decoder, Row};

pub use sample::{Key, Sampling};

/// Rows of a prompt that are computed at a time.
const PIECE: usize = 64;

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
pub fn generate<D: CachedAttention>(
    decoder: &mut Decoder<D>,
    request: &Request<'_>,
    mut said: impl FnMut(usize, &[u32]),
) -> Result<Vec<Text>, GenerateError> {
    let Request { prompt, samples, max_tokens, .. } = *request;
    if prompt.is_empty() {
        return Err(GenerateError::Empty);
    }
    let most = decoder.max_tokens();
    if prompt.len() >= most {
        return Err(GenerateError::TooLong { found: prompt.len(), most });
    }
    let first = read_prompt(decoder, prompt, samples);
    let mut texts: Vec<Writing> = (0..samples).map(|i| Writing::new(request, i)).collect();
    let vocab = first.len();
    let mut logits = first.repeat(samples);
    for position in prompt.len().. {
        let going: Vec<usize> = (0..samples).filter(|i| texts[*i].finish.is_none()).collect();
        for (i, logits) in going.iter().zip(logits.chunks_exact(vocab)) {
            let (text, at_end) = (&mut texts[*i], position + 1 == most);
            let logits = &logits[..request.num_tokens.min(vocab)];
            let token = sample::next(logits, request.sampling, text.key, position);
            text.push(token.ok_or(GenerateError::NotFinite { position })?, request);
            if text.finish.is_none() && text.tokens.len() >= max_tokens {
                text.finish = Some(Finish::Length);
            }
            if text.finish.is_none() && at_end {
                text.finish = Some(Finish::Context);
            }
            text.say(request, |tokens| said(*i, tokens));
        }
        let rows: Vec<Row> = going
            .into_iter()
            .filter(|i| texts[*i].finish.is_none())
            .filter_map(|i| Some(Row { place: CachePlace { sequence: i, position }, token: *texts[i].tokens.last()? }))
            .collect();
        if rows.is_empty() {
            break;
        }
        logits.resize(rows.len() * vocab, 0.0);
        decoder.forward(&rows, &mut logits);
    }
    Ok(texts
        .into_iter()
        .map(|text| Text { tokens: text.tokens, finish: text.finish.unwrap_or(Finish::Context) })
        .collect())
}

/// Puts the prompt into the cache of so many sequences; the logits of its last token.
fn read_prompt<D: CachedAttention>(decoder: &mut Decoder<D>, prompt: &[u32], samples: usize) -> Vec<f32> {
    let vocab = decoder.vocab();
    let mut logits = Vec::new();
    for (piece, tokens) in prompt.chunks(PIECE).enumerate() {
        let place = |i: usize| CachePlace { sequence: 0, position: piece * PIECE + i };
        let rows: Vec<Row> =
            tokens.iter().enumerate().map(|(i, token)| Row { place: place(i), token: *token }).collect();
        logits.resize(rows.len() * vocab, 0.0);
        decoder.forward(&rows, &mut logits);
    }
    (1..samples).for_each(|sequence| decoder.copy_sequence(0, sequence, prompt.len()));
    logits.split_off(logits.len() - vocab)
}

/// A text on its way.
struct Writing {
    key: Key,
    tokens: Vec<u32>,
    num_said: usize,
    finish: Option<Finish>,
}

impl Writing {
    fn new(request: &Request<'_>, sample: usize) -> Writing {
        let key = Key::new(request.seed, request.prompt, sample as u64);
        let finish = (request.max_tokens == 0).then_some(Finish::Length);
        Writing { key, tokens: Vec::new(), num_said: 0, finish }
    }

    fn push(&mut self, token: u32, request: &Request<'_>) {
        self.tokens.push(token);
        let stop =
            request.stops.iter().filter(|stop| !stop.is_empty() && self.tokens.ends_with(stop)).map(Vec::len).max();
        if let Some(len) = stop {
            self.tokens.truncate(self.tokens.len() - len);
            self.finish = Some(Finish::Stop);
        }
    }

    /// Tells `said` what is certain and was not told.
    fn say(&mut self, request: &Request<'_>, said: impl FnOnce(&[u32])) {
        let is_start = |stop: &Vec<u32>, len: &usize| *len < stop.len() && self.tokens.ends_with(&stop[..*len]);
        let held = match self.finish {
            Some(_) => 0,
            None => {
                let of = |stop: &Vec<u32>| (1..stop.len()).rev().find(|len| is_start(stop, len)).unwrap_or(0);
                request.stops.iter().map(of).max().unwrap_or(0)
            }
        };
        let certain = self.tokens.len() - held;
        if certain > self.num_said {
            said(&self.tokens[self.num_said..certain]);
            self.num_said = certain;
        }
    }
}
