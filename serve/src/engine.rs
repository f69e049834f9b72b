//! The thread that computes: texts join its batch and leave it between steps, and whoever asked hears of each token as it comes.
//!
//! ```text
//!   requests ──submit──> waiting, bounded, first come ──> a place of the batch ──> Event by Event to who asked
//!                 '──> Busy                          '──> who asked is gone: the place is free before the next step
//! ```
//!
//! Deliberately absent: HTTP.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::sync::mpsc::UnboundedSender;
use toroid_torus::geometry::Shape;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition;
use toroid_worker::device::CpuDevice;
use toroid_worker::generate::{Batch, Ended, Finish, GenerateError, Listener, Sequence};
use toroid_worker::model::{Decode, Split};

use crate::figures::Figures;
use crate::model::{self, Model};
use crate::scores::{Score, score};
use crate::tokens::Tokens;
use crate::writer::{Piece, Writer};

/// Bytes of a number of a weight, of a key and of a value.
const ELEMENT_BYTES: usize = size_of::<f32>();

/// How much is computed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Texts that are written side by side.
    pub places: usize,
    /// Texts that wait for a place at most.
    pub waiting: usize,
    /// Tokens of a text with its prompt at most; no more than the model reads at a time.
    pub context: usize,
}

/// A text that is asked for.
pub struct Task {
    pub sequence: Sequence,
    pub stops: Vec<String>,
    /// Log-probabilities are told, with so many of the likeliest tokens.
    pub scores: Option<usize>,
    /// Of the texts of a request.
    pub index: usize,
    /// Bounded by what a text can have: so many tokens as fit in the context.
    pub to: UnboundedSender<(usize, Event)>,
    pub asked_at: Instant,
}

/// What becomes of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The scores of the prompt's tokens, but the first, which nothing foretells.
    Prompt(Vec<Score>),
    /// Text that is certain, and the tokens of it; the text of a token may come with a later one.
    Piece {
        text: String,
        tokens: Vec<Written>,
    },
    /// After a number of tokens.
    End {
        finish: Finish,
        num_tokens: usize,
    },
    Failed(GenerateError),
}

/// A token of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub token: u32,
    /// Bytes of the text before it.
    pub offset: usize,
    pub score: Option<Score>,
}

/// Why a task is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no room for so many texts to wait now.
    Busy,
    /// There never is.
    TooMany {
        found: usize,
        most: usize,
    },
    Prompt(GenerateError),
    /// The thread has ended.
    Gone,
}

/// The bytes that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub weight_bytes: usize,
    /// Of keys and values of all places, which are taken as they fill.
    pub cache_bytes: usize,
}

impl Memory {
    /// Of all places of `shape`: what several of them hold counts as often.
    pub fn of(model: &ModelConfig, shape: &Shape, room: Room) -> Memory {
        let kv_heads = shape.tp() * partition::kv_heads(model, shape.tp(), 0).len();
        let row = 2 * kv_heads * model.head_dim * ELEMENT_BYTES;
        let places = (0..shape.world()).map(|rank| shape.place(rank));
        let num_params: usize =
            places.map(|place| partition::partition(model, shape, place.tp, place.pp).padded_len).sum();
        Memory {
            weight_bytes: num_params * ELEMENT_BYTES,
            cache_bytes: row * model.layers * room.places * room.context,
        }
    }
}

/// The thread, as those see it who ask it.
pub struct Engine {
    pub model: Arc<Model>,
    /// Hexadecimal blake3 of the weights.
    pub digest: String,
    pub room: Room,
    pub memory: Memory,
    pub figures: Arc<Figures>,
    tasks: mpsc::Sender<Task>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    num_waiting: AtomicUsize,
    num_running: AtomicUsize,
    has_ended: AtomicBool,
}

