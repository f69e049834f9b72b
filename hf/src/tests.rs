//! Folders that are written and read back, and folders of others that are refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use toroid_torus::model::{ModelConfig, Output, TensorSpec};

use super::*;
use crate::config::{config_json, describe};
use crate::layout::{INDEX_NAME, shards};

/// Dims that are no powers of two, nor multiples of one another.
fn odd() -> ModelConfig {
    ModelConfig {
        layers: 3,
        d_model: 20,
        heads: 6,
        kv_heads: 3,
        head_dim: 10,
        experts: 5,
        ff: 12,
        seq: 24,
        vocab: 270,
        rope_theta: 5_000.0,
        norm_eps: 2e-5,
        output: Default::default(),
    }
}

/// A value of its own for each element: many bits of the mantissa, both signs, small and large.
fn value(spec: &TensorSpec, i: usize) -> f32 {
    let hash =
        spec.name.bytes().fold(i as u32, |h, b| h.wrapping_mul(0x0100_0193) ^ u32::from(b)).wrapping_mul(0x9E37_79B9);
    f32::from_bits(hash & 0x80ff_ffff | 0x3c00_0000)
}

fn fill(spec: &TensorSpec, values: &mut [f32]) -> Result<(), Infallible> {
    (0..).zip(values).for_each(|(i, x)| *x = value(spec, i));
    Ok(())
}

fn options(dtype: Dtype, shard_bytes: u64) -> Options {
    Options { dtype, shard_bytes, has_byte_tokens: true, carried: Vec::new(), notes: vec![("step", "7".into())] }
}

/// All tensors of a folder's files, as its reader finds them: type, shape and values.
fn read(folder: &Folder) -> BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<f32>)> {
    let mut found = BTreeMap::new();
    for file in folder.files().unwrap() {
        let bytes = std::fs::read(&file).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            assert_eq!(folder.misplaced(&name, &file), None);
            let dtype = if view.dtype() == safetensors::Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
            let mut values = vec![0.0; view.shape().iter().product()];
            dtype.decode(view.data(), 0, &mut values);
            found.insert(name, (view.dtype(), view.shape().to_vec(), values));
        }
    }
    found
}

/// Writes and reads `model` and compares each element with `expected` of what was given.
fn check_round_trip(model: &ModelConfig, options: &Options, expected: fn(f32) -> f32) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("export");
    let written = export(&path, model, options, fill).unwrap();
    let folder = Folder::open(&path).unwrap().expect("it has a config.json");
    assert_eq!((folder.model(), folder.differences(model)), (model, vec![]));
    assert_eq!(folder.files().unwrap().len(), written.num_files);
    let mut found = read(&folder);
    for spec in model.tensors() {
        let (_, shape, values) = found.remove(&folder.name_of(&spec.name)).unwrap_or_else(|| panic!("{}", spec.name));
        assert_eq!(shape, spec.shape, "{}", spec.name);
        let differs = (0..values.len()).find(|&i| values[i].to_bits() != expected(value(&spec, i)).to_bits());
        assert_eq!(differs, None, "{}", spec.name);
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), Vec::<&String>::new());
    let sizes = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(sizes.sum::<u64>(), written.bytes);
}

#[test]
fn what_is_written_is_read_back_to_the_bit() {
    for model in [odd(), ModelConfig::preset("micro").unwrap()] {
        for shard_bytes in [1, 10_000, u64::MAX] {
            check_round_trip(&model, &options(Dtype::F32, shard_bytes), |x| x);
        }
        let rounded = |x| f32::from_bits(u32::from(dtype::bf16_of_f32(x).unwrap()) << 16);
        check_round_trip(&model, &options(Dtype::Bf16, 10_000), rounded);
    }
}

/// Without its values, byte for byte.
#[test]
fn an_export_of_a_policy_is_that_of_its_tokens_part() {
    let dir = tempfile::tempdir().unwrap();
    let policy = ModelConfig { output: Output::Policy, ..odd() };
    let files = ["policy", "tokens"].map(|name| dir.path().join(name));
    for (path, model) in files.iter().zip([&policy, &odd()]) {
        export(path, model, &options(Dtype::F32, 20_000), fill).unwrap();
    }
    let content = |path: &Path| -> BTreeMap<_, _> {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect()
    };
    assert_eq!(content(&files[0]), content(&files[1]));
    let score = ModelConfig { output: Output::Score, ..odd() };
    let refused = export(&dir.path().join("score"), &score, &options(Dtype::F32, 20_000), fill);
    assert!(matches!(refused, Err(ExportError::Score)), "{refused:?}");
}

