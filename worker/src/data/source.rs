//! Which files a text source consists of, and their bytes as one stream.
//!
//! Symbolic links inside a folder are not followed: they would lead out of it, or give the same text twice. Whatever is in a folder and
//! gives no text is counted by its reason ([`LeftOut`]); what cannot be read is an error (T-12).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toroid_torus::job::SourceConfig;

use super::DataError;

/// A file with a NUL byte this far into it is not text.
const NUL_WINDOW_BYTES: usize = 8 << 10;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Of the files that are left out for one reason, so many are named.
const MAX_NAMED: usize = 3;
/// Longest name that is told of; paths may be thousands of bytes long.
const MAX_NAME_CHARS: usize = 120;

/// Why a part of a source gives no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    NotText,
    /// Another ending than those of `data.extensions`.
    Ending,
    /// Beyond `data.max_bytes`; of one file it may be the rest.
    MaxBytes,
    Link,
    /// A FIFO, a socket or a device.
    Special,
    /// Beside token files.
    NoTokens,
}

impl Reason {
    /// As in `12 files: not UTF-8 text`.
    pub fn words(self) -> &'static str {
        match self {
            Reason::NotText => "not UTF-8 text",
            Reason::Ending => "another ending than data.extensions",
            Reason::MaxBytes => "beyond data.max_bytes",
            Reason::Link => "links, which are not followed",
            Reason::Special => "neither a file nor a folder",
            Reason::NoTokens => "no token files, beside some",
        }
    }
}

/// The files of a source that give no text, or not all of theirs, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    pub reason: Reason,
    pub num_files: u64,
    /// As far as they are known.
    pub bytes: u64,
    /// The first by relative path, at most `MAX_NAMED`.
    pub first: Vec<String>,
}

/// Adds a file to those that are left out; files of one reason come in the order of their paths.
pub(super) fn leave_out(left_out: &mut Vec<LeftOut>, reason: Reason, relative: &Path, bytes: u64) {
    let at = left_out.iter().position(|l| l.reason == reason).unwrap_or_else(|| {
        left_out.push(LeftOut { reason, num_files: 0, bytes: 0, first: Vec::new() });
        left_out.len() - 1
    });
    let entry = &mut left_out[at];
    entry.num_files += 1;
    entry.bytes = entry.bytes.saturating_add(bytes);
    if entry.first.len() < MAX_NAMED {
        entry.first.push(relative.to_string_lossy().chars().take(MAX_NAME_CHARS).collect());
    }
}

/// The files of a text source as they were found, ordered by relative path.
#[derive(Debug)]
pub(super) struct Listing {
    /// Canonical path of the source.
    root: PathBuf,
    files: Vec<Listed>,
    /// What is left out whatever is in it; with the relative path, and the bytes where they are known.
    passed_over: Vec<(Reason, PathBuf, u64)>,
    /// The source is a folder: its files are joined by newlines and may be filtered by content.
    is_folder: bool,
    extensions: Vec<String>,
    max_bytes: u64,
}

#[derive(Debug)]
struct Listed {
    /// Empty for a source that is one file.
    relative: PathBuf,
    bytes: u64,
    /// Time of the last change since 1970.
    modified_ns: u128,
}

/// What came out of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub num_files: u64,
    pub bytes: u64,
    /// For what is in them, or for how much came before.
    pub left_out: Vec<LeftOut>,
}

