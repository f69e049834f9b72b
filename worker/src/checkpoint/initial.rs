//! Initial weights from safetensors files of anybody's making (`init_from`).
//!
//! The files must hold the tensors of the model, all of them and no others, under the model's names: a name that does
//! not fit is a mistake that training would hide, and so is a value that is no finite number: no step would make an update. f32 is taken as it is; bf16 and f16 are converted, which loses
//! nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::Partition;

use super::CheckpointError;
use super::encode::copy_values;
use super::read::not_finite;
use crate::data::map_file;

/// Fills the flat parameters of `partition`, (padded_len), from the file `path` or from all `*.safetensors` in the
/// folder `path`. All tensors of `model` are checked, also those of other partitions: places of a job agree on whether
/// the files will do. Padding becomes zero. After an error the parameters are undefined.
pub fn load_initial(
    path: &Path,
    model: &ModelConfig,
    partition: &Partition,
    params: &mut [f32],
) -> Result<(), CheckpointError> {
    assert_eq!(params.len(), partition.padded_len, "params do not have the length of the partition");
    let refuse = |problems| CheckpointError::Initial { path: path.into(), problems };
    let mut maps = Vec::new();
    for file in files(path).map_err(|problem| refuse(vec![problem]))? {
        let map = File::open(&file).and_then(|f| map_file(&f)).map_err(|e| refuse(vec![cannot_read(&file, &e)]))?;
        maps.push((file, map));
    }
    let mut found: BTreeMap<String, TensorView<'_>> = BTreeMap::new();
    let mut problems = Vec::new();
    for (file, map) in &maps {
        match SafeTensors::deserialize(map) {
            Ok(tensors) => {
                for (name, view) in tensors.tensors() {
                    if found.insert(name.clone(), view).is_some() {
                        problems.push(format!("tensor {name} is in two files, {} is one of them", file.display()));
                    }
                }
            }
            Err(e) => problems.push(not_safetensors(file, &e)),
        }
    }
    if problems.is_empty() {
        problems = compare(model, &found);
    }
    if !problems.is_empty() {
        return Err(refuse(problems));
    }
    for slice in &partition.slices {
        let view = &found[&slice.tensor];
        let mut bad = None;
        for (local, global, len) in slice.slice.runs(&slice.global_shape) {
            let start = slice.offset + local;
            let values = &mut params[start..start + len];
            convert(view.dtype(), view.data(), global, values);
            bad = bad.or_else(|| not_finite(values).map(|(at, value)| (global + at, value)));
        }
        let what =
            |(at, value)| format!("tensor {} has {value} at element {at}, expected finite numbers", slice.tensor);
        problems.extend(bad.map(what));
    }
    if !problems.is_empty() {
        return Err(refuse(problems));
    }
    params[partition.len..].fill(0.0);
    Ok(())
}

/// The safetensors files that `path` stands for, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let metadata = fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
    if !metadata.is_dir() {
        return Ok(vec![path.into()]);
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|e| cannot_read(path, &e))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    if files.is_empty() {
        return Err("the folder has no *.safetensors file; give a file, or a folder of them".into());
    }
    Ok(files)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn not_safetensors(file: &Path, error: &SafeTensorError) -> String {
    format!("{} is not a safetensors file, or not all of it: {error}", file.display())
}

/// What is missing, of another shape or type, or not of this model.
fn compare(model: &ModelConfig, found: &BTreeMap<String, TensorView<'_>>) -> Vec<String> {
    let specs = model.tensors();
    let mut problems = Vec::new();
    for spec in &specs {
        let Some(view) = found.get(&spec.name) else {
            problems.push(format!("tensor {} is missing, expected with the shape {:?}", spec.name, spec.shape));
            continue;
        };
        if view.shape() != spec.shape {
            problems.push(format!("tensor {} has the shape {:?}, expected {:?}", spec.name, view.shape(), spec.shape));
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            problems.push(format!("tensor {} is of type {:?}, expected F32, BF16 or F16", spec.name, view.dtype()));
        }
    }
    let names: std::collections::BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    for name in found.keys().filter(|name| !names.contains(name.as_str())) {
        problems.push(format!("tensor {name} is not one of this model"));
    }
    if found.keys().any(|name| name.starts_with("param/")) {
        problems.insert(0, "it is the folder of a checkpoint; give it as resume_from, or export it first".into());
    }
    problems
}

/// Copies the elements from `start` on, `out.len()` of them, out of `data`.
fn convert(dtype: Dtype, data: &[u8], start: usize, out: &mut [f32]) {
    let halves = || data[2 * start..2 * (start + out.len())].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => copy_values(&data[4 * start..4 * (start + out.len())], out),
        Dtype::BF16 => {
            let values: Vec<f32> = halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
            out.copy_from_slice(&values);
        }
        Dtype::F16 => {
            let values: Vec<f32> = halves().map(f32_of_f16).collect();
            out.copy_from_slice(&values);
        }
        other => unreachable!("{other:?} was refused"),
    }
}

/// IEEE 754 binary16 to binary32; exact.
fn f32_of_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10) & 0x1f, u32::from(bits) & 0x3ff);
    match exponent {
        // Zero and subnormals: fraction * 2^-24, exact in f32.
        0 => f32::from_bits(sign | (fraction as f32 * f32::from_bits((127 - 24) << 23)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::f32_of_f16;

    /// By the formula of the standard, in f64, for every finite half.
    #[test]
    fn every_half_converts_exactly() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let found = f32_of_f16(bits);
            match exponent {
                31 if fraction == 0.0 => assert_eq!(found, (sign * f64::INFINITY) as f32),
                31 => assert!(found.is_nan(), "{bits:#06x} gave {found}"),
                0 => assert_eq!(f64::from(found), sign * fraction * 2f64.powi(-24), "{bits:#06x}"),
                _ => assert_eq!(
                    f64::from(found),
                    sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
                    "{bits:#06x}"
                ),
            }
        }
    }
}
