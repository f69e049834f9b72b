//! Writing a folder, tensor by tensor: no more than one of them is in memory.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use toroid_torus::model::{ModelConfig, Output, TensorSpec};

use crate::dtype::{Dtype, bf16_of_f32};
use crate::layout::{self, INDEX_NAME, Shard};
use crate::{bytes_tokenizer, config};

/// Buffered for one write.
const BUFFER_BYTES: usize = 256 << 10;

/// How a folder is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// [`Dtype::F32`] or [`Dtype::Bf16`].
    pub dtype: Dtype,
    /// Tensors go into a file as long as it has no more bytes of them.
    pub shard_bytes: u64,
    /// Tokens are bytes; else the folder has no tokenizer, since we do not have it.
    pub has_byte_tokens: bool,
    /// Files that come along as they are, name and bytes: a tokenizer, a chat template. They take the place of what would be written.
    pub carried: Vec<(String, Vec<u8>)>,
    /// What the header of each file says besides, for people: key and text.
    pub notes: Vec<(&'static str, String)>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Files with tensors.
    pub num_files: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError<E: std::error::Error + 'static> {
    #[error("{} is there already and not empty; name a folder that is not there", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "the model gives a score of a text, and transformers has no class for that; export it without `--format hf`, under our names"
    )]
    Score,
    #[error("{} names no folder", .0.display())]
    NoName(PathBuf),
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("{value} of tensor {tensor} has no finite bf16; export it as f32")]
    NotBf16 { tensor: String, value: f32 },
    /// What the caller says of its tensors.
    #[error(transparent)]
    Tensor(E),
}

fn write_error<E: std::error::Error>(path: &Path) -> impl Fn(io::Error) -> ExportError<E> + '_ {
    |error| ExportError::Write { path: path.into(), error }
}

/// Writes `model` to the folder `path`, which must be absent or empty. `fill` is asked for one tensor after the other, in the order of the model,
/// and fills all its elements. Of a policy its values are left out, which transformers has no class for. After an error nothing is left (H-1).
pub fn export<E: std::error::Error + 'static>(
    path: &Path,
    model: &ModelConfig,
    options: &Options,
    mut fill: impl FnMut(&TensorSpec, &mut [f32]) -> Result<(), E>,
) -> Result<Written, ExportError<E>> {
    if !model.output.has_logits() {
        return Err(ExportError::Score);
    }
    let model = &ModelConfig { output: Output::Tokens, ..model.clone() };
    check_absent_or_empty(path)?;
    let staging = Staging::create(path)?;
    let shards = layout::shards(model, options.dtype, options.shard_bytes);
    let mut bytes = 0;
    let mut values = Vec::new();
    for shard in &shards {
        bytes += write_shard(&staging.path.join(&shard.file), shard, options, &mut values, &mut fill)?;
    }
    let pad = bytes_tokenizer::pad(model).filter(|_| options.has_byte_tokens);
    let mut files = vec![
        (INDEX_NAME, layout::index(&shards, options.dtype)),
        ("config.json", config::config_json(model, options.dtype, pad)),
        ("generation_config.json", config::generation_json(pad)),
    ];
    if options.has_byte_tokens {
        files.push(("tokenizer.json", bytes_tokenizer::tokenizer_json(model)));
        files.push(("tokenizer_config.json", bytes_tokenizer::tokenizer_config(model)));
    }
    files.retain(|(name, _)| options.carried.iter().all(|(carried, _)| carried != name));
    for (name, value) in files {
        bytes += write_file(&staging.path.join(name), format!("{value:#}\n").as_bytes())?;
    }
    for (name, content) in &options.carried {
        bytes += write_file(&staging.path.join(name), content)?;
    }
    staging.commit(path)?;
    Ok(Written { num_files: shards.len(), bytes })
}

fn check_absent_or_empty<E: std::error::Error>(path: &Path) -> Result<(), ExportError<E>> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(ExportError::NotEmpty(path.into())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(write_error(path)(e)),
    }
}

