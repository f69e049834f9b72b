//! Whose certificates are taken: those of the system, or of the file that the environment names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::environment::Environment;

/// Where the distributions keep the certificates of public CAs: Debian, Fedora, openSUSE, Alpine.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Reads certificates when the first TLS connection is made: a store without TLS needs none.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    /// As the environment names it.
    named: Option<(&'static str, PathBuf)>,
}

impl Trust {
    pub fn of(environment: &Environment) -> Trust {
        let named = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"];
        Trust { named: named.into_iter().find_map(|name| Some((name, environment.get(name)?.into()))) }
    }

    /// What a TLS client needs; TLS 1.2 and 1.3, HTTP/1.1.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = self.roots()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| format!("TLS cannot be set up: {e}"))?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        if let Some((name, path)) = &self.named {
            return read(path).map_err(|e| format!("{name} names {}, and {e}", path.display()));
        }
        for path in SYSTEM.map(Path::new) {
            if path.exists() {
                return read(path).map_err(|e| format!("{}: {e}", path.display()));
            }
        }
        Err(format!(
            "this machine has no certificates of CAs (looked for {}): install the package ca-certificates, or set AWS_CA_BUNDLE",
            SYSTEM.join(", ")
        ))
    }
}

/// Certificates of a PEM file; those of forms that we do not know are left out, as others do with the system's.
fn read(path: &Path) -> Result<RootCertStore, String> {
    let file = CertificateDer::pem_file_iter(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let certificates = file.collect::<Result<Vec<_>, _>>().map_err(|e| format!("it is not PEM: {e}"))?;
    let mut roots = RootCertStore::empty();
    let (num_taken, _) = roots.add_parsable_certificates(certificates);
    if num_taken == 0 { Err("it has no certificate".into()) } else { Ok(roots) }
}
