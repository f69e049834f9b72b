//! Answers to the prompts of an iteration, token by token, on the stages and the TP group of a replica.
//!
//! ```text
//!   side_by_side prompts at a time:  rows of all prompts, PIECE at a time, then a row of each answer that goes on
//!     stage 0 --activations--> stage 1 ... --> last stage: logits of its part of the vocabulary, the best of all parts (Gumbel-max)
//!        ^-------------------------------------- tokens ------------------------------------'    to every stage
//! ```
//!
//! A token follows from (seed, prompt, number of the answer in the run, position) and the parameters: from neither the neighbours nor
//! whoever holds the place.

use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;

use super::config::{config, of_replica};
use super::rollouts::Answer;
use crate::comm::{Channel, CommError, Links, Transfer, all_gather_f64};
use crate::device::{CachePlace, CachedAttention};
use crate::generate::Key;
use crate::generate::sample::{best, better};
use crate::model::Row;
use crate::trainer::job::Job;
use crate::trainer::shared::Shared;

/// Rows of prompts in a forward.
const PIECE: usize = 256;

/// An answer that is being written, and where its random numbers are from.
struct Writing {
    answer: Answer,
    key: Key,
    /// Tokens of it at most.
    room: usize,
}

impl Writing {
    fn is_done(&self) -> bool {
        self.answer.has_stop || self.answer.tokens.len() == self.room
    }

    /// Position of the token that comes next.
    fn next(&self) -> usize {
        self.answer.prompt.len() + self.answer.tokens.len()
    }
}

impl<D: CachedAttention> Job<D> {
    /// The answers of this replica, in the order of their micro-batches.
    pub(in crate::trainer) fn write_answers(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        spec: &JobSpec,
    ) -> Result<Vec<Answer>, CommError> {
        let (ppo, first) = (config(spec), self.committed);
        let numbers = of_replica(&self.assignment);
        let mut answers = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(ppo.side_by_side) {
            let mut writing: Vec<Writing> = numbers.iter().map(|number| self.begin(spec, first, *number)).collect();
            self.read_prompts(links, shared, spec, &mut writing)?;
            loop {
                let open: Vec<usize> = (0..writing.len()).filter(|i| !writing[*i].is_done()).collect();
                if open.is_empty() {
                    break;
                }
                let row = |i: &usize| {
                    let token = writing[*i].answer.tokens.last().copied().expect("its prompt was read");
                    Row { place: CachePlace { sequence: *i, position: writing[*i].next() - 1 }, token }
                };
                let rows: Vec<Row> = open.iter().map(row).collect();
                let wanted: Vec<usize> = (0..rows.len()).collect();
                self.write_tokens(links, shared, spec, &rows, &wanted, &mut writing)?;
            }
            answers.extend(writing.into_iter().map(|writing| writing.answer));
        }
        Ok(answers)
    }

    fn begin(&self, spec: &JobSpec, first: Step, number: u64) -> Writing {
        let prompt = self.samples.prompt(spec, first, number);
        let room = config(spec).max_tokens.min(spec.model.seq - prompt.len());
        let key = Key::new(spec.seed, &prompt, spec.samples_of(first.get()) + number);
        Writing { answer: Answer { number, prompt, tokens: Vec::new(), has_stop: false }, key, room }
    }

    /// Puts all prompts into the cache; each answer then has its first token.
    fn read_prompts(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        spec: &JobSpec,
        writing: &mut [Writing],
    ) -> Result<(), CommError> {
        let of = |(sequence, writing): (usize, &Writing)| {
            let at = |(position, token): (usize, &u32)| Row { place: CachePlace { sequence, position }, token: *token };
            writing.answer.prompt.iter().enumerate().map(at).collect::<Vec<_>>()
        };
        let rows: Vec<Row> = writing.iter().enumerate().flat_map(of).collect();
        for rows in rows.chunks(PIECE) {
            let is_last = |row: &Row| row.place.position + 1 == writing[row.place.sequence].answer.prompt.len();
            let wanted: Vec<usize> = (0..rows.len()).filter(|i| is_last(&rows[*i])).collect();
            self.write_tokens(links, shared, spec, rows, &wanted, writing)?;
        }
        Ok(())
    }

    /// One forward of `rows`; behind each of those that are `wanted` comes a token of its answer.
    fn write_tokens(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        spec: &JobSpec,
        rows: &[Row],
        wanted: &[usize],
        writing: &mut [Writing],
    ) -> Result<(), CommError> {
        let Job { passes, models, assignment, fence, .. } = self;
        fence.check(assignment.epoch)?;
        let models = models.as_mut().expect("a job of kind ppo has its models");
        let mut logits = Vec::new();
        passes.decode(links, assignment, &mut models.decoder, rows, wanted, &mut logits)?;
        shared.advance();
        if wanted.is_empty() {
            return Ok(());
        }
        let own = models.decoder.vocab().1;
        let (shape, rank) = (&spec.shape, assignment.rank.index());
        let stages = shape.pp_group(rank);
        let mut tokens = vec![0_u32; wanted.len()];
        if assignment.place().pp + 1 == shape.pp() {
            let mut found = Vec::with_capacity(2 * wanted.len());
            for (row, logits) in wanted.iter().zip(logits.chunks_exact(own.len())) {
                let of = &writing[rows[*row].place.sequence];
                let choice = best(logits, own.start, config(spec).temperature, of.key, of.next());
                // Of what is no number nothing is to be learned: the answer ends, and the step makes no update.
                let (score, token) = choice.unwrap_or((f64::INFINITY, config(spec).stop_token));
                found.extend([score, f64::from(token)]);
            }
            let all = match shape.tp() {
                1 => found,
                _ => all_gather_f64(links, &shape.tp_group(rank), Channel::Tp, &found)?,
            };
            for (w, token) in tokens.iter_mut().enumerate() {
                let of_ranks = all.chunks_exact(2 * wanted.len()).map(|of| (of[2 * w], of[2 * w + 1] as u32));
                *token = of_ranks.reduce(better).map_or(config(spec).stop_token, |(_, token)| token);
            }
            for other in stages.iter().filter(|other| **other != rank) {
                links.queue(*other, Channel::Eval, bytemuck::cast_slice(&tokens).to_vec())?;
            }
        } else {
            let last = *stages.last().expect("a group has members");
            let buf = bytemuck::cast_slice_mut(&mut tokens);
            links.run(&mut [Transfer::Recv { peer: last, channel: Channel::Eval, buf }])?;
        }
        for (row, token) in wanted.iter().zip(tokens) {
            let answer = &mut writing[rows[*row].place.sequence].answer;
            answer.tokens.push(token);
            answer.has_stop = token == config(spec).stop_token;
        }
        Ok(())
    }
}
