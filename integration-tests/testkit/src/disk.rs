//! File systems that can be full.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::path;

/// A file system of a stated size.
pub struct SmallDisk<'a> {
    at: &'a Path,
}

impl SmallDisk<'_> {
    pub fn mount<'a>(at: &'a Path, size: &str) -> Result<SmallDisk<'a>> {
        std::fs::create_dir_all(at)?;
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs", path(at)]).output()?;
        let stderr = String::from_utf8_lossy(&mount.stderr);
        ensure!(mount.status.success(), "cannot mount a small file system (are you root?): {stderr}");
        Ok(SmallDisk { at })
    }

    pub fn resize(&self, size: &str) -> Result<()> {
        let options = format!("remount,size={size}");
        let mount = Command::new("mount").args(["-o", &options, path(self.at)]).output()?;
        ensure!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
        Ok(())
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // A failed test may leave it; the folder is a temporary one.
        let _ = Command::new("umount").args(["-l", path(self.at)]).status();
    }
}
