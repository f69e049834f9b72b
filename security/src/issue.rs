//! A private CA in a folder, for a test or a small cluster, and the certificates that it makes. Whoever has a CA already uses that one:
//! what counts in a certificate is its URI (see [`crate::identity`]).
//!
//! ```text
//!   <folder>/ca.pem, ca-key.pem       the CA; its key stays on this machine, of mode 0600
//!   <folder>/issued                   a line each certificate: name, role, serial number, end, hosts
//!   <folder>/revoked                  serial numbers, for `toroid coordinator --revoked`
//!   <folder>/<name>/ca.pem, cert.pem, key.pem     to be copied to whom they are for
//! ```
//!
//! Files appear whole (written aside, then renamed), the key before its certificate.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use crate::files::{CA_FILE, CERT_FILE, KEY_FILE, read_certificates};
use crate::identity::{self, Serial};
use crate::{Identity, Name, Role, SecurityError};

const CA_KEY_FILE: &str = "ca-key.pem";
const ISSUED_FILE: &str = "issued";
/// Serial numbers of certificates that are not taken any more.
pub const REVOKED_FILE: &str = "revoked";
/// Of the CA itself.
const CA_VALID: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of two machines may differ by so much.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

/// A CA, ready to make certificates.
pub struct Authority {
    folder: PathBuf,
    cluster: Name,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate to be made.
#[derive(Debug, Clone)]
pub struct Request {
    pub name: Name,
    pub role: Role,
    /// Names of DNS and addresses, for clients that look at them: those of others than Toroid do.
    pub hosts: Vec<String>,
    pub valid: Duration,
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub name: Name,
    pub role: Role,
    pub serial: Serial,
    pub not_after: SystemTime,
    pub hosts: Vec<String>,
}

impl Authority {
    /// Makes a CA; an error where the folder has one.
    pub fn init(folder: &Path, cluster: &Name) -> Result<Authority, SecurityError> {
        make_folder(folder)?;
        let ca = folder.join(CA_FILE);
        if ca.exists() {
            let reason = "the folder has a CA already; name another folder, or use `toroid certs issue` with this one";
            return Err(SecurityError::file(&ca, reason));
        }
        let key = KeyPair::generate()?;
        let params = ca_params(cluster)?;
        let cert = params.self_signed(&key)?;
        write(&folder.join(CA_KEY_FILE), pem("PRIVATE KEY", key.serialized_der()).as_bytes(), 0o600)?;
        write(&folder.join(REVOKED_FILE), b"# serial numbers of certificates that are not taken any more\n", 0o644)?;
        write(&ca, pem("CERTIFICATE", cert.der()).as_bytes(), 0o644)?;
        Ok(Authority { folder: folder.into(), cluster: cluster.clone(), issuer: Issuer::new(params, key) })
    }

    /// The CA of a folder.
    pub fn open(folder: &Path) -> Result<Authority, SecurityError> {
        let ca = folder.join(CA_FILE);
        if !ca.exists() {
            let reason =
                "there is no CA in this folder; make one with `toroid certs init`, or name its folder with --dir";
            return Err(SecurityError::file(&ca, reason));
        }
        let cluster = identity::cluster_of_ca(&read_certificates(&ca)?[0]).map_err(|e| SecurityError::file(&ca, e))?;
        let key_path = folder.join(CA_KEY_FILE);
        let pem = std::fs::read(&key_path).map_err(SecurityError::io("read", &key_path))?;
        let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| SecurityError::file(&key_path, e))?;
        let key = KeyPair::try_from(&der).map_err(|e| SecurityError::file(&key_path, e))?;
        Ok(Authority { folder: folder.into(), issuer: Issuer::new(ca_params(&cluster)?, key), cluster })
    }

    pub fn cluster(&self) -> &Name {
        &self.cluster
    }

    pub fn revoked(&self) -> PathBuf {
        self.folder.join(REVOKED_FILE)
    }

    /// The folder of somebody's credentials.
    pub fn folder_of(&self, name: &Name) -> PathBuf {
        self.folder.join(name.as_str())
    }

    /// Makes a certificate with a key of its own, and returns the folder that they are in.
    pub fn issue(&self, request: &Request) -> Result<PathBuf, SecurityError> {
        let folder = self.folder_of(&request.name);
        if folder.exists() {
            let reason = "there is one of this name already; renew it with `toroid certs renew`, or take another name";
            return Err(SecurityError::file(&folder, reason));
        }
        make_folder(&folder)?;
        self.make(request)?;
        Ok(folder)
    }

    /// Makes another certificate with another key in the place of one. The old one stays good until it ends, unless it is revoked.
    pub fn renew(&self, name: &Name, valid: Duration) -> Result<Issued, SecurityError> {
        let Issued { role, hosts, .. } = self.newest(name)?;
        self.make(&Request { name: name.clone(), role, hosts, valid })
    }

