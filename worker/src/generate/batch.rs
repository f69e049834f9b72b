//! Sequences that are read and written side by side, and join and leave between two steps (continuous batching).
//!
//! ```text
//!   join ──> a place: reading its prompt, PIECE rows of all prompts a step ──> writing, one row a step ──> ended, or nobody listens
//!                 ^ what another place has of the same beginning is copied
//! ```
//!
//! A step is one forward of the rows of all places. Who reads a long prompt holds nobody up: writing goes on beside it.
//!
//! Invariants:
//!
//! - **G-1.** The tokens of a sequence follow from it and the weights alone, not from its place, its neighbours or who was there before, where rows are
//!   independent ([`crate::device::CachedAttention::rows_are_independent`]): each row has the logits of the training forward (M-5), also behind a
//!   beginning that was copied.
//! - **G-2.** A place whose sequence has ended, or whose listener is gone, is free before the next step.
//!
//! Deliberately absent: who waits for a place, text.

use super::sample::{self, Key, Sampling};
use super::{Finish, GenerateError};
use crate::device::CachePlace;
use crate::model::{Decode, Row};

/// Rows of prompts in a step.
pub const PIECE: usize = 64;
/// A beginning that another is about to have read is waited for if it is so much longer than what there is.
const WORTH_WAITING: usize = 8;

/// What is to be read and written.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// At least one token, and fewer than the model reads at a time.
    pub prompt: Vec<u32>,
    /// Which of the texts of this prompt.
    pub sample: u64,
    pub seed: u64,
    pub sampling: Sampling,
    pub max_tokens: usize,
    /// The listener is told of the logits behind each token of the prompt.
    pub scores_prompt: bool,
}

impl Sequence {
    /// Whether it can be read and written at all, where a sequence has up to `most` tokens.
    pub fn check(&self, most: usize) -> Result<(), GenerateError> {
        match self.prompt.len() {
            0 => Err(GenerateError::Empty),
            found if found > most || (found == most && self.max_tokens > 0) => {
                Err(GenerateError::TooLong { found, most })
            }
            _ => Ok(()),
        }
    }
}

/// Who is told of a sequence.
pub trait Listener {
    /// `logits (vocab)` behind the prompt's token at `position`; only where [`Sequence::scores_prompt`] asks for it.
    fn prompt(&mut self, _position: usize, _logits: &[f32]) {}
    /// A token, by `logits (vocab)`; `Some`: it is the last, for this reason.
    fn token(&mut self, token: u32, logits: &[f32]) -> Option<Finish>;
    /// Nobody wants more of it.
    fn is_gone(&self) -> bool {
        false
    }
}

/// A sequence that has ended.
#[derive(Debug)]
pub struct Ended<L> {
    pub listener: L,
    pub result: Result<Finish, GenerateError>,
}

/// A sequence at its place.
struct Work<L> {
    listener: L,
    sequence: Sequence,
    key: Key,
    /// Tokens of the prompt that were read; `None`: it has not begun.
    num_read: Option<usize>,
    num_written: usize,
    last: u32,
    /// Lower: it joined earlier.
    turn: u64,
}

impl<L> Work<L> {
    fn num_unread(&self) -> usize {
        self.sequence.prompt.len() - self.num_read.unwrap_or(0)
    }
}

struct Place<L> {
    /// Tokens whose keys and values the decoder has, whoever brought them.
    cached: Vec<u32>,
    work: Option<Work<L>>,
    /// Turn of its last sequence.
    turn: u64,
}

/// The places of a decoder, one for each of its sequences.
pub struct Batch<L> {
    places: Vec<Place<L>>,
    /// Tokens of a sequence at most.
    most: usize,
    /// Tokens from this one on never come.
    num_tokens: usize,
    turn: u64,
}

impl<L: Listener> Batch<L> {
    /// `places` sequences of up to `most` tokens below `num_tokens`.
    pub fn new(places: usize, most: usize, num_tokens: usize) -> Batch<L> {
        let place = |_| Place { cached: Vec::new(), work: None, turn: 0 };
        Batch { places: (0..places).map(place).collect(), most, num_tokens, turn: 0 }
    }

    pub fn num_free(&self) -> usize {
        self.places.iter().filter(|place| place.work.is_none()).count()
    }

    pub fn is_idle(&self) -> bool {
        self.num_free() == self.places.len()
    }

    /// Gives `sequence`, which [`Sequence::check`] found good, a place; there must be a free one.
    pub fn join(&mut self, sequence: Sequence, listener: L) {
        assert!(sequence.check(self.most).is_ok(), "a sequence that was checked");
        self.turn += 1;
        let key = Key::new(sequence.seed, &sequence.prompt, sequence.sample);
        let free = self.places.iter_mut().filter(|place| place.work.is_none());
        // The one that has most of it already, else the one that was left longest ago.
        let place = free.max_by_key(|place| (common(&place.cached, &sequence.prompt), std::cmp::Reverse(place.turn)));
        let place = place.expect("whoever joins has asked for a free place");
        place.turn = self.turn;
        place.work = Some(Work { listener, sequence, key, num_read: None, num_written: 0, last: 0, turn: self.turn });
    }

