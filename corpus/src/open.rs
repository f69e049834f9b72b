//! Files that are read here and there: a bounded number of them is open at a time.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::error::{At, Error, Result};

const MAX_OPEN: usize = 128;

/// Files by number, opened when they are needed.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

impl Files {
    pub fn new(paths: Vec<PathBuf>) -> Files {
        Files { paths, open: Mutex::default() }
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    pub fn path(&self, n: u32) -> Result<&PathBuf> {
        self.paths.get(n as usize).ok_or_else(|| Error::Ledger(format!("there is no file {n}")))
    }

    /// Bytes of one of the files, from a position on.
    pub fn read(&self, n: u32, bytes: &mut [u8], at: u64) -> Result<()> {
        let path = self.path(n)?;
        let mut open = self.open.lock().expect("nothing panics while it holds this");
        let file = match open.get(&n) {
            Some(file) => file.clone(),
            None => {
                if open.len() >= MAX_OPEN {
                    open.clear();
                }
                let file = Arc::new(File::open(path).at("open", path)?);
                open.insert(n, file.clone());
                file
            }
        };
        drop(open);
        file.read_exact_at(bytes, at).at("read", path)
    }
}