impl Listing {
    pub fn of(config: &SourceConfig) -> Result<Listing, DataError> {
        let cannot = |cause| DataError::Source { path: config.path.clone(), cause };
        let root = config.path.canonicalize().map_err(cannot)?;
        let is_folder = fs::metadata(&root).map_err(cannot)?.is_dir();
        let extensions = config.extensions.iter().map(|e| e.trim_start_matches('.').to_string()).collect();
        let (files, passed_over) = (Vec::new(), Vec::new());
        let mut listing = Listing { root, files, passed_over, is_folder, extensions, max_bytes: config.max_bytes };
        if is_folder {
            listing.walk(PathBuf::new())?;
            let by_bytes = |a: &PathBuf, b: &PathBuf| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes());
            listing.files.sort_by(|a, b| by_bytes(&a.relative, &b.relative));
            listing.passed_over.sort_by(|a, b| by_bytes(&a.1, &b.1));
        } else {
            listing.check_ending(config)?;
            listing.add(PathBuf::new())?;
        }
        Ok(listing)
    }

    fn walk(&mut self, relative: PathBuf) -> Result<(), DataError> {
        let folder = self.path(&relative);
        let cannot = |cause| DataError::Read { path: folder.clone(), cause };
        for entry in fs::read_dir(&folder).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let kind = entry.file_type().map_err(cannot)?;
            let below = relative.join(entry.file_name());
            if kind.is_dir() {
                self.walk(below)?;
            } else if kind.is_file() && self.has_extension(&below) {
                self.add(below)?;
            } else if kind.is_file() {
                // Nobody asked for it: that it is gone by now is no error.
                let bytes = entry.metadata().map_or(0, |m| m.len());
                self.passed_over.push((Reason::Ending, below, bytes));
            } else {
                let reason = if kind.is_symlink() { Reason::Link } else { Reason::Special };
                self.passed_over.push((reason, below, 0));
            }
        }
        Ok(())
    }

    /// Endings choose among the files of a folder. A file that is named and has none of them is a contradiction.
    fn check_ending(&self, config: &SourceConfig) -> Result<(), DataError> {
        if self.has_extension(&config.path) || self.has_extension(&self.root) {
            return Ok(());
        }
        Err(DataError::Ending { path: config.path.clone(), extensions: self.extensions.join(" or .") })
    }

    /// What is left out of the source: by the listing, and what `contents` says of it.
    pub fn left_out(&self, contents: &Contents) -> Vec<LeftOut> {
        let mut all = contents.left_out.clone();
        self.passed_over.iter().for_each(|(reason, path, bytes)| leave_out(&mut all, *reason, path, *bytes));
        all.sort_by_key(|left| left.reason);
        all
    }

    fn has_extension(&self, path: &Path) -> bool {
        let name = path.file_name().map_or(&[][..], OsStrExt::as_bytes);
        let ends_with = |e: &String| name.strip_suffix(e.as_bytes()).is_some_and(|rest| rest.ends_with(b"."));
        self.extensions.is_empty() || self.extensions.iter().any(ends_with)
    }

    fn add(&mut self, relative: PathBuf) -> Result<(), DataError> {
        let path = self.path(&relative);
        let metadata = fs::metadata(&path).map_err(|cause| DataError::Read { path, cause })?;
        // A file system without times gives 0 to all; then only the size tells a changed file.
        let since_epoch = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let modified_ns = since_epoch.map_or(0, |d| d.as_nanos());
        self.files.push(Listed { relative, bytes: metadata.len(), modified_ns });
        Ok(())
    }

    fn path(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.root.clone() } else { self.root.join(relative) }
    }

    /// Names the token file of this source in the cache: another key where anything is different that the tokens depend
    /// on.
    pub fn key(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(self.root.as_os_str().as_bytes());
        field(&(self.extensions.len() as u64).to_le_bytes());
        self.extensions.iter().for_each(|e| field(e.as_bytes()));
        field(&self.max_bytes.to_le_bytes());
        for file in &self.files {
            field(file.relative.as_os_str().as_bytes());
            field(&file.bytes.to_le_bytes());
            field(&file.modified_ns.to_le_bytes());
        }
        hasher.finalize()
    }

    /// No more text than this comes out of it; less where files are left out by content.
    pub fn bytes_at_most(&self) -> u64 {
        self.files.iter().map(|f| f.bytes + 1).sum::<u64>().min(self.max_bytes)
    }

    /// Gives the text to `take` piece by piece, at most `max_bytes` of it. `take` fails with the error of its own.
    pub fn read(&self, mut take: impl FnMut(&[u8]) -> Result<(), DataError>) -> Result<Contents, DataError> {
        let mut contents = Contents { num_files: 0, bytes: 0, left_out: Vec::new() };
        let mut buffer = vec![0; CHUNK_BYTES];
        for listed in self.files.iter().filter(|f| f.bytes > 0) {
            if contents.bytes == self.max_bytes {
                leave_out(&mut contents.left_out, Reason::MaxBytes, &self.name(listed), listed.bytes);
                continue;
            }
            let path = self.path(&listed.relative);
            let cannot = |cause| DataError::Read { path: path.clone(), cause };
            if self.is_folder && self.extensions.is_empty() && !is_text(&path, &mut buffer).map_err(cannot)? {
                leave_out(&mut contents.left_out, Reason::NotText, &listed.relative, listed.bytes);
                continue;
            }
            let mut file = File::open(&path).map_err(cannot)?;
            if contents.num_files > 0 {
                take(b"\n")?;
                contents.bytes += 1;
            }
            let wanted = listed.bytes.min(self.max_bytes - contents.bytes);
            let found = copy(&mut file, wanted, &mut buffer, &cannot, &mut take)?;
            if found < wanted {
                return Err(DataError::Changed { path, expected: listed.bytes, found });
            }
            contents.bytes += found;
            contents.num_files += u64::from(found > 0);
            if wanted < listed.bytes {
                leave_out(&mut contents.left_out, Reason::MaxBytes, &self.name(listed), listed.bytes - wanted);
            }
        }
        if contents.bytes == 0 {
            return Err(self.no_text());
        }
        Ok(contents)
    }

    /// A source that is one file has no relative path.
    fn name(&self, listed: &Listed) -> PathBuf {
        if self.is_folder { listed.relative.clone() } else { self.root.clone() }
    }

    fn no_text(&self) -> DataError {
        let what = match (self.is_folder, &self.extensions[..]) {
            (false, _) => "the file is empty".to_string(),
            (true, []) => format!("none of its {} files is UTF-8 text (links are not followed)", self.files.len()),
            (true, extensions) => format!(
                "no file in it that ends with .{} has anything in it (links are not followed); check data.extensions",
                extensions.join(" or .")
            ),
        };
        DataError::NoText { path: self.root.clone(), what }
    }

    /// As in `4,213 files, 31.4 MB of .rs text under /data`.
    pub fn summary(&self, contents: &Contents) -> String {
        let size = mega_bytes(contents.bytes);
        let path = self.root.display();
        if !self.is_folder {
            return format!("{size} of text in {path}");
        }
        let files = if contents.num_files == 1 { "file" } else { "files" };
        let kind = match &self.extensions[..] {
            [] => "text".to_string(),
            extensions => format!(".{} text", extensions.join(", .")),
        };
        format!("{} {files}, {size} of {kind} under {path}", grouped(contents.num_files))
    }
}

