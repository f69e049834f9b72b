//! What a job is trained on at one place: which samples a step takes, and what is told to users.

use toroid_proto::{Inputs, Source};
use toroid_session::Assignment;
use toroid_torus::ids::Step;
use toroid_torus::job::{JobKind, JobSpec};
use toroid_torus::mixture::WHOLE;

use super::validations::{SourceSums, ValidationSums};
use crate::data::{Batch, DataError, LeftOut, Sources};
use crate::model::LossScale;

pub(super) struct Samples {
    sources: Sources,
    /// What of the job has no effect, or another than one may think.
    notes: Vec<String>,
}

impl Samples {
    pub fn new(sources: Sources, notes: Vec<String>) -> Samples {
        Samples { sources, notes }
    }

    /// From now on a place takes other samples than the others do. A failpoint: tests look whether that is seen.
    pub fn confuse(&mut self, spec: &JobSpec) {
        self.sources.reordered(&JobSpec { seed: spec.seed + 1, ..spec.clone() });
    }

    pub fn data_digest(&self) -> [u8; 32] {
        self.sources.digest()
    }

    /// Hexadecimal blake3 of the tokenizer's file; `None`: a token is a byte.
    pub fn tokenizer(&self) -> Option<String> {
        self.sources.tokenizer()
    }

    /// What is trained on, and what of it is left out (T-12).
    pub fn told(&self) -> Inputs {
        let (mut summaries, mut left_out, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for (source, dataset) in self.sources.iter() {
            let (name, tokens) = (&source.name, dataset.tokens());
            // A source that the job only gives a path has no name.
            let before = if name.is_empty() { String::new() } else { format!("{name}: ") };
            summaries.push(format!("{before}{}", tokens.source_summary()));
            left_out.extend(tokens.left_out().iter().map(|l: &LeftOut| toroid_proto::LeftOut {
                reason: format!("{before}{}", l.reason.words()),
                num_files: l.num_files,
                bytes: l.bytes,
                first: l.first.clone(),
            }));
            if !name.is_empty() {
                let (num_tokens, num_samples) = (tokens.len(), dataset.num_train());
                sources.push(Source { name: name.clone(), num_tokens, num_samples, ..Source::default() });
            }
        }
        Inputs { summary: summaries.join("; "), left_out, notes: self.notes.clone(), sources }
    }

    /// Before `step`: files are mapped, and whoever writes to one changes samples.
    pub fn check(&self, step: Step) -> Result<(), DataError> {
        self.sources.check_file(step.get())
    }

    /// Samples to train on.
    pub fn num_train(&self) -> u64 {
        self.sources.num_train()
    }

    /// Micro-batch `i` of this place's replica in step `step` (T-5).
    pub fn load_train(&self, place: &Assignment, step: Step, i: usize, batch: &mut Batch) {
        let spec = &place.spec;
        let first = spec.batch.of_replica(spec.shape.dp(), place.place().dp).start;
        batch.clear();
        let drawn = self.sources.mixture().micro_batch(step.get(), &spec.batch, first + i);
        for (at, drawn) in drawn.into_iter().enumerate() {
            self.sources.dataset(drawn.source).train_sample(drawn.sample, at, batch);
        }
    }

    /// What answer `number` of the iteration that begins with step `first` answers (T-5).
    pub fn prompt(&self, spec: &JobSpec, first: Step, number: u64) -> Vec<u32> {
        let drawn = self.sources.mixture().sample(spec.samples_of(first.get()) + number);
        self.sources.dataset(drawn.source).prompt(drawn.sample)
    }

    /// What the losses of a step are divided by, over all replicas: they follow from the data (T-5), so nobody has to ask the others.
    /// `num_trained`: the answers' tokens that a policy learns from.
    pub fn scale_of(&self, spec: &JobSpec, step: Step, num_trained: Option<u64>) -> LossScale {
        let routers = 1.0 / spec.batch.num_micro_batches as f32;
        match spec.kind {
            JobKind::Pretrain => LossScale::mean(routers, spec.rows_of_micro_batch() * spec.model.seq),
            JobKind::Sft | JobKind::Ppo => {
                let each = match num_trained.unwrap_or_else(|| self.num_trained(spec, step)) {
                    // There is no cross-entropy, and so no gradient of one.
                    0 => 0.0,
                    num => (1.0 / num as f64) as f32,
                };
                LossScale { each, routers }
            }
            JobKind::Reward => LossScale { each: (1.0 / spec.batch.samples() as f64) as f32, routers },
        }
    }

    /// Tokens of a step whose cross-entropy counts, over all replicas.
    fn num_trained(&self, spec: &JobSpec, step: Step) -> u64 {
        let (mixture, num) = (self.sources.mixture(), spec.batch.samples());
        let of_sample = |n: u64| {
            let drawn = mixture.sample(step.get() * num + n);
            self.sources.dataset(drawn.source).num_trained(drawn.sample)
        };
        (0..num).map(of_sample).sum()
    }

    /// The source of micro-batch `index` of a validation, and which of that source's it is: those of a source follow each other.
    pub fn validated(&self, spec: &JobSpec, mut index: usize) -> (usize, usize) {
        for (source, num) in self.sources.mixture().validated(spec.eval.num_micro_batches).into_iter().enumerate() {
            if index < num {
                return (source, index);
            }
            index -= num;
        }
        unreachable!("a validation has {} micro-batches, {index} more were asked for", spec.eval.num_micro_batches)
    }

    /// Micro-batch `index` of a validation.
    pub fn load_validation(&self, spec: &JobSpec, index: usize, batch: &mut Batch) {
        let micro_batch = spec.batch.micro_batch;
        let (source, index) = self.validated(spec, index);
        let dataset = self.sources.dataset(source);
        batch.clear();
        for at in 0..micro_batch {
            let id = (index * micro_batch + at) as u64 % dataset.num_validation();
            dataset.validation_sample(id, at, batch);
        }
    }

    /// A validation in which nothing is summed up yet.
    pub fn no_sums(&self, step: Step) -> ValidationSums {
        ValidationSums { step, of_sources: vec![SourceSums::default(); self.sources.iter().len()] }
    }

    /// Mean cross-entropy a token, each source by its share.
    pub fn mean_loss(&self, sums: &ValidationSums) -> f64 {
        match &sums.of_sources[..] {
            [only] => only.mean(),
            all => {
                let shares = self.sources.mixture().parts().iter().map(|part| part.share as f64 / WHOLE as f64);
                all.iter().zip(shares).map(|(source, share)| share * source.mean()).sum()
            }
        }
    }
}
