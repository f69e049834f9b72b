//! The bytes of the files of a checkpoint, safetensors with f32 alone.
//!
//! They depend on the entries alone: writing the same state twice gives the same bytes, and [`super::verify`] knows from the manifest what
//! every byte of the header must be.

use std::ops::Range;

use toroid_hf::Dtype;
use toroid_torus::manifest::Entry;

const _: () = assert!(cfg!(target_endian = "little"), "checkpoints are copied as they lie in memory: little-endian");

/// The header of a file with f32 tensors `(name, shape)` one after the other; its length field is included.
pub(super) fn header<'a>(
    metadata: &[(&str, String)],
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Vec<u8> {
    toroid_hf::layout::header(metadata, Dtype::F32, tensors)
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
