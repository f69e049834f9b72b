//! Where checkpoints lie: the files of all jobs' folders, durable at once, and the errors of a full disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use toroid_torus::manifest::{MANIFEST_NAME, Manifest};
use toroid_worker::system::Folder;

use crate::network::{Micros, Pid};
use crate::played::stage;

#[derive(Debug, Default)]
pub struct Disk {
    /// By whole path.
    files: BTreeMap<String, Vec<u8>>,
    /// Until when the writes of a worker fail.
    pub full: BTreeMap<Pid, Micros>,
    /// All that ever were full.
    pub were_full: BTreeSet<Pid>,
    /// Manifests that can be seen since the event loop looked last: folder and step.
    pub published: Vec<(String, u64)>,
    /// Checkpoints of which a file rotted: folder and step.
    pub damaged: BTreeSet<(String, u64)>,
    /// A manifest that was replaced by another, or whose files went before it.
    pub spoilt: Option<String>,
    parsed: RefCell<BTreeMap<[u8; 32], Rc<Manifest>>>,
    /// Files that are not ours.
    pub strangers: BTreeMap<String, Vec<u8>>,
}

fn path_of(root: &str, step: u64, file: &str) -> String {
    format!("{root}/{}/{file}", Manifest::folder(step))
}

/// What [`path_of`] was made of; `None` for another path.
fn parts_of(path: &str) -> Option<(&str, u64, &str)> {
    let (folder, name) = path.rsplit_once('/')?;
    let (root, step) = folder.rsplit_once("/step-")?;
    Some((root, step.parse().ok()?, name))
}

impl Disk {
    pub fn is_full(&self, pid: Pid, now: Micros) -> bool {
        self.full.get(&pid).is_some_and(|until| now < *until)
    }

    pub fn read(&self, root: &str, step: u64, file: &str) -> Option<&[u8]> {
        self.files.get(&path_of(root, step, file)).map(Vec::as_slice)
    }

    pub fn has_manifest(&self, root: &str, step: u64) -> bool {
        self.read(root, step, MANIFEST_NAME).is_some()
    }

    /// Parsed once, as long as the file is the same.
    pub fn manifest(&self, root: &str, step: u64) -> Option<Rc<Manifest>> {
        let json = self.read(root, step, MANIFEST_NAME)?;
        let key = blake3::hash(json).into();
        if let Some(known) = self.parsed.borrow().get(&key) {
            return Some(Rc::clone(known));
        }
        let parsed = Rc::new(Manifest::parse(std::str::from_utf8(json).ok()?).ok()?);
        self.parsed.borrow_mut().insert(key, Rc::clone(&parsed));
        Some(parsed)
    }

    /// A file rots that the checkpoint needs.
    pub fn damage(&mut self, root: &str, step: u64, rank: usize) {
        let manifest = self.manifest(root, step);
        let Some(file) = manifest.as_ref().and_then(|m| m.files.iter().find(|f| f.rank == rank)) else { return };
        if let Some(bytes) = self.files.get_mut(&path_of(root, step, &file.file)) {
            bytes.iter_mut().rev().take(8).for_each(|byte| *byte = !*byte);
            self.damaged.insert((root.to_string(), step));
        }
    }

    /// Another job, or a user, keeps a file in the folder of a step.
    pub fn put_stranger(&mut self, root: &str, step: u64, name: &str) {
        let (path, bytes) = (path_of(root, step, name), name.as_bytes().to_vec());
        self.strangers.insert(path.clone(), bytes.clone());
        self.files.insert(path, bytes);
    }

    /// One that is gone, or another.
    pub fn missing_stranger(&self) -> Option<&str> {
        let is_gone = |(path, bytes): &(&String, &Vec<u8>)| self.files.get(*path) != Some(*bytes);
        self.strangers.iter().find(is_gone).map(|(path, _)| path.as_str())
    }

    fn put(&mut self, path: String, bytes: Vec<u8>) {
        if let Some((root, step, MANIFEST_NAME)) = parts_of(&path) {
            self.published.push((root.to_string(), step));
            if self.files.get(&path).is_some_and(|before| *before != bytes) {
                self.spoilt = Some(format!("{path} is replaced by another"));
            }
        }
        self.files.insert(path, bytes);
    }

    fn take(&mut self, path: &str) -> bool {
        if let Some((root, step, name)) = parts_of(path)
            && self.manifest(root, step).is_some_and(|manifest| manifest.files.iter().any(|file| file.file == name))
        {
            self.spoilt = Some(format!("{path} is removed and can be seen in its manifest"));
        }
        self.files.remove(path).is_some()
    }
}

/// A folder of checkpoints, as the worker sees it that has the turn.
pub struct PlayedFolder {
    root: String,
}

impl PlayedFolder {
    pub fn new(root: &str) -> PlayedFolder {
        PlayedFolder { root: root.trim_end_matches('/').into() }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn call<T>(&self, writes: bool, f: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        let stage = stage();
        stage.disk_call(writes)?;
        Ok(stage.with(|env, _| f(&mut env.disk)))
    }
}

impl Folder for PlayedFolder {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.call(false, |disk| disk.files.get(&self.path(name)).cloned())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call(true, |disk| disk.put(self.path(name), bytes.to_vec()))
    }

    fn write_new(&self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        self.call(true, |disk| {
            let is_new = !disk.files.contains_key(&self.path(name));
            if is_new {
                disk.put(self.path(name), bytes.to_vec());
            }
            is_new
        })
    }

    fn remove(&self, name: &str) -> io::Result<bool> {
        self.call(false, |disk| disk.take(&self.path(name)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<bool> {
        self.call(false, |disk| {
            let (from, to) = (self.path(from), self.path(to));
            let is_it = |path: &String| **path == from || path.starts_with(&format!("{from}/"));
            let paths: Vec<String> = disk.files.keys().filter(|path| is_it(path)).cloned().collect();
            for path in &paths {
                let bytes = disk.files.remove(path).expect("listed above");
                let renamed = format!("{to}{}", &path[from.len()..]);
                if let Some(stranger) = disk.strangers.remove(path) {
                    disk.strangers.insert(renamed.clone(), stranger);
                }
                disk.put(renamed, bytes);
            }
            !paths.is_empty()
        })
    }

    fn names(&self, below: &str) -> io::Result<Vec<String>> {
        self.call(false, |disk| {
            let root = self.path("");
            let start = self.path(below);
            let found = disk.files.range(start.clone()..).take_while(|(path, _)| path.starts_with(&start));
            found.map(|(path, _)| path[root.len()..].to_string()).collect()
        })
    }
}
