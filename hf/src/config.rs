//! `config.json` and `generation_config.json` of a `GraniteMoeSharedForCausalLM`.
//!
//! | in `config.json` | ours |
//! |---|---|
//! | `hidden_size`, `num_hidden_layers`, `vocab_size` | `d_model`, `layers`, `vocab` |
//! | `num_attention_heads`, `num_key_value_heads`, `head_dim` | `heads`, `kv_heads`, `head_dim` |
//! | `num_local_experts` | `experts` |
//! | `intermediate_size` and `shared_intermediate_size`, the same | `ff` |
//! | `rms_norm_eps`, `rope_parameters.rope_theta` (in older files `rope_theta`) | `norm_eps`, `rope_theta` |
//! | `max_position_embeddings` | `seq`: no tensor depends on it, so it is not compared |
//!
//! What is not in a file has the default of transformers 5.23, as it has for whoever loads the file there.

use serde_json::{Map, Value, json};
use toroid_torus::model::{ModelConfig, Output, TOP_K};

use crate::dtype::Dtype;

/// `model_type` of the one architecture.
pub const MODEL_TYPE: &str = "granitemoeshared";
const ARCHITECTURE: &str = "GraniteMoeSharedForCausalLM";

/// What our attention multiplies scores with.
fn attention_multiplier(head_dim: usize) -> f64 {
    1.0 / (head_dim as f64).sqrt()
}

/// `config.json` of `model`, whose tensors are saved as `dtype`; `pad` is the token that fills up batches. No token ends a text.
pub fn config_json(model: &ModelConfig, dtype: Dtype, pad: Option<u32>) -> Value {
    json!({
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        // Read by transformers before 5, and by it since.
        "torch_dtype": dtype.torch(),
        "dtype": dtype.torch(),
        "vocab_size": model.vocab,
        "hidden_size": model.d_model,
        "intermediate_size": model.ff,
        "shared_intermediate_size": model.ff,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "num_local_experts": model.experts,
        "num_experts_per_tok": TOP_K,
        "hidden_act": "silu",
        "max_position_embeddings": model.seq,
        "rms_norm_eps": model.norm_eps,
        // As with `torch_dtype`.
        "rope_theta": model.rope_theta,
        "rope_parameters": { "rope_type": "default", "rope_theta": model.rope_theta },
        "attention_multiplier": attention_multiplier(model.head_dim),
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "tie_word_embeddings": false,
        "output_router_logits": false,
        "use_cache": true,
        // Without them transformers takes 1 and 2, which are bytes of a text.
        "bos_token_id": null,
        "eos_token_id": null,
        "pad_token_id": pad,
    })
}

/// `generation_config.json`
pub fn generation_json(pad: Option<u32>) -> Value {
    json!({ "bos_token_id": null, "eos_token_id": null, "pad_token_id": pad })
}

/// What `config.json` says, as far as our model has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    pub model: ModelConfig,
    /// There is no head of its own: it is the embedding.
    pub ties_embeddings: bool,
}

/// Reads `config.json`; `Err`: everything that our model cannot compute exactly, or that is no number where one must be.
pub fn describe(config: &Map<String, Value>) -> Result<Described, Vec<String>> {
    let mut keys = Keys { config, problems: Vec::new() };
    keys.expect_text("model_type", MODEL_TYPE, None);
    keys.expect_text("hidden_act", "silu", Some("silu"));
    let heads = keys.count("num_attention_heads", 32);
    let d_model = keys.count("hidden_size", 4096);
    let model = ModelConfig {
        layers: keys.count("num_hidden_layers", 32),
        d_model,
        heads,
        kv_heads: keys.count("num_key_value_heads", heads),
        head_dim: keys.count("head_dim", d_model / heads.max(1)),
        experts: keys.count("num_local_experts", 8),
        ff: keys.count("intermediate_size", 11_008),
        seq: keys.count("max_position_embeddings", 2048),
        vocab: keys.count("vocab_size", 32_000),
        rope_theta: keys.rope_theta(),
        norm_eps: keys.number("rms_norm_eps", 1e-6),
        output: Output::Tokens,
    };
    keys.expect_count("num_experts_per_tok", TOP_K, 2, "each token goes to as many experts");
    let why = "every token goes through one shared expert as wide as a routed one";
    keys.expect_count("shared_intermediate_size", model.ff, 0, why);
    keys.expect_number("attention_multiplier", attention_multiplier(model.head_dim), "1 / sqrt(head_dim)");
    for key in ["embedding_multiplier", "residual_multiplier", "logits_scaling"] {
        keys.expect_number(key, 1.0, "nothing is scaled there");
    }
    keys.expect_false("attention_bias");
    if let Some(found) = keys.get("quantization_config") {
        let problem = format!("quantization_config is {found}, expected none: weights are f32, bf16 or f16");
        keys.problems.push(problem);
    }
    let ties_embeddings = keys.flag("tie_word_embeddings");
    match keys.problems.is_empty() {
        true => Ok(Described { model, ties_embeddings }),
        false => Err(keys.problems),
    }
}

