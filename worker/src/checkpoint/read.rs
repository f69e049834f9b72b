//! Reading a checkpoint under any shape, and exporting whole tensors.
//!
//! What is asked for and what an entry holds are both lists of [`Run`]s over the same tensor, ordered by their place in
//! it; a merge of the two says what to copy. An entry of which anything is needed is read whole, since its digest
//! covers all of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use toroid_hf::{Dtype, ExportError, Options, Written};
use toroid_torus::manifest::{Entry, KINDS, Kind, Manifest, ManifestError, ShardFile};
use toroid_torus::partition::{LocalSlice, Partition, Slice};

use super::encode::{byte_range, bytes_of, copy_values, header};
use super::exported::{Exported, notes};
use super::objects::Objects;
use super::{CheckpointError, Storage, name_in};

/// Where a shard's state is loaded to.
#[derive(Debug)]
pub struct ShardStateMut<'a> {
    /// Master weights, (range.len()).
    pub param: &'a mut [f32],
    /// First Adam moment, (range.len()).
    pub exp_avg: &'a mut [f32],
    /// Second Adam moment, (range.len()).
    pub exp_avg_sq: &'a mut [f32],
}

impl ShardStateMut<'_> {
    fn of(&mut self, kind: Kind) -> &mut [f32] {
        match kind {
            Kind::Param => self.param,
            Kind::Exp => self.exp_avg,
            Kind::ExpSq => self.exp_avg_sq,
        }
    }
}

impl Storage {
    /// Loads the flat range `range` of `partition`, which may be of another shape than the checkpoint's. Only the
    /// entries that cover it are read, each is checked against its digest; padding beyond `partition.len` becomes zero.
    /// After an error the state is undefined.
    pub fn load(
        &self,
        manifest: &Manifest,
        partition: &Partition,
        range: Range<usize>,
        mut state: ShardStateMut<'_>,
    ) -> Result<(), CheckpointError> {
        assert!(range.end <= partition.padded_len, "the range {range:?} ends beyond {}", partition.padded_len);
        let source = Source::new(&*self.objects, manifest);
        KINDS.into_iter().try_for_each(|kind| source.fill_range(partition, range.clone(), kind, state.of(kind)))
    }

    /// The master weights of a whole partition, `(padded_len)`; as [`Storage::load`].
    pub fn load_params(&self, manifest: &Manifest, partition: &Partition) -> Result<Vec<f32>, CheckpointError> {
        let mut params = vec![0.0; partition.padded_len];
        let source = Source::new(&*self.objects, manifest);
        source.fill_range(partition, 0..partition.padded_len, Kind::Param, &mut params)?;
        Ok(params)
    }
}

/// See [`Storage::export`].
pub(super) fn export(objects: &dyn Objects, manifest: &Manifest, path: &Path) -> Result<u64, CheckpointError> {
    let tensors = manifest.job.model.tensors();
    let metadata: Vec<_> = std::iter::once(("format", "pt".to_string())).chain(notes(manifest)).collect();
    let header = header(&metadata, tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])));
    let bytes = header.len() as u64 + tensors.iter().map(|t| 4 * t.num_elements() as u64).sum::<u64>();
    let mut exported = Exported::create(path, bytes)?;
    exported.write(&header)?;
    let source = Source::new(objects, manifest);
    let mut values = Vec::new();
    for tensor in &tensors {
        values.resize(tensor.num_elements(), 0.0);
        source.fill_whole(&tensor.name, &mut values)?;
        exported.write(bytes_of(&values))?;
    }
    exported.finish()?;
    Ok(bytes)
}

/// See [`Storage::export_hf`].
pub(super) fn export_hf(
    objects: &dyn Objects,
    manifest: &Manifest,
    path: &Path,
    dtype: Dtype,
    shard_bytes: u64,
    carried: Vec<(String, Vec<u8>)>,
) -> Result<Written, ExportError<CheckpointError>> {
    let notes = notes(manifest);
    let source = Source::new(objects, manifest);
    let options = Options { dtype, shard_bytes, has_byte_tokens: manifest.tokenizer.is_none(), carried, notes };
    toroid_hf::export(path, &manifest.job.model, &options, |tensor, values| source.fill_whole(&tensor.name, values))
}

