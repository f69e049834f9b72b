//! The end of the last stage of a reward model: final norm and a linear head without a bias, at the last token of each text.
//!
//! Texts `2 i` and `2 i + 1` are the chosen and the rejected answer of pair `i`, with scores `c` and `r` and the margin `m`. The loss of the pair is
//! `-log sigmoid(c - r - m) + center_coef * (c + r)^2` (Ouyang et al. 2022; the margin is that of Llama 2, the other term Eisenstein et al.'s).
//! All ranks of a TP group compute the same bits, and nothing is summed over it.

use std::ops::AddAssign;

use crate::device::{Buffer, Device};

use super::block::{Context, linear, linear_dw, linear_dx};
use super::layout::{HeadRanges, Layout};

/// What the pairs of a micro-batch add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairStats {
    /// Of `-log sigmoid(c - r - m)`.
    pub loss: f64,
    /// Of `(c + r)^2`.
    pub center: f64,
    /// Pairs with `c > r`.
    pub correct: u64,
    /// Pairs with `c = r`: neither right nor wrong.
    pub ties: u64,
    pub num: u64,
}

/// What the backward needs of one micro-batch of `T` texts.
pub(super) struct Saved<D: Device> {
    /// `(T)`: the row of each text's last token.
    last: D::Ids,
    /// `(T, d)`: the residual stream there.
    x: D::Buf,
    /// `(T)`
    inv_rms: D::Buf,
    /// `(T, d)`: `norm(x)`
    h: D::Buf,
    /// `(T)`; the backward leaves their gradient here.
    scores: D::Buf,
    /// `(T, d)` each: gradients of `h` and of `x`.
    dh: D::Buf,
    dx: D::Buf,
    /// `(T)`, host: the gradient of the scores, as if each pair were the only one.
    dscores: Vec<f32>,
}

impl<D: Device> Saved<D> {
    pub fn new(device: &D, layout: &Layout) -> Saved<D> {
        let (texts, d) = (layout.attention.batch, layout.d);
        Saved {
            last: device.alloc_ids(texts),
            x: device.alloc(texts * d),
            inv_rms: device.alloc(texts),
            h: device.alloc(texts * d),
            scores: device.alloc(texts),
            dh: device.alloc(texts * d),
            dx: device.alloc(texts * d),
            dscores: vec![0.0; texts],
        }
    }
}

/// From `x (N, d)` to the losses of the pairs; `last (T)` are the rows of the texts' last tokens, `margins (T / 2)`.
pub(super) fn forward<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    last: &[u32],
    margins: &[f32],
    x: &D::Buf,
) -> PairStats {
    let Context { device, layout, params, .. } = context;
    let texts = last.len();
    assert_eq!((texts, 2 * margins.len()), (layout.attention.batch, texts), "texts and margins of a micro-batch");
    device.write_ids(&mut saved.last, last);
    // A row of `x` is looked up as one of an embedding is.
    device.embedding(layout.d, &saved.last, 0, x.all(), saved.x.all_mut());
    let norm = params.view(ranges.norm.clone());
    device.rms_norm(layout.norm_eps, saved.x.all(), norm, saved.h.all_mut(), saved.inv_rms.all_mut());
    let weight = params.view(ranges.head.clone());
    linear(*device, layout.products, texts, saved.h.all(), weight, saved.scores.all_mut());
    device.read(saved.scores.all(), &mut saved.dscores);
    let mut stats = PairStats::default();
    for (pair, margin) in saved.dscores.chunks_exact_mut(2).zip(margins) {
        let gradient = stats.add(f64::from(pair[0]), f64::from(pair[1]), f64::from(*margin), layout.center_coef);
        pair.copy_from_slice(&gradient.map(|g| g as f32));
    }
    stats
}

impl AddAssign for PairStats {
    fn add_assign(&mut self, other: PairStats) {
        self.loss += other.loss;
        self.center += other.center;
        self.correct += other.correct;
        self.ties += other.ties;
        self.num += other.num;
    }
}

