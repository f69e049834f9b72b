//! Weights from elsewhere that a job reads: on this machine, for tokens as its data has them, and named, so that others in their place are noticed.

use std::collections::BTreeMap;
use std::path::Path;

use toroid_torus::ids::Epoch;

use super::attends::Attends;
use super::environment::Environment;
use super::error::PrepareError;
use crate::checkpoint::{CheckpointError, check_tokenizer, digest_of_weights};
use crate::comm::Fence;
use crate::data::{self, DataError, Local};

/// What names the weights that a place has read, by the job's key.
pub(super) type Names = BTreeMap<String, String>;

pub(super) struct Weights {
    local: Local,
    digest: [u8; 32],
}

/// Where they are read from, and what has been read so far.
pub(super) struct Reader<'a> {
    pub environment: &'a Environment,
    pub until: Option<(&'a Fence, Epoch)>,
    /// Of the job's data; `None`: a token is a byte.
    pub tokenizer: Option<String>,
    pub names: Names,
}

impl Reader<'_> {
    /// The weights that `key` of the job names by `path`.
    pub fn read(&mut self, key: &str, path: &Path) -> Result<Weights, PrepareError> {
        let local = self.fetch(path)?;
        check_tokenizer(local.path(), self.tokenizer.as_deref()).map_err(PrepareError::Initial)?;
        let digest = digest_of_weights(local.path()).map_err(PrepareError::Initial)?;
        self.names.insert(key.into(), blake3::Hash::from_bytes(digest).to_hex().to_string());
        Ok(Weights { local, digest })
    }

    /// Has them on this machine, also where they lie in an object store.
    fn fetch(&self, path: &Path) -> Result<Local, PrepareError> {
        let mut attends = Attends { shared: &self.environment.shared, fence: self.until };
        data::fetch(path, &self.environment.cache_dir, &mut attends).map_err(|error| match error {
            DataError::Fetch(error) => {
                let problems = vec![error.to_string()];
                PrepareError::Initial(CheckpointError::Initial { path: path.into(), problems })
            }
            error => error.into(),
        })
    }
}

impl Weights {
    pub fn path(&self) -> &Path {
        self.local.path()
    }

    /// Before they are read once more.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        if digest_of_weights(self.path())? == self.digest {
            return Ok(());
        }
        let problems = vec!["other weights are there than those that the job began with; put those back".into()];
        Err(CheckpointError::Initial { path: self.path().into(), problems })
    }
}
