//! A prefix of a bucket in an S3-compatible store.
//!
//! ```text
//!   step-<n>/shard-...safetensors           appears whole when its upload completes; one that fails or is dropped is aborted
//!   step-<n>/shard-...safetensors.dropped   an empty marker: this shard is being dropped, and who publishes does not count it
//!   step-<n>/manifest.json                  a conditional put: of several writers one does it
//!   step-<n>/manifest.json.<stamp>.damaged  was manifest.json until the checkpoint was set aside; its shards stay where they are
//! ```
//!
//! Nothing is renamed there.
//!
//! T-6 between who publishes and who drops: one puts the manifest and then looks for markers, the other puts a marker and then looks for a
//! manifest. The store is consistent, so at least one of them sees the other: a shard is deleted only where no manifest can be seen, and a
//! manifest stays only where no shard of it is being dropped. A put that was given up may still be carried out later: a manifest that comes
//! so finds no digest of its own, which was dropped with the shards, and whoever reads it takes it for damaged.
//!
//! A store that takes no conditional puts is refused before anything is written: two jobs could have one folder (T-10).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use toroid_torus::manifest::MANIFEST_NAME;
use toroid_torus::owner::{OwnerId, Stamp};

use super::{Aside, Objects, PIECE_BYTES, Shown, Target, cannot_change, cannot_read};
use crate::checkpoint::CheckpointError;

/// Such requests of one reader on their way at a time.
const MAX_GETS: usize = 8;
/// Small requests on their way at a time.
const MAX_LOOKS: usize = 32;

const DROPPED: &str = ".dropped";
const DAMAGED: &str = ".damaged";

/// Why a request failed for good, in words that name the object.
pub(in crate::checkpoint) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What is asked of a store. Names are below its prefix. Whatever can be tried again has been when it fails.
pub(in crate::checkpoint) trait Service: Debug + Send + Sync {
    fn root(&self) -> &str;

    fn display(&self, name: &str) -> String;

    /// `None`: there is no such object.
    fn size(&self, name: &str) -> Result<Option<u64>, Failed>;

    fn get(&self, name: &str) -> Result<Option<Bytes>, Failed>;

    /// `None`: there is no such object.
    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, Failed>;

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failed>;

    /// Whether [`Service::put_new`] can be relied on; the store is asked once.
    fn heeds_conditions(&self) -> Result<bool, Failed>;

    /// Writes an object unless somebody else has written one of this name; says whether it did.
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, Failed>;

    fn begin<'a>(&'a self, name: &str, total: u64) -> Result<Box<dyn Sending + 'a>, Failed>;

    /// Folders and files directly below a folder; an empty name is the prefix.
    fn list(&self, folder: &str) -> Result<Listed, Failed>;

    /// In any order. It is no error that there are none of some names.
    fn delete(&self, names: &[String]) -> Result<(), Failed>;
}

/// An upload; dropped before it is finished, it is aborted.
pub(in crate::checkpoint) trait Sending {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed>;

    fn finish(self: Box<Self>) -> Result<(), Failed>;
}

#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Listed {
    pub folders: Vec<String>,
    /// Name and bytes.
    pub files: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub(in crate::checkpoint) struct Bucket {
    service: Box<dyn Service>,
}

impl Bucket {
    pub fn new(service: Box<dyn Service>) -> Bucket {
        Bucket { service }
    }

    /// Of two objects of one name, written under a condition, the second is refused.
    fn check_conditions(&self) -> Result<(), CheckpointError> {
        let what = match self.service.heeds_conditions() {
            Ok(true) => return Ok(()),
            Ok(false) => "the store takes a second object of one name under `If-None-Match: *`, so two jobs could have one folder; use a store that \
                          heeds conditions of writes, or a folder"
                .into(),
            Err(error) => return Err(cannot_read(self.root().into(), error)),
        };
        Err(CheckpointError::Root { root: self.root().into(), what })
    }

    /// Exactly the bytes `range`, by one request.
    fn get(&self, name: &str, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        match self.service.get_range(name, range.clone()) {
            Ok(Some(bytes)) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            Ok(Some(bytes)) => Err(cannot_read(self.display(name), format!("{} bytes at {range:?}", bytes.len()))),
            Ok(None) => Err(CheckpointError::Missing { file: self.display(name) }),
            Err(e) => Err(cannot_read(self.display(name), e)),
        }
    }

    fn list(&self, folder: &str) -> Result<Listed, CheckpointError> {
        self.service.list(folder).map_err(|e| cannot_read(self.display(folder), e))
    }

