//! Dims of a stage and where its tensors lie in the flat buffers.

use std::ops::Range;

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::JobSpec;
use toroid_torus::model::{ModelConfig, Output};
use toroid_torus::partition::{self, Partition};

use super::policy_loss::PolicyLoss;
use crate::device::{AttentionDims, Products};

/// Ranges of one layer's tensors in the flat buffer of parameters, and of their gradients in that of gradients.
///
/// `q`, `kv`, `E_local` and `ff_local` are this TP rank's share.
#[derive(Debug, Clone)]
pub(super) struct LayerRanges {
    /// `(d)`
    pub norm1: Range<usize>,
    /// `((q + 2 kv) * head_dim, d)`: `wq`, `wk` and `wv`, which lie side by side, as one matrix.
    pub wqkv: Range<usize>,
    /// `(d, q * head_dim)`
    pub wo: Range<usize>,
    /// `(d)`
    pub norm2: Range<usize>,
    /// `(E_local, 2 ff, d)`
    pub w13: Range<usize>,
    /// `(E_local, d, ff)`
    pub w2: Range<usize>,
    /// `(E, d)`
    pub router: Range<usize>,
    /// `(2 ff_local, d)`
    pub shared13: Range<usize>,
    /// `(d, ff_local)`
    pub shared2: Range<usize>,
}

impl LayerRanges {
    /// Of the attention half, which lies before the other.
    pub fn attention(&self) -> Range<usize> {
        self.norm1.start..self.wo.end
    }

    /// Of the mixture-of-experts half.
    pub fn moe(&self) -> Range<usize> {
        self.norm2.start..self.shared2.end
    }
}

/// Tensors of the last stage.
#[derive(Debug, Clone)]
pub(super) struct HeadRanges {
    /// `(d)`
    pub norm: Range<usize>,
    /// `(vocab_local, d)`, or of a score `(1, d)`.
    pub head: Range<usize>,
    /// `(1, d)`, of a policy; it lies behind the head.
    pub value: Option<Range<usize>>,
}

impl HeadRanges {
    pub fn all(&self) -> Range<usize> {
        self.norm.start..self.value.as_ref().map_or(self.head.end, |value| value.end)
    }
}

/// Everything about a stage that does not change.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub attention: AttentionDims,
    pub d: usize,
    /// All routed experts.
    pub experts: usize,
    /// This rank's.
    pub local_experts: Range<usize>,
    /// Width of a routed expert.
    pub ff: usize,
    /// This rank's part of the shared expert's width.
    pub ff_local: usize,
    /// Rows of the vocabulary that this rank holds.
    pub vocab: Range<usize>,
    pub vocab_size: usize,
    pub norm_eps: f32,
    /// All but the router's.
    pub products: Products,
    pub rope_theta: f64,
    pub z_coef: f64,
    pub balance_coef: f64,
    /// Of pairs: see [`super::score`].
    pub center_coef: f64,
    /// Of a policy: see [`super::policy_loss`].
    pub policy: PolicyLoss,
    pub output: Output,
    /// Samples are texts with padding behind them, see [`super::rows`].
    pub has_texts: bool,
    /// Several of them share a sample.
    pub is_packed: bool,
    pub tp: usize,
    pub tp_rank: usize,
    pub layers: Vec<LayerRanges>,
    /// `(vocab_local, d)`, on the first stage.
    pub embedding: Option<Range<usize>>,
    /// On the last stage.
    pub head: Option<HeadRanges>,
}

impl Layout {
    pub fn new(spec: &JobSpec, shape: &Shape, place: Place, partition: &Partition) -> Layout {
        let layout = Layout::of(&spec.model, spec.products, spec.rows_of_micro_batch(), shape, place, partition);
        Layout {
            z_coef: spec.loss.z_coef,
            balance_coef: spec.loss.balance_coef,
            center_coef: spec.reward.center_coef,
            policy: spec.ppo.as_ref().map_or(PolicyLoss::NONE, PolicyLoss::of),
            has_texts: !spec.kind.is_pretrain(),
            is_packed: spec.data.packing,
            ..layout
        }
    }

