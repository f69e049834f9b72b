//! Names of tensors: ours, and those that `GraniteMoeSharedForCausalLM` saves.
//!
//! | ours | Hugging Face's | shape |
//! |---|---|---|
//! | `emb.weight` | `model.embed_tokens.weight` | `(vocab, d)` |
//! | `blocks.L.n1.weight` | `model.layers.L.input_layernorm.weight` | `(d)` |
//! | `blocks.L.attn.wq.weight`, `wk`, `wv`, `wo` | `model.layers.L.self_attn.q_proj.weight`, `k_proj`, `v_proj`, `o_proj` | `(heads * head_dim, d)`, ... |
//! | `blocks.L.n2.weight` | `model.layers.L.post_attention_layernorm.weight` | `(d)` |
//! | `blocks.L.moe.w13` | `model.layers.L.block_sparse_moe.input_linear.weight` | `(E, 2 ff, d)`: gate rows, then up rows |
//! | `blocks.L.moe.w2` | `model.layers.L.block_sparse_moe.output_linear.weight` | `(E, d, ff)` |
//! | `blocks.L.moe.router.weight` | `model.layers.L.block_sparse_moe.router.layer.weight` | `(E, d)` |
//! | `blocks.L.moe.shared13.weight` | `model.layers.L.shared_mlp.input_linear.weight` | `(2 ff, d)`: gate rows, then up rows |
//! | `blocks.L.moe.shared2.weight` | `model.layers.L.shared_mlp.output_linear.weight` | `(d, ff)` |
//! | `norm.weight` | `model.norm.weight` | `(d)` |
//! | `head.weight` | `lm_head.weight` | `(vocab, d)` |

/// Tensors outside of the layers.
const WHOLE: [(&str, &str); 3] =
    [("emb.weight", EMBEDDING), ("norm.weight", "model.norm.weight"), ("head.weight", HEAD)];
/// Tensors of a layer, without what names the layer.
const OF_LAYER: [(&str, &str); 11] = [
    ("n1.weight", "input_layernorm.weight"),
    ("attn.wq.weight", "self_attn.q_proj.weight"),
    ("attn.wk.weight", "self_attn.k_proj.weight"),
    ("attn.wv.weight", "self_attn.v_proj.weight"),
    ("attn.wo.weight", "self_attn.o_proj.weight"),
    ("n2.weight", "post_attention_layernorm.weight"),
    ("moe.w13", "block_sparse_moe.input_linear.weight"),
    ("moe.w2", "block_sparse_moe.output_linear.weight"),
    ("moe.router.weight", "block_sparse_moe.router.layer.weight"),
    ("moe.shared13.weight", "shared_mlp.input_linear.weight"),
    ("moe.shared2.weight", "shared_mlp.output_linear.weight"),
];

/// Hugging Face's name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Hugging Face's name of the head.
pub const HEAD: &str = "lm_head.weight";

/// Hugging Face's name of our tensor `name`; `None`: our model has no such tensor.
pub fn of_hugging_face(name: &str) -> Option<String> {
    if let Some((_, theirs)) = WHOLE.iter().find(|(ours, _)| *ours == name) {
        return Some((*theirs).to_string());
    }
    let (layer, suffix) = name.strip_prefix("blocks.")?.split_once('.')?;
    let (_, theirs) = OF_LAYER.iter().find(|(ours, _)| *ours == suffix)?;
    Some(format!("model.layers.{layer}.{theirs}"))
}

/// What a file of the same model may have besides: it holds no parameter, or one that is told by another.
pub fn is_ignored(name: &str, ties_embeddings: bool) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (ties_embeddings && name == HEAD)
}
