//! The text of a job at one place: which samples a step takes, and what of the text is told to users.

use toroid_proto::Inputs;
use toroid_session::Assignment;
use toroid_torus::cursor::Cursor;
use toroid_torus::ids::Step;
use toroid_torus::job::JobSpec;

use crate::data::{Dataset, LeftOut};

pub(super) struct Samples {
    dataset: Dataset,
    data_digest: [u8; 32],
    cursor: Cursor,
    /// What of the job has no effect, or another than one may think.
    notes: Vec<String>,
}

impl Samples {
    pub fn new(spec: &JobSpec, dataset: Dataset, data_digest: [u8; 32], notes: Vec<String>) -> Samples {
        let cursor = Cursor::new(spec.seed, dataset.num_train(), spec.data.order);
        Samples { dataset, data_digest, cursor, notes }
    }

    /// From now on a place takes other samples than the others do. A failpoint: tests look whether that is seen.
    pub fn confuse(&mut self, spec: &JobSpec) {
        self.cursor = Cursor::new(spec.seed + 1, self.dataset.num_train(), spec.data.order);
    }

    pub fn data_digest(&self) -> [u8; 32] {
        self.data_digest
    }

    /// What is trained on, and what of it is left out (T-12).
    pub fn told(&self) -> Inputs {
        let text = self.dataset.text();
        let left_out = |l: &LeftOut| toroid_proto::LeftOut {
            reason: l.reason.words().into(),
            num_files: l.num_files,
            bytes: l.bytes,
            first: l.first.clone(),
        };
        let left_out = text.left_out().iter().map(left_out).collect();
        Inputs { summary: text.source_summary(), left_out, notes: self.notes.clone() }
    }

    /// Samples to train on.
    pub fn num_train(&self) -> u64 {
        self.dataset.num_train()
    }

    /// Inputs and targets, `(B * S)` each, of micro-batch `i` of this place's replica in step `step` (T-5).
    pub fn load_train(&self, place: &Assignment, step: Step, i: usize, inputs: &mut [u32], targets: &mut [u32]) {
        let spec = &place.spec;
        let first = spec.batch.of_replica(spec.shape.dp(), place.place().dp).start;
        let seq = spec.model.seq;
        for (k, id) in self.cursor.micro_batch(step.get(), &spec.batch, first + i).into_iter().enumerate() {
            let at = k * seq..(k + 1) * seq;
            self.dataset.train_sample(id, &mut inputs[at.clone()], &mut targets[at]);
        }
    }

    /// Inputs and targets, `(B * S)` each, of micro-batch `index` of a validation.
    pub fn load_validation(&self, spec: &JobSpec, index: usize, inputs: &mut [u32], targets: &mut [u32]) {
        let (micro_batch, seq) = (spec.batch.micro_batch, spec.model.seq);
        for i in 0..micro_batch {
            let id = (index * micro_batch + i) as u64 % self.dataset.num_validation();
            let at = i * seq..(i + 1) * seq;
            self.dataset.validation_sample(id, &mut inputs[at.clone()], &mut targets[at]);
        }
    }
}
