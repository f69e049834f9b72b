//! The bytes of a safetensors file: `header length, u64 | header, JSON padded with spaces | f32 data`, all
//! little-endian.
//!
//! The header is written by hand in the order of the data, so it depends on the entries alone: writing the same state
//! twice gives the same bytes, and [`super::verify`] knows from the manifest what every byte of the header must be.
//! Data starts at a multiple of [`DATA_ALIGN`].

use std::ops::Range;

use serde::Serialize;
use toroid_torus::manifest::Entry;

/// One cache line, for readers that map the file.
const DATA_ALIGN: usize = 64;

const _: () = assert!(cfg!(target_endian = "little"), "checkpoints are copied as they lie in memory: little-endian");

/// One tensor of the header: f32, `shape`, at `data_offsets` (bytes from the start of the data).
#[derive(Serialize)]
struct Tensor<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

/// The header of a file with f32 tensors `(name, shape)` one after the other; its length field is included.
pub(super) fn header<'a>(
    metadata: &[(&str, String)],
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Vec<u8> {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let metadata: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", text(key), text(value))).collect();
    let mut json = format!("{{\"__metadata__\":{{{}}}", metadata.join(","));
    let mut start = 0;
    for (name, shape) in tensors {
        let end = start + 4 * shape.iter().product::<usize>() as u64;
        let tensor = Tensor { dtype: "F32", shape, data_offsets: [start, end] };
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

/// The header of the shard of `rank` at `step`.
pub(super) fn shard_header(step: u64, rank: usize, entries: &[Entry]) -> Vec<u8> {
    let metadata = [
        ("format", "pt".to_string()),
        ("toroid", toroid_torus::manifest::FORMAT.to_string()),
        ("step", step.to_string()),
        ("rank", rank.to_string()),
    ];
    let lens: Vec<[usize; 1]> = entries.iter().map(|e| [e.range.len()]).collect();
    header(&metadata, entries.iter().zip(&lens).map(|(e, len)| (e.name.as_str(), &len[..])))
}

/// Gives every entry its place in the file and returns the header and the bytes of the whole file.
pub(super) fn lay_out(step: u64, rank: usize, entries: &mut [Entry]) -> (Vec<u8>, u64) {
    let header = shard_header(step, rank, entries);
    let mut end = header.len() as u64;
    for entry in entries {
        entry.file_offset = end;
        end += entry.bytes();
    }
    (header, end)
}

pub(super) fn byte_range(entry: &Entry) -> Range<u64> {
    entry.file_offset..entry.file_offset + entry.bytes()
}

pub(super) fn bytes_of(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Copies values as they lie in a file; lengths in bytes must agree.
pub(super) fn copy_values(from: &[u8], to: &mut [f32]) {
    bytemuck::cast_slice_mut::<f32, u8>(to).copy_from_slice(from);
}
