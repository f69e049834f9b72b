//! Where an export goes: a file of this machine, or an object of a store. It appears whole, or not at all. And what it says of itself.

use std::io::{self, Write as _};
use std::path::Path;

use toroid_storage::{Store, Upload, is_store};
use toroid_torus::manifest::Manifest;

use super::{AtomicFile, CheckpointError};

/// What a file of weights is noted by of the tokenizer, and the note where a token is a byte.
pub(super) const TOKENIZER_NOTE: &str = "tokenizer";
pub(super) const BYTE_TOKENS: &str = "bytes";
/// What it is noted by of the model: its dims as a job file has them, as JSON. Shapes do not tell how wide a head is.
pub(super) const MODEL_NOTE: &str = "model";

/// The notes of an export.
pub(super) fn notes(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let tokenizer = manifest.tokenizer.as_deref().unwrap_or(BYTE_TOKENS).to_string();
    let model = serde_json::to_string(&manifest.job.model).expect("numbers and names are JSON");
    vec![
        ("job", manifest.job.name.clone()),
        ("step", manifest.step.to_string()),
        (TOKENIZER_NOTE, tokenizer),
        (MODEL_NOTE, model),
    ]
}

pub(super) struct Exported {
    target: Target,
    /// As in messages.
    file: String,
    /// Of all that is written.
    num_bytes: u64,
}

enum Target {
    File(AtomicFile),
    Object(Upload),
}

impl Exported {
    /// `path`: of a file, or the URL of an object. `num_bytes`: what will be written.
    pub fn create(path: &Path, num_bytes: u64) -> Result<Exported, CheckpointError> {
        let file = path.display().to_string();
        let target = match path.to_str().filter(|url| is_store(url)) {
            // Below the URL itself there is the object of no name.
            Some(url) => Store::open(url)
                .and_then(|store| store.upload("", Some(num_bytes)))
                .map(Target::Object)
                .map_err(Into::into),
            None => AtomicFile::create(path).map(Target::File).map_err(Cannot::File),
        };
        match target {
            Ok(target) => Ok(Exported { target, file, num_bytes }),
            Err(cannot) => Err(cannot.write(file, num_bytes)),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let written = match &mut self.target {
            Target::File(file) => file.write_all(bytes).map_err(Cannot::File),
            Target::Object(object) => object.write(bytes).map_err(Into::into),
        };
        written.map_err(|cannot| cannot.write(self.file.clone(), self.num_bytes))
    }

    /// Durable when it returns.
    pub fn finish(self) -> Result<(), CheckpointError> {
        let finished = match self.target {
            Target::File(file) => file.commit(&[]).map_err(Cannot::File),
            Target::Object(object) => object.finish().map_err(Into::into),
        };
        finished.map_err(|cannot| cannot.write(self.file, self.num_bytes))
    }
}

enum Cannot {
    File(io::Error),
    Object(String),
}

impl From<toroid_storage::StorageError> for Cannot {
    fn from(error: toroid_storage::StorageError) -> Cannot {
        Cannot::Object(error.why().into())
    }
}

impl Cannot {
    fn write(self, file: String, bytes: u64) -> CheckpointError {
        match self {
            Cannot::Object(why) => CheckpointError::Write { file, bytes, cause: why.into() },
            Cannot::File(cause) => match cause.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    CheckpointError::NoSpaceForExport { file, bytes, cause }
                }
                _ => CheckpointError::Write { file, bytes, cause: cause.into() },
            },
        }
    }
}