/// Where the model of a folder differs from that of a job, by the keys of `config.json` and of the job file.
pub fn differences(found: &ModelConfig, job: &ModelConfig) -> Vec<String> {
    let counts = [
        ("num_hidden_layers", "layers", found.layers, job.layers),
        ("hidden_size", "d_model", found.d_model, job.d_model),
        ("num_attention_heads", "heads", found.heads, job.heads),
        ("num_key_value_heads", "kv_heads", found.kv_heads, job.kv_heads),
        ("head_dim", "head_dim", found.head_dim, job.head_dim),
        ("num_local_experts", "experts", found.experts, job.experts),
        ("intermediate_size", "ff", found.ff, job.ff),
        ("vocab_size", "vocab", found.vocab, job.vocab),
    ];
    let numbers = [
        ("rope_theta", "rope_theta", found.rope_theta, job.rope_theta),
        ("rms_norm_eps", "norm_eps", found.norm_eps, job.norm_eps),
    ];
    let says = |theirs: &str, found: String, ours: &str, job: String| {
        format!("{theirs} of its config.json is {found}, the job's model.{ours} is {job}")
    };
    let counts = counts.into_iter().filter(|(_, _, found, job)| found != job);
    let counts = counts.map(|(theirs, ours, found, job)| says(theirs, found.to_string(), ours, job.to_string()));
    let numbers = numbers.into_iter().filter(|(_, _, found, job)| found != job);
    counts
        .chain(numbers.map(|(theirs, ours, found, job)| says(theirs, found.to_string(), ours, job.to_string())))
        .collect()
}

/// Values by their keys, and what is wrong with them.
struct Keys<'a> {
    config: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Keys<'a> {
    /// `null` is as good as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn count(&mut self, key: &str, default: usize) -> usize {
        let Some(value) = self.get(key) else { return default };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.unwrap_or_else(|| {
            self.problems.push(format!("{key} is {value}, expected a whole number"));
            default
        })
    }

    fn number(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.get(key) else { return default };
        value.as_f64().unwrap_or_else(|| {
            self.problems.push(format!("{key} is {value}, expected a number"));
            default
        })
    }

    fn flag(&mut self, key: &str) -> bool {
        let Some(value) = self.get(key) else { return false };
        value.as_bool().unwrap_or_else(|| {
            self.problems.push(format!("{key} is {value}, expected true or false"));
            false
        })
    }

    fn expect_text(&mut self, key: &str, expected: &str, default: Option<&str>) {
        let found = self.get(key).map_or_else(|| default.map(Value::from).unwrap_or_default(), Value::clone);
        if found.as_str() != Some(expected) {
            self.problems.push(format!("{key} is {found}, expected \"{expected}\""));
        }
    }

    fn expect_count(&mut self, key: &str, expected: usize, default: usize, why: &str) {
        let found = self.count(key, default);
        if found != expected {
            self.problems.push(format!("{key} is {found}, expected {expected}: {why}"));
        }
    }

    /// Its default is 1. In f32, as both multiply.
    fn expect_number(&mut self, key: &str, expected: f64, why: &str) {
        let found = self.number(key, 1.0);
        if found as f32 != expected as f32 {
            self.problems.push(format!("{key} is {found}, expected {expected}: {why}"));
        }
    }

    fn expect_false(&mut self, key: &str) {
        if self.flag(key) {
            self.problems.push(format!("{key} is true, expected false: there are no biases"));
        }
    }

    /// The base of the rotary embedding; a scaled one is none of ours.
    fn rope_theta(&mut self) -> f64 {
        let whole = self.number("rope_theta", 10_000.0);
        let mut theta = whole;
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(value) = self.get(key) else { continue };
            let Some(parameters) = value.as_object() else {
                self.problems.push(format!("{key} is {value}, expected an object"));
                continue;
            };
            let mut inner = Keys { config: parameters, problems: Vec::new() };
            // Older files call it `type`.
            let kind = if parameters.contains_key("rope_type") { "rope_type" } else { "type" };
            inner.expect_text(kind, "default", Some("default"));
            inner.expect_number("partial_rotary_factor", 1.0, "every dim of a head is turned");
            theta = inner.number("rope_theta", whole);
            self.problems.extend(inner.problems.into_iter().map(|problem| format!("{key}.{problem}")));
        }
        theta
    }
}
