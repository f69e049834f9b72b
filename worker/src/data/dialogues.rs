//! Samples that are documents: dialogues, and pairs of answers.
//!
//! ```text
//!   dialogue  tokens 0 .. n - 1 are inputs, 1 .. n targets, where they are trained       one sample, or packed: several in one
//!   pair      the tokens of the chosen answer, and in a row of their own those of the rejected
//! ```
//!
//! What is held out are the last documents, so that no sample of the train part has a token of them. Which dialogues share a sample is a
//! function of their lengths and the job's seed alone (T-5).

use std::ops::Range;
use std::sync::Arc;

use toroid_tokens::TokenFile;
use toroid_torus::cursor::Cursor;
use toroid_torus::cut::Cut;
use toroid_torus::job::{JobKind, JobSpec, SampleOrder};

use super::DataError;
use super::batch::Batch;
use super::stream::Tokens;
use crate::device::{NOWHERE, TEXT_ALIGN};

/// Samples that are open for more dialogues while a part is packed.
const OPEN_MAX: usize = 64;

/// The train and the validation part of a source of documents.
#[derive(Debug, Clone)]
pub struct Dialogues {
    tokens: Arc<Tokens>,
    kind: JobKind,
    seq: usize,
    train: Part,
    validation: Part,
}

/// Numbers of dialogues, or of pairs.
#[derive(Debug, Clone)]
enum Part {
    /// Each is a sample.
    Single(Range<u64>),
    /// By sample, with the row where each begins.
    Packed(Arc<[Vec<(u64, usize)>]>),
}

impl Part {
    fn num_samples(&self) -> u64 {
        match self {
            Part::Single(range) => range.end - range.start,
            Part::Packed(samples) => samples.len() as u64,
        }
    }

    /// What sample `id` has, with the row where each begins.
    fn sample(&self, id: u64) -> Vec<(u64, usize)> {
        assert!(id < self.num_samples(), "sample {id} of {} was asked for", self.num_samples());
        match self {
            Part::Single(range) => vec![(range.start + id, 0)],
            Part::Packed(samples) => samples[id as usize].clone(),
        }
    }
}

impl Dialogues {
    pub fn new(tokens: Arc<Tokens>, spec: &JobSpec) -> Result<Dialogues, DataError> {
        let (kind, seq) = (spec.kind, spec.model.seq);
        let num = tokens.num_documents() / kind.texts_of_sample() as u64;
        let cut = Cut::of_documents(num, spec.data.validation);
        let part = |range| Part::Single(range);
        let mut found =
            Dialogues { tokens, kind, seq, train: part(cut.train.clone()), validation: part(cut.validation.clone()) };
        found.check_lengths()?;
        for (part, range) in [("training", &cut.train), ("validation", &cut.validation)] {
            if range.is_empty() && (part == "training" || spec.data.validation > 0.0) {
                let source_summary = found.tokens.source_summary();
                return Err(DataError::TooFew { part, found: num, source_summary });
            }
        }
        if spec.data.packing {
            found.train = found.packed(spec, cut.train);
            found.validation = found.packed(spec, cut.validation);
        }
        Ok(found)
    }

    /// A dialogue is never cut: whoever made the file has decided what becomes of long ones.
    fn check_lengths(&self) -> Result<(), DataError> {
        // Of a dialogue the last token is a target alone.
        let most = self.seq as u64 + u64::from(matches!(self.kind, JobKind::Sft | JobKind::Ppo));
        let too_long = |n: &u64| self.tokens.document(*n).1.len() > most;
        let Some(document) = (0..self.tokens.num_documents()).find(too_long) else { return Ok(()) };
        let (path, found) = (self.tokens.path_of(document), self.tokens.document(document).1.len());
        let document = self.tokens.number_in_file(document);
        Err(DataError::TooLong { path, document, found, most, seq: self.seq })
    }

    /// First fit into the samples that are open, in an order that follows from the seed.
    fn packed(&self, spec: &JobSpec, range: Range<u64>) -> Part {
        let num = range.end - range.start;
        if num == 0 {
            return Part::Packed(Arc::new([]));
        }
        let order = Cursor::new(spec.seed, num, SampleOrder::Shuffled);
        // Dialogues with the rows that they begin at; then samples that still have room, and the rows that are taken.
        let mut samples: Vec<Vec<(u64, usize)>> = Vec::new();
        let mut open: Vec<(usize, usize)> = Vec::new();
        for n in 0..num {
            let dialogue = range.start + order.sample(n);
            let rows = self.rows(dialogue);
            let place = open.iter().position(|(_, used)| used + rows <= self.seq).unwrap_or_else(|| {
                if open.len() == OPEN_MAX {
                    open.remove(0);
                }
                samples.push(Vec::new());
                open.push((samples.len() - 1, 0));
                open.len() - 1
            });
            let (sample, used) = &mut open[place];
            samples[*sample].push((dialogue, *used));
            *used = (*used + rows).next_multiple_of(TEXT_ALIGN);
            if *used >= self.seq {
                open.remove(place);
            }
        }
        Part::Packed(samples.into())
    }

