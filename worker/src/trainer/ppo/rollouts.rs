//! The numbers of an iteration, the same at every place, and what follows from them.
//!
//! ```text
//!   numbers   of each answer: [tokens, ends with the stop token, score of the reward model, tokens (L), log-probabilities (L), values (L),
//!             log-probabilities by the reference (L)]
//!   rewards   -kl_coef (lp - lp_ref) at each token, and the score at the last: the stop token, or where the answer was cut
//!   GAE       d_t = r_t + gamma V_(t+1) - V_t,  A_t = d_t + gamma lambda A_(t+1),  V and A behind the last are 0
//!   returns   A_t + V_t; then advantages are whitened over all tokens of the iteration
//! ```
//!
//! All arithmetic is in f64, in the order of the answers, so every place has the same bits.

use toroid_torus::cursor::{Cursor, splitmix64};
use toroid_torus::ids::Step;
use toroid_torus::job::{JobSpec, PpoConfig, SampleOrder};

use super::config;
use crate::data::Batch;
use crate::trainer::samples::Samples;

/// Numbers of an answer before those of its tokens.
const HEAD: usize = 3;
/// Numbers of a token.
const OF_TOKEN: usize = 4;

/// An answer on its way: what was written.
#[derive(Debug, Clone)]
pub(in crate::trainer) struct Answer {
    /// Within the iteration.
    pub number: u64,
    pub prompt: Vec<u32>,
    /// With the stop token, where it came.
    pub tokens: Vec<u32>,
    pub has_stop: bool,
}

/// What a model says of an answer, by its tokens.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub logps: Vec<f32>,
    pub values: Vec<f32>,
    pub reference: Vec<f32>,
    pub score: f32,
}

/// What users see of an iteration: means over its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::trainer) struct Figures {
    /// With what is taken off where no stop token came.
    pub score: f64,
    /// Nats to the reference.
    pub kl: f64,
    pub tokens: f64,
    pub stopped: f64,
    /// Nats a token: of what was sampled, minus the log-probability.
    pub entropy: f64,
}

/// What is learned from an answer's tokens.
#[derive(Debug, Clone)]
struct Lesson {
    advantages: Vec<f64>,
    returns: Vec<f64>,
}

/// All answers of an iteration.
#[derive(Debug)]
pub(in crate::trainer) struct Rollouts {
    /// Step that it begins with.
    first: Step,
    kl_coef: f64,
    next_kl_coef: f64,
    max_tokens: usize,
    numbers: Vec<f64>,
    lessons: Vec<Lesson>,
    figures: Figures,
}

/// Numbers of one answer.
fn stride(ppo: &PpoConfig) -> usize {
    HEAD + OF_TOKEN * ppo.max_tokens
}

/// One answer in the numbers.
#[derive(Clone, Copy)]
struct Numbers<'a> {
    values: &'a [f64],
    max_tokens: usize,
}

impl<'a> Numbers<'a> {
    fn num_tokens(&self) -> usize {
        (self.values[0] as usize).min(self.max_tokens)
    }

    fn has_stop(&self) -> bool {
        self.values[1] > 0.0
    }

    fn score(&self) -> f64 {
        self.values[2]
    }

    fn part(&self, n: usize) -> &'a [f64] {
        &self.values[HEAD + n * self.max_tokens..][..self.num_tokens()]
    }

    fn tokens(&self) -> Vec<u32> {
        self.part(0).iter().map(|token| *token as u32).collect()
    }

    fn logps(&self) -> &'a [f64] {
        self.part(1)
    }

    fn old_values(&self) -> &'a [f64] {
        self.part(2)
    }

    fn reference(&self) -> &'a [f64] {
        self.part(3)
    }
}

impl Rollouts {
    /// Numbers of an iteration of this job.
    pub fn len(spec: &JobSpec) -> usize {
        spec.answers_of_iteration() as usize * stride(config(spec))
    }

