//! Writing a shard, and publishing a step once all its shards are there.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use toroid_torus::failpoint;
use toroid_torus::job::JobSpec;
use toroid_torus::manifest::{Entry, KINDS, Kind, MANIFEST_NAME, Manifest, ShardFile, Writer, entries_of};
use toroid_torus::owner::Stamp;
use toroid_torus::partition::Partition;

use super::encode::{bytes_of, lay_out};
use super::{CheckpointError, Owned, digest_line, digest_name, name_in};
use crate::device::Snapshot;

/// Elements that are hashed and written at once, 256 KiB: from the second-level cache of a core, where the first has left it.
const PIECE_ELEMENTS: usize = 64 << 10;

/// How much of a shard is written, for others to look at meanwhile.
#[derive(Debug, Default)]
pub struct Written {
    bytes: AtomicU64,
    total: AtomicU64,
}

impl Written {
    /// Bytes so far, and of the whole file; both 0 before it is begun.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn add(&self, bytes: &[u8]) {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// What a holder has of its shard.
pub struct ShardState<'a, S> {
    /// Master weights, (shard.len()).
    pub param: &'a S,
    /// First Adam moment, (shard.len()).
    pub exp_avg: &'a S,
    /// Second Adam moment, (shard.len()).
    pub exp_avg_sq: &'a S,
}

