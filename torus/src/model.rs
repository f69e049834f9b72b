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
}

/// How a tensor's first values are drawn; they depend on (seed, tensor name, element index) alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    One,
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
pub const PRESETS: [&str; 5] = ["tiny", "small", "medium", "1b", "67b"];

impl ModelConfig {
    pub fn preset(name: &str) -> Option<ModelConfig> {
        let (layers, d_model, heads, kv_heads, head_dim, experts, ff, seq, vocab) = match name {
            "tiny" => (4, 128, 4, 2, 32, 8, 128, 128, 512),
            "small" => (8, 256, 8, 4, 32, 16, 256, 256, 512),
            "medium" => (12, 512, 8, 4, 64, 64, 256, 512, 512),
            "1b" => (16, 1024, 16, 8, 64, 64, 512, 2048, 32_768),
            // ff is the multiple of 8 that brings all parameters together nearest to 67 billion.
            "67b" => (60, 7168, 56, 8, 128, 64, 696, 4096, 102_400),
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
        push("head.weight".into(), vec![self.vocab, d], normal);
        out
    }

    pub fn num_params(&self) -> u64 {
        self.tensors().iter().map(|t| t.num_elements() as u64).sum()
    }
}