    fn cannot_write(&self, name: &str, bytes: u64) -> impl FnOnce(Failed) -> CheckpointError + use<> {
        let file = self.display(name);
        move |cause| CheckpointError::Write { file, bytes, cause }
    }

    fn delete_names(&self, folder: &str, names: &[String]) -> Result<(), CheckpointError> {
        if names.is_empty() {
            return Ok(());
        }
        self.service.delete(names).map_err(|e| cannot_change("delete files in", self.display(folder), e))
    }
}

impl Objects for Bucket {
    fn root(&self) -> &str {
        self.service.root()
    }

    fn display(&self, name: &str) -> String {
        self.service.display(name)
    }

    fn size(&self, name: &str) -> Result<Option<u64>, CheckpointError> {
        self.service.size(name).map_err(|e| cannot_read(self.display(name), e))
    }

    fn with_object(&self, folders: Vec<String>, name: &str) -> Result<Vec<String>, CheckpointError> {
        let sizes = at_once(&folders, MAX_LOOKS, |folder| self.size(&format!("{folder}/{name}")))?;
        Ok(folders.into_iter().zip(sizes).filter_map(|(folder, size)| size.map(|_| folder)).collect())
    }

    fn sizes_in(&self, folder: &str, stamp: &Stamp, files: &[&str]) -> Result<Vec<Option<u64>>, CheckpointError> {
        let found = self.list(folder)?.files;
        let is_damaged = found.contains_key(&damaged_name(stamp));
        let is_gone = |file: &str| is_damaged || found.contains_key(&format!("{file}{DROPPED}"));
        Ok(files.iter().map(|file| found.get(*file).copied().filter(|_| !is_gone(file))).collect())
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        self.service.get(name).map_err(|e| cannot_read(self.display(name), e))
    }

    fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if range.end - range.start <= PIECE_BYTES {
            return self.get(name, range);
        }
        let mut whole = Vec::with_capacity((range.end - range.start) as usize);
        self.for_each_piece(name, range, &mut |bytes| {
            whole.extend_from_slice(&bytes);
            Ok(())
        })?;
        Ok(whole.into())
    }

    /// Several are on their way while one is looked at.
    fn for_each_piece(&self, name: &str, range: Range<u64>, f: &mut Shown<'_>) -> Result<(), CheckpointError> {
        let starts = range.clone().step_by(PIECE_BYTES as usize);
        let pieces: Vec<Range<u64>> = starts.map(|start| start..range.end.min(start + PIECE_BYTES)).collect();
        if let [piece] = &pieces[..] {
            return f(self.get(name, piece.clone())?);
        }
        let num_readers = pieces.len().min(MAX_GETS);
        std::thread::scope(|scope| {
            // Each reader has every so-manieth piece, and holds it until it is wanted.
            let read = |reader: usize| {
                let (done, wanted) = mpsc::sync_channel(0);
                let pieces = pieces.iter().skip(reader).step_by(num_readers);
                scope.spawn(move || {
                    for piece in pieces {
                        if done.send(self.get(name, piece.clone())).is_err() {
                            return;
                        }
                    }
                });
                wanted
            };
            let readers: Vec<_> = (0..num_readers).map(read).collect();
            for index in 0..pieces.len() {
                let piece = readers[index % num_readers].recv();
                f(piece.expect("a reader ends when it has sent all its pieces, and does not panic")?)?;
            }
            Ok(())
        })
    }

    fn begin<'a>(&'a self, name: &str, _: &Stamp, total: u64) -> Result<Box<dyn Target + 'a>, CheckpointError> {
        // It is written anew after it was dropped.
        self.delete_names(name, &[format!("{name}{DROPPED}")])?;
        let sending = self.service.begin(name, total).map_err(self.cannot_write(name, total))?;
        Ok(Box::new(Writing { to: self, name: name.into(), total, sending }))
    }

    fn write(&self, name: &str, _: &Stamp, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.service.put(name, Bytes::copy_from_slice(bytes)).map_err(self.cannot_write(name, bytes.len() as u64))
    }

    fn write_new(&self, name: &str, _: &Stamp, bytes: &[u8]) -> Result<bool, CheckpointError> {
        self.check_conditions()?;
        self.service.put_new(name, Bytes::copy_from_slice(bytes)).map_err(self.cannot_write(name, bytes.len() as u64))
    }

    fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        Ok(self.list("")?.folders)
    }

    fn names_in(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        Ok(self.list(folder)?.files.into_keys().collect())
    }

    fn delete(&self, name: &str) -> Result<(), CheckpointError> {
        self.service.delete(&[name.to_string()]).map_err(|e| cannot_change("delete", self.display(name), e))
    }

    fn delete_all(&self, folder: &str, files: &[String]) -> Result<(), CheckpointError> {
        let names: Vec<String> = files.iter().map(|file| format!("{folder}/{file}")).collect();
        self.delete_names(folder, &names)
    }

    /// There is none that is empty.
    fn delete_empty_folder(&self, folder: &str) -> Result<bool, CheckpointError> {
        let left = self.list(folder)?;
        Ok(left.files.is_empty() && left.folders.is_empty())
    }

    fn put_aside(&self, folder: &str, file: &str, _: &Stamp) -> Result<Option<Aside>, CheckpointError> {
        let name = format!("{folder}/{file}");
        if self.size(&name)?.is_none() {
            return Ok(None);
        }
        let by = format!("{file}{DROPPED}");
        let put = self.service.put(&format!("{folder}/{by}"), Bytes::new());
        put.map_err(|e| cannot_change("mark", self.display(&name), e))?;
        Ok(Some(Aside { file: file.into(), by }))
    }

    fn put_back(&self, folder: &str, aside: &Aside) -> Result<(), CheckpointError> {
        self.delete(&format!("{folder}/{}", aside.by))
    }

    fn delete_aside(&self, folder: &str, asides: &[Aside]) -> Result<(), CheckpointError> {
        let names = |of: fn(&Aside) -> &str| asides.iter().map(|aside| format!("{folder}/{}", of(aside))).collect();
        let (files, markers): (Vec<String>, Vec<String>) = (names(|aside| &aside.file), names(|aside| &aside.by));
        // As long as a file is there, so is its marker.
        self.delete_names(folder, &files)?;
        self.delete_names(folder, &markers)
    }

    /// The manifest gets another name: shards are too large to be copied.
    fn set_aside(&self, folder: &str, owner: &OwnerId) -> Result<String, CheckpointError> {
        let name = format!("{folder}/{MANIFEST_NAME}");
        let json = self.read(&name)?.ok_or_else(|| {
            let cause = std::io::Error::from(std::io::ErrorKind::NotFound);
            cannot_change("rename", self.display(&name), cause)
        })?;
        // It may be damaged itself, and say nothing of its epoch.
        let said = serde_json::from_slice::<serde_json::Value>(&json).ok();
        let epoch = said.as_ref().and_then(|manifest| manifest.get("epoch")?.as_u64()).unwrap_or(0);
        let kept = format!("{folder}/{}", damaged_name(&Stamp { epoch, owner: *owner }));
        let bytes = json.len() as u64;
        self.service.put(&kept, json).map_err(self.cannot_write(&kept, bytes))?;
        self.delete(&name)?;
        Ok(self.display(&kept))
    }

    fn is_set_aside(&self, folder: &str) -> Result<bool, CheckpointError> {
        let names = self.list(folder)?.files;
        let is_damaged = |name: &String| name.starts_with(MANIFEST_NAME) && name.ends_with(DAMAGED);
        Ok(!names.contains_key(MANIFEST_NAME) && names.keys().any(is_damaged))
    }
}

/// What becomes of the manifest that `stamp` has published.
fn damaged_name(stamp: &Stamp) -> String {
    format!("{MANIFEST_NAME}.{stamp}{DAMAGED}")
}

/// A shard on its way.
struct Writing<'a> {
    to: &'a Bucket,
    name: String,
    total: u64,
    sending: Box<dyn Sending + 'a>,
}

impl Target for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.sending.write(bytes).map_err(self.to.cannot_write(&self.name, self.total))
    }

    fn finish(self: Box<Self>) -> Result<(), CheckpointError> {
        self.sending.finish().map_err(self.to.cannot_write(&self.name, self.total))
    }
}

/// Does this with each item, at most so many at a time; what came of them in their order, or the first error.
fn at_once<T: Sync, R: Send>(
    items: &[T],
    max: usize,
    each: impl Fn(&T) -> Result<R, CheckpointError> + Sync,
) -> Result<Vec<R>, CheckpointError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
        {
            let result = each(item);
            let is_last = result.is_err();
            done.push((at, result));
            if is_last {
                // Nobody begins another one.
                next.store(items.len(), Ordering::Relaxed);
            }
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..max.min(items.len())).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for thread in threads {
            // What panicked there panics here.
            done.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
