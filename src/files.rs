//! Files that users name, read within a bound: a device or a pipe may have no end.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use toroid_hf::open_regular;

/// The text of `path`, which is called `what` (`the job file`); an error where it has more than `max_bytes`, or is no UTF-8.
pub fn read_text(path: &Path, what: &str, max_bytes: u64) -> Result<String> {
    let bytes = read_bytes(path, what, max_bytes)?;
    let reading = || format!("read {what} {}", path.display());
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("it is not UTF-8 text")).with_context(reading)
}

/// All of `path`; an error where it has more than `max_bytes`.
pub fn read_bytes(path: &Path, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
    read_opened(File::open(path), path, what, max_bytes)
}

/// The same of a file of a model's folder, which is a regular one.
pub fn read_regular(path: &Path, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
    read_opened(open_regular(path), path, what, max_bytes)
}

/// The same of a regular file; `None`: there is no such file.
pub fn read_regular_if_there(path: &Path, what: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    if_there(open_regular(path), path, what, max_bytes)
}

/// All of `path`; `None`: there is no such file.
pub fn read_if_there(path: &Path, what: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    if_there(File::open(path), path, what, max_bytes)
}

fn if_there(opened: io::Result<File>, path: &Path, what: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    match opened {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        opened => read_opened(opened, path, what, max_bytes).map(Some),
    }
}

fn read_opened(opened: io::Result<File>, path: &Path, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    opened
        .and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes))
        .with_context(|| format!("read {what} {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= max_bytes,
        "cannot read {what} {}: it has more than {max_bytes} bytes",
        path.display()
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_refused() {
        let error = read_text(Path::new("/dev/zero"), "the table", 1000).expect_err("a refusal").to_string();
        assert_eq!(error, "cannot read the table /dev/zero: it has more than 1000 bytes");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("text");
        std::fs::write(&path, [b'a'; 1000]).expect("a file");
        assert_eq!(read_text(&path, "the table", 1000).expect("its text").len(), 1000);
        std::fs::write(&path, [0xff]).expect("a file");
        let error = format!("{:#}", read_text(&path, "the table", 1000).expect_err("a refusal"));
        assert!(error.ends_with("it is not UTF-8 text"), "{error}");
        let none = folder.path().join("none");
        assert!(read_text(&none, "the table", 1000).is_err());
        assert_eq!(read_if_there(&none, "the table", 1000).expect("nothing"), None);
        assert_eq!(read_if_there(&path.join("in a file"), "the table", 1000).expect("nothing"), None);
        assert!(read_if_there(Path::new("/dev/zero"), "the table", 1000).is_err());
    }
}
