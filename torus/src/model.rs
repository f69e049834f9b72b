//! Dims, presets and tensors of the model (`../shared/model.md` is the source of the mathematics).

use serde::{Deserialize, Serialize};

/// Every dim of the model. Weights are `[out, in]`, row-major; there are no biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub layers: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub experts: usize,
    /// Width of each routed expert and of the shared expert.
    pub ff: usize,
    /// Tokens per sample.
    pub seq: usize,
    pub vocab: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    pub norm_eps: f64,
    /// Manifests of before there was a choice have none.
    #[serde(default, skip_serializing_if = "Output::is_tokens")]
    pub output: Output,
}

/// What a model ends with, behind its last norm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// A logit for each token of the vocabulary: `head.weight (vocab, d)`.
    #[default]
    Tokens,
    /// One number for a text, at its last token: `score.weight (1, d)`, without a bias.
    Score,
    /// Both at each token: logits, and what is still to be expected of the text, `value.weight (1, d)`, without a bias.
    Policy,
}

impl Output {
    pub const fn is_tokens(&self) -> bool {
        matches!(self, Output::Tokens)
    }

    /// It ends with logits, whatever else.
    pub const fn has_logits(&self) -> bool {
        matches!(self, Output::Tokens | Output::Policy)
    }
}

/// How a tensor's first values are drawn; they depend on (seed, tensor name, element index) alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    One,
    Zero,
}

/// One tensor of the whole model, before any split.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
}

impl TensorSpec {
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
    /// Weight decay applies to tensors of two or more dims.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// Experts that each token is sent to.
pub const TOP_K: usize = 2;

/// The names of the presets, smallest first.
pub const PRESETS: [&str; 6] = ["micro", "tiny", "small", "medium", "1b", "67b"];

impl ModelConfig {
    pub fn preset(name: &str) -> Option<ModelConfig> {
        let (layers, d_model, heads, kv_heads, head_dim, experts, ff, seq, vocab) = match name {
            // Steps of milliseconds, for tests of everything but the model: 90 thousand parameters.
            "micro" => (4, 32, 4, 2, 8, 4, 32, 32, 256),
            "tiny" => (4, 128, 4, 2, 32, 8, 128, 128, 512),
            "small" => (8, 256, 8, 4, 32, 16, 256, 256, 512),
            "medium" => (12, 512, 8, 4, 64, 64, 256, 512, 512),
            "1b" => (16, 1024, 16, 8, 64, 64, 512, 2048, 32_768),
            // The large recipe: 67.2 billion parameters, 16.7 billion of them for each token.
            "67b" => (60, 7168, 56, 56, 128, 64, 632, 4096, 129_280),
            _ => return None,
        };
        Some(ModelConfig {
            layers,
            d_model,
            heads,
            kv_heads,
            head_dim,
            experts,
            ff,
            seq,
            vocab,
            rope_theta: 10_000.0,
            norm_eps: 1e-6,
            output: Output::Tokens,
        })
    }

    /// All tensors in canonical order, the order of `reference/tiny.json`.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (d, ff, experts) = (self.d_model, self.ff, self.experts);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let normal = Init::Normal(0.02);
        let residual = Init::Normal(0.02 / (2.0 * self.layers as f64).sqrt());
        let mut out = Vec::with_capacity(3 + 11 * self.layers);
        let mut push = |name: String, shape: Vec<usize>, init: Init| out.push(TensorSpec { name, shape, init });
        push("emb.weight".into(), vec![self.vocab, d], normal);
        for l in 0..self.layers {
            push(format!("blocks.{l}.n1.weight"), vec![d], Init::One);
            push(format!("blocks.{l}.attn.wq.weight"), vec![q, d], normal);
            push(format!("blocks.{l}.attn.wk.weight"), vec![kv, d], normal);
            push(format!("blocks.{l}.attn.wv.weight"), vec![kv, d], normal);
            push(format!("blocks.{l}.attn.wo.weight"), vec![d, q], residual);
            push(format!("blocks.{l}.n2.weight"), vec![d], Init::One);
            push(format!("blocks.{l}.moe.w13"), vec![experts, 2 * ff, d], normal);
            push(format!("blocks.{l}.moe.w2"), vec![experts, d, ff], residual);
            push(format!("blocks.{l}.moe.router.weight"), vec![experts, d], normal);
            push(format!("blocks.{l}.moe.shared13.weight"), vec![2 * ff, d], normal);
            push(format!("blocks.{l}.moe.shared2.weight"), vec![d, ff], residual);
        }
        push("norm.weight".into(), vec![d], Init::One);
        match self.output {
            Output::Tokens => push("head.weight".into(), vec![self.vocab, d], normal),
            // Of this size scores begin near 0 (Stiennon et al. 2020, "Learning to summarize from human feedback").
            Output::Score => push("score.weight".into(), vec![1, d], Init::Normal(1.0 / (d as f64 + 1.0).sqrt())),
            Output::Policy => {
                push("head.weight".into(), vec![self.vocab, d], normal);
                // Nothing is expected of a text before something was seen.
                push("value.weight".into(), vec![1, d], Init::Zero);
            }
        }
        out
    }

