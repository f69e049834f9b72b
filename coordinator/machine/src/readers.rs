//! Who could not read which checkpoint (T-11).
//!
//! A worker that cannot read a checkpoint is itself to blame until a second worker cannot either: one on another host, if there is another
//! host. While there are workers that have not tried yet, [`MAX_READERS`] have to fail before the checkpoint is blamed. If any worker has read
//! the manifest, a worker that does not find it is always to blame.

use std::collections::{BTreeMap, BTreeSet};

use toroid_torus::ids::Step;

use super::pool::Pool;

/// So many workers that could not read a checkpoint are enough, whoever else is there.
const MAX_READERS: usize = 4;

/// The workers that could not read a checkpoint of a job, by its step.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    by_step: BTreeMap<Step, Failed>,
}

#[derive(Debug, Default)]
struct Failed {
    /// Somebody has read its manifest.
    manifest_read: bool,
    readers: BTreeMap<String, Reader>,
}

/// One that could not read a checkpoint.
#[derive(Debug)]
pub(crate) struct Reader {
    pub host: String,
    /// It has read the manifest, and could not read a file that it names.
    pub manifest_read: bool,
}

impl Failed {
    /// Those whose failure says something about the checkpoint.
    fn counted(&self) -> impl Iterator<Item = (&String, &Reader)> {
        self.readers.iter().filter(|(_, reader)| reader.manifest_read || !self.manifest_read)
    }
}

impl Readers {
    /// `has_loaded`: another has loaded the checkpoint.
    pub fn failed(&mut self, step: Step, worker: &str, reader: Reader, has_loaded: bool) {
        let failed = self.by_step.entry(step).or_default();
        failed.manifest_read |= reader.manifest_read || has_loaded;
        failed.readers.insert(worker.into(), reader);
    }

    /// Enough different workers have failed to read it. `has_untried`: another may take a place, and has not tried yet.
    pub fn is_unreadable(&self, step: Step, pool: &Pool, has_untried: bool) -> bool {
        let Some(failed) = self.by_step.get(&step) else { return false };
        let hosts: BTreeSet<&str> = failed.counted().map(|(_, reader)| reader.host.as_str()).collect();
        let has_other_hosts = pool.iter().any(|w| !hosts.contains(w.register.host.as_str()));
        let num_failed = failed.counted().count();
        let is_seen_twice = num_failed >= 2 && (hosts.len() >= 2 || !has_other_hosts);
        is_seen_twice && (!has_untried || num_failed >= MAX_READERS)
    }

    /// The checkpoint is to blame: returns those who are not.
    pub fn acquit(&mut self, step: Step) -> Vec<String> {
        let failed = self.by_step.remove(&step).unwrap_or_default();
        failed.counted().map(|(worker, _)| worker.clone()).collect()
    }

    /// All are tried again, or none is needed any more.
    pub fn clear(&mut self) {
        self.by_step.clear();
    }
}
