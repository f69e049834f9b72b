//! The token file of a text source, made once and cached.
//!
//! ```text
//!   magic, 8 bytes | version, u32 | bytes a token, u32 | tokens, u64 | source files, u64
//!   blake3 of the tokens, 32 bytes | blake3 of all before, 32 bytes | tokens
//! ```
//!
//! All numbers are little-endian. The file of a source is called by the key of its listing, so a changed source gets a
//! new one. Of several workers on a host the one that gets the lock makes it, the others wait for the lock and then
//! find it. It appears by rename: what has the name is whole, and a file that is not (another version, a disk that
//! lied) is made anew.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use memmap2::Mmap;
use toroid_torus::job::DataConfig;

use super::source::{Contents, Listing};
use super::{DataError, map_file};
use crate::checkpoint::AtomicFile;

const MAGIC: [u8; 8] = *b"TOROIDTK";
const VERSION: u32 = 1;
const TOKEN_BYTES: u32 = 1;
const HEADER_BYTES: usize = 96;
/// Between two looks whether another has made the file.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The tokens of a text source, mapped into memory.
#[derive(Debug)]
pub struct TokenFile {
    /// Header and tokens.
    map: Mmap,
    header: Header,
    summary: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    num_tokens: u64,
    num_files: u64,
    digest: [u8; 32],
}

impl TokenFile {
    /// Opens the token file of the source that `config` names, which is made in `cache_dir` if it is not there.
    /// `progress` is told the bytes of text done so far while it is made, and 0 again and again while another makes it.
    pub fn prepare(
        config: &DataConfig,
        cache_dir: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<TokenFile, DataError> {
        let listing = Listing::of(config)?;
        let key = listing.key().to_hex();
        let path = cache_dir.join(format!("{key}.tokens"));
        if let Some(tokens) = open(&path, &listing) {
            return Ok(tokens);
        }
        let lock_path = cache_dir.join(format!("{key}.lock"));
        let lock = fs::create_dir_all(cache_dir).and_then(|()| File::create(&lock_path)).and_then(|file| {
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(file),
                    Err(TryLockError::WouldBlock) => {
                        progress(0);
                        std::thread::sleep(LOCK_PAUSE);
                    }
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
        });
        // Held to the end of this function. The file stays: whoever deleted it would let two in at once.
        let _lock = lock.map_err(|cause| DataError::Lock { path: lock_path, cause })?;
        if let Some(tokens) = open(&path, &listing) {
            return Ok(tokens);
        }
        make(&path, &listing, progress)?;
        open(&path, &listing).ok_or_else(|| {
            let cause = io::Error::other("the file that was just written does not read back");
            DataError::Read { path, cause }
        })
    }

    /// blake3 of the tokens.
    pub fn digest(&self) -> [u8; 32] {
        self.header.digest
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.header.num_tokens
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the tokens are made of, as in `4,213 files, 31.4 MB of .rs text under /data`.
    pub fn source_summary(&self) -> String {
        self.summary.clone()
    }

    /// Writes the tokens as a text file, which gives the same tokens. It appears whole.
    pub fn write_text(&self, to: &Path) -> Result<(), DataError> {
        let cannot = |cause| DataError::Cache { path: to.into(), bytes: self.len(), cause };
        let mut file = AtomicFile::create_as(to, &to.with_extension("partial")).map_err(cannot)?;
        file.write_all(self.tokens()).map_err(cannot)?;
        file.commit(&[]).map_err(cannot)
    }

    /// The tokens, one byte each, (len).
    pub(super) fn tokens(&self) -> &[u8] {
        &self.map[HEADER_BYTES..]
    }
}

/// The token file at `path`; `None` where there is none that is whole.
fn open(path: &Path, listing: &Listing) -> Option<TokenFile> {
    let map = match File::open(path).and_then(|file| map_file(&file)) {
        Ok(map) => map,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read a cached token file, making it anew");
            return None;
        }
    };
    let Some(header) = Header::read(&map) else {
        tracing::warn!(path = %path.display(), "a cached token file is garbled, making it anew");
        return None;
    };
    let summary = listing.summary(Contents { num_files: header.num_files, bytes: header.num_tokens });
    Some(TokenFile { map, header, summary })
}

fn make(path: &Path, listing: &Listing, progress: &mut dyn FnMut(u64)) -> Result<(), DataError> {
    let expected = HEADER_BYTES as u64 + listing.bytes_at_most();
    let cannot = |cause| DataError::Cache { path: path.into(), bytes: expected, cause };
    // The lock is ours, so the name is; a maker that died may have left one.
    let mut file = AtomicFile::create_as(path, &path.with_extension("partial")).map_err(cannot)?;
    file.write_all(&[0; HEADER_BYTES]).map_err(cannot)?;
    let (mut hasher, mut done) = (blake3::Hasher::new(), 0);
    let contents = listing.read(|text| {
        hasher.update(text);
        file.write_all(text).map_err(cannot)?;
        done += text.len() as u64;
        progress(done);
        Ok(())
    })?;
    let digest = *hasher.finalize().as_bytes();
    let header = Header { num_tokens: contents.bytes, num_files: contents.num_files, digest };
    file.commit(&header.bytes()).map_err(cannot)
}

impl Header {
    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&TOKEN_BYTES.to_le_bytes());
        out[16..24].copy_from_slice(&self.num_tokens.to_le_bytes());
        out[24..32].copy_from_slice(&self.num_files.to_le_bytes());
        out[32..64].copy_from_slice(&self.digest);
        let digest = blake3::hash(&out[..64]);
        out[64..].copy_from_slice(digest.as_bytes());
        out
    }

    /// The header of a whole file; `None` where anything about it is not as [`Header::bytes`] writes it, or the file
    /// has another length.
    fn read(file: &[u8]) -> Option<Header> {
        let head = file.get(..HEADER_BYTES)?;
        let number = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let digest = head.get(32..64)?.try_into().ok()?;
        let header = Header { num_tokens: number(16)?, num_files: number(24)?, digest };
        let is_whole = header.bytes() == head && (file.len() - HEADER_BYTES) as u64 == header.num_tokens;
        is_whole.then_some(header)
    }
}