    /// Puts an answer, of which nothing is there yet, into the numbers.
    pub(super) fn put(spec: &JobSpec, numbers: &mut [f64], answer: &Answer, said: &Said) {
        let ppo = config(spec);
        let own = &mut numbers[answer.number as usize * stride(ppo)..][..stride(ppo)];
        own[..HEAD].copy_from_slice(&[
            answer.tokens.len() as f64,
            f64::from(u8::from(answer.has_stop)),
            f64::from(said.score),
        ]);
        let mut parts = own[HEAD..].chunks_exact_mut(ppo.max_tokens);
        let mut put = |values: &mut dyn Iterator<Item = f64>| {
            let part = parts.next().expect("as many parts as a token has numbers");
            part.iter_mut().zip(values).for_each(|(place, value)| *place = value);
        };
        put(&mut answer.tokens.iter().map(|token| f64::from(*token)));
        put(&mut said.logps.iter().map(|x| f64::from(*x)));
        put(&mut said.values.iter().map(|x| f64::from(*x)));
        put(&mut said.reference.iter().map(|x| f64::from(*x)));
    }

    /// `numbers` are those of all answers of the iteration that begins with step `first`.
    pub fn new(spec: &JobSpec, first: Step, kl_coef: f64, numbers: Vec<f64>) -> Rollouts {
        let ppo = config(spec);
        assert_eq!(numbers.len(), Rollouts::len(spec), "the numbers of an iteration");
        let all = || numbers.chunks_exact(stride(ppo)).map(|values| Numbers { values, max_tokens: ppo.max_tokens });
        let mut figures = Figures::default();
        let mut lessons: Vec<Lesson> = Vec::new();
        for answer in all() {
            let score = score_of(ppo, &answer);
            let rewards = rewards(answer.logps(), answer.reference(), kl_coef, score);
            lessons.push(lesson(&rewards, answer.old_values(), ppo.gamma, ppo.lambda));
            figures.score += score;
            figures.kl +=
                answer.logps().iter().zip(answer.reference()).map(|(lp, reference)| lp - reference).sum::<f64>();
            figures.tokens += answer.num_tokens() as f64;
            figures.stopped += f64::from(u8::from(answer.has_stop()));
            figures.entropy -= answer.logps().iter().sum::<f64>();
        }
        let num = lessons.len().max(1) as f64;
        figures.entropy /= figures.tokens.max(1.0);
        for figure in [&mut figures.score, &mut figures.kl, &mut figures.tokens, &mut figures.stopped] {
            *figure /= num;
        }
        whiten(&mut lessons);
        Rollouts {
            first,
            kl_coef,
            next_kl_coef: ppo.next_kl_coef(kl_coef, figures.kl, lessons.len() as u64),
            max_tokens: ppo.max_tokens,
            lessons,
            figures,
            numbers,
        }
    }

    pub fn numbers(&self) -> &[f64] {
        &self.numbers
    }

    pub fn kl_coef(&self) -> f64 {
        self.kl_coef
    }

    pub fn next_kl_coef(&self) -> f64 {
        self.next_kl_coef
    }

    pub fn figures(&self) -> Figures {
        self.figures
    }

