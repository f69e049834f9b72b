//! Folders that a command makes anew each time: it removes what it has made itself, and nothing else (T-10).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Who makes the folders.
pub(crate) struct Maker {
    /// An empty file in each of them says so.
    mark: &'static str,
    /// For messages.
    name: &'static str,
}

pub(crate) const BENCH: Maker = Maker { mark: ".made-by-toroid-bench", name: "a benchmark" };
/// Certificates of a cluster on this machine, good for a run.
pub(crate) const LOCAL: Maker = Maker { mark: ".made-by-toroid-local", name: "`toroid local`" };

impl Maker {
    /// Makes `folder` anew; what an earlier run has left there goes. A folder of anybody else's is left alone.
    pub fn make_anew(&self, folder: &Path) -> Result<()> {
        self.remove(folder)?;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        self.sign(folder)
    }

    /// From now on the folder is this maker's.
    pub fn sign(&self, folder: &Path) -> Result<()> {
        let mark = folder.join(self.mark);
        fs::write(&mark, "").with_context(|| format!("write {}", mark.display()))
    }

    /// Removes a folder of this maker's, if it is there.
    pub fn remove(&self, folder: &Path) -> Result<()> {
        let is_own = match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => {
                found.with_context(|| format!("look at {}", folder.display()))?.is_dir()
                    && folder.join(self.mark).exists()
            }
        };
        ensure!(
            is_own,
            "{} is in the way and was not made by {}: move it, or name another folder with --dir",
            folder.display(),
            self.name
        );
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T-10: what a user keeps under the same name is nobody's who makes folders.
    #[test]
    fn only_a_folder_of_its_own_is_removed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("certs");
        for _ in 0..2 {
            LOCAL.make_anew(&folder)?;
            fs::write(folder.join("left"), "")?;
        }
        assert!(BENCH.make_anew(&folder).is_err_and(|e| e.to_string().contains("was not made by a benchmark")));
        LOCAL.remove(&folder)?;
        LOCAL.remove(&folder)?;
        fs::create_dir(&folder)?;
        fs::write(folder.join("of a user"), "")?;
        for refused in [LOCAL.make_anew(&folder), LOCAL.remove(&folder)] {
            assert!(refused.is_err_and(|e| e.to_string().contains("was not made by `toroid local`")));
        }
        assert!(folder.join("of a user").exists());
        Ok(())
    }
}