impl Engine {
    /// Reads the weights, and starts the thread, with those of the places of `split`, which was made for this model; it ends when the engine is
    /// dropped and no text is on its way.
    pub fn start(model: Model, split: Split<CpuDevice>, room: Room) -> Result<Engine> {
        let config = model.source.with_room(room.places, room.context)?;
        let params = model.source.params()?;
        let digest = model::digest(model.config(), &params);
        let memory = Memory::of(model.config(), split.shape(), room);
        let decoder = split.decoder(&config, model.source.products, &params, room.places);
        let decoder = decoder.context("start the threads that compute")?;
        drop(params);
        let model = Arc::new(model);
        let (figures, shared) = (Arc::new(Figures::default()), Arc::new(Shared::default()));
        let (tasks, asked) = mpsc::channel();
        let computing = Computing {
            batch: Batch::new(room.places, room.context, model.num_tokens()),
            decoder,
            waiting: VecDeque::new(),
            model: Arc::clone(&model),
            figures: Arc::clone(&figures),
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new().name("engine".into());
        thread.spawn(move || computing.run(&asked)).context("start the thread that computes")?;
        Ok(Engine { model, digest, room, memory, figures, tasks, shared })
    }

    /// All of `tasks` or none of them are taken.
    pub fn submit(&self, tasks: Vec<Task>) -> Result<(), Refused> {
        let (num, most) = (tasks.len(), self.room.waiting);
        tasks.iter().try_for_each(|task| task.sequence.check(self.room.context)).map_err(Refused::Prompt)?;
        if num > most {
            return Err(Refused::TooMany { found: num, most });
        }
        let taken = |waiting: usize| (waiting + num <= most).then_some(waiting + num);
        let is_taken = self.shared.num_waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken);
        is_taken.map_err(|_| Refused::Busy)?;
        tasks.into_iter().try_for_each(|task| self.tasks.send(task).map_err(|_| Refused::Gone))
    }

    pub fn num_waiting(&self) -> usize {
        self.shared.num_waiting.load(Ordering::SeqCst)
    }

    /// Whether no text is computed and none waits.
    pub fn is_idle(&self) -> bool {
        // Whoever leaves the first is counted in the second before.
        self.num_waiting() == 0 && self.shared.num_running.load(Ordering::SeqCst) == 0
    }

    /// Whether the thread is there.
    pub fn is_well(&self) -> bool {
        !self.shared.has_ended.load(Ordering::SeqCst)
    }
}

/// Says that the thread has ended, also by a panic.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::SeqCst);
    }
}

/// The thread's own.
struct Computing {
    batch: Batch<Speaker>,
    decoder: Box<dyn Decode + Send>,
    waiting: VecDeque<Task>,
    model: Arc<Model>,
    figures: Arc<Figures>,
    shared: Arc<Shared>,
}

impl Computing {
    fn run(mut self, asked: &mpsc::Receiver<Task>) {
        let _ending = Ending(Arc::clone(&self.shared));
        loop {
            if self.batch.is_idle() && self.waiting.is_empty() {
                match asked.recv() {
                    Ok(task) => self.waiting.push_back(task),
                    Err(_) => return,
                }
            }
            self.waiting.extend(asked.try_iter());
            self.seat();
            let start = Instant::now();
            let before = self.num_running();
            let ended = self.batch.step(&mut *self.decoder);
            self.figures.step(start.elapsed(), before, self.num_running());
            for Ended { listener, result } in ended {
                listener.end(result);
            }
            self.shared.num_running.store(self.num_running(), Ordering::SeqCst);
        }
    }

    fn num_running(&self) -> usize {
        self.decoder.sequences() - self.batch.num_free()
    }

    /// Gives places to those who wait, in their order; who is gone waits no more.
    fn seat(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|task| !task.to.is_closed());
        self.figures.gone(before - self.waiting.len());
        let free = self.batch.num_free().min(self.waiting.len());
        for task in self.waiting.drain(..free) {
            let (sequence, speaker) = Speaker::of(task, &self.model, &self.figures);
            self.batch.join(sequence, speaker);
        }
        self.shared.num_running.store(self.num_running(), Ordering::SeqCst);
        self.shared.num_waiting.fetch_sub(before - self.waiting.len(), Ordering::SeqCst);
    }
}

