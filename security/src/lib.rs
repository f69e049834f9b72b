//! Who is at the other end of a connection: certificates of a private CA, TLS 1.3, roles.
//!
//! ```text
//!   identity  what a certificate says: cluster, role (`toroid_proto::Role`), name
//!   issue     makes a CA and certificates (`toroid certs`), for a test or a small cluster
//!   files     a pair of certificate and key, read again when its files change     revoked   serial numbers that are not taken any more
//!   server    a listener that shakes hands in time and knows its peers            client    a channel to a coordinator
//!   guarded   a connection that ends when its peer's certificate does            roots     below which folders jobs may name paths
//! ```
//!
//! Invariants: a peer is who its certificate says, or nobody: nothing is taken from a name in a message or in DNS. No session is resumed, so
//! that each connection is judged by the certificates of now. A pair that cannot be read leaves the one before in force, and says so once.
//!
//! Deliberately absent: what a role may call, which is the coordinator's (`grpc::access`), and bytes between workers.

#![forbid(unsafe_code)]

pub mod client;
mod files;
mod guarded;
pub mod identity;
pub mod issue;
mod revoked;
mod roots;

pub mod server;

pub use client::{Credentials, connect, connect_unix};
pub use files::{Files, Watched};
pub use guarded::{Guarded, until};
pub use identity::{Identity, Name};
pub use revoked::Revoked;
pub use roots::{RootError, Roots};
pub use toroid_proto::Role;

use std::path::{Path, PathBuf};

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("cannot {what} {}: {error}", .path.display())]
    Io { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error("cannot use {}: {reason}", .path.display())]
    File { path: PathBuf, reason: String },
    #[error("{0}")]
    Wrong(String),
    #[error("TLS cannot be set up: {error}")]
    Tls { error: rustls::Error },
    #[error("a certificate cannot be made: {error}")]
    Make { error: rcgen::Error },
}

impl From<rustls::Error> for SecurityError {
    fn from(error: rustls::Error) -> SecurityError {
        SecurityError::Tls { error }
    }
}

impl From<rcgen::Error> for SecurityError {
    fn from(error: rcgen::Error) -> SecurityError {
        SecurityError::Make { error }
    }
}

impl SecurityError {
    fn file(path: &Path, reason: impl std::fmt::Display) -> SecurityError {
        SecurityError::File { path: path.into(), reason: reason.to_string() }
    }

    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SecurityError {
        move |error| SecurityError::Io { what, path: path.into(), error }
    }
}

/// The cryptography that is used everywhere: `ring`.
pub(crate) fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    rustls::crypto::ring::default_provider().into()
}
