//! Floating-point operations of one micro-batch, as one TP rank does them. A product of `(m, k)` and `(k, n)` counts `2 m k n`.
//!
//! Each matrix is met three times: forward, gradient of the input, gradient of the weights. Attention's own products (scores and values,
//! half of a square since it is causal) are two in the forward and five in the backward, which makes the scores anew; it has no weights.

use std::ops::Range;

use crate::job::JobSpec;
use crate::model::{ModelConfig, Output, TOP_K};
use crate::partition::{kv_heads, stage_layers};
use crate::pipeline::Costs;

/// Dims of one TP rank's share and of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Rows of tokens in a micro-batch.
    pub batch: usize,
    pub seq: usize,
    pub d: usize,
    /// This rank's query heads and key/value heads.
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// All routed experts.
    pub experts: usize,
    pub ff: usize,
    /// This rank's rows of the head: of the vocabulary, or none where the model gives a score.
    pub vocab: usize,
    /// Samples are texts with padding, several in one where they are packed.
    pub has_texts: bool,
    pub is_packed: bool,
    /// The model gives tokens, and no score.
    pub has_tokens: bool,
    /// And a value beside each.
    pub has_values: bool,
    pub tp: usize,
}

impl Dims {
    pub fn new(spec: &JobSpec) -> Dims {
        let (model, tp) = (&spec.model, spec.shape.tp());
        let has_tokens = model.output.has_logits();
        Dims {
            batch: spec.rows_of_micro_batch(),
            seq: model.seq,
            d: model.d_model,
            heads: model.heads / tp,
            kv_heads: kv_heads(model, tp, 0).len(),
            head_dim: model.head_dim,
            experts: model.experts,
            ff: model.ff,
            vocab: if has_tokens { model.vocab / tp } else { 0 },
            has_texts: !spec.kind.is_pretrain(),
            is_packed: spec.data.packing,
            has_tokens,
            has_values: model.output == Output::Policy,
            tp,
        }
    }

    /// Tokens of a micro-batch.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq
    }
    /// Width of the queries, keys and values of a token.
    pub fn row_len(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// Width of the attention's result.
    pub fn out_len(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Bytes of the residual stream of a micro-batch: what goes between stages and what is summed over TP.
    pub fn activation_bytes(&self) -> u64 {
        4 * (self.tokens() * self.d) as u64
    }
}

/// The layers of a virtual stage, and whether the ends of the model are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub layers: Range<usize>,
    pub has_embedding: bool,
    pub has_head: bool,
}

impl Part {
    /// Virtual stage `v` of `num`.
    pub fn of(model: &ModelConfig, num: usize, v: usize) -> Part {
        let layers = stage_layers(model.layers, num, v);
        Part { has_embedding: layers.start == 0, has_head: layers.end == model.layers, layers }
    }

    /// Sums over TP of a forward: two a layer, and that of the embedding.
    pub fn num_forward_sums(&self) -> usize {
        2 * self.layers.len() + usize::from(self.has_embedding)
    }

    /// Sums over TP of a backward: two a layer, and that of the head.
    pub fn num_backward_sums(&self) -> usize {
        2 * self.layers.len() + usize::from(self.has_head)
    }
}

/// Weights of matrices that a token meets in a layer, as one TP rank has them; its experts see their share of the tokens.
fn layer_weights(dims: &Dims) -> f64 {
    let attention = dims.d * (dims.row_len() + dims.out_len());
    let expert = 3 * dims.d * dims.ff;
    attention as f64 + ((TOP_K + 1) * expert) as f64 / dims.tp as f64 + (dims.d * dims.experts) as f64
}

/// Weights of the matrices whose products with the activations are made again before a backward: all of a forward's but the last of each half.
fn recomputed_weights(dims: &Dims) -> f64 {
    let expert = 2 * dims.d * dims.ff;
    (dims.d * (dims.row_len() + dims.experts)) as f64 + ((TOP_K + 1) * expert) as f64 / dims.tp as f64
}

/// Operations of one micro-batch; `recompute`: activations are computed again.
pub(super) fn of_part(dims: &Dims, part: &Part, recompute: bool) -> Costs {
    let layers = part.layers.len() as f64;
    let head = if part.has_head { (dims.d * dims.vocab) as f64 } else { 0.0 };
    let products = 2.0 * dims.tokens() as f64 * (layers * layer_weights(dims) + head);
    let square = (dims.seq * dims.seq) as f64;
    let attention = layers * 2.0 * (dims.batch * dims.out_len()) as f64 * square;
    let again = 2.0 * dims.tokens() as f64 * layers * recomputed_weights(dims) + attention;
    let backward_input = products + 2.5 * attention + if recompute { again } else { 0.0 };
    Costs { forward: products + attention, backward_input, backward_weight: products }
}

/// Operations of a step that the model itself needs: 6 a token and matrix element that it meets, and attention without what is made anew.
pub(super) fn of_step(spec: &JobSpec) -> f64 {
    let model = &spec.model;
    let (samples, seq) = (spec.batch.samples() as f64, model.seq as f64);
    // Rows of the embedding are looked up, not multiplied.
    let weights = model.num_active_params() as f64 - (model.vocab * model.d_model) as f64;
    let attention = 6.0 * (model.layers * model.heads * model.head_dim) as f64 * seq * seq;
    samples * (6.0 * seq * weights + attention)
}