/// Turns a sequence into events, on the thread that computes.
struct Speaker {
    figures: Arc<Figures>,
    to: UnboundedSender<(usize, Event)>,
    /// See [`Task`].
    index: usize,
    scores: Option<usize>,
    num_possible: usize,
    ends: Vec<u32>,
    prompt: Vec<u32>,
    prompt_scores: Vec<Score>,
    writer: Writer,
    /// Tokens that were not told, since their text is held back.
    held: Vec<Written>,
    num_tokens: usize,
    asked_at: Instant,
}

impl Speaker {
    fn of(task: Task, model: &Model, figures: &Arc<Figures>) -> (Sequence, Speaker) {
        let Task { sequence, stops, scores, index, to, asked_at } = task;
        figures.joined(sequence.prompt.len());
        let named = stops.iter().filter_map(|stop| model.tokens.special(stop));
        let ends = model.ends.iter().copied().chain(named).collect();
        let speaker = Speaker {
            figures: Arc::clone(figures),
            to,
            index,
            scores,
            num_possible: model.num_tokens(),
            ends,
            prompt: if sequence.scores_prompt { sequence.prompt.clone() } else { Vec::new() },
            prompt_scores: Vec::new(),
            writer: Writer::new(Tokens::stream(&model.tokens), stops),
            held: Vec::new(),
            num_tokens: 0,
            asked_at,
        };
        (sequence, speaker)
    }

    /// Nobody may be left to hear it.
    fn tell(&self, event: Event) {
        let _ = self.to.send((self.index, event));
    }

    /// Tells a piece with the tokens that begin in it; at the end of a text with all that are left, unless a stop has cut them off.
    fn tell_piece(&mut self, piece: Piece, is_end: bool) {
        // Where a token begins is known when the text of those before it is.
        let first = self.held.len().saturating_sub(piece.starts.len());
        for (written, start) in self.held[first..].iter_mut().zip(&piece.starts) {
            written.offset = *start;
        }
        let told = if is_end && !piece.is_stopped { usize::MAX } else { self.writer.num_told() };
        let num_certain = self.held.partition_point(|written| written.offset < told);
        let tokens: Vec<Written> = self.held.drain(..num_certain).collect();
        if !piece.text.is_empty() || !tokens.is_empty() {
            self.tell(Event::Piece { text: piece.text, tokens });
        }
    }

    fn end(mut self, result: Result<Finish, GenerateError>) {
        let finish = match result {
            Ok(finish) => finish,
            Err(error) => return self.tell(Event::Failed(error)),
        };
        // After a stop nothing is left to be told.
        let finish = if finish == Finish::Stop {
            finish
        } else {
            let piece = self.writer.end();
            let is_stopped = piece.is_stopped;
            self.tell_piece(piece, true);
            if is_stopped { Finish::Stop } else { finish }
        };
        self.figures.ended(finish);
        self.tell(Event::End { finish, num_tokens: self.num_tokens });
    }
}

impl Listener for Speaker {
    fn prompt(&mut self, position: usize, logits: &[f32]) {
        if let (Some(top), Some(next)) = (self.scores, self.prompt.get(position + 1)) {
            self.prompt_scores.push(score(logits, *next, top, self.num_possible));
        }
        if position + 1 == self.prompt.len() {
            let scores = std::mem::take(&mut self.prompt_scores);
            self.tell(Event::Prompt(scores));
        }
    }

    fn token(&mut self, token: u32, logits: &[f32]) -> Option<Finish> {
        self.num_tokens += 1;
        let asked_at = (self.num_tokens == 1).then_some(self.asked_at);
        self.figures.token(asked_at);
        if self.ends.contains(&token) {
            let piece = self.writer.end();
            self.tell_piece(piece, true);
            return Some(Finish::Stop);
        }
        let score = self.scores.map(|top| score(logits, token, top, self.num_possible));
        self.held.push(Written { token, offset: 0, score });
        let piece = self.writer.push(token);
        let is_stopped = piece.is_stopped;
        self.tell_piece(piece, false);
        is_stopped.then_some(Finish::Stop)
    }

    fn is_gone(&self) -> bool {
        let is_gone = self.to.is_closed();
        self.figures.gone(usize::from(is_gone));
        is_gone
    }
}
