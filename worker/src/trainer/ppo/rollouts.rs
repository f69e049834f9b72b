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
use toroid_torus::job::{JobSpec, PpoConfig, RewardScale, SampleOrder};

use super::carried::Carried;
use super::config::config;
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
pub(in crate::trainer) struct Said {
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
    next: Carried,
    max_tokens: usize,
    numbers: Vec<f64>,
    lessons: Vec<Lesson>,
    figures: Figures,
}

/// Numbers of one answer.
fn stride(max_tokens: usize) -> usize {
    HEAD + OF_TOKEN * max_tokens
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
        spec.answers_of_iteration() as usize * stride(config(spec).max_tokens)
    }

    /// Puts an answer, of which nothing is there yet, into the numbers.
    pub(in crate::trainer) fn put(spec: &JobSpec, numbers: &mut [f64], answer: &Answer, said: &Said) {
        let ppo = config(spec);
        let own = &mut numbers[answer.number as usize * stride(ppo.max_tokens)..][..stride(ppo.max_tokens)];
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

    /// `numbers` are those of all answers of the iteration that begins with step `first`; `carried`: what the iterations before leave it.
    pub fn new(spec: &JobSpec, first: Step, carried: Carried, numbers: Vec<f64>) -> Rollouts {
        let ppo = config(spec);
        assert_eq!(numbers.len(), Rollouts::len(spec), "the numbers of an iteration");
        let all = || {
            numbers.chunks_exact(stride(ppo.max_tokens)).map(|values| Numbers { values, max_tokens: ppo.max_tokens })
        };
        let Carried { kl_coef, reward_scale } = carried;
        let measured = || {
            // What a reward model says of an answer that was cut means nothing.
            let any_ends = all().any(|answer| answer.has_stop());
            RewardScale::of(ppo, all().filter(|answer| !any_ends || answer.has_stop()).map(|answer| answer.score()))
        };
        // A job that resumes another one's checkpoint may give what that one has measured.
        let known = |carried: RewardScale| carried.or_given(ppo);
        let reward_scale = ppo.reward_model.as_ref().map(|_| reward_scale.map_or_else(measured, known));
        let mut figures = Figures::default();
        let mut lessons: Vec<Lesson> = Vec::new();
        for answer in all() {
            let score = score_of(ppo, reward_scale, &answer);
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
            next: Carried { kl_coef: ppo.next_kl_coef(kl_coef, figures.kl, lessons.len() as u64), reward_scale },
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

    /// What the next iteration begins with.
    pub fn next(&self) -> Carried {
        self.next
    }

    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// An answer, and the score that the reward model gives it.
    #[cfg(test)]
    pub fn text(&self, number: u64) -> (Vec<u32>, f64) {
        (self.answer(number).tokens(), self.answer(number).score())
    }

    /// Advantages, whitened, and returns of an answer.
    #[cfg(test)]
    pub fn lesson(&self, number: u64) -> (&[f64], &[f64]) {
        let Lesson { advantages, returns } = &self.lessons[number as usize];
        (advantages, returns)
    }

    fn answer(&self, number: u64) -> Numbers<'_> {
        let stride = stride(self.max_tokens);
        Numbers { values: &self.numbers[number as usize * stride..][..stride], max_tokens: self.max_tokens }
    }

    /// Answers of step `step`, in their order. The first pass takes them as they were scored (P-1), each other in an order of its own.
    fn minibatch(&self, spec: &JobSpec, step: Step) -> impl Iterator<Item = u64> {
        let (num, of_step) = (self.lessons.len() as u64, spec.batch.samples());
        let (k, minibatches) = (step.get() - self.first.get(), config(spec).minibatches);
        let (pass, at) = (k / minibatches, k % minibatches);
        let seed = splitmix64(spec.seed ^ splitmix64(self.first.get()).wrapping_add(pass));
        let order = if pass == 0 { SampleOrder::Sequential } else { SampleOrder::Shuffled };
        let order = Cursor::new(seed, num, order);
        (at * of_step..(at + 1) * of_step).map(move |n| order.sample(n))
    }

    /// Tokens that step `step` learns from, over all replicas.
    pub fn num_trained(&self, spec: &JobSpec, step: Step) -> u64 {
        self.minibatch(spec, step).map(|n| self.answer(n).num_tokens() as u64).sum()
    }

    /// Micro-batch `i` of all of step `step`.
    pub fn load(&self, samples: &Samples, spec: &JobSpec, step: Step, i: usize, batch: &mut Batch) {
        batch.clear();
        let size = spec.batch.micro_batch;
        for (at, number) in self.minibatch(spec, step).skip(i * size).take(size).enumerate() {
            let prompt = samples.prompt(spec, self.first, number);
            let answer = self.answer(number);
            let rows = load_text(batch, spec, at, &prompt, &answer.tokens(), false);
            let lesson = &self.lessons[number as usize];
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

/// What an answer is worth. `reward_scale` is there where the job has a reward model.
fn score_of(ppo: &PpoConfig, reward_scale: Option<RewardScale>, answer: &Numbers<'_>) -> f64 {
    let of_model = reward_scale.map_or(0.0, |scale| scale.apply(answer.score()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &[f64], expected: &[f64]) {
        let close = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close, "{found:?}, expected {expected:?}");
    }

    /// By hand: three tokens, beta 0.1, gamma 1, lambda 0.5.
    #[test]
    fn rewards_advantages_and_returns_of_an_answer_by_hand() {
        let rewards = rewards(&[-1.0, -2.0, -0.5], &[-1.5, -1.0, -0.5], 0.1, 2.0);
        near(&rewards, &[-0.05, 0.1, 2.0]);
        let found = lesson(&rewards, &[0.5, 1.0, 1.5], 1.0, 0.5);
        // d = -0.05 + 1 - 0.5, 0.1 + 1.5 - 1, 2 - 1.5
        near(&found.advantages, &[0.45 + 0.5 * 0.85, 0.6 + 0.5 * 0.5, 0.5]);
        near(&found.returns, &[0.5 + 0.875, 1.0 + 0.85, 2.0]);
        // With a discount of 0.5, each value behind counts half.
        near(&lesson(&rewards, &[0.5, 1.0, 1.5], 0.5, 0.0).advantages, &[-0.05, -0.15, 0.5]);
    }

    #[test]
    fn whitening_is_over_all_tokens_and_one_alone_has_no_deviation() {
        let of = |advantages: &[f64]| Lesson { advantages: advantages.to_vec(), returns: Vec::new() };
        let mut lessons = [of(&[1.0]), of(&[]), of(&[2.0, 3.0])];
        whiten(&mut lessons);
        let one = 1.0 / (1.0_f64 + 1e-8).sqrt();
        near(&lessons[0].advantages, &[-one]);
        near(&lessons[2].advantages, &[0.0, one]);
        let mut alone = [of(&[7.0])];
        whiten(&mut alone);
        near(&alone[0].advantages, &[0.0]);
        whiten(&mut [of(&[])]);
        let mut equal = [of(&[7.0, 7.0])];
        whiten(&mut equal);
        near(&equal[0].advantages, &[0.0, 0.0]);
    }

    const L: usize = 3;
    const HALF: Carried = Carried { kl_coef: 0.5, reward_scale: None };

    fn spec(keys: &str) -> JobSpec {
        toroid_torus::job::parse(&format!(
            "kind = 'ppo'\nsteps = 8\ndata.path = 'x'\nbatch = {{ micro_batch = 1, global = 2 }}\n[ppo]\nstop_token = 9\nepochs = 2\n\
             max_tokens = {L}\nminibatches = 2\n{keys}"
        ))
        .expect("a job")
    }

    fn answer(
        number: u64,
        tokens: &[u32],
        logps: &[f32],
        reference: &[f32],
        score: f32,
        numbers: &mut [f64],
        spec: &JobSpec,
    ) {
        let has_stop = tokens.last() == Some(&9);
        let answer = Answer { number, prompt: vec![1], tokens: tokens.to_vec(), has_stop };
        let values = vec![0.0; tokens.len()];
        let said = Said { logps: logps.to_vec(), values, reference: reference.to_vec(), score };
        Rollouts::put(spec, numbers, &answer, &said);
    }

    /// The score is on the stop token, whatever room is behind it; who has none is worth less; forms and models add up.
    #[test]
    fn scores_are_at_the_last_token_and_figures_are_means_over_answers() {
        let spec = spec(
            "kl_coef = 0.5\nreward_model = 'r'\nreward_mean = 1.0\nreward_std = 2.0\nform = { tokens = [7, 8], max = 1 }\n",
        );
        let mut numbers = vec![0.0; Rollouts::len(&spec)];
        answer(0, &[7, 9], &[-1.0, -2.0], &[-1.0, -1.0], 5.0, &mut numbers, &spec);
        answer(1, &[7, 8, 7], &[-1.0; 3], &[-1.0; 3], 1.0, &mut numbers, &spec);
        answer(2, &[9], &[-3.0], &[-1.0], 1.0, &mut numbers, &spec);
        answer(3, &[8, 9], &[-1.0; 2], &[-1.0; 2], -1.0, &mut numbers, &spec);
        let found = Rollouts::new(&spec, Step::ZERO, HALF, numbers);
        // Scores: (5 - 1) / 2 + 1; 0 - 1; 0; (-1 - 1) / 2 + 1.
        let scores = [3.0, -1.0, 0.0, 0.0];
        let figures = found.figures();
        near(&[figures.score, figures.kl, figures.tokens, figures.stopped], &[0.5, -0.75, 2.0, 0.75]);
        near(&[figures.entropy], &[(3.0 + 3.0 + 3.0 + 2.0) / 8.0]);
        // Values are 0, lambda 0.95: the return of the last token is its reward.
        let last: Vec<f64> = found.lessons.iter().map(|l| *l.returns.last().expect("a token")).collect();
        near(&last, &[scores[0] + 0.5, scores[1], scores[2] + 1.0, scores[3]]);
        assert_eq!(found.lessons.iter().map(|l| l.returns.len()).collect::<Vec<_>>(), [2, 3, 1, 2]);
    }

    /// What the keys leave open is measured once, and scores of later iterations are by the same measure.
    #[test]
    fn scores_of_the_first_iteration_have_the_mean_0_and_the_deviation_1() {
        let scores = [5.0, 1.0, 1.0, -1.0];
        let (mean, std) = (1.5, 4.75_f64.sqrt());
        let found_of = |end: u32, keys: &str, carried: Carried, scores: [f32; 4]| {
            let spec = spec(&format!("reward_model = 'r'\n{keys}"));
            let mut numbers = vec![0.0; Rollouts::len(&spec)];
            for (n, score) in (0..).zip(scores) {
                answer(n, &[7, end], &[-1.0; 2], &[-1.0; 2], score, &mut numbers, &spec);
            }
            Rollouts::new(&spec, Step::ZERO, carried, numbers)
        };
        let found = |keys: &str, carried: Carried, scores: [f32; 4]| found_of(9, keys, carried, scores);
        let last = |found: &Rollouts| found.lessons.iter().map(|l| l.returns[1]).collect::<Vec<f64>>();
        let first = found("", HALF, scores);
        near(&last(&first), &scores.map(|score| (f64::from(score) - mean) / std));
        near(&[first.figures().score], &[0.0]);
        let carried = first.next();
        near(&carried.told()[1..], &[mean, std]);
        assert_eq!(Carried::of_told(carried.told()), carried);
        let later = found("", carried, [2.0; 4]);
        near(&last(&later), &[(2.0 - mean) / std; 4]);
        assert_eq!(later.next().reward_scale, carried.reward_scale);
        // A key stands above what an earlier job has measured.
        near(&last(&found("reward_mean = 100.0\nreward_std = 3.0\n", carried, [106.0; 4])), &[2.0; 4]);
        // Each key stands for itself; where all are alike, or no numbers, none divides by nothing.
        near(&last(&found("reward_mean = 1.0\n", HALF, scores)), &scores.map(|score| (f64::from(score) - 1.0) / std));
        near(&last(&found("reward_std = 2.0\n", HALF, scores)), &scores.map(|score| (f64::from(score) - mean) / 2.0));
        near(&last(&found("", HALF, [3.0; 4])), &[0.0; 4]);
        let with_nan = found("", HALF, [f32::NAN, 3.0, 1.0, f32::INFINITY]);
        near(&with_nan.next().told()[1..], &[2.0, 1.0]);
        // Of answers that were cut only where none has ended.
        near(&found_of(7, "", HALF, scores).next().told()[1..], &[mean, std]);
        let spec = spec("reward_model = 'r'\n");
        let mut numbers = vec![0.0; Rollouts::len(&spec)];
        for (n, end, score) in [(0, 9, 3.0), (1, 9, 1.0), (2, 7, 100.0), (3, 7, -50.0)] {
            answer(n, &[7, end], &[-1.0; 2], &[-1.0; 2], score, &mut numbers, &spec);
        }
        near(&Rollouts::new(&spec, Step::ZERO, HALF, numbers).next().told()[1..], &[2.0, 1.0]);
        assert_eq!(HALF.told()[2], 0.0);
        assert_eq!(Carried::of_told(HALF.told()), HALF);
    }

    /// Each pass has every answer once; the first in the order in which they were scored.
    #[test]
    fn a_pass_takes_each_answer_once() {
        let spec = spec("form = { tokens = [7] }\n");
        for first in [0, 4] {
            let found = Rollouts::new(&spec, Step::new(first), HALF, vec![0.0; Rollouts::len(&spec)]);
            let pass = |n: u64| {
                (0..2).flat_map(|k| found.minibatch(&spec, Step::new(first + 2 * n + k))).collect::<Vec<u64>>()
            };
            assert_eq!(pass(0), [0, 1, 2, 3]);
            let mut second = pass(1);
            second.sort_unstable();
            assert_eq!(second, [0, 1, 2, 3]);
        }
        // Answers without a token are nothing to learn from, and no fault.
        let none = Rollouts::new(&spec, Step::ZERO, HALF, vec![0.0; Rollouts::len(&spec)]);
        assert_eq!((none.num_trained(&spec, Step::ZERO), none.figures().entropy), (0, 0.0));
    }
}
