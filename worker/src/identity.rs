//! What binds a worker's id to it: a secret that it draws once, shows whenever it registers, and keeps for as long as it has the id.
//!
//! An id that the process made for itself ends with it, and so does its secret. One that was given (`--id`) outlives the process: its secret is
//! in a file of the cache folder, of mode 0600, by the digest of the id.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::system;

const SECRET_BYTES: usize = 32;

pub(crate) fn new_secret() -> io::Result<Vec<u8>> {
    let mut secret = vec![0; SECRET_BYTES];
    system::fill_random(&mut secret)?;
    Ok(secret)
}

/// The secret of this id, drawn where there is none yet. Two processes that begin at once have one and the same.
pub(crate) fn kept_secret(cache: &Path, id: &str) -> Result<Vec<u8>, (PathBuf, io::Error)> {
    let folder = cache.join("ids");
    let path = folder.join(&blake3::hash(id.as_bytes()).to_hex()[..32]);
    let attempt = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        if let Some(secret) = read(&path)? {
            return Ok(secret);
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let aside = path.with_extension(format!("{}-{number}", std::process::id()));
        // Of a process of that number that died here.
        let _ = std::fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(&new_secret()?)?;
        file.sync_all()?;
        // The first one counts: a link is not made over another file.
        let linked = std::fs::hard_link(&aside, &path);
        std::fs::remove_file(&aside)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => read(&path)?.ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    };
    attempt().map_err(|error| (path.clone(), error))
}

/// `None`: there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut secret = Vec::new();
    file.take(SECRET_BYTES as u64 + 1).read_to_end(&mut secret)?;
    match secret.len() {
        SECRET_BYTES => Ok(Some(secret)),
        found => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "it has {found} bytes, expected {SECRET_BYTES}; remove it, and have the id forgotten (`toroid workers --forget`)"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_given_id_keeps_its_secret_and_no_other_has_it() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let secret = |id: &str| kept_secret(dir.path(), id).map_err(|(_, error)| error);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let cache = dir.path().to_path_buf();
                std::thread::spawn(move || kept_secret(&cache, "../w3").ok())
            })
            .collect();
        let first = secret("../w3")?;
        for thread in threads {
            assert_eq!(thread.join().ok().flatten().as_ref(), Some(&first));
        }
        assert_eq!(secret("../w3")?, first);
        assert_ne!(secret("w4")?, first);
        assert_ne!(new_secret()?, new_secret()?);
        for entry in std::fs::read_dir(dir.path().join("ids"))? {
            assert_eq!(entry?.metadata()?.permissions().mode() & 0o777, 0o600);
        }
        Ok(())
    }
}
