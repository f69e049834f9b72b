//! What a job of kind `ppo` has besides: rollouts, and the models that they are judged by.
//!
//! ```text
//!   first step of an iteration   prompts (T-5) --write--> answers --score--> log-probabilities and values of the policy,
//!                                of the reference, scores --a sum over the torus--> every place has all of it: sealed
//!   each step of it              a minibatch of the answers, as any other step
//!   its last commit              the rollouts go, the coefficient of the divergence is that of the next
//! ```
//!
//! Rollouts are a pure function of (seed, iteration, parameters): a place that dies before the first minibatch is committed has them made again,
//! with the same bits. Later minibatches need what the policy said before it changed, which no parameters can make again; so all places hold
//! it, and a newcomer gets it from any of them. Beside the parameters it is small. Checkpoints are made at the ends of iterations, where nothing
//! of it is needed.
//!
//! - **P-1.** At the first minibatch the ratio is exactly 1: answers are scored in the very micro-batches that it has.
//! - **P-2.** Each prompt is answered once: which ones an iteration has follows from its number (T-5).
//!
//! | file | what |
//! |---|---|
//! | `rollouts` | the numbers of an iteration, and what follows from them: advantages, returns, figures |
//! | `write` | answers, token by token, over the stages and the TP group |
//! | `score` | what the policy, the reference and the reward model say of them |
//! | `models` | parameters of the reference and of the reward model at a place |

mod models;
mod rollouts;
mod score;
mod write;

use std::sync::Arc;

use toroid_session::Assignment;
use toroid_torus::failpoint;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::job::{JobSpec, PpoConfig};

use super::error::StepError;
use super::job::Job;
use super::shared::Shared;
use crate::comm::{CommError, Links, global_sum};
use crate::device::CachedAttention;

pub(super) use models::{ModelSources, Models};
#[cfg(test)]
pub(super) use rollouts::{Answer, Said};
pub(super) use rollouts::{Figures, Rollouts};

/// Numbers of one sum over the torus: whoever takes part holds them once for each place of its row or column.
const CHUNK: usize = 1 << 17;

/// Rollouts of an iteration, and what goes on from one to the next.
#[derive(Debug)]
pub(super) struct Policy {
    /// What a nat of divergence costs in the iteration that begins next.
    kl_coef: f64,
    /// From the first step of an iteration to its last commit.
    rollouts: Option<Rollouts>,
}

impl Policy {
    /// `None` for other kinds. `kl_coef`: what a checkpoint says.
    pub fn new(spec: &JobSpec, kl_coef: Option<f64>) -> Option<Policy> {
        let ppo = spec.ppo.as_ref()?;
        let kl_coef = kl_coef.filter(|_| !failpoint!(ForgetKlCoef)).unwrap_or(ppo.kl_coef);
        Some(Policy { kl_coef, rollouts: None })
    }

    pub fn kl_coef(&self) -> f64 {
        self.kl_coef
    }

    pub fn rollouts(&self) -> Option<&Rollouts> {
        self.rollouts.as_ref()
    }

    #[cfg(test)]
    pub fn set_rollouts(&mut self, rollouts: Rollouts) {
        self.rollouts = Some(rollouts);
    }

    /// `committed` is a new step.
    pub fn commit(&mut self, spec: &JobSpec, committed: Step) {
        if committed.get().is_multiple_of(spec.steps_of_iteration())
            && let Some(rollouts) = self.rollouts.take()
        {
            self.kl_coef = rollouts.next_kl_coef();
        }
    }

    /// Whatever a step has begun that nobody committed is made again.
    pub fn drop_uncommitted(&mut self, spec: &JobSpec, committed: Step) {
        if committed.get().is_multiple_of(spec.steps_of_iteration()) {
            self.rollouts = None;
        }
    }
}

fn config(spec: &JobSpec) -> &PpoConfig {
    spec.ppo.as_ref().expect("a job of kind ppo has its keys")
}

impl<D: CachedAttention> Job<D> {
    /// Makes the rollouts of the iteration that begins with the next step, where one does. On return every place has all of them.
    pub(super) fn roll_out(&mut self, links: &mut Links, shared: &Shared) -> Result<(), CommError> {
        let spec = Arc::clone(&self.assignment.spec);
        let Some(policy) = &mut self.policy else { return Ok(()) };
        let (first, kl_coef) = (self.committed, policy.kl_coef);
        if !first.get().is_multiple_of(spec.steps_of_iteration()) {
            assert!(policy.rollouts.is_some(), "a place within an iteration has its rollouts");
            return Ok(());
        }
        policy.rollouts = None;
        self.passes.finish_gather(links)?;
        shared.enter("rollout");
        let answers = self.write_answers(links, shared, &spec)?;
        let mut numbers = vec![0.0; Rollouts::len(&spec)];
        self.score_answers(links, shared, &spec, &answers, &mut numbers)?;
        shared.enter("share rollouts");
        for chunk in numbers.chunks_mut(CHUNK) {
            global_sum(links, &spec.shape, chunk)?;
            shared.advance();
        }
        if let Some(policy) = &mut self.policy {
            policy.rollouts = Some(Rollouts::new(&spec, first, kl_coef, numbers));
        }
        Ok(())
    }

    /// Newcomers get what a place within an iteration needs from `source`, which has committed the step that all go on from.
    pub(super) fn tell_rollouts(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        (source, step): (Rank, Step),
        is_newcomer: bool,
    ) -> Result<(), StepError> {
        let spec = Arc::clone(&self.assignment.spec);
        let Some(policy) = &mut self.policy else { return Ok(()) };
        policy.drop_uncommitted(&spec, step);
        let within = step.get() % spec.steps_of_iteration();
        let mut told = vec![0.0; 1 + if within > 0 { Rollouts::len(&spec) } else { 0 }];
        if self.assignment.rank == source {
            told[0] = policy.kl_coef;
            if let Some(rollouts) = &policy.rollouts {
                told[1..].copy_from_slice(rollouts.numbers());
            }
        }
        for chunk in told.chunks_mut(CHUNK) {
            global_sum(links, &spec.shape, chunk)?;
            shared.advance();
        }
        if is_newcomer {
            if failpoint!(StaleKlCoef) {
                told[0] = config(&spec).kl_coef;
            }
            policy.kl_coef = told[0];
            let first = Step::new(step.get() - within);
            policy.rollouts = (within > 0).then(|| Rollouts::new(&spec, first, told[0], told.split_off(1)));
        }
        Ok(())
    }
}

/// Answers of the replica of a place, by the micro-batches in which its first pass has them: numbers within the iteration.
fn of_replica(place: &Assignment) -> Vec<Vec<u64>> {
    let spec = &place.spec;
    let (num, size) = (spec.batch.num_micro_batches as u64, spec.batch.micro_batch as u64);
    let own = spec.batch.of_replica(spec.shape.dp(), place.place().dp);
    let micro_batches = (0..config(spec).minibatches).flat_map(|m| own.clone().map(move |i| m * num + i as u64));
    micro_batches.map(|i| (i * size..(i + 1) * size).collect()).collect()
}
