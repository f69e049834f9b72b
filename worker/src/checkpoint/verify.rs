//! Looking at every byte of a checkpoint, and naming what is damaged by file and tensor.
//!
//! The manifest vouches for everything else, so it comes first: where it does not match its own digest, nothing it says
//! of the other files is believed. What a file's header must be follows from its entries; what lies between is told
//! apart by the digests of the entries.

use std::ops::Range;

use toroid_torus::manifest::{Entry, MANIFEST_NAME, Manifest, ShardFile};

use super::encode::{byte_range, shard_header};
use super::{CheckpointError, Storage, name_in};

/// One thing that is wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// File name within the step's folder.
    pub file: String,
    /// The tensor whose values are damaged; `None`: the fault is of the file.
    pub tensor: Option<String>,
    pub kind: FaultKind,
    /// What was expected and what was found.
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The file is not there.
    Missing,
    /// The file has another size.
    Size,
    /// The safetensors header is not what it was.
    Header,
    /// A tensor's values are not what they were.
    Data,
    /// The manifest is not what it was.
    Manifest,
    /// The system or the store cannot read it.
    Unreadable,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.tensor, self.kind) {
            (Some(tensor), _) => write!(f, "{}: tensor {tensor}: {}", self.file, self.what),
            (None, FaultKind::Header) => write!(f, "{}: header: {}", self.file, self.what),
            (None, _) => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl Storage {
    /// Reads the whole checkpoint and returns what is wrong with it; nothing: every byte is as it was written. An error
    /// means that there is no such checkpoint.
    pub fn verify(&self, step: u64) -> Result<Vec<Fault>, CheckpointError> {
        let whole = |kind, what| Fault { file: MANIFEST_NAME.into(), tensor: None, kind, what };
        let manifest = match self.find_manifest(step) {
            Ok(Some(manifest)) => manifest,
            Ok(None) if self.objects.names_in(&Manifest::folder(step))?.is_empty() => return Err(self.not_found(step)),
            Ok(None) => {
                let what = "it is missing: the checkpoint was never completed, or the file was deleted".into();
                return Ok(vec![whole(FaultKind::Missing, what)]);
            }
            Err(CheckpointError::ManifestDamaged { what, .. }) => return Ok(vec![whole(FaultKind::Manifest, what)]),
            Err(CheckpointError::Manifest { cause, .. }) => {
                return Ok(vec![whole(FaultKind::Manifest, cause.to_string())]);
            }
            Err(e) => return Ok(vec![whole(FaultKind::Unreadable, e.to_string())]),
        };
        Ok(manifest.files.iter().flat_map(|file| self.verify_file(step, file)).collect())
    }

    fn verify_file(&self, step: u64, file: &ShardFile) -> Vec<Fault> {
        let fault = |kind, what| Fault { file: file.file.clone(), tensor: None, kind, what };
        match self.objects.size(&name_in(step, &file.file)) {
            Ok(Some(size)) if size == file.bytes => {}
            Ok(Some(size)) => {
                let how = if size < file.bytes { "truncated" } else { "too long" };
                return vec![fault(FaultKind::Size, format!("{how}: {size} bytes, expected {}", file.bytes))];
            }
            Ok(None) => return vec![fault(FaultKind::Missing, format!("missing, expected {} bytes", file.bytes))],
            Err(e) => return vec![fault(FaultKind::Unreadable, e.to_string())],
        }
        match self.compare(step, file) {
            Ok(faults) => faults,
            Err(e) => vec![fault(FaultKind::Unreadable, e.to_string())],
        }
    }

    /// Header and entries against their digests, and the whole where it has one, in one pass over the file.
    fn compare(&self, step: u64, file: &ShardFile) -> Result<Vec<Fault>, CheckpointError> {
        let mut parts = parts_of(step, file).into_iter();
        let mut part = parts.next();
        let (mut of_part, mut of_file) = (blake3::Hasher::new(), blake3::Hasher::new());
        let mut faults = Vec::new();
        let mut position = 0;
        self.objects.for_each_piece(&name_in(step, &file.file), 0..file.bytes, &mut |chunk| {
            if !file.digest.is_empty() {
                of_file.update(&chunk);
            }
            let start = position;
            let end = start + chunk.len() as u64;
            while let Some(p) = part.as_ref().filter(|_| position < end) {
                let upto = p.bytes.end.min(end);
                of_part.update(&chunk[(position - start) as usize..(upto - start) as usize]);
                position = upto;
                if upto == p.bytes.end {
                    faults.extend(p.fault(file, &of_part.finalize().to_hex()));
                    of_part.reset();
                    part = parts.next();
                }
            }
            Ok(())
        })?;
        let found = of_file.finalize().to_hex();
        if faults.is_empty() && !file.digest.is_empty() && found.as_str() != file.digest {
            let what = format!("the file has the digest {found}, expected {}; its entries match theirs", file.digest);
            faults.push(Fault { file: file.file.clone(), tensor: None, kind: FaultKind::Manifest, what });
        }
        Ok(faults)
    }
}

/// The header or an entry: bytes of a file that have a digest of their own.
struct Part<'a> {
    /// `None`: the header.
    entry: Option<&'a Entry>,
    bytes: Range<u64>,
    digest: String,
}

/// The parts of a file, which follow one another without gaps (`Manifest::check`).
fn parts_of(step: u64, file: &ShardFile) -> Vec<Part<'_>> {
    let header = blake3::hash(&shard_header(step, file.rank, &file.entries)).to_hex().to_string();
    let header = Part { entry: None, bytes: 0..file.header_bytes(), digest: header };
    let entries = file.entries.iter();
    let entries = entries.map(|e| Part { entry: Some(e), bytes: byte_range(e), digest: e.digest.clone() });
    std::iter::once(header).chain(entries).collect()
}

impl Part<'_> {
    fn fault(&self, file: &ShardFile, found: &str) -> Option<Fault> {
        if found == self.digest {
            return None;
        }
        let (kind, name) = self.entry.map_or((FaultKind::Header, "it"), |e| (FaultKind::Data, &e.name));
        let what = format!("{name} at bytes {:?} has the digest {found}, expected {}", self.bytes, self.digest);
        Some(Fault { file: file.file.clone(), tensor: self.entry.map(|e| e.tensor.clone()), kind, what })
    }
}
