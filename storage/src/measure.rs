//! How fast a store takes a large object, and gives it back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::StorageError;
use crate::store::Store;

/// Written at once, and read at once: as checkpoints and the cache do.
const WRITE_BYTES: usize = 8 << 20;
const READ_BYTES: u64 = 16 << 20;
const NUM_READERS: usize = 4;

/// Writes an object of `num_bytes`; until it is complete. What is written does not compress.
pub fn write(store: &Store, name: &str, num_bytes: u64) -> Result<Duration, StorageError> {
    let mut state = 1u64;
    let next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let block: Vec<u8> = std::iter::repeat_with(next).take(WRITE_BYTES / 8).flatten().collect();
    let start = Instant::now();
    let mut upload = store.upload(name, Some(num_bytes))?;
    while upload.num_bytes() < num_bytes {
        let missing = num_bytes - upload.num_bytes();
        upload.write(&block[..WRITE_BYTES.min(usize::try_from(missing).unwrap_or(WRITE_BYTES))])?;
    }
    upload.finish()?;
    Ok(start.elapsed())
}

/// Reads an object of `num_bytes`, and keeps nothing of it.
pub fn read(store: &Store, name: &str, num_bytes: u64) -> Result<Duration, StorageError> {
    let (start, next) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let read = || loop {
            let at = next.fetch_add(READ_BYTES, Ordering::Relaxed);
            if at >= num_bytes {
                return Ok(());
            }
            store.get_range(name, at..num_bytes.min(at + READ_BYTES))?;
        };
        let readers: Vec<_> = (0..NUM_READERS).map(|_| scope.spawn(read)).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("reading does not panic"))
    })?;
    Ok(start.elapsed())
}