    pub fn num_params(&self) -> u64 {
        self.tensors().iter().map(|t| t.num_elements() as u64).sum()
    }

    /// Of the parameters those that a token meets: of the routed experts only [`TOP_K`] of each layer. Embedding and head count as a whole.
    pub fn num_active_params(&self) -> u64 {
        let expert = 3 * self.d_model as u64 * self.ff as u64;
        self.num_params() - self.layers as u64 * (self.experts.saturating_sub(TOP_K)) as u64 * expert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(name: &str) -> ModelConfig {
        ModelConfig::preset(name).expect("a preset")
    }

    /// The names, shapes and order of `reference/tiny.json`.
    #[test]
    fn tensors_are_in_the_order_of_the_reference() {
        let tensors = preset("tiny").tensors();
        let shapes: Vec<String> = tensors.iter().map(|t| format!("{} {:?}", t.name, t.shape)).collect();
        assert_eq!(shapes.len(), 47);
        let first = [
            "emb.weight [512, 128]",
            "blocks.0.n1.weight [128]",
            "blocks.0.attn.wq.weight [128, 128]",
            "blocks.0.attn.wk.weight [64, 128]",
            "blocks.0.attn.wv.weight [64, 128]",
            "blocks.0.attn.wo.weight [128, 128]",
            "blocks.0.n2.weight [128]",
            "blocks.0.moe.w13 [8, 256, 128]",
            "blocks.0.moe.w2 [8, 128, 128]",
            "blocks.0.moe.router.weight [8, 128]",
            "blocks.0.moe.shared13.weight [256, 128]",
            "blocks.0.moe.shared2.weight [128, 128]",
            "blocks.1.n1.weight [128]",
        ];
        assert_eq!(shapes[..13], first);
        let last = ["blocks.3.moe.shared2.weight [128, 128]", "norm.weight [128]", "head.weight [512, 128]"];
        assert_eq!(shapes[44..], last);
    }

    #[test]
    fn only_norms_start_at_one_and_do_not_decay() {
        let residual = Init::Normal(0.02 / 8_f64.sqrt());
        for tensor in preset("tiny").tensors() {
            let norm = tensor.name.ends_with("n1.weight")
                || tensor.name.ends_with("n2.weight")
                || tensor.name == "norm.weight";
            let into_residual = ["wo.weight", "w2", "shared2.weight"].iter().any(|end| tensor.name.ends_with(end));
            let expected = match (norm, into_residual) {
                (true, _) => Init::One,
                (_, true) => residual,
                _ => Init::Normal(0.02),
            };
            assert_eq!((tensor.init, tensor.decays()), (expected, !norm), "{}", tensor.name);
        }
    }

    #[test]
    fn presets_have_the_parameters_that_their_names_promise() {
        let counts: Vec<u64> = PRESETS.iter().map(|name| preset(name).num_params()).collect();
        assert!(counts.windows(2).all(|w| w[0] < w[1]), "smallest first: {counts:?}");
        assert_eq!(counts[1], 2_102_400);
        assert!((80_000..100_000).contains(&counts[0]), "{}", counts[0]);
        assert_eq!(ModelConfig::preset("huge"), None);
    }

    /// The large recipe has 60 layers, 7,168 wide, and 64 experts; its other dims follow from 67.2 billion parameters of which each token
    /// meets 16.7 billion. By hand: attention 4 * 7168 * 7168, an expert 3 * 632 * 7168, the router 64 * 7168, two norms; embedding and
    /// head 129,280 * 7168 each.
    #[test]
    fn the_large_preset_is_the_large_recipe() {
        let large = preset("67b");
        assert_eq!((large.layers, large.d_model, large.experts, large.kv_heads), (60, 7168, 64, large.heads));
        let (attention, expert, rest) = (4 * 7168 * 7168, 3 * 632 * 7168, 64 * 7168 + 2 * 7168);
        let ends = 2 * 129_280 * 7168 + 7168;
        assert_eq!(large.num_params(), 60 * (attention + 65 * expert + rest) + ends);
        assert_eq!(large.num_active_params(), 60 * (attention + 3 * expert + rest) + ends);
        let billions = |n: u64| (n as f64 / 1e8).round() / 10.0;
        assert_eq!((billions(large.num_params()), billions(large.num_active_params())), (67.2, 16.7));
    }
}