    /// Rows that a dialogue takes.
    fn rows(&self, dialogue: u64) -> usize {
        self.tokens.document(dialogue).1.len() as usize - 1
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub fn num_train(&self) -> u64 {
        self.train.num_samples()
    }

    pub fn num_validation(&self) -> u64 {
        self.validation.num_samples()
    }

    /// Sample `id` of the train part, as sample `at` of a cleared batch.
    pub fn train_sample(&self, id: u64, at: usize, batch: &mut Batch) {
        self.load(&self.train.sample(id), at, batch);
    }

    /// The same of the validation part.
    pub fn validation_sample(&self, id: u64, at: usize, batch: &mut Batch) {
        self.load(&self.validation.sample(id), at, batch);
    }

    fn load(&self, sample: &[(u64, usize)], at: usize, batch: &mut Batch) {
        for (number, row) in sample {
            match self.kind {
                JobKind::Reward => self.load_pair(*number, at, batch),
                JobKind::Sft | JobKind::Pretrain | JobKind::Ppo => {
                    self.load_dialogue(*number, at * self.seq + row, batch)
                }
            }
        }
    }

    fn load_dialogue(&self, number: u64, first: usize, batch: &mut Batch) {
        let (file, tokens) = self.tokens.document(number);
        let rows = first..first + self.rows(number);
        for (row, at) in rows.clone().zip(tokens) {
            batch.inputs[row] = file.token(at);
            batch.targets[row] = if file.is_trained(at + 1) { file.token(at + 1) } else { NOWHERE };
        }
        batch.texts.push(rows);
    }

    fn load_pair(&self, pair: u64, at: usize, batch: &mut Batch) {
        for answer in 0..2 {
            let (file, tokens) = self.tokens.document(2 * pair + answer as u64);
            let first = (2 * at + answer) * self.seq;
            let rows = first..first + tokens.len() as usize;
            rows.clone().zip(tokens).for_each(|(row, at)| batch.inputs[row] = file.token(at));
            batch.texts.push(rows);
        }
        batch.margins.push(self.tokens.margin(pair));
    }

    /// What sample `id` of the train part has before its last answer. At least one token, and one fewer than a sample holds.
    pub fn prompt(&self, id: u64) -> Vec<u32> {
        let (number, _) = self.train.sample(id)[0];
        let (file, tokens) = self.tokens.document(number);
        let mut end = tokens.end;
        // A document has an answer, and a token before it: whoever made the file has seen to it.
        while end > tokens.start + 1 && !file.is_trained(end - 1) {
            end -= 1;
        }
        while end > tokens.start + 1 && file.is_trained(end - 1) {
            end -= 1;
        }
        let most = tokens.start + self.seq as u64 - 1;
        (tokens.start..end.min(most)).map(|at| file.token(at)).collect()
    }

    /// Tokens of sample `id` of the train part whose cross-entropy counts.
    pub fn num_trained(&self, id: u64) -> u64 {
        let of = |(number, _): &(u64, usize)| {
            let (file, tokens) = self.tokens.document(*number);
            tokens.skip(1).filter(|at| file.is_trained(*at)).count() as u64
        };
        self.train.sample(id).iter().map(of).sum()
    }
}

impl Tokens {
    /// Documents of all files; none of text that this machine made tokens of.
    pub fn num_documents(&self) -> u64 {
        self.files.last().map_or(0, |file| file.documents.end)
    }

    fn file_of(&self, document: u64) -> &super::stream::Mapped {
        &self.files[self.files.partition_point(|file| file.documents.end <= document)]
    }

    /// The file of a document, and which of its tokens are the document's.
    pub(super) fn document(&self, n: u64) -> (TokenFile<'_>, Range<u64>) {
        let mapped = self.file_of(n);
        let file = TokenFile::new(&mapped.map).expect("it was checked when it was mapped");
        let tokens = file.document(n - mapped.documents.start);
        (file, tokens)
    }

    /// Of a pair of preferences; files have whole pairs.
    fn margin(&self, pair: u64) -> f32 {
        let mapped = self.file_of(2 * pair);
        let file = TokenFile::new(&mapped.map).expect("it was checked when it was mapped");
        file.pair(pair - mapped.documents.start / 2).margin
    }

    fn path_of(&self, document: u64) -> std::path::PathBuf {
        self.file_of(document).path.clone()
    }

    fn number_in_file(&self, document: u64) -> u64 {
        document - self.file_of(document).documents.start
    }
}

/// Number of tokens.
trait Len {
    fn len(&self) -> u64;
}

impl Len for Range<u64> {
    fn len(&self) -> u64 {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests;