    /// `batch` samples at a time, and a router without losses of its own.
    pub fn of(
        model: &ModelConfig,
        products: Products,
        batch: usize,
        shape: &Shape,
        place: Place,
        partition: &Partition,
    ) -> Layout {
        let tp = shape.tp();
        let part = |count: usize| place.tp * count / tp..(place.tp + 1) * count / tp;
        let range = |tensor: &str| partition.slice(tensor).map(|s| s.offset..s.offset + s.len);
        let has_head = partition.layers.end == model.layers;
        Layout {
            attention: AttentionDims {
                batch,
                seq: model.seq,
                heads: model.heads / tp,
                kv_heads: partition::kv_heads(model, tp, place.tp).len(),
                head_dim: model.head_dim,
            },
            d: model.d_model,
            experts: model.experts,
            local_experts: part(model.experts),
            ff: model.ff,
            ff_local: model.ff / tp,
            vocab: part(model.vocab),
            vocab_size: model.vocab,
            norm_eps: model.norm_eps as f32,
            products,
            rope_theta: model.rope_theta,
            z_coef: 0.0,
            balance_coef: 0.0,
            center_coef: 0.0,
            policy: PolicyLoss::NONE,
            output: model.output,
            has_texts: false,
            is_packed: false,
            tp,
            tp_rank: place.tp,
            layers: partition.layers.clone().map(|layer| layer_ranges(partition, layer)).collect(),
            embedding: range("emb.weight"),
            head: has_head.then(|| HeadRanges {
                norm: need(partition, "norm.weight"),
                head: need(partition, if model.output.has_logits() { "head.weight" } else { "score.weight" }),
                value: range("value.weight"),
            }),
        }
    }

    /// Tokens of a micro-batch.
    pub fn tokens(&self) -> usize {
        self.attention.tokens()
    }

    /// The same for so many rows, whatever sequences they are of.
    pub fn of_rows(&self, rows: usize) -> Layout {
        let attention = AttentionDims { batch: 1, seq: rows, ..self.attention };
        Layout { attention, ..self.clone() }
    }

    /// Elements of both operands of the largest product of a stage, forward and backward, the experts' apart.
    pub fn largest_operands(&self) -> usize {
        let tokens = self.tokens();
        let linear = |input: usize, output: usize| {
            let tensors = [tokens * input, input * output, tokens * output];
            tensors.iter().sum::<usize>() - tensors.iter().min().copied().unwrap_or(0)
        };
        let head = if self.head.is_some() && self.output.has_logits() { linear(self.d, self.vocab.len()) } else { 0 };
        let attention = linear(self.d, self.attention.row_len()).max(linear(self.attention.out_len(), self.d));
        let shared = linear(self.d, 2 * self.ff_local).max(linear(self.ff_local, self.d));
        head.max(attention).max(shared)
    }

    /// Cosines, then sines of every position, `(seq, head_dim)`.
    pub fn rope_table(&self) -> Vec<f32> {
        let half = self.attention.head_dim / 2;
        let angle = |position: usize, i: usize| {
            position as f64 * self.rope_theta.powf(-((2 * i) as f64) / self.attention.head_dim as f64)
        };
        let row = |position| {
            let angles = (0..half).map(move |i| angle(position, i));
            angles.clone().map(|a| a.cos() as f32).chain(angles.map(|a| a.sin() as f32))
        };
        (0..self.attention.seq).flat_map(row).collect()
    }
}

/// Elements of both operands of the largest product of a place of this job, the experts' apart.
pub fn largest_operands(spec: &JobSpec, place: Place, partition: &Partition) -> usize {
    Layout::new(spec, &spec.shape, place, partition).largest_operands()
}

fn need(partition: &Partition, tensor: &str) -> Range<usize> {
    let slice = partition.slice(tensor).unwrap_or_else(|| panic!("the partition of this stage lacks `{tensor}`"));
    slice.offset..slice.offset + slice.len
}

fn layer_ranges(partition: &Partition, layer: usize) -> LayerRanges {
    let of = |suffix: &str| need(partition, &format!("blocks.{layer}.{suffix}"));
    let (wq, wk, wv) = (of("attn.wq.weight"), of("attn.wk.weight"), of("attn.wv.weight"));
    assert!(wq.end == wk.start && wk.end == wv.start, "wq, wk and wv of layer {layer} do not lie side by side");
    LayerRanges {
        norm1: of("n1.weight"),
        wqkv: wq.start..wv.end,
        wo: of("attn.wo.weight"),
        norm2: of("n2.weight"),
        w13: of("moe.w13"),
        w2: of("moe.w2"),
        router: of("moe.router.weight"),
        shared13: of("moe.shared13.weight"),
        shared2: of("moe.shared2.weight"),
    }
}