#[test]
fn the_same_export_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for path in [&a, &b] {
        export(path, &odd(), &options(Dtype::F32, 10_000), fill).unwrap();
    }
    let names = |path: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&a), names(&b));
    for name in names(&a) {
        assert_eq!(std::fs::read(a.join(&name)).unwrap(), std::fs::read(b.join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn files_have_as_many_tensors_as_go_into_their_bytes() {
    let model = odd();
    let sizes = |shard_bytes| -> Vec<usize> {
        shards(&model, Dtype::F32, shard_bytes).iter().map(|shard| shard.tensors.len()).collect()
    };
    assert_eq!(sizes(u64::MAX), [model.tensors().len()]);
    assert_eq!(sizes(0), vec![1; model.tensors().len()]);
    // The embedding has 21,600 bytes, and so has the head; the first norm another 80.
    assert_eq!(sizes(21_600)[0], 1);
    assert_eq!(sizes(21_680)[0], 2);
    let names: Vec<String> = shards(&model, Dtype::F32, 60_000).into_iter().map(|shard| shard.file).collect();
    assert_eq!(names[0], format!("model-00001-of-{:05}.safetensors", names.len()));
}

#[test]
fn an_export_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("export");
    let mut num_filled = 0;
    let fails = |spec: &TensorSpec, values: &mut [f32]| {
        num_filled += 1;
        if num_filled > 9 {
            Err(std::io::Error::other("the disk is gone"))
        } else {
            fill(spec, values).map_err(|e| match e {})
        }
    };
    let error = export(&path, &odd(), &options(Dtype::F32, 10_000), fails).unwrap_err();
    assert_eq!(error.to_string(), "the disk is gone");
    let large = |_: &TensorSpec, values: &mut [f32]| -> Result<(), Infallible> {
        values.fill(f32::MAX);
        Ok(())
    };
    let error = export(&path, &odd(), &options(Dtype::Bf16, 10_000), large).unwrap_err();
    assert!(error.to_string().contains("tensor emb.weight has no finite bf16"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    // An empty folder is taken, another is not.
    std::fs::create_dir(&path).unwrap();
    export(&path, &odd(), &options(Dtype::F32, u64::MAX), fill).unwrap();
    let error = export(&path, &odd(), &options(Dtype::F32, u64::MAX), fill).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(matches!(
        export(&dir.path().join("file"), &odd(), &options(Dtype::F32, 1), fill),
        Err(ExportError::Write { .. })
    ));
}

/// The configuration of the odd model with `changes`.
fn changed(changes: Value) -> Map<String, Value> {
    let Value::Object(mut config) = config_json(&odd(), Dtype::F32, bytes_tokenizer::pad(&odd())) else {
        panic!("an object")
    };
    let Value::Object(changes) = changes else { panic!("an object") };
    config.extend(changes);
    config
}

#[test]
fn what_our_model_does_not_compute_is_refused_by_its_key() {
    let cases = [
        (
            json!({ "model_type": "granitemoehybrid" }),
            "model_type is \"granitemoehybrid\", expected \"granitemoeshared\"",
        ),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\", expected \"silu\""),
        (json!({ "num_experts_per_tok": 8 }), "num_experts_per_tok is 8, expected 2"),
        (json!({ "shared_intermediate_size": null }), "shared_intermediate_size is 0, expected 12"),
        (json!({ "attention_multiplier": null }), "attention_multiplier is 1, expected 0.316"),
        (json!({ "embedding_multiplier": 12 }), "embedding_multiplier is 12, expected 1"),
        (json!({ "residual_multiplier": 0.22 }), "residual_multiplier is 0.22, expected 1"),
        (json!({ "logits_scaling": 6.0 }), "logits_scaling is 6, expected 1"),
        (json!({ "attention_bias": true }), "attention_bias is true, expected false"),
        (json!({ "rope_parameters": { "rope_type": "yarn" } }), "rope_parameters.rope_type is \"yarn\""),
        (json!({ "rope_scaling": { "type": "linear" } }), "rope_scaling.type is \"linear\""),
        (
            json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } }),
            "rope_parameters.partial_rotary_factor is 0.5",
        ),
        (json!({ "rope_scaling": "x" }), "rope_scaling is \"x\", expected an object"),
        (json!({ "quantization_config": { "bits": 4 } }), "quantization_config is"),
        (json!({ "vocab_size": "many" }), "vocab_size is \"many\", expected a whole number"),
        (json!({ "num_hidden_layers": -1 }), "num_hidden_layers is -1, expected a whole number"),
        (json!({ "rms_norm_eps": {} }), "rms_norm_eps is {}, expected a number"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings is 1, expected true or false"),
    ];
    for (change, expected) in cases {
        let problems = describe(&changed(change.clone())).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{change}: {problems:?}");
    }
}

#[test]
fn older_files_and_defaults_are_understood() {
    let described = |changes| describe(&changed(changes)).unwrap();
    assert_eq!(described(json!({})), config::Described { model: odd(), ties_embeddings: false });
    assert_eq!(described(json!({ "rope_parameters": null })).model, odd());
    assert_eq!(described(json!({ "rope_theta": null })).model, odd());
    let default = described(json!({ "rope_parameters": null, "rope_theta": null, "rms_norm_eps": null })).model;
    assert_eq!((default.rope_theta, default.norm_eps), (10_000.0, 1e-6));
    assert!(described(json!({ "tie_word_embeddings": true })).ties_embeddings);
    // d / heads and as many KV heads as heads, unless it says otherwise.
    let dims = json!({ "hidden_size": 60, "head_dim": null, "num_key_value_heads": null });
    assert_eq!(
        {
            let m = described(dims).model;
            (m.head_dim, m.kv_heads)
        },
        (10, 6)
    );
    // Written with fewer digits, it is the same number in f32.
    described(json!({ "attention_multiplier": 0.316227766 }));
}

#[test]
fn each_difference_to_a_jobs_model_is_named() {
    let job = ModelConfig { layers: 4, kv_heads: 6, experts: 6, norm_eps: 1e-6, seq: 4096, ..odd() };
    let found = config::differences(&odd(), &job);
    let expected = [
        "num_hidden_layers of its config.json is 3, the job's model.layers is 4",
        "num_key_value_heads of its config.json is 3, the job's model.kv_heads is 6",
        "num_local_experts of its config.json is 5, the job's model.experts is 6",
        "rms_norm_eps of its config.json is 0.00002, the job's model.norm_eps is 0.000001",
    ];
    assert_eq!(found, expected);
}

/// A folder with a `config.json` and an index of these texts.
fn check_refused(config: &str, index: Option<&str>, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    if let Some(index) = index {
        std::fs::write(dir.path().join(INDEX_NAME), index).unwrap();
    }
    let problems = Folder::open(dir.path()).unwrap_err().join("; ");
    assert!(problems.contains(expected), "{problems}");
}

#[test]
fn folders_that_are_none_are_told_apart_from_those_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Folder::open(dir.path()), Ok(None));
    assert_eq!(Folder::open(&dir.path().join("absent")), Ok(None));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(Folder::open(dir.path()), Ok(None));
    assert_eq!(Folder::open(&dir.path().join("config.json")), Ok(None));
    let config = config_json(&odd(), Dtype::F32, bytes_tokenizer::pad(&odd())).to_string();
    check_refused("[1]", None, "is not an object of JSON");
    check_refused("{\"model_type\": \"llama\"}", None, "config.json: model_type is \"llama\"");
    check_refused(&config, Some("{}"), "has no `weight_map`");
    for name in ["\"../a\"", "\"/etc/a\"", "\"\"", "\"..\"", "7"] {
        let index = format!("{{\"weight_map\": {{\"lm_head.weight\": {name}}}}}");
        check_refused(&config, Some(&index), "expected the name of a file beside it");
    }
}

#[test]
fn tensors_have_to_be_where_the_index_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("export");
    export(&path, &odd(), &options(Dtype::F32, 10_000), fill).unwrap();
    let folder = Folder::open(&path).unwrap().unwrap();
    let files = folder.files().unwrap();
    let (first, last) = (&files[0], files.last().unwrap());
    assert_eq!(folder.misplaced("lm_head.weight", last), None);
    assert!(folder.misplaced("lm_head.weight", first).unwrap().contains("says in model-"));
    assert!(folder.misplaced("other", first).unwrap().contains("is not in model.safetensors.index.json"));
    // What else lies in the folder is none of the model's.
    std::fs::write(path.join("consolidated.safetensors"), "").unwrap();
    assert_eq!(Folder::open(&path).unwrap().unwrap().files().unwrap(), files);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let config = Value::Object(changed(json!({ "tie_word_embeddings": true })));
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let folder = Folder::open(dir.path()).unwrap().unwrap();
    assert_eq!(folder.name_of("head.weight"), folder.name_of("emb.weight"));
    assert!(folder.is_ignored("lm_head.weight") && folder.is_ignored("model.layers.0.self_attn.rotary_emb.inv_freq"));
    assert!(!folder.is_ignored("model.norm.weight"));
}
