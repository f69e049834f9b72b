//! Bytes of a file: one of this machine, or an object of an S3-compatible store.
//!
//! Objects are read where they are, a block at a time, and each request names the version that was listed: one that was replaced since is an
//! error, never a mixture. Requests that fail are tried again as `toroid-storage` does it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use toroid_storage::{Location, Object, Store, is_store};

use crate::error::{At, Result};
use crate::read::files::Listed;

/// Of an object, so much is asked for at first, and so much at most: ranges of files are short where memory is.
const FIRST_BLOCK_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 4 << 20;
/// Blocks that are kept for readers which go through several columns at once.
const NUM_BLOCKS: usize = 8;

/// The URL of a path that is one of a store.
pub fn url(path: &Path) -> Option<&str> {
    path.to_str().filter(|path| is_store(path))
}

/// The store of a URL's bucket, and the key in it. Stores of a process share their connections.
pub fn store(url: &str) -> Result<(Store, String)> {
    static STORES: Mutex<BTreeMap<String, Store>> = Mutex::new(BTreeMap::new());
    let location = Location::parse(url)?;
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let found = match stores.get(location.bucket()) {
        Some(store) => store.clone(),
        None => {
            let store = Store::open(&format!("s3://{}", location.bucket()))?;
            stores.insert(location.bucket().to_owned(), store.clone());
            store
        }
    };
    Ok((found, location.prefix().to_owned()))
}

/// An open file, at a position.
pub enum Input {
    File(File),
    Object { object: Arc<Shared>, position: u64 },
}

/// An object, and what of it is here.
pub struct Shared {
    store: Store,
    object: Object,
    blocks: Mutex<Blocks>,
}

struct Blocks {
    /// Each with where it begins; the newest first.
    blocks: VecDeque<(u64, Bytes)>,
    num_most: usize,
    next_bytes: u64,
    most_bytes: u64,
}

impl Input {
    /// To be read from its beginning on, or from where it is set to.
    pub fn open(file: &Listed) -> Result<Input> {
        Input::with_blocks(file, 1, BLOCK_BYTES)
    }

    /// To be read here and there.
    pub fn open_for_columns(file: &Listed) -> Result<Input> {
        Input::with_blocks(file, NUM_BLOCKS, FIRST_BLOCK_BYTES)
    }

    fn with_blocks(file: &Listed, num_most: usize, most_bytes: u64) -> Result<Input> {
        let Some(url) = url(&file.path) else { return Ok(Input::File(File::open(&file.path).at("open", &file.path)?)) };
        let (store, name) = store(url)?;
        let object = Object { name, num_bytes: file.bytes, etag: file.etag.clone(), modified: SystemTime::UNIX_EPOCH };
        let blocks = Blocks { blocks: VecDeque::new(), num_most, next_bytes: FIRST_BLOCK_BYTES, most_bytes };
        let object = Arc::new(Shared { store, object, blocks: Mutex::new(blocks) });
        Ok(Input::Object { object, position: 0 })
    }

    pub fn set_position(&mut self, to: u64) -> io::Result<()> {
        match self {
            Input::File(file) => file.seek(SeekFrom::Start(to)).map(drop),
            Input::Object { position, .. } => {
                *position = to;
                Ok(())
            }
        }
    }

    /// The first bytes, as few as are asked for.
    pub fn start(file: &Listed, num: u64) -> Result<Vec<u8>> {
        match Input::open(file)? {
            Input::File(open) => {
                let mut start = Vec::new();
                open.take(num).read_to_end(&mut start).at("read", &file.path)?;
                Ok(start)
            }
            Input::Object { object, .. } => Ok(object.fetch(0, num)?.to_vec()),
        }
    }
}

impl Shared {
    /// Up to `num` bytes from `start` on, fewer at the end.
    fn fetch(&self, start: u64, num: u64) -> std::result::Result<Bytes, toroid_storage::StorageError> {
        let end = start.saturating_add(num).min(self.object.num_bytes);
        // A range without bytes is none for a store.
        if start >= end { Ok(Bytes::new()) } else { self.store.get_range_of(&self.object, start..end) }
    }

    /// Bytes from `position` on, one at least unless it is the end.
    fn at(&self, position: u64) -> io::Result<Bytes> {
        let mut here = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in = |(start, bytes): &(u64, Bytes)| (*start..start + bytes.len() as u64).contains(&position);
        if let Some((start, bytes)) = here.blocks.iter().find(|block| is_in(block)) {
            return Ok(bytes.slice((position - start) as usize..));
        }
        let num_kept = here.num_most - 1;
        here.blocks.truncate(num_kept);
        let bytes = self.fetch(position, here.next_bytes).map_err(io::Error::other)?;
        here.next_bytes = (here.next_bytes * 2).min(here.most_bytes);
        here.blocks.push_front((position, bytes.clone()));
        Ok(bytes)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::File(file) => file.read(buffer),
            Input::Object { object, position } => {
                let bytes = object.at(*position)?;
                let num = bytes.len().min(buffer.len());
                buffer[..num].copy_from_slice(&bytes[..num]);
                *position += num as u64;
                Ok(num)
            }
        }
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        match self {
            Input::File(file) => Length::len(file),
            Input::Object { object, .. } => object.object.num_bytes,
        }
    }
}

impl ChunkReader for Input {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Box<dyn Read>> {
        Ok(match self {
            Input::File(file) => Box::new(file.get_read(start)?),
            Input::Object { object, .. } => Box::new(Input::Object { object: object.clone(), position: start }),
        })
    }

    fn get_bytes(&self, start: u64, num: usize) -> parquet::errors::Result<Bytes> {
        let object = match self {
            Input::File(file) => return file.get_bytes(start, num),
            Input::Object { object, .. } => object,
        };
        let here = object.at(start)?;
        if here.len() >= num {
            return Ok(here.slice(..num));
        }
        let bytes = object.fetch(start, num as u64).map_err(io::Error::other)?;
        if bytes.len() < num {
            return Err(ParquetError::EOF(format!("expected {num} bytes at {start}, there are {}", bytes.len())));
        }
        Ok(bytes)
    }
}
