//! The token file of a text source, made once and cached.
//!
//! ```text
//!   magic, 8 bytes | version, u32 | bytes a token, u32 | tokens, u64 | source files, u64 | bytes of the note, u64
//!   blake3 of the tokens, 32 bytes | blake3 of the note, 32 bytes | blake3 of all before, 32 bytes | tokens | note
//! ```
//!
//! All numbers are little-endian. The note is JSON: what of the source was left out for what is in it. The file of a source is called by
//! the key of its listing, so a changed source gets a new one. It appears by rename: what has the name is whole. A disk may have lied all
//! the same, so each process compares the digest of the tokens once before it uses them; a file that is not what it should be is made anew.
//!
//! Of several workers on a host the one that gets the lock makes it, the others wait and then find it. The lock only saves work:
//! whoever sees its holder write nothing for long makes the file too, under another name, and the last rename stays.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use toroid_tokens::{BYTES_TOKENIZER, BYTES_VOCABULARY, Kind};
use toroid_torus::job::SourceConfig;

use super::attend::Attend;
use super::compared::{self, AsMapped, Identity};
use super::source::{Contents, Listing};
use super::stream::{Mapped, Tokens};
use super::{DataError, map_file};
use crate::checkpoint::AtomicFile;

const MAGIC: [u8; 8] = *b"TOROIDTK";
const VERSION: u32 = 2;
const TOKEN_BYTES: u32 = 1;
pub(super) const HEADER_BYTES: usize = 136;
/// A note names a few files for each of a few reasons.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Between two looks whether another has made the file.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Who has the lock and has written nothing for this long is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tokens are compared with their digest in pieces of this size; each is a sign of getting on.
const DIGEST_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    num_tokens: u64,
    num_files: u64,
    note_bytes: u64,
    digest: [u8; 32],
    note_digest: [u8; 32],
}

/// Opens the token file of a source that is text, which is made in `cache_dir` if it is not there.
pub(super) fn prepare(source: &SourceConfig, cache_dir: &Path, attend: &mut dyn Attend) -> Result<Tokens, DataError> {
    prepare_within(source, cache_dir, PATIENCE, attend)
}

/// The same, with the patience for another that makes the file.
pub(super) fn prepare_within(
    source: &SourceConfig,
    cache_dir: &Path,
    patience: Duration,
    attend: &mut dyn Attend,
) -> Result<Tokens, DataError> {
    let listing = Listing::of(source)?;
    let key = listing.key().to_hex();
    let path = cache_dir.join(format!("{key}.tokens"));
    if let Some(tokens) = open(&path, &listing, attend) {
        return Ok(tokens);
    }
    let lock_path = cache_dir.join(format!("{key}.lock"));
    let cannot_lock = |cause| DataError::Lock { path: lock_path.clone(), cause };
    let lock = fs::create_dir_all(cache_dir).and_then(|()| File::create(&lock_path)).map_err(cannot_lock)?;
    // Held to the end of this function. The file stays: whoever deleted it would let two in at once.
    let turn = take_turn(&lock, &path, patience, attend).map_err(|e| match e {
        Interrupted::Over => DataError::Over,
        Interrupted::Lock(cause) => cannot_lock(cause),
    })?;
    if let Some(tokens) = open(&path, &listing, attend) {
        return Ok(tokens);
    }
    make(&path, &listing, turn, attend)?;
    let made = open(&path, &listing, attend).map(|tokens| Tokens { was_cached: false, ..tokens });
    made.ok_or_else(|| {
        let cause = io::Error::other("the file that was just written does not read back");
        DataError::Read { path, cause }
    })
}

/// Who makes the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The lock is ours.
    Ours,
    /// Another has the lock and does nothing, or has made the file by now.
    Beside,
}

enum Interrupted {
    Over,
    Lock(io::Error),
}