    fn answer(&self, number: u64) -> Numbers<'_> {
        let stride = HEAD + OF_TOKEN * self.max_tokens;
        Numbers { values: &self.numbers[number as usize * stride..][..stride], max_tokens: self.max_tokens }
    }

    /// Answers of step `step`, in their order. The first pass takes them as they were scored (P-1), each other in an order of its own.
    fn minibatch(&self, spec: &JobSpec, step: Step) -> Vec<u64> {
        let (num, of_step) = (self.lessons.len() as u64, spec.batch.samples());
        let (pass, at) = {
            let k = step.get() - self.first.get();
            (k / config(spec).minibatches, k % config(spec).minibatches)
        };
        let seed = splitmix64(spec.seed ^ splitmix64(self.first.get()).wrapping_add(pass));
        let order = if pass == 0 { SampleOrder::Sequential } else { SampleOrder::Shuffled };
        let order = Cursor::new(seed, num, order);
        (at * of_step..(at + 1) * of_step).map(|n| order.sample(n)).collect()
    }

    /// Tokens that step `step` learns from, over all replicas.
    pub fn num_trained(&self, spec: &JobSpec, step: Step) -> u64 {
        self.minibatch(spec, step).into_iter().map(|n| self.answer(n).num_tokens() as u64).sum()
    }

    /// Micro-batch `i` of all of step `step`.
    pub fn load(&self, samples: &Samples, spec: &JobSpec, step: Step, i: usize, batch: &mut Batch) {
        batch.clear();
        let size = spec.batch.micro_batch;
        for (at, number) in self.minibatch(spec, step)[i * size..(i + 1) * size].iter().enumerate() {
            let prompt = samples.prompt(spec, self.first, *number);
            let answer = self.answer(*number);
            let rows = load_text(batch, spec, at, &prompt, &answer.tokens(), false);
            let lesson = &self.lessons[*number as usize];
            for (t, row) in rows.enumerate() {
                let answers = &mut batch.answers;
                answers.logps[row] = answer.logps()[t] as f32;
                answers.values[row] = answer.old_values()[t] as f32;
                answers.advantages[row] = lesson.advantages[t] as f32;
                answers.returns[row] = lesson.returns[t] as f32;
            }
        }
        batch.answers.are_set = true;
    }
}

/// Puts a prompt and its answer into sample `at` of a batch: each row's target is the token after it, where that is the answer's. `with_last`: the
/// last token has a row, too. Returns the rows that have targets.
pub(super) fn load_text(
    batch: &mut Batch,
    spec: &JobSpec,
    at: usize,
    prompt: &[u32],
    answer: &[u32],
    with_last: bool,
) -> std::ops::Range<usize> {
    let first = at * spec.model.seq;
    let text = prompt.iter().chain(answer);
    let num = prompt.len() + answer.len() - usize::from(!with_last);
    text.take(num).enumerate().for_each(|(t, token)| batch.inputs[first + t] = *token);
    batch.texts.push(first..first + num);
    let rows = first + prompt.len() - 1..first + prompt.len() - 1 + answer.len();
    rows.clone().zip(answer).for_each(|(row, token)| batch.targets[row] = *token);
    rows
}

/// What an answer is worth.
fn score_of(ppo: &PpoConfig, answer: &Numbers<'_>) -> f64 {
    let of_model = ppo.reward_model.as_ref().map_or(0.0, |_| (answer.score() - ppo.reward_mean) / ppo.reward_std);
    let of_form = ppo.form.as_ref().map_or(0.0, |form| {
        let tokens = answer.tokens();
        let without_stop = &tokens[..tokens.len() - usize::from(answer.has_stop())];
        f64::from(u8::from(form.fits(without_stop, answer.has_stop())))
    });
    let penalty = if answer.has_stop() { 0.0 } else { ppo.no_stop_penalty };
    of_model + of_form - penalty
}

fn rewards(logps: &[f64], reference: &[f64], kl_coef: f64, score: f64) -> Vec<f64> {
    let mut rewards: Vec<f64> = logps.iter().zip(reference).map(|(lp, lp_ref)| -kl_coef * (lp - lp_ref)).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// Generalized advantages and returns of one answer.
fn lesson(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Lesson {
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    let returns = advantages.iter().zip(values).map(|(advantage, value)| advantage + value).collect();
    Lesson { advantages, returns }
}

/// Advantages with mean 0 and deviation 1 over all tokens; a single one has no deviation.
fn whiten(lessons: &mut [Lesson]) {
    let num: usize = lessons.iter().map(|lesson| lesson.advantages.len()).sum();
    let all = |lessons: &[Lesson], f: &dyn Fn(f64) -> f64| {
        lessons.iter().flat_map(|lesson| &lesson.advantages).map(|a| f(*a)).sum::<f64>()
    };
    let mean = all(lessons, &|a| a) / num.max(1) as f64;
    let factor = match num {
        0 | 1 => 1.0,
        num => (all(lessons, &|a| (a - mean).powi(2)) / (num - 1) as f64 + 1e-8).sqrt().recip(),
    };
    for lesson in lessons {
        lesson.advantages.iter_mut().for_each(|a| *a = (*a - mean) * factor);
    }
}
