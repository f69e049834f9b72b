//! What the policy, the reference and the reward model say of the answers of a replica.
//!
//! Each is a forward of the same micro-batches as the first pass has (P-1), with the parameters exchanged.

use toroid_torus::job::JobSpec;

use super::config::config;
use super::rollouts::{Answer, Rollouts, Said, load_text};
use crate::comm::{CommError, Links};
use crate::data::Batch;
use crate::device::CachedAttention;
use crate::model::EvaluatedRows;
use crate::trainer::job::Job;
use crate::trainer::shared::Shared;

/// Whose forward it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judge {
    Policy,
    Reference,
    Reward,
}

impl<D: CachedAttention> Job<D> {
    /// Puts `answers`, those of this replica, into `numbers`, at one of its places; the others leave them zeros.
    pub(in crate::trainer) fn score_answers(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        spec: &JobSpec,
        answers: &[Answer],
        numbers: &mut [f64],
    ) -> Result<(), CommError> {
        shared.enter("score");
        let mut said: Vec<Said> = answers.iter().map(|_| Said::default()).collect();
        let has_reward = config(spec).reward_model.is_some();
        let judges = [Judge::Policy, Judge::Reference].into_iter().chain(has_reward.then_some(Judge::Reward));
        for judge in judges {
            self.exchange_with(judge);
            let done = self.hear_of(links, shared, spec, judge, answers, &mut said);
            self.exchange_with(judge);
            done?;
        }
        let place = self.assignment.place();
        if (place.tp, place.pp + 1) == (0, spec.shape.pp()) {
            answers.iter().zip(&said).for_each(|(answer, said)| Rollouts::put(spec, numbers, answer, said));
        }
        Ok(())
    }

    /// The working parameters are those of `judge`, or again the policy's.
    fn exchange_with(&mut self, judge: Judge) {
        let Job { passes, models, .. } = self;
        let models = models.as_mut().expect("a job of kind ppo has its models");
        match judge {
            Judge::Policy => {}
            Judge::Reference => passes.exchange_params(&mut models.reference),
            Judge::Reward => passes.exchange_params(models.reward.as_mut().expect("the job names a reward model")),
        }
    }

    fn hear_of(
        &mut self,
        links: &mut Links,
        shared: &Shared,
        spec: &JobSpec,
        judge: Judge,
        answers: &[Answer],
        said: &mut [Said],
    ) -> Result<(), CommError> {
        let size = spec.batch.micro_batch;
        for (answers, said) in answers.chunks(size).zip(said.chunks_mut(size)) {
            let Job { passes, assignment, fence, .. } = self;
            fence.check(assignment.epoch)?;
            let mut rows = Vec::with_capacity(size);
            let fill = |batch: &mut Batch| {
                batch.clear();
                for (at, answer) in answers.iter().enumerate() {
                    let with_last = judge == Judge::Reward;
                    rows.push(load_text(batch, spec, at, &answer.prompt, &answer.tokens, with_last));
                }
            };
            let heard = passes.evaluate_rows(links, assignment, fill)?;
            shared.advance();
            let Some(EvaluatedRows { logps, values }) = heard else { continue };
            for (said, rows) in said.iter_mut().zip(rows) {
                match judge {
                    Judge::Policy => {
                        said.logps = logps[rows.clone()].to_vec();
                        said.values = values[rows].to_vec();
                    }
                    Judge::Reference => said.reference = logps[rows].to_vec(),
                    // At the last token, which has the row behind that of its target.
                    Judge::Reward => said.score = values[rows.end],
                }
            }
        }
        Ok(())
    }
}
