//! Our logits against those of Hugging Face's `GraniteMoeSharedForCausalLM`, recorded in `tests/reference/hf.json`.
//!
//! `make test-peers` runs this with `TOROID_HF_FOLDERS=DIR`: folders as we export them, with the same formula weights, are then left in `DIR`
//! beside the tokens and all our logits, for `scripts/check_transformers.py`, which compares or records; what transformers saved there again
//! (`NAME-saved`) must be initial weights to the bit.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toroid_hf::{Dtype, Options};
use toroid_torus::job::{self, JobSpec};
use toroid_torus::partition::Partition;
use toroid_worker::checkpoint::load_initial;
use toroid_worker::model::{Alone, Input};

use crate::support::{batch, formula_params, formula_weight, read, reference, spec, unfailing, whole};

/// Of a logit.
const TOLERANCE: f32 = 1e-5;
const SAMPLES: usize = 2;

#[derive(Deserialize)]
struct Recorded {
    /// By model.
    models: BTreeMap<String, Logits>,
}

#[derive(Deserialize)]
struct Logits {
    /// `(sample, position)` of each row.
    rows: Vec<[usize; 2]>,
    /// `(rows, vocab)`
    logits: Vec<Vec<f32>>,
}

/// Dims that are no powers of two, nor multiples of one another, and other constants than ours.
fn odd() -> JobSpec {
    let text = format!(
        "steps = 1\ndata.path = \"none\"\nbatch.micro_batch = {SAMPLES}\nbatch.micro_batches = 1\n[model]\nlayers = 3\nd_model = 36\n\
         heads = 6\nkv_heads = 3\nhead_dim = 10\nexperts = 5\nff = 28\nseq = 24\nvocab = 270\nrope_theta = 5e3\nnorm_eps = 2e-5\n"
    );
    job::parse(&text).expect("the job is valid")
}

/// The first `SAMPLES` samples of the reference, as long as the job's model takes them.
fn tokens(spec: &JobSpec) -> Vec<u32> {
    let (tokens, _) = batch(&reference().text, 0, SAMPLES);
    tokens.chunks_exact(tokens.len() / SAMPLES).flat_map(|sample| sample[..spec.model.seq].to_vec()).collect()
}

/// `(SAMPLES, seq, vocab)`
fn logits(spec: &JobSpec, tokens: &[u32]) -> Vec<f32> {
    let (mut stage, _) = whole(spec, 2);
    // Of the targets the logits know nothing.
    unfailing(stage.forward(0, Input::Tokens(tokens), Some(tokens), &mut Alone, None));
    let view = stage.logits(0).expect("the whole model has the head");
    read(stage.device(), view.buf)
}

fn write_folder(path: &Path, spec: &JobSpec, dtype: Dtype) {
    let specs = spec.model.tensors();
    let options =
        Options { dtype, shard_bytes: 1 << 20, has_byte_tokens: true, carried: Vec::new(), notes: Vec::new() };
    let fill = |tensor: &toroid_torus::model::TensorSpec, values: &mut [f32]| -> Result<(), Infallible> {
        let t = specs.iter().position(|x| x.name == tensor.name).expect("a tensor of the model");
        (0..).zip(values).for_each(|(i, x)| *x = formula_weight(t, i, tensor.shape.len()));
        Ok(())
    };
    toroid_hf::export(path, &spec.model, &options, fill).expect("the folder is written");
}

/// For the comparison with transformers itself.
fn leave(dir: &Path, name: &str, spec: &JobSpec, tokens: &[u32], logits: &[f32]) {
    let write = |file: String, bytes: Vec<u8>| std::fs::write(dir.join(file), bytes).expect("the folder takes files");
    let samples: Vec<&[u32]> = tokens.chunks_exact(spec.model.seq).collect();
    write(format!("{name}.tokens.json"), serde_json::to_vec(&samples).expect("numbers are JSON"));
    write(format!("{name}.logits.f32"), logits.iter().flat_map(|x| x.to_le_bytes()).collect());
    for (suffix, dtype) in [("", Dtype::F32), ("-bf16", Dtype::Bf16)] {
        let path = dir.join(format!("{name}{suffix}"));
        if !path.exists() {
            write_folder(&path, spec, dtype);
        }
    }
    let saved = dir.join(format!("{name}-saved"));
    if saved.exists() {
        check_initial(&saved, spec, &whole(spec, 1).1);
    }
}

/// What transformers loaded and saved is what was exported, to the bit.
fn check_initial(path: &Path, spec: &JobSpec, partition: &Partition) {
    let mut found = vec![f32::NAN; partition.padded_len];
    load_initial(path, &spec.model, partition, &mut found).expect("transformers saves what we load");
    let expected = formula_params(spec, partition);
    let differs = (0..found.len()).find(|&i| found[i].to_bits() != expected[i].to_bits());
    assert_eq!(differs, None, "{} is not what was exported", path.display());
}

#[test]
fn logits_are_those_of_hugging_face() {
    let recorded: Recorded = serde_json::from_str(include_str!("../reference/hf.json")).expect("the reference parses");
    let dir = std::env::var_os("TOROID_HF_FOLDERS").map(PathBuf::from);
    for (name, spec) in [("tiny", spec(SAMPLES)), ("odd", odd())] {
        let tokens = tokens(&spec);
        let logits = logits(&spec, &tokens);
        if let Some(dir) = &dir {
            leave(dir, name, &spec, &tokens, &logits);
        }
        // Where they are about to be recorded there may be none.
        let Some(expected) = recorded.models.get(name) else {
            assert!(dir.is_some(), "tests/reference/hf.json lacks {name}; run make test-peers");
            continue;
        };
        assert!(expected.rows.len() >= 4);
        for ([sample, position], expected) in expected.rows.iter().zip(&expected.logits) {
            let start = (sample * spec.model.seq + position) * spec.model.vocab;
            let found = &logits[start..start + spec.model.vocab];
            let largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(found.len(), expected.len());
            assert!(largest <= TOLERANCE, "{name}, sample {sample}, position {position}: off by {largest:.1e}");
        }
    }
}
