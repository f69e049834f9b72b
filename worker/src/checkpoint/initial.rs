//! Initial weights from safetensors files of anybody's making (`init_from`).
//!
//! The files must hold the tensors of the model, all of them and no others, under the model's names, or be a folder of Hugging Face's that
//! describes the same model ([`toroid_hf`]): a name that does not fit is a mistake that training would hide, and so is a value that is no
//! finite number: no step would make an update. f32 is taken as it is; bf16 and f16 are converted, which loses nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{SafeTensorError, SafeTensors};
use toroid_hf::{Dtype, Folder};
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::Partition;

use super::CheckpointError;
use super::exported::{BYTE_TOKENS, MODEL_NOTE, TOKENIZER_NOTE};
use super::read::not_finite;
use crate::data::map_file;

/// Fills the flat parameters of `partition`, (padded_len), from the file `path` or from all `*.safetensors` in the
/// folder `path`. All tensors of `model` are checked, also those of other partitions: places of a job agree on whether
/// the files will do. Padding becomes zero. After an error the parameters are undefined.
///
/// A model begins from one that ends otherwise, as a reward model from one that gives tokens: what it has not of the ends is passed over, and
/// what `params` has of [`DRAWN_BESIDES`] stays where the files have none.
pub fn load_initial(
    path: &Path,
    model: &ModelConfig,
    partition: &Partition,
    params: &mut [f32],
) -> Result<(), CheckpointError> {
    assert_eq!(params.len(), partition.padded_len, "params do not have the length of the partition");
    let refuse = |problems| CheckpointError::Initial { path: path.into(), problems };
    let weights = Weights::open(path, model).map_err(refuse)?;
    let files = weights.files(path).map_err(|problem| refuse(vec![problem]))?;
    let maps = mapped(files).map_err(|problem| refuse(vec![problem]))?;
    let mut found: BTreeMap<String, TensorView<'_>> = BTreeMap::new();
    let mut problems = Vec::new();
    for (file, map) in &maps {
        match SafeTensors::deserialize(map) {
            Ok(tensors) => {
                for (name, view) in tensors.tensors() {
                    problems.extend(weights.misplaced(&name, file));
                    if found.insert(name.clone(), view).is_some() {
                        problems.push(format!("tensor {name} is in two files, {} is one of them", file.display()));
                    }
                }
            }
            Err(e) => problems.push(not_safetensors(file, &e)),
        }
        problems.extend(notes_of(map).and_then(|notes| weights.of_another_model(model, &notes)));
    }
    if problems.is_empty() {
        problems = weights.compare(model, &found);
    }
    if !problems.is_empty() {
        return Err(refuse(problems));
    }
    for slice in &partition.slices {
        // Whoever asks has drawn it.
        let Some(view) = found.get(&weights.name_of(&slice.tensor)) else { continue };
        let dtype = dtype_of(view).expect("other types were refused");
        let mut bad = None;
        for (local, global, len) in slice.slice.runs(&slice.global_shape) {
            let start = slice.offset + local;
            let values = &mut params[start..start + len];
            dtype.decode(view.data(), global, values);
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

/// Refuses the weights of [`load_initial`] where their files say that a row of the embedding means a token of another tokenizer than `expected`
/// (hexadecimal blake3 of its file; `None`: a token is a byte). Ours say it; files of others do not.
pub fn check_tokenizer(path: &Path, expected: Option<&str>) -> Result<(), CheckpointError> {
    let expected = expected.unwrap_or(BYTE_TOKENS);
    match noted_tokenizers(path)?.iter().find(|found| *found != expected) {
        None => Ok(()),
        Some(found) => {
            let problem = format!(
                "the tokenizer (blake3 of its file) is {found} there and {expected} in the data of this job; make token files with the \
                 tokenizer of the model"
            );
            Err(CheckpointError::Initial { path: path.into(), problems: vec![problem] })
        }
    }
}

/// What weights say that a row of their embedding means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotedTokenizer {
    /// A byte.
    Bytes,
    /// A token of the tokenizer with this hexadecimal blake3 of its file.
    Digest(String),
}

/// What the files of the weights of [`load_initial`] say of their tokenizer; `None`: nothing, as files of others.
pub fn noted_tokenizer(path: &Path) -> Result<Option<NotedTokenizer>, CheckpointError> {
    let noted = noted_tokenizers(path)?;
    if noted.len() > 1 {
        let problem = format!("its files are of several tokenizers: {}", Vec::from_iter(noted).join(", "));
        return Err(CheckpointError::Initial { path: path.into(), problems: vec![problem] });
    }
    let of = |note: String| if note == BYTE_TOKENS { NotedTokenizer::Bytes } else { NotedTokenizer::Digest(note) };
    Ok(noted.into_iter().next().map(of))
}

/// The notes of all files.
fn noted_tokenizers(path: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let refuse = |problem| CheckpointError::Initial { path: path.into(), problems: vec![problem] };
    let mut found = BTreeSet::new();
    for (_, map) in every_file(path).map_err(refuse)? {
        // Whoever loads it says what is wrong with it.
        found.extend(notes_of(&map).and_then(|mut notes| notes.remove(TOKENIZER_NOTE)));
    }
    Ok(found)
}

/// Names the weights of [`load_initial`], so that others in their place are noticed: blake3 of the name, type and shape of each
/// tensor, and of 64 pieces of it. Reading all of them would take as long as loading all of them, which no place does.
pub fn digest_of_weights(path: &Path) -> Result<[u8; 32], CheckpointError> {
    let refuse = |problem| CheckpointError::Initial { path: path.into(), problems: vec![problem] };
    let mut hasher = blake3::Hasher::new();
    for (_, map) in every_file(path).map_err(refuse)? {
        let Ok(tensors) = SafeTensors::deserialize(&map) else { continue };
        let tensors: BTreeMap<String, TensorView<'_>> = tensors.tensors().into_iter().collect();
        for (name, view) in &tensors {
            let data = view.data();
            hasher.update(format!("{name} {:?} {:?}\n", view.dtype(), view.shape()).as_bytes());
            let stride = (data.len() / PIECES).max(PIECE_BYTES);
            for start in (0..data.len()).step_by(stride) {
                hasher.update(&data[start..data.len().min(start + PIECE_BYTES)]);
            }
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

const PIECES: usize = 64;
const PIECE_BYTES: usize = 64;

/// A file, or all `*.safetensors` of a folder, by name.
fn files_in(path: &Path) -> Result<Vec<PathBuf>, String> {
    match fs::metadata(path).map_err(|e| cannot_read(path, &e))?.is_dir() {
        true => toroid_hf::safetensors_in(path).map_err(|e| cannot_read(path, &e)),
        false => Ok(vec![path.into()]),
    }
}

fn every_file(path: &Path) -> Result<Vec<(PathBuf, Mmap)>, String> {
    mapped(files_in(path)?)
}

fn mapped(files: Vec<PathBuf>) -> Result<Vec<(PathBuf, Mmap)>, String> {
    let map = |file: PathBuf| match toroid_hf::open_regular(&file).and_then(|f| map_file(&f)) {
        Ok(map) => Ok((file, map)),
        Err(error) => Err(cannot_read(&file, &error)),
    };
    files.into_iter().map(map).collect()
}

/// What a file says of itself.
fn notes_of(map: &[u8]) -> Option<HashMap<String, String>> {
    SafeTensors::read_metadata(map).ok()?.1.metadata().clone()
}

/// What files may have that are of a model which ends otherwise: it is passed over.
const ENDS: [&str; 3] = ["head.weight", "score.weight", "value.weight"];
/// Of those, what a model has that files need not have.
pub const DRAWN_BESIDES: [&str; 2] = ["score.weight", "value.weight"];

/// How files name the model's tensors.
enum Weights {
    /// By the model's own names, as an export does.
    Own,
    HuggingFace(Folder),
}

impl Weights {
    /// What `path` is. An error is all that is wrong with a folder of Hugging Face's, its being of another model included.
    fn open(path: &Path, model: &ModelConfig) -> Result<Weights, Vec<String>> {
        let Some(folder) = Folder::open(path)? else { return Ok(Weights::Own) };
        let differences = folder.differences(model);
        if differences.is_empty() { Ok(Weights::HuggingFace(folder)) } else { Err(differences) }
    }

    /// The safetensors files that `path` stands for, by name.
    fn files(&self, path: &Path) -> Result<Vec<PathBuf>, String> {
        let files = match self {
            Weights::HuggingFace(folder) => folder.files().map_err(|e| cannot_read(path, &e))?,
            Weights::Own => files_in(path)?,
        };
        match files.is_empty() {
            true => Err("the folder has no *.safetensors file; give a file, or a folder of them".into()),
            false => Ok(files),
        }
    }

    /// The name in the files of the model's tensor `name`.
    fn name_of(&self, name: &str) -> String {
        match self {
            Weights::Own => name.into(),
            Weights::HuggingFace(folder) => folder.name_of(name),
        }
    }

    /// What is wrong with a tensor's being in `file`.
    fn misplaced(&self, name: &str, file: &Path) -> Option<String> {
        match self {
            Weights::Own => None,
            Weights::HuggingFace(folder) => folder.misplaced(name, file),
        }
    }

    fn is_ignored(&self, name: &str) -> bool {
        matches!(self, Weights::HuggingFace(folder) if folder.is_ignored(name))
    }

    /// What an export says of its model where that is not this one. A folder of Hugging Face's has it in its config.json.
    fn of_another_model(&self, model: &ModelConfig, notes: &HashMap<String, String>) -> Option<String> {
        let note = notes.get(MODEL_NOTE).filter(|_| matches!(self, Weights::Own))?;
        let found = match serde_json::from_str::<ModelConfig>(note) {
            Ok(found) => ModelConfig { seq: model.seq, output: model.output, ..found },
            Err(error) => return Some(format!("what it says of its model is not understood: {error}: {note}")),
        };
        (found != *model).then(|| format!("it is of another model, {found:?}, expected {model:?}"))
    }

    /// What is missing, of another shape or type, or not of this model.
    fn compare(&self, model: &ModelConfig, found: &BTreeMap<String, TensorView<'_>>) -> Vec<String> {
        let mut problems = Vec::new();
        let mut names = BTreeSet::new();
        for spec in model.tensors() {
            let name = self.name_of(&spec.name);
            match found.get(&name) {
                None if DRAWN_BESIDES.contains(&spec.name.as_str()) => {}
                None => problems.push(format!("tensor {name} is missing, expected with the shape {:?}", spec.shape)),
                Some(view) => {
                    let (shape, dtype) = (view.shape(), view.dtype());
                    if shape != spec.shape {
                        problems.push(format!("tensor {name} has the shape {shape:?}, expected {:?}", spec.shape));
                    }
                    if dtype_of(view).is_none() {
                        problems.push(format!("tensor {name} is of type {dtype:?}, expected F32, BF16 or F16"));
                    }
                }
            }
            names.insert(name);
        }
        names.extend(ENDS.map(|name| self.name_of(name)));
        let others = || found.keys().filter(|name| !names.contains(*name) && !self.is_ignored(name));
        problems.extend(others().map(|name| format!("tensor {name} is not one of this model")));
        if found.keys().any(|name| name.starts_with("param/")) {
            problems.insert(0, "it is the folder of a checkpoint; give it as resume_from, or export it first".into());
        }
        if matches!(self, Weights::Own) && found.contains_key(toroid_hf::names::EMBEDDING) {
            problems.insert(0, "it has Hugging Face's names; give the folder that has its config.json".into());
        }
        problems
    }
}

/// The type of a tensor's elements; `None`: none that weights may have.
fn dtype_of(view: &TensorView<'_>) -> Option<Dtype> {
    match view.dtype() {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        _ => None,
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn not_safetensors(file: &Path, error: &SafeTensorError) -> String {
    format!("{} is not a safetensors file, or not all of it: {error}", file.display())
}