    /// One forward. Returns the sequences that have ended with it; those whose listener is gone leave without a word.
    pub fn step<D: Decode + ?Sized>(&mut self, decoder: &mut D) -> Vec<Ended<L>> {
        self.places.iter_mut().for_each(|place| drop(place.work.take_if(|work| work.listener.is_gone())));
        let rows = self.rows(decoder);
        if rows.is_empty() {
            return Vec::new();
        }
        let wanted: Vec<usize> = (0..rows.len()).filter(|i| self.wants_logits(&rows[*i])).collect();
        let mut logits = vec![0.0; wanted.len() * decoder.vocab()];
        decoder.forward_some(&rows, &wanted, &mut logits);
        for row in &rows {
            let cached = &mut self.places[row.place.sequence].cached;
            cached.truncate(row.place.position);
            cached.push(row.token);
        }
        let mut ended = Vec::new();
        for (i, logits) in wanted.into_iter().zip(logits.chunks_exact(decoder.vocab())) {
            let CachePlace { sequence, position } = rows[i].place;
            if let Some(result) = self.hear(sequence, position, logits)
                && let Some(work) = self.places[sequence].work.take()
            {
                ended.push(Ended { listener: work.listener, result });
            }
        }
        ended
    }

    /// What the next forward computes: a row of each sequence that is written, and a piece of the prompts, first come, first read.
    fn rows<D: Decode + ?Sized>(&mut self, decoder: &mut D) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut reading: Vec<(u64, usize)> = Vec::new();
        for (i, place) in self.places.iter().enumerate() {
            let Some(work) = &place.work else { continue };
            if work.num_unread() > 0 {
                reading.push((work.turn, i));
            } else {
                let position = work.sequence.prompt.len() + work.num_written - 1;
                rows.push(Row { place: CachePlace { sequence: i, position }, token: work.last });
            }
        }
        reading.sort_unstable();
        let mut room = PIECE;
        for (_, i) in reading {
            if room == 0 || !self.begin(i, decoder) {
                continue;
            }
            let Some(work) = &mut self.places[i].work else { continue };
            let start = work.num_read.unwrap_or(0);
            let end = work.sequence.prompt.len().min(start + room);
            let row = |position: usize| {
                let token = work.sequence.prompt[position];
                Row { place: CachePlace { sequence: i, position }, token }
            };
            rows.extend((start..end).map(row));
            room -= end - start;
            work.num_read = Some(end);
        }
        rows
    }

    /// Has the sequence at place `i` begun, with what others have of its beginning; false: another reads it right now, which is waited for.
    fn begin<D: Decode + ?Sized>(&mut self, i: usize, decoder: &mut D) -> bool {
        let Some(work) = &self.places[i].work else { return false };
        if work.num_read.is_some() {
            return true;
        }
        // The logits behind the last token are needed in any case.
        let prompt = &work.sequence.prompt[..work.sequence.prompt.len() - 1];
        let prompt = if work.sequence.scores_prompt { &prompt[..0] } else { prompt };
        let have = |j: usize| common(&self.places[j].cached, prompt);
        // Of as much the own place: nothing is copied.
        let from = (0..self.places.len()).max_by_key(|j| (have(*j), *j == i)).unwrap_or(i);
        let num = have(from);
        let will_have = |place: &Place<L>| match &place.work {
            Some(other) if other.num_read.is_some() && other.num_unread() > 0 => common(&other.sequence.prompt, prompt),
            _ => 0,
        };
        if self.places.iter().any(|place| will_have(place) > num + WORTH_WAITING) {
            return false;
        }
        let beginning = prompt[..num].to_vec();
        if from != i && num > 0 {
            decoder.copy_sequence(from, i, num);
        }
        let place = &mut self.places[i];
        place.cached = beginning;
        if let Some(work) = &mut place.work {
            work.num_read = Some(num);
        }
        true
    }

    fn wants_logits(&self, row: &Row) -> bool {
        let work = self.places[row.place.sequence].work.as_ref();
        work.is_some_and(|work| work.sequence.scores_prompt || row.place.position + 1 >= work.sequence.prompt.len())
    }

    /// Tells the sequence at a place of the logits behind `position`; why it has ended.
    fn hear(&mut self, place: usize, position: usize, logits: &[f32]) -> Option<Result<Finish, GenerateError>> {
        let work = self.places[place].work.as_mut()?;
        let Sequence { prompt, sampling, max_tokens, scores_prompt, .. } = &work.sequence;
        if *scores_prompt && position < prompt.len() {
            work.listener.prompt(position, logits);
        }
        let next = position + 1;
        if next < prompt.len() {
            return None;
        }
        if *max_tokens == 0 {
            return Some(Ok(Finish::Length));
        }
        let may_come = &logits[..self.num_tokens.min(logits.len())];
        let Some(token) = sample::next(may_come, *sampling, work.key, next) else {
            return Some(Err(GenerateError::NotFinite { position: next }));
        };
        work.num_written += 1;
        work.last = token;
        let finish = work.listener.token(token, logits);
        let is_long = (work.num_written >= *max_tokens).then_some(Finish::Length);
        let is_full = (next + 1 == self.most).then_some(Finish::Context);
        finish.or(is_long).or(is_full).map(Ok)
    }
}

/// Tokens that both begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
