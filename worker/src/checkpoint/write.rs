//! Writing a shard, and publishing a step once all its shards are there.

use std::ops::Range;

use toroid_torus::manifest::{Entry, KINDS, Kind, MANIFEST_NAME, Manifest, ShardFile, entries_of};
use toroid_torus::partition::Partition;

use super::encode::{bytes_of, lay_out};
use super::{CheckpointError, DIGEST_NAME, Storage, digest_line, name_in};

/// What a holder has of its shard.
#[derive(Debug, Clone, Copy)]
pub struct ShardState<'a> {
    /// Master weights, (shard.len()).
    pub param: &'a [f32],
    /// First Adam moment, (shard.len()).
    pub exp_avg: &'a [f32],
    /// Second Adam moment, (shard.len()).
    pub exp_avg_sq: &'a [f32],
}

impl<'a> ShardState<'a> {
    fn of(&self, kind: Kind) -> &'a [f32] {
        match kind {
            Kind::Param => self.param,
            Kind::Exp => self.exp_avg,
            Kind::ExpSq => self.exp_avg_sq,
        }
    }
}

impl Storage {
    /// Writes the shard of `rank`, the flat range `shard` of `partition`; durable when it returns. Slices that a place
    /// of a lower tp_rank holds too, and padding, are left out.
    ///
    /// On a step that is complete already it writes nothing: it returns what the manifest says of the same bytes, or
    /// [`CheckpointError::Exists`] where they differ.
    pub fn write_shard(
        &self,
        step: u64,
        rank: usize,
        partition: &Partition,
        shard: Range<usize>,
        state: ShardState<'_>,
    ) -> Result<ShardFile, CheckpointError> {
        assert!(shard.end <= partition.padded_len, "the shard {shard:?} ends beyond {}", partition.padded_len);
        for kind in KINDS {
            assert_eq!(state.of(kind).len(), shard.len(), "{} does not have the length of the shard", kind.name());
        }
        let mut entries = entries_of(partition, shard.clone());
        let (header, bytes) = lay_out(step, rank, &mut entries);
        let data: Vec<&[u8]> = entries.iter().map(|e| data_of(e, partition, &shard, &state)).collect();
        for (entry, data) in entries.iter_mut().zip(&data) {
            entry.digest = blake3::hash(data).to_hex().to_string();
        }
        let file = ShardFile::name_of(rank);
        if let Some(written) = self.written_before(step, rank, bytes, &entries)? {
            return Ok(written);
        }
        let mut upload = self.objects.upload(&name_in(step, &file), bytes)?;
        upload.write(&header)?;
        for data in data {
            upload.write(data)?;
        }
        // It may have become complete meanwhile, by others who took this place over while this one was stopped.
        if let Some(written) = self.written_before(step, rank, bytes, &entries)? {
            return Ok(written);
        }
        let digest = upload.finish()?.to_hex().to_string();
        Ok(ShardFile { file, rank, bytes, digest, entries })
    }

    /// What the manifest of a complete step says of this shard; an error where it is another.
    fn written_before(
        &self,
        step: u64,
        rank: usize,
        bytes: u64,
        entries: &[Entry],
    ) -> Result<Option<ShardFile>, CheckpointError> {
        let Some(manifest) = self.find_manifest(step)? else { return Ok(None) };
        let written = manifest.files.into_iter().find(|f| f.rank == rank && f.bytes == bytes && f.entries == entries);
        written.map(Some).ok_or_else(|| CheckpointError::Exists { step, root: self.root.clone() })
    }

    /// Makes the step visible: checks that the manifest is complete and every file there with its size, then writes the
    /// manifest last (T-6). Returns the bytes of the checkpoint. Publishing the same files again changes nothing.
    pub fn publish(&self, manifest: &Manifest) -> Result<u64, CheckpointError> {
        let step = manifest.step;
        let name = name_in(step, MANIFEST_NAME);
        manifest.check().map_err(|cause| CheckpointError::Manifest { file: self.objects.display(&name), cause })?;
        self.check_files(manifest)?;
        if let Some(visible) = self.find_manifest(step)? {
            // A coordinator that died before it heard of the first time asks again, in a later epoch.
            if (Manifest { epoch: manifest.epoch, ..visible }) == *manifest {
                return Ok(manifest.bytes());
            }
            return Err(CheckpointError::Exists { step, root: self.root.clone() });
        }
        let json = manifest.to_json();
        self.objects.write(&name_in(step, DIGEST_NAME), digest_line(json.as_bytes()).as_bytes())?;
        self.objects.write(&name, json.as_bytes())?;
        // From now on no older epoch's order removes the step. One that was carried out at this very moment may have.
        if let Err(error) = self.check_files(manifest) {
            self.objects.delete(&name)?;
            return Err(error);
        }
        Ok(manifest.bytes())
    }

    /// Every file is there with its size.
    fn check_files(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let step = manifest.step;
        for file in &manifest.files {
            let found = self.objects.size(&name_in(step, &file.file))?;
            if found != Some(file.bytes) {
                return Err(CheckpointError::Unpublishable {
                    step,
                    file: self.objects.display(&name_in(step, &file.file)),
                    expected: file.bytes,
                    found: found.map_or_else(|| "no file".into(), |bytes| format!("{bytes} bytes")),
                });
            }
        }
        Ok(())
    }
}

/// The bytes of `entry` within the state of `shard`.
fn data_of<'a>(entry: &Entry, partition: &Partition, shard: &Range<usize>, state: &ShardState<'a>) -> &'a [u8] {
    let slice = partition.slice(&entry.tensor).expect("the entry was cut from this partition");
    let start = slice.offset + entry.range.start - shard.start;
    bytes_of(&state.of(entry.kind)[start..start + entry.range.len()])
}
