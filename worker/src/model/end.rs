//! What the last stage ends with: logits and the cross-entropy of their tokens, a score of each text, or both, as a policy does.

use std::ops::Range;

use toroid_torus::model::Output;

use crate::device::Device;

use super::block::Context;
use super::layout::{HeadRanges, Layout};
use super::policy_loss::{AnswerRows, PolicyStats};
use super::score::PairStats;
use super::tp::TpComm;
use super::{head, policy, score};

/// What the last stage compares with.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// `(B, S)`: the next tokens; [`NOWHERE`](crate::device::NOWHERE) where none is trained, which only jobs with texts have.
    Tokens(&'a [u32]),
    /// `(B / 2)`: by how much the first text of each pair is to be better than the second.
    Margins(&'a [f32]),
    /// A policy's own answers. With [`Target::Tokens`] it only says their log-probabilities and values.
    Answers(AnswerRows<'a>),
}

/// What the backward needs of one micro-batch.
pub(super) enum Saved<D: Device> {
    Head(head::Saved<D>),
    Score(score::Saved<D>),
    Policy(policy::Saved<D>),
}

/// The losses of a micro-batch, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EndStats {
    /// Cross-entropy over the tokens that are trained; 0 but on the last stage.
    pub ce: f64,
    /// Of a reward model.
    pub pairs: PairStats,
    /// Of a policy.
    pub policy: PolicyStats,
}

impl<D: Device> Saved<D> {
    pub fn new(device: &D, layout: &Layout) -> Saved<D> {
        match layout.output {
            Output::Tokens => Saved::Head(head::Saved::new(device, layout)),
            Output::Score => Saved::Score(score::Saved::new(device, layout)),
            Output::Policy => Saved::Policy(policy::Saved::new(device, layout)),
        }
    }
}

/// `x (N, d)`, and the rows of each text.
pub(super) fn forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    target: Target<'_>,
    texts: &[Range<usize>],
    x: &D::Buf,
) -> Result<EndStats, T::Error> {
    match (saved, target) {
        (Saved::Head(saved), Target::Tokens(targets)) => {
            context.device.write_ids(&mut saved.targets, targets);
            Ok(EndStats { ce: head::forward(context, ranges, saved, x)?, ..EndStats::default() })
        }
        (Saved::Score(saved), Target::Margins(margins)) => {
            let last: Vec<u32> = texts.iter().map(|text| (text.end - 1) as u32).collect();
            Ok(EndStats { pairs: score::forward(context, ranges, saved, &last, margins, x), ..EndStats::default() })
        }
        (Saved::Policy(saved), Target::Tokens(targets)) => {
            policy::forward(context, ranges, saved, targets, x)?;
            Ok(EndStats::default())
        }
        (Saved::Policy(saved), Target::Answers(rows)) => {
            policy::forward(context, ranges, saved, rows.targets, x)?;
            let stats = policy::loss(saved, &context.layout.policy, &rows);
            Ok(EndStats { policy: stats, ..EndStats::default() })
        }
        (Saved::Head(_), other) => panic!("a head takes targets, found {other:?}"),
        (Saved::Score(_), other) => panic!("a score takes margins, found {other:?}"),
        (Saved::Policy(_), other) => panic!("a policy takes targets or answers, found {other:?}"),
    }
}

/// Leaves the gradient of `x` in `scratch.dx`; `scale` multiplies the loss of each token or pair.
pub(super) fn backward_input<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    scale: f32,
    x: &D::Buf,
    grads: &mut D::Buf,
) -> Result<(), T::Error> {
    match saved {
        Saved::Head(saved) => head::backward_input(context, ranges, saved, scale, x, grads),
        Saved::Score(saved) => {
            score::backward_input(context, ranges, saved, scale, grads);
            Ok(())
        }
        Saved::Policy(saved) => policy::backward_input(context, ranges, saved, scale, x, grads),
    }
}

/// Adds to the gradient of the matrix, after [`backward_input`].
pub(super) fn backward_weight<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) {
    match saved {
        Saved::Head(saved) => head::backward_weight(context, ranges, saved, grads),
        Saved::Score(saved) => score::backward_weight(context, ranges, saved, grads),
        Saved::Policy(saved) => policy::backward_weight(context, ranges, saved, grads),
    }
}
