//! The tokenizer of a model whose tokens are bytes, as `tokenizer.json`.
//!
//! It is a BPE without merges over GPT-2's characters for bytes, so that the id of each token is the byte. Where the vocabulary goes on beyond
//! the bytes, the first id after them fills up batches: it is never trained on and never meant.

use serde_json::{Map, Value, json};
use toroid_torus::model::ModelConfig;

/// Tokens that are bytes.
pub const NUM_BYTES: usize = 256;
/// Text of the token that fills up batches.
const PAD: &str = "<|pad|>";

/// Id of the token that fills up batches; `None` where the vocabulary has bytes alone.
pub fn pad(model: &ModelConfig) -> Option<u32> {
    (model.vocab > NUM_BYTES).then_some(NUM_BYTES as u32)
}

/// GPT-2's character for a byte: itself where it is visible in Latin-1, else the next of U+0100 and on.
pub fn character(byte: u8) -> char {
    let is_visible = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let num_before = (0..byte).filter(|b| !is_visible(b)).count();
    match is_visible(&byte) {
        true => char::from(byte),
        // At most 68 of them, all below U+0144.
        false => char::from_u32(0x100 + num_before as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

/// `tokenizer.json`
pub fn tokenizer_json(model: &ModelConfig) -> Value {
    let vocab: Map<String, Value> = (0..=u8::MAX).map(|b| (character(b).to_string(), json!(b))).collect();
    let added: Vec<Value> = pad(model)
        .map(|id| {
            json!({ "id": id, "content": PAD, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .into_iter()
        .collect();
    let byte_level =
        |what: &str| json!({ "type": what, "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level("ByteLevel"),
        "post_processor": null,
        "decoder": byte_level("ByteLevel"),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

/// `tokenizer_config.json`
pub fn tokenizer_config(model: &ModelConfig) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "bos_token": null,
        "eos_token": null,
        "unk_token": null,
        "pad_token": pad(model).map(|_| PAD),
        "model_max_length": model.seq,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of GPT-2's `bytes_to_unicode`, from its own table.
    #[test]
    fn bytes_have_the_characters_of_gpt2() {
        let found: String = [0, 10, 32, 33, 126, 127, 160, 161, 173, 174, 255].map(character).iter().collect();
        assert_eq!(found, "ĀĊĠ!~ġł¡Ń®ÿ");
        let all: std::collections::BTreeSet<char> = (0..=u8::MAX).map(character).collect();
        assert_eq!(all.len(), NUM_BYTES);
    }
}