impl<'a, S: Snapshot> ShardState<'a, S> {
    fn of(&self, kind: Kind) -> &'a S {
        match kind {
            Kind::Param => self.param,
            Kind::Exp => self.exp_avg,
            Kind::ExpSq => self.exp_avg_sq,
        }
    }

    /// Shows the bytes of `entry` to `f`, piece by piece, and returns their digest. `shard` is the flat range of the state in `partition`.
    fn for_each_piece(
        &self,
        entry: &Entry,
        partition: &Partition,
        shard: &Range<usize>,
        mut f: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<String, CheckpointError> {
        let slice = partition.slice(&entry.tensor).expect("the entry was cut from this partition");
        let start = slice.offset + entry.range.start - shard.start;
        let (state, end) = (self.of(entry.kind), start + entry.range.len());
        let mut hasher = blake3::Hasher::new();
        for at in (start..end).step_by(PIECE_ELEMENTS) {
            state.with_host(at..end.min(at + PIECE_ELEMENTS), |values| {
                hasher.update(bytes_of(values));
                f(bytes_of(values))
            })?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

impl Owned {
    /// See [`Owned::write_shard_counted`].
    pub fn write_shard<S: Snapshot>(
        &self,
        step: u64,
        writer: Writer,
        partition: &Partition,
        shard: Range<usize>,
        state: ShardState<'_, S>,
    ) -> Result<ShardFile, CheckpointError> {
        self.write_shard_counted(step, writer, (partition, shard), state, &Written::default())
    }

    /// Writes the shard of a place, the flat range `shard` of `partition`; durable when it returns. Slices that a place of a lower tp_rank
    /// holds too, and padding, are left out.
    ///
    /// On a step that is complete already nothing is written where the manifest has the same bytes. Other bytes are those of another shape
    /// or of a state that was restored meanwhile: a later epoch writes them beside, and [`Owned::publish`] says what counts.
    /// [`CheckpointError::Exists`] where they are of the epoch that has published, or of an older one.
    pub fn write_shard_counted<S: Snapshot>(
        &self,
        step: u64,
        writer: Writer,
        (partition, shard): (&Partition, Range<usize>),
        state: ShardState<'_, S>,
        written: &Written,
    ) -> Result<ShardFile, CheckpointError> {
        assert!(shard.end <= partition.padded_len, "the shard {shard:?} ends beyond {}", partition.padded_len);
        for kind in KINDS {
            assert_eq!(state.of(kind).len(), shard.len(), "{} does not have the length of the shard", kind.name());
        }
        let mut entries = entries_of(partition, shard.clone());
        let (header, bytes) = lay_out(step, writer.rank, &mut entries);
        if let Some(manifest) = self.find_manifest(step)? {
            for entry in &mut entries {
                entry.digest = state.for_each_piece(entry, partition, &shard, |_| Ok(()))?;
            }
            if let Some(written) = self.written_before(manifest, writer, bytes, &entries)? {
                return Ok(written);
            }
        }
        let file = ShardFile::name_of(&writer);
        let mut upload = self.objects.upload(&name_in(step, &file), &writer.stamp(), bytes)?;
        written.begin(bytes);
        let mut write = |piece: &[u8]| upload.write(piece).map(|()| written.add(piece));
        write(&header)?;
        for entry in &mut entries {
            entry.digest = state.for_each_piece(entry, partition, &shard, &mut write)?;
        }
        // It may have become complete meanwhile, by others who took this place over while this one was stopped.
        if let Some(manifest) = self.find_manifest(step)?
            && let Some(written) = self.written_before(manifest, writer, bytes, &entries)?
        {
            return Ok(written);
        }
        upload.finish()?;
        Ok(ShardFile {
            file,
            rank: writer.rank,
            bytes,
            digest: String::new(),
            entries,
            kl_coef: None,
            reward_scale: None,
        })
    }

    /// What the manifest of a complete step says of this shard; `None` where it is to be written beside.
    fn written_before(
        &self,
        manifest: Manifest,
        writer: Writer,
        bytes: u64,
        entries: &[Entry],
    ) -> Result<Option<ShardFile>, CheckpointError> {
        let (epoch, is_same_split) = (manifest.epoch, manifest.shape.world() == writer.world);
        let is_same =
            |f: &ShardFile| is_same_split && (f.rank, f.bytes) == (writer.rank, bytes) && f.entries == entries;
        let written = manifest.files.into_iter().find(is_same);
        if written.is_none() && epoch >= writer.epoch {
            return Err(CheckpointError::Exists { step: manifest.step, root: self.root.clone() });
        }
        Ok(written)
    }

    /// Makes the step visible: checks that the manifest is complete and every file there with its size, then writes the manifest last
    /// (T-6). Returns the bytes of the checkpoint.
    ///
    /// A step that the job has published already, in this epoch or before, is done, whatever shape it had then: who had published it may
    /// have died before it could say so. Nothing is written over a manifest, however late a writer is (T-1).
    pub fn publish(&self, manifest: &Manifest) -> Result<u64, CheckpointError> {
        let step = manifest.step;
        let name = name_in(step, MANIFEST_NAME);
        self.check_owner()?;
        if let Some(visible) = self.find_manifest(step)?.filter(|_| !failpoint!(ReplaceManifest)) {
            return self.published_before(manifest, visible);
        }
        manifest.check().map_err(|cause| CheckpointError::Manifest { file: self.objects.display(&name), cause })?;
        self.check_files(manifest)?;
        self.make_visible(manifest)
    }

    /// The rest of [`Owned::publish`], in which somebody else may have published by now.
    pub(super) fn make_visible(&self, manifest: &Manifest) -> Result<u64, CheckpointError> {
        let step = manifest.step;
        let stamp = Stamp { epoch: manifest.epoch, owner: self.id() };
        let (name, digest) = (name_in(step, MANIFEST_NAME), name_in(step, &digest_name(&stamp)));
        let json = manifest.to_json();
        self.objects.write(&digest, &stamp, digest_line(json.as_bytes()).as_bytes())?;
        if failpoint!(ReplaceManifest) {
            self.objects.write(&name, &stamp, json.as_bytes())?;
        } else if !self.objects.write_new(&name, &stamp, json.as_bytes())? {
            let visible = self.manifest(step)?;
            if visible.epoch != manifest.epoch {
                self.objects.delete(&digest)?;
            }
            return self.published_before(manifest, visible);
        }
        // From now on no older epoch's order removes the step. One that was carried out at this very moment may have.
        if let Err(error) = self.check_files(manifest) {
            self.objects.delete(&name)?;
            return Err(error);
        }
        Ok(manifest.bytes())
    }

    /// The bytes of what can be seen, where it is the step of `manifest`.
    fn published_before(&self, manifest: &Manifest, visible: Manifest) -> Result<u64, CheckpointError> {
        self.check_files(&visible)?;
        let bytes = visible.bytes();
        // Of one epoch there is one list of files. Of an earlier one the state may have been split in another way.
        let is_earlier = visible.epoch < manifest.epoch;
        let files = if is_earlier { manifest.files.clone() } else { visible.files };
        let shape = if is_earlier { manifest.shape } else { visible.shape };
        let job = JobSpec { shape, ..visible.job };
        // An earlier version of Toroid did not say whose it is.
        let owner = visible.owner.or(manifest.owner);
        let same = Manifest { epoch: manifest.epoch.max(visible.epoch), shape, job, files, owner, ..visible };
        if same == *manifest {
            Ok(bytes)
        } else {
            Err(CheckpointError::Exists { step: manifest.step, root: self.root.clone() })
        }
    }

    /// Every file is there with its size.
    fn check_files(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let (step, folder) = (manifest.step, Manifest::folder(manifest.step));
        // An earlier version of Toroid did not say whose it is.
        let stamp = Stamp { epoch: manifest.epoch, owner: manifest.owner.unwrap_or(self.id()) };
        let names: Vec<&str> = manifest.files.iter().map(|file| file.file.as_str()).collect();
        let sizes = self.objects.sizes_in(&folder, &stamp, &names)?;
        match manifest.files.iter().zip(sizes).find(|(file, found)| *found != Some(file.bytes)) {
            None => Ok(()),
            Some((file, found)) => Err(CheckpointError::Unpublishable {
                step,
                file: self.objects.display(&name_in(step, &file.file)),
                expected: file.bytes,
                found: found.map_or_else(|| "no file".into(), |bytes| format!("{bytes} bytes")),
            }),
        }
    }
}
