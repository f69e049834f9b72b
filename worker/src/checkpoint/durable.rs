//! A local file that appears whole and durable, or not at all: temporary file beside it, fsync, rename, fsync of the
//! folder.
//!
//! For the files that users name themselves (exports) and for caches; checkpoints go through `objects`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Dropped before [`AtomicFile::commit`], nothing of it remains.
pub(crate) struct AtomicFile {
    /// `None` once it is committed.
    writer: Option<BufWriter<File>>,
    temporary: PathBuf,
    target: PathBuf,
}

impl AtomicFile {
    /// A file that becomes `target`. Its temporary name is of this process alone, so several may write the same target:
    /// the last one stays.
    pub fn create(target: &Path) -> io::Result<AtomicFile> {
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
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(AtomicFile { writer, temporary: temporary.into(), target: target.into() })
    }

    fn writer(&mut self) -> &mut BufWriter<File> {
        self.writer.as_mut().expect("a file is written to before it is committed")
    }

    /// Makes the file visible, durably. `head` overwrites the first bytes: what is known only once all is written.
    pub fn commit(mut self, head: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.writer().flush()?;
        let file = self.writer().get_ref();
        file.write_all_at(head, 0)?;
        file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.writer = None;
        let folder = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
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