    /// Adds all certificates of this name that have not ended to the list of those that are not taken; returns how many.
    pub fn revoke(&self, name: &Name) -> Result<usize, SecurityError> {
        self.newest(name)?;
        let (now, mut text, mut num) = (SystemTime::now(), String::new(), 0);
        for issued in self.issued()?.iter().filter(|issued| issued.name == *name && issued.not_after > now) {
            // Writing into a string does not fail.
            let _ = writeln!(text, "{} # {name}", issued.serial);
            num += 1;
        }
        let path = self.revoked();
        let before = std::fs::read_to_string(&path).map_err(SecurityError::io("read", &path))?;
        write(&path, format!("{before}{text}").as_bytes(), 0o644)?;
        Ok(num)
    }

    fn newest(&self, name: &Name) -> Result<Issued, SecurityError> {
        let newest = self.issued()?.into_iter().rev().find(|issued| issued.name == *name);
        newest.ok_or_else(|| {
            let path = self.folder.join(ISSUED_FILE);
            SecurityError::file(
                &path,
                format!("no certificate was made for `{name}`; `toroid certs list` shows those that were"),
            )
        })
    }

    /// All certificates that were made, the oldest first.
    pub fn issued(&self) -> Result<Vec<Issued>, SecurityError> {
        let path = self.folder.join(ISSUED_FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(SecurityError::io("read", &path))?,
        };
        let lines = (1..).zip(text.lines());
        lines.map(|(n, line)| parse(line).map_err(|e| SecurityError::file(&path, format!("line {n}: {e}")))).collect()
    }

    fn make(&self, request: &Request) -> Result<Issued, SecurityError> {
        let Request { name, role, hosts, valid } = request;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name.as_str());
        params.not_before = date(SystemTime::now() - CLOCKS_DIFFER);
        params.not_after = date(SystemTime::now() + *valid);
        params.serial_number = Some(serial(&key));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(identity::uri(&self.cluster, *role, name).try_into()?)];
        if *role == Role::Coordinator {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            for host in hosts {
                params.subject_alt_names.push(match host.parse::<IpAddr>() {
                    Ok(address) => SanType::IpAddress(address),
                    Err(_) => SanType::DnsName(host.as_str().try_into()?),
                });
            }
        }
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer)?;
        let found = Identity::of(cert.der()).map_err(SecurityError::Wrong)?;
        let issued = Issued {
            name: found.name,
            role: found.role,
            serial: found.serial,
            not_after: found.not_after,
            hosts: hosts.clone(),
        };
        // What is not in the list could not be revoked.
        self.note(&issued)?;
        let (folder, ca) = (self.folder_of(name), self.folder.join(CA_FILE));
        let ca_pem = std::fs::read(&ca).map_err(SecurityError::io("read", &ca))?;
        write(&folder.join(CA_FILE), &ca_pem, 0o644)?;
        write(&folder.join(KEY_FILE), pem("PRIVATE KEY", key.serialized_der()).as_bytes(), 0o600)?;
        write(&folder.join(CERT_FILE), pem("CERTIFICATE", cert.der()).as_bytes(), 0o644)?;
        Ok(issued)
    }

    fn note(&self, issued: &Issued) -> Result<(), SecurityError> {
        let path = self.folder.join(ISSUED_FILE);
        let seconds = issued.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let Issued { name, role, serial, hosts, .. } = issued;
        let line = format!("{name} {role} {serial} {seconds} {}\n", hosts.join(","));
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let written = file.as_mut().map_err(|e| std::io::Error::new(e.kind(), e.to_string()));
        written
            .and_then(|file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(SecurityError::io("write", &path))
    }
}

fn parse(line: &str) -> Result<Issued, String> {
    let parts: Vec<&str> = line.split(' ').collect();
    let [name, role, serial, seconds, hosts] = parts[..] else { return Err("expected five words".into()) };
    let seconds: u64 = seconds.parse().map_err(|_| format!("`{seconds}` is no number of seconds"))?;
    Ok(Issued {
        name: name.parse()?,
        role: role.parse()?,
        serial: serial.parse()?,
        not_after: UNIX_EPOCH + Duration::from_secs(seconds),
        hosts: hosts.split(',').filter(|host| !host.is_empty()).map(str::to_string).collect(),
    })
}

fn ca_params(cluster: &Name) -> Result<CertificateParams, SecurityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = called(&format!("toroid {cluster} CA"));
    params.not_before = date(SystemTime::now() - CLOCKS_DIFFER);
    params.not_after = date(SystemTime::now() + CA_VALID);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(identity::ca_uri(cluster).try_into()?)];
    Ok(params)
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

fn date(at: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(at)
}

/// As random as the key that it is made from, of 127 bits, and positive.
fn serial(key: &KeyPair) -> SerialNumber {
    let digest = blake3::hash(key.public_key_raw());
    let mut bytes: [u8; 16] = digest.as_bytes()[..16].try_into().expect("a digest has 32 bytes");
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            let digit = |n: usize| char::from(ALPHABET[(bits >> (18 - 6 * n)) as usize & 63]);
            text.extend((0..4).map(|n| if n <= group.len() { digit(n) } else { '=' }));
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// Nobody else may list or enter it.
fn make_folder(path: &Path) -> Result<(), SecurityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(SecurityError::io("make the folder", path))
}

/// Writes a file that appears whole, or not.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SecurityError> {
    let aside = path.with_extension("new");
    let attempt = || {
        // Of an attempt that was cut short; it may have another mode.
        let _ = std::fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    attempt().map_err(SecurityError::io("write", path))
}