/// Waits for the lock, as long as whoever has it gets on: that shows in the file that it writes.
fn take_turn(lock: &File, path: &Path, patience: Duration, attend: &mut dyn Attend) -> Result<Turn, Interrupted> {
    let partial = path.with_extension("partial");
    let written = || fs::metadata(&partial).map_or(0, |m| m.len());
    let inode = || fs::metadata(path).map_or(0, |m| m.ino());
    let (mut seen, mut since, before) = (written(), Instant::now(), inode());
    let mut is_waiting = false;
    let turn = loop {
        match lock.try_lock() {
            Ok(()) => break Ok(Turn::Ours),
            Err(TryLockError::Error(error)) => break Err(Interrupted::Lock(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !is_waiting {
            tracing::info!(path = %path.display(), "another process makes the token file, waiting for it");
            attend.waits(true);
            is_waiting = true;
        }
        if attend.is_over() {
            break Err(Interrupted::Over);
        }
        // Made by somebody who did not wait either.
        if inode() != before {
            break Ok(Turn::Beside);
        }
        let now = written();
        if now != seen {
            (seen, since) = (now, Instant::now());
            attend.advance(now);
        } else if since.elapsed() >= patience {
            let waited_s = patience.as_secs_f64();
            tracing::warn!(path = %path.display(), "who makes the token file has written nothing for {waited_s} s, making it too");
            break Ok(Turn::Beside);
        }
        std::thread::sleep(LOCK_PAUSE);
    };
    if is_waiting {
        attend.waits(false);
    }
    turn
}

/// The token file at `path`; `None` where there is none that is whole.
fn open(path: &Path, listing: &Listing, attend: &mut dyn Attend) -> Option<Tokens> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, map_file(&file)?)));
    let (metadata, map) = match opened {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read a cached token file, making it anew");
            return None;
        }
    };
    let garbled = |what: &str| {
        tracing::warn!(path = %path.display(), "a cached token file is garbled, making it anew: {what}");
        None
    };
    let Some(header) = Header::read(&map) else {
        return garbled("its header or its length is not that of a token file of this version");
    };
    let (tokens, note) = map[HEADER_BYTES..].split_at(header.num_tokens as usize);
    if blake3::hash(note) != blake3::Hash::from_bytes(header.note_digest) {
        return garbled("the digest of its note is another");
    }
    let Ok(left_out) = serde_json::from_slice(note) else { return garbled("its note cannot be read") };
    if compared::once(path, Identity::of(&metadata), || has_digest(tokens, &header, attend)).is_err() {
        return garbled("the digest of its tokens is another");
    }
    let contents = Contents { num_files: header.num_files, bytes: header.num_tokens, left_out };
    let (bytes, tokens) = (HEADER_BYTES..HEADER_BYTES + tokens.len(), 0..header.num_tokens);
    Some(Tokens {
        _local: None,
        files: vec![Mapped {
            map,
            bytes,
            width: TOKEN_BYTES,
            tokens,
            documents: 0..0,
            path: path.into(),
            as_mapped: AsMapped::of(&metadata),
        }],
        digest: header.digest,
        kind: Kind::Text,
        tokenizer: BYTES_TOKENIZER,
        vocabulary: BYTES_VOCABULARY,
        summary: listing.summary(&contents),
        left_out: listing.left_out(&contents),
        was_cached: true,
        is_of_token_files: false,
    })
}

/// The digest of the tokens is another.
struct Garbled;

fn has_digest(tokens: &[u8], header: &Header, attend: &mut dyn Attend) -> Result<(), Garbled> {
    let (mut hasher, mut done) = (blake3::Hasher::new(), 0);
    for piece in tokens.chunks(DIGEST_BYTES) {
        hasher.update(piece);
        done += piece.len() as u64;
        attend.advance(done);
    }
    if hasher.finalize() == blake3::Hash::from_bytes(header.digest) { Ok(()) } else { Err(Garbled) }
}

fn make(path: &Path, listing: &Listing, turn: Turn, attend: &mut dyn Attend) -> Result<(), DataError> {
    let expected = HEADER_BYTES as u64 + listing.bytes_at_most();
    let cannot = |cause| DataError::Cache { path: path.into(), bytes: expected, cause };
    let file = match turn {
        // The lock is ours, so the name is; a maker that died may have left one.
        Turn::Ours => AtomicFile::create_as(path, &path.with_extension("partial")),
        Turn::Beside => AtomicFile::create(path),
    };
    let mut file = file.map_err(cannot)?;
    file.write_all(&[0; HEADER_BYTES]).map_err(cannot)?;
    let (mut hasher, mut done) = (blake3::Hasher::new(), 0);
    let contents = listing.read(|text| {
        hasher.update(text);
        file.write_all(text).map_err(cannot)?;
        done += text.len() as u64;
        attend.advance(done);
        Ok(())
    })?;
    let note = serde_json::to_vec(&contents.left_out).map_err(|e| cannot(e.into()))?;
    file.write_all(&note).map_err(cannot)?;
    let header = Header {
        num_tokens: contents.bytes,
        num_files: contents.num_files,
        note_bytes: note.len() as u64,
        digest: *hasher.finalize().as_bytes(),
        note_digest: *blake3::hash(&note).as_bytes(),
    };
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
        out[32..40].copy_from_slice(&self.note_bytes.to_le_bytes());
        out[40..72].copy_from_slice(&self.digest);
        out[72..104].copy_from_slice(&self.note_digest);
        let digest = blake3::hash(&out[..104]);
        out[104..].copy_from_slice(digest.as_bytes());
        out
    }

    /// The header of a whole file; `None` where anything about it is not as [`Header::bytes`] writes it, or the file
    /// has another length.
    fn read(file: &[u8]) -> Option<Header> {
        let head = file.get(..HEADER_BYTES)?;
        let number = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let digest = |at: usize| head.get(at..at + 32)?.try_into().ok();
        let header = Header {
            num_tokens: number(16)?,
            num_files: number(24)?,
            note_bytes: number(32)?,
            digest: digest(40)?,
            note_digest: digest(72)?,
        };
        let is_as_written = header.bytes() == head && header.note_bytes <= MAX_NOTE_BYTES;
        let len = header.num_tokens.checked_add(header.note_bytes)?;
        (is_as_written && (file.len() - HEADER_BYTES) as u64 == len).then_some(header)
    }
}
