//! A channel to a coordinator: in clear text, or over TLS with or without a certificate of this end.
//!
//! Who is at the other end is known by its certificate's role, `coordinator`, and not by a name of DNS: coordinators move, and a private CA gives
//! that role to nobody else. The connection ends when the coordinator's certificate does.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::files::Loaded;
use crate::guarded::{Guarded, until};
use crate::{Files, Identity, Role, SecurityError, Watched, provider};

/// What is asked for by name in a handshake, whatever the address: certificates are not looked at for it.
const SERVER_NAME: &str = "coordinator.toroid";
/// The protocol above TLS.
pub(crate) const ALPN: &[u8] = b"h2";

/// How this end shows who it is, and knows who the other is.
#[derive(Clone, Default)]
pub struct Credentials {
    /// `None`: clear text.
    inner: Option<Arc<Inner>>,
}

struct Inner {
    watched: Watched,
    token: Option<String>,
}

impl fmt::Debug for Credentials {
    /// No secret of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner {
            None => f.write_str("clear text"),
            Some(inner) => write!(f, "TLS by {}", inner.watched.files().ca.display()),
        }
    }
}

impl Credentials {
    /// Clear text: nobody is known at either end.
    pub fn none() -> Credentials {
        Credentials::default()
    }

    /// TLS. `token`: sent with each call, for who has no certificate.
    pub fn tls(files: Files, token: Option<String>) -> Result<Credentials, SecurityError> {
        let inner = Inner { watched: Watched::open(files)?, token };
        Ok(Credentials { inner: Some(Arc::new(inner)) })
    }

    pub fn is_tls(&self) -> bool {
        self.inner.is_some()
    }

    pub fn token(&self) -> Option<&str> {
        self.inner.as_ref()?.token.as_deref()
    }

    /// What this end shows is another thing than before whenever this is; `None` where it shows nothing.
    pub fn own_serial(&self) -> Option<String> {
        let loaded = self.inner.as_ref()?.watched.current();
        Some(loaded.own.as_ref()?.identity.serial.to_string())
    }

    /// Why the files as they are now are not taken, so that those before stay in force; `None`: they are.
    pub fn complaint(&self) -> Option<String> {
        self.inner.as_ref()?.watched.complaint()
    }
}

/// Connects `endpoint`, whose scheme does not matter: TLS is a matter of the credentials.
pub async fn connect(endpoint: Endpoint, credentials: &Credentials) -> Result<Channel, tonic::transport::Error> {
    let Some(inner) = credentials.inner.clone() else { return endpoint.connect().await };
    let connector = tower::service_fn(move |uri: Uri| {
        let loaded = inner.watched.current();
        async move { open(&uri, &loaded).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

/// Connects to a socket of this machine, whatever `endpoint` names, in clear text: who may reach it is a matter of the file.
pub async fn connect_unix(endpoint: Endpoint, path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

type Opened = Guarded<tokio_rustls::client::TlsStream<TcpStream>>;

async fn open(uri: &Uri, loaded: &Loaded) -> io::Result<Opened> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} names no {what}"));
    let host = uri.host().ok_or_else(|| wrong("host"))?.trim_matches(['[', ']']);
    let port = uri.port_u16().ok_or_else(|| wrong("port"))?;
    let config = config(loaded).map_err(io::Error::other)?;
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME).expect("a name of DNS");
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(in_words)?;
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = certificate.and_then(|certificate| Identity::of(certificate).ok());
    let not_after = peer.ok_or_else(|| io::Error::other("the coordinator showed no certificate"))?.not_after;
    let ends = Box::pin(async move {
        until(not_after).await;
        "the coordinator's certificate has ended"
    });
    Ok(Guarded::new(tls, ends))
}

/// What a failed handshake means.
fn in_words(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let words = match tls {
        Some(rustls::Error::InvalidMessage(_)) => "it speaks no TLS: it may run with --insecure".to_string(),
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "its certificate is of another CA than --ca names".to_string()
        }
        Some(rustls::Error::InvalidCertificate(e)) => format!("its certificate is not taken: {e}"),
        Some(e) => format!("the TLS handshake failed: {e}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection within the TLS handshake: it may run with --insecure, or have too many connections".to_string()
        }
        None => return error,
    };
    io::Error::new(io::ErrorKind::InvalidData, words)
}

pub(crate) fn config(loaded: &Loaded) -> Result<ClientConfig, rustls::Error> {
    let verifier = CoordinatorVerifier { roots: Arc::clone(&loaded.roots), revoked: loaded.revoked.clone() };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &loaded.own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key)))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Takes certificates of the CA with the role of a coordinator.
#[derive(Debug)]
struct CoordinatorVerifier {
    roots: Arc<rustls::RootCertStore>,
    revoked: crate::Revoked,
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = provider().signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, algorithms)?;
        let peer = Identity::of(certificate).map_err(rustls::Error::General)?;
        if self.revoked.has(&peer.serial) {
            return Err(rustls::CertificateError::Revoked.into());
        }
        match peer.role {
            Role::Coordinator => Ok(ServerCertVerified::assertion()),
            role => Err(rustls::Error::General(format!(
                "the other end is {} with the role {role}, and no coordinator",
                peer.name
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