impl PairStats {
    /// Adds a pair; the gradient of its loss with respect to both scores.
    fn add(&mut self, chosen: f64, rejected: f64, margin: f64, center_coef: f64) -> [f64; 2] {
        let (difference, both) = (chosen - rejected - margin, chosen + rejected);
        // log(1 + exp(-x)) without an overflow.
        self.loss += (-difference).max(0.0) + (-difference.abs()).exp().ln_1p();
        self.center += both * both;
        self.correct += u64::from(chosen > rejected);
        self.ties += u64::from(chosen == rejected);
        self.num += 1;
        let pull = 1.0 / (1.0 + difference.exp());
        let centered = 2.0 * center_coef * both;
        [centered - pull, centered + pull]
    }
}

/// Leaves the gradient of `x` in `scratch.dx`; `scale` multiplies the loss of each pair. The gradient of the norm's weights is a by-product.
pub(super) fn backward_input<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &mut Saved<D>,
    scale: f32,
    grads: &mut D::Buf,
) {
    let Context { device, layout, params, scratch, .. } = context;
    let texts = layout.attention.batch;
    saved.dscores.iter_mut().for_each(|d| *d *= scale);
    device.write(saved.scores.all_mut(), &saved.dscores);
    let weight = params.view(ranges.head.clone());
    linear_dx(*device, layout.products, texts, saved.scores.all(), weight, 0.0, saved.dh.all_mut());
    device.fill(saved.dx.all_mut(), 0.0);
    device.rms_norm_backward(
        saved.x.all(),
        params.view(ranges.norm.clone()),
        saved.inv_rms.all(),
        saved.dh.all(),
        saved.dx.all_mut(),
        grads.view_mut(ranges.norm.clone()),
    );
    device.fill(scratch.dx.all_mut(), 0.0);
    device.embedding_backward(layout.d, &saved.last, 0, saved.dx.all(), scratch.dx.all_mut());
}

/// Adds to the gradient of the head, after [`backward_input`].
pub(super) fn backward_weight<D: Device, T>(
    context: &mut Context<'_, D, T>,
    ranges: &HeadRanges,
    saved: &Saved<D>,
    grads: &mut D::Buf,
) {
    let Context { device, layout, .. } = context;
    let dw = grads.view_mut(ranges.head.clone());
    linear_dw(*device, layout.products, layout.attention.batch, saved.scores.all(), saved.h.all(), dw);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: log(1 + e^-x) at 1, 0 and -1000, and their slopes.
    #[test]
    fn a_pair_has_the_loss_of_bradley_and_terry() {
        let check = |(chosen, rejected, margin): (f64, f64, f64), coef: f64, loss: f64, gradient: [f64; 2]| {
            let mut stats = PairStats::default();
            let found = stats.add(chosen, rejected, margin, coef);
            assert!((stats.loss - loss).abs() < 1e-12 * loss.max(1.0), "{stats:?}, expected {loss}");
            assert!(found.iter().zip(gradient).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}, expected {gradient:?}");
        };
        let (at_one, pull) = (0.313_261_687_518_222_86, 0.268_941_421_369_995_1);
        check((1.5, 0.5, 0.0), 0.0, at_one, [-pull, pull]);
        check((2.0, 0.5, 0.5), 0.0, at_one, [-pull, pull]);
        check((1.5, 0.5, 0.0), 0.25, at_one, [1.0 - pull, 1.0 + pull]);
        check((0.0, 0.0, 0.0), 0.0, 2_f64.ln(), [-0.5, 0.5]);
        check((-500.0, 500.0, 0.0), 0.0, 1000.0, [-1.0, 1.0]);
    }

    /// An accuracy by `>` alone counts ties as wrong: a model that knows nothing has 0 of them right, and not half.
    #[test]
    fn ties_are_counted_apart() {
        let mut stats = PairStats::default();
        for (chosen, rejected) in [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (-0.0, 0.0)] {
            stats.add(chosen, rejected, 0.0, 0.0);
        }
        assert_eq!((stats.correct, stats.ties, stats.num), (1, 2, 4));
    }
}
