//! Bytes of safetensors files: `header length, u64 | header, JSON padded with spaces | data`, all little-endian; and which tensor goes into
//! which file of a folder.
//!
//! A header is written by hand in the order of the data, so it depends on the tensors alone: writing the same twice gives the same bytes.
//! Data starts at a multiple of `DATA_ALIGN`.

use serde::Serialize;
use serde_json::{Map, Value, json};
use toroid_torus::model::{ModelConfig, TensorSpec};

use crate::dtype::Dtype;
use crate::names;

/// One cache line, for readers that map the file.
const DATA_ALIGN: usize = 64;

/// Name of the file that says which tensor is in which other.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// One tensor of a header: at `data_offsets`, in bytes from the start of the data.
#[derive(Serialize)]
struct Tensor<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

/// The header of a file with tensors `(name, shape)` of one type, one after the other; its length field is included.
pub fn header<'a>(
    metadata: &[(&str, String)],
    dtype: Dtype,
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Vec<u8> {
    let text = |s: &str| Value::from(s).to_string();
    let metadata: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", text(key), text(value))).collect();
    let mut json = format!("{{\"__metadata__\":{{{}}}", metadata.join(","));
    let mut start = 0;
    for (name, shape) in tensors {
        let end = start + (dtype.size() * shape.iter().product::<usize>()) as u64;
        let tensor = Tensor { dtype: dtype.safetensors(), shape, data_offsets: [start, end] };
        let tensor = serde_json::to_string(&tensor).expect("a struct of numbers and strings is JSON");
        json += &format!(",{}:{tensor}", text(name));
        start = end;
    }
    json.push('}');
    let len = (8 + json.len()).next_multiple_of(DATA_ALIGN) - 8;
    let mut out = (len as u64).to_le_bytes().to_vec();
    out.extend(json.as_bytes());
    out.resize(8 + len, b' ');
    out
}

/// A file of a folder, and what is in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// `model-00001-of-00002.safetensors`
    pub file: String,
    /// In the order of the model.
    pub tensors: Vec<TensorSpec>,
}

fn bytes_of(spec: &TensorSpec, dtype: Dtype) -> u64 {
    (dtype.size() as u64).saturating_mul(spec.num_elements() as u64)
}

/// Deals the tensors of `model` out to files: as many as go into `shard_bytes`, in their order; one that is larger has a file of its own.
pub fn shards(model: &ModelConfig, dtype: Dtype, shard_bytes: u64) -> Vec<Shard> {
    let mut dealt: Vec<(u64, Vec<TensorSpec>)> = Vec::new();
    for spec in model.tensors() {
        let bytes = bytes_of(&spec, dtype);
        match dealt.last_mut() {
            Some((sum, tensors)) if *sum + bytes <= shard_bytes => {
                *sum += bytes;
                tensors.push(spec);
            }
            _ => dealt.push((bytes, vec![spec])),
        }
    }
    let num = dealt.len();
    let named = |(i, (_, tensors)): (usize, (u64, Vec<TensorSpec>))| {
        let file = format!("model-{:05}-of-{num:05}.safetensors", i + 1);
        Shard { file, tensors }
    };
    dealt.into_iter().enumerate().map(named).collect()
}

/// Hugging Face's name of a tensor of the model.
pub(crate) fn name_of(spec: &TensorSpec) -> String {
    names::of_hugging_face(&spec.name)
        .unwrap_or_else(|| panic!("the table of names lacks `{}` of the model", spec.name))
}

/// `model.safetensors.index.json`
pub fn index(shards: &[Shard], dtype: Dtype) -> Value {
    let of_shard = |shard: &Shard| {
        let file = Value::from(shard.file.as_str());
        shard.tensors.iter().map(|spec| (name_of(spec), file.clone())).collect::<Vec<_>>()
    };
    let weight_map: Map<String, Value> = shards.iter().flat_map(of_shard).collect();
    let tensors = || shards.iter().flat_map(|shard| &shard.tensors);
    let total_size: u64 = tensors().map(|spec| bytes_of(spec, dtype)).sum();
    let total_parameters: u64 = tensors().map(|spec| spec.num_elements() as u64).sum();
    json!({ "metadata": { "total_size": total_size, "total_parameters": total_parameters }, "weight_map": weight_map })
}
