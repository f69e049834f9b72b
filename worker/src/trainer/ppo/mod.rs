//! What a job of kind `ppo` has besides: rollouts, and the models that they are judged by.
//!
//! ```text
//!   first step of an iteration   prompts (T-5) --write--> answers --score--> log-probabilities and values of the policy,
//!                                of the reference, scores --a sum over the torus--> every place has all of it: sealed
//!   each step of it              a minibatch of the answers, as any other step
//!   its last commit              the rollouts go, the coefficient of the divergence is that of the next; the first one leaves what scores
//!                                are measured by
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
//! | `state` | the rollouts of an iteration at a place |
//! | `carried` | what goes on from one to the next |
//! | `rollouts` | the numbers of an iteration, and what follows from them: advantages, returns, figures |
//! | `write` | answers, token by token, over the stages and the TP group |
//! | `score` | what the policy, the reference and the reward model say of them |
//! | `models` | parameters of the reference and of the reward model at a place |

pub(super) mod carried;
mod config;
pub(super) mod models;
pub(super) mod rollouts;
mod score;
pub(super) mod state;
mod write;

use std::sync::Arc;

use toroid_torus::failpoint;
use toroid_torus::ids::{Rank, Step};

use carried::Carried;
use config::config;
use rollouts::Rollouts;

use super::error::StepError;
use super::job::Job;
use super::long_sum::long_sum;
use super::shared::Shared;
use crate::comm::{CommError, Links};
use crate::device::CachedAttention;

impl<D: CachedAttention> Job<D> {
    /// Makes the rollouts of the iteration that begins with the next step, where one does. On return every place has all of them.
    pub(super) fn roll_out(&mut self, links: &mut Links, shared: &Shared) -> Result<(), CommError> {
        let spec = Arc::clone(&self.assignment.spec);
        let Some(policy) = &mut self.policy else { return Ok(()) };
        let (first, carried) = (self.committed, policy.carried);
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
        long_sum(links, shared, &spec.shape, &mut numbers)?;
        if let Some(policy) = &mut self.policy {
            policy.rollouts = Some(Rollouts::new(&spec, first, carried, numbers));
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
        let mut told = vec![0.0; Carried::LEN + if within > 0 { Rollouts::len(&spec) } else { 0 }];
        if self.assignment.rank == source {
            told[..Carried::LEN].copy_from_slice(&policy.carried.told());
            if let Some(rollouts) = &policy.rollouts {
                told[Carried::LEN..].copy_from_slice(rollouts.numbers());
            }
        }
        long_sum(links, shared, &spec.shape, &mut told)?;
        if is_newcomer {
            if failpoint!(StaleKlCoef) {
                told[0] = config(&spec).kl_coef;
            }
            let numbers = told.split_off(Carried::LEN);
            policy.carried = Carried::of_told([told[0], told[1], told[2]]);
            let first = Step::new(step.get() - within);
            policy.rollouts = (within > 0).then(|| Rollouts::new(&spec, first, policy.carried, numbers));
        }
        Ok(())
    }
}
