//! Data that lies in an object store, as files of this host, before anybody reads it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use toroid_storage::{Cache, CacheError, Fetched, Store, is_store};

use super::DataError;
use super::attend::Attend;
use crate::system;

/// Below the folder of the cache.
const FOLDER: &str = "objects";

/// Where data can be read, as long as this is kept.
#[derive(Debug)]
pub(crate) struct Local {
    path: PathBuf,
    /// Nobody makes room for others with it.
    _fetched: Option<Fetched>,
}

impl Local {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `path` itself where it is one of this host; what is at a URL is fetched into the cache, once a host.
pub(crate) fn fetch(path: &Path, cache_dir: &Path, attend: &mut dyn Attend) -> Result<Local, DataError> {
    let url = path.to_str().filter(|url| is_store(url) && system::simulated().is_none());
    let Some(url) = url else { return Ok(Local { path: path.into(), _fetched: None }) };
    let (start, cache) = (Instant::now(), Cache::new(cache_dir.join(FOLDER), None));
    let store = Store::open(url).map_err(|e| DataError::Fetch(e.into()))?;
    let fetched = cache.fetch(&store, &mut Waiting(attend)).map_err(|error| match error {
        CacheError::Over { .. } => DataError::Over,
        error => DataError::Fetch(error),
    })?;
    let (num_bytes, local, seconds) = (fetched.num_bytes(), fetched.path().to_owned(), start.elapsed().as_secs_f64());
    tracing::info!("{url}: {num_bytes} bytes, in {} after {seconds:.1} s", local.display());
    Ok(Local { path: local, _fetched: Some(fetched) })
}

/// Whoever waits for tokens, as one who waits for files.
struct Waiting<'a>(&'a mut dyn Attend);

impl toroid_storage::Attend for Waiting<'_> {
    fn advance(&mut self, num_bytes: u64, _: u64) {
        self.0.advance(num_bytes);
    }

    fn waits(&mut self, is_waiting: bool) {
        self.0.waits(is_waiting);
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }
}