/// Returns the bytes of the file.
fn write_shard<E: std::error::Error>(
    path: &Path,
    shard: &Shard,
    options: &Options,
    values: &mut Vec<f32>,
    fill: &mut impl FnMut(&TensorSpec, &mut [f32]) -> Result<(), E>,
) -> Result<u64, ExportError<E>> {
    let cannot = write_error(path);
    let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create_new(path).map_err(&cannot)?);
    // transformers does not load a file without the first.
    let metadata = [("format", "pt".to_string())].into_iter().chain(options.notes.iter().cloned());
    let metadata: Vec<(&str, String)> = metadata.collect();
    let names: Vec<String> = shard.tensors.iter().map(layout::name_of).collect();
    let tensors = names.iter().zip(&shard.tensors).map(|(name, spec)| (name.as_str(), &spec.shape[..]));
    let header = layout::header(&metadata, options.dtype, tensors);
    file.write_all(&header).map_err(&cannot)?;
    let mut bytes = header.len() as u64;
    for spec in &shard.tensors {
        values.resize(spec.num_elements(), 0.0);
        fill(spec, values).map_err(ExportError::Tensor)?;
        bytes += write_values(&mut file, options.dtype, spec, values, &cannot)?;
    }
    let file = file.into_inner().map_err(|e| cannot(e.into_error()))?;
    file.sync_all().map_err(&cannot)?;
    Ok(bytes)
}

/// Returns the bytes of the values.
fn write_values<E: std::error::Error>(
    file: &mut impl Write,
    dtype: Dtype,
    spec: &TensorSpec,
    values: &[f32],
    cannot: &impl Fn(io::Error) -> ExportError<E>,
) -> Result<u64, ExportError<E>> {
    match dtype {
        Dtype::F32 => file.write_all(bytemuck::cast_slice(values)).map_err(cannot)?,
        Dtype::Bf16 => {
            for &value in values {
                let not_bf16 = || ExportError::NotBf16 { tensor: spec.name.clone(), value };
                let bits = bf16_of_f32(value).ok_or_else(not_bf16)?;
                file.write_all(&bits.to_le_bytes()).map_err(cannot)?;
            }
        }
        Dtype::F16 => panic!("f16 is read and not written: its range is too small for weights"),
    }
    Ok((dtype.size() * values.len()) as u64)
}

/// Returns the bytes of the file.
fn write_file<E: std::error::Error>(path: &Path, content: &[u8]) -> Result<u64, ExportError<E>> {
    let cannot = write_error(path);
    let mut file = File::create_new(path).map_err(&cannot)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(&cannot)?;
    Ok(content.len() as u64)
}

/// A folder that nobody takes for an export yet; dropped before [`Staging::commit`], nothing of it remains.
struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Beside `target`, under a name of this process alone.
    fn create<E: std::error::Error>(target: &Path) -> Result<Staging, ExportError<E>> {
        let name = target.file_name().ok_or_else(|| ExportError::NoName(target.into()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(hidden);
        // What a process of the same number has left when it died.
        let left = fs::remove_dir_all(&path);
        let made = match left {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => fs::create_dir(&path),
        };
        made.map_err(write_error(&path))?;
        Ok(Staging { path })
    }

    /// Makes the folder visible as `target`, durably. An empty folder of that name is replaced, another is not.
    fn commit<E: std::error::Error>(self, target: &Path) -> Result<(), ExportError<E>> {
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let sync = |folder: &Path| File::open(folder)?.sync_all();
        let renamed = sync(&self.path).and_then(|()| fs::rename(&self.path, target));
        match renamed {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(ExportError::NotEmpty(target.into())),
            renamed => renamed.and_then(|()| sync(parent)).map_err(write_error(target)),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit it is not there any more, and what cannot be removed is in nobody's way.
        let _ = fs::remove_dir_all(&self.path);
    }
}
