//! A folder of a simulation. A played folder is there as long as something is in it, and what is written is durable at once.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use toroid_torus::owner::{OwnerId, Stamp};

use super::folder::{cannot_write, damaged_name, free_name, staging_name};
use super::{Aside, Objects, Target, cannot_change, cannot_read};
use crate::checkpoint::CheckpointError;
use crate::system::Folder;

#[derive(Debug)]
pub(super) struct Played {
    root: String,
    folder: Arc<dyn Folder>,
}

impl Played {
    pub fn new(root: &str, folder: Arc<dyn Folder>) -> Played {
        Played { root: root.into(), folder }
    }

    /// Names below a folder, or all, which is left out of them.
    fn names_below(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let names = self.folder.names(&below).map_err(|e| cannot_read(self.display(folder), e))?;
        Ok(names.iter().filter_map(|n| n.strip_prefix(&below)).map(String::from).collect())
    }

    fn rename(&self, from: &str, to: &str) -> Result<bool, CheckpointError> {
        self.folder.rename(from, to).map_err(|e| cannot_change("rename", self.display(from), e))
    }
}

impl Objects for Played {
    fn root(&self) -> &str {
        &self.root
    }

    fn display(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn size(&self, name: &str) -> Result<Option<u64>, CheckpointError> {
        Ok(self.read(name)?.map(|bytes| bytes.len() as u64))
    }

    fn sizes_in(&self, folder: &str, _: &Stamp, files: &[&str]) -> Result<Vec<Option<u64>>, CheckpointError> {
        files.iter().map(|file| self.size(&format!("{folder}/{file}"))).collect()
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        let read = self.folder.read(name).map_err(|e| cannot_read(self.display(name), e))?;
        Ok(read.map(Bytes::from))
    }

    fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        let whole = self.read(name)?.ok_or_else(|| CheckpointError::Missing { file: self.display(name) })?;
        if range.end > whole.len() as u64 {
            return Err(cannot_read(self.display(name), format!("{} bytes, not {range:?}", whole.len())));
        }
        Ok(whole.slice(range.start as usize..range.end as usize))
    }

    fn begin<'a>(&'a self, name: &str, _: &Stamp, _: u64) -> Result<Box<dyn Target + 'a>, CheckpointError> {
        Ok(Box::new(Writing { to: self, name: name.into(), all: Vec::new() }))
    }

    fn write(&self, name: &str, _: &Stamp, bytes: &[u8]) -> Result<(), CheckpointError> {
        let written = self.folder.write(name, bytes);
        written.map_err(|e| cannot_write(self.display(name), bytes.len() as u64, e))
    }

    fn write_new(&self, name: &str, _: &Stamp, bytes: &[u8]) -> Result<bool, CheckpointError> {
        let written = self.folder.write_new(name, bytes);
        written.map_err(|e| cannot_write(self.display(name), bytes.len() as u64, e))
    }

    fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        let names = self.names_below("")?;
        let folders: BTreeSet<&str> = names.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        Ok(folders.into_iter().map(String::from).collect())
    }

    fn names_in(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        Ok(self.names_below(folder)?.into_iter().filter(|name| !name.contains('/')).collect())
    }

    fn delete(&self, name: &str) -> Result<(), CheckpointError> {
        let removed = self.folder.remove(name);
        removed.map(|_| ()).map_err(|e| cannot_change("delete", self.display(name), e))
    }

    fn delete_all(&self, folder: &str, files: &[String]) -> Result<(), CheckpointError> {
        files.iter().try_for_each(|file| self.delete(&format!("{folder}/{file}")))
    }

    fn delete_empty_folder(&self, folder: &str) -> Result<bool, CheckpointError> {
        Ok(self.names_below(folder)?.is_empty())
    }

    fn put_aside(&self, folder: &str, file: &str, stamp: &Stamp) -> Result<Option<Aside>, CheckpointError> {
        let by = staging_name(file, stamp);
        let is_there = self.rename(&format!("{folder}/{file}"), &format!("{folder}/{by}"))?;
        Ok(is_there.then(|| Aside { file: file.into(), by }))
    }

    fn put_back(&self, folder: &str, aside: &Aside) -> Result<(), CheckpointError> {
        self.rename(&format!("{folder}/{}", aside.by), &format!("{folder}/{}", aside.file)).map(|_| ())
    }

    fn delete_aside(&self, folder: &str, asides: &[Aside]) -> Result<(), CheckpointError> {
        asides.iter().try_for_each(|aside| self.delete(&format!("{folder}/{}", aside.by)))
    }

    fn set_aside(&self, folder: &str, _: &OwnerId) -> Result<String, CheckpointError> {
        let folders = self.folders()?;
        let to = free_name(&damaged_name(folder), |name| !folders.iter().any(|folder| folder == name));
        if self.rename(folder, &to)? {
            return Ok(self.display(&to));
        }
        Err(cannot_change("rename", self.display(folder), io::Error::from(io::ErrorKind::NotFound)))
    }

    fn is_set_aside(&self, folder: &str) -> Result<bool, CheckpointError> {
        Ok(super::folder::is_set_aside(&self.folders()?, folder))
    }
}

/// All that was written so far of an object.
struct Writing<'a> {
    to: &'a Played,
    name: String,
    all: Vec<u8>,
}

impl Target for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.all.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), CheckpointError> {
        let made = self.to.folder.write(&self.name, &self.all);
        made.map_err(|e| cannot_write(self.to.display(&self.name), self.all.len() as u64, e))
    }
}