/// Copies at most `wanted` bytes of `file` to `take`; returns how many there were.
fn copy(
    file: &mut File,
    wanted: u64,
    buffer: &mut [u8],
    cannot: &impl Fn(io::Error) -> DataError,
    take: &mut impl FnMut(&[u8]) -> Result<(), DataError>,
) -> Result<u64, DataError> {
    let mut rest = wanted;
    while rest > 0 {
        let len = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        match file.read(&mut buffer[..len]) {
            Ok(0) => break,
            Ok(n) => {
                take(&buffer[..n])?;
                rest -= n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(cannot(e)),
        }
    }
    Ok(wanted - rest)
}

/// The file is UTF-8 throughout and has no NUL near its start.
fn is_text(path: &Path, buffer: &mut [u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let (mut position, mut pending) = (0, 0);
    loop {
        // The first `pending` bytes are the start of a character that the last chunk cut.
        let n = match file.read(&mut buffer[pending..]) {
            Ok(0) => return Ok(pending == 0),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let window = NUL_WINDOW_BYTES.saturating_sub(position).min(n);
        if buffer[pending..pending + window].contains(&0) {
            return Ok(false);
        }
        position += n;
        let end = pending + n;
        pending = match std::str::from_utf8(&buffer[..end]) {
            Ok(_) => 0,
            Err(e) if e.error_len().is_none() => {
                buffer.copy_within(e.valid_up_to()..end, 0);
                end - e.valid_up_to()
            }
            Err(_) => return Ok(false),
        };
    }
}

pub(super) fn mega_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..100_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// Thousands set apart by commas.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}
