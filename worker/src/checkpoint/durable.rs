//! A local file that appears whole and durable, or not at all: temporary file beside it, fsync, rename, fsync of the
//! folder.
//!
//! It takes the place of a regular file or of nothing. A symbolic link is followed; a device, a pipe or a folder is refused.
//!
//! Bytes go to the kernel as they lie in memory where a write is large, and it begins early to write them out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, CWD, RenameFlags};
use rustix::io::Errno;

/// What is buffered: as much goes from the second-level cache of a core to the kernel at once.
const BUFFER_BYTES: usize = 256 << 10;
/// The kernel is told to write out as much at once.
const WRITE_OUT_BYTES: u64 = 8 << 20;

/// Dropped before [`AtomicFile::commit`], nothing of it remains.
pub(crate) struct AtomicFile {
    /// `None` once it is committed.
    writer: Option<BufWriter<File>>,
    temporary: PathBuf,
    target: PathBuf,
    /// Bytes so far, and those of them that the kernel was told to write out.
    written: u64,
    out: u64,
}

/// Writes all of a file, which appears whole and durable in the place of a former one, or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit(&[])
}

impl AtomicFile {
    /// A file that becomes `target`. Its temporary name is of this process alone, so several may write the same target:
    /// the last one stays.
    pub fn create(target: &Path) -> io::Result<AtomicFile> {
        let target = &followed(target)?;
        let Some(name) = target.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        AtomicFile::create_as(target, &target.with_file_name(hidden))
    }

    /// The same by a temporary name of the caller's, in the folder of `target`; what a writer that died has left there
    /// is overwritten.
    pub fn create_as(target: &Path, temporary: &Path) -> io::Result<AtomicFile> {
        check_replaceable(target)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
        let writer = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(AtomicFile { writer, temporary: temporary.into(), target: target.into(), written: 0, out: 0 })
    }

    fn writer(&mut self) -> &mut BufWriter<File> {
        self.writer.as_mut().expect("a file is written to before it is committed")
    }

    /// Makes the file visible, durably. `head` overwrites the first bytes: what is known only once all is written.
    pub fn commit(mut self, head: &[u8]) -> io::Result<()> {
        self.sync(head)?;
        // It may have become another thing meanwhile.
        check_replaceable(&self.target)?;
        fs::rename(&self.temporary, &self.target)?;
        self.writer = None;
        self.sync_folder()
    }

    /// Makes the file visible, durably, if there is none of its name yet; says whether it did.
    pub fn commit_new(mut self) -> io::Result<bool> {
        self.sync(&[])?;
        // At once, so that of two writers one is told: by a new name that must not be there, or a second name where the file system does
        // not know that.
        let (from, to) = (&self.temporary, &self.target);
        let renamed = match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
            }
            renamed => renamed.map_err(io::Error::from),
        };
        match renamed {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            renamed => renamed?,
        }
        self.writer = None;
        self.sync_folder().map(|()| true)
    }

    fn sync(&mut self, head: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.writer().flush()?;
        let file = self.writer().get_ref();
        file.write_all_at(head, 0)?;
        file.sync_all()
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }

    /// Has the kernel begin to write out what it has: until the sync the disk would have nothing to do.
    fn write_out(&mut self) {
        if self.written - self.out < WRITE_OUT_BYTES {
            return;
        }
        let len = std::num::NonZeroU64::new(self.written - self.out);
        // Advice only: the sync is what counts.
        let from = self.out;
        let _ = rustix::fs::fadvise(self.writer().get_ref(), from, len, Advice::DontNeed);
        self.out = self.written;
    }
}

/// The path that `path` leads to where it is a symbolic link, of something that is there or not.
fn followed(path: &Path) -> io::Result<PathBuf> {
    // As many as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
                path = folder.join(fs::read_link(&path)?);
            }
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("more than {MAX_LINKS} symbolic links follow one another")))
}

/// Renaming a file over a device or a pipe would take that away.
fn check_replaceable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let text = format!("it is not a regular file but {what}, which would be replaced; name a file");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let num = self.writer().write(bytes)?;
        self.written += num as u64;
        self.write_out();
        Ok(num)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // The rest of the buffer is not worth writing, and may be what does not fit on the disk.
            drop(writer.into_parts());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn write(target: &Path) -> io::Result<()> {
        let mut file = AtomicFile::create(target)?;
        file.write_all(b"new")?;
        file.commit(&[])
    }

    #[test]
    fn a_file_or_nothing_is_replaced_and_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        symlink("old", at("to-old")).unwrap();
        symlink(at("folder/made"), at("to-nothing")).unwrap();
        symlink("to-nothing", at("to-link")).unwrap();
        for (target, found) in [("old", "old"), ("none", "none"), ("to-old", "old"), ("to-link", "folder/made")] {
            write(&at(target)).unwrap();
            assert_eq!(std::fs::read(at(found)).unwrap(), b"new", "{target}");
        }
        for link in ["to-old", "to-nothing", "to-link"] {
            assert!(std::fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
        }
        symlink("ring", at("ring")).unwrap();
        assert!(write(&at("ring")).unwrap_err().to_string().contains("symbolic links follow one another"));
    }

    #[test]
    fn nothing_else_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        symlink("pipe", at("to-pipe")).unwrap();
        for (target, what) in
            [("pipe", "a pipe"), ("socket", "a socket"), ("folder", "a folder"), ("to-pipe", "a pipe")]
        {
            let error = write(&at(target)).unwrap_err().to_string();
            assert_eq!(error, format!("it is not a regular file but {what}, which would be replaced; name a file"));
        }
        assert!(write(Path::new("/dev/null")).unwrap_err().to_string().contains("a device"));
        // One that came while the file was written.
        let mut file = AtomicFile::create(&at("late")).unwrap();
        file.write_all(b"new").unwrap();
        assert!(Command::new("mkfifo").arg(at("late")).status().unwrap().success());
        assert!(file.commit(&[]).is_err());
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 5, "nothing is left behind: {names:?}");
    }
}
