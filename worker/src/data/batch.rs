//! A micro-batch on the host.

use std::ops::Range;

use toroid_torus::job::JobSpec;

use crate::device::NOWHERE;
use crate::model::{AnswerRows, Feed, Input, Target};

/// Samples as a stage takes them, `B` rows of `S` tokens.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, S)`; 0 at padding.
    pub inputs: Vec<u32>,
    /// `(B, S)`: the next tokens; [`NOWHERE`] where none is trained.
    pub targets: Vec<u32>,
    /// Rows of each text, ascending; none in pre-training, whose samples are text from end to end.
    pub texts: Vec<Range<usize>>,
    /// `(B / 2)`, of pairs: by how much the chosen answer is to be better.
    pub margins: Vec<f32>,
    /// Of a policy's own answers.
    pub answers: Answers,
    has_texts: bool,
    has_pairs: bool,
}

/// What was said of the tokens of answers when they were sampled, `(B, S)` each, at the rows of their targets.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    pub logps: Vec<f32>,
    pub values: Vec<f32>,
    pub advantages: Vec<f32>,
    pub returns: Vec<f32>,
    /// These are here.
    pub are_set: bool,
}

impl Answers {
    fn zeros(rows: usize) -> Answers {
        let zeros = || vec![0.0; rows];
        Answers { logps: zeros(), values: zeros(), advantages: zeros(), returns: zeros(), are_set: false }
    }

    fn rows<'a>(&'a self, targets: &'a [u32]) -> AnswerRows<'a> {
        let Answers { logps, values, advantages, returns, .. } = self;
        AnswerRows { targets, old_logps: logps, old_values: values, advantages, returns }
    }
}

impl Batch {
    /// With room for a micro-batch of this job.
    pub fn new(spec: &JobSpec) -> Batch {
        let rows = spec.rows_of_micro_batch() * spec.model.seq;
        Batch {
            inputs: vec![0; rows],
            targets: vec![0; rows],
            texts: Vec::new(),
            margins: Vec::new(),
            answers: match spec.ppo {
                Some(_) => Answers::zeros(rows),
                None => Answers::default(),
            },
            has_texts: !spec.kind.is_pretrain(),
            has_pairs: !spec.model.output.has_logits(),
        }
    }

    /// Nothing is in it.
    pub fn clear(&mut self) {
        self.texts.clear();
        self.margins.clear();
        self.answers.are_set = false;
        if self.has_texts {
            self.inputs.fill(0);
            self.targets.fill(NOWHERE);
        }
    }

    /// Tokens that are no padding.
    pub fn num_tokens(&self) -> u64 {
        match self.has_texts {
            true => self.texts.iter().map(|text| text.len() as u64).sum(),
            false => self.inputs.len() as u64,
        }
    }

    /// Tokens whose cross-entropy counts.
    pub fn num_trained(&self) -> u64 {
        self.targets.iter().filter(|target| **target != NOWHERE).count() as u64
    }

    /// For a stage; `received (B * S, d)` comes from the one before, where there is one.
    pub fn feed<'a>(&'a self, received: Option<&'a [f32]>, is_last: bool) -> Feed<'a> {
        let target = match self.has_pairs {
            true => Target::Margins(&self.margins),
            false if self.answers.are_set => Target::Answers(self.answers.rows(&self.targets)),
            false => Target::Tokens(&self.targets),
        };
        Feed {
            input: received.map_or(Input::Tokens(&self.inputs), Input::Activations),
            target: is_last.then_some(target),
            texts: self.has_texts.then_some(self.texts.as_slice()),
        }
    }
}