/// The entries of a checkpoint by tensor.
struct Source<'a> {
    objects: &'a dyn Objects,
    manifest: &'a Manifest,
    entries: BTreeMap<(&'a str, Kind), Vec<(&'a ShardFile, &'a Entry)>>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl<'a> Source<'a> {
    fn new(objects: &'a dyn Objects, manifest: &'a Manifest) -> Source<'a> {
        let mut entries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for file in &manifest.files {
            for entry in &file.entries {
                entries.entry((entry.tensor.as_str(), entry.kind)).or_default().push((file, entry));
            }
        }
        let shapes = manifest.job.model.tensors().into_iter().map(|t| (t.name, t.shape)).collect();
        Source { objects, manifest, entries, shapes }
    }

    fn check_shape(&self, slice: &LocalSlice) -> Result<(), CheckpointError> {
        let found = self.shapes.get(&slice.tensor);
        if found == Some(&slice.global_shape) {
            return Ok(());
        }
        Err(CheckpointError::Model {
            tensor: slice.tensor.clone(),
            expected: format!("{:?}", slice.global_shape),
            found: found.map_or_else(|| "of a tensor that is not there".into(), |shape| format!("{shape:?}")),
        })
    }

    /// Fills `out` with the flat range `range` of `partition`.
    fn fill_range(
        &self,
        partition: &Partition,
        range: Range<usize>,
        kind: Kind,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        assert_eq!(out.len(), range.len(), "{} does not have the length of the range", kind.name());
        for (slice, part) in partition.cut(range.clone()) {
            self.check_shape(slice)?;
            let start = slice.offset + part.start - range.start;
            let runs = clip(&runs_of(&slice.slice, &slice.global_shape), &part);
            self.fill(&slice.tensor, kind, &runs, &mut out[start..start + part.len()])?;
        }
        out[partition.len.clamp(range.start, range.end) - range.start..].fill(0.0);
        Ok(())
    }

    /// Fills `out` with all master weights of a tensor.
    fn fill_whole(&self, tensor: &str, out: &mut [f32]) -> Result<(), CheckpointError> {
        let whole = [Run { local: 0, global: 0, len: out.len() }];
        self.fill(tensor, Kind::Param, &whole, out)
    }

    /// Fills `out` with the elements `wanted` of a tensor.
    fn fill(&self, tensor: &str, kind: Kind, wanted: &[Run], out: &mut [f32]) -> Result<(), CheckpointError> {
        let mut filled = 0;
        for (file, entry) in self.entries.get(&(tensor, kind)).map_or(&[][..], Vec::as_slice) {
            let held = clip(&runs_of(&entry.slice, &entry.global_shape), &entry.range);
            let pieces = overlaps(&held, wanted);
            if pieces.is_empty() {
                continue;
            }
            let bytes = self.read(file, entry)?;
            for Piece { from, to, len } in pieces {
                copy_values(&bytes[4 * from..4 * (from + len)], &mut out[to..to + len]);
                filled += len;
            }
        }
        if filled == out.len() {
            return self.check_finite(tensor, kind, out);
        }
        let file = self.objects.display(&Manifest::folder(self.manifest.step));
        let (tensor, kind, expected) = (tensor.to_string(), kind.name(), out.len());
        Err(CheckpointError::Manifest {
            file,
            cause: ManifestError::Incomplete { tensor, kind, expected, found: filled },
        })
    }

    /// A digest says that the values are those that were written, not that they are of use.
    fn check_finite(&self, tensor: &str, kind: Kind, values: &[f32]) -> Result<(), CheckpointError> {
        // A second moment may have become too large for its type: its weights are not moved any more, which harms nobody.
        let bad = not_finite(values).filter(|(_, value)| kind == Kind::Param || value.is_nan());
        bad.map_or(Ok(()), |(_, value)| {
            let file = self.objects.display(&Manifest::folder(self.manifest.step));
            Err(CheckpointError::NotFinite { file, tensor: tensor.into(), kind: kind.name(), value })
        })
    }

    /// The bytes of an entry, checked against its digest.
    fn read(&self, file: &ShardFile, entry: &Entry) -> Result<Bytes, CheckpointError> {
        let name = name_in(self.manifest.step, &file.file);
        let damaged = |what: String| CheckpointError::Damaged {
            file: self.objects.display(&name),
            tensor: entry.tensor.clone(),
            kind: entry.kind.name(),
            what,
        };
        let range = byte_range(entry);
        let bytes = match self.objects.read_range(&name, range.clone()) {
            Ok(bytes) => bytes,
            Err(e @ CheckpointError::Missing { .. }) => return Err(e),
            // A file that is too short says so in the words of the store; what matters is which tensor it cuts.
            Err(e) => match self.objects.size(&name)? {
                Some(size) if size < range.end => {
                    return Err(damaged(format!("the file ends at byte {size}, the tensor's part at {}", range.end)));
                }
                _ => return Err(e),
            },
        };
        let found = blake3::hash(&bytes).to_hex();
        if found.as_str() != entry.digest {
            return Err(damaged(format!("bytes {range:?} have the digest {found}, expected {}", entry.digest)));
        }
        Ok(bytes)
    }
}

/// The first value that is no finite number, and where.
pub(super) fn not_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().copied().enumerate().find(|(_, value)| !value.is_finite())
}

/// `len` elements that are contiguous both in a tensor, from `global` on, and in a buffer, from `local` on.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    local: usize,
    global: usize,
    len: usize,
}

/// Elements `from..from + len` of one buffer that belong at `to` in another.
#[derive(Debug, PartialEq)]
struct Piece {
    from: usize,
    to: usize,
    len: usize,
}

fn runs_of(slice: &Slice, global_shape: &[usize]) -> Vec<Run> {
    slice.runs(global_shape).into_iter().map(|(local, global, len)| Run { local, global, len }).collect()
}

/// What lies in `range` of the buffer, which becomes the start of a buffer of its own.
fn clip(runs: &[Run], range: &Range<usize>) -> Vec<Run> {
    let inside = runs.iter().filter_map(|run| {
        let (start, end) = (run.local.max(range.start), (run.local + run.len).min(range.end));
        let global = run.global + start.saturating_sub(run.local);
        (start < end).then(|| Run { local: start - range.start, global, len: end - start })
    });
    inside.collect()
}

/// What `held` has of `wanted`. Both ascend in the tensor and have no element twice.
fn overlaps(held: &[Run], wanted: &[Run]) -> Vec<Piece> {
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while let (Some(h), Some(w)) = (held.get(i), wanted.get(j)) {
        let (start, end) = (h.global.max(w.global), (h.global + h.len).min(w.global + w.len));
        if start < end {
            out.push(Piece { from: h.local + start - h.global, to: w.local + start - w.global, len: end - start });
        }
        if h.global + h.len <= w.global + w.len { i += 1 } else { j += 1 }
    }
    out
}
