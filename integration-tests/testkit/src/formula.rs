//! The formula weights and the one batch of the reference figures, as model.md defines them.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

/// (tp, pp, dp) of the jobs that must reproduce the figures.
pub const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (2, 1, 1),
    (1, 2, 1),
    (1, 1, 2),
    (2, 2, 1),
    (2, 1, 2),
    (1, 2, 2),
    (2, 2, 2),
    (4, 2, 1),
    (1, 4, 2),
    (1, 1, 8),
];

/// The sentence repeated until the four samples, which start at bytes 0, 7, 14 and 21, are full.
pub fn text(sentence: &str) -> Vec<u8> {
    sentence.bytes().cycle().take(3 * 7 + 129).collect()
}

/// Writes all tensors, `(name, shape)` in canonical order, as one safetensors file.
pub fn write_weights(tensors: &[(String, Vec<usize>)], file: &Path) -> Result<(), SafeTensorError> {
    let mut bytes = Vec::new();
    for (t, (_, shape)) in tensors.iter().enumerate() {
        let len: usize = shape.iter().product();
        let values = (0..len as u64).map(|i| weight(t as u64, i, shape.len() == 1));
        bytes.push(values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>());
    }
    let views: Result<Vec<(&str, TensorView<'_>)>, _> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), b)| TensorView::new(Dtype::F32, shape.clone(), b).map(|v| (name.as_str(), v)))
        .collect();
    safetensors::serialize_to_file(views?, None, file)
}

/// Element `i` of tensor `t`.
fn weight(t: u64, i: u64, is_norm: bool) -> f32 {
    let z = ((t << 32) + i).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let h = z ^ (z >> 31);
    let u = ((h >> 40) as f64 - f64::from(1 << 23)) / f64::from(1 << 23);
    (if is_norm { 1.0 + u * 0.0625 } else { u * 0.0625 }) as f32
}
