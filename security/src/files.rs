//! Certificates and keys in files, read again when the files change.
//!
//! They are looked at when they are asked for, once a second at most: that needs no watcher of the system, and sees what Kubernetes does with
//! symlinks as well as a plain copy. While only one file of a pair has been replaced, key and certificate do not match: the pair before stays.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::{Identity, Revoked, SecurityError, provider};

/// The names of the files in a folder of credentials, as `toroid certs issue` makes it.
pub const CA_FILE: &str = "ca.pem";
pub const CERT_FILE: &str = "cert.pem";
pub const KEY_FILE: &str = "key.pem";

/// Files that were changed are noticed within this time.
pub const POLL: Duration = Duration::from_secs(1);
/// Of a file of certificates or serial numbers, at most.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Where credentials are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the CA, one or more: peers must have theirs from one of them.
    pub ca: PathBuf,
    /// Certificate (with those between it and the CA, if any) and key; `None`: this end shows none.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// Serial numbers of certificates that are not taken any more.
    pub revoked: Option<PathBuf>,
}

impl Files {
    /// Of a folder that `toroid certs issue` made.
    pub fn of_folder(folder: &Path) -> Files {
        let pair = (folder.join(CERT_FILE), folder.join(KEY_FILE));
        Files { ca: folder.join(CA_FILE), pair: Some(pair), revoked: None }
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        let pair = self.pair.iter().flat_map(|(cert, key)| [cert, key]);
        [&self.ca].into_iter().chain(pair).chain(&self.revoked).map(PathBuf::as_path)
    }
}

/// What the files had in them.
pub struct Loaded {
    pub roots: Arc<RootCertStore>,
    pub own: Option<Own>,
    pub revoked: Revoked,
}

/// What this end shows to others.
#[derive(Clone)]
pub struct Own {
    pub key: Arc<CertifiedKey>,
    pub identity: Identity,
}

/// Files that are looked at again and again.
pub struct Watched {
    files: Files,
    state: Mutex<State>,
}

struct State {
    loaded: Arc<Loaded>,
    /// Of what was looked at last, taken or not.
    digest: blake3::Hash,
    looked_at: Instant,
    /// What is wrong with the files now.
    complaint: Option<String>,
}

impl Watched {
    /// An error where they cannot be used now.
    pub fn open(files: Files) -> Result<Watched, SecurityError> {
        let bytes = read_all(&files)?;
        let loaded = Arc::new(load(&files, &bytes)?);
        if let Some(own) = &loaded.own
            && own.identity.not_after <= SystemTime::now()
        {
            let (cert, _) = files.pair.as_ref().expect("there is a certificate only where there are files of it");
            return Err(SecurityError::file(cert, "its certificate has ended; renew it with `toroid certs renew`"));
        }
        let state = State { loaded, digest: digest(&bytes), looked_at: Instant::now(), complaint: None };
        Ok(Watched { files, state: Mutex::new(state) })
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What is in force now.
    pub fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.state().loaded)
    }

    /// What is wrong with the files now.
    pub fn complaint(&self) -> Option<String> {
        self.state().complaint.clone()
    }

    /// As the files were seen last, a second ago at most.
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while it had the lock has left a whole state.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked_at.elapsed() >= POLL {
            state.looked_at = Instant::now();
            self.look(&mut state);
        }
        state
    }

    fn look(&self, state: &mut State) {
        let complaint = match read_all(&self.files) {
            Ok(bytes) => {
                let found = digest(&bytes);
                if found == state.digest {
                    return;
                }
                state.digest = found;
                match load(&self.files, &bytes) {
                    Ok(loaded) => {
                        let until = loaded.own.as_ref().map_or_else(String::new, |own| {
                            let left = own.identity.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                            format!(", the certificate is good for {} days", left.as_secs() / 86_400)
                        });
                        tracing::info!("read the credentials again, {} was changed{until}", self.files.ca.display());
                        state.loaded = Arc::new(loaded);
                        None
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(words) = complaint.as_ref().filter(|_| complaint != state.complaint) {
            tracing::warn!("the credentials were changed and cannot be used, those before stay in force: {words}");
        }
        state.complaint = complaint;
    }
}

fn digest(all: &[Vec<u8>]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for bytes in all {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hasher.finalize()
}

/// The bytes of all files, in the order of [`Files::all`].
fn read_all(files: &Files) -> Result<Vec<Vec<u8>>, SecurityError> {
    if let Some((_, key)) = &files.pair {
        refuse_open_key(key)?;
    }
    files.all().map(read).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(SecurityError::io("read", path))?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(SecurityError::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(SecurityError::file(path, format!("it is longer than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(bytes)
}

/// A key that everybody on the machine may read is none.
fn refuse_open_key(path: &Path) -> Result<(), SecurityError> {
    let mode = std::fs::metadata(path).map_err(SecurityError::io("read", path))?.permissions().mode();
    match mode & 0o007 {
        0 => Ok(()),
        _ => Err(SecurityError::file(
            path,
            format!("its mode is {:03o}: everybody on this machine may read this key; `chmod 600` it", mode & 0o777),
        )),
    }
}

fn load(files: &Files, bytes: &[Vec<u8>]) -> Result<Loaded, SecurityError> {
    let mut bytes = bytes.iter();
    let mut next = || bytes.next().expect("each file was read");
    let mut roots = RootCertStore::empty();
    for cert in certificates(&files.ca, next())? {
        roots.add(cert).map_err(|e| SecurityError::file(&files.ca, format!("it has no certificate of a CA: {e}")))?;
    }
    let own = match &files.pair {
        Some((cert, key)) => Some(own(cert, next(), key, next())?),
        None => None,
    };
    let revoked = match &files.revoked {
        Some(path) => Revoked::parse(&String::from_utf8_lossy(next()), path)?,
        None => Revoked::default(),
    };
    Ok(Loaded { roots: Arc::new(roots), own, revoked })
}

fn own(cert: &Path, cert_pem: &[u8], key: &Path, key_pem: &[u8]) -> Result<Own, SecurityError> {
    let chain = certificates(cert, cert_pem)?;
    let identity = Identity::of(&chain[0]).map_err(|e| SecurityError::file(cert, e))?;
    let private = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|e| SecurityError::file(key, format!("it has no private key in PEM: {e}")))?;
    let certified = CertifiedKey::from_der(chain, private, &provider());
    let certified = certified.map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => {
            SecurityError::file(key, format!("it is not the key of the certificate in {}", cert.display()))
        }
        e => SecurityError::file(key, e),
    })?;
    Ok(Own { key: Arc::new(certified), identity })
}

/// The certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| SecurityError::file(path, format!("it is no PEM: {e}")))?;
    match found.is_empty() {
        true => Err(SecurityError::file(path, "it has no certificate in PEM")),
        false => Ok(found),
    }
}

/// The certificates of a PEM file.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    certificates(path, &read(path)?)
}
